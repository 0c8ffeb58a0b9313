// SPDX-License-Identifier: Apache-2.0
//! Envoy's options of protocols and connections. What changes nothing for a request is passed
//! over by its name: sizes of windows and tables, and what weft does anyhow. Every other field,
//! known to Envoy or to nobody, is left unread, and so listed as unsupported by the reader.
//!
//! Called by the readers of listeners, routes and clusters. It never passes over a whole message.

use crate::read::Message;

/// Streams that weft has on one connection of a client; to a backend it has fewer.
const STREAMS_MAX: u64 = 128;

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

/// The options of a message that hold for all protocols; none of them is served.
pub fn common(message: &Message<'_>) {
    // What is read of it is nothing, so that each of its fields is listed.
    let _ = message.message("common_http_protocol_options");
}

pub fn http_1(message: &Message<'_>) {
    if let Some(options) = message.message("http_protocol_options") {
        options.pass_over(HTTP_1);
    }
}

/// Whether there are any. A bound on streams that is not below weft's own needs nothing.
pub fn http_2(message: &Message<'_>) -> bool {
    let Some(options) = message.message("http2_protocol_options") else { return false };
    options.pass_over(HTTP_2);
    if options.number::<u64>("max_concurrent_streams").is_some_and(|n| n < STREAMS_MAX) {
        let why = format!("a connection has up to {STREAMS_MAX} streams");
        options.unsupported("max_concurrent_streams", why);
    }
    true
}

/// Says what is not done about flags that differ from what weft does.
pub fn flags(message: &Message<'_>, all: &[(&str, bool, &str)]) {
    for (field, done, why) in all {
        if message.flag(field).is_some_and(|asked| asked != *done) {
            message.unsupported(field, *why);
        }
    }
}
