// SPDX-License-Identifier: Apache-2.0
//! The server's door for agents of other machines: who a host is, and what it may do.
//!
//! A host is who its certificate says, as long as that joining of its name is the newest and its
//! Node is there. It may report, watch and obtain certificates for pods that the server placed on
//! it, and for no others; which identity that is the pod's object says.

mod claims;
mod consul;
mod declared;
mod logs;
mod throttle;
mod tokens;
mod visits;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_agent::checks::{CheckKey, CheckReport};
use weft_agent::link::{LinkError, PodReport as AgentPodReport, ServerLink as _, SignAsk};
use weft_agent::pod::PodKey;
use weft_base::limits::CHECK_OUTPUT_BYTES_MAX;
use weft_base::name::Label;
use weft_identity::token::Allowed;
use weft_identity::{Bundle, SpiffeId, ca::Issued};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::views::catalog::Status;
use weft_kinds::world::Object;
use weft_registry::hosts::{ALLOWED_ANNOTATION, HostError, Hosts, JOIN_ANNOTATION};
use weft_registry::{EventNote, Registry};
use weft_xds::agent::server::{Hosts as AgentDoor, LogPieces, VisitUps};
use weft_xds::agent::visit::{UsageReport, VisitDown};
use weft_xds::agent::{
    Beat, Certificate, CheckResult, CheckStatus, ConsulAnswer, ConsulAsk, Declared, Host,
    HostUpdate, JoinAsk, Joined, PodNote, PodRef, PodReport, Refusal, Resolved, Wait,
};
use weft_xds::server::Peer;

use super::link::LocalLink;
use super::resolver;
use super::usage::Usages;
use claims::described;
pub use logs::AllLogs;
use throttle::Throttle;
pub use tokens::HostTokens;
pub use visits::AllStreams;

/// Life of a host's certificate: a machine that was off for a long weekend comes back.
const HOST_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const TEXT_BYTES_MAX: usize = 256;
/// Containers in one report of what they use.
const CONTAINERS_MAX: usize = 10_000;
/// Check results in one message.
const CHECKS_MAX: usize = 10_000;

type Answer<T> = BoxFuture<'static, Result<T, Refusal>>;

/// The door. Cloning shares it.
#[derive(Clone, Debug)]
pub struct HostDoor {
    registry: Registry,
    hosts: Hosts,
    link: Arc<LocalLink>,
    cluster_domain: &'static str,
    /// What the mesh says to questions of captured programs.
    names: weft_server::dns::Server,
    joins: Arc<Mutex<Throttle>>,
    /// The one stream that each host has; a newer one ends it.
    streams: Arc<Mutex<HashMap<String, Stream>>>,
    /// Who waits for a host's output.
    readers: Arc<Mutex<logs::Readers>>,
    /// Who waits for a visit to one of its pods.
    visits: Arc<Mutex<visits::Visits>>,
    usages: Usages,
    /// Answers requests to Consul's API.
    consul: Option<weft_server::consul::Door>,
}

/// The stream that goes to a host.
#[derive(Clone, Debug)]
struct Stream {
    /// Cancelled when a newer one takes its place, and when it ends.
    over: CancellationToken,
    /// Questions that travel on it.
    asks: mpsc::Sender<HostUpdate>,
}

/// A host that its certificate proved.
#[derive(Clone, Debug)]
struct Caller {
    name: String,
    allowed: Allowed,
}

// === impl HostDoor ===

impl HostDoor {
    pub fn new(hosts: Hosts, link: Arc<LocalLink>, cluster_domain: &'static str) -> Self {
        Self {
            registry: link.registry.clone(),
            hosts,
            cluster_domain,
            names: resolver::names(&link.registry, "server", None),
            joins: Arc::default(),
            streams: Arc::default(),
            readers: Arc::default(),
            visits: Arc::default(),
            usages: Usages::new(link.registry.clone()),
            consul: None,
            link,
        }
    }

    pub fn usages(&self) -> &Usages {
        &self.usages
    }

