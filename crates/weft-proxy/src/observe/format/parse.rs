// SPDX-License-Identifier: Apache-2.0
//! Reads format strings (`%REQ(X?Y):Z%`) and format dictionaries. Unknown operators are errors
//! that say where; nothing is guessed. Called when a configuration is read, never by a worker.

use std::sync::Arc;

use http::header::HeaderName;
use serde_json::Value;
use thiserror::Error;
use weft_base::issue::{FieldPath, Issue};

use super::more::{self, More};
use super::value::{Address, Header, Operator, Part, Pattern, Status};
use super::{Format, Node, Piece, Shape, Wanted};

/// Longest format, and deepest dictionary.
const FORMAT_BYTES_MAX: usize = 16 * 1024;
const DEPTH_MAX: usize = 16;

/// Operators without an argument; help, documentation and errors derive from this list.
#[rustfmt::skip]
pub const OPERATORS: &[(&str, &str)] = &[
    ("START_TIME(F)", "when it began; F as in strftime, RFC 3339 with milliseconds without"),
    ("START_TIME_LOCAL(F)", "the same in the machine's time zone"),
    ("EMIT_TIME(F)", "when its line was written, also _LOCAL"),
    ("REQ_WITHOUT_QUERY(X?Y):Z", "as REQ, without what follows a question mark"),
    ("REQ(X?Y):Z", "request header X, else Y, at most Z bytes; :METHOD :PATH :AUTHORITY :SCHEME"),
    ("RESP(X?Y):Z", "the same of the answer's headers"),
    ("TRAILER(X?Y):Z", "the same of the answer's trailers"),
    ("PROTOCOL", "HTTP/1.0, HTTP/1.1 or HTTP/2"),
    ("RESPONSE_CODE", "status of the answer"),
    ("RESPONSE_CODE_DETAILS", "via_upstream, direct_response, or what kept it from an upstream"),
    ("CONNECTION_TERMINATION_DETAILS", "why an opaque connection ended early"),
    ("RESPONSE_FLAGS", "Envoy's flags, `-` when none"),
    ("RESPONSE_FLAGS_LONG", "the flags' long names"),
    ("BYTES_RECEIVED", "bytes of the request's body, or from the client"),
    ("BYTES_SENT", "bytes of the answer's body, or to the client"),
    ("DURATION", "milliseconds from the head to the answer's end"),
    ("GRPC_STATUS(F)", "gRPC status: CAMEL_STRING (default), SNAKE_STRING or NUMBER"),
    ("GRPC_STATUS_NUMBER", "the same as a number"),
    ("UPSTREAM_HOST", "address of the instance"),
    ("UPSTREAM_REMOTE_ADDRESS", "the same"),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "without the port"),
    ("UPSTREAM_REMOTE_PORT", "the port alone"),
    ("UPSTREAM_CLUSTER", "backend, as Envoy names clusters"),
    ("UPSTREAM_CLUSTER_RAW", "the same"),
    ("UPSTREAM_LOCAL_ADDRESS", "this proxy's own address of the upstream connection"),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", "the last attempt's failure"),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "attempts"),
    ("DOWNSTREAM_REMOTE_ADDRESS", "the client's address"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "without the port"),
    ("DOWNSTREAM_REMOTE_PORT", "the port alone"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "the socket's own peer, whatever a PROXY header tells"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "without the port"),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", "the port alone"),
    ("DOWNSTREAM_LOCAL_ADDRESS", "the address that the client dialled"),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "without the port"),
    ("DOWNSTREAM_LOCAL_PORT", "the port alone"),
    ("DOWNSTREAM_PEER_URI_SAN", "SPIFFE id of the client within mesh TLS"),
    ("DOWNSTREAM_LOCAL_URI_SAN", "this proxy's own, when the client is within mesh TLS"),
    ("REQUESTED_SERVER_NAME", "TLS server name"),
    ("ROUTE_NAME", "object and rule that took the request"),
    ("HOSTNAME", "this proxy's workload"),
    ("TRACE_ID", "trace id of the request's traceparent"),
    ("WEFT_SENTENCE", "why weft answered itself, in words"),
    ("WEFT_CACHE", "hit, stale, revalidated, stale-if-error, miss, bypass or only-if-cached"),
    ("WEFT_GENERATION", "generation of the table that decided"),
    ("WEFT_NODE", "this proxy: sidecar~NAMESPACE~POD or gateway~NAMESPACE~GATEWAY"),
];

