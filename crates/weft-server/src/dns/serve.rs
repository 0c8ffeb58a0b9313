// SPDX-License-Identifier: Apache-2.0
//! The door's sockets: datagrams and connections, bounded in number and time. Started by the
//! binary; answers come from `mod.rs`.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use weft_base::limits::{DNS_CONNECTIONS_MAX, DNS_CONNECTIONS_PER_SOURCE_MAX, DNS_QUERY_BYTES_MAX};
use weft_base::task::TaskGroup;

use super::answer::{self, Carrier, How, Step};
use super::guard::{Guard, Verdict, is_loop, network};
use super::{Server, Source};
use crate::meter::Meter;

/// How long a connection may be idle (RFC 7766), or take to send a question or take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// How long a new connection waits for one that was asked to leave.
const LEAVING: Duration = Duration::from_millis(100);
/// Datagrams that are answered before others of this thread have their turn.
const TOGETHER: usize = 32;

/// How many connections each source has: an address, or an IPv6 customer's network, as over UDP.
/// Loopback is bounded by the whole only.
#[derive(Clone, Debug, Default)]
struct Callers(Arc<Mutex<HashMap<u128, usize>>>);

/// One connection's place.
struct Place {
    callers: Callers,
    from: u128,
}

/// The connections that wait for a question, the one that has waited longest first: it leaves when
/// there are as many as there may be and another comes.
#[derive(Clone, Debug, Default)]
struct Idle(Arc<Mutex<Waits>>);

#[derive(Debug, Default)]
struct Waits {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// One connection's wait.
struct Wait {
    idle: Idle,
    number: u64,
    end: Arc<Notify>,
}

/// What the datagrams of one socket share.
struct Udp {
    socket: Arc<UdpSocket>,
    guard: Guard,
    meter: Arc<Meter>,
    out: Vec<u8>,
    tasks: TaskGroup,
}

// === impl Server ===

impl Server {
    /// Answers datagrams until the group drains.
    pub async fn serve_udp(self, socket: UdpSocket, tasks: TaskGroup) {
        let options = &self.0.options;
        let guard = Guard::new(options.per_source, options.loopback_counts);
        let socket = Arc::new(socket);
        let meter = options.meter.clone();
        let mut udp = Udp { socket, guard, meter, out: Vec::with_capacity(2048), tasks };
        let mut buffer = vec![0; DNS_QUERY_BYTES_MAX];
        loop {
            let mut received = tokio::select! {
                () = udp.tasks.draining() => return,
                received = udp.socket.recv_from(&mut buffer) => received,
            };
            for turn in 1..=TOGETHER {
                match received {
                    Ok((len, from)) => {
                        let query = buffer.get(..len).unwrap_or_default();
                        self.datagram(&mut udp, query, from).await;
                    }
                    Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => break,
                    // An error is an earlier answer's: its asker is gone.
                    Err(_) => {}
                }
                if turn == TOGETHER {
                    break;
                }
                received = udp.socket.try_recv_from(&mut buffer);
            }
        }
    }

    async fn datagram(&self, udp: &mut Udp, bytes: &[u8], from: SocketAddr) {
        if is_loop(from) {
            return;
        }
        let ip = from.ip();
        let verdict = match udp.guard.counts(ip) {
            true => udp.guard.admit(ip, self.0.options.clock.now()),
            false => Verdict::Answer,
        };
        let query = match answer::question(bytes, &mut udp.out) {
            Ok(query) => query,
            Err(Step::Answer) if verdict == Verdict::Answer => return udp.send(from).await,
            Err(_) => return,
        };
        let how = self.how(&query, Carrier::Udp, Some(ip));
        // A cookie of ours exempts; where loopback is counted it is for its own sake.
        let known = how.proven && !ip.to_canonical().is_loopback();
        if verdict != Verdict::Answer && !known {
            udp.meter.limited();
            if verdict == Verdict::Again {
                answer::come_again(&query, &how, &mut udp.out);
                udp.send(from).await;
            }
            return;
        }
        match self.step(&query, &how, None, &mut udp.out) {
            Step::Answer => udp.send(from).await,
            Step::Silence => {}
            waits if self.asks_others(&how) => self.later(udp, bytes, from, how, waits),
            other => {
                if let Some(answer) = self.finish(bytes, &query, &how, other).await {
                    udp.out = answer;
                    udp.send(from).await;
                }
            }
        }
    }

    /// Whether what is not in our zones takes time.
    fn asks_others(&self, how: &How) -> bool {
        how.recursive || matches!(self.0.source, Source::Elsewhere { .. })
    }

    /// Others are not kept waiting. How many wait is bounded by the upstream's places.
    fn later(&self, udp: &Udp, bytes: &[u8], to: SocketAddr, how: How, step: Step) {
        let (server, socket, bytes) = (self.clone(), udp.socket.clone(), bytes.to_vec());
        let (group, meter) = (udp.tasks.clone(), udp.meter.clone());
        udp.tasks.spawn("dns question", async move {
            let Ok(query) = answer::question(&bytes, &mut Vec::new()) else { return };
            tokio::select! {
                () = group.draining() => {}
                answer = server.finish(&bytes, &query, &how, step) => {
                    if let Some(answer) = answer {
                        meter.answer(&answer);
                        send(&socket, &answer, to).await;
                    }
                }
            }
        });
    }

