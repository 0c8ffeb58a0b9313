// SPDX-License-Identifier: Apache-2.0
//! The rules of a VirtualService, each with the sources it is for. Same for mesh and gateways,
//! but for the port that a destination without one means.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use weft_base::issue::{FieldPath, Issues};
use weft_base::name::ServiceKey;
use weft_kinds::views::Labels;
use weft_kinds::views::istio::{
    self, Destination, DirectResponse, Headers, HttpDestination, HttpMatch, HttpRoute,
};
use weft_kinds::views::service_entry::ServiceEntry;
use weft_kinds::world::Object;
use weft_model::{
    Action, Filter, Match, NamedMatch, PathMatch, PathRewrite, Redirect, RedirectPort, Regex,
    Rewrite, Rule, StringMatch, Target, Timeouts, WeightedBackend, backend_child,
};

use super::destination_rule::{rules_for, rules_for_client, rules_for_host};
use super::duration::parse_ms;
use super::http_policy::is_token;
use super::peer_authentication::ROOT_NAMESPACE;
use super::rule_clients::is_subset_of_some;
use super::{Env, Reader, names, origin, retries, service, service_entry};

/// Which clients a match is for; empty is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub namespace: Option<Arc<str>>,
    pub labels: Labels,
}

/// A rule without its matches, and the matches by source; `None` matches everything.
#[derive(Debug)]
pub(super) struct Prepared {
    pub rule: Rule,
    pub alternatives: Vec<(Source, Option<Match>)>,
}

/// Whose traffic the rules are read for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// `mesh`, or a gateway as `namespace/name`.
    pub gateway: &'a str,
    /// The port that traffic arrived for.
    pub port: u16,
    /// The service whose clients these are, in the mesh.
    pub service: Option<&'a ServiceKey>,
}

pub(super) struct Context<'a, 'w> {
    pub reader: &'a Reader<'w>,
    pub env: &'a Env,
    pub object: &'a Object,
    pub issues: Issues,
    /// References that cannot be followed.
    pub unresolved: Vec<String>,
}

impl Context<'_, '_> {
    pub fn http(&mut self, route: &HttpRoute, index: usize, place: Place<'_>) -> Option<Prepared> {
        let path = FieldPath::new("spec.http").index(index);
        let alternatives = self.http_alternatives(route, &path, place)?;
        let (mut filters, mut action) = self.http_action(route, &path, place);
        if let Action::Forward(shares) = &mut action {
            let rewrite = self.rewrite(route, &path);
            // "We only override if the top level rewrite is not set" (Istio); the path stays.
            let open = rewrite.as_ref().is_none_or(|r| r.host.is_none());
            for (share, destination) in shares.iter_mut().zip(&route.route).filter(|_| open) {
                let host = destination.headers.as_ref().and_then(host_set);
                let path = rewrite.as_ref().and_then(|r| r.path.clone());
                let own = host.map(|host| Rewrite { host: Some(host), path });
                share.filters.extend(own.map(Filter::Rewrite));
            }
            filters.extend(rewrite.map(Filter::Rewrite));
        }
        filters.extend(self.policies(route, &path, place));
        let idempotent = retries::declared(&self.object.meta, &route.name);
        let rpath = path.field("retries");
        let retry = retries::read(route.retries.as_ref(), idempotent, &rpath, &mut self.issues);
        let rule = Rule {
            name: route.name.clone(),
            matches: Vec::new(),
            filters,
            action,
            timeouts: Timeouts {
                request_ms: self.ms(route.timeout.as_ref(), &path.field("timeout")),
                ..Timeouts::default()
            },
            retry,
            session: None,
            origin: origin(self.object, path.as_str()),
            sources: weft_model::Sources::default(),
        };
        Some(Prepared { rule, alternatives })
    }

    // === matches ===

    /// `None` when the rule is not for this place at all.
    fn http_alternatives(
        &mut self,
        route: &HttpRoute,
        path: &FieldPath,
        place: Place<'_>,
    ) -> Option<Vec<(Source, Option<Match>)>> {
        if route.matches.is_empty() {
            return Some(vec![(Source::default(), None)]);
        }
        let mut out = Vec::new();
        for (i, m) in route.matches.iter().enumerate() {
            if !self.is_for(&m.gateways, m.port, place) {
                continue;
            }
            self.judge_query(m, &path.field("match").index(i));
            match read_match(m) {
                Ok(found) => {
                    let source = Source {
                        namespace: m.source_namespace.clone().filter(|ns| !ns.is_empty()),
                        labels: m.source_labels.clone(),
                    };
                    out.push((source, Some(found)));
                }
                // What cannot be read matches nothing; the author is told.
                Err(e) => self.issues.error(path.field("match").index(i), e),
            }
        }
        (!out.is_empty()).then_some(out)
    }

