// SPDX-License-Identifier: Apache-2.0
//! Every field of Envoy's messages for options is either one that weft does anyhow, or listed.

use super::*;

const EXT: &str = "type.googleapis.com/envoy.extensions";
const ANYHOW: &str = "done anyhow";

/// A bootstrap with these fields of its connection manager, virtual host, route action and cluster.
fn of(manager: &str, host: &str, action: &str, cluster: &str) -> String {
    let up = UP.replacen("{name: up", &format!("{{name: up{cluster}"), 1);
    let read = read(&format!(
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
    ));
    assert!(read.errors.is_empty(), "{}", said(&read.errors));
    said(&read.unsupported)
}

/// The fields of `HttpProtocolOptions`, `Http1ProtocolOptions` and `Http2ProtocolOptions`
/// (envoy/config/core/v3/protocol.proto), those that weft does anyhow after the bar.
const COMMON: &str = "idle_timeout max_connection_duration max_headers_count \
     max_response_headers_kb max_stream_duration headers_with_underscores_action \
     max_requests_per_connection nonsense |";
const HTTP_1: &str = "default_host_for_http_10 header_key_format allow_chunked_length \
     override_stream_error_on_invalid_http_message send_fully_qualified_url \
     ignore_http_11_upgrade nonsense | allow_absolute_url accept_http_10 enable_trailers \
     use_balsa_parser allow_custom_methods";
const HTTP_2: &str = "allow_connect allow_metadata stream_error_on_invalid_http_messaging \
     override_stream_error_on_invalid_http_message custom_settings_parameters \
     connection_keepalive max_metadata_size nonsense | hpack_table_size \
     initial_stream_window_size initial_connection_window_size max_outbound_frames \
     max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload \
     max_inbound_priority_frames_per_stream \
     max_inbound_window_update_frames_per_data_frame_sent use_oghttp2_codec";

fn check(names: &str, made: impl Fn(&str) -> String) {
    let (listed, anyhow) = names.split_once('|').unwrap();
    for name in listed.split_whitespace() {
        let found = made(&format!("{{{name}: 1}}"));
        assert!(found.contains(&format!(".{name}: ")), "{name} is swallowed: {found:?}");
    }
    for name in anyhow.split_whitespace() {
        assert_eq!(made(&format!("{{{name}: 1}}")), "", "{name} is {ANYHOW}");
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
    let streams = |n: u32| {
        let options = format!("http2_protocol_options: {{max_concurrent_streams: {n}}}");
        (of(&format!("{options},"), "", "", ""), of("", "", "", &format!(", {options}")))
    };
    let (of_clients, of_cluster) = streams(5);
    assert!(of_clients.contains("up to 128 streams") && of_cluster.contains("up to 128 streams"));
    assert_eq!(streams(128), (String::new(), String::new()));
}

#[test]
fn what_is_not_done_around_a_request_is_listed() {
    for (field, value) in [
        ("request_headers_timeout", "1s"),
        ("max_request_headers_kb", "1"),
        ("server_name", "me"),
        ("access_log_options", "{flush_access_log_on_new_request: true}"),
        ("normalize_path", "false"),
        ("preserve_external_request_id", "true"),
    ] {
        let found = of(&format!("{field}: {value},"), "", "", "");
        assert!(found.contains(&format!(".{field}: ")), "{field}: {found:?}");
    }
    assert_eq!(of("normalize_path: true, preserve_external_request_id: false,", "", "", ""), "");
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
        ("upstream_connection_options: {tcp_keepalive: {keepalive_time: 1}}", ".tcp_keepalive: "),
        ("preconnect_policy: {nonsense: 1}", ".nonsense: "),
        ("dns_failure_refresh_rate: {nonsense: 1}", ".nonsense: "),
    ] {
        let found = of("", "", "", &format!(", {cluster}"));
        assert!(found.contains(path), "{cluster}: {found:?}");
    }
}
