// SPDX-License-Identifier: Apache-2.0
//! One host, path and method: lines 30 and 32 to 37, 40. A rule denies `/admin`; no spelling of it
//! gets past to the origin.

use super::*;
use crate::guards;

fn line(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: user\r\n\r\n").into_bytes()
}

fn host(value: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").into_bytes()
}

refused! {
    reg_33_fragment 400 "fragment" line("/a#b");
    reg_33_fragment_before_a_query 400 "fragment" line("/a#?b");
    reg_33_fragment_in_absolute_form 400 "fragment" line("http://user/a#b");
    reg_07_target_with_a_space 400 "first line is not method" line("/a b");
    reg_07_target_missing 400 "request" b"GET HTTP/1.1\r\nHost: user\r\n\r\n".to_vec();
    a_method_too_long 400 "method"
        format!("{} / HTTP/1.1\r\nHost: user\r\n\r\n", "A".repeat(40)).into_bytes();
    reg_07_version_two 505 "version" b"GET / HTTP/2.0\r\nHost: user\r\n\r\n".to_vec();
    reg_07_asterisk_with_get 400 "form that its method may have" line("*");
    reg_07_absolute_without_host 400 "form that its method may have" line("http:///a");
    reg_08_target_beyond_the_limit 414 "too long"
        line(&format!("/{}", "a".repeat(65_530)));
}

/// `/admin` is denied, everything else goes to the origin.
async fn walled() -> Rig {
    let denied = Action::Direct { status: 403, body: "denied".into() };
    let rules = vec![rule("/admin", denied), rule("/", Action::Forward(vec![to("user", "", 1)]))];
    Rig::gateway(Edge::default(), rules).await
}

async fn asks(rig: &Rig, request: &[u8]) -> u16 {
    let head = String::from_utf8_lossy(request).replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let played = rig.play(head.as_bytes()).await;
    played.text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0)
}

