// SPDX-License-Identifier: Apache-2.0
//! The client's shell: keeps one stream to a server open, with jittered back-off, and moves what
//! the machine says between the stream and the proxy.
//!
//! Called by `weft-proxy`'s control side. It knows no table and writes no file.

mod dial;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use weft_base::limits::XDS_MESSAGE_BYTES_MAX;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_model::ResourceName;
use weft_proto::envoy::service::discovery::v3 as discovery;

pub use dial::Dial;
pub(crate) use dial::lazy;
pub use state::{Applied, Machine, Output, Transaction, Upsert};

use crate::codec::Version;
use crate::node::NodeInfo;

/// Opening a connection and a stream on it may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings: a server that vanished without a word is noticed after their sum.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Stream and connection windows: a first sync must not wait for round trips.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// How to reach a server. Called again for every new stream, so that it may rotate certificates
/// or choose another address.
pub trait Connect: Send + Sync + 'static {
    /// # Errors
    /// A sentence that says what could not be reached and why.
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>>;
}

/// Plaintext TCP, for loopback.
#[derive(Clone, Debug)]
pub struct PlainTcp {
    /// `127.0.0.1:15010`.
    pub authority: String,
}

/// What a client starts with.
#[derive(Debug)]
pub struct Options {
    pub node: NodeInfo,
    /// Names and versions of the table that the proxy started from, so that none is sent again:
    /// the first transaction is then the difference to it. Empty when the proxy takes the first
    /// transaction as the whole and drops by itself what it does not name.
    pub held: Vec<(ResourceName, Version)>,
    /// Hosts that the proxy asks for by name, beside what is in its scope anyway: always all of
    /// them. [`nothing_more`] for one that never asks.
    pub wanted: watch::Receiver<BTreeSet<Arc<str>>>,
    pub rng: Rng,
}

/// The proxy's ends.
#[derive(Debug)]
pub struct Handle {
    /// One transaction at a time; the next comes after the answer to the last.
    pub transactions: mpsc::Receiver<Transaction>,
    /// The answers.
    pub applied: mpsc::Sender<Applied>,
    /// The last answer again when what it refused was taken after all.
    pub amended: mpsc::Sender<Applied>,
    pub status: watch::Receiver<Status>,
}

/// How the client fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub connected: bool,
    /// Last generation answered.
    pub generation: Option<u64>,
    /// Why the last stream ended or could not be opened; kept until the next one is open.
    pub error: Option<Arc<str>>,
    /// Streams opened.
    pub connects: u64,
}

/// Starts a client in `tasks`. It ends when they drain or the [`Handle`] is dropped.
pub fn run(connect: Arc<dyn Connect>, options: Options, tasks: &TaskGroup) -> Handle {
    let (transactions_tx, transactions) = mpsc::channel(1);
    let (applied, applied_rx) = mpsc::channel(1);
    let (amended, amended_rx) = mpsc::channel(1);
    let (status_tx, status) = watch::channel(Status::default());
    let mut shell = Shell {
        machine: Machine::new(options.node, options.held, options.rng),
        connect,
        transactions: transactions_tx,
        applied: applied_rx,
        amended: amended_rx,
        wanted: options.wanted,
        status: status_tx,
    };
    // There is no stream yet to say it on.
    let _ = shell.on_wanted();
    let group = tasks.clone();
    tasks.spawn("xds client", async move {
        tokio::select! {
            () = group.draining() => {}
            () = shell.run() => {}
        }
    });
    Handle { transactions, applied, amended, status }
}

/// For [`Options::wanted`] of a proxy that asks for nothing by name.
pub fn nothing_more() -> watch::Receiver<BTreeSet<Arc<str>>> {
    watch::channel(BTreeSet::new()).1
}

/// An endpoint with the timeouts, pings and windows that a stream needs. Other transports (mTLS)
/// are dialled by [`Dial`].
///
/// # Errors
/// When the authority is no `HOST:PORT`.
pub fn endpoint(authority: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| format!("{authority:?} is no HOST:PORT: {e}"))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true))
}

struct Shell {
    machine: Machine,
    connect: Arc<dyn Connect>,
    transactions: mpsc::Sender<Transaction>,
    applied: mpsc::Receiver<Applied>,
    amended: mpsc::Receiver<Applied>,
    wanted: watch::Receiver<BTreeSet<Arc<str>>>,
    status: watch::Sender<Status>,
}

