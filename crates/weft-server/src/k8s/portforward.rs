// SPDX-License-Identifier: Apache-2.0
//! `pods/portforward`: connections to a pod's ports, any number of them over one connection of
//! the client.
//!
//! Over SPDY, plain or in a WebSocket tunnel (kubectl), each connection is a pair of streams, for
//! data and for an error. Over WebSocket channels (older client libraries) each port is one
//! connection for the whole session.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use weft_base::task::TaskGroup;

use super::path::Objects;
use super::query::Query;
use super::status::ApiError;
use super::stream::pipes::{Incoming, OUT_MAX, PIECES_MAX, Sink};
use super::stream::spdy_conn::{self, Streams};
use super::stream::websocket::{self, Dialect, Tunnel};
use super::stream::{self, Kind, Protocols, Upgrade};
use super::visit::{Opened, PodRef, PodStreams, StreamError, Visit, VisitIo, VisitWhat};
use super::{Ask, Door};

const TUNNELS: [&str; 2] = ["SPDY/3.1+portforward.k8s.io", "v2.portforward.k8s.io"];
const PROTOCOLS: Protocols = Protocols {
    spdy: &["portforward.k8s.io"],
    websocket: &[TUNNELS[0], TUNNELS[1], "v4.channel.k8s.io", "v4.base64.channel.k8s.io"],
};

/// Time for a connection to a pod.
const DIAL_MAX: Duration = Duration::from_secs(10);
/// How long half a pair of streams may wait for its other half.
const PAIR_MAX: Duration = Duration::from_secs(30);
/// Ports of one session over channels.
const PORTS_MAX: usize = 32;

struct Session {
    door: Arc<dyn PodStreams>,
    tasks: TaskGroup,
    pod: PodRef,
    /// Only over channels: named in the question.
    ports: Vec<u16>,
}

/// The two streams of one forwarded connection.
struct Pair {
    data: Incoming,
    error: Incoming,
}

// === impl Door ===

impl Door {
    pub(super) fn port_forward(
        &self,
        target: &Objects,
        mut ask: Ask,
    ) -> Result<Response, ApiError> {
        let (pod, object) = self.pod(target)?;
        let phase = object.pointer("/status/phase").and_then(|p| p.as_str()).unwrap_or("Pending");
        if phase != "Running" {
            return Err(ApiError::bad_request(format!(
                "unable to forward port because pod {} is not running; its phase is {phase}",
                pod.name
            )));
        }
        let ports = ports(&ask.query)?;
        let (upgrade, response) = self.sessions.negotiate(&mut ask.parts, PROTOCOLS)?;
        let over_channels = upgrade.kind == Kind::WebSocket && !TUNNELS.contains(&upgrade.protocol);
        if over_channels && ports.is_empty() {
            return Err(ApiError::bad_request("query parameter \"ports\" is required"));
        }
        let tasks = self.registry.tasks().clone();
        let session = Session { door: self.streams.clone(), tasks, pod, ports };
        self.registry.tasks().spawn("port-forward session", session.serve(upgrade));
        Ok(response)
    }
}

/// `ports=80,443` and `ports=80&ports=443`.
fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let all = query.all("ports").iter().flat_map(|v| v.split(',')).filter(|v| !v.is_empty());
    let wrong = |text: &str| ApiError::bad_request(format!("ports: {text:?} is not a port"));
    let read = |text: &str| text.parse().ok().filter(|p| *p != 0).ok_or_else(|| wrong(text));
    let ports: Vec<u16> = all.map(read).collect::<Result<_, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(ApiError::bad_request(format!("at most {PORTS_MAX} ports at a time")));
    }
    Ok(ports)
}

// === impl Session ===

impl Session {
    async fn serve(self, upgrade: Upgrade) {
        let (kind, protocol) = (upgrade.kind, upgrade.protocol);
        let tasks = self.tasks.clone();
        let session = upgrade.run(async |io| match kind {
            Kind::Spdy => {
                let (driver, streams) = spdy_conn::open(io);
                stream::together(driver.run(), self.over_spdy(streams)).await;
            }
            Kind::WebSocket if TUNNELS.contains(&protocol) => {
                let (driver, streams) = spdy_conn::open(Tunnel::new(stream::websocket(io).await));
                stream::together(driver.run(), self.over_spdy(streams)).await;
            }
            Kind::WebSocket => self.over_channels(io, protocol.contains("base64")).await,
        });
        tokio::select! {
            () = session => {}
            // Forwarded connections have no end of their own to wait for.
            () = tasks.draining() => {}
        }
    }

    async fn over_spdy(self, mut streams: Streams) {
        let mut halves: HashMap<String, Incoming> = HashMap::new();
        let mut connections = FuturesUnordered::new();
        let mut opens = true;
        while opens || !connections.is_empty() {
            let waiting = !halves.is_empty();
            tokio::select! {
                stream = streams.next(), if opens => match stream {
                    Some(stream) => {
                        if let Some(pair) = pair(&mut halves, stream).await {
                            connections.push(self.forward(pair));
                        }
                    }
                    None => opens = false,
                },
                Some(()) = connections.next() => {}
                () = tokio::time::sleep(PAIR_MAX), if waiting => {
                    for (_, half) in halves.drain() {
                        half.sink.reset().await;
                    }
                }
            }
        }
    }

