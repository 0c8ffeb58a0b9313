// SPDX-License-Identifier: Apache-2.0
//! Addresses of pods, Services and Gateways: which ranges there are, who has which place, and
//! what a Service may ask for. Part of admission (`admit.rs`): every address is a setting
//! (`/s/addresses/<ip>`) written in the transaction that writes its owner. Pure.
//!
//! | mode | pods | Services |
//! |---|---|---|
//! | processes | 127.64.0.0/11 | 127.96.0.0/12 |
//! | namespaces | 10.244.0.0/16, fd00:7766::/64 | 10.96.0.0/16, fd00:7766:1::/112 |
//! | programs of a machine | the machine's own | |
//!
//! A captured pod has a place of 127.64.0.0/11 too: its address on the host's side. An
//! IPv6 address is made of the IPv4 address of the same owner, so only that one is allocated.
//! Gateways are reached from the host: 127.128.0.0/10 in both modes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::{Value, json};
use weft_base::issue::{FieldPath, Issues};
use weft_base::name::fnv1a;
use weft_base::pod_network::{PODS_V6, pod_v4, pod_v6};
use weft_kinds::kind::KindId;
use weft_kinds::world::{PodsMode, World};
use weft_store::{Compare, Op};

use super::ObjectError;
use super::admit::{Extra, owner};
use super::meta::text;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    base: Ipv4Addr,
    prefix: u32,
    /// Places at its start that are not given out.
    reserved: u32,
}

/// What a pod is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// The first is `status.podIP`.
    pub ips: Vec<IpAddr>,
    /// Its loopback address on the host's side, when that is another one.
    pub host: Option<Ipv4Addr>,
}

const PODS: Range = Range { base: Ipv4Addr::new(127, 64, 0, 0), prefix: 11, reserved: 0 };
const SERVICES: Range = Range { base: Ipv4Addr::new(127, 96, 0, 0), prefix: 12, reserved: 0 };
pub(super) const GATEWAYS: Range =
    Range { base: Ipv4Addr::new(127, 128, 0, 0), prefix: 10, reserved: 0 };
/// The first 256 belong to the network itself: its bridge, later its other machines.
const INSIDE_PODS: Range = Range { base: Ipv4Addr::new(10, 244, 0, 0), prefix: 16, reserved: 256 };
const INSIDE_SERVICES: Range =
    Range { base: Ipv4Addr::new(10, 96, 0, 0), prefix: 16, reserved: 256 };
/// fd00:7766:1::/112, then the place of the Service's IPv4 address in its range.
const INSIDE_SERVICES_V6: [u16; 7] = [0xfd00, 0x7766, 1, 0, 0, 0, 0];
/// Places looked at before a range counts as full.
const PROBES: u32 = 4096;

// === pods ===

/// Addresses for a pod of a node, with what must be written to hold them; `machine` is the
/// node's own address.
pub fn pod(
    world: &World,
    pod: &Value,
    mode: PodsMode,
    machine: Option<IpAddr>,
) -> Result<(PodAddresses, Extra), ObjectError> {
    let mut extra = Extra::default();
    let host = allocate(world, KindId::Pod, pod, PODS, &mut extra)?;
    let given = match mode {
        PodsMode::Process => PodAddresses { ips: vec![host.into()], host: None },
        PodsMode::Namespace => {
            let v4 = allocate(world, KindId::Pod, pod, INSIDE_PODS, &mut extra)?;
            PodAddresses { ips: vec![v4.into(), pod_v6(v4).into()], host: Some(host) }
        }
        PodsMode::Machine => {
            let why = "its machine has no address at which others reach it";
            let own = machine.ok_or_else(|| ObjectError::Busy(why.into()))?;
            PodAddresses { ips: vec![own], host: Some(host) }
        }
    };
    Ok((given, extra))
}

/// Whether an address is one that pods inside namespaces get.
pub fn is_inside_pod(ip: Ipv4Addr) -> bool {
    INSIDE_PODS.contains(ip)
}

// === Services ===

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Gives a Service its addresses: those it has, those it asks for, or new ones.
pub(super) fn service(
    world: &World,
    old: Option<&Value>,
    new: &mut Value,
    extra: &mut Extra,
) -> Result<(), ObjectError> {
    let mode = world.pods_mode();
    if new["spec"]["type"] == "ExternalName" {
        return Ok(());
    }
    let families = families(mode, old, new)?;
    let before = old.map(|o| cluster_ip(o).to_owned()).unwrap_or_default();
    let held = partner(mode, &before);
    if before != "None" && !before.is_empty() && held.is_none() {
        release(world, old.unwrap_or(&Value::Null), extra);
    }
    let given = cluster_ip(new).to_owned();
    let asks = !given.is_empty() && (given != before || before == "None");
    let v4 = match (asks, &*given, held) {
        (true, "None", None) => None,
        (true, given, Some(held)) if partner(mode, given) != Some(held) => {
            let why = format!("invalid value: {given:?}: field is immutable, it is {before}");
            return Err(refuse(KindId::Service, new, "spec.clusterIP", why));
        }
        (_, _, Some(held)) => Some(held),
        (true, given, None) => Some(claim(world, mode, new, given, extra)?),
        (false, _, None) => {
            Some(allocate(world, KindId::Service, new, service_range(mode), extra)?)
        }
    };
    let all: Vec<Value> = match v4 {
        None => vec![json!("None")],
        Some(v4) => families.iter().map(|f| json!(of_family(*f, v4).to_string())).collect(),
    };
    new["spec"]["clusterIP"] = all.first().cloned().unwrap_or_default();
    new["spec"]["clusterIPs"] = Value::Array(all);
    new["spec"]["ipFamilies"] = families.iter().map(|f| json!(f.word())).collect();
    Ok(())
}

