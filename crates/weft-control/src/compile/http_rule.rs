// SPDX-License-Identifier: Apache-2.0
//! The rules of an HTTPRoute: matches, filters, backends, timeouts. Same for every parent.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_base::name::ServiceKey;
use weft_kinds::views::View;
use weft_kinds::views::core::ServicePort;
use weft_kinds::views::gateway::{
    GROUP, HeaderModifier, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, NamedValue,
    ObjectRef, ParentRef, PathModifier, RequestMirror, RequestRedirect, UrlRewrite,
};
use weft_kinds::world::{KindId, Object};
use weft_model::{
    Action, Filter, HeaderEdit, Match, Mirror, NamedMatch, PathMatch, PathRewrite, Redirect, Regex,
    Retry, Rewrite, Rule, Session, StringMatch, Target, Timeouts, WeightedBackend,
    udp_backend_child,
};

use super::duration::parse_ms;
use super::http_policy::unsendable;
use super::policy_attachment::Attached;
use super::retries::{IDEMPOTENT_ANNOTATION, declared};
use super::{Env, Reader, http_policy, names, origin, service, sources};

/// What the rules of one HTTPRoute mean, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub rules: Vec<Rule>,
    /// References that cannot be followed: Gateway API's reason and a sentence each.
    pub unresolved: Vec<(&'static str, String)>,
    /// Whether any of those may yet come to be (does not exist, rather than is not allowed).
    pub may_come: bool,
    /// What is not done as written: rules that became failures, matches that match nothing.
    pub unsupported: Vec<String>,
    pub issues: Issues,
}

struct Context<'a, 'w> {
    reader: &'a Reader<'w>,
    env: &'a Env,
    object: &'a Object,
    /// Namespaces of the Services whose callers the route directs, when it directs nothing else.
    directed: Vec<&'a str>,
    out: Rules,
}

/// Reads all rules. A rule that cannot be done as written answers 500 with a sentence.
pub(super) fn read(reader: &Reader<'_>, env: &Env, object: &Object, route: &HttpRoute) -> Rules {
    let directed = directed(&object.key.namespace, &route.spec.parent_refs);
    let mut cx = Context { reader, env, object, directed, out: Rules::default() };
    for (i, rule) in route.spec.rules.iter().enumerate() {
        let path = FieldPath::new("spec.rules").index(i);
        let rule = cx.rule(rule, &path);
        cx.out.rules.extend(rule);
    }
    let (kind, key) = (object.key.kind.row().kind, &object.key);
    Attached::read(reader, kind, &key.namespace, &key.name).limit(&mut cx.out.rules);
    cx.out
}

impl Context<'_, '_> {
    /// A rule; `None` when none of its matches can be read, since without them it would take
    /// everything.
    fn rule(&mut self, rule: &HttpRouteRule, path: &FieldPath) -> Option<Rule> {
        let mut bad = Vec::new();
        let matches = self.matches(rule, path);
        if matches.is_empty() && !rule.matches.is_empty() {
            // What its backends lack is said all the same.
            self.backends(rule, path, &mut bad);
            return None;
        }
        let (filters, redirect) = self.filters(&rule.filters, &path.field("filters"), &mut bad);
        let action = match redirect {
            Some(redirect) => Action::Redirect(redirect),
            None if rule.backend_refs.is_empty() => Action::Fail {
                status: 500,
                reason: format!(
                    "{}: {path}.backendRefs is empty and no filter answers; name a Service there",
                    self.object.key
                )
                .into(),
            },
            None => Action::Forward(self.backends(rule, path, &mut bad)),
        };
        let timeouts = timeouts(rule, path, &mut bad);
        let retry = self.retry(rule, path);
        let session = self.session(rule, path, &mut bad);
        let mut out = Rule {
            name: rule.name.clone(),
            matches,
            filters,
            action,
            timeouts,
            retry,
            session,
            origin: origin(self.object, path.as_str()),
            sources: sources::of_filters(self.object, path, &rule.filters),
        };
        if !bad.is_empty() {
            let reason = format!("{}: {}", self.object.key, bad.join("; "));
            out.action = Action::Fail { status: 500, reason: reason.into() };
            out.filters.clear();
            self.out.unsupported.append(&mut bad);
        }
        Some(out)
    }

    fn matches(&mut self, rule: &HttpRouteRule, path: &FieldPath) -> Vec<Match> {
        let mut out = Vec::new();
        for (i, m) in rule.matches.iter().enumerate() {
            match read_match(m) {
                Ok(found) => out.push(found),
                Err(e) => {
                    let at = path.field("matches").index(i);
                    self.out.unsupported.push(format!("{at} matches nothing: {e}"));
                }
            }
        }
        out
    }

