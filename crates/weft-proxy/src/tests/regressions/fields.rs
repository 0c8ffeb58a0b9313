// SPDX-License-Identifier: Apache-2.0
//! Header lines: 7, 8, 14, 38, 39 and 41 to 43.

use super::*;

fn get(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: user\r\n{lines}\r\n\r\n").into_bytes()
}

fn many(n: usize) -> Vec<u8> {
    get(vec!["X-A: b"; n].join("\r\n").as_str())
}

refused! {
    reg_07_empty_name 400 "name is empty or not a token" get(": x");
    reg_07_empty_name_before_others 400 "name is empty" get(": x\r\nContent-Length: 5");
    reg_07_space_before_colon 400 "between a header's name and its colon" get("X-A : b");
    reg_07_tab_before_colon 400 "between a header's name and its colon" get("X-A\t: b");
    reg_07_nul_in_value 400 "zero byte" get("X-A: b\0c");
    reg_07_nul_in_name 400 "zero byte" get("X\0A: b");
    reg_07_bare_cr_in_value 400 "carriage return stands within" get("X-A: b\rc");
    reg_07_bare_cr_before_another_header 400 "carriage return stands within"
        get("X-A: b\rContent-Length: 5");
    reg_07_bare_lf_between_headers 400 "without carriage return" get("X-A: b\nX-B: c");
    reg_07_bare_lf_after_the_request_line 400 "without carriage return"
        b"GET / HTTP/1.1\nHost: user\r\n\r\n".to_vec();
    reg_07_folded_by_space 400 "folded" get("X-A: b\r\n c");
    reg_07_folded_by_tab 400 "folded" get("X-A: b\r\n\tc");
    reg_07_first_line_begins_with_space 400 "folded"
        b"GET / HTTP/1.1\r\n Host: user\r\n\r\n".to_vec();
    reg_07_first_line_is_blank 400 "folded"
        b"GET / HTTP/1.1\r\n \r\nHost: user\r\n\r\n".to_vec();
    reg_07_vertical_tab_in_value 400 "control character" get("X-A: b\x0bc");
    reg_07_delete_in_value 400 "control character" get("X-A: b\x7fc");
    reg_07_name_with_brackets 400 "not a token" get("X[A]: b");
    reg_07_name_with_a_space 400 "not a token" get("X A: b");
    reg_07_name_not_ascii 400 "not a token" get("Xé: b");
    reg_07_no_colon 400 "no colon" get("X-A");
    reg_08_name_beyond_the_limit 431 "head is too large"
        get(&format!("{}: b", "a".repeat(65_530)));
    reg_08_value_beyond_the_limit 431 "head is too large"
        get(&format!("X-A: {}", "a".repeat(70_000)));
    reg_08_names_in_total_beyond_the_limit 431 "head is too large"
        get(&(0..100).map(|i| format!("X-{i}: {}", "a".repeat(700))).collect::<Vec<_>>()
            .join("\r\n"));
    reg_08_too_many 431 "too many headers" many(200);
    reg_42_connection_with_a_list_of_no_tokens 400 "not a list of tokens"
        get("Connection: close; X-Auth");
    reg_64_websocket_with_too_many_headers 431 "too many headers"
        get(&format!("Connection: upgrade\r\nUpgrade: websocket\r\n{}",
            vec!["Sec-WebSocket-Protocol: a"; 200].join("\r\n")));
    reg_43_underscore_double_of_another 400 "servers may take"
        get("X-User: a\r\nX_User: b");
    reg_43_underscore_content_length 400 "servers may take" get("Content_Length: 5");
    reg_43_underscore_transfer_encoding 400 "servers may take"
        get("Transfer_Encoding: chunked");
    reg_43_underscore_forwarded_for 400 "servers may take"
        get("X_Forwarded_For: 6.6.6.6");
    reg_43_underscore_client_certificate 400 "servers may take"
        get("X-Forwarded-Client_Cert: x");
    reg_43_underscore_authorization_double 400 "servers may take"
        get("X_Weft_Source: a");
}

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

/// What stands around a value is no part of it, for rules as for the origin.
#[tokio::test(flavor = "multi_thread")]
async fn reg_08_blanks_around_a_value_hide_it_from_no_rule() {
    let rig = Rig::gateway(Edge::default(), no_admins(exactly("admin"))).await;
    for value in ["admin ", "admin\t", " \tadmin \t "] {
        let played = rig.play(&get(&format!("Connection: close\r\nX-Role:{value}"))).await;
        assert!(played.text.starts_with("HTTP/1.1 403 "), "gets past: {value:?}: {played:?}");
    }
}

