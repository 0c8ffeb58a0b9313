// SPDX-License-Identifier: Apache-2.0
//! Every field of Envoy's messages for options is either one that weft does anyhow, or listed.

use weft_model::{
    BackendPolicy, ClientLimits, Connections, Listener, Pings, RetryBudget, TcpKeepalive, Timeouts,
};

use super::*;

const EXT: &str = "type.googleapis.com/envoy.extensions";
const ANYHOW: &str = "done anyhow";

/// What is not done of a bootstrap with these fields of its connection manager, virtual host, route
/// action and cluster.
fn of(manager: &str, host: &str, action: &str, cluster: &str) -> String {
    let read = whole(manager, host, action, cluster);
    assert!(read.errors.is_empty(), "{}", said(&read.errors));
    said(&read.unsupported)
}

pub(super) fn whole(manager: &str, host: &str, action: &str, cluster: &str) -> Bootstrap {
    read(&text(manager, host, action, cluster))
}

fn text(manager: &str, host: &str, action: &str, cluster: &str) -> String {
    let up = UP.replacen("{name: up", &format!("{{name: up{cluster}"), 1);
    format!(
        r#"
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
    filter_chains:
    - filters: [{{name: hcm, typed_config: {{"@type":
       {EXT}.filters.network.http_connection_manager.v3.HttpConnectionManager,
       http_filters: [{{name: router, typed_config: {{"@type":
       {EXT}.filters.http.router.v3.Router}}}}], {manager}
       route_config: {{virtual_hosts: [{{name: v, domains: ["*"], {host} routes: [{{
       match: {{prefix: /}}, route: {{cluster: up{action}}}}}]}}]}}}}}}]
  clusters: [{up}]
"#
    )
}

/// The fields of `HttpProtocolOptions`, `Http1ProtocolOptions` and `Http2ProtocolOptions`
/// (envoy/config/core/v3/protocol.proto), those that weft does anyhow after the bar.
const COMMON: &str = "max_response_headers_kb nonsense |";
const HTTP_1: &str = "default_host_for_http_10 header_key_format allow_chunked_length \
     override_stream_error_on_invalid_http_message send_fully_qualified_url \
     ignore_http_11_upgrade nonsense allow_absolute_url:false accept_http_10:false \
     enable_trailers:false allow_custom_methods:false | allow_absolute_url:true \
     accept_http_10:true enable_trailers:true use_balsa_parser allow_custom_methods:true";
const HTTP_2: &str = "allow_connect allow_metadata stream_error_on_invalid_http_messaging \
     override_stream_error_on_invalid_http_message custom_settings_parameters \
     max_metadata_size nonsense max_outbound_frames \
     max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload \
     max_inbound_priority_frames_per_stream \
     max_inbound_window_update_frames_per_data_frame_sent | hpack_table_size \
     initial_stream_window_size initial_connection_window_size use_oghttp2_codec";

fn check(names: &str, made: impl Fn(&str) -> String) {
    let (listed, anyhow) = names.split_once('|').unwrap();
    let field = |said: &str| {
        let (name, value) = said.split_once(':').unwrap_or((said, "1"));
        (name.to_owned(), made(&format!("{{{name}: {value}}}")))
    };
    for (name, found) in listed.split_whitespace().map(field) {
        assert!(found.contains(&format!(".{name}: ")), "{name} is swallowed: {found:?}");
    }
    for (name, found) in anyhow.split_whitespace().map(field) {
        assert_eq!(found, "", "{name} is {ANYHOW}");
    }
}

#[test]
fn no_option_of_a_protocol_is_swallowed() {
    let kind = format!("{EXT}.upstreams.http.v3.HttpProtocolOptions");
    let typed = |inner: String| {
        let all =
            format!(", typed_extension_protocol_options: {{h: {{'@type': {kind}, {inner}}}}}");
        of("", "", "", &all)
    };
    for (message, names) in [
        ("common_http_protocol_options", COMMON),
        ("http_protocol_options", HTTP_1),
        ("http2_protocol_options", HTTP_2),
    ] {
        check(names, |fields| of(&format!("{message}: {fields},"), "", "", ""));
        check(names, |fields| of("", "", "", &format!(", {message}: {fields}")));
        if names == COMMON {
            let rest = "explicit_http_config: {http_protocol_options: {}}";
            check(names, |fields| typed(format!("{message}: {fields}, {rest}")));
            continue;
        }
        for config in ["explicit_http_config", "use_downstream_protocol_config"] {
            check(names, |fields| typed(format!("{config}: {{{message}: {fields}}}")));
        }
    }
    let underscores = "common_http_protocol_options: {headers_with_underscores_action: ALLOW}";
    let cluster = of("", "", "", &format!(", {underscores}"));
    assert!(cluster.contains(".headers_with_underscores_action: "), "{cluster}");
    // What is of clients' connections alone, or of backends' alone, is listed in the other place.
    let cluster = of("", "", "", ", common_http_protocol_options: {max_headers_count: 1}");
    assert!(cluster.contains(".max_headers_count: "), "{cluster}");
    let keepalive = "http2_protocol_options: {connection_keepalive: {interval: 1s, timeout: 1s}}";
    let manager = of(&format!("{keepalive},"), "", "", "");
    assert!(manager.contains(".connection_keepalive: "), "{manager}");
    assert_eq!(of("", "", "", &format!(", {keepalive}")), "");
}

