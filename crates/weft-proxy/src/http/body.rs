// SPDX-License-Identifier: Apache-2.0
//! Bodies on their way: a request body that can be sent again while it fits the replay limit, and
//! a response body that knows when it ended, idled or broke. Neither buffers beyond its limit.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_base::clock::moment;
use weft_base::limits::RETRY_BODY_BYTES_MAX;

use self::due::Pace;
pub use self::due::{Due, Motion};
pub use self::left::Heir;
pub use self::upstream::UpstreamBody;
pub use self::whole::HeldUp;
use super::cache::Fill;
use super::copied::Copied;
use super::grpc_web::{Decoder, Encoder};
use super::serve::Received;
use crate::observe::record::Record;
use crate::sys::pooled::Pooled;
use crate::upstream::pool::{Answered, Break, Lease};

mod due;
mod left;
mod stored;
mod upstream;
mod whole;

/// A smaller piece of a body is copied to its neighbours where it is kept: by itself it would hold
/// many times its size.
pub const SMALL_BYTES: usize = 1024;

/// Whether anything moves is looked at so many times within the time that nothing may.
const LOOKS: u32 = 4;

/// Why a body ended early.
#[derive(Clone, Debug, Error)]
pub enum BodyError {
    #[error("the client ended the request body early: {0}")]
    Client(Rc<str>),
    #[error("the request body is not framed as HTTP: {0}")]
    Malformed(Rc<str>),
    #[error("the request body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("the client sends nothing of the body")]
    Shed,
    #[error("the upstream ended the response body early: {0}")]
    Upstream(String, Break),
    #[error("no byte was seen for {} ms", .0.as_millis())]
    Idle(Duration),
    #[error("the response was not complete within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("this attempt was given up")]
    GivenUp,
}

/// hyper wants errors that can cross threads; what it logs of them is this text.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct BodyFault(String);

/// The client's request body, shared by all attempts of one request.
#[derive(Clone, Debug, Default)]
pub struct Replay(Option<Rc<RefCell<ReplayState>>>);

#[derive(Debug)]
struct ReplayState {
    source: Source,
    /// Who else gets what arrives.
    copies: Vec<Weak<RefCell<Copied>>>,
    kept: Vec<Bytes>,
    /// The newest of it in small pieces; the attempt under way has sent them.
    tail: BytesMut,
    kept_bytes: usize,
    /// More came than is kept: what was kept is gone.
    overflowed: bool,
    /// Anything was handed to the attempt under way.
    given: bool,
    trailers: Option<HeaderMap>,
    ended: Option<Instant>,
    failed: Option<BodyError>,
    received: u64,
    bytes_max: u64,
    /// The attempt that may read; older ones are given up.
    attempt: u32,
    /// What came is unpacked before anyone sees it.
    unpack: Option<Box<Decoder>>,
    /// How an attempt gets on with it.
    pace: Pace,
}

#[derive(Debug)]
enum Source {
    Client(Received),
    Copy(Rc<RefCell<Copied>>),
}

/// What one attempt sends.
#[derive(Debug)]
pub struct AttemptBody {
    inner: AttemptInner,
}

#[derive(Debug)]
enum AttemptInner {
    Empty,
    Shared { state: Rc<RefCell<ReplayState>>, attempt: u32, next: usize, trailers_sent: bool },
}

/// What goes to the client.
#[derive(Debug)]
pub struct ReplyBody {
    inner: ReplyInner,
    record: Option<Pooled<Record>>,
    /// Copies it for those who come later.
    fill: Option<Box<Fill>>,
    /// For browsers that cannot read gRPC.
    encoder: Option<Box<Encoder>>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Nearly all are the large one.
enum ReplyInner {
    Empty,
    Full(Bytes),
    Upstream(UpstreamBody),
    /// None: the connection has left HTTP.
    Left(Lease),
    /// The same, and whoever goes on with it writes the record.
    Bequeathed(oneshot::Sender<Pooled<Record>>),
}

/// How long an answer's body may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Without any byte; zero is no limit.
    pub idle: Duration,
    /// When it must be complete, and the limit that says so.
    pub deadline: Option<(Instant, Duration)>,
}

