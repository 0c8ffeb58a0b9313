// SPDX-License-Identifier: Apache-2.0
//! `/v1/connect/intentions*`: who may call whom, as sources of `service-intentions` entries.
//! Kept and served; the most exact one decides, and between two services there is one.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{Change, Item, State, Topic, keys};

use super::Door;
use super::agent::filter_of;
use super::body::{self, Fields};
use super::config::{INTENTIONS, TABLE, judged_source, record};
use super::error::Refusal;
use super::filter::typed;
use super::http::Ask;
use super::register::bodies;
use super::reply::Reply;
use crate::guards;

/// One pair of services and what holds between them.
struct Intention {
    source: String,
    destination: String,
    value: Map<String, Value>,
    created: u64,
    modified: u64,
}

impl Door {
    pub(super) async fn intentions(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.method == Method::POST {
            let body = bodies::object(&ask.body, bodies::INTENTION)?;
            let fields = Fields::new(&body, "");
            let (source, destination) =
                (fields.text("SourceName")?, fields.text("DestinationName")?);
            let id = Uuid::new_v4().to_string();
            self.write_intention(ask, &source, &destination, &body, &id).await?;
            return Ok(Reply::json(json!({"ID": id})));
        }
        let filter = filter_of(ask, typed::INTENTION)?;
        self.read_shelf(topic(), &ask.params.blocking()?, |state| {
            let mut found = all(state);
            found.retain(|one| readable(ask, one));
            let shapes = found.iter().map(|one| one.shape(self)).collect();
            super::catalog::kept(filter.as_ref(), shapes).map(Reply::json)
        })
        .await
    }

    pub(super) async fn intention_exact(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = |param: &str| match ask.params.filled(param) {
            Some(name) => Ok(bare(name).to_owned()),
            None => Err(Refusal::bad(format!("required query parameter '{param}' not set"))),
        };
        let (source, destination) = (name("source")?, name("destination")?);
        match ask.method {
            Method::PUT => {
                let body = bodies::object(&ask.body, bodies::INTENTION)?;
                self.write_intention(ask, &source, &destination, &body, "").await?;
                Ok(Reply::json(Value::Bool(true)))
            }
            Method::DELETE => {
                self.delete_intention(ask, &source, &destination).await?;
                Ok(Reply::json(Value::Bool(true)))
            }
            _ => {
                ask.who.demand(Verb::Read, Kind::Intention, &ask.namespace, &destination)?;
                self.read_shelf(topic(), &ask.params.blocking()?, |state| {
                    let mut found = all(state).into_iter();
                    let one = found.find(|i| i.source == source && i.destination == destination);
                    Ok(match one {
                        Some(one) => Reply::json(one.shape(self)),
                        None => Reply::text(StatusCode::NOT_FOUND, "Intention not found"),
                    })
                })
                .await
            }
        }
    }

    /// By the id of Consul's older API.
    pub(super) async fn intention(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if Uuid::try_parse(&ask.argument).is_err() {
            let text = format!("Bad request: {:?} is no UUID, as IDs are", ask.argument);
            return Err(Refusal::bad(text));
        }
        let blocking = match ask.method {
            Method::PUT | Method::DELETE => {
                self.consul().caught_up().await?;
                ask.params.blocking()?
            }
            _ => self.fresh(ask).await?,
        };
        let state = self.consul().state();
        let found = all(&state)
            .into_iter()
            .find(|one| one.value.get("LegacyID").is_some_and(|id| *id == ask.argument));
        let Some(one) = found else {
            return Err(match ask.method {
                Method::PUT => unknown(&ask.argument),
                _ => Refusal::not_found("Intention not found"),
            });
        };
        match ask.method {
            Method::PUT => self.change_intention(ask, &one).await,
            Method::DELETE => {
                self.delete_intention(ask, &one.source, &one.destination).await?;
                Ok(Reply::json(Value::Bool(true)))
            }
            _ => {
                ask.who.demand(Verb::Read, Kind::Intention, &ask.namespace, &one.destination)?;
                let index = state.index(&topic());
                Ok(Reply::json(one.shape(self)).at(index, &blocking))
            }
        }
    }

    pub(super) async fn intention_match(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let by = ask.params.get("by").unwrap_or_default();
        if !["source", "destination"].contains(&by) {
            return Err(Refusal::bad("'by' must be one of 'source' and 'destination'"));
        }
        let names: Vec<&str> = ask.params.all("name").collect();
        if names.is_empty() {
            return Err(Refusal::bad("required query parameter 'name' not set"));
        }
        for name in &names {
            ask.who.demand(Verb::Read, Kind::Intention, &ask.namespace, bare(name))?;
        }
        self.read_shelf(topic(), &ask.params.blocking()?, |state| {
            let mut found = all(state);
            found.retain(|one| readable(ask, one));
            found.sort_by_key(|one| std::cmp::Reverse(one.precedence()));
            let mut out = Map::new();
            for name in &names {
                let about = |one: &&Intention| {
                    let own = if by == "source" { &one.source } else { &one.destination };
                    fits(own, bare(name))
                };
                let shapes = found.iter().filter(about).map(|one| one.shape(self)).collect();
                out.insert((*name).to_owned(), Value::Array(shapes));
            }
            Ok(Reply::json(Value::Object(out)))
        })
        .await
    }

