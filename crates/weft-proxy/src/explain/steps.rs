// SPDX-License-Identifier: Apache-2.0
//! What a rule does beside choosing, one line each with the object and field that say
//! so. Fields are named as the object's own kind writes them.

use std::time::Duration;

use weft_model::decide::{Found, Request};
use weft_model::{
    AbortAnswer, Action, Cache, Effect, Filter, HeaderEdit, Mirror, Origin, RateLimit, Retry,
    Rewrite, Rule, Session, SessionBy, Sources, Target, value,
};

use super::{Step, object};
use crate::http::rewritten::rewritten;

/// What nobody wrote.
pub const DEFAULT: &str = "weft's default";

/// Lines of a rule.
pub fn of_rule(found: &Found<'_>, req: &Request<'_>) -> Vec<Step> {
    let mut out = Vec::new();
    for filter in &found.rule.filters {
        out.extend(of_filter(filter, found, req));
    }
    if matches!(found.rule.action, Action::Forward(_)) {
        out.extend(of_timing(found.rule));
    }
    out
}

/// How long a rule's requests may take, and when they are sent again.
pub fn of_timing(rule: &Rule) -> Vec<Step> {
    let (limits, retry) = (&rule.timeouts, &rule.retry);
    let timed = [
        (value::REQUEST_TIMEOUT, limits.request_ms, "timeouts.request", "timeout"),
        (value::ATTEMPT_TIMEOUT, limits.backend_request_ms, "timeouts.backendRequest", ""),
        (value::TRY_TIMEOUT, retry.per_try_timeout_ms, "retry", "retries.perTryTimeout"),
        (value::IDLE_TIMEOUT, limits.idle_ms, "timeouts.idle", "timeout"),
        (value::STREAM_TIMEOUT, limits.stream_ms, "timeouts.stream", "timeout"),
        (value::RECEIVE_TIMEOUT, limits.receive_ms, "timeouts.receive", "timeout"),
    ];
    let said = timed.into_iter().filter_map(|(what, ms, gateway_api, istio)| {
        Some(step_of(rule, what, what, shown_ms(ms?), (gateway_api, istio)))
    });
    let mut out: Vec<Step> = said.collect();
    let usual =
        *retry == Retry { per_try_timeout_ms: retry.per_try_timeout_ms, ..Retry::default() };
    out.push(match usual && rule.sources.of(value::RETRIES).is_none() {
        true => default_step(value::RETRIES, retries(rule)),
        false => step_of(rule, value::RETRIES, value::RETRIES, retries(rule), ("retry", "retries")),
    });
    if let Some(session) = &rule.session {
        let fields = ("sessionPersistence", "sessionPersistence");
        out.push(step_of(rule, "session", "session", kept(session), fields));
    }
    out
}

/// How long a connection or flow of bytes may be silent, and last; `usual` is what nobody wrote.
pub fn of_silence(rule: Option<&Rule>, usual: Duration) -> Vec<Step> {
    let of = |what, ms: Option<u64>, field| {
        Some(step_of(rule?, what, what, shown_ms(ms?), (field, "timeout")))
    };
    let (idle, longest) = rule.map_or((None, None), |r| (r.timeouts.idle_ms, r.timeouts.stream_ms));
    let usual = || default_step(value::IDLE_TIMEOUT, format!("{} ms", usual.as_millis()));
    let idle = of(value::IDLE_TIMEOUT, idle, "timeouts.idle").unwrap_or_else(usual);
    let longest = of(value::STREAM_TIMEOUT, longest, "timeouts.stream");
    [Some(idle), longest].into_iter().flatten().collect()
}

/// A line of a rule's value, by its own object unless another one set it; fields as Gateway API
/// and as Istio write them.
fn step_of(
    rule: &Rule,
    source: &str,
    what: &str,
    value: String,
    (gateway_api, istio): (&str, &str),
) -> Step {
    let own = &rule.origin;
    let of_istio = &*own.kind == "VirtualService";
    let field = if of_istio { istio } else { gateway_api };
    let by = rule.sources.of(source).unwrap_or_else(|| Origin {
        field: match field {
            "" => own.field.clone(),
            field => format!("{}.{field}", own.field).into(),
        },
        ..own.clone()
    });
    let (object, field) = (object(&by), by.field.to_string());
    Step { what: what.into(), value, object, field, ..Step::default() }
}

/// A line of what nobody wrote.
pub fn default_step(what: &str, value: String) -> Step {
    Step { what: what.into(), value, object: DEFAULT.into(), ..Step::default() }
}

pub fn shown_ms(ms: u64) -> String {
    if ms == 0 { "no limit".to_owned() } else { format!("{ms} ms") }
}

fn retries(rule: &weft_model::Rule) -> String {
    let retry = &rule.retry;
    if retry.attempts == 0 {
        return "none".into();
    }
    let mut on = vec!["connections never established".to_owned()];
    if retry.on_reset {
        on.push("resets".into());
    }
    let codes = |name: &str, list: &[u16]| match list {
        [] => None,
        [first, .., last] if list.len() > 6 => Some(format!("{name} {first} to {last}")),
        list => {
            let codes: Vec<_> = list.iter().map(ToString::to_string).collect();
            Some(format!("{name} {}", codes.join(" ")))
        }
    };
    on.extend(codes("status", &retry.statuses));
    on.extend(codes("grpc-status", &retry.grpc_statuses));
    let whom = if retry.declared_idempotent { "every call" } else { "idempotent methods" };
    let pause = retry.backoff_ms;
    format!("{} for {whom}, on {}; pauses from {pause} ms", retry.attempts, on.join(", "))
}