/// The one listener's limits, and the whole cluster's policy.
fn made(manager: &str, action: &str, cluster: &str) -> (ClientLimits, Timeouts, BackendPolicy) {
    let read = whole(manager, "", action, cluster);
    assert!(read.errors.is_empty() && read.unsupported.is_empty(), "{:?}", read.unsupported);
    let (mut limits, mut timeouts, mut policy) = (None, None, None);
    for (_, resource) in &read.resources {
        match resource {
            Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) => {
                limits = gateway.limits.as_deref().cloned();
            }
            Resource::Route(route) => timeouts = Some(route.rules[0].timeouts.clone()),
            Resource::Backend(backend) => policy = Some(backend.policy.clone()),
            _ => {}
        }
    }
    (limits.unwrap(), timeouts.unwrap(), policy.unwrap())
}

#[test]
fn what_is_said_of_clients_holds_for_their_listener() {
    // Envoy's own when nothing is said.
    let usual = ClientLimits { idle_ms: Some(3_600_000), ..ClientLimits::default() };
    assert_eq!(made("", "", "").0, usual);
    let manager = "common_http_protocol_options: {idle_timeout: 60s, max_connection_duration: 600s,
        max_headers_count: 50, max_requests_per_connection: 9, max_stream_duration: 5s},
        request_timeout: 8s, request_headers_timeout: 2s, max_request_headers_kb: 16,
        http2_protocol_options: {max_concurrent_streams: 7},";
    let (limits, timeouts, _) = made(manager, "", "");
    let said = ClientLimits {
        idle_ms: Some(60_000),
        head_ms: Some(2_000),
        age_ms_max: Some(600_000),
        requests_max: Some(9),
        streams_max: Some(7),
        headers_max: Some(50),
        head_bytes_max: Some(16 * 1_024),
    };
    assert_eq!((limits, timeouts.stream_ms), (said, Some(5_000)));
    assert_eq!((timeouts.receive_ms, timeouts.idle_ms), (Some(8_000), Some(300_000)));
    assert_eq!(made("request_timeout: 0s,", "", "").1.receive_ms, None);
    // A route says otherwise, or that there is no limit.
    for (own, stream_ms) in [("2s", Some(2_000)), ("0s", None)] {
        let action = format!(", max_stream_duration: {{max_stream_duration: {own}}}");
        assert_eq!(made(manager, &action, "").1.stream_ms, stream_ms);
    }
    let listed = of("", "", ", max_stream_duration: {grpc_timeout_header_max: 1s}", "");
    assert!(listed.contains(".grpc_timeout_header_max: "), "{listed}");
    // 0 is no limit, and what weft has no room for is listed.
    let zero = "common_http_protocol_options: {idle_timeout: 0s, max_connection_duration: 0s},";
    assert_eq!(made(zero, "", "").0, ClientLimits { idle_ms: Some(0), ..usual });
    for (field, most) in [
        ("common_http_protocol_options: {max_headers_count: 129}", 128),
        ("max_request_headers_kb: 65", 64),
    ] {
        let found = of(&format!("{field},"), "", "", "");
        assert!(found.contains(&format!("it is {most} at most")), "{found}");
    }
    let streams = "http2_protocol_options: {max_concurrent_streams: 128},";
    assert_eq!(made(streams, "", "").0, made("", "", "").0);
}

