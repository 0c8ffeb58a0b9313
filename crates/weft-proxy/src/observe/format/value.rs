// SPDX-License-Identifier: Apache-2.0
//! What each operator shows of a request or an opaque connection. Values go through one sink that
//! escapes: nothing a peer sends can end a line, a quoted field or a JSON text.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::HeaderValue;

use super::Noted;
use super::more::{self, More};
use super::words;
use crate::guards;
use crate::observe::access_log::Relayed;
use crate::observe::facts;
use crate::observe::flags::{FLAGS, Flags};
use crate::observe::quick;
use crate::observe::record::Record;
use crate::worker::Conn;

/// What a line is about.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// A request, and the milliseconds it took.
    Request(&'a Record, u64),
    Connection(&'a Relayed<'a>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    StartTime(Pattern),
    /// The first that is there.
    Header(Header, Option<Header>),
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    BytesReceived,
    BytesSent,
    Duration,
    GrpcStatus(Status),
    Address(Address, Part),
    UpstreamCluster,
    FailureReason,
    Attempts,
    OwnId,
    ServerName,
    RouteName,
    Hostname,
    TraceId(usize),
    Sentence,
    Generation,
    Cache,
    Node,
    EmitTime(Pattern),
    WithoutQuery(Header, Option<Header>),
    More(More),
    /// Envoy has it, and weft has nothing that it would mean.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Method,
    Path,
    Authority,
    Scheme,
    UserAgent,
    RequestId,
    ForwardedFor,
    UpstreamTime,
    Status,
    Request(usize),
    Response(usize),
    Trailer(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Remote,
    /// Of the socket.
    Direct,
    Local,
    Upstream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Ip,
    Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Camel,
    Snake,
    Number,
}

/// How a time is written; without one RFC 3339 with milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Option<Arc<str>>, Option<jiff::tz::TimeZone>);

/// RFC 3339 with milliseconds, where it is not UTC.
const LOCAL: &str = "%Y-%m-%dT%H:%M:%S.%3f%:z";

/// gRPC's codes by name.
#[rustfmt::skip]
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"), ("Canceled", "CANCELLED"), ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"), ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"), ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"), ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"), ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"), ("Unimplemented", "UNIMPLEMENTED"), ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"), ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// Where values go.
#[derive(Debug)]
pub struct Sink<'o> {
    out: &'o mut Vec<u8>,
    json: bool,
    /// Bytes of the value that may still be shown.
    left: usize,
    /// Nothing is escaped: who looks at it before it is shown does that.
    raw: bool,
}

// === impl Entry ===

impl<'a> Entry<'a> {
    pub(super) fn conn(&self) -> &'a Conn {
        match self {
            Self::Request(record, _) => &record.conn,
            Self::Connection(relayed) => relayed.conn,
        }
    }

    pub(super) fn record(&self) -> Option<&'a Record> {
        match self {
            Self::Request(record, _) => Some(record),
            Self::Connection(_) => None,
        }
    }

    /// What is known of its upstream connection.
    pub(super) fn facts(&self) -> Option<&'a facts::Upstream> {
        match self {
            Self::Request(record, _) => record.upstream.as_deref(),
            Self::Connection(relayed) => relayed.upstream,
        }
    }

    pub(super) fn ended_ms(&self) -> u64 {
        match self {
            Self::Request(record, ms) => record.wall_ms.saturating_add(*ms),
            Self::Connection(relayed) => relayed.wall_ms.saturating_add(relayed.ms),
        }
    }

    fn noted(&self) -> Option<&'a Noted> {
        self.record().and_then(|r| r.noted.as_deref())
    }

    fn flags(&self) -> Flags {
        match self {
            Self::Request(record, _) => record.flags,
            Self::Connection(relayed) => relayed.flags,
        }
    }

    fn sentence(&self) -> Option<&'a str> {
        match self {
            Self::Request(record, _) => record.sentence.as_deref(),
            Self::Connection(relayed) => relayed.sentence.as_deref(),
        }
    }

    fn upstream(&self) -> Option<SocketAddr> {
        let endpoint = match self {
            Self::Request(record, _) => record.endpoint.as_deref(),
            Self::Connection(relayed) => relayed.endpoint,
        };
        endpoint.map(|e| e.entry.endpoint.address)
    }

    fn cluster(&self) -> Option<&'a str> {
        match self {
            Self::Request(record, _) => match &record.backend {
                Some(backend) => Some(&backend.cluster),
                None => record.passthrough.then_some("PassthroughCluster"),
            },
            Self::Connection(relayed) => relayed.backend.map(|b| &*b.cluster),
        }
    }
}

