// SPDX-License-Identifier: Apache-2.0
//! A pod as the agent reads it: names from the object, the fields that running it needs.
//!
//! Made by `agent` from the raw object of the desired state; read by `env`, `command`, `machine`
//! and `probe`. It tolerates unknown fields (the door judged them) and never changes the object.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_base::issue::Issues;
use weft_kinds::world::PodsMode;

pub mod inside;

use inside::{DnsConfig, HostAlias, Lifecycle, SecurityContext, Volume, VolumeMount};

/// Runs the pod's containers without a sidecar when `"false"`.
pub const ANNOTATION_INJECT: &str = "weft.dev/inject";
const ISTIO_INJECT: &str = "sidecar.istio.io/inject";
/// `gateway`: the pod is nothing but a proxy.
pub const ANNOTATION_PROXY: &str = "weft.dev/proxy";
/// The local command that stands for the image; `weft.dev/command.CONTAINER` for one of several.
pub const ANNOTATION_COMMAND: &str = "weft.dev/command";
/// Directory the pod's programs start in, and relative programs are looked for.
pub const ANNOTATION_WORKDIR: &str = "weft.dev/workdir";
/// The Gateway a gateway pod serves (Gateway API's label).
pub const LABEL_GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
/// Name under which the proxy of a gateway pod is shown.
pub const PROXY_CONTAINER: &str = "weft-proxy";

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What kind of proxy the pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    None,
    Sidecar,
    /// The proxy is all there is.
    Gateway,
}

/// A pod that should run here, with what the server resolved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPod {
    /// The raw object, metadata included.
    pub object: Arc<Value>,
    /// Its own address (127.64.0.0/11 in process mode).
    pub address: IpAddr,
    /// All its addresses, that one first.
    pub addresses: Vec<IpAddr>,
    /// Where its sidecar's admin, metrics and readiness listen on the machine's side; the same
    /// as `address` in process mode.
    pub admin_address: IpAddr,
    /// Whether it runs in namespaces of its own.
    pub mode: PodsMode,
    /// Services of its namespace with the sidecar's ports for them.
    pub upstreams: Vec<Upstream>,
    /// Data of the ConfigMaps and Secrets it names, decoded.
    pub configs: Configs,
}

/// One port of one Service as this pod's sidecar offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub service: Arc<str>,
    pub port_name: Arc<str>,
    /// The Service's own port.
    pub port: u16,
    /// The port on the pod's address where the sidecar takes connections for it.
    pub local_port: u16,
    /// The Service's own address, if it has one.
    pub address: Option<IpAddr>,
}

/// ConfigMaps and Secrets by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Configs {
    pub config_maps: Objects,
    pub secrets: Objects,
}

/// Objects by name, each a map of keys.
pub type Objects = BTreeMap<Arc<str>, BTreeMap<Arc<str>, Data>>;

