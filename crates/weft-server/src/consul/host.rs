// SPDX-License-Identifier: Apache-2.0
//! Requests that came to the door of another machine, whose agent hands them on. Called by the
//! server's link to agents, which has proved the machine; the token that came along says what its
//! client may do. Without access lists the machine itself does: [`Who::of_host`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use weft_base::limits::WATCHERS_MAX;

use super::Door;
use super::error::Refusal;
use super::far;
use super::http::Answer;
use super::params::Params;
use super::routes;
use super::who::{Host, Secret, Who};

/// Queries of one machine that wait here at once: its agent hands on fewer.
const WAITS_MAX: usize = 1_000;
/// The same while places to wait in are scarce: no machine takes the last of them.
const WAITS_FEW: usize = 64;
const SCARCE: usize = WATCHERS_MAX / 4;

/// How many queries of each machine wait.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<HashMap<Arc<str>, usize>>);

/// One of them, until it is dropped.
struct Wait<'a> {
    waits: &'a Waits,
    host: Arc<str>,
}

/// What a machine hands on.
#[derive(Clone, Default)]
pub struct HostAsk {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub token: String,
    pub body: Bytes,
}

impl std::fmt::Debug for HostAsk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets and keys are in the rest.
        f.debug_struct("HostAsk").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Of a request that nobody waits with until the server has heard of what it wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unawaited;

/// The answer: status, headers, body.
pub type HostAnswer = (u16, Vec<(String, String)>, Bytes);

// === impl Waits ===

impl Waits {
    fn begin(&self, host: &str, free: usize) -> Option<Wait<'_>> {
        let max = if free < SCARCE { WAITS_FEW } else { WAITS_MAX };
        let mut waits = self.lock();
        let host: Arc<str> = host.into();
        let count = waits.entry(host.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Wait { waits: self, host })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waits = self.waits.lock();
        if let Some(count) = waits.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&self.host);
            }
        }
    }
}

