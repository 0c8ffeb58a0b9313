// SPDX-License-Identifier: Apache-2.0
//! One address for several servers: a loopback port that leads to whichever of them answers. The
//! agent and the sidecars it starts are told this one alone, and come to another server when theirs
//! is gone. Bytes pass as they are: who is at the other end is proved end to end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use weft_base::task::TaskGroup;

/// Connections at a time: a few for each sidecar of the machine.
const CONNECTIONS_MAX: usize = 4096;
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long a server may take to answer the first bytes. One that is stopped takes connections.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const PIECE: usize = 16 * 1024;

struct Relay {
    servers: Vec<SocketAddr>,
    /// The one that answered last.
    current: AtomicUsize,
}

/// The address to ask: the one server itself, or a port of this machine that leads to any of
/// several.
pub async fn start(servers: &[SocketAddr], tasks: &TaskGroup) -> Result<SocketAddr> {
    if let [only] = servers {
        return Ok(*only);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.context("a port for the servers' relay")?;
    let at = listener.local_addr()?;
    let relay = Arc::new(Relay { servers: servers.to_vec(), current: AtomicUsize::new(0) });
    let group = tasks.clone();
    tasks.spawn("servers' relay", async move {
        let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = open.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                () = group.draining() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the servers' relay cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (relay, ending) = (relay.clone(), group.clone());
            group.spawn("relayed connection", async move {
                let _permit = permit;
                tokio::select! {
                    () = ending.draining() => {}
                    () = relay.serve(stream) => {}
                }
            });
        }
    });
    Ok(at)
}

// === impl Relay ===

impl Relay {
    async fn serve(&self, mut from: TcpStream) {
        let _ = from.set_nodelay(true);
        let mut first = vec![0; PIECE];
        let said = match from.read(&mut first).await {
            Ok(n) if n > 0 => n,
            _ => return,
        };
        let first = first.get(..said).unwrap_or_default();
        let begin = self.current.load(Ordering::Relaxed);
        for turn in 0..self.servers.len() {
            let at = (begin + turn) % self.servers.len();
            let Some(server) = self.servers.get(at) else { return };
            match tokio::time::timeout(ANSWER_MAX, begin_with(*server, first)).await {
                Ok(Ok((mut to, answer))) => {
                    if self.current.swap(at, Ordering::Relaxed) != at {
                        tracing::warn!(%server, "another server answers");
                    }
                    if from.write_all(&answer).await.is_ok() {
                        let _ = copy_bidirectional(&mut from, &mut to).await;
                    }
                    return;
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "a server cannot be reached"),
                Err(_) => tracing::debug!(%server, "a server does not answer"),
            }
        }
    }
}

/// Says the first bytes to a server, and waits for its first. Nothing was done by then: these are
/// the greetings of TLS.
async fn begin_with(server: SocketAddr, first: &[u8]) -> std::io::Result<(TcpStream, Vec<u8>)> {
    let connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(server));
    let mut to = connecting.await??;
    to.set_nodelay(true)?;
    to.write_all(first).await?;
    let mut answer = vec![0; PIECE];
    match to.read(&mut answer).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        n => {
            answer.truncate(n);
            Ok((to, answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each line with its own name before it.
    async fn echo(name: &'static str, tasks: &TaskGroup) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let group = tasks.clone();
        tasks.spawn("echo", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                group.spawn("one", async move {
                    let mut data = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut data).await {
                        let answer = [name.as_bytes(), &data[..n]].concat();
                        let _ = stream.write_all(&answer).await;
                    }
                });
            }
        });
        at
    }

    async fn ask(at: SocketAddr) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut data = [0; 64];
        let n = stream.read(&mut data).await.unwrap();
        String::from_utf8_lossy(&data[..n]).into_owned()
    }

    #[tokio::test]
    async fn a_server_that_is_gone_or_silent_is_passed_over() {
        let tasks = TaskGroup::new();
        let gone = (Ipv4Addr::LOCALHOST, weft_testkit::ports::free()).into();
        // Takes connections, as the system does for a process that is stopped, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = echo("b:", &tasks).await;
        let servers = [gone, silent.local_addr().unwrap(), alive];
        let at = start(&servers, &tasks).await.unwrap();
        silent.set_nonblocking(true).unwrap();
        let met = || std::iter::from_fn(|| silent.accept().ok()).count();
        let (mut said, asked_first) = (Vec::new(), ("b:hello".to_owned(), 0));
        // On a machine that stands still the one that is alive may be late, too.
        while said.len() < 5 && said.last() != Some(&asked_first) {
            said.push((ask(at).await, met()));
        }
        assert_eq!(said[0].1, 1, "{said:?}");
        assert_eq!(said.last(), Some(&asked_first), "from then on");
        assert_eq!(start(&[alive], &tasks).await.unwrap(), alive, "one server needs no relay");
        tasks.stop();
    }
}
