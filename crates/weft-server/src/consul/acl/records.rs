// SPDX-License-Identifier: Apache-2.0
//! `/v1/acl/{policy,role,auth-method,binding-rule}*`: records with an id or a name, all written
//! and read alike.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::Verb;
use weft_registry::consul::{Change, State, Topic, keys};

use super::tokens::{hash, stamped};
use super::{BUILT_IN, TABLE, built_in, links, methods, rules, tokens};
use crate::consul::Door;
use crate::consul::body::{Fields, word, word_of};
use crate::consul::error::Refusal;
use crate::consul::http::Ask;
use crate::consul::params::Blocking;
use crate::consul::register::bodies;
use crate::consul::reply::Reply;

/// Changes of one part of what is written in parts; an even number.
const PARTED_MAX: usize = 100;

/// What is written and read alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consul) enum Sort {
    Policy,
    Role,
    Method,
    Rule,
}

// === impl Sort ===

impl Sort {
    fn prefix(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Role => "role",
            Self::Method => "method",
            Self::Rule => "rule",
        }
    }

    /// Whether records have ids of their own; auth methods have names.
    fn has_id(self) -> bool {
        self != Self::Method
    }

    fn id_field(self) -> &'static str {
        if self.has_id() { "ID" } else { "Name" }
    }

    fn fields(self) -> bodies::Known {
        match self {
            Self::Policy => bodies::POLICY,
            Self::Role => bodies::ROLE,
            Self::Method => bodies::METHOD,
            Self::Rule => bodies::RULE,
        }
    }

    fn has_name(self) -> bool {
        self != Self::Rule
    }
}