    /// The hosts that can be asked something now.
    pub fn hosts_here(&self) -> Vec<Arc<str>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let here = streams.iter().filter(|(_, s)| !s.over.is_cancelled());
        here.map(|(host, _)| host.as_str().into()).collect()
    }

    /// Asks every host to report what its pods use for that long from now on.
    pub fn measure(&self, measure: Duration) {
        for host in self.hosts_here() {
            if let Some(asks) = self.stream_of(&host) {
                // It is asked again soon.
                let _ = asks.try_send(HostUpdate { measure, ..HostUpdate::default() });
            }
        }
    }

    /// A host speaks for the pods that the server placed on it, and for itself.
    fn note_usage(&self, caller: &Caller, mut report: UsageReport) -> Result<(), Refusal> {
        if report.containers.len() > CONTAINERS_MAX {
            return Err(Refusal::Invalid(format!("more than {CONTAINERS_MAX} containers")));
        }
        let world = self.registry.now();
        report.containers.retain(|one| {
            let pod = world.get(KindId::Pod, &one.namespace, &one.pod).map(|o| &o.view);
            let View::Pod(pod) = pod.unwrap_or(&View::Other) else { return false };
            *pod.spec.node_name == *caller.name && one.container.len() <= TEXT_BYTES_MAX
        });
        self.usages.note(&caller.name, report);
        Ok(())
    }

    /// Questions to a host, while it has a stream.
    fn stream_of(&self, host: &str) -> Option<mpsc::Sender<HostUpdate>> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.get(host).filter(|s| !s.over.is_cancelled()).map(|s| s.asks.clone())
    }

    /// The host that a pod is on, unless it is this machine.
    fn host_of(&self, namespace: &str, pod: &str) -> Option<String> {
        let world = self.registry.now();
        let View::Pod(pod) = &world.get(KindId::Pod, namespace, pod)?.view else { return None };
        let node = world.get(KindId::Node, "", &pod.spec.node_name)?;
        node.meta.annotation(JOIN_ANNOTATION).map(|_| pod.spec.node_name.to_string())
    }

    /// Who is calling.
    fn caller(&self, peer: &Peer) -> Result<Caller, Refusal> {
        let shown = peer.spiffe_id.as_deref().unwrap_or_default();
        let denied = |why: String| Refusal::Denied(why);
        let id = SpiffeId::new(shown)
            .ok()
            .filter(|id| id.is_member_of(self.link.authority.trust_domain()));
        let host = id.as_ref().and_then(SpiffeId::host);
        let Some((name, join)) = host else {
            return Err(denied(format!("{shown} is no host; only agents make this call")));
        };
        let world = self.registry.now();
        let node = world.get(KindId::Node, "", name);
        let node = node.filter(|n| n.meta.annotation(JOIN_ANNOTATION) == Some(join));
        let Some(node) = node else {
            return Err(denied(format!(
                "host {name} was removed from the mesh, or joined again elsewhere; join it with \
                 a new token"
            )));
        };
        let allowed = node.meta.annotation(ALLOWED_ANNOTATION).unwrap_or_default();
        let allowed = serde_json::from_str(allowed)
            .map_err(|_| denied(format!("nobody knows what host {name} is allowed")))?;
        Ok(Caller { name: name.to_owned(), allowed })
    }

    /// A pod that the server placed on the caller. Whether others exist is not told.
    fn pod(&self, caller: &Caller, pod: &PodRef) -> Result<Arc<Object>, Refusal> {
        let world = self.registry.now();
        let found = world.get(KindId::Pod, &pod.namespace, &pod.name).filter(|object| {
            let View::Pod(view) = &object.view else { return false };
            *object.meta.uid == *pod.uid && *view.spec.node_name == *caller.name
        });
        found.cloned().ok_or_else(|| {
            let PodRef { namespace, name, .. } = pod;
            Refusal::Denied(format!(
                "{namespace}/{name} is no pod that the server placed on host {}",
                caller.name
            ))
        })
    }

    async fn join_now(self, peer: Peer, ask: JoinAsk) -> Result<Joined, Refusal> {
        let now = self.registry.clock().now();
        let from = peer.address.map(|a| a.ip());
        if !self.joins.lock().unwrap_or_else(PoisonError::into_inner).admit(from, now) {
            return Err(Refusal::Busy("too many tries from this address; wait a minute".into()));
        }
        let name = Label::new(&ask.host.name).map_err(|e| {
            Refusal::Invalid(format!("the name of the host: {e}; choose another --name"))
        })?;
        let join = join_id().map_err(|e| Refusal::Unavailable(e.to_string()))?;
        // Made before the token is used up, since a bad request must not cost it; given out only
        // when the token holds.
        let joined = self.certify(&name, &join, &ask.csr)?;
        let named = tokens::redeem(&self.hosts, self.registry.clock(), &ask.token, &name);
        let token = named.await?;
        let allowed = serde_json::to_value(&token.allowed).unwrap_or_default();
        let named = token.host.is_some();
        self.hosts.join(name.as_str(), named, join.as_str(), &allowed).await.map_err(refusal)?;
        tracing::info!(host = %name, from = ?from, "a host joined");
        Ok(joined)
    }

    fn certify(&self, name: &Label, join: &Label, csr: &[u8]) -> Result<Joined, Refusal> {
        let authority = &self.link.authority;
        let id = authority.trust_domain().host(name, join);
        let issued = authority.sign(csr, &id, HOST_TTL);
        let issued = issued.map_err(|e| Refusal::Invalid(e.to_string()))?;
        Ok(Joined {
            certificate: certificate(&issued, authority.bundle()),
            trust_domain: authority.trust_domain().to_string(),
            cluster_domain: self.cluster_domain.to_owned(),
        })
    }

    async fn beat(self, peer: Peer, host: Host) -> Result<Beat, Refusal> {
        let caller = self.caller(&peer)?;
        let info = described(&caller.name, host)?;
        self.may_claim(&caller, &peer, &info.addresses)?;
        let resync = self.hosts.heartbeat(&info).await.map_err(refusal)?;
        Ok(Beat { interval: weft_registry::hosts::HEARTBEAT_EVERY, resync })
    }

    async fn report(
        self,
        peer: Peer,
        pods: Vec<PodReport>,
        notes: Vec<PodNote>,
    ) -> Result<(), Refusal> {
        let caller = self.caller(&peer)?;
        // What is right counts even when something else in the message is not.
        let mut outcome = Ok(());
        for note in notes {
            match self.pod(&caller, &note.pod) {
                Ok(pod) => self.note(&pod, note),
                Err(refusal) => outcome = Err(refusal),
            }
        }
        for report in pods {
            if let Err(refusal) = self.report_one(&caller, report).await {
                outcome = Err(refusal);
            }
        }
        outcome
    }

    async fn report_one(&self, caller: &Caller, report: PodReport) -> Result<(), Refusal> {
        let pod = self.pod(caller, &report.pod)?;
        let status: Value = serde_json::from_slice(&report.status)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Refusal::Invalid("a pod's status is no JSON object".into()))?;
        let status = self.believed(status, &pod, caller);
        let report = AgentPodReport {
            pod: PodKey::new(&report.pod.namespace, &report.pod.name),
            uid: report.pod.uid,
            status,
            finished: report.finished,
        };
        self.link.report_pod(report).await.map_err(|e| match e {
            LinkError::Unavailable(why) => Refusal::Unavailable(why),
            LinkError::Refused(why) => Refusal::Denied(why),
        })
    }

    /// A status with the addresses that the server itself gave: others would draw traffic.
    fn believed(&self, mut status: Value, pod: &Object, caller: &Caller) -> Value {
        let known = &pod.raw["status"];
        for field in ["podIP", "podIPs"] {
            status[field] = known[field].clone();
        }
        let world = self.registry.now();
        let node = world.get(KindId::Node, "", &caller.name);
        let addresses = node.map(|n| n.raw["status"]["addresses"].clone()).unwrap_or_default();
        let internal = addresses.as_array().into_iter().flatten();
        let mut internal = internal.filter(|a| a["type"] == "InternalIP");
        let ip = internal.next().map(|a| a["address"].clone()).unwrap_or_default();
        status["hostIPs"] = json!([{ "ip": ip }]);
        status["hostIP"] = ip;
        status
    }

    fn note(&self, pod: &Object, note: PodNote) {
        let word = |c: char| c.is_ascii_alphanumeric();
        let reason = note.reason.chars().filter(|c| word(*c)).take(64).collect::<String>();
        self.registry.note(EventNote {
            about: pod.key.clone(),
            uid: note.pod.uid,
            warning: note.warning,
            reason: reason.into(),
            message: note.message,
            component: "weft-agent",
        });
    }

    async fn check(self, peer: Peer, results: Vec<CheckResult>) -> Result<(), Refusal> {
        let caller = self.caller(&peer)?;
        let node: Arc<str> = caller.name.into();
        let report = |r: CheckResult| CheckReport {
            // A host speaks for its own checks only, whatever it says.
            key: CheckKey { namespace: r.namespace.into(), node: node.clone(), id: r.id.into() },
            status: match r.status {
                CheckStatus::Passing => Status::Passing,
                CheckStatus::Warning => Status::Warning,
                CheckStatus::Critical => Status::Critical,
            },
            output: cut(r.output),
        };
        if results.len() > CHECKS_MAX {
            return Err(Refusal::Invalid(format!("more than {CHECKS_MAX} results at once")));
        }
        let reports = results.into_iter().map(report).collect();
        let told = self.link.report_checks(reports).await;
        told.map_err(|e| Refusal::Unavailable(e.to_string()))
    }

    async fn sign_now(
        self,
        peer: Peer,
        pod: PodRef,
        csr: Vec<u8>,
    ) -> Result<(Certificate, String), Refusal> {
        let caller = self.caller(&peer)?;
        let object = self.pod(&caller, &pod)?;
        let View::Pod(view) = &object.view else {
            return Err(Refusal::Denied("the pod cannot be read".into()));
        };
        let account = view.service_account();
        if !caller.allowed.admits(&pod.namespace, account) {
            return Err(Refusal::Denied(format!(
                "the token of host {} does not allow the service account {}/{account}",
                caller.name, pod.namespace
            )));
        }
        if view.is_finished() {
            return Err(Refusal::Denied(format!("pod {} has ended", pod.name)));
        }
        let ask = SignAsk {
            pod: PodKey::new(&pod.namespace, &pod.name),
            service_account: account.to_owned(),
            csr,
        };
        match self.link.sign(ask).await {
            Ok((issued, bundle)) => {
                let domain = bundle.trust_domain().to_string();
                Ok((certificate(&issued, &bundle), domain))
            }
            Err(LinkError::Refused(why)) => Err(Refusal::Invalid(why)),
            Err(LinkError::Unavailable(why)) => Err(Refusal::Unavailable(why)),
        }
    }

    async fn wait_now(self, peer: Peer, what: Wait, limit: Duration) -> Result<bool, Refusal> {
        let caller = self.caller(&peer)?;
        let (Wait::Drained(pod) | Wait::Inbound(pod)) = &what;
        self.pod(&caller, pod)?;
        let key = PodKey::new(&pod.namespace, &pod.name);
        let waiting = match what {
            Wait::Drained(_) => self.link.drained(key),
            Wait::Inbound(_) => self.link.inbound_acked(key),
        };
        Ok(tokio::time::timeout(limit, waiting).await.is_ok())
    }
}

