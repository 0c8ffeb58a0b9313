// SPDX-License-Identifier: Apache-2.0
//! Views of `gateway.networking.k8s.io`: GatewayClass, Gateway, ListenerSet, HTTPRoute,
//! ReferenceGrant.

use std::sync::Arc;

use serde::Deserialize;

use super::{LabelSelector, Labels};

pub const GROUP: &str = "gateway.networking.k8s.io";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GatewayClass {
    pub spec: GatewayClassSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    pub controller_name: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Gateway {
    pub spec: GatewaySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    pub gateway_class_name: Arc<str>,
    pub addresses: Vec<Address>,
    pub listeners: Vec<Listener>,
    pub allowed_listeners: AllowedListeners,
    pub infrastructure: Infrastructure,
    pub tls: GatewayTls,
}

/// Whose ListenerSets may add listeners to a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AllowedListeners {
    /// Absent means `None`, other than for routes.
    pub namespaces: RouteNamespaces,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    pub parameters_ref: Option<ObjectRef>,
}

/// TLS of a Gateway as a whole: what it asks of clients, and what it shows to backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GatewayTls {
    pub backend: BackendTls,
    pub frontend: FrontendTls,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTls {
    pub client_certificate_ref: Option<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendTls {
    pub default: PortTls,
    pub per_port: Vec<FrontendPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FrontendPort {
    pub port: u16,
    pub tls: PortTls,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PortTls {
    pub validation: Option<FrontendValidation>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendValidation {
    pub ca_certificate_refs: Vec<ObjectRef>,
    /// `AllowValidOnly` (or absent) or `AllowInsecureFallback`.
    pub mode: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ListenerSet {
    pub spec: ListenerSetSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerSetSpec {
    pub parent_ref: ParentRef,
    pub listeners: Vec<Listener>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Address {
    /// Absent means `IPAddress`.
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub value: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    pub name: Arc<str>,
    pub hostname: Option<Arc<str>>,
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`.
    pub protocol: Arc<str>,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: AllowedRoutes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// Absent means `Terminate`.
    pub mode: Option<Arc<str>>,
    pub certificate_refs: Vec<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    pub namespaces: RouteNamespaces,
    pub kinds: Vec<RouteKind>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// `All`, `Selector`, `Same`, `None`; absent means `Same`.
    pub from: Option<Arc<str>>,
    pub selector: LabelSelector,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RouteKind {
    pub group: Option<Arc<str>>,
    pub kind: Arc<str>,
}

/// A reference to an object; what is absent means the field's documented default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ObjectRef {
    pub group: Option<Arc<str>>,
    pub kind: Option<Arc<str>>,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpRoute {
    pub spec: HttpRouteSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<HttpRouteRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// Absent means `gateway.networking.k8s.io`; `""` is core.
    pub group: Option<Arc<str>>,
    /// Absent means `Gateway`.
    pub kind: Option<Arc<str>>,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub section_name: Option<Arc<str>>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteRule {
    pub name: Arc<str>,
    pub matches: Vec<HttpRouteMatch>,
    pub filters: Vec<HttpRouteFilter>,
    pub backend_refs: Vec<HttpBackendRef>,
    pub timeouts: HttpRouteTimeouts,
    pub retry: Option<HttpRouteRetry>,
    pub session_persistence: Option<SessionPersistence>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteMatch {
    pub path: Option<TypedValue>,
    pub headers: Vec<NamedValue>,
    pub query_params: Vec<NamedValue>,
    pub method: Option<Arc<str>>,
}

/// `PathPrefix`, `Exact` or `RegularExpression` and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TypedValue {
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub value: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamedValue {
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub name: Arc<str>,
    pub value: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteFilter {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_redirect: Option<RequestRedirect>,
    #[serde(rename = "urlRewrite")]
    pub url_rewrite: Option<UrlRewrite>,
    pub request_mirror: Option<RequestMirror>,
    pub cors: Option<Cors>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    pub backend_ref: ObjectRef,
    pub percent: Option<u32>,
    pub fraction: Option<Fraction>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fraction {
    pub numerator: u32,
    /// Absent means 100.
    pub denominator: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    pub allow_origins: Vec<Arc<str>>,
    pub allow_credentials: Option<bool>,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    /// Seconds; absent means 5.
    pub max_age: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    pub session_name: Option<Arc<str>>,
    pub absolute_timeout: Option<Arc<str>>,
    /// Of the experimental channel of older releases.
    pub idle_timeout: Option<Arc<str>>,
    /// `Cookie` (or absent) or `Header`.
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub cookie_config: CookieConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// `Session` (or absent) or `Permanent`.
    pub lifetime_type: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Header {
    pub name: Arc<str>,
    pub value: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    pub scheme: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathModifier>,
    pub port: Option<u16>,
    pub status_code: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UrlRewrite {
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub replace_full_path: Option<Arc<str>>,
    pub replace_prefix_match: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpBackendRef {
    #[serde(flatten)]
    pub target: ObjectRef,
    /// Absent means 1.
    pub weight: Option<u32>,
    pub filters: Vec<HttpRouteFilter>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteTimeouts {
    pub request: Option<Arc<str>>,
    pub backend_request: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpRouteRetry {
    pub codes: Vec<u16>,
    pub attempts: Option<u32>,
    pub backoff: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReferenceGrant {
    pub spec: ReferenceGrantSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReferenceGrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub name: Option<Arc<str>>,
}

// === impl RouteNamespaces ===

impl RouteNamespaces {
    /// Whether objects of a namespace may attach to one of `own`. `default` is what the field means
    /// when it is absent; labels are asked for when they count.
    pub fn takes(
        &self,
        default: &str,
        own: &str,
        namespace: &str,
        labels: impl FnOnce() -> Option<Labels>,
    ) -> bool {
        match self.from.as_deref().unwrap_or(default) {
            "All" => true,
            "Same" => own == namespace,
            "Selector" => labels().is_some_and(|mut labels| {
                // Every Kubernetes namespace carries its own name.
                labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
                self.selector.matches(&labels)
            }),
            _ => false,
        }
    }
}

// === impl ParentRef ===

impl ParentRef {
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(GROUP)
    }

    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Gateway")
    }

    pub fn is_gateway(&self) -> bool {
        self.group() == GROUP && self.kind() == "Gateway"
    }

    pub fn is_listener_set(&self) -> bool {
        self.group() == GROUP && self.kind() == "ListenerSet"
    }

    pub fn is_service(&self) -> bool {
        self.group().is_empty() && self.kind() == "Service"
    }
}

// === impl GatewaySpec ===

impl GatewaySpec {
    /// What is asked of the clients of a port that speaks HTTPS.
    pub fn validation(&self, port: u16) -> Option<&FrontendValidation> {
        let frontend = &self.tls.frontend;
        let named = frontend.per_port.iter().find(|p| p.port == port);
        named.map_or(&frontend.default, |p| &p.tls).validation.as_ref()
    }
}

// === impl ReferenceGrant ===

impl ReferenceGrant {
    /// Whether it lets `from` (group, kind, namespace) refer to `to` (group, kind, name).
    pub fn allows(&self, from: (&str, &str, &str), to: (&str, &str, &str)) -> bool {
        let from_ok = self.spec.from.iter().any(|f| (&*f.group, &*f.kind, &*f.namespace) == from);
        from_ok
            && self.spec.to.iter().any(|t| {
                (&*t.group, &*t.kind) == (to.0, to.1)
                    && t.name.as_deref().is_none_or(|name| name == to.2)
            })
    }
}
