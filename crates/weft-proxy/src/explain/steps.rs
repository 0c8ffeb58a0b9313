// SPDX-License-Identifier: Apache-2.0
//! What a rule and a backend do beside choosing, one line each with the object and field that say
//! so. Fields are named as the object's own kind writes them.

use weft_model::decide::{Found, Request};
use weft_model::{
    Cache, CheckKind, Effect, Filter, HeaderEdit, Mirror, Origin, Protection, RateLimit, Retry,
    Rewrite, Session, SessionBy, Target,
};

use super::{Step, object};
use crate::http::rewritten::rewritten;
use crate::table::BackendEntry;

/// What nobody wrote.
const DEFAULT: &str = "weft's default";

/// Lines of a rule.
pub fn of_rule(found: &Found<'_>, req: &Request<'_>) -> Vec<Step> {
    let rule = found.rule;
    let from = &rule.origin;
    let istio = &*from.kind == "VirtualService";
    let mut out = Vec::new();
    for filter in &rule.filters {
        out.extend(of_filter(filter, found, req));
    }
    let field = |gateway_api: &str, of_istio: &str| match istio {
        true => format!("{}.{of_istio}", from.field),
        false => format!("{}.{gateway_api}", from.field),
    };
    let mut say = |what: &str, value: String, field: String| {
        out.push(Step { what: what.into(), value, object: object(from), field });
    };
    let ms = |ms: u64| if ms == 0 { "no limit".to_owned() } else { format!("{ms} ms") };
    if let Some(limit) = rule.timeouts.request_ms {
        say("request timeout", ms(limit), field("timeouts.request", "timeout"));
    }
    if let Some(limit) = rule.timeouts.backend_request_ms {
        let field = field("timeouts.backendRequest", "retries.perTryTimeout");
        say("timeout of one attempt", ms(limit), field);
    }
    if let Some(limit) = rule.timeouts.stream_ms {
        say("longest stream", ms(limit), field("timeouts.stream", "timeout"));
    }
    if let Some(limit) = rule.retry.per_try_timeout_ms {
        say("timeout of one attempt", ms(limit), field("retry", "retries.perTryTimeout"));
    }
    if rule.retry != Retry::default() {
        say("retries", retries(rule), field("retry", "retries"));
    }
    if let Some(session) = &rule.session {
        say("session", kept(session), field("sessionPersistence", "sessionPersistence"));
    }
    if rule.retry == Retry::default() {
        let (what, value) = ("retries".into(), retries(rule));
        out.push(Step { what, value, object: DEFAULT.into(), field: String::new() });
    }
    out
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
    let from = &found.rule.origin;
    let istio = &*from.kind == "VirtualService";
    let step = |what: &str, value: String, of_istio: &str| Step {
        what: what.into(),
        value,
        object: object(from),
        field: match istio {
            true => format!("{}.{of_istio}", from.field),
            false => format!("{}.filters", from.field),
        },
    };
    match filter {
        Filter::RequestHeaders(edit) => {
            vec![step("request headers", edited(edit), "headers.request")]
        }
        Filter::ResponseHeaders(edit) => {
            vec![step("response headers", edited(edit), "headers.response")]
        }
        Filter::Rewrite(Rewrite { host, path }) => {
            let host = host.as_ref().map(|h| step("host", h.to_string(), "rewrite.authority"));
            let path = path.as_ref().map(|p| {
                let value = match rewritten(req.path, p, found.matched) {
                    Ok(new) => format!("{} becomes {new}", req.path),
                    Err(unfit) => unfit.why,
                };
                step("path", value, "rewrite")
            });
            host.into_iter().chain(path).collect()
        }
        Filter::Fault(fault) => {
            let delay = fault.delay.as_ref().map(|d| format!("{} wait {} ms", d.share, d.ms));
            let abort = fault.abort.as_ref().map(|a| format!("{} get {:?}", a.share, a.answer));
            let parts: Vec<String> = delay.into_iter().chain(abort).collect();
            vec![step("fault", parts.join(", "), "fault")]
        }
        Filter::Mirror(Mirror { target, share, .. }) => {
            let to = match target {
                Target::Backend(name) => name.to_string(),
                Target::Fail { reason, .. } => reason.to_string(),
            };
            vec![step("copies", format!("{share} to {to}"), "mirrors")]
        }
        // Who says so is in its name: a policy, not the rule.
        Filter::RateLimit(limit) => vec![limited(limit)],
        Filter::BodyLimit(bytes) => {
            vec![step("request body", format!("at most {bytes} bytes"), "")]
        }
        Filter::Cache(cache) => vec![stored(cache, req)],
        Filter::Cors(cors) => {
            let n = cors.origins.len();
            let value = format!("leave for {n} {}", if n == 1 { "origin" } else { "origins" });
            vec![step("CORS", value, "corsPolicy")]
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

/// A rate limit is named by its policy and field.
fn limited(limit: &RateLimit) -> Step {
    let (object, field) = limit.name.rsplit_once(' ').unwrap_or((&limit.name, ""));
    Step {
        what: "rate limit".into(),
        value: limit.to_string(),
        object: object.into(),
        field: field.into(),
    }
}

/// Whether there is a stored answer is known to the running proxy alone.
fn stored(cache: &Cache, req: &Request<'_>) -> Step {
    let (object, field) = cache.name.rsplit_once(' ').unwrap_or((&cache.name, ""));
    let value = match req.method {
        "GET" | "HEAD" => format!("answered from what is stored, if that is fresh; {cache}"),
        method => format!("{method} is not answered from it"),
    };
    Step { what: "cache".into(), value, object: object.into(), field: field.into() }
}

fn edited(edit: &HeaderEdit) -> String {
    let pairs = |sign: &str, list: &[(std::sync::Arc<str>, std::sync::Arc<str>)]| -> Vec<String> {
        list.iter().map(|(k, v)| format!("{sign}{k}: {v}")).collect()
    };
    let mut parts = pairs("", &edit.set);
    parts.extend(pairs("+ ", &edit.add));
    parts.extend(edit.remove.iter().map(|k| format!("- {k}")));
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

/// Lines of a backend's policy.
pub fn of_backend(entry: &BackendEntry) -> Vec<Step> {
    let policy = &entry.backend.policy;
    let default = Origin {
        kind: "weft".into(),
        namespace: "".into(),
        name: "default".into(),
        field: "".into(),
    };
    let origin = entry.backend.origin.as_ref().unwrap_or(&default);
    let said = |what: &str, value: String| Step {
        what: what.into(),
        value: format!("{}: {value}", entry.label()),
        object: match &*origin.kind {
            "weft" => DEFAULT.into(),
            _ => object(origin),
        },
        field: origin.field.to_string(),
    };
    let mut out = vec![
        said("balancing", format!("{:?}", policy.lb)),
        said("connect timeout", format!("{} ms", policy.connect_timeout_ms)),
    ];
    for (what, limit) in [
        ("connections at most", policy.limits.connections_max),
        ("requests at most", policy.limits.requests_max),
    ] {
        out.extend(limit.map(|n| said(what, n.to_string())));
    }
    let protection = policy.protection.as_deref();
    out.extend(protection.into_iter().flat_map(protected).map(|(what, value)| said(what, value)));
    out.extend(protection.into_iter().flat_map(|p| &p.rate_limits).map(|limit| limited(limit)));
    out
}

/// What a backend's policy asks for beyond balancing, but for rate limits.
fn protected(protection: &Protection) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    if let Some(check) = &protection.health_check {
        let what = match &check.kind {
            CheckKind::Http(http) => format!("{} {}", http.method, http.path),
            CheckKind::Grpc { service, .. } if service.is_empty() => "gRPC".to_owned(),
            CheckKind::Grpc { service, .. } => format!("gRPC {service}"),
            CheckKind::Tcp { .. } => "TCP".to_owned(),
        };
        let every = check.interval_ms;
        out.push(("health check", format!("{what} every {every} ms, by each proxy")));
    }
    if let Some(adaptive) = &protection.adaptive {
        let (least, most) = (adaptive.limit_min, adaptive.limit_max);
        out.push(("adaptive concurrency", format!("{least} to {most} requests in flight")));
    }
    if protection.ungated {
        out.push(("overload gate", "off".to_owned()));
    }
    for (what, ms) in [
        ("request timeout where the route says nothing", protection.timeouts.request_ms),
        (
            "timeout of one attempt where the route says nothing",
            protection.timeouts.backend_request_ms,
        ),
    ] {
        out.extend(ms.map(|ms| (what, format!("{ms} ms"))));
    }
    out.extend(protection.body_bytes_max.map(|n| ("request body", format!("at most {n} bytes"))));
    out
}
