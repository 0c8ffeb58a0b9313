// SPDX-License-Identifier: Apache-2.0
//! `weft.agent.v1`: what a machine's agent and the server say to each other. Plain data here,
//! thin gRPC shells in [`client`] and [`server`].
//!
//! The server half is assembled by the binary over a [`server::Hosts`]; `weft agent` uses the
//! client half. Nothing here decides who may do what, and pods travel as JSON that is not read.

pub mod client;
pub mod gate;
pub mod server;
#[cfg(test)]
mod tests;
pub mod visit;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use visit::VisitAsk;
use weft_proto::weft::agent::v1 as wire;

/// Largest message either way, bytes: one update of a host is split well below it.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest token that is looked at, bytes.
pub const TOKEN_BYTES_MAX: usize = 512;

/// A machine, as its agent describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    /// The first is where other hosts reach it.
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub version: String,
    pub boot_id: String,
    /// New at each start of the agent.
    pub instance: String,
    pub kernel: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub pods_max: u32,
}

/// A request to become a host.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinAsk {
    pub token: String,
    pub host: Host,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// A certificate as it travels, DER.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Leaf first.
    pub chain: Vec<Vec<u8>>,
    pub bundle: Vec<Vec<u8>>,
    pub not_after_ms: u64,
}

/// The server's answer to a join or a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub certificate: Certificate,
    pub trust_domain: String,
    pub cluster_domain: String,
}

/// The server's answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub interval: Duration,
    /// Report all pods again.
    pub resync: bool,
}

/// One pod object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// One message of what a host must run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostUpdate {
    pub revision: u64,
    /// Begins a whole set: what it does not name must stop.
    pub whole: bool,
    /// The rest follows in the next message; nothing is applied before.
    pub more: bool,
    /// Pods, each with its JSON.
    pub upserts: Vec<(PodRef, Vec<u8>)>,
    pub removes: Vec<PodRef>,
    /// Namespaces, each with the JSON of its Services' ports at sidecars.
    pub upstreams: Vec<(String, Vec<u8>)>,
    /// All checks of the host, when they changed.
    pub checks: Option<Vec<u8>>,
    /// Output that somebody wants to read now.
    pub logs: Vec<LogAsk>,
    /// What clients want of pods now.
    pub visits: Vec<VisitAsk>,
    /// What containers use is to be reported for this long from now on.
    pub measure: Duration,
}

/// Somebody wants to read a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAsk {
    pub id: u64,
    pub pod: PodRef,
    pub container: String,
    /// JSON.
    pub query: Vec<u8>,
}

/// A piece of output for who asked under this number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPiece {
    pub id: u64,
    pub what: LogWhat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogWhat {
    /// Whole lines.
    Data(Vec<u8>),
    /// There is no such output; the sentence says which.
    NotThere(String),
    Failed(String),
}

/// Status of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReport {
    pub pod: PodRef,
    /// JSON.
    pub status: Vec<u8>,
    pub finished: bool,
}

/// Something for a pod's list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNote {
    pub pod: PodRef,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStatus {
    Passing,
    Warning,
    Critical,
}

/// A check's new result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    pub namespace: String,
    pub id: String,
    pub status: CheckStatus,
    pub output: String,
}

/// What an agent waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    Drained(PodRef),
    Inbound(PodRef),
}

/// Programs of the machine itself that are to be meshed as one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub namespace: String,
    /// Empty: nothing is declared any more.
    pub service_account: String,
    /// Empty: they serve nobody.
    pub service: String,
    /// Each with its protocol, which may be empty.
    pub ports: Vec<(u16, String)>,
    pub labels: BTreeMap<String, String>,
}

/// What the mesh says to a DNS question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    Answer(Vec<u8>),
    /// It deserves no answer.
    Silence,
    /// The machine's own resolvers may know.
    Outside,
}

/// A request to Consul's API that came to a host's own door.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConsulAsk {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The secret that the client showed.
    pub token: String,
    pub body: Vec<u8>,
}

/// The answer to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsulAnswer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Why a call did not do what it was asked. Sentences tell no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody known: no certificate, or a token that admits nobody.
    #[error("{0}")]
    Unauthenticated(String),
    /// Known, and not allowed.
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Invalid(String),
    /// Too often; worth trying again later.
    #[error("{0}")]
    Busy(String),
    /// Worth trying again.
    #[error("{0}")]
    Unavailable(String),
}

// === impl JoinAsk ===

impl std::fmt::Debug for JoinAsk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinAsk").field("host", &self.host).finish_non_exhaustive()
    }
}

// === impl ConsulAsk ===

impl std::fmt::Debug for ConsulAsk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and secrets are in the rest.
        f.debug_struct("ConsulAsk").field("method", &self.method).finish_non_exhaustive()
    }
}

// === impl Refusal ===

