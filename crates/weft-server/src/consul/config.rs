// SPDX-License-Identifier: Apache-2.0
//! `/v1/config*`: config entries, kept and served. What they do to traffic is the control
//! plane's affair and comes with it.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_kinds::world::encode;
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::agent::filter;
use super::body::{self, Fields};
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;

pub(super) const TABLE: &str = "config";
pub(super) const INTENTIONS: &str = "service-intentions";

const KINDS: [&str; 17] = [
    "api-gateway",
    "bound-api-gateway",
    "control-plane-request-limit",
    "exported-services",
    "file-system-certificate",
    "http-route",
    "ingress-gateway",
    "inline-certificate",
    "jwt-provider",
    "mesh",
    "proxy-defaults",
    "sameness-group",
    "service-defaults",
    INTENTIONS,
    "service-resolver",
    "service-router",
    "service-splitter",
];
const MORE_KINDS: [&str; 2] = ["tcp-route", "terminating-gateway"];

impl Door {
    pub(super) async fn config_put(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let mut body = body::object(&ask.body)?;
        let fields = Fields::new(&body, "");
        let (kind, mut name) = (fields.text("Kind")?, fields.text("Name")?);
        check_kind(&kind)?;
        if kind == "mesh" && name.is_empty() {
            name = "mesh".to_owned();
        }
        if kind == "proxy-defaults" && name != "global" {
            return Err(Refusal::bad("invalid name: proxy-defaults are named \"global\""));
        }
        if name.is_empty() {
            return Err(Refusal::bad("Name is required"));
        }
        demand(ask, &kind, &name, Verb::Write)?;
        body.retain(|key, _| {
            let own = ["Kind", "Name", "CreateIndex", "ModifyIndex"];
            !own.iter().any(|own| key.replace('_', "").eq_ignore_ascii_case(own))
        });
        let mut entry = Map::new();
        entry.insert("Kind".into(), json!(kind));
        entry.insert("Name".into(), json!(name));
        entry.extend(body);
        let cas = cas(ask)?;
        let at = record(&kind, &name);
        let plan = |state: &State| {
            let now = state.record(TABLE, &at).map_or(0, |(_, item)| item.modified);
            if cas.is_some_and(|index| index != now) {
                return Ok((Vec::new(), false));
            }
            Ok::<_, Refusal>((vec![Change::Put(at.clone(), Value::Object(entry.clone()))], true))
        };
        let (_, done) = self.consul().change(TABLE, plan).await?;
        Ok(Reply::json(Value::Bool(done)))
    }

    pub(super) async fn config_of(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let (kind, name) = match ask.argument.split_once('/') {
            Some((kind, name)) if !name.is_empty() => (kind, Some(name)),
            Some((kind, _)) => (kind, None),
            None => (ask.argument.as_str(), None),
        };
        check_kind(kind)?;
        match (name, &ask.method) {
            (Some(name), &Method::DELETE) => self.config_delete(ask, kind, name).await,
            (None, &Method::DELETE) => Err(Refusal::not_found("Must provide a kind and a name")),
            (Some(name), _) => {
                demand(ask, kind, name, Verb::Read)?;
                let at = record(kind, name);
                let topic = Topic::Key(keys::record(TABLE, &at).into());
                self.read_shelf(topic, &ask.params.blocking()?, |state| {
                    let text = format!("Config entry not found for {kind:?} / {name:?}");
                    Ok(match state.record(TABLE, &at) {
                        Some((entry, item)) => Reply::json(stamped(entry, item)),
                        None => Reply::text(StatusCode::NOT_FOUND, text),
                    })
                })
                .await
            }
            (None, _) => {
                let (filter, table) = (filter(ask)?, format!("{TABLE}/{}", encode(kind)));
                let topic = Topic::Under(keys::record(&table, "").into());
                self.read_shelf(topic, &ask.params.blocking()?, |state| {
                    let readable =
                        |entry: &Value| demand(ask, kind, body::word(entry, "Name"), Verb::Read);
                    let all = state.records(&table).into_iter();
                    let shown = all.map(|(entry, item)| stamped(&entry, &item));
                    let shown: Vec<Value> = shown.filter(|entry| readable(entry).is_ok()).collect();
                    super::catalog::kept(filter.as_ref(), shown).map(Reply::json)
                })
                .await
            }
        }
    }

    async fn config_delete(&self, ask: &Ask, kind: &str, name: &str) -> Result<Reply, Refusal> {
        demand(ask, kind, name, Verb::Write)?;
        let (at, cas) = (record(kind, name), cas(ask)?);
        let plan = |state: &State| {
            let now = state.record(TABLE, &at).map_or(0, |(_, item)| item.modified);
            match cas {
                Some(index) if index != now => Ok((Vec::new(), false)),
                _ => Ok::<_, Refusal>((vec![Change::Delete(at.clone())], true)),
            }
        };
        let (_, done) = self.consul().change(TABLE, plan).await?;
        Ok(match cas {
            Some(_) => Reply::json(Value::Bool(done)),
            None => Reply::json(json!({})),
        })
    }
}

/// A kept record with its indexes.
pub(super) fn stamped(entry: &Value, item: &weft_registry::consul::Item) -> Value {
    let mut out = entry.clone();
    if let Value::Object(map) = &mut out {
        map.insert("CreateIndex".into(), json!(item.created));
        map.insert("ModifyIndex".into(), json!(item.modified));
    }
    out
}

/// A config entry's name among the records.
pub(super) fn record(kind: &str, name: &str) -> String {
    format!("{}/{}", encode(kind), encode(name))
}

/// `?cas=`, when it is given.
///
/// # Errors
/// When it is no number.
pub(super) fn cas(ask: &Ask) -> Result<Option<u64>, Refusal> {
    let parse = |text: &str| {
        text.parse().map_err(|_| Refusal::bad(format!("Invalid cas: {text:?} is no number")))
    };
    ask.params.filled("cas").map(parse).transpose()
}

// === helpers ===

fn check_kind(kind: &str) -> Result<(), Refusal> {
    match KINDS.contains(&kind) || MORE_KINDS.contains(&kind) {
        true => Ok(()),
        false => Err(Refusal::bad(format!("invalid config entry kind: {kind:?}"))),
    }
}

/// By whose right an entry is read and written: its service's, or the mesh's.
fn demand(ask: &Ask, kind: &str, name: &str, verb: Verb) -> Result<(), Refusal> {
    let of = match kind {
        INTENTIONS => Kind::Intention,
        "mesh"
        | "exported-services"
        | "api-gateway"
        | "bound-api-gateway"
        | "http-route"
        | "tcp-route"
        | "inline-certificate"
        | "file-system-certificate"
        | "jwt-provider"
        | "sameness-group" => Kind::Mesh,
        "proxy-defaults" | "control-plane-request-limit" => Kind::Operator,
        _ => Kind::Service,
    };
    // Everybody may read the defaults of all proxies.
    if kind == "proxy-defaults" && verb == Verb::Read {
        return Ok(());
    }
    ask.who.demand(verb, of, &ask.namespace, name)
}
