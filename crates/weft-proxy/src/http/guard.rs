// SPDX-License-Identifier: Apache-2.0
//! Watches an HTTP/1 client's bytes on their way to the codec. The codec drops a Content-Length
//! beside a Transfer-Encoding before anyone can see it; here such requests are refused: what is
//! ambiguous about framing never gets past. It also keeps the time a client takes.
//!
//! The guard copies nothing that comes in whole lines, and holds no buffer between requests.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use weft_base::limits::HEADER_BYTES_MAX;

use crate::config::ProxyLimits;
use crate::worker::Conn;

/// A chunk's size line, extensions included.
const CHUNK_LINE_MAX: usize = 64;
/// A zero byte is wrong everywhere, and the end of a head makes the codec look: it answers 400.
const POISON: &[u8] = b"\0\r\n\r\n";
/// What is read and thrown away behind a refused request, and for how long.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A stream whose reads are checked.
#[derive(Debug)]
pub struct Guard<I> {
    io: I,
    framing: Framing,
    remote: SocketAddr,
    /// Requests in progress on the connection.
    active: Arc<AtomicU32>,
    /// A way out of HTTP was asked for and refused.
    refused: Arc<AtomicBool>,
    limits: ProxyLimits,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the request head that is being read began.
    head_began: Option<Instant>,
    /// Since when the client has sent nothing.
    quiet_since: Option<Instant>,
    /// What is left to tell the codec of a refused request.
    poison: &'static [u8],
    /// The client has closed its side.
    ended: bool,
    /// Bytes thrown away after the last answer; `None` before.
    lingering: Option<usize>,
}

/// Where in a client's stream of requests we are. Pure.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    head: Head,
    /// The beginning of a line that has not ended yet.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    Trailers,
    /// CONNECT or an upgrade: bytes are no HTTP any more.
    Tunnel,
    Broken,
}

#[derive(Debug, Default)]
struct Head {
    begun: bool,
    bytes: usize,
    connect: bool,
    http_10: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

// === impl Framing ===

impl Framing {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The offset where the trouble begins, and what it is.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), (usize, &'static str)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            match self.state {
                State::Tunnel => return Ok(()),
                State::Broken => return Err((at, "the connection is broken already")),
                State::Body(left) => {
                    let n = left.min(rest.len() as u64);
                    at += usize::try_from(n).unwrap_or(rest.len());
                    self.state = if left == n { State::Head } else { State::Body(left - n) };
                }
                State::ChunkData(left) => {
                    let n = left.min(rest.len() as u64);
                    at += usize::try_from(n).unwrap_or(rest.len());
                    self.state =
                        if left == n { State::ChunkSize } else { State::ChunkData(left - n) };
                }
                State::Head | State::ChunkSize | State::Trailers => match self.line(rest) {
                    Ok(n) => at += n,
                    Err(why) => {
                        self.state = State::Broken;
                        self.partial = Vec::new();
                        return Err((at, why));
                    }
                },
            }
        }
        Ok(())
    }

    /// Between two requests: nothing of the next was seen.
    pub fn is_idle(&self) -> bool {
        self.state == State::Head && !self.head.begun && self.partial.is_empty()
    }

    fn in_head(&self) -> bool {
        self.state == State::Head && !self.is_idle()
    }

    fn is_tunnel(&self) -> bool {
        self.state == State::Tunnel
    }

    /// Takes one line or the beginning of one; returns how many bytes it was.
    fn line(&mut self, rest: &[u8]) -> Result<usize, &'static str> {
        let max = if self.state == State::Head { HEADER_BYTES_MAX } else { CHUNK_LINE_MAX };
        let max = if self.state == State::Trailers { 8 * 1024 } else { max };
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            if self.partial.len() + rest.len() > max {
                // The codec answers an overlong head itself; here only chunk lines are short.
                return Err("a line is too long");
            }
            self.partial.extend_from_slice(rest);
            return Ok(rest.len());
        };
        let head = rest.get(..end).unwrap_or_default();
        if self.partial.is_empty() {
            self.whole_line(head, max)?;
        } else {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(head);
            self.whole_line(&line, max)?;
        }
        Ok(end + 1)
    }

    fn whole_line(&mut self, line: &[u8], max: usize) -> Result<(), &'static str> {
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a line ends without carriage return");
        };
        if line.len() > max {
            return Err("a line is too long");
        }
        if line.iter().any(|b| matches!(b, b'\r' | 0)) {
            return Err("a line has a carriage return or zero byte in it");
        }
        match self.state {
            State::Head => self.head_line(line),
            State::ChunkSize => self.chunk_line(line),
            State::Trailers => self.trailer_line(line),
            _ => Ok(()),
        }
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.head.bytes += line.len() + 2;
        if !self.head.begun {
            if line.is_empty() {
                // RFC 9112 §2.2: an empty line before a request is ignored.
                return if self.head.bytes > 4 {
                    Err("empty lines before a request")
                } else {
                    Ok(())
                };
            }
            self.head.begun = true;
            self.head.connect = line.starts_with(b"CONNECT ");
            self.head.http_10 = line.ends_with(b" HTTP/1.0");
            return Ok(());
        }
        if line.is_empty() {
            return self.head_end();
        }
        let (name, value) = header(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(value)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding(value)
        } else {
            if name.eq_ignore_ascii_case(b"upgrade") && !value.eq_ignore_ascii_case(b"h2c") {
                self.head.upgrade = true;
            }
            Ok(())
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if self.head.length.is_some() {
            return Err("Content-Length is there twice");
        }
        if self.head.chunked {
            return Err("both Content-Length and Transfer-Encoding are there");
        }
        let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
        if !digits {
            return Err("Content-Length is no number");
        }
        let fold = |n: u64, b: &u8| n * 10 + u64::from(b - b'0');
        self.head.length = Some(value.iter().fold(0, fold));
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if self.head.length.is_some() {
            return Err("both Content-Length and Transfer-Encoding are there");
        }
        if self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err("Transfer-Encoding is something else than one 'chunked'");
        }
        if self.head.http_10 {
            return Err("HTTP/1.0 has no Transfer-Encoding");
        }
        self.head.chunked = true;
        Ok(())
    }

    fn head_end(&mut self) -> Result<(), &'static str> {
        let head = std::mem::take(&mut self.head);
        self.state = match head {
            Head { connect: true, .. } => State::Tunnel,
            Head { upgrade: true, chunked: false, length: None | Some(0), .. } => State::Tunnel,
            Head { chunked: true, .. } => State::ChunkSize,
            Head { length: Some(n), .. } if n > 0 => State::Body(n),
            _ => State::Head,
        };
        Ok(())
    }

    fn chunk_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits == 0 || digits > 15 {
            return Err("a chunk's size is no number");
        }
        match line.get(digits..).unwrap_or_default() {
            [] => {}
            [b';', extension @ ..]
                if !extension.is_empty() && extension.iter().all(|b| (b'!'..=b'~').contains(b)) => {
            }
            _ => return Err("a chunk's size line has something odd behind the number"),
        }
        let size = line
            .iter()
            .take(digits)
            .fold(0u64, |n, b| n * 16 + u64::from(char::from(*b).to_digit(16).unwrap_or(0)));
        // The data's own line end is taken with it; its form is the codec's to check.
        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size + 2) };
        Ok(())
    }

    fn trailer_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line.is_empty() {
            self.state = State::Head;
            return Ok(());
        }
        let (name, _) = header(line)?;
        let framing: [&[u8]; 4] =
            [b"content-length", b"transfer-encoding", b"host", b"authorization"];
        if framing.iter().any(|f| name.eq_ignore_ascii_case(f)) {
            return Err("a trailer has a name that only headers may have");
        }
        Ok(())
    }
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("a header is folded over lines");
    }
    let colon = line.iter().position(|b| *b == b':').ok_or("a header has no colon")?;
    let name = line.get(..colon).unwrap_or_default();
    if name.is_empty() || name.iter().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
        return Err("a header's name is empty or has space in it");
    }
    Ok((name, line.get(colon + 1..).unwrap_or_default().trim_ascii()))
}

