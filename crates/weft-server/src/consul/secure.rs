// SPDX-License-Identifier: Apache-2.0
//! The door over TLS, and on a Unix socket. TLS is spoken by a task beside the connection, which
//! hands plain bytes on over a pair of sockets, so that `line` knows nothing of it. Where the
//! texts of keys come from is the binary's affair; it gives new ones at any time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weft_base::clock::Clock;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_identity::outside::{Asked, PemError, Served, certified, roots, server};
use weft_identity::tls::TlsError;

use super::line::{WRITE_TIME_MAX, Wire};

/// Handshakes at a time: each costs milliseconds of a thread that serves everything else too.
pub(super) const HANDSHAKES_MAX: usize = 256;
/// Time for a handshake, and for its turn.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Between questions whether a client is there, as Go's servers ask.
const KEPT_ALIVE: Duration = Duration::from_secs(15);
const ALPN: &[u8] = b"http/1.1";
/// What is carried to a client at a time.
const CARRIED_BYTES: usize = 8 * 1024;

/// What the door shows its clients, and asks of them. PEM texts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    pub certificate: String,
    pub key: String,
    /// Who signs clients' certificates.
    pub clients: Option<String>,
    /// A client must show one.
    pub required: bool,
}

/// Why keys cannot be used.
#[derive(Debug, Error)]
pub enum KeysError {
    #[error("the certificate and its key: {0}")]
    Own(PemError),
    #[error("the authorities of clients: {0}")]
    Clients(PemError),
    #[error("clients must show a certificate, but nobody is named who signs them")]
    Nobody,
    #[error("{0}")]
    Tls(#[from] TlsError),
}

/// Where connections come from.
#[derive(Debug)]
pub enum Opening {
    Plain(TcpListener),
    Secure(TcpListener, Snapshot<ServerConfig>),
    Unix(UnixListener),
}

/// A connection before anything was said.
#[derive(Debug)]
pub(super) enum Caller {
    Wire(Wire),
    Secure(TcpStream, Arc<ServerConfig>),
}

// === impl Keys ===

impl Keys {
    /// # Errors
    /// What of the texts cannot be used.
    pub fn config(&self, clock: &Clock) -> Result<ServerConfig, KeysError> {
        let key = certified(&self.certificate, &self.key).map_err(KeysError::Own)?;
        let clients = match &self.clients {
            None if self.required => return Err(KeysError::Nobody),
            None => None,
            Some(pem) => Some(Asked {
                roots: roots(pem).map_err(KeysError::Clients)?,
                required: self.required,
                insecure: false,
            }),
        };
        let served = Served { key, clients, alpn: vec![ALPN.to_vec()], only_13: false };
        Ok(server(&served, clock)?)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key is never printed.
        f.debug_struct("Keys").field("required", &self.required).finish_non_exhaustive()
    }
}

// === impl Opening ===

impl Opening {
    pub(super) async fn accept(&self) -> io::Result<Caller> {
        Ok(match self {
            Self::Plain(listener) => Caller::Wire(kept_alive(listener.accept().await?.0).into()),
            Self::Secure(listener, config) => {
                Caller::Secure(kept_alive(listener.accept().await?.0), config.load())
            }
            Self::Unix(listener) => Caller::Wire(listener.accept().await?.0.into()),
        })
    }
}

/// A client whose machine was switched off is found gone, however long nothing is said to it.
fn kept_alive(stream: TcpStream) -> TcpStream {
    let every = TcpKeepalive::new().with_time(KEPT_ALIVE).with_interval(KEPT_ALIVE);
    if let Err(why) = SockRef::from(&stream).set_tcp_keepalive(&every) {
        tracing::debug!(%why, "a connection to the Consul door is not kept alive");
    }
    stream
}

// === impl Caller ===

impl Caller {
    /// The connection's plain bytes, once there are any; nothing when it comes to none. The place
    /// is held for as long as the client is there, whoever is through with it before; of `turns`
    /// one is taken for a handshake.
    pub(super) async fn wire(
        self,
        tasks: &TaskGroup,
        place: &Arc<OwnedSemaphorePermit>,
        turns: &Semaphore,
    ) -> Option<Wire> {
        match self {
            Self::Wire(wire) => Some(wire),
            // What a handshake needs is held by nobody who needs none.
            Self::Secure(stream, config) => {
                let stream = Box::pin(handshake(stream, config, turns)).await?;
                let (near, far) = UnixStream::pair().ok()?;
                let place = place.clone();
                tasks.spawn("consul tls", async move {
                    relay(stream, far, WRITE_TIME_MAX).await;
                    drop(place);
                });
                Some(near.into())
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    turns: &Semaphore,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let handshake = async {
        let _turn = turns.acquire().await;
        TlsAcceptor::from(config).accept(stream).await
    };
    match tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(why)) => {
            tracing::debug!(%why, "a TLS handshake with the Consul door failed");
            None
        }
        Err(_) => None,
    }
}

/// Carries bytes between a client and the line until the line is through with it, or the client
/// takes nothing for `stall`: what the line gave up is not kept for it.
pub(super) async fn relay(stream: impl AsyncRead + AsyncWrite, inner: UnixStream, stall: Duration) {
    let (mut from_client, mut to_client) = split(stream);
    let (mut from_line, mut to_line) = inner.into_split();
    let up = async {
        // Whatever ended it: the line reads that it is over.
        let _ = copy(&mut from_client, &mut to_line).await;
        let _ = to_line.shutdown().await;
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut bytes = vec![0; CARRIED_BYTES];
        while let Ok(count @ 1..) = from_line.read(&mut bytes).await {
            let carried = async {
                to_client.write_all(bytes.get(..count).unwrap_or_default()).await?;
                to_client.flush().await
            };
            if !matches!(tokio::time::timeout(stall, carried).await, Ok(Ok(()))) {
                return;
            }
        }
        let _ = tokio::time::timeout(HANDSHAKE_TIME_MAX, to_client.shutdown()).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