/// What is wrong with a format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Wrong {
    #[error("the % at byte {0} begins no operator that ends; write a percent sign as %%")]
    Open(usize),
    #[error("%{0}% is no operator of the access log; those there are stand in docs/access-log.md")]
    Unknown(String),
    #[error("%{0}%: {1}")]
    Argument(String, String),
    #[error("the format has {0} bytes, at most {FORMAT_BYTES_MAX} are taken")]
    Long(usize),
}

// === impl Format ===

impl Format {
    /// A format string; one end of line at its end is left out, since every record is a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn text(format: &str) -> Result<Self, Wrong> {
        let mut wanted = Wanted::default();
        let format = format.strip_suffix('\n').unwrap_or(format);
        let shape = Shape::Text(pieces(format, &mut wanted)?);
        Ok(Self { shape, wanted, omit_empty: false })
    }

    /// A format string or a format dictionary, as configurations have them: `at` is the field's
    /// path, and every issue names the place below it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(format: &Value, at: &FieldPath) -> Result<Self, Vec<Issue>> {
        let mut issues = Vec::new();
        let mut wanted = Wanted::default();
        let made = match format {
            Value::String(text) => {
                return Self::text(text).map_err(|w| vec![Issue::error(at.clone(), w.to_string())]);
            }
            Value::Object(_) => dictionary(format, at, &mut wanted, &mut issues, 0),
            _ => {
                let what = "a format is a text or a map of keys to formats";
                issues.push(Issue::error(at.clone(), what));
                None
            }
        };
        match (made, issues.is_empty()) {
            (Some(node), true) => Ok(Self { shape: Shape::Json(node), wanted, omit_empty: false }),
            _ => Err(issues),
        }
    }

    /// The same, with values that are not there left out.
    #[must_use]
    pub fn omitting_empty(self, omit: bool) -> Self {
        Self { omit_empty: omit, ..self }
    }
}

fn dictionary(
    value: &Value,
    at: &FieldPath,
    wanted: &mut Wanted,
    issues: &mut Vec<Issue>,
    depth: usize,
) -> Option<Node> {
    if depth > DEPTH_MAX {
        issues.push(Issue::error(at.clone(), format!("it is nested more than {DEPTH_MAX} deep")));
        return None;
    }
    match value {
        Value::String(text) => match node(text, wanted) {
            Ok(node) => Some(node),
            Err(wrong) => {
                issues.push(Issue::error(at.clone(), wrong.to_string()));
                None
            }
        },
        Value::Object(map) => {
            let members = map.iter().filter_map(|(key, value)| {
                let node = dictionary(value, &at.field(key), wanted, issues, depth + 1)?;
                Some((json_key(key), node, false))
            });
            Some(Node::Object(members.collect()))
        }
        Value::Array(list) => {
            let items = list.iter().enumerate();
            let nodes =
                items.filter_map(|(i, v)| dictionary(v, &at.index(i), wanted, issues, depth + 1));
            Some(Node::List(nodes.collect()))
        }
        fixed => Some(Node::Fixed(fixed.to_string().into())),
    }
}

pub fn json_key(key: &str) -> Arc<str> {
    format!("{}:", Value::from(key)).into()
}

/// A text of a dictionary; one operator alone keeps its type.
pub fn node(text: &str, wanted: &mut Wanted) -> Result<Node, Wrong> {
    let mut pieces = pieces(text, wanted)?;
    if let [Piece::Value(..)] = pieces.as_slice()
        && let Some(Piece::Value(operator, most)) = pieces.pop()
    {
        return Ok(Node::Typed(operator, most));
    }
    Ok(Node::Mixed(pieces))
}

