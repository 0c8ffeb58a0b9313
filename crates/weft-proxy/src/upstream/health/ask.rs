// SPDX-License-Identifier: Apache-2.0
//! One health check: its own connection, one question, what the answer means. Called by the owner
//! of the checks; remembers nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_identity::Alpn;
use weft_model::decide::Probe;
use weft_model::{CheckKind, HealthCheck, HttpCheck};

use crate::table::{BackendEntry, EndpointEntry};
use crate::tcp::proxy_header;
use crate::upstream::connect::{Dialer, Opening, Peer, UpstreamIo};

/// What is read of an answer at most.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// What is read of a refusal's text.
const REASON_BYTES_MAX: usize = 1024;
const AGENT: &str = "weft-health-check";
/// So long a tunnel must hold out of which nothing is expected: a sidecar says yes to it before it
/// has reached its app, and breaks it off when it does not.
const TUNNEL_HOLDS: Duration = Duration::from_millis(250);

/// How far a check has come; whoever runs out of time says what it waited for.
#[derive(Debug, Default)]
struct Stage(AtomicU8);

const CONNECTING: u8 = 0;
const TUNNELLING: u8 = 1;
const ASKING: u8 = 2;

/// Asks an endpoint; says why when it is not well.
pub(super) async fn ask(
    dialer: &Dialer,
    backend: &Arc<BackendEntry>,
    entry: &EndpointEntry,
) -> (Probe, String) {
    let Some(check) = super::check_of(backend) else { return (Probe::Pass, String::new()) };
    let limit = Duration::from_millis(check.timeout_ms.max(1));
    let mut peer = Peer::of_entry(entry, dialer.mesh_port);
    let greeting = greeting(backend, check, &peer);
    peer.greeting = greeting.clone().filter(|_| !peer.is_mesh());
    if let Some(port) = check.port {
        peer.port = port;
        if !peer.is_mesh() {
            peer.connect.set_port(port);
        }
    }
    let stage = Stage::default();
    let asked = asked(dialer, (backend, check), &peer, greeting, &stage);
    match tokio::time::timeout(limit, asked).await {
        Err(_) => (Probe::Fail, stage.late(&peer, limit)),
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => (Probe::Fail, why),
    }
}

/// What a check says of itself to a port that wants to know its clients. Another port is another
/// server, of which nobody said so; between sidecars HTTP carries no header.
fn greeting(backend: &BackendEntry, check: &HealthCheck, peer: &Peer) -> Option<Bytes> {
    let version = backend.backend.policy.proxy_protocol?;
    let wanted = check.port.is_none_or(|port| port == peer.port);
    wanted.then(|| proxy_header::own(version))
}

async fn asked(
    dialer: &Dialer,
    (backend, check): (&BackendEntry, &HealthCheck),
    peer: &Peer,
    greeting: Option<Bytes>,
    stage: &Stage,
) -> Result<(Probe, String), String> {
    let limit = Duration::from_millis(check.timeout_ms.max(1));
    // Its own limit is the longer one: the check's says more.
    let patience = limit.saturating_mul(2);
    let http2 = match &check.kind {
        CheckKind::Http(http) => http.http2,
        CheckKind::Grpc { .. } => true,
        CheckKind::Tcp { .. } => false,
    };
    let alpn = if http2 { Alpn::H2 } else { Alpn::Http11 };
    let io = match &check.kind {
        CheckKind::Tcp { .. } => dialer.connect_opaque(peer, Opening::within(patience)).await,
        _ => dialer.connect(peer, alpn, Opening::within(patience)).await,
    };
    let mut io = io.map_err(|e| e.to_string())?;
    stage.set(ASKING);
    match &check.kind {
        CheckKind::Http(http) if http2 => over_h2(io, backend, http).await,
        CheckKind::Http(http) => over_h1(io, backend, http).await,
        CheckKind::Grpc { service, authority } => grpc(io, backend, service, authority).await,
        CheckKind::Tcp { send, expect } if peer.is_mesh() => {
            stage.set(TUNNELLING);
            let said = tunnel(&mut io, peer).await?;
            stage.set(ASKING);
            let send = [greeting.as_deref().unwrap_or_default(), send].concat();
            let seen = tcp(&mut io, said, &send, expect).await?;
            if seen.is_empty() {
                holds(&mut io, TUNNEL_HOLDS.min(limit / 2)).await?;
            }
            Ok((Probe::Pass, String::new()))
        }
        CheckKind::Tcp { send, expect } => {
            tcp(&mut io, Vec::new(), send, expect).await?;
            Ok((Probe::Pass, String::new()))
        }
    }
}

