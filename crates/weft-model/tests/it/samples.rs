// SPDX-License-Identifier: Apache-2.0
//! One resource of every type that uses every variant of the model.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_model::*;

/// File name and resource.
pub fn all() -> Vec<(&'static str, Resource)> {
    vec![
        ("host", host()),
        ("listener-gateway", gateway()),
        ("listener-inbound", inbound()),
        ("listener-capture", capture()),
        ("route-mesh", Resource::Route(mesh_route())),
        ("route-gateway", Resource::Route(gateway_route())),
        ("route-redirect", Resource::Route(redirected())),
        ("route-connections", Resource::Route(connections())),
        ("backend", backend(LbPolicy::LeastRequest)),
        ("backend-random", backend(LbPolicy::Random)),
        ("backend-ewma", backend(LbPolicy::PeakEwma)),
        ("backend-hash", backend(LbPolicy::Hash(Box::new(hashing())))),
        ("backend-anonymous", anonymous()),
        ("backend-through", through()),
        ("backend-zones", zoned()),
        ("backend-passthrough", backend(LbPolicy::Passthrough)),
        ("endpoints", Resource::Endpoints(endpoints())),
        ("fail", Resource::Fail(Fail { reason: "why".into(), origin: Some(origin("")) })),
    ]
}

pub fn origin(field: &str) -> Origin {
    Origin {
        kind: "VirtualService".into(),
        namespace: "shop".into(),
        name: "product".into(),
        field: field.into(),
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn host() -> Resource {
    let port = |port, protocol, upstream_port| HostPort {
        port,
        name: "http".into(),
        protocol,
        backend: backend_child(port, "").into(),
        upstream_port,
    };
    let protocols = [
        Protocol::Detect,
        Protocol::Http1,
        Protocol::Http2,
        Protocol::Grpc,
        Protocol::Tcp,
        Protocol::Tls,
        Protocol::Udp,
    ];
    let ports = (80..).zip(protocols).map(|(n, p)| port(n, p, (n == 80).then_some(20_000)));
    Resource::Host(Host {
        name: "product.shop.svc.cluster.local".into(),
        aliases: vec!["product.shop.svc".into(), "product.shop".into()],
        addresses: vec!["127.96.0.1".parse().unwrap(), "fd00:7766:1::1".parse().unwrap()],
        ports: ports.collect(),
    })
}

fn listener(name: &str, kind: ListenerKind) -> Resource {
    Resource::Listener(Listener { name: name.into(), kind, origin: Some(origin("spec")) })
}

fn gateway() -> Resource {
    let section = |name: &str, hostname: Option<&str>, tls: bool| Section {
        name: name.into(),
        hostname: hostname.map(Into::into),
        protocol: if tls { Protocol::Tls } else { Protocol::Http1 },
        tls: tls.then(|| ServerTls {
            clients: Some(Box::new(ClientCertificates {
                ca_pem: "ca".into(),
                required: true,
                insecure: true,
            })),
            alpn: vec!["http/1.1".into()],
            only_13: true,
            ..ServerTls::new("chain", "key")
        }),
    };
    let kind = ListenerKind::Gateway(GatewayListener {
        bind: vec![at("127.0.0.1:8000"), at("[::1]:8000")],
        sections: vec![section("any", None, false), section("tls", Some("*.a.example"), true)],
        proxy_header: ProxyHeader::Required,
        edge: Edge {
            trusted_hops: 1,
            underscores: true,
            slashes: Slashes { merge: true, escaped: EscapedSlashes::Redirect },
        },
        backend_certificate: Some(Box::new(Certificate {
            chain_pem: "chain".into(),
            key_pem: "key".into(),
        })),
        limits: Some(Arc::new(ClientLimits {
            idle_ms: Some(3_600_000),
            head_ms: Some(5_000),
            age_ms_max: Some(86_400_000),
            requests_max: Some(1_000),
            streams_max: Some(64),
            headers_max: Some(100),
            head_bytes_max: Some(61_440),
        })),
    });
    listener("shop~shop~8000", kind)
}

fn inbound() -> Resource {
    let kind = ListenerKind::Inbound(InboundListener {
        port: 8080,
        app: at("127.64.0.1:8080"),
        protocol: Protocol::Grpc,
        services: vec!["product.shop.svc.cluster.local".into()],
        mtls: MtlsMode::Permissive,
    });
    listener("inbound~shop~p~8080", kind)
}

fn capture() -> Resource {
    let kind = ListenerKind::Capture(CaptureListener {
        mtls: MtlsMode::Strict,
        ports: BTreeMap::from([(9090, MtlsMode::Disable)]),
        egress: Egress::Deny,
        ..CaptureListener::default()
    });
    listener("inbound~shop~p~capture", kind)
}

fn named(name: &str, value: StringMatch) -> NamedMatch {
    NamedMatch { name: name.into(), value }
}

fn regex(source: &str) -> Regex {
    Regex::new(source).unwrap()
}

fn rule(field: &str, matches: Vec<Match>, action: Action) -> Rule {
    Rule {
        name: "r".into(),
        matches,
        filters: Vec::new(),
        action,
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: origin(field),
        sources: weft_model::Sources::default(),
    }
}

fn path(path: PathMatch) -> Match {
    Match { path: Some(path), ..Match::default() }
}

fn fault() -> Filter {
    Filter::Fault(Fault {
        delay: Some(Delay { ms: 5, share: Share::of(1, 2) }),
        abort: Some(Abort { answer: AbortAnswer::Grpc(14), share: Share::of(1, 1000) }),
    })
}

fn mirror(subset: &str) -> Filter {
    let root = Root::host("product.shop.svc.cluster.local");
    let target = Target::Backend(root.child(backend_child(80, subset)));
    Filter::Mirror(Mirror { target, share: Share::ALL, mark_host: true })
}

fn cors() -> Filter {
    Filter::Cors(Cors {
        origins: vec![StringMatch::Present, StringMatch::Regex(regex("https://.*"))],
        methods: vec!["GET".into()],
        headers: vec!["x-a".into()],
        expose: vec!["x-b".into()],
        max_age_s: Some(5),
        credentials: true,
        forward_unmatched: true,
    })
}

fn access() -> Filter {
    let range = AddressRange { base: "10.0.0.0".parse().unwrap(), bits: 8 };
    let who = AccessTest::OneOf(vec![
        AccessTest::Source(range),
        AccessTest::Identity(StringMatch::Prefix("spiffe://d/".into())),
    ]);
    let what = AccessTest::All(vec![
        AccessTest::Always,
        AccessTest::Not(Box::new(AccessTest::Port(1))),
        AccessTest::Path(PathMatch::Exact("/a".into())),
        AccessTest::Header(named(":method", StringMatch::Exact("GET".into()))),
    ]);
    let policies = vec![AccessPolicy { name: "readers".into(), who, what }];
    Filter::Access(std::sync::Arc::new(Access { effect: Effect::Allow, policies }))
}

pub fn mesh_route() -> Route {
    let edit = HeaderEdit {
        set: vec![("x-a".into(), "1".into())],
        add: vec![("x-b".into(), "2".into())],
        remove: vec!["x-c".into()],
    };
    let rewrite = |path| Filter::Rewrite(Rewrite { host: Some("h".into()), path: Some(path) });
    let share = |subset: &str, weight, filters| WeightedBackend {
        target: Target::Backend(
            Root::host("product.shop.svc.cluster.local").child(backend_child(80, subset)),
        ),
        weight,
        filters,
    };
    let everything = Match {
        path: Some(PathMatch::Regex(regex("/v[0-9]+/.*"))),
        method: Some(StringMatch::Exact("GET".into())),
        authority: Some(StringMatch::Prefix("product".into())),
        headers: vec![
            named("x-user", StringMatch::Regex(regex("[a-z]+"))),
            named("x-there", StringMatch::Present),
        ],
        query: vec![named("q", StringMatch::Exact("1".into()))],
        without_headers: vec![named("x-not", StringMatch::Present)],
        port: Some(80),
        scheme: Some(StringMatch::Exact("https".into())),
        connection: None,
    };
    let split = Action::Forward(vec![
        share("v1", 90, vec![Filter::ResponseHeaders(edit.clone())]),
        share("v2", 10, Vec::new()),
        WeightedBackend {
            target: Target::Fail { status: 500, reason: "no such subset".into() },
            weight: 0,
            filters: Vec::new(),
        },
    ]);
    let first = Rule {
        filters: vec![
            Filter::RequestHeaders(edit),
            rewrite(PathRewrite::Full("/full".into())),
            rewrite(PathRewrite::Prefix("/prefix".into())),
            rewrite(PathRewrite::Regex(RegexRewrite::new("/v([0-9])/", r"/\1/").unwrap())),
            fault(),
            mirror("v2"),
            cors(),
            access(),
            Filter::RateLimit(limit()),
            Filter::BodyLimit(1 << 20),
            Filter::Cache(cache()),
            Filter::Upgrades(vec!["websocket".into()]),
        ],
        timeouts: Timeouts {
            request_ms: Some(1_000),
            backend_request_ms: Some(0),
            idle_ms: Some(5_000),
            ..Timeouts::default()
        },
        session: Some(Session {
            by: SessionBy::Cookie { permanent: true },
            name: "s".into(),
            absolute_s: Some(60),
        }),
        retry: Retry {
            attempts: 3,
            per_try_timeout_ms: Some(300),
            declared_idempotent: true,
            statuses: vec![502, 503],
            grpc_statuses: vec![14],
            on_reset: false,
            backoff_ms: 10,
            ..Retry::default()
        },
        ..rule("spec.http[0]", vec![everything, path(PathMatch::Exact("/exact".into()))], split)
    };
    let plain = Action::Forward(vec![share("", 1, Vec::new())]);
    let no_case = vec![
        path(PathMatch::ExactNoCase("/Exact".into())),
        path(PathMatch::StringPrefixNoCase("/Prefix".into())),
    ];
    let fail = Action::Fail { status: 500, reason: "not valid".into() };
    Route {
        parent: Parent::Host { root: Root::host("product.shop.svc.cluster.local"), port: Some(80) },
        scope: Scope::Workload {
            namespace: "shop".into(),
            labels: [("app".into(), "order".into())].into(),
        },
        matching: Matching::FirstMatch,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 1, name: "shop/p".into() },
        rules: vec![
            first,
            rule("spec.http[1]", no_case, plain.clone()),
            rule("spec.http[2]", vec![path(PathMatch::StringPrefix("/s".into()))], plain),
            rule("spec.http[3]", Vec::new(), fail),
        ],
        origin: origin(""),
    }
}

/// Of one port: what is no HTTP.
/// Spoken to by TLS without any certificate.
pub fn anonymous() -> Resource {
    let Resource::Backend(mut backend) = backend(LbPolicy::Random) else { unreachable!() };
    backend.policy.tls = Some(Box::new(UpstreamTls { anonymous: true, ..UpstreamTls::default() }));
    Resource::Backend(backend)
}

/// Bytes go through it.
fn through() -> Resource {
    let Resource::Backend(mut backend) = backend(LbPolicy::Random) else { unreachable!() };
    let method = ThroughMethod::Connect;
    let through = Some(Through { host: "api.example".into(), port: 443, method });
    backend.policy.connections = Some(Arc::new(Connections { through, ..Connections::default() }));
    Resource::Backend(backend)
}

fn connections() -> Route {
    let range = |base: &str, bits| AddressRange { base: base.parse().unwrap(), bits };
    let ends = ConnectionMatch {
        sources: vec![range("10.0.0.0", 8)],
        destinations: vec![range("fd00::1", 128)],
    };
    let matched = Match { connection: Some(Box::new(ends)), ..Match::default() };
    let target = Target::Backend(Root::host("a.example").child(backend_child(80, "")));
    let to = WeightedBackend { target, weight: 1, filters: Vec::new() };
    let made = rule("spec.tcp[0]", vec![matched], Action::Forward(vec![to]));
    let timeouts =
        Timeouts { stream_ms: Some(60_000), receive_ms: Some(30_000), ..Timeouts::default() };
    let retry = Retry { tried_too: true, ..Retry::default() };
    Route { rules: vec![Rule { timeouts, retry, ..made }], ..gateway_route() }
}

/// Redirects as Istio has them.
pub fn redirected() -> Route {
    let port_from = RedirectPort::Written;
    let action = Action::Redirect(Redirect { status: 301, port_from, ..Redirect::default() });
    Route { rules: vec![rule("spec.http[0]", Vec::new(), action)], ..gateway_route() }
}

fn gateway_route() -> Route {
    let redirect = Action::Redirect(Redirect {
        scheme: Some("https".into()),
        host: Some("b.example".into()),
        port: Some(443),
        path: Some(PathRewrite::Prefix("/new".into())),
        status: 308,
        port_from: RedirectPort::Request,
    });
    let direct = Action::Direct { status: 200, body: "ok".into() };
    let prefix = vec![path(PathMatch::ElementPrefix("/users".into()))];
    Route {
        parent: Parent::Listener {
            root: Root::listener("shop~shop~8000"),
            sections: vec!["any".into()],
            hostnames: vec!["a.example".into()],
        },
        scope: Scope::Namespace("shop".into()),
        matching: Matching::MostSpecific,
        rank: Rank { dialect: Dialect::ProducerHttpRoute, created_ms: 0, name: "shop/u".into() },
        rules: vec![
            rule("spec.rules[0]", prefix, redirect),
            rule("spec.rules[1]", Vec::new(), direct),
        ],
        origin: origin(""),
    }
}

fn hashing() -> Hashing {
    Hashing {
        by: HashBy::Header("x-user".into()),
        table: HashTable::Ring { points_min: 1_024 },
        load_max_basis_points: None,
    }
}

fn limit() -> std::sync::Arc<RateLimit> {
    let by = vec![LimitBy::Client, LimitBy::Header("x-user".into()), LimitBy::Identity];
    let name = "TrafficPolicy shop/a spec.rateLimits[0]".into();
    RateLimit { name, requests: 10, per_ms: 1_000, burst: 20, by, keys_max: 100 }.into()
}

fn cache() -> std::sync::Arc<Cache> {
    let name = "TrafficPolicy shop/assets spec.cache".into();
    Cache { name, heuristic_ms_max: 60_000, set_cookie: true, ..Cache::default() }.into()
}

fn protection() -> Protection {
    let http = HttpCheck { statuses: vec![(200, 299)], ..HttpCheck::default() };
    let kind = CheckKind::Http(http);
    Protection {
        health_check: Some(HealthCheck { kind, port: Some(9), ..HealthCheck::default() }),
        adaptive: Some(Adaptive::default()),
        rate_limits: vec![limit()],
        timeouts: Timeouts { request_ms: Some(9), ..Timeouts::default() },
        body_bytes_max: Some(1 << 20),
        ungated: false,
    }
}

fn backend(lb: LbPolicy) -> Resource {
    let policy = BackendPolicy {
        lb,
        limits: Limits {
            connections_max: Some(5),
            pending_max: Some(6),
            requests_max: Some(7),
            retries_max: None,
        },
        tls: Some(Box::new(UpstreamTls {
            server_name: Some("api.example".into()),
            trust: Trust::Authorities("ca".into()),
            names: Names::OneOf(vec!["spiffe://d/a".into()]),
            certificate: Some(Certificate { chain_pem: "c".into(), key_pem: "k".into() }),
            only_13: true,
            anonymous: false,
        })),
        proxy_protocol: Some(ProxyVersion::V2),
        protection: Some(Box::new(protection())),
        connections: Some(Arc::new(used())),
        ..BackendPolicy::default()
    };
    Resource::Backend(Backend {
        service: "product.shop.svc.cluster.local".into(),
        port: 80,
        subset: "v1".into(),
        selector: [("version".into(), "v1".into())].into(),
        policy,
        origin: Some(origin("spec.subsets[0]")),
    })
}

fn used() -> Connections {
    Connections {
        requests_max: Some(1_000),
        age_ms_max: Some(3_600_000),
        streams_max: Some(50),
        keepalive: Some(TcpKeepalive { idle_s: Some(60), interval_s: Some(5), probes: Some(4) }),
        pings: Some(Pings { interval_ms: 30_000, timeout_ms: PING_TIMEOUT_MS }),
        speaks: Some(Speaks::Http2),
        through: None,
    }
}

fn zoned() -> Resource {
    let Resource::Backend(mut backend) = backend(LbPolicy::RoundRobin) else { unreachable!() };
    backend.policy.locality = LocalityPolicy::Zones(ZoneAware::default());
    Resource::Backend(backend)
}

pub fn endpoints() -> EndpointSet {
    let transports = [
        Transport::Plaintext,
        Transport::Tls,
        Transport::MtlsAppPort,
        Transport::MeshH1,
        Transport::MeshH2,
        Transport::Hbone,
    ];
    let healths = [Health::Healthy, Health::Unhealthy, Health::Draining];
    let one = |(n, transport): (usize, Transport)| Endpoint {
        id: format!("product-{n}").into(),
        address: at("[fd00::1]:8080"),
        labels: [("version".into(), "v1".into())].into(),
        locality: Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() },
        weight: 1,
        health: healths[n % 3],
        identity: (n > 0).then(|| "spiffe://cluster.local/ns/shop/sa/product".into()),
        transport,
        workload: "product".into(),
        mesh_address: None,
    };
    EndpointSet {
        service: "product.shop.svc.cluster.local".into(),
        namespace: "shop".into(),
        port: 80,
        protocol: Protocol::Grpc,
        endpoints: transports.into_iter().enumerate().map(one).collect(),
    }
}
