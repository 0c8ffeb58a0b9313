// SPDX-License-Identifier: Apache-2.0
//! Questions in datagrams: each gets an id of its own towards the resolver, so that clients with
//! equal ids do not take each other's answers.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weft_base::limits::DNS_QUESTIONS_MAX;
use weft_base::rng::Rng;

use super::{Resolver, message};

/// Longest question; answers are as long as a datagram can be.
const QUESTION_BYTES_MAX: usize = 4096;
const ANSWER_BYTES_MAX: usize = 65_535;
const TICK: Duration = Duration::from_millis(200);
/// A question without an answer is asked again after this, and given up after that: before the
/// five seconds that C libraries wait.
const ASK_AGAIN: Duration = Duration::from_millis(1_000);
const GIVE_UP: Duration = Duration::from_millis(4_000);

/// A question on its way.
#[derive(Debug)]
struct Pending {
    client: SocketAddr,
    /// As the client sent it.
    query: Vec<u8>,
    since: Instant,
    asked: Instant,
}

#[derive(Debug)]
struct Forwarder {
    door: UdpSocket,
    resolver: Resolver,
    upstream: Option<UdpSocket>,
    pending: HashMap<u16, Pending>,
    rng: Rng,
}

/// Serves until it is dropped.
pub async fn run(door: UdpSocket, resolver: Resolver) {
    let (pending, rng) = (HashMap::new(), Rng::from_system());
    let mut forwarder = Forwarder { door, resolver, upstream: None, pending, rng };
    let (mut query, mut answer) = (vec![0; QUESTION_BYTES_MAX], vec![0; ANSWER_BYTES_MAX]);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = forwarder.door.recv_from(&mut query) => {
                // Errors here are of earlier answers, to clients that went away.
                let Ok((n, client)) = received else { continue };
                let query = query.get(..n).unwrap_or_default().to_vec();
                forwarder.ask(client, query).await;
            }
            received = receive(forwarder.upstream.as_ref(), &mut answer) => match received {
                Ok(n) => forwarder.answer(answer.get_mut(..n).unwrap_or_default()).await,
                // The resolver is away: what is pending is asked again by the clock.
                Err(_) => forwarder.upstream = None,
            },
            _ = tick.tick(), if !forwarder.pending.is_empty() => forwarder.chores().await,
        }
    }
}

async fn receive(socket: Option<&UdpSocket>, into: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(into).await,
        None => std::future::pending().await,
    }
}

// === impl Forwarder ===

impl Forwarder {
    async fn ask(&mut self, client: SocketAddr, query: Vec<u8>) {
        if message::question(&query).is_none() || message::is_response(&query) {
            return;
        }
        if self.pending.len() >= DNS_QUESTIONS_MAX {
            return self.fail(client, &query).await;
        }
        let mut id = self.id();
        while self.pending.contains_key(&id) {
            id = self.id();
        }
        let now = Instant::now();
        self.send(id, &query).await;
        self.pending.insert(id, Pending { client, query, since: now, asked: now });
    }

    async fn answer(&mut self, answer: &mut [u8]) {
        let Some(id) = message::id(answer).filter(|_| message::is_response(answer)) else { return };
        let fits = self.pending.get(&id).and_then(|p| message::question(&p.query));
        if !fits.is_some_and(|asked| message::answers(answer, asked)) {
            return;
        }
        let Some(pending) = self.pending.remove(&id) else { return };
        message::set_id(answer, message::id(&pending.query).unwrap_or_default());
        // A client that went away needs no answer.
        let _ = self.door.send_to(answer, pending.client).await;
    }

    /// Asks again what waits for too long, and gives up what waited for longer than that.
    async fn chores(&mut self) {
        let now = Instant::now();
        if !self.over(now).is_empty() {
            self.take_what_came().await;
        }
        let over = self.over(now);
        for pending in over.iter().filter_map(|id| self.pending.remove(id)).collect::<Vec<_>>() {
            self.fail(pending.client, &pending.query).await;
        }
        let again: Vec<(u16, Vec<u8>)> = self
            .pending
            .iter_mut()
            .filter(|(_, p)| now.duration_since(p.asked) >= ASK_AGAIN)
            .map(|(id, p)| {
                p.asked = now;
                (*id, p.query.clone())
            })
            .collect();
        for (id, query) in again {
            self.send(id, &query).await;
        }
    }

    /// Questions that waited for too long.
    fn over(&self, now: Instant) -> Vec<u16> {
        let over = self.pending.iter().filter(|(_, p)| now.duration_since(p.since) >= GIVE_UP);
        over.map(|(id, _)| *id).collect()
    }

    /// Passes on the answers that are there already: when the machine stood still, the resolver was
    /// not silent.
    async fn take_what_came(&mut self) {
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        for _ in 0..DNS_QUESTIONS_MAX {
            match self.upstream.as_ref().map(|u| u.try_recv(&mut answer)) {
                Some(Ok(n)) => self.answer(answer.get_mut(..n).unwrap_or_default()).await,
                // What one question met is told once, and answers to others may be behind it.
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }

    /// Sends a question on; what cannot be sent now is sent by the clock.
    async fn send(&mut self, id: u16, query: &[u8]) {
        if self.upstream.is_none() {
            let opened = self.resolver.host.udp(self.resolver.address).await;
            match opened.and_then(UdpSocket::from_std) {
                Ok(socket) => self.upstream = Some(socket),
                Err(error) => tracing::debug!(%error, "no way to the resolver"),
            }
        }
        let Some(upstream) = &self.upstream else { return };
        let mut query = query.to_vec();
        message::set_id(&mut query, id);
        if upstream.send(&query).await.is_err() {
            self.upstream = None;
        }
    }

    async fn fail(&self, client: SocketAddr, query: &[u8]) {
        if let Some(answer) = message::failure(query) {
            // A client that went away needs no answer.
            let _ = self.door.send_to(&answer, client).await;
        }
    }

    fn id(&mut self) -> u16 {
        u16::try_from(self.rng.below(1 << 16)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use weft_base::sockets::SocketFactory;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_came_while_the_machine_stood_still_is_passed_on() {
        let bind = async || UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (door, far, client) = (bind().await, bind().await, bind().await);
        let resolver = Resolver { address: far.local_addr().unwrap(), host: SocketFactory::Here };
        let (pending, rng) = (HashMap::new(), Rng::seeded(1));
        let mut forwarder = Forwarder { door, resolver, upstream: None, pending, rng };
        // The address of `a`.
        let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        forwarder.ask(client.local_addr().unwrap(), query.clone()).await;
        let mut bytes = [0; 512];
        let (n, from) = far.recv_from(&mut bytes).await.unwrap();
        bytes[2] |= 0x80;
        far.send_to(&bytes[..n], from).await.unwrap();
        forwarder.upstream.as_ref().unwrap().readable().await.unwrap();
        // The clock is looked at before the socket.
        let long_ago = Instant::now() - GIVE_UP;
        forwarder.pending.values_mut().for_each(|pending| pending.since = long_ago);
        forwarder.chores().await;
        let n = client.recv(&mut bytes).await.unwrap();
        assert_eq!((&bytes[..2], bytes[3] & 15, n), (&query[..2], 0, query.len()));
        assert!(forwarder.pending.is_empty());
    }
}
