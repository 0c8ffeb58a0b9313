// SPDX-License-Identifier: Apache-2.0
//! What must become of a request: written from the texts of Gateway API and Istio, over the
//! users' objects as they wrote them, with no regard for speed. Knows nothing of weft's model.

pub mod gateway_api;
pub mod grpc;
pub mod istio;

use serde_json::Value;

use crate::Ask;

/// What the texts ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Forward(Forward),
    Redirect {
        rule: String,
        status: u16,
        location: String,
    },
    Direct {
        rule: String,
        status: u16,
        body: String,
    },
    /// Answered with an error; `rule` is the one that says so, when one does.
    Refuse {
        rule: Option<String>,
        status: u16,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `HTTPRoute shop/users spec.rules[0]`; none when no route speaks about the service.
    pub rule: Option<String>,
    pub shares: Vec<Share>,
    /// Path and query that the backend sees.
    pub target: String,
    pub host: String,
    pub request: Edits,
    pub response: Edits,
    /// Milliseconds for the whole request, and the field that says so.
    pub timeout: Option<(u64, String)>,
    /// The rule's own word on retries, and the field.
    pub retry: Option<(Retry, String)>,
}

/// When a call that may be repeated is repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Beyond the first.
    pub attempts: usize,
    /// Statuses from, to (inclusive).
    pub statuses: Vec<(u16, u16)>,
}

/// One backend of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub weight: u64,
    pub to: To,
    pub request: Edits,
    pub response: Edits,
}

#[derive(Clone, Debug, PartialEq)]
pub enum To {
    /// The service's instances with these labels.
    Service { name: String, subset: String, labels: Vec<(String, String)> },
    /// Answered with this status.
    Error(u16),
}

/// Header edits in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits(pub Vec<Edit>);

#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    Set(String, String),
    Add(String, String),
    Remove(String),
}

// === impl Verdict ===

impl Verdict {
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Forward(forward) => forward.rule.as_deref(),
            Self::Redirect { rule, .. } | Self::Direct { rule, .. } => Some(rule),
            Self::Refuse { rule, .. } => rule.as_deref(),
        }
    }
}

// === impl Forward ===

impl Forward {
    /// Requests that instances get of one whose first answers are so many of a status, and the
    /// status that its client gets.
    pub fn tries(&self, (failures, status): (usize, u16)) -> (usize, u16) {
        let fits = |retry: &Retry| retry.statuses.iter().any(|(a, b)| (*a..=*b).contains(&status));
        let more = self.retry.as_ref().filter(|(retry, _)| fits(retry));
        let more = more.map_or(0, |(retry, _)| retry.attempts).min(failures);
        (more + 1, if failures > more { status } else { 200 })
    }
}

// === impl Edits ===

impl Edits {
    /// A header's values after the edits.
    pub fn apply(&self, name: &str, before: &[String]) -> Vec<String> {
        let mut values = before.to_vec();
        for edit in &self.0 {
            match edit {
                Edit::Set(n, v) if n.eq_ignore_ascii_case(name) => values = vec![v.clone()],
                Edit::Add(n, v) if n.eq_ignore_ascii_case(name) => values.push(v.clone()),
                Edit::Remove(n) if n.eq_ignore_ascii_case(name) => values.clear(),
                _ => {}
            }
        }
        values
    }

    /// Gateway API's lists of name and value. It leaves the order open; the kinds share one.
    fn of_filter(modifier: &Value) -> Vec<Edit> {
        let pairs =
            |key: &str| items(&modifier[key]).map(|h| (text(&h["name"]), text(&h["value"])));
        let mut out: Vec<Edit> =
            items(&modifier["remove"]).map(|n| Edit::Remove(text(n))).collect();
        out.extend(pairs("set").map(|(n, v)| Edit::Set(n, v)));
        out.extend(pairs("add").map(|(n, v)| Edit::Add(n, v)));
        out
    }

    /// Istio's maps: "removing headers in the headers_to_remove_ list first makes
    /// remove-before-add the default behavior as expected by users" (Envoy, `evaluateHeaders`).
    fn of_operations(operations: &Value) -> Vec<Edit> {
        let pairs = |key: &str| {
            let map = operations[key].as_object().into_iter().flatten();
            map.map(|(n, v)| (n.clone(), text(v)))
        };
        let mut out: Vec<Edit> =
            items(&operations["remove"]).map(|n| Edit::Remove(text(n))).collect();
        out.extend(pairs("set").map(|(n, v)| Edit::Set(n, v)));
        out.extend(pairs("add").map(|(n, v)| Edit::Add(n, v)));
        out
    }
}

// === helpers ===

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |o| o["kind"] == kind)
}

fn named(object: &Value) -> String {
    let meta = &object["metadata"];
    format!("{}/{}", text(&meta["namespace"]), text(&meta["name"]))
}

/// A duration such as `1m`, `50s` or `10ms`, in milliseconds.
fn millis(value: &Value) -> Option<u64> {
    let text = value.as_str()?;
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (n, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    Some(n.parse::<u64>().ok()? * factor)
}

/// RE2 over the whole text.
fn whole(pattern: &str, value: &str) -> bool {
    let found = regex::Regex::new(pattern).ok().and_then(|r| {
        // All matches from the beginning, the longest first: naive, and exact for these tests.
        let anchored = regex::Regex::new(&format!(r"\A(?:{})\z", r.as_str())).ok()?;
        Some(anchored.is_match(value))
    });
    found.unwrap_or(false)
}

/// Whether `name` is a Service of the objects.
fn is_service(objects: &[Value], name: &str) -> bool {
    of_kind(objects, "Service").any(|s| s["metadata"]["name"] == name)
}

fn refuse(rule: Option<String>, status: u16) -> Verdict {
    Verdict::Refuse { rule, status }
}

fn same_path(ask: &Ask) -> String {
    ask.target()
}
