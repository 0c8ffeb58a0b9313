// SPDX-License-Identifier: Apache-2.0
//! Which field of which object set each value of a policy or a rule, for `weft explain`. Nothing
//! is decided by it: a value that nobody is named for is the default.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Origin;

/// Names of values, as people read them.
pub mod value {
    pub const BALANCING: &str = "balancing";
    pub const LOCALITY: &str = "locality";
    pub const PANIC: &str = "panic";
    pub const SLOW_START: &str = "slow start";
    pub const CONNECT_TIMEOUT: &str = "connect timeout";
    pub const IDLE_CONNECTIONS: &str = "idle connections";
    pub const CONNECTIONS: &str = "connections";
    pub const CONNECTION_REQUESTS: &str = "requests per connection";
    pub const CONNECTION_AGE: &str = "longest connection";
    pub const STREAMS: &str = "streams per connection";
    pub const KEEPALIVE: &str = "TCP keepalive";
    pub const PINGS: &str = "HTTP/2 pings";
    pub const PROTOCOL: &str = "protocol";
    pub const TUNNEL: &str = "tunnel";
    pub const WAITING: &str = "waiting requests";
    pub const IN_FLIGHT: &str = "requests in flight";
    pub const RETRIES_IN_FLIGHT: &str = "retries in flight";
    pub const RETRY_BUDGET: &str = "retry budget";
    pub const EJECTION: &str = "ejection";
    pub const EJECTION_TIME: &str = "ejection time";
    pub const EJECTED_SHARE: &str = "ejected at most";
    pub const EJECTION_WINDOW: &str = "ejection by window";
    pub const TLS: &str = "TLS";
    pub const PROXY_PROTOCOL: &str = "PROXY protocol";
    pub const HEALTH_CHECK: &str = "health check";
    pub const ADAPTIVE: &str = "adaptive concurrency";
    pub const GATE: &str = "overload gate";
    pub const REQUEST_TIMEOUT: &str = "request timeout";
    pub const ATTEMPT_TIMEOUT: &str = "timeout of one attempt";
    /// Until its answer begins.
    pub const TRY_TIMEOUT: &str = "attempt answers within";
    pub const IDLE_TIMEOUT: &str = "idle timeout";
    pub const STREAM_TIMEOUT: &str = "longest stream";
    pub const RECEIVE_TIMEOUT: &str = "request whole within";
    pub const BODY: &str = "request body";
    /// With the name of the one that is meant behind it.
    pub const RATE_LIMIT: &str = "rate limit";
    pub const CACHE: &str = "cache";
    pub const RETRIES: &str = "retries";
    pub const REWRITE: &str = "rewrite";
    pub const FAULT: &str = "fault";
    pub const COPIES: &str = "copies";
    pub const CORS: &str = "CORS";
    pub const UPGRADES: &str = "upgrades";
    pub const REQUEST_HEADERS: &str = "request headers";
    pub const RESPONSE_HEADERS: &str = "response headers";
}

/// Values with the fields that set them, by object: a policy sets several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sources(Vec<Source>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Source {
    /// Its field is empty.
    object: Origin,
    /// A value's name, and the field.
    values: Vec<(Arc<str>, Arc<str>)>,
}

// === impl Sources ===

impl Sources {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes who set a value, in the place of whoever did before.
    pub fn set(&mut self, value: &str, by: Origin) {
        self.forget(value);
        let field = by.field.clone();
        let object = Origin { field: "".into(), ..by };
        let known = self.0.iter_mut().find(|source| source.object == object);
        match known {
            Some(source) => source.values.push((value.into(), field)),
            None => self.0.push(Source { object, values: vec![(value.into(), field)] }),
        }
    }

    /// Notes that a value is the default again.
    pub fn forget(&mut self, value: &str) {
        self.0.iter_mut().for_each(|source| source.values.retain(|(name, _)| **name != *value));
        self.0.retain(|source| !source.values.is_empty());
    }

    /// Who set a value; `None` is the default.
    pub fn of(&self, value: &str) -> Option<Origin> {
        self.0.iter().find_map(|Source { object, values }| {
            let (_, field) = values.iter().find(|(name, _)| **name == *value)?;
            Some(Origin { field: field.clone(), ..object.clone() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(name: &str, field: &str) -> Origin {
        let kind = "DestinationRule".into();
        Origin { kind, namespace: "shop".into(), name: name.into(), field: field.into() }
    }

    #[test]
    fn the_last_who_set_a_value_is_named() {
        let mut sources = Sources::default();
        sources.set(value::TLS, by("a", "spec.tls"));
        sources.set(value::PANIC, by("a", "spec.panic"));
        sources.set(value::TLS, by("b", "spec.other"));
        assert_eq!(sources.of(value::TLS), Some(by("b", "spec.other")));
        assert_eq!(sources.of(value::PANIC), Some(by("a", "spec.panic")));
        assert_eq!(sources.of(value::BALANCING), None);
        let text = serde_json::to_string(&sources).unwrap();
        assert_eq!(serde_json::from_str::<Sources>(&text).unwrap(), sources);
        sources.forget(value::TLS);
        sources.forget(value::PANIC);
        assert!(sources.is_empty());
    }
}
