// SPDX-License-Identifier: Apache-2.0
//! What a line of the access log looks like: Envoy's format strings and format dictionaries,
//! compiled once. Writing a line allocates nothing beside the line. Called by the access log;
//! knows no socket and no file.

mod more;
mod parse;
mod value;
mod words;

use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::quick;
use value::{Operator, Sink};

pub use parse::OPERATORS;
pub use value::Entry;

/// Istio's default line; the sentence stands where Envoy has the upstream's failure, and the
/// table's generation and this proxy's name at the end.
pub const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %CONNECTION_TERMINATION_DETAILS% \"%WEFT_SENTENCE%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
    %REQUESTED_SERVER_NAME% %ROUTE_NAME% generation=%WEFT_GENERATION% node=%WEFT_NODE%";

/// Keys and operators of the usual JSON line; those that end with `?` are left out when empty.
const JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("grpc_status?", "%GRPC_STATUS_NUMBER%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("generation?", "%WEFT_GENERATION%"),
    ("node?", "%WEFT_NODE%"),
    ("sentence?", "%WEFT_SENTENCE%"),
];

/// One compiled format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    shape: Shape,
    wanted: Wanted,
    /// Values that are not there are left out instead of shown as `-` or `null`.
    omit_empty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Text(Vec<Piece>),
    Json(Node),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Arc<str>),
    /// An operator and how many bytes of its value are shown.
    Value(Operator, Option<usize>),
}

/// A value of a format dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// One operator alone keeps its type.
    Typed(Operator, Option<usize>),
    Mixed(Vec<Piece>),
    /// Each key is JSON text already; `true` leaves the member out when it is empty.
    Object(Vec<(Arc<str>, Node, bool)>),
    List(Vec<Node>),
    Fixed(Arc<str>),
}

/// What the line shows and a record does not have of itself; headers by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub request: Vec<HeaderName>,
    pub response: Vec<HeaderName>,
    pub trailers: Vec<HeaderName>,
    /// The TLS of the client's connection.
    pub session: bool,
    /// The upstream connection.
    pub upstream: bool,
    /// A number for each line.
    pub numbers: bool,
    /// Operators that have no value here, as they are written.
    pub never: Vec<Arc<str>>,
}

/// Their values in one request, in the order of [`Wanted`].
#[derive(Clone, Debug, Default)]
pub struct Noted {
    pub request: Vec<Option<HeaderValue>>,
    pub response: Vec<Option<HeaderValue>>,
    pub trailers: Vec<Option<HeaderValue>>,
}

// === impl Format ===

impl Format {
    /// The usual text line.
    pub fn istio() -> Self {
        Self::built_in(Self::text(ISTIO))
    }

    /// The usual JSON line.
    pub fn json() -> Self {
        let mut wanted = Wanted::default();
        let members = JSON.iter().map(|(key, operator)| {
            let (key, optional) = key.strip_suffix('?').map_or((*key, false), |k| (k, true));
            let node = parse::node(operator, &mut wanted)?;
            Ok((parse::json_key(key), node, optional))
        });
        let members = members.collect::<Result<Vec<_>, parse::Wrong>>();
        Self::built_in(members.map(|members| {
            let shape = Shape::Json(Node::Object(members));
            Self { shape, wanted, omit_empty: false }
        }))
    }

    /// A format without a value is a line without one.
    fn built_in(made: Result<Self, parse::Wrong>) -> Self {
        made.unwrap_or_else(|wrong| {
            weft_base::bug!("a built-in format does not parse: {wrong}");
            Self { shape: Shape::Text(Vec::new()), wanted: Wanted::default(), omit_empty: false }
        })
    }

    /// Headers that are to be noted while the request passes.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Operators that weft has no value for: they are always `-`.
    pub fn never(&self) -> &[Arc<str>] {
        &self.wanted.never
    }

    /// Appends one line, without its end.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        if self.wanted.numbers {
            more::next_line();
        }
        match &self.shape {
            Shape::Text(pieces) => self.pieces(pieces, entry, out, false),
            Shape::Json(node) => {
                self.node(node, entry, out);
            }
        }
    }

    fn pieces(&self, pieces: &[Piece], entry: &Entry<'_>, out: &mut Vec<u8>, json: bool) {
        for piece in pieces {
            match piece {
                Piece::Literal(text) if json => {
                    // Only the sink escapes.
                    Sink::new(out, true, None).text(text.as_bytes());
                }
                Piece::Literal(text) => match text.as_bytes() {
                    [one] => out.push(*one),
                    text => quick::append(out, text),
                },
                Piece::Value(operator, most) => {
                    let mut sink = Sink::new(out, json, *most);
                    if !operator.write(entry, &mut sink) && !self.omit_empty {
                        out.push(b'-');
                    }
                }
            }
        }
    }

    /// Writes one value; `false` when there is none and nothing was written.
    fn node(&self, node: &Node, entry: &Entry<'_>, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Fixed(text) => out.extend_from_slice(text.as_bytes()),
            Node::Mixed(pieces) => {
                out.push(b'"');
                self.pieces(pieces, entry, out, true);
                out.push(b'"');
            }
            Node::Typed(operator, most) => return typed(operator, *most, entry, out),
            Node::List(list) => {
                out.push(b'[');
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    if !self.node(item, entry, out) {
                        out.extend_from_slice(b"null");
                    }
                }
                out.push(b']');
            }
            Node::Object(members) => self.object(members, entry, out),
        }
        true
    }

    fn object(&self, members: &[(Arc<str>, Node, bool)], entry: &Entry<'_>, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        for (key, node, optional) in members {
            let before = out.len();
            if !first {
                out.push(b',');
            }
            out.extend_from_slice(key.as_bytes());
            if self.node(node, entry, out) {
                first = false;
            } else if *optional || self.omit_empty {
                out.truncate(before);
            } else {
                out.extend_from_slice(b"null");
                first = false;
            }
        }
        out.push(b'}');
    }
}

fn typed(operator: &Operator, most: Option<usize>, entry: &Entry<'_>, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let quoted = !operator.is_number();
    if quoted {
        out.push(b'"');
    }
    if !operator.write(entry, &mut Sink::new(out, true, most)) {
        out.truncate(before);
        return false;
    }
    if quoted {
        out.push(b'"');
    }
    true
}

// === impl Wanted ===

impl Wanted {
    /// Whether it shows no header of those.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && self.trailers.is_empty()
    }
}

// === impl Noted ===

impl Noted {
    /// What a map has of some headers; several values of one name are its first.
    pub fn of(names: &[HeaderName], map: &HeaderMap) -> Vec<Option<HeaderValue>> {
        names.iter().map(|name| map.get(name).cloned()).collect()
    }
}

#[cfg(test)]
mod tests;
