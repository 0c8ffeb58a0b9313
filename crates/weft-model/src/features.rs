// SPDX-License-Identifier: Apache-2.0
//! What a proxy may lack: optional capabilities by name, and how a resource is said to a proxy
//! that does not have them all.
//!
//! `weft-xds` carries the names in a node's first message, control's pusher asks [`needs`] once per
//! resource and [`express`] for the few nodes that lack something. Everything here is pure.
//!
//! A proxy of an older release cannot decode what it does not know, and a resource that does not
//! decode keeps an old form or leaves a hole. So the server replaces the smallest part that it can:
//! a backend's share, a rule, an endpoint, at last the whole resource. A replaced part answers with
//! a sentence; it never does less than was asked without saying so.

use std::fmt;
use std::sync::Arc;

use crate::{
    Action, Backend, EndpointSet, Fail, Filter, LbPolicy, Listener, ListenerKind, Match,
    NamedMatch, Origin, PathMatch, PathRewrite, Protocol, RedirectPort, Resource, Route, Rule,
    Section, StringMatch, Target, Transport, WeightedBackend,
};

/// Oldest [`crate::MODEL_VERSION`] that a server of this build emits and a proxy of it reads.
pub const MODEL_VERSION_OLDEST: u32 = 1;

const _: () = assert!(MODEL_VERSION_OLDEST <= crate::MODEL_VERSION);
const _: () = assert!(crate::MODEL_VERSION <= MODEL_VERSION_OLDEST + 1);

/// One optional capability. A new variant of the model that an older proxy cannot decode gets a
/// feature here, a line in [`FEATURES`] and its place in [`needs`] and [`express`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Feature {
    MatchRegex,
    MatchNoCase,
    FilterHeaders,
    FilterRewrite,
    ActionRedirect,
    ActionDirect,
    LeastRequest,
    PeakEwma,
    HashBalancing,
    TransportTls,
    TransportMtlsAppPort,
    TransportHbone,
    ListenerTls,
    ListenerCapture,
    FilterFault,
    FilterMirror,
    FilterCors,
    RewriteRegex,
    RedirectPort,
    RuleSession,
    BackendTls,
    ListenerClients,
    FilterAccess,
    ListenerL4,
    ListenerProxyHeader,
    BackendProxyProtocol,
    FilterLimit,
    BackendProtection,
    FilterCache,
    BackendZones,
    GatewayTls,
    MatchConnection,
    Passthrough,
    FilterUpgrades,
    RedirectWritten,
    BackendAnonymous,
    BackendThrough,
}

/// Every feature with its name on the wire. Names are never reused.
pub const FEATURES: &[(Feature, &str)] = &[
    (Feature::MatchRegex, "match.regex"),
    (Feature::MatchNoCase, "match.no-case"),
    (Feature::FilterHeaders, "filter.headers"),
    (Feature::FilterRewrite, "filter.rewrite"),
    (Feature::ActionRedirect, "action.redirect"),
    (Feature::ActionDirect, "action.direct"),
    (Feature::LeastRequest, "backend.least-request"),
    (Feature::PeakEwma, "backend.peak-ewma"),
    (Feature::HashBalancing, "backend.hash"),
    (Feature::TransportTls, "endpoint.tls"),
    (Feature::TransportMtlsAppPort, "endpoint.mtls-app-port"),
    (Feature::TransportHbone, "endpoint.hbone"),
    (Feature::ListenerTls, "listener.tls"),
    (Feature::ListenerCapture, "listener.capture"),
    (Feature::FilterFault, "filter.fault"),
    (Feature::FilterMirror, "filter.mirror"),
    (Feature::FilterCors, "filter.cors"),
    (Feature::RewriteRegex, "rewrite.regex"),
    (Feature::RedirectPort, "redirect.port-from"),
    (Feature::RuleSession, "rule.session"),
    (Feature::BackendTls, "backend.tls"),
    (Feature::ListenerClients, "listener.client-certificates"),
    (Feature::FilterAccess, "filter.access"),
    (Feature::ListenerL4, "listener.l4"),
    (Feature::ListenerProxyHeader, "listener.proxy-header"),
    (Feature::BackendProxyProtocol, "backend.proxy-protocol"),
    (Feature::FilterLimit, "filter.limit"),
    (Feature::BackendProtection, "backend.protection"),
    (Feature::FilterCache, "filter.cache"),
    (Feature::BackendZones, "backend.zones"),
    (Feature::GatewayTls, "listener.gateway-tls"),
    (Feature::MatchConnection, "match.connection"),
    (Feature::Passthrough, "backend.passthrough"),
    (Feature::FilterUpgrades, "filter.upgrades"),
    (Feature::RedirectWritten, "redirect.port-written"),
    (Feature::BackendAnonymous, "backend.tls-anonymous"),
    (Feature::BackendThrough, "backend.through"),
];