    /// Istio compares queries as they were sent, letter by letter.
    fn judge_query(&mut self, m: &HttpMatch, path: &FieldPath) {
        for (name, value) in &m.query_params {
            let texts = [&value.exact, &value.prefix].into_iter().flatten();
            let blank = texts.clone().any(|text| text.contains('+'));
            if blank || texts.chain(&value.regex).any(|text| text.contains('%')) {
                let text = "queries are compared decoded here; write what it stands for";
                self.issues.warning(path.field("queryParams").field(name), text);
            }
        }
    }

    pub(super) fn is_for(
        &self,
        gateways: &[Arc<str>],
        port: Option<u16>,
        place: Place<'_>,
    ) -> bool {
        let own = &*self.object.key.namespace;
        let named = gateways.iter().any(|g| {
            &**g == place.gateway || *weft_kinds::world::gateway_ref(g, own) == *place.gateway
        });
        (gateways.is_empty() || named) && port.is_none_or(|p| p == place.port)
    }

    // === actions ===

    fn http_action(
        &mut self,
        route: &HttpRoute,
        path: &FieldPath,
        place: Place<'_>,
    ) -> (Vec<Filter>, Action) {
        let headers = route.headers.as_ref();
        let filters = headers.map(|h| self.header_filters(h, &path.field("headers")));
        let filters = filters.unwrap_or_default();
        let action = if let Some(redirect) = &route.redirect {
            self.redirect(redirect, &path.field("redirect"))
        } else if let Some(direct) = &route.direct_response {
            self.direct(direct, &path.field("directResponse"))
        } else if route.route.is_empty() {
            let text = match &route.delegate {
                Some(to) => format!("delegates to {}, which cannot be followed", to.name),
                None => "has no route, redirect or directResponse; add one".to_owned(),
            };
            let reason = format!("{}: {path} {text}", self.object.key).into();
            Action::Fail { status: 503, reason }
        } else {
            Action::Forward(self.destinations(&route.route, path, place))
        };
        (filters, action)
    }

    fn direct(&mut self, direct: &DirectResponse, path: &FieldPath) -> Action {
        let status = direct.status;
        if !(200..=599).contains(&status) {
            let text = format!("{status} is no status of an answer; say one of 200 to 599");
            return self.wrong(path.field("status"), &text);
        }
        match body_of(direct) {
            Ok(body) => Action::Direct { status, body },
            Err(text) => self.wrong(path.field("body").field("bytes"), text),
        }
    }

    fn redirect(&mut self, redirect: &istio::Redirect, path: &FieldPath) -> Action {
        let made = to_redirect(redirect);
        if matches!(made.status, 301 | 302 | 303 | 307 | 308) {
            return Action::Redirect(made);
        }
        let text = format!("{} is no redirect; say 301, 302, 303, 307 or 308", made.status);
        self.wrong(path.field("redirectCode"), &text)
    }

    /// What cannot be answered as it is written.
    fn wrong(&mut self, path: FieldPath, text: &str) -> Action {
        let reason = format!("{}: {path}: {text}", self.object.key).into();
        self.issues.error(path, text);
        Action::Fail { status: 500, reason }
    }

    pub(super) fn destinations(
        &mut self,
        list: &[HttpDestination],
        path: &FieldPath,
        place: Place<'_>,
    ) -> Vec<WeightedBackend> {
        let single = list.len() == 1;
        let mut out = Vec::new();
        for (i, destination) in list.iter().enumerate() {
            let path = path.field("route").index(i);
            // One destination takes everything; of several, one without a weight takes nothing.
            let weight = if single { 1 } else { destination.weight.unwrap_or(0) };
            let headers = destination.headers.as_ref();
            let filters = headers.map(|h| self.header_filters(h, &path.field("headers")));
            let filters = filters.unwrap_or_default();
            let path = path.field("destination");
            let target = self.target(&destination.destination, &path, place);
            out.push(WeightedBackend { target, weight, filters });
        }
        out
    }

    pub(super) fn target(
        &mut self,
        to: &Destination,
        path: &FieldPath,
        place: Place<'_>,
    ) -> Target {
        match self.resolve(to, place) {
            Ok(target) => target,
            Err(text) => {
                let reason = format!("{}: {path}: {text}", self.object.key).into();
                self.unresolved.push(format!("{path}: {text}"));
                Target::Fail { status: 503, reason }
            }
        }
    }

