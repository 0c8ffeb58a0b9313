// SPDX-License-Identifier: Apache-2.0
//! Asks the machine's own resolvers what lies outside of our zones. Called by the door for pods
//! (`mod.rs`); caches nothing. Every question has a port and an id of its own, so that an answer
//! is the asked server's and to this question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName};
use domain::rdata::{AllRecordData, Cname};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_base::clock::{Clock, Mono};
use weft_base::limits::{DNS_FORWARDS_MAX, DNS_UDP_BYTES_MAX};
use weft_base::rng::Rng;

use super::answer::Carrier;
use super::find::Data;

/// Time for one server, and for all of them.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
/// `resolv.conf` has at most three servers (resolv.conf(5)); each is asked twice.
const SERVERS_MAX: usize = 3;
const ROUNDS: usize = 2;
/// The machine's servers are read again after this long: laptops move.
const FRESH: Duration = Duration::from_secs(5);

/// Where the servers are known from.
#[derive(Clone, Debug)]
pub enum Servers {
    /// A file of resolv.conf's form.
    File(PathBuf),
    Fixed(Vec<SocketAddr>),
}

/// The machine's resolvers. Bounded in questions at a time.
#[derive(Debug)]
pub struct Upstream {
    servers: Servers,
    clock: Clock,
    read: Mutex<Option<(Mono, Arc<[SocketAddr]>)>>,
    places: Semaphore,
    rng: Mutex<Rng>,
    server_timeout: Duration,
    timeout: Duration,
}

/// Why nobody answered; said to the asker as an extended error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("this machine names no resolver in /etc/resolv.conf")]
    NoServers,
    #[error("too many questions wait for the machine's resolvers")]
    Busy,
    #[error("the machine's resolvers did not answer: {0}")]
    NoAnswer(String),
}

/// An answer that ends at an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LooseEnd {
    pub target: String,
    /// Its records, and the seconds that the first may be kept.
    pub said: Vec<(String, Data)>,
    pub ttl: u32,
}

// === impl LooseEnd ===

impl LooseEnd {
    /// `None` where the answer has what was asked for, or nothing, or is cut.
    pub fn of(answer: &[u8], rtype: Rtype) -> Option<Self> {
        if !matches!(rtype, Rtype::A | Rtype::AAAA) {
            return None;
        }
        let message = Message::from_octets(answer).ok()?;
        if message.header().tc() || message.header().rcode() != Rcode::NOERROR {
            return None;
        }
        let said = records(answer)?;
        let Some((_, Data::Cname(target))) = said.last() else { return None };
        let ttl = message.answer().ok()?.next()?.ok()?.ttl().as_secs();
        Some(Self { target: target.clone(), said, ttl })
    }
}

// === impl Upstream ===

impl Upstream {
    pub fn new(servers: Servers, clock: Clock, rng: Rng) -> Self {
        let places = Semaphore::new(DNS_FORWARDS_MAX);
        Self {
            servers,
            clock,
            read: Mutex::default(),
            places,
            rng: Mutex::new(rng),
            server_timeout: SERVER_TIMEOUT,
            timeout: TIMEOUT,
        }
    }

    /// Another patience than the usual, with one server and with all.
    #[cfg(test)]
    pub(super) fn patient(mut self, server_timeout: Duration, timeout: Duration) -> Self {
        (self.server_timeout, self.timeout) = (server_timeout, timeout);
        self
    }

