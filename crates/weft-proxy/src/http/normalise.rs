// SPDX-License-Identifier: Apache-2.0
//! One canonical form of what a request asks for; what is ambiguous is refused, never repaired,
//! so that routing, policy and upstream cannot disagree. Pure.

use std::net::SocketAddr;

use http::header::HOST;
use http::{Request, Version};
use weft_model::decide::{Authority, Headers};

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
    check_method(request.method().as_str())?;
    if request.method() != http::Method::CONNECT {
        check_path(request.uri().path(), request.method() == http::Method::OPTIONS)?;
    }
    authority(request, dialled)
}

fn authority<B>(request: &Request<B>, dialled: Option<SocketAddr>) -> Result<Authority, String> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err("it has more than one Host header".into()),
        (Some(host), None) => {
            Some(host.to_str().map_err(|_| "its Host header is not text".to_owned())?)
        }
        (None, None) => None,
    };
    let parse = |text: &str| {
        Authority::parse(text).ok_or_else(|| format!("{text:?} is no host name with a port"))
    };
    match (request.uri().authority(), host) {
        (Some(target), host) => {
            let target = parse(target.as_str())?;
            // HTTP/1.1 lets the request target win; in HTTP/2 two different ones are an attack.
            if let Some(host) = host
                && request.version() == Version::HTTP_2
                && parse(host)? != target
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

fn check_method(method: &str) -> Result<(), String> {
    // Methods are compared exactly; one in lower case would slip past a rule that names it.
    if method.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(format!("the method {method:?} is not in upper case"));
    }
    Ok(())
}

/// What a path must be, of a client or made by a rewrite.
pub(super) fn check_path(path: &str, options: bool) -> Result<(), String> {
    if path == "*" && options {
        return Ok(());
    }
    if !path.starts_with('/') {
        return Err("its path does not begin with '/'".into());
    }
    let bytes = path.as_bytes();
    if bytes.iter().any(|b| matches!(b, b'\\' | b'#') || b.is_ascii_control()) {
        return Err("its path has a character that must be escaped".into());
    }
    if has_escaped(bytes, b'\\') || has_escaped(bytes, 0) {
        return Err("its path has an escaped backslash or zero byte".into());
    }
    if path.split('/').any(is_dot_segment) {
        return Err("its path has '.' or '..' segments; resolve them before sending".into());
    }
    Ok(())
}

/// `.`, `..`, also escaped and with path parameters (`..;x`), which some servers cut off.
fn is_dot_segment(segment: &str) -> bool {
    let segment = segment.split(';').next().unwrap_or("");
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    loop {
        rest = match rest {
            [] => return dots == 1 || dots == 2,
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
}

fn has_escaped(path: &[u8], byte: u8) -> bool {
    let digits = [b"0123456789abcdef", b"0123456789ABCDEF"];
    path.windows(3).any(|w| {
        let [b'%', hi, lo] = w else { return false };
        let value = |d: u8| digits.iter().find_map(|set| set.iter().position(|x| *x == d));
        match (value(*hi), value(*lo)) {
            (Some(hi), Some(lo)) => hi * 16 + lo == usize::from(byte),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        build: impl FnOnce(http::request::Builder) -> http::request::Builder,
    ) -> Result<String, String> {
        let request = build(Request::builder()).body(()).map_err(|e| e.to_string())?;
        canonical(&request, None).map(|a| match a.port {
            Some(port) => format!("{}:{port}", a.host),
            None => a.host,
        })
    }

    #[test]
    fn one_authority_in_one_form() {
        let host = |h: &'static str| check(|b| b.uri("/").header("host", h));
        assert_eq!(host("Users.Example.com.:80").unwrap(), "users.example.com:80");
        assert_eq!(host("[::1]:80").unwrap(), "::1:80");
        for bad in ["", "a b", "user@host", "a:b", "a:80:80", "[fe80::1%eth0]", "a/b", "a,b"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(check(|b| b.uri("/")).is_err());
        assert!(check(|b| b.uri("/").header("host", "a").header("host", "a")).is_err());
        // The target wins in HTTP/1.1; in HTTP/2 the two must agree.
        let both = |v| check(move |b| b.version(v).uri("http://a/").header("host", "b"));
        assert_eq!(both(Version::HTTP_11).unwrap(), "a");
        assert!(both(Version::HTTP_2).is_err());
    }

    #[test]
    fn reg_30_32_34_ambiguous_targets_are_refused() {
        let path = |p: &'static str| check(|b| b.uri(p).header("host", "a"));
        for good in ["/", "/a/b", "/a//b", "/a%2fb", "/.well-known/x", "/a..b", "/...", "/a;x=1"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in [
            "/a/../b",
            "/..",
            "/a/./b",
            "/%2e%2e/b",
            "/.%2E/b",
            "/..;/b",
            "/a\\b",
            "/a%5cb",
            "/%00",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(check(|b| b.method("get").uri("/").header("host", "a")).is_err());
        assert!(check(|b| b.method("PROPFIND").uri("/").header("host", "a")).is_ok());
    }
}
