// SPDX-License-Identifier: Apache-2.0
//! The store keys of what only Consul's API knows. All of them begin with [`ROOT`], which the
//! World does not read.
//!
//! | key | value |
//! |---|---|
//! | `/k/v/<ns>/<key as it is>` | a [`Pair`](super::Pair) |
//! | `/k/s/<ns>/<node>/<id>` | a [`Session`](super::Session) |
//! | `/k/b/<session>` | nothing; its lease is the session's time to live |
//! | `/k/d/<ns>/<key as it is>` | nothing; its lease is a lock's delay |
//! | `/k/e/<name>/<id>` | an [`Event`](super::Event) |
//! | `/k/r/<table>/<name…>` | a record: JSON |
//! | `/k/t/<table>` | nothing; written with each record of the table |

use weft_kinds::world::encode;

pub const ROOT: &str = "/k/";
pub const PAIRS: &str = "/k/v/";
pub const SESSIONS: &str = "/k/s/";
pub const BEATS: &str = "/k/b/";
pub const DELAYS: &str = "/k/d/";
pub const EVENTS: &str = "/k/e/";
pub const RECORDS: &str = "/k/r/";
/// Prepared queries, which may end with a session.
pub const QUERIES: &str = "/k/r/query/";
/// What moves with every write to a table of records.
pub const TABLES: &str = "/k/t/";

/// A pair, or with a part of a key the prefix of some.
pub fn pair(ns: &str, key: &str) -> String {
    format!("{PAIRS}{}/{key}", encode(ns))
}

/// The same key's delay.
pub fn delay(pair: &str) -> String {
    format!("{DELAYS}{}", pair.strip_prefix(PAIRS).unwrap_or(pair))
}

/// The namespace's and the client's own part of a pair's store key.
pub fn client_key(pair: &str) -> &str {
    let rest = pair.strip_prefix(PAIRS).unwrap_or_default();
    rest.split_once('/').map_or("", |(_, key)| key)
}

pub fn session(ns: &str, node: &str, id: &str) -> String {
    format!("{SESSIONS}{}/{}/{}", encode(ns), encode(node), encode(id))
}

/// Where the sessions of a namespace, or of one node in it, are.
pub fn sessions(ns: &str, node: Option<&str>) -> String {
    match node {
        Some(node) => format!("{SESSIONS}{}/{}/", encode(ns), encode(node)),
        None => format!("{SESSIONS}{}/", encode(ns)),
    }
}

pub fn beat(session: &str) -> String {
    format!("{BEATS}{}", encode(session))
}

pub fn event(name: &str, id: &str) -> String {
    format!("{EVENTS}{}/{}", encode(name), encode(id))
}

/// Where events, or those of one name, are.
pub fn events(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{EVENTS}{}/", encode(name)),
        None => EVENTS.to_owned(),
    }
}

/// A record. `name` may have several segments, which are encoded by whoever joined them.
pub fn record(table: &str, name: &str) -> String {
    format!("{RECORDS}{table}/{name}")
}

pub fn table(table: &str) -> String {
    format!("{TABLES}{table}")
}
