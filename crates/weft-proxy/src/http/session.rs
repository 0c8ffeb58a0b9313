// SPDX-License-Identifier: Apache-2.0
//! Sessions that stay with their instance: what a request brought of its session, which share and
//! endpoint that means, and what its client is to keep. Called by the phases; the picker is asked
//! only when the session's instance is gone or out for failures.

use std::cell::RefCell;
use std::rc::Rc;

use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, Response};
use weft_model::decide::{cookie, session_read, session_text, session_token};
use weft_model::{ResourceName, Session, SessionBy, WeightedBackend};

use super::body::ReplyBody;
use crate::observe::record::Record;
use crate::table::Table;
use crate::upstream::pick::{LocalBackend, LocalEndpoint};
use crate::worker::{Conn, Worker};

/// A request's session.
#[derive(Debug)]
pub struct Kept<'t> {
    session: &'t Session,
    /// The instance's token, and when the session began.
    brought: Option<(u64, u64)>,
    now_s: u64,
}

// === impl Kept ===

impl<'t> Kept<'t> {
    pub fn read(session: &'t Session, head: &Parts, worker: &Worker) -> Self {
        let now_s = worker.clock.wall_ms() / 1_000;
        let text = match session.by {
            SessionBy::Cookie { .. } => cookie_of(&head.headers, &session.name),
            SessionBy::Header => head.headers.get(&*session.name).and_then(|v| v.to_str().ok()),
        };
        Self { session, brought: text.and_then(|t| session_read(session, t, now_s)), now_s }
    }

    /// The share of a split that the session belongs to. One whose weight is 0 now keeps its
    /// sessions and gets no new ones.
    pub fn share<'b>(
        &self,
        worker: &Rc<Worker>,
        table: &Table,
        backends: &'b [WeightedBackend],
    ) -> Option<&'b WeightedBackend> {
        self.brought?;
        backends.iter().find(|share| {
            let entry = share.target.backend().and_then(|name| table.backend(name));
            entry.is_some_and(|entry| self.endpoint(worker, &worker.backend(entry)).is_some())
        })
    }

    /// The session's endpoint, when it is there and not out for failures.
    pub fn endpoint(
        &self,
        worker: &Worker,
        backend: &Rc<RefCell<LocalBackend>>,
    ) -> Option<Rc<LocalEndpoint>> {
        let (token, _) = self.brought?;
        let now = worker.clock.now();
        let mut backend = backend.borrow_mut();
        let name: &ResourceName = &backend.entry.name;
        let fits = |e: &&Rc<LocalEndpoint>| session_token(name, &e.entry.endpoint) == token;
        let found = backend.candidates().iter().find(fits).cloned()?;
        backend.keeps(&found.entry, now).then_some(found)
    }

    /// Tells the client what to keep, unless it has it.
    pub fn remember(&self, conn: &Conn, response: &mut Response<ReplyBody>, record: &Record) {
        let (Some(backend), Some(endpoint)) = (&record.backend, &record.endpoint) else { return };
        let token = session_token(&backend.name, &endpoint.entry.endpoint);
        if self.brought.is_some_and(|(brought, _)| brought == token) {
            return;
        }
        let text = session_text(token, self.now_s);
        let name = &self.session.name;
        let headers = response.headers_mut();
        match self.session.by {
            SessionBy::Header => {
                let name = HeaderName::from_bytes(name.as_bytes());
                if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&text)) {
                    headers.insert(name, value);
                }
            }
            SessionBy::Cookie { permanent } => {
                let mut line = format!("{name}={text}; Path=/; HttpOnly");
                if conn.scheme == "https" {
                    line.push_str("; Secure");
                }
                if let Some(seconds) = self.session.absolute_s.filter(|_| permanent) {
                    line.push_str(&format!("; Max-Age={seconds}"));
                }
                if let Ok(value) = HeaderValue::from_str(&line) {
                    headers.append(SET_COOKIE, value);
                }
            }
        }
    }
}

/// The value of a cookie, wherever the client's HTTP put it.
fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok());
    lines.into_iter().find_map(|line| cookie(line, name))
}
