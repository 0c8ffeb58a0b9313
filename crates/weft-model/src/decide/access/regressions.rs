// SPDX-License-Identifier: Apache-2.0
//! Regressions by number in who may do what: lines 35, 36 and 38 to 40.

use proptest::prelude::*;

use super::*;
use crate::decide::Headers;
use crate::{PathMatch, Regex, StringMatch};

struct Of(&'static [(&'static str, &'static [u8])]);

impl Headers for Of {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let values = || self.0.iter().filter(|(n, _)| *n == name).map(|(_, v)| *v);
        match guards::on("header-joined") {
            true => values().any(f),
            // As servers do that make one value of all.
            false => values().next().is_some() && f(&values().collect::<Vec<_>>().join(&b","[..])),
        }
    }
}

const TWO: &[(&str, &[u8])] = &[("x-role", b"user"), ("x-role", b"admin")];

/// Whether a list of one policy refuses who asks for `path`.
fn refuses(
    (effect, what): (Effect, AccessTest),
    path: &str,
    identity: &str,
    headers: &'static [(&'static str, &'static [u8])],
) -> bool {
    let headers = Of(headers);
    let req = Request {
        method: "GET",
        scheme: "http",
        host: "a",
        port: 80,
        written: None,
        path,
        query: "",
        headers: &headers,
    };
    let client = Client { ip: "::1".parse().unwrap(), identity: Some(identity), names: &[] };
    let policy = AccessPolicy { name: "p".into(), who: AccessTest::Always, what };
    let access = Access { effect, policies: vec![policy] };
    matches!(access_verdict(&access, &req, &client), AccessVerdict::Refuse(_))
}

fn role(value: StringMatch) -> AccessTest {
    AccessTest::Header(NamedMatch { name: "x-role".into(), value })
}

fn admin() -> AccessTest {
    role(StringMatch::Exact("admin".into()))
}

fn regex(source: &str) -> StringMatch {
    StringMatch::Regex(Regex::new(source).unwrap())
}

/// A second line of a header neither hides what is denied nor lends what is allowed.
#[test]
fn reg_38_of_several_values_one_suffices_to_deny() {
    assert!(refuses((Effect::Deny, admin()), "/", "", TWO), "gets past");
}

#[test]
fn reg_38_of_several_values_all_must_be_allowed() {
    assert!(refuses((Effect::Allow, admin()), "/", "", TWO), "gets past");
}

#[test]
fn reg_38_of_several_values_one_that_is_not_meant_suffices_to_deny() {
    let not = AccessTest::Not(Box::new(admin()));
    assert!(refuses((Effect::Deny, not), "/", "", TWO), "gets past");
}

#[test]
fn reg_38_of_several_values_none_may_be_excluded_to_allow() {
    let not = AccessTest::Not(Box::new(admin()));
    assert!(refuses((Effect::Allow, not), "/", "", TWO), "gets past");
}

#[test]
fn reg_39_a_regex_sees_bytes_that_are_no_text() {
    let bytes: &[(&str, &[u8])] = &[("x-role", b"\xff\xfeadmin\xff")];
    let denied = (Effect::Deny, role(regex("(?s).*admin.*")));
    assert!(refuses(denied, "/", "", bytes), "gets past");
}

#[test]
fn reg_39_what_a_regex_may_not_take_is_no_text_either() {
    let bytes: &[(&str, &[u8])] = &[("x-role", b"user\xff")];
    let not = AccessTest::Not(Box::new(role(regex("user.*"))));
    assert!(refuses((Effect::Allow, not), "/", "", bytes), "gets past");
}

fn principal(value: &str) -> AccessTest {
    AccessTest::Identity(StringMatch::Exact(value.into()))
}

#[test]
fn reg_40_a_dot_in_a_principal_is_a_dot() {
    let allowed = (Effect::Allow, principal("spiffe://d/ns/a/sa/x.y"));
    assert!(!refuses(allowed.clone(), "/", "spiffe://d/ns/a/sa/x.y", &[]));
    assert!(refuses(allowed, "/", "spiffe://d/ns/a/sa/x-y", &[]), "taken for a pattern");
}

#[test]
fn reg_40_a_star_in_a_principal_is_a_star() {
    let allowed = (Effect::Allow, principal("spiffe://d/ns/*"));
    assert!(refuses(allowed, "/", "spiffe://d/ns/admin", &[]), "taken for a pattern");
}

#[test]
fn reg_40_a_principals_end_may_be_asked_for() {
    // `*/sa/admin`, as it is handed over; without its guard as a text like any other.
    let end = match guards::on("principal-ends") {
        true => regex(".*/sa/admin"),
        false => StringMatch::Exact("*/sa/admin".into()),
    };
    let denied = (Effect::Deny, AccessTest::Identity(end));
    assert!(refuses(denied.clone(), "/", "spiffe://d/ns/a/sa/admin", &[]), "gets past");
    assert!(!refuses(denied, "/", "spiffe://d/ns/a/sa/admin2", &[]), "taken for a prefix");
}

proptest! {
    /// A literal takes its own text and no other, whatever is in it.
    #[test]
    fn reg_40_literals_take_themselves_alone(text in "[a-c.*+?]{1,6}", other in "[a-c.*+?]{1,6}") {
        let taken = StringMatch::Exact(text.as_str().into()).holds(other.as_bytes());
        prop_assert_eq!(taken, text == other, "taken for a pattern: {} {}", text, other);
    }
}

fn exact(path: &str) -> AccessTest {
    AccessTest::Path(PathMatch::Exact(path.into()))
}

#[test]
fn reg_35_a_star_in_a_policys_path_is_a_star() {
    let allowed = (Effect::Allow, exact("/a/*"));
    assert!(!refuses(allowed.clone(), "/a/*", "", &[]));
    assert!(refuses(allowed, "/a/b", "", &[]), "taken for a pattern");
}

#[test]
fn reg_36_a_policy_tells_capitals_from_small_letters() {
    let allowed = (Effect::Allow, exact("/pub"));
    assert!(refuses(allowed, "/PUB", "", &[]), "a capital is taken for a small letter");
}