// === impl Operator ===

impl Operator {
    /// Whether it needs what a client's TLS agreed on.
    pub fn tells_session(&self) -> bool {
        matches!(self, Self::More(more) if more.tells_session())
    }

    /// Whether it needs what is known of the upstream connection.
    pub fn tells_upstream(&self) -> bool {
        matches!(self, Self::More(more) if more.tells_upstream())
    }

    /// Whether its value is a number where JSON keeps types.
    pub fn is_number(&self) -> bool {
        match self {
            Self::ResponseCode
            | Self::BytesReceived
            | Self::BytesSent
            | Self::Duration
            | Self::Attempts
            | Self::Generation
            | Self::GrpcStatus(Status::Number)
            | Self::Address(_, Part::Port) => true,
            Self::More(more) => more.is_number(),
            Self::Header(first, second) => {
                second.is_none() && matches!(first, Header::UpstreamTime | Header::Status)
            }
            _ => false,
        }
    }

    /// Writes its value; `false` when there is none.
    pub fn write(&self, entry: &Entry<'_>, sink: &mut Sink<'_>) -> bool {
        match self {
            Self::StartTime(pattern) => {
                let wall_ms = match entry {
                    Entry::Request(record, _) => record.wall_ms,
                    Entry::Connection(relayed) => relayed.wall_ms,
                };
                pattern.write(wall_ms, sink)
            }
            Self::Header(first, second) => {
                first.write(entry, sink) || second.is_some_and(|h| h.write(entry, sink))
            }
            Self::EmitTime(pattern) => pattern.write(entry.ended_ms(), sink),
            Self::WithoutQuery(first, second) => {
                let mut whole = Vec::new();
                let found = {
                    let mut all = Sink::raw(&mut whole);
                    first.write(entry, &mut all) || second.is_some_and(|h| h.write(entry, &mut all))
                };
                // Escaped where it is shown, so that no cut falls into an escape.
                found && sink.text(before_query(&whole))
            }
            Self::More(more) => more.write(entry, sink),
            Self::Protocol => sink.some(entry.record().map(|r| match r.version {
                http::Version::HTTP_10 => "HTTP/1.0",
                http::Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            })),
            Self::ResponseCode => sink.number(entry.record().map_or(0, |r| r.status)),
            Self::ResponseCodeDetails => sink.some(entry.record().map(words::details)),
            Self::ConnectionTerminationDetails => match entry {
                Entry::Request(..) => false,
                Entry::Connection(_) => sink.some(words::of_flag(words::DETAILS, entry.flags())),
            },
            Self::ResponseFlags => match entry.flags() {
                flags if flags.is_empty() => sink.some(Some("-")),
                flags => sink.shown(flags),
            },
            Self::ResponseFlagsLong => long_flags(entry.flags(), sink),
            Self::BytesReceived => sink.number(match entry {
                Entry::Request(record, _) => record.received(),
                Entry::Connection(relayed) => relayed.received,
            }),
            Self::BytesSent => sink.number(match entry {
                Entry::Request(record, _) => record.bytes_sent,
                Entry::Connection(relayed) => relayed.sent,
            }),
            Self::Duration => sink.number(match entry {
                Entry::Request(_, ms) => *ms,
                Entry::Connection(relayed) => relayed.ms,
            }),
            Self::Attempts => sink.number(match entry {
                Entry::Request(record, _) => record.attempts,
                Entry::Connection(relayed) => relayed.tries,
            }),
            _ => self.write_name(entry, sink),
        }
    }

