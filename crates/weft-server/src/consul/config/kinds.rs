// SPDX-License-Identifier: Apache-2.0
//! The kinds of config entries and their fields, as Consul documents them. A kind whose fields are
//! Enterprise's or generated is kept as it comes.

use super::form::Field;
use super::form::Form::{
    Dict, Flag, Free, Given, List, Nanos, Part, Share, Span, Text, Texts, Whole,
};

/// A kind and its own fields, besides [`COMMON`]; `None`: they are kept as they come.
pub type Row = (&'static str, Option<&'static [Field]>);

pub const KINDS: &[Row] = &[
    ("api-gateway", Some(API_GATEWAY)),
    ("bound-api-gateway", None),
    ("control-plane-request-limit", None),
    ("exported-services", Some(EXPORTED)),
    ("file-system-certificate", Some(CERTIFICATE)),
    ("http-route", None),
    ("ingress-gateway", Some(INGRESS)),
    ("inline-certificate", Some(CERTIFICATE)),
    ("jwt-provider", Some(JWT_PROVIDER)),
    ("mesh", Some(MESH)),
    ("proxy-defaults", Some(PROXY_DEFAULTS)),
    ("sameness-group", None),
    ("service-defaults", Some(SERVICE_DEFAULTS)),
    ("service-intentions", Some(INTENTIONS)),
    ("service-resolver", Some(RESOLVER)),
    ("service-router", Some(ROUTER)),
    ("service-splitter", Some(SPLITTER)),
    ("tcp-route", Some(TCP_ROUTE)),
    ("terminating-gateway", Some(TERMINATING)),
];

