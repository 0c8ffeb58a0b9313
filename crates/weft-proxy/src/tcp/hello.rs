// SPDX-License-Identifier: Apache-2.0
//! The server name that a TLS client asks for, read from a copy of its ClientHello, so that the
//! connection can be passed on unopened. Called by `accept` and by `capture/hello.rs`; answers
//! nothing and judges nothing else of the handshake: that is its server's business.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use weft_base::limits::CLIENT_HELLO_BYTES_MAX;
use weft_base::name::Hostname;

use super::prefixed::Prefixed;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Largest record (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Not before there are so many bytes.
    More(usize),
    /// The name in lower case, when one is asked for.
    Named(Option<Arc<str>>),
    /// Why it is no ClientHello that can be passed on.
    Wrong(&'static str),
}

/// Reads until the ClientHello is whole; what was read comes first out of the stream returned.
///
/// # Errors
/// Why there is none, beside the stream.
pub async fn read<I>(
    io: I,
    limit: Duration,
) -> (Result<Option<Arc<str>>, &'static str>, Prefixed<I>)
where
    I: AsyncRead + Unpin,
{
    let (mut io, mut seen) = (io, BytesMut::new());
    let reading = async {
        loop {
            let wanted = match judge(&seen) {
                Hello::Named(name) => return Ok(name),
                Hello::Wrong(why) => return Err(why),
                Hello::More(wanted) => wanted,
            };
            while seen.len() < wanted {
                seen.reserve(wanted.saturating_sub(seen.len()).max(512));
                match io.read_buf(&mut seen).await {
                    Ok(n) if n > 0 => {}
                    _ => return Err("the client left before its ClientHello was whole"),
                }
            }
        }
    };
    let found = tokio::time::timeout(limit, reading).await;
    let found = found.unwrap_or(Err("the client took too long to send its ClientHello"));
    (found, Prefixed::new(seen.freeze(), io))
}

/// Judges the bytes at hand. A ClientHello may lie in several records, and those in any number of
/// segments.
pub fn judge(seen: &[u8]) -> Hello {
    match message(seen) {
        Err(early) => early,
        Ok(message) => match server_name(&message) {
            Ok(name) => Hello::Named(name),
            Err(why) => Hello::Wrong(why),
        },
    }
}

/// The handshake message out of its records, without its own header.
fn message(seen: &[u8]) -> Result<Vec<u8>, Hello> {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        if seen.first().is_some_and(|kind| *kind != HANDSHAKE) {
            return Err(Hello::Wrong("the connection does not begin with a TLS handshake"));
        }
        let Some([kind, major, _, high, low]) = seen.get(at..at + 5) else {
            return Err(Hello::More(at + 5));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > RECORD_BYTES_MAX {
            return Err(Hello::Wrong("a TLS record of the handshake is malformed"));
        }
        let end = at + 5 + length;
        let Some(fragment) = seen.get(at + 5..end) else { return Err(Hello::More(end)) };
        message.extend_from_slice(fragment);
        if let Some([kind, a, b, c]) = message.get(..4) {
            let length = u32::from_be_bytes([0, *a, *b, *c]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if *kind != CLIENT_HELLO {
                return Err(Hello::Wrong("the first handshake message is no ClientHello"));
            }
            if length > CLIENT_HELLO_BYTES_MAX {
                return Err(Hello::Wrong("the ClientHello is too large"));
            }
            if message.len() >= 4 + length {
                message.truncate(4 + length);
                message.drain(..4);
                return Ok(message);
            }
        }
        at = end;
        // Records of a byte each may not grow what is held without end.
        if at > 2 * CLIENT_HELLO_BYTES_MAX {
            return Err(Hello::Wrong("the ClientHello is cut into too many records"));
        }
    }
}

/// The server name of a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3).
fn server_name(message: &[u8]) -> Result<Option<Arc<str>>, &'static str> {
    const SHORT: &str = "the ClientHello is cut short";
    let mut rest = Parts(message);
    // Version and random.
    rest.take(2 + 32).ok_or(SHORT)?;
    // Session id, cipher suites, compression methods.
    rest.short().ok_or(SHORT)?;
    rest.long().ok_or(SHORT)?;
    rest.short().ok_or(SHORT)?;
    if rest.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Parts(rest.long().ok_or(SHORT)?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number().ok_or(SHORT)?;
        let body = extensions.long().ok_or(SHORT)?;
        if kind == SERVER_NAME && found.replace(body).is_some() {
            return Err("the ClientHello names its server twice");
        }
    }
    let Some(body) = found else { return Ok(None) };
    let mut names = Parts(Parts(body).long().ok_or(SHORT)?);
    while let Some(kind) = names.take(1) {
        let name = names.long().ok_or(SHORT)?;
        if *kind == [HOST_NAME] {
            return host(name);
        }
    }
    Ok(None)
}

/// An address is no host name here; clients that send one mean none.
fn host(name: &[u8]) -> Result<Option<Arc<str>>, &'static str> {
    const WRONG: &str = "the server name of the ClientHello is no host name";
    let text = std::str::from_utf8(name).map_err(|_| WRONG)?;
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(None);
    }
    let name = Hostname::new(text).map_err(|_| WRONG)?;
    Ok(Some(name.as_str().into()))
}

/// Bytes that are taken from the front.
struct Parts<'a>(&'a [u8]);

// === impl Parts ===

impl<'a> Parts<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    /// What follows its length in one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let n = *self.take(1)?.first()?;
        self.take(usize::from(n))
    }

    /// What follows its length in two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let n = self.number()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests;
