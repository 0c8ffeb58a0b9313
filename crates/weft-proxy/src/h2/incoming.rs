// SPDX-License-Identifier: Apache-2.0
//! The body of a message as its stream brings it. A window is given back when its bytes are taken,
//! so a peer sends as fast as somebody reads. Called by the phases through `http/serve.rs`, and by
//! `upstream/pool`.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body::{Body, Frame, SizeHint};

use crate::http::interim::Interim;

/// A request's or an answer's body.
#[derive(Debug)]
pub struct Incoming {
    stream: Option<RecvStream>,
    /// What is left of a length that was announced; h2 sees to it that it is right.
    left: Option<u64>,
    /// Its request's interim answers.
    interim: Option<Rc<Interim>>,
    /// The client waits for 100 before it sends it.
    held: bool,
}

// === impl Incoming ===

impl Incoming {
    pub(super) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        Self { stream: Some(stream), left: length, interim: None, held: false }
    }

    pub(super) fn empty() -> Self {
        Self { stream: None, left: Some(0), interim: None, held: false }
    }

    pub(super) fn with_interim(mut self, interim: Rc<Interim>, held: bool) -> Self {
        (self.interim, self.held) = (Some(interim), held);
        self
    }

    /// Where answers before the answer go.
    pub fn interim(&self) -> Option<Rc<Interim>> {
        self.interim.clone()
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let me = self.get_mut();
        let Some(stream) = &mut me.stream else { return Poll::Ready(None) };
        let polled = stream.poll_data(cx);
        if let (true, Some(interim)) = (std::mem::take(&mut me.held), &me.interim)
            && polled.is_pending()
        {
            interim.want();
        }
        match ready!(polled) {
            Some(Ok(data)) => {
                let bytes = data.len();
                // It fails for bytes that were never received only.
                let _ = stream.flow_control().release_capacity(bytes);
                if let Some(left) = &mut me.left {
                    *left = left.saturating_sub(bytes as u64);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => {
                me.stream = None;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                let trailers = ready!(stream.poll_trailers(cx)).transpose();
                me.stream = None;
                Poll::Ready(trailers.map(|t| t.map(Frame::trailers)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::new(),
        }
    }
}

/// The length that a head announces; h2 has judged it.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