/// A set of features.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeFeatures(u64);

/// What a resource needs beyond the base of its model version.
pub fn needs(resource: &Resource) -> NodeFeatures {
    let mut out = NodeFeatures::default();
    match resource {
        Resource::Listener(listener) => listener_needs(listener, &mut out),
        Resource::Route(route) => route.rules.iter().for_each(|rule| rule_needs(rule, &mut out)),
        Resource::Backend(backend) => {
            out.extend(lb_feature(backend));
            let protection = backend.policy.protection.as_ref();
            let refuses = protection.is_some_and(|p| p.refuses());
            out.extend(refuses.then_some(Feature::BackendProtection));
            let tls = backend.policy.tls.as_ref();
            out.extend(tls.is_some().then_some(Feature::BackendTls));
            out.extend(tls.is_some_and(|t| t.anonymous).then_some(Feature::BackendAnonymous));
            let proxied = backend.policy.proxy_protocol.is_some();
            out.extend(proxied.then_some(Feature::BackendProxyProtocol));
            let terms = backend.policy.connections.as_ref();
            let through = terms.is_some_and(|terms| terms.through.is_some());
            out.extend(through.then_some(Feature::BackendThrough));
            out.extend(backend.policy.is_zoned().then_some(Feature::BackendZones));
        }
        Resource::Endpoints(set) => {
            out.extend(set.endpoints.iter().filter_map(|e| transport_feature(e.transport)));
        }
        Resource::Host(_) | Resource::Fail(_) => {}
    }
    out
}

/// The resource for a proxy with these features; `None` when it can be sent as it is.
pub fn express(resource: &Resource, have: NodeFeatures) -> Option<Resource> {
    let lacks = needs(resource).without(have);
    let missing = lacks.first()?;
    Some(match resource {
        // What proxies without it have always done.
        Resource::Backend(backend)
            if lacks == [Feature::BackendAnonymous].into_iter().collect() =>
        {
            let mut backend = backend.clone();
            backend.policy.tls.iter_mut().for_each(|tls| tls.anonymous = false);
            Resource::Backend(backend)
        }
        Resource::Route(route) => Resource::Route(expressed_route(route, have)),
        Resource::Endpoints(set) => Resource::Endpoints(expressed_set(set, have)),
        Resource::Listener(Listener { origin, .. }) | Resource::Backend(Backend { origin, .. }) => {
            Resource::Fail(Fail {
                reason: reason(origin.as_ref(), missing),
                origin: origin.clone(),
            })
        }
        Resource::Host(_) | Resource::Fail(_) => return None,
    })
}

// === impl Feature ===

impl Feature {
    pub fn name(self) -> &'static str {
        FEATURES.iter().find(|(f, _)| *f == self).map_or("", |(_, name)| name)
    }

    fn bit(self) -> u64 {
        1 << (self as u8)
    }
}

// === impl NodeFeatures ===

impl NodeFeatures {
    /// What this build knows.
    pub fn all() -> Self {
        FEATURES.iter().map(|(f, _)| *f).collect()
    }