    /// Who took part.
    fn write_name(&self, entry: &Entry<'_>, sink: &mut Sink<'_>) -> bool {
        let conn = entry.conn();
        match self {
            Self::GrpcStatus(style) => {
                entry.record().and_then(|r| r.grpc_status).is_some_and(|s| style.write(s, sink))
            }
            Self::Address(which, part) => {
                let address = match which {
                    Address::Remote => Some(conn.remote),
                    Address::Direct => Some(conn.direct()),
                    Address::Local => Some(conn.dialled()),
                    Address::Upstream => entry.upstream(),
                };
                address.is_some_and(|address| part.write(address, sink))
            }
            Self::UpstreamCluster => sink.some(entry.cluster()),
            Self::FailureReason => match entry {
                Entry::Request(record, _) => sink.some(record.last_cause.as_deref()),
                Entry::Connection(relayed) => sink.some(relayed.sentence.as_deref()),
            },
            Self::OwnId => {
                let own = entry.record().map(|r| &*r.worker.names.principal);
                sink.some(own.filter(|_| conn.peer.is_some()))
            }
            Self::ServerName => sink.some(conn.server_name.as_deref()),
            Self::RouteName => sink.some(entry.record().and_then(|r| r.route.as_deref())),
            Self::Hostname => sink.some(entry.record().map(|r| &*r.worker.names.workload)),
            Self::TraceId(at) => {
                let value = entry.noted().and_then(|n| n.request.get(*at)?.as_ref());
                let id = value.and_then(|v| v.as_bytes().get(3..35));
                id.is_some_and(|id| sink.text(id))
            }
            Self::Sentence => sink.some(entry.sentence()),
            Self::Generation => match entry.record().map_or(0, |r| r.generation) {
                0 => false,
                generation => sink.number(generation),
            },
            Self::Cache => {
                sink.some(entry.record().and_then(|r| r.cache).map(|outcome| outcome.word()))
            }
            Self::Node => sink.some(entry.record().map(|r| &*r.worker.names.node)),
            _ => false,
        }
    }
}

fn before_query(text: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'?', text).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

fn long_flags(flags: Flags, sink: &mut Sink<'_>) -> bool {
    if flags.is_empty() {
        return false;
    }
    let mut first = true;
    for (_, name, _) in FLAGS.iter().filter(|(flag, _, _)| flags.has(*flag)) {
        if !std::mem::take(&mut first) {
            let _ = sink.write_str(",");
        }
        let _ = sink.write_str(words::long_name(name));
    }
    true
}

// === impl Header ===

impl Header {
    fn write(self, entry: &Entry<'_>, sink: &mut Sink<'_>) -> bool {
        let Some(record) = entry.record() else { return false };
        let value = |v: Option<&HeaderValue>, sink: &mut Sink<'_>| {
            v.is_some_and(|v| sink.text(v.as_bytes()))
        };
        let noted = |list: fn(&Noted) -> &Vec<Option<HeaderValue>>, at: usize| {
            entry.noted().and_then(|n| list(n).get(at)?.as_ref())
        };
        match self {
            Self::Method => sink.some(Some(record.method.as_str())),
            Self::Path => sink.some(Some(record.uri.path_and_query().map_or("/", |p| p.as_str()))),
            Self::Authority => sink.some(record.authority.as_deref()),
            Self::Scheme => sink.some(Some(record.conn.scheme)),
            Self::UserAgent => value(record.user_agent.as_ref(), sink),
            Self::RequestId => value(record.request_id.as_ref(), sink),
            Self::ForwardedFor => value(record.forwarded_for.as_ref(), sink),
            Self::UpstreamTime => record.upstream_ms.is_some_and(|ms| sink.number(ms)),
            Self::Status => record.status > 0 && sink.number(record.status),
            Self::Request(at) => value(noted(|n| &n.request, at), sink),
            Self::Response(at) => value(noted(|n| &n.response, at), sink),
            Self::Trailer(at) => value(noted(|n| &n.trailers, at), sink),
        }
    }
}

// === impl Part ===

impl Part {
    pub(super) fn write(self, address: SocketAddr, sink: &mut Sink<'_>) -> bool {
        match self {
            Self::Whole => sink.made(|out| quick::address(out, address)),
            Self::Ip => sink.made(|out| quick::ip(out, address.ip())),
            Self::Port => sink.number(address.port()),
        }
    }
}

// === impl Status ===

impl Status {
    fn write(self, code: u16, sink: &mut Sink<'_>) -> bool {
        let name = GRPC.get(usize::from(code));
        match (self, name) {
            (Self::Camel, Some((camel, _))) => sink.some(Some(camel)),
            (Self::Snake, Some((_, snake))) => sink.some(Some(snake)),
            _ => sink.shown(code),
        }
    }
}

