// SPDX-License-Identifier: Apache-2.0
//! Looked up or looked at one by one, the same rule takes a request.

use proptest::prelude::*;

use super::*;
use crate::decide::Headers;
use crate::{
    Action, NamedMatch, Origin, PathMatch, Rank, Regex, Retry, Root, Rule, Scope, StringMatch,
    Timeouts,
};

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

const PATHS: [&str; 16] = [
    "/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/A/b", "/a/b/", "", "*", "/aé", "/a%2Fb",
    "/a//b", "/abc", "/a-b",
];
const EXPRESSIONS: [&str; 12] = [
    "/a.*",
    "/a(b|/b)",
    "/[ab]/?",
    ".*",
    "(?i)/A/B",
    "^/a/b$",
    "/a/b|/b",
    "/ab?",
    "(/a)+",
    "/a\\-b",
    "",
    "/a(?:/b){0,1}",
];
const HOSTS: [&str; 8] = ["a.x", "b.x", "c.b.x", "x", "y", "A.x", "", "127.0.0.1"];
const PATTERNS: [&str; 10] =
    ["a.x", "*.x", "*.b.x", "*", "", "c.b.x", "B.X", "*x", "x", "127.0.0.1"];
const DIALECTS: [Dialect; 3] =
    [Dialect::ProducerHttpRoute, Dialect::VirtualService, Dialect::ConsumerHttpRoute];

fn one<T: Clone + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(of)
}

fn any_path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        one(&PATHS).prop_map(|p| PathMatch::Exact(p.into())),
        one(&PATHS).prop_map(|p| PathMatch::ElementPrefix(p.into())),
        one(&PATHS).prop_map(|p| PathMatch::StringPrefix(p.into())),
        one(&PATHS).prop_map(|p| PathMatch::ExactNoCase(p.into())),
        one(&PATHS).prop_map(|p| PathMatch::StringPrefixNoCase(p.into())),
        one(&EXPRESSIONS).prop_map(|p| PathMatch::Regex(Regex::new(p).unwrap())),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let named = one(&["x", "y"]).prop_map(|name| {
        vec![NamedMatch { name: name.into(), value: StringMatch::Exact("1".into()) }]
    });
    let headers = prop_oneof![3 => Just(vec![]), 1 => named];
    let method = prop::option::weighted(0.2, Just(StringMatch::Exact("GET".into())));
    let port = prop::option::weighted(0.2, 80u16..82);
    (prop::option::weighted(0.8, any_path()), method, headers, port).prop_map(
        |(path, method, headers, port)| Match { path, method, headers, port, ..Match::default() },
    )
}

fn any_parent() -> impl Strategy<Value = Parent> {
    let names = |of: &'static [&'static str], n| {
        prop::collection::vec(one(of).prop_map(Arc::<str>::from), 0..n)
    };
    prop_oneof![
        5 => (names(&["s", "t"], 3), names(&PATTERNS, 4)).prop_map(|(sections, hostnames)| {
            Parent::Listener { root: Root::listener("l"), sections, hostnames }
        }),
        1 => prop::option::of(80u16..82)
            .prop_map(|port| Parent::Host { root: Root::host("h"), port }),
    ]
}

fn any_route(matching: Matching) -> impl Strategy<Value = Arc<Route>> {
    let rules = prop::collection::vec(prop::collection::vec(any_match(), 0..4), 0..6);
    // Some say nothing of their dialect's usual way.
    let mixed = prop_oneof![40 => Just(matching), 1 => Just(Matching::FirstMatch)];
    (any_parent(), rules, 0usize..12, 0u64..2, one(&["a", "b"]), mixed).prop_map(
        |(parent, rules, dialect, created_ms, name, matching)| {
            let dialect = DIALECTS.get(dialect).copied().unwrap_or(Dialect::VirtualService);
            Arc::new(Route {
                parent,
                scope: Scope::Any,
                matching,
                rank: Rank { dialect, created_ms, name: name.into() },
                rules: rules.into_iter().map(rule).collect(),
                origin: origin(),
            })
        },
    )
}

fn any_routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    prop_oneof![Just(Matching::FirstMatch), Just(Matching::MostSpecific)]
        .prop_flat_map(|matching| prop::collection::vec(any_route(matching), 0..8))
}

/// Route, rule and match as addresses.
fn who(found: Option<Found<'_>>) -> Option<(*const Route, usize, Option<*const Match>)> {
    found.map(|f| (std::ptr::from_ref(f.route), f.rule_index, f.matched.map(std::ptr::from_ref)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_index_finds_what_the_search_of_all_finds(
        routes in any_routes(),
        (host, path, method) in (one(&HOSTS), one(&PATHS), one(&["GET", "PUT"])),
        (port, section) in (80u16..82, prop::option::of(one(&["s", "t"]))),
        headers in prop::collection::vec(one(&[("x", "1"), ("y", "1"), ("y", "2")]), 0..3),
    ) {
        let headers = List(headers);
        let req =
            Request { method, scheme: "http", host, port, written: None, path, query: "", headers: &headers };
        let searched = who(find_rule(routes.iter().map(|r| &**r), section, &req));
        for made in [Routes::indexed(routes.clone()), Routes::new(routes.clone())] {
            prop_assert_eq!(who(made.find(section, &req)), searched);
        }
    }

    #[test]
    fn an_expression_takes_nothing_that_begins_in_another_way(
        expression in one(&EXPRESSIONS), path in one(&PATHS),
    ) {
        let regex = Regex::new(expression).unwrap();
        let begins = path.starts_with(&paths::beginning(&regex));
        prop_assert!(begins || !regex.is_match(path.as_bytes()));
    }
}

#[test]
fn the_texts_that_expressions_begin_with() {
    for (expression, expect) in [
        ("/users/[0-9]+", "/users/"),
        ("^/users/(.*)$", "/users/"),
        ("(/api)/v[12]/.*", "/api/v"),
        ("/a|/b", "/"),
        ("/ab?", "/a"),
        ("(?i)/a", "/"),
        (".*", ""),
        ("/a{2}b", "/a"),
        ("(/users|/user-lists)/.*", "/user"),
        ("/é(x|y)", "/é"),
    ] {
        assert_eq!(paths::beginning(&Regex::new(expression).unwrap()), expect, "{expression}");
    }
}

#[test]
fn many_names_of_the_same_routes_share_what_is_known_of_them() {
    let parent = Parent::Listener {
        root: Root::listener("l"),
        sections: vec![],
        hostnames: (0..100).map(|i| Arc::from(format!("h{i}.x"))).collect(),
    };
    let route = Arc::new(Route {
        parent,
        scope: Scope::Any,
        matching: Matching::MostSpecific,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 0, name: "a".into() },
        rules: vec![rule(vec![Match::default()])],
        origin: origin(),
    });
    let routes = Routes::indexed(vec![route]);
    let index = routes.index.as_ref().unwrap();
    let exact = &index.dialects[0].exact;
    assert_eq!(exact.len(), 100);
    assert_eq!(Arc::strong_count(&exact["h7.x"]), 100);
}
