// SPDX-License-Identifier: Apache-2.0
//! The compiler's promises: only what a change touches runs; what runs gives what a compiler that
//! starts anew would give; routes wait as `compiler.rs` says.

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_kinds::world::KindId;
use weft_model::{Action, Target};

use super::*;
use crate::push::NodeScope;

struct Bench {
    world: World,
    compiler: Compiler,
}

// === impl Bench ===

impl Bench {
    fn new(objects: &[Value]) -> Self {
        let mut world = World::new();
        for object in objects {
            put(&mut world, object);
        }
        let (compiler, _) = Compiler::new(Env::default(), &world);
        Self { world, compiler }
    }

    fn apply(&mut self, object: Value) -> Update {
        let delta = put(&mut self.world, &object);
        self.compiler.update(&self.world, &delta)
    }

    fn delete(&mut self, kind: KindId, name: &str) -> Update {
        let key = ObjectKey::new(kind, "shop", name).store_key();
        let delta = self.world.apply(&key, None, self.world.revision() + 1);
        self.compiler.update(&self.world, &delta)
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<&Resource> {
        let name = ResourceName::try_from(name.to_owned()).unwrap();
        self.compiler.mesh().get(&name).map(|r| &**r)
    }

    /// The targets of a route's first rule: `backend weight` or `fail status`.
    fn targets(&self, name: &str) -> Vec<String> {
        let Some(Resource::Route(route)) = self.find(name) else { return Vec::new() };
        let Action::Forward(backends) = &route.rules[0].action else { panic!("{route:?}") };
        let each = backends.iter().map(|b| match &b.target {
            Target::Backend(name) => format!("{} {}", name.child, b.weight),
            Target::Fail { status, .. } => format!("fail {status}"),
        });
        each.collect()
    }

    fn condition(&self, object: &ObjectKey, kind: &str) -> Option<Condition> {
        let status = self.compiler.statuses().find(|s| s.object == *object)?;
        let conditions = match &status.body {
            StatusBody::Conditions(conditions) => conditions,
            StatusBody::Parents(parents) | StatusBody::Ancestors(parents) => &parents[0].conditions,
            StatusBody::Gateway { conditions, .. }
            | StatusBody::ListenerSet { conditions, .. }
            | StatusBody::Class { conditions, .. } => conditions,
        };
        conditions.iter().find(|c| c.kind == kind).cloned()
    }
}

fn put(world: &mut World, object: &Value) -> WorldDelta {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let kind = KindId::by_api(&text(&object["apiVersion"]), &text(&object["kind"])).unwrap();
    let meta = &object["metadata"];
    let key = ObjectKey::new(kind, text(&meta["namespace"]), text(&meta["name"]));
    let revision = world.revision() + 1;
    world.apply(&key.store_key(), Some(object.to_string().as_bytes()), revision)
}

fn class() -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
           "metadata": {"name": "weft"}, "spec": {"controllerName": "weft.dev/gateway"}})
}

fn gateway() -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
           "metadata": {"name": "gw", "namespace": "shop"},
           "spec": {"gatewayClassName": "weft", "addresses": [{"value": "127.0.0.1"}],
                    "listeners": [{"name": "http", "port": 8000, "protocol": "HTTP"}]}})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"ports": [{"name": "http", "port": 80}]}})
}

/// One slice of a service; each endpoint is a last address byte and whether it is ready.
fn slice(service: &str, endpoints: &[(u8, bool)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(n, ready)| {
            json!({"addresses": [format!("127.64.0.{n}")], "conditions": {"ready": ready},
                   "targetRef": {"kind": "Pod", "name": format!("p{n}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
           "metadata": {"name": service, "namespace": "shop",
                        "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "endpoints": endpoints,
           "ports": [{"name": "http", "port": 8080}]})
}

fn pod(n: u8, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": format!("p{n}"), "namespace": "shop",
                        "labels": {"version": version}},
           "status": {"podIP": format!("127.64.0.{n}")}})
}

fn route(name: &str, backends: &[&str]) -> Value {
    let refs: Vec<_> = backends.iter().map(|b| json!({"name": b, "port": 80})).collect();
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
           "metadata": {"name": name, "namespace": "shop"},
           "spec": {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": refs}]}})
}

fn split(v1: u32, v2: u32) -> Value {
    let to = |subset: &str, weight: u32| {
        let destination = json!({"host": "web", "subset": subset});
        json!({"destination": destination, "weight": weight})
    };
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
           "metadata": {"name": "web", "namespace": "shop"},
           "spec": {"hosts": ["web"], "http": [{"route": [to("v1", v1), to("v2", v2)]}]}})
}

fn subsets(names: &[&str]) -> Value {
    let each: Vec<_> = names.iter().map(|n| json!({"name": n, "labels": {"version": n}})).collect();
    json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
           "metadata": {"name": "web", "namespace": "shop"},
           "spec": {"host": "web", "subsets": each}})
}

