// SPDX-License-Identifier: Apache-2.0
//! The World's promises: the same last values give the same World whatever the order; a delta
//! names exactly the questions whose answers changed; instances are what both doors said.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::views::catalog::Status;

fn put(world: &mut World, key: &str, value: &Value) -> WorldDelta {
    let revision = world.revision() + 1;
    world.apply(key, Some(value.to_string().as_bytes()), revision)
}

fn delete(world: &mut World, key: &str) -> WorldDelta {
    let revision = world.revision() + 1;
    world.apply(key, None, revision)
}

fn service(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey::new(namespace, name).unwrap()
}

/// What was logged, with its fields.
#[derive(Clone, Default)]
struct Warnings(Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = Vec::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            said.push(format!("{field}={value:?}"));
        });
        self.0.lock().unwrap().push(said.join(" "));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

fn slice(service: &str, pods: &[(&str, &str, bool)]) -> Value {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|(pod, ip, ready)| {
            json!({"addresses": [ip], "conditions": {"ready": ready}, "nodeName": "n1",
                   "targetRef": {"kind": "Pod", "name": pod, "namespace": "a"}})
        })
        .collect();
    json!({"metadata": {"name": "x", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints,
           "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn pod(labels: &Value) -> Value {
    json!({"metadata": {"name": "p", "labels": labels, "ownerReferences": [
               {"kind": "ReplicaSet", "name": "web-5d8", "uid": "u1", "controller": true}]},
           "spec": {"nodeName": "n1", "serviceAccountName": "web"},
           "status": {"podIP": "127.64.0.5"}})
}

#[test]
fn what_is_on_a_node_or_speaks_for_a_service_is_found_without_the_rest() {
    let mut world = World::new();
    let at = "/o/discovery.k8s.io/endpointslices/a/x";
    put(&mut world, at, &slice("web", &[("p", "127.64.0.5", true), ("q", "127.64.0.6", true)]));
    let on = |world: &World, node: &str| world.services_on(node).cloned().collect::<Vec<_>>();
    assert_eq!((on(&world, "n1"), on(&world, "n2")), (vec![service("a", "web")], vec![]));
    assert_eq!(world.nodes_of_pods().count(), 1);
    put(&mut world, at, &slice("api", &[("p", "127.64.0.5", true)]));
    assert_eq!(on(&world, "n1"), [service("a", "api")]);

    let place = "/c/i/a/n7/w1";
    let proxy = |of: &str| {
        json!({"id": "w1", "service": "side", "node": "n7", "namespace": "a",
               "kind": "connect-proxy", "proxy": {"DestinationServiceName": of}})
    };
    put(&mut world, place, &proxy("Web"));
    let speaks = |world: &World, name: &str| world.catalog().speakers(&service("a", name)).count();
    assert_eq!((speaks(&world, "web"), speaks(&world, "side")), (1, 0));
    put(&mut world, place, &proxy("api"));
    assert_eq!((speaks(&world, "web"), speaks(&world, "api")), (0, 1));
    assert_eq!(world.catalog().places_with_something().map(|n| &**n).collect::<Vec<_>>(), ["n7"]);
    delete(&mut world, at);
    delete(&mut world, place);
    assert_eq!(world, World { revision: world.revision, ..World::new() });
}

#[test]
fn an_instance_is_a_slices_endpoint_with_its_pods_labels_and_identity() {
    let mut world = World::new();
    let labels = json!({"version": "v1", "pod-template-hash": "5d8"});
    put(&mut world, "/o/core/pods/a/p", &pod(&labels));
    let delta = put(
        &mut world,
        "/o/discovery.k8s.io/endpointslices/a/x",
        &slice("web", &[("p", "127.64.0.5", true)]),
    );
    assert!(delta.contains(&ReadKey::Instances(service("a", "web"))));
    assert!(delta.contains(&ReadKey::ServicesOfPod("a/p".into())));
    let found = world.instances("a", "web");
    let instance = found.get("p").unwrap();
    assert_eq!(instance.labels.get("version").map(|v| &**v), Some("v1"));
    assert_eq!((&*instance.workload, &*instance.service_account), ("web", "web"));
    assert!(instance.mesh && instance.health == Status::Passing && !instance.draining);
    assert_eq!(instance.ports, [InstancePort { name: "http".into(), port: 8080 }]);
    assert_eq!(world.services_of_pod("a", "p").count(), 1);

    let relabelled = json!({"version": "v2", "pod-template-hash": "5d8"});
    let delta = put(&mut world, "/o/core/pods/a/p", &pod(&relabelled));
    assert!(delta.contains(&ReadKey::Instances(service("a", "web"))), "{delta:?}");
    assert_eq!(&*world.instances("a", "web").get("p").unwrap().labels["version"], "v2");
}

#[test]
fn a_terminating_endpoint_drains_and_an_unready_one_is_critical() {
    let mut world = World::new();
    let mut value = slice("web", &[("p", "127.64.0.5", false), ("q", "127.64.0.6", false)]);
    value["endpoints"][0]["conditions"] =
        json!({"ready": false, "serving": true, "terminating": true});
    put(&mut world, "/o/discovery.k8s.io/endpointslices/a/x", &value);
    let found = world.instances("a", "web");
    let p = found.get("p").unwrap();
    assert!(p.draining && p.health == Status::Passing);
    let q = found.get("q").unwrap();
    assert!(!q.draining && q.health == Status::Critical);
}

#[test]
fn a_registration_is_as_healthy_as_the_worst_of_its_and_its_nodes_checks() {
    let mut world = World::new();
    put(&mut world, "/c/n/n1", &json!({"node": "n1", "address": "127.0.0.9"}));
    let registration = json!({"id": "web#1", "service": "Web", "node": "n1", "port": 80,
                              "weights": {"passing": 5, "warning": 2}});
    put(&mut world, "/c/i/default/n1/web#1", &registration);
    let name = weft_base::name::service_slug("Web");
    let health = |world: &World| {
        let i = world.instances("default", &name).get("n1/web#1").unwrap().clone();
        (i.health, i.weight, i.address.to_string())
    };
    assert_eq!(health(&world), (Status::Passing, 5, "127.0.0.9".into()));

    put(&mut world, "/c/k/default/n1/c1", &json!({"id": "c1", "service_id": "web#1"}));
    assert_eq!(health(&world).0, Status::Critical, "a check begins critical");
    put(&mut world, "/e/k/default/n1/c1", &json!({"status": "warning"}));
    assert_eq!((health(&world).0, health(&world).1), (Status::Warning, 2));
    put(&mut world, "/e/k/default/n1/c1", &json!({"status": "passing"}));
    put(&mut world, "/c/k/default/n1/_node", &json!({"id": "_node", "initial": "critical"}));
    assert_eq!(health(&world).0, Status::Critical, "its node's check counts too");
    let delta = delete(&mut world, "/c/k/default/n1/_node");
    assert!(delta.contains(&ReadKey::Instances(service("default", &name))));
    assert_eq!(health(&world).0, Status::Passing);

    // Another output with the same status is news for the Consul door, not for the compiler.
    let delta =
        put(&mut world, "/e/k/default/n1/c1", &json!({"status": "passing", "output": "again"}));
    assert!(delta.contains(&ReadKey::Catalog(service("default", &name))));
    assert!(!delta.contains(&ReadKey::Instances(service("default", &name))));
}

#[test]
fn mirrored_slices_do_not_count_twice() {
    let mut world = World::new();
    let mut value = slice("web", &[("p", "127.64.0.5", true)]);
    value["metadata"]["annotations"] = json!({"weft.dev/owner": "consul"});
    put(&mut world, "/o/discovery.k8s.io/endpointslices/a/x", &value);
    assert!(world.instances("a", "web").is_empty());
}

/// A store of an older version, in whichever order it is read, and a race.
#[test]
fn a_registration_never_joins_a_service_that_kubernetes_made() {
    let of_consul = json!({"id": "i1", "service": "Web", "node": "n1", "address": "127.0.0.9",
                           "port": 80});
    let of_kubernetes = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "127.65.0.1"}});
    let pods = slice("web", &[("p", "127.64.0.5", true)]);
    let store = [
        ("/c/i/a/n1/i1", &of_consul),
        ("/o/core/services/a/web", &of_kubernetes),
        ("/o/discovery.k8s.io/endpointslices/a/x", &pods),
    ];
    let ids = |world: &World| world.instances("a", "web").keys().cloned().collect::<Vec<_>>();
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let (mut world, warnings) = (World::new(), Warnings::default());
        tracing::subscriber::with_default(warnings.clone(), || {
            for (key, value) in order.map(|at| store[at]) {
                put(&mut world, key, value);
            }
            put(&mut world, "/c/k/a/n1/c1", &json!({"id": "c1", "service_id": "i1"}));
            put(&mut world, "/e/k/a/n1/c1", &json!({"status": "passing"}));
        });
        assert_eq!(ids(&world), ["p".into()], "{order:?}");
        let said = warnings.0.lock().unwrap().join("\n");
        assert_eq!(said.matches("left out").count(), 1, "once: {said}");
        for what in ["service=Web", "id=i1", "node=n1", "namespace=a", "Service \"web\""] {
            assert!(said.contains(what), "{what}: {said}");
        }
        // Without that Service it is what its name says.
        let delta = delete(&mut world, "/o/core/services/a/web");
        assert!(delta.contains(&ReadKey::Instances(service("a", "web"))), "{delta:?}");
        assert_eq!(ids(&world), ["n1/i1".into(), "p".into()]);
        let mut mirror = of_kubernetes.clone();
        mirror["metadata"]["annotations"] = json!({"weft.dev/owner": "consul"});
        put(&mut world, "/o/core/services/a/web", &mirror);
        assert_eq!(ids(&world).len(), 2, "its own mirror");
    }
}

