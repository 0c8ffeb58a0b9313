// SPDX-License-Identifier: Apache-2.0
//! What keeps somebody out is neither forgotten nor waved through.

use weft_model::decide::{AccessVerdict, Client, Headers, Request, access_verdict, rule_match};
use weft_model::{Access, AccessTest, RateLimit};

use super::*;

const EXT: &str = "type.googleapis.com/envoy.extensions.filters";
const SWITCH: &str = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
const FORWARD: &str = "match: {prefix: /}, route: {cluster: up}";

/// A bootstrap whose one listener has these HTTP filters before the router, these fields of its
/// virtual host, and these other fields.
fn of(filters: &str, host: &str, chain: &str, cluster: &str) -> Bootstrap {
    let manager = format!("{EXT}.network.http_connection_manager.v3.HttpConnectionManager");
    let up = UP.replacen("{name: up", &format!("{{name: up{cluster}"), 1);
    read(&format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
    filter_chains:
    - {{{chain} filters: [{{name: hcm, typed_config: {{"@type": {manager}, http_filters: [{filters}
       {{name: router, typed_config: {{"@type": {EXT}.http.router.v3.Router}}}}],
       route_config: {{virtual_hosts: [{{name: v, domains: ["*"], {host}}}]}}}}}}]}}
  clusters: [{up}]
"#
    ))
}

fn rbac(header: &str, more: &str) -> String {
    format!(
        "{{name: rbac, {more} typed_config: {{'@type': {EXT}.http.rbac.v3.RBAC, rules: {{action: \
         DENY, policies: {{p: {{permissions: [{{header: {header}}}], principals: [{{any: \
         true}}]}}}}}}}}}},"
    )
}

fn lists(read: &Bootstrap, rule: usize) -> Vec<&Access> {
    let filters = route(read).rules[rule].filters.iter();
    let lists = filters.filter_map(|filter| match filter {
        Filter::Access(access) => Some(&**access),
        _ => None,
    });
    lists.collect()
}

#[test]
fn a_filter_that_is_off_waits_for_the_route_that_switches_it_on() {
    let own = |config: &str| format!("typed_per_filter_config: {{rbac: {{{config}}}}}");
    let other = format!(
        "'@type': {EXT}.http.rbac.v3.RBACPerRoute, rbac: {{rules: {{action: ALLOW, policies: {{}}}}}}"
    );
    let routes = format!(
        "routes: [{{{FORWARD}}}, {{{FORWARD}, {}}}, {{{FORWARD}, {}}}, {{{FORWARD}, {}}}]",
        own(&format!("{SWITCH}, config: {{}}")),
        own(&other),
        own(&format!("{SWITCH}, config: {{{other}}}")),
    );
    let rules = rbac("{name: x-a, present_match: true}", "disabled: true,");
    let whole = clean(of(&rules, &routes, "", ""));
    assert!(lists(&whole, 0).is_empty(), "nobody switched it on");
    assert_eq!(&*lists(&whole, 1)[0].policies[0].name, "p", "on, as the chain has it");
    for rule in [2, 3] {
        let list = lists(&whole, rule)[0];
        assert_eq!((list.effect, list.policies.len()), (weft_model::Effect::Allow, 0));
    }
    // A host may switch it off and a route of it on again.
    let off = own(&format!("{SWITCH}, disabled: true"));
    let rules = rbac("{name: x-a, present_match: true}", "");
    let whole = clean(of(&rules, &format!("{off}, {routes}"), "", ""));
    assert!(lists(&whole, 0).is_empty());
    assert_eq!(lists(&whole, 1).len(), 1);
    // What weft has not may stand there as long as nobody switches it on.
    let lua = format!(
        "{{name: rbac, disabled: true, typed_config: {{'@type': {EXT}.http.lua.v3.Lua, a: b}}}},"
    );
    clean(of(&lua, &format!("routes: [{{{FORWARD}}}]"), "", ""));
    let on = own(&format!("{SWITCH}, config: {{}}"));
    let found = of(&lua, &format!("routes: [{{{FORWARD}, {on}}}]"), "", "");
    assert!(said(&found.unsupported).contains("config: envoy.extensions.filters.http.lua"));
}

#[test]
fn filters_of_one_name_all_hold() {
    let two = rbac("{name: x-a, present_match: true}", "") + &rbac("{name: x-b}", "");
    let whole = clean(of(&two, &format!("routes: [{{{FORWARD}}}]"), "", ""));
    assert_eq!(lists(&whole, 0).len(), 2);
    assert_ne!(lists(&whole, 0)[0], lists(&whole, 0)[1]);
}

