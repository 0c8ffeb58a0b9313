// SPDX-License-Identifier: Apache-2.0
//! The two ends of a request: a client that writes bytes and reads bytes, and origins that answer
//! every request and remember it. Neither shares code with the proxy's codec.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use weft_testkit::Ask;

/// A request as an origin got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: SocketAddr,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct Got {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

#[derive(Clone, Default)]
pub struct Origins(Rc<RefCell<Script>>);

/// What instances do with one request, and what they saw of it.
#[derive(Default)]
struct Script {
    /// So many times this status, then 200.
    failures: (usize, u16),
    /// Nobody answers.
    silent: bool,
    seen: Vec<Seen>,
}

pub struct Client {
    io: DuplexStream,
    read: Vec<u8>,
}

// === impl Origins ===

impl Origins {
    pub fn connect(&self, at: SocketAddr) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let script = self.0.clone();
        // The origin ends when its peer hangs up.
        #[allow(clippy::disallowed_methods)]
        tokio::task::spawn_local(origin(far, at, script));
        near
    }

    /// Begins with the next request.
    pub fn next(&self, failures: (usize, u16), silent: bool) {
        *self.0.borrow_mut() = Script { failures, silent, seen: Vec::new() };
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.0.borrow().seen.clone()
    }
}

async fn origin(mut io: DuplexStream, at: SocketAddr, script: Rc<RefCell<Script>>) {
    let mut read = Vec::new();
    while let Some(head) = head(&mut io, &mut read).await {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, target) = (word(), word());
        let status = {
            let mut script = script.borrow_mut();
            script.seen.push(Seen { at, method, target, headers: pairs(lines) });
            let (failures, status) = script.failures;
            match script.silent {
                true => continue,
                false if script.seen.len() <= failures => status,
                false => 200,
            }
        };
        let answer = format!(
            "HTTP/1.1 {status} Said\r\ncontent-length: 2\r\nx-set: origin\r\nx-add: origin\r\n\
             x-remove: origin\r\n\r\nok"
        );
        if io.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

// === impl Client ===

impl Client {
    pub fn new(io: DuplexStream) -> Self {
        Self { io, read: Vec::new() }
    }

    pub async fn send(&mut self, ask: &Ask, absolute: bool) -> Got {
        let (host, target) = (&ask.host, ask.target());
        let target = if absolute { format!("http://{host}{target}") } else { target };
        let mut text = format!("{} {target} HTTP/1.1\r\nhost: {host}\r\n", ask.method);
        for (name, value) in &ask.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.io.write_all(text.as_bytes()).await.unwrap();
        let head = head(&mut self.io, &mut self.read).await.unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default().split(' ').nth(1);
        let status = status.and_then(|s| s.parse().ok()).unwrap();
        let headers = pairs(lines);
        let length = headers.iter().find(|(n, _)| n == "content-length");
        let length: usize = length.and_then(|(_, v)| v.parse().ok()).unwrap_or(0);
        while self.read.len() < length {
            assert!(self.io.read_buf(&mut self.read).await.unwrap() > 0, "{head}");
        }
        let body: Vec<u8> = self.read.drain(..length).collect();
        Got { status, headers, body: String::from_utf8(body).unwrap() }
    }
}

/// A message's head, without its empty line.
async fn head(io: &mut DuplexStream, read: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(read[..end].to_vec()).unwrap();
            read.drain(..end + 4);
            return Some(head);
        }
        if io.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

fn pairs<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let split = lines.filter_map(|line| line.split_once(": "));
    split.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect()
}

/// All values of a header.
pub fn values(headers: &[(String, String)], name: &str) -> Vec<String> {
    headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
}