#[test]
fn status_is_no_input() {
    let mut world = World::new();
    let key = "/o/gateway.networking.k8s.io/httproutes/a/r";
    let mut route = json!({"metadata": {"name": "r"}, "spec": {"parentRefs": [{"name": "gw"}]}});
    put(&mut world, key, &route);
    route["status"] = json!({"parents": [1]});
    route["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    let delta = put(&mut world, key, &route);
    let object = ObjectKey::new(KindId::HttpRoute, "a", "r");
    assert_eq!(delta.iter().collect::<Vec<_>>(), [&ReadKey::Raw(object)]);
}

#[test]
fn an_object_of_a_wrong_form_stops_nothing() {
    let mut world = World::new();
    put(&mut world, "/o/core/services/a/s", &json!({"spec": {"ports": "many"}}));
    let object = world.get(KindId::Service, "a", "s").unwrap();
    assert!(matches!(&object.view, View::Invalid(i) if i.to_string().contains("many")));
    world.apply("/o/core/services/a/t", Some(b"{"), 9);
    assert!(matches!(world.get(KindId::Service, "a", "t").unwrap().view, View::Invalid(_)));
    put(&mut world, "/o/core/services/a/s", &json!({"spec": {"ports": null, "selector": {}}}));
    assert!(matches!(world.get(KindId::Service, "a", "s").unwrap().view, View::Service(_)));
}

#[test]
fn hosts_have_one_form() {
    for (host, want) in [
        ("product", "product.shop.svc"),
        ("product.shop.svc", "product.shop.svc"),
        ("Product.shop.svc.cluster.local.", "product.shop.svc"),
        ("product.other.svc.cluster.local", "product.other.svc"),
        ("*.shop.svc.cluster.local", "*.shop.svc"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("api.example.com", "api.example.com"),
        ("product.shop", "product.shop"),
    ] {
        assert_eq!(&*host_key(host, "shop"), want, "{host}");
    }
    assert_eq!(&*gateway_ref("gw", "shop"), "shop/gw");
    assert_eq!(&*gateway_ref("./gw", "shop"), "shop/gw");
    assert_eq!(&*gateway_ref("infra/gw", "shop"), "infra/gw");
}

// === properties ===

/// Keys and the values that a random log gives them.
fn universe() -> Vec<(&'static str, Vec<Value>)> {
    let registration = |name: &str, port: u16| {
        let meta = json!({"v": "1"});
        json!({"id": "i1", "service": name, "node": "n1", "port": port, "meta": meta})
    };
    let labels = json!({"kubernetes.io/service-name": "s"});
    let vs =
        |host: &str, gateways: &[&str]| json!({"spec": {"hosts": [host], "gateways": gateways}});
    vec![
        (
            "/o/core/pods/a/p",
            vec![
                pod(&json!({"v": "1"})),
                pod(&json!({"v": "2"})),
                json!({"metadata": {"annotations": {"weft.dev/inject": "false"}}}),
            ],
        ),
        ("/o/core/pods/a/q", vec![pod(&json!({})), json!({"status": {"podIP": "127.64.0.7"}})]),
        (
            "/o/discovery.k8s.io/endpointslices/a/x",
            vec![
                slice("s", &[("p", "127.64.0.5", true)]),
                slice("s", &[("p", "127.64.0.5", false), ("q", "127.64.0.6", true)]),
                slice("t", &[("q", "127.64.0.6", true)]),
                json!({"metadata": {"labels": labels}, "endpoints": 7}),
            ],
        ),
        (
            "/o/discovery.k8s.io/endpointslices/a/y",
            vec![
                slice("s", &[("q", "127.64.0.6", true)]),
                slice("t", &[("p", "127.64.0.5", true)]),
            ],
        ),
        (
            "/o/core/configmaps/a/m",
            vec![
                json!({"data": {"k": "1"}}),
                json!({"data": {"k": "1"}, "status": {"s": 1}}),
                json!({"data": {"k": "2"}}),
            ],
        ),
        (
            "/o/gateway.networking.k8s.io/httproutes/a/r",
            vec![
                json!({"spec": {"parentRefs": [{"name": "gw"}]}}),
                json!({"spec": {"parentRefs": [{"name": "gw"}], "hostnames": ["h"]}}),
                json!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "s"}]},
                   "status": {"parents": []}}),
            ],
        ),
        (
            "/o/networking.istio.io/virtualservices/a/v",
            vec![vs("s", &[]), vs("s.a.svc.cluster.local", &["mesh", "gw"]), vs("*", &["b/gw"])],
        ),
        (
            "/o/networking.istio.io/destinationrules/a/d",
            vec![json!({"spec": {"host": "s"}}), json!({"spec": {"host": "t"}})],
        ),
        (
            "/o/core/services/a/s",
            vec![
                json!({"spec": {"clusterIP": "127.65.0.1"}}),
                json!({"metadata": {"annotations": {"weft.dev/owner": "consul"}}}),
            ],
        ),
        ("/c/n/n1", vec![json!({"address": "127.0.0.1"}), json!({"address": "127.0.0.2"})]),
        ("/c/i/a/n1/i1", vec![registration("s", 1), registration("t", 1), registration("s", 2)]),
        ("/c/i/a/n1/i2", vec![json!({"service": "t", "address": "127.0.0.3", "port": 3})]),
        (
            "/c/k/a/n1/c1",
            vec![
                json!({"service_id": "i1"}),
                json!({"service_id": "i2", "initial": "passing", "type": "tcp"}),
                json!({"service_id": "", "initial": "warning", "type": "ttl"}),
            ],
        ),
        (
            "/e/k/a/n1/c1",
            vec![
                json!({"status": "passing", "output": "1"}),
                json!({"status": "passing", "output": "2"}),
                json!({"status": "critical"}),
            ],
        ),
        ("/s/trust-domain", vec![json!("one"), json!("two")]),
    ]
}

