// SPDX-License-Identifier: Apache-2.0
//! Attacks that worked on proxies, by their numbers in the list of regressions: bytes through real
//! sockets against a real proxy. The ledger of regressions says the guard that each case relies on;
//! it is run again without that guard, and must fail then.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use crate::guards::patience;
use crate::table::Door;

mod fields;
mod framing;
mod misdirected;
mod targets;

/// Stands behind what is refused: an answer to it would be a smuggled request's.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: user\r\nConnection: close\r\n\r\n";
pub const LAST: &str = "GET /last HTTP/1.1\r\nHost: user\r\nConnection: close\r\n\r\n";

/// A proxy before an origin that believes everything and keeps what it gets.
pub struct Rig {
    _bed: Bed,
    pub at: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    _origin: Server,
}

/// What came back, until the proxy closed or [`patience`] ended.
#[derive(Debug)]
pub struct Played {
    pub text: String,
    pub closed: bool,
}

// === impl Rig ===

impl Rig {
    /// A sidecar's port of one service: it says why it refuses.
    pub async fn sidecar() -> Self {
        let (origin, seen) = naive().await;
        let bed = Bed::sidecar(http_service("user", &[origin.address])).await;
        let at = bed.door(|d| matches!(d, Door::Upstream { .. }));
        Self { _bed: bed, at, seen, _origin: origin }
    }

    /// A gateway with routes to one service.
    pub async fn gateway(edge: Edge, rules: Vec<Rule>) -> Self {
        let (origin, seen) = naive().await;
        let mut all = http_service("user", &[origin.address]);
        let (name, mut listener) = gateway(None);
        if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
            g.edge = edge;
        }
        all.push((name, listener));
        all.push(gateway_route("r", &[], rules));
        let bed = Bed::gateway(all).await;
        let at = bed.listener();
        Self { _bed: bed, at, seen, _origin: origin }
    }

    pub async fn play(&self, bytes: &[u8]) -> Played {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        // It may be refused before it is written.
        let _ = stream.write_all(bytes).await;
        let mut all = Vec::new();
        let reading = stream.read_to_end(&mut all);
        let closed = tokio::time::timeout(patience(), reading).await.is_ok();
        Played { text: String::from_utf8_lossy(&all).into_owned(), closed }
    }

    /// What the origin was sent.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// One answer, of this status and with this sentence, nothing else, and the origin was sent
    /// nothing that it could take for a request.
    pub async fn refuses(&self, status: u16, sentence: &str, bytes: &[u8]) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let whole = [bytes, SMUGGLED.as_bytes()].concat();
        let played = self.play(&whole).await;
        let seen = self.seen();
        assert!(!seen.contains("/smuggled"), "smuggled: {shown:?}: {seen:?}");
        assert!(!is_request(seen.as_bytes()), "forwarded: {shown:?}: {seen:?}");
        assert!(played.closed || !played.text.is_empty(), "unanswered: {shown:?}");
        let begin = format!("HTTP/1.1 {status} ");
        assert!(played.text.starts_with(&begin), "not refused: {shown:?}: {played:?}");
        assert!(played.text.contains(sentence), "refused as something else: {shown:?}: {played:?}");
        assert_eq!(played.answers(), 1, "answered twice: {shown:?}: {played:?}");
        assert!(played.closed, "left open: {shown:?}: {played:?}");
    }

    /// The same bytes but for what is wrong get through.
    pub async fn takes(&self, bytes: &[u8]) -> Played {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        let played = self.play(&[bytes, LAST.as_bytes()].concat()).await;
        assert!(played.text.starts_with("HTTP/1.1 200 "), "{shown:?}: {played:?}");
        assert_eq!(played.text.matches("HTTP/1.1 200 ").count(), 2, "{shown:?}: {played:?}");
        played
    }
}

// === impl Played ===

impl Played {
    pub fn answers(&self) -> usize {
        let begins = self.text.match_indices("HTTP/1.1 ");
        begins
            .filter(|(at, begin)| self.text[at + begin.len()..].starts_with(char::is_numeric))
            .count()
    }
}

/// Answers each request that looks complete.
async fn naive() -> (Server, Arc<Mutex<Vec<u8>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let all = seen.clone();
    let server = Server::raw(move |_, mut stream| {
        let all = all.clone();
        async move {
            let mut buffer = [0u8; 16 * 1024];
            let mut one = Vec::new();
            loop {
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                if n == 0 {
                    return;
                }
                all.lock().unwrap().extend_from_slice(&buffer[..n]);
                one.extend_from_slice(&buffer[..n]);
                while let Some(end) = end_of_request(&one) {
                    one.drain(..end);
                    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(ok).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (server, seen)
}

fn is_request(bytes: &[u8]) -> bool {
    end_of_request(bytes).is_some()
}

/// Where the first request ends: by Content-Length, or with the last chunk, or with its head.
fn end_of_request(bytes: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let lines = &text[..text.find("\r\n\r\n")?];
    let field =
        |name: &str| lines.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
    if field("transfer-encoding:").is_some() {
        let rest = &bytes[head..];
        let last = rest.windows(3).position(|w| w == b"0\r\n")?;
        let end = rest[last..].windows(4).position(|w| w == b"\r\n\r\n")?;
        return Some(head + last + end + 4);
    }
    let length = field("content-length:").and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

/// Cases of one number: a name, status, part of the sentence, bytes.
macro_rules! refused {
    ($($name:ident $status:literal $sentence:literal $bytes:expr;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let rig = super::Rig::sidecar().await;
                let bytes: Vec<u8> = $bytes.into();
                rig.refuses($status, $sentence, &bytes).await;
            }
        )+
    };
}
use refused;
