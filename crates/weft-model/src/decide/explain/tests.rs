// SPDX-License-Identifier: Apache-2.0
//! Every loser has its reason, and the reasons agree with the choice.

use proptest::prelude::*;

use super::*;
use crate::decide::Headers;
use crate::{Action, Origin, Rank, Retry, Root, Scope, Timeouts};

struct List(Vec<(&'static str, &'static str)>);

impl Headers for List {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(n, v)| *n == name && f(v.as_bytes()))
    }
}

fn origin() -> Origin {
    Origin { kind: "HTTPRoute".into(), namespace: "a".into(), name: "r".into(), field: "".into() }
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        name: "".into(),
        matches,
        filters: vec![],
        action: Action::Direct { status: 200, body: "".into() },
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

fn prefix(path: &str) -> Match {
    Match { path: Some(PathMatch::ElementPrefix(path.into())), ..Match::default() }
}

fn request<'a>(path: &'a str, headers: &'a List) -> Request<'a> {
    Request {
        method: "GET",
        scheme: "http",
        host: "a",
        port: 80,
        written: None,
        path,
        query: "q=1",
        headers,
    }
}

#[test]
fn losers_say_what_they_lack() {
    let header = NamedMatch { name: "x".into(), value: StringMatch::Exact("1".into()) };
    let mut named = prefix("/a");
    named.headers.push(header.clone());
    let mut put = prefix("/a");
    put.method = Some(StringMatch::Exact("PUT".into()));
    let routes = [
        route(
            "m",
            &[],
            Matching::MostSpecific,
            vec![
                rule(vec![prefix("/a/b")]),
                rule(vec![prefix("/a")]),
                rule(vec![prefix("/b"), put]),
                rule(vec![named]),
            ],
        ),
        route("n", &["other"], Matching::MostSpecific, vec![rule(vec![])]),
        route("o", &[], Matching::MostSpecific, vec![rule(vec![prefix("/a/b")])]),
    ];
    let routes: Routes = routes.into_iter().map(Arc::new).collect();
    let headers = List(vec![("x", "2")]);
    let got = explain_rules(&routes, Some("s"), &request("/a/b", &headers));
    assert_eq!(got.found.unwrap().rule_index, 0);
    let said: Vec<String> = got.lost.iter().map(|l| l.why.to_string()).collect();
    assert_eq!(
        said,
        [
            "it matches too, but its path is less specific",
            "path is \"/a/b\", not prefix /b; method is \"GET\", not = \"PUT\"",
            "header x is \"2\", not = \"1\"",
            "it serves other only",
            "it matches too, but its route is as old and its name comes later",
        ]
    );
    assert_eq!(
        shown_match(&Match { headers: vec![header], ..prefix("/a") }),
        "path prefix /a, header x = \"1\""
    );
    let none = explain_rules(&routes, Some("t"), &request("/", &headers));
    assert!(none.found.is_none() && none.lost.iter().all(|l| l.why == Why::Section));
}

fn any_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        Just(None),
        "/[ab]{0,2}(/[ab])?".prop_map(|p| Some(PathMatch::ElementPrefix(p.into()))),
        "/[ab]{0,2}".prop_map(|p| Some(PathMatch::Exact(p.into()))),
        "/[ab]{0,2}".prop_map(|p| Some(PathMatch::StringPrefix(p.into()))),
        "/[ab.]{0,2}.*".prop_map(|p| crate::Regex::new(&p).ok().map(PathMatch::Regex)),
    ];
    let text = prop_oneof![
        "[12]".prop_map(|s| StringMatch::Exact(s.into())),
        Just(StringMatch::Present),
        "[12]".prop_map(|s| StringMatch::Prefix(s.into())),
    ];
    let named = |names: &'static [&'static str]| {
        let one = (prop::sample::select(names), text.clone())
            .prop_map(|(n, value)| NamedMatch { name: n.into(), value });
        prop::collection::vec(one, 0..2)
    };
    let method = prop_oneof![Just(None), Just(Some(StringMatch::Exact("GET".into())))];
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(80u16)), 1 => Just(Some(81u16))];
    (path, method, named(&["x", "y"]), named(&["q"]), named(&["z"]), port).prop_map(
        |(path, method, headers, query, without_headers, port)| Match {
            path,
            method,
            headers,
            query,
            without_headers,
            port,
            ..Match::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A match holds exactly when it misses nothing; every rule either wins or has its reason.
    #[test]
    fn reasons_agree_with_the_choice(
        rules in prop::collection::vec(prop::collection::vec(any_match(), 0..3), 1..6),
        path in "/[ab]{0,2}(/[ab])?",
        x in prop::sample::select(vec!["1", "2", "12"]),
        first in any::<bool>(),
    ) {
        let matching = if first { Matching::FirstMatch } else { Matching::MostSpecific };
        let (one, two) = rules.split_at(rules.len() / 2);
        let make = |name: &str, part: &[Vec<Match>]| {
            route(name, &[], matching, part.iter().cloned().map(rule).collect())
        };
        let routes = [make("m", one), make("n", two)];
        let routes: Routes = routes.into_iter().map(Arc::new).collect();
        let headers = List(vec![("x", x)]);
        let req = request(&path, &headers);
        for m in rules.iter().flatten() {
            prop_assert_eq!(miss(m, &req).is_none(), holds(m, &req));
        }
        let got = explain_rules(&routes, Some("s"), &req);
        let won = usize::from(got.found.is_some());
        prop_assert_eq!(got.lost.len() + won, rules.len());
        for lost in &got.lost {
            let held = rule_match(lost.rule.unwrap(), &req).is_some();
            prop_assert_eq!(held, !matches!(lost.why, Why::Match(_)));
            prop_assert!(!held || won == 1);
        }
    }
}
