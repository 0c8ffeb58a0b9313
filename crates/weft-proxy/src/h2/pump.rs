// SPDX-License-Identifier: Apache-2.0
//! Sends a body on a stream, as fast as its peer opens the window: one piece is held at a time, and
//! only what the window takes of it is handed over. Whoever is sent everything has made room for
//! everything, so that a body's end is never left behind with nobody who waits for it. Called by
//! both drivers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

use super::ANSWER_BUFFER;

#[derive(Debug)]
pub(super) struct Pump<B> {
    to: SendStream<Bytes>,
    body: B,
    /// What of a piece waits for the window, and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// What the stream is reset with when the body breaks.
    broken: Reason,
    sent: u64,
}

/// Why a body was not sent whole.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The peer wants no more of it, or its connection is gone.
    Peer(h2::Error),
    Body(String),
}

// === impl Pump ===

impl<B> Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(to: SendStream<Bytes>, body: B, broken: Reason) -> Self {
        Self { to, body, held: None, broken, sent: 0 }
    }

    pub(super) fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// Whether the peer's window is what it waits for.
    pub(super) fn is_blocked(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        self.to.send_reset(reason);
    }

    /// Ready once everything is sent, or nothing more can be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if let Poll::Ready(reason) = self.to.poll_reset(cx).map_err(Stopped::Peer)? {
                return Poll::Ready(Err(Stopped::Peer(reason.into())));
            }
            if ready!(self.poll_held(cx))? {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    self.send(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => {
                    self.to.send_reset(self.broken);
                    return Poll::Ready(Err(Stopped::Body(error.to_string())));
                }
                Some(Ok(frame)) => {
                    if self.take(frame)? {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Sends what needs no window, holds what does; whether that was the end.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<bool, Stopped> {
        let trailers = match frame.into_data() {
            Ok(data) => {
                let last = self.body.is_end_stream();
                if data.is_empty() {
                    if last {
                        self.send(data, true)?;
                    }
                    return Ok(last);
                }
                self.held = Some((data, last));
                return Ok(false);
            }
            Err(frame) => frame.into_trailers(),
        };
        let Ok(trailers) = trailers else { return Ok(false) };
        self.to.reserve_capacity(0);
        self.to.send_trailers(trailers).map_err(Stopped::Peer)?;
        Ok(true)
    }

    /// Ready when nothing is held any more; whether that was the end.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        while let Some((mut data, last)) = self.held.take() {
            // No more is asked for than can be handed over: it would keep the connection's window
            // from others.
            self.to.reserve_capacity(data.len().min(ANSWER_BUFFER));
            let room = match self.poll_window(cx) {
                Poll::Ready(room) => room?,
                Poll::Pending => {
                    self.held = Some((data, last));
                    return Poll::Pending;
                }
            };
            let piece = data.split_to(room.min(data.len()));
            let whole = data.is_empty();
            if !whole {
                self.held = Some((data, last));
            }
            self.send(piece, last && whole)?;
            if last && whole {
                return Poll::Ready(Ok(true));
            }
        }
        Poll::Ready(Ok(false))
    }

    fn send(&mut self, data: Bytes, last: bool) -> Result<(), Stopped> {
        self.sent += data.len() as u64;
        self.to.send_data(data, last).map_err(Stopped::Peer)
    }

    /// How many bytes may be handed over; never none.
    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Stopped>> {
        loop {
            let room = self.to.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(Stopped::Peer(error))),
                None => return Poll::Ready(Err(Stopped::Peer(Reason::STREAM_CLOSED.into()))),
            }
        }
    }
}