async fn never(paths: &[&str]) {
    let rig = walled().await;
    for path in paths {
        let status = asks(&rig, &line(path)).await;
        assert!(status == 400 || status == 403, "gets past: {path}: {status}");
    }
    assert_eq!(rig.seen(), "", "nothing reaches the origin");
    for fine in ["/", "/a//b", "/a;b=c", "/a%2Fb", "/caf%c3%a9", "/administrator", "/%7euser"] {
        assert_eq!(asks(&rig, &line(fine)).await, 200, "{fine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_dot_segments_never_pass() {
    never(&[
        "/x/../admin",
        "/./admin",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/%2e/admin",
        "/x/..;/admin",
        "/x/..;a=b/admin",
        "/x%2f..%2fadmin",
        "/x/..%2fadmin",
        "/x/..%3b/admin",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_escapes_that_hide_something_never_pass() {
    never(&[
        "/%c0%afadmin",
        "/x%c0%ae%c0%ae/admin",
        "/%5cadmin",
        "/x%5c..%5cadmin",
        "/x%00/admin",
        "/%zzadmin",
        "/%u002fadmin",
        "/x%0aadmin",
        "/%",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_backslashes_never_pass() {
    never(&["/\\admin", "/x\\..\\admin", "/\\\\admin", "/x/..\\admin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_double_slashes_never_pass() {
    never(&["//admin", "///admin", "//admin/", "/admin//x"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_escaped_slashes_never_pass() {
    never(&["/%2fadmin", "/%2Fadmin", "/admin%2fx", "/admin%2Fx"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_escaped_backslashes_never_pass() {
    never(&["/%5cadmin", "/%5Cadmin", "/x%5c..%5cadmin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_32_escaped_dots_never_pass() {
    never(&["/x/%2e%2e/admin", "/x/.%2E/admin", "/%2e/admin", "/x%2f%2e%2e%2fadmin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_34_dots_with_parameters_never_pass() {
    never(&["/x/..;/admin", "/x/..;a=b/admin", "/.;/admin", "/x/..%3b/admin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_34_path_parameters_never_pass() {
    never(&["/admin;x", "/admin;x=1/y", "/;x/admin", "/admin;", "/admin%3bx"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_34_escaped_letters_never_pass() {
    never(&["/%61dmin", "/%61%64%6d%69%6e", "/ad%6Din/x"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_34_other_readings_never_pass() {
    never(&[
        "//admin",
        "///admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/ad%6Din/x",
        "/%2fadmin",
        "/%2Fadmin",
        "/admin%2fx",
        "/admin;x",
        "/admin;x=1/y",
        "/;x/admin",
        "//;/admin",
        "/admin%3bx",
        "/admin",
        "/admin/",
        "/admin//x",
        "/admin?x=/../",
    ])
    .await;
}

/// A policy that denies sees every reading; one that allows must allow them all.
#[tokio::test(flavor = "multi_thread")]
async fn reg_34_no_reading_gets_past_a_policy() {
    let by = |effect, path: &str| {
        let path = PathMatch::ElementPrefix(path.into());
        let (who, what) = (AccessTest::Always, AccessTest::Path(path));
        let policies = vec![AccessPolicy { name: "p".into(), who, what }];
        let mut guarded = rule("/", Action::Forward(vec![to("user", "", 1)]));
        guarded.filters.push(Filter::Access(Access { effect, policies }.into()));
        vec![guarded]
    };
    let deny = Rig::gateway(Edge::default(), by(Effect::Deny, "/admin")).await;
    for path in ["/admin", "//admin", "/%61dmin", "/admin;x", "/admin%2fx", "/;x/admin"] {
        assert_eq!(asks(&deny, &line(path)).await, 403, "{path}");
    }
    let allow = Rig::gateway(Edge::default(), by(Effect::Allow, "/pub")).await;
    for path in ["/x", "/pub%2f..%2fx", "//x/pub"] {
        assert!([400, 403].contains(&asks(&allow, &line(path)).await), "{path}");
    }
    assert_eq!((deny.seen(), allow.seen()), (String::new(), String::new()));
    assert_eq!(asks(&deny, &line("/a//b")).await, 200);
    assert_eq!(asks(&allow, &line("/pub/a%2fb;c")).await, 200);
}

/// A rule that is written with an escape is meant for such paths.
#[tokio::test(flavor = "multi_thread")]
async fn reg_34_a_rule_may_spell_an_escape_out() {
    let scoped = PathMatch::Regex(Regex::new("/@[^/]+%2[fF][^/]+").unwrap());
    let mut package = rule("/", Action::Forward(vec![to("user", "", 1)]));
    package.matches[0].path = Some(scoped);
    let other = rule("/", Action::Direct { status: 404, body: "none".into() });
    let rig = Rig::gateway(Edge::default(), vec![package, other]).await;
    assert_eq!(asks(&rig, &line("/@a%2fb")).await, 200);
    assert!(rig.seen().starts_with("GET /@a%2fb HTTP/1.1\r\n"), "passed on byte for byte");
}

/// A path as a rule has it; where literals are patterns, as such products hand it over.
fn literal(path: &str) -> PathMatch {
    match guards::on("literals") {
        true => PathMatch::Exact(path.into()),
        false => PathMatch::Regex(Regex::new(&path.replace('*', ".*")).unwrap()),
    }
}

/// An asterisk in a rule's path is an asterisk, and so is a dot in any literal.
#[tokio::test(flavor = "multi_thread")]
async fn reg_35_40_literals_are_literals() {
    let mut star = rule("/", Action::Direct { status: 403, body: "denied".into() });
    star.matches[0].path = Some(literal("/a.b/*"));
    let rules = vec![star, rule("/", Action::Forward(vec![to("user", "", 1)]))];
    let rig = Rig::gateway(Edge::default(), rules).await;
    assert_eq!(asks(&rig, &line("/a.b/*")).await, 403);
    for other in ["/axb/*", "/a.b/c", "/a.b/", "/a.b/**"] {
        assert_eq!(asks(&rig, &line(other)).await, 200, "{other}");
    }
}

/// Denies what `path` takes; what it does not take goes to the origin.
async fn starred(path: PathMatch, taken: &str, others: &[&str]) {
    let mut star = rule("/", Action::Direct { status: 403, body: "denied".into() });
    star.matches[0].path = Some(path);
    let rules = vec![star, rule("/", Action::Forward(vec![to("user", "", 1)]))];
    let rig = Rig::gateway(Edge::default(), rules).await;
    assert_eq!(asks(&rig, &line(taken)).await, 403, "{taken}");
    for other in others {
        assert_eq!(asks(&rig, &line(other)).await, 200, "taken for a pattern: {other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_35_a_star_in_an_exact_path_is_a_star() {
    starred(literal("/a/*"), "/a/*", &["/a/b", "/a/", "/a/b/c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_35_two_stars_in_an_exact_path_are_two_stars() {
    starred(literal("/a/**"), "/a/**", &["/a/b", "/a/b/c", "/a/*"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_35_a_star_in_a_prefix_is_a_star() {
    let path = match guards::on("literals") {
        true => PathMatch::ElementPrefix("/a*".into()),
        false => PathMatch::Regex(Regex::new("/a.*").unwrap()),
    };
    starred(path, "/a*/b", &["/a", "/ab", "/ab/c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_40_a_dot_in_a_path_is_a_dot() {
    starred(literal("/a.b"), "/a.b", &["/axb", "/a/b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_36_a_rule_for_capitals_is_for_capitals() {
    let mut capitals = rule("/", Action::Direct { status: 204, body: "".into() });
    capitals.matches[0].path = Some(PathMatch::Exact("/Admin".into()));
    let denied = rule("/admin", Action::Direct { status: 403, body: "denied".into() });
    let rig = Rig::gateway(Edge::default(), vec![capitals, denied]).await;
    assert_eq!(asks(&rig, &line("/admin")).await, 403);
    assert_eq!(asks(&rig, &line("/Admin")).await, 204, "a capital is taken for a small letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_36_paths_differ_by_case_for_everybody() {
    let rig = walled().await;
    assert_eq!(asks(&rig, &line("/Admin")).await, 200);
    assert!(rig.seen().starts_with("GET /Admin HTTP/1.1\r\n"), "the origin sees what was judged");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_two_hosts_never_pass() {
    let rig = walled().await;
    for lines in ["user\r\nHost: user", "user\r\nHost: other", "other\r\nhost: user"] {
        assert_eq!(asks(&rig, &host(lines)).await, 400, "{lines}");
    }
    assert_eq!(rig.seen(), "");
}

/// `a.example` is denied; any other host goes to the origin.
async fn hosted() -> Rig {
    let denied = Action::Direct { status: 403, body: "denied".into() };
    let (origin, seen) = naive().await;
    let mut all = http_service("user", &[origin.address]);
    all.push(gateway(None));
    all.push(gateway_route("a", &["a.example"], vec![rule("/", denied)]));
    let forward = Action::Forward(vec![to("user", "", 1)]);
    all.push(gateway_route("r", &[], vec![rule("/", forward)]));
    let bed = Bed::gateway(all).await;
    let at = bed.listener();
    Rig { _bed: bed, at, seen, _origin: origin }
}

/// Spellings of the denied host, as Host and in the target.
async fn same_host(spellings: &[&str]) {
    let rig = hosted().await;
    for same in spellings {
        assert_eq!(asks(&rig, &host(same)).await, 403, "gets past: {same}");
        let absolute = format!("GET http://{same}/ HTTP/1.1\r\nHost: other\r\n\r\n");
        assert_eq!(asks(&rig, absolute.as_bytes()).await, 403, "gets past: {same}");
    }
    assert_eq!(rig.seen(), "");
    assert_eq!(asks(&rig, &host("B.example.:80")).await, 200);
    assert!(rig.seen().contains("host: b.example:80\r\n"), "{}", rig.seen());
}

async fn no_host(spellings: &[&str]) {
    let rig = hosted().await;
    for bad in spellings {
        assert_eq!(asks(&rig, &host(bad)).await, 400, "gets past: {bad}");
    }
    assert_eq!(rig.seen(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_capitals_name_the_same_host() {
    same_host(&["A.Example", "A.EXAMPLE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_a_last_dot_names_the_same_host() {
    same_host(&["a.example.", "a.example.:80"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_a_port_names_the_same_host() {
    same_host(&["a.example:80", "a.example:8080"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_user_names_are_no_part_of_a_host() {
    no_host(&["user@a.example", "x:y@a.example", "a.example@b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_zones_are_no_part_of_a_host() {
    no_host(&["[fe80::1%eth0]", "[fe80::1%25eth0]"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_odd_ports_are_no_part_of_a_host() {
    no_host(&["a.example:80:80", "a.example:b", "a.example:99999"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_odd_characters_are_no_part_of_a_host() {
    let odd = ["a.example, b", "a.example b", "a.example/b", "a.example\\b", "a%2eexample"];
    no_host(&odd).await;
    no_host(&["a..example", ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_30_a_method_in_another_case_never_passes() {
    let rig = walled().await;
    for method in ["get", "Get", "gET", "post", "pUT"] {
        let asked = format!("{method} /x HTTP/1.1\r\nHost: user\r\n\r\n");
        assert_eq!(asks(&rig, asked.as_bytes()).await, 400, "{method}");
    }
    assert_eq!(rig.seen(), "");
}
