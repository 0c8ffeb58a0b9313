// SPDX-License-Identifier: Apache-2.0
//! What Consul clients registered, as the Kubernetes door shows it: a Service without a selector
//! and its EndpointSlices, read-only, owned by the `consul` door. The World does not count these
//! slices as instances, so nothing counts twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_base::name::{ServiceKey, fnv1a};
use weft_kinds::views::catalog::Status;
use weft_kinds::views::discovery::SERVICE_NAME_LABEL;
use weft_kinds::world::{
    Door, Index, Instance, KindId, OWNER_ANNOTATION, Object, ObjectKey, is_mirror, pair,
};

use super::endpoint_slice::{MANAGED_BY_LABEL, replace, slice_name};
use super::plan::{Context, controller_ref};
use crate::Propagation;

/// The door that owns what is mirrored.
pub const OWNER: &str = "consul";
pub const MANAGER: &str = "consul-mirror.weft.dev";
const ENDPOINTS_MAX: usize = 500;

pub fn reconcile(ctx: &mut Context<'_>, service: &ServiceKey) {
    let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
    let key = ObjectKey::new(KindId::Service, namespace, name);
    let object = ctx.object(&key);
    if object.as_ref().is_some_and(|o| !is_mirror(&o.meta)) {
        // A Service that Kubernetes made stays what it is.
        return;
    }
    let instances: Vec<Arc<Instance>> = ctx
        .world
        .instances(namespace, name)
        .values()
        .filter(|i| i.origin == Door::Consul)
        .cloned()
        .collect();
    match (object, instances.is_empty()) {
        (None, true) => {}
        // Its slices are its dependents and go with it.
        (Some(object), true) => ctx.delete(&object, Propagation::Background),
        (None, false) => create(ctx, service, &instances),
        (Some(object), false) => update(ctx, &object, &instances),
    }
}

fn create(ctx: &mut Context<'_>, service: &ServiceKey, instances: &[Arc<Instance>]) {
    let namespace = service.namespace.as_str();
    if ctx.world.get(KindId::Namespace, "", namespace).is_none() {
        let home = json!({ "metadata": { "name": namespace } });
        ctx.create(KindId::Namespace, "", home);
    }
    let raw = json!({
        "metadata": {
            "name": service.name.as_str(),
            "annotations": { OWNER_ANNOTATION: OWNER },
            "labels": { "weft.dev/origin": OWNER },
        },
        "spec": {
            "type": "ClusterIP",
            "ports": service_ports(instances),
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        },
        "status": { "loadBalancer": {} },
    });
    // Its slices follow once it is there and has a uid.
    ctx.create(KindId::Service, namespace, raw);
}

fn update(ctx: &mut Context<'_>, object: &Object, instances: &[Arc<Instance>]) {
    let mut new = object.raw.fresh().into_owned();
    new["spec"]["ports"] = service_ports(instances);
    ctx.write(object, new);
    let at = pair(&object.key.namespace, &object.key.name);
    let known: Vec<Arc<Object>> = ctx
        .world
        .index(Index::SlicesByService, &at)
        .filter(|s| is_mirror(&s.meta))
        .cloned()
        .collect();
    let mut wanted = slices(object, instances);
    for slice in &known {
        match wanted.remove(&*slice.key.name) {
            Some(new) => replace(ctx, slice, &new),
            None => ctx.delete(slice, Propagation::Background),
        }
    }
    for (_, slice) in wanted {
        ctx.create(KindId::EndpointSlice, &object.key.namespace, slice);
    }
}

/// One port: the lowest that an instance has. Slices say the others.
fn service_ports(instances: &[Arc<Instance>]) -> Value {
    let port = instances.iter().flat_map(|i| &i.ports).map(|p| p.port).filter(|p| *p > 0).min();
    let Some(port) = port else { return json!([]) };
    let mut out = json!({ "port": port, "targetPort": port, "protocol": "TCP" });
    // A service may say in its meta what it speaks, as Consul's service-defaults do.
    let spoken = instances.iter().find_map(|i| i.meta("protocol"));
    if let Some(protocol) = spoken.filter(|p| matches!(&***p, "http" | "http2" | "grpc" | "tcp")) {
        out["appProtocol"] = match &**protocol {
            "http2" => json!("kubernetes.io/h2c"),
            other => json!(other),
        };
    }
    json!([out])
}

fn slices(service: &Object, instances: &[Arc<Instance>]) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<(&str, u16), Vec<Value>> = BTreeMap::new();
    for instance in instances {
        let family = match (&instance.hostname, instance.address) {
            (Some(_), _) => "FQDN",
            (None, address) if address.is_ipv6() => "IPv6",
            _ => "IPv4",
        };
        let port = instance.ports.first().map_or(0, |p| p.port);
        groups.entry((family, port)).or_default().push(endpoint(instance));
    }
    let mut out = BTreeMap::new();
    for ((family, port), endpoints) in groups {
        for (i, chunk) in endpoints.chunks(ENDPOINTS_MAX).enumerate() {
            let hash = fnv1a(format!("{}/{family}/{port}/{i}", service.meta.uid).as_bytes());
            let name = slice_name(&service.key.name, hash);
            let ports = match port {
                0 => json!([]),
                port => json!([{ "name": "", "port": port, "protocol": "TCP" }]),
            };
            let slice = json!({
                "metadata": {
                    "name": name,
                    "annotations": { OWNER_ANNOTATION: OWNER },
                    "labels": {
                        SERVICE_NAME_LABEL: &*service.key.name,
                        MANAGED_BY_LABEL: MANAGER,
                    },
                    "ownerReferences": [controller_ref(service)],
                },
                "addressType": family,
                "endpoints": chunk,
                "ports": ports,
            });
            out.insert(name, slice);
        }
    }
    out
}

fn endpoint(instance: &Instance) -> Value {
    let address = match &instance.hostname {
        Some(name) => name.to_string(),
        None => instance.address.to_string(),
    };
    let serving = instance.health != Status::Critical;
    json!({
        "addresses": [address],
        "conditions": {
            "ready": serving && !instance.draining,
            "serving": serving,
            "terminating": instance.draining,
        },
        "nodeName": &*instance.node,
    })
}
