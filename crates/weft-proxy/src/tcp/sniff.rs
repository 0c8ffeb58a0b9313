// SPDX-License-Identifier: Apache-2.0
//! What a connection speaks, from a bounded look at its first bytes. A server-first protocol is
//! never stalled for longer than the limit: silence means opaque.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;
use weft_base::limits::SNIFF_BYTES_MAX;

use super::prefixed::Prefixed;
use crate::h2::frames::PREFACE;

/// For the first bytes that tell, once they have begun; clients send them at once. It comes on top
/// of the time that a head has: who lets them trickle is closed soon behind that.
const FIRST_BYTES: Duration = Duration::from_secs(3);
/// Longest method name that is taken for HTTP (IANA's longest is 17).
const METHOD_MAX: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
    Opaque,
}

/// How long a client may take until it is known what it speaks.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// It is silent.
    pub idle: Duration,
    /// Its first bytes have begun; three seconds at most.
    pub head: Duration,
    /// Whatever it does.
    pub by: Option<Instant>,
}

/// Looks at a stream of HTTP. What was read comes first out of the stream returned.
///
/// # Errors
/// When the client closes or breaks before it sent anything, or is silent for too long.
pub async fn sniff_http<I>(mut io: I, patience: Patience) -> io::Result<(Spoken, Prefixed<I>)>
where
    I: AsyncRead + Unpin,
{
    let end = patience.until(patience.idle);
    let mut seen = BytesMut::with_capacity(64);
    match tokio::time::timeout_at(end, io.read_buf(&mut seen)).await {
        Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => drop(read?),
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let end = patience.until(patience.head.min(FIRST_BYTES));
    let look = async {
        loop {
            if let Some(spoken) = judge(&seen) {
                return Ok::<_, io::Error>(spoken);
            }
            if seen.capacity() == seen.len() {
                seen.reserve(64);
            }
            if io.read_buf(&mut seen).await? == 0 {
                return Ok(Spoken::Opaque);
            }
        }
    };
    let spoken = match tokio::time::timeout_at(end, look).await {
        Ok(result) => result?,
        Err(_) => Spoken::Opaque,
    };
    let prefix: Bytes = seen.freeze();
    Ok((spoken, Prefixed::new(prefix, io)))
}

impl Patience {
    fn until(self, limit: Duration) -> Instant {
        let end = Instant::now() + limit;
        self.by.map_or(end, |by| by.min(end))
    }
}

/// `None` while more bytes are needed.
pub fn judge(seen: &[u8]) -> Option<Spoken> {
    if seen.is_empty() {
        return None;
    }
    if PREFACE.starts_with(seen) || seen.starts_with(PREFACE) {
        return (seen.len() >= PREFACE.len()).then_some(Spoken::Http2);
    }
    let method = seen.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    match seen.get(method) {
        // Known before the word ends, so also when its end is here (found by fuzzing).
        _ if method > METHOD_MAX => Some(Spoken::Opaque),
        Some(b' ') if method > 0 => Some(Spoken::Http1),
        // Methods in lower case are HTTP too; the codec and the phases refuse them with reason.
        Some(b) if b.is_ascii_lowercase() => judge_line(seen),
        Some(_) => Some(Spoken::Opaque),
        None => None,
    }
}

/// A first line whose first word is not in upper case: only its end tells, so that the verdict does
/// not depend on how the bytes arrive.
fn judge_line(seen: &[u8]) -> Option<Spoken> {
    let word = seen.iter().take_while(|b| b.is_ascii_alphabetic() || **b == b'-').count();
    if word > METHOD_MAX || seen.get(word).is_some_and(|b| *b != b' ') {
        return Some(Spoken::Opaque);
    }
    let end = memchr::memchr2(b'\r', b'\n', seen).filter(|end| *end <= SNIFF_BYTES_MAX);
    let Some(line) = end.and_then(|end| seen.get(..end)) else {
        return (seen.len() > SNIFF_BYTES_MAX).then_some(Spoken::Opaque);
    };
    let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    Some(if http { Spoken::Http1 } else { Spoken::Opaque })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_decide() {
        assert_eq!(judge(b""), None);
        assert_eq!(judge(b"P"), None);
        assert_eq!(judge(b"PRI * HTTP/2.0\r\n"), None);
        assert_eq!(judge(PREFACE), Some(Spoken::Http2));
        assert_eq!(judge(b"PO"), None);
        assert_eq!(judge(b"POST / HTTP/1.1"), Some(Spoken::Http1));
        assert_eq!(judge(b"M-SEARCH * "), Some(Spoken::Http1));
        assert_eq!(judge(b"\x16\x03\x01"), Some(Spoken::Opaque));
        assert_eq!(judge(b"SSH-2.0-x"), Some(Spoken::Opaque));
        // In lower case the line's end decides, however it arrives (found by fuzzing).
        for (line, spoken) in
            [("get / HTTP/1.1\r", Spoken::Http1), ("helo you\r\n", Spoken::Opaque)]
        {
            for n in 1..line.find('\r').unwrap() {
                assert_eq!(judge(&line.as_bytes()[..n]), None, "{line:?} up to {n}");
            }
            assert_eq!(judge(line.as_bytes()), Some(spoken));
        }
        assert_eq!(judge(b"redis:"), Some(Spoken::Opaque));
        assert_eq!(judge(&[b'A'; 30]), Some(Spoken::Opaque));
        assert_eq!(judge(&[&[b'A'; 30][..], b" / HTTP/1.1\r\n"].concat()), Some(Spoken::Opaque));
    }

    #[tokio::test]
    async fn first_bytes_that_trickle_have_three_seconds_whatever_a_head_has() {
        let began = Instant::now();
        let (mut client, server) = tokio::io::duplex(64);
        let trickle = async {
            for byte in PREFACE.chunks(1) {
                tokio::io::AsyncWriteExt::write_all(&mut client, byte).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let minute = Duration::from_secs(60);
        let looked = tokio::select! {
            looked = sniff_http(server, patience(minute, minute)) => looked.unwrap().0,
            () = trickle => panic!("it was waited for"),
        };
        assert!(looked == Spoken::Opaque && began.elapsed() >= FIRST_BYTES);
    }

    fn patience(idle: Duration, head: Duration) -> Patience {
        Patience { idle, head, by: None }
    }

    #[tokio::test]
    async fn silence_is_an_end_and_nothing_else_is_lost() {
        let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
        let soon = Patience { by: Some(Instant::now() + short), ..patience(long, long) };
        for patience in [patience(short, long), soon] {
            let (_client, server) = tokio::io::duplex(64);
            let error = sniff_http(server, patience).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let (mut client, server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\n").await.unwrap();
        drop(client);
        let (spoken, mut io) = sniff_http(server, patience(long, long)).await.unwrap();
        assert_eq!(spoken, Spoken::Http1);
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "GET / HTTP/1.1\r\n");
    }
}