#[test]
fn what_is_said_of_a_clusters_connections_is_its_policy() {
    assert_eq!(made("", "", "").2.connections, None);
    let common = "common_http_protocol_options: {idle_timeout: 30s, max_connection_duration: 90s,
        max_requests_per_connection: 4, max_stream_duration: 3s}";
    let http2 = "http2_protocol_options: {max_concurrent_streams: 6,
        connection_keepalive: {interval: 10s, timeout: 2s}}";
    let tcp = "upstream_connection_options: {tcp_keepalive: {keepalive_probes: 4,
        keepalive_time: 30, keepalive_interval: 5}}";
    let keepalive = TcpKeepalive { idle_s: Some(30), interval_s: Some(5), probes: Some(4) };
    let said = Connections {
        requests_max: Some(4),
        age_ms_max: Some(90_000),
        streams_max: Some(6),
        keepalive: Some(keepalive),
        pings: Some(Pings { interval_ms: 10_000, timeout_ms: 2_000 }),
        speaks: None,
        through: None,
    };
    let typed = format!(
        "typed_extension_protocol_options: {{h: {{'@type':
         {EXT}.upstreams.http.v3.HttpProtocolOptions, {common},
         explicit_http_config: {{{http2}}}}}}}"
    );
    for cluster in [format!(", {tcp}, {common}, {http2}"), format!(", {tcp}, {typed}")] {
        let (_, _, policy) = made("", "", &cluster);
        assert_eq!(policy.connections.as_deref(), Some(&said), "{cluster}");
        assert_eq!(policy.idle_timeout_ms, 30_000);
        let protection = policy.protection.unwrap();
        assert_eq!(protection.timeouts.stream_ms, Some(3_000));
    }
    // The older place of one of them.
    let (_, _, policy) = made("", "", ", max_requests_per_connection: 2");
    assert_eq!(policy.connections.unwrap().requests_max, Some(2));
    let found = of("", "", "", ", upstream_connection_options: {nonsense: 1}");
    assert!(found.contains(".nonsense: "), "{found}");
}

#[test]
fn places_have_shares_where_their_weights_count() {
    let group = |at: &str, more: &str| {
        format!(
            "{{locality: {{{at}}}, {more} lb_endpoints: [{{endpoint: {{address: {{socket_address: \
             {{address: 10.0.0.1, port_value: 1}}}}}}}}]}}"
        )
    };
    let made = |common: &str, groups: &[String]| {
        let cluster = format!(
            "{{name: up, common_lb_config: {{{common}}}, load_assignment: {{endpoints: [{}]}}}}",
            groups.join(", ")
        );
        let read = with("{match: {prefix: /}, route: {cluster: up}}", &cluster);
        assert!(read.errors.is_empty(), "{}", said(&read.errors));
        (backend(&read).policy.locality.clone(), said(&read.unsupported))
    };
    let groups = [
        group("region: r", "load_balancing_weight: 1,"),
        group("region: r, zone: a", "load_balancing_weight: 3,"),
        group("region: r, zone: b", ""),
        group("region: '*', zone: a/b", "load_balancing_weight: 4,"),
        group("region: r, zone: a", "load_balancing_weight: 2,"),
    ];
    assert_eq!(made("", &groups), (LocalityPolicy::Any, String::new()));
    let (locality, listed) = made("locality_weighted_lb_config: {}", &groups);
    assert_eq!(listed, "");
    let LocalityPolicy::Weights(shares) = locality else { panic!("{locality:?}") };
    let mut shares: Vec<(&str, &str, u32)> =
        shares.iter().map(|(at, weight)| (&*at.region, &*at.zone, *weight)).collect();
    shares.sort_unstable();
    // Names are no patterns, and the last weight of a place counts.
    assert_eq!(shares, [("*", "a/b", 4), ("r", "", 1), ("r", "a", 2)]);
    // What is nowhere has no weight.
    let nowhere = group("", "load_balancing_weight: 5,").replace("locality: {},", "");
    let (locality, _) =
        made("locality_weighted_lb_config: {}", &[nowhere.clone(), groups[0].clone()]);
    let LocalityPolicy::Weights(shares) = locality else { panic!("{locality:?}") };
    assert_eq!(shares.len(), 1);
    let alike = made("locality_weighted_lb_config: {}", &[nowhere]);
    assert_eq!(alike, (LocalityPolicy::Any, String::new()));
    let none = [group("region: r, zone: a", ""), group("region: r, zone: b", "")];
    let alike = made("locality_weighted_lb_config: {}", &none);
    assert_eq!(alike, (LocalityPolicy::Any, String::new()));
    let further = group("region: x", "load_balancing_weight: 1, priority: 1,");
    let (_, listed) = made("locality_weighted_lb_config: {}", &[groups[0].clone(), further]);
    assert!(listed.contains(".common_lb_config: "), "{listed}");
    let (_, listed) = made("locality_weighted_lb_config: {nonsense: 1}", &groups);
    assert!(listed.contains(".nonsense: "), "{listed}");
}