type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

/// Why a session is over.
enum End {
    /// Try again.
    Lost(String),
    /// The proxy is gone.
    Closed,
}

// === impl Shell ===

impl Shell {
    async fn run(mut self) {
        loop {
            let reason = match self.session().await {
                End::Lost(reason) => reason,
                End::Closed => return,
            };
            let wait = self.machine.disconnected();
            if self.status.borrow().error.as_deref() == Some(reason.as_str()) {
                tracing::debug!(reason, ?wait, "xds stream lost");
            } else {
                // Said once: it may be a refusal that only a person can end.
                tracing::warn!(reason, "no configuration from the server; trying again");
            }
            self.status.send_modify(|s| {
                s.connected = false;
                s.error = Some(reason.as_str().into());
            });
            if !self.wait(wait).await {
                return;
            }
        }
    }

    /// Sleeps; answers of the proxy still count. `false` when the proxy is gone.
    async fn wait(&mut self, wait: Duration) -> bool {
        let sleep = tokio::time::sleep(wait);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return true,
                applied = self.applied.recv() => match applied {
                    Some(applied) => drop(self.on_applied(applied)),
                    None => return false,
                },
                Ok(()) = self.wanted.changed() => drop(self.on_wanted()),
            }
        }
    }

    /// One stream, from connecting to its end.
    async fn session(&mut self) -> End {
        let opened = tokio::time::timeout(2 * CONNECT_TIMEOUT, open(self.connect.as_ref())).await;
        let (requests, mut inbound) = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(reason)) => return End::Lost(reason),
            Err(_) => return End::Lost("the server did not open the stream in time".to_owned()),
        };
        self.status.send_modify(|s| {
            s.connected = true;
            s.connects += 1;
            s.error = None;
        });
        let first = self.machine.connected();
        if let Err(end) = self.put(&requests, first).await {
            return end;
        }
        loop {
            // In this order: an answer is told before what amends it, however long both waited.
            let output = tokio::select! {
                biased;
                applied = self.applied.recv() => match applied {
                    Some(applied) => self.on_applied(applied),
                    None => return End::Closed,
                },
                Some(applied) = self.amended.recv() => self.machine.amended(applied),
                message = inbound.message() => match message {
                    Ok(Some(response)) => self.machine.received(response),
                    Ok(None) => return End::Lost("the server ended the stream".to_owned()),
                    Err(status) => return End::Lost(describe(&status)),
                },
                Ok(()) = self.wanted.changed() => self.on_wanted(),
            };
            if let Err(end) = self.put(&requests, output).await {
                return end;
            }
        }
    }

    fn on_wanted(&mut self) -> Option<Output> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.machine.want(wanted)
    }

    fn on_applied(&mut self, applied: Applied) -> Option<Output> {
        let generation = applied.generation;
        let output = self.machine.applied(applied);
        self.status.send_modify(|s| s.generation = Some(generation));
        output
    }

    async fn put(&mut self, requests: &Requests, output: Option<Output>) -> Result<(), End> {
        match output {
            None => Ok(()),
            Some(Output::Send(request)) => requests
                .send(*request)
                .await
                .map_err(|_| End::Lost("the stream was closed".to_owned())),
            Some(Output::Deliver(transaction)) => {
                self.transactions.send(transaction).await.map_err(|_| End::Closed)
            }
            Some(Output::Reset(reason)) => Err(End::Lost(reason)),
        }
    }
}

/// Connects and opens the stream; the machine speaks first on it.
async fn open(
    connect: &dyn Connect,
) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>), String> {
    let channel = connect.connect().await?;
    let (requests, rx) = mpsc::channel(4);
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(XDS_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(XDS_MESSAGE_BYTES_MAX);
    let response = client
        .delta_aggregated_resources(ReceiverStream::new(rx))
        .await
        .map_err(|status| describe(&status))?;
    Ok((requests, response.into_inner()))
}

fn describe(status: &tonic::Status) -> String {
    format!("{}: {}", status.code().description(), status.message())
}

// === impl PlainTcp ===

impl Connect for PlainTcp {
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>> {
        Box::pin(async move {
            let endpoint = endpoint(&self.authority)?;
            let failed = |e| format!("cannot reach {}: {}", self.authority, chain(&e));
            endpoint.connect().await.map_err(failed)
        })
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = cause.source();
    }
    out
}