// === impl BodyLimits ===

impl BodyLimits {
    /// When to see whether anything came, for one who looks at `now`.
    fn look(&self, now: Instant) -> Option<Instant> {
        let idle = (!self.idle.is_zero()).then(|| now + self.idle / LOOKS);
        idle.into_iter().chain(self.deadline.map(|(at, _)| at)).min()
    }
}

// === impl Replay ===

impl Replay {
    pub fn new(source: Received, bytes_max: u64) -> Self {
        if source.is_end_stream() {
            return Self(None);
        }
        Self::over(Source::Client(source), bytes_max)
    }

    fn over(source: Source, bytes_max: u64) -> Self {
        Self(Some(Rc::new(RefCell::new(ReplayState {
            source,
            copies: Vec::new(),
            kept: Vec::new(),
            tail: BytesMut::new(),
            kept_bytes: 0,
            overflowed: false,
            given: false,
            trailers: None,
            ended: None,
            failed: None,
            received: 0,
            bytes_max,
            attempt: 0,
            unpack: None,
            pace: Pace::default(),
        }))))
    }

    /// A body that gets what arrives for this one, made before anything was read. One that falls
    /// behind by more than may be held breaks; this one never waits for it.
    pub fn copy(&self) -> Self {
        let Some(shared) = &self.0 else { return Self(None) };
        let mut state = shared.borrow_mut();
        // Of base64 nobody knows what it unpacks to.
        let unpacked = state.unpack.is_some();
        let hint = if unpacked { SizeHint::new() } else { state.source.size_hint() };
        let copied = Rc::new(RefCell::new(Copied::new(hint)));
        state.copies.push(Rc::downgrade(&copied));
        Self::over(Source::Copy(copied), 0)
    }

    /// What arrives is base64 of the body; said before anything was read.
    pub fn unpack(&self) {
        if let Some(shared) = &self.0 {
            shared.borrow_mut().unpack = Some(Box::default());
        }
    }

    /// The body for the next attempt; the one before it stops.
    pub fn attempt(&self) -> AttemptBody {
        let inner = match &self.0 {
            None => AttemptInner::Empty,
            Some(shared) => {
                let mut state = shared.borrow_mut();
                state.attempt += 1;
                state.given = false;
                state.pace.starves(false);
                state.seal();
                AttemptInner::Shared {
                    attempt: state.attempt,
                    state: shared.clone(),
                    next: 0,
                    trailers_sent: false,
                }
            }
        };
        AttemptBody { inner }
    }

    /// Whether another attempt could send the whole body.
    pub fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(|s| {
            let s = s.borrow();
            !s.overflowed && s.failed.is_none()
        })
    }

    /// Allows no more bytes than that from now on.
    ///
    /// # Errors
    /// How many there are, when that is known to be more.
    pub fn narrow(&self, bytes_max: u64) -> Result<(), u64> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let mut state = shared.borrow_mut();
        if state.bytes_max == 0 || bytes_max < state.bytes_max {
            state.bytes_max = bytes_max.max(1);
        }
        match state.source.size_hint().exact() {
            Some(bytes) if bytes > bytes_max => Err(bytes),
            _ => Ok(()),
        }
    }

    /// Bytes received from the client so far.
    pub fn received(&self) -> u64 {
        self.0.as_ref().map_or(0, |s| s.borrow().received)
    }

    /// What went wrong on the client's side.
    pub fn failure(&self) -> Option<BodyError> {
        self.0.as_ref().and_then(|s| s.borrow().failed.clone())
    }
}

