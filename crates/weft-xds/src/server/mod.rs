// SPDX-License-Identifier: Apache-2.0
//! The server's shell: `AggregatedDiscoveryService` over a [`Source`] of views.
//!
//! Assembled by the binary; control's pusher is the source. It decides nothing about what a node
//! may see; it asks [`Source::admit`] before anything is sent.

mod incoming;
mod state;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Response, Status, Streaming};
use weft_base::limits::XDS_MESSAGE_BYTES_MAX;
use weft_base::task::TaskGroup;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

pub use incoming::{Guests, Handshake, PeerIo, incoming, incoming_with, plaintext};
#[cfg(test)]
pub(crate) use state::Chunk;
pub use state::{Machine, Output, Refusal};

use crate::codec::Rejected;
use crate::node::{NodeId, NodeInfo};
use crate::view::View;

/// A stream must say who it is within this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW_BYTES: u32 = 1024 * 1024;
/// Streams on one connection: a proxy opens one, an agent one for each pod that waits.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// Names of hosts, each as a request may use it.
pub type Asks = BTreeSet<Arc<str>>;

/// Where views come from and where answers go.
pub trait Source: Send + Sync + 'static {
    /// Whether the authenticated peer may speak for this node.
    ///
    /// # Errors
    /// A sentence that says why not.
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String>;

    /// Begins a session of a node that asks for these hosts beside what is in its scope anyway. A
    /// session of the same node that is still open is over: its views end.
    ///
    /// # Errors
    /// When the node is unknown or there are too many.
    fn subscribe(&self, node: NodeInfo, peer: &Peer, asks: Asks) -> Result<Session, Refusal>;

    /// The node asks for these hosts by name now; a view that answers follows.
    fn wanted(&self, session: &SessionKey, asks: Asks);

    /// A transaction is on its way.
    fn sent(&self, session: &SessionKey, sent: Sent);

    /// The node holds this view, but for what it refused: all that is refused now.
    fn answered(&self, session: &SessionKey, view: Arc<View>, rejected: Vec<Rejected>);

    /// The stream is over.
    fn closed(&self, session: &SessionKey, why: &str);
}

/// One node's stream.
#[derive(Debug)]
pub struct Session {
    pub key: SessionKey,
    /// The newest desired view; closed when the session is superseded. `None` while the server
    /// itself does not know the mesh yet: an empty view would take everything from the proxy.
    pub views: watch::Receiver<Option<Arc<View>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    pub node: NodeId,
    pub number: u64,
}

/// What one push transaction weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub generation: u64,
    pub resources: usize,
    pub removed: usize,
    /// Names and values, without framing.
    pub bytes: usize,
}

/// Who is at the other end of a connection, as the transport authenticated it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// `None` on a plaintext connection.
    pub spiffe_id: Option<Arc<str>>,
    pub address: Option<SocketAddr>,
}

/// The service.
#[derive(Debug)]
pub struct AdsService<S> {
    source: Arc<S>,
    tasks: TaskGroup,
}

/// A tonic server with the pings and windows of a control door; add services with `add_service`.
pub fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .tcp_nodelay(true)
}

// === impl AdsService ===

impl<S: Source> AdsService<S> {
    pub fn new(source: Arc<S>, tasks: TaskGroup) -> Self {
        Self { source, tasks }
    }