impl Refusal {
    /// Whether the same call may work later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Unavailable(_))
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Unauthenticated(_) => Self::unauthenticated(text),
            Refusal::Denied(_) => Self::permission_denied(text),
            Refusal::Invalid(_) => Self::invalid_argument(text),
            Refusal::Busy(_) => Self::resource_exhausted(text),
            Refusal::Unavailable(_) => Self::unavailable(text),
        }
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let text = match status.message() {
            "" => status.code().description().to_owned(),
            text => text.to_owned(),
        };
        match status.code() {
            Code::Unauthenticated => Self::Unauthenticated(text),
            Code::PermissionDenied => Self::Denied(text),
            Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Self::Invalid(text),
            Code::ResourceExhausted => Self::Busy(text),
            _ => {
                let cause = std::error::Error::source(&status).map(crate::client::chain);
                Self::Unavailable(cause.unwrap_or(text))
            }
        }
    }
}

// === to and from the wire ===

impl From<Host> for wire::Host {
    fn from(h: Host) -> Self {
        Self {
            name: h.name,
            addresses: h.addresses.iter().map(ToString::to_string).collect(),
            labels: h.labels.into_iter().collect(),
            version: h.version,
            boot_id: h.boot_id,
            instance: h.instance,
            kernel: h.kernel,
            cpus: h.cpus,
            memory_bytes: h.memory_bytes,
            pods_max: h.pods_max,
        }
    }
}

impl TryFrom<wire::Host> for Host {
    type Error = Refusal;

    fn try_from(h: wire::Host) -> Result<Self, Refusal> {
        let read = |text: &String| {
            text.parse()
                .map_err(|_| Refusal::Invalid(format!("host.addresses: {text:?} is no address")))
        };
        Ok(Self {
            addresses: h.addresses.iter().map(read).collect::<Result<_, _>>()?,
            name: h.name,
            labels: h.labels.into_iter().collect(),
            version: h.version,
            boot_id: h.boot_id,
            instance: h.instance,
            kernel: h.kernel,
            cpus: h.cpus,
            memory_bytes: h.memory_bytes,
            pods_max: h.pods_max,
        })
    }
}

impl From<PodRef> for wire::ObjectKey {
    fn from(p: PodRef) -> Self {
        Self { namespace: p.namespace, name: p.name, uid: p.uid }
    }
}

impl From<wire::ObjectKey> for PodRef {
    fn from(k: wire::ObjectKey) -> Self {
        Self { namespace: k.namespace, name: k.name, uid: k.uid }
    }
}

impl From<Declared> for wire::DeclareRequest {
    fn from(d: Declared) -> Self {
        let port = |(port, protocol)| wire::DeclaredPort { port: u32::from(port), protocol };
        Self {
            namespace: d.namespace,
            service_account: d.service_account,
            service: d.service,
            ports: d.ports.into_iter().map(port).collect(),
            labels: d.labels.into_iter().collect(),
        }
    }
}

impl TryFrom<wire::DeclareRequest> for Declared {
    type Error = Refusal;

    fn try_from(d: wire::DeclareRequest) -> Result<Self, Refusal> {
        let port = |p: wire::DeclaredPort| match u16::try_from(p.port) {
            Ok(port) if port > 0 => Ok((port, p.protocol)),
            _ => Err(Refusal::Invalid(format!("ports: {} is no port", p.port))),
        };
        Ok(Self {
            namespace: d.namespace,
            service_account: d.service_account,
            service: d.service,
            ports: d.ports.into_iter().map(port).collect::<Result<_, _>>()?,
            labels: d.labels.into_iter().collect(),
        })
    }
}

impl From<Resolved> for wire::ResolveResponse {
    fn from(r: Resolved) -> Self {
        let (answer, outside) = match r {
            Resolved::Answer(answer) => (answer, false),
            Resolved::Silence => (Vec::new(), false),
            Resolved::Outside => (Vec::new(), true),
        };
        Self { answer: answer.into(), outside }
    }
}

impl From<wire::ResolveResponse> for Resolved {
    fn from(r: wire::ResolveResponse) -> Self {
        match (r.outside, r.answer.is_empty()) {
            (true, _) => Self::Outside,
            (false, true) => Self::Silence,
            (false, false) => Self::Answer(r.answer.into()),
        }
    }
}

impl From<Certificate> for wire::Certificate {
    fn from(c: Certificate) -> Self {
        Self {
            chain: c.chain.into_iter().map(Into::into).collect(),
            bundle: c.bundle.into_iter().map(Into::into).collect(),
            not_after_ms: c.not_after_ms,
        }
    }
}

impl From<wire::Certificate> for Certificate {
    fn from(c: wire::Certificate) -> Self {
        Self {
            chain: c.chain.into_iter().map(Into::into).collect(),
            bundle: c.bundle.into_iter().map(Into::into).collect(),
            not_after_ms: c.not_after_ms,
        }
    }
}

