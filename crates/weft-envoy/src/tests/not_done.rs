// SPDX-License-Identifier: Apache-2.0
//! What weft does in one way only: a field that asks for another is listed, one that asks for this
//! is not. The lists of what is passed over stand here once more, so that none grows unseen.

use super::*;

/// A bootstrap in which every message stands that has such fields; `<PLACE>` takes another of them.
const WHOLE: &str = r#"{
"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1, <SOCKET>}},
  <ADMIN>},
"static_resources": {"listeners": [{"name": "in",
  "address": {"socket_address": {"address": "127.0.0.1", "port_value": 2}}, <LISTENER>,
  "listener_filters": [{"name": "i", "typed_config":
    {"@type": "x/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", <INSPECTOR>}}],
  "filter_chains": [{<CHAIN>, "transport_socket": {"name": "tls", "typed_config": {
    "@type": "x/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", <DOWNSTREAM>,
    "common_tls_context": {"tls_certificates": [{"certificate_chain": {"filename": "c"},
      "private_key": {"filename": "k"}}]}}},
  "filters": [{"name": "hcm", "typed_config": {"@type":
    "x/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", <MANAGER>,
    "http_filters": [
      {"name": "rbac", "typed_config":
        {"@type": "x/envoy.extensions.filters.http.rbac.v3.RBAC", <RBAC>}},
      {"name": "router", "typed_config":
        {"@type": "x/envoy.extensions.filters.http.router.v3.Router", <ROUTER>}}],
    "route_config": {<CONFIG>, "virtual_hosts": [{"name": "v", "domains": ["*"], <VIRTUAL>,
      "routes": [{"match": {"prefix": "/"}, "decorator": {"operation": "o", <DECORATOR>},
        "route": {"cluster": "up", <ACTION>,
        "hash_policy": [{"header": {"header_name": "x"}}]}}]}]}}}]}]}],
"clusters": [
  {"name": "up", <CLUSTER>, "lb_policy": "RING_HASH", "ring_hash_lb_config": {<RING>},
   "common_lb_config": {<BALANCING>}, "preconnect_policy": {<PRECONNECT>},
   "dns_failure_refresh_rate": {<DNS>}, "circuit_breakers": {"thresholds": [{<BREAKER>}]},
   "outlier_detection": {"split_external_local_origin_errors": true, <OUTLIER>},
   "health_checks": [{"interval": "5s", "timeout": "1s", "unhealthy_interval": "2s",
     "healthy_threshold": 1, "unhealthy_threshold": 1, "http_health_check": {"path": "/",
     "request_headers_to_add": [{"header": {"key": "a", "value": "b"}, <ADDED>}]}, <CHECK>}],
   "http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "1s", <PINGS>}},
   "transport_socket": {"name": "tls", "typed_config": {
     "@type": "x/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", <UPSTREAM>}},
   "load_assignment": {"policy": {<POLICY>}, "endpoints": [{"lb_endpoints": [
     {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 1}}}}]}]}},
  {"name": "least", "lb_policy": "LEAST_REQUEST",
   "least_request_lb_config": {"active_request_bias": {<BIAS>}}}]}, <ROOT>}"#;

