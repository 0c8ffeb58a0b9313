// SPDX-License-Identifier: Apache-2.0
//! The agent's half of `weft.agent.v1`: one call each, plain data in and out.
//!
//! Called by `weft agent`. The connection is made when it is needed and made anew when it was
//! lost; waiting and trying again is the caller's.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use weft_proto::weft::agent::v1 as wire;
use wire::agent_client::AgentClient as Grpc;

use super::visit::{UsageReport, VisitDown, VisitUp};
use super::{
    Beat, Certificate, CheckResult, ConsulAnswer, ConsulAsk, Declared, Host, HostUpdate, JoinAsk,
    Joined, LogPiece, MESSAGE_BYTES_MAX, PodNote, PodRef, PodReport, Refusal, Resolved, Wait,
};
use crate::client::{endpoint, lazy};

/// A call that should be answered at once may take this long.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of Consul's API that is taken, bytes.
const CONSUL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What waiting on the server's side may take beyond what was asked.
const WAIT_MARGIN: Duration = Duration::from_secs(5);

/// Speaks to one server. Clones share the connection.
#[derive(Clone)]
pub struct AgentClient {
    grpc: Grpc<Channel>,
    connect: Arc<dyn Fn() -> Channel + Send + Sync>,
}

/// What a host must run, as the server says it.
#[derive(Debug)]
pub struct Updates(Streaming<wire::HostUpdate>);

/// What the client of a visit says; it ends when the server ends the visit.
pub type VisitDowns = BoxStream<'static, Result<VisitDown, Refusal>>;

// === impl AgentClient ===