const USERS: &str = "listener:shop~gw~8000/route/httproute/shop/users";
const WEB: &str = "host:web.shop.svc.cluster.local/route/virtualservice/shop/web/80";

fn users() -> ObjectKey {
    ObjectKey::new(KindId::HttpRoute, "shop", "users")
}

// === when a route takes effect ===

#[test]
fn a_new_route_waits_for_a_healthy_instance_and_says_so() {
    let mut bench = Bench::new(&[class(), gateway(), service("web")]);
    let update = bench.apply(route("users", &["web"]));
    assert!(!bench.has(USERS) && update.delta.upserts.is_empty(), "{update:?}");
    let pending = bench.condition(&users(), "weft.dev/Programmed").unwrap();
    assert!(pending.message.contains("a healthy instance of web.shop"), "{pending:?}");

    bench.apply(slice("web", &[(5, false)]));
    assert!(!bench.has(USERS), "an instance that is not ready is not enough");
    let update = bench.apply(slice("web", &[(5, true)]));
    let names: Vec<String> = update.delta.upserts.keys().map(ToString::to_string).collect();
    let endpoints = "host:web.shop.svc.cluster.local/endpoints/80";
    assert_eq!(names, [USERS, endpoints], "both in one transaction");
    assert_eq!(bench.condition(&users(), "weft.dev/Programmed"), None);

    bench.apply(slice("web", &[(5, false)]));
    assert!(bench.has(USERS), "what is in effect is not taken back");
}

#[test]
fn a_changed_split_waits_for_the_subset_it_newly_needs() {
    let mut bench = Bench::new(&[service("web"), subsets(&["v1", "v2"]), pod(1, "v1")]);
    bench.apply(slice("web", &[(1, true)]));
    bench.apply(split(100, 0));
    assert_eq!(bench.targets(WEB), ["backend/80/v1 100", "backend/80/v2 0"]);
    bench.apply(split(0, 100));
    assert_eq!(bench.targets(WEB), ["backend/80/v1 100", "backend/80/v2 0"], "v2 is not there");
    bench.apply(pod(2, "v2"));
    bench.apply(slice("web", &[(1, true), (2, true)]));
    assert_eq!(bench.targets(WEB), ["backend/80/v1 0", "backend/80/v2 100"]);
    // A newer version replaces a waiting one; one that needs nothing new does not wait.
    bench.apply(slice("web", &[(1, true), (2, false)]));
    bench.apply(split(10, 90));
    assert_eq!(bench.targets(WEB), ["backend/80/v1 10", "backend/80/v2 90"]);
}

#[test]
fn a_new_route_to_nothing_answers_at_once_and_a_changed_one_keeps_its_old_backend() {
    let mut bench = Bench::new(&[class(), gateway(), service("web"), slice("web", &[(1, true)])]);
    bench.apply(route("users", &["gone"]));
    assert_eq!(bench.targets(USERS), ["fail 500"]);
    bench.apply(route("users", &["web"]));
    assert_eq!(bench.targets(USERS), ["backend/80 1"]);
    bench.apply(route("users", &["gone"]));
    assert_eq!(bench.targets(USERS), ["backend/80 1"], "the sound version stays");
    let refs = bench.condition(&users(), "ResolvedRefs").unwrap();
    assert_eq!((refs.holds, refs.reason), (false, "BackendNotFound"));
    // When the old backend goes too, there is nothing sound to keep.
    bench.delete(KindId::Service, "web");
    assert_eq!(bench.targets(USERS), ["fail 500"]);
}

#[test]
fn a_deleted_service_is_answered_with_a_sentence() {
    let mut bench = Bench::new(&[class(), gateway(), service("web"), route("users", &["web"])]);
    assert_eq!(bench.targets(USERS), ["backend/80 1"], "what is there at the start is not new");
    bench.delete(KindId::Service, "web");
    assert_eq!(bench.targets(USERS), ["fail 500"]);
    assert!(!bench.has("host:web.shop.svc.cluster.local"));
}

