// SPDX-License-Identifier: Apache-2.0
//! Who asks, and what they may: the caller's rows of the one permission table
//! (`weft_identity::permission`). Every handler asks here before it reads or writes.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use weft_identity::permission::{Kind, Names, Permission, Permissions, Verb};

use super::Door;
use super::acl::ANONYMOUS;
use super::error::Refusal;
use super::http::Ask;
use super::params::Params;
use crate::guards;

#[derive(Clone, Debug)]
pub struct Who {
    /// For messages; never the secret.
    pub accessor: Arc<str>,
    /// `None` while access lists are off: then everybody may do everything.
    pub table: Option<Arc<Permissions>>,
    /// The machine whose own door the request came to.
    pub host: Option<Host>,
    /// Set once something was not shown for want of a right. Of one request each.
    pub(crate) filtered: Option<Arc<AtomicBool>>,
}

/// A machine that hands on what its clients ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub node: Arc<str>,
    /// There are no access lists: it may write no other node's part of the catalog.
    pub bound: bool,
}

/// A token that is never printed.
#[derive(Clone)]
pub struct Secret(pub Box<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

// === impl Who ===

impl Who {
    /// Anybody, while access lists are off.
    pub fn anybody() -> Self {
        Self { accessor: Arc::default(), table: None, host: None, filtered: None }
    }

    /// Somebody who may do nothing.
    pub fn without_rights() -> Self {
        Self { table: Some(Arc::default()), ..Self::anybody() }
    }

    /// Clients of a machine, while access lists are off: they may read everything, and write what
    /// is nobody's in particular or the machine's own.
    pub fn of_host(node: &Arc<str>) -> Self {
        let row = |kind, names, verb| Permission {
            subject: "machine".into(),
            kind,
            namespace: None,
            names,
            verb: Some(verb),
        };
        let all = || Names::Prefix("".into());
        let free = [Kind::Event, Kind::Key, Kind::Query, Kind::Service, Kind::Session];
        let mut rows: Vec<Permission> =
            free.map(|kind| row(kind, all(), Verb::Write)).into_iter().collect();
        let seen = [Kind::Agent, Kind::Intention, Kind::Mesh, Kind::Node, Kind::Operator];
        rows.extend(seen.map(|kind| row(kind, all(), Verb::Read)));
        rows.push(row(Kind::Node, Names::Exactly(node.clone()), Verb::Write));
        let table = Some(Arc::new(Permissions::new(rows, false)));
        let host = Some(Host { node: node.clone(), bound: true });
        let accessor = format!("machine {node}").into();
        Self { accessor, table, host, ..Self::anybody() }
    }

    /// The same for one request, which notes what it is not shown.
    #[must_use]
    pub fn of_request(self) -> Self {
        let filtered = self.table.is_some().then(Arc::default);
        Self { filtered, ..self }
    }

    /// The same holder as rights are now, for the same request.
    fn again(&self, now: Self) -> Self {
        Self { host: self.host.clone(), filtered: self.filtered.clone(), ..now }
    }

    /// Whether something was not shown to somebody who is known, by access lists. Who is not is not
    /// told that there is something.
    pub fn was_filtered(&self) -> bool {
        let listed = self.host.as_ref().is_none_or(|host| !host.bound);
        let filtered = || self.filtered.as_ref().is_some_and(|f| f.load(Ordering::Relaxed));
        listed && *self.accessor != *ANONYMOUS && filtered()
    }

    /// # Errors
    /// 403 when a machine would write another node's part of the catalog.
    pub fn demand_place(&self, node: &str) -> Result<(), Refusal> {
        match &self.host {
            Some(host) if host.bound && *host.node != *node => Err(Refusal::forbidden(format!(
                "Permission denied: without access lists the clients of machine {} may write \
                 what is on that node only, not on {node:?}",
                host.node
            ))),
            _ => Ok(()),
        }
    }

    pub fn may(&self, verb: Verb, kind: Kind, ns: &str, name: &str) -> bool {
        let may = self.table.as_ref().is_none_or(|table| table.allows(verb, kind, ns, name));
        if let (false, Verb::Read, Some(filtered)) = (may, verb, &self.filtered) {
            filtered.store(true, Ordering::Relaxed);
        }
        may
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

    /// Of the mesh as a whole; where no rule speaks of it, operators' rules do.
    ///
    /// # Errors
    /// 403 with Consul's sentence.
    pub fn demand_mesh(&self, verb: Verb, ns: &str) -> Result<(), Refusal> {
        let speaks = |table: &Arc<Permissions>| table.rows().iter().any(|r| r.kind == Kind::Mesh);
        match self.table.as_ref().is_none_or(speaks) || !self.may(verb, Kind::Operator, ns, "") {
            true => self.demand(verb, Kind::Mesh, ns, ""),
            false => Ok(()),
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
        match self.may_all() || !guards::on("management") {
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
    /// What a request is shown to the server with: at a machine's door without a token of its own
    /// the agent's default one. The server's own door looks that up by itself.
    pub(super) fn or_default<'a>(&self, secret: &'a str) -> Cow<'a, str> {
        match self.far() {
            Some(_) if secret.is_empty() => Cow::Owned(self.acl().default_secret().to_string()),
            _ => Cow::Borrowed(secret),
        }
    }

    /// Who asks again after a wait: the holder of what was shown then, as things are now.
    ///
    /// # Errors
    /// 403 when it is nobody's any more.
    pub(super) fn still(&self, ask: &Ask) -> Result<Who, Refusal> {
        match (self.far(), &ask.secret) {
            (None, Some(secret)) if self.acl().is_on() => {
                Ok(ask.who.again(self.acl().resolve(self, &secret.0)?))
            }
            _ => Ok(ask.who.clone()),
        }
    }

    /// The same where the server may have to say it: at a machine's own door.
    ///
    /// # Errors
    /// 403 when it is nobody's any more.
    pub(super) async fn still_there(&self, ask: &Ask) -> Result<Who, Refusal> {
        match (self.far(), &ask.secret) {
            (Some(_), Some(secret)) => self.caller(&self.or_default(&secret.0)).await,
            _ => self.still(ask),
        }
    }

    /// Whether there are access lists, as far as who asks can tell: a machine's door knows it
    /// from what the server said of the token.
    pub(super) fn has_acl(&self, who: &Who) -> bool {
        match self.far() {
            Some(_) => who.table.is_some(),
            None => self.acl().is_on(),
        }
    }

    /// Who asks over DNS, where nothing is shown: the holder of the agent's token for DNS, else of
    /// its default one, else the anonymous.
    pub(crate) fn over_dns(&self) -> Who {
        match self.acl().is_on() {
            true => self.acl().over_dns(self),
            false => Who::anybody(),
        }
    }

    /// Who holds a secret; where it is nobody's any more, somebody who may do nothing.
    pub(crate) fn holder(&self, secret: &str) -> Who {
        match self.acl().is_on() {
            true => self.acl().resolve(self, secret).unwrap_or_else(|_| Who::without_rights()),
            false => Who::anybody(),
        }
    }

    /// Whose request this is, by its token.
    ///
    /// # Errors
    /// 403 when the token is none of ours.
    pub(super) async fn caller(&self, secret: &str) -> Result<Who, Refusal> {
        match (self.far(), self.acl().is_on()) {
            (Some(far), _) => self.0.tokens.who(&**far, secret).await,
            (None, true) => self.acl().resolve(self, secret),
            (None, false) => Ok(Who::anybody()),
        }
    }
}

/// The secret that a request shows; empty when it shows none.
pub(super) fn secret<'a>(headers: &'a HeaderMap, params: &'a Params) -> &'a str {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = header(AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    // As in Consul: the first that says something.
    let shown = [params.get("token"), header("X-Consul-Token"), bearer];
    shown.into_iter().flatten().find(|secret| !secret.is_empty()).unwrap_or_default()
}
