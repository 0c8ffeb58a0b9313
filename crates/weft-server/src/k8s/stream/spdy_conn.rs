// SPDX-License-Identifier: Apache-2.0
//! One SPDY connection over any byte stream: drives the machine of `spdy` and hands its streams
//! over as channels.
//!
//! Made by `exec` and `portforward`. A stream that nobody reads stops the whole connection after
//! `PIECES_MAX` pieces, because its clients know no other brake: they do not mind windows.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::pipes::{Incoming, OUT_MAX, Out, PIECE_BYTES, PIECES_MAX, Sink};
use super::spdy::{Event, Machine, Reset};

/// Streams that may wait to be taken by the session.
const WAITING_MAX: usize = 16;
/// Our own bytes that may wait before we stop reading: a peer that pings without reading waits.
const CHOKE_BYTES: usize = 64 * 1024;
/// How long the client may take to hang up when all is said.
const LINGER: Duration = Duration::from_secs(5);

/// What the session holds: new streams come here, and the connection lives as long as this or
/// any sink.
#[derive(Debug)]
pub(crate) struct Streams {
    incoming: mpsc::Receiver<Incoming>,
    _alive: mpsc::Sender<Out>,
}

/// The connection itself; [`Driver::run`] must run beside the session.
#[derive(Debug)]
pub(crate) struct Driver<T> {
    io: T,
    shared: Shared,
    opened: mpsc::Sender<Incoming>,
    orders: mpsc::Receiver<Out>,
    sinks: mpsc::WeakSender<Out>,
}

#[derive(Debug)]
struct Shared {
    machine: Mutex<Machine>,
    /// There is something to write, or a window grew.
    stirred: Notify,
    /// Something was written.
    flushed: Notify,
}

/// The session's ends of one open stream.
struct Ends {
    pieces: Option<mpsc::Sender<Bytes>>,
    gone: CancellationToken,
}

pub(crate) fn open<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> (Driver<T>, Streams) {
    let (opened, incoming) = mpsc::channel(WAITING_MAX);
    let (alive, orders) = mpsc::channel(OUT_MAX);
    let machine = Mutex::new(Machine::new());
    let shared = Shared { machine, stirred: Notify::new(), flushed: Notify::new() };
    let sinks = alive.downgrade();
    (Driver { io, shared, opened, orders, sinks }, Streams { incoming, _alive: alive })
}

// === impl Streams ===

impl Streams {
    /// The next stream that the client opens; `None` when it opens no more.
    pub(crate) async fn next(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}

// === impl Shared ===

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Driver ===

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Runs until the client is gone, or until the session has dropped all its ends and
    /// everything is written.
    pub(crate) async fn run(self) {
        let Self { io, shared, opened, orders, sinks } = self;
        let (reader, writer) = tokio::io::split(io);
        let mut reading = std::pin::pin!(read(reader, &shared, opened, sinks));
        let written = tokio::select! {
            ended = &mut reading => {
                if let Err(why) = ended {
                    tracing::debug!(%why, "a stream connection ended");
                }
                return;
            }
            written = write(writer, &shared, orders) => written,
        };
        // Closing with unread bytes would take back what the client has not read yet.
        if written.is_ok() {
            let _ = tokio::time::timeout(LINGER, reading).await;
        }
    }
}

async fn read<R: AsyncRead + Unpin>(
    mut from: R,
    shared: &Shared,
    opened: mpsc::Sender<Incoming>,
    sinks: mpsc::WeakSender<Out>,
) -> io::Result<()> {
    let mut streams: HashMap<u32, Ends> = HashMap::new();
    let mut opened = Some(opened);
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    loop {
        buffer.clear();
        buffer.reserve(PIECE_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        shared.machine().receive(&buffer);
        loop {
            let event = shared.machine().next().map_err(io::Error::other)?;
            let Some(event) = event else { break };
            match event {
                Event::Opened { stream, headers } => {
                    let Some((ends, incoming)) = begin(stream, headers, &sinks) else { continue };
                    streams.insert(stream, ends);
                    shared.machine().reply(stream).map_err(io::Error::other)?;
                    let taken = match &opened {
                        Some(to) => to.send(incoming).await.is_ok(),
                        None => false,
                    };
                    if !taken {
                        shared.machine().reset(stream, Reset::Refused);
                    }
                }
                Event::Data { stream, piece } => {
                    let len = piece.len();
                    let to = streams.get(&stream).and_then(|e| e.pieces.as_ref());
                    if let Some(to) = to {
                        // Written first what the machine has to say: we may wait here for long.
                        shared.stirred.notify_one();
                        let _ = to.send(piece).await;
                    }
                    shared.machine().consumed(stream, len);
                }
                Event::Finished { stream } => {
                    streams.get_mut(&stream).map(|e| e.pieces.take());
                }
                Event::Reset { stream } => {
                    if let Some(ends) = streams.remove(&stream) {
                        ends.gone.cancel();
                    }
                }
                Event::GoingAway => opened = None,
            }
        }
        shared.stirred.notify_one();
        breathe(shared).await;
        // Streams that ended on both sides need their ends no more.
        if streams.len() > 2 * shared.machine().open() + 16 {
            let machine = shared.machine();
            streams.retain(|id, _| machine.is_open(*id));
        }
    }
}

/// Waits while much is unwritten.
async fn breathe(shared: &Shared) {
    loop {
        let flushed = shared.flushed.notified();
        if shared.machine().waiting() < CHOKE_BYTES {
            return;
        }
        flushed.await;
    }
}

fn begin(
    stream: u32,
    headers: super::spdy::Headers,
    sinks: &mpsc::WeakSender<Out>,
) -> Option<(Ends, Incoming)> {
    let sink = Sink { tag: stream, out: sinks.upgrade()? };
    let (to, pieces) = mpsc::channel(PIECES_MAX);
    let gone = CancellationToken::new();
    let ends = Ends { pieces: Some(to), gone: gone.clone() };
    Some((ends, Incoming { headers, pieces, gone, sink }))
}

impl Drop for Ends {
    fn drop(&mut self) {
        // The connection is lost while the stream was still open for the client.
        if self.pieces.is_some() {
            self.gone.cancel();
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut to: W,
    shared: &Shared,
    mut orders: mpsc::Receiver<Out>,
) -> io::Result<()> {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = shared.stirred.notified() => {
                flush(&mut to, shared).await?;
                continue;
            }
        };
        match order {
            Some(Out::Data(stream, mut piece)) => {
                while !piece.is_empty() {
                    let part = piece.split_to(piece.len().min(PIECE_BYTES));
                    while !shared.machine().has_window(stream, part.len()) {
                        flush(&mut to, shared).await?;
                        shared.stirred.notified().await;
                    }
                    shared.machine().data(stream, &part);
                    flush(&mut to, shared).await?;
                }
            }
            Some(Out::Finish(stream)) => shared.machine().finish(stream),
            Some(Out::Reset(stream)) => shared.machine().reset(stream, Reset::Cancel),
            None => {
                shared.machine().go_away();
                flush(&mut to, shared).await?;
                return to.shutdown().await;
            }
        }
        flush(&mut to, shared).await?;
    }
}

async fn flush<W: AsyncWrite + Unpin>(to: &mut W, shared: &Shared) -> io::Result<()> {
    let bytes = shared.machine().take_output();
    if !bytes.is_empty() {
        to.write_all(&bytes).await?;
        to.flush().await?;
        shared.flushed.notify_one();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