    /// From names; those of a later release are none of ours.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |name: &str| FEATURES.iter().find(|(_, n)| *n == name).map(|(f, _)| *f);
        names.into_iter().filter_map(known).collect()
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FEATURES.iter().filter(move |(f, _)| self.has(*f)).map(|(_, name)| *name)
    }

    pub fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of `self` that `other` has not.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn first(self) -> Option<Feature> {
        FEATURES.iter().map(|(f, _)| *f).find(|f| self.has(*f))
    }
}

impl FromIterator<Feature> for NodeFeatures {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let mut out = Self::default();
        out.extend(features);
        out
    }
}

impl Extend<Feature> for NodeFeatures {
    fn extend<I: IntoIterator<Item = Feature>>(&mut self, features: I) {
        for feature in features {
            self.0 |= feature.bit();
        }
    }
}

impl IntoIterator for NodeFeatures {
    type Item = Feature;
    type IntoIter = std::vec::IntoIter<Feature>;

    fn into_iter(self) -> Self::IntoIter {
        let each = FEATURES.iter().map(|(f, _)| *f).filter(|f| self.has(*f));
        each.collect::<Vec<_>>().into_iter()
    }
}

impl fmt::Debug for NodeFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

// === what is needed ===

fn listener_needs(listener: &Listener, out: &mut NodeFeatures) {
    match &listener.kind {
        ListenerKind::Gateway(gateway) => {
            let tls = gateway.sections.iter().any(|s| s.tls.is_some());
            out.extend(tls.then_some(Feature::ListenerTls));
            let mut served = gateway.sections.iter().filter_map(|s| s.tls.as_ref());
            let strict = served.any(|t| t.clients.is_some() || !t.alpn.is_empty() || t.only_13);
            out.extend(strict.then_some(Feature::ListenerClients));
            let insecure = |s: &Section| {
                s.tls.as_ref().and_then(|t| t.clients.as_ref()).is_some_and(|c| c.insecure)
            };
            let whole =
                gateway.backend_certificate.is_some() || gateway.sections.iter().any(insecure);
            out.extend(whole.then_some(Feature::GatewayTls));
            let l4 = |s: &Section| match s.protocol {
                Protocol::Tls | Protocol::Udp => true,
                Protocol::Tcp => s.tls.is_some(),
                _ => false,
            };
            out.extend(gateway.sections.iter().any(l4).then_some(Feature::ListenerL4));
            out.extend((!gateway.proxy_header.is_off()).then_some(Feature::ListenerProxyHeader));
        }
        ListenerKind::Capture(_) => out.extend([Feature::ListenerCapture]),
        ListenerKind::Inbound(_) => {}
    }
}

fn rule_needs(rule: &Rule, out: &mut NodeFeatures) {
    rule.matches.iter().for_each(|m| match_needs(m, out));
    own_needs(rule, out);
    out.extend(rule.shares().iter().flat_map(|b| &b.filters).flat_map(filter_features));
}

/// What a rule needs beside its matches and its backends' own filters.
fn own_needs(rule: &Rule, out: &mut NodeFeatures) {
    out.extend(rule.filters.iter().flat_map(filter_features));
    out.extend(action_features(&rule.action));
    out.extend(rule.session.is_some().then_some(Feature::RuleSession));
}

fn match_needs(m: &Match, out: &mut NodeFeatures) {
    out.extend(m.path.as_ref().and_then(path_feature));
    let texts = [&m.method, &m.authority, &m.scheme];
    out.extend(texts.into_iter().flatten().filter_map(text_feature));
    let named = m.headers.iter().chain(&m.query).chain(&m.without_headers);
    out.extend(named.filter_map(|n| text_feature(&n.value)));
    out.extend(m.connection.is_some().then_some(Feature::MatchConnection));
}