// === impl Stage ===

impl Stage {
    fn set(&self, stage: u8) {
        self.0.store(stage, Ordering::Relaxed);
    }

    /// What was waited for in vain.
    fn late(&self, peer: &Peer, limit: Duration) -> String {
        let (address, ms) = (peer.connect, limit.as_millis());
        match self.0.load(Ordering::Relaxed) {
            CONNECTING => format!("connecting to {address} took longer than {ms} ms"),
            TUNNELLING => format!(
                "its sidecar did not reach the app's port {} within {ms} ms; does the app accept \
                 connections?",
                peer.port
            ),
            _ => format!("no answer within {ms} ms"),
        }
    }
}

/// The host that is asked for: the policy's, or the service's own name.
fn host(backend: &BackendEntry, said: &str) -> String {
    match said {
        "" => format!("{}:{}", backend.backend.service, backend.backend.port),
        said => said.to_owned(),
    }
}

fn judged(http: &HttpCheck, status: u16) -> (Probe, String) {
    match http.expects(status) {
        true => (Probe::Pass, String::new()),
        false => (Probe::Refuses, format!("answered {} with status {status}", http.path)),
    }
}

async fn over_h1(
    mut io: UpstreamIo,
    backend: &BackendEntry,
    http: &HttpCheck,
) -> Result<(Probe, String), String> {
    let mut text = format!(
        "{} {} HTTP/1.1\r\nhost: {}\r\nuser-agent: {AGENT}\r\nconnection: close\r\n",
        http.method,
        http.path,
        host(backend, &http.host)
    );
    for (name, value) in &http.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    io.write_all(text.as_bytes()).await.map_err(|e| format!("sending failed: {e}"))?;
    let mut seen = Vec::with_capacity(512);
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        // The status line is all that is needed; many headers do not matter.
        let parsed = response.parse(&seen);
        if let Some(status) = response.code.filter(|code| *code >= 200) {
            return Ok(judged(http, status));
        }
        match parsed {
            Err(error) => return Err(format!("its answer is no HTTP: {error}")),
            // 100 and 103 come before what counts.
            Ok(httparse::Status::Complete(end)) => drop(seen.drain(..end)),
            Ok(httparse::Status::Partial) => more(&mut io, &mut seen).await?,
        }
    }
}

/// Reads on in the head of an answer.
async fn more(io: &mut UpstreamIo, seen: &mut Vec<u8>) -> Result<(), String> {
    if seen.len() >= ANSWER_BYTES_MAX {
        return Err("its answer's head is too long".into());
    }
    match io.read_buf(seen).await {
        Ok(0) => Err("it closed the connection before it answered".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("reading failed: {error}")),
    }
}

async fn over_h2(
    io: UpstreamIo,
    backend: &BackendEntry,
    http: &HttpCheck,
) -> Result<(Probe, String), String> {
    let method = Method::from_bytes(http.method.as_bytes()).unwrap_or(Method::GET);
    let uri = format!("http://{}{}", host(backend, &http.host), http.path);
    let mut request = Request::builder().method(method).uri(uri).header("user-agent", AGENT);
    for (name, value) in &http.headers {
        request = request.header(&**name, &**value);
    }
    let request = request.body(()).map_err(|e| e.to_string())?;
    let response = h2_call(io, request, None).await?;
    Ok(judged(http, response.status.as_u16()))
}

