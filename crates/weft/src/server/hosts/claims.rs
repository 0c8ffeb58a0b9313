// SPDX-License-Identifier: Apache-2.0
//! What a host says of itself: within limits, and at no address that is not its own.
//!
//! Called by the door for agents with every heartbeat, once it knows who is calling.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use weft_kinds::kind::KindId;
use weft_registry::NodeInfo;
use weft_registry::hosts::HostInfo;
use weft_xds::agent::{Host, Refusal};
use weft_xds::server::Peer;

use super::{Caller, HostDoor, TEXT_BYTES_MAX};

/// Pods that a host may say it takes.
const PODS_MAX: u32 = 1_000;
/// Labels that a host may give itself.
const LABELS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 16;

impl HostDoor {
    /// A host's addresses are where the mesh goes for its pods: not the server's own loopback,
    /// unless it is the same machine, and none of a machine that is there.
    pub(super) fn may_claim(
        &self,
        caller: &Caller,
        peer: &Peer,
        all: &[IpAddr],
    ) -> Result<(), Refusal> {
        let invalid = |ip, why: &str| {
            let next = "name another with --address";
            Err(Refusal::Invalid(format!(
                "{ip} is no address for host {}: {why}; {next}",
                caller.name
            )))
        };
        let here = peer.address.is_none_or(|from| from.ip().to_canonical().is_loopback());
        let world = self.registry.now();
        for ip in all {
            if ip.is_loopback() {
                match here {
                    true => continue,
                    false => return invalid(ip, "it is another one on each machine"),
                }
            }
            let mut others =
                world.objects(KindId::Node, None).filter(|n| *n.key.name != *caller.name);
            if let Some(other) = others.find(|n| has_address(&n.raw, *ip)) {
                return invalid(ip, &format!("it is node {}'s", other.key.name));
            }
        }
        Ok(())
    }
}

/// What a host says of itself, within limits and under the name that it proved. Each address is
/// there once, in its shortest form: an IPv4 address in the clothes of an IPv6 one is judged as
/// what the kernel takes it for.
pub(super) fn described(name: &str, host: Host) -> Result<HostInfo, Refusal> {
    let texts = [&host.version, &host.boot_id, &host.instance, &host.kernel];
    let labels = host.labels.iter().flat_map(|(k, v)| [k, v]);
    let long = texts.into_iter().chain(labels).any(|text| text.len() > TEXT_BYTES_MAX);
    let many = host.labels.len() > LABELS_MAX || host.addresses.len() > ADDRESSES_MAX;
    if long || many {
        return Err(Refusal::Invalid("the host describes itself at too great length".into()));
    }
    // Labels of weft's and Kubernetes' own decide about more than the host itself.
    if let Some(label) = host.labels.keys().find(|k| is_reserved(k)) {
        return Err(Refusal::Invalid(format!("the label {label} is not for hosts to choose")));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in host.addresses.iter().map(IpAddr::to_canonical).filter(is_one_machine) {
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    let Some(address) = addresses.first().copied() else {
        return Err(Refusal::Invalid("the host has no address; name one with --address".into()));
    };
    Ok(HostInfo {
        node: NodeInfo {
            name: name.to_owned(),
            address,
            version: host.version,
            kernel: host.kernel,
            cpus: usize::try_from(host.cpus).unwrap_or(1),
            memory_bytes: host.memory_bytes,
            pods_max: usize::try_from(host.pods_max.min(PODS_MAX)).unwrap_or(0),
        },
        addresses,
        labels: host.labels,
        boot_id: host.boot_id,
        instance: host.instance,
    })
}

fn is_one_machine(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && *ip != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Whether a node that is ready has an address.
fn has_address(node: &Value, ip: IpAddr) -> bool {
    let list = |field: &str| node["status"][field].as_array().into_iter().flatten();
    let is_it = |address: &Value| {
        let known = address["address"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        address["type"] == "InternalIP" && known.is_some_and(|known| known.to_canonical() == ip)
    };
    list("conditions").any(|c| c["type"] == "Ready" && c["status"] == "True")
        && list("addresses").any(is_it)
}

pub(super) fn is_reserved(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let of = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    let zones = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
    (of("kubernetes.io") || of("k8s.io") || of("weft.dev")) && !zones.contains(&label)
}
