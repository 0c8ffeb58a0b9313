// SPDX-License-Identifier: Apache-2.0
//! Operators that few lines have: the TLS of both sides, times between two points, numbers of
//! connections, parts of the path; and those of Envoy that mean nothing here. What of them is noted
//! while a request passes is noted only where a format asks. Called by `parse` and `value`.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::time::Instant;
use weft_base::clock::moment;
use weft_identity::outside::Shown;
use weft_model::decide::pick_section;

use super::value::{Entry, Part, Pattern, Sink};
use crate::observe::admin::stats::percent_decoded;
use crate::observe::facts::Session;
use crate::table::Door;
use crate::upstream::pool::Wire;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum More {
    Session(Side, Said),
    UpstreamLocal(Part),
    DirectLocal(Part),
    UpstreamProtocol,
    UpstreamConnection,
    ConnectionId,
    StreamId,
    /// Between two points, in units of so many nanoseconds.
    Between(Point, Point, u128),
    Path {
        query: bool,
    },
    QueryParam(Arc<str>),
    Query {
        decoded: bool,
    },
    /// The name that is asked for: the TLS server name before the host, or the host.
    Asked {
        host_first: bool,
    },
    Environment(Option<Arc<str>>),
    FilterChain,
    LogType,
    HandshakeFailure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
}

/// What is said of a TLS session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Version,
    Cipher,
    Subject,
    Issuer,
    Serial,
    Uris,
    Dns,
    Ips,
    Emails,
    Sha256,
    Sha1,
    From(Pattern),
    Until(Pattern),
}

/// A time within a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    RequestBegins,
    RequestEnds,
    AttemptBegins,
    AnswerBegins,
    AnswerEnds,
}

const MS: u128 = 1_000_000;
/// The machine's time zone, where the environment names none.
const LOCAL_TIME: &str = "/etc/localtime";

/// Envoy's names of what weft has not, or does not record; with any argument.
#[rustfmt::skip]
const NEVER: &[&str] = &[
    "DYNAMIC_METADATA", "CLUSTER_METADATA", "UPSTREAM_METADATA", "METADATA", "FILTER_STATE",
    "UPSTREAM_FILTER_STATE", "LISTENER_METADATA", "CEL", "VIRTUAL_CLUSTER_NAME", "CUSTOM_FLAGS",
    "DOWNSTREAM_TLS_SESSION_ID", "UPSTREAM_TLS_SESSION_ID", "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT", "DOWNSTREAM_PEER_CERT", "UPSTREAM_PEER_CERT", "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_DNS_SAN", "DOWNSTREAM_LOCAL_IP_SAN", "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "UPSTREAM_LOCAL_SUBJECT", "UPSTREAM_LOCAL_URI_SAN", "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_IP_SAN", "DOWNSTREAM_WIRE_BYTES_RECEIVED", "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED", "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED", "UPSTREAM_WIRE_BYTES_SENT", "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT", "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", "REQUEST_HEADERS_BYTES", "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES", "ROUNDTRIP_DURATION", "DOWNSTREAM_HANDSHAKE_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION", "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE", "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_DETECTED_CLOSE_TYPE", "UPSTREAM_HOSTS_ATTEMPTED", "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", "UPSTREAM_CONNECTION_IDS_ATTEMPTED", "UNIQUE_ID",
    "SPAN_ID", "BYTES_RETRANSMITTED", "PACKETS_RETRANSMITTED", "DOWNSTREAM_CX_RTT",
    "REQUEST_TX_DURATION", "LOCAL_REPLY_BODY", "ROUTE_RESOLUTION_COUNT", "ROUTE_RESOLUTION_TIME_US",
    "UPSTREAM_SERVER_NAME", "UPSTREAM_TLS_GROUP", "DOWNSTREAM_TLS_GROUP",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_PEER_OTHERNAME_SAN", "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS", "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
];

thread_local! {
    static LINES: Cell<u64> = const { Cell::new(0) };
}

/// Another line is written: every record has one.
pub fn next_line() {
    LINES.set(LINES.get() + 1);
}

pub fn is_never(name: &str) -> bool {
    NEVER.contains(&name)
}

/// The zone that `TZ` names, else the machine's, else UTC.
#[allow(clippy::disallowed_methods)] // A format asks for it, when it is read.
pub fn local_zone() -> TimeZone {
    let named = std::env::var("TZ").ok();
    let named = named.and_then(|name| TimeZone::get(name.trim_start_matches(':')).ok());
    let machines = || TimeZone::tzif("Local", &std::fs::read(LOCAL_TIME).ok()?).ok();
    named.or_else(machines).unwrap_or(TimeZone::UTC)
}

