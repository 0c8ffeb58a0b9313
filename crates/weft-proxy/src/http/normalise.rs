// SPDX-License-Identifier: Apache-2.0
//! One canonical form of what a request asks for; what is ambiguous is refused, never repaired,
//! so that routing, policy and upstream cannot disagree. A path is passed on byte for byte, as a
//! proxy must; what another server could make of it are its [`readings`], and a request is
//! ambiguous when one of them would be decided differently. Pure; called by the phases, by
//! `route.rs` and by `weft explain`.

use std::net::SocketAddr;

use http::header::HOST;
use http::{Request, Version};
use weft_model::decide::{Authority, Headers};

use super::made;
use crate::guards;

/// What routing reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical {
    pub authority: Authority,
}

/// Read access for the model's decisions.
#[derive(Debug)]
pub struct HeaderView<'a>(pub &'a http::HeaderMap);

impl Headers for HeaderView<'_> {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if let Some(held) = guards::loosely_any(self.0, name, f) {
            return held;
        }
        self.0.get_all(name).iter().any(|v| f(v.as_bytes()))
    }
}

/// Checks a request's head and returns its authority. `dialled` is the address that its client
/// connected to, when that is known: HTTP/1.0 need not say more.
///
/// # Errors
/// A sentence that says what is wrong with the request.
pub fn canonical<B>(
    request: &Request<B>,
    dialled: Option<SocketAddr>,
) -> Result<Authority, String> {
    guards::explode(request.headers());
    check_method(request.method().as_str())?;
    if request.method() != http::Method::CONNECT {
        check_path(request.uri().path(), request.method() == http::Method::OPTIONS)?;
    }
    authority(request, dialled)
}

fn authority<B>(request: &Request<B>, dialled: Option<SocketAddr>) -> Result<Authority, String> {
    let mut hosts = request.headers().iter().filter(|(name, _)| *name == HOST).map(|(_, v)| v);
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) if guards::on("host-twice") => {
            return Err("it has more than one Host header".into());
        }
        (Some(host), _) => {
            Some(host.to_str().map_err(|_| "its Host header is not text".to_owned())?)
        }
        (None, _) => None,
    };
    let parse = |text: &str| {
        let read = guards::loose_host(text).or_else(|| usual(text));
        let read = read.or_else(|| Authority::parse(text));
        read.ok_or_else(|| format!("{text:?} is no host name with a port"))
    };
    match (request.uri().authority(), host) {
        (Some(target), host) => {
            let target = parse(target.as_str())?;
            // HTTP/1.1 lets the request target win; in HTTP/2 two different ones are an attack.
            if let Some(host) = host
                && request.version() == Version::HTTP_2
                && parse(host)? != target
                && guards::on("authority-host")
            {
                return Err("its :authority and Host headers differ".into());
            }
            Ok(target)
        }
        (None, Some(host)) => parse(host),
        (None, None) if request.version() == Version::HTTP_10 => {
            let dialled =
                dialled.map(|at| Authority { host: at.ip().to_string(), port: Some(at.port()) });
            dialled.ok_or_else(|| "it names no host (HTTP/1.0 without Host header)".into())
        }
        (None, None) => Err("it has no Host header".into()),
    }
}

/// What nearly all clients send, read without taking memory: a name in its canonical form, and
/// perhaps a port. Anything else is the model's to read.
fn usual(text: &str) -> Option<Authority> {
    let (host, port) = match text.split_once(':') {
        None => (text, None),
        Some((host, port)) => {
            let digits = matches!(port.len(), 1..=5) && port.bytes().all(|b| b.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|_| digits)?))
        }
    };
    let mut label = 0;
    for byte in host.bytes() {
        label = match byte {
            b'.' if label > 0 => 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' => label + 1,
            _ => return None,
        };
    }
    let fits = label > 0 && host.len() <= 253;
    fits.then(|| Authority { host: made::string(host), port })
}

fn check_method(method: &str) -> Result<(), String> {
    // Methods are compared exactly; one in lower case would slip past a rule that names it.
    if method.bytes().any(|b| b.is_ascii_lowercase()) && guards::on("method-case") {
        return Err(format!("the method {method:?} is not in upper case"));
    }
    Ok(())
}

