// SPDX-License-Identifier: Apache-2.0
//! What bootstraps become, and what is said about those that are wrong.

use std::io;
use std::path::Path;

use weft_model::{
    Action, Backend, CheckKind, EndpointSet, Filter, HashBy, Health, LbPolicy, ListenerKind,
    LocalityPolicy, Names, Outlier, PathMatch, Protocol, ProxyVersion, Resource, Route,
    StringMatch, Trust,
};

use crate::read::duration_ms;
use crate::{Bootstrap, Files, Resolved, bootstrap};

mod closed;
mod listeners;
mod not_done;
mod options;

struct Pem;

impl Files for Pem {
    fn read(&self, path: &Path) -> io::Result<String> {
        match path.to_str() {
            Some("missing") => Err(io::ErrorKind::NotFound.into()),
            name => Ok(format!("pem of {}", name.unwrap_or_default())),
        }
    }
}

fn read(text: &str) -> Bootstrap {
    bootstrap(text, &Pem).unwrap()
}

/// A bootstrap of one listener, with these routes and clusters, in YAML's flow style.
fn with(routes: &str, clusters: &str) -> Bootstrap {
    let ext = "type.googleapis.com/envoy.extensions.filters";
    let manager = format!("{ext}.network.http_connection_manager.v3.HttpConnectionManager");
    read(&format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": {manager}
          stat_prefix: x
          http_filters:
          - name: cors
            typed_config: {{"@type": {ext}.http.cors.v3.Cors}}
          - name: router
            typed_config: {{"@type": {ext}.http.router.v3.Router}}
          route_config: {{virtual_hosts: [{{name: v, domains: ["*"], routes: [{routes}]}}]}}
  clusters: [{clusters}]
"#
    ))
}

const UP: &str = "{name: up, load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: \
                  {socket_address: {address: 10.0.0.1, port_value: 8080}}}}]}]}}";

fn route(read: &Bootstrap) -> &Route {
    let found = read.resources.iter().find_map(|(_, r)| match r {
        Resource::Route(route) => Some(route),
        _ => None,
    });
    found.unwrap()
}

fn backend(read: &Bootstrap) -> &Backend {
    let found = read.resources.iter().find_map(|(_, r)| match r {
        Resource::Backend(backend) if backend.subset.is_empty() => Some(backend),
        _ => None,
    });
    found.unwrap()
}

fn endpoints(read: &Bootstrap) -> &EndpointSet {
    let found = read.resources.iter().find_map(|(_, r)| match r {
        Resource::Endpoints(set) => Some(set),
        _ => None,
    });
    found.unwrap()
}

fn clean(read: Bootstrap) -> Bootstrap {
    assert!(read.errors.is_empty() && read.unsupported.is_empty(), "{read:#?}");
    read
}

fn said(issues: &[weft_base::issue::Issue]) -> String {
    issues.iter().map(|i| format!("{i}\n")).collect()
}

#[test]
fn durations_are_protobufs() {
    for (text, ms) in [
        ("1s", Some(1_000)),
        ("0s", Some(0)),
        ("0.25s", Some(250)),
        ("0.0001s", Some(1)),
        ("3.000000001s", Some(3_001)),
        ("1", None),
        ("s", None),
        ("-1s", None),
        ("1.2.3s", None),
        ("1ms", None),
        ("18446744073709551615s", None),
    ] {
        assert_eq!(duration_ms(text), ms, "{text}");
    }
}