type Log = Vec<(usize, Option<usize>)>;

fn logs() -> impl Strategy<Value = Log> {
    let keys = universe().len();
    prop::collection::vec((0..keys, prop::option::weighted(0.8, 0..3usize)), 1..40)
}

fn fold_event(
    world: &mut World,
    (key, value): (usize, Option<usize>),
    revision: u64,
) -> WorldDelta {
    let all = universe();
    let (key, values) = &all[key];
    let bytes = value.map(|v| values[v % values.len()].to_string());
    world.apply(key, bytes.as_deref().map(str::as_bytes), revision)
}

/// Every question that could have an answer in either World.
fn questions(worlds: [&World; 2]) -> Vec<ReadKey> {
    let services = ["s", "t"].map(|s| service("a", s));
    let mut out = Vec::new();
    for (key, _) in universe() {
        if let Some(StoreKey::Object(k)) = StoreKey::parse(key) {
            out.push(ReadKey::Kind(k.kind));
            out.push(ReadKey::KindIn(k.kind, k.namespace.clone()));
            out.extend([ReadKey::Object(k.clone()), ReadKey::Raw(k)]);
        }
    }
    for world in worlds {
        out.extend(world.index.iter().map(|(i, v, _)| ReadKey::Index(*i, v.clone())));
        out.extend(world.services_of_pod.keys().cloned().map(ReadKey::ServicesOfPod));
    }
    out.extend(services.iter().cloned().map(ReadKey::Instances));
    out.extend(services.iter().cloned().map(ReadKey::Catalog));
    out.extend([ReadKey::Node("n1".into()), ReadKey::CatalogNode("n1".into())]);
    out.push(ReadKey::Setting("trust-domain".into()));
    out.sort();
    out.dedup();
    out
}

