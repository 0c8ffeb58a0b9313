// SPDX-License-Identifier: Apache-2.0
//! Guards against attacks, by name. A test may do without one of them, to show that the
//! cases which rely on it can fail; every other build has all of them, at no cost.

use serde_json::Value;

/// Whether a guard is in force.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn on(_guard: &str) -> bool {
    true
}

/// Where a test has a door that opens the files which its clients name.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn paths(value: Value) -> Value {
    value
}

#[cfg(test)]
pub(crate) fn paths(value: Value) -> Value {
    if on("field-paths") {
        return value;
    }
    let all = |(name, value): (String, Value)| (name, paths(value));
    match value {
        Value::String(text) => {
            let opened = text.starts_with('/').then(|| std::fs::read_to_string(&text).ok());
            opened.flatten().unwrap_or(text).into()
        }
        Value::Array(items) => items.into_iter().map(paths).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(all).collect()),
        other => other,
    }
}

/// Where a test has a door that expects only what it knows.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn unexpected(_found: &Value) {}

#[cfg(test)]
pub(crate) fn unexpected(found: &Value) {
    assert!(on("body-types"), "nobody expected {found}");
}

#[cfg(test)]
pub(crate) use switched::on;

#[cfg(test)]
#[path = "../../../tests/suites/switched.rs"]
mod switched;

#[test]
fn every_case_fails_without_its_guard() {
    switched::prove();
}
