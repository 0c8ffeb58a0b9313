// SPDX-License-Identifier: Apache-2.0
//! Limits for a proxy with one worker: bytes passed on as they are (`--mode tcp`), and HTTP/1 heads
//! parsed on the way, nothing else done (`--mode http`).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use kit::{Args, Poll, connect};

/// Client and upstream; side 0 is the client.
struct Pair {
    sides: [TcpStream; 2],
    /// Of the message that arrives on each side: what is left of its body, and of its head what
    /// is here.
    left: [usize; 2],
    heads: [Vec<u8>; 2],
}

fn main() -> io::Result<()> {
    let args = Args::read();
    let listener = kit::listen(args.address("--listen"))?;
    let (to, http) = (args.address("--to"), args.get("--mode") == Some("http"));
    let mut poll = Poll::new()?;
    poll.add(&listener, u64::MAX, false)?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut bytes = vec![0; args.number("--buf", 16 * 1024)];
    loop {
        for number in poll.wait(None)? {
            if number == u64::MAX {
                while let Ok((client, _)) = listener.accept() {
                    let at = pairs.iter().position(Option::is_none).unwrap_or(pairs.len());
                    let pair = Pair::new(client, to)?;
                    for (side, stream) in (0..).zip(&pair.sides) {
                        poll.add(stream, at as u64 * 2 + side, false)?;
                    }
                    if at == pairs.len() { pairs.push(Some(pair)) } else { pairs[at] = Some(pair) }
                }
                continue;
            }
            let (at, side) = ((number / 2) as usize, (number % 2) as usize);
            let Some(Some(pair)) = pairs.get_mut(at) else { continue };
            if !pair.pass(side, &mut bytes, http) {
                pairs[at] = None;
            }
        }
    }
}

impl Pair {
    fn new(client: TcpStream, to: SocketAddr) -> io::Result<Self> {
        kit::ready(&client)?;
        let (left, heads) = Default::default();
        Ok(Self { sides: [client, connect(to)?], left, heads })
    }

    /// Passes on what one side sent; `false` when that was all.
    fn pass(&mut self, side: usize, bytes: &mut [u8], http: bool) -> bool {
        let n = match self.sides[side].read(bytes) {
            Ok(0) => return false,
            Ok(n) => n,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if http && !self.follow(side, &bytes[..n]) {
            return false;
        }
        write_all(&mut self.sides[1 - side], &bytes[..n])
    }

    /// Parses heads and skips bodies.
    fn follow(&mut self, side: usize, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let skipped = self.left[side].min(bytes.len());
            self.left[side] -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return true;
            }
            let before = self.heads[side].len();
            let parsed = if before == 0 {
                parse(bytes, side)
            } else {
                self.heads[side].extend_from_slice(bytes);
                parse(&self.heads[side], side)
            };
            match parsed {
                Some(Some((end, length))) => {
                    bytes = &bytes[end - before..];
                    self.left[side] = length;
                    self.heads[side].clear();
                }
                Some(None) => {
                    if before == 0 {
                        self.heads[side].extend_from_slice(bytes);
                    }
                    return true;
                }
                None => return false,
            }
        }
        true
    }
}

/// Where a head ends and how long its body is; `Some(None)` needs more bytes.
fn parse(bytes: &[u8], side: usize) -> Option<Option<(usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let (status, headers) = if side == 0 {
        let mut request = httparse::Request::new(&mut headers);
        (request.parse(bytes).ok()?, request.headers)
    } else {
        let mut response = httparse::Response::new(&mut headers);
        (response.parse(bytes).ok()?, response.headers)
    };
    let httparse::Status::Complete(end) = status else { return Some(None) };
    let named = headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = named.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse().ok());
    Some(Some((end, length.unwrap_or(0))))
}

fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return false,
            Ok(n) => bytes = &bytes[n..],
            // The limit has no queue: it waits here for a reader that is slow.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::OUT)];
                let _ = rustix::event::poll(&mut fds, None);
            }
            Err(_) => return false,
        }
    }
    true
}