/// Operators that take an argument, or may.
///
/// # Errors
/// What is wrong with the argument.
pub fn with_argument(name: &str, argument: Option<&str>) -> Result<Option<More>, String> {
    let pattern = || Pattern::new(argument);
    let session = |side, said| Ok(Some(More::Session(side, said)));
    match name {
        "DOWNSTREAM_PEER_CERT_V_START" => session(Side::Downstream, Said::From(pattern()?)),
        "DOWNSTREAM_PEER_CERT_V_END" => session(Side::Downstream, Said::Until(pattern()?)),
        "UPSTREAM_PEER_CERT_V_START" => session(Side::Upstream, Said::From(pattern()?)),
        "UPSTREAM_PEER_CERT_V_END" => session(Side::Upstream, Said::Until(pattern()?)),
        "COMMON_DURATION" => between(argument.unwrap_or_default()).map(Some),
        "PATH" => path(argument.unwrap_or_default()).map(Some),
        "QUERY_PARAM" => match argument {
            None | Some("") => Err("it names no parameter".into()),
            Some(name) => Ok(Some(More::QueryParam(name.into()))),
        },
        "QUERY_PARAMS" => match argument.unwrap_or("ORIG") {
            "" | "ORIG" => Ok(Some(More::Query { decoded: false })),
            "DECODED" => Ok(Some(More::Query { decoded: true })),
            _ => Err("ORIG (as they were sent) or DECODED".into()),
        },
        "REQUESTED_SERVER_NAME" => asked(argument.unwrap_or_default()),
        "ENVIRONMENT" => match argument {
            None | Some("") => Err("it names no variable".into()),
            #[allow(clippy::disallowed_methods)] // A format asks for it, when it is read.
            Some(name) => Ok(Some(More::Environment(std::env::var(name).ok().map(Into::into)))),
        },
        _ => Ok(None),
    }
}

/// Operators without an argument.
pub fn bare(name: &str) -> Option<More> {
    use Point::{AnswerBegins, AnswerEnds, RequestBegins, RequestEnds};
    let session = |side: Side, name: &str| {
        let said = match name {
            "TLS_VERSION" => Said::Version,
            "TLS_CIPHER" => Said::Cipher,
            "PEER_SUBJECT" => Said::Subject,
            "PEER_ISSUER" => Said::Issuer,
            "PEER_SERIAL" => Said::Serial,
            "PEER_URI_SAN" => Said::Uris,
            "PEER_DNS_SAN" => Said::Dns,
            "PEER_IP_SAN" => Said::Ips,
            "PEER_EMAIL_SAN" => Said::Emails,
            "PEER_FINGERPRINT_256" => Said::Sha256,
            "PEER_FINGERPRINT_1" => Said::Sha1,
            _ => return None,
        };
        Some(More::Session(side, said))
    };
    let of_session = match name.split_once('_') {
        Some(("DOWNSTREAM", said)) => session(Side::Downstream, said),
        Some(("UPSTREAM", said)) => session(Side::Upstream, said),
        _ => None,
    };
    Some(match name {
        _ if of_session.is_some() => return of_session,
        "UPSTREAM_LOCAL_ADDRESS" => More::UpstreamLocal(Part::Whole),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => More::UpstreamLocal(Part::Ip),
        "UPSTREAM_LOCAL_PORT" => More::UpstreamLocal(Part::Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => More::DirectLocal(Part::Whole),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => More::DirectLocal(Part::Ip),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => More::DirectLocal(Part::Port),
        "UPSTREAM_PROTOCOL" => More::UpstreamProtocol,
        "UPSTREAM_CONNECTION_ID" => More::UpstreamConnection,
        "CONNECTION_ID" => More::ConnectionId,
        "STREAM_ID" => More::StreamId,
        "REQUEST_DURATION" => More::Between(RequestBegins, RequestEnds, MS),
        "RESPONSE_DURATION" => More::Between(RequestBegins, AnswerBegins, MS),
        "RESPONSE_TX_DURATION" => More::Between(AnswerBegins, AnswerEnds, MS),
        "FILTER_CHAIN_NAME" => More::FilterChain,
        "ACCESS_LOG_TYPE" => More::LogType,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => More::HandshakeFailure,
        _ => return None,
    })
}

/// `START:END` or `START:END:PRECISION`.
fn between(argument: &str) -> Result<More, String> {
    let how = "write START:END or START:END:PRECISION";
    let mut parts = argument.split(':');
    let (Some(start), Some(end)) = (parts.next(), parts.next()) else { return Err(how.into()) };
    let unit = match (parts.next(), parts.next()) {
        (None | Some("ms"), None) => MS,
        (Some("us"), None) => 1_000,
        (Some("ns"), None) => 1,
        _ => return Err("the precision is ms, us or ns".into()),
    };
    let point = |name: &str| match name {
        "DS_RX_BEG" => Ok(Point::RequestBegins),
        "DS_RX_END" => Ok(Point::RequestEnds),
        "US_TX_BEG" => Ok(Point::AttemptBegins),
        "US_RX_BEG" | "DS_TX_BEG" => Ok(Point::AnswerBegins),
        "DS_TX_END" => Ok(Point::AnswerEnds),
        _ => Err(format!(
            "{name:?} is no time that weft records: DS_RX_BEG, DS_RX_END, US_TX_BEG, US_RX_BEG, \
             DS_TX_BEG or DS_TX_END"
        )),
    };
    Ok(More::Between(point(start)?, point(end)?, unit))
}

/// `SNI_ONLY`, or which is shown first; and which host: weft has the one that the client sent.
fn asked(argument: &str) -> Result<Option<More>, String> {
    let (first, host) = argument.split_once(':').unwrap_or((argument, "ORIG_OR_HOST"));
    if !["ORIG", "ORIG_OR_HOST", "HOST"].contains(&host) {
        return Err("ORIG or ORIG_OR_HOST".into());
    }
    let host_first = match first {
        "" | "SNI_ONLY" => return Ok(None),
        "SNI_FIRST" => false,
        "HOST_FIRST" => true,
        _ => return Err("SNI_ONLY, SNI_FIRST or HOST_FIRST".into()),
    };
    match host {
        "HOST" => Err("the host behind a rewrite is not recorded; write ORIG".into()),
        _ => Ok(Some(More::Asked { host_first })),
    }
}

/// `WQ` or `NQ`, and which path: weft has the one that the client sent.
fn path(argument: &str) -> Result<More, String> {
    let (query, which) = argument.split_once(':').unwrap_or((argument, "ORIG"));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return Err("WQ (with its query) or NQ (without)".into()),
    };
    match which {
        "ORIG" | "ORIG_OR_PATH" => Ok(More::Path { query }),
        "PATH" => Err("the path behind a rewrite is not recorded; write ORIG".into()),
        _ => Err("ORIG or ORIG_OR_PATH".into()),
    }
}

