// SPDX-License-Identifier: Apache-2.0
//! What a caller needs for nodes, services and checks. A registration is admitted by the name it
//! will have, by the name that its id has now, and, of a proxy, by the service that it stands
//! before; in a transaction as anywhere else. What is not there is its node's, but for a new
//! registration.
//!
//! Architecture invariant: a write that was admitted by what the catalog said is done only if the
//! catalog still says so. [`Door::look`] takes down what that was, and the store compares it.

use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::{CheckRecord, Registration};
use weft_kinds::views::check::Probe;
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, service_of_registration};
use weft_registry::catalog::{Handle, check_key, registration_key};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::view::{Entry, View};

/// Store keys with the revisions that they were seen at.
pub(super) type SeenKeys = Vec<(StoreKey, Option<u64>)>;

/// The catalog as an admission sees it.
#[derive(Debug)]
pub(super) struct Look {
    pub view: View,
    pub seen: SeenKeys,
}

/// Judges one request by one look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission<'a> {
    pub ask: &'a Ask,
    pub view: &'a View,
    /// What the same request registers: admitted there.
    pub made: &'a [RegistrationKey],
}

// === impl Admission ===

impl Admission<'_> {
    /// `checks`: those that come with it.
    pub fn service(&self, new: &Registration, checks: &[CheckRecord]) -> Result<(), Refusal> {
        let (ns, who) = (&new.namespace, &self.ask.who);
        who.demand_place(&new.node)?;
        who.demand(Verb::Write, Kind::Service, ns, &new.service)?;
        let stands_for = new.proxy.as_ref().and_then(|proxy| {
            let fields = super::body::Fields::new(proxy.as_object()?, "Proxy.");
            fields.text("DestinationServiceName").ok().filter(|name| !name.is_empty())
        });
        if let Some(name) = stands_for {
            who.demand(Verb::Write, Kind::Service, ns, &name)?;
        }
        let key = registration_key(new);
        // A name may also be what another's slug is: whoever joins a service may write it.
        let catalog = self.view.world.catalog();
        let same = service_of_registration(&key, new)
            .and_then(|service| catalog.of_service(&service).next());
        if let Some((_, known)) = same {
            who.demand(Verb::Write, Kind::Service, ns, &known.service)?;
        }
        if let Some(known) = self.view.world.catalog().registration(&key) {
            who.demand(Verb::Write, Kind::Service, ns, &known.service)?;
        }
        let made = [key.clone()];
        let admission = Admission { made: &made, ..*self };
        checks.iter().try_for_each(|check| admission.check(&of_service(check, &key), Verb::Write))
    }

    /// By the name of the service that an id is registered under.
    pub fn instance(&self, key: &RegistrationKey, verb: Verb) -> Result<(), Refusal> {
        let who = &self.ask.who;
        if verb == Verb::Write {
            who.demand_place(&key.node)?;
        }
        match self.view.world.catalog().registration(key) {
            Some(known) => who.demand(verb, Kind::Service, &key.namespace, &known.service),
            None if verb == Verb::Read => Ok(()),
            None => who.demand(verb, Kind::Node, &key.namespace, &key.node),
        }
    }

    /// A check as it is to be, and as it is.
    pub fn check(&self, new: &CheckRecord, verb: Verb) -> Result<(), Refusal> {
        self.subject(&subject_of(new), verb)?;
        self.aliased(new)?;
        match self.view.world.catalog().check(&check_key(new)) {
            Some(known) => self.subject(&subject_of(known), verb),
            None => Ok(()),
        }
    }

    /// An alias shows how its target is, so whoever makes one must be able to see that.
    fn aliased(&self, new: &CheckRecord) -> Result<(), Refusal> {
        let Probe::Alias { node, service_id } = new.typed().probe else { return Ok(()) };
        let node = if node.is_empty() { new.node.clone() } else { node.into() };
        let (namespace, id) = (new.namespace.clone(), service_id.into());
        let key = RegistrationKey { namespace, node, id };
        let (who, ns) = (&self.ask.who, &key.namespace);
        match self.view.world.catalog().registration(&key) {
            Some(target) => who.demand(Verb::Read, Kind::Service, ns, &target.service),
            None => who.demand(Verb::Read, Kind::Node, ns, &key.node),
        }
    }

    /// A check as it is.
    pub fn known_check(&self, key: &CheckKey, verb: Verb) -> Result<(), Refusal> {
        match self.view.world.catalog().check(key) {
            Some(known) => self.subject(&subject_of(known), verb),
            None => self.ask.who.demand(verb, Kind::Node, &key.namespace, &key.node),
        }
    }

    /// A service's check is its service's, any other its node's.
    fn subject(&self, key: &RegistrationKey, verb: Verb) -> Result<(), Refusal> {
        match () {
            () if key.id.is_empty() => {
                self.ask.who.demand(verb, Kind::Node, &key.namespace, &key.node)
            }
            () if self.made.contains(key) => Ok(()),
            () => self.instance(key, verb),
        }
    }
}