fn of_filter(filter: &Filter, found: &Found<'_>, req: &Request<'_>) -> Vec<Step> {
    let named = |source: &str, what: &str, value: String, istio: &str| {
        step_of(found.rule, source, what, value, ("filters", istio))
    };
    let step = |what: &str, value: String, istio: &str| named(what, what, value, istio);
    match filter {
        Filter::RequestHeaders(edit) => {
            vec![step(value::REQUEST_HEADERS, edited(edit), "headers.request")]
        }
        Filter::ResponseHeaders(edit) => {
            vec![step(value::RESPONSE_HEADERS, edited(edit), "headers.response")]
        }
        Filter::Rewrite(Rewrite { host, path }) => {
            let host = host
                .as_ref()
                .map(|h| named(value::REWRITE, "host", h.to_string(), "rewrite.authority"));
            let path = path.as_ref().map(|p| {
                let value = match rewritten(req.path, p, found.matched) {
                    Ok(new) => format!("{} becomes {new}", req.path),
                    Err(unfit) => unfit.why,
                };
                named(value::REWRITE, "path", value, "rewrite.uri")
            });
            host.into_iter().chain(path).collect()
        }
        Filter::Fault(fault) => {
            let delay = fault.delay.as_ref().map(|d| format!("{} wait {} ms", d.share, d.ms));
            let abort = fault.abort.as_ref().map(|a| match a.answer {
                AbortAnswer::Http(status) => format!("{} are answered {status}", a.share),
                AbortAnswer::Grpc(code) => format!("{} are answered grpc-status {code}", a.share),
            });
            let parts: Vec<String> = delay.into_iter().chain(abort).collect();
            vec![step(value::FAULT, parts.join(", "), "fault")]
        }
        Filter::Mirror(Mirror { target, share, .. }) => {
            let to = match target {
                Target::Backend(name) => name.to_string(),
                Target::Fail { reason, .. } => reason.to_string(),
            };
            vec![step(value::COPIES, format!("{share} to {to}"), "mirrors")]
        }
        // Who says so is in its name: a policy, not the rule.
        Filter::RateLimit(limit) => vec![limited(limit, &found.rule.sources)],
        Filter::BodyLimit(bytes) => {
            vec![step(value::BODY, format!("at most {bytes} bytes"), "")]
        }
        Filter::Cache(cache) => {
            vec![written_by(&found.rule.sources, &cache.name, stored(cache, req))]
        }
        Filter::Upgrades(among) => {
            let whom = if among.is_empty() { "nothing".to_owned() } else { among.join(", ") };
            vec![step(value::UPGRADES, format!("HTTP may be left for {whom}"), "upgrade_configs")]
        }
        Filter::Cors(cors) => {
            let n = cors.origins.len();
            let value = format!("leave for {n} {}", if n == 1 { "origin" } else { "origins" });
            vec![step(value::CORS, value, "corsPolicy")]
        }
        Filter::Access(access) => {
            let names: Vec<&str> = access.policies.iter().map(|p| &*p.name).collect();
            let who = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            let value = match access.effect {
                Effect::Allow => format!("only what these policies take: {who}"),
                Effect::Deny => format!("not what these policies take: {who}"),
            };
            vec![step("access", value, "access")]
        }
    }
}

/// A rate limit is named by its policy and field, where it has no name of its own.
pub fn limited(limit: &RateLimit, sources: &Sources) -> Step {
    let (object, field) = limit.name.rsplit_once(' ').unwrap_or((&limit.name, ""));
    let step = Step {
        what: value::RATE_LIMIT.into(),
        value: limit.to_string(),
        object: object.into(),
        field: field.into(),
        ..Step::default()
    };
    written_by(sources, &limit.name, step)
}

/// The same by the object and field that set the one of this name, where that is known.
fn written_by(sources: &Sources, name: &str, step: Step) -> Step {
    match sources.of(&format!("{} {name}", step.what)) {
        Some(by) => Step { object: object(&by), field: by.field.to_string(), ..step },
        None => step,
    }
}

/// Whether there is a stored answer is known to the running proxy alone.
fn stored(cache: &Cache, req: &Request<'_>) -> Step {
    let (object, field) = cache.name.rsplit_once(' ').unwrap_or((&cache.name, ""));
    let value = match req.method {
        "GET" | "HEAD" => format!("answered from what is stored, if that is fresh; {cache}"),
        method => format!("{method} is not answered from it"),
    };
    let (object, field) = (object.into(), field.into());
    Step { what: value::CACHE.into(), value, object, field, ..Step::default() }
}

/// In the order in which it is done.
pub fn edited(edit: &HeaderEdit) -> String {
    let pairs = |sign: &str, list: &[(std::sync::Arc<str>, std::sync::Arc<str>)]| -> Vec<String> {
        list.iter().map(|(k, v)| format!("{sign}{k}: {v}")).collect()
    };
    let mut parts: Vec<String> = edit.remove.iter().map(|k| format!("- {k}")).collect();
    parts.extend(pairs("", &edit.set));
    parts.extend(pairs("+ ", &edit.add));
    parts.join(", ")
}

fn kept(session: &Session) -> String {
    let name = &session.name;
    let by = match session.by {
        SessionBy::Cookie { permanent: true } => format!("by the lasting cookie {name}"),
        SessionBy::Cookie { permanent: false } => format!("by the cookie {name}"),
        SessionBy::Header => format!("by the header {name}"),
    };
    match session.absolute_s {
        Some(seconds) => format!("{by}, at most {seconds} s"),
        None => by,
    }
}
