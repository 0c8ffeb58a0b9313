// SPDX-License-Identifier: Apache-2.0
//! What a Gateway that weft serves causes: a ServiceAccount (its identity), a pod that is nothing
//! but a proxy, and a Service by which the mesh calls it, whose load balancer status says where
//! it is reached from outside. All are its own and go with it; a pod that ends is replaced.
//! Called by the controllers' loop; never decides what is served there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_kinds::views::View;
use weft_kinds::world::{Index, KindId, Object, ObjectKey, PROXY_ANNOTATION, World, pair};

use super::plan::{Context, controller_ref};
use super::replica_set::owned;
use crate::Propagation;
use crate::objects::admit::{ADDRESS_ANNOTATION, annotation, has_no_value, is_ours, owner};
use crate::objects::meta::{metadata_mut, safe_hash};

/// On a gateway's pod: the Gateway's name.
pub const GATEWAY_ANNOTATION: &str = "weft.dev/gateway";
/// On a gateway's pod: which kind of Gateway, `Gateway` or `IstioGateway`.
pub const GATEWAY_KIND_ANNOTATION: &str = "weft.dev/gateway-kind";
/// Gateway API's own label for what a Gateway causes.
pub const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
const GRACE_S: u64 = 30;
/// A Service's name is a DNS label.
const NAME_BYTES_MAX: usize = 63;
const HASH_BYTES: usize = 5;

pub fn reconcile(ctx: &mut Context<'_>, key: &ObjectKey) {
    let Some(gateway) = ctx.object(key) else { return };
    let wanted = !gateway.meta.is_deleting() && is_ours(ctx.world, key.kind, &gateway.raw);
    if !wanted {
        for kind in [KindId::Pod, KindId::Service, KindId::ServiceAccount] {
            let all = owned(ctx.world, &gateway, kind);
            all.iter().for_each(|object| ctx.delete(object, Propagation::Background));
        }
        return;
    }
    // A Gateway whose class came after it has no address yet.
    ctx.write(&gateway, Value::clone(&gateway.raw));
    let name = caused_name(&gateway);
    account(ctx, &gateway, &name);
    service(ctx, &gateway, &name);
    pods(ctx, &gateway, &name);
}

/// Gateway API's name for what a Gateway causes: its own, then its class.
fn caused_name(gateway: &Object) -> String {
    let class = gateway.raw["spec"]["gatewayClassName"].as_str().unwrap_or("istio");
    let name = format!("{}-{class}", gateway.key.name);
    match name.get(..NAME_BYTES_MAX - HASH_BYTES - 1) {
        Some(head) if name.len() > NAME_BYTES_MAX => {
            format!("{}-{}", head.trim_end_matches('-'), hash_of(&name))
        }
        _ => name,
    }
}

fn hash_of(text: &str) -> String {
    safe_hash(weft_base::name::fnv1a(text.as_bytes())).chars().take(HASH_BYTES).collect()
}

/// Its identity. One that a user made is used as it is.
fn account(ctx: &mut Context<'_>, gateway: &Object, name: &str) {
    if ctx.world.get(KindId::ServiceAccount, &gateway.key.namespace, name).is_none() {
        let account = json!({ "metadata": metadata(gateway, name) });
        ctx.create(KindId::ServiceAccount, &gateway.key.namespace, account);
    }
}

fn pods(ctx: &mut Context<'_>, gateway: &Object, account: &str) {
    let pods = owned(ctx.world, gateway, KindId::Pod);
    let ended = |pod: &Arc<Object>| matches!(&pod.view, View::Pod(p) if p.is_finished());
    for pod in pods.iter().filter(|p| ended(p) && !p.meta.is_deleting()) {
        ctx.delete(pod, Propagation::Background);
    }
    // While one is on its way out, its listeners are still bound: the next waits.
    if pods.is_empty() {
        let pod = pod(gateway, account);
        ctx.create(KindId::Pod, &gateway.key.namespace, pod);
    }
}

