// SPDX-License-Identifier: Apache-2.0
//! `/v1/query*`: prepared queries, written and read. `query_run.rs` executes them.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, State, Topic, keys};

use super::Door;
use super::body::{self, Fields};
use super::config::stamped;
use super::error::Refusal;
use super::http::Ask;
use super::query_text;
use super::register::{bodies, known};
use super::reply::Reply;

pub(super) const TABLE: &str = "query";
/// What is shown in place of a token.
const HIDDEN: &str = "<hidden>";

impl Door {
    pub(super) async fn queries(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.method == Method::POST {
            let body = bodies::object(&ask.body, bodies::QUERY)?;
            if !Fields::new(&body, "").text("ID")?.is_empty() {
                let text = "ID must be empty when creating a new prepared query";
                return Err(Refusal::internal(text));
            }
            let id = Uuid::new_v4().to_string();
            self.write_query(ask, &id, &body, true).await?;
            return Ok(Reply::json(json!({"ID": id})));
        }
        let topic = Topic::Under(keys::record(TABLE, "").into());
        self.read_shelf(topic, &ask.params.blocking()?, |state| {
            let all = state.records(TABLE).into_iter();
            let shown = all.map(|(query, item)| stamped(&query, &item));
            let may = |query: &Value| visible(ask, query);
            Ok(Reply::json(Value::Array(shown.filter(may).map(|q| redacted(ask, q)).collect())))
        })
        .await
    }

    pub(super) async fn query(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if let Some(name) = ask.argument.strip_suffix("/execute") {
            return self.query_execute(ask, name).await;
        }
        if let Some(name) = ask.argument.strip_suffix("/explain") {
            self.fresh(ask).await?;
            let state = self.consul().state();
            let Some(found) = super::query_run::resolve(&state, name) else {
                return Err(Refusal::not_found("Query not found"));
            };
            if !visible(ask, &found) {
                return Err(Refusal::forbidden("Permission denied"));
            }
            return Ok(Reply::json(json!({"Query": redacted(ask, found)})));
        }
        let id = &ask.argument;
        match ask.method {
            Method::PUT => {
                let body = bodies::object(&ask.body, bodies::QUERY)?;
                self.write_query(ask, id, &body, false).await?;
                Ok(Reply::empty())
            }
            Method::DELETE => {
                let plan = |state: &State| {
                    let Some((query, _)) = state.record(TABLE, id) else { return Err(unknown(id)) };
                    demand(ask, query, Verb::Write)?;
                    Ok::<_, Refusal>((vec![Change::Delete(id.clone())], ()))
                };
                self.consul().change(TABLE, plan).await?;
                Ok(Reply::empty())
            }
            _ => {
                let topic = Topic::Key(keys::record(TABLE, id).into());
                self.read_shelf(topic, &ask.params.blocking()?, |state| {
                    let Some((query, item)) = state.record(TABLE, id) else {
                        return Ok(Reply::text(StatusCode::NOT_FOUND, "Query not found"));
                    };
                    demand(ask, query, Verb::Read)?;
                    Ok(Reply::json(json!([redacted(ask, stamped(query, item))])))
                })
                .await
            }
        }
    }

    async fn write_query(
        &self,
        ask: &Ask,
        id: &str,
        body: &Map<String, Value>,
        fresh: bool,
    ) -> Result<(), Refusal> {
        let query = read(id, body)?;
        demand(ask, &query, Verb::Write)?;
        let (name, session) = (body::word(&query, "Name"), body::word(&query, "Session"));
        let plan = |state: &State| {
            match state.record(TABLE, id) {
                None if !fresh => return Err(unknown(id)),
                Some((old, _)) => demand(ask, old, Verb::Write)?,
                None => {}
            }
            if !session.is_empty() && state.session(session).is_none_or(|(_, s, _)| s.ending) {
                return Err(Refusal::internal(format!("invalid session {session:?}")));
            }
            // As they are asked for, without regard to case.
            let taken = state.records(TABLE).iter().any(|(other, _)| {
                body::word(other, "Name").eq_ignore_ascii_case(name)
                    && body::word(other, "ID") != id
                    && (!name.is_empty() || is_template(other))
            });
            if taken && !name.is_empty() {
                return Err(Refusal::internal(format!(
                    "name {name:?} aliases an existing query name"
                )));
            }
            if taken && is_template(&query) {
                return Err(Refusal::internal(
                    "a query template with an empty name already exists",
                ));
            }
            // Names and ids are asked for alike.
            if state.record(TABLE, name).is_some() {
                return Err(Refusal::internal(format!(
                    "name {name:?} aliases an existing query ID"
                )));
            }
            Ok((vec![Change::Put(id.to_owned(), query.clone())], ()))
        };
        self.consul().change(TABLE, plan).await?;
        Ok(())
    }
}

// === helpers ===

fn unknown(id: &str) -> Refusal {
    Refusal::internal(format!("Cannot modify non-existent prepared query: '{id}'"))
}

fn is_template(query: &Value) -> bool {
    !body::word(body::part(query, "Template"), "Type").is_empty()
}

/// Queries without a name are whoever's has their id.
fn demand(ask: &Ask, query: &Value, verb: Verb) -> Result<(), Refusal> {
    let name = body::word(query, "Name");
    match name.is_empty() && !is_template(query) {
        true => Ok(()),
        false => ask.who.demand(verb, Kind::Query, &ask.namespace, name),
    }
}