impl AgentDoor for HostDoor {
    fn join(&self, peer: Peer, ask: JoinAsk) -> Answer<Joined> {
        self.clone().join_now(peer, ask).boxed()
    }

    fn renew(&self, peer: Peer, csr: Vec<u8>) -> Answer<Joined> {
        let door = self.clone();
        async move {
            let caller = door.caller(&peer)?;
            let id = peer.spiffe_id.as_deref().unwrap_or_default();
            let id = SpiffeId::new(id).map_err(|e| Refusal::Denied(e.to_string()))?;
            let join = id.host().map(|(_, join)| join).unwrap_or_default();
            let label = |text| Label::new(text).map_err(|e| Refusal::Denied(e.to_string()));
            door.certify(&label(&caller.name)?, &label(join)?, &csr)
        }
        .boxed()
    }

    fn heartbeat(&self, peer: Peer, host: Host) -> Answer<Beat> {
        self.clone().beat(peer, host).boxed()
    }

    fn leave(&self, peer: Peer) -> Answer<()> {
        let door = self.clone();
        async move {
            let caller = door.caller(&peer)?;
            door.hosts.leave(&caller.name).await.map_err(refusal)
        }
        .boxed()
    }

    fn watch(&self, peer: Peer) -> Answer<mpsc::Receiver<Result<HostUpdate, Refusal>>> {
        let door = self.clone();
        async move {
            let caller = door.caller(&peer)?;
            Ok(watch::start(&door, caller.name, peer))
        }
        .boxed()
    }