// === impl More ===

impl More {
    pub fn is_number(&self) -> bool {
        matches!(
            self,
            Self::UpstreamConnection
                | Self::ConnectionId
                | Self::Between(..)
                | Self::UpstreamLocal(Part::Port)
                | Self::DirectLocal(Part::Port)
        )
    }

    pub fn tells_session(&self) -> bool {
        matches!(self, Self::Session(Side::Downstream, _))
    }

    pub fn tells_upstream(&self) -> bool {
        match self {
            Self::Session(side, _) => *side == Side::Upstream,
            Self::UpstreamLocal(_) | Self::UpstreamProtocol | Self::UpstreamConnection => true,
            _ => false,
        }
    }

    /// Writes its value; `false` when there is none.
    pub fn write(&self, entry: &Entry<'_>, sink: &mut Sink<'_>) -> bool {
        match self {
            Self::Session(side, said) => {
                let session = match side {
                    Side::Downstream => entry.conn().session.as_deref(),
                    Side::Upstream => entry.facts().and_then(|facts| facts.session.as_ref()),
                };
                match (session, side, said) {
                    (Some(session), ..) => said.write(session, sink),
                    // Within the mesh it is known without a look at the certificate.
                    (None, Side::Downstream, Said::Uris) => {
                        sink.some(entry.conn().peer.as_ref().map(|peer| peer.as_str()))
                    }
                    (None, ..) => false,
                }
            }
            Self::UpstreamLocal(part) => {
                let local = entry.facts().and_then(|facts| facts.local);
                local.is_some_and(|local| part.write(local, sink))
            }
            Self::DirectLocal(part) => part.write(entry.conn().local, sink),
            Self::UpstreamProtocol => {
                sink.some(entry.facts().and_then(|facts| facts.wire).map(|wire| match wire {
                    Wire::H1 => "HTTP/1.1",
                    Wire::H2 => "HTTP/2",
                }))
            }
            Self::UpstreamConnection => entry.facts().is_some_and(|f| sink.number(f.number)),
            Self::ConnectionId => sink.number(entry.conn().number),
            Self::StreamId => {
                let worker = entry.record().map_or(0, |record| record.worker.id as u64);
                sink.number((worker << 48) + LINES.get())
            }
            Self::Between(start, end, unit) => between_points(entry, *start, *end, *unit, sink),
            Self::Path { query } => entry.record().is_some_and(|record| {
                let path = match query {
                    true => record.uri.path_and_query().map_or("/", |path| path.as_str()),
                    false => record.uri.path(),
                };
                sink.text(path.as_bytes())
            }),
            Self::QueryParam(name) => {
                let query = entry.record().and_then(|record| record.uri.query());
                let pairs = query.into_iter().flat_map(|query| query.split('&'));
                let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                sink.some(pairs.find(|(key, _)| *key == &**name).map(|(_, value)| value))
            }
            Self::Query { decoded } => query_params(entry, *decoded, sink),
            Self::Asked { host_first } => {
                let host = entry.record().and_then(|record| record.authority.as_deref());
                let name = entry.conn().server_name.as_deref();
                sink.some(if *host_first { host } else { name.or(host) })
            }
            Self::Environment(value) => sink.some(value.as_deref()),
            Self::FilterChain => filter_chain(entry, sink),
            Self::LogType => sink.some(Some(match entry {
                Entry::Request(..) => "DownstreamEnd",
                Entry::Connection(_) => "TcpConnectionEnd",
            })),
            Self::HandshakeFailure => match entry {
                Entry::Connection(relayed) if relayed.handshake => {
                    sink.some(relayed.sentence.as_deref())
                }
                _ => false,
            },
        }
    }
}

