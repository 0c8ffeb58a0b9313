// SPDX-License-Identifier: Apache-2.0
//! Check-tables for the pure decisions.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::*;

struct H(Vec<(&'static str, &'static str)>);

impl Headers for H {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(n, v)| *n == name && f(v.as_bytes()))
    }
}

fn origin() -> Origin {
    Origin { kind: "HTTPRoute".into(), namespace: "a".into(), name: "r".into(), field: "".into() }
}

fn rule(matches: Vec<Match>, body: &str) -> Rule {
    Rule {
        name: "".into(),
        matches,
        filters: vec![],
        action: Action::Direct { status: 200, body: body.into() },
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: origin(),
        sources: crate::Sources::default(),
    }
}

fn route(name: &str, hosts: &[&str], matching: Matching, rules: Vec<Rule>) -> Route {
    Route {
        parent: Parent::Listener {
            root: Root::listener("l"),
            sections: vec!["s".into()],
            hostnames: hosts.iter().map(|h| Arc::from(*h)).collect(),
        },
        scope: Scope::Any,
        matching,
        rank: Rank { dialect: Dialect::ProducerHttpRoute, created_ms: 0, name: name.into() },
        rules,
        origin: origin(),
    }
}

fn path(m: PathMatch) -> Match {
    Match { path: Some(m), ..Match::default() }
}

fn answer(routes: &[Route], host: &str, method: &str, path: &str, headers: &H) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let req =
        Request { method, scheme: "http", host, port: 80, written: None, path, query, headers };
    match find_rule(routes, Some("s"), &req) {
        None => "404".into(),
        Some(f) => match &f.rule.action {
            Action::Direct { body, .. } => body.to_string(),
            other => format!("{other:?}"),
        },
    }
}

/// Envoy's virtual hosts, and so Istio's: one that fits better takes the request or refuses it.
#[test]
fn in_order_the_most_specific_name_decides_alone() {
    let only = |path: &str, body| rule(vec![self::path(PathMatch::Exact(path.into()))], body);
    let routes = [
        route("one", &["*.x"], Matching::FirstMatch, vec![rule(vec![], "wild")]),
        route("two", &["a.x"], Matching::FirstMatch, vec![only("/1", "first")]),
        route("twice", &["a.x"], Matching::FirstMatch, vec![only("/2", "second")]),
    ];
    let indexed = Routes::indexed(routes.iter().cloned().map(Arc::new).collect());
    let none = H(vec![]);
    for (host, path, want) in [
        ("a.x", "/1", "first"),
        ("a.x", "/2", "second"),
        ("a.x", "/3", "404"),
        ("b.x", "/3", "wild"),
    ] {
        assert_eq!(answer(&routes, host, "GET", path, &none), want, "{host}{path}");
        let headers = &none;
        let req = Request {
            method: "GET",
            scheme: "http",
            host,
            port: 80,
            written: None,
            path,
            query: "",
            headers,
        };
        assert_eq!(indexed.find(Some("s"), &req).is_none(), want == "404", "{host}{path}");
    }
    let headers = &none;
    let req = Request {
        method: "GET",
        scheme: "http",
        host: "a.x",
        port: 80,
        written: None,
        path: "/3",
        query: "",
        headers,
    };
    let said: Vec<String> =
        explain_rules(&indexed, Some("s"), &req).lost.iter().map(|l| l.why.to_string()).collect();
    assert_eq!(said[0], "routes for a more specific host name decide alone");
}

/// "Precedence: characters in a matching service, in a matching method" (GRPCRoute).
#[test]
fn a_method_of_any_service_comes_after_a_service() {
    let regex = |text: &str| PathMatch::Regex(Regex::new(text).unwrap());
    let routes = [route(
        "one",
        &[],
        Matching::MostSpecific,
        vec![
            rule(vec![], "everything"),
            rule(vec![path(regex("/[^/]+/Get"))], "method"),
            rule(vec![path(PathMatch::ElementPrefix("/s".into()))], "service"),
        ],
    )];
    let none = H(vec![]);
    assert_eq!(answer(&routes, "a", "POST", "/s/Get", &none), "service");
    assert_eq!(answer(&routes, "a", "POST", "/t/Get", &none), "method");
    assert_eq!(answer(&routes, "a", "POST", "/t/Put", &none), "everything");
}