impl Door {
    pub(in crate::consul) async fn acl_list(
        &self,
        ask: &Ask,
        sort: Sort,
    ) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        let blocking = self.fresh(ask).await?;
        let state = self.consul().state();
        let mut all: Vec<Map<String, Value>> = state
            .records(&format!("{TABLE}/{}", sort.prefix()))
            .into_iter()
            .filter_map(|(r, item)| Some(stamped(r.as_object()?, item.created, item.modified)))
            .collect();
        for (own, _) in BUILT_IN.iter().filter(|_| sort == Sort::Policy) {
            if !all.iter().any(|policy| word_of(policy, "ID") == *own) {
                all.extend(links::policy(&state, own).map(|policy| stamped(&policy, 1, 1)));
            }
        }
        if let (Sort::Rule, Some(method)) = (sort, ask.params.filled("authmethod")) {
            all.retain(|rule| word_of(rule, "AuthMethod") == method);
        }
        if let (Sort::Role, Some(policy)) = (sort, ask.params.filled("policy")) {
            let has = |role: &Map<String, Value>| {
                let links = role.get("Policies").and_then(Value::as_array);
                links.is_some_and(|links| links.iter().any(|link| word(link, "ID") == policy))
            };
            all.retain(has);
        }
        for record in &mut all {
            if sort == Sort::Policy {
                record.remove("Rules");
            }
            links::renew(&state, record);
        }
        let index = state.index(&Topic::Key(keys::table(TABLE).into()));
        let shown = all.into_iter().map(Value::Object).collect();
        Ok(Reply::json(Value::Array(shown)).at(index, &blocking))
    }

    pub(in crate::consul) async fn acl_record(
        &self,
        ask: &Ask,
        sort: Sort,
    ) -> Result<Reply, Refusal> {
        match ask.method {
            Method::PUT => self.acl_record_write(ask, sort).await,
            Method::DELETE => self.acl_record_delete(ask, sort).await,
            _ => {
                ask.who.demand_acl(Verb::Read)?;
                check_id(sort, &ask.argument)?;
                let blocking = self.fresh(ask).await?;
                Ok(self.acl_record_read(&blocking, sort, &ask.argument))
            }
        }
    }

    pub(in crate::consul) async fn acl_by_name(
        &self,
        ask: &Ask,
        sort: Sort,
    ) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        let blocking = self.fresh(ask).await?;
        let id = links::by_name(&self.consul().state(), sort.prefix(), &ask.argument);
        Ok(self.acl_record_read(&blocking, sort, &id.unwrap_or_default()))
    }

    fn acl_record_read(&self, blocking: &Blocking, sort: Sort, id: &str) -> Reply {
        let state = self.consul().state();
        let known = state.record(TABLE, &format!("{}/{id}", sort.prefix()));
        let known = known.and_then(|(r, i)| Some(stamped(r.as_object()?, i.created, i.modified)));
        let built_in = || match sort {
            Sort::Policy => links::policy(&state, id).map(|policy| stamped(&policy, 1, 1)),
            _ => None,
        };
        let index = state.index(&Topic::Key(keys::table(TABLE).into()));
        let reply = match known.or_else(built_in) {
            Some(mut record) => {
                links::renew(&state, &mut record);
                Reply::json(Value::Object(record))
            }
            None => Reply::text(StatusCode::NOT_FOUND, "ACL not found"),
        };
        reply.at(index, blocking)
    }

    async fn acl_record_write(&self, ask: &Ask, sort: Sort) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Write)?;
        let body = bodies::object(&ask.body, sort.fields())?;
        if !ask.argument.is_empty() {
            check_id(sort, &ask.argument)?;
        } else if sort.has_id() && !Fields::new(&body, "").text("ID")?.is_empty() {
            let what = if sort == Sort::Rule { "binding rule" } else { sort.prefix() };
            let text = format!("Cannot specify the ID when creating a new {what}");
            return Err(Refusal::bad(text));
        }
        let plan = |state: &State| {
            let record = made(state, &body, sort, &ask.argument)?;
            let id = record.get(sort.id_field()).and_then(Value::as_str).unwrap_or_default();
            let mut changes = Vec::new();
            if sort.has_id() && sort.has_name() {
                changes.extend(names(state, sort, id, &record)?);
            }
            let name = format!("{}/{id}", sort.prefix());
            changes.push(Change::Put(name, Value::Object(record.clone())));
            Ok::<_, Refusal>((changes, (id.to_owned(), record)))
        };
        let (_, (id, record)) = self.consul().change(TABLE, plan).await?;
        let state = self.consul().state();
        let known = state.record(TABLE, &format!("{}/{id}", sort.prefix()));
        let (created, modified) = known.map_or((1, 1), |(_, item)| (item.created, item.modified));
        Ok(Reply::json(Value::Object(stamped(&record, created, modified))))
    }

    async fn acl_record_delete(&self, ask: &Ask, sort: Sort) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Write)?;
        let id = &ask.argument;
        check_id(sort, id)?;
        if let Some(name) = built_in(id).filter(|_| sort == Sort::Policy) {
            let text = format!("Delete operation not permitted on the builtin {name} policy");
            return Err(Refusal::internal(text));
        }
        let plan = |state: &State| {
            let mut changes = match sort {
                Sort::Method => made_by(state, id),
                _ => Vec::new(),
            };
            if changes.len() > PARTED_MAX {
                changes.truncate(PARTED_MAX);
                return Ok((changes, true));
            }
            // The method itself goes last: cut short, it is there to be deleted again.
            changes.push(Change::Delete(format!("{}/{id}", sort.prefix())));
            let record = links::record(state, &format!("{}/{id}", sort.prefix()));
            if let Some(Value::String(name)) = record.and_then(|mut r| r.remove("Name"))
                && sort.has_id()
            {
                changes.push(Change::Delete(format!("{}-name/{name}", sort.prefix())));
            }
            Ok::<_, Refusal>((changes, false))
        };
        // What a method made is of no use without it; it is taken out in parts.
        while self.consul().change(TABLE, plan).await?.1 {}
        Ok(Reply::json(Value::Bool(true)))
    }
}

// === helpers ===

/// An auth method's binding rules, and the tokens of who logged in by it.
fn made_by(state: &State, method: &str) -> Vec<Change> {
    let of = |prefix: &str| {
        let all = state.records(&format!("{TABLE}/{prefix}")).into_iter();
        all.filter(|(record, _)| word(record, "AuthMethod") == method)
    };
    let rules = of("rule").map(|(rule, _)| Change::Delete(format!("rule/{}", word(&rule, "ID"))));
    let tokens = of("token").filter_map(|(t, _)| t.as_object().map(tokens::gone)).flatten();
    // Tokens first, two changes each: a part of an even number of changes cuts none in two.
    tokens.chain(rules).collect()
}

