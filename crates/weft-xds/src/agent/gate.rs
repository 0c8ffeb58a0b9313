// SPDX-License-Identifier: Apache-2.0
//! Keeps callers without a certificate out of a service before anything that they send is read,
//! but for a few named calls, of which only so many at a time, and fewer from one address: one
//! guest that lets its calls hang keeps no other out.
//!
//! The assembly puts one before each service of the mTLS port. It knows no identity: whether a
//! known caller may do something is the service's to say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::server::Peer;

/// Calls of unknown callers at a time.
const GUEST_CALLS_MAX: usize = 16;
/// Of them, those of one address.
const GUEST_CALLS_PER_ADDRESS_MAX: usize = 4;

/// A service with a gate before it.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    open: &'static [&'static str],
    calls: Arc<Semaphore>,
    from: Callers,
}

/// How many calls each address has open.
#[derive(Clone, Debug, Default)]
struct Callers(Arc<Mutex<HashMap<Option<IpAddr>, usize>>>);

/// One of them.
#[derive(Debug)]
struct Turn(Callers, Option<IpAddr>);

// === impl Gate ===

impl<S> Gate<S> {
    /// `open` lists the paths that need no certificate.
    pub fn new(inner: S, open: &'static [&'static str]) -> Self {
        Self {
            inner,
            open,
            calls: Arc::new(Semaphore::new(GUEST_CALLS_MAX)),
            from: Callers::default(),
        }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let known = request.extensions().get::<Peer>().is_some_and(|p| p.spiffe_id.is_some());
        if known {
            return Box::pin(self.inner.call(request));
        }
        if !self.open.contains(&request.uri().path()) {
            return refused(Status::unauthenticated(
                "this call needs a certificate of the mesh; join first, with a token",
            ));
        }
        let address = request.extensions().get::<Peer>().and_then(|p| p.address);
        let turn = self.from.enter(address.map(|a| a.ip()));
        let place = turn.and_then(|t| Some((t, self.calls.clone().try_acquire_owned().ok()?)));
        let Some(place) = place else {
            return refused(Status::resource_exhausted("too many are joining; try again"));
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(place);
            answer
        })
    }
}

// === impl Callers ===

impl Callers {
    /// `None` when the address has as many open as it may.
    fn enter(&self, address: Option<IpAddr>) -> Option<Turn> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= GUEST_CALLS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Turn(self.clone(), address))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}

fn refused(status: Status) -> Answer {
    Box::pin(std::future::ready(Ok(status.into_http())))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// A service that never answers, or does at once.
    #[derive(Clone)]
    struct Joins {
        hang: bool,
    }

    impl NamedService for Joins {
        const NAME: &'static str = "joins";
    }

    impl Service<http::Request<Body>> for Joins {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Answer {
            match self.hang {
                true => Box::pin(std::future::pending()),
                false => Box::pin(std::future::ready(Ok(http::Response::new(Body::empty())))),
            }
        }
    }

    fn ask(ip: &str) -> http::Request<Body> {
        let mut request = http::Request::new(Body::empty());
        *request.uri_mut() = "/join".parse().unwrap();
        let address = Some(format!("{ip}:1").parse().unwrap());
        request.extensions_mut().insert(Peer { spiffe_id: None, address });
        request
    }

    /// Whether a call of an address is heard.
    fn is_heard(gate: &mut Gate<Joins>, ip: &str) -> bool {
        let answer = gate.call(ask(ip)).now_or_never().unwrap().unwrap();
        !answer.headers().contains_key("grpc-status")
    }

    #[test]
    fn a_guest_whose_calls_hang_keeps_no_other_out() {
        let mut gate = Gate::new(Joins { hang: true }, &["/join"]);
        let mut hanging: Vec<Answer> = (0..16).map(|_| gate.call(ask("10.0.0.1"))).collect();
        hanging.retain_mut(|call| call.now_or_never().is_none());
        assert_eq!(hanging.len(), GUEST_CALLS_PER_ADDRESS_MAX);
        gate.inner.hang = false;
        assert!(!is_heard(&mut gate, "10.0.0.1"));
        assert!(is_heard(&mut gate, "10.0.0.2"));
        // What was given up makes room again.
        drop(hanging);
        assert!(is_heard(&mut gate, "10.0.0.1"));
        assert!(gate.from.0.lock().unwrap().is_empty());
    }
}