fn visible(ask: &Ask, query: &Value) -> bool {
    let named = !body::word(query, "Name").is_empty();
    match named || is_template(query) {
        true => demand(ask, query, Verb::Read).is_ok(),
        false => ask.who.demand_management().is_ok(),
    }
}

/// A token that a query runs under is seen by who may do everything.
fn redacted(ask: &Ask, mut query: Value) -> Value {
    let held = !body::word(&query, "Token").is_empty();
    if held
        && ask.who.demand_management().is_err()
        && let Value::Object(map) = &mut query
    {
        map.insert("Token".into(), json!(HIDDEN));
    }
    query
}

fn read(id: &str, body: &Map<String, Value>) -> Result<Value, Refusal> {
    let fields = Fields::new(body, "");
    let Some(service) = fields.object("Service")? else {
        return Err(Refusal::bad("Must provide a Service name to query"));
    };
    bodies::fields(service, bodies::QUERY_SERVICE)?;
    let of = Fields::new(service, "Service.");
    let name = of.text("Service")?;
    if name.is_empty() {
        return Err(Refusal::bad("Must provide a Service name to query"));
    }
    let failover = match of.object("Failover")? {
        None => json!({"NearestN": 0, "Datacenters": null}),
        Some(part) => failover(part)?,
    };
    let ttl = match fields.object("DNS")? {
        Some(dns) => {
            bodies::fields(dns, bodies::QUERY_DNS)?;
            Fields::new(dns, "DNS.").text("TTL")?
        }
        None => String::new(),
    };
    if !ttl.is_empty() && super::duration::parse(&ttl).is_none() {
        return Err(Refusal::bad(format!("Bad DNS TTL '{ttl}'")));
    }
    let template = match fields.object("Template")? {
        None => json!({"Type": "", "Regexp": "", "RemoveEmptyTags": false}),
        Some(part) => template(part)?,
    };
    let token = fields.text("Token")?;
    if token == HIDDEN {
        return Err(Refusal::bad(format!(
            "Bad Token '{HIDDEN}', it looks like a query definition with a redacted token was \
             submitted"
        )));
    }
    let node_meta = of.text_map("NodeMeta")?;
    let pairs = node_meta.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into()));
    known::meta("Node", &pairs.collect(), true)?;
    let query = json!({
        "ID": id,
        "Name": fields.text("Name")?,
        "Session": fields.text("Session")?,
        "Token": token,
        "Template": template,
        "Service": {
            "Service": name,
            "Failover": failover,
            "OnlyPassing": of.flag("OnlyPassing")?,
            "IgnoreCheckIDs": given(&of, "IgnoreCheckIDs", of.list("IgnoreCheckIDs")?),
            "Near": of.text("Near")?,
            "Tags": given(&of, "Tags", of.list("Tags")?),
            "NodeMeta": given(&of, "NodeMeta", node_meta),
            "ServiceMeta": given(&of, "ServiceMeta", of.text_map("ServiceMeta")?),
            "Connect": of.flag("Connect")?,
            "Peer": of.text("Peer")?,
        },
        "DNS": {"TTL": ttl},
    });
    judge(&query)?;
    Ok(query)
}

/// As Go shows a list or map: what was not given is null.
fn given(of: &Fields, name: &str, read: impl serde::Serialize) -> Value {
    of.value(name).map_or(Value::Null, |_| json!(read))
}

/// Whether somebody can execute it, and it answers something.
fn judge(query: &Value) -> Result<(), Refusal> {
    let is_template = is_template(query);
    if !is_template && ["Name", "Session"].iter().all(|of| body::word(query, of).is_empty()) {
        return Err(Refusal::internal(
            "Invalid prepared query: Must be bound to a session: it has neither a Name nor a \
             Template",
        ));
    }
    if is_template {
        query_text::judge(body::part(query, "Service"), "Service").map_err(Refusal::bad)?;
    }
    Ok(())
}

fn failover(part: &Map<String, Value>) -> Result<Value, Refusal> {
    bodies::fields(part, bodies::QUERY_FAILOVER)?;
    let of = Fields::new(part, "Service.Failover.");
    // Python's client sends nanoseconds of nothing: numbers below are small.
    let nearest = of.number("NearestN", 64)?.unwrap_or(0);
    let datacenters = of.list("Datacenters")?;
    let targets = of.objects("Targets")?;
    if !targets.is_empty() && (nearest > 0 || !datacenters.is_empty()) {
        return Err(Refusal::bad("Targets cannot be populated with NearestN or Datacenters"));
    }
    let mut out = Map::new();
    out.insert("NearestN".into(), json!(nearest));
    out.insert("Datacenters".into(), given(&of, "Datacenters", datacenters));
    if !targets.is_empty() {
        out.insert("Targets".into(), json!(targets));
    }
    Ok(Value::Object(out))
}

fn template(part: &Map<String, Value>) -> Result<Value, Refusal> {
    bodies::fields(part, bodies::QUERY_TEMPLATE)?;
    let of = Fields::new(part, "Template.");
    let (kind, pattern) = (of.text("Type")?, of.text("Regexp")?);
    if !["", "name_prefix_match"].contains(&kind.as_str()) {
        return Err(Refusal::bad(format!("Bad Template.Type '{kind}'")));
    }
    if super::query_run::pattern(&pattern).is_none() {
        return Err(Refusal::bad(format!("Bad Template.Regexp '{pattern}'")));
    }
    let remove = of.flag("RemoveEmptyTags")?;
    Ok(json!({"Type": kind, "Regexp": pattern, "RemoveEmptyTags": remove}))
}
