// SPDX-License-Identifier: Apache-2.0
//! `/v1/kv/*`: keys and their values.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Pair, State, Topic, VALUE_BYTES_MAX, What, keys};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use crate::guards;

impl Door {
    pub(super) async fn kv(&self, ask: &Ask) -> Result<Reply, Refusal> {
        match ask.method {
            Method::PUT => self.kv_put(ask).await,
            Method::DELETE => self.kv_delete(ask).await,
            _ if ask.params.flag("keys") => self.kv_keys(ask).await,
            _ if ask.params.flag("recurse") => self.kv_tree(ask).await,
            _ => self.kv_get(ask).await,
        }
    }

    async fn kv_get(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let key = named(ask)?;
        ask.who.demand(Verb::Read, Kind::Key, &ask.namespace, key)?;
        let at = keys::pair(&ask.namespace, key);
        let raw = ask.params.flag("raw");
        let blocking = ask.params.blocking()?;
        self.read_shelf(Topic::Key(at.as_str().into()), &blocking, |state| {
            let Some(item) = state.item(&at) else { return Ok(missing()) };
            let What::Pair(pair) = &item.what else { return Ok(missing()) };
            if raw {
                // Never to be run by a browser that comes across it.
                return Ok(Reply::bytes("application/octet-stream", pair.value.clone())
                    .with("Content-Security-Policy", "sandbox"));
            }
            Ok(Reply::json(json!([shape(key, pair, (item.created, item.modified))])))
        })
        .await
    }

    async fn kv_tree(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let at = keys::pair(&ask.namespace, &ask.argument);
        let blocking = ask.params.blocking()?;
        self.read_shelf(Topic::Under(at.as_str().into()), &blocking, |state| {
            let found: Vec<Value> = readable(ask, state, &at)
                .map(|(key, pair, stamp)| shape(key, pair, stamp))
                .collect();
            Ok(if found.is_empty() { missing() } else { Reply::json(Value::Array(found)) })
        })
        .await
    }

    async fn kv_keys(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let at = keys::pair(&ask.namespace, &ask.argument);
        let separator = ask.params.filled("separator");
        let blocking = ask.params.blocking()?;
        self.read_shelf(Topic::Under(at.as_str().into()), &blocking, |state| {
            let mut found: Vec<&str> = Vec::new();
            for (key, ..) in readable(ask, state, &at) {
                let rest = key.get(ask.argument.len()..).unwrap_or_default();
                let cut = separator.and_then(|s| rest.find(s).map(|at| at + s.len()));
                let end = cut.map_or(key.len(), |cut| ask.argument.len() + cut);
                let shown = key.get(..end).unwrap_or(key);
                if found.last() != Some(&shown) {
                    found.push(shown);
                }
            }
            Ok(if found.is_empty() { missing() } else { Reply::json(json!(found)) })
        })
        .await
    }

    async fn kv_put(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let key = named(ask)?;
        let one_of = ["cas", "acquire", "release"];
        if one_of.iter().filter(|flag| ask.params.get(flag).is_some()).count() > 1 {
            return Err(Refusal::bad("Conflicting flags: use one of cas, acquire and release"));
        }
        let number = |name: &str| match ask.params.filled(name) {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| Refusal::bad(format!("Invalid {name}: {text:?} is no number"))),
        };
        let (flags, cas) = (number("flags")?.unwrap_or(0), number("cas")?);
        if ask.body.len() > VALUE_BYTES_MAX && guards::on("value-size") {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "Request body({} bytes) too large, max size: {VALUE_BYTES_MAX} bytes.",
                    ask.body.len()
                ),
            ));
        }
        ask.who.demand(Verb::Write, Kind::Key, &ask.namespace, key)?;
        let session = ask.params.get("acquire").or_else(|| ask.params.get("release"));
        if session == Some("") {
            return Err(Refusal::bad("Missing session: name the one that acquires or releases"));
        }
        let at = keys::pair(&ask.namespace, key);
        let (acquire, value) = (ask.params.get("acquire").is_some(), &ask.body);
        let verbs = |draft: &mut weft_registry::consul::Draft| match (session, cas) {
            (Some(session), _) if acquire => draft.lock(&at, value.clone(), flags, session),
            (Some(session), _) => Ok(draft.unlock(&at, value.clone(), flags, session)),
            (None, Some(index)) => Ok(draft.cas(&at, value.clone(), flags, index)),
            (None, None) => {
                draft.set(&at, value.clone(), flags);
                Ok(true)
            }
        };
        let (_, done) = self.consul().pairs(&at, verbs).await?;
        Ok(Reply::json(Value::Bool(done)))
    }

    async fn kv_delete(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let at = keys::pair(&ask.namespace, &ask.argument);
        let cas = match ask.params.filled("cas") {
            None => None,
            Some(text) => {
                let index: u64 = text
                    .parse()
                    .map_err(|_| Refusal::bad(format!("Invalid cas: {text:?} is no number")))?;
                Some(index)
            }
        };
        if ask.params.flag("recurse") {
            if cas.is_some() {
                return Err(Refusal::bad("Conflicting flags: use one of recurse and cas"));
            }
            ask.who.demand_tree(Verb::Write, Kind::Key, &ask.namespace, &ask.argument)?;
            self.consul().delete_tree(&at).await?;
            return Ok(Reply::json(Value::Bool(true)));
        }
        ask.who.demand(Verb::Write, Kind::Key, &ask.namespace, named(ask)?)?;
        let verbs = |draft: &mut weft_registry::consul::Draft| match cas {
            Some(index) => Ok(draft.delete_cas(&at, index)),
            None => {
                draft.delete(&at);
                Ok(true)
            }
        };
        let (_, done) = self.consul().pairs(&at, verbs).await?;
        Ok(Reply::json(Value::Bool(done)))
    }
}

/// A pair as Consul shows it.
pub(super) fn shape(key: &str, pair: &Pair, (created, modified): (u64, u64)) -> Value {
    let mut out = Map::new();
    out.insert("LockIndex".into(), json!(pair.lock_index));
    out.insert("Key".into(), json!(key));
    out.insert("Flags".into(), json!(pair.flags));
    let value = (!pair.value.is_empty()).then(|| STANDARD.encode(&pair.value));
    out.insert("Value".into(), json!(value));
    if !pair.session.is_empty() {
        out.insert("Session".into(), json!(pair.session));
    }
    out.insert("CreateIndex".into(), json!(created));
    out.insert("ModifyIndex".into(), json!(modified));
    Value::Object(out)
}

// === helpers ===

fn named(ask: &Ask) -> Result<&str, Refusal> {
    match ask.argument.is_empty() {
        true => Err(Refusal::bad("Missing key name")),
        false => Ok(&ask.argument),
    }
}

/// Not there; clients read the index of this answer, too.
fn missing() -> Reply {
    Reply::empty().with_status(StatusCode::NOT_FOUND)
}

/// The pairs under a prefix that the caller may read.
fn readable<'a>(
    ask: &'a Ask,
    state: &'a State,
    at: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Pair, (u64, u64))> {
    state.under(at).filter_map(|(store_key, item)| {
        let key = keys::client_key(store_key);
        let What::Pair(pair) = &item.what else { return None };
        let may = ask.who.may(Verb::Read, Kind::Key, &ask.namespace, key);
        (may || !guards::on("key-rows")).then_some((key, &**pair, (item.created, item.modified)))
    })
}
