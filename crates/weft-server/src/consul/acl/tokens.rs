// SPDX-License-Identifier: Apache-2.0
//! `/v1/acl/token*`: secrets and what they stand for.

use aws_lc_rs::digest::{SHA256, digest};
use http::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_identity::permission::Verb;
use weft_registry::consul::{Change, State, Topic, keys};

use super::login::IDENTITY;
use super::{ANONYMOUS, MANAGEMENT, TABLE, links};
use crate::consul::Door;
use crate::consul::body::{Fields, word, word_of};
use crate::consul::duration;
use crate::consul::error::Refusal;
use crate::consul::http::Ask;
use crate::consul::register::bodies;
use crate::consul::reply::Reply;

const SECRET_BYTES_MAX: usize = 256;
/// Consul's own: what is built in has ids that begin so.
const RESERVED: &str = "00000000-0000-0000-0000-0000000000";

/// The token of a secret.
///
/// # Errors
/// 403 when there is none, or its time is over.
pub fn by_secret(door: &Door, state: &State, secret: &str) -> Result<Map<String, Value>, Refusal> {
    // Nothing that clients write is in the way of the one who manages them.
    let sum = hash(secret);
    if door.acl().management().is_some_and(|(own, _)| *own == sum) {
        return management(door).ok_or_else(not_found);
    }
    let known = links::record(state, &format!("secret/{sum}"));
    let accessor = known.and_then(|link| Some(link.get("AccessorID")?.as_str()?.to_owned()));
    let found = accessor.and_then(|accessor| by_accessor(door, state, &accessor));
    let built_in = || built_in(door).into_iter().find(|token| word_of(token, "SecretID") == secret);
    let token = found.or_else(built_in).ok_or_else(|| Refusal::forbidden("ACL not found"))?;
    match is_over(door, state, &token) {
        true => Err(Refusal::forbidden("ACL not found")),
        false => Ok(token),
    }
}

