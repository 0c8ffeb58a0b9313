// SPDX-License-Identifier: Apache-2.0
//! Raw bytes to an endpoint: straight TCP, or `CONNECT` within the mesh's TLS.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{OpenGuard, Pool};
use crate::h1::Upgraded;
use crate::h1::client::{Exchange, Failure};
use crate::http::body::AttemptBody;
use crate::observe::facts;
use crate::tcp::socket::Socket;
use crate::upstream::breaker::Taken;
use crate::upstream::connect::{ConnectError, Opening, Peer, UpstreamIo};

/// How much longer than for a connection the answer to a CONNECT is waited for. The far side grants
/// it once it is connected itself, for which it has a limit, tries and a name's lookup of its own:
/// without the time to say what failed there, its app's trouble would be taken for its own.
pub const GRANT_EXTRA: Duration = Duration::from_secs(10);
/// What is read of a refusal.
const SAID_BYTES_MAX: usize = 1024;

/// A byte stream to an endpoint; one of its open connections.
#[derive(Debug)]
pub struct Tunnel {
    io: TunnelIo,
    _open: OpenGuard,
    facts: Option<Rc<facts::Upstream>>,
}

#[derive(Debug)]
enum TunnelIo {
    Raw(UpstreamIo),
    Connect(Upgraded),
}

impl Pool {
    /// Opens a byte stream; never taken from or given back to the pool.
    /// One outside of the mesh may begin with a greeting. It has `taken` of its backend's limit.
    pub async fn tunnel(
        self: &Rc<Self>,
        opening: Opening,
        greeting: Option<Bytes>,
        taken: Option<Taken>,
    ) -> Result<Tunnel, ConnectError> {
        let open = self.opened(taken);
        if !self.peer.is_mesh() {
            let peer = Peer { greeting, ..self.peer.clone() };
            let io = self.context.dialer.connect_opaque(&peer, opening).await?;
            let facts = self.context.noting.then(|| facts::Upstream::of(&io, None).into());
            return Ok(Tunnel { io: TunnelIo::Raw(io), _open: open, facts });
        }
        let (address, limit) = (self.peer.connect, opening.limit);
        let mut connection = self.open_h1(opening, open).await?;
        let authority = format!("{}:{}", address.ip(), self.peer.port);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(&authority)
            .header(http::header::HOST, &authority)
            .body(())
            .map_err(|e| ConnectError::Tcp { address, reason: e.to_string().into() })?;
        connection.exchange.begin(&request.into_parts().0, AttemptBody::empty());
        let asking = poll_fn(|cx| connection.exchange.poll_head(cx));
        let patience = limit.saturating_add(GRANT_EXTRA);
        let response = tokio::time::timeout(patience, asking)
            .await
            .map_err(|_| format!("it left a CONNECT unanswered for {} ms", patience.as_millis()))
            .and_then(|asked| asked.map_err(reason))
            .map_err(|reason| ConnectError::Tcp { address, reason: reason.into() })?;
        if response.status != StatusCode::OK {
            let saying = tokio::time::timeout(limit, said(&mut connection.exchange)).await;
            let (status, said) = (response.status.as_u16(), saying.unwrap_or_default());
            return Err(ConnectError::Tunnel { address, status, said: said.into() });
        }
        let facts = connection.facts.clone();
        let (io, open) = connection.upgraded();
        Ok(Tunnel { io: TunnelIo::Connect(io), _open: open, facts })
    }
}

/// The text of a refusal, which is a proxy's and says what to do next.
async fn said(exchange: &mut Exchange<UpstreamIo, AttemptBody>) -> String {
    let mut text = Vec::new();
    while text.len() < SAID_BYTES_MAX
        && let Some(Ok(frame)) = poll_fn(|cx| exchange.poll_frame(cx)).await
    {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    text.truncate(SAID_BYTES_MAX);
    let text = String::from_utf8_lossy(&text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Unsent(why) | Failure::Body(why) | Failure::Reset { why, .. } => why,
        Failure::Garbage(wrong) => wrong.sentence().to_owned(),
    }
}

impl Tunnel {
    /// What is known of it, where lines of the access log tell of that.
    pub fn facts(&self) -> Option<Rc<facts::Upstream>> {
        self.facts.clone()
    }
}

impl Socket for Tunnel {
    fn socket(&self) -> Option<&TcpStream> {
        match &self.io {
            TunnelIo::Raw(UpstreamIo::Plain(stream)) => Some(stream),
            _ => None,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            TunnelIo::Raw(s) => Pin::new(s).poll_read(cx, buf),
            TunnelIo::Connect(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            TunnelIo::Raw(s) => Pin::new(s).poll_write(cx, buf),
            TunnelIo::Connect(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            TunnelIo::Raw(s) => Pin::new(s).poll_flush(cx),
            TunnelIo::Connect(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            TunnelIo::Raw(s) => Pin::new(s).poll_shutdown(cx),
            TunnelIo::Connect(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
