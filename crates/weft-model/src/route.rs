// SPDX-License-Identifier: Apache-2.0
//! Routes: one user object's whole ordered rule list, as data.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::guards;
use crate::{
    Access, Cache, ConnectionMatch, Cors, Fault, Mirror, Origin, RateLimit, ResourceName, Root,
    Session, Sources, Timeouts,
};

/// One user object's rules for one parent. A child of its parent's root:
/// `listener:shop~shop~8000/route/httproute/shop/users` or
/// `host:product.shop.svc.cluster.local/route/virtualservice/shop/product`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub parent: Parent,
    pub scope: Scope,
    pub matching: Matching,
    pub rank: Rank,
    pub rules: Vec<Rule>,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parent {
    /// A gateway's port: the sections it attached to and the host names it serves there
    /// (already intersected; empty takes every host of the section).
    Listener { root: Root, sections: Vec<Arc<str>>, hostnames: Vec<Arc<str>> },
    /// A service host; `port: None` means every port.
    Host { root: Root, port: Option<u16> },
}

/// Which clients a mesh route is for. Control resolves it, so a proxy is sent only what applies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Any,
    Namespace(Arc<str>),
    Workload { namespace: Arc<str>, labels: crate::Labels },
}

/// How several routes of one parent are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// The first rule that matches, in written order (VirtualService, Envoy).
    FirstMatch,
    /// Gateway API: the most specific match of all routes of the parent wins.
    MostSpecific,
}

/// Order among routes of one parent; smaller wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rank {
    pub dialect: Dialect,
    /// Milliseconds since the epoch; older wins.
    pub created_ms: u64,
    /// `namespace/name`.
    pub name: Arc<str>,
}

/// Precedence of mesh dialects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    ConsumerHttpRoute,
    ProducerHttpRoute,
    VirtualService,
    Consul,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    #[serde(default)]
    pub name: Arc<str>,
    /// Any of them; empty matches everything.
    #[serde(default)]
    pub matches: Vec<Match>,
    #[serde(default)]
    pub filters: Vec<Filter>,
    pub action: Action,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    pub origin: Origin,
    /// Who set what of it that its own object did not set.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub sources: Sources,
}

/// All parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    pub path: Option<PathMatch>,
    /// Compared exactly (RFC 9110 §9.1).
    pub method: Option<StringMatch>,
    /// Host, only for dialects that match it inside a rule (VirtualService `authority`).
    pub authority: Option<StringMatch>,
    pub headers: Vec<NamedMatch>,
    pub query: Vec<NamedMatch>,
    /// Names that must be absent (VirtualService `withoutHeaders`): name and value to refuse.
    pub without_headers: Vec<NamedMatch>,
    pub port: Option<u16>,
    pub scheme: Option<StringMatch>,
    /// Takes no requests, but connections whose bytes are no HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Box<ConnectionMatch>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By path element: `/foo` takes `/foo` and `/foo/bar`, not `/foobar` (Gateway API).
    ElementPrefix(Arc<str>),
    /// By characters: `/foo` takes `/foobar` too (Istio).
    StringPrefix(Arc<str>),
    Regex(Regex),
    /// Exact, without regard to ASCII case (Istio `ignoreUriCase`).
    ExactNoCase(Arc<str>),
    StringPrefixNoCase(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Regex),
    Present,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedMatch {
    /// Header names in lower case.
    pub name: Arc<str>,
    pub value: StringMatch,
}

/// A regular expression that matches the whole text; compiled once, when it is decoded.
#[derive(Clone)]
pub struct Regex {
    source: Arc<str>,
    compiled: Arc<regex::bytes::Regex>,
}

/// What is done to a request or its response before and after the action, in written order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Filter {
    RequestHeaders(HeaderEdit),
    ResponseHeaders(HeaderEdit),
    Rewrite(Rewrite),
    Fault(Fault),
    Mirror(Mirror),
    Cors(Cors),
    /// Shared, since a gateway's or a policy's stands in many rules.
    RateLimit(Arc<RateLimit>),
    /// Largest request body in bytes.
    BodyLimit(u64),
    /// Shared, since a listener's own list stands in all of its rules.
    Access(Arc<Access>),
    /// Shared, since a gateway's stands in many rules.
    Cache(Arc<Cache>),
    /// Protocols, in lower case, for which alone a request may leave HTTP (`Upgrade`).
    Upgrades(Vec<Arc<str>>),
}