// === impl Guard ===

impl<I> Guard<I> {
    pub fn new(io: I, conn: &Conn, limits: ProxyLimits) -> Self {
        Self {
            io,
            framing: Framing::default(),
            remote: conn.remote,
            active: conn.active.clone(),
            refused: conn.refused.clone(),
            limits,
            timer: None,
            head_began: None,
            quiet_since: None,
            poison: &[],
            ended: false,
            lingering: None,
        }
    }

    fn put_poison(&mut self, buf: &mut ReadBuf<'_>) {
        let (now, later) = self.poison.split_at(self.poison.len().min(buf.remaining()));
        buf.put_slice(now);
        self.poison = later;
    }

    /// The client has sent its request and waits for the answer.
    fn is_waiting(&self) -> bool {
        self.framing.is_idle() && self.active.load(Ordering::Relaxed) > 0
    }

    /// When the client's silence becomes an error; `None` when it may be silent.
    fn deadline(&mut self) -> Option<Instant> {
        if self.framing.is_tunnel() || self.is_waiting() {
            (self.head_began, self.quiet_since) = (None, None);
            return None;
        }
        if self.framing.in_head() {
            let began = *self.head_began.get_or_insert_with(Instant::now);
            return Some(began + self.limits.header_timeout);
        }
        self.head_began = None;
        let limit: Duration = if self.framing.is_idle() {
            self.limits.idle_timeout
        } else {
            self.limits.stream_idle_timeout
        };
        Some(*self.quiet_since.get_or_insert_with(Instant::now) + limit)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(at) = self.deadline() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        ready!(timer.as_mut().poll(cx));
        let error = io::Error::new(io::ErrorKind::TimedOut, "the client was silent for too long");
        Poll::Ready(Err(error))
    }
}

impl<I: AsyncRead + Unpin> Guard<I> {
    /// Throws away what the client still sends behind a refused request: closing over unread
    /// bytes would reset the connection, and the client would never see its answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0u8; 4096];
        while let Some(thrown) = self.lingering.filter(|n| *n < LINGER_BYTES) {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.lingering = Some(thrown + buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    return match &mut self.timer {
                        Some(timer) => timer.as_mut().poll(cx),
                        None => Poll::Ready(()),
                    };
                }
            }
        }
        Poll::Ready(())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guard<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.framing.state == State::Broken {
            this.put_poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let new = buf.filled().get(before..).unwrap_or_default();
                this.quiet_since = None;
                this.ended |= new.is_empty();
                if let Err((at, why)) = this.framing.take(new) {
                    tracing::debug!(remote = %this.remote, why, "a request was refused");
                    buf.set_filled(before + at);
                    this.poison = POISON;
                    this.put_poison(buf);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_timer(cx),
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            let left_http = this.framing.is_tunnel() && !this.refused.load(Ordering::Relaxed);
            if this.ended || this.framing.is_idle() || left_http {
                return Poll::Ready(Ok(()));
            }
            this.lingering = Some(0);
            this.timer = Some(Box::pin(tokio::time::sleep(LINGER_TIME)));
        }
        ready!(this.poll_linger(cx));
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