    fn report_pods(&self, peer: Peer, pods: Vec<PodReport>, notes: Vec<PodNote>) -> Answer<()> {
        self.clone().report(peer, pods, notes).boxed()
    }

    fn report_checks(&self, peer: Peer, results: Vec<CheckResult>) -> Answer<()> {
        self.clone().check(peer, results).boxed()
    }

    fn sign(&self, peer: Peer, pod: PodRef, csr: Vec<u8>) -> Answer<(Certificate, String)> {
        self.clone().sign_now(peer, pod, csr).boxed()
    }

    fn send_log(&self, peer: Peer, pieces: LogPieces) -> Answer<()> {
        let door = self.clone();
        async move {
            let caller = door.caller(&peer)?;
            door.hand_on(&caller.name, pieces).await
        }
        .boxed()
    }

    fn visit(&self, peer: Peer, up: VisitUps) -> Answer<mpsc::Receiver<VisitDown>> {
        self.clone().begin_visit(peer, up).boxed()
    }

    fn report_usage(&self, peer: Peer, report: UsageReport) -> Answer<()> {
        let door = self.clone();
        async move {
            let caller = door.caller(&peer)?;
            door.note_usage(&caller, report)
        }
        .boxed()
    }

    fn wait(&self, peer: Peer, what: Wait, limit: Duration) -> Answer<bool> {
        self.clone().wait_now(peer, what, limit).boxed()
    }