/// A place, a field there, a value that is listed, and one that is what weft does anyhow, if any.
const FIELDS: &[(&str, &str, &str, &str)] = &[
    ("ROOT", "stats_config", "{\"use_all_default_tags\": false}", "{}"),
    ("ROOT", "enable_dispatcher_stats", "true", "false"),
    ("ROOT", "watchdog", "{\"kill_timeout\": \"1s\"}", "{}"),
    ("ROOT", "watchdogs", "{\"main_thread_watchdog\": {}}", "{}"),
    ("ROOT", "use_tcp_for_dns_lookups", "true", "false"),
    ("ROOT", "header_prefix", "\"x-foo\"", "\"x-envoy\""),
    (
        "ROOT",
        "default_regex_engine",
        "{\"typed_config\": {\"@type\": \"x/hyperscan\"}}",
        "{\"typed_config\": {\"@type\": \"x/envoy.extensions.regex_engines.v3.GoogleRE2\"}}",
    ),
    ("ADMIN", "access_log_path", "\"/tmp/a\"", "\"/dev/null\""),
    (
        "ADMIN",
        "access_log",
        "[{\"name\": \"a\"}]",
        "[{\"name\": \"a\", \"typed_config\": {\"@type\": \"x/envoy.extensions.access_loggers.\
         file.v3.FileAccessLog\", \"path\": \"/dev/null\"}}]",
    ),
    ("ADMIN", "profile_path", "\"/tmp/p\"", ""),
    ("SOCKET", "resolver_name", "\"mine\"", ""),
    ("SOCKET", "ipv4_compat", "true", "false"),
    ("LISTENER", "enable_reuse_port", "false", "true"),
    ("LISTENER", "reuse_port", "false", "true"),
    ("LISTENER", "connection_balance_config", "{\"exact_balance\": {}}", "{}"),
    ("LISTENER", "tcp_backlog_size", "1", "1024"),
    ("LISTENER", "listener_filters_timeout", "\"1s\"", "\"15s\""),
    ("LISTENER", "drain_type", "\"MODIFY_ONLY\"", "\"DEFAULT\""),
    ("LISTENER", "ignore_global_conn_limit", "true", "false"),
    ("INSPECTOR", "enable_ja3_fingerprinting", "true", "false"),
    ("INSPECTOR", "enable_ja4_fingerprinting", "true", "false"),
    ("INSPECTOR", "nonsense", "true", ""),
    ("CHAIN", "transport_socket_connect_timeout", "\"1s\"", ""),
    ("DOWNSTREAM", "session_timeout", "\"10s\"", ""),
    ("DOWNSTREAM", "disable_stateless_session_resumption", "false", "true"),
    ("MANAGER", "generate_request_id", "false", "true"),
    ("MANAGER", "always_set_request_id_in_response", "false", "true"),
    ("MANAGER", "drain_timeout", "\"1s\"", "\"5s\""),
    ("MANAGER", "delayed_close_timeout", "\"0s\"", "\"1s\""),
    ("RBAC", "track_per_rule_stats", "true", "false"),
    ("ROUTER", "suppress_envoy_headers", "false", "true"),
    ("ROUTER", "strict_check_headers", "[\"x-envoy-max-retries\"]", "[]"),
    ("CONFIG", "validate_clusters", "[]", "false"),
    ("CONFIG", "ignore_port_in_host_matching", "false", "true"),
    ("CONFIG", "virtual_clusters", "[]", ""),
    ("VIRTUAL", "virtual_clusters", "[{\"name\": \"c\"}]", "[]"),
    ("VIRTUAL", "validate_clusters", "true", ""),
    ("DECORATOR", "propagate", "false", "true"),
    ("ACTION", "include_vh_rate_limits", "true", "false"),
    ("CLUSTER", "track_timeout_budgets", "true", "false"),
    ("CLUSTER", "track_cluster_stats", "{\"timeout_budgets\": true}", "{}"),
    ("CLUSTER", "wait_for_warm_on_init", "false", "true"),
    ("CLUSTER", "dns_jitter", "\"1s\"", "\"0s\""),
    ("CLUSTER", "warming", "true", ""),
    ("RING", "maximum_ring_size", "2048", "8388608"),
    ("RING", "hash_function", "\"MURMUR_HASH_2\"", "\"XX_HASH\""),
    ("BALANCING", "update_merge_window", "\"1s\"", "\"0.0s\""),
    ("BALANCING", "ignore_new_hosts_until_first_hc", "true", "false"),
    ("PRECONNECT", "per_upstream_preconnect_ratio", "3.0", "1.0"),
    ("PRECONNECT", "predictive_preconnect_ratio", "2.5", "1"),
    ("DNS", "base_interval", "\"1s\"", ""),
    ("DNS", "max_interval", "\"1s\"", ""),
    ("BREAKER", "max_connection_pools", "1", "4294967295"),
    ("BREAKER", "track_remaining", "true", "false"),
    ("OUTLIER", "enforcing_local_origin_success_rate", "100", "0"),
    ("OUTLIER", "enforcing_failure_percentage_local_origin", "100", "0"),
    ("OUTLIER", "max_ejection_time_jitter", "\"5s\"", "\"0s\""),
    ("CHECK", "reuse_connection", "true", "false"),
    ("CHECK", "initial_jitter", "\"1s\"", "\"0s\""),
    ("CHECK", "event_log_path", "\"/tmp/e\"", ""),
    ("CHECK", "event_logger", "[{\"name\": \"e\"}]", "[]"),
    ("CHECK", "always_log_health_check_failures", "true", "false"),
    ("CHECK", "always_log_health_check_success", "true", "false"),
    ("CHECK", "no_traffic_interval", "\"60s\"", "\"5.0s\""),
    ("CHECK", "no_traffic_healthy_interval", "\"60s\"", "\"5s\""),
    ("CHECK", "healthy_edge_interval", "\"1s\"", "\"5s\""),
    ("CHECK", "unhealthy_edge_interval", "\"1s\"", "\"2s\""),
    ("ADDED", "append", "false", "true"),
    ("ADDED", "append_action", "\"ADD_IF_ABSENT\"", "\"append_if_exists_or_add\""),
    ("PINGS", "interval_jitter", "{\"value\": 15}", "{}"),
    ("UPSTREAM", "max_session_keys", "0", "1"),
    ("POLICY", "endpoint_stale_after", "\"5s\"", "\"0s\""),
    ("BIAS", "default_value", "2.0", "1.0"),
];

/// What is not done of the bootstrap with a field in its place.
fn of(place: &str, field: &str, value: &str) -> String {
    let mut text = WHOLE.to_owned();
    let wanted = format!("\"{field}\": {value}");
    for (other, ..) in FIELDS {
        let more = if *other == place { &wanted } else { "\"none\": null" };
        text = text.replace(&format!("<{other}>"), more);
    }
    let read = read(&text);
    assert!(read.errors.is_empty(), "{place} {field}: {}", said(&read.errors));
    said(&read.unsupported)
}

#[test]
fn what_is_done_in_one_way_only_is_listed_when_another_is_asked_for() {
    for (place, field, other, anyhow) in FIELDS {
        let found = of(place, field, other);
        let is_named = [": ", "["].iter().any(|end| found.contains(&format!(".{field}{end}")));
        assert!(is_named || found.starts_with(field), "{found:?}");
        assert_eq!(found.lines().count(), 1, "{found}");
        if !anyhow.is_empty() {
            assert_eq!(of(place, field, anyhow), "", "{place} {field}");
        }
    }
}

#[test]
fn local_errors_that_are_not_told_apart_are_judged_by_nobody() {
    let judged = "enforcing_local_origin_success_rate: 100";
    let up = UP.replacen("{name: up", &format!("{{name: up, outlier_detection: {{{judged}}}"), 1);
    clean(with("{match: {prefix: /}, route: {cluster: up}}", &up));
}
