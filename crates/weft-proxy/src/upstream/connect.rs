// SPDX-License-Identifier: Apache-2.0
//! Opens connections to endpoints: TCP from the pod's own address, or through the door to the
//! host's namespace when the endpoint is outside of the pod network; then the mesh's TLS when the
//! endpoint's transport asks for it. Called by the pools and by the opaque TCP relay.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_identity::{Alpn, ClientTls, Expected, SpiffeId};
use weft_model::{Connections, Endpoint, Pings, TcpKeepalive, Transport, mesh_server_name};

use crate::config::ProxyConfig;
use crate::descriptors;
use crate::listen;
use crate::table::{EndpointEntry, Inside, OriginTls};
use crate::tcp::half_open;

/// What tells two upstream connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub connect: SocketAddr,
    /// The app's port, which the mesh's SNI carries.
    pub port: u16,
    pub transport: Transport,
    pub identity: Option<Arc<str>>,
    /// Its backend speaks TLS itself.
    pub origin: Option<Arc<OriginTls>>,
    /// What a connection outside of the mesh begins with, before any TLS.
    pub greeting: Option<Bytes>,
}

/// Where connections come from, and who we say we are.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The pod's own address; used towards loopback addresses only.
    pub source: Option<IpAddr>,
    pub tls: Option<Arc<ClientTls>>,
    /// The mesh port of the endpoints; other than 15008 only in tests.
    pub mesh_port: u16,
    /// Which addresses are outside, what leads there, and the mark of own sockets.
    pub config: Arc<ProxyConfig>,
}

/// How a connection is opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// How long it may take.
    pub limit: Duration,
    /// In place of the proxy's own.
    pub keepalive: Option<TcpKeepalive>,
    pub pings: Option<Pings>,
}

/// Why there is no connection. Nothing of a request was sent.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    #[error("connecting to {address} failed: {reason}")]
    Tcp { address: SocketAddr, reason: Arc<str> },
    #[error("{address} is not connected to: {most} connections are open, its limit")]
    Full { address: SocketAddr, most: u32 },
    #[error("connecting to {address} took longer than {ms} ms")]
    Timeout { address: SocketAddr, ms: u64 },
    #[error("the TLS handshake with {address} failed: {reason}")]
    Tls { address: SocketAddr, reason: Arc<str> },
    #[error("{address} wants mesh TLS, but {reason}")]
    NoIdentity { address: SocketAddr, reason: Arc<str> },
    /// `said` is what the refusal says of itself, behind a colon.
    #[error("{address} refused the tunnel with status {status}{said}")]
    Tunnel { address: SocketAddr, status: u16, said: Arc<str> },
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum UpstreamIo {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(any(test, feature = "testing"))]
    Memory(tokio::io::DuplexStream),
}

// === impl Peer ===

impl Peer {
    pub fn of(endpoint: &Endpoint, mesh_port: u16) -> Self {
        let mut connect = endpoint.connect_address();
        if connect.port() == weft_model::MESH_PORT && connect != endpoint.address {
            connect.set_port(mesh_port);
        }
        Self {
            connect,
            port: endpoint.address.port(),
            transport: endpoint.transport,
            identity: endpoint.identity.clone(),
            origin: None,
            greeting: None,
        }
    }

    /// The peer that an endpoint of a table is.
    pub fn of_entry(entry: &EndpointEntry, mesh_port: u16) -> Self {
        Self { origin: entry.tls.clone(), ..Self::of(&entry.endpoint, mesh_port) }
    }

    pub fn plain(address: SocketAddr) -> Self {
        Self {
            connect: address,
            port: address.port(),
            transport: Transport::Plaintext,
            identity: None,
            origin: None,
            greeting: None,
        }
    }

    pub fn is_mesh(&self) -> bool {
        matches!(self.transport, Transport::MeshH1 | Transport::MeshH2 | Transport::Hbone)
    }
}

// === impl Opening ===

impl Opening {
    pub fn within(limit: Duration) -> Self {
        Self { limit, keepalive: None, pings: None }
    }

    /// As a backend's policy says.
    pub fn of(limit: Duration, terms: Option<&Connections>) -> Self {
        let (keepalive, pings) = terms.map_or((None, None), |t| (t.keepalive, t.pings));
        Self { limit, keepalive, pings }
    }
}

/// Says what a connection begins with.
async fn greet<I: AsyncWrite + Unpin>(io: &mut I, peer: &Peer) -> Result<(), ConnectError> {
    let Some(greeting) = &peer.greeting else { return Ok(()) };
    let (address, written) = (peer.connect, io.write_all(greeting).await);
    written.map_err(|e| ConnectError::Tcp { address, reason: e.to_string().into() })
}

// === impl Dialer ===

impl Dialer {
    /// Opens a connection. Cancel-safe: dropping it closes the socket.
    pub async fn connect(
        &self,
        peer: &Peer,
        alpn: Alpn,
        opening: Opening,
    ) -> Result<UpstreamIo, ConnectError> {
        let (address, limit) = (peer.connect, opening.limit);
        #[cfg(any(test, feature = "testing"))]
        if let Some(io) = crate::memory::dialled(address) {
            let failed = |e: io::Error| ConnectError::Tcp { address, reason: e.to_string().into() };
            let mut io = io.map_err(failed)?;
            greet(&mut io, peer).await?;
            return Ok(UpstreamIo::Memory(io));
        }
        let open = async {
            let mut tcp = self
                .tcp(address, opening)
                .await
                .map_err(|e| ConnectError::Tcp { address, reason: e.to_string().into() })?;
            greet(&mut tcp, peer).await?;
            match (&peer.origin, peer.transport) {
                (Some(origin), Transport::Plaintext) => {
                    let inside = if alpn == Alpn::H2 { Inside::Http2 } else { Inside::Http1 };
                    origin_tls(origin, inside, address, tcp).await
                }
                (None, Transport::Plaintext) => Ok(UpstreamIo::Plain(tcp)),
                _ => self.tls(peer, alpn, tcp).await,
            }
        };
        match tokio::time::timeout(limit, open).await {
            Ok(result) => result,
            Err(_) => {
                let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(ConnectError::Timeout { address, ms })
            }
        }
    }