    fn declare(&self, peer: Peer, declared: Declared) -> Answer<Option<PodRef>> {
        self.clone().declare_now(peer, declared).boxed()
    }

    fn resolve(&self, peer: Peer, pod: PodRef, query: Vec<u8>, tcp: bool) -> Answer<Resolved> {
        self.clone().resolve_now(peer, pod, query, tcp).boxed()
    }

    fn consul(&self, peer: Peer, ask: ConsulAsk) -> Answer<ConsulAnswer> {
        self.clone().consul_now(peer, ask).boxed()
    }

    fn consul_token(&self, peer: Peer, token: String) -> Answer<Vec<u8>> {
        self.clone().consul_token_now(peer, token).boxed()
    }

    fn consul_sync(&self, peer: Peer, json: Vec<u8>) -> Answer<Vec<u8>> {
        self.clone().consul_sync_now(peer, json).boxed()
    }
}

fn certificate(issued: &Issued, bundle: &Bundle) -> Certificate {
    Certificate {
        chain: issued.chain.iter().map(|c| c.to_vec()).collect(),
        bundle: bundle.roots().iter().map(|c| c.to_vec()).collect(),
        not_after_ms: issued.not_after_ms,
    }
}

/// An output of no more than what is kept.
fn cut(mut text: String) -> String {
    let fits = (0..=CHECK_OUTPUT_BYTES_MAX.min(text.len())).rev();
    let end = fits.into_iter().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.truncate(end);
    text
}

/// A name for one joining.
fn join_id() -> anyhow::Result<Label> {
    let bytes = weft_identity::provider::random::<8>()?;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(Label::new(&format!("j{hex}"))?)
}

fn refusal(error: HostError) -> Refusal {
    let text = error.to_string();
    match error {
        HostError::Taken(_)
        | HostError::Own(_)
        | HostError::Registered(_)
        | HostError::Removed(_) => Refusal::Denied(text),
        HostError::TooMany | HostError::TooManyTokens => Refusal::Busy(text),
        HostError::Declared(_) => Refusal::Invalid(text),
        HostError::Object(_) | HostError::Store(_) | HostError::Catalog(_) => {
            tracing::warn!(error = text, "a host could not be written");
            Refusal::Unavailable("the server cannot write now".into())
        }
    }
}

#[cfg(test)]
mod tests;