#[test]
fn gateway_api_precedence() {
    let header = NamedMatch { name: "v".into(), value: StringMatch::Exact("2".into()) };
    let routes = [
        route(
            "one",
            &[],
            Matching::MostSpecific,
            vec![
                rule(vec![path(PathMatch::ElementPrefix("/".into()))], "root"),
                rule(vec![path(PathMatch::ElementPrefix("/foo".into()))], "foo"),
                rule(
                    vec![Match {
                        headers: vec![header],
                        ..path(PathMatch::ElementPrefix("/foo".into()))
                    }],
                    "foo-v2",
                ),
                rule(vec![path(PathMatch::Exact("/foo/bar".into()))], "exact"),
                rule(
                    vec![Match {
                        method: Some(StringMatch::Exact("POST".into())),
                        ..path(PathMatch::ElementPrefix("/foo".into()))
                    }],
                    "foo-post",
                ),
            ],
        ),
        route("two", &["*.example.com"], Matching::MostSpecific, vec![rule(vec![], "wild")]),
        route("three", &["a.example.com"], Matching::MostSpecific, vec![rule(vec![], "host")]),
    ];
    let none = H(vec![]);
    let v2 = H(vec![("v", "1"), ("v", "2")]);
    for (host, method, path, headers, expect) in [
        ("x.org", "GET", "/", &none, "root"),
        ("x.org", "GET", "/foobar", &none, "root"),
        ("x.org", "GET", "/foo", &none, "foo"),
        ("x.org", "GET", "/foo/", &none, "foo"),
        ("x.org", "GET", "/foo", &v2, "foo-v2"),
        ("x.org", "POST", "/foo", &v2, "foo-post"),
        ("x.org", "GET", "/foo/bar", &v2, "exact"),
        ("a.example.com", "GET", "/foo/bar", &none, "host"),
        ("b.example.com", "GET", "/foo/bar", &none, "wild"),
        ("example.com", "GET", "/foo/bar", &none, "exact"),
    ] {
        assert_eq!(answer(&routes, host, method, path, headers), expect, "{method} {host}{path}");
    }
}

#[test]
fn first_match_takes_written_order() {
    let routes = [route(
        "vs",
        &[],
        Matching::FirstMatch,
        vec![
            rule(vec![path(PathMatch::StringPrefix("/a".into()))], "a"),
            rule(vec![path(PathMatch::Exact("/abc".into()))], "never"),
            rule(
                vec![Match {
                    query: vec![NamedMatch {
                        name: "q x".into(),
                        value: StringMatch::Regex(Regex::new("[0-9]+").unwrap()),
                    }],
                    ..Match::default()
                }],
                "query",
            ),
            rule(
                vec![Match {
                    without_headers: vec![NamedMatch {
                        name: "x".into(),
                        value: StringMatch::Present,
                    }],
                    ..Match::default()
                }],
                "no-x",
            ),
        ],
    )];
    let none = H(vec![]);
    assert_eq!(answer(&routes, "h", "GET", "/abc", &none), "a");
    assert_eq!(answer(&routes, "h", "GET", "/z?q+x=%31%32", &H(vec![("x", "")])), "query");
    assert_eq!(answer(&routes, "h", "GET", "/z?q+x=1a", &H(vec![("x", "")])), "404");
    assert_eq!(answer(&routes, "h", "GET", "/z", &none), "no-x");
}

