// SPDX-License-Identifier: Apache-2.0
//! Doors for the fuzz targets (`fuzz/`) to Consul's words: requests, filters, bodies, rules,
//! tokens of others and archives. Decides nothing.
#![doc(hidden)]

use serde_json::json;

use super::acl::jwt::{KEYS_MAX, Key, Unverified};
use super::acl::rules;
use super::body;
use super::filter::Filter;
pub use super::line::fuzz::{Reader, Taken};
use super::params::Params;
use super::tar;

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

/// A token that somebody shows, and its claims when `key` has signed it.
///
/// # Panics
/// Some key has signed it that never signed anything.
pub fn token(text: &str) {
    const KEY: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let Ok(token) = Unverified::read(text) else { return };
    let keys = Key::of_set(KEY.as_bytes()).unwrap_or_default();
    assert!(keys.len() == 1 && token.verified(&keys, &[]).is_err());
}

/// A set of keys as a provider of tokens serves it, asked about a token of each kind of key.
///
/// # Panics
/// There are more keys than are read, or the token is none.
pub fn keys(bytes: &[u8]) {
    let Ok(keys) = Key::of_set(bytes) else { return };
    assert!(keys.len() <= KEYS_MAX);
    // {"alg":"..."} and a signature of 64 zeros; an RSA key wants more.
    for header in ["eyJhbGciOiJFZERTQSJ9", "eyJhbGciOiJFUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9"] {
        let text = format!("{header}.e30.{}", "A".repeat(86));
        let token = Unverified::read(&text).expect("it is a token");
        // Who may choose the keys may choose one that all zeros verify with.
        drop(token.verified(&keys, &[]));
    }
}

/// An archive that somebody restores from.
///
/// # Panics
/// Its files are more than it is, or are not the same when they are packed again.
pub fn archive(bytes: &[u8]) {
    let Ok(files) = tar::read(bytes) else { return };
    assert!(files.iter().map(|(_, body)| body.len()).sum::<usize>() <= bytes.len());
    let named: Vec<_> = files.iter().map(|(name, body)| (name.as_str(), *body)).collect();
    assert_eq!(tar::read(&tar::write(&named)).as_ref(), Ok(&files));
}

pub fn query(text: &str) {
    drop(Params::parse(Some(text)));
}
