// SPDX-License-Identifier: Apache-2.0
//! Consul's access lists: tokens, policies and roles as a dialect of the one permission table.
//! Off unless the server is told otherwise; then `/v1/acl/*` answers 401 and everybody may do
//! everything, as the doors of loopback admit.
//!
//! Everything is in one table of records, `acl`. A caller's rows are worked out once and kept
//! until that table moves.

mod endpoints;
mod expanded;
mod fetch;
pub(super) mod jwt;
mod links;
mod login;
mod methods;
mod records;
pub(super) mod rules;
mod templates;
mod tokens;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use weft_identity::permission::{Permission, Permissions};
use weft_registry::consul::{State, Topic, keys};

use super::Door;
use super::body::{Fields, word_of};
use super::error::Refusal;
use super::who::Who;
pub(super) use records::Sort;
pub(super) use tokens::hash;

pub(super) const TABLE: &str = "acl";
pub(super) const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
pub(super) const MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";
/// Policies that every access list begins with, by id and name. The second's id is also that of the
/// anonymous token, which is of another kind.
const BUILT_IN: [(&str, &str); 2] = [
    (MANAGEMENT, "global-management"),
    ("00000000-0000-0000-0000-000000000002", "builtin/global-read-only"),
];
/// Callers whose rows are kept.
const CACHED_MAX: usize = 4096;
/// How long it is believed who asks over DNS, in ms.
const NAMED_MS: u64 = 1_000;

/// How access lists are on.
#[derive(Clone, Default)]
pub struct AclConfig {
    /// What no rule speaks of is allowed, as in Consul unless told otherwise.
    pub default_allow: bool,
    /// The secret of a token that may do everything.
    pub initial_management: Option<Arc<str>>,
}

#[derive(Debug)]
pub struct Acl {
    config: Option<AclConfig>,
    cache: Mutex<Cache>,
    /// The agent's own default token, which requests without one are under.
    default: Mutex<Arc<str>>,
    /// Its token for DNS, where that is another.
    dns: Mutex<Arc<str>>,
    /// Who asks over DNS.
    names: Mutex<Option<Named>>,
    /// What providers of tokens sign with.
    sets: fetch::Sets,
    /// What the initial management token is known by: a hash of its secret, and its accessor.
    management: Option<(String, String)>,
}

/// Who asks over DNS, and how long that is so.
#[derive(Debug)]
struct Named {
    /// The index of the table, and the secret.
    of: (u64, Arc<str>),
    until_ms: u64,
    who: Who,
}

#[derive(Debug, Default)]
struct Cache {
    /// The index of the table as it was looked at last.
    at: u64,
    /// That of the policies and roles in it, which the rows were worked out from.
    lists: u64,
    /// By secret, with the index of the token.
    rows: HashMap<Arc<str>, (u64, Who)>,
}

impl std::fmt::Debug for AclConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A secret is never printed.
        f.debug_struct("AclConfig").field("default_allow", &self.default_allow).finish()
    }
}

// === impl Acl ===

impl Acl {
    pub fn new(config: Option<AclConfig>) -> Self {
        let secret = config.as_ref().and_then(|config| config.initial_management.as_deref());
        let management = secret.map(|secret| (hash(secret), tokens::accessor_of(secret)));
        Self {
            config,
            management,
            cache: Mutex::default(),
            default: Mutex::default(),
            dns: Mutex::default(),
            names: Mutex::default(),
            sets: fetch::Sets::default(),
        }
    }

    /// A hash of the management token's secret, and its accessor.
    fn management(&self) -> Option<&(String, String)> {
        self.management.as_ref()
    }

    fn sets(&self) -> &fetch::Sets {
        &self.sets
    }

    pub fn is_on(&self) -> bool {
        self.config.is_some()
    }

    /// What an intention that nobody wrote would be.
    pub fn default_allow(&self) -> bool {
        self.config.as_ref().is_none_or(|config| config.default_allow)
    }

    pub(super) fn initial_management(&self) -> Option<&Arc<str>> {
        self.config.as_ref().and_then(|config| config.initial_management.as_ref())
    }

    pub(super) fn set_default(&self, secret: Arc<str>) {
        *self.default.lock().unwrap_or_else(PoisonError::into_inner) = secret;
    }