#[test]
fn a_deleted_route_is_forgotten_wherever_it_waits() {
    let mut bench = Bench::new(&[class(), gateway(), service("web")]);
    bench.apply(route("users", &["web"]));
    bench.delete(KindId::HttpRoute, "users");
    bench.apply(slice("web", &[(1, true)]));
    assert!(!bench.has(USERS));
}

#[test]
fn what_a_new_object_has_no_rule_for_is_others_until_its_rules_count() {
    let istio = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
               "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let server = json!({"port": {"number": 8000, "protocol": "HTTP", "name": "http"},
                        "hosts": ["*"]});
    let to = |host: &str| json!([{"destination": {"host": host}}]);
    let wide = json!({"hosts": ["*.example.com"], "gateways": ["gw"],
                      "http": [{"route": to("web")}]});
    let narrow = json!({"hosts": ["a.example.com"], "gateways": ["gw"],
                        "http": [{"match": [{"uri": {"prefix": "/x"}}], "route": to("late")}]});
    let mut bench = Bench::new(&[
        istio("Gateway", "gw", json!({"selector": {"a": "b"}, "servers": [server]})),
        service("web"),
        slice("web", &[(1, true)]),
        service("late"),
        istio("VirtualService", "wide", wide),
    ]);
    bench.apply(istio("VirtualService", "narrow", narrow));
    let rules = "listener:shop~gw~8000/route/virtualservice/shop/narrow";
    let nobodys = format!("{rules}/unmatched");
    assert!(bench.has("listener:shop~gw~8000/route/virtualservice/shop/wide"));
    assert!(!bench.has(rules) && !bench.has(&nobodys));
    bench.apply(slice("late", &[(2, true)]));
    assert!(bench.has(rules) && bench.has(&nobodys));
    bench.delete(KindId::VirtualService, "narrow");
    assert!(!bench.has(rules) && !bench.has(&nobodys));
}

// === increments ===

#[test]
fn an_endpoint_change_compiles_one_unit_and_sends_one_resource_at_once() {
    let mut bench = Bench::new(&[
        class(),
        gateway(),
        service("web"),
        slice("web", &[(1, true)]),
        route("users", &["web"]),
        split(1, 1),
        subsets(&["v1", "v2"]),
    ]);
    let update = bench.apply(slice("web", &[(1, true), (2, true)]));
    assert_eq!(update.compiled, 1);
    assert_eq!(update.delta.upserts.len(), 1);
    assert!(update.delta.is_urgent() && update.statuses.is_empty());
}

#[test]
fn a_changed_rule_sends_one_resource_and_leaves_the_rest() {
    let mut objects = vec![class(), gateway(), service("web"), slice("web", &[(1, true)])];
    objects.extend((0..50).map(|i| route(&format!("r{i}"), &["web"])));
    let mut bench = Bench::new(&objects);
    let mut changed = route("r7", &["web"]);
    changed["spec"]["rules"][0]["timeouts"] = json!({"request": "3s"});
    let update = bench.apply(changed);
    let names: Vec<String> = update.delta.upserts.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["listener:shop~gw~8000/route/httproute/shop/r7"]);
    assert_eq!(update.compiled, 1);
    assert_eq!(update.delta.rescope, Rescope::Nobody);
}

#[test]
fn a_status_write_compiles_nothing() {
    let mut bench = Bench::new(&[class(), gateway(), service("web"), route("users", &["web"])]);
    let mut written = route("users", &["web"]);
    written["status"] = json!({"parents": [{"controllerName": "weft.dev/gateway"}]});
    let update = bench.apply(written);
    assert_eq!(update.compiled, 0);
    assert!(update.delta.is_empty());
}

