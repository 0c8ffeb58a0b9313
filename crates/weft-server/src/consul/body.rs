// SPDX-License-Identifier: Apache-2.0
//! Request bodies by Consul's rules: keys count whatever their case and underscores, null is
//! absent, durations are text or nanoseconds. Bad fields are reported by the client's own name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::duration;
use super::error::Refusal;
use crate::guards;

/// One JSON object of a body.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Where it is in the body, for messages: empty or `Service.`.
    at: &'a str,
}

/// Reads a body as one JSON object.
///
/// # Errors
/// When it is none, or nested deeper than is read.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match value(bytes)? {
        Value::Object(map) => Ok(map),
        _ => Err(Refusal::bad("Request decode failed: expected a JSON object")),
    }
}

/// Reads a body as one JSON list.
///
/// # Errors
/// As [`object`].
pub fn list(bytes: &[u8]) -> Result<Vec<Value>, Refusal> {
    match value(bytes)? {
        Value::Array(items) => Ok(items),
        _ => Err(Refusal::bad("Request decode failed: expected a JSON list")),
    }
}

fn value(bytes: &[u8]) -> Result<Value, Refusal> {
    if depth(bytes) > weft_base::limits::DOCUMENT_DEPTH_MAX && guards::on("body-depth") {
        return Err(Refusal::bad("Request decode failed: the JSON is nested too deeply"));
    }
    serde_json::from_slice(bytes)
        .map_err(|why| Refusal::bad(format!("Request decode failed: {why}")))
}

/// A part of a record of our own; null when it is not there.
pub fn part<'a>(record: &'a Value, name: &str) -> &'a Value {
    record.get(name).unwrap_or(&Value::Null)
}

/// The text of a part; empty when there is none.
pub fn word<'a>(record: &'a Value, name: &str) -> &'a str {
    part(record, name).as_str().unwrap_or_default()
}

/// The same of an object.
pub fn word_of<'a>(record: &'a Map<String, Value>, name: &str) -> &'a str {
    record.get(name).and_then(Value::as_str).unwrap_or_default()
}

// === impl Fields ===

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>, at: &'a str) -> Self {
        Self { map, at }
    }

    /// A field whatever its case and underscores; null counts as absent.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        let exact = self.map.get(name);
        let found = exact.or_else(|| self.map.iter().find(|(k, _)| same(k, name)).map(|(_, v)| v));
        found.filter(|value| !value.is_null())
    }

    /// Text; absent is empty.
    ///
    /// # Errors
    /// When it is not text.
    pub fn text(&self, name: &str) -> Result<String, Refusal> {
        match self.value(name) {
            None => Ok(String::new()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(other) if guards::on("body-types") => Err(self.wrong(name, "a string", other)),
            Some(other) => Ok(other.to_string()),
        }
    }

    /// The first of several names that says something.
    ///
    /// # Errors
    /// When one is not text.
    pub fn text_of(&self, names: &[&str]) -> Result<String, Refusal> {
        for name in names {
            let text = self.text(name)?;
            if !text.is_empty() {
                return Ok(text);
            }
        }
        Ok(String::new())
    }

    /// # Errors
    /// When it is neither a boolean nor text that reads as one.
    pub fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(Value::String(s)) if s.is_empty() || s == "false" => Ok(false),
            Some(Value::String(s)) if s == "true" => Ok(true),
            Some(other) => Err(self.wrong(name, "a boolean", other)),
        }
    }

    /// # Errors
    /// When it is no whole number from 0 to `max`.
    pub fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = match value {
            Value::Number(n) => n.as_u64().or_else(|| whole(n.as_f64()?)),
            _ => None,
        };
        match number {
            Some(n) if n <= max => Ok(Some(n)),
            _ => Err(self.wrong(name, &format!("a whole number from 0 to {max}"), value)),
        }
    }

    /// Milliseconds, from text such as `10s` or a number of nanoseconds; absent is 0. What is
    /// above 0 and below a millisecond counts as one.
    ///
    /// # Errors
    /// When it is no duration.
    pub fn duration_ms(&self, name: &str) -> Result<u64, Refusal> {
        let Some(value) = self.value(name) else { return Ok(0) };
        let read = match value {
            Value::String(s) if s.is_empty() => Some(Duration::ZERO),
            Value::String(s) => duration::parse(s),
            Value::Number(n) => n.as_u64().map(Duration::from_nanos),
            _ => None,
        };
        let read = read.ok_or_else(|| {
            let expected = "a duration such as \"10s\" or a number of nanoseconds";
            let wrong = self.wrong(name, expected, value);
            // Clients look for Consul's words.
            match value.as_str() {
                Some(text) => {
                    let text = format!("{} (time: invalid duration {text:?})", wrong.text);
                    Refusal { text, ..wrong }
                }
                None => wrong,
            }
        })?;
        let ms = u64::try_from(read.as_millis()).unwrap_or(u64::MAX);
        Ok(if read.is_zero() { 0 } else { ms.max(1) })
    }

    /// # Errors
    /// When it is not a list of text.
    pub fn list(&self, name: &str) -> Result<Vec<String>, Refusal> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| match item {
                    Value::String(s) => Ok(s.clone()),
                    other => Err(self.wrong(name, "a list of strings", other)),
                })
                .collect(),
            Some(other) => Err(self.wrong(name, "a list of strings", other)),
        }
    }

    /// A map of text, its keys as the client wrote them.
    ///
    /// # Errors
    /// When it is no such map.
    pub fn text_map(&self, name: &str) -> Result<BTreeMap<String, String>, Refusal> {
        match self.value(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(k, v)| match v {
                    Value::String(s) => Ok((k.clone(), s.clone())),
                    Value::Null => Ok((k.clone(), String::new())),
                    other => Err(self.wrong(name, "a map of strings", other)),
                })
                .collect(),
            Some(other) => Err(self.wrong(name, "a map of strings", other)),
        }
    }

    /// # Errors
    /// When it is no JSON object.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Refusal> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(name, "an object", other)),
        }
    }

    /// # Errors
    /// When it is no list of JSON objects.
    pub fn objects(&self, name: &str) -> Result<Vec<&'a Map<String, Value>>, Refusal> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .filter(|item| !item.is_null())
                .map(|item| {
                    item.as_object().ok_or_else(|| self.wrong(name, "a list of objects", item))
                })
                .collect(),
            Some(other) => Err(self.wrong(name, "a list of objects", other)),
        }
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Refusal {
        let found = match found {
            Value::Null => "null".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            scalar => scalar.to_string().chars().take(60).collect(),
        };
        Refusal::bad(format!(
            "Request decode failed: {}{name}: expected {expected}, found {found}",
            self.at
        ))
    }
}