    fn resolve(&self, to: &Destination, place: Place<'_>) -> Result<Target, String> {
        let own = &*self.object.key.namespace;
        let service = names::service_of_host(&to.host, own, self.env);
        let known = service.as_ref().and_then(|key| self.reader.service(key));
        if known.is_none()
            && let Some((object, entry)) = service_entry::find(self.reader, &to.host, own)
        {
            let of = |client| rules_for_host(self.reader, &to.host, &object.key.namespace, client);
            let mine = of(Some(own));
            // Rules of others that begin TLS with it are not used.
            let near = *object.key.namespace == *own || own == ROOT_NAMESPACE;
            let used = near || !mine.originate_in(own);
            let has = of(None).has_subset(&to.subset) || (used && mine.has_subset(&to.subset));
            return outside(to, entry, has, place);
        }
        let key = service.ok_or_else(|| format!("host {} is no service of this mesh", to.host))?;
        let (_, view) = known.ok_or_else(|| format!("there is no Service {key}"))?;
        let ports: Vec<u16> =
            view.spec.ports.iter().filter(|p| service::is_meshed(p)).map(|p| p.port).collect();
        let port = match (to.port.map(|p| p.number), ports.as_slice()) {
            (Some(port), _) => port,
            (None, [only]) => *only,
            // Without a port the traffic keeps the one it came for.
            (None, _) if place.service == Some(&key) || ports.contains(&place.port) => place.port,
            (None, _) => {
                return Err(format!("Service {key} has several ports; name one as port.number"));
            }
        };
        if !ports.contains(&port) {
            let have: Vec<_> = ports.iter().map(ToString::to_string).collect();
            return Err(format!("Service {key} has no port {port}; it has {}", have.join(", ")));
        }
        if !to.subset.is_empty() {
            let rules = rules_for(self.reader, self.env, &key);
            let mine = rules_for_client(self.reader, self.env, &key, own);
            let patterns = names::host_patterns(&key, self.env);
            let place = (key.namespace.as_str(), own);
            let some = || is_subset_of_some(self.reader, &patterns, place, &to.subset);
            if !rules.has_subset(&to.subset) && !mine.has_subset(&to.subset) && !some() {
                let names = rules.names();
                let subset = &to.subset;
                return Err(if names.is_empty() {
                    format!("no DestinationRule for {key} defines a subset {subset:?}")
                } else {
                    format!("{names} does not define the subset {subset:?}; add it there")
                });
            }
        }
        Ok(Target::Backend(names::backend_name(&key, port, &to.subset, self.env)))
    }

    // === filters, and what is not done ===

    fn rewrite(&mut self, route: &HttpRoute, path: &FieldPath) -> Option<Rewrite> {
        let host = route.headers.as_ref().and_then(host_set);
        let rewrite = route.rewrite.as_ref();
        let out = Rewrite {
            host: rewrite.and_then(|r| r.authority.clone()).or(host),
            path: rewrite.and_then(|r| self.rewritten(r, &path.field("rewrite"))),
        };
        (out != Rewrite::default()).then_some(out)
    }

    pub(super) fn ms(&mut self, text: Option<&Arc<str>>, path: &FieldPath) -> Option<u64> {
        let text = text?;
        let ms = parse_ms(text);
        if ms.is_none() {
            let message = format!("{text:?} is no duration such as 500ms; it is not applied");
            self.issues.warning(path.clone(), message);
        }
        ms
    }
}

/// A destination that a ServiceEntry defines.
fn outside(
    to: &Destination,
    entry: &ServiceEntry,
    has_subset: bool,
    place: Place<'_>,
) -> Result<Target, String> {
    let ports: Vec<u16> = entry.spec.ports.iter().map(|p| p.number).collect();
    let host = &to.host;
    let port = match (to.port.map(|p| p.number), ports.as_slice()) {
        (Some(port), _) => port,
        (None, [only]) => *only,
        (None, _) if ports.contains(&place.port) => place.port,
        (None, _) => return Err(format!("{host} has several ports; name one as port.number")),
    };
    if !ports.contains(&port) {
        let have: Vec<_> = ports.iter().map(ToString::to_string).collect();
        return Err(format!("{host} has no port {port}; it has {}", have.join(", ")));
    }
    if !to.subset.is_empty() && !has_subset {
        return Err(format!("no DestinationRule for {host} defines a subset {:?}", to.subset));
    }
    Ok(Target::Backend(service_entry::root_of(host).child(backend_child(port, &to.subset))))
}

fn read_match(m: &HttpMatch) -> Result<Match, String> {
    let optional = |s: &Option<istio::StringMatch>| s.as_ref().map(string_match).transpose();
    Ok(Match {
        path: m.uri.as_ref().map(|uri| path_match(uri, m.ignore_uri_case)).transpose()?.flatten(),
        method: optional(&m.method)?,
        authority: optional(&m.authority)?,
        scheme: optional(&m.scheme)?,
        headers: named(&m.headers, true)?,
        without_headers: named(&m.without_headers, true)?,
        query: named(&m.query_params, false)?,
        // Already judged: the rule is read for one port.
        port: None,
        connection: None,
    })
}

