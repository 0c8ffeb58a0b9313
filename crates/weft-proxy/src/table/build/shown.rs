// SPDX-License-Identifier: Apache-2.0
//! TLS of backends that speak it themselves, and the certificate that a gateway's proxy shows to
//! them. A part of the builder; opens nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_model::{Listener, ListenerKind, Resource, Root, UpstreamTls};

use super::Builder;
use super::held::Held;
use crate::table::OriginTls;

impl Builder {
    /// What this proxy shows to backends, as its own listeners say. Returns what speaks TLS to
    /// some and must be made again.
    pub(super) fn note_shown(&mut self, touched: &BTreeSet<Root>) -> BTreeSet<Root> {
        if !touched.iter().any(|root| matches!(root, Root::Listener(_))) {
            return BTreeSet::new();
        }
        let own = |held: &Held| match held.other() {
            Some(Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. })) => {
                gateway.backend_certificate.as_deref().cloned()
            }
            _ => None,
        };
        let mut listeners = self.roots.values().filter_map(|children| children.get(""));
        let shown = listeners.find_map(own);
        if shown == self.shown {
            return BTreeSet::new();
        }
        self.shown = shown;
        let speaks = |held: &Held| match held.other() {
            Some(Resource::Backend(backend)) => backend.policy.tls.is_some(),
            _ => false,
        };
        let secured = self.roots.iter().filter(|(_, children)| children.values().any(speaks));
        secured.map(|(root, _)| root.clone()).collect()
    }

    /// TLS of backends that speak it themselves; one value for each policy.
    pub(super) fn origin(&mut self, spec: &UpstreamTls) -> Result<Arc<OriginTls>, String> {
        let whole;
        let spec = match (&spec.certificate, &self.shown) {
            (None, Some(_)) if !spec.anonymous => {
                whole = UpstreamTls { certificate: self.shown.clone(), ..spec.clone() };
                &whole
            }
            _ => spec,
        };
        self.said(spec)
    }

    /// TLS as its policy alone says it.
    pub(super) fn said(&mut self, spec: &UpstreamTls) -> Result<Arc<OriginTls>, String> {
        if let Some(known) = self.origins.get(spec) {
            return Ok(known.clone());
        }
        let made = Arc::new(OriginTls::new(spec, &self.clock)?);
        self.origins.insert(spec.clone(), made.clone());
        Ok(made)
    }
}
