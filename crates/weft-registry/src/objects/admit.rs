// SPDX-License-Identifier: Apache-2.0
//! What the server adds to an object in the very transaction that writes it: addresses of
//! Services, Gateways and pods (`addresses.rs`), and the ports at which sidecars offer Services to
//! programs that know no proxy. Each is a setting of its own, compared in that transaction, so no
//! two objects can hold one address whoever writes at the same time.
//!
//! Settings: `/s/addresses/<ip>` and `/s/upstream-ports/<port>`, both naming their owner. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use weft_base::name::fnv1a;
use weft_kinds::kind::KindId;
use weft_kinds::world::{HOST_ADDRESS_ANNOTATION, OWNER_ANNOTATION, World};
use weft_store::{Compare, Op};

use super::meta::{metadata_mut, text};
use super::{ObjectError, addresses};

/// On Services: `{"<service port>": <upstream port>}`, JSON.
pub const UPSTREAM_PORTS_ANNOTATION: &str = "weft.dev/upstream-ports";
/// On Gateways without `spec.addresses` and on Services of type LoadBalancer: the address weft
/// gave.
pub const ADDRESS_ANNOTATION: &str = "weft.dev/address";
/// Says that a GatewayClass is weft's.
pub const GATEWAY_CONTROLLER: &str = "weft.dev/gateway";

/// Below the range that systems use for outgoing connections.
const UPSTREAM_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Writes and conditions that go with an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// Completes an object that is about to be written; `old` is what it replaces.
pub fn complete(
    world: &World,
    kind: KindId,
    old: Option<&Value>,
    new: &mut Value,
) -> Result<Extra, ObjectError> {
    let mut extra = Extra::default();
    match kind {
        KindId::Service => {
            addresses::service(world, old, new, &mut extra)?;
            balancer_address(world, old, new, &mut extra)?;
            upstream_ports(world, old, new, &mut extra)?;
        }
        KindId::Gateway | KindId::IstioGateway => {
            gateway_address(world, kind, old, new, &mut extra)?;
        }
        KindId::Namespace => namespace(new),
        KindId::Pod if old.is_none() => service_account(new),
        KindId::Job if old.is_none() => job_selector(new),
        _ => {}
    }
    Ok(extra)
}

/// What Kubernetes gives every namespace.
fn namespace(new: &mut Value) {
    let name = json!(text(new, "name"));
    let meta = metadata_mut(new);
    let labels = meta.entry("labels").or_insert_with(|| json!({}));
    if labels.is_object() {
        labels["kubernetes.io/metadata.name"] = name;
    }
    if new["spec"]["finalizers"].is_null() {
        new["spec"] = json!({ "finalizers": ["kubernetes"] });
    }
    if new["status"]["phase"].is_null() {
        new["status"] = json!({ "phase": "Active" });
    }
}

/// Every pod has an identity.
fn service_account(new: &mut Value) {
    if new["spec"]["serviceAccountName"].as_str().unwrap_or("").is_empty() {
        new["spec"]["serviceAccountName"] = json!("default");
    }
    new["spec"]["serviceAccount"] = new["spec"]["serviceAccountName"].clone();
}

