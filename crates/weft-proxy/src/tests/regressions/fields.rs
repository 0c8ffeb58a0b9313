// SPDX-License-Identifier: Apache-2.0
//! Header lines: 7, 8, 14, 38, 39 and 41 to 43.

use super::*;

fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: user\r\n{lines}\r\n\r\n").into_bytes()
}

fn many(n: usize) -> Vec<u8> {
    get(vec!["X-A: b"; n].join("\r\n").as_str())
}

refused! { LINES:
    reg_07_empty_name "grammar" 400 "name is empty or not a token" get(": x");
    reg_07_empty_name_before_others "grammar" 400 "name is empty" get(": x\r\nContent-Length: 5");
    reg_07_space_before_colon "grammar" 400 "between a header's name and its colon" get("X-A : b");
    reg_07_tab_before_colon "grammar" 400 "between a header's name and its colon" get("X-A\t: b");
    reg_07_nul_in_value "grammar" 400 "zero byte" get("X-A: b\0c");
    reg_07_nul_in_name "grammar" 400 "zero byte" get("X\0A: b");
    reg_07_bare_cr_in_value "grammar" 400 "carriage return stands within" get("X-A: b\rc");
    reg_07_bare_cr_before_another_header "grammar" 400 "carriage return stands within"
        get("X-A: b\rContent-Length: 5");
    reg_07_bare_lf_between_headers "bare-lf" 400 "without carriage return" get("X-A: b\nX-B: c");
    reg_07_bare_lf_after_the_request_line "bare-lf" 400 "without carriage return"
        b"GET / HTTP/1.1\nHost: user\r\n\r\n".to_vec();
    reg_07_folded_by_space "grammar" 400 "folded" get("X-A: b\r\n c");
    reg_07_folded_by_tab "grammar" 400 "folded" get("X-A: b\r\n\tc");
    reg_07_first_line_begins_with_space "grammar" 400 "folded"
        b"GET / HTTP/1.1\r\n Host: user\r\n\r\n".to_vec();
    reg_07_first_line_is_blank "grammar" 400 "folded"
        b"GET / HTTP/1.1\r\n \r\nHost: user\r\n\r\n".to_vec();
    reg_07_vertical_tab_in_value "grammar" 400 "control character" get("X-A: b\x0bc");
    reg_07_delete_in_value "grammar" 400 "control character" get("X-A: b\x7fc");
    reg_07_name_with_brackets "grammar" 400 "not a token" get("X[A]: b");
    reg_07_name_with_a_space "grammar" 400 "not a token" get("X A: b");
    reg_07_name_not_ascii "grammar" 400 "not a token" get("Xé: b");
    reg_07_no_colon "grammar" 400 "no colon" get("X-A");
    reg_08_name_beyond_the_limit "grammar" 431 "head is too large"
        get(&format!("{}: b", "a".repeat(70_000)));
    reg_08_value_beyond_the_limit "grammar" 431 "head is too large"
        get(&format!("X-A: {}", "a".repeat(70_000)));
    reg_08_names_in_total_beyond_the_limit "grammar" 431 "head is too large"
        get(&(0..100).map(|i| format!("X-{i}: {}", "a".repeat(700))).collect::<Vec<_>>()
            .join("\r\n"));
    reg_08_too_many "grammar" 431 "too many headers" many(200);
    reg_42_connection_with_a_list_of_no_tokens "connection-tokens" 400 "not a list of tokens"
        get("Connection: close; X-Auth");
    reg_64_websocket_with_too_many_headers "grammar" 431 "too many headers"
        get(&format!("Connection: upgrade\r\nUpgrade: websocket\r\n{}",
            vec!["Sec-WebSocket-Protocol: a"; 200].join("\r\n")));
    reg_43_underscore_double_of_another "underscores" 400 "servers may take"
        get("X-User: a\r\nX_User: b");
    reg_43_underscore_content_length "underscores" 400 "servers may take" get("Content_Length: 5");
    reg_43_underscore_transfer_encoding "underscores" 400 "servers may take"
        get("Transfer_Encoding: chunked");
    reg_43_underscore_forwarded_for "underscores" 400 "servers may take"
        get("X_Forwarded_For: 6.6.6.6");
    reg_43_underscore_client_certificate "underscores" 400 "servers may take"
        get("X-Forwarded-Client_Cert: x");
    reg_43_underscore_authorization_double "underscores" 400 "servers may take"
        get("X_Weft_Source: a");
}