fn answer(world: &World, question: &ReadKey) -> String {
    let catalog = world.catalog();
    let checks = |keys: Vec<&CheckKey>| -> Vec<String> {
        keys.iter()
            .map(|k| format!("{k:?} {:?} {:?}", catalog.check(k), catalog.result(k)))
            .collect()
    };
    match question {
        ReadKey::Object(k) => format!(
            "{:?}",
            world.object(k).map(|o| {
                let data = matches!(o.view, View::Other | View::Invalid(_));
                (
                    o.meta.clone(),
                    o.view.clone(),
                    data.then(|| (o.raw["data"].clone(), o.raw["endpoints"].clone())),
                )
            })
        ),
        ReadKey::Raw(k) => format!("{:?}", world.object(k).map(|o| (o.revision, o.raw.clone()))),
        ReadKey::Kind(kind) => {
            format!("{:?}", world.objects(*kind, None).map(|o| &o.key).collect::<Vec<_>>())
        }
        ReadKey::KindIn(kind, ns) => {
            format!("{:?}", world.objects(*kind, Some(ns)).map(|o| &o.key).collect::<Vec<_>>())
        }
        ReadKey::Index(index, value) => {
            format!("{:?}", world.index(*index, value).map(|o| &o.key).collect::<Vec<_>>())
        }
        ReadKey::Instances(s) => {
            format!("{:?}", world.instances(s.namespace.as_str(), s.name.as_str()))
        }
        ReadKey::ServicesOfPod(pod) => format!("{:?}", world.services_of_pod.get(pod)),
        ReadKey::Node(name) => format!("{:?}", catalog.node(name)),
        ReadKey::Catalog(s) => {
            let each = catalog.of_service(s).map(|(k, r)| {
                let own = checks(catalog.checks_of(k).map(|(k, _)| k).collect());
                let node = checks(catalog.node_checks(&k.node).map(|(k, _)| k).collect());
                format!("{k:?} {r:?} {own:?} {node:?}")
            });
            each.collect()
        }
        ReadKey::CatalogNode(name) => {
            let asked: Vec<_> = catalog.asked_on(name).collect();
            assert_eq!(
                asked,
                catalog.checks_on(name).filter(|(_, c)| c.is_asked()).collect::<Vec<_>>()
            );
            let checks = checks(catalog.checks_on(name).map(|(k, _)| k).collect());
            format!("{:?} {checks:?}", catalog.on_node(name).collect::<Vec<_>>())
        }
        ReadKey::Setting(name) => format!("{:?}", world.setting(name)),
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// A delta covers every question whose answer changed, and names no other.
    #[test]
    fn a_delta_is_exact(log in logs()) {
        let mut world = World::new();
        for (i, event) in log.into_iter().enumerate() {
            let before = world.clone();
            let delta = fold_event(&mut world, event, i as u64 + 1);
            let asked = questions([&before, &world]);
            for question in &asked {
                let changed = answer(&before, question) != answer(&world, question);
                prop_assert_eq!(changed, delta.contains(question), "{:?} in {:?}", question, delta);
            }
            for touched in delta.iter() {
                prop_assert!(asked.contains(touched), "{:?} was never a question", touched);
            }
        }
    }

    /// Only the last value of each key counts, in whatever order keys are folded.
    #[test]
    fn order_across_keys_does_not_matter(log in logs(), seed in any::<u64>()) {
        let mut world = World::new();
        let mut last = std::collections::BTreeMap::new();
        for (i, event) in log.into_iter().enumerate() {
            fold_event(&mut world, event, i as u64 + 1);
            last.insert(event.0, (event, i as u64 + 1));
        }
        let mut rng = weft_base::rng::Rng::seeded(seed);
        let mut rest: Vec<_> = last.into_values().collect();
        let mut other = World::new();
        while !rest.is_empty() {
            let at = usize::try_from(rng.below(rest.len() as u64)).unwrap();
            let (event, revision) = rest.swap_remove(at);
            fold_event(&mut other, event, revision);
        }
        for name in ["s", "t"] {
            let anew = instance::fold(&world, &service("a", name));
            prop_assert_eq!(world.instances("a", name), &anew, "as folded all at once");
        }
        prop_assert_eq!(world, other);
    }

    #[test]
    fn store_keys_read_back(parts in prop::collection::vec("[a-z%/#:é]{1,8}", 3)) {
        let [namespace, node, id] = [0, 1, 2].map(|i| Arc::<str>::from(&*parts[i]));
        let check = CheckKey { namespace: namespace.clone(), node: node.clone(), id: id.clone() };
        let keys = [
            StoreKey::Registration(RegistrationKey { namespace, node: node.clone(), id }),
            StoreKey::Check(check.clone()),
            StoreKey::CheckStatus(check),
            StoreKey::Node(node),
        ];
        for key in keys {
            prop_assert_eq!(StoreKey::parse(&key.to_string()), Some(key));
        }
    }
}

#[test]
fn a_record_has_the_stores_revisions_however_it_was_read() {
    let web = |port: u16| {
        json!({"id": "i", "service": "web", "node": "n", "namespace": "d",
            "port": port})
    };
    let check = json!({"id": "c", "node": "n", "namespace": "d", "service_id": "i"});
    let (node, said) = (json!({"node": "n"}), json!({"status": "passing"}));
    let keys = ["/c/n/n", "/c/i/d/n/i", "/c/k/d/n/c", "/e/k/d/n/c"];
    let mut folded = World::new();
    for (key, value, at) in [
        (keys[0], node.clone(), 3),
        (keys[1], web(1), 4),
        (keys[2], check.clone(), 5),
        (keys[3], said.clone(), 6),
        (keys[1], web(2), 8),
    ] {
        folded.apply(key, Some(value.to_string().as_bytes()), at);
    }
    // The same again, which nobody is told of.
    let again = folded.apply(keys[2], Some(check.to_string().as_bytes()), 9);
    assert!(again.is_empty(), "{again:?}");
    let since = json!({"status": "passing", "since": 6});
    folded.apply(keys[3], Some(since.to_string().as_bytes()), 10);
    let mut loaded = World::new();
    for (key, value, created, at) in [
        (keys[1], web(2), 4, 8),
        (keys[2], check, 5, 9),
        (keys[0], node, 3, 3),
        (keys[3], since, 6, 10),
    ] {
        loaded.load(key, value.to_string().as_bytes(), created, at);
    }
    let place = ("d".into(), "n".into());
    let key = CheckKey { namespace: place.0, node: place.1, id: "c".into() };
    for world in [folded, loaded] {
        let catalog = world.catalog();
        let node = catalog.node("n").unwrap();
        assert_eq!((node.created.0, node.modified.0), (3, 3));
        let web = service("d", "web");
        let listed = catalog.of_service(&web).chain(catalog.on_node("n"));
        for (_, web) in listed {
            assert_eq!((web.created.0, web.modified.0), (4, 8));
        }
        let check = catalog.check(&key).unwrap();
        assert_eq!((check.created.0, check.modified.0), (5, 9));
        assert_eq!(catalog.result(&key).unwrap().modified.0, 6, "it has been so since then");
        let mut moved = world.clone();
        let other = json!({"status": "critical", "since": 900_000});
        moved.apply(keys[3], Some(other.to_string().as_bytes()), 11);
        let said = moved.catalog().result(&key).unwrap().modified.0;
        assert_eq!(said, 11, "that is a revision of another store");
    }
}
