// SPDX-License-Identifier: Apache-2.0
//! Rules that take everything, of a Gateway's host. Several VirtualServices of one host are one
//! list, and Istio "moves the catch all routes alone to the end", so that the rule for what is
//! left may stand in any of them.

use weft_model::{Match, PathMatch};

use super::vs_rule::{Prepared, Source};

/// What ends the name of the route with these rules.
pub(crate) const EVERYTHING: &str = "everything";

/// Added to the time at which an object was made, in milliseconds: behind the rules of all others
/// of the host, and among each other by age. Before what is nobody's, which has the last time of
/// all.
pub(super) const BEHIND_ALL_MS: u64 = 1 << 62;

/// The rules up to the first match for everything; and what begins with it, of which the rest is
/// never reached.
pub(super) fn split(mut rules: Vec<Prepared>) -> (Vec<Prepared>, Vec<Prepared>) {
    let Some(at) = rules.iter().position(|rule| rule.alternatives.iter().any(takes_all)) else {
        return (rules, Vec::new());
    };
    let mut last = rules.split_off(at);
    if let Some(rule) = last.first_mut() {
        let from = rule.alternatives.iter().position(takes_all).unwrap_or_default();
        let rest = rule.alternatives.split_off(from);
        let alternatives = std::mem::replace(&mut rule.alternatives, rest);
        if !alternatives.is_empty() {
            rules.push(Prepared { rule: rule.rule.clone(), alternatives });
        }
    }
    (rules, last)
}

/// Istio's `IsCatchAllRoute`: every path, and nothing else is asked for.
fn takes_all((_, m): &(Source, Option<Match>)) -> bool {
    let Some(m) = m else { return true };
    let every = match &m.path {
        None => true,
        Some(PathMatch::StringPrefix(p) | PathMatch::StringPrefixNoCase(p)) => &**p == "/",
        Some(PathMatch::Regex(regex)) => regex.source() == ".*",
        Some(_) => false,
    };
    every && Match { path: None, ..m.clone() } == Match::default()
}
