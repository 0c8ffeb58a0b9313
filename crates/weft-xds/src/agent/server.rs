// SPDX-License-Identifier: Apache-2.0
//! The server's half of `weft.agent.v1` over a [`Hosts`], which knows and decides everything.
//!
//! Assembled by the binary on the mTLS port. Each call hands on who the transport says is
//! calling; nothing in a message names the caller.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::weft::agent::v1 as wire;
use wire::agent_server::{Agent, AgentServer};

use super::gate::Gate;
use super::visit::{UsageReport, VisitDown, VisitUp};
use super::{
    Beat, Certificate, CheckResult, ConsulAnswer, ConsulAsk, Declared, Host, HostUpdate, JoinAsk,
    Joined, LogPiece, MESSAGE_BYTES_MAX, PodNote, PodRef, PodReport, Refusal, Resolved,
    TOKEN_BYTES_MAX, Wait,
};
use crate::server::{Peer, peer_of};

/// Longest that a waiting call may last.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Largest DNS question that is looked at, bytes.
const QUERY_BYTES_MAX: usize = 4096;
/// Pieces of an answer of Consul's API, bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// The call that needs no certificate.
const JOIN: &str = "/weft.agent.v1.Agent/Join";

/// Output as it comes; it ends early when the connection breaks.
pub type LogPieces = BoxStream<'static, LogPiece>;

/// What the agent says in a visit; it ends with the connection.
pub type VisitUps = BoxStream<'static, Result<VisitUp, Refusal>>;

type Answer<T> = BoxFuture<'static, Result<T, Refusal>>;

/// Who the hosts are and what they may do. Each method judges its caller itself.
pub trait Hosts: Send + Sync + 'static {
    fn join(&self, peer: Peer, ask: JoinAsk) -> Answer<Joined>;
    fn renew(&self, peer: Peer, csr: Vec<u8>) -> Answer<Joined>;
    fn heartbeat(&self, peer: Peer, host: Host) -> Answer<Beat>;
    fn leave(&self, peer: Peer) -> Answer<()>;
    /// The stream ends when the receiver is closed by either side.
    fn watch(&self, peer: Peer) -> Answer<mpsc::Receiver<Result<HostUpdate, Refusal>>>;
    fn report_pods(&self, peer: Peer, pods: Vec<PodReport>, notes: Vec<PodNote>) -> Answer<()>;
    fn report_checks(&self, peer: Peer, results: Vec<CheckResult>) -> Answer<()>;
    /// The certificate and its trust domain.
    fn sign(&self, peer: Peer, pod: PodRef, csr: Vec<u8>) -> Answer<(Certificate, String)>;
    /// Output that this side asked for in an update; the call ends when it resolves.
    fn send_log(&self, peer: Peer, pieces: LogPieces) -> Answer<()>;
    /// A visit that this side asked for in an update; it ends when either end is dropped.
    fn visit(&self, peer: Peer, up: VisitUps) -> Answer<mpsc::Receiver<VisitDown>>;
    fn report_usage(&self, peer: Peer, report: UsageReport) -> Answer<()>;
    /// Whether it came about in time.
    fn wait(&self, peer: Peer, what: Wait, limit: Duration) -> Answer<bool>;
    /// The pod that stands for programs of the machine; none when nothing is declared.
    fn declare(&self, peer: Peer, declared: Declared) -> Answer<Option<PodRef>>;
    /// What the mesh says to a DNS question of a pod's programs; without a pod, of the machine.
    fn resolve(&self, peer: Peer, pod: PodRef, query: Vec<u8>, tcp: bool) -> Answer<Resolved>;
    /// A request to Consul's API.
    fn consul(&self, peer: Peer, ask: ConsulAsk) -> Answer<ConsulAnswer>;
    /// What the holder of a token of Consul's API may do, as JSON.
    fn consul_token(&self, peer: Peer, token: String) -> Answer<Vec<u8>>;
    /// What is registered with the host's own door, and what came of it, both as JSON.
    fn consul_sync(&self, peer: Peer, json: Vec<u8>) -> Answer<Vec<u8>>;
}

/// The service.
#[derive(Debug)]
pub struct AgentService<H> {
    hosts: Arc<H>,
}

// === impl AgentService ===

impl<H: Hosts> AgentService<H> {
    pub fn new(hosts: Arc<H>) -> Self {
        Self { hosts }
    }

