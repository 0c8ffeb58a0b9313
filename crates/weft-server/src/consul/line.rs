// SPDX-License-Identifier: Apache-2.0
//! One connection of the door: HTTP/1.1 as a server speaks it. `http.rs` asks it for requests and
//! hands it the answers; it knows nothing of what they mean.
//!
//! It is our own for one reason: clients wait for minutes, thousands of them at a time, and what a
//! connection holds meanwhile must be small. Buffers are there only while bytes pass.
//!
//! It is strict where two readers could disagree about where a request ends: one length, or
//! chunks, or nothing.

mod body;
pub(super) mod fuzz;
mod head;
mod wire;

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Collected, Full};
use tokio::sync::Notify;
use weft_base::task::TaskGroup;

use super::flow::Flow;
pub(super) use body::Incoming;
use head::{Found, Head, Wrong};
pub(super) use wire::Wire;

/// What who listens to an answer without an end may say besides, bytes.
const SAID_BYTES_MAX: usize = 4096;
/// Time for a request's head once it has begun.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a connection may be silent between requests.
const IDLE_TIME_MAX: Duration = Duration::from_secs(120);
/// How long an answer may stand still.
pub(super) const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// What is read at a time.
const READ_BYTES: usize = 2048;
/// Answers of this size go out in one piece with their head.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// A connection, and what was read of it and not used yet.
#[derive(Debug)]
pub(super) struct Line {
    stream: Wire,
    held: BytesMut,
}

/// How a request follows from what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    pub framing: Framing,
    /// The client asks before it sends the body.
    pub expects: bool,
    /// The connection is for more requests.
    pub keep: bool,
    /// Only the answer's head is wanted.
    pub head_only: bool,
}

/// Where a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// What came next on a connection.
#[derive(Debug)]
pub(super) enum Next {
    Request(Box<Request<()>>, Manner),
    /// What came is no request; this is the answer to it, and the last one.
    Refused(Wrong),
    /// The client is gone, or silent for too long.
    Over,
}

// === impl Line ===

impl Line {
    pub fn new(stream: impl Into<Wire>) -> Self {
        Self { stream: stream.into(), held: BytesMut::new() }
    }

    /// Whoever asks this way was not led here by a page of a browser.
    pub fn is_direct(&self) -> bool {
        self.stream.is_direct()
    }

    /// Nothing of a next request has come.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Waits for the next request's head. Cancel-safe.
    pub async fn next(&mut self) -> Next {
        if self.held.is_empty() {
            // What a request needed is not kept for the next one.
            self.held = BytesMut::new();
            match tokio::time::timeout(IDLE_TIME_MAX, self.more()).await {
                Ok(Ok(())) => {}
                _ => return Next::Over,
            }
        }
        match tokio::time::timeout(HEAD_TIME_MAX, self.head()).await {
            Ok(Ok(Found::Head(Head { request, manner }))) => Next::Request(request, manner),
            Ok(Ok(Found::Wrong(why))) => Next::Refused(why),
            Ok(_) => Next::Over,
            Err(_) => {
                let why = "the rest of the request's head did not come in time";
                Next::Refused((StatusCode::REQUEST_TIMEOUT, why))
            }
        }
    }

    async fn head(&mut self) -> Result<Found> {
        let mut seen = 0;
        loop {
            match head::take(&mut self.held, &mut seen) {
                Found::Part => self.more().await?,
                found => return Ok(found),
            }
        }
    }

