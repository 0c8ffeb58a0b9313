// SPDX-License-Identifier: Apache-2.0
//! What a connection speaks that nobody declared: whoever speaks first decides. The client gets a
//! short head start, then the upstream is dialled while the client is listened to, so that a
//! server's greeting is never held up; a client's first bytes are looked at for a bounded time.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, sleep_until};

use crate::tcp::prefixed::Prefixed;
use crate::tcp::sniff::{Spoken, judge};
use crate::upstream::pool::Wire;

/// HTTP clients send right after they connected: this long the upstream is not dialled for them
/// in vain.
pub const HEAD_START: Duration = Duration::from_millis(1);
/// Bytes of the server's greeting that are read before the client gets them.
const GREETING_BYTES_MAX: usize = 4096;
const FAR: Duration = Duration::from_secs(86_400 * 365);
/// TLS records of a handshake begin with this byte.
const HANDSHAKE: u8 = 22;

/// What first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Http(Wire),
    Tls,
    Opaque,
}

/// `None` while more bytes are needed.
pub type Judge = fn(&[u8]) -> Option<First>;

/// An upstream that is opened meanwhile.
pub trait Upstream {
    type Io: AsyncRead + Unpin;
    /// `None` when it could not be opened.
    fn io(&mut self) -> Option<&mut Self::Io>;
}

/// How a race ended.
#[derive(Debug)]
pub enum Raced<I, U> {
    Http(Wire, Prefixed<I>),
    Tls(Prefixed<I>),
    /// With what the upstream said already.
    Opaque {
        io: Prefixed<I>,
        upstream: U,
        said: Bytes,
    },
}

/// HTTP or not.
pub fn http(seen: &[u8]) -> Option<First> {
    judge(seen).map(|spoken| match spoken {
        Spoken::Http1 => First::Http(Wire::H1),
        Spoken::Http2 => First::Http(Wire::H2),
        Spoken::Opaque => First::Opaque,
    })
}

/// TLS or not.
pub fn tls(seen: &[u8]) -> Option<First> {
    seen.first().map(|first| if *first == HANDSHAKE { First::Tls } else { First::Opaque })
}

/// TLS, HTTP or neither.
pub fn tls_or_http(seen: &[u8]) -> Option<First> {
    if seen.first() == Some(&HANDSHAKE) { Some(First::Tls) } else { http(seen) }
}

/// Listens to the client and to the upstream. `limit` bounds how long the client's first bytes may
/// leave it open, and how long a client may stay silent when there is no upstream to wait for.
pub async fn race<I, U, F>(mut io: I, judge: Judge, limit: Duration, open: F) -> Raced<I, U>
where
    I: AsyncRead + Unpin,
    U: Upstream,
    F: Future<Output = U>,
{
    let mut open = pin!(open);
    let mut upstream: Option<U> = None;
    let (mut seen, mut said) = (BytesMut::new(), BytesMut::new());
    let (mut dialling, mut client_done) = (false, false);
    let dial_at = Instant::now() + HEAD_START;
    let mut deadline: Option<Instant> = None;
    let first = loop {
        if let Some(first) = judge(&seen) {
            break first;
        }
        if client_done || !said.is_empty() {
            break First::Opaque;
        }
        tokio::select! {
            biased;
            read = read(&mut io, &mut seen) => {
                client_done = !matches!(read, Ok(n) if n > 0);
                deadline.get_or_insert_with(|| Instant::now() + limit);
            }
            greeting = hear(&mut upstream, &mut said) => match greeting {
                Ok(n) if n > 0 => {}
                // It closed, and will be seen closed again: bytes or their end are for the client.
                _ => break First::Opaque,
            },
            opened = &mut open, if dialling && upstream.is_none() => {
                let opened = upstream.insert(opened);
                if opened.io().is_none() {
                    deadline.get_or_insert_with(|| Instant::now() + limit);
                }
            }
            () = sleep_until(dial_at), if !dialling => dialling = true,
            () = sleep_until(deadline.unwrap_or(dial_at + FAR)), if deadline.is_some() => {
                break First::Opaque;
            }
        }
    };
    let io = Prefixed::new(seen.freeze(), io);
    match first {
        First::Http(wire) => Raced::Http(wire, io),
        First::Tls => Raced::Tls(io),
        First::Opaque => {
            let upstream = match upstream {
                Some(upstream) => upstream,
                None => open.await,
            };
            Raced::Opaque { io, upstream, said: said.freeze() }
        }
    }
}

/// The client's first bytes alone, for at most `limit`; silence is opaque.
pub async fn look<I>(mut io: I, judge: Judge, limit: Duration) -> io::Result<(First, Prefixed<I>)>
where
    I: AsyncRead + Unpin,
{
    let mut seen = BytesMut::new();
    let looking = async {
        loop {
            if let Some(first) = judge(&seen) {
                return Ok::<_, io::Error>(first);
            }
            if read(&mut io, &mut seen).await? == 0 {
                return Ok(First::Opaque);
            }
        }
    };
    let first = match tokio::time::timeout(limit, looking).await {
        Ok(first) => first?,
        Err(_) => First::Opaque,
    };
    Ok((first, Prefixed::new(seen.freeze(), io)))
}

async fn read<I: AsyncRead + Unpin>(io: &mut I, seen: &mut BytesMut) -> io::Result<usize> {
    if seen.capacity() == seen.len() {
        seen.reserve(512);
    }
    io.read_buf(seen).await
}

async fn hear<U: Upstream>(upstream: &mut Option<U>, said: &mut BytesMut) -> io::Result<usize> {
    let Some(io) = upstream.as_mut().and_then(Upstream::io) else {
        return std::future::pending().await;
    };
    said.reserve(GREETING_BYTES_MAX);
    io.read_buf(said).await
}

#[cfg(test)]
mod tests;