fn service(ctx: &mut Context<'_>, gateway: &Object, name: &str) {
    let wanted = service_ports(gateway, &sets(ctx.world, gateway));
    if wanted.is_empty() {
        return;
    }
    let Some(known) = ctx.world.get(KindId::Service, &gateway.key.namespace, name).cloned() else {
        let spec = json!({
            "type": "LoadBalancer",
            "selector": { NAME_LABEL: &*gateway.key.name },
            "ports": wanted,
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": false,
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
        });
        let status = load_balancer(gateway, &wanted);
        let service =
            json!({ "metadata": metadata(gateway, name), "spec": spec, "status": status });
        ctx.create(KindId::Service, &gateway.key.namespace, service);
        return;
    };
    let ours = known.meta.controller().is_some_and(|c| c.uid == gateway.meta.uid);
    if !ours {
        // A user's own stays as it is; the Gateway works without.
        tracing::debug!(gateway = %gateway.key, name, "the Service is not of this Gateway");
        return;
    }
    if known.meta.is_deleting() {
        return;
    }
    let mut new = Value::clone(&known.raw);
    let balancer = load_balancer(gateway, &wanted)["loadBalancer"].clone();
    fields(&mut new["status"]).insert("loadBalancer".into(), balancer);
    fields(&mut new["spec"]).insert("ports".into(), Value::Array(wanted));
    let caused = metadata(gateway, name);
    for part in ["labels", "annotations"] {
        let own = metadata_mut(&mut new).entry(part).or_insert(Value::Null);
        for (key, value) in caused[part].as_object().into_iter().flatten() {
            fields(own).insert(key.clone(), value.clone());
        }
    }
    ctx.write(&known, new);
}

/// The fields of an object, made one when it is none.
pub(super) fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made an object above")
}

/// Where the Gateway is reached from outside: its own addresses.
fn load_balancer(gateway: &Object, ports: &[Value]) -> Value {
    let asked = gateway.raw["spec"]["addresses"].as_array().into_iter().flatten();
    let mut ips: Vec<IpAddr> = asked.filter_map(|a| a["value"].as_str()?.parse().ok()).collect();
    let asked = gateway.raw["spec"]["addresses"].as_array().into_iter().flatten();
    if ips.is_empty() || asked.into_iter().any(has_no_value) {
        ips.extend(annotation(&gateway.raw, ADDRESS_ANNOTATION).parse::<IpAddr>());
    }
    let ports: Vec<Value> =
        ports.iter().map(|p| json!({ "port": p["port"], "protocol": p["protocol"] })).collect();
    let ingress: Vec<Value> = ips
        .iter()
        .map(|ip| json!({ "ip": ip.to_string(), "ipMode": "Proxy", "ports": ports }))
        .collect();
    match ingress.is_empty() {
        true => json!({ "loadBalancer": {} }),
        false => json!({ "loadBalancer": { "ingress": ingress } }),
    }
}

/// Each port of the listeners once for bytes and once for datagrams, under the name of the first
/// that has it where a Service's port can be called that.
fn service_ports(gateway: &Object, sets: &[&Object]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    let all = listeners(gateway).chain(sets.iter().copied().flat_map(listeners));
    for (name, port, protocol) in all {
        let transport = transport(protocol);
        if !seen.insert((port, transport)) {
            continue;
        }
        let own = name.filter(|name| is_port_name(name) && !names.contains(*name));
        let name = own.map_or_else(|| unnamed(port, transport, &names), str::to_owned);
        names.insert(name.clone());
        let mut one = json!({
            "name": name, "port": port, "targetPort": port, "protocol": transport,
        });
        // What is spoken is said, so that nobody has to guess.
        match protocol {
            "HTTP" => one["appProtocol"] = json!("http"),
            "HTTPS" | "TLS" => one["appProtocol"] = json!("https"),
            "TCP" => one["appProtocol"] = json!("tcp"),
            _ => {}
        }
        out.push(one);
    }
    out
}

/// The protocol of a Service's port behind which a listener is.
fn transport(protocol: &str) -> &'static str {
    if protocol == "UDP" { "UDP" } else { "TCP" }
}