    fn backends(
        &mut self,
        rule: &HttpRouteRule,
        path: &FieldPath,
        bad: &mut Vec<String>,
    ) -> Vec<WeightedBackend> {
        let mut out = Vec::new();
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            let path = path.field("backendRefs").index(i);
            let weight = backend.weight.unwrap_or(1);
            let (filters, redirect) = self.filters(&backend.filters, &path.field("filters"), bad);
            if redirect.is_some() {
                bad.push(format!("{path}.filters: a redirect of one backend's share is not done"));
            }
            if filters.iter().any(|f| matches!(f, Filter::Cors(_))) {
                bad.push(format!("{path}.filters: CORS is of a whole rule; write it there"));
            }
            let target = self.target(&backend.target, &path);
            out.push(WeightedBackend { target, weight, filters });
        }
        out
    }

    /// The backend that a reference names, or why it cannot be followed.
    fn target(&mut self, to: &ObjectRef, path: &FieldPath) -> Target {
        let (reason, text, may_come) = match self.resolve(to) {
            Ok(target) => return target,
            Err(why) => why,
        };
        let text = format!("{path}: {text}");
        let sentence = format!("{}: {text}", self.object.key);
        self.out.unresolved.push((reason, text));
        self.out.may_come |= may_come;
        Target::Fail { status: 500, reason: sentence.into() }
    }

    fn resolve(&self, to: &ObjectRef) -> Result<Target, (&'static str, String, bool)> {
        let (group, kind) = (to.group.as_deref().unwrap_or(""), to.kind.as_deref());
        if !group.is_empty() || kind.is_some_and(|k| k != "Service") {
            let what = kind.unwrap_or("Service");
            return Err((
                "InvalidKind",
                format!("{group}/{what} is no backend; name a Service"),
                false,
            ));
        }
        let (own, kind) = (&*self.object.key.namespace, self.object.key.kind.row().kind);
        let ns = to.namespace.as_deref().unwrap_or(own);
        // Who calls a Service of that namespace may be sent to it: nobody reaches more by that.
        let open = ns == own || self.directed.contains(&ns);
        if !open && !granted(self.reader, kind, own, ("", "Service", &to.name), ns) {
            return Err((
                "RefNotPermitted",
                format!(
                    "Service {ns}/{} is in another namespace and no ReferenceGrant there allows \
                     {kind}s of {own}",
                    to.name
                ),
                false,
            ));
        }
        let Some(port) = to.port else {
            return Err(("InvalidKind", "a Service needs a port".to_owned(), false));
        };
        let missing = || ("BackendNotFound", format!("there is no Service {ns}/{}", to.name), true);
        let key = ServiceKey::new(ns, &to.name).map_err(|_| missing())?;
        let (_, service) = self.reader.service(&key).ok_or_else(missing)?;
        let ports = &service.spec.ports;
        let udp = self.object.key.kind == KindId::UdpRoute;
        let takes = |p: &&ServicePort| match udp {
            true => service::is_udp(p),
            false => service::is_meshed(p),
        };
        if !ports.iter().filter(takes).any(|p| p.port == port) {
            let have: Vec<_> = ports.iter().map(|p| p.port.to_string()).collect();
            let what = if udp { "port for datagrams" } else { "port" };
            let text = format!("Service {key} has no {what} {port}; it has {}", have.join(", "));
            return Err(("BackendNotFound", text, true));
        }
        if udp {
            let root = names::host_root(&key, self.env);
            return Ok(Target::Backend(root.child(udp_backend_child(port))));
        }
        Ok(Target::Backend(names::backend_name(&key, port, "", self.env)))
    }

    fn filters(
        &mut self,
        list: &[HttpRouteFilter],
        path: &FieldPath,
        bad: &mut Vec<String>,
    ) -> (Vec<Filter>, Option<Redirect>) {
        let (mut out, mut redirect) = (Vec::new(), None);
        for (i, filter) in list.iter().enumerate() {
            let path = path.index(i);
            match &*filter.kind {
                "RequestHeaderModifier" => {
                    let path = path.field("requestHeaderModifier");
                    let edit = filter.request_header_modifier.as_ref();
                    let edit = edit
                        .map(|e| header_edit(e, &path, &mut self.out.issues))
                        .unwrap_or_default();
                    out.push(Filter::RequestHeaders(edit));
                }
                "ResponseHeaderModifier" => {
                    let path = path.field("responseHeaderModifier");
                    let edit = filter.response_header_modifier.as_ref();
                    let edit = edit
                        .map(|e| header_edit(e, &path, &mut self.out.issues))
                        .unwrap_or_default();
                    out.push(Filter::ResponseHeaders(edit));
                }
                "RequestRedirect" => {
                    let found = Redirect { status: 302, ..Redirect::default() };
                    let given = filter.request_redirect.as_ref();
                    redirect = Some(given.map_or(found, to_redirect));
                }
                "URLRewrite" => {
                    let rewrite = filter.url_rewrite.as_ref();
                    out.push(Filter::Rewrite(rewrite.map(to_rewrite).unwrap_or_default()));
                }
                "RequestMirror" => match &filter.request_mirror {
                    Some(mirror) => out.extend(self.mirror(mirror, &path)),
                    None => bad.push(format!("{path}: requestMirror is missing")),
                },
                "CORS" => match http_policy::cors(filter.cors.as_ref()) {
                    Ok(cors) => out.push(Filter::Cors(cors)),
                    Err(why) => bad.push(format!("{path}.cors: {why}")),
                },
                other => bad.push(format!(
                    "{path}: the filter type {other} is not done by this version of weft"
                )),
            }
        }
        (out, redirect)
    }

    /// A copy of requests; none when its backend cannot be followed, which the status says.
    fn mirror(&mut self, mirror: &RequestMirror, path: &FieldPath) -> Option<Filter> {
        let target =
            self.target(&mirror.backend_ref, &path.field("requestMirror").field("backendRef"));
        target.backend()?;
        let share = http_policy::share(mirror);
        Some(Filter::Mirror(Mirror { target, share, mark_host: false }))
    }

    fn session(
        &self,
        rule: &HttpRouteRule,
        path: &FieldPath,
        bad: &mut Vec<String>,
    ) -> Option<Session> {
        let wanted = rule.session_persistence.as_ref()?;
        let path = path.field("sessionPersistence");
        let found = http_policy::session(wanted, &format!("{}/{path}", self.object.key));
        found.map_err(|why| bad.push(format!("{path}{why}"))).ok()
    }

    /// The rule's `retry` counts as far as repeating is safe; for calls that are not idempotent
    /// by method it is a declaration only together with the annotation.
    fn retry(&mut self, rule: &HttpRouteRule, path: &FieldPath) -> Retry {
        let meta = &self.object.meta;
        let idempotent = declared(meta, &rule.name);
        let Some(retry) = &rule.retry else {
            return Retry { declared_idempotent: idempotent, ..Retry::default() };
        };
        if !idempotent {
            self.out.issues.warning(
                path.field("retry"),
                format!(
                    "applied to idempotent methods only; if every call here may be repeated, say \
                     so with the annotation {IDEMPOTENT_ANNOTATION}: \"true\""
                ),
            );
        }
        let default = Retry::default();
        Retry {
            attempts: retry.attempts.unwrap_or(default.attempts),
            declared_idempotent: idempotent,
            statuses: retry.codes.clone(),
            backoff_ms: retry.backoff.as_deref().and_then(parse_ms).unwrap_or(default.backoff_ms),
            ..default
        }
    }
}

