// SPDX-License-Identifier: Apache-2.0
//! A load generator over HTTP/1.1, on one thread. Closed loop: `--conns` connections, each asks
//! again when it is answered (`--close`: on a new connection). Open loop: `--rate` requests a
//! second, each timed from when it was due. With `--json` one line of figures, in microseconds.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::{Args, Histogram, Poll, content_length, head_end};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

struct Conn {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    buffer: Vec<u8>,
    /// When the request under way was sent, and when it was due.
    asked: Option<(Instant, Instant)>,
    sent: usize,
}

struct Load {
    to: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    request: Vec<u8>,
    close: bool,
    poll: Poll,
    conns: Vec<Conn>,
    whole: Histogram,
    service: Histogram,
    bad: u64,
    errors: u64,
}

fn main() -> io::Result<()> {
    let args = Args::read();
    let seconds: f64 = args.number("--dur", 5.0);
    let rate: u64 = args.number("--rate", 0);
    let close = args.has("--close");
    let path = args.get("--path").unwrap_or("/");
    let host = args.get("--host").unwrap_or("bench.local");
    let last = if close { "connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: lg\r\n{last}\r\n");
    let mut load = Load {
        to: args.address("--to"),
        tls: args.has("--tls").then(|| tls(&args)),
        request: request.into_bytes(),
        close,
        poll: Poll::new()?,
        conns: Vec::new(),
        whole: Histogram::default(),
        service: Histogram::default(),
        bad: 0,
        errors: 0,
    };
    for number in 0..args.number("--conns", 64) {
        let conn = load.open(number)?;
        load.conns.push(conn);
    }
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    if rate > 0 {
        load.at_rate(began, end, rate)?
    } else {
        load.closed(end)?
    }
    let took = began.elapsed().as_secs_f64();
    load.print(took, rate > 0);
    Ok(())
}

