// SPDX-License-Identifier: Apache-2.0
//! The access log: a worker formats its line, one task of the control runtime writes lines in
//! batches. A full queue drops lines and counts them; it never holds a request up.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use http::HeaderValue;
use serde::Serialize;
use tokio::sync::mpsc;

use super::flags::Flags;
use super::metrics::WorkerCells;
use super::record::Record;
use crate::config::{AccessLog, LogFormat, LogWhat};
use crate::table::BackendEntry;
use crate::upstream::pick::LocalEndpoint;
use crate::worker::Conn;

/// Lines that may wait for the writer.
const LINES_MAX: usize = 4096;

/// A worker's end.
#[derive(Clone, Debug)]
pub struct LogSender {
    what: LogWhat,
    format: LogFormat,
    lines: mpsc::Sender<String>,
    cells: Arc<WorkerCells>,
}

#[derive(Debug)]
pub struct LogWriter {
    lines: mpsc::Receiver<String>,
    path: Option<std::path::PathBuf>,
}

/// One opaque connection, for its line.
#[derive(Debug)]
pub struct Relayed<'a> {
    pub conn: &'a Conn,
    pub wall_ms: u64,
    pub ms: u64,
    pub backend: Option<&'a BackendEntry>,
    pub endpoint: Option<&'a LocalEndpoint>,
    pub tries: u32,
    pub flags: Flags,
    pub received: u64,
    pub sent: u64,
    pub sentence: Option<String>,
}

/// What both formats show of a request.
#[derive(Debug, Serialize)]
struct Line<'a> {
    start_time: String,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    response_code: u16,
    response_flags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    upstream_service_time: Option<u64>,
    x_forwarded_for: &'a str,
    user_agent: &'a str,
    request_id: &'a str,
    authority: &'a str,
    upstream_host: Option<String>,
    upstream_cluster: Option<&'a str>,
    downstream_local_address: String,
    downstream_remote_address: String,
    requested_server_name: Option<&'a str>,
    route_name: Option<&'a str>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<&'a str>,
}

/// The writer's end and what each worker's [`LogSender`] is made of.
pub fn channel(config: &AccessLog) -> (mpsc::Sender<String>, LogWriter) {
    let (tx, rx) = mpsc::channel(LINES_MAX);
    (tx, LogWriter { lines: rx, path: config.path.clone() })
}

// === impl LogSender ===

impl LogSender {
    pub fn new(config: &AccessLog, lines: mpsc::Sender<String>, cells: Arc<WorkerCells>) -> Self {
        Self { what: config.what, format: config.format, lines, cells }
    }

    pub fn request(&self, record: &Record, ms: u64) {
        let wanted = match self.what {
            LogWhat::Nothing => false,
            LogWhat::Failures => !record.flags.is_empty() || record.status >= 500,
            LogWhat::Everything => true,
        };
        if !wanted {
            return;
        }
        self.line(&Line::of(record, ms));
    }

    /// A connection that was relayed, or could not be.
    pub fn relayed(&self, relayed: &Relayed<'_>) {
        let wanted = match self.what {
            LogWhat::Nothing => false,
            LogWhat::Failures => !relayed.flags.is_empty(),
            LogWhat::Everything => true,
        };
        if wanted {
            self.line(&Line::relayed(relayed));
        }
    }

    fn line(&self, line: &Line<'_>) {
        let text = match self.format {
            LogFormat::Text => line.text(),
            LogFormat::Json => serde_json::to_string(line).unwrap_or_default(),
        };
        if self.lines.try_send(text).is_err() {
            self.cells.log_dropped.add(1);
        }
    }
}

// === impl LogWriter ===

impl LogWriter {
    /// Writes until all workers are gone.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        let mut file = self.path.as_ref().and_then(|path| {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            opened
                .inspect_err(|error| {
                    tracing::error!(path = %path.display(), %error, "no access log: cannot open");
                })
                .ok()
        });
        while self.lines.recv_many(&mut batch, 256).await > 0 {
            let mut text = String::new();
            for line in batch.drain(..) {
                text.push_str(&line);
                text.push('\n');
            }
            let written = match (&mut file, &self.path) {
                (Some(file), _) => file.write_all(text.as_bytes()),
                (None, None) => std::io::stdout().lock().write_all(text.as_bytes()),
                (None, Some(_)) => Ok(()),
            };
            if let Err(error) = written {
                tracing::warn!(%error, "access log lines are lost");
            }
        }
    }
}

// === impl Line ===

