// SPDX-License-Identifier: Apache-2.0
//! Watches: one JSON object per line, from a resourceVersion or with the present objects first,
//! with bookmarks, until its time is over, its client is gone or the server drains.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use weft_base::task::TaskGroup;
use weft_kinds::kind::Kind;
use weft_registry::{ObjectEvent, ObjectWatch};

use super::path::Objects;
use super::present::Shape;
use super::read::revision_of;
use super::selector::Selector;
use super::status::ApiError;
use super::{Ask, Door};
use crate::json::Fields;

/// A watch without `timeoutSeconds` ends after this; clients begin another.
const WATCH_TIME: Duration = Duration::from_secs(30 * 60);
const WATCH_TIME_MAX: Duration = Duration::from_secs(6 * 3600);
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How a watch begins.
enum Start {
    /// Everything after this revision.
    After(u64),
    /// The present objects as ADDED, then changes.
    Present { then_bookmark: bool },
    /// Changes from now on.
    Now,
}

struct Stream {
    watch: ObjectWatch,
    row: &'static Kind,
    version: &'static str,
    shape: Shape,
    selector: Selector,
    lines: VecDeque<Bytes>,
    clock: weft_base::clock::Clock,
    end: Instant,
    bookmarks: Option<Interval>,
    tasks: TaskGroup,
    over: bool,
}

// === watching ===

impl Door {
    pub(super) async fn watch(
        &self,
        target: &Objects,
        ask: &Ask,
        shape: Shape,
        selector: Selector,
    ) -> Result<Response, ApiError> {
        let start = start(ask)?;
        let namespace = target.namespace.as_deref();
        let objects = self.registry.objects();
        let (from, present) = match start {
            Start::After(revision) => (revision, Vec::new()),
            Start::Present { .. } => objects.list(target.kind, namespace),
            Start::Now => (self.registry.now().revision(), Vec::new()),
        };
        let seconds = ask.query.number("timeoutSeconds")?.filter(|n| *n > 0);
        let time = seconds.map_or(WATCH_TIME, Duration::from_secs).min(WATCH_TIME_MAX);
        let bookmarks = ask.query.flag("allowWatchBookmarks").then(|| {
            let mut ticks = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        let mut stream = Stream {
            watch: objects.watch(target.kind, namespace, from)?,
            row: target.kind.row(),
            version: target.version,
            shape,
            selector,
            lines: VecDeque::new(),
            clock: self.registry.clock().clone(),
            end: Instant::now() + time,
            bookmarks,
            tasks: self.registry.tasks().clone(),
            over: false,
        };
        for object in present {
            if stream.selector.holds(&object) {
                stream.tell("ADDED", object);
            }
        }
        if let Start::Present { then_bookmark: true } = start {
            stream.bookmark(from, true);
        }
        let lines = futures_util::stream::unfold(stream, |mut stream| async move {
            let line = stream.next().await?;
            Some((Ok::<_, Infallible>(line), stream))
        });
        let mut response = Response::new(Body::from_stream(lines));
        let json = HeaderValue::from_static("application/json;stream=watch");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Ok(response)
    }
}

/// Reads how a watch begins from its parameters, as the API server does.
fn start(ask: &Ask) -> Result<Start, ApiError> {
    let query = &ask.query;
    let (version, match_) = (query.text("resourceVersion"), query.text("resourceVersionMatch"));
    if query.has("sendInitialEvents") {
        if match_ != "NotOlderThan" {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
                 sendInitialEvents requires resourceVersionMatch=NotOlderThan",
            ));
        }
        if query.flag("sendInitialEvents") {
            if !query.flag("allowWatchBookmarks") {
                return Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents requires \
                     allowWatchBookmarks=true",
                ));
            }
            return Ok(Start::Present { then_bookmark: true });
        }
        return Ok(match version {
            "" | "0" => Start::Now,
            text => Start::After(revision_of(text)?),
        });
    }
    if !match_.is_empty() {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
             resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    Ok(match version {
        "" | "0" => Start::Present { then_bookmark: false },
        text => Start::After(revision_of(text)?),
    })
}

// === impl Stream ===

impl Stream {
    /// The next lines; `None` ends the answer.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                events = self.watch.next() => match events {
                    Ok(events) => events.into_iter().for_each(|e| self.event(e)),
                    Err(error) => {
                        let status = ApiError::from(error).to_json();
                        self.push(&json!({"type": "ERROR", "object": status}));
                        self.over = true;
                    }
                },
                () = sleep_until(self.end) => {
                    if self.bookmarks.is_some() {
                        self.bookmark(self.watch.position(), false);
                    }
                    self.over = true;
                }
                () = tick(self.bookmarks.as_mut()) => self.bookmark(self.watch.position(), false),
                () = self.tasks.draining() => self.over = true,
            }
        }
    }

    /// An object that begins to match is ADDED, one that ceases to is DELETED.
    fn event(&mut self, event: ObjectEvent) {
        let before = event.before.as_ref().is_some_and(|o| self.selector.holds(o));
        let now = !event.deleted && self.selector.holds(&event.object);
        match (before, now) {
            (_, false) if event.deleted && (before || self.selector.holds(&event.object)) => {
                self.tell("DELETED", event.object);
            }
            (true, false) => self.tell("DELETED", event.object),
            (true, true) => self.tell("MODIFIED", event.object),
            (false, true) => self.tell("ADDED", event.object),
            (false, false) => {}
        }
    }

    fn tell(&mut self, what: &str, object: Value) {
        let now = self.clock.wall_ms();
        let object = self.shape.object(self.row, self.version, object, now);
        self.push(&json!({"type": what, "object": object}));
    }

    fn bookmark(&mut self, revision: u64, initial: bool) {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            meta.put("annotations", json!({"k8s.io/initial-events-end": "true"}));
        }
        let mut object = json!({
            "kind": self.row.kind, "apiVersion": self.row.api_version_of(self.version),
            "metadata": meta,
        });
        if let Shape::Table(_) = self.shape {
            object = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": revision.to_string()}, "rows": [
                    {"cells": [], "object": {"kind": "PartialObjectMetadata",
                        "apiVersion": "meta.k8s.io/v1", "metadata": object.at("metadata")}}]});
        }
        self.push(&json!({"type": "BOOKMARK", "object": object}));
    }

    fn push(&mut self, event: &Value) {
        let mut line = event.to_string();
        line.push('\n');
        self.lines.push_back(line.into());
    }
}

async fn tick(ticks: Option<&mut Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}
