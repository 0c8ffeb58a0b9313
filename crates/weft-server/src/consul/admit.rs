// SPDX-License-Identifier: Apache-2.0
//! What a caller needs for nodes, services and checks. A registration is admitted by the name it
//! will have, by the name that its id has now, and, of a proxy, by the service that it stands
//! before; in a transaction as anywhere else.

use weft_identity::permission::{Kind, Verb};
use weft_kinds::views::catalog::{CheckRecord, Registration};
use weft_kinds::world::RegistrationKey;

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::view::Entry;

impl Door {
    pub(super) fn admit_service(&self, ask: &Ask, new: &Registration) -> Result<(), Refusal> {
        let ns = &new.namespace;
        ask.who.demand(Verb::Write, Kind::Service, ns, &new.service)?;
        let stands_for = new.proxy.as_ref().and_then(|proxy| {
            let fields = super::body::Fields::new(proxy.as_object()?, "Proxy.");
            fields.text("DestinationServiceName").ok().filter(|name| !name.is_empty())
        });
        if let Some(name) = stands_for {
            ask.who.demand(Verb::Write, Kind::Service, ns, &name)?;
        }
        let key = weft_registry::catalog::registration_key(new);
        self.admit_instance(ask, &key, Verb::Write)
    }

    /// By the name of the service that an id is registered under.
    pub(super) fn admit_instance(
        &self,
        ask: &Ask,
        key: &RegistrationKey,
        verb: Verb,
    ) -> Result<(), Refusal> {
        match self.view().world.catalog().registration(key) {
            Some(known) => ask.who.demand(verb, Kind::Service, &key.namespace, &known.service),
            None => Ok(()),
        }
    }

    /// A service's check is its service's, any other its node's.
    pub(super) fn admit_check(
        &self,
        ask: &Ask,
        check: &CheckRecord,
        verb: Verb,
    ) -> Result<(), Refusal> {
        let view = self.view();
        let catalog = view.world.catalog();
        let known = catalog.check(&weft_registry::catalog::check_key(check)).cloned();
        let ids = [Some(check.service_id.clone()), known.map(|known| known.service_id.clone())];
        let mut of_node = true;
        for id in ids.into_iter().flatten().filter(|id| !id.is_empty()) {
            of_node = false;
            let (namespace, node) = (check.namespace.clone(), check.node.clone());
            let key = RegistrationKey { namespace, node, id };
            self.admit_instance(ask, &key, verb)?;
        }
        match of_node {
            true => ask.who.demand(verb, Kind::Node, &check.namespace, &check.node),
            false => Ok(()),
        }
    }
}

/// Whether the caller may see an entry: its service and its node.
pub(super) fn sees(ask: &Ask, entry: &Entry) -> bool {
    let ns = &entry.service.namespace;
    ask.who.may(Verb::Read, Kind::Service, ns, &entry.service.service)
        && ask.who.may(Verb::Read, Kind::Node, ns, &entry.node.node)
}