/// What came back over HTTP/2.
struct Came {
    status: StatusCode,
    grpc_status: Option<String>,
    body: Bytes,
}

async fn h2_call(
    io: UpstreamIo,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<Came, String> {
    let (sender, connection) =
        h2::client::handshake(io).await.map_err(|e| format!("no HTTP/2: {e}"))?;
    let call = async {
        let mut sender = sender.ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_none())?;
        let grpc = body.is_some();
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        let response = response.await?;
        let text = |headers: &http::HeaderMap| {
            headers.get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let (status, mut grpc_status) = (response.status(), text(response.headers()));
        let mut came = BytesMut::new();
        let mut answer = response.into_body();
        while let Some(data) = answer.data().await.filter(|_| grpc) {
            let data = data?;
            answer.flow_control().release_capacity(data.len())?;
            came.extend_from_slice(&data);
            if came.len() > ANSWER_BYTES_MAX {
                break;
            }
        }
        if grpc && grpc_status.is_none() {
            grpc_status = answer.trailers().await?.as_ref().and_then(text);
        }
        Ok(Came { status, grpc_status, body: came.freeze() })
    };
    tokio::select! {
        came = call => came.map_err(|e: h2::Error| format!("no answer: {e}")),
        ended = connection => match ended {
            Ok(()) => Err("it closed the connection before it answered".into()),
            Err(error) => Err(format!("the connection broke: {error}")),
        },
    }
}

/// `grpc.health.v1.Health/Check`, whose two messages have one field each.
async fn grpc(
    io: UpstreamIo,
    backend: &BackendEntry,
    service: &str,
    authority: &str,
) -> Result<(Probe, String), String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}/grpc.health.v1.Health/Check", host(backend, authority)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", AGENT)
        .body(())
        .map_err(|e| e.to_string())?;
    let came = h2_call(io, request, Some(asking(service))).await?;
    Ok(match (came.status, came.grpc_status.as_deref(), serving(&came.body)) {
        (StatusCode::OK, Some("0"), Some(1)) => (Probe::Pass, String::new()),
        (StatusCode::OK, Some("0"), state) => {
            (Probe::Refuses, format!("says that it is not serving (state {})", state.unwrap_or(0)))
        }
        (StatusCode::OK, Some(code), _) => (Probe::Refuses, format!("answered grpc-status {code}")),
        (status, _, _) => (Probe::Refuses, format!("answered with status {}", status.as_u16())),
    })
}

/// A framed `HealthCheckRequest`.
fn asking(service: &str) -> Bytes {
    let service = service.get(..service.len().min(127)).unwrap_or("");
    let length = u8::try_from(service.len()).unwrap_or(0);
    let mut out = BytesMut::with_capacity(7 + service.len());
    let message = if length == 0 { 0 } else { u32::from(length) + 2 };
    out.put_u8(0);
    out.put_u32(message);
    if length > 0 {
        out.put_u8(0x0a);
        out.put_u8(length);
        out.put_slice(service.as_bytes());
    }
    out.freeze()
}

/// The state in a framed `HealthCheckResponse`: 1 is serving; nothing is 0, unknown.
fn serving(body: &[u8]) -> Option<u8> {
    match body {
        [0, 0, 0, 0, 0] => Some(0),
        [0, 0, 0, 0, 2, 0x08, state] => Some(*state),
        _ => None,
    }
}

