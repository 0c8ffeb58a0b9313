// SPDX-License-Identifier: Apache-2.0
//! An upstream over HTTP/1.1 that answers every GET with 1 KiB: the least that one can cost.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use kit::{Args, Poll, head_end};

struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
}

fn main() -> io::Result<()> {
    let args = Args::read();
    let listener = kit::listen(args.address("--listen"))?;
    let body = "x".repeat(args.number("--body", 1024));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", body.len());
    let date = "date: Sat, 21 Nov 2026 09:00:00 GMT\r\ncontent-type: text/plain\r\n";
    let answer = format!("{head}{date}\r\n{body}").into_bytes();
    let mut poll = Poll::new()?;
    poll.add(&listener, u64::MAX, false)?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut bytes = vec![0; 16 * 1024];
    loop {
        for number in poll.wait(None)? {
            if number == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    kit::ready(&stream)?;
                    let free = conns.iter().position(Option::is_none);
                    let at = free.unwrap_or(conns.len());
                    poll.add(&stream, at as u64, false)?;
                    let conn = Some(Conn { stream, buffer: Vec::new() });
                    if at == conns.len() { conns.push(conn) } else { conns[at] = conn }
                }
                continue;
            }
            let Some(Some(conn)) = conns.get_mut(number as usize) else { continue };
            if !conn.answer(&mut bytes, &answer) {
                conns[number as usize] = None;
            }
        }
    }
}

impl Conn {
    /// Answers what has come; `false` when the connection is over.
    fn answer(&mut self, bytes: &mut [u8], answer: &[u8]) -> bool {
        let n = match self.stream.read(bytes) {
            Ok(0) => return false,
            Ok(n) => n,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if self.buffer.is_empty() && bytes[..n].ends_with(b"\r\n\r\n") {
            return self.stream.write_all(answer).is_ok();
        }
        self.buffer.extend_from_slice(&bytes[..n]);
        while let Some(end) = head_end(&self.buffer) {
            self.buffer.drain(..end);
            if self.stream.write_all(answer).is_err() {
                return false;
            }
        }
        true
    }
}