fn path_feature(path: &PathMatch) -> Option<Feature> {
    match path {
        PathMatch::Exact(_) | PathMatch::ElementPrefix(_) | PathMatch::StringPrefix(_) => None,
        PathMatch::Regex(_) => Some(Feature::MatchRegex),
        PathMatch::ExactNoCase(_) | PathMatch::StringPrefixNoCase(_) => Some(Feature::MatchNoCase),
    }
}

fn text_feature(text: &StringMatch) -> Option<Feature> {
    match text {
        StringMatch::Exact(_) | StringMatch::Prefix(_) | StringMatch::Present => None,
        StringMatch::Regex(_) => Some(Feature::MatchRegex),
    }
}

fn filter_features(filter: &Filter) -> NodeFeatures {
    let own = match filter {
        Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => Feature::FilterHeaders,
        Filter::Rewrite(_) => Feature::FilterRewrite,
        Filter::Fault(_) => Feature::FilterFault,
        Filter::Mirror(_) => Feature::FilterMirror,
        Filter::Cors(_) => Feature::FilterCors,
        Filter::RateLimit(_) | Filter::BodyLimit(_) => Feature::FilterLimit,
        Filter::Access(_) => Feature::FilterAccess,
        Filter::Cache(_) => Feature::FilterCache,
        Filter::Upgrades(_) => Feature::FilterUpgrades,
    };
    let path = match filter {
        Filter::Rewrite(rewrite) => rewrite_feature(rewrite.path.as_ref()),
        _ => None,
    };
    std::iter::once(own).chain(path).collect()
}

fn rewrite_feature(path: Option<&PathRewrite>) -> Option<Feature> {
    match path? {
        PathRewrite::Full(_) | PathRewrite::Prefix(_) => None,
        PathRewrite::Regex(_) => Some(Feature::RewriteRegex),
    }
}

fn action_features(action: &Action) -> NodeFeatures {
    match action {
        Action::Forward(_) | Action::Fail { .. } => NodeFeatures::default(),
        Action::Redirect(redirect) => {
            let port = match redirect.port_from {
                RedirectPort::Scheme => None,
                RedirectPort::Protocol | RedirectPort::Request => Some(Feature::RedirectPort),
                RedirectPort::Written => Some(Feature::RedirectWritten),
            };
            let path = rewrite_feature(redirect.path.as_ref());
            std::iter::once(Feature::ActionRedirect).chain(port).chain(path).collect()
        }
        Action::Direct { .. } => NodeFeatures::from_iter([Feature::ActionDirect]),
    }
}

fn lb_feature(backend: &Backend) -> Option<Feature> {
    match &backend.policy.lb {
        LbPolicy::RoundRobin | LbPolicy::Random => None,
        LbPolicy::LeastRequest => Some(Feature::LeastRequest),
        LbPolicy::PeakEwma => Some(Feature::PeakEwma),
        LbPolicy::Hash(_) => Some(Feature::HashBalancing),
        LbPolicy::Passthrough => Some(Feature::Passthrough),
    }
}

fn transport_feature(transport: Transport) -> Option<Feature> {
    match transport {
        Transport::Plaintext | Transport::MeshH1 | Transport::MeshH2 => None,
        Transport::Tls => Some(Feature::TransportTls),
        Transport::MtlsAppPort => Some(Feature::TransportMtlsAppPort),
        Transport::Hbone => Some(Feature::TransportHbone),
    }
}

// === what is said instead ===

fn reason(origin: Option<&Origin>, missing: Feature) -> Arc<str> {
    let what = origin.map_or_else(|| "this".to_owned(), ToString::to_string);
    let name = missing.name();
    format!(
        "{what} needs {name:?}, which this proxy does not know; run a proxy of the server's release"
    )
    .into()
}

fn expressed_route(route: &Route, have: NodeFeatures) -> Route {
    let rules = route.rules.iter().flat_map(|rule| expressed_rule(rule, have)).collect();
    Route { rules, ..route.clone() }
}

