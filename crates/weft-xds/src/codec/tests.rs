// SPDX-License-Identifier: Apache-2.0
//! The codec: what survives, what is refused, how versions tell forms apart.

use super::*;
use ciborium::Value;
use std::sync::Arc;
use weft_model::{
    Action, Dialect, Endpoint, EndpointSet, Filter, HeaderEdit, Health, Match, Matching, Origin,
    Parent, PathMatch, Protocol, Rank, Regex, Root, Route, Rule, Scope, Transport,
};

fn route() -> Resource {
    let origin = Origin {
        kind: "VirtualService".into(),
        namespace: "shop".into(),
        name: "product".into(),
        field: "spec.http[0]".into(),
    };
    let rule = Rule {
        session: None,
        name: "reserve".into(),
        matches: vec![Match {
            path: Some(PathMatch::Regex(Regex::new("/v[0-9]+/.*").unwrap())),
            ..Match::default()
        }],
        filters: vec![Filter::RequestHeaders(HeaderEdit {
            set: vec![("x-a".into(), "b".into())],
            ..HeaderEdit::default()
        })],
        action: Action::Direct { status: 200, body: "ok".into() },
        timeouts: Default::default(),
        retry: Default::default(),
        origin: origin.clone(),
        sources: weft_model::Sources::default(),
    };
    Resource::Route(Route {
        parent: Parent::Host { root: Root::host("product.shop"), port: Some(80) },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 1, name: "a/b".into() },
        rules: vec![rule],
        origin,
    })
}

fn endpoints() -> Resource {
    let endpoint = Endpoint {
        id: "user-1".into(),
        address: "[::1]:8080".parse().unwrap(),
        labels: [(Arc::from("version"), Arc::from("v1"))].into(),
        locality: Default::default(),
        weight: 1,
        health: Health::Healthy,
        identity: Some("spiffe://cluster.local/ns/shop/sa/user".into()),
        transport: Transport::MeshH2,
        workload: "user".into(),
        mesh_address: None,
    };
    Resource::Endpoints(EndpointSet {
        service: "user".into(),
        namespace: "shop".into(),
        port: 80,
        protocol: Protocol::Http1,
        endpoints: vec![endpoint],
    })
}

/// Finds the map entry `key` anywhere below and lets `edit` change its value.
fn at(value: &mut Value, key: &str, edit: &mut dyn FnMut(&mut Value)) {
    match value {
        Value::Map(entries) => {
            for (k, v) in entries {
                if k.as_text() == Some(key) {
                    edit(v);
                } else {
                    at(v, key, edit);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| at(v, key, edit)),
        _ => {}
    }
}

fn with_unknown_field(resource: &Resource, inside: &str) -> Vec<u8> {
    let mut tree: Value = from_cbor(&encode(resource).unwrap().bytes).unwrap();
    let mut edits = 0;
    let mut add = |v: &mut Value| {
        let map = match v {
            Value::Array(items) => items.first_mut().unwrap(),
            other => other,
        };
        let Value::Map(entries) = map else { panic!("{inside} is no map: {map:?}") };
        entries.push((Value::Text("from_the_future".into()), Value::Bool(true)));
        edits += 1;
    };
    at(&mut tree, inside, &mut add);
    assert_eq!(edits, 1, "{inside} was not found");
    to_cbor(&tree).unwrap().to_vec()
}

#[test]
fn resources_survive_and_equal_values_have_equal_versions() {
    for resource in [route(), endpoints()] {
        let encoded = encode(&resource).unwrap();
        assert_eq!(decode(&encoded.bytes).unwrap(), resource);
        assert_eq!(encode(&resource.clone()).unwrap(), encoded);
        assert_eq!(Version::parse(&encoded.version.to_string()), Some(encoded.version));
    }
    assert_ne!(encode(&route()).unwrap().version, encode(&endpoints()).unwrap().version);
    assert_eq!(Version::parse("1"), None);
    assert_eq!(Version::parse("zzzzzzzzzzzzzzzz"), None);
}

/// CVE-2022-21679: a matcher that ignores a field it does not know matches always.
#[test]
fn reg_55_unknown_fields_are_refused_where_they_decide_and_tolerated_elsewhere() {
    for inside in ["matches", "request_headers"] {
        let error = decode(&with_unknown_field(&route(), inside)).unwrap_err().to_string();
        assert!(error.contains("from_the_future"), "{inside}: {error}");
    }
    assert_eq!(decode(&with_unknown_field(&route(), "rank")).unwrap(), route());
    assert_eq!(decode(&with_unknown_field(&endpoints(), "endpoints")).unwrap(), endpoints());
}

#[test]
fn truncated_and_trailing_bytes_are_refused() {
    let bytes = encode(&route()).unwrap().bytes;
    for cut in 0..bytes.len() {
        assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut long = bytes.to_vec();
    long.push(0);
    assert!(matches!(decode(&long), Err(CodecError::Trailing(1))));
}

#[test]
fn a_refusal_says_of_which_sections_and_is_read_by_those_who_know_of_none() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Before {
        name: String,
        reason: String,
    }
    let before = Before { name: "listener:a".into(), reason: "no".into() };
    let mut rejected = Rejected::new("listener:a", "no");
    assert_eq!(to_cbor(&rejected).unwrap(), to_cbor(&before).unwrap());
    assert_eq!(from_cbor::<Rejected>(&to_cbor(&before).unwrap()).unwrap(), rejected);
    rejected.sections = vec!["web".into()];
    let bytes = to_cbor(&rejected).unwrap();
    assert_eq!(from_cbor::<Rejected>(&bytes).unwrap(), rejected);
    assert_eq!(from_cbor::<Before>(&bytes).unwrap(), before);
    let bounded = |sections: Vec<String>| {
        let rejected = Rejected { sections, ..rejected.clone() };
        bound_rejected(vec![rejected]).remove(0).sections
    };
    assert_eq!(bounded(rejected.sections.clone()), ["web"]);
    assert!(bounded(vec!["x".repeat(XDS_REASON_BYTES_MAX)]).is_empty(), "it is about all");
}

#[test]
fn a_long_list_of_refusals_is_cut_and_says_so() {
    let many = (0..2_000).map(|i| Rejected::new(format!("r{i}"), "é".repeat(2_000))).collect();
    let bounded = bound_rejected(many);
    assert_eq!(bounded.len(), XDS_REJECTED_MAX + 1);
    assert!(bounded.iter().all(|r| r.reason.len() <= XDS_REASON_BYTES_MAX));
    assert_eq!(bounded.last().unwrap().to_string(), "and 1000 more");
}

#[test]
fn reg_56_cbor_that_nests_too_deeply_is_refused() {
    // Lists of one thing, and in the innermost one a number.
    let nested = |depth| [vec![0x81; depth], vec![1]].concat();
    assert!(from_cbor::<Value>(&nested(200)).is_ok());
    let read = from_cbor::<Value>(&nested(300)).map(|_| ());
    let error = read.expect_err("it is taken").to_string();
    assert!(error.contains("RecursionLimitExceeded"), "{error}");
}