    /// What requests without a token are under; empty when nothing is set.
    pub(super) fn default_secret(&self) -> Arc<str> {
        self.default.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_dns(&self, secret: Arc<str>) {
        *self.dns.lock().unwrap_or_else(PoisonError::into_inner) = secret;
    }

    /// Who asks over DNS: worked out again when the lists or the agent's tokens are others, and
    /// each second, as tokens end.
    pub(super) fn over_dns(&self, door: &Door) -> Who {
        let own = self.dns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let secret = if own.is_empty() { self.default_secret() } else { own };
        let of = (door.consul().state().index(&Topic::Key(keys::table(TABLE).into())), secret);
        let now = door.wall_ms();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.as_ref().filter(|n| n.of == of && now < n.until_ms) {
            return known.who.clone();
        }
        let who = door.holder(&of.1);
        *names = Some(Named { of, until_ms: now + NAMED_MS, who: who.clone() });
        who
    }

    /// The caller that a secret stands for; without one the anonymous.
    ///
    /// # Errors
    /// 403 when it is nobody's, or over.
    pub(super) fn resolve(&self, door: &Door, secret: &str) -> Result<Who, Refusal> {
        let default = self.default_secret();
        let secret = match secret {
            "" if !default.is_empty() => &*default,
            "" => "anonymous",
            given => given,
        };
        let state = door.consul().state();
        let at = state.index(&Topic::Key(keys::table(TABLE).into()));
        let (cached, lists) = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.look(&state, at);
            (cache.rows.get(secret).cloned(), cache.lists)
        };
        let token = tokens::by_secret(door, &state, secret)?;
        let modified = token.get("ModifyIndex").and_then(Value::as_u64).unwrap_or(0);
        if let Some((_, who)) = cached.filter(|(known, _)| *known == modified) {
            return Ok(who);
        }
        let who = self.work_out(&state, &token, &door.own().datacenter)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.lists == lists {
            cache.rows.insert(secret.into(), (modified, who.clone()));
        }
        Ok(who)
    }

    /// What is for other datacentres only grants nothing in this one.
    fn work_out(
        &self,
        state: &State,
        token: &Map<String, Value>,
        datacenter: &str,
    ) -> Result<Who, Refusal> {
        let accessor = Fields::new(token, "").text("AccessorID")?;
        let mut rows: Vec<Permission> = Vec::new();
        let mut manage = false;
        let mut holders = vec![token.clone()];
        for link in Fields::new(token, "").objects("Roles")? {
            let id = Fields::new(link, "Roles.").text("ID")?;
            let role = state.record(TABLE, &format!("role/{id}"));
            holders.extend(role.and_then(|(role, _)| role.as_object().cloned()));
        }
        for holder in &holders {
            let subject: Arc<str> = accessor.as_str().into();
            for text in templates::identities(holder, Some(datacenter))? {
                rows.extend(rules::parse(&subject, &text).map_err(Refusal::internal)?);
            }
            for link in Fields::new(holder, "").objects("Policies")? {
                let id = Fields::new(link, "Policies.").text("ID")?;
                manage |= id == MANAGEMENT;
                let Some(policy) = links::policy(state, &id) else { continue };
                let datacenters = Fields::new(&policy, "").list("Datacenters")?;
                if !templates::is_for(&datacenters, Some(datacenter)) {
                    continue;
                }
                let subject: Arc<str> = word_of(&policy, "Name").into();
                let text = word_of(&policy, "Rules");
                rows.extend(rules::parse(&subject, text).map_err(Refusal::internal)?);
            }
        }
        let table = match manage {
            true => Permissions::management(),
            false => Permissions::new(rows, self.default_allow()),
        };
        let who = Who { accessor: accessor.into(), ..Who::anybody() };
        Ok(Who { table: Some(Arc::new(table)), ..who })
    }
}

// === impl Cache ===

impl Cache {
    /// Lets go of what other policies or roles than those of now made. Tokens come and go with each
    /// login, and change nobody else's rows.
    fn look(&mut self, state: &State, at: u64) {
        if self.at != at {
            let under = |kind: &str| Topic::Under(keys::record(TABLE, &format!("{kind}/")).into());
            let lists = ["policy", "role"].map(|kind| state.index(&under(kind)));
            let lists = lists.into_iter().max().unwrap_or(at);
            if self.lists != lists {
                self.rows.clear();
            }
            (self.at, self.lists) = (at, lists);
        }
        if self.rows.len() > CACHED_MAX {
            self.rows.clear();
        }
    }
}

/// The name of a policy that is there without anybody having made it.
fn built_in(id: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(own, _)| *own == id).map(|(_, name)| *name)
}

/// Such a policy.
fn built_in_policy(id: &str) -> Option<Value> {
    let name = built_in(id)?;
    let (verb, description) = match id {
        MANAGEMENT => ("write", "A policy that grants unlimited access"),
        _ => ("read", "A policy that grants read access to everything"),
    };
    let mut rules: String = ["acl", "keyring", "operator", "mesh", "peering"]
        .map(|kind| format!("{kind} = \"{verb}\"\n"))
        .concat();
    for kind in ["agent", "event", "key", "node", "query", "service", "session"] {
        let more = match kind {
            "service" => format!("\tintentions = \"{verb}\"\n"),
            _ => String::new(),
        };
        rules += &format!("{kind}_prefix \"\" {{\n\tpolicy = \"{verb}\"\n{more}}}\n");
    }
    Some(json!({
        "ID": id,
        "Name": name,
        "Description": description,
        "Rules": rules,
        "Datacenters": null,
    }))
}