#[test]
fn a_cluster_says_who_its_clients_are_and_how_much_one_endpoint_gets() {
    let ext = "type.googleapis.com/envoy.extensions.transport_sockets";
    let socket = |config: &str, inner: &str| {
        format!(
            "transport_socket: {{name: p, typed_config: {{'@type': {ext}.proxy_protocol.v3.\
             ProxyProtocolUpstreamTransport, config: {{{config}}}, transport_socket: {inner}}}}},"
        )
    };
    let raw = format!("{{name: r, typed_config: {{'@type': {ext}.raw_buffer.v3.RawBuffer}}}}");
    let tls = format!("{{name: t, typed_config: {{'@type': {ext}.tls.v3.UpstreamTlsContext}}}}");
    let policy = |more: &str| {
        let up = UP.replacen("{name: up,", &format!("{{name: up, {more}"), 1);
        let hashed = "hash_policy: [{header: {header_name: x}}]";
        let routes = format!("{{match: {{prefix: /}}, route: {{cluster: up, {hashed}}}}}");
        backend(&clean(with(&routes, &up))).policy.clone()
    };
    for (config, inner, version, ends) in [
        ("", &raw, ProxyVersion::V1, false),
        ("version: V1", &tls, ProxyVersion::V1, true),
        ("version: V2", &raw, ProxyVersion::V2, false),
    ] {
        let made = policy(&socket(config, inner));
        assert_eq!((made.proxy_protocol, made.tls.is_some()), (Some(version), ends), "{config}");
    }
    for (factor, share) in [(0, None), (125, Some(12_500))] {
        let bound = format!("consistent_hashing_lb_config: {{hash_balance_factor: {factor}}}");
        let made = policy(&format!("lb_policy: MAGLEV, common_lb_config: {{{bound}}},"));
        let LbPolicy::Hash(hash) = made.lb else { panic!("{made:?}") };
        assert_eq!(hash.load_max_basis_points, share);
    }
}

#[test]
fn a_check_that_names_no_host_asks_for_its_clusters_name() {
    let checked = |kind: &str| {
        let check = "interval: 1s, timeout: 1s, healthy_threshold: 1, unhealthy_threshold: 1";
        let up = format!("{{name: up, health_checks: [{{{check}, {kind}}}],");
        let read = clean(with("", &UP.replacen("{name: up,", &up, 1)));
        backend(&read).policy.protection.clone().unwrap().health_check.unwrap().kind
    };
    for (said, asked) in [("", "up"), (", host: a.example", "a.example"), (", host: ''", "up")] {
        let CheckKind::Http(http) = checked(&format!("http_health_check: {{path: /{said}}}"))
        else {
            panic!("{said}")
        };
        assert_eq!(&*http.host, asked);
    }
    let grpc = CheckKind::Grpc { service: "".into(), authority: "up".into() };
    assert_eq!(checked("grpc_health_check: {}"), grpc);
}

/// As Envoy's own examples write some.
#[test]
fn names_of_enums_are_read_in_any_case() {
    let routes = "{match: {prefix: /}, redirect: {response_code: found, path_redirect: /x}}";
    let read = clean(with(
        routes,
        &UP.replacen(
            "{name: up,",
            "{name: up, type: static, \
        lb_policy: Random,",
            1,
        ),
    ));
    assert_eq!(backend(&read).policy.lb, LbPolicy::Random);
    let Action::Redirect(redirect) = &route(&read).rules[0].action else { panic!("{read:#?}") };
    assert_eq!(redirect.status, 302);
    let wrong = with("", &UP.replacen("{name: up,", "{name: up, lb_policy: best,", 1));
    assert!(said(&wrong.unsupported).contains(".lb_policy: "), "{:?}", wrong.unsupported);
}

#[test]
fn a_route_forwards_with_envoys_defaults() {
    let read = clean(with("{match: {prefix: /a}, route: {cluster: up}}", UP));
    let rule = &route(&read).rules[0];
    let path = rule.matches[0].path.as_ref();
    assert_eq!(path, Some(&PathMatch::StringPrefix("/a".into())));
    assert_eq!(rule.timeouts.request_ms, Some(15_000));
    assert_eq!((rule.retry.attempts, rule.retry.on_reset), (0, false), "nothing is repeated");
    let backend = backend(&read);
    assert_eq!(backend.policy.limits.requests_max, Some(1_024));
    assert_eq!((backend.policy.connect_timeout_ms, backend.port), (5_000, 8080));
    assert!(backend.policy.outlier == Outlier::off());
    assert_eq!(endpoints(&read).endpoints[0].address, "10.0.0.1:8080".parse().unwrap());
    // Nothing takes what the routes leave: this host answers it, and no wider one.
    let last = route(&read).rules.last().unwrap();
    assert!(matches!(last.action, Action::Fail { status: 404, .. }), "{last:?}");
}