/// Applied in the order remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderEdit {
    pub set: Vec<(Arc<str>, Arc<str>)>,
    pub add: Vec<(Arc<str>, Arc<str>)>,
    pub remove: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rewrite {
    pub host: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    Full(Arc<str>),
    /// Replaces the prefix that matched.
    Prefix(Arc<str>),
    /// Replaces every place that an expression finds.
    Regex(RegexRewrite),
}

/// RE2's `GlobalReplace`: `\\1` in `with` is the first group, `\\0` the whole place, `\\\\` a
/// backslash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RegexRewriteText")]
pub struct RegexRewrite {
    find: Places,
    with: Arc<str>,
}

/// [`RegexRewrite`] before it was looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegexRewriteText {
    find: Places,
    with: Arc<str>,
}

/// An expression that is looked for inside a text.
#[derive(Clone)]
struct Places {
    source: Arc<str>,
    compiled: Arc<regex::Regex>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Shares by weight; all weights 0 is answered 500 (Gateway API).
    Forward(Vec<WeightedBackend>),
    Redirect(Redirect),
    Direct {
        status: u16,
        body: Arc<str>,
    },
    /// Invalid configuration made visible: this status and this sentence.
    Fail {
        status: u16,
        reason: Arc<str>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedBackend {
    pub target: Target,
    pub weight: u32,
    /// Filters of this backend only.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A backend by resource name: `host:FQDN/backend/PORT[/SUBSET]`.
    Backend(crate::ResourceName),
    /// A reference that cannot be followed; its share of requests is answered with this.
    Fail { status: u16, reason: Arc<str> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Where the port comes from when none is named.
    #[serde(skip_serializing_if = "RedirectPort::is_default")]
    pub port_from: RedirectPort,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectPort {
    /// A named scheme's own port; without one the listener's (Gateway API).
    #[default]
    Scheme,
    /// The port that the scheme has of itself, named or not.
    Protocol,
    /// The one that the request came for.
    Request,
    /// The one that the client wrote, with the host and unless it was the former scheme's own.
    Written,
}

/// When a request is sent again. Without any declaration: connections never established, and
/// idempotent methods (RFC 9110 §9.2.2) on reset or backend time-out; always within the budget.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Attempts beyond the first.
    pub attempts: u32,
    /// Until the answer begins.
    pub per_try_timeout_ms: Option<u64>,
    /// The user declared that this call may be repeated though its method says otherwise.
    pub declared_idempotent: bool,
    /// HTTP status codes that are worth another try.
    pub statuses: Vec<u16>,
    /// gRPC status codes that are.
    pub grpc_statuses: Vec<u16>,
    /// Connection reset before a response head, or an attempt whose own time ran out.
    pub on_reset: bool,
    /// Base of the jittered exponential back-off between attempts.
    pub backoff_ms: u64,
    /// An endpoint that was tried may be tried again although there are others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tried_too: bool,
}

// === impl Regex ===

impl Regex {
    /// # Errors
    /// When the expression does not parse or compiles to more than 1 MiB.
    pub fn new(source: &str) -> Result<Self, String> {
        let compiled = regex::bytes::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(1 << 20)
            .build()
            .map_err(|e| format!("{source:?} is no regular expression (RE2 syntax): {e}"))?;
        Ok(Self { source: source.into(), compiled: Arc::new(compiled) })
    }

    /// An origin in which `*` is any host, or any labels before a suffix: `https://*.example.com`.
    ///
    /// # Errors
    /// As [`Regex::new`].
    pub fn origin(pattern: &str) -> Result<Self, String> {
        Self::new(&regex::escape(pattern).replace(r"\*", r"[^/:@]+"))
    }

    /// Bytes that are no UTF-8 count as one unknown character each, as RE2 has it: a rule must not
    /// be blind to a value because of them.
    pub fn is_match(&self, text: &[u8]) -> bool {
        match std::str::from_utf8(text) {
            Ok(_) => self.compiled.is_match(text),
            Err(_) if !guards::on("regex-text") => false,
            Err(_) => self.compiled.is_match(String::from_utf8_lossy(text).as_bytes()),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }
}

impl std::fmt::Debug for Regex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Regex {}

impl std::hash::Hash for Regex {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

impl Serialize for Regex {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.source)
    }
}

impl<'de> Deserialize<'de> for Regex {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let source = String::deserialize(d)?;
        Self::new(&source).map_err(serde::de::Error::custom)
    }
}

// === impl RegexRewrite ===

impl RegexRewrite {
    /// # Errors
    /// When the expression does not parse, or the replacement names a group that it has not.
    pub fn new(find: &str, with: &str) -> Result<Self, String> {
        Self { find: Places::new(find)?, with: with.into() }.checked()
    }

    pub fn find(&self) -> &str {
        &self.find.source
    }

    pub fn with(&self) -> &str {
        &self.with
    }

    pub fn apply(&self, text: &str) -> String {
        let replaced = |found: &regex::Captures<'_>| {
            let mut out = String::new();
            let mut rest = self.with.chars();
            while let Some(c) = rest.next() {
                match (c, c == '\\') {
                    (_, false) => out.push(c),
                    (_, true) => match rest.next() {
                        Some(d) if d.is_ascii_digit() => {
                            let group = d.to_digit(10).and_then(|d| found.get(d as usize));
                            out.push_str(group.map_or("", |g| g.as_str()));
                        }
                        Some(other) => out.push(other),
                        None => {}
                    },
                }
            }
            out
        };
        self.find.compiled.replace_all(text, replaced).into_owned()
    }

    fn checked(self) -> Result<Self, String> {
        let mut rest = self.with.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                continue;
            }
            match rest.next() {
                Some('\\') => {}
                Some(d) if d.is_ascii_digit() => {
                    let have = self.find.compiled.captures_len() - 1;
                    if d.to_digit(10).is_some_and(|d| d as usize > have) {
                        let find = self.find();
                        return Err(format!("\\{d} is no group of {find:?}, which has {have}"));
                    }
                }
                _ => return Err(format!("{:?}: after \\ stands a digit or \\", self.with)),
            }
        }
        Ok(self)
    }
}

