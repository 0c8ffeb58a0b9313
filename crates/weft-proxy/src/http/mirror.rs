// SPDX-License-Identifier: Apache-2.0
//! Copies of requests for other backends. The phases call it once a request is as its backend gets
//! it; the copy is one attempt, its answer is read and thrown away, and whatever happens to it,
//! the request itself does not wait for it and never hears of it.

use std::rc::Rc;
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body::Body as _;
use weft_base::limits::MIRRORS_MAX;
use weft_model::{Mirror, Retry, Share, Target, Timeouts};

use super::attempt::{self, Call};
use super::body::Replay;
use crate::upstream::pool::Client;
use crate::worker::Worker;

/// How long a copy may take when its rule limits nothing.
const PATIENCE: Duration = Duration::from_secs(15);

/// A request as its backend gets it.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    pub head: &'a Parts,
    pub body: &'a Replay,
    pub authority: &'a str,
    pub scheme: &'static str,
    pub grpc: bool,
    pub client: &'a Client<'a>,
}

/// Sends the copies that chance picks.
pub fn send(worker: &Rc<Worker>, original: Original<'_>, mirrors: &[&Mirror], times: &Timeouts) {
    for mirror in mirrors {
        if mirror.share.takes(worker.rng.borrow_mut().below(Share::POINTS)) {
            copy(worker, original, mirror, times);
        }
    }
}

fn copy(worker: &Rc<Worker>, original: Original<'_>, mirror: &Mirror, times: &Timeouts) {
    let Target::Backend(name) = &mirror.target else { return };
    let Some(entry) = worker.table().backend(name).cloned() else { return };
    if worker.mirrors.get() >= MIRRORS_MAX {
        worker.metrics.cells.mirrors_dropped.add(1);
        return;
    }
    let backend = worker.backend(&entry);
    let head = copied(original.head);
    let body = original.body.copy();
    let authority = match mirror.mark_host {
        true => marked(original.authority).into(),
        false => original.authority.into(),
    };
    let (times, worker, scheme) = (times.clone(), worker.clone(), original.scheme);
    let (grpc, client) = (original.grpc, Client::Past(Box::new(original.client.addresses())));
    worker.mirrors.set(worker.mirrors.get() + 1);
    let tasks = worker.conns.clone();
    tasks.spawn_local("mirror", async move {
        let _open = Open(worker.clone());
        let retry = Retry { attempts: 0, ..Retry::default() };
        let (version, sent) = (head.version, body.clone());
        let call = Call {
            worker: &worker,
            backend,
            head,
            body,
            authority,
            scheme,
            version,
            timeouts: &times,
            retry: &retry,
            interim: None,
            pinned: None,
            client,
        };
        let limit = times.request_ms.filter(|ms| *ms > 0).map_or(PATIENCE, Duration::from_millis);
        let exchange = async {
            let Some(response) = attempt::once(&call, grpc).await else { return };
            let mut body = std::pin::pin!(response.into_body());
            while let Some(Ok(_)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {}
        };
        if tokio::time::timeout(limit, exchange).await.is_err() {
            tracing::debug!("a mirrored request took longer than {} ms", limit.as_millis());
        }
        if sent.fell_behind() {
            worker.metrics.cells.mirrors_dropped.add(1);
        }
    });
}

pub(super) fn copied(head: &Parts) -> Parts {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers.clone();
    request.into_parts().0
}

/// `user:8080` becomes `user-shadow:8080`; addresses stay as they are.
fn marked(authority: &str) -> String {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return authority.to_owned();
    }
    match port {
        Some(port) => format!("{host}-shadow:{port}"),
        None => format!("{host}-shadow"),
    }
}

/// One copy under way, counted while it lives.
struct Open(Rc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::marked;

    #[test]
    fn copies_are_marked_by_name_only() {
        for (authority, want) in [
            ("user", "user-shadow"),
            ("user.shop:8080", "user.shop-shadow:8080"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("::1", "::1"),
        ] {
            assert_eq!(marked(authority), want);
        }
    }
}
