// SPDX-License-Identifier: Apache-2.0
//! The pod's DNS questions, carried to the server's resolver as they are and back. Runs on the
//! control runtime; `run.rs` opens it.
//!
//! Messages are not understood beyond what it takes to match an answer to its question. A question
//! that finds no resolver is asked again for a while, since servers restart, and is then answered
//! with SERVFAIL and the reason (RFC 8914). Never caches, never makes up any other answer.

pub(crate) mod message;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_base::limits::{DNS_CLIENTS_MAX, DNS_IDLE_MS_MAX};
use weft_base::sockets::SocketFactory;
use weft_base::task::TaskGroup;

use crate::config::{Capture, ProxyConfig};
use crate::listen::{self, ListenError};

/// One try to reach the resolver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The way to the resolver.
#[derive(Clone, Debug)]
struct Resolver {
    address: SocketAddr,
    host: SocketFactory,
}

/// Opens the doors for questions and serves them until the group stops.
///
/// # Errors
/// When a door's address cannot be bound.
pub fn serve(
    config: &ProxyConfig,
    capture: &Capture,
    tasks: &TaskGroup,
) -> Result<(), ListenError> {
    let Some(address) = capture.resolver else { return Ok(()) };
    let resolver = Resolver { address, host: config.host.clone() };
    let clients = Arc::new(Semaphore::new(DNS_CLIENTS_MAX));
    for (i, at) in capture.dns.iter().enumerate() {
        let wrong = |source| ListenError { address: *at, source };
        let opened = open(*at).map_err(wrong).and_then(|udp| {
            let bound = udp.local_addr().map_err(wrong)?;
            listen::own(config, bound, &udp)?;
            let streams = listen::bind(bound, 1)?;
            streams.iter().try_for_each(|socket| listen::own(config, bound, socket))?;
            Ok((udp, streams))
        });
        let (questions, streams) = match opened {
            Ok(opened) => opened,
            Err(error) if i > 0 && error.is_no_family() => continue,
            Err(error) => return Err(error),
        };
        tasks.spawn("dns", udp::run(questions, resolver.clone()));
        for socket in streams {
            let socket = TcpListener::from_std(socket).map_err(wrong)?;
            let serving = accept(socket, resolver.clone(), clients.clone(), tasks.clone());
            tasks.spawn("dns over tcp", serving);
        }
    }
    Ok(())
}

fn open(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

async fn accept(
    socket: TcpListener,
    resolver: Resolver,
    clients: Arc<Semaphore>,
    tasks: TaskGroup,
) {
    loop {
        // Clients beyond the limit wait in the kernel's queue.
        let Ok(permit) = clients.clone().acquire_owned().await else { return };
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let resolver = resolver.clone();
        tasks.spawn("dns client", async move {
            let idle = Duration::from_millis(DNS_IDLE_MS_MAX);
            // Whoever leaves or stays for too long is let go.
            let _ = tokio::time::timeout(idle, client(stream, &resolver)).await;
            drop(permit);
        });
    }
}

/// Joins a client with the resolver; without one, each question is answered with the failure.
async fn client(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    match resolver.host.connect(resolver.address, CONNECT_TIMEOUT).await {
        Ok(upstream) => {
            let mut upstream = TcpStream::from_std(upstream)?;
            tokio::io::copy_bidirectional(&mut stream, &mut upstream).await?;
        }
        Err(error) => {
            tracing::debug!(%error, "the resolver cannot be reached");
            loop {
                let length = usize::from(stream.read_u16().await?);
                let mut question = vec![0; length];
                stream.read_exact(&mut question).await?;
                let Some(answer) = message::failure(&question) else { return Ok(()) };
                stream.write_u16(u16::try_from(answer.len()).unwrap_or_default()).await?;
                stream.write_all(&answer).await?;
            }
        }
    }
    Ok(())
}
