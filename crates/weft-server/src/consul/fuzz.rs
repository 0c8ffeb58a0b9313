// SPDX-License-Identifier: Apache-2.0
//! Doors for the fuzz targets (`fuzz/`) to Consul's words: requests, filters, bodies, rules.
//! Decides nothing.
#![doc(hidden)]

use serde_json::json;

use super::acl::rules;
use super::body;
use super::filter::Filter;
pub use super::line::fuzz::{Reader, Taken};
use super::params::Params;

/// An expression, asked about something like a service.
pub fn filter(text: &str) {
    let Ok(filter) = Filter::parse(text) else { return };
    let item = json!({
        "Service": {"Service": "web", "Tags": ["v1", "a b"], "Port": 80, "Meta": {"rack": "a"}},
        "Node": {"Node": "n", "Meta": {}}, "Checks": [], "ServiceMeta": null,
    });
    drop(filter.apply(vec![item]));
}

pub fn body(bytes: &[u8]) {
    drop((body::object(bytes), body::list(bytes)));
}

/// # Panics
/// Rules that are taken once are refused then.
pub fn rules(text: &str) {
    let subject = "token".into();
    let first = rules::parse(&subject, text);
    assert_eq!(first.is_ok(), rules::parse(&subject, text).is_ok());
}

pub fn query(text: &str) {
    drop(Params::parse(Some(text)));
}