    /// With the message limits of a push.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(XDS_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(XDS_MESSAGE_BYTES_MAX)
    }
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for AdsService<S> {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "state-of-the-world streams are not served; weft's own proxies use \
             DeltaAggregatedResources",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = peer_of(&request);
        let mut requests = request.into_inner();
        let (responses, rx) = mpsc::channel(4);
        let (source, tasks) = (self.source.clone(), self.tasks.clone());
        self.tasks.spawn("ads stream", async move {
            let ended = serve(source.as_ref(), &tasks, &peer, &mut requests, &responses).await;
            if let Err(refusal) = ended {
                tracing::debug!(?peer, %refusal, "ads stream refused");
                // The receiver may be gone already, with the client.
                let _ = responses.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// Serves one stream to its end.
async fn serve<S: Source>(
    source: &S,
    tasks: &TaskGroup,
    peer: &Peer,
    requests: &mut Streaming<DeltaDiscoveryRequest>,
    responses: &Responses,
) -> Result<(), Refusal> {
    let first = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.message()).await;
    let first = match first {
        Ok(Ok(Some(request))) => request,
        Ok(_) => return Ok(()),
        Err(_) => return Err(Refusal::Invalid("no request came on the stream".to_owned())),
    };
    let (mut machine, node) = Machine::open(first)?;
    source.admit(peer, &node.id).map_err(Refusal::Denied)?;
    let mut session = source.subscribe(node, peer, machine.asks().clone())?;
    let guard = Closing { source, key: session.key.clone(), why: "the task was stopped".into() };
    let stream = Serving { source, key: &session.key, responses };
    let ended = stream.run(&mut machine, &mut session.views, requests, tasks).await;
    guard.end(ended)
}

/// Tells the source that a session is over, however its task ends.
struct Closing<'a, S: Source> {
    source: &'a S,
    key: SessionKey,
    why: String,
}

struct Serving<'a, S> {
    source: &'a S,
    key: &'a SessionKey,
    responses: &'a Responses,
}

impl<S: Source> Serving<'_, S> {
    /// Returns why the stream ended.
    async fn run(
        &self,
        machine: &mut Machine,
        views: &mut watch::Receiver<Option<Arc<View>>>,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
        tasks: &TaskGroup,
    ) -> Result<&'static str, Refusal> {
        let offer = |machine: &mut Machine, view: Option<Arc<View>>| {
            view.map(|view| machine.offer(view)).unwrap_or_default()
        };
        let first = views.borrow_and_update().clone();
        let mut outputs = offer(machine, first);
        loop {
            for output in outputs {
                if !self.put(output).await {
                    return Ok("the client went away");
                }
            }
            outputs = tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(request)) => machine.received(request)?,
                    Ok(None) => return Ok("the client closed the stream"),
                    Err(_) => return Ok("the connection was lost"),
                },
                changed = views.changed() => match changed {
                    Ok(()) => {
                        let view = views.borrow_and_update().clone();
                        offer(machine, view)
                    }
                    Err(_) => return Err(Refusal::Unavailable(
                        "the node opened another stream, or left the mesh".to_owned(),
                    )),
                },
                () = tasks.draining() => {
                    return Err(Refusal::Unavailable("the server is going away".to_owned()));
                }
            };
        }
    }

    async fn put(&self, output: Output) -> bool {
        match output {
            Output::Send(response) => return self.responses.send(Ok(*response)).await.is_ok(),
            Output::Sent { generation, resources, removed, bytes } => {
                self.source.sent(self.key, Sent { generation, resources, removed, bytes });
            }
            Output::Wanted(asks) => self.source.wanted(self.key, asks),
            Output::Answered { view, rejected } => {
                self.source.answered(self.key, view, rejected);
            }
        }
        true
    }
}

pub(crate) fn peer_of<T>(request: &Request<T>) -> Peer {
    let extensions = request.extensions();
    if let Some(peer) = extensions.get::<Peer>() {
        return peer.clone();
    }
    let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    Peer { spiffe_id: None, address }
}

// === impl Closing ===

impl<S: Source> Closing<'_, S> {
    fn end(mut self, ended: Result<&'static str, Refusal>) -> Result<(), Refusal> {
        self.why = match &ended {
            Ok(why) => (*why).to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        ended.map(|_| ())
    }
}

impl<S: Source> Drop for Closing<'_, S> {
    fn drop(&mut self) {
        self.source.closed(&self.key, &self.why);
    }
}

// === impl Refusal ===

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Invalid(_) => Self::invalid_argument(text),
            Refusal::Unimplemented(_) => Self::unimplemented(text),
            Refusal::Denied(_) => Self::permission_denied(text),
            Refusal::Unavailable(_) => Self::unavailable(text),
        }
    }
}