/// Opens a tunnel to the app of a mesh instance: what its sidecar says by itself proves nothing.
/// Returns what came behind the answer.
async fn tunnel(io: &mut UpstreamIo, peer: &Peer) -> Result<Vec<u8>, String> {
    let app = SocketAddr::new(peer.connect.ip(), peer.port);
    let ask = format!("CONNECT {app} HTTP/1.1\r\nhost: {app}\r\nuser-agent: {AGENT}\r\n\r\n");
    io.write_all(ask.as_bytes()).await.map_err(|e| format!("sending failed: {e}"))?;
    io.flush().await.map_err(|e| format!("sending failed: {e}"))?;
    let mut seen = Vec::with_capacity(512);
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&seen);
        match (parsed, response.code.unwrap_or(0)) {
            (Err(error), _) => return Err(format!("its sidecar's answer is no HTTP: {error}")),
            (Ok(httparse::Status::Complete(end)), 200) => return Ok(seen.split_off(end)),
            (Ok(httparse::Status::Complete(end)), 100..200) => drop(seen.drain(..end)),
            (Ok(httparse::Status::Complete(end)), status) => {
                let length = response.headers.iter().find(|h| is_length(h));
                let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.parse().ok());
                let said = reason(io, seen.split_off(end), length.unwrap_or(0)).await;
                return Err(format!("its sidecar refused the tunnel with status {status}{said}"));
            }
            (Ok(httparse::Status::Partial), _) => more(io, &mut seen).await?,
        }
    }
}

fn is_length(header: &httparse::Header<'_>) -> bool {
    header.name.eq_ignore_ascii_case("content-length")
}

/// The text of a refusal, which is the sidecar's and says why.
async fn reason(io: &mut UpstreamIo, mut seen: Vec<u8>, length: usize) -> String {
    let length = length.min(REASON_BYTES_MAX);
    while seen.len() < length && more(io, &mut seen).await.is_ok() {}
    seen.truncate(length);
    let text = String::from_utf8_lossy(&seen);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

/// Whether a tunnel goes on to an app that need not say anything. Bytes and an orderly end are
/// the app's own; a sidecar that does not reach its app breaks off without one.
async fn holds(io: &mut UpstreamIo, within: Duration) -> Result<(), String> {
    match tokio::time::timeout(within, io.read(&mut [0])).await {
        Err(_) | Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("its sidecar does not reach the app: {error}")),
    }
}

/// Sends, and waits until each expected piece came, in order; what came in all. `seen` came
/// already.
async fn tcp(
    io: &mut UpstreamIo,
    mut seen: Vec<u8>,
    send: &[u8],
    expect: &[Vec<u8>],
) -> Result<Vec<u8>, String> {
    io.write_all(send).await.map_err(|e| format!("sending failed: {e}"))?;
    io.flush().await.map_err(|e| format!("sending failed: {e}"))?;
    while !contains(&seen, expect) {
        if seen.len() > ANSWER_BYTES_MAX {
            return Err("what it sends does not contain what is expected".into());
        }
        let read = io.read_buf(&mut seen).await.map_err(|e| format!("reading failed: {e}"))?;
        if read == 0 {
            return Err("it closed the connection before what is expected came".into());
        }
    }
    Ok(seen)
}

fn contains(mut seen: &[u8], expect: &[Vec<u8>]) -> bool {
    expect.iter().filter(|piece| !piece.is_empty()).all(|piece| {
        let at = seen.windows(piece.len()).position(|window| window == piece.as_slice());
        seen = at.and_then(|at| seen.get(at + piece.len()..)).unwrap_or_default();
        at.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order() {
        let pieces = |list: &[&str]| -> Vec<Vec<u8>> {
            list.iter().map(|piece| piece.as_bytes().to_vec()).collect()
        };
        for (seen, expect, want) in [
            ("+PONG\r\n", &["PONG"][..], true),
            ("a b", &["a", "b"], true),
            ("b a", &["a", "b"], false),
            ("aa", &["a", "a"], true),
            ("a", &["a", "a"], false),
            ("", &[], true),
            ("", &[""], true),
        ] {
            assert_eq!(contains(seen.as_bytes(), &pieces(expect)), want, "{seen} {expect:?}");
        }
    }

    #[test]
    fn the_messages_of_grpc_health() {
        assert_eq!(&*asking(""), [0, 0, 0, 0, 0]);
        assert_eq!(&*asking("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 2]), Some(2));
        assert_eq!(serving(&[0, 0, 0]), None);
    }
}