fn query_params(entry: &Entry<'_>, decoded: bool, sink: &mut Sink<'_>) -> bool {
    let query = entry.record().and_then(|record| record.uri.query());
    match (decoded, query) {
        (true, Some(query)) => sink.text(percent_decoded(query).as_bytes()),
        (_, query) => sink.some(query),
    }
}

/// The section of a gateway's listener that the connection is for.
fn filter_chain(entry: &Entry<'_>, sink: &mut Sink<'_>) -> bool {
    let (Some(record), Door::Gateway(name)) = (entry.record(), &entry.conn().door) else {
        return false;
    };
    let table = record.worker.table();
    let Some(gateway) = table.gateway(name) else { return false };
    let host = entry.conn().server_name.as_deref().unwrap_or_default();
    sink.some(pick_section(&gateway.listener, host).map(|section| &*section.name))
}

fn between_points(
    entry: &Entry<'_>,
    start: Point,
    end: Point,
    unit: u128,
    sink: &mut Sink<'_>,
) -> bool {
    let Some(record) = entry.record() else { return false };
    let at = |point: Point| -> Option<Instant> {
        match point {
            Point::RequestBegins => Some(record.started),
            Point::RequestEnds => record.body.ended_at().map(|at| at.unwrap_or(record.started)),
            Point::AttemptBegins => {
                record.headed?.checked_sub(Duration::from_millis(record.upstream_ms?))
            }
            Point::AnswerBegins => record.headed,
            Point::AnswerEnds => Some(moment()),
        }
    };
    let (Some(from), Some(to)) = (at(start), at(end)) else { return false };
    let units = to.saturating_duration_since(from).as_nanos() / unit;
    sink.number(u64::try_from(units).unwrap_or(u64::MAX))
}

// === impl Said ===

impl Said {
    fn write(&self, session: &Session, sink: &mut Sink<'_>) -> bool {
        let mut of = |pick: fn(&Shown) -> &String| {
            let text = session.peer.as_ref().map(|peer| pick(peer).as_str());
            sink.some(text.filter(|text| !text.is_empty()))
        };
        match self {
            Self::Version => sink.some(Some(session.version)),
            Self::Cipher => sink.some(Some(session.cipher)),
            Self::Subject => of(|peer| &peer.subject),
            Self::Issuer => of(|peer| &peer.issuer),
            Self::Serial => of(|peer| &peer.serial),
            Self::Uris => of(|peer| &peer.uris),
            Self::Dns => of(|peer| &peer.dns),
            Self::Ips => of(|peer| &peer.ips),
            Self::Emails => of(|peer| &peer.emails),
            Self::Sha256 => of(|peer| &peer.sha256),
            Self::Sha1 => of(|peer| &peer.sha1),
            Self::From(pattern) => {
                session.peer.as_ref().is_some_and(|peer| pattern.write(ms(peer.from), sink))
            }
            Self::Until(pattern) => {
                session.peer.as_ref().is_some_and(|peer| pattern.write(ms(peer.until), sink))
            }
        }
    }
}

fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or_default().saturating_mul(1_000)
}
