// SPDX-License-Identifier: Apache-2.0
//! The endpoints of a cluster: where they are, in which order or with which weights their places
//! get requests. Called by the reader of clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_model::{
    BackendPolicy, Endpoint, EndpointSet, Failover, Health, Locality, LocalityPolicy, Transport,
};

use super::cluster::labels;
use crate::read::Message;

type Named = Vec<(Arc<str>, Endpoint)>;

/// The endpoints of a cluster: those with addresses in the set, those with names beside it.
pub fn read(
    cluster: &Message<'_>,
    mut set: EndpointSet,
    policy: &mut BackendPolicy,
) -> (EndpointSet, Named) {
    let mut named = Vec::new();
    let Some(load) = cluster.message("load_assignment") else { return (set, named) };
    load.pass_over(&["cluster_name"]);
    if let Some(overflow) = load.message("policy") {
        overflow.not_done("endpoint_stale_after", &["0s"], "endpoints of a file stay");
        if let Some(factor) = overflow.number::<u32>("overprovisioning_factor")
            && factor != 140
        {
            overflow.unsupported("overprovisioning_factor", "weft's is 140");
        }
    }
    let mut priorities = BTreeSet::new();
    let mut all: Vec<(u32, Option<Arc<str>>, Endpoint)> = Vec::new();
    let mut weights: BTreeMap<Locality, u32> = BTreeMap::new();
    load.each("endpoints", |group| {
        let locality = group.message("locality").map(|l| Locality {
            region: l.text("region").unwrap_or("").into(),
            zone: l.text("zone").unwrap_or("").into(),
            sub_zone: l.text("sub_zone").unwrap_or("").into(),
        });
        let priority = group.number::<u32>("priority").unwrap_or(0);
        priorities.insert(priority);
        // Only a place that is named has one; what its last group says counts.
        if let (Some(weight), Some(at)) = (group.number("load_balancing_weight"), &locality) {
            weights.insert(at.clone(), weight);
        }
        group.pass_over(&["proximity"]);
        group.each("lb_endpoints", |message| {
            if let Some((host, mut endpoint)) = one(&message, all.len()) {
                endpoint.locality = locality.clone().unwrap_or_default();
                all.push((priority, host, endpoint));
            }
        });
    });
    let levels: Vec<u32> = priorities.into_iter().collect();
    if levels.len() > 1 {
        policy.locality = LocalityPolicy::Failover(Failover {
            regions: Vec::new(),
            labels: levels.iter().rev().map(|p| format!("{}=y", at_most(*p)).into()).collect(),
        });
    }
    // Where no place has a weight all are alike.
    if is_weighted(cluster) && weights.values().any(|weight| *weight > 0) {
        match levels.len() {
            0 | 1 => policy.locality = LocalityPolicy::Weights(weights.into_iter().collect()),
            _ => {
                let why = "places have weights, or clusters have priorities: not both";
                cluster.unsupported("common_lb_config", why);
            }
        }
    }
    for (priority, host, mut endpoint) in all {
        if levels.len() > 1 {
            let own = levels.iter().filter(|level| **level >= priority);
            endpoint.labels.extend(own.map(|p| (at_most(*p).into(), "y".into())));
        }
        match host {
            Some(host) => named.push((host, endpoint)),
            None => set.endpoints.push(endpoint),
        }
    }
    (set, named)
}

/// Whether the weights of places count.
fn is_weighted(cluster: &Message<'_>) -> bool {
    let common = cluster.item("common_lb_config").and_then(|common| common.value.as_object());
    let said =
        |key: &str| common.is_some_and(|common| common.get(key).is_some_and(|v| !v.is_null()));
    said("locality_weighted_lb_config") || said("localityWeightedLbConfig")
}

/// A label of endpoints whose priority is this or an earlier one.
fn at_most(priority: u32) -> String {
    format!("envoy.priority-{priority}")
}

/// One endpoint, and its name when it has no address.
fn one(message: &Message<'_>, index: usize) -> Option<(Option<Arc<str>>, Endpoint)> {
    let health = match message.word("health_status").as_deref().unwrap_or("HEALTHY") {
        "HEALTHY" | "UNKNOWN" => Health::Healthy,
        "DEGRADED" => {
            message.unsupported("health_status", "DEGRADED: an instance is well or not");
            Health::Healthy
        }
        "DRAINING" => Health::Draining,
        "UNHEALTHY" | "TIMEOUT" => Health::Unhealthy,
        other => {
            message.error("health_status", format!("{other:?} is none"));
            Health::Healthy
        }
    };
    let weight = message.number::<u32>("load_balancing_weight").unwrap_or(1);
    let labels = message.message("metadata").map(|m| labels(&m)).unwrap_or_default();
    let endpoint = message.message("endpoint")?;
    endpoint.pass_over(&["hostname"]);
    if let Some(own) = endpoint.message("health_check_config") {
        own.waive();
        endpoint.unsupported("health_check_config", "all endpoints are checked alike");
    }
    let address = endpoint.message("address")?;
    let socket = address.message("socket_address")?;
    let host = socket.text("address")?;
    let port = socket.number::<u16>("port_value").unwrap_or(0);
    let ip = host.parse::<IpAddr>().ok();
    let at = SocketAddr::new(ip.unwrap_or(IpAddr::from([0, 0, 0, 0])), port);
    let id =
        format!("{index}-{}", if ip.is_some() { at.to_string() } else { format!("{host}:{port}") });
    let made = Endpoint {
        id: id.into(),
        address: at,
        labels,
        locality: Locality::default(),
        weight,
        health,
        identity: None,
        transport: Transport::Plaintext,
        workload: "".into(),
        mesh_address: None,
    };
    Some((ip.is_none().then(|| host.into()), made))
}
