// SPDX-License-Identifier: Apache-2.0
//! `/v1/session/*`: who may hold locks.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::check::SERF_HEALTH;
use weft_registry::consul::{
    Behavior, ConsulError, LOCK_DELAY_MS_MAX, Session, State, Topic, What, keys,
};

use super::Door;
use super::body::Fields;
use super::duration;
use super::error::Refusal;
use super::http::Ask;
use super::register::bodies;
use super::reply::Reply;

/// Consul's default.
const LOCK_DELAY_MS: u64 = 15_000;

impl Door {
    pub(super) async fn session_create(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let body = bodies::maybe(&ask.body, bodies::SESSION)?;
        let own = self.own().node.clone();
        let mut session = read(&body)?;
        if session.node.is_empty() {
            let host = ask.who.host.as_ref();
            session.node.clone_from(host.map_or(&own.node, |host| &host.node));
        }
        ask.who.demand_place(&session.node)?;
        ask.who.demand(Verb::Write, Kind::Session, &ask.namespace, &session.node)?;
        session.namespace.clone_from(&ask.namespace);
        if self.check_life(&session).is_err() {
            self.heard().await?;
        }
        self.check_life(&session)?;
        session.id = Uuid::new_v4().to_string().into();
        if session.node == own.node {
            // It lives in the catalog only once something is on it.
            self.catalog().register_node(&own, false).await?;
        }
        let made = self.consul().create_session(session).await?;
        Ok(Reply::json(json!({"ID": made.id})))
    }

    /// A session that is to end with its node needs somebody who says whether that is there: nobody
    /// does of one that was only written to the catalog.
    fn check_life(&self, session: &Session) -> Result<(), Refusal> {
        let wants = session.node_checks.iter().any(|id| **id == *SERF_HEALTH);
        let view = self.view();
        let known = view.world.catalog().node(&session.node).is_some();
        let has = || view.node_checks(&session.node).iter().any(|c| *c.record.id == *SERF_HEALTH);
        match wants && known && !has() {
            true => {
                let missing = format!("Missing check '{SERF_HEALTH}' registration");
                Err(ConsulError::Invalid(missing).into())
            }
            false => Ok(()),
        }
    }

    pub(super) async fn session_destroy(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if let Some(session) = self.session(ask).await? {
            ask.who.demand(Verb::Write, Kind::Session, &ask.namespace, &session.node)?;
            self.consul().destroy_session(&session.id).await?;
        }
        Ok(Reply::json(Value::Bool(true)))
    }

    pub(super) async fn session_renew(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let id = &ask.argument;
        let Some(session) = self.session(ask).await? else {
            return Err(ConsulError::UnknownSession { id: id.clone() }.into());
        };
        ask.who.demand(Verb::Write, Kind::Session, &ask.namespace, &session.node)?;
        self.consul().renew_session(&ask.namespace, id).await?;
        let state = self.consul().state();
        let found = state.session(id).map(|(_, s, item)| shape(s, (item.created, item.modified)));
        Ok(Reply::json(Value::Array(found.into_iter().collect())))
    }

    pub(super) async fn session_info(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let blocking = ask.params.blocking()?;
        let id = &ask.argument;
        if id.is_empty() {
            return Err(Refusal::bad("Missing session"));
        }
        let known = self.consul().state().session(id).map(|(key, ..)| key.clone());
        // Ids are never made twice: one that is not there now never will be.
        let topic = known.unwrap_or_else(|| keys::session(&ask.namespace, "", id).into());
        self.read_shelf(Topic::Key(topic), &blocking, |state| {
            let found = state.session(id).filter(|(_, s, _)| visible(ask, s));
            let shapes = found.map(|(_, s, item)| shape(s, (item.created, item.modified)));
            Ok(Reply::json(Value::Array(shapes.into_iter().collect())))
        })
        .await
    }

    pub(super) async fn session_list(
        &self,
        ask: &Ask,
        node: Option<&str>,
    ) -> Result<Reply, Refusal> {
        if node == Some("") {
            return Err(Refusal::bad("Missing node name"));
        }
        let blocking = ask.params.blocking()?;
        let at = keys::sessions(&ask.namespace, node);
        self.read_shelf(Topic::Under(at.as_str().into()), &blocking, |state| {
            Ok(Reply::json(Value::Array(list(ask, state, &at))))
        })
        .await
    }

