// SPDX-License-Identifier: Apache-2.0
//! Get and list. Lists are cut into pages by `limit` and `continue`.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};
use weft_registry::ObjectError;

use super::path::Objects;
use super::present::Shape;
use super::selector::Selector;
use super::status::{ApiError, json_response};
use super::{Ask, Door};
use crate::json::Fields;

/// Where the next page starts: after this namespace and name, as of this revision.
struct Continue {
    revision: u64,
    namespace: String,
    name: String,
}

// === reading ===

impl Door {
    pub(super) async fn get(&self, target: Objects, ask: &Ask) -> Result<Response, ApiError> {
        let row = target.kind.row();
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let name = target.name.as_deref().unwrap_or_default();
        if ask.query.flag("watch") {
            let selector = selector(&target, ask)?.with_name(name);
            return self.watch(&target, ask, shape, selector).await;
        }
        self.fresh(ask).await?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let object = self.registry.objects().get(target.kind, namespace, name)?;
        let value = shape.object(row, target.version, object, self.now_ms());
        Ok(json_response(StatusCode::OK, &value))
    }

    pub(super) async fn list_or_watch(
        &self,
        target: Objects,
        ask: &Ask,
    ) -> Result<Response, ApiError> {
        let shape = Shape::of(&ask.parts.headers, &ask.query)?;
        let selector = selector(&target, ask)?;
        if ask.query.flag("watch") {
            return self.watch(&target, ask, shape, selector).await;
        }
        self.fresh(ask).await?;
        let value = self.list(&target, ask, shape, &selector)?;
        Ok(json_response(StatusCode::OK, &value))
    }

    fn list(
        &self,
        target: &Objects,
        ask: &Ask,
        shape: Shape,
        selector: &Selector,
    ) -> Result<Value, ApiError> {
        let limit = ask.query.number("limit")?.filter(|n| *n > 0);
        let limit = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let from = match ask.query.text("continue") {
            "" => None,
            token => Some(Continue::parse(token)?),
        };
        let (revision, all) =
            self.registry.objects().list(target.kind, target.namespace.as_deref());
        let start = from.as_ref().map(|f| (f.namespace.as_str(), f.name.as_str()));
        let mut items: Vec<Value> = all
            .into_iter()
            .filter(|o| start.is_none_or(|start| place(o) > start))
            .filter(|o| selector.holds(o))
            .collect();
        // A later page says the first one's revision: who watches from it misses nothing.
        let revision = from.map_or(revision, |f| f.revision);
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if items.len() > limit {
            let rest = items.split_off(limit);
            if let Some((namespace, name)) = items.last().map(place) {
                let next =
                    Continue { revision, namespace: namespace.to_owned(), name: name.to_owned() };
                meta.put("continue", next.token());
            }
            if selector.is_empty() {
                meta.put("remainingItemCount", rest.len());
            }
        }
        Ok(shape.list(target.kind.row(), target.version, items, meta, self.now_ms()))
    }

    /// Waits until what is read is as new as the request asks for: an explicit resourceVersion,
    /// or, when it gives none, everything written before.
    async fn fresh(&self, ask: &Ask) -> Result<(), ApiError> {
        let wanted = ask.query.text("resourceVersion");
        let revision = match wanted {
            "0" => return Ok(()),
            "" => self.registry.store().barrier().await.map_err(ObjectError::from)?.0,
            text => revision_of(text)?,
        };
        let wait = self.caught_up(revision);
        match tokio::time::timeout(std::time::Duration::from_secs(3), wait).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let now = self.registry.now().revision();
                let message = format!("Too large resource version: {wanted}, current: {now}");
                Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message))
            }
        }
    }

    async fn caught_up(&self, revision: u64) {
        let mut world = self.registry.world();
        while world.load().revision() < revision && world.changed().await {}
    }
}

// === impl Continue ===

impl Continue {
    fn token(&self) -> String {
        let text = format!("1\n{}\n{}\n{}", self.revision, self.namespace, self.name);
        URL_SAFE_NO_PAD.encode(text)
    }

    fn parse(token: &str) -> Result<Self, ApiError> {
        let bad = || ApiError::bad_request("continue token is not valid; list from the start");
        let text = URL_SAFE_NO_PAD.decode(token).ok().and_then(|b| String::from_utf8(b).ok());
        let text = text.ok_or_else(bad)?;
        let mut parts = text.split('\n');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("1"), Some(revision), Some(namespace), Some(name), None) => Ok(Self {
                revision: revision.parse().map_err(|_| bad())?,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(bad()),
        }
    }
}

/// A resourceVersion that a client gave.
pub(super) fn revision_of(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!("resourceVersion {text:?} is not one of this server's"))
    })
}

pub(super) fn selector(target: &Objects, ask: &Ask) -> Result<Selector, ApiError> {
    let (labels, fields) = (ask.query.text("labelSelector"), ask.query.text("fieldSelector"));
    Selector::parse(target.kind, labels, fields)
}

/// An object's place in a list.
fn place(object: &Value) -> (&str, &str) {
    let meta = object.at("metadata");
    (
        meta.at("namespace").as_str().unwrap_or_default(),
        meta.at("name").as_str().unwrap_or_default(),
    )
}
