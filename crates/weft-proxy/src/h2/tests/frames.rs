// SPDX-License-Identifier: Apache-2.0
//! A client that writes any frame it likes, and what a proxy answers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const CALM: u32 = 11;
/// What nobody answers whose connection has ended.
const GOES_ON: &[u8; 8] = b"goes on?";

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Came {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One connection.
pub struct Wire(pub TcpStream);

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal header that enters no table (RFC 7541 §6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        integer(&mut block, 7, 0, text.len());
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// RFC 7541 §5.1.
pub fn integer(block: &mut Vec<u8>, bits: u32, pattern: u8, mut n: usize) {
    let most = (1usize << bits) - 1;
    if n < most {
        return block.push(pattern | u8::try_from(n).unwrap());
    }
    block.push(pattern | u8::try_from(most).unwrap());
    n -= most;
    while n >= 128 {
        block.push(u8::try_from(n % 128 + 128).unwrap());
        n /= 128;
    }
    block.push(u8::try_from(n).unwrap());
}

/// `GET /` or `POST /` for the test's host.
pub fn request(method: &str) -> Vec<u8> {
    let mut block = vec![if method == "GET" { 0x82 } else { 0x83 }, 0x84, 0x86];
    block.extend(literal(":authority", "a.example"));
    block
}

pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET"))
}

pub fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST"))
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

// === impl Wire ===

impl Wire {
    pub async fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Self(stream);
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(&frame(SETTINGS, 0, 0, &[])).await;
        wire
    }

    /// Sends what is still taken.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// The next frame; `None` when the connection ended.
    pub async fn next(&mut self) -> Option<Came> {
        let reading = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            Some(Came { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("nothing came")
    }

    /// Resolves once there is a GOAWAY behind what was not read yet, which stays unread.
    /// Cancel-safe: it only looks.
    pub async fn hears_goaway(&mut self) {
        let mut seen = vec![0; 64 * 1024];
        loop {
            let n = self.0.peek(&mut seen).await.unwrap_or(0);
            let mut rest = &seen[..n];
            while let Some(head) = rest.get(..9) {
                if head[3] == GOAWAY {
                    return;
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                rest = rest.get(9 + length..).unwrap_or_default();
            }
            if n == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The next frame of a kind on a stream.
    pub async fn wait(&mut self, kind: u8, stream: u32) -> Option<Came> {
        loop {
            let came = self.next().await?;
            if came.kind == kind && came.stream == stream {
                return Some(came);
            }
        }
    }

    /// The code of the GOAWAY that ends the connection, and that it ends.
    pub async fn goaway(&mut self) -> u32 {
        // Behind what has ended it nothing is answered.
        self.send(&frame(PING, 0, 0, GOES_ON)).await;
        self.ended().await
    }

    /// The same, where nothing more can be asked.
    pub async fn ended(&mut self) -> u32 {
        // What it had read before it noticed may be answered: not what comes behind that.
        let (mut code, mut answers) = (None, 0);
        while let Some(came) = self.next().await {
            if came.kind == PING && came.payload == GOES_ON {
                answers += 1;
                assert!(answers < 4, "it goes on as if it were fine");
                self.send(&frame(PING, 0, 0, GOES_ON)).await;
            }
            if came.kind == GOAWAY {
                let bytes = came.payload.get(4..8).unwrap();
                code = Some(u32::from_be_bytes(bytes.try_into().unwrap()));
            }
        }
        code.expect("the connection ended without GOAWAY")
    }

    /// The code of a stream's reset, which comes in the place of an answer.
    pub async fn refusal(&mut self, stream: u32) -> u32 {
        loop {
            let came = self.next().await.expect("the connection ended without a reset");
            let of_it = came.stream == stream;
            assert!(!of_it || came.kind != HEADERS, "it is answered as if it were right: {came:?}");
            if of_it && came.kind == RST_STREAM {
                return u32::from_be_bytes(came.payload.try_into().unwrap());
            }
        }
    }

    /// Whether a request is answered: the connection is as it was.
    pub async fn is_fine(&mut self, stream: u32) -> bool {
        self.send(&get(stream)).await;
        self.wait(HEADERS, stream).await.is_some_and(|came| came.payload[0] == 0x88)
    }
}