/// Trusts `--ca` and shows `--cert` and `--key`.
fn tls(args: &Args) -> (Arc<ClientConfig>, ServerName<'static>) {
    let made = || {
        let mut roots = RootCertStore::empty();
        let ca = args.get("--ca").ok_or("--tls needs --ca FILE")?;
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match (args.get("--cert"), args.get("--key")) {
            (Some(cert), Some(key)) => {
                let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<_, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Every handshake is a full one.
        config.resumption = rustls::client::Resumption::disabled();
        let name = args.get("--sni").unwrap_or("localhost").to_owned();
        Ok::<_, Box<dyn std::error::Error>>((Arc::new(config), ServerName::try_from(name)?))
    };
    made().unwrap_or_else(|error| kit::fail(&error.to_string()))
}

// === impl Load ===

impl Load {
    fn open(&self, number: usize) -> io::Result<Conn> {
        let stream = kit::connect(self.to)?;
        self.poll.add(&stream, number as u64, true)?;
        let session = |(config, name): &(Arc<ClientConfig>, ServerName<'static>)| {
            ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)
        };
        let tls = self.tls.as_ref().map(session).transpose()?;
        Ok(Conn { stream, tls, buffer: Vec::new(), asked: None, sent: 0 })
    }

    fn ask(&mut self, number: usize, due: Instant) {
        let conn = &mut self.conns[number];
        (conn.asked, conn.sent) = (Some((Instant::now(), due)), 0);
        self.go_on(number);
    }

    fn closed(&mut self, end: Instant) -> io::Result<()> {
        for number in 0..self.conns.len() {
            self.ask(number, Instant::now());
        }
        while Instant::now() < end {
            for number in self.poll.wait(Some(Duration::from_millis(100)))? {
                let number = number as usize;
                while self.go_on(number) {
                    if Instant::now() >= end {
                        return Ok(());
                    }
                    let now = Instant::now();
                    if self.close {
                        self.conns[number] = self.open(number)?;
                    }
                    self.ask(number, now);
                    if self.close {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn at_rate(&mut self, began: Instant, end: Instant, rate: u64) -> io::Result<()> {
        let gap = Duration::from_nanos(1_000_000_000 / rate);
        let (mut due, mut free): (_, Vec<usize>) = (began, (0..self.conns.len()).collect());
        while Instant::now() < end {
            while due <= Instant::now()
                && let Some(number) = free.pop()
            {
                self.ask(number, due);
                due += gap;
            }
            // When all connections are busy, only an answer can free one.
            let pause = due.saturating_duration_since(Instant::now());
            let limit = if free.is_empty() { Duration::from_millis(100) } else { pause };
            for number in self.poll.wait(Some(limit))? {
                if self.go_on(number as usize) {
                    free.push(number as usize);
                }
            }
        }
        Ok(())
    }

    /// Sends and reads what can be; `true` when the request under way was answered.
    fn go_on(&mut self, number: usize) -> bool {
        let conn = &mut self.conns[number];
        match conn.exchange(&self.request) {
            Ok(None) => false,
            Ok(Some(good)) => {
                let Some((sent, due)) = conn.asked.take() else { return false };
                let now = Instant::now();
                self.whole.add((now - due).as_nanos() as u64);
                self.service.add((now - sent).as_nanos() as u64);
                self.bad += u64::from(!good);
                true
            }
            Err(_) => {
                self.errors += 1;
                match self.open(number) {
                    Ok(new) => self.conns[number] = new,
                    Err(error) => kit::fail(&format!("cannot connect again: {error}")),
                }
                self.ask(number, Instant::now());
                false
            }
        }
    }

    fn print(&self, seconds: f64, open: bool) {
        let (all, h) = (self.whole.count, &self.whole);
        print!("{{\"rps\":{:.1},\"total\":{all},", all as f64 / seconds);
        print!("\"bad\":{},\"errs\":{},", self.bad, self.errors);
        print!("\"p50\":{:.1},\"p99\":{:.1},", h.micros(50.0), h.micros(99.0));
        print!("\"p999\":{:.1},\"mean_us\":{:.1}", h.micros(99.9), h.mean_micros());
        if open {
            let s = &self.service;
            print!(",\"svc_p50\":{:.1},\"svc_p99\":{:.1}", s.micros(50.0), s.micros(99.0));
        }
        println!("}}");
    }
}

// === impl Conn ===

impl Conn {
    /// Whether the answer is here, and good.
    fn exchange(&mut self, request: &[u8]) -> io::Result<Option<bool>> {
        if self.asked.is_none() {
            return Ok(None);
        }
        loop {
            let wrote = self.send(request)?;
            let read = self.receive()?;
            if let Some(end) = head_end(&self.buffer) {
                let head = &self.buffer[..end];
                let length = content_length(head).unwrap_or(0);
                if self.buffer.len() >= end + length {
                    let good = head.starts_with(b"HTTP/1.1 200") && length > 0;
                    self.buffer.clear();
                    return Ok(Some(good));
                }
            }
            if !wrote && !read {
                return Ok(None);
            }
        }
    }

    /// Whether anything moved.
    fn send(&mut self, request: &[u8]) -> io::Result<bool> {
        let left = &request[self.sent..];
        let Some(tls) = &mut self.tls else {
            if left.is_empty() {
                return Ok(false);
            }
            self.sent += would_block(self.stream.write(left))?.unwrap_or(0);
            return Ok(true);
        };
        let mut moved = false;
        if !tls.is_handshaking() && !left.is_empty() {
            self.sent += tls.writer().write(left)?;
            moved = true;
        }
        while tls.wants_write() && would_block(tls.write_tls(&mut self.stream))?.is_some() {
            moved = true;
        }
        Ok(moved)
    }

    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 * 1024];
        let Some(tls) = &mut self.tls else {
            let Some(n) = would_block(self.stream.read(&mut bytes))? else { return Ok(false) };
            self.buffer.extend_from_slice(&bytes[..n]);
            // Nothing more is there when less came than asked for.
            return if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) };
        };
        let Some(n) = would_block(tls.read_tls(&mut self.stream))? else { return Ok(false) };
        tls.process_new_packets().map_err(io::Error::other)?;
        while let Some(n) = would_block(tls.reader().read(&mut bytes))? {
            self.buffer.extend_from_slice(&bytes[..n]);
            if n == 0 {
                break;
            }
        }
        let done = head_end(&self.buffer).is_some();
        if n == 0 && !done { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(n > 0) }
    }
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