#[test]
fn both_spellings_mean_the_same_and_only_one_may_be_used() {
    let snake = with("{match: {prefix: /}, route: {cluster: up, prefix_rewrite: /b}}", UP);
    let camel = with("{match: {prefix: /}, route: {cluster: up, prefixRewrite: /b}}", UP);
    assert_eq!(clean(snake).resources, clean(camel).resources);
    let both = "{match: {prefix: /}, route: {cluster: up, prefixRewrite: /b, prefix_rewrite: /c}}";
    assert!(said(&with(both, UP).errors).contains("prefix_rewrite: it is given twice"));
}

#[test]
fn matches_of_all_kinds() {
    let check = |text: &str| {
        let read = clean(with(&format!("{{match: {text}, route: {{cluster: up}}}}"), UP));
        route(&read).rules[0].matches[0].clone()
    };
    let m = check(
        "{path: /x, case_sensitive: false, headers: [{name: ':method', string_match: {exact: \
         PUT}}, {name: X-A, string_match: {suffix: z}}, {name: x-b, present_match: false}, {name: \
         x-c, exact_match: '1', invert_match: true}], query_parameters: [{name: q, string_match: \
         {prefix: a}}]}",
    );
    assert_eq!(m.path, Some(PathMatch::ExactNoCase("/x".into())));
    assert_eq!(m.method, Some(StringMatch::Exact("PUT".into())));
    assert_eq!(&*m.headers[0].name, "x-a");
    assert!(m.headers[0].value.holds(b"abcz") && !m.headers[0].value.holds(b"az."));
    let without: Vec<&str> = m.without_headers.iter().map(|h| &*h.name).collect();
    assert_eq!(without, ["x-b", "x-c"]);
    assert_eq!(m.query[0].value, StringMatch::Prefix("a".into()));
    let m = check("{path_separated_prefix: /api, grpc: {}}");
    assert_eq!(m.path, Some(PathMatch::ElementPrefix("/api".into())));
    assert!(m.headers[0].value.holds(b"application/grpc+proto"));
    assert!(!m.headers[0].value.holds(b"application/grpc-web"));
    assert!(!m.headers[0].value.holds(b"application/grpc;charset=x"));
}