fn cluster_ip(service: &Value) -> &str {
    service["spec"]["clusterIP"].as_str().unwrap_or("")
}

fn service_range(mode: PodsMode) -> Range {
    match mode {
        PodsMode::Process | PodsMode::Machine => SERVICES,
        PodsMode::Namespace => INSIDE_SERVICES,
    }
}

fn of_family(family: Family, v4: Ipv4Addr) -> IpAddr {
    let [.., c, d] = v4.octets();
    let [s0, s1, s2, s3, s4, s5, s6] = INSIDE_SERVICES_V6;
    match family {
        Family::V4 => v4.into(),
        Family::V6 => Ipv6Addr::new(s0, s1, s2, s3, s4, s5, s6, u16::from_be_bytes([c, d])).into(),
    }
}

/// The IPv4 address that a Service address stands for; `None` when it is not of this mode's
/// ranges.
fn partner(mode: PodsMode, text: &str) -> Option<Ipv4Addr> {
    let range = service_range(mode);
    let v4 = match (text.parse().ok()?, mode) {
        (IpAddr::V4(v4), _) => v4,
        (IpAddr::V6(_), PodsMode::Process | PodsMode::Machine) => return None,
        (IpAddr::V6(v6), PodsMode::Namespace) => {
            let (head, last) = (v6.segments(), v6.segments()[7]);
            if head[..7] != INSIDE_SERVICES_V6 {
                return None;
            }
            let [a, b, ..] = range.base.octets();
            let [c, d] = last.to_be_bytes();
            Ipv4Addr::new(a, b, c, d)
        }
    };
    range.contains(v4).then_some(v4)
}

/// Which families a Service has addresses of, the first being its own.
fn families(mode: PodsMode, old: Option<&Value>, new: &Value) -> Result<Vec<Family>, ObjectError> {
    let spec = &new["spec"];
    let listed = spec["ipFamilies"].as_array().into_iter().flatten();
    let mut out: Vec<Family> = listed.filter_map(|f| Family::read(f.as_str()?)).collect();
    out.dedup();
    let policy = spec["ipFamilyPolicy"].as_str().unwrap_or("");
    if out.is_empty() || (old.is_none() && out == [Family::V4] && asks_v6(spec)) {
        out = vec![if asks_v6(spec) { Family::V6 } else { Family::V4 }];
    }
    let unchanged = old.is_some_and(|o| o["spec"]["ipFamilies"] == spec["ipFamilies"]);
    if mode == PodsMode::Process {
        // What was there before pods ran as processes goes on with what there is.
        if unchanged || policy == "PreferDualStack" || out == [Family::V4] && policy != REQUIRE {
            return Ok(vec![Family::V4]);
        }
        let why = "pods run as processes of this machine, where Services have IPv4 addresses only; \
                   use PreferDualStack, or pods in namespaces (--pods=namespace)";
        return Err(refuse(KindId::Service, new, "spec.ipFamilies", why.into()));
    }
    match (policy, out.as_slice()) {
        ("PreferDualStack" | REQUIRE, [Family::V4]) => out.push(Family::V6),
        ("PreferDualStack" | REQUIRE, [Family::V6]) => out.push(Family::V4),
        ("SingleStack", [_, _]) if unchanged => out.truncate(1),
        ("SingleStack", [_, _]) => {
            let why = "may only hold one family when ipFamilyPolicy is SingleStack";
            return Err(refuse(KindId::Service, new, "spec.ipFamilies", why.into()));
        }
        _ => {}
    }
    Ok(out)
}

const REQUIRE: &str = "RequireDualStack";

fn asks_v6(spec: &Value) -> bool {
    spec["clusterIP"].as_str().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
}

