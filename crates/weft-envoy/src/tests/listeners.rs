// SPDX-License-Identifier: Apache-2.0
//! What filter chains become: sections of a listener by their server names, and what is believed
//! of clients there.

use weft_model::{Edge, EscapedSlashes, GatewayListener, Parent, Slashes};

use super::options::whole;
use super::*;

const EXT: &str = "type.googleapis.com/envoy.extensions";

/// A listener of these chains.
fn of(chains: &[&str]) -> Bootstrap {
    of_text(chains, &format!("clusters: [{UP}]"))
}

fn of_text(chains: &[&str], clusters: &str) -> Bootstrap {
    let inspector = format!("{EXT}.filters.listener.tls_inspector.v3.TlsInspector");
    read(&format!(
        "static_resources: {{listeners: [{{name: l, address: {{socket_address: {{address: \
         0.0.0.0, port_value: 443}}}}, listener_filters: [{{name: i, typed_config: {{'@type': \
         {inspector}}}}}], filter_chains: [{}]}}], {clusters}}}",
        chains.join(", ")
    ))
}

/// A chain that passes bytes on to the cluster.
fn bytes(found: &str) -> String {
    let proxy = format!("{EXT}.filters.network.tcp_proxy.v3.TcpProxy");
    format!(
        "{{{found} filters: [{{name: t, typed_config: {{'@type': {proxy}, stat_prefix: s, \
         cluster: up}}}}]}}"
    )
}

/// One that ends TLS.
fn secure(found: &str) -> String {
    let context = format!("{EXT}.transport_sockets.tls.v3.DownstreamTlsContext");
    let manager = format!("{EXT}.filters.network.http_connection_manager.v3.HttpConnectionManager");
    let router = format!("{EXT}.filters.http.router.v3.Router");
    format!(
        "{{{found} transport_socket: {{name: t, typed_config: {{'@type': {context}, \
         common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: c}}, \
         private_key: {{filename: k}}}}]}}}}}}, filters: [{{name: h, typed_config: {{'@type': \
         {manager}, stat_prefix: s, http_filters: [{{name: router, typed_config: {{'@type': \
         {router}}}}}], route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: \
         [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}]}}}}}}]}}"
    )
}

fn listener(read: &Bootstrap) -> &GatewayListener {
    let found = read.resources.iter().find_map(|(_, r)| match r {
        Resource::Listener(listener) => match &listener.kind {
            ListenerKind::Gateway(gateway) => Some(gateway),
            _ => None,
        },
        _ => None,
    });
    found.unwrap()
}

/// A section's name to clients, what it is, whether it ends TLS.
type Shape = (String, Protocol, bool);

/// Each section, and which of them each route is for.
fn shape(read: &Bootstrap) -> (Vec<Shape>, Vec<Vec<String>>) {
    let sections = listener(read)
        .sections
        .iter()
        .map(|s| (s.hostname.as_deref().unwrap_or("").to_owned(), s.protocol, s.tls.is_some()));
    let routes = read.resources.iter().filter_map(|(_, r)| match r {
        Resource::Route(route) => match &route.parent {
            Parent::Listener { sections, .. } => {
                Some(sections.iter().map(ToString::to_string).collect())
            }
            Parent::Host { .. } => None,
        },
        _ => None,
    });
    (sections.collect(), routes.collect())
}

#[test]
fn a_chain_serves_each_of_its_names() {
    let two = secure("filter_chain_match: {server_names: [A.example, '*.b.example']},");
    let read = clean(of(&[&two, &secure("")]));
    let (sections, routes) = shape(&read);
    let named = |name: &str| (name.to_owned(), Protocol::Http1, true);
    assert_eq!(sections, [named("a.example"), named("*.b.example"), named("")]);
    assert_eq!(routes, [vec!["0", "0.1"], vec!["1"]]);
}