impl ReplayState {
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        match ready!(self.source.poll_frame(cx)).map(|frame| self.unpacked(frame?)) {
            None => {
                self.ended = Some(moment());
                if self.unpack.as_ref().is_some_and(|unpack| !unpack.is_whole()) {
                    let error = BodyError::Malformed("its base64 is cut off".into());
                    self.failed = Some(error.clone());
                    return Poll::Ready(Some(Err(error)));
                }
                self.tell_copies(Ok(()));
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.failed = Some(error.clone());
                self.tell_copies(Err(error.clone()));
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                let kept = self.keep(frame);
                match &kept {
                    Ok(frame) => self.copies.iter().filter_map(Weak::upgrade).for_each(|copy| {
                        copy.borrow_mut().push(frame);
                    }),
                    Err(error) => self.tell_copies(Err(error.clone())),
                }
                if self.ended.is_some() {
                    self.tell_copies(Ok(()));
                }
                Poll::Ready(Some(kept))
            }
        }
    }

    fn unpacked(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        match (&mut self.unpack, frame.data_ref()) {
            (Some(unpack), Some(data)) => {
                let data = unpack.unpack(data).map_err(|why| BodyError::Malformed(why.into()))?;
                Ok(Frame::data(data))
            }
            _ => Ok(frame),
        }
    }

    fn tell_copies(&mut self, end: Result<(), BodyError>) {
        for copy in self.copies.drain(..).filter_map(|c| c.upgrade()) {
            copy.borrow_mut().close(end.clone());
        }
    }

    fn keep(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        if let Some(data) = frame.data_ref() {
            self.received += data.len() as u64;
            if self.bytes_max != 0 && self.received > self.bytes_max {
                let error = BodyError::TooLarge(self.bytes_max);
                self.failed = Some(error.clone());
                return Err(error);
            }
            if !self.overflowed && self.kept_bytes + data.len() <= RETRY_BODY_BYTES_MAX {
                self.kept_bytes += data.len();
                if data.len() < SMALL_BYTES {
                    self.tail.extend_from_slice(data);
                } else {
                    self.seal();
                    self.kept.push(data.clone());
                }
            } else {
                self.overflowed = true;
                (self.kept, self.tail) = (Vec::new(), BytesMut::new());
            }
            if self.source.is_end_stream() && self.unpack.is_none() {
                self.ended = Some(moment());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.ended = Some(moment());
        }
        Ok(frame)
    }

    /// Makes small pieces one of those that a later attempt sends first.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.kept.push(std::mem::take(&mut self.tail).freeze());
        }
    }
}

impl Drop for ReplayState {
    fn drop(&mut self) {
        self.tell_copies(Err(BodyError::GivenUp));
    }
}

impl Source {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Client(received) => {
                let frame = ready!(Pin::new(received).poll_frame(cx));
                Poll::Ready(frame.map(|f| f.map_err(BodyError::from)))
            }
            Self::Copy(copied) => copied.borrow_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(received) => received.is_end_stream(),
            Self::Copy(copied) => copied.borrow().is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(received) => received.size_hint(),
            Self::Copy(copied) => copied.borrow().hint,
        }
    }
}

// === impl AttemptBody ===