fn check_id(sort: Sort, id: &str) -> Result<(), Refusal> {
    match !sort.has_id() || Uuid::parse_str(id).is_ok() {
        true => Ok(()),
        false => Err(Refusal::internal(format!("{} ID {id:?} is not a valid UUID", sort.prefix()))),
    }
}

/// The record that a body makes, of an older one if an id is given.
fn made(
    state: &State,
    body: &Map<String, Value>,
    sort: Sort,
    id: &str,
) -> Result<Map<String, Value>, Refusal> {
    let fields = Fields::new(body, "");
    let old = match id.is_empty() {
        true => None,
        false => match links::record(state, &format!("{}/{id}", sort.prefix())) {
            None if sort != Sort::Policy || built_in(id).is_none() => {
                return Err(Refusal::new(StatusCode::NOT_FOUND, "ACL not found"));
            }
            known => known,
        },
    };
    if let Some(name) = built_in(id).filter(|_| sort == Sort::Policy) {
        let text = format!("Changing the Rules for the builtin {name} policy is not permitted");
        return Err(Refusal::internal(text));
    }
    let mut out = Map::new();
    if sort.has_id() {
        let id = if id.is_empty() { Uuid::new_v4().to_string() } else { id.to_owned() };
        out.insert("ID".into(), json!(id));
    }
    if sort.has_name() {
        let mut name = fields.text("Name")?;
        if name.is_empty() && !id.is_empty() {
            let known = old.as_ref().and_then(|old| old.get("Name")?.as_str());
            name = known.unwrap_or_default().to_owned();
        }
        check_name(&name)?;
        out.insert("Name".into(), json!(name));
    }
    out.insert("Description".into(), json!(fields.text("Description")?));
    match sort {
        Sort::Policy => {
            let text = fields.text("Rules")?;
            let subject = "".into();
            rules::parse(&subject, &text)
                .map_err(|why| Refusal::bad(format!("Invalid Policy: Rules: {why}")))?;
            out.insert("Rules".into(), json!(text));
            let datacenters = fields.list("Datacenters")?;
            if !datacenters.is_empty() {
                out.insert("Datacenters".into(), json!(datacenters));
            }
            out.insert("Hash".into(), json!(hash(Value::Object(out.clone()).to_string())));
        }
        Sort::Role => {
            links::copy(state, body, &mut out, false)?;
            out.insert("Hash".into(), json!(hash(Value::Object(out.clone()).to_string())));
        }
        Sort::Method => methods::method(&fields, old.as_ref(), &mut out)?,
        Sort::Rule => methods::binding(state, &fields, &mut out)?,
    }
    Ok(out)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    match !name.is_empty() && name.len() <= 256 && name.chars().all(fine) {
        true => Ok(()),
        false => Err(Refusal::bad(format!(
            "Invalid name {name:?}: use letters, digits, '-' and '_', at most 256 of them"
        ))),
    }
}

/// The name leads to this id alone.
fn names(
    state: &State,
    sort: Sort,
    id: &str,
    record: &Map<String, Value>,
) -> Result<Vec<Change>, Refusal> {
    let name = record.get("Name").and_then(Value::as_str).unwrap_or_default();
    let taken = links::by_name(state, sort.prefix(), name).filter(|other| other != id);
    if taken.is_some() {
        return Err(Refusal::internal(format!(
            "Invalid {}: A {} with Name {name:?} already exists",
            sort.prefix(),
            sort.prefix()
        )));
    }
    let mut out = vec![Change::Put(format!("{}-name/{name}", sort.prefix()), json!({"ID": id}))];
    let old = links::record(state, &format!("{}/{id}", sort.prefix()));
    if let Some(Value::String(old)) = old.and_then(|mut old| old.remove("Name"))
        && old != name
    {
        out.push(Change::Delete(format!("{}-name/{old}", sort.prefix())));
    }
    Ok(out)
}