#[test]
fn who_keeps_others_out_is_not_optional_and_is_known_in_any_wrapping() {
    let forward = format!("routes: [{{{FORWARD}}}]");
    let refused = |kind: &str, config: &str, more: &str| {
        let filter = format!("{{name: a, {more} typed_config: {{'@type': a/{kind}, {config}}}}},");
        said(&of(&filter, &forward, "", "").errors)
    };
    let guard = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    let lua = "envoy.extensions.filters.http.lua.v3.Lua";
    assert!(refused(guard, "", "is_optional: true,").contains("ext_authz.v3.ExtAuthz is none"));
    assert_eq!(refused(lua, "", "is_optional: true,"), "");
    for inner in [guard, lua] {
        let structure = format!("type_url: type.googleapis.com/{inner}, value: {{}}");
        let matched =
            format!("extension_config: {{name: x, typed_config: {{'@type': a/{inner}}}}}");
        for (kind, config) in [
            ("xds.type.v3.TypedStruct", structure),
            ("envoy.extensions.common.matching.v3.ExtensionWithMatcher", matched),
        ] {
            let found = refused(kind, &config, "");
            assert_eq!(found.contains("more would be let in"), inner == guard, "{kind}: {found}");
        }
    }
}

#[test]
fn a_match_without_a_part_of_what_it_asks_for_takes_nothing() {
    let made = |more: &str| {
        let routes = format!("routes: [{{match: {{prefix: /a{more}}}, route: {{cluster: up}}}}]");
        let read = of("", &routes, "", "");
        (route(&read).rules.len(), said(&read.unsupported), said(&read.errors))
    };
    // With the one that says 404 to all.
    assert_eq!(made(", runtime_fraction: {default_value: {numerator: 100}}").0, 2);
    for (more, field) in [
        (", dynamic_metadata: [{filter: a}]", "dynamic_metadata: "),
        (", cookies: [{name: a}]", "cookies: "),
        (", runtime_fraction: {default_value: {numerator: 1}}", "runtime_fraction: "),
    ] {
        let (rules, unsupported, errors) = made(more);
        assert!(rules == 1 && unsupported.contains(field), "{more}: {unsupported}{errors}");
        assert_eq!(errors, "");
    }
    assert!(made(", tls_context: {presented: true}").2.contains("tls_context: "));
    let led = |status: u16| {
        let routes = format!(
            "routes: [{{match: {{prefix: /a, cookies: [{{name: a}}]}}, direct_response: {{status: \
             {status}}}}}, {{{FORWARD}}}]"
        );
        said(&of("", &routes, "", "").errors)
    };
    // The next route would let in what this one keeps out.
    assert!(led(403).contains("match: it cannot be said whole"), "{}", led(403));
    assert_eq!(led(200), "");
}

