// SPDX-License-Identifier: Apache-2.0
//! The DNS door (port 8600, UDP and TCP): healthy instances by name, for both naming schemes.
//!
//! The binary binds the sockets and runs [`Server::serve_udp`] and [`Server::serve_tcp`]. Each
//! query is answered from one World snapshot (`answer.rs`); nothing is cached and nothing is
//! forwarded: a name outside our zones is REFUSED.

mod answer;
mod find;
mod names;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::world::World;

pub use answer::Carrier;
pub use names::Zones;

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
    world: Snapshot<World>,
    own: Arc<Identity>,
    zones: Zones,
    rng: Mutex<Rng>,
}

// === impl Server ===

impl Server {
    /// `rng` shuffles answers.
    pub fn new(world: Snapshot<World>, own: Arc<Identity>, zones: Zones, rng: Rng) -> Self {
        Self(Arc::new(Inner { world, own, zones, rng: Mutex::new(rng) }))
    }

    /// The answer to one query's bytes; `None` when it deserves none.
    pub fn answer(&self, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let view = View::new(self.0.world.load(), self.0.own.clone());
        // A generator of its own for each answer: the lock is not held while answering.
        let seed = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        answer::answer(query, carrier, &view, &self.0.zones, &mut Rng::seeded(seed))
    }

    /// Answers datagrams until the group drains.
    pub async fn serve_udp(self, socket: UdpSocket, tasks: TaskGroup) {
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let received = tokio::select! {
                () = tasks.draining() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            // An error is an earlier answer's: its asker is gone.
            let Ok((len, from)) = received else { continue };
            let query = buffer.get(..len).unwrap_or_default();
            if let Some(answer) = self.answer(query, Carrier::Udp)
                && let Err(why) = socket.send_to(&answer, from).await
            {
                tracing::debug!(%why, %from, "a DNS answer was not sent");
            }
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
            let Some(answer) = self.answer(&query, Carrier::Tcp) else { return Ok(()) };
            let Ok(len) = u16::try_from(answer.len()) else { return Ok(()) };
            let mut framed = Vec::with_capacity(answer.len() + 2);
            framed.extend_from_slice(&len.to_be_bytes());
            framed.extend_from_slice(&answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }
}

#[cfg(test)]
mod tests;