#[test]
fn gateways_count_their_routes_and_ask_for_their_hosts() {
    let mut bench = Bench::new(&[class(), gateway(), service("web"), slice("web", &[(1, true)])]);
    let node = NodeId::gateway("shop", "gw").unwrap();
    let count = |bench: &Bench| {
        let key = ObjectKey::new(KindId::Gateway, "shop", "gw");
        let status = bench.compiler.statuses().find(|s| s.object == key).unwrap();
        let StatusBody::Gateway { listeners, .. } = &status.body else { panic!() };
        listeners[0].attached_routes
    };
    let sees = |bench: &Bench, name: &str| {
        let name = ResourceName::try_from(name.to_owned()).unwrap();
        let scope = bench.compiler.mesh().scope(&node).unwrap();
        bench.compiler.mesh().get(&name).is_some_and(|r| scope.sees(&name, r))
    };
    let endpoints = "host:web.shop.svc.cluster.local/endpoints/80";
    assert_eq!(count(&bench), 0);
    assert!(!sees(&bench, endpoints), "no route names it");
    let update = bench.apply(route("users", &["web"]));
    assert_eq!(update.delta.rescope, Rescope::Nodes([node.clone()].into()));
    assert!(sees(&bench, endpoints) && sees(&bench, USERS));
    let update = bench.apply(route("more", &["web"]));
    assert_eq!(update.delta.rescope, Rescope::Nobody, "it has that host already");
    assert_eq!(count(&bench), 2);
    bench.delete(KindId::HttpRoute, "users");
    assert_eq!(count(&bench), 1);
    assert!(sees(&bench, endpoints));
    bench.delete(KindId::HttpRoute, "more");
    assert!(!sees(&bench, endpoints));
}

#[test]
fn a_root_that_comes_back_brings_its_children() {
    let mut bench = Bench::new(&[class(), gateway(), service("web"), route("users", &["web"])]);
    let mut lost = gateway();
    lost["spec"]["addresses"] = json!([{"value": "nowhere"}]);
    let update = bench.apply(lost);
    let root = Root::listener("shop~gw~8000").own();
    assert!(update.delta.removes.contains(&root));
    let update = bench.apply(gateway());
    let names: Vec<String> = update.delta.upserts.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["listener:shop~gw~8000", USERS]);
}

#[test]
fn a_sidecar_keeps_its_own_namespace_and_asks_for_the_rest() {
    let bench = Bench::new(&[pod(1, "v1"), class(), gateway()]);
    let scope = |node| bench.compiler.mesh().scope(&node).unwrap();
    let host = |host: &str| Root::host(format!("{host}.svc.cluster.local"));
    let sidecar = scope(NodeId::sidecar("shop", "p1").unwrap());
    assert!(sidecar.asks() && sidecar.keeps(&host("zz.shop")) && !sidecar.keeps(&host("s.far")));
    assert!(sidecar.keeps(&crate::mesh::inbound_root("shop", "p1", 8080)));
    // A gateway's routes name all that it needs.
    let gateway = scope(NodeId::gateway("shop", "gw").unwrap());
    assert!(!gateway.asks() && gateway.keeps(&host("s.far")));
}

#[test]
fn a_rule_is_sent_to_the_sidecars_that_it_selects_and_to_nobody_else() {
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
           "metadata": {"name": "chosen", "namespace": "shop"},
           "spec": {"host": "web", "workloadSelector": {"matchLabels": {"version": "v2"}},
                    "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}},
                    "subsets": [{"name": "own", "labels": {"version": "v1"}}]}});
    let web = [service("web"), slice("web", &[(1, true)])];
    let all = [&[class(), gateway(), pod(1, "v1"), pod(2, "v2"), rule][..], &web].concat();
    let mut bench = Bench::new(&all);
    bench.apply(subsets(&["v1"]));
    bench.apply(route("users", &["web"]));
    // What a node is sent of the backend of port 80 and of the subset that the rule defines.
    let seen = |bench: &Bench, node: NodeId| {
        let scope = bench.compiler.mesh().scope(&node).unwrap();
        let mut out = Vec::new();
        for (name, resource) in bench.compiler.mesh().view(&scope) {
            let kind = match resource.as_ref() {
                Resource::Backend(backend) => format!("{:?}", backend.policy.lb),
                Resource::Fail(_) => "Fail".to_owned(),
                _ => continue,
            };
            if !name.child.starts_with("backend/80/v1") {
                out.push(format!("{} {kind}", name.child));
            }
        }
        out
    };
    let sidecar = |n: u8| NodeId::sidecar("shop", &format!("p{n}")).unwrap();
    let anybody = ["backend/80 RoundRobin", "backend/80/own Fail"];
    assert_eq!(seen(&bench, sidecar(1)), anybody);
    assert_eq!(seen(&bench, NodeId::gateway("shop", "gw").unwrap()), anybody);
    let chosen = seen(&bench, sidecar(2));
    let mine = [
        "backend/80 RoundRobin",
        "backend/80/own Fail",
        "backend/80/own~for~shop~with~0~version=v2 Random",
        "backend/80~for~shop~with~0~version=v2 Random",
    ];
    assert_eq!(chosen, mine);
    // Labels decide, also when they change.
    bench.apply(pod(1, "v2"));
    assert_eq!(seen(&bench, sidecar(1)), mine);
    let key = ObjectKey::new(KindId::DestinationRule, "shop", "chosen");
    let accepted = bench.condition(&key, "Accepted").unwrap();
    assert!(accepted.holds && accepted.message.contains("that it selects"), "{accepted:?}");
    assert_eq!(bench.condition(&key, "Warning"), None);
}