/// One thing that a client says of itself or of its way, and what may not be seen of it.
macro_rules! untrusted {
    ($($name:ident $line:literal $lie:literal;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let rig = Rig::gateway(Edge::default(), forward()).await;
                rig.takes(&get($line)).await;
                let seen = rig.seen().to_lowercase();
                assert!(!seen.contains($lie), "believed: {seen}");
            }
        )+
    };
}

untrusted! {
    reg_41_x_forwarded_for "X-Forwarded-For: 6.6.6.6" "6.6.6.6";
    reg_41_x_forwarded_for_twice "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 6.6.6.6" "6.6.6.6";
    reg_41_x_forwarded_proto "X-Forwarded-Proto: https" "https";
    reg_41_x_forwarded_host "X-Forwarded-Host: evil.example" "evil";
    reg_41_x_forwarded_port "X-Forwarded-Port: 6666" "6666";
    reg_41_x_forwarded_prefix "X-Forwarded-Prefix: /evil" "evil";
    reg_41_x_forwarded_client_cert
        "X-Forwarded-Client-Cert: By=spiffe://a;Hash=1;URI=spiffe://cluster.local/ns/a/sa/admin"
        "spiffe";
    reg_41_forwarded "Forwarded: for=6.6.6.6;proto=https" "6.6.6.6";
    reg_41_x_real_ip "X-Real-IP: 6.6.6.6" "6.6.6.6";
    reg_41_x_client_ip "X-Client-IP: 6.6.6.6" "6.6.6.6";
    reg_41_true_client_ip "True-Client-IP: 6.6.6.6" "6.6.6.6";
    reg_41_x_envoy_internal "X-Envoy-Internal: true" "x-envoy";
    reg_41_x_envoy_original_path "X-Envoy-Original-Path: /admin" "x-envoy";
    reg_41_x_envoy_external_address "X-Envoy-External-Address: 6.6.6.6" "6.6.6.6";
    reg_41_x_request_id "X-Request-Id: forged" "forged";
    reg_41_x_weft "X-Weft-Source: admin" "x-weft";
    reg_15_upgrade_to_h2c "Connection: Upgrade\r\nUpgrade: h2c" "h2c";
    reg_15_http2_settings
        "Connection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA" "aamaaa";
    reg_15_http2_settings_that_nobody_names "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA" "aamaaa";
}