#[test]
fn what_keeps_somebody_out_cannot_be_waved_through() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let forward = format!("routes: [{{{FORWARD}}}]");
    let never = |filters: &str, host: &str, chain: &str, cluster: &str, why: &str| {
        let read = of(filters, host, chain, cluster);
        assert!(said(&read.errors).contains(why), "{why:?} in\n{read:#?}");
    };
    for (filter, why) in [
        (rbac("{name: x-a, range_match: {}}", ""), "range_match: "),
        (rbac("{name: ':protocol', present_match: true}", ""), "requests have no :protocol"),
        (rbac("{name: x-a, presnt_match: true}", ""), "presnt_match: weft has no such field"),
        (
            format!(
                "{{name: a, typed_config: {{'@type': {EXT}.http.rbac.v3.RBAC, matcher: {{}}}}}},"
            ),
            "typed_config.matcher: weft has no such field",
        ),
        (
            format!("{{name: a, typed_config: {{'@type': {EXT}.http.jwt_authn.v3.JwtAuthn}}}},"),
            "jwt_authn.v3.JwtAuthn is none of weft's",
        ),
        ("{name: a, config_discovery: {}},".to_owned(), "it says what the filter is"),
    ] {
        never(&filter, &forward, "", "", why);
    }
    let socket = |kind: &str, common: &str| {
        format!(
            "transport_socket: {{name: t, typed_config: {{'@type': {tls}.{kind}, \
             common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: c}}, \
             private_key: {{filename: k}}}}], validation_context: {{trusted_ca: {{filename: ca}}, \
             {common}}}}}}}}}"
        )
    };
    let down = |common: &str| format!("{},", socket("DownstreamTlsContext", common));
    let up = |common: &str| format!(", {}", socket("UpstreamTlsContext", common));
    let regex = "match_typed_subject_alt_names: [{san_type: DNS, matcher: {suffix: x}}]";
    let quic = "transport_socket: {name: q, typed_config: {'@type': a/b.Quic}}";
    for (chain, why) in [
        (down(regex), "names are compared exactly here"),
        (down("match_subject_alt_names: [{exact: a}]"), "use RBAC for their names"),
        (down("verify_certificate_hash: [a]"), "verify_certificate_hash: weft has no such field"),
        (format!("{quic},"), "b.Quic is none of weft's, and without it this would be plaintext"),
        ("transport_socket: {name: envoy.transport_sockets.tls},".into(), "how connections are"),
        ("tls_context: {},".into(), "tls_context: how connections are secured"),
        ("filter_chain_match: {source_ports: [1]},".into(), "source_ports: weft has no such"),
    ] {
        never("", &forward, &chain, "", why);
    }
    let options = "upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true}";
    let options_of = "typed_extension_protocol_options: {a: {'@type': \
                      a/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let san = |kind: &str, name: &str| {
        let matcher = format!("{{san_type: {kind}, matcher: {{exact: '{name}'}}}}");
        up(&format!("match_typed_subject_alt_names: [{matcher}]"))
    };
    let judged = up("").replace("{'@type'", "{auto_sni_san_validation: true, '@type'");
    for (cluster, why) in [
        (format!(", {options}"), "auto_san_validation: a server's name"),
        (format!(", {options_of}, {options}}}}}"), "auto_san_validation: a server's name"),
        (judged, "auto_sni_san_validation: a server's name"),
        (san("DNS", "spiffe://a/b"), "san_type: \"spiffe://a/b\" is no name of the type DNS"),
        (san("URI", "a.example"), "is no name of the type URI"),
        (up(regex), "matcher.suffix: names are compared exactly here"),
        (up("verify_certificate_spki: [a]"), "verify_certificate_spki: weft has no such field"),
        (format!(", {quic}"), "b.Quic is none of weft's"),
        (", transport_socket_matches: []".into(), "transport_socket_matches: how connections"),
    ] {
        never("", &forward, "", &cluster, why);
    }
    never("", &format!("require_tls: ALL, {forward}"), "", "", "require_tls: ");
    // What only counts keeps nobody out.
    let shadow = format!(
        "{{name: a, typed_config: {{'@type': {EXT}.http.rbac.v3.RBAC, shadow_rules: {{x: y}}}}}},"
    );
    let read = of(&shadow, &forward, "", "");
    assert!(read.errors.is_empty() && read.unsupported.len() == 1, "{read:#?}");
}

#[test]
fn a_local_limit_holds_when_it_is_enabled_and_enforced() {
    let limit = |more: &str| {
        format!(
            "{{name: l, typed_config: {{'@type': \
             {EXT}.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, token_bucket: \
             {{max_tokens: 5, fill_interval: 1s}}, {more}}}}},"
        )
    };
    let part = |field: &str, percent: u32| {
        format!("{field}: {{runtime_key: a, default_value: {{numerator: {percent}}}}}")
    };
    let both = |a, b| format!("{}, {}", part("filter_enabled", a), part("filter_enforced", b));
    let limits = |read: &Bootstrap| -> Vec<RateLimit> {
        let filters = route(read).rules[0].filters.iter();
        let limits = filters.filter_map(|filter| match filter {
            Filter::RateLimit(limit) => Some((**limit).clone()),
            _ => None,
        });
        limits.collect()
    };
    let forward = format!("routes: [{{{FORWARD}}}]");
    for (more, count) in [
        (both(100, 100), 1),
        (both(100, 0), 0),
        (both(0, 100), 0),
        (part("filter_enabled", 100), 0),
        (part("filter_enforced", 100), 0),
        (String::new(), 0),
    ] {
        let read = clean(of(&limit(&more), &forward, "", ""));
        assert_eq!(limits(&read).len(), count, "{more}");
    }
    let read = of(&limit(&both(100, 50)), &forward, "", "");
    assert!(said(&read.unsupported).contains("filter_enforced: a limit holds for all"));
    assert_eq!(limits(&read).len(), 1);
    let told = |what: &str| {
        let more = format!("{}, enable_x_ratelimit_headers: {what}", both(100, 100));
        said(&of(&limit(&more), &forward, "", "").unsupported)
    };
    assert_eq!(told("'OFF'"), "");
    assert!(told("DRAFT_VERSION_03").contains(".enable_x_ratelimit_headers: "));
}

struct NoHeaders;