    /// One connection from its first byte to its last; the error stream ends with it.
    async fn forward(&self, pair: Pair) {
        // Nothing is said to us on the stream for an error.
        let Pair { data, error: Incoming { sink: error, .. } } = pair;
        let failed = match data.header("port").parse::<u16>() {
            Err(_) => Some(format!("{:?} is not a port", data.header("port"))),
            Ok(port) => match self.connect(port).await {
                Ok(visit) => carry(visit, data).await.err(),
                Err(why) => {
                    data.sink.reset().await;
                    Some(self.not_forwarded(port, &why))
                }
            },
        };
        if let Some(why) = failed {
            let _ = error.send(Bytes::from(why)).await;
        }
        error.finish().await;
    }

    async fn connect(&self, port: u16) -> Result<Opened, StreamError> {
        let visit = Visit { pod: self.pod.clone(), what: VisitWhat::Connect { port } };
        let opening = tokio::time::timeout(DIAL_MAX, self.door.open(visit)).await;
        opening.map_err(|_| StreamError::NotStarted("the connection timed out".into()))?
    }

    fn not_forwarded(&self, port: u16, why: &StreamError) -> String {
        format!("error forwarding port {port} to pod {}: {why}", self.pod.name)
    }

    /// Two channels per port, for data and for an error; each begins with the port's number.
    async fn over_channels(self, io: stream::Io, base64: bool) {
        let (out, orders) = mpsc::channel(OUT_MAX);
        let (mut inputs, mut parts) = (Vec::new(), Vec::new());
        for (tag, port) in (0..).step_by(2).zip(&self.ports) {
            let (to, pieces) = mpsc::channel(PIECES_MAX);
            // Nothing is said to us on the channel for errors.
            inputs.extend([Some(to), None]);
            let sink = |tag| Sink { tag, out: out.clone() };
            parts.push((*port, pieces, sink(tag), sink(tag + 1)));
        }
        drop(out);
        let dialect = Dialect { base64, closes: false };
        let channels = websocket::channels(stream::websocket(io).await, dialect, inputs, orders);
        let session = async {
            join_all(parts.into_iter().map(|part| self.channel(part))).await;
        };
        stream::together(channels, session).await;
    }

    async fn channel(&self, part: (u16, mpsc::Receiver<Bytes>, Sink, Sink)) {
        let (port, pieces, data, error) = part;
        let greeting = Bytes::copy_from_slice(&port.to_le_bytes());
        if data.send(greeting.clone()).await.is_err() || error.send(greeting).await.is_err() {
            return;
        }
        let failed = match self.connect(port).await {
            // A channel cannot say that it ends; the connection's end is all there is.
            Ok(visit) => run(visit, pieces, &data, async || false).await.err(),
            Err(why) => Some(self.not_forwarded(port, &why)),
        };
        if let Some(why) = failed {
            let _ = error.send(Bytes::from(why)).await;
        }
    }
}

/// Joins the halves of a connection by their request's id.
async fn pair(halves: &mut HashMap<String, Incoming>, stream: Incoming) -> Option<Pair> {
    let id = stream.header("requestid").to_owned();
    let kind = stream.header("streamtype").to_owned();
    if !matches!(kind.as_str(), "data" | "error") {
        stream.sink.reset().await;
        return None;
    }
    match halves.remove(&id) {
        None => {
            halves.insert(id, stream);
            None
        }
        Some(other) if other.header("streamtype") == kind => {
            // Twice the same: the older one was given up.
            other.sink.reset().await;
            halves.insert(id, stream);
            None
        }
        Some(other) if kind == "data" => Some(Pair { data: stream, error: other }),
        Some(other) => Some(Pair { data: other, error: stream }),
    }
}

/// Carries bytes both ways until both have ended, each half at its own time.
async fn carry(visit: Opened, data: Incoming) -> Result<(), String> {
    let Incoming { pieces, gone, sink, .. } = data;
    let carrying = async {
        let finish = async || {
            sink.finish().await;
            true
        };
        let result = run(visit, pieces, &sink, finish).await;
        if result.is_err() {
            // A broken connection must not look like a finished one.
            sink.reset().await;
        }
        result
    };
    tokio::select! {
        result = carrying => result,
        () = gone.cancelled() => Ok(()),
    }
}

/// Runs a connection between a client's ends. `said_all` is told once when the pod has said all,
/// and answers whether the other half still counts.
async fn run(
    visit: Opened,
    input: mpsc::Receiver<Bytes>,
    sink: &Sink,
    said_all: impl AsyncFnOnce() -> bool,
) -> Result<(), String> {
    let (to, from) = mpsc::channel(PIECES_MAX);
    let io = VisitIo { stdin: Some(input), stdout: Some(to), ..VisitIo::default() };
    let (mut running, mut output) = (visit(io), pin!(hand_on(from, sink)));
    let broke = |why: StreamError| format!("the connection to the pod broke: {why}");
    tokio::select! {
        // First, since output ends with a broken connection too.
        biased;
        outcome = &mut running => {
            outcome.map_err(broke)?;
            output.await;
            said_all().await;
            Ok(())
        }
        () = &mut output => match said_all().await {
            true => running.await.map(drop).map_err(broke),
            false => Ok(()),
        },
    }
}

/// Sends all that comes, as long as the client takes it.
async fn hand_on(mut from: mpsc::Receiver<Bytes>, to: &Sink) {
    while let Some(piece) = from.recv().await {
        if to.send(piece).await.is_err() {
            return;
        }
    }
}