    async fn session(&self, ask: &Ask) -> Result<Option<Arc<Session>>, Refusal> {
        if ask.argument.is_empty() {
            return Err(Refusal::bad("Missing session"));
        }
        // Another server may have made it just now.
        if self.consul().state().session(&ask.argument).is_none() {
            self.consul().caught_up().await?;
        }
        let state = self.consul().state();
        let found = state.session(&ask.argument).map(|(_, session, _)| session.clone());
        Ok(found.filter(|session| session.namespace == ask.namespace))
    }
}

// === helpers ===

fn visible(ask: &Ask, session: &Session) -> bool {
    session.namespace == ask.namespace
        && !session.ending
        && ask.who.may(Verb::Read, Kind::Session, &ask.namespace, &session.node)
}

fn list(ask: &Ask, state: &State, at: &str) -> Vec<Value> {
    let sessions = state.under(at).filter_map(|(_, item)| match &item.what {
        What::Session(session) => Some((session, (item.created, item.modified))),
        _ => None,
    });
    sessions.filter(|(s, _)| visible(ask, s)).map(|(s, stamp)| shape(s, stamp)).collect()
}

fn read(body: &Map<String, Value>) -> Result<Session, Refusal> {
    let fields = Fields::new(body, "");
    let behavior = match fields.text("Behavior")?.as_str() {
        "" | "release" => Behavior::Release,
        "delete" => Behavior::Delete,
        other => {
            return Err(Refusal::bad(format!(
                "Invalid Behavior setting '{other}'; use release or delete"
            )));
        }
    };
    let ttl = fields.text("TTL")?;
    let ttl_ms = match ttl.as_str() {
        "" => 0,
        text => duration::parse(text)
            .and_then(|ttl| u64::try_from(ttl.as_millis()).ok())
            .ok_or_else(|| Refusal::bad(format!("Session TTL '{text}' is no duration")))?,
    };
    let node_checks = match (fields.value("NodeChecks"), fields.value("Checks")) {
        (None, None) => vec![SERF_HEALTH.to_owned()],
        (Some(_), _) => fields.list("NodeChecks")?,
        _ => fields.list("Checks")?,
    };
    Ok(Session {
        name: fields.text("Name")?.into(),
        node: fields.text("Node")?.into(),
        lock_delay_ms: lock_delay(&fields)?,
        behavior,
        ttl_ms,
        ttl,
        node_checks: node_checks.into_iter().map(Into::into).collect(),
        service_checks: service_checks(&fields)?,
        ..Session::default()
    })
}

/// Text, a small number of seconds, or a large one of nanoseconds.
fn lock_delay(fields: &Fields) -> Result<u64, Refusal> {
    let ms = match fields.value("LockDelay") {
        None => LOCK_DELAY_MS,
        Some(Value::Number(n)) if n.as_u64().is_some_and(|n| n < 1000) => {
            n.as_u64().unwrap_or(0) * 1000
        }
        Some(_) => fields.duration_ms("LockDelay")?,
    };
    Ok(ms.min(LOCK_DELAY_MS_MAX))
}

/// Ids, or objects with an id.
fn service_checks(fields: &Fields) -> Result<Vec<Arc<str>>, Refusal> {
    match fields.value("ServiceChecks") {
        Some(Value::Array(items)) if items.iter().any(Value::is_object) => {
            let of = |part| Fields::new(part, "ServiceChecks.").text("ID").map(Into::into);
            fields.objects("ServiceChecks")?.into_iter().map(of).collect()
        }
        _ => Ok(fields.list("ServiceChecks")?.into_iter().map(Into::into).collect()),
    }
}

fn shape(session: &Session, (created, modified): (u64, u64)) -> Value {
    let service_checks: Vec<Value> =
        session.service_checks.iter().map(|id| json!({"ID": id, "Namespace": ""})).collect();
    let service_checks =
        if service_checks.is_empty() { Value::Null } else { json!(service_checks) };
    json!({
        "ID": session.id,
        "Name": session.name,
        "Node": session.node,
        "LockDelay": session.lock_delay_ms.saturating_mul(1_000_000),
        "Behavior": match session.behavior {
            Behavior::Release => "release",
            Behavior::Delete => "delete",
        },
        "TTL": session.ttl,
        "NodeChecks": session.node_checks,
        "ServiceChecks": service_checks,
        "CreateIndex": created,
        "ModifyIndex": modified,
    })
}
