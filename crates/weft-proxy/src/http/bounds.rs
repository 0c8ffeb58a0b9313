// SPDX-License-Identifier: Apache-2.0
//! What a gateway's listener says of how its clients are served: when a connection takes no more
//! requests, and which heads are too large. Called by `serve`; the codecs obey. Pure.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use weft_model::ClientLimits;

use crate::config::ProxyLimits;
use crate::h1::Wrong;
use crate::tcp::route::FOR_EVER;

/// When a client's connection takes no more requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// After so many.
    pub requests: Option<u64>,
    /// From then on.
    pub end: Option<Instant>,
    /// When its first one must have come.
    pub first: Option<Instant>,
}

/// A listener's limits over the proxy's own, for one connection; most have none.
#[derive(Clone, Debug, Default)]
pub struct Served(Option<Rc<Said>>);

#[derive(Debug)]
struct Said {
    limits: Arc<ClientLimits>,
    end: Option<Instant>,
}

// === impl Bounds ===

impl Bounds {
    pub const NONE: Self = Self { requests: None, end: None, first: None };

    /// Whether it takes none behind the request with this number, which is the first one's 1.
    pub fn is_last(&self, number: u64) -> bool {
        self.requests.is_some_and(|most| number >= most) || self.is_over()
    }

    /// Whether it is too old.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// When an idle connection is closed that would be closed at `idle` for that alone.
    pub fn sooner(&self, idle: Instant) -> Instant {
        self.end.map_or(idle, |end| end.min(idle))
    }
}

// === impl Served ===

impl Served {
    /// Of a connection that begins now.
    pub fn new(said: Option<Arc<ClientLimits>>) -> Self {
        Self(said.map(|limits| {
            let age = limits.age_ms_max.filter(|ms| *ms > 0).map(Duration::from_millis);
            let end = age.and_then(|age| Instant::now().checked_add(age));
            Rc::new(Said { limits, end })
        }))
    }

    fn limits(&self) -> Option<&ClientLimits> {
        self.0.as_ref().map(|said| &*said.limits)
    }

    pub fn bounds(&self) -> Bounds {
        let Some(said) = &self.0 else { return Bounds::NONE };
        let requests = said.limits.requests_max.filter(|n| *n > 0).map(u64::from);
        Bounds { requests, end: said.end, first: None }
    }

    pub fn idle(&self, usual: &ProxyLimits) -> Duration {
        match self.limits().and_then(|said| said.idle_ms) {
            None => usual.idle_timeout,
            Some(0) => FOR_EVER,
            Some(ms) => Duration::from_millis(ms),
        }
    }

    pub fn head(&self, usual: &ProxyLimits) -> Duration {
        let said = self.limits().and_then(|said| said.head_ms).filter(|ms| *ms > 0);
        said.map_or(usual.header_timeout, Duration::from_millis)
    }

    /// Streams of one connection at a time, as far as they are fewer than usual.
    pub fn streams(&self) -> Option<u32> {
        self.limits()?.streams_max.filter(|n| *n > 0)
    }

    /// What is too much about a request's head.
    pub fn wrong(&self, headers: &HeaderMap) -> Option<Wrong> {
        let said = self.limits()?;
        let over = |most: Option<u32>, have: usize| {
            most.filter(|n| *n > 0).is_some_and(|most| have > usize::try_from(most).unwrap_or(have))
        };
        if over(said.headers_max, headers.len()) {
            return Some(Wrong::TooManyHeaders);
        }
        let bytes = || headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let large = said.head_bytes_max.is_some() && over(said.head_bytes_max, bytes());
        large.then_some(Wrong::HeadTooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(said: ClientLimits) -> Served {
        Served::new(Some(Arc::new(said)))
    }

    #[test]
    fn what_is_not_said_is_as_usual_and_0_is_no_limit() {
        let usual = ProxyLimits::default();
        let none = Served::default();
        assert_eq!(
            (none.idle(&usual), none.head(&usual)),
            (usual.idle_timeout, usual.header_timeout)
        );
        assert!(!none.bounds().is_last(1 << 40));
        let zero = ClientLimits {
            idle_ms: Some(0),
            head_ms: Some(0),
            age_ms_max: Some(0),
            requests_max: Some(0),
            streams_max: Some(0),
            headers_max: Some(0),
            head_bytes_max: Some(0),
        };
        let zero = served(zero);
        assert_eq!((zero.idle(&usual), zero.head(&usual)), (FOR_EVER, usual.header_timeout));
        assert!(!zero.bounds().is_last(1 << 40) && zero.streams().is_none());
        let headers = HeaderMap::from_iter([(http::header::ACCEPT, "x".parse().unwrap())]);
        assert!(zero.wrong(&headers).is_none() && none.wrong(&headers).is_none());
    }

    #[test]
    fn heads_are_measured_by_fields_and_bytes() {
        let headers = HeaderMap::from_iter([
            (http::header::ACCEPT, "12345".parse().unwrap()),
            (http::header::HOST, "a".parse().unwrap()),
        ]);
        let fields = |headers_max| served(ClientLimits { headers_max, ..ClientLimits::default() });
        assert_eq!(fields(Some(1)).wrong(&headers), Some(Wrong::TooManyHeaders));
        assert_eq!(fields(Some(2)).wrong(&headers), None);
        let bytes =
            |head_bytes_max| served(ClientLimits { head_bytes_max, ..ClientLimits::default() });
        assert_eq!(bytes(Some(15)).wrong(&headers), Some(Wrong::HeadTooLarge));
        assert_eq!(bytes(Some(16)).wrong(&headers), None);
    }

    #[tokio::test]
    async fn a_connection_takes_so_many_requests_for_so_long() {
        let said = ClientLimits {
            age_ms_max: Some(3_000),
            requests_max: Some(3),
            ..ClientLimits::default()
        };
        let bounds = served(said).bounds();
        assert!(!bounds.is_last(2) && bounds.is_last(3) && !bounds.is_over());
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(bounds.sooner(later), bounds.end.unwrap());
        while !bounds.is_over() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(bounds.is_last(1));
    }
}
