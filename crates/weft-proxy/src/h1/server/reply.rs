// SPDX-License-Identifier: Apache-2.0
//! One answer on its way to an HTTP/1 client: its head in the form that fits the request, and its
//! body as it comes.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap};
use http::response::Parts;
use http::{Method, Response, StatusCode, Version};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Ended;
use super::core::Core;
use crate::h1::encode;
use crate::h1::framing::Framing;
use crate::http::{made, present};

pub(super) struct Reply<B> {
    head: Parts,
    body: B,
    version: Version,
    framing: Framing,
    /// The answer is to a question about its head only, or may have no body.
    bodiless: bool,
    keep: bool,
    /// Of a counted body.
    left: u64,
    ended: bool,
    broke: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Reply<B> {
    /// `fit`: the connection could take another request. `granted`: HTTP ends with this head.
    pub(super) fn new(
        response: Response<B>,
        method: &Method,
        version: Version,
        fit: bool,
        granted: bool,
    ) -> Self {
        let (head, body) = response.into_parts();
        let status = head.status;
        let bodiless = granted
            || method == Method::HEAD
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        let exact = body.size_hint().exact();
        let framing = match exact.or_else(|| encode::named_length(&head.headers)) {
            _ if granted => Framing::Tunnel,
            _ if bodiless => Framing::Empty,
            Some(n) => Framing::Length(n),
            None if version == Version::HTTP_11 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        let closes =
            present::get(&head.headers, &CONNECTION).is_some() && says_close(&head.headers);
        let keep = fit && !closes && framing != Framing::UntilClose;
        let left = if let Framing::Length(n) = framing { n } else { 0 };
        Self { head, body, version, framing, bodiless, keep, left, ended: false, broke: false }
    }

    /// The last answer, to something that was no request.
    pub(super) fn refusal(response: Response<B>) -> Self {
        Self::new(response, &Method::GET, Version::HTTP_11, false, false)
    }

    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    /// Its end is the connection's.
    pub(super) fn ends_by_close(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    pub(super) fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// Encodes the head.
    pub(super) fn begin<I>(&mut self, core: &mut Core<I>) {
        let Self { head, version, framing, .. } = self;
        let out = core.out.head();
        let said = encode::response(out, *version, head.status, &head.headers);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            out.extend_from_slice(b"connection: upgrade\r\n");
        } else if *framing != Framing::Tunnel {
            match (self.keep, *version) {
                (false, _) => out.extend_from_slice(b"connection: close\r\n"),
                (true, Version::HTTP_10) => out.extend_from_slice(b"connection: keep-alive\r\n"),
                (true, _) => {}
            }
        }
        // An answer to HEAD and a 304 say what the body would have been.
        let told = *framing == Framing::Empty
            && !head.status.is_informational()
            && head.status != StatusCode::NO_CONTENT;
        if let Some(n) = said.length.filter(|_| told) {
            encode::length(out, n);
        }
        encode::framing(out, *framing);
        // Nobody reads them behind this.
        made::give_back(std::mem::take(&mut head.headers));
    }

    /// Moves what is there of the body to the outbox: ready with whether that was all of it, or
    /// pending when the body has nothing more for now.
    pub(super) fn poll_fill<I>(
        &mut self,
        core: &RefCell<Core<I>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Ended>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        while !self.ended {
            if self.broke {
                return Poll::Ready(Err(Ended::Broke));
            }
            if !core.borrow().out.has_room() {
                return Poll::Ready(Ok(false));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    if self.left > 0 {
                        self.broke = true;
                        continue;
                    }
                    self.ended = true;
                    if self.framing == Framing::Chunked {
                        core.borrow_mut().out.head().extend_from_slice(encode::LAST_CHUNK);
                    }
                    break;
                }
                Poll::Ready(Some(Err(_))) => {
                    self.broke = true;
                    continue;
                }
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            if self.bodiless {
                continue;
            }
            match frame.into_data() {
                Ok(data) => self.data(data, &mut core.borrow_mut()),
                Err(frame) => {
                    if let (Framing::Chunked, Ok(trailers)) = (self.framing, frame.into_trailers())
                    {
                        self.ended = true;
                        encode::trailers(core.borrow_mut().out.head(), &trailers);
                    }
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    fn data<I>(&mut self, data: Bytes, core: &mut Core<I>) {
        if data.is_empty() {
            return;
        }
        if let Framing::Length(_) = self.framing {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.broke = true;
                    return;
                }
            }
        }
        let is_last = self.framing == Framing::Chunked && self.body.is_end_stream();
        encode::data(&mut core.out, self.framing, data, is_last);
        self.ended = is_last;
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|v| {
        let mut options = v.as_bytes().split(|b| *b == b',');
        options.any(|o| o.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}