    /// Opens a connection for bytes whose protocol is not ours to name.
    pub async fn connect_opaque(
        &self,
        peer: &Peer,
        opening: Opening,
    ) -> Result<UpstreamIo, ConnectError> {
        let (Some(origin), Transport::Plaintext) = (&peer.origin, peer.transport) else {
            return self.connect(peer, Alpn::Http11, opening).await;
        };
        let (plain, limit) = (Peer { origin: None, ..peer.clone() }, opening.limit);
        let io = self.connect(&plain, Alpn::Http11, opening).await?;
        let UpstreamIo::Plain(tcp) = io else { return Ok(io) };
        let shaking = origin_tls(origin, Inside::Opaque, peer.connect, tcp);
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let late = |_| ConnectError::Timeout { address: peer.connect, ms };
        tokio::time::timeout(limit, shaking).await.map_err(late)?
    }

    async fn tcp(&self, address: SocketAddr, opening: Opening) -> io::Result<TcpStream> {
        let keepalive = listen::keepalive_of(opening.keepalive.as_ref());
        if self.config.is_outside(address.ip()) {
            let stream =
                TcpStream::from_std(self.config.host.connect(address, opening.limit).await?)?;
            stream.set_nodelay(true)?;
            socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            half_open::watch(&stream, Some(address));
            return Ok(stream);
        }
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if descriptors::is_reserved(&socket) {
            return Err(io::Error::other("descriptors are short; raise the limit of open files"));
        }
        socket.set_nodelay(true)?;
        socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
        if let Some(mark) = self.config.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        if let Some(source) = self.source
            && address.ip().is_loopback()
            && source.is_ipv4() == address.is_ipv4()
        {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(address).await?;
        half_open::watch(&stream, Some(address));
        Ok(stream)
    }

    async fn tls(
        &self,
        peer: &Peer,
        alpn: Alpn,
        tcp: TcpStream,
    ) -> Result<UpstreamIo, ConnectError> {
        let address = peer.connect;
        let missing = |reason: &str| ConnectError::NoIdentity { address, reason: reason.into() };
        let failed = |reason: String| ConnectError::Tls { address, reason: reason.into() };
        let tls = self.tls.as_ref().ok_or_else(|| missing("this proxy has no certificate yet"))?;
        let expected = peer
            .identity
            .as_deref()
            .ok_or_else(|| missing("its endpoint names no identity to expect"))?;
        let expected = SpiffeId::new(expected).map_err(|e| missing(&e.to_string()))?;
        let config =
            tls.config(&Expected::only(expected), alpn).map_err(|e| failed(e.to_string()))?;
        let name =
            ServerName::try_from(mesh_server_name(peer.port)).map_err(|e| failed(e.to_string()))?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(UpstreamIo::Tls(Box::new(stream)))
    }
}

/// TLS with a backend that speaks it itself.
async fn origin_tls(
    origin: &OriginTls,
    inside: Inside,
    address: SocketAddr,
    tcp: TcpStream,
) -> Result<UpstreamIo, ConnectError> {
    let failed = |reason: String| ConnectError::Tls { address, reason: reason.into() };
    let config = origin.config(inside).map_err(failed)?;
    let name = origin.server_name(address.ip());
    let shaken = TlsConnector::from(config).connect(name, tcp).await;
    Ok(UpstreamIo::Tls(Box::new(shaken.map_err(|e| failed(e.to_string()))?)))
}

// === impl UpstreamIo ===

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => Pin::new(s).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(s) => s.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn probes_are_as_the_policy_says_as_far_as_the_kernel_takes_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Arc::new(crate::tests::bed::config("sidecar~shop~a"));
        let dialer = Dialer { source: None, tls: None, mesh_port: 0, config };
        let peer = Peer::plain(listener.local_addr().unwrap());
        let said = |idle_s, interval_s, probes| TcpKeepalive { idle_s, interval_s, probes };
        for (keepalive, seconds, probes) in [
            (None, [60, 10], 3),
            (Some(said(None, None, None)), [60, 10], 3),
            (Some(said(Some(300), Some(75), Some(9))), [300, 75], 9),
            (Some(said(Some(0), Some(u32::MAX), Some(1_000))), [1, 32_767], 127),
        ] {
            let opening = Opening { keepalive, ..Opening::within(Duration::from_secs(10)) };
            let io = dialer.connect(&peer, Alpn::Http11, opening).await.unwrap();
            let UpstreamIo::Plain(stream) = io else { panic!("{io:?}") };
            let socket = socket2::SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            let times = [socket.tcp_keepalive_time(), socket.tcp_keepalive_interval()];
            assert_eq!(times.map(|t| t.unwrap().as_secs()), seconds, "{keepalive:?}");
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), probes, "{keepalive:?}");
        }
    }
}
