// SPDX-License-Identifier: Apache-2.0
//! Which of a DestinationRule's layers says what: the rule, one of its ports, a subset, a port of
//! a subset. Istio takes each setting whole from the innermost that has it.

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_model::{Backend, BackendPolicy, LbPolicy, LocalityPolicy, Resource, value};

/// The backend of port 80 of a subset of these layers.
fn backend(outer: Value, inner: Value) -> Backend {
    let subset = json!({"name": "v2", "labels": {"version": "v2"}, "trafficPolicy": inner});
    let spec = json!({"host": "user", "trafficPolicy": outer, "subsets": [subset]});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "user", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}});
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "user", "namespace": "shop"}, "spec": spec});
    let mut world = crate::common::world_of([]);
    crate::common::put(&mut world, &service);
    crate::common::put(&mut world, &rule);
    let (_, update) = Compiler::new(Env::default(), &world);
    let mut resources = update.delta.upserts.values();
    let found = resources.find_map(|resource| match &**resource {
        Resource::Backend(backend) if &*backend.subset == "v2" => Some(backend.clone()),
        _ => None,
    });
    found.expect("the subset has a backend")
}

fn outer() -> Value {
    json!({
        "connectionPool": {"tcp": {"maxConnections": 3, "connectTimeout": "7s"},
                           "http": {"maxRetries": 9, "maxRequestsPerConnection": 5}},
        "loadBalancer": {"simple": "RANDOM", "localityLbSetting": {"failoverPriority": ["a"]}},
        "outlierDetection": {"consecutive5xxErrors": 2},
        "tls": {"mode": "SIMPLE", "caCertificates": "system"},
        "retryBudget": {"percent": 7},
    })
}

/// `if subsetPolicy.ConnectionPool != nil { mergedPolicy.ConnectionPool = subsetPolicy.… }`, and
/// so each (Istio, `MergeSubsetTrafficPolicy`).
#[test]
fn a_subsets_setting_takes_the_place_of_the_whole_one() {
    let inner = json!({"connectionPool": {"http": {"http1MaxPendingRequests": 7}},
                       "loadBalancer": {"simple": "ROUND_ROBIN"}});
    let made = backend(outer(), inner);
    let (usual, policy) = (BackendPolicy::default(), &made.policy);
    assert_eq!(policy.limits.pending_max, Some(7));
    assert_eq!((policy.limits.connections_max, policy.limits.retries_max), (None, None));
    assert_eq!(policy.connect_timeout_ms, usual.connect_timeout_ms);
    assert_eq!(policy.connections, usual.connections);
    assert_eq!((&policy.lb, &policy.locality), (&LbPolicy::RoundRobin, &LocalityPolicy::Any));
    // What the subset does not speak of stays.
    assert_eq!(policy.outlier.consecutive_failures, 2);
    assert_eq!(policy.retry_budget.basis_points, 700);
    assert!(made.policy.tls.is_some());
    let by = |value: &str| policy.sources.of(value).map(|o| o.field.to_string());
    assert_eq!(by(value::CONNECTIONS), None);
    assert_eq!(by(value::RETRIES_IN_FLIGHT), None);
    let at = "spec.subsets[0].trafficPolicy";
    assert_eq!(by(value::BALANCING), Some(format!("{at}.loadBalancer.simple")));
    assert_eq!(by(value::LOCALITY), None);
    let ejection = "spec.trafficPolicy.outlierDetection.consecutive5xxErrors";
    assert_eq!(by(value::EJECTION), Some(ejection.into()));
}

/// "Traffic settings specified at the destination-level will not be inherited when overridden by
/// port-level settings, i.e. default values will be applied to fields omitted".
#[test]
fn a_ports_settings_take_the_place_of_all() {
    let port = json!({"portLevelSettings": [{"port": {"number": 80},
        "loadBalancer": {"simple": "ROUND_ROBIN"}}]});
    let mut rule_with_port = outer();
    rule_with_port["portLevelSettings"] = port["portLevelSettings"].clone();
    for made in [backend(outer(), port), backend(rule_with_port, json!({}))] {
        let (usual, policy) = (BackendPolicy::default(), &made.policy);
        assert_eq!((&policy.lb, &policy.locality), (&LbPolicy::RoundRobin, &usual.locality));
        assert_eq!((&policy.limits, &policy.outlier), (&usual.limits, &usual.outlier));
        assert!(made.policy.tls.is_none(), "{made:?}");
        assert_eq!(policy.retry_budget.basis_points, 700);
        assert_eq!(policy.sources.of(value::EJECTION), None);
        assert_eq!(policy.sources.of(value::CONNECTIONS), None);
    }
    // One of another port says nothing.
    let other = json!({"portLevelSettings": [{"port": {"number": 81}}]});
    assert_eq!(backend(outer(), other).policy.limits.connections_max, Some(3));
}

/// Rules that were stored before a tunnel was read still say the rest.
#[test]
fn a_tunnels_odd_port_takes_nothing_else_of_a_rule() {
    for (port, read) in [(json!("443"), 443), (json!(70_000), 0), (json!("x"), 0), (json!([]), 0)] {
        let tunnel = json!({"targetHost": "a.example", "targetPort": port});
        let made = backend(outer(), json!({"tunnel": tunnel}));
        assert!(made.policy.tls.is_some(), "{port}");
        assert_eq!(made.policy.limits.connections_max, Some(3), "{port}");
        let terms = made.policy.connections.expect("a tunnel is one of the terms");
        assert_eq!(terms.through.as_ref().map(|t| t.port), Some(read), "{port}");
    }
}
