// SPDX-License-Identifier: Apache-2.0
//! Connections for the xDS door: accepted, shaken hands with, labelled with their peer.
//!
//! Called by the assembly, once for the plaintext loopback port and once for the mTLS port (whose
//! handshake it passes in). A slow or silent peer holds up nobody: handshakes run beside each
//! other, have a deadline and a bound, and so has the number of connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use weft_base::limits::{XDS_CONNECTIONS_MAX, XDS_HANDSHAKES_MAX};
use weft_base::task::TaskGroup;

use super::Peer;

/// From the accepted socket to the first byte that a server may read.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After accepting failed (no descriptors left), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections without an identity at a time, where a [`Handshake`] lets them in at all.
const GUESTS_MAX: usize = 64;
/// How long such a connection lives: it has one call to make.
const GUEST_LIFE: Duration = Duration::from_secs(20);

/// A connection with its peer, for `serve_with_incoming`.
#[derive(Debug)]
pub struct PeerIo<T> {
    io: T,
    peer: Peer,
    /// When it ends, whatever it does.
    end: Option<Pin<Box<Sleep>>>,
    /// Its place among the door's connections.
    place: Option<OwnedSemaphorePermit>,
}

/// Turns an accepted socket into a stream of bytes and the peer that it authenticated.
pub type Handshake<T> =
    Arc<dyn Fn(TcpStream) -> BoxFuture<'static, io::Result<(T, Peer)>> + Send + Sync>;

/// What becomes of connections whose peer showed no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// They are like others: the port is plaintext on loopback.
    AsOthers,
    /// A few at a time, each for some seconds: they want to join.
    Briefly,
}

/// No encryption, no identity: for loopback. Waits for the first byte, so that silent connections
/// end with the handshake's deadline.
pub fn plaintext() -> Handshake<TcpStream> {
    Arc::new(|io: TcpStream| {
        Box::pin(async move {
            let peer = Peer { spiffe_id: None, address: io.peer_addr().ok() };
            io.readable().await?;
            Ok((io, peer))
        })
    })
}

/// Accepts until `tasks` drain or the returned stream is dropped.
pub fn incoming<T: Send + 'static>(
    listener: TcpListener,
    handshake: Handshake<T>,
    tasks: &TaskGroup,
) -> ReceiverStream<io::Result<PeerIo<T>>> {
    incoming_with(listener, handshake, Guests::AsOthers, tasks)
}

/// The same, saying what becomes of peers that showed no identity.
pub fn incoming_with<T: Send + 'static>(
    listener: TcpListener,
    handshake: Handshake<T>,
    guests: Guests,
    tasks: &TaskGroup,
) -> ReceiverStream<io::Result<PeerIo<T>>> {
    let (ready, rx) = mpsc::channel(16);
    let group = tasks.clone();
    tasks.spawn("xds accept", async move {
        tokio::select! {
            () = group.draining() => {}
            () = ready.closed() => {}
            () = accept(&listener, &handshake, guests, &group, &ready) => {}
        }
    });
    ReceiverStream::new(rx)
}

async fn accept<T: Send + 'static>(
    listener: &TcpListener,
    handshake: &Handshake<T>,
    guests: Guests,
    tasks: &TaskGroup,
    ready: &mpsc::Sender<io::Result<PeerIo<T>>>,
) {
    let places = Arc::new(Semaphore::new(XDS_CONNECTIONS_MAX));
    let shaking = Arc::new(Semaphore::new(XDS_HANDSHAKES_MAX));
    let seats = Arc::new(Semaphore::new(GUESTS_MAX));
    loop {
        // Neither semaphore is ever closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok(turn) = shaking.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "the xds door cannot accept; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (handshake, ready, seats) = (handshake.clone(), ready.clone(), seats.clone());
        tasks.spawn("xds handshake", async move {
            // Without it the first small answers wait for Nagle; the connection works all the same.
            let _ = socket.set_nodelay(true);
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(socket)).await;
            drop(turn);
            match shaken {
                Ok(Ok((io, peer))) => {
                    let mut io = PeerIo { io, peer, end: None, place: Some(place) };
                    if guests == Guests::Briefly && io.peer.spiffe_id.is_none() {
                        // A guest takes a guest's seat, not the place of one who is known.
                        let Ok(seat) = seats.try_acquire_owned() else {
                            tracing::debug!("a connection without identity finds no seat");
                            return;
                        };
                        io.place = Some(seat);
                        io.end = Some(Box::pin(tokio::time::sleep(GUEST_LIFE)));
                    }
                    // The server may be gone already.
                    let _ = ready.send(Ok(io)).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "an xds handshake failed"),
                Err(_) => tracing::debug!("an xds handshake took too long"),
            }
        });
    }
}

// === impl PeerIo ===

impl<T> PeerIo<T> {
    pub fn new(io: T, peer: Peer) -> Self {
        Self { io, peer, end: None, place: None }
    }
}

impl<T> Connected for PeerIo<T> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PeerIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = self.end.as_mut()
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PeerIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
