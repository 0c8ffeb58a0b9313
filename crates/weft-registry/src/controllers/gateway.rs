// SPDX-License-Identifier: Apache-2.0
//! A pod for each Gateway that weft serves: nothing but a proxy, run by the agent. One that ends
//! is replaced; it goes with its Gateway.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::world::{KindId, Object, ObjectKey, PROXY_ANNOTATION};

use super::plan::{Context, controller_ref};
use super::replica_set::owned;
use crate::Propagation;
use crate::objects::admit::{is_ours, owner};
use crate::objects::meta::safe_hash;

/// On a gateway's pod: the Gateway's name.
pub const GATEWAY_ANNOTATION: &str = "weft.dev/gateway";
/// On a gateway's pod: which kind of Gateway, `Gateway` or `IstioGateway`.
pub const GATEWAY_KIND_ANNOTATION: &str = "weft.dev/gateway-kind";
/// Gateway API's own label for what a Gateway causes.
pub const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
const GRACE_S: u64 = 30;

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(gateway) = ctx.object(key) else { return };
    let pods = owned(ctx.world, &gateway, KindId::Pod);
    let wanted = !gateway.meta.is_deleting() && is_ours(ctx.world, key.kind, &gateway.raw);
    if !wanted {
        pods.iter().for_each(|pod| ctx.delete(pod, Propagation::Background));
        return;
    }
    // A Gateway whose class came after it has no address yet.
    ctx.write(&gateway, Value::clone(&gateway.raw));
    let ended = |pod: &Arc<Object>| matches!(&pod.view, View::Pod(p) if p.is_finished());
    for pod in pods.iter().filter(|p| ended(p) && !p.meta.is_deleting()) {
        ctx.delete(pod, Propagation::Background);
    }
    // While one is on its way out, its listeners are still bound: the next waits.
    if pods.is_empty() {
        let pod = pod(&gateway);
        ctx.create(KindId::Pod, &key.namespace, pod);
    }
}

fn pod(gateway: &Object) -> Value {
    let hash = safe_hash(weft_base::name::fnv1a(owner(gateway.key.kind, &gateway.raw).as_bytes()));
    let name = &*gateway.key.name;
    let account = format!("{name}-gateway");
    let hash: String = hash.chars().take(5).collect();
    json!({
        "metadata": {
            "generateName": format!("{name}-gateway-{hash}-"),
            "labels": { NAME_LABEL: name },
            "annotations": {
                PROXY_ANNOTATION: "gateway",
                GATEWAY_ANNOTATION: name,
                GATEWAY_KIND_ANNOTATION: format!("{:?}", gateway.key.kind),
            },
            "ownerReferences": [controller_ref(gateway)],
        },
        "spec": {
            "serviceAccountName": account,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [{
                "name": "weft-proxy",
                "image": "weft",
                "ports": listener_ports(gateway),
            }],
        },
        "status": { "phase": "Pending" },
    })
}

/// Each port once, for `kubectl get` and for the agent's messages; the mesh model decides.
fn listener_ports(gateway: &Object) -> Value {
    let (list, port): (&str, fn(&Value) -> &Value) = match gateway.key.kind {
        KindId::IstioGateway => ("servers", |s| &s["port"]["number"]),
        _ => ("listeners", |l| &l["port"]),
    };
    let listeners = gateway.raw["spec"][list].as_array().into_iter().flatten();
    let mut ports: Vec<u64> = listeners.filter_map(|l| port(l).as_u64()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into_iter().map(|p| json!({ "containerPort": p, "protocol": "TCP" })).collect()
}