// === impl Pattern ===

impl Pattern {
    /// # Errors
    /// What of it nobody can write.
    pub fn new(text: Option<&str>) -> Result<Self, String> {
        let unquoted = |t: &str| {
            let inner = t.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
            inner.unwrap_or(t).to_owned()
        };
        let Some(text) = text.map(unquoted).filter(|t| !t.is_empty()) else {
            return Ok(Self(None, None));
        };
        let pattern = Self(Some(text.as_str().into()), None);
        let mut trial = Vec::new();
        match pattern.write(0, &mut Sink::new(&mut trial, false, None)) {
            true => Ok(pattern),
            false => Err(format!("{text:?} is no form of a time (strftime; %3f for milliseconds)")),
        }
    }

    /// The same in the machine's time zone, which is read now.
    #[must_use]
    pub fn local(self) -> Self {
        Self(self.0, Some(more::local_zone()))
    }

    pub(super) fn write(&self, wall_ms: u64, sink: &mut Sink<'_>) -> bool {
        let pattern = match (&self.0, &self.1) {
            (Some(pattern), _) => &**pattern,
            (None, Some(_)) => LOCAL,
            (None, None) => return sink.made(|out| quick::timestamp(out, wall_ms)),
        };
        let ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
        let Ok(at) = jiff::Timestamp::from_millisecond(ms) else { return sink.number(wall_ms) };
        let zone = self.1.clone().unwrap_or(jiff::tz::TimeZone::UTC);
        let time = jiff::fmt::strtime::BrokenDownTime::from(&at.to_zoned(zone));
        time.format(pattern.as_bytes(), jiff::fmt::StdFmtWrite(sink)).is_ok()
    }
}

// === impl Sink ===

impl<'o> Sink<'o> {
    pub fn new(out: &'o mut Vec<u8>, json: bool, most: Option<usize>) -> Self {
        Self { out, json, left: most.unwrap_or(usize::MAX), raw: false }
    }

    /// The value as it came.
    fn raw(out: &'o mut Vec<u8>) -> Self {
        Self { raw: true, ..Self::new(out, false, None) }
    }

    pub(super) fn some(&mut self, text: Option<&str>) -> bool {
        text.is_some_and(|text| self.text(text.as_bytes()))
    }

    fn shown(&mut self, value: impl fmt::Display) -> bool {
        write!(self, "{value}").is_ok()
    }

    pub(super) fn number(&mut self, n: impl Into<u64>) -> bool {
        let n = n.into();
        self.made(|out| quick::number(out, n))
    }

    /// What needs no escape, written in place; cut where it is too long.
    fn made(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.out.len();
        write(self.out);
        let written = self.out.len() - before;
        if written > self.left {
            self.out.truncate(before + self.left);
        }
        self.left = self.left.saturating_sub(written);
        true
    }

    /// Bytes of a peer or of a configuration; what is no UTF-8 is read as Latin-1.
    #[inline]
    pub fn text(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() <= self.left && (self.raw || quick::is_plain(bytes)) {
            self.left -= bytes.len();
            quick::append(self.out, bytes);
        } else {
            self.escaped(bytes);
        }
        true
    }

    #[cold]
    fn escaped(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.chars().for_each(|c| self.push(c)),
            Err(_) => bytes.iter().for_each(|b| self.push(char::from(*b))),
        }
    }

    fn push(&mut self, c: char) {
        if c.len_utf8() > self.left {
            self.left = 0;
            return;
        }
        self.left -= c.len_utf8();
        match c {
            _ if !guards::on("log-escapes") => {
                self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            '"' => self.out.extend_from_slice(b"\\\""),
            '\\' => self.out.extend_from_slice(b"\\\\"),
            '\n' => self.out.extend_from_slice(b"\\n"),
            '\r' => self.out.extend_from_slice(b"\\r"),
            '\t' => self.out.extend_from_slice(b"\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let code = u32::from(c);
                let text = match self.json {
                    true => format!("\\u{code:04x}"),
                    false => format!("\\u{{{code:x}}}"),
                };
                self.out.extend_from_slice(text.as_bytes());
            }
            c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

impl fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text.as_bytes());
        Ok(())
    }
}
