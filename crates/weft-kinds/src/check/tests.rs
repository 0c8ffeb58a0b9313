// SPDX-License-Identifier: Apache-2.0
//! Objects with one fault each, and the finding that names it.

use serde_json::json;

use super::*;
use crate::decode::{Format, document, kind_of};
use crate::schema;

/// What a door does with a body: prune, default, validate; findings as text.
fn judge(yaml: &str) -> (Value, Vec<String>) {
    let mut value = document(yaml.as_bytes(), Format::Yaml).unwrap().value;
    let (kind, version) = kind_of(&value).unwrap();
    let schema = schema::of(kind, version);
    let mut found = prune(&schema, &mut value).0;
    fill(&schema, &mut value);
    found.extend(validate(&schema, &value, None).0);
    (value, found.iter().map(ToString::to_string).collect())
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n")
}

fn route(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\n\
         spec:\n  parentRefs: [{{name: gw}}]\n  rules:\n  - {rule}\n"
    )
}

#[test]
fn a_misspelt_field_is_named_with_the_one_meant() {
    let (value, found) = judge(&service("{selectr: {app: x}, ports: [{prot: 80, port: 80}]}"));
    assert_eq!(
        found,
        [
            "spec.selectr: unknown field; did you mean \"selector\"? (W1001)",
            "spec.ports[0].prot: unknown field; did you mean \"port\"? (W1001)",
        ]
    );
    assert_eq!(value["spec"], json!({"ports": [{"port": 80, "protocol": "TCP"}]}));
}

#[test]
fn a_wrong_type_says_what_is_expected() {
    let (_, found) = judge(&service("{ports: [{port: eighty}], selector: [a], clusterIP: 7}"));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found.contains(
            &"spec.ports[0].port: Invalid value: \"eighty\": expected a whole number (W1002)"
                .into()
        ),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("spec.selector: Invalid value: [\"a\"]: expected a map"))
    );
}

#[test]
fn bounds_enums_required_and_lists() {
    let check = |rule: &str, wanted: &str| {
        let (_, found) = judge(&route(rule));
        assert!(found.iter().any(|f| f.contains(wanted)), "{rule}: {found:?}");
    };
    check("{backendRefs: [{port: 80}]}", "backendRefs[0].name: Required value: text (W1003)");
    check("{backendRefs: [{name: a, port: 70000}]}", "should be less than or equal to 65535");
    check(
        "{matches: [{path: {type: Glob, value: /}}]}",
        "Unsupported value: \"Glob\": supported values: \"Exact\", \"PathPrefix\"",
    );
    check(
        "{matches: [{headers: [{name: a, value: x}, {name: a, value: y}]}]}",
        "headers[1]: Duplicate value: {\"name\":\"a\"} (W1006)",
    );
    check("{timeouts: {request: 10 seconds}}", "should match '^([0-9]{1,5}(h|m|s|ms)){1,4}$'");
    check("{matches: [{path: {value: foo}}]}", "value must be an absolute path");
    check(
        "{timeouts: {request: 1s, backendRequest: 2s}}",
        "backendRequest timeout cannot be longer than request timeout",
    );
    check("{retry: {attempts: two}}", "retry.attempts: Invalid value: \"two\"");
    check("{filters: [{type: URLRewrite}]}", "filter.urlRewrite must be specified");
}

#[test]
fn a_route_gets_gateway_apis_defaults() {
    let (value, found) = judge(&route("{backendRefs: [{name: web, port: 80}]}"));
    assert_eq!(found, Vec::<String>::new());
    let spec = &value["spec"];
    assert_eq!(
        spec["parentRefs"][0],
        json!({"name": "gw", "group": "gateway.networking.k8s.io", "kind": "Gateway"})
    );
    assert_eq!(
        spec["rules"][0]["backendRefs"][0],
        json!({"name": "web", "port": 80, "group": "", "kind": "Service", "weight": 1})
    );
    assert_eq!(
        spec["rules"][0]["matches"],
        json!([{"path": {"type": "PathPrefix", "value": "/"}}])
    );
}

#[test]
fn istio_rules_hold() {
    let rule = |spec: &str| {
        judge(&format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\n\
             metadata: {{name: d}}\nspec: {spec}\n"
        ))
        .1
    };
    assert_eq!(
        rule("{host: a, subsets: [{name: v1, labels: {version: v1}}]}"),
        Vec::<String>::new()
    );
    let found = rule("{host: a, trafficPolicy: {outlierDetection: {interval: 0s}}}");
    assert!(
        found.iter().any(|f| f.contains("must be a valid duration greater than 1ms")),
        "{found:?}"
    );
    let found = rule("{subsets: []}");
    assert!(found.iter().any(|f| f.starts_with("spec.host: Required value")), "{found:?}");
    let both = "{host: a, trafficPolicy: {loadBalancer: \
                {simple: RANDOM, consistentHash: {useSourceIp: true}}}}";
    let found = rule(both);
    assert!(found.iter().any(|f| f.contains("exactly one of")), "{found:?}");
}

