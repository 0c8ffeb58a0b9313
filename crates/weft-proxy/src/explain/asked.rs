// SPDX-License-Identifier: Apache-2.0
//! The question of `weft explain` as a request and a place where it arrives: read from a URL, from
//! the query of the admin door, and written as one. Decides nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use weft_model::decide::pick_section;

use super::Place;
use crate::table::{Door, Table};

/// Characters of a question's URL and headers together, as they travel.
pub const QUERY_BYTES_MAX: usize = 64 * 1024;
/// Headers of one question.
const HEADERS_MAX: usize = 128;
/// The sidecar's own door; its port says nothing about routing.
const FORWARD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);

/// A request that is asked about.
#[derive(Debug)]
pub struct Asked {
    pub uri: Uri,
    pub https: bool,
    /// Of the URL, or what its scheme has.
    pub port: u16,
    /// With its target in origin form, and a `Host`.
    pub request: Request<()>,
    /// Of the `Host` header, without a port.
    pub host: String,
    /// The listener that is meant, where its proxy has several of one port.
    pub listener: Option<String>,
}

// === impl Asked ===

impl Asked {
    /// # Errors
    /// What is wrong with the question, for who asked.
    pub fn read(method: &str, url: &str, headers: &[(String, String)]) -> Result<Self, String> {
        let uri: Uri = url
            .parse()
            .map_err(|e| format!("{url:?} is no URL such as http://user/user/1: {e}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{url:?} is no http or https URL")),
        };
        let authority = uri.authority().ok_or("the URL names no host")?;
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let request = Request::builder().method(method);
        let mut request = match method {
            "CONNECT" => request.uri(format!("{}:{port}", authority.host())),
            _ => request.uri(path_of(&uri)),
        };
        let mut hosts: Vec<&str> = Vec::new();
        if headers.len() > HEADERS_MAX {
            return Err(format!("{} headers: at most {HEADERS_MAX} are read", headers.len()));
        }
        for (name, value) in headers {
            if name.eq_ignore_ascii_case("host") {
                hosts.push(value);
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("{name:?} cannot be the name of a header"))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("{value:?} cannot be the value of a header"))?;
            request = request.header(name, value);
        }
        if hosts.is_empty() {
            hosts.push(authority.as_str());
        }
        let host = hosts.first().and_then(|h| h.split(':').next()).unwrap_or_default().to_owned();
        let with = hosts.into_iter().fold(request, |request, host| request.header("host", host));
        let request = with.body(()).map_err(|e| e.to_string())?;
        Ok(Self { uri, https, port, request, host, listener: None })
    }

    /// Reads `url=URL&method=POST&header=Name:value&header=…&listener=NAME`, percent-encoded.
    ///
    /// # Errors
    /// What is wrong with it, for who asked.
    pub fn from_query(query: &str) -> Result<Self, String> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(format!("the question is longer than {QUERY_BYTES_MAX} bytes"));
        }
        let (mut method, mut url, mut listener) = ("GET".to_owned(), None, None);
        let mut headers = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)?;
            match name {
                "method" => method = value,
                "url" => url = Some(value),
                "listener" => listener = Some(value),
                "header" => {
                    let (name, value) = value
                        .split_once(':')
                        .ok_or_else(|| format!("header={value:?}: write it as Name:value"))?;
                    headers.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                other => {
                    return Err(format!(
                        "{other:?} is not read; url, method, header, listener are"
                    ));
                }
            }
        }
        let url = url.ok_or("name the request: ?url=http://HOST/PATH (percent-encoded)")?;
        Ok(Self { listener, ..Self::read(&method, &url, &headers)? })
    }

    /// The query that [`Asked::from_query`] reads as this.
    pub fn to_query(&self) -> String {
        let mut out = format!("url={}", encoded(&self.uri.to_string()));
        out.push_str(&format!("&method={}", encoded(self.request.method().as_str())));
        for (name, value) in self.request.headers() {
            let value = String::from_utf8_lossy(value.as_bytes());
            out.push_str(&format!("&header={}", encoded(&format!("{name}:{value}"))));
        }
        if let Some(listener) = &self.listener {
            out.push_str(&format!("&listener={}", encoded(listener)));
        }
        out
    }

    /// The same as a sidecar's forward proxy is told it: with the whole URL.
    ///
    /// # Errors
    /// When its host is none.
    pub fn absolute(&self) -> Result<Request<()>, String> {
        if self.request.method() == Method::CONNECT {
            return Ok(self.request.clone());
        }
        let (mut head, ()) = self.request.clone().into_parts();
        let host = head.headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
        let whole = Uri::builder().scheme("http").authority(host);
        let whole = whole.path_and_query(path_of(&self.uri)).build();
        head.uri = whole.map_err(|e| e.to_string())?;
        Ok(Request::from_parts(head, ()))
    }

    /// Where a client of a sidecar's pod asks, and what it says there.
    ///
    /// # Errors
    /// As [`Asked::absolute`].
    pub fn at_sidecar(&self) -> Result<(Place, Request<()>), String> {
        Ok((self.at(Door::Forward, FORWARD), self.absolute()?))
    }

    /// The listener of this table on the URL's port; of several, the one that serves its host.
    ///
    /// # Errors
    /// Which ports there are instead.
    pub fn at_gateway(&self, table: &Table) -> Result<(Place, Request<()>), String> {
        let mut found: Option<(bool, Door, SocketAddr)> = None;
        let mut ports = Vec::new();
        for entry in table.gateways() {
            let bind = &entry.listener.bind;
            ports.extend(bind.iter().map(SocketAddr::port));
            let local = match &self.listener {
                Some(name) if *name == *entry.name => bind.first(),
                Some(_) => None,
                None => bind.iter().find(|at| at.port() == self.port),
            };
            let Some(local) = local else { continue };
            let serves = pick_section(&entry.listener, &self.host.to_ascii_lowercase()).is_some();
            if found.as_ref().is_none_or(|(already, ..)| serves && !already) {
                let any = local.ip().is_unspecified();
                let ip = if any { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { local.ip() };
                let at = SocketAddr::new(ip, local.port());
                found = Some((serves, Door::Gateway(entry.name.clone()), at));
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let (_, door, local) = found.ok_or_else(|| {
            let what = match &self.listener {
                Some(name) => format!("named {name}"),
                None => format!("on port {}", self.port),
            };
            format!("no listener {what}; there are those of: {}", ports.join(", "))
        })?;
        Ok((self.at(door, local), self.request.clone()))
    }

    /// A place that this client reaches: over TLS it names the URL's host.
    pub fn at(&self, door: Door, local: SocketAddr) -> Place {
        let named = self.https.then(|| self.uri.host().unwrap_or_default());
        // TLS names no addresses (RFC 6066 §3).
        let name = named.filter(|name| name.parse::<IpAddr>().is_err() && !name.starts_with('['));
        Place {
            door,
            local,
            scheme: if self.https { "https" } else { "http" },
            server_name: name.map(|name| name.to_ascii_lowercase().into()),
        }
    }
}

fn path_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// `+` is a space, as forms have it.
fn decoded(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = rest.get(..2).and_then(|two| std::str::from_utf8(two).ok());
                let byte = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
                out.push(byte.ok_or_else(|| format!("{text:?}: after % stand two hex digits"))?);
                rest = rest.get(2..).unwrap_or_default();
            }
            other => out.push(*other),
        }
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_its_way_as_a_query() {
        let headers =
            [("x-user".to_owned(), "a b&c=%+~".to_owned()), ("Host".into(), "b.x".into())];
        let mut asked = Asked::read("PUT", "https://a.x:8443/p?q=1&r=%20", &headers).unwrap();
        asked.listener = Some("shop~web~8443".into());
        let read = Asked::from_query(&asked.to_query()).unwrap();
        assert_eq!(read.request.uri(), "/p?q=1&r=%20");
        assert_eq!(read.request.method(), "PUT");
        assert_eq!(read.request.headers(), asked.request.headers());
        assert_eq!((read.port, read.https, &*read.host), (8443, true, "b.x"));
        assert_eq!(read.listener, asked.listener);
        let name = |url: &str| {
            let asked = Asked::read("GET", url, &[]).unwrap();
            asked.at(Door::Forward, FORWARD).server_name
        };
        assert_eq!(name("https://A.x/").as_deref(), Some("a.x"));
        assert_eq!(
            (name("http://a.x/"), name("https://127.0.0.1/"), name("https://[::1]/")),
            (None, None, None)
        );
        for (wrong, what) in [
            ("", "name the request"),
            ("url=user/", "is no URL such as"),
            ("url=http://u/&x=1", "\"x\" is not read"),
            ("url=http://u/&header=a", "Name:value"),
            ("url=%zz", "two hex digits"),
            ("url=http://u/&method=a%20b", "invalid HTTP method"),
        ] {
            let why = Asked::from_query(wrong).unwrap_err();
            assert!(why.contains(what), "{wrong}: {why}");
        }
        assert!(Asked::from_query(&"x".repeat(QUERY_BYTES_MAX + 1)).is_err());
    }
}