impl AgentClient {
    /// Dials with a function when a call needs it; `authority` is `HOST:PORT`.
    ///
    /// # Errors
    /// When the authority is no `HOST:PORT`.
    pub fn new<F, Fut, IO>(authority: &str, dial: F) -> Result<Self, String>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<IO>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (endpoint, dial) = (endpoint(authority)?, Arc::new(dial));
        let connect = Arc::new(move || {
            let dial = dial.clone();
            lazy(&endpoint, move || dial())
        });
        Ok(Self { grpc: grpc(connect()), connect })
    }

    /// The same with a connection of its own, for calls that may stand still as long as somebody
    /// does not read: they take no room from the others.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { grpc: grpc((self.connect)()), connect: self.connect.clone() }
    }

    /// # Errors
    /// What the server said, or that it cannot be reached.
    pub async fn join(&self, ask: JoinAsk) -> Result<Joined, Refusal> {
        let request = wire::JoinRequest {
            token: ask.token,
            host: Some(ask.host.into()),
            csr: ask.csr.into(),
        };
        Ok(self.grpc.clone().join(within(request)).await?.into_inner().into())
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn renew(&self, csr: Vec<u8>) -> Result<Joined, Refusal> {
        let request = wire::RenewRequest { csr: csr.into() };
        Ok(self.grpc.clone().renew(within(request)).await?.into_inner().into())
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn heartbeat(&self, host: Host) -> Result<Beat, Refusal> {
        let request = wire::HeartbeatRequest { host: Some(host.into()), leaving: false };
        let answer = self.grpc.clone().heartbeat(within(request)).await?.into_inner();
        let interval = Duration::from_millis(answer.interval_ms);
        Ok(Beat { interval, resync: answer.resync })
    }

    /// The last sign of life: nothing runs there any more.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn leave(&self) -> Result<(), Refusal> {
        let request = wire::HeartbeatRequest { host: None, leaving: true };
        self.grpc.clone().heartbeat(within(request)).await?;
        Ok(())
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn watch(&self) -> Result<Updates, Refusal> {
        let mut grpc = self.grpc.clone();
        let opened = grpc.watch_pods(wire::WatchPodsRequest {});
        let opened = tokio::time::timeout(CALL_TIMEOUT, opened).await;
        let late = || Refusal::Unavailable("the server did not open the stream in time".into());
        Ok(Updates(opened.map_err(|_| late())??.into_inner()))
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn report_pods(
        &self,
        pods: Vec<PodReport>,
        notes: Vec<PodNote>,
    ) -> Result<(), Refusal> {
        let pod = |p: PodReport| wire::PodReport {
            key: Some(p.pod.into()),
            status: p.status.into(),
            finished: p.finished,
        };
        let note = |n: PodNote| wire::PodNote {
            key: Some(n.pod.into()),
            warning: n.warning,
            reason: n.reason,
            message: n.message,
        };
        let request = wire::ReportPodsRequest {
            pods: pods.into_iter().map(pod).collect(),
            notes: notes.into_iter().map(note).collect(),
        };
        self.grpc.clone().report_pods(within(request)).await?;
        Ok(())
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn report_checks(&self, results: Vec<CheckResult>) -> Result<(), Refusal> {
        let results = results.into_iter().map(Into::into).collect();
        let request = wire::ReportChecksRequest { results };
        self.grpc.clone().report_checks(within(request)).await?;
        Ok(())
    }

    /// The certificate and its trust domain.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn sign(&self, pod: PodRef, csr: Vec<u8>) -> Result<(Certificate, String), Refusal> {
        let request = wire::SignCsrRequest { pod: Some(pod.into()), csr: csr.into() };
        let answer = self.grpc.clone().sign_csr(within(request)).await?.into_inner();
        Ok((answer.certificate.unwrap_or_default().into(), answer.trust_domain))
    }

    /// Hands over output that was asked for, until it ends or nobody reads it any more.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn send_log(&self, pieces: mpsc::Receiver<LogPiece>) -> Result<(), Refusal> {
        let pieces = ReceiverStream::new(pieces).map(wire::LogPiece::from);
        self.grpc.clone().send_log(pieces).await?;
        Ok(())
    }

    /// The pod that stands for the programs; none when nothing is declared.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn declare(&self, declared: Declared) -> Result<Option<PodRef>, Refusal> {
        let request: wire::DeclareRequest = declared.into();
        let answer = self.grpc.clone().declare(within(request)).await?.into_inner();
        Ok(answer.pod.map(Into::into))
    }

    /// What the mesh says to a DNS question of a pod's programs.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn resolve(
        &self,
        pod: PodRef,
        query: Vec<u8>,
        tcp: bool,
    ) -> Result<Resolved, Refusal> {
        let request = wire::ResolveRequest { pod: Some(pod.into()), query: query.into(), tcp };
        Ok(self.grpc.clone().resolve(within(request)).await?.into_inner().into())
    }

    /// A visit that was asked for: what is sent goes up, what comes is the client's. It ends when
    /// either side drops its end.
    ///
    /// # Errors
    /// As [`AgentClient::join`]; a visit that nobody waits for is denied.
    pub async fn visit(&self, up: mpsc::Receiver<VisitUp>) -> Result<VisitDowns, Refusal> {
        let up = ReceiverStream::new(up).map(wire::VisitUp::from);
        let down = self.grpc.clone().visit(up).await?.into_inner();
        Ok(down.map(|down| VisitDown::try_from(down?)).boxed())
    }

    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn report_usage(&self, report: UsageReport) -> Result<(), Refusal> {
        let request = wire::ReportUsageRequest::from(report);
        self.grpc.clone().report_usage(within(request)).await?;
        Ok(())
    }

    /// A request to Consul's API, which may take this long on the server's side.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn consul(&self, ask: ConsulAsk, limit: Duration) -> Result<ConsulAnswer, Refusal> {
        let mut request = Request::new(wire::ConsulRequest {
            method: ask.method,
            target: ask.target,
            token: ask.token,
            body: ask.body.into(),
        });
        request.set_timeout(limit);
        let whole = async {
            let mut pieces = self.grpc.clone().consul(request).await?.into_inner();
            let (mut head, mut body) = (None, Vec::new());
            while let Some(piece) = pieces.message().await? {
                head = head.or(piece.head);
                body.extend_from_slice(&piece.data);
                if body.len() > CONSUL_BYTES_MAX {
                    return Err(Refusal::Invalid(format!(
                        "the answer is larger than {CONSUL_BYTES_MAX} bytes; ask the server itself"
                    )));
                }
            }
            let head = head.ok_or_else(|| Refusal::Unavailable("the answer was cut off".into()))?;
            let status = u16::try_from(head.status).unwrap_or(500);
            let headers = head.headers.into_iter().map(|h| (h.name, h.value)).collect();
            Ok(ConsulAnswer { status, headers, body })
        };
        // The transport's own clock ends where the answer begins.
        let late = |_| Refusal::Unavailable("the server did not answer in time".into());
        tokio::time::timeout(limit, whole).await.map_err(late)?
    }

    /// What the holder of a token of Consul's API may do, as JSON.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn consul_token(&self, token: String) -> Result<Vec<u8>, Refusal> {
        let request = wire::ConsulTokenRequest { token };
        Ok(self.grpc.clone().consul_token(within(request)).await?.into_inner().json.into())
    }

    /// Tells what is registered with this host's own door; what came of it.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn consul_sync(&self, json: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let request = wire::ConsulSyncRequest { json: json.into() };
        Ok(self.grpc.clone().consul_sync(within(request)).await?.into_inner().json.into())
    }

    /// Whether it came about in time.
    ///
    /// # Errors
    /// As [`AgentClient::join`].
    pub async fn wait(&self, what: Wait, limit: Duration) -> Result<bool, Refusal> {
        use wire::wait_applied_request::What;
        let what = match what {
            Wait::Drained(pod) => What::Drained(pod.into()),
            Wait::Inbound(pod) => What::Inbound(pod.into()),
        };
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut request = Request::new(wire::WaitAppliedRequest { what: Some(what), timeout_ms });
        request.set_timeout(limit + WAIT_MARGIN);
        Ok(self.grpc.clone().wait_applied(request).await?.into_inner().applied)
    }
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentClient")
    }
}

fn grpc(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

// === impl Updates ===

impl Updates {
    /// The next message; `None` when the server ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the connection or the stream broke.
    pub async fn next(&mut self) -> Result<Option<HostUpdate>, Refusal> {
        self.0.message().await?.map(HostUpdate::try_from).transpose()
    }
}