#[test]
fn every_kind_of_match_is_judged() {
    let named = |name: &str, value| vec![NamedMatch { name: name.into(), value }];
    let regex = |text: &str| Regex::new(text).unwrap();
    let is = |text: &str| StringMatch::Exact(text.into());
    let at = |m: Match, method: &str, host: &str, path: &str, headers: &H| {
        let routes = [route("r", &[], Matching::FirstMatch, vec![rule(vec![m], "yes")])];
        answer(&routes, host, method, path, headers) == "yes"
    };
    let none = H(vec![]);
    // Paths: the whole text has to match an expression, and only the asked forms ignore case.
    for (m, hit, miss) in [
        (PathMatch::Regex(regex("/v[0-9]+/.*")), "/v12/a", "/a/v12/a"),
        (PathMatch::Regex(regex("/a|/b")), "/b", "/bc"),
        (PathMatch::ExactNoCase("/AbC".into()), "/aBc", "/abcd"),
        (PathMatch::StringPrefixNoCase("/AbC".into()), "/aBcd", "/ab"),
        (exact("/abc"), "/abc", "/Abc"),
    ] {
        assert!(at(path(m.clone()), "GET", "h", hit, &none), "{m:?} {hit}");
        assert!(!at(path(m.clone()), "GET", "h", miss, &none), "{m:?} {miss}");
    }
    // Header values of each form; any value of a repeated header is enough.
    let with = |value| Match { headers: named("x", value), ..Match::default() };
    for (value, hit, miss) in [
        (is("a"), "a", "A"),
        (StringMatch::Prefix("ab".into()), "abc", "ba"),
        (StringMatch::Regex(regex("a.c")), "abc", "abcd"),
    ] {
        assert!(at(with(value.clone()), "GET", "h", "/", &H(vec![("x", "other"), ("x", hit)])));
        assert!(!at(with(value.clone()), "GET", "h", "/", &H(vec![("x", miss)])), "{value:?}");
        assert!(!at(with(value), "GET", "h", "/", &none));
    }
    assert!(at(with(StringMatch::Present), "GET", "h", "/", &H(vec![("x", "")])));
    // Method, host, port and scheme; all parts have to hold.
    let method = Match { method: Some(is("PUT")), ..Match::default() };
    assert!(at(method.clone(), "PUT", "h", "/", &none));
    assert!(!at(method, "put", "h", "/", &none));
    let host = Match { authority: Some(StringMatch::Prefix("a.".into())), ..Match::default() };
    assert!(at(host.clone(), "GET", "a.b", "/", &none));
    assert!(!at(host, "GET", "b.a", "/", &none));
    let port = |port| Match { port: Some(port), ..Match::default() };
    assert!(at(port(80), "GET", "h", "/", &none) && !at(port(81), "GET", "h", "/", &none));
    let scheme = |scheme| Match { scheme: Some(is(scheme)), ..Match::default() };
    assert!(at(scheme("http"), "GET", "h", "/", &none));
    assert!(!at(scheme("https"), "GET", "h", "/", &none));
    let both = Match { port: Some(81), ..path(exact("/")) };
    assert!(!at(both, "GET", "h", "/", &none));
}

/// As Envoy compares them: the port of a listener that nobody wrote is no part of it.
#[test]
fn an_authority_is_compared_as_the_client_wrote_it() {
    let is = |text: &str| StringMatch::Exact(text.into());
    let any_port = StringMatch::Regex(Regex::new(".*:[0-9]+").unwrap());
    let none = H(vec![]);
    for (host, written, m, want) in [
        ("y.example", None, is("y.example"), true),
        ("y.example", None, is("y.example:80"), false),
        ("y.example", None, any_port.clone(), false),
        ("y.example", None, StringMatch::Present, true),
        ("y.example", Some(81), is("y.example"), false),
        ("y.example", Some(81), is("y.example:81"), true),
        ("y.example", Some(81), is("y.example:80"), false),
        ("y.example", Some(81), any_port, true),
        ("::1", None, is("[::1]"), true),
        ("::1", Some(81), is("[::1]:81"), true),
    ] {
        let (method, scheme, path, query) = ("GET", "http", "/", "");
        let req = Request { method, scheme, host, port: 80, written, path, query, headers: &none };
        let own = Match { authority: Some(m.clone()), ..Match::default() };
        assert_eq!(holds(&own, &req), want, "{host} {written:?} {m:?}");
        // The same as headers, of which HTTP/2 has only one.
        for name in ["host", ":authority"] {
            let list = vec![NamedMatch { name: name.into(), value: m.clone() }];
            let with = Match { headers: list.clone(), ..Match::default() };
            let without = Match { without_headers: list, ..Match::default() };
            assert_eq!(holds(&with, &req), want, "{host} {written:?} {m:?}");
            assert_eq!(holds(&without, &req), !want, "{host} {written:?} {m:?}");
        }
    }
}

#[test]
fn a_stronger_dialect_hides_the_weaker() {
    let mut strong =
        route("s", &[], Matching::MostSpecific, vec![rule(vec![path(exact("/only"))], "strong")]);
    strong.rank.dialect = Dialect::ConsumerHttpRoute;
    let mut weak = route("w", &[], Matching::FirstMatch, vec![rule(vec![], "weak")]);
    weak.rank.dialect = Dialect::VirtualService;
    let none = H(vec![]);
    let both = [weak.clone(), strong];
    assert_eq!(answer(&both, "h", "GET", "/only", &none), "strong");
    assert_eq!(answer(&both, "h", "GET", "/else", &none), "404");
    assert_eq!(answer(&[weak], "h", "GET", "/else", &none), "weak");
}

fn exact(p: &str) -> PathMatch {
    PathMatch::Exact(p.into())
}

