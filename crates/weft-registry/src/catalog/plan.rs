// SPDX-License-Identifier: Apache-2.0
//! What a catalog request means as store writes, given the catalog as it is. Pure: no store, no
//! clock. Equal records are not written again, so an unchanged registration moves no index.
//! Called by `catalog::Handle`, which holds the instance's lock until the plan is folded.

use std::sync::Arc;

use weft_base::limits::STORE_VALUE_BYTES_MAX;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Registration, Since, Status};
use weft_kinds::views::check::{
    CheckDefinition, NODE_MAINTENANCE, SERF_HEALTH, SERF_NAMESPACE, SERVICE_MAINTENANCE,
};
use weft_kinds::world::{Catalog, CheckKey, RegistrationKey, StoreKey, encode};
use weft_store::{Compare, Op, Revision, Txn};

use super::error::CatalogError;
use crate::consul::{COORDINATES, keys};
use crate::guards;

/// Registrations in one catalog.
pub const INSTANCES_MAX: usize = 200_000;
/// Checks of one instance; with their statuses they fit one transaction.
pub const CHECKS_PER_INSTANCE_MAX: usize = 40;
/// Consul's own bounds of `Meta`.
pub const META_PAIRS_MAX: usize = 64;
pub const META_KEY_BYTES_MAX: usize = 128;
pub const META_VALUE_BYTES_MAX: usize = 512;
pub const TAGS_MAX: usize = 256;
pub const NAME_BYTES_MAX: usize = 255;
/// Consul reaps no sooner.
pub const DEREGISTER_AFTER_MS_MIN: u64 = 60_000;

/// A service instance with all that is to be true of it.
#[derive(Clone, Debug, Default)]
pub struct ServiceRequest {
    pub registration: Registration,
    /// Their node, namespace and service are filled in from the registration.
    pub checks: Vec<CheckRecord>,
    /// Checks of the instance that are not listed are removed.
    pub replace_checks: bool,
    /// Checks of the node, or of other instances on it, that are written along: who sees the
    /// instance sees them too.
    pub others: Vec<CheckRecord>,
    /// Written when the node is not there yet, or differs and `update_node` is set.
    pub node: NodeRecord,
    pub update_node: bool,
}

/// Writes under construction.
#[derive(Debug)]
struct Plan<'a> {
    catalog: &'a Catalog,
    txn: Txn,
}

/// Registers or replaces an instance.
///
/// # Errors
/// When the request is past a limit.
pub fn register(catalog: &Catalog, request: ServiceRequest) -> Result<Txn, CatalogError> {
    let ServiceRequest { registration, checks, replace_checks, others, node, update_node } =
        request;
    check_limits(&registration, checks.len())?;
    let mut plan = Plan { catalog, txn: Txn::default() };
    plan.node(&node, update_node)?;
    let key = registration_key(&registration);
    if catalog.registration(&key).is_none() {
        limit("the catalog", catalog.registration_count() + 1, INSTANCES_MAX)?;
    }
    // Before its checks, which share its texts as they are folded.
    plan.instance(&key, &registration)?;
    let mut listed = Vec::with_capacity(checks.len());
    for mut check in checks {
        check.namespace.clone_from(&registration.namespace);
        check.node.clone_from(&registration.node);
        check.service_id.clone_from(&registration.id);
        check.service_name.clone_from(&registration.service);
        listed.push(check.id.clone());
        if registration.agent {
            plan.keep_status(&mut check);
        }
        plan.check(check)?;
    }
    plan.others(&others)?;
    let taken: Vec<CheckKey> = others.iter().map(check_key).collect();
    let is_left = |old: &CheckKey| !listed.contains(&old.id) && !taken.contains(old);
    if !replace_checks {
        let left = catalog.checks_of(&key).filter(|(old, _)| is_left(old)).count();
        check_limits(&registration, listed.len() + left)?;
    }
    for (old, record) in catalog.checks_of(&key).filter(|(old, _)| is_left(old)) {
        if replace_checks && !record.is_maintenance() {
            plan.drop_check(old);
        } else if record.service_name != registration.service {
            let service_name = registration.service.clone();
            plan.check(CheckRecord { service_name, ..CheckRecord::clone(record) })?;
        }
    }
    Ok(plan.txn)
}