#[test]
fn a_hash_without_its_type_or_with_two_keys_is_refused() {
    let policy = |balancer: &str| {
        judge(&format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\n\
             spec: {{targetRefs: [{{name: a}}], loadBalancer: {balancer}}}\n"
        ))
        .1
    };
    for sound in [
        "{type: PeakEwma}",
        "{locality: PreferClose}",
        "{type: ConsistentHash, consistentHash: {header: x-user}}",
        "{type: ConsistentHash, consistentHash: {cookie: sid, cookieTTL: 1h, sourceIP: false}}",
        "{type: ConsistentHash, consistentHash: {sourceIP: true, table: Maglev}}",
    ] {
        assert_eq!(policy(sound), Vec::<String>::new(), "{sound}");
    }
    for (wrong, why) in [
        ("{type: ConsistentHash}", "belongs to type ConsistentHash"),
        ("{consistentHash: {header: a}}", "belongs to type ConsistentHash"),
        ("{type: Random, consistentHash: {header: a}}", "belongs to type ConsistentHash"),
        ("{type: ConsistentHash, consistentHash: {}}", "exactly one of"),
        ("{type: ConsistentHash, consistentHash: {sourceIP: false}}", "exactly one of"),
        ("{type: ConsistentHash, consistentHash: {header: a, cookie: b}}", "exactly one of"),
        ("{type: ConsistentHash, consistentHash: {header: a, cookieTTL: 1s}}", "to a cookie"),
    ] {
        let found = policy(wrong);
        assert!(found.iter().any(|f| f.contains(why)), "{wrong}: {found:?}");
    }
}

#[test]
fn a_cache_is_about_http_routes_and_gateways() {
    let policy = |kind: &str, cache: &str| {
        judge(&format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\n\
             spec: {{targetRefs: [{{kind: {kind}, name: a}}], cache: {cache}}}\n"
        ))
        .1
    };
    let all = "{objectBytes: 0, heuristicMaxAge: 1h, cookies: true, wait: 0s}";
    assert_eq!(policy("HTTPRoute", all), Vec::<String>::new());
    assert_eq!(policy("Gateway", "{}"), Vec::<String>::new());
    for (kind, cache, why) in [
        ("Service", "{}", "cache is about HTTPRoutes, Gateways and ListenerSets"),
        ("GRPCRoute", "{}", "cache is about HTTPRoutes, Gateways and ListenerSets"),
        ("Gateway", "{objectBytes: 99999999}", "less than or equal to 16777216"),
        ("Gateway", "{wait: soon}", "spec.cache.wait"),
        ("Gateway", "{waits: 1s}", "waits"),
    ] {
        let found = policy(kind, cache);
        assert!(found.iter().any(|f| f.contains(why)), "{kind} {cache}: {found:?}");
    }
}

#[test]
fn nulls_mean_absent_and_quantities_become_text() {
    let (value, found) = judge(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, creationTimestamp: null}\n\
         spec:\n  selector: {matchLabels: {app: d}}\n  template:\n\
         \x20   metadata: {labels: {app: d}}\n\
         \x20   spec:\n      containers:\n      - {name: c, image: i, resources: {limits: {cpu: 2, \
         memory: 1Gi}}, ports: [{containerPort: 80}]}\n",
    );
    assert_eq!(found, Vec::<String>::new());
    assert!(value["metadata"].get("creationTimestamp").is_none());
    let container = &value["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"], json!({"cpu": "2", "memory": "1Gi"}));
    assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
}

#[test]
fn findings_are_bounded() {
    let ports: Vec<String> = (0..500).map(|i| format!("{{x{i}: 1, port: 1}}")).collect();
    let (_, found) = judge(&service(&format!("{{ports: [{}]}}", ports.join(","))));
    assert!(found.len() <= 2 * FINDINGS_MAX, "{}", found.len());
}

/// Every list of a body as long as an object can be: linear work takes seconds here even
/// without optimisation, quadratic work minutes.
#[test]
fn the_largest_bodies_are_judged_in_time() {
    use crate::{apply, builtin, patch};
    let clock = weft_base::clock::Clock::system();
    let start = clock.now();
    let many = |n: usize, f: &dyn Fn(usize) -> Value| -> Value { (0..n).map(f).collect() };
    let writer = apply::Writer { manager: "m", api_version: "v1", time: "", subresource: "" };
    let finalizers = many(20_000, &|i| format!("x.dev/{i}").into());
    let ports = many(20_000, &|i| json!({"port": i, "name": format!("p{i}")}));
    let unknown = many(12_000, &|i| json!({format!("x{i}"): 1, "port": 1}));
    let containers = many(8_000, &|i| json!({"name": format!("c{i}"), "image": "i"}));
    let service = |spec: Value| {
        json!({"metadata": {"name": "s", "finalizers": finalizers},
        "spec": spec})
    };
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers}});
    for (kind, mut object) in [
        (crate::kind::KindId::Service, service(json!({"ports": ports}))),
        (crate::kind::KindId::Service, service(json!({"ports": unknown}))),
        (crate::kind::KindId::Pod, pod),
    ] {
        let schema = schema::stored(kind);
        prune(&schema, &mut object);
        fill(&schema, &mut object);
        validate(&schema, &object, None);
        builtin::complete(kind, &mut object);
        builtin::judge(kind, &object, None);
        patch::strategic(&schema, &object, &object).unwrap();
        let made = apply::apply(&schema, None, &object, writer, false).unwrap();
        apply::apply(&schema, Some(&made), &object, writer, false).unwrap();
    }
    let took = clock.now().since(start);
    assert!(took.as_secs() < 40, "it took {took:?}");
}