/// A Job's pods are told apart by its uid, unless its writer chose how.
fn job_selector(new: &mut Value) {
    if new["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (text(new, "uid").to_owned(), text(new, "name").to_owned());
    let meta = metadata_mut(&mut new["spec"]["template"]);
    let own = meta.entry("labels").or_insert_with(|| json!({}));
    if !own.is_object() {
        *own = json!({});
    }
    for prefix in ["", "batch.kubernetes.io/"] {
        own[format!("{prefix}controller-uid")] = json!(uid);
        own[format!("{prefix}job-name")] = json!(name);
    }
    new["spec"]["selector"] =
        json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
}

/// What goes when an object goes.
pub fn release(world: &World, kind: KindId, old: &Value) -> Extra {
    let mut extra = Extra::default();
    let mut free = |ip: &str| {
        if let Ok(ip) = ip.parse::<Ipv4Addr>() {
            addresses::free(world, kind, old, ip, &mut extra);
        }
    };
    match kind {
        KindId::Service => {
            addresses::release(world, old, &mut extra);
            balancer_release(world, old, &mut extra);
            let owner = owner(kind, old);
            for (_, port) in noted_ports(old) {
                let name = format!("upstream-ports/{port}");
                if world.setting(&name).is_some_and(|s| s["owner"] == *owner) {
                    extra.ops.push(Op::delete(format!("/s/{name}")));
                }
            }
        }
        KindId::Gateway | KindId::IstioGateway => {
            for ip in gateway_places(old) {
                addresses::free(world, kind, old, ip, &mut extra);
            }
        }
        KindId::Pod => {
            free(old["status"]["podIP"].as_str().unwrap_or(""));
            free(annotation(old, HOST_ADDRESS_ANNOTATION));
            super::mesh_ports::release(world, old, &mut extra);
        }
        _ => {}
    }
    extra
}

/// Holds the addresses of weft's ranges that a Gateway asks for, and gives it one where it asks for
/// none. An annotation that names what is not this Gateway's counts for nothing.
fn gateway_address(
    world: &World,
    kind: KindId,
    old: Option<&Value>,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let owner = owner(kind, new);
    let mut held = BTreeSet::new();
    for ip in asked_places(new) {
        addresses::take(world, &owner, ip, extra).map_err(|by| {
            let why = format!("invalid value: {ip} is the address of {by}; choose another one");
            addresses::refuse(kind, new, "spec.addresses", why)
        })?;
        held.insert(ip);
    }
    let noted = noted_place(new);
    let ours = |ip: Ipv4Addr| {
        world.setting(&format!("addresses/{ip}")).is_some_and(|s| s["owner"] == *owner)
    };
    if noted.is_some_and(|ip| !held.contains(&ip) && !ours(ip)) {
        unannotate(new, ADDRESS_ANNOTATION);
    }
    let asked = new["spec"]["addresses"].as_array();
    let chosen = asked.is_some_and(|all| !all.is_empty() && !all.iter().any(has_no_value));
    if !chosen && annotation(new, ADDRESS_ANNOTATION).is_empty() && is_ours(world, kind, new) {
        let ip = addresses::allocate(world, kind, new, addresses::GATEWAYS, extra)?;
        annotate(new, ADDRESS_ANNOTATION, ip.to_string());
    } else if let Some(ip) = noted_place(new)
        && held.insert(ip)
    {
        addresses::keep(&format!("/s/addresses/{ip}"), extra);
    }
    held.extend(noted_place(new));
    for ip in old.map(gateway_places).unwrap_or_default().difference(&held) {
        addresses::free(world, kind, new, *ip, extra);
    }
    Ok(())
}

/// The places of weft's ranges that a Gateway asks for.
fn asked_places(gateway: &Value) -> BTreeSet<Ipv4Addr> {
    let asked = gateway["spec"]["addresses"].as_array().into_iter().flatten();
    asked.filter_map(|a| addresses::place(a["value"].as_str()?.parse().ok()?)).collect()
}

/// The place of weft's ranges that an object is noted to have.
fn noted_place(object: &Value) -> Option<Ipv4Addr> {
    addresses::place(annotation(object, ADDRESS_ANNOTATION).parse().ok()?)
}

/// All that a Gateway may hold.
fn gateway_places(gateway: &Value) -> BTreeSet<Ipv4Addr> {
    asked_places(gateway).into_iter().chain(noted_place(gateway)).collect()
}

/// Whether an address that a Gateway asks for is weft's to choose.
pub fn has_no_value(address: &Value) -> bool {
    address["value"].as_str().unwrap_or("").is_empty()
}

/// Whether weft passes connections on to a Service from the host's side: it is of type
/// LoadBalancer, of no other class, and nobody's but its user's.
pub fn is_balanced(service: &Value) -> bool {
    let spec = &service["spec"];
    let class = spec["loadBalancerClass"].as_str().unwrap_or(GATEWAY_CONTROLLER);
    let owners = service["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let owned = owners.into_iter().any(|o| o["controller"] == true);
    let mirror = annotation(service, OWNER_ANNOTATION);
    spec["type"] == "LoadBalancer" && class == GATEWAY_CONTROLLER && !owned && mirror.is_empty()
}

/// The address that the Service's user chose, else one of weft's.
fn balancer_address(
    world: &World,
    old: Option<&Value>,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    if !is_balanced(new) {
        if old.is_some_and(is_balanced) {
            balancer_release(world, old.unwrap_or(&Value::Null), extra);
            unannotate(new, ADDRESS_ANNOTATION);
        }
        return Ok(());
    }
    let chosen = new["spec"]["loadBalancerIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
    let ip = match chosen {
        Some(chosen) => chosen,
        None if !annotation(new, ADDRESS_ANNOTATION).is_empty() => return Ok(()),
        None => {
            addresses::allocate(world, KindId::Service, new, addresses::GATEWAYS, extra)?.into()
        }
    };
    annotate(new, ADDRESS_ANNOTATION, ip.to_string());
    Ok(())
}

fn balancer_release(world: &World, old: &Value, extra: &mut Extra) {
    if let Ok(ip) = annotation(old, ADDRESS_ANNOTATION).parse::<Ipv4Addr>() {
        addresses::free(world, KindId::Service, old, ip, extra);
    }
}

/// Whether weft serves a Gateway: its class names weft's controller.
pub fn is_ours(world: &World, kind: KindId, gateway: &Value) -> bool {
    if kind == KindId::IstioGateway {
        return true;
    }
    let class = gateway["spec"]["gatewayClassName"].as_str().unwrap_or("");
    let class = world.get(KindId::GatewayClass, "", class);
    class.is_some_and(|c| c.raw["spec"]["controllerName"] == GATEWAY_CONTROLLER)
}

fn upstream_ports(
    world: &World,
    old: Option<&Value>,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let owner = owner(KindId::Service, new);
    let ports: Vec<u16> = new["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|p| p["protocol"].as_str().unwrap_or("TCP") == "TCP")
        .filter_map(|p| p["port"].as_u64()?.try_into().ok())
        .collect();
    // What was noted before counts, whatever the writer made of the annotation.
    let known = old.map(noted_ports).unwrap_or_default();
    let mut taken: Vec<u16> = Vec::new();
    let mut out = serde_json::Map::new();
    for port in ports {
        let held = |at: u16| {
            let setting = world.setting(&format!("upstream-ports/{at}"));
            setting.is_some_and(|s| s["owner"] == *owner && s["port"] == port)
        };
        let kept = known.iter().find(|(p, at)| *p == port && held(*at)).map(|(_, at)| *at);
        let at = match kept {
            Some(at) => {
                addresses::keep(&format!("/s/upstream-ports/{at}"), extra);
                at
            }
            None => upstream_port(world, &owner, port, &taken, extra)?,
        };
        taken.push(at);
        out.insert(port.to_string(), json!(at));
    }
    for (_, at) in known {
        let setting = format!("upstream-ports/{at}");
        let ours = world.setting(&setting).is_some_and(|s| s["owner"] == *owner);
        if ours && !taken.contains(&at) {
            extra.ops.push(Op::delete(format!("/s/{setting}")));
        }
    }
    if !out.is_empty() {
        annotate(new, UPSTREAM_PORTS_ANNOTATION, Value::Object(out).to_string());
    }
    Ok(())
}

fn upstream_port(
    world: &World,
    owner: &str,
    port: u16,
    taken: &[u16],
    extra: &mut Extra,
) -> Result<u16, ObjectError> {
    let span = u64::from(UPSTREAM_PORTS.end - UPSTREAM_PORTS.start);
    let start = fnv1a(format!("{owner}:{port}").as_bytes());
    for probe in 0..span {
        let offset = u16::try_from(start.wrapping_add(probe) % span).unwrap_or(0);
        let at = UPSTREAM_PORTS.start + offset;
        if taken.contains(&at) {
            continue;
        }
        let setting = world.setting(&format!("upstream-ports/{at}"));
        match setting {
            Some(s) if s["owner"] == owner && s["port"] == port => {
                addresses::keep(&format!("/s/upstream-ports/{at}"), extra);
                return Ok(at);
            }
            Some(_) => {}
            None => {
                let key = format!("/s/upstream-ports/{at}");
                let value = json!({ "owner": owner, "port": port }).to_string();
                extra.compares.push(Compare::Absent(key.as_str().into()));
                extra.ops.push(Op::put(key, value));
                return Ok(at);
            }
        }
    }
    Err(full("upstream ports"))
}

fn full(what: &str) -> ObjectError {
    ObjectError::Busy(format!("no {what} are free; delete objects that are not needed"))
}

/// `Service shop/user`: who holds a setting.
pub fn owner(kind: KindId, object: &Value) -> String {
    format!("{kind} {}/{}", text(object, "namespace"), text(object, "name"))
}

fn noted_ports(object: &Value) -> Vec<(u16, u16)> {
    let noted = serde_json::from_str::<Value>(annotation(object, UPSTREAM_PORTS_ANNOTATION));
    let noted = noted.ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
    let pair = |(k, v): (String, Value)| Some((k.parse().ok()?, v.as_u64()?.try_into().ok()?));
    noted.into_iter().filter_map(pair).collect()
}

pub fn annotation<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"]["annotations"][name].as_str().unwrap_or("")
}

fn unannotate(object: &mut Value, name: &str) {
    if let Some(all) = object["metadata"]["annotations"].as_object_mut() {
        all.remove(name);
    }
}

pub fn annotate(object: &mut Value, name: &str, value: String) {
    let meta = metadata_mut(object);
    let all = meta.entry("annotations").or_insert_with(|| json!({}));
    if !all.is_object() {
        *all = json!({});
    }
    all[name] = json!(value);
}