impl AttemptBody {
    pub fn empty() -> Self {
        Self { inner: AttemptInner::Empty }
    }
}

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let AttemptInner::Shared { state, attempt, next, trailers_sent } = &mut self.inner else {
            return Poll::Ready(None);
        };
        let mut state = state.borrow_mut();
        if state.attempt != *attempt {
            return Poll::Ready(Some(Err(BodyError::GivenUp.into())));
        }
        if let Some(chunk) = state.kept.get(*next) {
            *next += 1;
            let frame = Frame::data(chunk.clone());
            state.given = true;
            state.pace.step();
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(trailers) = state.trailers.clone()
            && !*trailers_sent
        {
            *trailers_sent = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let polled = state.poll_source(cx);
        state.pace.starves(polled.is_pending());
        let frame = ready!(polled);
        state.given = true;
        state.pace.step();
        match &frame {
            Some(Ok(frame)) if frame.is_data() => *next = state.kept.len(),
            Some(Ok(_)) => *trailers_sent = true,
            _ => {}
        }
        Poll::Ready(frame.map(|f| f.map_err(BodyFault::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            AttemptInner::Empty => true,
            AttemptInner::Shared { state, next, trailers_sent, .. } => {
                let s = state.borrow();
                s.ended.is_some()
                    && *next >= s.kept.len()
                    && (s.trailers.is_none() || *trailers_sent)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            AttemptInner::Empty => SizeHint::with_exact(0),
            AttemptInner::Shared { state, next, .. } => {
                let s = state.borrow();
                let left: usize = s.kept.iter().skip(*next).map(Bytes::len).sum();
                let mut hint = SizeHint::new();
                let source =
                    if s.ended.is_some() { SizeHint::with_exact(0) } else { s.source.size_hint() };
                if let Some(exact) = source.exact().filter(|_| s.unpack.is_none()) {
                    hint.set_exact(exact + left as u64);
                }
                hint
            }
        }
    }
}

// === impl ReplyBody ===

impl ReplyBody {
    pub fn empty() -> Self {
        Self { inner: ReplyInner::Empty, record: None, fill: None, encoder: None }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { inner: ReplyInner::Full(bytes.into()), record: None, fill: None, encoder: None }
    }

    /// `request` is what it answers.
    pub fn upstream(body: Answered, lease: Lease, limits: BodyLimits, request: &Replay) -> Self {
        let upstream = UpstreamBody::new(body, lease, limits, request.motion());
        Self { inner: ReplyInner::Upstream(upstream), record: None, fill: None, encoder: None }
    }

    /// Goes on with the request while nobody reads its answer.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let ReplyInner::Upstream(upstream) = &mut self.inner {
            upstream.body.drive(cx);
        }
    }

    /// As a browser gets a gRPC answer.
    pub fn encoded(mut self, encoder: Encoder) -> Self {
        self.encoder = Some(Box::new(encoder));
        self
    }

    fn note(&mut self, frame: &Option<Result<Frame<Bytes>, BodyError>>) {
        let Some(record) = &mut self.record else { return };
        match frame {
            None => record.complete(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    record.bytes_sent += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    record.trailers(trailers);
                }
            }
            Some(Err(error)) => record.broke(error),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let frame = match &mut self.inner {
            ReplyInner::Empty | ReplyInner::Left(_) | ReplyInner::Bequeathed(_) => None,
            ReplyInner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.inner = ReplyInner::Empty;
                (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
            }
            ReplyInner::Upstream(upstream) => match upstream.poll(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.awaits_origin(),
            },
        };
        self.note(&frame);
        if self.fill.is_some() {
            self.fill(&frame);
        }
        let frame = match &mut self.encoder {
            Some(encoder) => frame.transpose().map(|f| encoder.frame(f)).transpose(),
            None => frame,
        };
        Poll::Ready(frame.map(|f| f.map_err(BodyFault::from)))
    }

    fn is_end_stream(&self) -> bool {
        if let Some(encoder) = &self.encoder {
            return encoder.is_ended();
        }
        match &self.inner {
            ReplyInner::Empty | ReplyInner::Left(_) | ReplyInner::Bequeathed(_) => true,
            ReplyInner::Full(bytes) => bytes.is_empty(),
            ReplyInner::Upstream(upstream) => upstream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.encoder.is_some() {
            return SizeHint::new();
        }
        match &self.inner {
            ReplyInner::Empty | ReplyInner::Left(_) | ReplyInner::Bequeathed(_) => {
                SizeHint::with_exact(0)
            }
            ReplyInner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ReplyInner::Upstream(upstream) => upstream.body.size_hint(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        let ended = self.is_end_stream();
        if let Some(record) = &mut self.record
            && ended
        {
            record.complete();
        }
        // Otherwise the record's own drop says that the client went away.
    }
}

impl From<BodyError> for BodyFault {
    fn from(error: BodyError) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests;