#[test]
fn chains_of_names_without_tls_of_their_own_pass_it_on() {
    let one = bytes("filter_chain_match: {server_names: [a.example], transport_protocol: tls},");
    let rest = bytes("filter_chain_match: {transport_protocol: tls},");
    let (sections, routes) = shape(&clean(of(&[&one, &rest])));
    let passed = |name: &str| (name.to_owned(), Protocol::Tls, false);
    assert_eq!(sections, [passed("a.example"), passed("")]);
    assert_eq!(routes, [["0"], ["1"]]);
    // Beside one that ends it, too.
    let (sections, _) = shape(&clean(of(&[&one, &secure("")])));
    assert_eq!(sections, [passed("a.example"), (String::new(), Protocol::Http1, true)]);
    // Alone it is TLS of any name, or bytes of any kind.
    let (sections, _) = shape(&clean(of(&[&rest])));
    assert_eq!(sections, [passed("")]);
    let any = bytes("");
    let (sections, _) = shape(&clean(of(&[&any])));
    assert_eq!(sections, [(String::new(), Protocol::Tcp, false)]);
    // Beside names it would take bytes of any kind, too.
    let both = of(&[&one, &any]);
    assert!(said(&both.unsupported).contains("a connection without TLS is closed"));
    assert_eq!(shape(&both).0, [passed("a.example"), passed("")]);
    // Nobody reads what is inside of TLS that nobody ends.
    let http = secure("filter_chain_match: {transport_protocol: tls},");
    let open = http.replacen("transport_socket:", "metadata:", 1);
    assert!(said(&of(&[&open]).errors).contains(".transport_socket: what is inside of TLS"));
}

#[test]
fn a_tcp_proxy_says_how_long_and_to_whom() {
    let more = "max_downstream_connection_duration: 9s, hash_policy: [{source_ip: {}}],";
    let chain = bytes("").replacen("stat_prefix: s,", more, 1);
    let up =
        format!("clusters: [{}]", UP.replacen("{name: up,", "{name: up, lb_policy: MAGLEV,", 1));
    let made = clean(of_text(&[&chain], &up));
    assert_eq!(route(&made).rules[0].timeouts.stream_ms, Some(9_000));
    let LbPolicy::Hash(hash) = &backend(&made).policy.lb else { panic!("{made:#?}") };
    assert_eq!(hash.by, HashBy::SourceIp);
}

/// What is not done of filters in this order, with a CORS policy on the route.
fn ordered(names: &[&str]) -> String {
    let share = "default_value: {numerator: 100}";
    let each = names.iter().map(|name| {
        let (kind, config) = match *name {
            "rbac" => ("rbac.v3.RBAC", "rules: {action: DENY, policies: {}}".to_owned()),
            "cors" => ("cors.v3.Cors", String::new()),
            "limit" => (
                "local_ratelimit.v3.LocalRateLimit",
                format!(
                    "stat_prefix: s, token_bucket: {{max_tokens: 1, fill_interval: 1s}}, \
                     filter_enabled: {{{share}}}, filter_enforced: {{{share}}}"
                ),
            ),
            _ => (
                "fault.v3.HTTPFault",
                "abort: {http_status: 503, percentage: {numerator: 100}}".to_owned(),
            ),
        };
        format!("{{name: {name}, typed_config: {{'@type': {EXT}.filters.http.{kind}, {config}}}}}")
    });
    let filters: Vec<String> = each.collect();
    let manager = format!("{EXT}.filters.network.http_connection_manager.v3.HttpConnectionManager");
    let policy = format!("{{'@type': {EXT}.filters.http.cors.v3.CorsPolicy}}");
    let chain = format!(
        "{{filters: [{{name: h, typed_config: {{'@type': {manager}, stat_prefix: s, \
         http_filters: [{}, {{name: router, typed_config: {{'@type': \
         {EXT}.filters.http.router.v3.Router}}}}], route_config: {{virtual_hosts: [{{name: v, \
         domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}, \
         typed_per_filter_config: {{cors: {policy}}}}}]}}]}}}}}}]}}",
        filters.join(", ")
    );
    let read = of(&[&chain]);
    assert!(read.errors.is_empty(), "{}", said(&read.errors));
    said(&read.unsupported)
}