    /// Answers connections until the group drains.
    pub async fn serve_tcp(self, listener: TcpListener, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(DNS_CONNECTIONS_MAX));
        let (callers, idle) = (Callers::default(), Idle::default());
        loop {
            let accepted = tokio::select! {
                () = tasks.draining() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(why) => {
                    tracing::warn!(%why, "the DNS door could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(caller) = callers.enter(from.ip()) else { continue };
            let Some(place) = idle.place(&places).await else { continue };
            let (server, group, idle) = (self.clone(), tasks.clone(), idle.clone());
            tasks.spawn("dns connection", async move {
                tokio::select! {
                    () = group.draining() => {}
                    // Ended by the peer, by idleness or by an error: all the same to us.
                    _ = server.connection(stream, from.ip(), &idle) => {}
                }
                drop((place, caller));
            });
        }
    }

    /// One question after the other, however many were sent at once.
    async fn connection(
        &self,
        stream: TcpStream,
        from: IpAddr,
        idle: &Idle,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut query = Vec::new();
        loop {
            let wait = idle.begin();
            let len = tokio::select! {
                len = tokio::time::timeout(IDLE, stream.read_u16()) => len??,
                () = wait.ended() => return Ok(()),
            };
            drop(wait);
            if usize::from(len) > DNS_QUERY_BYTES_MAX {
                return Ok(());
            }
            query.resize(usize::from(len), 0);
            tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer_to(&query, Carrier::Tcp, Some(from)).await else {
                return Ok(());
            };
            let Ok(len) = u16::try_from(answer.len()) else { return Ok(()) };
            self.0.options.meter.answer(&answer);
            let mut framed = Vec::with_capacity(answer.len() + 2);
            framed.extend_from_slice(&len.to_be_bytes());
            framed.extend_from_slice(&answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }
}

// === impl Idle ===

impl Idle {
    /// A connection has nothing to answer from now on.
    fn begin(&self) -> Wait {
        let mut waits = self.waits();
        let number = waits.next;
        waits.next += 1;
        let end = Arc::new(Notify::new());
        waits.by_age.insert(number, end.clone());
        drop(waits);
        Wait { idle: self.clone(), number, end }
    }

    /// A place for a new connection: a free one, or that of the connection that is idle longest.
    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        let (_, oldest) = self.waits().by_age.pop_first()?;
        oldest.notify_one();
        let left = tokio::time::timeout(LEAVING, places.clone().acquire_owned()).await;
        left.ok()?.ok()
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// Resolves when its place is needed.
    async fn ended(&self) {
        self.end.notified().await;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.idle.waits().by_age.remove(&self.number);
    }
}

// === impl Udp ===

impl Udp {
    /// Sends what is written.
    async fn send(&self, to: SocketAddr) {
        self.meter.answer(&self.out);
        send(&self.socket, &self.out, to).await;
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    let sent = match socket.try_send_to(answer, to) {
        Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {
            socket.send_to(answer, to).await
        }
        sent => sent,
    };
    if let Err(why) = sent {
        tracing::debug!(%why, %to, "a DNS answer was not sent");
    }
}

// === impl Callers ===

impl Callers {
    /// A place for one more connection, unless the source has enough.
    fn enter(&self, from: IpAddr) -> Option<Place> {
        let from = from.to_canonical();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = network(from);
        let count = counts.entry(source).or_default();
        if *count >= DNS_CONNECTIONS_PER_SOURCE_MAX && !from.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Place { callers: self.clone(), from: source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_network_as_questions_are() {
        let callers = Callers::default();
        let v6 = |customer: u16, n: u16| IpAddr::from([0x2001, 0xdb8, 0, customer, 0, 0, 0, n]);
        let max = u16::try_from(DNS_CONNECTIONS_PER_SOURCE_MAX).unwrap();
        let mut held: Vec<Place> = (0..max).filter_map(|n| callers.enter(v6(0x100, n))).collect();
        assert_eq!(held.len(), usize::from(max));
        assert!(callers.enter(v6(0x1ff, 9999)).is_none(), "one customer, however many addresses");
        assert!(callers.enter(v6(0x200, 1)).is_some());
        // Those of one machine are one, however the address is written; loopback is not bounded.
        let of = |text: &str| callers.enter(text.parse().unwrap());
        held.extend((0..max).filter_map(|_| of("192.0.2.1")));
        assert!(of("::ffff:192.0.2.1").is_none() && of("192.0.2.2").is_some());
        held.extend((0..=max).filter_map(|_| of("::1")));
        assert_eq!(held.len(), 3 * usize::from(max) + 1);
        held.clear();
        assert!(callers.0.lock().unwrap().is_empty(), "whoever leaves is forgotten");
    }
}