/// The namespaces of a mesh route's parents (GEP-1426); none when a Gateway is among them, since
/// then strangers come in by the route.
fn directed<'a>(own: &'a str, parents: &'a [ParentRef]) -> Vec<&'a str> {
    let mesh = parents.iter().all(|p| p.kind.as_deref() == Some("Service"));
    let each = parents.iter().filter(|_| mesh);
    each.map(|p| p.namespace.as_deref().unwrap_or(own)).collect()
}

/// Whether a ReferenceGrant in the target's namespace allows a reference from Gateway API.
pub(super) fn granted(
    reader: &Reader<'_>,
    from_kind: &str,
    from_namespace: &str,
    to: (&str, &str, &str),
    to_namespace: &str,
) -> bool {
    let grants = reader.kind(KindId::ReferenceGrant, Some(to_namespace));
    grants.iter().any(|g| match &g.view {
        View::ReferenceGrant(grant) => grant.allows((GROUP, from_kind, from_namespace), to),
        _ => false,
    })
}

// === parts ===

fn read_match(m: &HttpRouteMatch) -> Result<Match, String> {
    let path = match &m.path {
        None => None,
        Some(path) => {
            let value = path.value.as_deref().unwrap_or("/");
            Some(match path.kind.as_deref().unwrap_or("PathPrefix") {
                "PathPrefix" => PathMatch::ElementPrefix(value.into()),
                "Exact" => PathMatch::Exact(value.into()),
                "RegularExpression" => PathMatch::Regex(Regex::new(value)?),
                other => return Err(format!("path.type {other} is unknown")),
            })
        }
    };
    let mut headers = named(&m.headers)?;
    headers.iter_mut().for_each(|h| h.name = h.name.to_ascii_lowercase().into());
    // Of equivalent header names only the first counts.
    let mut seen = BTreeSet::new();
    headers.retain(|h| seen.insert(h.name.clone()));
    Ok(Match {
        path,
        method: m.method.clone().map(StringMatch::Exact),
        headers,
        query: named(&m.query_params)?,
        ..Match::default()
    })
}