/// Removes an instance with its checks, and the sidecar proxy registered along with it.
///
/// # Errors
/// When there is no such instance.
pub fn deregister(catalog: &Catalog, key: &RegistrationKey) -> Result<Txn, CatalogError> {
    if catalog.registration(key).is_none() {
        return Err(CatalogError::UnknownService { id: key.id.to_string() });
    }
    let mut plan = Plan { catalog, txn: Txn::default() };
    plan.drop_instance(key);
    let sidecar = RegistrationKey { id: format!("{}-sidecar-proxy", key.id).into(), ..key.clone() };
    if catalog.registration(&sidecar).is_some_and(|r| &*r.kind == "connect-proxy") {
        plan.drop_instance(&sidecar);
    }
    Ok(plan.txn)
}

/// Adds or replaces one check.
///
/// # Errors
/// When the service that it names is not registered on its node.
pub fn register_check(
    catalog: &Catalog,
    node: &NodeRecord,
    check: CheckRecord,
) -> Result<Txn, CatalogError> {
    register_on(catalog, (node, false), std::slice::from_ref(&check))
}

/// A node record, written when there is none or `update` is set, with checks of it or of what is
/// on it.
///
/// # Errors
/// When a service that is named is not registered there, or a limit is passed.
pub fn register_on(
    catalog: &Catalog,
    (node, update): (&NodeRecord, bool),
    checks: &[CheckRecord],
) -> Result<Txn, CatalogError> {
    let mut plan = Plan { catalog, txn: Txn::default() };
    plan.node(node, update)?;
    plan.others(checks)?;
    Ok(plan.txn)
}

/// Adds or replaces a check of a node that need not be in the catalog.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn node_check(catalog: &Catalog, check: CheckRecord) -> Result<Txn, CatalogError> {
    let mut plan = Plan { catalog, txn: Txn::default() };
    plan.check(check)?;
    Ok(plan.txn)
}

/// # Errors
/// When there is no such check.
pub fn deregister_check(catalog: &Catalog, key: &CheckKey) -> Result<Txn, CatalogError> {
    if catalog.check(key).is_none() {
        return Err(CatalogError::UnknownCheck { id: key.id.to_string() });
    }
    let mut plan = Plan { catalog, txn: Txn::default() };
    plan.drop_check(key);
    Ok(plan.txn)
}

/// The next part of a node's removal, at most one transaction; empty once nothing is left.
/// `joined`: it is a machine's, and what is said of that one's life stays.
pub fn deregister_node(catalog: &Catalog, node: &str, joined: bool) -> Txn {
    let mut plan = Plan { catalog, txn: Txn::default() };
    for (key, _) in catalog.on_node(node) {
        if plan.is_full() {
            return plan.txn;
        }
        plan.drop_instance(key);
    }
    let is_life = |key: &CheckKey| *key.id == *SERF_HEALTH && *key.namespace == *SERF_NAMESPACE;
    for (key, _) in catalog.node_checks(node).filter(|(key, _)| !(joined && is_life(key))) {
        if plan.is_full() {
            return plan.txn;
        }
        plan.drop_check(key);
    }
    if catalog.node(node).is_some() {
        plan.txn.ops.push(Op::delete(StoreKey::Node(node.into()).to_string()));
        // Another node of its name is elsewhere.
        plan.txn.ops.push(Op::delete(keys::record(COORDINATES, &encode(node))));
    }
    plan.txn
}

/// The check that takes an instance, or with `service` absent a node, out of service.
pub fn maintenance_check(
    namespace: &str,
    node: &str,
    service: Option<&Registration>,
    reason: &str,
) -> CheckRecord {
    let (id, name, what) = match service {
        None => (NODE_MAINTENANCE.to_owned(), "Node Maintenance Mode", "node"),
        Some(service) => {
            let id = format!("{SERVICE_MAINTENANCE}{}", service.id);
            (id, "Service Maintenance Mode", "service")
        }
    };
    let notes = if reason.is_empty() {
        format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. This is a \
             default message."
        )
    } else {
        reason.to_owned()
    };
    let record = CheckRecord {
        id: id.into(),
        namespace: namespace.into(),
        node: node.into(),
        name: name.into(),
        notes: notes.into(),
        service_id: service.map_or_else(|| "".into(), |s| s.id.clone()),
        service_name: service.map_or_else(|| "".into(), |s| s.service.clone()),
        initial: Status::Critical,
        ..CheckRecord::default()
    };
    record.with(&CheckDefinition { agent: true, ..CheckDefinition::default() })
}

