// SPDX-License-Identifier: Apache-2.0
//! The DNS door (port 8600, UDP and TCP): healthy instances by name, for both naming schemes.
//!
//! The binary binds the sockets and runs [`Server::serve_udp`] and [`Server::serve_tcp`]. Each
//! query is answered from one World snapshot (`answer.rs`); nothing is cached.
//!
//! There are three such doors. The public one forwards nothing: a name outside our zones is
//! REFUSED. The one for pods ([`Server::recursive`]), on a loopback port that only their sidecars
//! know, asks the machine's resolvers what is outside (`forward.rs`). The one of an agent
//! ([`Server::distant`]) has no World: it asks the server about every name first.

mod answer;
mod find;
mod forward;
mod names;
pub mod outside;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_base::limits::DNS_FORWARDS_MAX;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::world::World;

pub use answer::Carrier;
pub use forward::{Servers, Upstream};
pub use names::Zones;

use self::answer::{How, Step};
use crate::consul::view::{Identity, View};

/// TCP connections at a time, and how long one may be idle (RFC 7766).
const CONNECTIONS_MAX: usize = 512;
const IDLE: Duration = Duration::from_secs(10);
/// A query has one question; what is longer is not read whole.
const QUERY_BYTES_MAX: usize = 4096;

/// The DNS server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    upstream: Option<Upstream>,
}

/// Where names of the mesh are known.
enum Source {
    Here { world: Snapshot<World>, own: Arc<Identity>, zones: Zones, rng: Mutex<Rng> },
    Elsewhere { mesh: Arc<dyn Mesh>, places: Semaphore },
}

/// What the mesh says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Answer(Vec<u8>),
    /// It deserves no answer.
    Silence,
    /// It is about a name that the mesh does not know.
    Outside,
}

/// Names of the mesh, known elsewhere. Answers within a time of its own.
pub trait Mesh: Send + Sync {
    fn ask(&self, query: Vec<u8>, carrier: Carrier) -> BoxFuture<'_, Told>;
}

// === impl Server ===

impl Server {
    /// `rng` shuffles answers.
    pub fn new(world: Snapshot<World>, own: Arc<Identity>, zones: Zones, rng: Rng) -> Self {
        let source = Source::Here { world, own, zones, rng: Mutex::new(rng) };
        Self(Arc::new(Inner { source, upstream: None }))
    }

    /// The door for pods: what is outside of our zones is asked of `upstream`.
    pub fn recursive(
        world: Snapshot<World>,
        own: Arc<Identity>,
        zones: Zones,
        rng: Rng,
        upstream: Upstream,
    ) -> Self {
        let source = Source::Here { world, own, zones, rng: Mutex::new(rng) };
        Self(Arc::new(Inner { source, upstream: Some(upstream) }))
    }

    /// The door of a machine whose server is elsewhere.
    pub fn distant(mesh: Arc<dyn Mesh>, upstream: Upstream) -> Self {
        let source = Source::Elsewhere { mesh, places: Semaphore::new(DNS_FORWARDS_MAX) };
        Self(Arc::new(Inner { source, upstream: Some(upstream) }))
    }

    /// What the mesh says to a machine's question, which may name a Service as a pod of that
    /// namespace would.
    pub async fn of_mesh(&self, query: &[u8], carrier: Carrier, namespace: &str) -> Told {
        let (how, step) = self.step(query, carrier, Some(namespace));
        match step {
            Step::Outside => Told::Outside,
            step => self.finish(query, how, step).await.map_or(Told::Silence, Told::Answer),
        }
    }

    /// The answer to one query's bytes; `None` when it deserves none. Cancel-safe.
    pub async fn answer(&self, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let (how, step) = self.step(query, carrier, None);
        self.finish(query, how, step).await
    }

    /// As far as our own zones go; costs no waiting.
    fn step(&self, query: &[u8], carrier: Carrier, namespace: Option<&str>) -> (How, Step) {
        let how = How { carrier, recursive: self.0.upstream.is_some() };
        let Source::Here { world, own, zones, rng } = &self.0.source else {
            return (how, Step::Outside);
        };
        // A generator of its own for each answer: the lock is not held while answering.
        let seed = rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        let view = View::new(world.load(), own.clone());
        let mut rng = Rng::seeded(seed);
        (how, answer::step(query, how, namespace, &view, zones, &mut rng))
    }

