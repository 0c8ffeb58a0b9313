// SPDX-License-Identifier: Apache-2.0
//! What the server adds to an object in the very transaction that writes it: addresses of
//! Services, Gateways and pods, and the ports at which sidecars offer Services to programs that
//! know no proxy. Each is a setting of its own, compared in that transaction, so no two objects
//! can hold one address whoever writes at the same time.
//!
//! Settings: `/s/addresses/<ip>` and `/s/upstream-ports/<port>`, both naming their owner. Pure.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use weft_base::issue::{FieldPath, Issues};
use weft_base::name::fnv1a;
use weft_kinds::kind::KindId;
use weft_kinds::world::World;
use weft_store::{Compare, Op};

use super::ObjectError;
use super::meta::{metadata_mut, text};

/// On Services: `{"<service port>": <upstream port>}`, JSON.
pub const UPSTREAM_PORTS_ANNOTATION: &str = "weft.dev/upstream-ports";
/// On Gateways without `spec.addresses`: the address weft gave.
pub const ADDRESS_ANNOTATION: &str = "weft.dev/address";
/// Says that a GatewayClass is weft's.
pub const GATEWAY_CONTROLLER: &str = "weft.dev/gateway";

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug)]
struct Range {
    base: Ipv4Addr,
    prefix: u32,
}

const PODS: Range = Range { base: Ipv4Addr::new(127, 64, 0, 0), prefix: 11 };
const SERVICES: Range = Range { base: Ipv4Addr::new(127, 96, 0, 0), prefix: 12 };
const GATEWAYS: Range = Range { base: Ipv4Addr::new(127, 128, 0, 0), prefix: 10 };
/// Below the range that systems use for outgoing connections.
const UPSTREAM_PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Places looked at before a range counts as full.
const PROBES: u32 = 4096;

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
            service_address(world, old, new, &mut extra)?;
            upstream_ports(world, old, new, &mut extra)?;
        }
        KindId::Gateway | KindId::IstioGateway => gateway_address(world, kind, new, &mut extra)?,
        KindId::Namespace => namespace(new),
        KindId::Pod if old.is_none() => service_account(new),
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

/// What goes when an object goes.
pub fn release(world: &World, kind: KindId, old: &Value) -> Extra {
    let owner = owner(kind, old);
    let held = |name: &str| world.setting(name).is_some_and(|s| s["owner"] == *owner);
    let mut extra = Extra::default();
    let mut free = |name: String| {
        if held(&name) {
            extra.ops.push(Op::delete(format!("/s/{name}")));
        }
    };
    match kind {
        KindId::Service => {
            let ip = old["spec"]["clusterIP"].as_str().unwrap_or("");
            free(format!("addresses/{ip}"));
            for (_, port) in noted_ports(old) {
                free(format!("upstream-ports/{port}"));
            }
        }
        KindId::Gateway | KindId::IstioGateway => {
            free(format!("addresses/{}", annotation(old, ADDRESS_ANNOTATION)));
        }
        KindId::Pod => {
            let ip = old["status"]["podIP"].as_str().unwrap_or("");
            free(format!("addresses/{ip}"));
        }
        _ => {}
    }
    extra
}

/// An address for a pod, with what must be written to hold it.
pub fn pod_address(world: &World, pod: &Value) -> Result<(Ipv4Addr, Extra), ObjectError> {
    let mut extra = Extra::default();
    let ip = address(world, KindId::Pod, pod, PODS, &mut extra)?;
    Ok((ip, extra))
}

fn service_address(
    world: &World,
    old: Option<&Value>,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let kind = new["spec"]["type"].as_str().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return Ok(());
    }
    let given = new["spec"]["clusterIP"].as_str().unwrap_or("").to_owned();
    let before = old.and_then(|o| o["spec"]["clusterIP"].as_str()).unwrap_or("");
    let ip = match (&*given, before) {
        ("None", "" | "None") => "None".to_owned(),
        ("", "" | "None") => address(world, KindId::Service, new, SERVICES, extra)?.to_string(),
        ("", before) => before.to_owned(),
        (given, before) if given == before => given.to_owned(),
        (given, before) if !before.is_empty() => {
            let why = format!("invalid value: {given:?}: field is immutable, it is {before}");
            return Err(refuse(KindId::Service, new, why));
        }
        (given, _) => {
            claim(world, KindId::Service, new, given, extra)?;
            given.to_owned()
        }
    };
    new["spec"]["clusterIP"] = json!(ip);
    new["spec"]["clusterIPs"] = json!([ip]);
    Ok(())
}

