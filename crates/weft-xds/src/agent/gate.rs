// SPDX-License-Identifier: Apache-2.0
//! Keeps callers without a certificate out of a service before anything that they send is read,
//! but for a few named calls, of which only so many at a time.
//!
//! The assembly puts one before each service of the mTLS port. It knows no identity: whether a
//! known caller may do something is the service's to say.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::server::Peer;

/// Calls of unknown callers at a time.
const GUEST_CALLS_MAX: usize = 16;

/// A service with a gate before it.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    open: &'static [&'static str],
    calls: Arc<Semaphore>,
}

// === impl Gate ===

impl<S> Gate<S> {
    /// `open` lists the paths that need no certificate.
    pub fn new(inner: S, open: &'static [&'static str]) -> Self {
        Self { inner, open, calls: Arc::new(Semaphore::new(GUEST_CALLS_MAX)) }
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
        let Ok(place) = self.calls.clone().try_acquire_owned() else {
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

fn refused(status: Status) -> Answer {
    Box::pin(std::future::ready(Ok(status.into_http())))
}
