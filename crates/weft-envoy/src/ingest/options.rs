// SPDX-License-Identifier: Apache-2.0
//! Envoy's options of protocols and connections. What changes nothing for a request is passed
//! over by its name: sizes of windows and tables. What weft does in one way only stands with the
//! values that ask for it. Every other field, known to Envoy or to nobody, is left unread, and so
//! listed as unsupported by the reader.
//!
//! Called by the readers of listeners, routes and clusters. It never passes over a whole message.

use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use weft_model::{
    ClientLimits, Connections, Edge, EscapedSlashes, PING_TIMEOUT_MS, Pings, Slashes, TcpKeepalive,
    Timeouts,
};

use crate::read::Message;

/// Streams that weft has on one connection of a client, and on one to a backend.
const STREAMS_MAX: u32 = 128;
const UPSTREAM_STREAMS_MAX: u32 = 100;
/// Envoy's longest time of a client's connection without a request.
const IDLE_MS: u64 = 3_600_000;
/// Envoy's longest silence of a stream when nothing is said.
const STREAM_IDLE_MS: u64 = 300_000;

/// Fields, the values of each that say what weft does anyhow, and why any other is not done.
pub type NotDone = &'static [(&'static str, &'static [&'static str], &'static str)];

/// Of `Http1ProtocolOptions`.
const HTTP_1: NotDone = &[
    ("allow_absolute_url", &["true"], "targets are taken in all forms"),
    ("accept_http_10", &["true"], "HTTP/1.0 is always served"),
    ("enable_trailers", &["true"], "trailers are passed on"),
    ("allow_custom_methods", &["true"], "methods that nobody knows are passed on"),
];

const CONNECT: &str = "WebSockets of HTTP/2 are served wherever upgrade_configs names them, and \
                       CONNECT itself is for files of weft's own: leave it out";
const FLOODS: &str = "weft has bounds of its own against floods";
/// Of `Http2ProtocolOptions`.
const HTTP_2: NotDone = &[
    ("allow_connect", &[], CONNECT),
    ("max_outbound_frames", &[], FLOODS),
    ("max_outbound_control_frames", &[], FLOODS),
    ("max_consecutive_inbound_frames_with_empty_payload", &[], FLOODS),
    ("max_inbound_priority_frames_per_stream", &[], FLOODS),
    ("max_inbound_window_update_frames_per_data_frame_sent", &[], FLOODS),
];
/// Sizes of buffers, and which library Envoy takes.
const HTTP_2_SIZES: &[&str] = &[
    "hpack_table_size",
    "initial_stream_window_size",
    "initial_connection_window_size",
    "use_oghttp2_codec",
];

/// What a connection manager says of its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    pub limits: ClientLimits,
    pub edge: Edge,
}

/// What a connection manager says of how its clients are served, and how long its requests may
/// take where their routes say nothing else.
pub fn clients(manager: &Message<'_>) -> (Clients, Timeouts) {
    let mut limits = ClientLimits { idle_ms: Some(IDLE_MS), ..ClientLimits::default() };
    let (trusted_hops, slashes) = (trusted_hops(manager), slashes(manager));
    let mut edge = Edge { trusted_hops, slashes, ..Edge::default() };
    let idle_ms = manager.duration("stream_idle_timeout").unwrap_or(STREAM_IDLE_MS);
    let mut timeouts = Timeouts { idle_ms: Some(idle_ms), ..Timeouts::default() };
    timeouts.receive_ms = positive(manager.duration("request_timeout"));
    if let Some(common) = manager.message("common_http_protocol_options") {
        limits.idle_ms = common.duration("idle_timeout").or(limits.idle_ms);
        limits.age_ms_max = positive(common.duration("max_connection_duration"));
        limits.requests_max =
            common.number::<u32>("max_requests_per_connection").filter(|n| *n > 0);
        limits.headers_max = within(&common, "max_headers_count", HEADERS_MAX);
        timeouts.stream_ms = positive(common.duration("max_stream_duration"));
        edge.underscores = underscores(&common);
    }
    limits.head_ms = positive(manager.duration("request_headers_timeout"));
    let kib = within(manager, "max_request_headers_kb", HEADER_BYTES_MAX / 1_024);
    limits.head_bytes_max = kib.map(|kib| kib * 1_024);
    http_1(manager);
    limits.streams_max = http_2(manager, STREAMS_MAX).and_then(|said| said.streams_max);
    (Clients { limits, edge }, timeouts)
}

/// How many proxies in front are believed. Where the address of who connects is not the client's,
/// that one is believed, too.
fn trusted_hops(manager: &Message<'_>) -> u8 {
    let remote = manager.flag("use_remote_address") == Some(true);
    let said = manager.number::<u32>("xff_num_trusted_hops").unwrap_or(0);
    let hops = if said > 0 && !remote { said.saturating_add(1) } else { said };
    u8::try_from(hops).unwrap_or_else(|_| {
        manager.error("xff_num_trusted_hops", format!("{said} is more than weft counts, 254"));
        0
    })
}

fn slashes(manager: &Message<'_>) -> Slashes {
    const FIELD: &str = "path_with_escaped_slashes_action";
    let escaped = match manager.word(FIELD).as_deref() {
        None | Some("IMPLEMENTATION_SPECIFIC_DEFAULT" | "KEEP_UNCHANGED") => EscapedSlashes::Keep,
        Some("REJECT_REQUEST") => EscapedSlashes::Refuse,
        Some("UNESCAPE_AND_REDIRECT") => EscapedSlashes::Redirect,
        Some("UNESCAPE_AND_FORWARD") => EscapedSlashes::Unescape,
        Some(other) => {
            manager.error(FIELD, format!("{other:?} is none"));
            EscapedSlashes::Refuse
        }
    };
    Slashes { merge: manager.flag("merge_slashes").unwrap_or(false), escaped }
}