impl Headers for NoHeaders {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

#[test]
fn host_is_the_authority_also_when_no_header_has_that_name() {
    let matching = |more: &str| {
        let headers = format!("headers: [{{name: Host, {more}}}]");
        let routes =
            format!("routes: [{{match: {{prefix: /, {headers}}}, route: {{cluster: up}}}}]");
        let read = clean(of("", &routes, "", ""));
        // As a request over HTTP/2 comes.
        let request = Request {
            method: "GET",
            scheme: "http",
            host: "a.example",
            port: 80,
            written: None,
            path: "/",
            query: "",
            headers: &NoHeaders,
        };
        rule_match(&route(&read).rules[0], &request).is_some()
    };
    assert!(matching("exact_match: a.example"));
    assert!(!matching("exact_match: b.example"));
    assert!(!matching("exact_match: a.example, invert_match: true"));
    assert!(matching("exact_match: b.example, invert_match: true"));
    assert!(matching("present_match: true"));
    let filter = rbac("{name: host, string_match: {exact: a.example}}", "");
    let read = clean(of(&filter, &format!("routes: [{{{FORWARD}}}]"), "", ""));
    let AccessTest::Header(named) = &lists(&read, 0)[0].policies[0].what else { panic!() };
    assert_eq!(&*named.name, ":authority");
}

struct Team(Option<&'static str>);

impl Headers for Team {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        name == "x-m" && self.0.is_some_and(|value| f(value.as_bytes()))
    }
}

/// Envoy: "a header that is missing" fits neither a value nor its contrary, but where it counts as
/// an empty one.
#[test]
fn an_inverted_value_asks_for_the_header_all_the_same() {
    let empty = "treat_missing_header_as_empty: true,";
    for (more, missing) in [("", false), (empty, true)] {
        let header = format!("{{name: x-m, {more} exact_match: a, invert_match: true}}");
        let routes = format!(
            "routes: [{{match: {{prefix: /, headers: [{header}]}}, route: {{cluster: up}}}}]"
        );
        let read = clean(of("", &routes, "", ""));
        let denying = clean(of(&rbac(&header, ""), &format!("routes: [{{{FORWARD}}}]"), "", ""));
        for (value, fits) in [(None, missing), (Some("a"), false), (Some("b"), true)] {
            let (headers, path, query) = (Team(value), "/", "");
            let (method, scheme, host, port, written) = ("GET", "http", "h", 80, None);
            let request =
                Request { method, scheme, host, port, written, path, query, headers: &headers };
            let taken = rule_match(&route(&read).rules[0], &request).is_some();
            assert_eq!(taken, fits, "{more} {value:?}");
            let client = Client { ip: [127, 0, 0, 1].into(), identity: None, names: &[] };
            let verdict = access_verdict(lists(&denying, 0)[0], &request, &client);
            let denied = !matches!(verdict, AccessVerdict::Pass(_));
            assert_eq!(denied, fits, "{more} {value:?}");
        }
    }
}

#[test]
fn a_parameter_that_must_be_absent_is_told_and_takes_nobody() {
    let query = "query_parameters: [{name: k, present_match: false}]";
    let routes = format!(
        "routes: [{{match: {{prefix: /, {query}}}, route: {{cluster: up}}}}, {{{FORWARD}}}]"
    );
    let read = of("", &routes, "", "");
    assert!(said(&read.unsupported).contains("present_match: "), "{read:#?}");
    let rules = &route(&read).rules;
    assert!(rules.iter().all(|rule| rule.matches.iter().all(|m| m.query.is_empty())), "{rules:#?}");
}

#[test]
fn a_tcp_proxy_has_envoys_idle_time() {
    let made = |more: &str| {
        read(&format!(
            "static_resources: {{listeners: [{{name: t, address: {{socket_address: {{address: \
             127.0.0.1, port_value: 1}}}}, filter_chains: [{{filters: [{{name: t, typed_config: \
             {{'@type': {EXT}.network.tcp_proxy.v3.TcpProxy, cluster: up{more}}}}}]}}]}}], \
             clusters: [{UP}]}}"
        ))
    };
    let idle = |more: &str| route(&clean(made(more))).rules[0].timeouts.idle_ms;
    assert_eq!(idle(""), Some(3_600_000));
    assert_eq!(idle(", idle_timeout: 0s"), Some(0), "never");
    assert_eq!(idle(", idle_timeout: 1.5s"), Some(1_500));
    let listed = |n: u32| said(&made(&format!(", max_connect_attempts: {n}")).unsupported);
    assert!(listed(4).contains(".max_connect_attempts: "));
    // Envoy's own default is 1: who writes it down gets what others get.
    assert_eq!(listed(1), "");
}