    pub(super) async fn intention_check(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let name = |param: &str| match ask.params.filled(param) {
            Some(name) => Ok(bare(name).to_owned()),
            None => Err(Refusal::bad(format!("required query parameter '{param}' not set"))),
        };
        let (source, destination) = (name("source")?, name("destination")?);
        ask.who.demand(Verb::Read, Kind::Service, &ask.namespace, &destination)?;
        self.read_shelf(topic(), &ask.params.blocking()?, |state| {
            let allowed = decide(state, &source, &destination);
            let allowed = allowed.unwrap_or_else(|| self.acl().default_allow());
            Ok(Reply::json(json!({"Allowed": allowed})))
        })
        .await
    }

    /// By its id: its source may be another from now on; names that are left out stay.
    async fn change_intention(&self, ask: &Ask, one: &Intention) -> Result<Reply, Refusal> {
        let body = bodies::object(&ask.body, bodies::INTENTION)?;
        let fields = Fields::new(&body, "");
        let (source, destination) = (fields.text("SourceName")?, fields.text("DestinationName")?);
        if !destination.is_empty() && destination != one.destination {
            // Whoever may not write it is not told what it is.
            let (verb, kind) = (Verb::Write, Kind::Intention);
            ask.who.demand(verb, kind, &ask.namespace, &one.destination)?;
            return Err(Refusal::internal(
                "Cannot modify Destination partition/namespace/name for an intention once it \
                 exists.",
            ));
        }
        let source = if source.is_empty() { &one.source } else { &source };
        self.write_intention(ask, source, &one.destination, &body, &ask.argument).await?;
        Ok(Reply::json(json!({"ID": ask.argument})))
    }

    /// `id`: that of Consul's older API, of a new intention or of one that is there; or empty.
    async fn write_intention(
        &self,
        ask: &Ask,
        source: &str,
        destination: &str,
        body: &Map<String, Value>,
        id: &str,
    ) -> Result<(), Refusal> {
        if source.is_empty() || destination.is_empty() {
            return Err(Refusal::bad("an intention needs a source and a destination"));
        }
        ask.who.demand(Verb::Write, Kind::Intention, &ask.namespace, destination)?;
        let mut value = judged_source(destination, read(body, source)?)?;
        if !id.is_empty() {
            value.insert("LegacyID".into(), json!(id));
        }
        let at = record(INTENTIONS, destination);
        let plan = |state: &State| {
            let mut entry = entry_of(state, destination);
            let sources = sources_of(&mut entry);
            let is_it = |one: &Value| !id.is_empty() && body::word(one, "LegacyID") == id;
            let of_pair = |one: &Value| body::word(one, "Name") == source;
            if !id.is_empty() && sources.iter().any(|one| of_pair(one) && !is_it(one)) {
                return Err(Refusal::internal(format!(
                    "duplicate intention found: {source:?} => {destination:?} is there; change it \
                     by its ID or at connect/intentions/exact"
                )));
            }
            if !id.is_empty() && ask.method == Method::PUT && !sources.iter().any(is_it) {
                return Err(unknown(id));
            }
            sources.retain(|one| !of_pair(one) && !is_it(one));
            sources.push(Value::Object(value.clone()));
            self.together(state, (INTENTIONS, destination), Some(&entry))?;
            Ok::<_, Refusal>((vec![Change::Put(at.clone(), Value::Object(entry))], ()))
        };
        self.consul().change(TABLE, plan).await?;
        Ok(())
    }

    async fn delete_intention(
        &self,
        ask: &Ask,
        source: &str,
        destination: &str,
    ) -> Result<(), Refusal> {
        ask.who.demand(Verb::Write, Kind::Intention, &ask.namespace, destination)?;
        let at = record(INTENTIONS, destination);
        let plan = |state: &State| {
            let mut entry = entry_of(state, destination);
            let sources = sources_of(&mut entry);
            sources.retain(|one| body::word(one, "Name") != source);
            let change = match sources.is_empty() {
                true => Change::Delete(at.clone()),
                false => Change::Put(at.clone(), Value::Object(entry)),
            };
            Ok::<_, Refusal>((vec![change], ()))
        };
        self.consul().change(TABLE, plan).await?;
        Ok(())
    }
}

// === impl Intention ===

impl Intention {
    /// 9 for two exact names down to 5 for any and any.
    fn precedence(&self) -> u64 {
        match (self.source == "*", self.destination == "*") {
            (false, false) => 9,
            (true, false) => 8,
            (false, true) => 6,
            (true, true) => 5,
        }
    }