pub(super) const CASES: &[&[(&str, &str)]] = &[LINES, OUTSIDE];

/// Cases that are no plain refusals.
const OUTSIDE: &[(&str, &str)] = &[
    (concat!(module_path!(), "::reg_41_nothing_about_the_way_is_believed_of_outside"), "outside"),
    (concat!(module_path!(), "::reg_43_a_gateway_takes_no_underscores"), "underscores"),
    (
        concat!(module_path!(), "::reg_42_connection_drops_nothing_that_is_owned"),
        "connection-owned",
    ),
];

fn forward() -> Vec<Rule> {
    vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]
}

fn lines_of(seen: &str, name: &str) -> Vec<String> {
    let head = seen.split("\r\n\r\n").next().unwrap_or_default();
    let prefix = format!("{name}: ");
    head.lines().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_08_a_long_name_reaches_the_origin_whole() {
    let rig = Rig::sidecar().await;
    let name = "x".repeat(30_000);
    rig.takes(&get(&format!("{name}: b\r\nX-After: c"))).await;
    assert_eq!(lines_of(&rig.seen(), &name), ["b"]);
    assert_eq!(lines_of(&rig.seen(), "x-after"), ["c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_41_nothing_about_the_way_is_believed_of_outside() {
    let told =
        get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
         X-Forwarded-Client-Cert: URI=spiffe://x\r\nX-Envoy-Internal: true\r\n\
         X-Envoy-Original-Path: /admin\r\nX-Weft-Source: admin\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nX-Request-Id: forged");
    let rig = Rig::gateway(Edge::default(), forward()).await;
    rig.takes(&told).await;
    let seen = rig.seen();
    assert_eq!(lines_of(&seen, "x-forwarded-for"), ["127.0.0.1"], "{seen}");
    assert_eq!(lines_of(&seen, "x-forwarded-proto"), ["http"], "{seen}");
    for lie in ["6.6.6.6", "evil", "spiffe", "x-envoy", "x-weft", "forged", "https"] {
        assert!(!seen.contains(lie), "{lie}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_41_as_many_hops_are_believed_as_are_counted() {
    let told = get("X-Forwarded-For: 6.6.6.6, 1.2.3.4\r\nX-Forwarded-Proto: https");
    let edge = Edge { trusted_hops: 1, ..Edge::default() };
    let rig = Rig::gateway(edge, forward()).await;
    rig.takes(&told).await;
    assert_eq!(lines_of(&rig.seen(), "x-forwarded-for"), ["1.2.3.4, 127.0.0.1"]);
    assert_eq!(lines_of(&rig.seen(), "x-forwarded-proto"), ["https"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_42_connection_drops_nothing_that_is_owned() {
    let rig = Rig::gateway(Edge { trusted_hops: 1, ..Edge::default() }, forward()).await;
    rig.takes(&get(
        "Connection: X-Hop, Authorization, Cookie, X-Forwarded-For, X-Request-Id, Host\r\n\
         X-Hop: 1\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Request-Id: mine",
    ))
    .await;
    let seen = rig.seen();
    assert!(lines_of(&seen, "x-hop").is_empty(), "{seen}");
    assert_eq!(lines_of(&seen, "authorization"), ["Bearer x"], "{seen}");
    assert_eq!(lines_of(&seen, "cookie"), ["a=b"], "{seen}");
    assert_eq!(lines_of(&seen, "x-forwarded-for"), ["1.2.3.4, 127.0.0.1"], "{seen}");
    assert_eq!(lines_of(&seen, "x-request-id"), ["mine"], "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_43_a_gateway_takes_no_underscores() {
    let asked = [get("User_Id: 7"), LAST.as_bytes().to_vec()].concat();
    let strict = Rig::gateway(Edge::default(), forward()).await;
    let played = strict.play(&asked).await;
    assert!(played.text.starts_with("HTTP/1.1 400 "), "{played:?}");
    assert!(!strict.seen().contains("user_id"));
    let open = Rig::gateway(Edge { underscores: true, ..Edge::default() }, forward()).await;
    open.takes(&get("User_Id: 7")).await;
    assert_eq!(lines_of(&open.seen(), "user_id"), ["7"]);
    let inside = Rig::sidecar().await;
    inside.takes(&get("User_Id: 7")).await;
}

/// What a rule writes into a head comes from configuration and from the request's own path, whose
/// line ends stay escaped or are refused.
#[tokio::test(flavor = "multi_thread")]
async fn reg_14_generated_values_have_no_line_ends() {
    let redirect = Redirect {
        scheme: None,
        host: None,
        port: None,
        path: Some(PathRewrite::Prefix("/new".into())),
        status: 302,
        port_from: RedirectPort::default(),
    };
    let mut written = rule("/", Action::Forward(vec![to("user", "", 1)]));
    written.filters.push(Filter::RequestHeaders(HeaderEdit {
        set: vec![("x-set".into(), "a\r\nX-Smuggled: 1".into())],
        ..HeaderEdit::default()
    }));
    let rules = vec![rule("/old", Action::Redirect(redirect)), written];
    let rig = Rig::gateway(Edge::default(), rules).await;
    rig.takes(&get("X-A: b")).await;
    assert!(!rig.seen().to_lowercase().contains("x-smuggled"), "{}", rig.seen());
    for path in ["/old/%0d%0aX-Smuggled:%201", "/old/%0aX"] {
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let played = rig.play(asked.as_bytes()).await;
        assert!(played.text.starts_with("HTTP/1.1 400 "), "{played:?}");
    }
    let asked =
        "GET /old/x?a=%0d%0aX-Smuggled:%201 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let played = rig.play(asked.as_bytes()).await;
    assert!(played.text.starts_with("HTTP/1.1 302 "), "{played:?}");
    assert!(!played.text.to_lowercase().contains("\nx-smuggled"), "{played:?}");
}

/// A rule about a header is asked of each of its lines, never of all lines joined, and bytes that
/// are no text are bytes.
#[tokio::test(flavor = "multi_thread")]
async fn reg_38_39_header_rules_see_each_line_and_bytes() {
    let by = |value: StringMatch| {
        let mut denied = rule("/", Action::Direct { status: 403, body: "denied".into() });
        denied.matches[0].headers = vec![NamedMatch { name: "x-role".into(), value }];
        vec![denied, rule("/", Action::Forward(vec![to("user", "", 1)]))]
    };
    let exact = Rig::gateway(Edge::default(), by(StringMatch::Exact("admin".into()))).await;
    let regex = StringMatch::Regex(Regex::new("(?s).*adm.n.*").unwrap());
    let regex = Rig::gateway(Edge::default(), by(regex)).await;
    let close = "Connection: close\r\n";
    for (rig, lines) in [
        (&exact, format!("{close}X-Role: admin")),
        (&exact, format!("{close}X-Role: user\r\nX-Role: admin")),
        (&exact, format!("{close}X-Role: admin\r\nX-Role: user")),
        (&regex, format!("{close}X-Role: admin")),
        (&regex, format!("{close}X-Role: user\r\nX-Role: the admin")),
    ] {
        let played = rig.play(&get(&lines)).await;
        assert!(played.text.starts_with("HTTP/1.1 403 "), "{lines}: {played:?}");
    }
    let mut bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{close}X-Role: ").into_bytes();
    bytes.extend_from_slice(b"\xff\xfeadmin\xff\r\n\r\n");
    let played = regex.play(&bytes).await;
    assert!(played.text.starts_with("HTTP/1.1 403 "), "{played:?}");
    assert!(regex.seen().is_empty() && exact.seen().is_empty());
}