/// What a rule asks of a request is asked of its head, and a trailer stays behind the body.
#[tokio::test(flavor = "multi_thread")]
async fn reg_10_trailer_role_is_seen_by_no_rule() {
    let rig = Rig::gateway(Edge::default(), no_admins(exactly("admin"))).await;
    let head = "POST / HTTP/1.1\r\nHost: user\r\nX-Role: user\r\nTransfer-Encoding: chunked";
    rig.takes(format!("{head}\r\n\r\n3\r\nabc\r\n0\r\nX-Role: admin\r\n\r\n").as_bytes()).await;
    let seen = rig.seen();
    assert_eq!(lines_of(&seen, "x-role"), ["user"], "merged: {seen}");
    assert!(seen.contains("0\r\nx-role: admin\r\n\r\nGET /last "), "it is elsewhere: {seen}");
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

/// A header of a request that a rule wrote lines into.
async fn edited(value: &str) {
    let mut written = rule("/", Action::Forward(vec![to("user", "", 1)]));
    written.filters.push(Filter::RequestHeaders(HeaderEdit {
        set: vec![("x-set".into(), value.into())],
        ..HeaderEdit::default()
    }));
    let rig = Rig::gateway(Edge::default(), vec![written]).await;
    rig.takes(&get("X-A: b")).await;
    let seen = rig.seen().to_lowercase();
    assert!(!seen.contains("x-smuggled"), "written into the head: {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_header_that_a_rule_sets_has_no_cr_lf() {
    edited("a\r\nX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_header_that_a_rule_sets_has_no_lf() {
    edited("a\nX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_header_that_a_rule_sets_has_no_cr() {
    edited("a\rX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_header_that_a_rule_sets_has_no_nul() {
    edited("a\0X-Smuggled: 1").await;
}

/// A host that a rule wrote something into that ends it.
async fn renamed(host: &str) {
    let mut written = rule("/", Action::Forward(vec![to("user", "", 1)]));
    let rewrite = Rewrite { host: Some(host.into()), ..Rewrite::default() };
    written.filters.push(Filter::Rewrite(rewrite));
    let rig = Rig::gateway(Edge::default(), vec![written]).await;
    let played = rig.play(&get("Connection: close")).await;
    let seen = rig.seen().to_lowercase();
    assert!(!seen.contains("smuggled"), "written into the head: {seen}");
    assert!(played.text.starts_with("HTTP/1.1 5"), "not refused: {played:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_host_that_a_rule_makes_has_no_cr_lf() {
    renamed("user\r\nX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_host_that_a_rule_makes_has_no_lf() {
    renamed("user\nX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_host_that_a_rule_makes_has_no_cr() {
    renamed("user\rX-Smuggled: 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_host_that_a_rule_makes_has_no_nul() {
    renamed("user\0X-Smuggled: 1").await;
}

/// An answer's header likewise.
#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_header_of_an_answer_that_a_rule_sets_has_no_lines() {
    let mut written = rule("/", Action::Forward(vec![to("user", "", 1)]));
    written.filters.push(Filter::ResponseHeaders(HeaderEdit {
        set: vec![("x-set".into(), "a\r\nX-Smuggled: 1".into())],
        ..HeaderEdit::default()
    }));
    let rig = Rig::gateway(Edge::default(), vec![written]).await;
    let played = rig.takes(&get("X-A: b")).await;
    let said = played.text.to_lowercase();
    assert!(!said.contains("x-smuggled"), "written into the head: {said}");
}

/// What a rule takes over from a request's path, whose line ends stay escaped or are refused.
#[tokio::test(flavor = "multi_thread")]
async fn reg_14_a_location_made_of_the_path_has_no_lines() {
    let redirect = Redirect {
        scheme: None,
        host: None,
        port: None,
        path: Some(PathRewrite::Prefix("/new".into())),
        status: 302,
        port_from: RedirectPort::default(),
    };
    let rules = vec![rule("/old", Action::Redirect(redirect))];
    let rig = Rig::gateway(Edge::default(), rules).await;
    for path in ["/old/%0d%0aX-Smuggled:%201", "/old/%0aX", "/old/%0dX", "/old/%00X"] {
        let asked = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let played = rig.play(asked.as_bytes()).await;
        assert!(played.text.starts_with("HTTP/1.1 400 "), "not refused: {path}: {played:?}");
    }
    let asked =
        "GET /old/x?a=%0d%0aX-Smuggled:%201 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let played = rig.play(asked.as_bytes()).await;
    assert!(played.text.starts_with("HTTP/1.1 302 "), "{played:?}");
    assert!(!played.text.to_lowercase().contains("\nx-smuggled"), "{played:?}");
}

fn exactly(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

/// Who says of itself what `value` takes is denied; anybody else goes to the origin.
fn no_admins(value: StringMatch) -> Vec<Rule> {
    let mut denied = rule("/", Action::Direct { status: 403, body: "denied".into() });
    denied.matches[0].headers = vec![NamedMatch { name: "x-role".into(), value }];
    vec![denied, rule("/", Action::Forward(vec![to("user", "", 1)]))]
}

async fn denies(value: StringMatch, lines: &[u8]) {
    let rig = Rig::gateway(Edge::default(), no_admins(value)).await;
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    let played = rig.play(&[head, lines, b"\r\n\r\n"].concat()).await;
    let status = played.text.get(9..12).unwrap_or_default();
    assert_eq!((status, &*rig.seen()), ("403", ""), "gets past: {played:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_38_the_second_line_of_a_header_is_seen() {
    denies(exactly("admin"), b"X-Role: user\r\nX-Role: admin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_38_the_first_line_of_a_header_is_seen() {
    denies(exactly("admin"), b"X-Role: admin\r\nX-Role: user").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_38_each_line_of_a_header_is_seen_by_a_regex() {
    denies(regex("(?:the )?adm.n"), b"X-Role: user\r\nX-Role: the admin").await;
}

fn regex(source: &str) -> StringMatch {
    StringMatch::Regex(Regex::new(source).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_39_bytes_before_what_is_denied_do_not_hide_it() {
    denies(regex("(?s).*admin"), b"X-Role: \xff\xfeadmin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_39_bytes_behind_what_is_denied_do_not_hide_it() {
    denies(regex("(?s)admin.*"), b"X-Role: admin\xff").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_39_bytes_within_what_is_denied_do_not_hide_it() {
    denies(regex("(?s)adm.n"), b"X-Role: adm\x80n").await;
}
