// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 connections: a stack of idle ones, newest first.

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use weft_identity::Alpn;

use super::{
    Answered, CAREFUL_IDLE, How, Lease, LeaseKind, Pool, REUSE_TRIES, SendError, classify,
};
use crate::http::body::AttemptBody;

pub(super) type Sender = http1::SendRequest<AttemptBody>;

#[derive(Debug)]
pub(super) struct Idle {
    sender: Sender,
    since: Instant,
}

// === impl Idle ===

impl Idle {
    pub(super) fn keep(&self, now: Instant, limit: Duration) -> bool {
        !self.sender.is_closed() && now.duration_since(self.since) < limit
    }
}

// === impl Pool ===

impl Pool {
    pub(super) async fn send_h1(
        self: &Rc<Self>,
        mut request: Request<AttemptBody>,
        how: &How,
    ) -> Result<(Response<Answered>, Lease), SendError> {
        let mut last = None;
        for tries in 0..=REUSE_TRIES {
            let idle = if tries < REUSE_TRIES { self.idle(how.careful) } else { None };
            let mut sender = match idle {
                Some(sender) => sender,
                None => self.open_h1(how).await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let body = how.body.clone();
                    let kind = LeaseKind::H1 { pool: self.clone(), sender, body };
                    return Ok((response, Lease { kind, flight: None }));
                }
                Err(mut error) => match error.take_message() {
                    // Not a byte of it was written: the next connection may have it.
                    Some(back) => {
                        last = Some(crate::http::cause(error.error()));
                        request = back;
                    }
                    None => return Err(classify(error.error(), &how.body)),
                },
            }
        }
        Err(SendError::Refused(last.unwrap_or_default()))
    }

    pub(super) fn give_back(&self, sender: Sender) {
        if !sender.is_closed() {
            self.h1.borrow_mut().push(Idle { sender, since: Instant::now() });
        }
    }

    fn idle(&self, careful: bool) -> Option<Sender> {
        let mut stack = self.h1.borrow_mut();
        loop {
            let idle = stack.pop()?;
            if !idle.sender.is_ready() || idle.sender.is_closed() {
                continue;
            }
            if careful && idle.since.elapsed() > CAREFUL_IDLE {
                // It is the newest; older ones are no better. Leave them to safer requests.
                stack.push(idle);
                return None;
            }
            return Some(idle.sender);
        }
    }

    async fn open_h1(&self, how: &How) -> Result<Sender, SendError> {
        let io = self.context.dialer.connect(&self.peer, Alpn::Http11, how.connect_timeout).await?;
        let guard = self.opened();
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| SendError::Refused(crate::http::cause(&e)))?;
        let connection = Box::pin(connection.with_upgrades());
        self.context.tasks.spawn_local("upstream http/1", async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        Ok(sender)
    }
}