fn pieces(format: &str, wanted: &mut Wanted) -> Result<Vec<Piece>, Wrong> {
    if format.len() > FORMAT_BYTES_MAX {
        return Err(Wrong::Long(format.len()));
    }
    let mut out = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let at = format.len() - after.len() - 1;
        let (written, after) = split_operator(after).ok_or(Wrong::Open(at))?;
        if !literal.is_empty() {
            out.push(Piece::Literal(std::mem::take(&mut literal).into()));
        }
        out.push(operator(written, wanted)?);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        out.push(Piece::Literal(literal.into()));
    }
    Ok(out)
}

/// Splits at the closing `%`; those within brackets belong to the argument.
fn split_operator(text: &str) -> Option<(&str, &str)> {
    let from = match (text.find('('), text.find('%')) {
        (Some(open), Some(end)) if open < end => open + text.get(open..)?.find(')')?,
        _ => 0,
    };
    let end = from + text.get(from..)?.find('%')?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

/// `NAME`, `NAME(ARGUMENT)`, either with `:LENGTH`.
fn operator(written: &str, wanted: &mut Wanted) -> Result<Piece, Wrong> {
    let wrong = |why: &str| Wrong::Argument(written.to_owned(), why.to_owned());
    let (name, argument, tail) = match written.split_once('(') {
        Some((name, rest)) => {
            let (argument, tail) =
                rest.rsplit_once(')').ok_or_else(|| wrong("its bracket is not closed"))?;
            (name, Some(argument), tail)
        }
        None => match written.split_once(':') {
            Some((name, _)) => (name, None, written.get(name.len()..).unwrap_or_default()),
            None => (written, None, ""),
        },
    };
    let most = match tail.strip_prefix(':') {
        Some(n) => Some(
            n.parse::<usize>().map_err(|_| wrong("after the colon stands a number of bytes"))?,
        ),
        None if tail.is_empty() => None,
        None => return Err(wrong("after the bracket stands nothing but :LENGTH")),
    };
    let operator = match (name, argument) {
        ("START_TIME", argument) => {
            Operator::StartTime(Pattern::new(argument).map_err(|e| wrong(&e))?)
        }
        ("REQ" | "RESP" | "TRAILER", Some(argument)) => {
            header_operator(name, argument, wanted).map_err(|e| wrong(&e))?
        }
        ("REQ" | "RESP" | "TRAILER", None) => {
            return Err(wrong("it names no header; write for instance %REQ(USER-AGENT)%"));
        }
        ("GRPC_STATUS", style) => Operator::GrpcStatus(match style {
            None | Some("" | "CAMEL_STRING") => Status::Camel,
            Some("SNAKE_STRING") => Status::Snake,
            Some("NUMBER") => Status::Number,
            Some(_) => return Err(wrong("CAMEL_STRING, SNAKE_STRING or NUMBER")),
        }),
        ("TRACE_ID", None) => {
            let name = HeaderName::from_static("traceparent");
            Operator::TraceId(noted(&mut wanted.request, name))
        }
        ("START_TIME_LOCAL", argument) => {
            Operator::StartTime(Pattern::new(argument).map_err(|e| wrong(&e))?.local())
        }
        ("EMIT_TIME", argument) => {
            Operator::EmitTime(Pattern::new(argument).map_err(|e| wrong(&e))?)
        }
        ("EMIT_TIME_LOCAL", argument) => {
            Operator::EmitTime(Pattern::new(argument).map_err(|e| wrong(&e))?.local())
        }
        ("REQ_WITHOUT_QUERY", Some(argument)) => {
            match header_operator("REQ", argument, wanted).map_err(|e| wrong(&e))? {
                Operator::Header(first, second) => Operator::WithoutQuery(first, second),
                other => other,
            }
        }
        _ => match more::with_argument(name, argument).map_err(|e| wrong(&e))? {
            Some(more) => Operator::More(more),
            None => plain(name, argument, &wrong, written)?,
        },
    };
    wanted.session |= operator.tells_session();
    wanted.upstream |= operator.tells_upstream();
    wanted.numbers |= operator == Operator::More(More::StreamId);
    if operator == Operator::Nothing && !wanted.never.iter().any(|known| **known == *written) {
        wanted.never.push(written.into());
    }
    Ok(Piece::Value(operator, most))
}

/// Operators without an argument, and those that are never there.
fn plain(
    name: &str,
    argument: Option<&str>,
    wrong: &dyn Fn(&str) -> Wrong,
    written: &str,
) -> Result<Operator, Wrong> {
    if more::is_never(name) {
        return Ok(Operator::Nothing);
    }
    let Some(operator) = bare(name).or_else(|| more::bare(name).map(Operator::More)) else {
        return Err(Wrong::Unknown(written.to_owned()));
    };
    match argument {
        None | Some("") => Ok(operator),
        // What of the rest of its arguments it means, `with_argument` said.
        Some(_) if name == "REQUESTED_SERVER_NAME" => Ok(operator),
        Some(_) => Err(wrong("it takes no argument")),
    }
}

fn bare(name: &str) -> Option<Operator> {
    use Address::{Direct, Local, Remote, Upstream};
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => Operator::ResponseFlagsLong,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(Status::Number),
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_HOST_NAME" => {
            Operator::Address(Upstream, Part::Whole)
        }
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "UPSTREAM_HOST_NAME_WITHOUT_PORT" => {
            Operator::Address(Upstream, Part::Ip)
        }
        "UPSTREAM_REMOTE_PORT" => Operator::Address(Upstream, Part::Port),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::FailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::Attempts,
        "DOWNSTREAM_REMOTE_ADDRESS" => Operator::Address(Remote, Part::Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Address(Remote, Part::Ip),
        "DOWNSTREAM_REMOTE_PORT" => Operator::Address(Remote, Part::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::Address(Direct, Part::Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::Address(Direct, Part::Ip),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::Address(Direct, Part::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::Address(Local, Part::Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::Address(Local, Part::Ip),
        "DOWNSTREAM_LOCAL_PORT" => Operator::Address(Local, Part::Port),
        "DOWNSTREAM_LOCAL_URI_SAN" => Operator::OwnId,
        "REQUESTED_SERVER_NAME" => Operator::ServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "HOSTNAME" => Operator::Hostname,
        "WEFT_SENTENCE" => Operator::Sentence,
        "WEFT_CACHE" => Operator::Cache,
        "WEFT_GENERATION" => Operator::Generation,
        "WEFT_NODE" => Operator::Node,
        _ => return None,
    })
}

fn header_operator(kind: &str, argument: &str, wanted: &mut Wanted) -> Result<Operator, String> {
    let (first, second) = match argument.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (argument, None),
    };
    let mut one = |name: &str| header(kind, name, wanted);
    let first = one(first)?;
    let second = second.map(one).transpose()?;
    Ok(Operator::Header(first, second))
}

fn header(kind: &str, name: &str, wanted: &mut Wanted) -> Result<Header, String> {
    let lower = name.to_ascii_lowercase();
    if kind == "REQ" {
        match lower.as_str() {
            ":method" => return Ok(Header::Method),
            // What the client sent, whatever a rewrite made of it.
            ":path" | "x-envoy-original-path" => return Ok(Header::Path),
            ":authority" | "host" => return Ok(Header::Authority),
            ":scheme" => return Ok(Header::Scheme),
            "user-agent" => return Ok(Header::UserAgent),
            "x-request-id" => return Ok(Header::RequestId),
            "x-forwarded-for" => return Ok(Header::ForwardedFor),
            _ => {}
        }
    }
    if kind == "RESP" && lower == "x-envoy-upstream-service-time" {
        return Ok(Header::UpstreamTime);
    }
    if kind == "RESP" && lower == ":status" {
        return Ok(Header::Status);
    }
    let name = HeaderName::from_bytes(lower.as_bytes())
        .map_err(|_| format!("{name:?} cannot be the name of a header"))?;
    Ok(match kind {
        "REQ" => Header::Request(noted(&mut wanted.request, name)),
        "RESP" => Header::Response(noted(&mut wanted.response, name)),
        _ => Header::Trailer(noted(&mut wanted.trailers, name)),
    })
}

/// The header's place in the list of those that are noted.
fn noted(list: &mut Vec<HeaderName>, name: HeaderName) -> usize {
    if let Some(at) = list.iter().position(|known| *known == name) {
        return at;
    }
    list.push(name);
    list.len() - 1
}