    fn shape(&self, door: &Door) -> Value {
        let text = |name: &str| self.value.get(name).cloned().unwrap_or_else(|| json!(""));
        let mut out = Map::new();
        if self.value.contains_key("LegacyID") {
            out.insert("ID".into(), text("LegacyID"));
        }
        out.insert("Description".into(), text("Description"));
        out.insert("SourceNS".into(), json!("default"));
        out.insert("SourceName".into(), json!(self.source));
        out.insert("DestinationNS".into(), json!("default"));
        out.insert("DestinationName".into(), json!(self.destination));
        out.insert("SourcePartition".into(), json!("default"));
        out.insert("DestinationPartition".into(), json!("default"));
        out.insert("SourceType".into(), json!("consul"));
        match self.value.get("Permissions") {
            Some(permissions) => out.insert("Permissions".into(), permissions.clone()),
            None => out.insert("Action".into(), text("Action")),
        };
        if let Some(meta) = self.value.get("Meta") {
            out.insert("Meta".into(), meta.clone());
        }
        out.insert("Precedence".into(), json!(self.precedence()));
        out.insert("Datacenter".into(), json!(door.own().datacenter));
        out.insert("CreateIndex".into(), json!(self.created));
        out.insert("ModifyIndex".into(), json!(self.modified));
        Value::Object(out)
    }
}

// === helpers ===

fn unknown(id: &str) -> Refusal {
    Refusal::internal(format!("Cannot modify non-existent intention: '{id}'"))
}

fn topic() -> Topic {
    Topic::Under(keys::record(&format!("{TABLE}/{INTENTIONS}"), "").into())
}

fn all(state: &State) -> Vec<Intention> {
    let entries = state.records(&format!("{TABLE}/{INTENTIONS}"));
    entries.iter().flat_map(|(entry, item)| of_entry(entry, item)).collect()
}

fn of_entry(entry: &Value, item: &Item) -> Vec<Intention> {
    let destination = body::word(entry, "Name");
    let sources = body::part(entry, "Sources").as_array().map(Vec::as_slice).unwrap_or_default();
    let read = |source: &Value| {
        Some(Intention {
            source: source.get("Name")?.as_str()?.to_owned(),
            destination: destination.to_owned(),
            value: source.as_object()?.clone(),
            created: item.created,
            modified: item.modified,
        })
    };
    sources.iter().filter_map(read).collect()
}

/// What the most exact intention says, and of those alike, by other spellings of the names, one
/// that denies. One with permissions of HTTP denies a whole connection.
pub(super) fn decide(state: &State, source: &str, destination: &str) -> Option<bool> {
    let silence = !guards::on("intention-permissions");
    let allows =
        |one: &Intention| one.value.get("Action").map_or(silence, |action| action == "allow");
    let about = |one: &Intention| fits(&one.source, source) && fits(&one.destination, destination);
    let all = all(state).into_iter().filter(about);
    let (_, denies) = all.map(|one| (one.precedence(), !allows(&one))).max()?;
    Some(!denies)
}

/// Whether an intention's name is a service's, however either is written.
fn fits(own: &str, name: &str) -> bool {
    own == "*" || own.eq_ignore_ascii_case(name)
}

fn readable(ask: &Ask, one: &Intention) -> bool {
    ask.who.may(Verb::Read, Kind::Intention, &ask.namespace, &one.destination)
}

/// `default/default/web` and `default/web` are `web`.
fn bare(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn entry_of(state: &State, destination: &str) -> Map<String, Value> {
    let known = state.record(TABLE, &record(INTENTIONS, destination));
    let known = known.and_then(|(entry, _)| entry.as_object().cloned());
    known.unwrap_or_else(|| {
        let mut fresh = Map::new();
        fresh.insert("Kind".into(), json!(INTENTIONS));
        fresh.insert("Name".into(), json!(destination));
        fresh
    })
}

fn sources_of(entry: &mut Map<String, Value>) -> &mut Vec<Value> {
    let sources = entry.entry("Sources").or_insert_with(|| json!([]));
    if !sources.is_array() {
        *sources = json!([]);
    }
    sources.as_array_mut().expect("it was just made a list")
}

fn read(body: &Map<String, Value>, source: &str) -> Result<Map<String, Value>, Refusal> {
    let fields = Fields::new(body, "");
    let kind = fields.text("SourceType")?;
    if !["", "consul"].contains(&kind.as_str()) {
        return Err(Refusal::bad(format!("SourceType {kind:?} must be \"consul\"")));
    }
    let mut out = Map::new();
    out.insert("Name".into(), json!(source));
    out.insert("Type".into(), json!("consul"));
    let action = fields.text("Action")?;
    let permissions = fields.objects("Permissions")?;
    match (action.as_str(), permissions.is_empty()) {
        ("allow" | "deny", true) => {
            out.insert("Action".into(), json!(action));
        }
        ("", false) => {
            out.insert("Permissions".into(), json!(permissions));
        }
        _ => {
            return Err(Refusal::bad(
                "an intention has an Action, allow or deny, or Permissions, not both",
            ));
        }
    }
    let description = fields.text("Description")?;
    if !description.is_empty() {
        out.insert("Description".into(), json!(description));
    }
    let meta = fields.text_map("Meta")?;
    if !meta.is_empty() {
        out.insert("Meta".into(), json!(meta));
    }
    Ok(out)
}