impl Door {
    /// Answers what came to a machine's own door. Cancel-safe.
    pub async fn for_host(&self, host: &str, ask: HostAsk) -> HostAnswer {
        let free = self.0.watchers.available_permits();
        let wait = may_wait(&ask.target).then(|| self.0.waits.begin(host, free));
        if let Some(None) = wait {
            let why = "as many queries of this machine wait here as may; try again later";
            return plain(&Refusal::new(StatusCode::TOO_MANY_REQUESTS, why));
        }
        let request = match self.asked_by(&host.into(), &ask) {
            Ok(who) => {
                let request = Request::builder().method(&*ask.method).uri(&*ask.target);
                let request = request.extension(who).extension(Secret(ask.token.into()));
                request.body(Full::new(ask.body))
            }
            Err(refusal) => return plain(&refusal),
        };
        let Ok(request) = request else {
            return plain(&Refusal::bad("the request line cannot be read"));
        };
        let (head, body) = self.done_whole(request).await.into_parts();
        let headers = head.headers.iter().filter_map(|(name, value)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        });
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        (head.status.as_u16(), headers.collect(), body)
    }

    /// A write is done as a whole, also when its machine no longer waits for it.
    async fn done_whole(&self, request: Request<Full<Bytes>>) -> Answer {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.handle(request).await;
        }
        let (done, answer) = tokio::sync::oneshot::channel();
        let door = self.clone();
        self.0.tasks.spawn("consul write", async move {
            let _ = done.send(Box::pin(door.handle(request)).await);
        });
        answer.await.unwrap_or_else(|_| {
            let mut ending = Answer::new(Full::new("the server is ending".into()));
            *ending.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            ending
        })
    }

    /// Answers what a file of the machine's operator says at the agent's start: status and body.
    /// It may do everything here; to the server it is shown with its token.
    pub async fn as_operator(
        &self,
        method: &str,
        target: &str,
        token: &str,
        body: Vec<u8>,
    ) -> (u16, String) {
        let request = Request::builder().method(method).uri(target);
        let request = request.header("X-Consul-Token", token).extension(Who::anybody());
        let request = request.extension(Unawaited);
        let Ok(request) = request.body(Full::new(Bytes::from(body))) else {
            return (400, "the request line cannot be read".to_owned());
        };
        let (head, body) = self.handle(request).await.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        (head.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    /// Whether everybody may do everything: there are no access lists.
    pub fn is_open(&self) -> bool {
        !self.acl().is_on()
    }

    /// What the holder of a token may do at a machine's own door, as [`far::Tokens`] reads it.
    pub fn token_json(&self, secret: &str) -> Vec<u8> {
        far::write(match self.acl().is_on() {
            true => self.acl().resolve(self, secret),
            false => Ok(Who::anybody()),
        })
    }

    /// Who asks there, if it may be asked here at all.
    fn asked_by(&self, host: &Arc<str>, ask: &HostAsk) -> Result<Who, Refusal> {
        let unread = |_| Refusal::bad("the method cannot be read");
        let method = Method::from_bytes(ask.method.as_bytes()).map_err(unread)?;
        let path = ask.target.split_once('?').map_or(&*ask.target, |(path, _)| path);
        if method == Method::OPTIONS {
            return Ok(Who::of_host(host));
        }
        let (endpoint, _) = routes::find(&method, path)?;
        if far::is_own(endpoint) {
            return Err(Refusal::bad("a machine's own endpoints are not answered for it here"));
        }
        let who = self.who_at(host, &ask.token)?;
        let bound = who.host.as_ref().is_some_and(|host| host.bound);
        match far::refused_to_hosts(endpoint, &method).filter(|_| bound) {
            Some(refusal) => Err(refusal),
            None => Ok(who),
        }
    }

    /// Who holds a token there.
    pub(super) fn who_at(&self, host: &Arc<str>, secret: &str) -> Result<Who, Refusal> {
        if !self.acl().is_on() {
            return Ok(Who::of_host(host));
        }
        let who = self.acl().resolve(self, secret)?;
        Ok(Who { host: Some(Host { node: host.clone(), bound: false }), ..who })
    }
}

/// Whether it is a blocking query.
fn may_wait(target: &str) -> bool {
    let query = target.split_once('?').map(|(_, query)| query);
    let blocking = Params::parse(query).and_then(|params| params.blocking());
    blocking.is_ok_and(|blocking| blocking.index > 0)
}

/// Whether a request is a question that may be answered minutes later.
pub(super) fn is_slow_question(request: &Request<()>) -> bool {
    let uri = request.uri();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && (may_wait(&uri.to_string()) || uri.query().is_some_and(|query| query.contains("hash=")))
}

fn plain(refusal: &Refusal) -> HostAnswer {
    let kind = ("content-type".to_owned(), "text/plain; charset=utf-8".to_owned());
    let mut headers = vec![kind];
    headers.extend(refusal.allow.clone().map(|allow| ("allow".to_owned(), allow)));
    let status = match refusal.status {
        StatusCode::OK => StatusCode::INTERNAL_SERVER_ERROR,
        status => status,
    };
    (status.as_u16(), headers, Bytes::from(refusal.text.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_takes_no_others_places_to_wait_in() {
        let waits = Waits::default();
        let one: Vec<_> = (0..WAITS_FEW).map(|_| waits.begin("m1", SCARCE - 1).unwrap()).collect();
        assert!(waits.begin("m1", SCARCE - 1).is_none(), "few are left");
        assert!(waits.begin("m2", SCARCE - 1).is_some(), "another has its own");
        let more: Vec<_> =
            (WAITS_FEW..WAITS_MAX).map(|_| waits.begin("m1", SCARCE).unwrap()).collect();
        assert!(waits.begin("m1", WATCHERS_MAX).is_none());
        drop((one, more));
        assert!(waits.lock().is_empty(), "who waits no more is forgotten");
    }

    #[test]
    fn only_what_may_wait_is_counted() {
        assert!(may_wait("/v1/kv/a?index=7&wait=1s") && may_wait("/v1/kv/a?%69ndex=7"));
        for target in ["/v1/kv/a", "/v1/kv/a?index=0", "/v1/kv/a?wait=1s", "/v1/kv/index=7"] {
            assert!(!may_wait(target), "{target}");
        }
    }
}