/// A rule whose action or filters cannot be said fails what it matches. A match that cannot be
/// said is widened by the part that is missing and fails what it matches then: requests that might
/// have been meant are never sent elsewhere by a later rule of the route.
fn expressed_rule(rule: &Rule, have: NodeFeatures) -> Vec<Rule> {
    let lacks = |m: &Match| {
        let mut needed = NodeFeatures::default();
        match_needs(m, &mut needed);
        needed.without(have).first()
    };
    let (said, unsaid): (Vec<Match>, Vec<Match>) =
        rule.matches.iter().cloned().partition(|m| lacks(m).is_none());
    let mut out = Vec::with_capacity(2);
    if !said.is_empty() || rule.matches.is_empty() {
        out.push(expressed_action(Rule { matches: said, ..rule.clone() }, have));
    }
    if let Some(missing) = unsaid.iter().find_map(lacks) {
        let matches = unsaid.into_iter().map(|m| widened(m, have)).collect();
        out.push(failing(Rule { matches, ..rule.clone() }, missing));
    }
    out
}

fn expressed_action(mut rule: Rule, have: NodeFeatures) -> Rule {
    if let Action::Redirect(redirect) = &mut rule.action
        && redirect.port_from == RedirectPort::Written
        && !have.has(Feature::RedirectWritten)
    {
        // What proxies without it have always answered: another port, and no failure.
        redirect.port_from = RedirectPort::default();
    }
    let mut needed = NodeFeatures::default();
    own_needs(&rule, &mut needed);
    if let Some(missing) = needed.without(have).first() {
        return failing(rule, missing);
    }
    let Action::Forward(backends) = &rule.action else { return rule };
    let backends = backends.iter().map(|b| expressed_share(b, &rule.origin, have)).collect();
    Rule { action: Action::Forward(backends), ..rule }
}

/// A backend whose own filters cannot be said answers its share of requests with the sentence.
fn expressed_share(
    backend: &WeightedBackend,
    origin: &Origin,
    have: NodeFeatures,
) -> WeightedBackend {
    let needed: NodeFeatures = backend.filters.iter().flat_map(filter_features).collect();
    match needed.without(have).first() {
        None => backend.clone(),
        Some(missing) => WeightedBackend {
            target: Target::Fail { status: 500, reason: reason(Some(origin), missing) },
            weight: backend.weight,
            filters: Vec::new(),
        },
    }
}

fn failing(rule: Rule, missing: Feature) -> Rule {
    let action = Action::Fail { status: 500, reason: reason(Some(&rule.origin), missing) };
    Rule { action, filters: Vec::new(), session: None, ..rule }
}

fn widened(m: Match, have: NodeFeatures) -> Match {
    let keeps = |feature: Option<Feature>| feature.is_none_or(|f| have.has(f));
    let text = |t: Option<StringMatch>| t.filter(|t| keeps(text_feature(t)));
    let named = |list: Vec<NamedMatch>| -> Vec<NamedMatch> {
        list.into_iter().filter(|n| keeps(text_feature(&n.value))).collect()
    };
    // A rule for bytes that are no HTTP takes no request, however little of it can be said: bytes
    // have no method, and every request has one.
    let bytes = m.connection.is_some() && !have.has(Feature::MatchConnection);
    let method = if bytes { Some(StringMatch::Exact("".into())) } else { text(m.method) };
    Match {
        path: m.path.filter(|p| keeps(path_feature(p))),
        method,
        authority: text(m.authority),
        headers: named(m.headers),
        query: named(m.query),
        without_headers: named(m.without_headers),
        port: m.port,
        scheme: text(m.scheme),
        connection: m.connection.filter(|_| have.has(Feature::MatchConnection)),
    }
}

/// An endpoint that cannot be reached in its way is not reached in another: it is left out, and
/// the others serve.
fn expressed_set(set: &EndpointSet, have: NodeFeatures) -> EndpointSet {
    let said = |t: Transport| transport_feature(t).is_none_or(|f| have.has(f));
    let endpoints = set.endpoints.iter().filter(|e| said(e.transport)).cloned().collect();
    EndpointSet { endpoints, ..set.clone() }
}