#[test]
fn a_retry_budget_counts_what_is_under_way_or_an_interval() {
    let budget = |more: &str| {
        let cluster = format!(", circuit_breakers: {{thresholds: [{{retry_budget: {{{more}}}}}]}}");
        made("", "", &cluster).2.retry_budget
    };
    let usual = RetryBudget { min_per_second: 0, min_concurrent: 3, ..RetryBudget::default() };
    assert_eq!(budget("budget_percent: {value: 20}"), usual);
    let said = budget("budget_percent: {value: 5}, min_retry_concurrency: 9, budget_interval: 2s");
    let want =
        RetryBudget { basis_points: 500, min_per_second: 0, min_concurrent: 9, interval_ms: 2_000 };
    assert_eq!(said, want);
}

#[test]
fn what_is_not_done_around_a_request_is_listed() {
    for (field, value) in [
        ("server_header_transformation", "APPEND_IF_ABSENT"),
        ("forward_client_cert_details", "SANITIZE_SET"),
        ("access_log_options", "{flush_access_log_on_new_request: true}"),
        ("normalize_path", "false"),
        ("preserve_external_request_id", "true"),
        ("strip_matching_host_port", "true"),
        ("strip_any_host_port", "true"),
        ("codec_type", "HTTP1"),
    ] {
        let found = of(&format!("{field}: {value},"), "", "", "");
        assert!(found.contains(&format!(".{field}: ")), "{field}: {found:?}");
    }
    let done = "codec_type: AUTO, normalize_path: true, preserve_external_request_id: false,
        forward_client_cert_details: SANITIZE,
        server_header_transformation: PASS_THROUGH,";
    assert_eq!(of(done, "", "", ""), "");
    for field in ["most_specific_header_mutations_wins", "ignore_path_parameters_in_path_matching"]
    {
        let listed = |asked: bool| {
            let config = format!("route_config: {{{field}: {asked}, ");
            let read = read(&text("", "", "", "").replace("route_config: {", &config));
            assert!(read.errors.is_empty(), "{}", said(&read.errors));
            said(&read.unsupported)
        };
        assert!(listed(true).contains(&format!(".{field}: ")), "{field}");
        assert_eq!(listed(false), "");
    }
    for field in ["include_request_attempt_count", "include_attempt_count_in_response"] {
        let found = of("", &format!("{field}: true,"), "", "");
        assert!(found.contains(&format!(".{field}: ")), "{field}: {found:?}");
        assert_eq!(of("", &format!("{field}: false,"), "", ""), "");
    }
    let retry = "retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 1s, max_interval: \
                 10s}}";
    for (action, path) in [("priority: HIGH", ".priority: "), (retry, ".max_interval: ")] {
        let found = of("", "", &format!(", {action}"), "");
        assert!(found.contains(path), "{action}: {found:?}");
    }
    assert_eq!(of("", "", ", priority: DEFAULT", ""), "");
    for (cluster, path) in [
        ("connection_pool_per_downstream_connection: true", "connection"),
        ("respect_dns_ttl: true", ".respect_dns_ttl: "),
        ("preconnect_policy: {nonsense: 1}", ".nonsense: "),
        ("dns_failure_refresh_rate: {nonsense: 1}", ".nonsense: "),
        ("common_lb_config: {close_connections_on_host_set_change: true}", "host_set_change: "),
        ("outlier_detection: {monitors: [{name: x}]}", ".monitors"),
        (
            "outlier_detection: {always_eject_one_host: true, max_ejection_percent: 0}",
            ".always_eject_one_host: ",
        ),
    ] {
        let found = of("", "", "", &format!(", {cluster}"));
        assert!(found.contains(path), "{cluster}: {found:?}");
    }
    let done = "common_lb_config: {close_connections_on_host_set_change: false}, \
                outlier_detection: {always_eject_one_host: true}";
    assert_eq!(of("", "", "", &format!(", {done}")), "");
    let degraded =
        text("", "", "", "").replacen("endpoint: {", "health_status: DEGRADED, endpoint: {", 1);
    assert!(said(&read(&degraded).unsupported).contains(".health_status: "));
}

#[test]
fn a_header_without_a_value_is_added_only_where_that_is_said() {
    let edited = |more: &str| {
        let add = format!("request_headers_to_add: [{{header: {{key: x-a}}{more}}}],");
        let read = whole("", &add, "", "");
        assert_eq!(said(&read.unsupported), "");
        let rules = read.resources.iter().filter_map(|(_, resource)| match resource {
            Resource::Route(route) => route.rules.first(),
            _ => None,
        });
        let filters = rules.flat_map(|rule| &rule.filters);
        let adds = |filter: &&Filter| matches!(filter, Filter::RequestHeaders(_));
        filters.filter(adds).count()
    };
    assert_eq!(edited(""), 0);
    assert_eq!(edited(", keep_empty_value: false"), 0);
    assert_eq!(edited(", keep_empty_value: true"), 1);
}
