// SPDX-License-Identifier: Apache-2.0
//! The streams of one session as its two ends see them, whatever the transport: pieces that come
//! in on bounded channels, and sinks that share the connection's one queue out.
//!
//! Made by `spdy_conn` and `websocket`, used by `exec` and `portforward`.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pieces of one stream that may wait to be taken.
pub(crate) const PIECES_MAX: usize = 8;
/// Pieces that may wait to be written to a client.
pub(crate) const OUT_MAX: usize = 16;
/// Bytes of one piece.
pub(crate) const PIECE_BYTES: usize = 16 * 1024;

/// What goes out, in order. The number is a stream or a channel.
#[derive(Debug)]
pub(crate) enum Out {
    Data(u32, Bytes),
    Finish(u32),
    Reset(u32),
}

/// Where one stream's output goes. Dropping it says nothing to the client.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    pub(crate) tag: u32,
    pub(crate) out: mpsc::Sender<Out>,
}

/// One stream that the client opened.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(super) headers: super::spdy::Headers,
    /// Ends when the client finished its half.
    pub(crate) pieces: mpsc::Receiver<Bytes>,
    /// The client gave the stream up, or is gone.
    pub(crate) gone: CancellationToken,
    pub(crate) sink: Sink,
}

/// The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

// === impl Sink ===

impl Sink {
    /// Hands a piece over; waits while the client is slow. Cancel-safe: a piece is sent or not.
    pub(crate) async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        self.out.send(Out::Data(self.tag, piece)).await.map_err(|_| Gone)
    }

    /// An empty piece, which channels over WebSocket take as a greeting.
    pub(crate) async fn greet(&self) {
        let _ = self.out.send(Out::Data(self.tag, Bytes::new())).await;
    }

    /// Nothing more comes from us on this stream.
    pub(crate) async fn finish(&self) {
        let _ = self.out.send(Out::Finish(self.tag)).await;
    }

    /// Gives the stream up, both ways.
    pub(crate) async fn reset(&self) {
        let _ = self.out.send(Out::Reset(self.tag)).await;
    }

    /// Sends all that comes, then finishes.
    pub(crate) async fn drain(self, mut from: mpsc::Receiver<Bytes>) {
        while let Some(piece) = from.recv().await {
            if self.send(piece).await.is_err() {
                return;
            }
        }
        self.finish().await;
    }
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_default()
    }
}
