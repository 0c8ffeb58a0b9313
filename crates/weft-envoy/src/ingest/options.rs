// SPDX-License-Identifier: Apache-2.0
//! Envoy's options of protocols and connections. What changes nothing for a request is passed
//! over by its name: sizes of windows and tables, and what weft does anyhow. Every other field,
//! known to Envoy or to nobody, is left unread, and so listed as unsupported by the reader.
//!
//! Called by the readers of listeners, routes and clusters. It never passes over a whole message.

use weft_base::limits::{HEADER_BYTES_MAX, HEADERS_MAX};
use weft_model::{ClientLimits, Connections, PING_TIMEOUT_MS, Pings, TcpKeepalive};

use crate::read::Message;

/// Streams that weft has on one connection of a client, and on one to a backend.
const STREAMS_MAX: u32 = 128;
const UPSTREAM_STREAMS_MAX: u32 = 100;
/// Envoy's longest time of a client's connection without a request.
const IDLE_MS: u64 = 3_600_000;

/// Fields of `Http1ProtocolOptions` that say what weft does: all forms of targets, HTTP/1.0,
/// trailers, unknown methods.
const HTTP_1: &[&str] = &[
    "allow_absolute_url",
    "accept_http_10",
    "enable_trailers",
    "use_balsa_parser",
    "allow_custom_methods",
];

/// Fields of `Http2ProtocolOptions` that are sizes of buffers, or bounds against floods in place
/// of which weft has its own.
const HTTP_2: &[&str] = &[
    "hpack_table_size",
    "initial_stream_window_size",
    "initial_connection_window_size",
    "max_outbound_frames",
    "max_outbound_control_frames",
    "max_consecutive_inbound_frames_with_empty_payload",
    "max_inbound_priority_frames_per_stream",
    "max_inbound_window_update_frames_per_data_frame_sent",
    "use_oghttp2_codec",
];

/// What a connection manager says of how its clients are served, and how long a stream of theirs
/// may last, in milliseconds.
pub fn clients(manager: &Message<'_>) -> (ClientLimits, Option<u64>) {
    let mut out = ClientLimits { idle_ms: Some(IDLE_MS), ..ClientLimits::default() };
    let mut stream_ms = None;
    if let Some(common) = manager.message("common_http_protocol_options") {
        out.idle_ms = common.duration("idle_timeout").or(out.idle_ms);
        out.age_ms_max = positive(common.duration("max_connection_duration"));
        out.requests_max = common.number::<u32>("max_requests_per_connection").filter(|n| *n > 0);
        out.headers_max = within(&common, "max_headers_count", HEADERS_MAX);
        stream_ms = positive(common.duration("max_stream_duration"));
    }
    out.head_ms = positive(manager.duration("request_headers_timeout"));
    let kib = within(manager, "max_request_headers_kb", HEADER_BYTES_MAX / 1_024);
    out.head_bytes_max = kib.map(|kib| kib * 1_024);
    http_1(manager);
    out.streams_max = http_2(manager, STREAMS_MAX).and_then(|said| said.streams_max);
    (out, stream_ms)
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
        options.pass_over(HTTP_1);
    }
}

struct Http2 {
    streams_max: Option<u32>,
    pings: Option<Pings>,
}

/// A bound on streams that is not below weft's own needs nothing.
fn http_2(message: &Message<'_>, own: u32) -> Option<Http2> {
    let options = message.message("http2_protocol_options")?;
    options.pass_over(HTTP_2);
    let streams = options.number::<u32>("max_concurrent_streams").filter(|n| *n < own);
    // To clients PINGs are sent as weft sees fit.
    let upstream = own == UPSTREAM_STREAMS_MAX;
    let keepalive = upstream.then(|| options.message("connection_keepalive")).flatten();
    let pings = keepalive.and_then(|said| {
        said.pass_over(&["interval_jitter"]);
        let ms = |field| said.duration(field).and_then(|ms| u32::try_from(ms).ok());
        let timeout_ms = ms("timeout").unwrap_or(PING_TIMEOUT_MS);
        Some(Pings { interval_ms: ms("interval").filter(|n| *n > 0)?, timeout_ms })
    });
    Some(Http2 { streams_max: streams, pings })
}

/// Says what is not done about flags that differ from what weft does.
pub fn flags(message: &Message<'_>, all: &[(&str, bool, &str)]) {
    for (field, done, why) in all {
        if message.flag(field).is_some_and(|asked| asked != *done) {
            message.unsupported(field, *why);
        }
    }
}