/// What a path must be, of a client or made by a rewrite.
pub(super) fn check_path(path: &str, options: bool) -> Result<(), String> {
    if is_usual_path(path.as_bytes()) || (path == "*" && options) {
        return Ok(());
    }
    if !path.starts_with('/') && guards::on("target-form") {
        return Err("its path does not begin with '/'".into());
    }
    let bytes = path.as_bytes();
    let odd = |b: &u8| matches!(b, b'\\' | b'#') || b.is_ascii_control();
    if bytes.iter().any(odd) && guards::on("path-characters") {
        return Err("its path has a character that must be escaped".into());
    }
    if memchr::memchr(b'%', bytes).is_some() && guards::on("path-escapes") {
        check_escapes(bytes)?;
    }
    if segments(path).any(is_dot_segment) && guards::on("path-dots") {
        return Err("its path has '.' or '..' segments; resolve them before sending".into());
    }
    Ok(())
}

/// Nearly all paths: visible ASCII without an escape, and no part that begins with a point. Those
/// pass every check below.
fn is_usual_path(path: &[u8]) -> bool {
    let mut before = 0;
    path.first() == Some(&b'/')
        && path.iter().all(|b| {
            let begins = std::mem::replace(&mut before, *b) == b'/';
            matches!(b, b'!'..=b'~') && !matches!(b, b'\\' | b'#' | b'%') && !(begins && *b == b'.')
        })
}

/// Escapes that are none, or hide what a path may not have.
fn check_escapes(path: &[u8]) -> Result<(), String> {
    for (i, _) in path.iter().enumerate().filter(|(_, b)| **b == b'%') {
        let rest = path.get(i..).unwrap_or_default();
        let Some(byte) = escaped(rest) else {
            return Err("its path has a '%' that begins no escape".into());
        };
        match byte {
            b'\\' => return Err("its path has an escaped backslash".into()),
            0..0x20 | 0x7f => return Err("its path has an escaped control character".into()),
            // What some decoders take for an ASCII character (RFC 3629 §10).
            0xc0 | 0xc1 if rest.get(3..).and_then(escaped).is_some_and(|b| b & 0xc0 == 0x80) => {
                return Err("its path has an overlong escape".into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// The parts between slashes, escaped ones too.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').flat_map(|part| part.split("%2f")).flat_map(|part| part.split("%2F"))
}

/// The byte that a text begins with in escaped form.
fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', hi, lo, ..] = text else { return None };
    let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(*hi)? * 16 + digit(*lo)?)
}

/// What other servers may take a path for that passed [`canonical`]: unescaped, with escaped
/// slashes for slashes, with double slashes as one, without path parameters, and all of that.
/// Empty for nearly all paths.
pub fn readings(path: &str) -> Vec<String> {
    let bytes = path.as_bytes();
    let has_marks = memchr::memchr2(b'%', b';', bytes).is_some();
    let plain = !has_marks && !bytes.windows(2).any(|pair| pair == b"//");
    if plain || !guards::on("path-readings") {
        return Vec::new();
    }
    let mut all: Vec<String> = Vec::new();
    let every = unparametrized(&unescaped(path, true));
    for reading in [
        unescaped(path, false),
        unescaped(path, true),
        unparametrized(path),
        merged(path),
        merged(&every),
    ] {
        if reading != path && !all.contains(&reading) {
            all.push(reading);
        }
    }
    all
}

/// Visible ASCII as itself, slashes only when asked for; digits of what stays in upper case
/// (RFC 3986 §6.2.2).
fn unescaped(path: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, mark) = rest.split_at(at);
        out.push_str(before);
        match escaped(mark.as_bytes()) {
            Some(b) if b.is_ascii_graphic() && b != b'%' && (slashes || b != b'/') => {
                out.push(char::from(b));
            }
            _ => out.push_str(&mark.get(..3).unwrap_or(mark).to_ascii_uppercase()),
        }
        rest = mark.get(3..).unwrap_or_default();
    }
    out + rest
}

fn unparametrized(path: &str) -> String {
    let segments = path.split('/').map(|s| s.split(';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join("/")
}

/// Several slashes in a row as one.
pub(super) fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// `.`, `..`, also escaped and with path parameters (`..;x`), which some servers cut off.
fn is_dot_segment(segment: &str) -> bool {
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    loop {
        rest = match rest {
            [] | [b';', ..] | [b'%', b'3', b'b' | b'B', ..] => return dots == 1 || dots == 2,
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
}

#[cfg(test)]
mod tests;