pub fn registration_key(of: &Registration) -> RegistrationKey {
    RegistrationKey { namespace: of.namespace.clone(), node: of.node.clone(), id: of.id.clone() }
}

pub fn check_key(of: &CheckRecord) -> CheckKey {
    CheckKey { namespace: of.namespace.clone(), node: of.node.clone(), id: of.id.clone() }
}

// === impl Plan ===

impl Plan<'_> {
    /// Whether another instance's removal might not fit, with the node's behind it.
    fn is_full(&self) -> bool {
        self.txn.ops.len() + 2 * CHECKS_PER_INSTANCE_MAX + 3 > weft_base::limits::STORE_TXN_OPS_MAX
    }

    fn node(&mut self, node: &NodeRecord, update: bool) -> Result<(), CatalogError> {
        name("the node's name", &node.node)?;
        let old = self.catalog.node(&node.node);
        // What others write of a server's node leaves it one.
        let server = node.server || old.is_some_and(|old| old.server);
        let node = &NodeRecord { server, ..node.clone() };
        match old {
            Some(old) if **old == *node => {
                // Who does not mind what is there does not mind what becomes of it.
                if update {
                    self.stays(&StoreKey::Node(node.node.clone()), old.modified);
                }
                Ok(())
            }
            Some(_) if !update => Ok(()),
            _ => self.put(&StoreKey::Node(node.node.clone()), node),
        }
    }

    fn instance(&mut self, key: &RegistrationKey, new: &Registration) -> Result<(), CatalogError> {
        match self.catalog.registration(key).filter(|old| ***old == *new) {
            Some(old) => {
                self.stays(&StoreKey::Registration(key.clone()), old.modified);
                Ok(())
            }
            None => self.put(&StoreKey::Registration(key.clone()), new),
        }
    }

    /// Checks that do not come with their service: of the node, or of what is registered on it.
    fn others(&mut self, checks: &[CheckRecord]) -> Result<(), CatalogError> {
        for check in checks {
            let before = self.txn.ops.len();
            let mut check = check.clone();
            let subject = self.subject(&mut check, checks)?;
            self.check(check)?;
            // One that stays as it is has its service: neither goes without the other.
            if self.txn.ops.len() > before {
                let new = subject.filter(|subject| !self.txn.compares.contains(subject));
                self.txn.compares.extend(new);
            }
        }
        Ok(())
    }

    /// Names the service of a check that has one, which must be there. `along`: all that are
    /// written with it.
    fn subject(
        &self,
        check: &mut CheckRecord,
        along: &[CheckRecord],
    ) -> Result<Option<Compare>, CatalogError> {
        if check.service_id.is_empty() {
            return Ok(None);
        }
        let of = RegistrationKey {
            namespace: check.namespace.clone(),
            node: check.node.clone(),
            id: check.service_id.clone(),
        };
        let Some(registration) = self.catalog.registration(&of) else {
            return Err(CatalogError::NoSuchService { id: of.id.to_string() });
        };
        check.service_name.clone_from(&registration.service);
        let is_along = |id: &Arc<str>| along.iter().any(|other| other.id == *id);
        let there = self.catalog.checks_of(&of).filter(|(key, _)| !is_along(&key.id)).count();
        let new = along.iter().filter(|other| other.service_id == of.id).count();
        limit("the service's list of checks", there + new, CHECKS_PER_INSTANCE_MAX)?;
        Ok(Some(Compare::Exists(StoreKey::Registration(of).to_string().into())))
    }

    /// As in Consul a check that an agent has is as it is when its instance is registered anew.
    fn keep_status(&self, new: &mut CheckRecord) {
        let old = self.catalog.check(&check_key(new)).filter(|old| old.kind == new.kind);
        if let Some(old) = old {
            new.initial = old.initial;
        }
    }

    fn check(&mut self, mut new: CheckRecord) -> Result<(), CatalogError> {
        name("the check's id", &new.id)?;
        let mut definition = new.typed();
        if definition.deregister_after_ms > 0 {
            definition.deregister_after_ms =
                definition.deregister_after_ms.max(DEREGISTER_AFTER_MS_MIN);
            new = new.with(&definition);
        }
        let key = check_key(&new);
        let old = self.catalog.check(&key);
        if let Some(old) = old.filter(|old| ***old == new) {
            self.stays(&StoreKey::Check(key), old.modified);
            return Ok(());
        }
        self.put(&StoreKey::Check(key.clone()), &new)?;
        // A status told by another kind of probe says nothing about this one.
        if old.is_some_and(|old| old.kind != new.kind) && self.catalog.result(&key).is_some() {
            self.txn.ops.push(Op::delete(StoreKey::CheckStatus(key).to_string()));
        }
        Ok(())
    }

    /// What is not written again, as it is so already, is so still when the rest is written.
    fn stays(&mut self, key: &StoreKey, modified: Since) {
        if !modified.is_unknown() {
            let compare = Compare::ModRevision(key.to_string().into(), Revision(modified.0));
            self.txn.compares.push(compare);
        }
    }

    fn drop_instance(&mut self, key: &RegistrationKey) {
        let checks: Vec<CheckKey> =
            self.catalog.checks_of(key).map(|(key, _)| key.clone()).collect();
        for check in checks {
            self.drop_check(&check);
        }
        self.txn.ops.push(Op::delete(StoreKey::Registration(key.clone()).to_string()));
    }

    fn drop_check(&mut self, key: &CheckKey) {
        self.txn.ops.push(Op::delete(StoreKey::Check(key.clone()).to_string()));
        // Also one that is not known here yet: nothing else would ever take it away.
        self.txn.ops.push(Op::delete(StoreKey::CheckStatus(key.clone()).to_string()));
    }

    fn put(&mut self, key: &StoreKey, value: &impl serde::Serialize) -> Result<(), CatalogError> {
        let bytes = serde_json::to_vec(value)?;
        limit("the record in bytes", bytes.len(), STORE_VALUE_BYTES_MAX)?;
        self.txn.ops.push(Op::put(key.to_string(), bytes));
        Ok(())
    }
}