/// A name for a port whose listener's cannot be had; somebody's listener may be called that too.
fn unnamed(port: u64, transport: &str, names: &BTreeSet<String>) -> String {
    let plain = match transport {
        "UDP" => format!("port-{port}-udp"),
        _ => format!("port-{port}"),
    };
    let more = (2..).map(|n| format!("{plain}-{n}"));
    let mut all = std::iter::once(plain.clone()).chain(more);
    all.find(|name| !names.contains(name)).unwrap_or(plain)
}

/// Whether a Service's port may have a name: a DNS label.
fn is_port_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| plain(b) || b == b'-')
        && name.bytes().next().is_some_and(plain)
        && name.bytes().last().is_some_and(plain)
}

/// What is common to all that a Gateway causes, with what its `infrastructure` asks for.
fn metadata(gateway: &Object, name: &str) -> Value {
    let infrastructure = &gateway.raw["spec"]["infrastructure"];
    let asked = |field: &str| match &infrastructure[field] {
        Value::Object(all) => Value::Object(all.clone()),
        _ => json!({}),
    };
    let (mut labels, annotations) = (asked("labels"), asked("annotations"));
    labels[NAME_LABEL] = json!(&*gateway.key.name);
    if let Some(class) = gateway.raw["spec"]["gatewayClassName"].as_str() {
        labels[CLASS_LABEL] = json!(class);
    }
    json!({
        "name": name,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": [controller_ref(gateway)],
    })
}

fn pod(gateway: &Object, account: &str) -> Value {
    let hash = hash_of(&owner(gateway.key.kind, &gateway.raw));
    let mut meta = metadata(gateway, "");
    fields(&mut meta).remove("name");
    meta["generateName"] = json!(format!("{account}-{hash}-"));
    meta["annotations"][PROXY_ANNOTATION] = json!("gateway");
    meta["annotations"][GATEWAY_ANNOTATION] = json!(&*gateway.key.name);
    meta["annotations"][GATEWAY_KIND_ANNOTATION] = json!(format!("{:?}", gateway.key.kind));
    json!({
        "metadata": meta,
        "spec": {
            "serviceAccountName": account,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [{
                "name": "weft-proxy",
                "image": "weft",
                "ports": container_ports(gateway),
            }],
        },
        "status": { "phase": "Pending" },
    })
}

/// Name, port and protocol of each listener.
fn listeners(gateway: &Object) -> impl Iterator<Item = (Option<&str>, u64, &str)> {
    let istio = gateway.key.kind == KindId::IstioGateway;
    let list = if istio { "servers" } else { "listeners" };
    let all = gateway.raw["spec"][list].as_array().into_iter().flatten();
    all.filter_map(move |l| {
        let at = if istio { &l["port"] } else { l };
        let port = if istio { &at["number"] } else { &at["port"] };
        let port = port.as_u64().filter(|p| (1..=65_535).contains(p))?;
        Some((at["name"].as_str(), port, at["protocol"].as_str().unwrap_or("")))
    })
}

/// The ListenerSets that a Gateway takes.
fn sets<'w>(world: &'w World, gateway: &Object) -> Vec<&'w Object> {
    let View::Gateway(view) = &gateway.view else { return Vec::new() };
    let (own, name) = (&gateway.key.namespace, &gateway.key.name);
    let allowed = &view.spec.allowed_listeners.namespaces;
    let at = pair(own, name);
    let found = world.index(Index::ListenerSetsByGateway, &at).map(|o| &**o);
    let taken = |set: &&Object| {
        let ns = &set.key.namespace;
        allowed.takes("None", own, ns, || {
            Some(world.get(KindId::Namespace, "", ns)?.meta.labels.clone())
        })
    };
    let mut out: Vec<&Object> = found.filter(taken).collect();
    out.sort_by_key(|set| (set.meta.created_ms(), pair(&set.key.namespace, &set.key.name)));
    out
}

/// Each port once, for `kubectl get` and for the agent's messages; the mesh model decides.
fn container_ports(gateway: &Object) -> Value {
    let all = listeners(gateway).map(|(_, port, protocol)| (port, transport(protocol)));
    let ports: BTreeSet<(u64, &str)> = all.collect();
    ports.into_iter().map(|(p, t)| json!({ "containerPort": p, "protocol": t })).collect()
}