fn path_match(uri: &istio::StringMatch, no_case: bool) -> Result<Option<PathMatch>, String> {
    Ok(match (&uri.exact, &uri.prefix, &uri.regex) {
        (Some(exact), ..) if no_case => Some(PathMatch::ExactNoCase(exact.clone())),
        (Some(exact), ..) => Some(PathMatch::Exact(exact.clone())),
        (_, Some(prefix), _) if no_case => Some(PathMatch::StringPrefixNoCase(prefix.clone())),
        (_, Some(prefix), _) => Some(PathMatch::StringPrefix(prefix.clone())),
        (.., Some(regex)) => Some(PathMatch::Regex(Regex::new(regex)?)),
        _ => None,
    })
}

pub(super) fn string_match(s: &istio::StringMatch) -> Result<StringMatch, String> {
    Ok(match (&s.exact, &s.prefix, &s.regex) {
        (Some(exact), ..) => StringMatch::Exact(exact.clone()),
        (_, Some(prefix), _) => StringMatch::Prefix(prefix.clone()),
        (.., Some(regex)) => StringMatch::Regex(Regex::new(regex)?),
        _ => StringMatch::Present,
    })
}

fn named(
    map: &BTreeMap<Arc<str>, istio::StringMatch>,
    headers: bool,
) -> Result<Vec<NamedMatch>, String> {
    map.iter()
        .map(|(name, value)| {
            let name = if headers { header_name(name)? } else { name.clone() };
            let value = if is_star(value) { StringMatch::Present } else { string_match(value)? };
            Ok(NamedMatch { name, value })
        })
        .collect()
}

/// In lower case.
///
/// # Errors
/// What no request can have: where it must be absent, such a name would take everybody.
fn header_name(name: &str) -> Result<Arc<str>, String> {
    if name.starts_with("@request.auth.claims") {
        return Err(format!(
            "{name:?}: claims of tokens are not read here; the match takes nothing; match a header \
             that whoever verifies the token sets"
        ));
    }
    let token = name.strip_prefix(':').unwrap_or(name);
    if token.is_empty() || !token.bytes().all(is_token) {
        return Err(format!("{name:?} is no name of a header; the match takes nothing"));
    }
    Ok(name.to_ascii_lowercase().into())
}

/// "`*` is NOT a RE2 style regex, it's a metacharacter. It will be translated as present_match"
/// (Istio, of headers and parameters).
fn is_star(s: &istio::StringMatch) -> bool {
    s.exact.is_none() && s.prefix.is_none() && s.regex.as_deref() == Some("*")
}

pub(super) fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// Setting `host` is a rewrite, not a header; what is added sets it too.
fn host_set(headers: &Headers) -> Option<Arc<str>> {
    let request = headers.request.as_ref()?;
    let mut each = request.set.iter().chain(&request.add);
    each.find(|(name, _)| is_host(name)).map(|(_, value)| value.clone())
}

fn to_redirect(r: &istio::Redirect) -> Redirect {
    let authority = r.authority.as_deref().and_then(weft_model::decide::Authority::parse);
    let port = r.port.or_else(|| authority.as_ref().and_then(|a| a.port));
    Redirect {
        scheme: r.scheme.clone(),
        host: authority.map(|a| a.host.into()),
        port,
        path: match (&r.uri, &r.prefix_rewrite) {
            (Some(uri), _) => Some(PathRewrite::Full(uri.clone())),
            (None, prefix) => prefix.clone().map(PathRewrite::Prefix),
        },
        status: r.redirect_code.filter(|c| *c != 0).unwrap_or(301),
        port_from: match r.derive_port.as_deref() {
            Some("FROM_PROTOCOL_DEFAULT") => RedirectPort::Protocol,
            Some("FROM_REQUEST_PORT") => RedirectPort::Request,
            _ => RedirectPort::Written,
        },
    }
}

/// # Errors
/// Bytes that cannot be sent as they are.
fn body_of(direct: &DirectResponse) -> Result<Arc<str>, &'static str> {
    let Some(body) = &direct.body else { return Ok("".into()) };
    match (&body.string, &body.bytes) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(encoded)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes());
            let text = String::from_utf8(bytes.map_err(|_| "is no base64; write it so")?);
            Ok(text.map_err(|_| "is no text in UTF-8; let a service answer with it")?.into())
        }
        (None, None) => Ok("".into()),
    }
}