fn named(list: &[NamedValue]) -> Result<Vec<NamedMatch>, String> {
    list.iter()
        .map(|v| {
            let value = match v.kind.as_deref().unwrap_or("Exact") {
                "Exact" => StringMatch::Exact(v.value.clone()),
                "RegularExpression" => StringMatch::Regex(Regex::new(&v.value)?),
                other => return Err(format!("type {other} of {} is unknown", v.name)),
            };
            Ok(NamedMatch { name: v.name.clone(), value })
        })
        .collect()
}

/// Why a rule's edit of a header does nothing.
fn not_edited(name: &str) -> Option<&'static str> {
    match &*name.to_ascii_lowercase() {
        "host" => Some("it is the upstream's name; say it with URLRewrite and its hostname"),
        "connection" | "content-length" | "http2-settings" | "keep-alive" | "proxy-connection"
        | "te" | "trailer" | "transfer-encoding" | "upgrade" => {
            Some("it belongs to the connection and is made anew on each")
        }
        _ => None,
    }
}

/// What no header can be is left out, and told.
fn header_edit(edit: &HeaderModifier, path: &FieldPath, issues: &mut Issues) -> HeaderEdit {
    let lower = |name: &str| -> Arc<str> { name.to_ascii_lowercase().into() };
    let mut pairs = |list: &[weft_kinds::views::gateway::Header], field: &str| {
        let mut out: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (i, header) in list.iter().enumerate() {
            match unsendable(&header.name, &header.value).or_else(|| not_edited(&header.name)) {
                None => out.push((lower(&header.name), header.value.clone())),
                Some(why) => {
                    issues.warning(path.field(field).index(i), format!("not applied: {why}"));
                }
            }
        }
        out
    };
    HeaderEdit {
        set: pairs(&edit.set, "set"),
        add: pairs(&edit.add, "add"),
        remove: edit.remove.iter().map(|n| lower(n)).collect(),
    }
}

fn to_redirect(r: &RequestRedirect) -> Redirect {
    Redirect {
        scheme: r.scheme.clone(),
        host: r.hostname.clone(),
        port: r.port,
        path: r.path.as_ref().and_then(path_rewrite),
        status: r.status_code.unwrap_or(302),
        ..Redirect::default()
    }
}

fn to_rewrite(r: &UrlRewrite) -> Rewrite {
    Rewrite { host: r.hostname.clone(), path: r.path.as_ref().and_then(path_rewrite) }
}

fn path_rewrite(path: &PathModifier) -> Option<PathRewrite> {
    match &*path.kind {
        "ReplaceFullPath" => path.replace_full_path.clone().map(PathRewrite::Full),
        "ReplacePrefixMatch" => path.replace_prefix_match.clone().map(PathRewrite::Prefix),
        _ => None,
    }
}

fn timeouts(rule: &HttpRouteRule, path: &FieldPath, bad: &mut Vec<String>) -> Timeouts {
    let mut read = |text: &Option<Arc<str>>, field: &str| {
        let text = text.as_deref()?;
        let ms = parse_ms(text);
        if ms.is_none() {
            bad.push(format!("{path}.timeouts.{field}: {text:?} is no duration such as 500ms"));
        }
        ms
    };
    Timeouts {
        request_ms: read(&rule.timeouts.request, "request"),
        backend_request_ms: read(&rule.timeouts.backend_request, "backendRequest"),
        ..Timeouts::default()
    }
}

#[cfg(test)]
mod tests {
    use weft_kinds::views::gateway::Header;

    use super::*;

    #[test]
    fn an_edit_that_does_nothing_is_told() {
        let header = |name: &str| Header { name: name.into(), value: "x".into() };
        let set = vec![header("X-A"), header("Host"), header("Content-Length")];
        let mut issues = Issues::default();
        let path = FieldPath::new("requestHeaderModifier");
        let made =
            header_edit(&HeaderModifier { set, ..HeaderModifier::default() }, &path, &mut issues);
        assert_eq!(made.set, [("x-a".into(), "x".into())]);
        let told: Vec<String> = issues.0.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("requestHeaderModifier.set[1]") && told[0].contains("URLRewrite"));
        assert!(told[1].contains("requestHeaderModifier.set[2]"), "{told:?}");
        assert_eq!(told.len(), 2);
    }
}