/// A Service address that a user chose.
fn claim(
    world: &World,
    mode: PodsMode,
    object: &Value,
    given: &str,
    extra: &mut Extra,
) -> Result<Ipv4Addr, ObjectError> {
    let refuse = |why: String| refuse(KindId::Service, object, "spec.clusterIP", why);
    let Some(ip) = partner(mode, given) else {
        let range = match mode {
            PodsMode::Process | PodsMode::Machine => "127.96.0.0/12",
            PodsMode::Namespace => "10.96.0.0/16 (fd00:7766:1::/112)",
        };
        return Err(refuse(format!(
            "invalid value: {given:?}: the provided IP is not in the valid range, which is \
             {range}; leave the field out to be given an address"
        )));
    };
    take(world, &owner(KindId::Service, object), ip, extra).map_err(|by| {
        refuse(format!("invalid value: {given:?}: provided IP is already allocated to {by}"))
    })?;
    Ok(ip)
}

/// The place that an address of weft's ranges stands for.
pub(super) fn place(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip.to_canonical() {
        ip if !is_given(ip) => None,
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => pod_v4(v6).or_else(|| partner(PodsMode::Namespace, &v6.to_string())),
    }
}

/// Holds one place for an owner, or says who has it.
pub(super) fn take(
    world: &World,
    owner: &str,
    ip: Ipv4Addr,
    extra: &mut Extra,
) -> Result<(), String> {
    let name = format!("addresses/{ip}");
    match world.setting(&name) {
        Some(held) if held["owner"] == *owner => keep(&format!("/s/{name}"), extra),
        Some(held) => return Err(held["owner"].as_str().unwrap_or("another object").to_owned()),
        None => hold(&format!("/s/{name}"), owner, extra),
    }
    Ok(())
}

pub(super) fn refuse(
    kind: KindId,
    object: &Value,
    field: &'static str,
    why: String,
) -> ObjectError {
    let mut issues = Issues::default();
    issues.error(FieldPath::new(field), why);
    ObjectError::Invalid { kind, name: text(object, "name").to_owned(), issues }
}

// === holding and letting go ===

/// An address of a range for an object: the one it has, or the first free one from a place that
/// its name chooses, so that the same objects get the same addresses every time.
pub(super) fn allocate(
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
    let why = "no addresses are free; delete objects that are not needed";
    Err(ObjectError::Busy(why.into()))
}

fn hold(key: &str, owner: &str, extra: &mut Extra) {
    extra.compares.push(Compare::Absent(key.into()));
    extra.ops.push(Op::put(key, json!({ "owner": owner }).to_string()));
}

/// Already ours, unless its release is still on its way into the World.
pub(super) fn keep(key: &str, extra: &mut Extra) {
    extra.compares.push(Compare::Exists(key.into()));
}

/// Lets go of what a Service holds, whichever mode gave it.
pub(super) fn release(world: &World, service: &Value, extra: &mut Extra) {
    for mode in [PodsMode::Process, PodsMode::Namespace] {
        if let Some(ip) = partner(mode, cluster_ip(service)) {
            free(world, KindId::Service, service, ip, extra);
        }
    }
}

/// Lets go of one address when the object holds it.
pub(super) fn free(world: &World, kind: KindId, object: &Value, ip: Ipv4Addr, extra: &mut Extra) {
    let name = format!("addresses/{ip}");
    if world.setting(&name).is_some_and(|s| s["owner"] == *owner(kind, object)) {
        extra.ops.push(Op::delete(format!("/s/{name}")));
    }
}

/// Who holds an address that weft gave: `Service shop/user`, `Pod shop/user-1`.
pub fn holder(world: &World, ip: IpAddr) -> Option<Arc<str>> {
    let v4 = match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => pod_v4(v6).or_else(|| partner(PodsMode::Namespace, &v6.to_string()))?,
    };
    world.setting(&format!("addresses/{v4}"))?["owner"].as_str().map(Into::into)
}

/// The address ranges that weft gives out, for doors that must tell them from others.
pub fn is_given(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            [PODS, SERVICES, GATEWAYS, INSIDE_PODS, INSIDE_SERVICES].iter().any(|r| r.contains(ip))
        }
        IpAddr::V6(ip) => {
            let segments = ip.segments();
            segments[..6] == PODS_V6 || segments[..7] == INSIDE_SERVICES_V6
        }
    }
}

// === impl Family ===

impl Family {
    fn read(word: &str) -> Option<Self> {
        match word {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

// === impl Range ===

impl Range {
    /// The n-th place, wrapping around; `None` for those that look like networks or broadcasts.
    fn nth(self, n: u64) -> Option<Ipv4Addr> {
        let size = (1u64 << (32 - self.prefix)) - u64::from(self.reserved);
        let offset = u32::try_from(n % size).ok()? + self.reserved;
        let ip = Ipv4Addr::from(u32::from(self.base) + offset);
        let [.., last] = ip.octets();
        (last != 0 && last != 255).then_some(ip)
    }

    fn contains(self, ip: Ipv4Addr) -> bool {
        let shift = 32 - self.prefix;
        u32::from(ip) >> shift == u32::from(self.base) >> shift
    }
}