/// Fields of every entry.
pub const COMMON: &[Field] = &[
    ("Kind", Text),
    ("Name", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("Meta", Texts),
    ("CreateIndex", Whole),
    ("ModifyIndex", Whole),
    ("Hash", Free),
    ("Status", Free),
];

const MODE: &[Field] = &[("Mode", Text)];
const FAILOVER_POLICY: &[Field] = &[("Mode", Text), ("Regions", List(&Text))];
const TRANSPARENT: &[Field] = &[("OutboundListenerPort", Whole), ("DialedDirectly", Flag)];
const EXPOSE_PATH: &[Field] = &[
    ("ListenerPort", Whole),
    ("Path", Text),
    ("LocalPathPort", Whole),
    ("Protocol", Text),
    ("ParsedFromCheck", Flag),
];
const EXPOSE: &[Field] = &[("Checks", Flag), ("Paths", List(&Part(EXPOSE_PATH)))];
const EXTENSION: &[Field] = &[
    ("Name", Text),
    ("Required", Flag),
    ("Arguments", Free),
    ("ConsulVersion", Text),
    ("EnvoyVersion", Text),
];
const HEADERS: &[Field] = &[("Add", Texts), ("Set", Texts), ("Remove", List(&Text))];
const PASSIVE: &[Field] = &[
    ("Interval", Nanos),
    ("MaxFailures", Whole),
    ("EnforcingConsecutive5xx", Given),
    ("MaxEjectionPercent", Given),
    ("BaseEjectionTime", Nanos),
];
const LIMITS: &[Field] =
    &[("MaxConnections", Given), ("MaxPendingRequests", Given), ("MaxConcurrentRequests", Given)];
const UPSTREAM: &[Field] = &[
    ("Name", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("Peer", Text),
    ("EnvoyListenerJSON", Text),
    ("EnvoyClusterJSON", Text),
    ("Protocol", Text),
    ("ConnectTimeoutMs", Whole),
    ("Limits", Part(LIMITS)),
    ("PassiveHealthCheck", Part(PASSIVE)),
    ("MeshGateway", Part(MODE)),
    ("BalanceOutboundConnections", Text),
];
const UPSTREAMS: &[Field] = &[("Overrides", List(&Part(UPSTREAM))), ("Defaults", Part(UPSTREAM))];
const RATE_ROUTE: &[Field] = &[
    ("PathExact", Text),
    ("PathPrefix", Text),
    ("PathRegex", Text),
    ("RequestsPerSecond", Whole),
    ("RequestsMaxBurst", Whole),
];
const RATES: &[Field] = &[
    ("RequestsPerSecond", Whole),
    ("RequestsMaxBurst", Whole),
    ("Routes", List(&Part(RATE_ROUTE))),
];
const SERVICE_DEFAULTS: &[Field] = &[
    ("Protocol", Text),
    ("Mode", Text),
    ("TransparentProxy", Part(TRANSPARENT)),
    ("MutualTLSMode", Text),
    ("MeshGateway", Part(MODE)),
    ("Expose", Part(EXPOSE)),
    ("ExternalSNI", Text),
    ("UpstreamConfig", Part(UPSTREAMS)),
    ("Destination", Part(&[("Addresses", List(&Text)), ("Port", Whole)])),
    ("MaxInboundConnections", Whole),
    ("LocalConnectTimeoutMs", Whole),
    ("LocalRequestTimeoutMs", Whole),
    ("BalanceInboundConnections", Text),
    ("RateLimits", Part(&[("InstanceLevel", Part(RATES))])),
    ("EnvoyExtensions", List(&Part(EXTENSION))),
];
const PROXY_DEFAULTS: &[Field] = &[
    ("Config", Free),
    ("Mode", Text),
    ("TransparentProxy", Part(TRANSPARENT)),
    ("MutualTLSMode", Text),
    ("MeshGateway", Part(MODE)),
    ("Expose", Part(EXPOSE)),
    ("AccessLogs", Part(ACCESS_LOGS)),
    ("EnvoyExtensions", List(&Part(EXTENSION))),
    ("FailoverPolicy", Part(FAILOVER_POLICY)),
    ("PrioritizeByLocality", Part(MODE)),
];
const ACCESS_LOGS: &[Field] = &[
    ("Enabled", Flag),
    ("DisableListenerLogs", Flag),
    ("Type", Text),
    ("Path", Text),
    ("JSONFormat", Text),
    ("TextFormat", Text),
];

const PLACE: &[Field] = &[
    ("Service", Text),
    ("ServiceSubset", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("Datacenter", Text),
    ("Peer", Text),
    ("SamenessGroup", Text),
];
const FAILOVER: &[Field] = &[
    ("Service", Text),
    ("ServiceSubset", Text),
    ("Namespace", Text),
    ("Datacenters", List(&Text)),
    ("Targets", List(&Part(PLACE))),
    ("Policy", Part(FAILOVER_POLICY)),
    ("SamenessGroup", Text),
];
const COOKIE: &[Field] = &[("Session", Flag), ("TTL", Nanos), ("Path", Text)];
const HASH_POLICY: &[Field] = &[
    ("Field", Text),
    ("FieldValue", Text),
    ("CookieConfig", Part(COOKIE)),
    ("SourceIP", Flag),
    ("Terminal", Flag),
];
const BALANCER: &[Field] = &[
    ("Policy", Text),
    ("RingHashConfig", Part(&[("MinimumRingSize", Whole), ("MaximumRingSize", Whole)])),
    ("LeastRequestConfig", Part(&[("ChoiceCount", Whole)])),
    ("HashPolicies", List(&Part(HASH_POLICY))),
];
const RESOLVER: &[Field] = &[
    ("DefaultSubset", Text),
    ("Subsets", Dict(&Part(&[("Filter", Text), ("OnlyPassing", Flag)]))),
    ("Redirect", Part(PLACE)),
    ("Failover", Dict(&Part(FAILOVER))),
    ("ConnectTimeout", Span),
    ("RequestTimeout", Span),
    ("LoadBalancer", Part(BALANCER)),
    ("PrioritizeByLocality", Part(MODE)),
];

const HEADER_MATCH: &[Field] = &[
    ("Name", Text),
    ("Present", Flag),
    ("Exact", Text),
    ("Prefix", Text),
    ("Suffix", Text),
    ("Contains", Text),
    ("Regex", Text),
    ("IgnoreCase", Flag),
    ("Invert", Flag),
];
const PARAM_MATCH: &[Field] =
    &[("Name", Text), ("Present", Flag), ("Exact", Text), ("Regex", Text)];
const HTTP_MATCH: &[Field] = &[
    ("PathExact", Text),
    ("PathPrefix", Text),
    ("PathRegex", Text),
    ("CaseInsensitive", Flag),
    ("Header", List(&Part(HEADER_MATCH))),
    ("QueryParam", List(&Part(PARAM_MATCH))),
    ("Methods", List(&Text)),
];
const ROUTE_TO: &[Field] = &[
    ("Service", Text),
    ("ServiceSubset", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("PrefixRewrite", Text),
    ("RequestTimeout", Span),
    ("IdleTimeout", Span),
    ("NumRetries", Whole),
    ("RetryOnConnectFailure", Flag),
    ("RetryOn", List(&Text)),
    ("RetryOnStatusCodes", List(&Whole)),
    ("RequestHeaders", Part(HEADERS)),
    ("ResponseHeaders", Part(HEADERS)),
];
const ROUTE: &[Field] =
    &[("Match", Part(&[("HTTP", Part(HTTP_MATCH))])), ("Destination", Part(ROUTE_TO))];
const ROUTER: &[Field] = &[("Routes", List(&Part(ROUTE)))];
const SPLIT: &[Field] = &[
    ("Weight", Share),
    ("Service", Text),
    ("ServiceSubset", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("RequestHeaders", Part(HEADERS)),
    ("ResponseHeaders", Part(HEADERS)),
];
const SPLITTER: &[Field] = &[("Splits", List(&Part(SPLIT)))];

const SDS: &[Field] = &[("ClusterName", Text), ("CertResource", Text)];
const GATEWAY_TLS: &[Field] = &[
    ("Enabled", Flag),
    ("SDS", Part(SDS)),
    ("TLSMinVersion", Text),
    ("TLSMaxVersion", Text),
    ("CipherSuites", List(&Text)),
];
const INGRESS_SERVICE: &[Field] = &[
    ("Name", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("Hosts", List(&Text)),
    ("TLS", Part(&[("SDS", Part(SDS))])),
    ("RequestHeaders", Part(HEADERS)),
    ("ResponseHeaders", Part(HEADERS)),
    ("MaxConnections", Whole),
    ("MaxPendingRequests", Whole),
    ("MaxConcurrentRequests", Whole),
    ("PassiveHealthCheck", Part(PASSIVE)),
    ("Meta", Texts),
];
const INGRESS_DEFAULTS: &[Field] = &[
    ("MaxConnections", Given),
    ("MaxPendingRequests", Given),
    ("MaxConcurrentRequests", Given),
    ("PassiveHealthCheck", Part(PASSIVE)),
];
const INGRESS_LISTENER: &[Field] = &[
    ("Port", Whole),
    ("Protocol", Text),
    ("TLS", Part(GATEWAY_TLS)),
    ("Services", List(&Part(INGRESS_SERVICE))),
];
const INGRESS: &[Field] = &[
    ("TLS", Part(GATEWAY_TLS)),
    ("Listeners", List(&Part(INGRESS_LISTENER))),
    ("Defaults", Part(INGRESS_DEFAULTS)),
];
const LINKED: &[Field] = &[
    ("Name", Text),
    ("Namespace", Text),
    ("CAFile", Text),
    ("CertFile", Text),
    ("KeyFile", Text),
    ("SNI", Text),
    ("DisableAutoHostRewrite", Flag),
];
const TERMINATING: &[Field] = &[("Services", List(&Part(LINKED)))];

const CLAIM: &[Field] = &[("Path", List(&Text)), ("Value", Text)];
const JWT: &[Field] =
    &[("Providers", List(&Part(&[("Name", Text), ("VerifyClaims", List(&Part(CLAIM)))])))];
const PERMISSION: &[Field] = &[("Action", Text), ("HTTP", Part(HTTP_MATCH)), ("JWT", Part(JWT))];
const SOURCE: &[Field] = &[
    ("Name", Text),
    ("Action", Text),
    ("Permissions", List(&Part(PERMISSION))),
    ("Precedence", Whole),
    ("LegacyID", Text),
    ("LegacyMeta", Texts),
    ("LegacyCreateTime", Text),
    ("LegacyUpdateTime", Text),
    ("Type", Text),
    ("Description", Text),
    ("Namespace", Text),
    ("Partition", Text),
    ("Peer", Text),
    ("SamenessGroup", Text),
];
const INTENTIONS: &[Field] = &[("Sources", List(&Part(SOURCE))), ("JWT", Part(JWT))];
const CONSUMER: &[Field] = &[("Partition", Text), ("Peer", Text), ("SamenessGroup", Text)];
const EXPORT: &[Field] =
    &[("Name", Text), ("Namespace", Text), ("Consumers", List(&Part(CONSUMER)))];
const EXPORTED: &[Field] = &[("Services", List(&Part(EXPORT)))];

const MESH_TLS: &[Field] =
    &[("TLSMinVersion", Text), ("TLSMaxVersion", Text), ("CipherSuites", List(&Text))];
const NORMALIZATION: &[Field] = &[
    ("InsecureDisablePathNormalization", Flag),
    ("MergeSlashes", Flag),
    ("PathWithEscapedSlashesAction", Text),
    ("HeadersWithUnderscoresAction", Text),
];
const MESH_HTTP: &[Field] = &[
    ("SanitizeXForwardedClientCert", Flag),
    ("Incoming", Part(&[("RequestNormalization", Part(NORMALIZATION))])),
];
const MESH: &[Field] = &[
    ("TransparentProxy", Part(&[("MeshDestinationsOnly", Flag)])),
    ("AllowEnablingPermissiveMutualTLS", Flag),
    ("ValidateClusters", Flag),
    ("TLS", Part(&[("Incoming", Part(MESH_TLS)), ("Outgoing", Part(MESH_TLS))])),
    ("HTTP", Part(MESH_HTTP)),
    ("Peering", Part(&[("PeerThroughMeshGateways", Flag)])),
];

const BACK_OFF: &[Field] = &[("BaseInterval", Nanos), ("MaxInterval", Nanos)];
const TRUSTED_CA: &[Field] = &[
    ("Filename", Text),
    ("EnvironmentVariable", Text),
    ("InlineString", Text),
    ("InlineBytes", Text),
];
const KEYS_TLS: &[Field] = &[
    ("CaCertificateProviderInstance", Part(&[("InstanceName", Text), ("CertificateName", Text)])),
    ("TrustedCA", Part(TRUSTED_CA)),
];
const KEYS_CLUSTER: &[Field] =
    &[("DiscoveryType", Text), ("TLSCertificates", Part(KEYS_TLS)), ("ConnectTimeout", Nanos)];
const REMOTE_KEYS: &[Field] = &[
    ("URI", Text),
    ("RequestTimeoutMs", Whole),
    ("CacheDuration", Nanos),
    ("FetchAsynchronously", Flag),
    ("RetryPolicy", Part(&[("NumRetries", Whole), ("RetryPolicyBackOff", Part(BACK_OFF))])),
    ("JWKSCluster", Part(KEYS_CLUSTER)),
];
const KEY_SET: &[Field] =
    &[("Local", Part(&[("JWKS", Text), ("Filename", Text)])), ("Remote", Part(REMOTE_KEYS))];
const LOCATION: &[Field] = &[
    ("Header", Part(&[("Name", Text), ("ValuePrefix", Text), ("Forward", Flag)])),
    ("QueryParam", Part(&[("Name", Text)])),
    ("Cookie", Part(&[("Name", Text)])),
];
const JWT_PROVIDER: &[Field] = &[
    ("JSONWebKeySet", Part(KEY_SET)),
    ("Issuer", Text),
    ("Audiences", List(&Text)),
    ("Locations", List(&Part(LOCATION))),
    ("Forwarding", Part(&[("HeaderName", Text), ("PadForwardPayloadHeader", Flag)])),
    ("ClockSkewSeconds", Whole),
    ("CacheConfig", Part(&[("Size", Whole)])),
];

const REFERENCE: &[Field] = &[
    ("Kind", Text),
    ("Name", Text),
    ("SectionName", Text),
    ("Namespace", Text),
    ("Partition", Text),
];
const API_TLS: &[Field] = &[
    ("Certificates", List(&Part(REFERENCE))),
    ("MinVersion", Text),
    ("MaxVersion", Text),
    ("CipherSuites", List(&Text)),
];
const API_LISTENER: &[Field] = &[
    ("Name", Text),
    ("Hostname", Text),
    ("Port", Whole),
    ("Protocol", Text),
    ("TLS", Part(API_TLS)),
    ("Override", Free),
    ("Default", Free),
];
const API_GATEWAY: &[Field] = &[("Listeners", List(&Part(API_LISTENER)))];
const TCP_ROUTE: &[Field] = &[
    ("Parents", List(&Part(REFERENCE))),
    ("Services", List(&Part(&[("Name", Text), ("Namespace", Text), ("Partition", Text)]))),
];
const CERTIFICATE: &[Field] = &[("Certificate", Text), ("PrivateKey", Text)];
