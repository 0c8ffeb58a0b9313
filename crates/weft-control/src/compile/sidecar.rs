// SPDX-License-Identifier: Apache-2.0
//! Sidecar to what a workload may reach outside of the mesh. Of all that the kind has, the outbound
//! traffic policy is followed; the status names the rest. Precedence is Istio's: one that selects
//! the workload, then its namespace's, then the mesh's; among equals the oldest.

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::sidecar::Sidecar;
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{KindId, Object};
use weft_model::Egress;

use super::destination_rule::not_done;
use super::peer_authentication::{ROOT_NAMESPACE, enforcement};
use super::{Output, Reader};
use crate::status::{Condition, StatusBody, StatusUpdate};

type Sidecars<'w> = Vec<(&'w Object, &'w Sidecar)>;

/// What becomes of a workload's traffic to destinations that the mesh does not know.
pub(super) fn egress_of(reader: &Reader<'_>, namespace: &str, labels: &Labels) -> Egress {
    let own = sidecars(reader, namespace);
    let selects = |s: &Sidecar| {
        let selector = &s.spec.workload_selector;
        !selector.is_empty() && selector.matches(labels)
    };
    let found = own.iter().find(|(_, s)| selects(s)).copied().or_else(|| whole(&own));
    let found = found.or_else(|| match namespace == ROOT_NAMESPACE {
        true => None,
        false => whole(&sidecars(reader, ROOT_NAMESPACE)),
    });
    if found.is_some_and(|(_, s)| is_closed(s)) { Egress::Deny } else { Egress::Allow }
}

fn is_closed(sidecar: &Sidecar) -> bool {
    &*sidecar.spec.outbound_traffic_policy.mode == "REGISTRY_ONLY"
}

/// The one of a whole namespace.
fn whole<'w>(all: &Sidecars<'w>) -> Option<(&'w Object, &'w Sidecar)> {
    all.iter().find(|(_, s)| s.spec.workload_selector.is_empty()).copied()
}

fn sidecars<'w>(reader: &Reader<'w>, namespace: &str) -> Sidecars<'w> {
    let found = reader.kind(KindId::Sidecar, Some(namespace));
    let mut out: Sidecars<'w> = found
        .into_iter()
        .filter_map(|o| match &o.view {
            View::Sidecar(sidecar) => Some((&**o, sidecar)),
            _ => None,
        })
        .collect();
    out.sort_by_key(|(o, _)| (o.meta.created_ms(), o.key.name.clone()));
    out
}

/// Its own unit gives its status only.
pub(super) fn compile(reader: &Reader<'_>, object: &Object, sidecar: &Sidecar) -> Output {
    let (spec, mut issues) = (&sidecar.spec, Issues::default());
    let at = FieldPath::new("spec");
    for (set, field) in [
        (!spec.ingress.is_empty(), "ingress"),
        (!spec.egress.is_empty(), "egress"),
        (spec.inbound_connection_pool.is_some(), "inboundConnectionPool"),
    ] {
        if set {
            not_done(&mut issues, &at.field(field));
        }
    }
    if spec.outbound_traffic_policy.egress_proxy.is_some() {
        not_done(&mut issues, &at.field("outboundTrafficPolicy").field("egressProxy"));
    }
    let mut conditions = vec![accepted(reader, object, sidecar)];
    conditions.push(enforcement(reader, is_closed(sidecar)));
    conditions.extend(Condition::warning(&issues));
    let status = StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Conditions(conditions),
    };
    Output { status: Some(status), ..Output::default() }
}

fn accepted(reader: &Reader<'_>, object: &Object, sidecar: &Sidecar) -> Condition {
    let all = sidecars(reader, &object.key.namespace);
    let mut older = all.iter().take_while(|(o, _)| o.key != object.key);
    let selector = &sidecar.spec.workload_selector;
    match older.find(|(_, s)| s.spec.workload_selector == *selector) {
        Some((first, _)) => {
            let text = format!("not used: the older {} is about the same workloads", first.key);
            Condition::new("Accepted", false, "Conflicted", text)
        }
        None => Condition::new("Accepted", true, "Accepted", "in effect"),
    }
}