    async fn more(&mut self) -> Result<()> {
        loop {
            self.stream.readable().await?;
            self.held.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.held) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) => return Err(why),
            }
        }
    }

    /// The body of the request that came last. `over` is told when all of it was taken.
    pub fn body<'l>(&'l mut self, manner: Manner, over: &'l Notify) -> Incoming<'l> {
        Incoming::new(&self.stream, &mut self.held, manner, over)
    }

    /// Resolves when the client has gone away. One that has sent more already is not looked after:
    /// what it sent is in the way.
    pub fn gone(&self) -> impl Future<Output = ()> + use<'_> {
        let stream = self.is_idle().then_some(&self.stream);
        async move {
            let Some(stream) = stream else { return std::future::pending().await };
            if !stream.is_closed().await {
                std::future::pending().await
            }
        }
    }

    /// Resolves when the client has gone away, or says more than anybody who only listens would.
    /// What it says is dropped.
    async fn left(&self) {
        let mut dropped = BytesMut::with_capacity(READ_BYTES);
        let mut count = 0;
        while count < SAID_BYTES_MAX && self.stream.readable().await.is_ok() {
            dropped.clear();
            match self.stream.try_read_buf(&mut dropped) {
                Ok(0) => return,
                Ok(n) => count += n,
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// # Errors
    /// When the client is gone, or takes nothing for a while.
    pub async fn answer(&self, answer: &Response<Full<Bytes>>, manner: Manner) -> Result<()> {
        let body = answer.body().clone().collect().await.map(Collected::to_bytes);
        let body = body.unwrap_or_default();
        self.send(answer.status(), answer.headers(), &body, manner).await
    }

    async fn send(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
        manner: Manner,
    ) -> Result<()> {
        let mut out = head::answer(status, headers, Some(body.len()), manner.keep);
        let body = if manner.head_only { &[][..] } else { body };
        if body.len() > COPIED_BYTES_MAX {
            self.write(&out).await?;
            return self.write(body).await;
        }
        out.extend_from_slice(body);
        self.write(&out).await
    }

    /// Answers without an end: each part as it comes, until its reader is gone, takes nothing for a
    /// while or there are no more. The connection ends with it.
    pub async fn flow(
        &self,
        answer: &Response<Full<Bytes>>,
        mut flow: Flow,
        (manner, tasks): (Manner, &TaskGroup),
    ) {
        let head = head::answer(answer.status(), answer.headers(), None, false);
        if self.write(&head).await.is_err() || manner.head_only {
            return;
        }
        let gone = self.left();
        tokio::pin!(gone);
        loop {
            let part = tokio::select! {
                part = flow.next() => part,
                () = &mut gone => return,
                () = tasks.draining() => return,
            };
            match part {
                Some(part) if self.write(&part).await.is_ok() => {}
                _ => return,
            }
        }
    }

    /// Answers what is no request.
    pub async fn refuse(&self, (status, why): Wrong) {
        let framing = Framing::Length(0);
        let manner = Manner { framing, expects: false, keep: false, head_only: false };
        // It may be gone, or send for ever: there is nobody to tell.
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, text)]);
        let _ = self.send(status, &headers, &Bytes::from_static(why.as_bytes()), manner).await;
    }

    /// Lets the client read the last answer: what it still sends is taken for a moment.
    pub async fn close(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let rest = async {
            for _ in 0..64 {
                self.held.clear();
                if self.more().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    }

    async fn write(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let ready = tokio::time::timeout(WRITE_TIME_MAX, self.stream.writable()).await;
            ready.map_err(|_| Error::from(ErrorKind::TimedOut))??;
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

// === impl Manner ===

impl Manner {
    /// What a request's head says of the rest of it; why not when that is not one thing.
    fn of(
        method: &Method,
        version: Version,
        headers: &HeaderMap,
    ) -> std::result::Result<Self, Wrong> {
        let wants =
            |name: http::HeaderName, word: &str| has_word(headers.get_all(name).iter(), word);
        let framing = framing(version, headers)?;
        let expects = match headers.get(http::header::EXPECT) {
            Some(asked) if asked.as_bytes().eq_ignore_ascii_case(b"100-continue") => true,
            Some(_) => {
                let why = "Expect: 100-continue is the one expectation that is met";
                return Err((StatusCode::EXPECTATION_FAILED, why));
            }
            None => false,
        };
        Ok(Self {
            framing,
            expects: expects && version == Version::HTTP_11,
            keep: version == Version::HTTP_11 && !wants(http::header::CONNECTION, "close"),
            head_only: method == Method::HEAD,
        })
    }
}

/// Where the body ends, if it can be said in one way only.
fn framing(version: Version, headers: &HeaderMap) -> std::result::Result<Framing, Wrong> {
    let why = "where the body ends must be said once: one Content-Length, or Transfer-Encoding: \
               chunked";
    let wrong = (StatusCode::BAD_REQUEST, why);
    let mut codings = headers.get_all(http::header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::Length(0)),
        (None, Some(length)) => {
            let digits = length.as_bytes();
            let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let length = length.to_str().ok().filter(|_| plain && lengths.next().is_none());
            length.and_then(|text| text.parse().ok()).map(Framing::Length).ok_or(wrong)
        }
        (Some(coding), None) if version == Version::HTTP_11 && codings.next().is_none() => {
            match coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                true => Ok(Framing::Chunked),
                false => {
                    let why = "chunked is the one transfer coding that is read";
                    Err((StatusCode::NOT_IMPLEMENTED, why))
                }
            }
        }
        _ => Err(wrong),
    }
}

fn has_word<'a>(mut values: impl Iterator<Item = &'a HeaderValue>, word: &str) -> bool {
    values.any(|value| {
        let words = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        words.into_iter().any(|one| one.eq_ignore_ascii_case(word.as_bytes()))
    })
}

#[cfg(test)]
mod tests;