    /// The machine's answer to a whole query, with the query's own id. Cancel-safe.
    pub async fn ask(&self, query: &[u8], carrier: Carrier) -> Result<Vec<u8>, ForwardError> {
        let Ok(_place) = self.places.try_acquire() else { return Err(ForwardError::Busy) };
        let servers = self.servers();
        if servers.is_empty() {
            return Err(ForwardError::NoServers);
        }
        let mut last = Err(ForwardError::NoAnswer("no time was left".into()));
        let asked = async {
            for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
                match self.exchange(*server, query, carrier).await {
                    Ok(answer) if !is_refusal(&answer) => return Ok(answer),
                    Ok(answer) => last = Ok(answer),
                    Err(why) if last.is_err() => {
                        last = Err(ForwardError::NoAnswer(format!("{server}: {why}")));
                    }
                    Err(_) => {}
                }
            }
            std::mem::replace(&mut last, Err(ForwardError::NoServers))
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => last,
        }
    }

    /// The records that a name ends in, aliases among them.
    pub async fn lookup(&self, name: &str, rtype: Rtype) -> Vec<(String, Data)> {
        let Some(query) = question(name, rtype) else { return Vec::new() };
        match self.ask(&query, Carrier::Tcp).await {
            Ok(answer) => records(&answer).unwrap_or_default(),
            Err(why) => {
                tracing::debug!(%why, name, "an alias's target was not found");
                Vec::new()
            }
        }
    }

    /// One server, one try. Whoever came over TCP is answered in full.
    async fn exchange(
        &self,
        server: SocketAddr,
        query: &[u8],
        carrier: Carrier,
    ) -> std::io::Result<Vec<u8>> {
        let [own_high, own_low, rest @ ..] = query else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let id = self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64();
        let [high, low, ..] = id.to_be_bytes();
        let mut asked = vec![high, low];
        asked.extend_from_slice(rest);
        let mut answer =
            tokio::time::timeout(self.server_timeout, over_udp(server, &asked)).await??;
        let cut = Message::from_octets(&answer).is_ok_and(|m| m.header().tc());
        if cut && carrier == Carrier::Tcp {
            answer = tokio::time::timeout(self.server_timeout, over_tcp(server, &asked)).await??;
        }
        if let [high, low, ..] = answer.as_mut_slice() {
            (*high, *low) = (*own_high, *own_low);
        }
        Ok(answer)
    }

    fn servers(&self) -> Arc<[SocketAddr]> {
        let path = match &self.servers {
            Servers::Fixed(all) => return all.as_slice().into(),
            Servers::File(path) => path,
        };
        let now = self.clock.now();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, servers)) = &*read
            && now.since(*at) < FRESH
        {
            return servers.clone();
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let servers: Arc<[SocketAddr]> = parse(&text).into();
        *read = Some((now, servers.clone()));
        servers
    }
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on the kernel drops what others send.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..len).unwrap_or_default();
        if answers(query, answer) {
            return Ok(answer.to_vec());
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    match answers(query, &answer) {
        true => Ok(answer),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Whether it is an answer to this very question.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    let (Ok(asked), Ok(answer)) = (Message::from_octets(query), Message::from_octets(answer))
    else {
        return false;
    };
    if !answer.header().qr() || answer.header().id() != asked.header().id() {
        return false;
    }
    match (asked.sole_question(), answer.sole_question()) {
        (Ok(a), Ok(b)) => {
            a.qname().name_eq(b.qname()) && (a.qtype(), a.qclass()) == (b.qtype(), b.qclass())
        }
        // Some servers leave the question out of errors.
        (Ok(_), Err(_)) => answer.header().rcode() != Rcode::NOERROR,
        _ => false,
    }
}

/// Another server may do better.
fn is_refusal(answer: &[u8]) -> bool {
    let rcode = Message::from_octets(answer).map(|m| m.header().rcode());
    matches!(rcode, Ok(Rcode::SERVFAIL | Rcode::REFUSED | Rcode::NOTIMP))
}

fn question(name: &str, rtype: Rtype) -> Option<Vec<u8>> {
    let name = Name::<Vec<u8>>::from_str(name).ok()?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((name, rtype)).ok()?;
    let mut additional = question.additional();
    let size = u16::try_from(DNS_UDP_BYTES_MAX).unwrap_or(u16::MAX);
    additional
        .opt(|opt| {
            opt.set_udp_payload_size(size);
            Ok(())
        })
        .ok()?;
    Some(additional.finish())
}

fn records(answer: &[u8]) -> Option<Vec<(String, Data)>> {
    let message = Message::from_octets(answer).ok()?;
    let mut out = Vec::new();
    for record in message.answer().ok()?.limit_to::<AllRecordData<_, _>>() {
        let record = record.ok()?;
        let data = match record.data() {
            AllRecordData::A(a) => Data::Address(a.addr().into()),
            AllRecordData::Aaaa(aaaa) => Data::Address(aaaa.addr().into()),
            AllRecordData::Cname(name) => Data::Cname(Cname::cname(name).to_string()),
            _ => continue,
        };
        out.push((record.owner().to_string(), data));
    }
    Some(out)
}

/// The servers of a resolv.conf. Those with a zone (`fe80::1%eth0`) cannot be reached from here.
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    servers.take(SERVERS_MAX).map(|ip| SocketAddr::new(ip, 53)).collect()
}

#[cfg(test)]
pub(super) mod tests;