// === helpers ===

/// Case and underscores do not count: `grpc_use_tls` is `GRPCUseTLS`.
pub fn same(a: &str, b: &str) -> bool {
    let plain = |s: &str| -> Vec<u8> {
        s.bytes().filter(|b| *b != b'_').map(|b| b.to_ascii_lowercase()).collect()
    };
    a.eq_ignore_ascii_case(b) || plain(a) == plain(b)
}

/// A whole number that some client wrote as `8080.0`.
fn whole(n: f64) -> Option<u64> {
    (n.fract() == 0.0 && (0.0..1e15).contains(&n)).then(|| format!("{n:.0}").parse().ok())?
}

/// How deep brackets nest outside of strings.
fn depth(bytes: &[u8]) -> usize {
    let (mut now, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for b in bytes {
        match b {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' if !in_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, read: impl Fn(Fields) -> Result<String, Refusal>, expect: &str) {
        let map = object(json.as_bytes()).unwrap();
        let got = read(Fields::new(&map, "")).unwrap_or_else(|r| r.text);
        assert_eq!(got, expect, "{json}");
    }

    #[test]
    fn keys_count_whatever_their_case_and_underscores() {
        for json in [
            r#"{"DockerContainerID":"x"}"#,
            r#"{"docker_container_id":"x"}"#,
            r#"{"dockercontainerid":"x"}"#,
        ] {
            check(json, |f| f.text("DockerContainerID"), "x");
        }
        check(r#"{"id":null}"#, |f| f.text("ID"), "");
    }

    #[test]
    fn durations_are_text_or_nanoseconds() {
        let ms = |f: Fields| f.duration_ms("Interval").map(|ms| ms.to_string());
        check(r#"{"interval":"10s"}"#, ms, "10000");
        check(r#"{"interval":10}"#, ms, "1");
        check(r#"{"interval":5000000000}"#, ms, "5000");
        check(r#"{}"#, ms, "0");
        check(
            r#"{"interval":"10"}"#,
            ms,
            "Request decode failed: Interval: expected a duration such as \"10s\" or a number of \
             nanoseconds, found \"10\" (time: invalid duration \"10\")",
        );
    }

    #[test]
    fn numbers_have_bounds() {
        let port = |f: Fields| f.number("Port", 65535).map(|n| format!("{n:?}"));
        check(r#"{"port":8080}"#, port, "Some(8080)");
        check(r#"{"port":8080.0}"#, port, "Some(8080)");
        check(
            r#"{"port":65536}"#,
            port,
            "Request decode failed: Port: expected a whole number from 0 to 65535, found 65536",
        );
        check(
            r#"{"port":-1}"#,
            port,
            "Request decode failed: Port: expected a whole number from 0 to 65535, found -1",
        );
    }

    #[test]
    fn reg_56_deep_nesting_is_refused_before_it_is_parsed() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(object(deep.as_bytes()).unwrap_err().text.contains("nested too deeply"));
        let fine = format!("{{\"a\":\"{}\\\"\"}}", "[".repeat(1000));
        assert!(object(fine.as_bytes()).is_ok(), "brackets in text do not nest");
    }
}