    async fn finish(&self, query: &[u8], how: How, step: Step) -> Option<Vec<u8>> {
        match (step, &self.0.upstream) {
            (Step::Answer(answer), _) => Some(answer),
            (Step::Silence, _) => None,
            (Step::Outside, None) => answer::refuse_outside(query, how),
            (Step::Outside, Some(upstream)) => match self.elsewhere(query, how).await {
                Some(Told::Answer(answer)) => Some(answer),
                Some(Told::Silence) => None,
                None | Some(Told::Outside) => match upstream.ask(query, how.carrier).await {
                    Ok(answer) => Some(answer),
                    Err(why) => answer::fail(query, how, &why.to_string()),
                },
            },
            (Step::Alias(alias), upstream) => {
                let chain = match upstream {
                    Some(upstream) => upstream.lookup(&alias.target, alias.rtype).await,
                    None => Vec::new(),
                };
                let Source::Here { world, own, zones, .. } = &self.0.source else { return None };
                let view = View::new(world.load(), own.clone());
                answer::complete(query, how, *alias, chain, &view, zones)
            }
        }
    }

    /// What the mesh says, when it is elsewhere and not too many ask already.
    async fn elsewhere(&self, query: &[u8], how: How) -> Option<Told> {
        let Source::Elsewhere { mesh, places } = &self.0.source else { return None };
        let _place = places.try_acquire().ok()?;
        Some(mesh.ask(query.to_vec(), how.carrier).await)
    }

    /// Answers datagrams until the group drains.
    pub async fn serve_udp(self, socket: UdpSocket, tasks: TaskGroup) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let received = tokio::select! {
                () = tasks.draining() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            // An error is an earlier answer's: its asker is gone.
            let Ok((len, from)) = received else { continue };
            let query = buffer.get(..len).unwrap_or_default();
            let (how, step) = self.step(query, Carrier::Udp, None);
            let waits = matches!(step, Step::Outside | Step::Alias(_)) && how.recursive;
            if !waits {
                if let Some(answer) = self.finish(query, how, step).await {
                    send(&socket, &answer, from).await;
                }
                continue;
            }
            // Others are not kept waiting. How many wait is bounded by the upstream's places.
            let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
            let group = tasks.clone();
            tasks.spawn("dns question", async move {
                tokio::select! {
                    () = group.draining() => {}
                    answer = server.finish(&query, how, step) => {
                        if let Some(answer) = answer {
                            send(&socket, &answer, from).await;
                        }
                    }
                }
            });
        }
    }

    /// Answers connections until the group drains.
    pub async fn serve_tcp(self, listener: TcpListener, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = tasks.draining() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(why) => {
                    tracing::warn!(%why, "the DNS door could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (server, group) = (self.clone(), tasks.clone());
            tasks.spawn("dns connection", async move {
                tokio::select! {
                    () = group.draining() => {}
                    // Ended by the peer, by idleness or by an error: all the same to us.
                    _ = server.connection(stream) => {}
                }
                drop(place);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut query = Vec::new();
        loop {
            let len = tokio::time::timeout(IDLE, stream.read_u16()).await??;
            if usize::from(len) > QUERY_BYTES_MAX {
                return Ok(());
            }
            query.resize(usize::from(len), 0);
            tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, Carrier::Tcp).await else { return Ok(()) };
            let Ok(len) = u16::try_from(answer.len()) else { return Ok(()) };
            let mut framed = Vec::with_capacity(answer.len() + 2);
            framed.extend_from_slice(&len.to_be_bytes());
            framed.extend_from_slice(&answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here { .. } => "Here",
            Self::Elsewhere { .. } => "Elsewhere",
        })
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(why) = socket.send_to(answer, to).await {
        tracing::debug!(%why, %to, "a DNS answer was not sent");
    }
}

#[cfg(test)]
mod tests;
