// SPDX-License-Identifier: Apache-2.0
//! Programs that a host's agent captures: whether the host may act as what it declares, and what
//! the mesh says to their DNS questions.

use std::collections::BTreeMap;

use weft_identity::token::Allowed;
use weft_registry::hosts::declared::{Placed, Workload};
use weft_server::dns::{Carrier, Told};
use weft_xds::agent::{Declared, PodRef, Refusal, Resolved};
use weft_xds::server::Peer;

use super::claims::is_reserved;
use super::{HostDoor, refusal};

impl HostDoor {
    pub(super) async fn declare_now(
        self,
        peer: Peer,
        declared: Declared,
    ) -> Result<Option<PodRef>, Refusal> {
        let caller = self.caller(&peer)?;
        if declared.service_account.is_empty() {
            let gone = self.hosts.declare(&caller.name, None).await.map_err(refusal)?;
            return Ok(gone.map(|placed| reference("", placed)));
        }
        // A token that names nobody admits what the server places, and nothing that a host says.
        let (namespace, account) = (&declared.namespace, &declared.service_account);
        let named = matches!(&caller.allowed, Allowed::Only(_));
        if !named || !caller.allowed.admits(namespace, account) {
            return Err(Refusal::Denied(format!(
                "the token of host {} does not name the service account {namespace}/{account}; \
                 join with one from `weft token create --host {} --allow {namespace}/{account}`",
                caller.name, caller.name
            )));
        }
        let labels: BTreeMap<String, String> = declared.labels;
        if let Some(label) = labels.keys().find(|k| is_reserved(k)) {
            return Err(Refusal::Invalid(format!("the label {label} is not for hosts to choose")));
        }
        let workload = Workload {
            namespace: declared.namespace.clone(),
            service_account: declared.service_account.clone(),
            service: Some(declared.service).filter(|s| !s.is_empty()),
            ports: declared.ports,
            labels,
        };
        let placed = self.hosts.declare(&caller.name, Some(&workload)).await.map_err(refusal)?;
        Ok(placed.map(|placed| reference(&declared.namespace, placed)))
    }

    pub(super) async fn resolve_now(
        self,
        peer: Peer,
        pod: PodRef,
        query: Vec<u8>,
        tcp: bool,
    ) -> Result<Resolved, Refusal> {
        let caller = self.caller(&peer)?;
        // Without a pod the machine itself asks, whose programs know no short names.
        let own = pod == PodRef::default();
        if !own {
            self.pod(&caller, &pod)?;
        }
        let namespace = (!own).then_some(&*pod.namespace);
        let carrier = if tcp { Carrier::Tcp } else { Carrier::Udp };
        Ok(match self.names.of_mesh(&query, carrier, namespace).await {
            Told::Answer(answer) => Resolved::Answer(answer),
            Told::Silence => Resolved::Silence,
            Told::Outside | Told::Away => Resolved::Outside,
        })
    }
}

fn reference(namespace: &str, placed: Placed) -> PodRef {
    PodRef { namespace: namespace.to_owned(), name: placed.name, uid: placed.uid }
}
