// SPDX-License-Identifier: Apache-2.0
//! A proxy that speaks HTTP/2 and believes everything: no frame is one too many, no stream is in
//! the wrong state, no length is compared, no field is refused. Cases that the h2 crate decides
//! are played at it too, and must fail there: what it lacks is what they look for.

use std::collections::HashMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::*;
use crate::tests::bed::Server;

/// The guard that stands for all of the h2 crate's own.
pub const LIBRARY: &str = "h2-library";
const ACK: u8 = 1;

/// Passes what it takes for requests on to `origin` and answers all of them itself, with 200.
pub async fn naive(origin: SocketAddr) -> Server {
    Server::raw(move |_, mut stream| async move {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).await.is_err() {
            return;
        }
        let mut peer = Peer { origin, block: Vec::new(), open: HashMap::new() };
        let mut wire = Wire(stream);
        wire.send(&frame(SETTINGS, 0, 0, &[])).await;
        while let Some(came) = wire.next().await {
            let answer = peer.take(came).await;
            if !wire.send(&answer).await {
                return;
            }
        }
    })
    .await
}

struct Peer {
    origin: SocketAddr,
    /// Headers that have not ended.
    block: Vec<u8>,
    /// Where each stream goes.
    open: HashMap<u32, TcpStream>,
}

// === impl Peer ===

impl Peer {
    async fn take(&mut self, came: Came) -> Vec<u8> {
        let Came { kind, flags, stream, payload } = came;
        match kind {
            SETTINGS if flags & ACK == 0 => return frame(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => return frame(PING, ACK, 0, &payload),
            HEADERS | CONTINUATION => {
                self.block.extend_from_slice(&payload);
                // Few limits are as simple as none, but a test ends some day.
                self.block.truncate(1 << 20);
                if flags & END_HEADERS == 0 {
                    return Vec::new();
                }
                let block = std::mem::take(&mut self.block);
                self.pass_on(stream, head(&block).as_bytes()).await;
            }
            DATA => self.pass_on(stream, &[&payload[..], b"\r\n"].concat()).await,
            _ => return Vec::new(),
        }
        match flags & END_STREAM {
            0 => Vec::new(),
            _ => frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88]),
        }
    }

    async fn pass_on(&mut self, stream: u32, bytes: &[u8]) {
        if let Some(open) = self.open.get_mut(&stream) {
            let _ = open.write_all(bytes).await;
        } else if let Ok(mut open) = TcpStream::connect(self.origin).await {
            let _ = open.write_all(bytes).await;
            self.open.insert(stream, open);
        }
    }
}

/// A request's head, of what these tests write: names of the static table and literals.
fn head(block: &[u8]) -> String {
    let (mut method, mut path) = ("GET".to_owned(), "/".to_owned());
    let mut lines = String::new();
    let mut rest = block;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first & 0x80 != 0 || *first & 0x20 != 0 {
            method = if *first == 0x83 { "POST".into() } else { method };
            continue;
        }
        let (Some(name), Some(value)) = (text(&mut rest), text(&mut rest)) else { break };
        match &*name {
            ":method" => method = value,
            ":path" => path = value,
            _ if name.starts_with(':') => {}
            _ => lines.push_str(&format!("{name}: {value}\r\n")),
        }
    }
    format!("{method} {path} HTTP/1.1\r\nhost: a.example\r\n{lines}\r\n")
}

/// A text of less than 127 bytes.
fn text(rest: &mut &[u8]) -> Option<String> {
    let (length, after) = rest.split_first()?;
    let (text, after) = after.split_at_checked(usize::from(*length))?;
    *rest = after;
    Some(String::from_utf8_lossy(text).into_owned())
}
