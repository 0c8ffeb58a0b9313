// SPDX-License-Identifier: Apache-2.0
//! From manifests to decisions: each client's own view of the Mesh, asked with the very function
//! that proxies run. Manifests are the golden features' and the shop's own.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::{Compiler, Update};
use weft_control::status::StatusBody;
use weft_kinds::world::World;
use weft_model::decide::{Headers, Request, find_rule};
use weft_model::{Action, Parent, Resource, Root, Route, Target};

struct NoHeaders;

impl Headers for NoHeaders {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn compiled(world: &World) -> (Compiler, Update) {
    Compiler::new(Env::default(), world)
}

/// The object and field whose rule a node's request to a root follows.
fn follows(compiler: &Compiler, node: &str, root: &Root, (port, path): (u16, &str)) -> String {
    let mesh = compiler.mesh();
    let scope = mesh.scope(&node.parse().unwrap()).unwrap();
    let routes: Vec<&Route> = mesh
        .view(&scope)
        .filter(|(name, _)| name.root == *root)
        .filter_map(|(_, r)| match &**r {
            Resource::Route(route) => Some(route),
            _ => None,
        })
        .collect();
    let section = routes.iter().find_map(|r| match &r.parent {
        Parent::Listener { sections, .. } => Some(sections[0].clone()),
        Parent::Host { .. } => None,
    });
    let request = Request {
        method: "GET",
        scheme: "http",
        host: "any.example.com",
        port,
        written: None,
        path,
        query: "",
        headers: &NoHeaders,
    };
    match find_rule(routes, section.as_deref(), &request) {
        Some(found) => found.rule.origin.to_string(),
        None => "nothing".to_owned(),
    }
}

#[test]
fn consumers_producers_and_virtualservices_have_their_order() {
    let dir = "testdata/one-service-with-a-producer-a-consumer-and-a-virtualservice";
    let world = crate::common::world_of([&*read(&format!("{dir}/in.yaml"))]);
    let (compiler, _) = compiled(&world);
    let root = Root::host("product.shop.svc.cluster.local");
    let check = |node: &str, want: &str| {
        assert_eq!(follows(&compiler, node, &root, (80, "/")), want, "{node}");
    };
    check("sidecar~web~client", "HTTPRoute web/by-a-consumer spec.rules[0]");
    check("sidecar~shop~neighbour", "HTTPRoute shop/by-its-producer spec.rules[0]");
}

#[test]
fn a_client_gets_the_rules_for_what_it_is() {
    let dir = "testdata/sources-and-exports-narrow-a-virtualservices-clients";
    let mut world = crate::common::world_of([&*read(&format!("{dir}/in.yaml"))]);
    for (ns, name, canary) in [("b", "plain", "no"), ("a", "canary", "yes")] {
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata":
            {"namespace": ns, "name": name, "labels": {"canary": canary}}});
        crate::common::put(&mut world, &pod);
    }
    let (compiler, _) = compiled(&world);
    let root = Root::host("api.a.svc.cluster.local");
    let check = |node: &str, path: &str, want: &str| {
        assert_eq!(follows(&compiler, node, &root, (80, path)), want, "{node} {path}");
    };
    check("sidecar~a~plain", "/b", "VirtualService a/api spec.http[2]");
    check("sidecar~a~canary", "/b", "VirtualService a/api spec.http[0]");
    check("sidecar~b~canary", "/b", "VirtualService a/api spec.http[0]");
    check("sidecar~b~plain", "/b", "VirtualService a/api spec.http[1]");
    check("sidecar~b~plain", "/", "VirtualService a/api spec.http[2]");
    check("sidecar~c~stranger", "/", "nothing");
}

/// A gateway with an HTTPRoute and a GRPCRoute of one host.
fn both_kinds(http: (&str, Value), calls: (&str, Value)) -> (Compiler, Update) {
    let mut world = crate::common::world_of([]);
    let api = "gateway.networking.k8s.io/v1";
    let route = |kind: &str, name: &str, (created, matches): (&str, Value)| {
        json!({"apiVersion": api, "kind": kind,
            "metadata": {"namespace": "shop", "name": name, "creationTimestamp": created},
            "spec": {"parentRefs": [{"name": "front"}], "hostnames": ["any.example.com"],
                "rules": [{"matches": matches, "backendRefs": [{"name": "product", "port": 80}]}]}})
    };
    for object in [
        json!({"apiVersion": api, "kind": "GatewayClass", "metadata": {"name": "weft"},
            "spec": {"controllerName": "weft.dev/gateway"}}),
        json!({"apiVersion": api, "kind": "Gateway",
            "metadata": {"namespace": "shop", "name": "front"},
            "spec": {"gatewayClassName": "weft", "addresses": [{"value": "127.0.0.1"}],
                "listeners": [{"name": "any", "port": 8000, "protocol": "HTTP"}]}}),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "product"},
            "spec": {"ports": [{"port": 80}]}}),
        route("HTTPRoute", "web", http),
        route("GRPCRoute", "calls", calls),
    ] {
        crate::common::put(&mut world, &object);
    }
    compiled(&world)
}

