// SPDX-License-Identifier: Apache-2.0
//! Answers without an end: `/v1/agent/monitor`, the lines of this process's log as they are
//! written, and `/v1/agent/metrics/stream`. Written by `line`, part by part, while somebody reads
//! and may still do so.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::Level;
use weft_base::lines::{self, Line};
use weft_identity::permission::{Kind, Verb};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;

/// How often figures are said, as Consul gathers them, and readers' rights looked at.
const TURN: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; charset=utf-8";

/// What is still to come of an answer.
pub struct Flow(BoxStream<'static, Bytes>);

/// Who reads. It has a place among the queries that wait.
struct Reader {
    door: Door,
    ask: Ask,
    turns: Interval,
    _place: OwnedSemaphorePermit,
}

// === impl Flow ===

impl Flow {
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.next().await
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flow")
    }
}

// === impl Reader ===

impl Reader {
    fn new(door: &Door, ask: &Ask) -> Result<Self, Refusal> {
        let mut turns = tokio::time::interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { door: door.clone(), ask: ask.clone(), turns, _place: door.place()? })
    }

    /// Whether the holder of what was shown may still read.
    async fn may(&self) -> bool {
        let node = &self.door.own().node.node;
        let still = self.door.still_there(&self.ask).await;
        still.is_ok_and(|who| who.may(Verb::Read, Kind::Agent, &self.ask.namespace, node))
    }
}

impl Door {
    pub(super) fn agent_monitor(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        let named = ask.params.filled("loglevel").unwrap_or("info").to_ascii_lowercase();
        let least =
            level(&named).ok_or_else(|| Refusal::bad(format!("Unknown log level: {named}")))?;
        let (reader, is_json) = (Reader::new(self, ask)?, ask.params.flag("logjson"));
        let lines = lines::read();
        let lines =
            lines.map_err(|full| Refusal::new(StatusCode::TOO_MANY_REQUESTS, full.to_string()))?;
        let parts = unfold((reader, lines), move |(mut reader, mut lines)| async move {
            loop {
                let line = tokio::select! {
                    line = lines.recv() => line?,
                    _ = reader.turns.tick() => match reader.may().await {
                        true => continue,
                        false => return None,
                    },
                };
                if line.level <= least {
                    let part = written(&line, reader.door.wall_ms(), is_json);
                    return Some((part, (reader, lines)));
                }
            }
        });
        Ok(Reply::flow(TEXT, Flow(parts.boxed())))
    }

    pub(super) fn agent_metrics_stream(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand(Verb::Read, Kind::Agent, &ask.namespace, &self.own().node.node)?;
        let parts = unfold(Reader::new(self, ask)?, |mut reader| async move {
            reader.turns.tick().await;
            let figures = reader.may().await.then(|| reader.door.figures())?;
            Some((Bytes::from(format!("{figures}\n")), reader))
        });
        Ok(Reply::flow("application/json", Flow(parts.boxed())))
    }
}

// === helpers ===

fn level(named: &str) -> Option<Level> {
    Some(match named {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" | "warning" => Level::WARN,
        "err" | "error" => Level::ERROR,
        _ => return None,
    })
}

/// As Consul's log has it: `TIME [WARN]  PART: MESSAGE: NAME=VALUE`, or a JSON object.
fn written(line: &Arc<Line>, wall_ms: u64, is_json: bool) -> Bytes {
    let ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(ms).map(|at| format!("{at:.3}")).unwrap_or_default();
    let Line { level, target, message, fields } = &**line;
    if is_json {
        let mut out = Map::new();
        out.insert("@level".into(), json!(level.as_str().to_ascii_lowercase()));
        out.insert("@message".into(), json!(message));
        out.insert("@module".into(), json!(target));
        out.insert("@timestamp".into(), json!(at));
        out.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        return format!("{}\n", Value::Object(out)).into();
    }
    let mut out = format!("{at} {:<7} {target}: {message}", format!("[{level}]"));
    for (at, (name, value)) in fields.iter().enumerate() {
        out += if at == 0 { ": " } else { " " };
        out += &match value.contains(|c: char| c.is_whitespace() || c == '"') {
            true => format!("{name}={value:?}"),
            false => format!("{name}={value}"),
        };
    }
    // One line is one line, whatever it is about.
    let mut out: String = out.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    out.push('\n');
    out.into()
}