impl Door {
    pub(in crate::consul) async fn acl_tokens(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Read)?;
        let filters = ["policy", "role", "servicename", "authmethod"];
        if filters.into_iter().filter_map(|name| ask.params.filled(name)).count() > 1 {
            return Err(Refusal::internal(
                "can only filter by one of policy, role, serviceName, or methodName at a time",
            ));
        }
        let blocking = self.fresh(ask).await?;
        let state = self.consul().state();
        let mut all: Vec<Map<String, Value>> = state
            .records(&format!("{TABLE}/token"))
            .into_iter()
            .filter_map(|(token, item)| {
                Some(stamped(token.as_object()?, item.created, item.modified))
            })
            .collect();
        let own = management(self);
        all.retain(|known| {
            own.as_ref()
                .is_none_or(|own| word_of(own, "AccessorID") != word_of(known, "AccessorID"))
        });
        for token in built_in(self) {
            if !all
                .iter()
                .any(|known| word_of(known, "AccessorID") == word_of(&token, "AccessorID"))
            {
                all.push(stamped(&token, 1, 1));
            }
        }
        let links_to = |token: &Map<String, Value>, field: &str, name: &str, id: &str| {
            let links = token.get(field).and_then(Value::as_array);
            links.is_some_and(|links| links.iter().any(|link| word(link, name) == id))
        };
        let wanted = [
            ("policy", "Policies", "ID"),
            ("role", "Roles", "ID"),
            ("servicename", "ServiceIdentities", "ServiceName"),
        ];
        for (param, field, name) in wanted {
            if let Some(id) = ask.params.filled(param) {
                all.retain(|token| links_to(token, field, name, id));
            }
        }
        if let Some(method) = ask.params.filled("authmethod") {
            all.retain(|token| token.get("AuthMethod").is_some_and(|m| m == method));
        }
        all.retain(|token| !is_over(self, &state, token));
        all.iter_mut().for_each(|token| links::renew(&state, token));
        let writes = ask.who.demand_acl(Verb::Write).is_ok();
        let index = state.index(&Topic::Key(keys::table(TABLE).into()));
        let shown: Vec<Value> = all.into_iter().map(|token| hidden(token, writes)).collect();
        Ok(Reply::json(Value::Array(shown)).at(index, &blocking))
    }

    pub(in crate::consul) async fn acl_token(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if let Some(accessor) = ask.argument.strip_suffix("/clone") {
            return self.acl_token_clone(ask, accessor).await;
        }
        match ask.method {
            Method::PUT => self.acl_token_write(ask).await,
            Method::DELETE => {
                ask.who.demand_acl(Verb::Write)?;
                self.acl_token_delete(ask).await
            }
            _ => {
                ask.who.demand_acl(Verb::Read)?;
                let blocking = self.fresh(ask).await?;
                let state = self.consul().state();
                let mut token = renewed(self, &state, &ask.argument).ok_or_else(not_found)?;
                if ask.params.flag("expanded") {
                    token = self.expanded(&state, token)?;
                }
                let writes = ask.who.demand_acl(Verb::Write).is_ok();
                Ok(Reply::json(hidden(token, writes)).at(state.revision(), &blocking))
            }
        }
    }

    /// Whoever has a secret may see what it stands for.
    pub(in crate::consul) fn acl_token_self(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let state = self.consul().state();
        let token = renewed(self, &state, &ask.who.accessor).ok_or_else(not_found)?;
        Ok(Reply::json(Value::Object(token)))
    }

    async fn acl_token_write(&self, ask: &Ask) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Write)?;
        let body = bodies::object(&ask.body, bodies::TOKEN)?;
        let now = self.wall_ms();
        let accessor = ask.argument.clone();
        let management = management(self);
        let is = |field: &str, given: &str| {
            management.as_ref().is_some_and(|own| word_of(own, field) == given)
        };
        if is("AccessorID", &accessor) {
            return Err(Refusal::forbidden(
                "Permission denied: the initial management token is its server's: change the file \
                 that --consul-management-token-file names",
            ));
        }
        let fields = Fields::new(&body, "");
        for field in ["AccessorID", "SecretID"] {
            if is(field, &fields.text(field)?) {
                return Err(in_use(field));
            }
        }
        let plan = |state: &State| {
            let old = match accessor.is_empty() {
                true => None,
                false => Some(renewed(self, state, &accessor).ok_or_else(not_found)?),
            };
            let mut token = made(state, &body, old.as_ref(), now)?;
            // Whose login made it is not shown, and stays.
            let whose = links::record(state, &format!("token/{accessor}"));
            if let Some(whose) = whose.and_then(|mut known| known.remove(IDENTITY)) {
                token.insert(IDENTITY.into(), whose);
            }
            Ok::<_, Refusal>((put(&token)?, token))
        };
        self.write_token(plan).await
    }

    async fn acl_token_clone(&self, ask: &Ask, accessor: &str) -> Result<Reply, Refusal> {
        ask.who.demand_acl(Verb::Write)?;
        let body = bodies::maybe(&ask.body, bodies::TOKEN)?;
        let description = Fields::new(&body, "").text("Description")?;
        let now = self.wall_ms();
        let plan = |state: &State| {
            let mut token = renewed(self, state, accessor).ok_or_else(not_found)?;
            if token.get("AccessorID").is_some_and(|id| id == ANONYMOUS) {
                return Err(Refusal::forbidden("Cannot clone the anonymous token"));
            }
            if !word_of(&token, "AuthMethod").is_empty() {
                return Err(Refusal::internal("Cannot clone a token created from an auth method"));
            }
            token.insert("AccessorID".into(), json!(Uuid::new_v4().to_string()));
            token.insert("SecretID".into(), json!(Uuid::new_v4().to_string()));
            token.insert("CreateTime".into(), json!(time(now)));
            if !description.is_empty() {
                token.insert("Description".into(), json!(description));
            }
            Ok::<_, Refusal>((put(&token)?, token))
        };
        self.write_token(plan).await
    }

    async fn acl_token_delete(&self, ask: &Ask) -> Result<Reply, Refusal> {
        if ask.argument == ANONYMOUS {
            return Err(Refusal::internal("Delete operation not permitted on the anonymous token"));
        }
        // The last one that may do everything would be gone for good.
        if *ask.argument == *ask.who.accessor {
            return Err(Refusal::internal(
                "Deletion of the request's authorization token is not permitted",
            ));
        }
        let plan = |state: &State| {
            let Some(token) = links::record(state, &format!("token/{}", ask.argument)) else {
                return Err(not_found());
            };
            Ok((gone(&token), ()))
        };
        self.consul().change(TABLE, plan).await?;
        Ok(Reply::json(Value::Bool(true)))
    }

    pub(super) async fn write_token(
        &self,
        plan: impl Fn(&State) -> Result<(Vec<Change>, Map<String, Value>), Refusal>,
    ) -> Result<Reply, Refusal> {
        let (_, token) = self.consul().change(TABLE, plan).await?;
        let state = self.consul().state();
        let accessor = token.get("AccessorID").and_then(Value::as_str).unwrap_or_default();
        let known = state.record(TABLE, &format!("token/{accessor}"));
        let (created, modified) = known.map_or((1, 1), |(_, item)| (item.created, item.modified));
        Ok(Reply::json(Value::Object(stamped(&token, created, modified))))
    }
}