// === properties ===

fn variants() -> Vec<Vec<Value>> {
    let mut closed = gateway();
    closed["spec"]["listeners"][0]["hostname"] = "a.example.com".into();
    let mut second_port = service("web");
    second_port["spec"]["ports"] =
        json!([{"name": "http", "port": 80}, {"name": "tcp", "port": 5432}]);
    let mut exported = service("api");
    exported["metadata"]["annotations"] = json!({"networking.istio.io/exportTo": "."});
    let mut mesh_route = route("mesh", &["api"]);
    mesh_route["spec"]["parentRefs"] = json!([{"group": "", "kind": "Service", "name": "web"}]);
    let mut wild = split(1, 1);
    wild["metadata"]["name"] = "wild".into();
    wild["spec"]["hosts"] = json!(["*.shop.svc.cluster.local"]);
    vec![
        vec![class()],
        vec![gateway(), closed],
        vec![service("web"), second_port],
        vec![service("api"), exported],
        vec![slice("web", &[(1, true)]), slice("web", &[(1, false), (2, true)])],
        vec![slice("api", &[(2, true)])],
        vec![pod(1, "v1"), pod(1, "v2")],
        vec![pod(2, "v2")],
        vec![route("users", &["web"]), route("users", &["web", "api"]), route("users", &["gone"])],
        vec![mesh_route],
        vec![split(9, 1), split(0, 100)],
        vec![wild],
        vec![subsets(&["v1", "v2"]), subsets(&["v1"])],
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// A compiler that followed every change holds what one that starts anew gives, and the
    /// deltas it gave add up to it.
    #[test]
    fn following_changes_is_the_same_as_starting_anew(
        log in prop::collection::vec((0..13usize, prop::option::weighted(0.8, 0..3usize)), 1..40)
    ) {
        let all = variants();
        let mut world = World::new();
        let (mut compiler, _) = Compiler::new(Env::default(), &world);
        compiler.gate = Gate::open();
        let mut held = BTreeMap::new();
        for (at, value) in log {
            let choices = &all[at];
            let delta = match value {
                Some(v) => put(&mut world, &choices[v % choices.len()]),
                None => {
                    let meta = &choices[0]["metadata"];
                    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                    let kind = KindId::by_api(
                        &text(&choices[0]["apiVersion"]), &text(&choices[0]["kind"]));
                    let key = ObjectKey::new(
                        kind.unwrap(), text(&meta["namespace"]), text(&meta["name"]));
                    world.apply(&key.store_key(), None, world.revision() + 1)
                }
            };
            let update = compiler.update(&world, &delta);
            for name in &update.delta.removes {
                held.retain(|n: &ResourceName, _| {
                    n != name && !(name.child.is_empty() && n.root == name.root)
                });
            }
            held.extend(update.delta.upserts);
        }
        let (fresh, _) = Compiler::new(Env::default(), &world);
        prop_assert_eq!(&compiler.mesh, &fresh.mesh);
        prop_assert_eq!(&compiler.statuses, &fresh.statuses);
        prop_assert_eq!(&compiler.reads, &fresh.reads);
        // A child whose root is away is kept here and comes with its root.
        let rooted = |n: &ResourceName| fresh.mesh.get(&n.root.own()).is_some();
        held.retain(|n, _| rooted(n));
        let want: BTreeMap<_, _> = fresh.mesh.resources.iter()
            .filter(|(n, _)| rooted(n))
            .map(|(n, r)| (n.clone(), r.clone())).collect();
        prop_assert_eq!(held, want);
    }
}
