// SPDX-License-Identifier: Apache-2.0
//! Sessions over WebSocket: Kubernetes' channels (a byte before each message says which), and a
//! tunnel of plain bytes in which port-forward speaks SPDY.
//!
//! Made by `exec` and `portforward` from a connection that `stream` upgraded. Frames, masks and
//! pings are the library's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink as _, SinkExt as _, Stream as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::pipes::{Out, PIECE_BYTES};

/// Bytes of one message from a client: some write a whole file at once.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The channel that says which channel ends (version 5).
const CHANNEL_CLOSE: u8 = 255;
/// How long the client may take to hang up when all is said.
const LINGER: Duration = Duration::from_secs(5);
/// While a program does not read its input we read no pings; clients hang up after a minute
/// without a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 15_000 });

/// How channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// A digit and base64 in text messages.
    pub(crate) base64: bool,
    /// Clients can end their input.
    pub(crate) closes: bool,
}

/// The answer to a client's key (RFC 6455, section 4.2.2).
pub(super) fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

pub(super) async fn server<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .read_buffer_size(PIECE_BYTES)
        .write_buffer_size(PIECE_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Runs channels until the client is gone, or until all sinks are dropped and everything is
/// written. Input goes to the sender of its channel's number; what has none is thrown away.
pub(crate) async fn channels<T: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<T>,
    dialect: Dialect,
    inputs: Vec<Option<mpsc::Sender<Bytes>>>,
    orders: mpsc::Receiver<Out>,
) {
    let (writer, reader) = socket.split();
    let beat = Notify::new();
    let mut reading = std::pin::pin!(read(reader, dialect, inputs, &beat));
    let written = tokio::select! {
        ended = &mut reading => {
            if let Err(why) = ended {
                tracing::debug!(%why, "a WebSocket session ended");
            }
            return;
        }
        written = write(writer, dialect, orders, &beat) => written,
    };
    if written.is_ok() {
        let _ = tokio::time::timeout(LINGER, reading).await;
    }
}

async fn read<T: AsyncRead + AsyncWrite + Unpin>(
    mut from: SplitStream<WebSocketStream<T>>,
    dialect: Dialect,
    mut inputs: Vec<Option<mpsc::Sender<Bytes>>>,
    beat: &Notify,
) -> Result<(), Error> {
    while let Some(message) = from.next().await {
        let message = match message? {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return Ok(()),
            _ => continue,
        };
        let Some((channel, piece)) = decode(dialect, message) else { continue };
        if channel == CHANNEL_CLOSE && dialect.closes {
            let ended = piece.first().and_then(|c| inputs.get_mut(usize::from(*c)));
            ended.map(Option::take);
            continue;
        }
        let Some(Some(to)) = inputs.get(usize::from(channel)) else { continue };
        if piece.is_empty() {
            continue;
        }
        let place = loop {
            tokio::select! {
                place = to.reserve() => break place,
                () = tokio::time::sleep(SIGN_OF_LIFE) => beat.notify_one(),
            }
        };
        if let Ok(place) = place {
            place.send(piece);
        }
    }
    Ok(())
}

/// A message's channel and content; `None` for what is no message of a channel.
fn decode(dialect: Dialect, mut message: Bytes) -> Option<(u8, Bytes)> {
    let first = *message.first()?;
    message.advance(1);
    if !dialect.base64 {
        return Some((first, message));
    }
    let channel = char::from(first).to_digit(10)?;
    let content = STANDARD.decode(&message).ok()?;
    Some((u8::try_from(channel).ok()?, content.into()))
}

async fn write<T: AsyncRead + AsyncWrite + Unpin>(
    mut to: SplitSink<WebSocketStream<T>, Message>,
    dialect: Dialect,
    mut orders: mpsc::Receiver<Out>,
    beat: &Notify,
) -> Result<(), Error> {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = beat.notified() => {
                to.send(Message::Pong(Bytes::new())).await?;
                continue;
            }
        };
        match order {
            Some(Out::Data(channel, piece)) => to.send(encode(dialect, channel, &piece)).await?,
            // Clients know of no end of a channel but that of the connection.
            Some(Out::Finish(_) | Out::Reset(_)) => {}
            None => return to.send(farewell()).await,
        }
    }
}

fn encode(dialect: Dialect, channel: u32, piece: &[u8]) -> Message {
    let channel = u8::try_from(channel).unwrap_or(CHANNEL_CLOSE);
    if dialect.base64 {
        return Message::text(format!("{channel}{}", STANDARD.encode(piece)));
    }
    let mut out = Vec::with_capacity(piece.len() + 1);
    out.push(channel);
    out.extend_from_slice(piece);
    Message::binary(out)
}

fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// A byte stream in binary messages.
#[derive(Debug)]
pub(crate) struct Tunnel<T> {
    socket: WebSocketStream<T>,
    unread: Bytes,
    closing: bool,
}

// === impl Tunnel ===

impl<T> Tunnel<T> {
    pub(crate) fn new(socket: WebSocketStream<T>) -> Self {
        Self { socket, unread: Bytes::new(), closing: false }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let why = "a tunnel takes binary messages only";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                // After our own goodbye, however the other side hangs up.
                Some(Err(_)) if self.closing => return Poll::Ready(Ok(())),
                Some(Err(why)) => return Poll::Ready(Err(io::Error::other(why))),
            }
        }
        let len = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let part = buf.get(..buf.len().min(PIECE_BYTES)).unwrap_or_default();
        let message = Message::binary(Bytes::copy_from_slice(part));
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
            Pin::new(&mut self.socket).start_send(farewell()).map_err(io::Error::other)?;
            self.closing = true;
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) | Err(Error::ConnectionClosed) => Poll::Ready(Ok(())),
            Err(why) => Poll::Ready(Err(io::Error::other(why))),
        }
    }
}

#[cfg(test)]
mod tests;