/// A token's record with the index of its secret, which itself is no key anybody sees.
///
/// # Errors
/// When it has no secret.
pub fn put(token: &Map<String, Value>) -> Result<Vec<Change>, Refusal> {
    let text = |name: &str| token.get(name).and_then(Value::as_str).unwrap_or_default();
    let (accessor, secret) = (text("AccessorID"), text("SecretID"));
    if accessor.is_empty() || secret.is_empty() {
        return Err(Refusal::internal("a token without AccessorID or SecretID is not kept"));
    }
    let index = json!({"AccessorID": accessor});
    Ok(vec![
        Change::Put(format!("token/{accessor}"), Value::Object(token.clone())),
        Change::Put(format!("secret/{}", hash(secret)), index),
    ])
}

/// Takes a token's record out, and the index of its secret.
pub fn gone(token: &Map<String, Value>) -> Vec<Change> {
    let secret = Change::Delete(format!("secret/{}", hash(word_of(token, "SecretID"))));
    vec![Change::Delete(format!("token/{}", word_of(token, "AccessorID"))), secret]
}

// === helpers ===

fn not_found() -> Refusal {
    Refusal::forbidden("Cannot find token: ACL not found")
}

fn in_use(field: &str) -> Refusal {
    Refusal::internal(format!("Invalid Token: {field} is already in use"))
}

fn by_accessor(door: &Door, state: &State, accessor: &str) -> Option<Map<String, Value>> {
    if door.acl().management().is_some_and(|(_, own)| own == accessor) {
        return management(door).map(|own| stamped(&own, 1, 1));
    }
    let known = state.record(TABLE, &format!("token/{accessor}"));
    let known =
        known.and_then(|(t, item)| Some(stamped(t.as_object()?, item.created, item.modified)));
    let built_in = || {
        let mut all = built_in(door).into_iter();
        all.find(|token| word_of(token, "AccessorID") == accessor)
            .map(|token| stamped(&token, 1, 1))
    };
    known.or_else(built_in).filter(|token| !is_over(door, state, token))
}

/// The same with its links as they are now.
fn renewed(door: &Door, state: &State, accessor: &str) -> Option<Map<String, Value>> {
    let mut token = by_accessor(door, state, accessor)?;
    links::renew(state, &mut token);
    Some(token)
}

/// The tokens that are there without anybody having made them.
fn built_in(door: &Door) -> Vec<Map<String, Value>> {
    let anonymous = given(ANONYMOUS, "anonymous", "Anonymous Token", Value::Null);
    std::iter::once(anonymous).chain(management(door)).collect()
}