impl<'a> Line<'a> {
    fn relayed(relayed: &'a Relayed<'a>) -> Self {
        let conn = relayed.conn;
        Self {
            start_time: timestamp(relayed.wall_ms),
            method: "-",
            path: "-",
            protocol: "-",
            response_code: 0,
            response_flags: relayed.flags.to_string(),
            grpc_status: None,
            bytes_received: relayed.received,
            bytes_sent: relayed.sent,
            duration: relayed.ms,
            upstream_service_time: None,
            x_forwarded_for: "-",
            user_agent: "-",
            request_id: "-",
            authority: "-",
            upstream_host: relayed.endpoint.map(|e| e.entry.endpoint.address.to_string()),
            upstream_cluster: relayed.backend.map(|b| &*b.cluster),
            downstream_local_address: conn.dialled().to_string(),
            downstream_remote_address: conn.remote.to_string(),
            requested_server_name: conn.server_name.as_deref(),
            route_name: None,
            attempts: relayed.tries,
            sentence: relayed.sentence.as_deref(),
        }
    }

    fn of(record: &'a Record, ms: u64) -> Self {
        let conn = &record.conn;
        Self {
            start_time: timestamp(record.wall_ms),
            method: record.method.as_str(),
            path: record.uri.path_and_query().map_or("/", |p| p.as_str()),
            protocol: match record.version {
                http::Version::HTTP_10 => "HTTP/1.0",
                http::Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            response_code: record.status,
            response_flags: record.flags.to_string(),
            grpc_status: record.grpc_status,
            bytes_received: record.body.received(),
            bytes_sent: record.bytes_sent,
            duration: ms,
            upstream_service_time: record.upstream_ms,
            x_forwarded_for: shown(record.forwarded_for.as_ref()),
            user_agent: shown(record.user_agent.as_ref()),
            request_id: shown(record.request_id.as_ref()),
            authority: record.authority.as_deref().unwrap_or("-"),
            upstream_host: record.endpoint.as_ref().map(|e| e.entry.endpoint.address.to_string()),
            upstream_cluster: match &record.backend {
                Some(backend) => Some(&backend.cluster),
                None if record.passthrough => Some("PassthroughCluster"),
                None => None,
            },
            downstream_local_address: conn.dialled().to_string(),
            downstream_remote_address: conn.remote.to_string(),
            requested_server_name: conn.server_name.as_deref(),
            route_name: record.route.as_deref(),
            attempts: record.attempts,
            sentence: record.sentence.as_deref(),
        }
    }

    /// Istio's default format; the sentence stands where Envoy has the upstream's failure reason.
    fn text(&self) -> String {
        let or_dash = |s: Option<String>| s.unwrap_or_else(|| "-".into());
        let mut out = String::with_capacity(320);
        let _ = write!(
            out,
            "[{}] \"{} {} {}\" {} {} {} - \"{}\" {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" \
             {} - {} {} {} {}",
            self.start_time,
            escaped(self.method),
            escaped(self.path),
            self.protocol,
            self.response_code,
            self.response_flags,
            if self.sentence.is_some() { "local" } else { "via_upstream" },
            escaped(self.sentence.unwrap_or("-")),
            self.bytes_received,
            self.bytes_sent,
            self.duration,
            or_dash(self.upstream_service_time.map(|ms| ms.to_string())),
            escaped(self.x_forwarded_for),
            escaped(self.user_agent),
            escaped(self.request_id),
            escaped(self.authority),
            or_dash(self.upstream_host.clone()),
            self.upstream_cluster.unwrap_or("-"),
            self.downstream_local_address,
            self.downstream_remote_address,
            escaped(self.requested_server_name.unwrap_or("-")),
            escaped(self.route_name.unwrap_or("-")),
        );
        out
    }
}

fn shown(value: Option<&HeaderValue>) -> &str {
    value.and_then(|v| v.to_str().ok()).unwrap_or("-")
}

/// Nothing a peer sends can end a line or a quoted field.
fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    if text.bytes().all(|b| b != b'"' && b != b'\\' && !b.is_ascii_control()) {
        return text.into();
    }
    text.chars().flat_map(char::escape_default).collect::<String>().into()
}

fn timestamp(wall_ms: u64) -> String {
    let ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map(|t| format!("{t:.3}"))
        .unwrap_or_else(|_| wall_ms.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_send_cannot_forge_a_line() {
        assert_eq!(escaped("a\"b\nc\\"), "a\\\"b\\nc\\\\");
        assert_eq!(escaped("/plain?x=1"), "/plain?x=1");
        assert_eq!(timestamp(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
