// SPDX-License-Identifier: Apache-2.0
//! Role-based access: `config.rbac.v3.RBAC` as a list of policies.

use std::net::IpAddr;

use weft_model::{Access, AccessPolicy, AccessTest, AddressRange, Effect};

use super::matching;
use crate::read::Message;

/// The list of an RBAC filter's `rules`; `None` when there are none, or when a part of them
/// cannot be said, which was reported: as an error, since the list would be missing.
pub fn rules(filter: &Message<'_>) -> Option<Access> {
    filter.firm(true);
    for field in ["shadow_rules", "shadow_matcher"] {
        aside(filter, field, "weft has no rules that only count");
    }
    filter.pass_over(&["rules_stat_prefix", "shadow_rules_stat_prefix"]);
    filter.firm(false);
    let why = "the access log says who was refused and why";
    filter.not_done("track_per_rule_stats", &["false"], why);
    filter.firm(true);
    let rules = filter.message("rules")?;
    aside(&rules, "audit_logging_options", "the access log says who was refused and why");
    let effect = match rules.word("action").as_deref().unwrap_or("ALLOW") {
        "ALLOW" => Effect::Allow,
        "DENY" => Effect::Deny,
        "LOG" => {
            rules.waive();
            aside(&rules, "action", "weft has no rules that only count");
            return None;
        }
        other => {
            rules.waive();
            rules.error("action", format!("{other:?}: expected ALLOW, DENY or LOG"));
            return None;
        }
    };
    let mut policies = Vec::new();
    let mut whole = true;
    rules.entries("policies", |name, policy| {
        let what = any_of(&policy, "permissions", permission);
        let who = any_of(&policy, "principals", principal);
        match (who, what) {
            (Some(who), Some(what)) => {
                policies.push(AccessPolicy { name: name.into(), who, what });
            }
            _ => whole = false,
        }
    });
    // A policy that is missing could let pass what it should deny.
    whole.then_some(Access { effect, policies })
}

/// Says that something is not done which keeps nobody out: it may be left out.
fn aside(message: &Message<'_>, field: &str, why: &str) {
    if message.is_set(field) {
        message.firm(false);
        message.unsupported(field, why);
        message.firm(true);
    }
}

type Reader = fn(&Message<'_>) -> Option<AccessTest>;

fn any_of(message: &Message<'_>, field: &str, read: Reader) -> Option<AccessTest> {
    tests(message, field, read).map(|mut tests| match tests.len() {
        1 => tests.remove(0),
        _ => AccessTest::OneOf(tests),
    })
}

fn tests(message: &Message<'_>, field: &str, read: Reader) -> Option<Vec<AccessTest>> {
    let (mut out, mut whole) = (Vec::new(), true);
    message.each(field, |each| match read(&each) {
        Some(test) => out.push(test),
        None => whole = false,
    });
    whole.then_some(out)
}

fn permission(message: &Message<'_>) -> Option<AccessTest> {
    if message.flag("any") == Some(true) {
        return Some(AccessTest::Always);
    }
    if let Some(set) = message.message("and_rules") {
        return tests(&set, "rules", permission).map(AccessTest::All);
    }
    if let Some(set) = message.message("or_rules") {
        return tests(&set, "rules", permission).map(AccessTest::OneOf);
    }
    if let Some(rule) = message.message("not_rule") {
        return permission(&rule).map(|t| AccessTest::Not(Box::new(t)));
    }
    if let Some(port) = message.number::<u16>("destination_port") {
        return Some(AccessTest::Port(port));
    }
    both(message)
}

fn principal(message: &Message<'_>) -> Option<AccessTest> {
    if message.flag("any") == Some(true) {
        return Some(AccessTest::Always);
    }
    if let Some(set) = message.message("and_ids") {
        return tests(&set, "ids", principal).map(AccessTest::All);
    }
    if let Some(set) = message.message("or_ids") {
        return tests(&set, "ids", principal).map(AccessTest::OneOf);
    }
    if let Some(id) = message.message("not_id") {
        return principal(&id).map(|t| AccessTest::Not(Box::new(t)));
    }
    // The connection's own end: what headers say of it is never believed here.
    for field in ["direct_remote_ip", "source_ip"] {
        if let Some(range) = message.message(field) {
            return address_range(&range).map(AccessTest::Source);
        }
    }
    if let Some(authenticated) = message.message("authenticated") {
        return match authenticated.message("principal_name") {
            Some(name) => matching::string(&name).map(AccessTest::Identity),
            None => Some(AccessTest::Identity(weft_model::StringMatch::Present)),
        };
    }
    both(message)
}

/// What a request's head is judged by beside its headers.
const PSEUDO: &[&str] = &[":method", ":authority", ":scheme", ":path"];

/// What permissions and principals may both ask.
fn both(message: &Message<'_>) -> Option<AccessTest> {
    if let Some(header) = message.message("header") {
        let (named, inverted) = matching::named_header(&header)?;
        if named.name.starts_with(':') && !PSEUDO.contains(&&*named.name) {
            header.unsupported("name", format!("requests have no {} here", named.name));
            return None;
        }
        let present = matching::asked_too(&header, &named).map(AccessTest::Header);
        let test = AccessTest::Header(named);
        return Some(match (inverted, present) {
            (false, _) => test,
            (true, None) => AccessTest::Not(Box::new(test)),
            (true, Some(present)) => {
                AccessTest::All(vec![present, AccessTest::Not(Box::new(test))])
            }
        });
    }
    if let Some(url) = message.message("url_path") {
        let path = url.message("path")?;
        let named =
            weft_model::NamedMatch { name: ":path".into(), value: matching::string(&path)? };
        return Some(path_test(named));
    }
    message.waive();
    let first = message.names().next().unwrap_or("any").to_owned();
    message.unsupported(&first, "weft's policies do not ask this");
    None
}

/// A matcher of `:path` in RBAC's `url_path` sees no query.
fn path_test(named: weft_model::NamedMatch) -> AccessTest {
    use weft_model::{PathMatch, StringMatch};
    AccessTest::Path(match named.value {
        StringMatch::Exact(text) => PathMatch::Exact(text),
        StringMatch::Prefix(text) => PathMatch::StringPrefix(text),
        StringMatch::Regex(regex) => PathMatch::Regex(regex),
        StringMatch::Present => return AccessTest::Always,
    })
}

fn address_range(range: &Message<'_>) -> Option<AddressRange> {
    let base = range.text("address_prefix")?;
    let Ok(base) = base.parse::<IpAddr>() else {
        range.error("address_prefix", format!("{base:?} is no IP address"));
        return None;
    };
    let bits = range.number::<u8>("prefix_len").unwrap_or(0);
    let most = if base.is_ipv4() { 32 } else { 128 };
    if bits > most {
        range.error("prefix_len", format!("{bits} is more than {most}"));
        return None;
    }
    Some(AddressRange { base, bits })
}