impl From<Joined> for wire::JoinResponse {
    fn from(j: Joined) -> Self {
        Self {
            certificate: Some(j.certificate.into()),
            trust_domain: j.trust_domain,
            cluster_domain: j.cluster_domain,
        }
    }
}

impl From<wire::JoinResponse> for Joined {
    fn from(j: wire::JoinResponse) -> Self {
        Self {
            certificate: j.certificate.unwrap_or_default().into(),
            trust_domain: j.trust_domain,
            cluster_domain: j.cluster_domain,
        }
    }
}

impl From<HostUpdate> for wire::HostUpdate {
    fn from(u: HostUpdate) -> Self {
        let pod =
            |(key, json): (PodRef, Vec<u8>)| wire::Pod { key: Some(key.into()), json: json.into() };
        let upstreams =
            |(namespace, json): (String, Vec<u8>)| wire::Upstreams { namespace, json: json.into() };
        Self {
            revision: u.revision,
            whole: u.whole,
            more: u.more,
            upserts: u.upserts.into_iter().map(pod).collect(),
            removes: u.removes.into_iter().map(Into::into).collect(),
            upstreams: u.upstreams.into_iter().map(upstreams).collect(),
            checks: u.checks.map(|json| wire::Checks { json: json.into() }),
            logs: u.logs.into_iter().map(Into::into).collect(),
            visits: u.visits.into_iter().map(Into::into).collect(),
            measure_ms: u64::try_from(u.measure.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::HostUpdate> for HostUpdate {
    type Error = Refusal;

    fn try_from(u: wire::HostUpdate) -> Result<Self, Refusal> {
        let pod = |p: wire::Pod| (p.key.unwrap_or_default().into(), p.json.into());
        let visits = u.visits.into_iter().map(VisitAsk::try_from).collect::<Result<_, _>>()?;
        Ok(Self {
            revision: u.revision,
            whole: u.whole,
            more: u.more,
            upserts: u.upserts.into_iter().map(pod).collect(),
            removes: u.removes.into_iter().map(Into::into).collect(),
            upstreams: u.upstreams.into_iter().map(|n| (n.namespace, n.json.into())).collect(),
            checks: u.checks.map(|c| c.json.into()),
            logs: u.logs.into_iter().map(Into::into).collect(),
            visits,
            measure: Duration::from_millis(u.measure_ms),
        })
    }
}

impl From<CheckResult> for wire::CheckResult {
    fn from(c: CheckResult) -> Self {
        use wire::check_result::Status;
        let status = match c.status {
            CheckStatus::Passing => Status::Passing,
            CheckStatus::Warning => Status::Warning,
            CheckStatus::Critical => Status::Critical,
        };
        Self { namespace: c.namespace, check_id: c.id, status: status.into(), output: c.output }
    }
}

impl TryFrom<wire::CheckResult> for CheckResult {
    type Error = Refusal;

    fn try_from(c: wire::CheckResult) -> Result<Self, Refusal> {
        use wire::check_result::Status;
        let status = match c.status() {
            Status::Passing => CheckStatus::Passing,
            Status::Warning => CheckStatus::Warning,
            Status::Critical => CheckStatus::Critical,
            Status::Unspecified => {
                return Err(Refusal::Invalid(format!("check {:?} has no status", c.check_id)));
            }
        };
        Ok(Self { namespace: c.namespace, id: c.check_id, status, output: c.output })
    }
}

impl From<LogAsk> for wire::LogAsk {
    fn from(a: LogAsk) -> Self {
        Self { id: a.id, pod: Some(a.pod.into()), container: a.container, query: a.query.into() }
    }
}

impl From<wire::LogAsk> for LogAsk {
    fn from(a: wire::LogAsk) -> Self {
        let pod = a.pod.unwrap_or_default().into();
        Self { id: a.id, pod, container: a.container, query: a.query.into() }
    }
}

impl From<LogPiece> for wire::LogPiece {
    fn from(p: LogPiece) -> Self {
        use wire::log_piece::What;
        let what = match p.what {
            LogWhat::Data(data) => What::Data(data.into()),
            LogWhat::NotThere(why) => What::NotThere(why),
            LogWhat::Failed(why) => What::Failed(why),
        };
        Self { id: p.id, what: Some(what) }
    }
}

impl From<wire::LogPiece> for LogPiece {
    fn from(p: wire::LogPiece) -> Self {
        use wire::log_piece::What;
        let what = match p.what {
            Some(What::Data(data)) => LogWhat::Data(data.into()),
            Some(What::NotThere(why)) => LogWhat::NotThere(why),
            Some(What::Failed(why)) => LogWhat::Failed(why),
            None => LogWhat::Data(Vec::new()),
        };
        Self { id: p.id, what }
    }
}