#[test]
fn an_order_of_filters_that_is_not_kept_is_listed() {
    for kept in [
        &["rbac", "cors", "limit", "fault"][..],
        &["cors", "rbac", "limit", "fault"],
        &["cors", "rbac", "rbac"],
        &["rbac", "fault"],
    ] {
        assert_eq!(ordered(kept), "", "{kept:?}");
    }
    for (written, why) in [
        (&["limit", "rbac"][..], "http_filters: \"rbac\" is done before \"limit\""),
        (&["fault", "rbac"], "http_filters: \"rbac\" is done before \"fault\""),
        (&["fault", "limit"], "http_filters: \"limit\" is done before \"fault\""),
        // Only its route has a policy.
        (&["limit", "cors"], "typed_per_filter_config: \"cors\" is done before \"limit\""),
        (&["rbac", "cors", "rbac"], "typed_per_filter_config: \"rbac\" is done before \"cors\""),
    ] {
        let listed = ordered(written);
        assert!(listed.contains(why), "{written:?}: {listed}");
        assert_eq!(listed.lines().count(), 1, "{listed}");
    }
}

#[test]
fn who_is_in_front_is_believed_as_far_as_that_is_said() {
    let edge = |manager: &str| {
        let read = whole(manager, "", "", "");
        assert!(read.unsupported.is_empty(), "{}", said(&read.unsupported));
        match read.errors.is_empty() {
            true => Ok(listener(&read).edge),
            false => Err(said(&read.errors)),
        }
    };
    let hops = |trusted_hops| Ok(Edge { trusted_hops, ..Edge::default() });
    for (manager, want) in [
        ("", hops(0)),
        ("use_remote_address: true,", hops(0)),
        ("use_remote_address: false,", hops(0)),
        ("use_remote_address: true, xff_num_trusted_hops: 2,", hops(2)),
        // "The (N+1)th address from the right end of XFF" without it.
        ("xff_num_trusted_hops: 2,", hops(3)),
    ] {
        assert_eq!(edge(manager), want, "{manager}");
    }
    assert!(edge("xff_num_trusted_hops: 999,").unwrap_err().contains(".xff_num_trusted_hops: "));
    let slashes = |manager: &str| edge(manager).map(|edge| edge.slashes);
    let of = |merge, escaped| Ok(Slashes { merge, escaped });
    for (action, escaped) in [
        ("IMPLEMENTATION_SPECIFIC_DEFAULT", EscapedSlashes::Keep),
        ("KEEP_UNCHANGED", EscapedSlashes::Keep),
        ("REJECT_REQUEST", EscapedSlashes::Refuse),
        ("UNESCAPE_AND_REDIRECT", EscapedSlashes::Redirect),
        ("UNESCAPE_AND_FORWARD", EscapedSlashes::Unescape),
    ] {
        let manager = format!("path_with_escaped_slashes_action: {action},");
        assert_eq!(slashes(&manager), of(false, escaped), "{action}");
    }
    assert_eq!(slashes("merge_slashes: true,"), of(true, EscapedSlashes::Keep));
    assert_eq!(slashes("merge_slashes: false,"), of(false, EscapedSlashes::Keep));
    let underscores = |action: &str| {
        let common = "common_http_protocol_options: {headers_with_underscores_action";
        edge(&format!("{common}: {action}}},")).map(|edge| edge.underscores)
    };
    assert_eq!(underscores("ALLOW"), Ok(true));
    assert_eq!(underscores("REJECT_REQUEST"), Ok(false));
    let dropped = "common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER},";
    let read = whole(dropped, "", "", "");
    assert!(said(&read.unsupported).contains(".headers_with_underscores_action: DROP_HEADER: "));
}

#[test]
fn answers_say_who_serves_where_that_is_said() {
    for (manager, name) in [
        ("", None),
        ("server_name: me,", Some("me")),
        ("server_name: me, server_header_transformation: OVERWRITE,", Some("me")),
        ("server_header_transformation: OVERWRITE,", Some("envoy")),
        ("server_name: me, server_header_transformation: PASS_THROUGH,", None),
    ] {
        let read = clean(whole(manager, "response_headers_to_remove: [x],", "", ""));
        let mut edits = route(&read).rules[0].filters.iter().filter_map(|filter| match filter {
            Filter::ResponseHeaders(edit) => Some(edit),
            _ => None,
        });
        // After what the virtual host says.
        let last = edits.next_back().map(|edit| edit.set.clone()).unwrap_or_default();
        let want = name.map(|name| ("server".into(), name.into()));
        assert_eq!(last, want.into_iter().collect::<Vec<_>>(), "{manager}");
    }
}
