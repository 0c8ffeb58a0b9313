// SPDX-License-Identifier: Apache-2.0
//! What a large configuration takes: bytes that stay per endpoint and per route, of the resources
//! that are kept and of the table together. They may only become fewer.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_base::clock::Clock;
use weft_model::*;
use weft_proxy::table::Builder;

use super::sys;

const SERVICES: usize = 1_000;
const EACH: usize = 10;
const ROUTES: usize = 5_000;
/// Bytes: 1,302 and 1,716 were counted, and a little room.
const ENDPOINT_MOST: i64 = 1_350;
const ROUTE_MOST: i64 = 1_800;

type Upserts = Vec<(ResourceName, Result<Resource, Fail>)>;

fn endpoint(service: usize, n: usize) -> Endpoint {
    let labels = [("app", format!("s{service}")), ("version", "v1".to_owned())];
    let address = SocketAddr::from(([10, 0, (service % 250) as u8, n as u8], 8080));
    Endpoint {
        id: format!("s{service}-7d9f8c6b5-{n}").as_str().into(),
        address,
        labels: labels.into_iter().map(|(k, v)| (k.into(), v.as_str().into())).collect(),
        locality: Locality::parse("eu/eu-a"),
        weight: 1,
        health: Health::Healthy,
        identity: Some(format!("spiffe://cluster.local/ns/shop/sa/s{service}").as_str().into()),
        transport: Transport::Plaintext,
        workload: format!("s{service}").as_str().into(),
        mesh_address: None,
    }
}

/// A service as it comes from the wire: nothing of it is shared yet.
fn service(n: usize) -> Upserts {
    let name: Arc<str> = format!("s{n}.shop.svc.cluster.local").as_str().into();
    let (host, child) = (Root::host(name.clone()), backend_child(80, ""));
    let port = HostPort {
        port: 80,
        name: "http".into(),
        protocol: Protocol::Http1,
        backend: child.as_str().into(),
        upstream_port: None,
    };
    let backend = Backend {
        service: name.clone(),
        port: 80,
        subset: "".into(),
        selector: Labels::new(),
        policy: BackendPolicy::default(),
        origin: None,
    };
    let set = EndpointSet {
        service: name.clone(),
        namespace: "shop".into(),
        port: 80,
        protocol: Protocol::Http1,
        endpoints: (0..EACH).map(|i| endpoint(n, i)).collect(),
    };
    let named = Host { name, aliases: vec![], addresses: vec![], ports: vec![port] };
    vec![
        (host.own(), Ok(Resource::Host(named))),
        (host.child(child), Ok(Resource::Backend(backend))),
        (host.child(endpoints_child(80)), Ok(Resource::Endpoints(set))),
    ]
}

fn route(n: usize) -> (ResourceName, Result<Resource, Fail>) {
    let door = Root::listener("shop/web/80");
    let origin = |field: &str| Origin {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: format!("r{n}").as_str().into(),
        field: field.into(),
    };
    let host = Root::host(format!("s{}.shop.svc.cluster.local", n % SERVICES).as_str());
    let share = WeightedBackend {
        target: Target::Backend(host.child(backend_child(80, ""))),
        weight: 1,
        filters: Vec::new(),
    };
    let path = PathMatch::ElementPrefix(format!("/api/v{}", n % 7).as_str().into());
    let rule = Rule {
        name: "".into(),
        matches: vec![Match { path: Some(path), ..Match::default() }],
        filters: Vec::new(),
        action: Action::Forward(vec![share]),
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: origin("spec.rules[0]"),
        sources: weft_model::Sources::default(),
    };
    let route = Route {
        parent: Parent::Listener {
            root: door.clone(),
            sections: vec!["http".into()],
            hostnames: vec![format!("h{n}.example.com").as_str().into()],
        },
        scope: Scope::Any,
        matching: Matching::MostSpecific,
        rank: Rank {
            dialect: Dialect::ProducerHttpRoute,
            created_ms: 0,
            name: format!("shop/r{n}").as_str().into(),
        },
        rules: vec![rule],
        origin: origin(""),
    };
    let child = format!("route/httproute/shop/r{n}");
    (door.child(child.as_str()), Ok(Resource::Route(route)))
}

fn listener() -> (ResourceName, Result<Resource, Fail>) {
    let section =
        Section { name: "http".into(), hostname: None, protocol: Protocol::Http1, tls: None };
    let bind = vec!["127.0.0.1:0".parse().unwrap()];
    let kind = ListenerKind::Gateway(GatewayListener::new(bind, vec![section]));
    let listener = Listener { name: "shop/web/80".into(), kind, origin: None };
    (Root::listener("shop/web/80").own(), Ok(Resource::Listener(listener)))
}

#[test]
fn a_large_table_takes_few_bytes_for_each_endpoint_and_route() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    let before = sys::held_here();
    let services: Upserts = (0..SERVICES).flat_map(service).chain([listener()]).collect();
    let (table, rejected) = builder.apply(1, services, &[]);
    assert_eq!(rejected, []);
    assert_eq!(table.backends().map(|b| b.endpoints.len()).sum::<usize>(), SERVICES * EACH);
    drop(table);
    let with_endpoints = sys::held_here();
    let (table, rejected) = builder.apply(2, (0..ROUTES).map(route).collect(), &[]);
    assert_eq!(rejected, []);
    assert_eq!(table.gateway("shop/web/80").unwrap().routes.len(), ROUTES);
    drop(table);
    let with_routes = sys::held_here();
    let endpoint = (with_endpoints - before) / (SERVICES * EACH) as i64;
    let route = (with_routes - with_endpoints) / ROUTES as i64;
    println!("{endpoint} bytes per endpoint, {route} per route");
    assert!(endpoint <= ENDPOINT_MOST, "{endpoint} bytes per endpoint");
    assert!(route <= ROUTE_MOST, "{route} bytes per route");
}

#[test]
fn what_is_sent_again_as_it_was_takes_nothing_more() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    let all = || {
        let services = (0..50).flat_map(service).chain([listener()]);
        services.chain((0..50).map(route)).collect::<Upserts>()
    };
    let sizes: Vec<i64> = (1..6)
        .map(|generation| {
            let before = sys::held_here();
            drop(builder.apply(generation, all(), &[]));
            sys::held_here() - before
        })
        .collect();
    let [first, later @ ..] = sizes.as_slice() else { unreachable!() };
    // Hash tables may be laid out anew.
    assert!(later.iter().sum::<i64>() < first / 50, "{sizes:?}");
}