/// The token that may do everything, whose secret the server was started with.
fn management(door: &Door) -> Option<Map<String, Value>> {
    let secret = door.acl().initial_management()?;
    let policies = json!([{"ID": MANAGEMENT, "Name": "global-management"}]);
    Some(given(&accessor_of(secret), secret, "Initial Management Token", policies))
}

fn given(accessor: &str, secret: &str, description: &str, policies: Value) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("AccessorID".into(), json!(accessor));
    out.insert("SecretID".into(), json!(secret));
    out.insert("Description".into(), json!(description));
    if !policies.is_null() {
        out.insert("Policies".into(), policies);
    }
    out.insert("Local".into(), json!(false));
    out.insert("CreateTime".into(), json!(time(0)));
    out.insert("Hash".into(), json!(hash(accessor)));
    out
}

/// Always the same for a secret, and says nothing of it.
pub fn accessor_of(secret: &str) -> String {
    let sum = digest(&SHA256, format!("weft initial management {secret}").as_bytes());
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(sum.as_ref()) {
        *to = *from;
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// A token of a body, or what the body makes of an older one.
fn made(
    state: &State,
    body: &Map<String, Value>,
    old: Option<&Map<String, Value>>,
    now: u64,
) -> Result<Map<String, Value>, Refusal> {
    let fields = Fields::new(body, "");
    let mut out = old.cloned().unwrap_or_default();
    let mut out_of = |name: &str, fresh: &dyn Fn() -> String| -> Result<String, Refusal> {
        let (given, known) = (fields.text(name)?, out.get(name).and_then(Value::as_str));
        let text = match (known, given.is_empty()) {
            (Some(known), false) if known != given => {
                return Err(Refusal::internal(format!(
                    "Changing a token's {name} is not permitted"
                )));
            }
            (Some(known), _) => known.to_owned(),
            (None, false) => given,
            (None, true) => fresh(),
        };
        out.insert(name.to_owned(), json!(text));
        Ok(text)
    };
    let accessor = out_of("AccessorID", &|| Uuid::new_v4().to_string())?;
    let secret = out_of("SecretID", &|| Uuid::new_v4().to_string())?;
    if Uuid::parse_str(&accessor).is_err() {
        return Err(Refusal::bad(format!(
            "Invalid Token: AccessorID {accessor:?} is not a valid UUID"
        )));
    }
    if secret.len() > SECRET_BYTES_MAX || (old.is_none() && Uuid::parse_str(&secret).is_err()) {
        return Err(Refusal::bad("Invalid Token: SecretID is not a valid UUID"));
    }
    match old {
        Some(old) => unchanged(&fields, old)?,
        None if !fields.text("AuthMethod")?.is_empty() => {
            return Err(Refusal::internal("AuthMethod field is disallowed outside of login"));
        }
        None => {}
    }
    if old.is_none() {
        let has = |name: String| links::record(state, &name).is_some();
        if accessor == ANONYMOUS || has(format!("token/{accessor}")) {
            return Err(in_use("AccessorID"));
        }
        if has(format!("secret/{}", hash(&secret))) {
            return Err(in_use("SecretID"));
        }
        if [&accessor, &secret].iter().any(|id| id.starts_with(RESERVED)) {
            return Err(Refusal::internal(format!(
                "Invalid Token: UUIDs with the prefix {RESERVED:?} are reserved"
            )));
        }
        out.insert("CreateTime".into(), json!(time(now)));
        out.insert("Local".into(), json!(fields.flag("Local")?));
        expiry(&fields, now, &mut out)?;
    }
    out.insert("Description".into(), json!(fields.text("Description")?));
    links::copy(state, body, &mut out, true)?;
    out.remove("CreateIndex");
    out.remove("ModifyIndex");
    out.remove("Hash");
    let sum = hash(Value::Object(out.clone()).to_string());
    out.insert("Hash".into(), json!(sum));
    Ok(out)
}

/// What of a token is as it was made. Whoever writes back what was read changes nothing of it.
fn unchanged(fields: &Fields, old: &Map<String, Value>) -> Result<(), Refusal> {
    let accessor = word_of(old, "AccessorID");
    let method = fields.text("AuthMethod")?;
    let (time, ttl) = (fields.text("ExpirationTime")?, fields.duration_ms("ExpirationTTL")?);
    // However it is written.
    let instant = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let ends = word_of(old, "ExpirationTime");
    let moves = !time.is_empty() && (instant(&time).is_none() || instant(&time) != instant(ends));
    let known = duration::parse(word_of(old, "ExpirationTTL")).map_or(0, |ttl| ttl.as_millis());
    let why = match () {
        () if moves || (ttl != 0 && u128::from(ttl) != known) => {
            format!("Cannot change expiration time of {accessor}")
        }
        () if fields.value("Local").is_some()
            && fields.flag("Local")? != (old.get("Local") == Some(&json!(true))) =>
        {
            format!("Cannot toggle local mode of {accessor}")
        }
        () if !method.is_empty() && method != word_of(old, "AuthMethod") => {
            format!("Cannot change AuthMethod of {accessor}")
        }
        () => return Ok(()),
    };
    Err(Refusal::internal(why))
}

fn expiry(fields: &Fields, now: u64, out: &mut Map<String, Value>) -> Result<(), Refusal> {
    let ttl = match fields.value("ExpirationTTL") {
        Some(Value::String(text)) if !text.is_empty() => duration::parse(text)
            .and_then(|ttl| u64::try_from(ttl.as_millis()).ok())
            .ok_or_else(|| Refusal::bad(format!("Invalid ExpirationTTL {text:?}")))?,
        _ => fields.duration_ms("ExpirationTTL")?,
    };
    let at = fields.text("ExpirationTime")?;
    let ends = match (ttl, at.as_str()) {
        (0, "") => return Ok(()),
        (0, text) => text
            .parse::<jiff::Timestamp>()
            .ok()
            .and_then(|at| u64::try_from(at.as_millisecond()).ok())
            .ok_or_else(|| Refusal::bad(format!("Invalid ExpirationTime {text:?}")))?,
        (ttl, "") => now.saturating_add(ttl),
        _ => return Err(Refusal::bad("Give one of ExpirationTTL and ExpirationTime")),
    };
    if !(now + 60_000..=now + 86_400_000).contains(&ends) {
        return Err(Refusal::bad("a token expires in no less than 1m0s and no more than 24h0m0s"));
    }
    out.insert("ExpirationTime".into(), json!(time(ends)));
    Ok(())
}

/// Its time is over, or the auth method that it came by is no more.
pub fn is_over(door: &Door, state: &State, token: &Map<String, Value>) -> bool {
    let method = word_of(token, "AuthMethod");
    if !method.is_empty() && state.record(TABLE, &format!("method/{method}")).is_none() {
        return true;
    }
    let ends = token.get("ExpirationTime").and_then(Value::as_str);
    let ends = ends.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let now = i64::try_from(door.wall_ms()).unwrap_or(i64::MAX);
    ends.is_some_and(|ends| ends.as_millisecond() <= now)
}

pub fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default()
}

/// Who may not write access lists does not see secrets.
fn hidden(mut token: Map<String, Value>, writes: bool) -> Value {
    if !writes {
        token.insert("SecretID".into(), json!("<hidden>"));
    }
    Value::Object(token)
}

pub fn stamped(record: &Map<String, Value>, created: u64, modified: u64) -> Map<String, Value> {
    let mut out = record.clone();
    out.remove(IDENTITY);
    out.insert("CreateIndex".into(), json!(created));
    out.insert("ModifyIndex".into(), json!(modified));
    out
}

/// In hex: what a record is found by, or told apart by.
pub fn hash(text: impl AsRef<[u8]>) -> String {
    digest(&SHA256, text.as_ref()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