// === helpers ===

fn check_limits(new: &Registration, checks: usize) -> Result<(), CatalogError> {
    limit("the service's list of checks", checks, CHECKS_PER_INSTANCE_MAX)?;
    limit("the service's list of tags", new.tags.len(), TAGS_MAX)?;
    limit("the service's meta", new.meta.len(), META_PAIRS_MAX)?;
    name("the service's name", &new.service)?;
    name("the service's id", &new.id)?;
    for tag in &new.tags {
        limit("a tag in bytes", tag.len(), META_VALUE_BYTES_MAX)?;
        printable("a tag", tag)?;
    }
    let of = |what: &str, name: &Arc<str>| format!("the {what} of meta {name:?} in bytes");
    for (key, value) in &new.meta {
        limit(&of("key", key), key.len(), META_KEY_BYTES_MAX)?;
        limit(&of("value", key), value.len(), META_VALUE_BYTES_MAX)?;
        printable("a key of meta", key)?;
    }
    Ok(())
}

fn name(what: &str, text: &str) -> Result<(), CatalogError> {
    limit(&format!("{what} in bytes"), text.len(), NAME_BYTES_MAX)?;
    printable(what, text)
}

/// Names are shown on terminals and in logs, where a control character does something.
fn printable(what: &str, text: &str) -> Result<(), CatalogError> {
    match text.chars().find(|c| c.is_control()) {
        Some(c) if guards::on("control-names") => Err(CatalogError::Invalid(format!(
            "{what} {text:?} has the control character {c:?}; leave it out"
        ))),
        _ => Ok(()),
    }
}

fn limit(what: &str, found: usize, max: usize) -> Result<(), CatalogError> {
    if found > max {
        return Err(CatalogError::TooMuch { what: what.to_owned(), found, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
