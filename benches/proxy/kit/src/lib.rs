// SPDX-License-Identifier: Apache-2.0
//! What the rig's programs share: arguments, an epoll set of sockets, a histogram. Called by the
//! programs under `bin/` only; knows nothing of weft.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// `--name value` and `--name` on the command line.
#[derive(Debug)]
pub struct Args(Vec<String>);

/// Sockets that are watched, each under its number.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

/// Nanoseconds, 128 buckets per power of two (under 0.8 % off).
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    pub count: u64,
    sum: u128,
    max: u64,
}

// === impl Args ===

impl Args {
    pub fn read() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|a| a == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T {
        self.get(name).and_then(|v| v.parse().ok()).unwrap_or(default)
    }

    /// A port of loopback, or an address with a port.
    pub fn address(&self, name: &str) -> SocketAddr {
        let text = self.get(name).unwrap_or_else(|| fail(&format!("{name} ADDRESS is missing")));
        if let Ok(port) = text.parse::<u16>() {
            return (Ipv4Addr::LOCALHOST, port).into();
        }
        text.parse().unwrap_or_else(|_| fail(&format!("{text} is no address")))
    }
}

// === impl Poll ===

impl Poll {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, events: Vec::with_capacity(512) })
    }

    pub fn add(&self, socket: &impl AsFd, number: u64, edges: bool) -> io::Result<()> {
        let mut flags = EventFlags::IN | EventFlags::RDHUP;
        if edges {
            flags |= EventFlags::OUT | EventFlags::ET;
        }
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), flags)?)
    }

    /// Numbers of the sockets that something happened to.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<Vec<u64>> {
        let limit = limit
            .map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) });
        self.events.clear();
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, spare, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.iter().map(|e| e.data.u64()).collect())
    }
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; 128 * 60], count: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, ns: u64) {
        let at = if ns < 128 {
            ns as usize
        } else {
            let power = 63 - ns.leading_zeros() as usize;
            (power - 6) * 128 + ((ns >> (power - 7)) & 127) as usize
        };
        self.buckets[at] += 1;
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// Microseconds below which `percent` of the values are.
    pub fn micros(&self, percent: f64) -> f64 {
        let wanted = ((percent / 100.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                let (power, step) = (at / 128 + 6, (at % 128) as u64);
                let ns = if at < 128 { at as u64 } else { (1 << power) + (step << (power - 7)) };
                return ns as f64 / 1e3;
            }
        }
        self.max as f64 / 1e3
    }

    pub fn mean_micros(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 / 1e3 }
    }
}

pub fn fail(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(2)
}

pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A connection that waits for nothing from here on.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    ready(&stream)?;
    Ok(stream)
}

pub fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)
}

/// Where a head ends that begins with `bytes`.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The Content-Length of an answer's head.
pub fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|b| *b == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        let named = name.eq_ignore_ascii_case(b"content-length:");
        named.then(|| std::str::from_utf8(value).ok()?.trim().parse().ok()).flatten()
    })
}