/// What a key holds: text, unless it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// What is read of a Pod object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub uid: Arc<str>,
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    pub deletion_timestamp: Option<Arc<str>>,
    pub deletion_grace_period_seconds: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    pub node_name: Arc<str>,
    pub service_account_name: Arc<str>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period_seconds: Option<u64>,
    pub security_context: SecurityContext,
    pub volumes: Vec<Volume>,
    pub hostname: Arc<str>,
    pub subdomain: Arc<str>,
    pub host_aliases: Vec<HostAlias>,
    pub dns_policy: String,
    pub dns_config: DnsConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: Arc<str>,
    pub image: Arc<str>,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Arc<str>,
    pub ports: Vec<ContainerPort>,
    pub env: Vec<EnvVar>,
    pub env_from: Vec<EnvFrom>,
    pub resources: Resources,
    pub readiness_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
    pub startup_probe: Option<Probe>,
    /// `Always` makes an init container one that runs beside the others.
    pub restart_policy: Option<RestartPolicy>,
    pub security_context: SecurityContext,
    pub volume_mounts: Vec<VolumeMount>,
    pub lifecycle: Lifecycle,
    /// Whoever attaches may type; the input stays open, unless only the first one may.
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Arc<str>,
    pub container_port: u16,
    /// Empty is TCP.
    pub protocol: Arc<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVar {
    pub name: Arc<str>,
    pub value: Option<String>,
    pub value_from: Option<ValueFrom>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ValueFrom {
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FieldRef {
    pub field_path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceFieldRef {
    pub resource: String,
    pub divisor: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyRef {
    pub name: Arc<str>,
    pub key: Arc<str>,
    pub optional: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvFrom {
    pub prefix: Arc<str>,
    pub config_map_ref: Option<NameRef>,
    pub secret_ref: Option<NameRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NameRef {
    pub name: Arc<str>,
    pub optional: bool,
}

/// Quantities as written (`100m`, `64Mi`); numbers are allowed too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limits: BTreeMap<Arc<str>, Value>,
    pub requests: BTreeMap<Arc<str>, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    pub http_get: Option<HttpGet>,
    pub tcp_socket: Option<TcpSocket>,
    pub grpc: Option<Grpc>,
    pub exec: Option<Exec>,
    pub initial_delay_seconds: u64,
    pub period_seconds: u64,
    pub timeout_seconds: u64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpGet {
    pub path: String,
    pub port: Value,
    pub host: String,
    pub scheme: String,
    pub http_headers: Vec<HttpHeader>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpSocket {
    pub port: Value,
    pub host: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Grpc {
    pub port: u16,
    pub service: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub command: Vec<String>,
}

// === impl PodKey ===

impl PodKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl DesiredPod ===

impl DesiredPod {
    /// Reads the object.
    ///
    /// # Errors
    /// When it has not the form of a Pod.
    pub fn read(&self) -> Result<Pod, Issues> {
        weft_kinds::views::read(&self.object)
    }
}

// === impl Configs ===

impl fmt::Debug for Configs {
    /// Values may be secret: only names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = (self.config_maps.keys(), self.secrets.keys());
        f.debug_struct("Configs").field("names", &names).finish_non_exhaustive()
    }
}

// === impl Data ===

impl Data {
    /// Bytes that may be text.
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text.into()),
            Err(e) => Self::Bytes(e.into_bytes().into()),
        }
    }

    pub fn bytes(&self) -> Arc<[u8]> {
        match self {
            Self::Text(text) => text.as_bytes().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    /// For a variable, which can hold nothing else.
    pub fn text(&self) -> Arc<str> {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into(),
        }
    }
}

// === impl Pod ===

impl Pod {
    pub fn key(&self) -> PodKey {
        PodKey { namespace: self.metadata.namespace.clone(), name: self.metadata.name.clone() }
    }

    /// Init containers, then containers: what the machine's indices count.
    pub fn programs(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(|v| &**v)
    }

    pub fn proxy_kind(&self) -> ProxyKind {
        if self.annotation(ANNOTATION_PROXY) == Some("gateway") {
            ProxyKind::Gateway
        } else if self.opts_out() {
            ProxyKind::None
        } else {
            ProxyKind::Sidecar
        }
    }

    /// The same words as `weft_kinds::world::has_sidecar`: weft's annotation, Istio's annotation
    /// or label.
    fn opts_out(&self) -> bool {
        self.annotation(ANNOTATION_INJECT) == Some("false")
            || self.annotation(ISTIO_INJECT) == Some("false")
            || self.metadata.labels.get(ISTIO_INJECT).is_some_and(|v| &**v == "false")
    }

    /// The xDS node of this pod's proxy.
    pub fn node_id(&self) -> String {
        let Metadata { namespace, name, labels, .. } = &self.metadata;
        match self.proxy_kind() {
            ProxyKind::Gateway => {
                let gateway = labels.get(LABEL_GATEWAY).unwrap_or(name);
                format!("gateway~{namespace}~{gateway}")
            }
            _ => format!("sidecar~{namespace}~{name}"),
        }
    }

    pub fn service_account(&self) -> &str {
        let account = &*self.spec.service_account_name;
        if account.is_empty() { "default" } else { account }
    }

    /// Seconds between SIGTERM and SIGKILL: what the deletion says, else the pod.
    pub fn grace_seconds(&self) -> u64 {
        let asked = self.metadata.deletion_grace_period_seconds;
        asked.or(self.spec.termination_grace_period_seconds).unwrap_or(30)
    }
}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            init_containers: Vec::new(),
            containers: Vec::new(),
            node_name: "".into(),
            service_account_name: "".into(),
            restart_policy: RestartPolicy::Always,
            termination_grace_period_seconds: None,
            security_context: SecurityContext::default(),
            volumes: Vec::new(),
            hostname: "".into(),
            subdomain: "".into(),
            host_aliases: Vec::new(),
            dns_policy: String::new(),
            dns_config: DnsConfig::default(),
        }
    }
}

// === impl Container ===

impl Container {
    /// The declared TCP ports.
    pub fn tcp_ports(&self) -> Vec<u16> {
        let tcp = |p: &&ContainerPort| p.protocol.is_empty() || &*p.protocol == "TCP";
        self.ports.iter().filter(tcp).map(|p| p.container_port).collect()
    }

    /// A port by number or name, as probes write it.
    pub fn port(&self, wanted: &Value) -> Option<u16> {
        match wanted {
            Value::Number(n) => n.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0),
            Value::String(name) => {
                let named = self.ports.iter().find(|p| *p.name == **name).map(|p| p.container_port);
                named.or_else(|| name.parse().ok())
            }
            _ => None,
        }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            http_get: None,
            tcp_socket: None,
            grpc: None,
            exec: None,
            initial_delay_seconds: 0,
            period_seconds: 10,
            timeout_seconds: 1,
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}
