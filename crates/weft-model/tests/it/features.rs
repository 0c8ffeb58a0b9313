// SPDX-License-Identifier: Apache-2.0
//! What a proxy that lacks something is told instead.

use proptest::prelude::*;
use weft_model::decide::{Headers, Request, find_rule};
use weft_model::*;

use crate::samples;

struct NoHeaders;

impl Headers for NoHeaders {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

fn without(features: &[Feature]) -> NodeFeatures {
    NodeFeatures::all().without(features.iter().copied().collect())
}

fn expressed_route(lacks: &[Feature]) -> Route {
    let route = Resource::Route(samples::mesh_route());
    match express(&route, without(lacks)) {
        Some(Resource::Route(route)) => route,
        other => panic!("{other:?}"),
    }
}

/// The action that a GET of a path gets.
fn action(route: &Route, path: &str) -> Action {
    let request = Request {
        method: "GET",
        scheme: "http",
        host: "product",
        port: 80,
        written: None,
        path,
        query: "",
        headers: &NoHeaders,
    };
    find_rule([route], None, &request).unwrap().rule.action.clone()
}

fn sentence(action: &Action) -> &str {
    match action {
        Action::Fail { status: 500, reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_table_of_features_is_complete_and_its_names_read_back() {
    let mut names: Vec<&str> = FEATURES.iter().map(|(_, n)| *n).collect();
    assert_eq!(NodeFeatures::from_names(names.iter().copied()), NodeFeatures::all());
    assert!(NodeFeatures::from_names(["of.the-future"]).is_empty());
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FEATURES.len());
    // Every feature is needed by some sample, so that what follows speaks of all of them.
    let mut needed = NodeFeatures::default();
    for (_, resource) in samples::all() {
        needed.extend(FEATURES.iter().map(|(f, _)| *f).filter(|f| needs(&resource).has(*f)));
    }
    assert_eq!(needed, NodeFeatures::all());
}

#[test]
fn a_proxy_that_has_all_is_sent_what_there_is() {
    for (name, resource) in samples::all() {
        assert_eq!(express(&resource, NodeFeatures::all()), None, "{name}");
    }
}

#[test]
fn a_match_that_cannot_be_said_fails_what_it_might_have_meant_and_nothing_else() {
    let route = expressed_route(&[Feature::MatchNoCase]);
    // `/Exact` and `/Prefix` without regard to case: nobody can tell any more, so all that comes
    // to this rule is answered.
    let why = sentence(&action(&route, "/other")).to_owned();
    assert!(why.contains("VirtualService shop/product spec.http[1] needs \"match.no-case\""));
    assert!(matches!(action(&route, "/exact"), Action::Forward(_)), "said before it, and kept");

    let route = expressed_route(&[Feature::MatchRegex]);
    assert!(matches!(action(&route, "/exact"), Action::Forward(_)), "its other match stays");
    assert!(matches!(action(&route, "/s/1"), Action::Forward(_)));
    let widened = &route.rules[1];
    sentence(&widened.action);
    assert_eq!((&widened.matches[0].path, widened.matches[0].port), (&None, Some(80)));
    assert!(widened.matches[0].method.is_some() && widened.filters.is_empty());
}

#[test]
fn a_filter_that_cannot_be_said_fails_its_rule_or_its_share() {
    let route = expressed_route(&[Feature::FilterRewrite]);
    assert!(sentence(&route.rules[0].action).contains("filter.rewrite"));
    assert_eq!(route.rules[1..], samples::mesh_route().rules[1..]);

    let mut only_share = samples::mesh_route();
    only_share.rules[0].filters.clear();
    let said = express(&Resource::Route(only_share.clone()), without(&[Feature::FilterHeaders]));
    let Some(Resource::Route(route)) = said else { panic!() };
    let (Action::Forward(was), Action::Forward(is)) =
        (&only_share.rules[0].action, &route.rules[0].action)
    else {
        panic!()
    };
    assert!(matches!(&is[0].target, Target::Fail { status: 500, .. }), "{is:?}");
    assert_eq!((is[0].weight, &is[1..]), (was[0].weight, &was[1..]));
}

#[test]
fn a_redirect_with_the_written_port_still_redirects_by_proxies_that_know_none() {
    let lacks = without(&[Feature::RedirectWritten]);
    let Some(Resource::Route(said)) = express(&Resource::Route(samples::redirected()), lacks)
    else {
        panic!()
    };
    let Action::Redirect(said) = &said.rules[0].action else { panic!() };
    assert_eq!((said.status, said.port_from), (301, RedirectPort::Scheme));
}

#[test]
fn who_cannot_be_told_to_show_nothing_still_speaks_tls() {
    let lacks = without(&[Feature::BackendAnonymous]);
    let Some(Resource::Backend(said)) = express(&samples::anonymous(), lacks) else { panic!() };
    assert!(!said.policy.tls.unwrap().anonymous);
    let lacks = without(&[Feature::BackendAnonymous, Feature::BackendTls]);
    assert!(matches!(express(&samples::anonymous(), lacks), Some(Resource::Fail(_))));
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_left_out_and_a_listener_says_why() {
    let set = samples::endpoints();
    let said = express(&Resource::Endpoints(set.clone()), without(&[Feature::TransportHbone]));
    let Some(Resource::Endpoints(said)) = said else { panic!() };
    assert_eq!(said.endpoints[..], set.endpoints[..5]);

    for (name, lacks) in
        [("listener-gateway", Feature::ListenerTls), ("backend", Feature::LeastRequest)]
    {
        let (_, resource) = samples::all().into_iter().find(|(n, _)| *n == name).unwrap();
        let Some(Resource::Fail(fail)) = express(&resource, without(&[lacks])) else { panic!() };
        assert!(fail.reason.contains(lacks.name()) && fail.origin.is_some(), "{fail:?}");
    }
}

proptest! {
    /// Whatever is missing, what is sent needs none of it, and saying it again changes nothing.
    #[test]
    fn what_is_said_needs_only_what_the_proxy_has(
        bits in prop::collection::vec(any::<bool>(), FEATURES.len()),
    ) {
        let have: NodeFeatures =
            FEATURES.iter().zip(bits).filter(|(_, bit)| *bit).map(|((f, _), _)| *f).collect();
        for (name, resource) in samples::all() {
            let Some(said) = express(&resource, have) else {
                prop_assert!(needs(&resource).without(have).is_empty(), "{}", name);
                continue;
            };
            prop_assert!(needs(&said).without(have).is_empty(), "{name}: {said:?}");
            prop_assert_eq!(express(&said, have), None);
        }
    }
}

#[test]
fn a_rule_for_bytes_never_takes_a_request_of_a_proxy_that_cannot_tell_them() {
    let mut route = samples::mesh_route();
    let connection = Some(Box::default());
    route.rules = vec![Rule {
        matches: vec![Match { connection, ..Match::default() }],
        ..route.rules[0].clone()
    }];
    let lacks = without(&[Feature::MatchConnection]);
    let Some(Resource::Route(said)) = express(&Resource::Route(route), lacks) else { panic!() };
    let request = |method| Request {
        method,
        scheme: "http",
        host: "product",
        port: 80,
        written: None,
        path: "/",
        query: "",
        headers: &NoHeaders,
    };
    for method in ["GET", "POST", "CONNECT"] {
        assert!(find_rule([&said], None, &request(method)).is_none(), "{method}");
    }
    // Opaque bytes are told to be none of what was asked for.
    let found = find_rule([&said], None, &request("")).unwrap();
    sentence(&found.rule.action);
}