/// A service address that a user chose.
fn claim(
    world: &World,
    kind: KindId,
    object: &Value,
    given: &str,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let refuse = |why: String| refuse(kind, object, why);
    let ip: Option<Ipv4Addr> = given.parse().ok();
    let Some(ip) = ip.filter(|ip| SERVICES.contains(*ip)) else {
        return Err(refuse(format!(
            "invalid value: {given:?}: the provided IP is not in the valid range, which is \
             127.96.0.0/12; leave the field out to be given an address"
        )));
    };
    let owner = owner(kind, object);
    match world.setting(&format!("addresses/{ip}")) {
        Some(held) if held["owner"] == *owner => {
            keep(&format!("/s/addresses/{ip}"), extra);
            Ok(())
        }
        Some(held) => {
            let by = held["owner"].as_str().unwrap_or("another object");
            Err(refuse(format!(
                "invalid value: {given:?}: provided IP is already allocated to {by}"
            )))
        }
        None => {
            hold(&format!("/s/addresses/{ip}"), &owner, extra);
            Ok(())
        }
    }
}

fn refuse(kind: KindId, object: &Value, why: String) -> ObjectError {
    let mut issues = Issues::default();
    issues.error(FieldPath::new("spec.clusterIP"), why);
    ObjectError::Invalid { kind, name: text(object, "name").to_owned(), issues }
}

fn gateway_address(
    world: &World,
    kind: KindId,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let chosen = new["spec"]["addresses"].as_array().is_some_and(|a| !a.is_empty());
    if chosen || !annotation(new, ADDRESS_ANNOTATION).is_empty() || !is_ours(world, kind, new) {
        return Ok(());
    }
    let ip = address(world, kind, new, GATEWAYS, extra)?;
    annotate(new, ADDRESS_ANNOTATION, ip.to_string());
    Ok(())
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
                keep(&format!("/s/upstream-ports/{at}"), extra);
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
                keep(&format!("/s/upstream-ports/{at}"), extra);
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

/// An address of a range for an object: the one it has, or the first free one from a place that
/// its name chooses, so that the same objects get the same addresses every time.
fn address(
    world: &World,
    kind: KindId,
    object: &Value,
    range: Range,
    extra: &mut Extra,
) -> Result<Ipv4Addr, ObjectError> {
    let owner = owner(kind, object);
    let start = fnv1a(owner.as_bytes());
    for probe in 0..PROBES {
        let Some(ip) = range.nth(start.wrapping_add(u64::from(probe))) else { continue };
        match world.setting(&format!("addresses/{ip}")) {
            Some(held) if held["owner"] == *owner => {
                keep(&format!("/s/addresses/{ip}"), extra);
                return Ok(ip);
            }
            Some(_) => {}
            None => {
                hold(&format!("/s/addresses/{ip}"), &owner, extra);
                return Ok(ip);
            }
        }
    }
    Err(full("addresses"))
}

fn hold(key: &str, owner: &str, extra: &mut Extra) {
    extra.compares.push(Compare::Absent(key.into()));
    extra.ops.push(Op::put(key, json!({ "owner": owner }).to_string()));
}

/// Already ours, unless its release is still on its way into the World.
fn keep(key: &str, extra: &mut Extra) {
    extra.compares.push(Compare::Exists(key.into()));
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

pub fn annotate(object: &mut Value, name: &str, value: String) {
    let meta = metadata_mut(object);
    let all = meta.entry("annotations").or_insert_with(|| json!({}));
    if !all.is_object() {
        *all = json!({});
    }
    all[name] = json!(value);
}

/// The address ranges that weft gives out, for doors that must tell them from others.
pub fn is_given(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => [PODS, SERVICES, GATEWAYS].iter().any(|r| r.contains(ip)),
        IpAddr::V6(_) => false,
    }
}

// === impl Range ===

impl Range {
    /// The n-th place, wrapping around; `None` for those that look like networks or broadcasts.
    fn nth(self, n: u64) -> Option<Ipv4Addr> {
        let size = 1u64 << (32 - self.prefix);
        let offset = u32::try_from(n % size).ok()?;
        let ip = Ipv4Addr::from(u32::from(self.base) + offset);
        let [.., last] = ip.octets();
        (last != 0 && last != 255).then_some(ip)
    }

    fn contains(self, ip: Ipv4Addr) -> bool {
        let shift = 32 - self.prefix;
        u32::from(ip) >> shift == u32::from(self.base) >> shift
    }
}