    /// With the limits of this protocol, and closed to callers without a certificate except for
    /// joining.
    pub fn into_server(self) -> Gate<AgentServer<Self>> {
        let server = AgentServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Gate::new(server, &[JOIN])
    }
}

#[tonic::async_trait]
impl<H: Hosts> Agent for AgentService<H> {
    type WatchPodsStream = BoxStream<'static, Result<wire::HostUpdate, Status>>;
    type VisitStream = BoxStream<'static, Result<wire::VisitDown, Status>>;
    type ConsulStream = BoxStream<'static, Result<wire::ConsulPiece, Status>>;

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let (peer, message) = taken(request);
        if message.token.len() > TOKEN_BYTES_MAX {
            return Err(Status::invalid_argument("the token is longer than any that is given out"));
        }
        let host = message.host.unwrap_or_default().try_into()?;
        let ask = JoinAsk { token: message.token, host, csr: message.csr.into() };
        Ok(Response::new(self.hosts.join(peer, ask).await?.into()))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let (peer, message) = taken(request);
        Ok(Response::new(self.hosts.renew(peer, message.csr.into()).await?.into()))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let (peer, message) = taken(request);
        if message.leaving {
            self.hosts.leave(peer).await?;
            return Ok(Response::new(wire::HeartbeatResponse::default()));
        }
        let host = message.host.unwrap_or_default().try_into()?;
        let beat = self.hosts.heartbeat(peer, host).await?;
        let interval_ms = u64::try_from(beat.interval.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::HeartbeatResponse { interval_ms, resync: beat.resync }))
    }

    async fn watch_pods(
        &self,
        request: Request<wire::WatchPodsRequest>,
    ) -> Result<Response<Self::WatchPodsStream>, Status> {
        let (peer, _) = taken(request);
        let updates = ReceiverStream::new(self.hosts.watch(peer).await?);
        let updates = updates.map(|u| u.map(Into::into).map_err(Status::from));
        Ok(Response::new(updates.boxed()))
    }

    async fn report_checks(
        &self,
        request: Request<wire::ReportChecksRequest>,
    ) -> Result<Response<wire::ReportChecksResponse>, Status> {
        let (peer, message) = taken(request);
        let results = message.results.into_iter().map(CheckResult::try_from);
        let results = results.collect::<Result<_, _>>()?;
        self.hosts.report_checks(peer, results).await?;
        Ok(Response::new(wire::ReportChecksResponse {}))
    }

    async fn report_pods(
        &self,
        request: Request<wire::ReportPodsRequest>,
    ) -> Result<Response<wire::ReportPodsResponse>, Status> {
        let (peer, message) = taken(request);
        let pod = |p: wire::PodReport| PodReport {
            pod: p.key.unwrap_or_default().into(),
            status: p.status.into(),
            finished: p.finished,
        };
        let note = |n: wire::PodNote| PodNote {
            pod: n.key.unwrap_or_default().into(),
            warning: n.warning,
            reason: n.reason,
            message: n.message,
        };
        let pods = message.pods.into_iter().map(pod).collect();
        let notes = message.notes.into_iter().map(note).collect();
        self.hosts.report_pods(peer, pods, notes).await?;
        Ok(Response::new(wire::ReportPodsResponse {}))
    }

    async fn sign_csr(
        &self,
        request: Request<wire::SignCsrRequest>,
    ) -> Result<Response<wire::SignCsrResponse>, Status> {
        let (peer, message) = taken(request);
        let pod = message.pod.unwrap_or_default().into();
        let (certificate, trust_domain) = self.hosts.sign(peer, pod, message.csr.into()).await?;
        let certificate = Some(certificate.into());
        Ok(Response::new(wire::SignCsrResponse { certificate, trust_domain }))
    }

    async fn send_log(
        &self,
        request: Request<Streaming<wire::LogPiece>>,
    ) -> Result<Response<wire::SendLogResponse>, Status> {
        let (peer, pieces) = taken(request);
        let pieces = pieces.take_while(|p| std::future::ready(p.is_ok()));
        let pieces = pieces.filter_map(|p| std::future::ready(p.ok().map(LogPiece::from)));
        self.hosts.send_log(peer, pieces.boxed()).await?;
        Ok(Response::new(wire::SendLogResponse {}))
    }

    async fn visit(
        &self,
        request: Request<Streaming<wire::VisitUp>>,
    ) -> Result<Response<Self::VisitStream>, Status> {
        let (peer, up) = taken(request);
        let up = up.map(|up| VisitUp::try_from(up?));
        let down = ReceiverStream::new(self.hosts.visit(peer, up.boxed()).await?);
        Ok(Response::new(down.map(|d| Ok(d.into())).boxed()))
    }

    async fn report_usage(
        &self,
        request: Request<wire::ReportUsageRequest>,
    ) -> Result<Response<wire::ReportUsageResponse>, Status> {
        let (peer, message) = taken(request);
        self.hosts.report_usage(peer, message.into()).await?;
        Ok(Response::new(wire::ReportUsageResponse {}))
    }

    async fn wait_applied(
        &self,
        request: Request<wire::WaitAppliedRequest>,
    ) -> Result<Response<wire::WaitAppliedResponse>, Status> {
        use wire::wait_applied_request::What;
        let (peer, message) = taken(request);
        let what = match message.what {
            Some(What::Drained(pod)) => Wait::Drained(pod.into()),
            Some(What::Inbound(pod)) => Wait::Inbound(pod.into()),
            None => return Err(Status::invalid_argument("it does not say what to wait for")),
        };
        let limit = Duration::from_millis(message.timeout_ms).min(WAIT_MAX);
        let applied = self.hosts.wait(peer, what, limit).await?;
        Ok(Response::new(wire::WaitAppliedResponse { applied }))
    }

    async fn declare(
        &self,
        request: Request<wire::DeclareRequest>,
    ) -> Result<Response<wire::DeclareResponse>, Status> {
        let (peer, message) = taken(request);
        let pod = self.hosts.declare(peer, message.try_into()?).await?.map(Into::into);
        Ok(Response::new(wire::DeclareResponse { pod }))
    }

    async fn resolve(
        &self,
        request: Request<wire::ResolveRequest>,
    ) -> Result<Response<wire::ResolveResponse>, Status> {
        let (peer, message) = taken(request);
        if message.query.len() > QUERY_BYTES_MAX {
            return Err(Status::invalid_argument("the question is longer than any"));
        }
        let pod = message.pod.unwrap_or_default().into();
        let resolved = self.hosts.resolve(peer, pod, message.query.into(), message.tcp).await?;
        Ok(Response::new(resolved.into()))
    }

    async fn consul(
        &self,
        request: Request<wire::ConsulRequest>,
    ) -> Result<Response<Self::ConsulStream>, Status> {
        let (peer, message) = taken(request);
        if message.token.len() > TOKEN_BYTES_MAX {
            return Err(Status::invalid_argument("the token is longer than any that is given out"));
        }
        let ask = ConsulAsk {
            method: message.method,
            target: message.target,
            token: message.token,
            body: message.body.into(),
        };
        let answer = self.hosts.consul(peer, ask).await?;
        Ok(Response::new(futures_util::stream::iter(pieces(answer).map(Ok)).boxed()))
    }

    async fn consul_token(
        &self,
        request: Request<wire::ConsulTokenRequest>,
    ) -> Result<Response<wire::ConsulTokenResponse>, Status> {
        let (peer, message) = taken(request);
        if message.token.len() > TOKEN_BYTES_MAX {
            return Err(Status::invalid_argument("the token is longer than any that is given out"));
        }
        let json = self.hosts.consul_token(peer, message.token).await?.into();
        Ok(Response::new(wire::ConsulTokenResponse { json }))
    }

    async fn consul_sync(
        &self,
        request: Request<wire::ConsulSyncRequest>,
    ) -> Result<Response<wire::ConsulSyncResponse>, Status> {
        let (peer, message) = taken(request);
        let json = self.hosts.consul_sync(peer, message.json.into()).await?.into();
        Ok(Response::new(wire::ConsulSyncResponse { json }))
    }
}

/// The head goes with the first piece.
fn pieces(answer: ConsulAnswer) -> impl Iterator<Item = wire::ConsulPiece> {
    let header = |(name, value)| wire::ConsulHeader { name, value };
    let headers = answer.headers.into_iter().map(header).collect();
    let mut head = Some(wire::ConsulHead { status: u32::from(answer.status), headers });
    let mut left = bytes::Bytes::from(answer.body);
    std::iter::from_fn(move || {
        let head = head.take();
        if head.is_none() && left.is_empty() {
            return None;
        }
        let data = left.split_to(left.len().min(PIECE_BYTES));
        Some(wire::ConsulPiece { head, data })
    })
}

fn taken<T>(request: Request<T>) -> (Peer, T) {
    (peer_of(&request), request.into_inner())
}
