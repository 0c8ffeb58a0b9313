// SPDX-License-Identifier: Apache-2.0
//! Where sidecars of machines are reached that others know by the machine's address only: a port
//! of that address for each pod. Part of admission, as `addresses.rs` is. Pure.
//!
//! Settings: `/s/mesh-ports/<node>/<port>`, naming the pod.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use weft_base::name::fnv1a;
use weft_kinds::kind::KindId;
use weft_kinds::world::{MESH_ADDRESS_ANNOTATION, World};
use weft_store::{Compare, Op};

use super::ObjectError;
use super::admit::{Extra, annotation, owner};

/// Below what systems use for outgoing connections, beside the upstream ports.
const PORTS: std::ops::Range<u16> = 30_000..32_500;

/// A place for a pod at a machine's address; what holds it is added to `extra`.
///
/// # Errors
/// When all ports of the machine are taken.
pub fn give(
    world: &World,
    pod: &Value,
    node: &str,
    machine: IpAddr,
    extra: &mut Extra,
) -> Result<SocketAddr, ObjectError> {
    let owner = owner(KindId::Pod, pod);
    let span = u64::from(PORTS.end - PORTS.start);
    let start = fnv1a(owner.as_bytes());
    for probe in 0..span {
        let offset = u16::try_from(start.wrapping_add(probe) % span).unwrap_or(0);
        let port = PORTS.start + offset;
        let name = setting(node, port);
        let key = format!("/s/{name}");
        match world.setting(&name) {
            Some(held) if held["owner"] == *owner => {
                extra.compares.push(Compare::Exists(key.into()));
            }
            Some(_) => continue,
            None => {
                extra.compares.push(Compare::Absent(key.as_str().into()));
                extra.ops.push(Op::put(key, json!({ "owner": owner }).to_string()));
            }
        }
        return Ok(SocketAddr::new(machine, port));
    }
    Err(ObjectError::Busy(format!("no mesh ports of node {node} are free")))
}

/// The pod goes, and its port is another's.
pub fn release(world: &World, pod: &Value, extra: &mut Extra) {
    let given = annotation(pod, MESH_ADDRESS_ANNOTATION).parse::<SocketAddr>();
    let Ok(given) = given else { return };
    let name = setting(pod["spec"]["nodeName"].as_str().unwrap_or(""), given.port());
    let owner = owner(KindId::Pod, pod);
    if world.setting(&name).is_some_and(|s| s["owner"] == *owner) {
        extra.ops.push(Op::delete(format!("/s/{name}")));
    }
}

fn setting(node: &str, port: u16) -> String {
    format!("mesh-ports/{node}/{port}")
}
