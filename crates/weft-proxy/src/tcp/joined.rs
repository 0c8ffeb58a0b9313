// SPDX-License-Identifier: Apache-2.0
//! Two byte streams that belong together: bytes go both ways, each way ends on its own, and both
//! end once nothing has moved for too long. Called by `relay` and by `http/upgrade.rs`; knows
//! neither what the bytes are nor who counts them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Copy buffer per direction: larger ones cost more CPU on loopback.
const BUFFER_BYTES: usize = 16 * 1024;

/// Copies both ways until both have ended.
///
/// # Errors
/// A stream broke, or no byte moved in either direction for `idle`.
pub async fn join<A, B>(a: &mut A, b: &mut B, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let last = Cell::new(Instant::now());
    let (mut a, mut b) = (Noted { io: a, last: &last }, Noted { io: b, last: &last });
    let copying =
        tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER_BYTES, BUFFER_BYTES);
    tokio::select! {
        biased;
        copied = copying => copied.map(drop),
        () = silence(&last, idle) => {
            let why = format!("no byte in either direction for {} ms", idle.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
    }
}

/// Ready once the last byte is `idle` ago. It looks at its end only: bytes move no timer.
async fn silence(last: &Cell<Instant>, idle: Duration) {
    loop {
        let due = last.get() + idle;
        if Instant::now() >= due {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Notes when bytes move.
struct Noted<'a, I> {
    io: &'a mut I,
    last: &'a Cell<Instant>,
}

impl<I> Noted<'_, I> {
    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        if polled.is_ready() {
            self.last.set(Instant::now());
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Noted<'_, I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.io).poll_read(cx, buf);
        this.note(polled)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Noted<'_, I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.io).poll_write(cx, buf);
        this.note(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn silence_ends_what_bytes_keep_open() {
        let (mut client, mut near) = tokio::io::duplex(64);
        let (mut far, mut server) = tokio::io::duplex(64);
        let idle = Duration::from_millis(400);
        let began = Instant::now();
        let talking = async {
            let mut seen = [0u8; 1];
            for _ in 0..5 {
                tokio::time::sleep(idle / 4).await;
                server.write_all(b"x").await.unwrap();
                client.read_exact(&mut seen).await.unwrap();
            }
            // Neither says anything from now on, and neither leaves.
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = join(&mut near, &mut far, idle) => ended,
            () = talking => unreachable!(),
        };
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let took = began.elapsed();
        assert!(took >= idle * 9 / 4, "{took:?}");
    }

    #[tokio::test]
    async fn each_direction_ends_on_its_own() {
        let (mut client, mut near) = tokio::io::duplex(64);
        let (mut far, mut server) = tokio::io::duplex(64);
        let talking = async {
            client.write_all(b"ask").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            server.write_all(b"told").await.unwrap();
            drop(server);
            let mut told = String::new();
            client.read_to_string(&mut told).await.unwrap();
            (asked, told)
        };
        let joining = async {
            let joined = join(&mut near, &mut far, Duration::from_secs(60)).await;
            drop(near);
            joined
        };
        let (joined, said) = tokio::join!(joining, talking);
        joined.unwrap();
        assert_eq!(said, ("ask".into(), "told".into()));
    }
}
