// SPDX-License-Identifier: Apache-2.0
//! Who asks, and what they may: the caller's rows of the one permission table
//! (`weft_identity::permission`). Every handler asks here before it reads or writes.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use weft_identity::permission::{Kind, Permissions, Verb};

use super::Door;
use super::error::Refusal;
use super::params::Params;

#[derive(Clone, Debug)]
pub struct Who {
    /// For messages; never the secret.
    pub accessor: Arc<str>,
    /// `None` while access lists are off: then everybody may do everything.
    pub table: Option<Arc<Permissions>>,
}

// === impl Who ===

impl Who {
    /// Anybody, while access lists are off.
    pub fn anybody() -> Self {
        Self { accessor: "".into(), table: None }
    }

    pub fn may(&self, verb: Verb, kind: Kind, ns: &str, name: &str) -> bool {
        self.table.as_ref().is_none_or(|table| table.allows(verb, kind, ns, name))
    }

    /// Whether there is nothing that the caller may not do.
    pub fn may_all(&self) -> bool {
        self.table.as_ref().is_none_or(|table| table.is_management())
    }

    /// # Errors
    /// 403 with Consul's sentence.
    pub fn demand(&self, verb: Verb, kind: Kind, ns: &str, name: &str) -> Result<(), Refusal> {
        match self.may(verb, kind, ns, name) {
            true => Ok(()),
            false => Err(self.lacks(verb, kind, name)),
        }
    }

    /// The same for every name under a prefix.
    ///
    /// # Errors
    /// 403 with Consul's sentence.
    pub fn demand_tree(
        &self,
        verb: Verb,
        kind: Kind,
        ns: &str,
        prefix: &str,
    ) -> Result<(), Refusal> {
        match &self.table {
            Some(table) if !table.allows_tree(verb, kind, ns, prefix) => {
                Err(self.lacks(verb, kind, prefix))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// 403 unless the caller may read, or change, the access lists themselves.
    pub fn demand_acl(&self, verb: Verb) -> Result<(), Refusal> {
        self.demand(verb, Kind::Acl, "default", "")
    }

    /// # Errors
    /// 403 unless the caller may do everything.
    pub fn demand_management(&self) -> Result<(), Refusal> {
        match self.may_all() {
            true => Ok(()),
            false => self.demand_acl(Verb::Write),
        }
    }

    fn lacks(&self, verb: Verb, kind: Kind, name: &str) -> Refusal {
        let on = if name.is_empty() { String::new() } else { format!(" on {name:?}") };
        Refusal::forbidden(format!(
            "Permission denied: token with AccessorID '{}' lacks permission '{}:{}'{on}",
            self.accessor,
            kind.as_str(),
            verb.as_str()
        ))
    }
}

impl Door {
    /// Whose request this is, by its token.
    ///
    /// # Errors
    /// 403 when the token is none of ours.
    pub(super) fn who(&self, headers: &HeaderMap, params: &Params) -> Result<Who, Refusal> {
        if !self.acl().is_on() {
            return Ok(Who::anybody());
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = header(AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token = header("X-Consul-Token").or(bearer).or_else(|| params.get("token"));
        self.acl().resolve(self, token.unwrap_or_default())
    }
}
