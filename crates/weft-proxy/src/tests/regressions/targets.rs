// SPDX-License-Identifier: Apache-2.0
//! One host, path and method: lines 30 and 32 to 37, 40. A rule denies `/admin`; no spelling of it
//! gets past to the origin.

use super::*;

fn line(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: user\r\n\r\n").into_bytes()
}

fn host(value: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").into_bytes()
}

refused! { TARGETS:
    reg_33_fragment "fragment" 400 "fragment" line("/a#b");
    reg_33_fragment_before_a_query "fragment" 400 "fragment" line("/a#?b");
    reg_33_fragment_in_absolute_form "fragment" 400 "fragment" line("http://user/a#b");
    reg_07_target_with_a_space "grammar" 400 "first line is not method" line("/a b");
    reg_07_target_missing "grammar" 400 "request" b"GET HTTP/1.1\r\nHost: user\r\n\r\n".to_vec();
    reg_07_method_too_long "grammar" 400 "method"
        format!("{} / HTTP/1.1\r\nHost: user\r\n\r\n", "A".repeat(40)).into_bytes();
    reg_07_version_two "grammar" 505 "version" b"GET / HTTP/2.0\r\nHost: user\r\n\r\n".to_vec();
    reg_07_asterisk_with_get "grammar" 400 "form that its method may have" line("*");
    reg_07_absolute_without_host "grammar" 400 "form that its method may have" line("http:///a");
    reg_08_target_beyond_the_limit "grammar" 414 "too long"
        line(&format!("/{}", "a".repeat(70_000)));
}

pub(super) const CASES: &[&[(&str, &str)]] = &[TARGETS, WALLS];

const WALLS: &[(&str, &str)] = &[
    (concat!(module_path!(), "::reg_32_dot_segments_never_pass"), "path-dots"),
    (concat!(module_path!(), "::reg_32_escapes_that_hide_something_never_pass"), "path-escapes"),
    (concat!(module_path!(), "::reg_32_backslashes_never_pass"), "path-characters"),
    (concat!(module_path!(), "::reg_34_other_readings_never_pass"), "path-readings"),
    (concat!(module_path!(), "::reg_34_no_reading_gets_past_a_policy"), "path-readings"),
    (concat!(module_path!(), "::reg_37_two_hosts_never_pass"), "host-twice"),
    (concat!(module_path!(), "::reg_30_a_method_in_another_case_never_passes"), "method-case"),
];

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
        assert!(status == 400 || status == 403, "{path}: {status}");
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

/// An asterisk in a rule's path is an asterisk, and so is a dot in any literal.
#[tokio::test(flavor = "multi_thread")]
async fn reg_35_40_literals_are_literals() {
    let mut star = rule("/", Action::Direct { status: 403, body: "denied".into() });
    star.matches[0].path = Some(PathMatch::Exact("/a.b/*".into()));
    let rules = vec![star, rule("/", Action::Forward(vec![to("user", "", 1)]))];
    let rig = Rig::gateway(Edge::default(), rules).await;
    assert_eq!(asks(&rig, &line("/a.b/*")).await, 403);
    for other in ["/axb/*", "/a.b/c", "/a.b/", "/a.b/**"] {
        assert_eq!(asks(&rig, &line(other)).await, 200, "{other}");
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn reg_37_one_host_in_one_form() {
    let denied = Action::Direct { status: 403, body: "denied".into() };
    let (origin, seen) = naive().await;
    let mut all = http_service("user", &[origin.address]);
    all.push(gateway(None));
    all.push(gateway_route("a", &["a.example"], vec![rule("/", denied)]));
    let forward = Action::Forward(vec![to("user", "", 1)]);
    all.push(gateway_route("r", &[], vec![rule("/", forward)]));
    let bed = Bed::gateway(all).await;
    let at = bed.listener();
    let rig = Rig { _bed: bed, at, seen, _origin: origin };
    for same in ["a.example", "A.Example", "a.example.", "a.example:80", "A.EXAMPLE.:8080"] {
        assert_eq!(asks(&rig, &host(same)).await, 403, "{same}");
        let absolute = format!("GET http://{same}/ HTTP/1.1\r\nHost: other\r\n\r\n");
        assert_eq!(asks(&rig, absolute.as_bytes()).await, 403, "{same}");
    }
    for bad in [
        "user@a.example",
        "x:y@a.example",
        "a.example@b",
        "a.example:80:80",
        "a.example:b",
        "a.example:99999",
        "[fe80::1%eth0]",
        "[fe80::1%25eth0]",
        "a.example, b",
        "a.example b",
        "a.example/b",
        "a.example\\b",
        "a%2eexample",
        "a..example",
        "",
    ] {
        assert_eq!(asks(&rig, &host(bad)).await, 400, "{bad}");
    }
    assert_eq!(rig.seen(), "");
    assert_eq!(asks(&rig, &host("B.example.:80")).await, 200);
    assert!(rig.seen().contains("host: b.example:80\r\n"), "{}", rig.seen());
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