#[test]
fn authorities_are_canonical_or_refused() {
    let ok = |t: &str, host: &str, port: Option<u16>| {
        assert_eq!(Authority::parse(t), Some(Authority { host: host.into(), port }), "{t}");
    };
    ok("A.Example.", "a.example", None);
    ok("a:80", "a", Some(80));
    ok("[::1]:8080", "::1", Some(8080));
    ok("[0:0::1]", "::1", None);
    for bad in
        ["", ":80", "a:", "a:+80", "a:80:80", "u@a", "[fe80::1%lo]", "a b", "a:99999", "[::1"]
    {
        assert_eq!(Authority::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_rule_without_matches_is_one_of_the_roots_prefix() {
    let root = path(PathMatch::ElementPrefix("/".into()));
    let routes = [
        route("b", &[], Matching::MostSpecific, vec![rule(vec![root], "prefix")]),
        route("a", &[], Matching::MostSpecific, vec![rule(vec![], "nothing")]),
    ];
    // The names decide, since neither is more specific.
    assert_eq!(answer(&routes, "x", "GET", "/a", &H(vec![])), "nothing");
}

#[test]
fn of_several_matches_the_first_that_holds_says_which_prefix_is_replaced() {
    let prefix = |p: &str| path(PathMatch::StringPrefix(p.into()));
    let matches = vec![prefix("/a/"), prefix("/a/b/")];
    let taken = |matching| {
        let routes = [route("a", &[], matching, vec![rule(matches.clone(), "x")])];
        let headers = H(vec![]);
        let (method, scheme, host, path, query) = ("GET", "http", "x", "/a/b/c", "");
        let req = Request {
            method,
            scheme,
            host,
            port: 80,
            written: None,
            path,
            query,
            headers: &headers,
        };
        let found = find_rule(&routes, Some("s"), &req).unwrap();
        found.matched.cloned()
    };
    assert_eq!(taken(Matching::FirstMatch), Some(prefix("/a/")));
    assert_eq!(taken(Matching::MostSpecific), Some(prefix("/a/b/")));
}

#[test]
fn rewrites_keep_one_slash_at_the_seam() {
    // The table in Gateway API's text of HTTPPathModifier.
    for (from, old, to, expect) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/a/b", "/", "/xyz", "/xyz/a/b"),
        ("/", "/", "/xyz", "/xyz"),
        ("/", "/", "/", "/"),
    ] {
        let m = path(PathMatch::ElementPrefix(old.into()));
        let got = rewritten_path(from, &PathRewrite::Prefix(to.into()), Some(&m));
        assert_eq!(got, expect, "{from} -> {to}");
    }
}

#[test]
fn an_expression_writes_groups_and_backslashes() {
    let rewrite = RegexRewrite::new("/v([0-9]+)/([a-z]+)", r"/\2/\1\\").unwrap();
    let got = rewritten_path("/v1/ab/v22/c", &PathRewrite::Regex(rewrite), None);
    assert_eq!(got, r"/ab/1\/c/22\");
}

#[test]
fn redirects_name_a_port_only_when_it_is_not_the_schemes_own() {
    let none = H(vec![]);
    let req = Request {
        method: "GET",
        scheme: "http",
        host: "a.example",
        port: 8080,
        written: None,
        path: "/p",
        query: "q=1",
        headers: &none,
    };
    let to = |r: Redirect| redirect_location(&r, &req, None);
    assert_eq!(to(Redirect::default()), "http://a.example:8080/p?q=1");
    let https = Redirect { scheme: Some("https".into()), ..Redirect::default() };
    assert_eq!(to(https), "https://a.example/p?q=1");
    let port = Redirect { port: Some(80), ..Redirect::default() };
    assert_eq!(to(port.clone()), "http://a.example/p?q=1");
    let path = Some(PathRewrite::Full("/new?z=1".into()));
    assert_eq!(to(Redirect { path, ..port }), "http://a.example/new?z=1");
}

#[test]
fn a_written_port_stays_with_its_host_unless_it_was_the_former_schemes_own() {
    let none = H(vec![]);
    let (plain, https) = (None, Some("https".into()));
    for (scheme, written, redirect, want) in [
        ("http", None, (&plain, None), "http://a.example/p"),
        ("http", Some(8080), (&plain, None), "http://a.example:8080/p"),
        ("http", Some(8080), (&https, None), "https://a.example:8080/p"),
        ("http", Some(80), (&https, None), "https://a.example/p"),
        ("https", Some(80), (&https, None), "https://a.example:80/p"),
        ("http", Some(8080), (&plain, Some("b.example")), "http://b.example/p"),
        ("http", Some(8080), (&https, Some("b.example")), "https://b.example/p"),
    ] {
        let req = Request {
            method: "GET",
            scheme,
            host: "a.example",
            port: 9000,
            written,
            path: "/p",
            query: "",
            headers: &none,
        };
        let redirect = Redirect {
            scheme: redirect.0.clone(),
            host: redirect.1.map(Into::into),
            port_from: RedirectPort::Written,
            ..Redirect::default()
        };
        assert_eq!(redirect_location(&redirect, &req, None), want, "{written:?} {redirect:?}");
    }
}

#[test]
fn nothing_that_may_have_had_an_effect_is_repeated_unasked() {
    let plain = Retry::default();
    let declared = Retry {
        declared_idempotent: true,
        statuses: vec![503],
        grpc_statuses: vec![14],
        ..Retry::default()
    };
    let (stop, unreset) = (Verdict::Stop, Retry { on_reset: false, ..Retry::default() });
    for (retry, method, failure, attempt, body, expect) in [
        (&unreset, "GET", Failure::NotSent, 1, true, Verdict::Retry),
        (&unreset, "GET", Failure::Reset, 1, true, stop(StopReason::NotRetriable)),
        (&unreset, "GET", Failure::AttemptTimeout, 1, true, stop(StopReason::NotRetriable)),
        (&plain, "GET", Failure::AttemptTimeout, 1, true, Verdict::Retry),
        (&plain, "POST", Failure::NotSent, 1, true, Verdict::Retry),
        (&plain, "POST", Failure::Reset, 1, true, stop(StopReason::NotIdempotent)),
        (&plain, "GET", Failure::Reset, 1, true, Verdict::Retry),
        (&plain, "GET", Failure::Reset, 3, true, stop(StopReason::Attempts)),
        (&plain, "PUT", Failure::AttemptTimeout, 1, false, stop(StopReason::BodyGone)),
        (&plain, "GET", Failure::Status(503), 1, true, stop(StopReason::NotRetriable)),
        (&declared, "POST", Failure::Reset, 1, true, Verdict::Retry),
        (&declared, "POST", Failure::Grpc(14), 2, true, Verdict::Retry),
        (&declared, "POST", Failure::Grpc(3), 1, true, stop(StopReason::NotRetriable)),
    ] {
        let got = retry_verdict(retry, method, failure, attempt, body);
        assert_eq!(got, expect, "{method} {failure:?} attempt {attempt}");
    }
}

#[test]
fn ejection_leaves_somebody() {
    assert_eq!(ejections_allowed(1, 10_000), 0);
    assert_eq!(ejections_allowed(3, 1_000), 1);
    assert_eq!(ejections_allowed(10, 5_000), 5);
    assert_eq!(ejections_allowed(3, 0), 0);
}

proptest! {
    #[test]
    fn smooth_weighted_is_exact_per_cycle(weights in prop::collection::vec(0u32..50, 1..12)) {
        let total: u32 = weights.iter().sum();
        let mut state = SmoothWeighted::default();
        for _cycle in 0..3 {
            let mut seen = vec![0u32; weights.len()];
            for _ in 0..total {
                seen[state.next(&weights).unwrap()] += 1;
            }
            prop_assert_eq!(&seen, &weights);
        }
        if total == 0 {
            prop_assert_eq!(state.next(&weights), None);
        }
    }

    #[test]
    fn weighted_choice_covers_every_point(weights in prop::collection::vec(0u32..9, 1..9)) {
        let mut seen = vec![0u32; weights.len()];
        for point in 0..total_weight(&weights) {
            seen[weighted_at(&weights, point).unwrap()] += 1;
        }
        prop_assert_eq!(&seen, &weights);
        prop_assert_eq!(weighted_at(&weights, total_weight(&weights)), None);
    }

    #[test]
    fn names_survive_their_text(root in "[a-z./0-9-]{1,20}", child in "[a-z/0-9]{0,20}") {
        let root = Root::host(root.replace('/', "."));
        let name = root.child(child.as_str());
        let text: String = name.clone().into();
        prop_assert_eq!(ResourceName::try_from(text).unwrap(), name);
    }
}

#[test]
fn mesh_server_names_carry_ports() {
    assert_eq!(mesh_server_port(&mesh_server_name(8080)), Some(8080));
    for bad in ["p.mesh.weft.internal", "p70000.mesh.weft.internal", "x", "p1.mesh.weft.internal."]
    {
        assert_eq!(mesh_server_port(bad), None, "{bad}");
    }
}