#[test]
fn weights_parts_hashing_retries_copies_and_cors() {
    let read = with(
        "{match: {prefix: /}, typed_per_filter_config: {cors: {'@type': \
         type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, \
         allow_origin_string_match: [{exact: '*'}], allow_methods: 'GET, PUT'}}, route: \
         {weighted_clusters: {clusters: [{name: up, weight: 3, metadata_match: {filter_metadata: \
         {envoy.lb: {version: v1}}}}, {name: up, weight: 1}]}, hash_policy: \
         [{connection_properties: \
         {source_ip: true}}], retry_policy: {retry_on: '5xx,retriable-status-codes,unavailable', \
         num_retries: 3, retriable_status_codes: [429], per_try_timeout: 0.5s}, \
         request_mirror_policies: [{cluster: up, runtime_fraction: {default_value: {numerator: \
         25}}}]}}",
        "{name: up, type: STATIC, lb_policy: MAGLEV, lb_subset_config: {subset_selectors: [{keys: \
         [version]}]}, load_assignment: {endpoints: [{lb_endpoints: [{metadata: {filter_metadata: \
         {envoy.lb: {version: v1}}}, load_balancing_weight: 2, health_status: DRAINING, endpoint: \
         {address: {socket_address: {address: '::1', port_value: 1}}}}]}]}}",
    );
    let read = clean(read);
    let rule = &route(&read).rules[0];
    let weights: Vec<u32> = rule.shares().iter().map(|s| s.weight).collect();
    assert_eq!(weights, [3, 1]);
    let part = rule.shares()[0].target.backend().unwrap();
    assert_eq!(&*part.child, "backend/1/version=v1");
    let selected = read.resources.iter().find_map(|(name, r)| match r {
        Resource::Backend(b) if name == part => Some(b),
        _ => None,
    });
    assert_eq!(selected.unwrap().selector.get("version").map(|v| &**v), Some("v1"));
    let LbPolicy::Hash(hashing) = &backend(&read).policy.lb else { panic!() };
    assert_eq!(hashing.by, HashBy::SourceIp);
    assert_eq!((rule.retry.attempts, rule.retry.per_try_timeout_ms), (3, Some(500)));
    assert!([429, 500, 599].iter().all(|s| rule.retry.statuses.contains(s)));
    assert_eq!(rule.retry.grpc_statuses, [14]);
    let mirrored = rule.filters.iter().any(|f| match f {
        Filter::Mirror(m) => m.share.percent() == 25.0 && m.mark_host,
        _ => false,
    });
    let cors = rule.filters.iter().find_map(|f| match f {
        Filter::Cors(c) => Some(c),
        _ => None,
    });
    assert!(mirrored && cors.unwrap().origins == [StringMatch::Present]);
    assert_eq!(cors.unwrap().methods, ["GET".into(), "PUT".into()]);
    let endpoint = &endpoints(&read).endpoints[0];
    assert_eq!((endpoint.weight, endpoint.health), (2, Health::Draining));
}

#[test]
fn priorities_are_an_order_of_preference() {
    let one = |port: u16, priority: u32| {
        format!(
            "{{priority: {priority}, lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}"
        )
    };
    let cluster =
        format!("{{name: up, load_assignment: {{endpoints: [{}, {}]}}}}", one(1, 0), one(2, 1));
    let read = clean(with("{match: {prefix: /}, route: {cluster: up}}", &cluster));
    let LocalityPolicy::Failover(failover) = &backend(&read).policy.locality else { panic!() };
    // How many of the labels an endpoint has, from the first on, is how near it is.
    let near = |i: usize| {
        let labels = &endpoints(&read).endpoints[i].labels;
        let has = |l: &&std::sync::Arc<str>| labels.contains_key(l.trim_end_matches("=y"));
        failover.labels.iter().take_while(has).count()
    };
    assert_eq!((near(0), near(1)), (2, 1));
}

#[test]
fn tls_of_both_sides_names_its_files() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let cluster = format!(
        "{{name: up, transport_socket: {{name: tls, typed_config: {{'@type': \
         {tls}.UpstreamTlsContext, sni: api.example, common_tls_context: {{validation_context: \
         {{trusted_ca: {{filename: ca}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: \
         {{exact: 'spiffe://d/a'}}}}]}}, tls_params: {{tls_minimum_protocol_version: \
         TLSv1_3}}}}}}}}, \
         typed_extension_protocol_options: {{http: {{'@type': \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{http2_protocol_options: {{max_concurrent_streams: 1000}}}}}}}}}}"
    );
    let read = clean(with("{match: {prefix: /}, route: {cluster: up}}", &cluster));
    let tls = backend(&read).policy.tls.as_ref().unwrap();
    assert_eq!(tls.trust, Trust::Authorities("pem of ca".into()));
    assert_eq!(tls.names, Names::OneOf(vec!["spiffe://d/a".into()]));
    assert!(tls.only_13 && tls.server_name.as_deref() == Some("api.example"));
    assert_eq!(endpoints(&read).protocol, Protocol::Http2);
    assert!(read.files.contains(Path::new("ca")));
    let missing = cluster.replace("filename: ca", "filename: missing");
    let read = with("{match: {prefix: /}, route: {cluster: up}}", &missing);
    assert!(said(&read.errors).contains("trusted_ca.filename: it cannot be read"), "{read:?}");
}