impl Door {
    /// A look at the catalog that shows these keys as the store has them. Callers who may do
    /// everything may do it whatever the catalog says: for them nothing is taken down.
    pub(super) async fn look(
        &self,
        ask: &Ask,
        keys: impl Fn(&View) -> Vec<StoreKey>,
    ) -> Result<Look, Refusal> {
        if ask.who.may_all() {
            return Ok(Look { view: self.view(), seen: Vec::new() });
        }
        let wanted = keys(&self.view());
        let mut seen = SeenKeys::new();
        for key in &wanted {
            if !seen.iter().any(|(known, _)| known == key) {
                seen.push((key.clone(), self.consul().modified(key).await?));
            }
        }
        self.settled().await;
        let view = self.view();
        match keys(&view) == wanted {
            true => Ok(Look { view, seen }),
            false => Err(Refusal::overtaken()),
        }
    }

    /// The catalog, for the registration that was admitted.
    pub(super) async fn for_service(
        &self,
        ask: &Ask,
        new: &Registration,
        checks: &[CheckRecord],
    ) -> Result<Handle, Refusal> {
        let key = registration_key(new);
        let keys = |view: &View| service_keys(view, &key, checks);
        let look = self.look(ask, keys).await?;
        Admission { ask, view: &look.view, made: &[] }.service(new, checks)?;
        Ok(self.catalog().given(&look.seen))
    }

    /// What the admission of `catalog/register` rests on: of a registration with its checks, and of
    /// checks of the node or of what else is on it.
    pub(super) async fn seen_registering(
        &self,
        ask: &Ask,
        (service, own): (Option<&Registration>, &[CheckRecord]),
        others: &[CheckRecord],
    ) -> Result<SeenKeys, Refusal> {
        let key = service.map(registration_key);
        let keys = |view: &View| {
            let made = key.iter().flat_map(|key| service_keys(view, key, own));
            made.chain(others.iter().flat_map(|check| check_keys(view, check))).collect()
        };
        let look = self.look(ask, keys).await?;
        let admission = Admission { ask, view: &look.view, made: &[] };
        if let Some(service) = service {
            admission.service(service, own)?;
        }
        others.iter().try_for_each(|check| admission.check(check, Verb::Write))?;
        Ok(look.seen)
    }

    /// The catalog, for changes of what an id names.
    pub(super) async fn for_instance(
        &self,
        ask: &Ask,
        key: &RegistrationKey,
    ) -> Result<Handle, Refusal> {
        let look = self.look(ask, |_| vec![StoreKey::Registration(key.clone())]).await?;
        Admission { ask, view: &look.view, made: &[] }.instance(key, Verb::Write)?;
        Ok(self.catalog().given(&look.seen))
    }

    /// The catalog, for a check as it is to be.
    pub(super) async fn for_check(&self, ask: &Ask, new: &CheckRecord) -> Result<Handle, Refusal> {
        let look = self.look(ask, |view| check_keys(view, new)).await?;
        Admission { ask, view: &look.view, made: &[] }.check(new, Verb::Write)?;
        Ok(self.catalog().given(&look.seen))
    }

    /// The catalog, for changes of a check that is there.
    pub(super) async fn for_known_check(
        &self,
        ask: &Ask,
        key: &CheckKey,
    ) -> Result<Handle, Refusal> {
        let look = self.look(ask, |view| known_check_keys(view, key)).await?;
        Admission { ask, view: &look.view, made: &[] }.known_check(key, Verb::Write)?;
        Ok(self.catalog().given(&look.seen))
    }
}

/// What a registration's admission rests on, with the checks that come with it.
fn service_keys(view: &View, key: &RegistrationKey, checks: &[CheckRecord]) -> Vec<StoreKey> {
    let of = checks.iter().flat_map(|check| check_keys(view, &of_service(check, key)));
    std::iter::once(StoreKey::Registration(key.clone())).chain(of).collect()
}

/// What a check's admission rests on.
pub(super) fn check_keys(view: &View, new: &CheckRecord) -> Vec<StoreKey> {
    let mut keys = known_check_keys(view, &check_key(new));
    if !new.service_id.is_empty() {
        keys.push(StoreKey::Registration(subject_of(new)));
    }
    keys
}

/// The same of one that is only named.
pub(super) fn known_check_keys(view: &View, key: &CheckKey) -> Vec<StoreKey> {
    let mut keys = vec![StoreKey::Check(key.clone())];
    let known = view.world.catalog().check(key).filter(|known| !known.service_id.is_empty());
    keys.extend(known.map(|known| StoreKey::Registration(subject_of(known))));
    keys
}

/// Whether the caller may see an entry: its service and its node.
pub(super) fn sees(ask: &Ask, entry: &Entry) -> bool {
    let ns = &entry.service.namespace;
    ask.who.may(Verb::Read, Kind::Service, ns, &entry.service.service)
        && ask.who.may(Verb::Read, Kind::Node, ns, &entry.node.node)
}

// === helpers ===

/// The instance that a check is about; its id is empty for a node's.
pub(super) fn subject_of(check: &CheckRecord) -> RegistrationKey {
    let (namespace, node) = (check.namespace.clone(), check.node.clone());
    RegistrationKey { namespace, node, id: check.service_id.clone() }
}

/// A check with what the registration that it comes with fills in.
fn of_service(check: &CheckRecord, key: &RegistrationKey) -> CheckRecord {
    let (namespace, node) = (key.namespace.clone(), key.node.clone());
    CheckRecord { namespace, node, service_id: key.id.clone(), ..check.clone() }
}
