// SPDX-License-Identifier: Apache-2.0
//! Headers that a service hands on from the request it serves to the calls it makes, so that
//! a mesh can tie them together. Called by order; never invents a trace.

use http::{HeaderMap, HeaderName};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// W3C trace context and the request id.
pub const PROPAGATED: [&str; 4] = ["traceparent", "tracestate", "baggage", "x-request-id"];

/// The propagated headers of one request.
#[derive(Clone, Debug, Default)]
pub struct Propagated(Vec<(&'static str, String)>);

// === impl Propagated ===

impl Propagated {
    /// Picks them out of a request. Values that are not plain text are left behind.
    pub fn from_headers(headers: &HeaderMap) -> Propagated {
        let pick = |name: &'static str| {
            let value = headers.get(name)?.to_str().ok()?;
            Some((name, value.to_owned()))
        };
        Propagated(PROPAGATED.iter().filter_map(|name| pick(name)).collect())
    }

    /// Adds them to an HTTP request.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            if let Ok(value) = value.parse() {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// Adds them to a gRPC request.
    pub fn add_to_metadata(&self, metadata: &mut MetadataMap) {
        for (name, value) in &self.0 {
            if let Ok(value) = MetadataValue::<Ascii>::try_from(value.as_str()) {
                metadata.insert(MetadataKey::from_static(name), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_context_and_request_id_are_handed_on_and_nothing_else() {
        let mut incoming = HeaderMap::new();
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        incoming.insert("traceparent", trace.parse().unwrap());
        incoming.insert("x-request-id", "r1".parse().unwrap());
        incoming.insert("authorization", "secret".parse().unwrap());
        let picked = Propagated::from_headers(&incoming);
        let (mut headers, mut metadata) = (HeaderMap::new(), MetadataMap::new());
        picked.add_to(&mut headers);
        picked.add_to_metadata(&mut metadata);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["traceparent"], trace);
        assert_eq!(metadata.get("x-request-id").unwrap(), "r1");
        assert!(metadata.get("authorization").is_none());
    }
}
