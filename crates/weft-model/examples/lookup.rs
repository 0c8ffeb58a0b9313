// SPDX-License-Identifier: Apache-2.0
//! `lookup SHAPE ROUTES LOOKUPS`: a gateway with that many routes, asked that often which rule
//! takes a request. `tests/lookup.rs` counts its instructions.

use std::sync::Arc;

use weft_model::decide::{Headers, Request, Routes};
use weft_model::{
    Action, Dialect, Match, Matching, Origin, Parent, PathMatch, Rank, Regex, Retry, Root, Route,
    Rule, Scope, Timeouts,
};

struct NoHeaders;

impl Headers for NoHeaders {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let shape = args.next().expect("SHAPE");
    let mut numbers = args.map(|a| a.parse::<usize>().expect("a number"));
    let (routes, lookups) = (numbers.next().expect("ROUTES"), numbers.next().expect("LOOKUPS"));
    let list = (0..routes).map(|i| Arc::new(route(&shape, i)));
    let list: Routes = list.collect();
    for n in 0..lookups {
        // Ten that stand far apart, so that what is made at first use is there as often.
        let i = n % 10 * (routes / 10);
        let (host, path) = (host(&shape, i), format!("{}/orders/17", path(&shape, i)));
        let asked = Request {
            method: "GET",
            scheme: "http",
            host: &host,
            port: 80,
            written: None,
            path: &path,
            query: "",
            headers: &NoHeaders,
        };
        assert_eq!(one_lookup(&list, &asked), Some(i), "{asked:?}");
    }
}

/// What is counted: never inlined, so that the counter finds its beginning and end.
#[inline(never)]
fn one_lookup(list: &Routes, asked: &Request<'_>) -> Option<usize> {
    let found = list.find(Some("web"), asked)?;
    found.rule.name.parse().ok()
}

fn host(shape: &str, i: usize) -> String {
    match shape {
        "hosts" => format!("tenant{i:05}.shop.example.com"),
        // The rules of a sidecar for one service.
        _ => "shop.example.com".to_owned(),
    }
}

fn path(shape: &str, i: usize) -> String {
    match shape {
        "hosts" => "/api/users".to_owned(),
        _ => format!("/api/tenant{i:05}/users"),
    }
}

fn route(shape: &str, i: usize) -> Route {
    let origin = Origin {
        kind: "HTTPRoute".into(),
        namespace: "shop".into(),
        name: format!("r{i}").into(),
        field: "".into(),
    };
    let text = path(shape, i);
    let taken = match shape {
        "regex" => PathMatch::Regex(Regex::new(&format!("{text}/[a-z]+/[0-9]+")).expect("RE2")),
        _ => PathMatch::ElementPrefix(text.as_str().into()),
    };
    let rule = Rule {
        name: i.to_string().into(),
        matches: vec![Match { path: Some(taken), ..Match::default() }],
        filters: vec![],
        action: Action::Direct { status: 200, body: "".into() },
        timeouts: Timeouts::default(),
        retry: Retry::default(),
        session: None,
        origin: origin.clone(),
        sources: weft_model::Sources::default(),
    };
    Route {
        parent: Parent::Listener {
            root: Root::listener("shop~edge~80"),
            sections: vec!["web".into()],
            hostnames: vec![host(shape, i).into()],
        },
        scope: Scope::Any,
        matching: if shape == "first" { Matching::FirstMatch } else { Matching::MostSpecific },
        rank: Rank {
            dialect: Dialect::ProducerHttpRoute,
            created_ms: 0,
            name: format!("shop/r{i:05}").into(),
        },
        rules: vec![rule],
        origin,
    }
}
