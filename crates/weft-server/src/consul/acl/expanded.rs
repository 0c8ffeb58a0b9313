// SPDX-License-Identifier: Apache-2.0
//! `/v1/acl/token/:id?expanded`: what a token comes to, with every policy and role that it leads
//! to, as whoever audits it reads it. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_registry::consul::State;

use super::tokens::{hash, stamped};
use super::{TABLE, links, templates};
use crate::consul::Door;
use crate::consul::body::{Fields, word_of};
use crate::consul::error::Refusal;

/// The rules of an identity, as if somebody had made a policy of them.
pub fn synthetic(rules: &str, description: &str) -> Value {
    let sum = hash(rules);
    json!({
        "ID": Uuid::new_v4().to_string(),
        "Name": format!("synthetic-policy-{}", sum.get(..32).unwrap_or_default()),
        "Description": description,
        "Rules": rules,
        "Hash": sum,
        "CreateIndex": 0,
        "ModifyIndex": 0,
    })
}

impl Door {
    /// # Errors
    /// When a record of the token cannot be read.
    pub(super) fn expanded(
        &self,
        state: &State,
        mut token: Map<String, Value>,
    ) -> Result<Map<String, Value>, Refusal> {
        let roles = linked(state, &token, "Roles", "role")?;
        // Each once, however many ways lead to it.
        let mut policies: BTreeMap<String, Value> = BTreeMap::new();
        for holder in std::iter::once(&token).chain(&roles) {
            for policy in linked(state, holder, "Policies", "policy")? {
                policies.insert(word_of(&policy, "ID").to_owned(), Value::Object(policy));
            }
            for rules in templates::identities(holder, None)? {
                let made = synthetic(&rules, "synthetic policy of an identity");
                policies.insert(format!("~{rules}"), made);
            }
        }
        let policies: Vec<Value> = policies.into_values().collect();
        let usual = if self.acl().default_allow() { "allow" } else { "deny" };
        for (name, value) in [
            ("ExpandedPolicies", json!(policies)),
            ("ExpandedRoles", json!(roles)),
            ("NamespaceDefaultPolicyIDs", Value::Null),
            ("NamespaceDefaultRoleIDs", Value::Null),
            ("AgentACLDefaultPolicy", json!(usual)),
            ("AgentACLDownPolicy", json!("extend-cache")),
            ("ResolvedByAgent", json!(self.own().node.node)),
        ] {
            token.insert(name.to_owned(), value);
        }
        Ok(token)
    }
}

// === helpers ===

/// The records that a token or role links to; those that are gone grant nothing.
fn linked(
    state: &State,
    holder: &Map<String, Value>,
    field: &str,
    kind: &str,
) -> Result<Vec<Map<String, Value>>, Refusal> {
    let mut out = Vec::new();
    for link in Fields::new(holder, "").objects(field)? {
        let id = Fields::new(link, field).text("ID")?;
        let known = state.record(TABLE, &format!("{kind}/{id}"));
        let known = known.and_then(|(r, i)| Some(stamped(r.as_object()?, i.created, i.modified)));
        let built_in = || {
            let own = (kind == "policy").then(|| links::policy(state, &id))?;
            own.map(|own| stamped(&own, 1, 1))
        };
        let mut found = known.or_else(built_in);
        found.iter_mut().for_each(|record| links::renew(state, record));
        out.extend(found);
    }
    Ok(out)
}