/// Whether names of headers may have underscores, which they may not unless that is said.
fn underscores(common: &Message<'_>) -> bool {
    match common.word("headers_with_underscores_action").as_deref() {
        Some("ALLOW") => return true,
        None | Some("REJECT_REQUEST") => {}
        Some(other) => {
            let why = format!("{other}: a request is refused that has one, or it passes");
            common.unsupported("headers_with_underscores_action", why);
        }
    }
    false
}

/// A bound that weft keeps where it is not beyond its own.
fn within(message: &Message<'_>, field: &str, own: usize) -> Option<u32> {
    let said = message.number::<u32>(field).filter(|n| *n > 0)?;
    if usize::try_from(said).is_ok_and(|said| said > own) {
        message.unsupported(field, format!("it is {own} at most"));
    }
    Some(said)
}

fn positive(ms: Option<u64>) -> Option<u64> {
    ms.filter(|ms| *ms > 0)
}

/// What a cluster says of the connections to its endpoints.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    pub connections: Connections,
    pub idle_ms: Option<u64>,
    pub stream_ms: Option<u64>,
}

impl Upstream {
    /// `HttpProtocolOptions`; a stream of them that ends first counts.
    pub fn common(&mut self, message: &Message<'_>) {
        let Some(common) = message.message("common_http_protocol_options") else { return };
        let (own, said) = (&mut self.connections, &common);
        // 0 is no limit.
        let idle = said.duration("idle_timeout").map(|ms| if ms == 0 { u64::MAX } else { ms });
        self.idle_ms = idle.or(self.idle_ms);
        own.age_ms_max = positive(said.duration("max_connection_duration")).or(own.age_ms_max);
        self.requests(said);
        self.stream_ms = positive(said.duration("max_stream_duration")).or(self.stream_ms);
    }

    pub fn requests(&mut self, message: &Message<'_>) {
        let most = message.number::<u32>("max_requests_per_connection").filter(|n| *n > 0);
        self.connections.requests_max = most.or(self.connections.requests_max);
    }

    /// `Http2ProtocolOptions`; whether there are any.
    pub fn http_2(&mut self, message: &Message<'_>) -> bool {
        let Some(said) = http_2(message, UPSTREAM_STREAMS_MAX) else { return false };
        self.connections.streams_max = said.streams_max.or(self.connections.streams_max);
        self.connections.pings = said.pings.or(self.connections.pings);
        true
    }

    /// `UpstreamConnectionOptions`.
    pub fn kept_alive(&mut self, message: &Message<'_>) {
        let Some(options) = message.message("upstream_connection_options") else { return };
        let Some(said) = options.message("tcp_keepalive") else { return };
        self.connections.keepalive = Some(TcpKeepalive {
            idle_s: said.number::<u32>("keepalive_time").filter(|n| *n > 0),
            interval_s: said.number::<u32>("keepalive_interval").filter(|n| *n > 0),
            probes: said.number::<u32>("keepalive_probes").filter(|n| *n > 0),
        });
    }
}

pub fn http_1(message: &Message<'_>) {
    if let Some(options) = message.message("http_protocol_options") {
        options.pass_over(&["use_balsa_parser"]);
        not_done(&options, HTTP_1);
    }
}

struct Http2 {
    streams_max: Option<u32>,
    pings: Option<Pings>,
}

/// A bound on streams that is not below weft's own needs nothing.
fn http_2(message: &Message<'_>, own: u32) -> Option<Http2> {
    let options = message.message("http2_protocol_options")?;
    options.pass_over(HTTP_2_SIZES);
    not_done(&options, HTTP_2);
    let streams = options.number::<u32>("max_concurrent_streams").filter(|n| *n < own);
    // To clients PINGs are sent as weft sees fit.
    let upstream = own == UPSTREAM_STREAMS_MAX;
    let keepalive = upstream.then(|| options.message("connection_keepalive")).flatten();
    let pings = keepalive.and_then(|said| {
        said.not_done("interval_jitter", &["{}"], "PINGs are sent at interval, without jitter");
        let ms = |field| said.duration(field).and_then(|ms| u32::try_from(ms).ok());
        let timeout_ms = ms("timeout").unwrap_or(PING_TIMEOUT_MS);
        Some(Pings { interval_ms: ms("interval").filter(|n| *n > 0)?, timeout_ms })
    });
    Some(Http2 { streams_max: streams, pings })
}

/// Says what is not done about fields, unless they ask for what weft does anyhow.
pub fn not_done(message: &Message<'_>, all: NotDone) {
    for (field, anyhow, why) in all {
        message.not_done(field, anyhow, why);
    }
}

/// Says what is not done about flags that differ from what weft does.
pub fn flags(message: &Message<'_>, all: &[(&str, bool, &str)]) {
    for (field, done, why) in all {
        if message.flag(field).is_some_and(|asked| asked != *done) {
            message.unsupported(field, *why);
        }
    }
}

/// Says what is not done about words that ask for something else than what weft does.
pub fn words(message: &Message<'_>, all: &[(&str, &[&str], &str)]) {
    for (field, done, why) in all {
        let asked = message.word(field);
        if let Some(asked) = asked.as_deref().filter(|asked| !done.contains(asked)) {
            message.unsupported(field, format!("{asked}: {why}"));
        }
    }
}