impl TryFrom<RegexRewriteText> for RegexRewrite {
    type Error = String;

    fn try_from(text: RegexRewriteText) -> Result<Self, String> {
        Self { find: text.find, with: text.with }.checked()
    }
}

impl Places {
    fn new(source: &str) -> Result<Self, String> {
        let compiled = regex::RegexBuilder::new(source)
            .size_limit(1 << 20)
            .build()
            .map_err(|e| format!("{source:?} is no regular expression (RE2 syntax): {e}"))?;
        Ok(Self { source: source.into(), compiled: Arc::new(compiled) })
    }
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Places {}

impl std::hash::Hash for Places {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

impl Serialize for Places {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.source)
    }
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

// === impl Route ===

impl Route {
    /// The backends that it sends requests to with their weights, and those that get copies
    /// with 0: a proxy must know them, and no request waits for them.
    pub fn targets(&self) -> impl Iterator<Item = (&ResourceName, u32)> {
        self.rules.iter().flat_map(|rule| {
            let shares = rule.shares().iter();
            let named = shares.clone().filter_map(|b| Some((b.target.backend()?, b.weight)));
            let own = rule.filters.iter().chain(shares.flat_map(|b| &b.filters));
            named.chain(own.filter_map(|filter| match filter {
                Filter::Mirror(mirror) => Some((mirror.target.backend()?, 0)),
                _ => None,
            }))
        })
    }
}

impl Rule {
    /// The backends that it forwards to; none when it answers itself.
    pub fn shares(&self) -> &[WeightedBackend] {
        match &self.action {
            Action::Forward(backends) => backends,
            _ => &[],
        }
    }
}

impl Target {
    pub fn backend(&self) -> Option<&ResourceName> {
        match self {
            Self::Backend(name) => Some(name),
            Self::Fail { .. } => None,
        }
    }
}

impl StringMatch {
    pub fn holds(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(s) if !guards::on("literals") => guards::like(s, text),
            Self::Exact(s) => text == s.as_bytes(),
            Self::Prefix(s) => text.starts_with(s.as_bytes()),
            Self::Regex(r) => r.is_match(text),
            Self::Present => true,
        }
    }
}

impl RedirectPort {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout_ms: None,
            declared_idempotent: false,
            statuses: Vec::new(),
            grpc_statuses: Vec::new(),
            on_reset: true,
            backoff_ms: 25,
            tried_too: false,
        }
    }
}