#[test]
fn names_become_endpoints_once_they_are_resolved() {
    let cluster = |kind: &str| {
        UP.replace("{name: up", &format!("{{name: up, type: {kind}, dns_lookup_family: V4_ONLY"))
            .replace("10.0.0.1", "db.example")
    };
    for (kind, count) in [("STRICT_DNS", 2), ("LOGICAL_DNS", 1)] {
        let read = clean(with("{match: {prefix: /}, route: {cluster: up}}", &cluster(kind)));
        assert!(endpoints(&read).endpoints.is_empty());
        let set = &read.names[0];
        assert_eq!(set.hosts().map(|h| &**h).collect::<Vec<_>>(), ["db.example"]);
        let found = ["::1", "10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let resolved = Resolved::from([("db.example".into(), found.to_vec())]);
        let made = set.endpoints(&resolved);
        assert_eq!(made.endpoints.len(), count, "{kind}");
        assert_eq!(made.endpoints[0].address, "10.0.0.1:8080".parse().unwrap());
    }
    let read = with("{match: {prefix: /}, route: {cluster: up}}", &cluster("STATIC"));
    assert!(said(&read.errors).contains("names need STRICT_DNS"));
}

#[test]
fn everything_is_found_at_once_with_its_path() {
    let read = with(
        "{match: {prefix: /, dynamic_metadata: []}, route: {cluster: nobody, \
         internal_redirect_policy: {}, retry_policy: {retry_on: envoy-ratelimited}}}",
        "{name: up, lb_policy: ORIGINAL, outlier_detection: {enforcing_consecutive_5xx: 50}}",
    );
    let unsupported = said(&read.unsupported);
    let routes = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.\
                  route_config.virtual_hosts[0].routes[0]";
    for path in [
        &*format!("{routes}.match.dynamic_metadata"),
        &format!("{routes}.route.retry_policy.retry_on"),
        &format!("{routes}.route.internal_redirect_policy"),
        "static_resources.clusters[0].lb_policy",
        "static_resources.clusters[0].outlier_detection.enforcing_consecutive_5xx",
    ] {
        assert!(unsupported.contains(&format!("{path}: ")), "{path} in\n{unsupported}");
    }
    assert!(said(&read.errors).contains("no cluster has the name \"nobody\""));
}

#[test]
fn what_envoy_would_not_start_with_is_refused() {
    let routes = "{match: {prefix: /}, route: {cluster: up}}";
    let twice = with(routes, &format!("{UP}, {UP}"));
    let found = said(&twice.errors);
    assert!(found.contains("clusters[1].name: an earlier cluster is named \"up\", too"), "{found}");
    let hosts = format!("{routes}]}}, {{name: w, domains: [b, \"*\"], routes: [{routes}");
    let found = said(&with(&hosts, UP).errors);
    assert!(found.contains("virtual_hosts[1].domains: \"*\" stands in an earlier"), "{found}");
    let weighted = "weighted_clusters: {clusters: [{name: up, weight: 0}]}";
    for (action, path) in [
        (weighted.to_owned(), "route.weighted_clusters.clusters: their weights sum up to 0"),
        (format!("cluster: up, {weighted}"), "route.weighted_clusters: a route forwards to this"),
    ] {
        let found =
            said(&with(&format!("{{match: {{prefix: /}}, route: {{{action}}}}}"), UP).errors);
        assert!(found.contains(path), "{action}: {found}");
    }
}

#[test]
fn a_query_that_is_written_encoded_is_no_match_of_ours() {
    let of = |text: &str| {
        let query = format!("query_parameters: [{{name: a, string_match: {{{text}}}}}]");
        with(&format!("{{match: {{prefix: /, {query}}}, route: {{cluster: up}}}}"), UP)
    };
    clean(of("exact: b c"));
    clean(of("safe_regex: {regex: b+}"));
    let regex = "safe_regex: {regex: 'b%20c'}";
    for text in ["exact: b%20c", "exact: b+c", "prefix: b%2f", "suffix: '%20c'", regex] {
        let found = said(&of(text).unsupported);
        assert!(found.contains("query_parameters[0].string_match: "), "{text}: {found}");
    }
}

#[test]
fn requests_leave_http_only_for_what_is_listed() {
    let upgrades = |manager: &str, action: &str| {
        let read = clean(options::whole(manager, "", action, ""));
        let filters = &route(&read).rules[0].filters;
        let listed = filters.iter().find_map(|filter| match filter {
            Filter::Upgrades(listed) => Some(listed.join(" ")),
            _ => None,
        });
        listed.expect("all may be asked for")
    };
    let both = "upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: foo}],";
    assert_eq!(upgrades("", ""), "");
    assert_eq!(upgrades(both, ""), "foo websocket");
    let off = "upgrade_configs: [{upgrade_type: websocket, enabled: false}],";
    assert_eq!(upgrades(off, ""), "");
    let own = ", upgrade_configs: [{upgrade_type: websocket, enabled: false}]";
    assert_eq!(upgrades(both, own), "foo");
    assert_eq!(upgrades("", ", upgrade_configs: [{upgrade_type: websocket}]"), "websocket");
    let connect = options::whole("upgrade_configs: [{upgrade_type: CONNECT}],", "", "", "");
    assert!(said(&connect.unsupported).contains("upgrade_configs[0].upgrade_type: CONNECT"));
}

#[test]
fn a_policy_that_cannot_be_said_whole_is_never_said_in_part() {
    let rbac = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    let route_text = |principal: &str| {
        format!(
            "{{match: {{prefix: /}}, route: {{cluster: up}}, typed_per_filter_config: {{cors: \
             {{'@type': {rbac}, rbac: {{rules: {{action: DENY, policies: {{p: {{permissions: \
             [{{any: true}}], principals: [{principal}]}}}}}}}}}}}}}}"
        )
    };
    let denies = |read: &Bootstrap| {
        route(read).rules[0].filters.iter().any(|f| matches!(f, Filter::Access(_)))
    };
    let good =
        with(&route_text("{direct_remote_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}"), UP);
    assert!(denies(&clean(good)));
    let bad = with(&route_text("{metadata: {}}"), UP);
    // Nobody can wave it through: the list would be missing.
    assert!(!denies(&bad) && said(&bad.errors).contains("principals[0].metadata"), "{bad:?}");
}

#[test]
fn listeners_have_a_section_for_each_server_name() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let tcp = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let chain = |name: &str| {
        format!(
            "{{filter_chain_match: {{server_names: [{name}]}}, transport_socket: {{name: t, \
             typed_config: {{'@type': {tls}, common_tls_context: {{tls_certificates: \
             [{{certificate_chain: {{filename: c}}, private_key: {{inline_string: k}}}}]}}}}}}, \
             filters: [{{name: t, typed_config: {{'@type': {tcp}, cluster: up}}}}]}}"
        )
    };
    let text = format!(
        "static_resources: {{listeners: [{{name: a/b, address: {{socket_address: {{address: \
         0.0.0.0, port_value: 443}}}}, filter_chains: [{}, {}]}}], clusters: [{UP}]}}",
        chain("a.example"),
        chain("'*.b.example'")
    );
    let read = clean(read(&text));
    let listener = read.resources.iter().find_map(|(name, r)| match r {
        Resource::Listener(l) => Some((name, l)),
        _ => None,
    });
    let (name, listener) = listener.unwrap();
    assert_eq!(name.to_string(), "listener:a~b");
    let ListenerKind::Gateway(gateway) = &listener.kind else { panic!() };
    let names: Vec<_> = gateway.sections.iter().map(|s| s.hostname.as_deref().unwrap()).collect();
    assert_eq!(names, ["a.example", "*.b.example"]);
    assert!(gateway.sections.iter().all(|s| s.protocol == Protocol::Tcp && s.tls.is_some()));
}