/// Gateway API v1.6: "Implementations that support GRPCRoute may enforce uniqueness of hostnames
/// between GRPCRoutes and HTTPRoutes". weft does not.
#[test]
fn an_httproute_and_a_grpcroute_share_a_host() {
    let root = Root::listener("shop~front~8000");
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let service = json!([{"method": {"service": "shop.Product"}}]);
    let page = json!([{"path": {"type": "PathPrefix", "value": "/shop.Product/docs"}}]);
    let (web, calls) = ("HTTPRoute shop/web spec.rules[0]", "GRPCRoute shop/calls spec.rules[0]");
    for (http, grpc, path, want) in [
        // What is more specific, whatever its kind and age.
        ((old, json!([])), (young, service.clone()), "/shop.Product/Get", calls),
        ((old, json!([])), (young, service.clone()), "/", web),
        ((young, page.clone()), (old, service), "/shop.Product/docs/1", web),
        // The older one of equals.
        ((old, json!([])), (young, json!([])), "/", web),
        ((young, json!([])), (old, json!([])), "/", calls),
        // Among these by name.
        ((old, json!([])), (old, json!([])), "/", calls),
    ] {
        let case = format!("{path}: {http:?} {grpc:?}");
        let (compiler, update) = both_kinds(http, grpc);
        let got = follows(&compiler, "gateway~shop~front", &root, (8000, path));
        assert_eq!(got, want, "{case}");
        let accepted = update.statuses.iter().filter(|status| match &status.body {
            StatusBody::Parents(of) => of.iter().all(|p| p.conditions.iter().all(|c| c.holds)),
            _ => false,
        });
        assert_eq!(accepted.count(), 2, "{case}: {:?}", update.statuses);
    }
}

#[test]
fn the_shop_compiles_without_a_complaint_and_routes_as_its_readme_says() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    let mut world = crate::common::world_of(texts.iter().map(|t| &**t));
    for object in [
        serde_json::json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "weft"}, "spec": {"controllerName": "weft.dev/gateway"}}),
        serde_json::json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "order-1"}}),
    ] {
        crate::common::put(&mut world, &object);
    }
    let (compiler, update) = compiled(&world);
    assert!(update.statuses.len() >= 7, "{:?}", update.statuses);
    for status in &update.statuses {
        let conditions = match &status.body {
            StatusBody::Conditions(conditions) | StatusBody::Class { conditions, .. } => {
                conditions.clone()
            }
            StatusBody::Gateway { conditions, .. } | StatusBody::ListenerSet { conditions, .. } => {
                conditions.clone()
            }
            StatusBody::Parents(parents) | StatusBody::Ancestors(parents) => {
                assert!(!parents.is_empty(), "{}", status.object);
                parents.iter().flat_map(|p| p.conditions.clone()).collect()
            }
        };
        for c in conditions {
            assert!(c.holds && c.kind != "Warning", "{}: {c:?}", status.object);
        }
    }
    let gateway = Root::listener("shop~shop~8000");
    for (path, want) in [
        ("/users/1", "HTTPRoute shop/users"),
        ("/products", "HTTPRoute shop/products"),
        ("/orders", "HTTPRoute shop/orders"),
        ("/", "nothing"),
    ] {
        let got = follows(&compiler, "gateway~shop~shop", &gateway, (8000, path));
        assert!(got.starts_with(want), "{path}: {got}");
    }
    let name = "host:product.shop.svc.cluster.local/route/virtualservice/shop/product/50051";
    let name = weft_model::ResourceName::try_from(name.to_owned()).unwrap();
    let Some(Resource::Route(route)) = compiler.mesh().get(&name).map(|r| &**r) else {
        panic!("{name} is missing")
    };
    assert!(route.rules[0].retry.declared_idempotent);
    let Action::Forward(split) = &route.rules[0].action else { panic!("{route:?}") };
    let shares: Vec<(String, u32)> = split
        .iter()
        .map(|b| match &b.target {
            Target::Backend(name) => (name.child.to_string(), b.weight),
            Target::Fail { reason, .. } => panic!("{reason}"),
        })
        .collect();
    assert_eq!(shares, [("backend/50051/v1".to_owned(), 90), ("backend/50051/v2".to_owned(), 10)]);
}
