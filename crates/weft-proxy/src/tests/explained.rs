// SPDX-License-Identifier: Apache-2.0
//! What `weft explain` says against what a proxy does: random routes and requests through a real
//! proxy, and a matcher beside them that was written from the texts of Gateway API and Istio and
//! knows nothing of the model's decisions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_model::*;

use super::bed::*;
use crate::explain::{Explanation, Place, explain};
use crate::table::{Builder, Door, Table};

const ROUTES: usize = 3;
const REQUESTS_PER_CONFIG: usize = 50;

/// 10,000 requests of each kind of route, or as many as the environment says.
fn configs() -> usize {
    #[allow(clippy::disallowed_methods)] // A longer run of the same test.
    let asked = std::env::var("WEFT_EXPLAIN_REQUESTS").ok().and_then(|n| n.parse::<usize>().ok());
    asked.unwrap_or(10_000) / REQUESTS_PER_CONFIG
}

struct Chance(Rng);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.0.below(n as u64)).unwrap()
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn maybe<T>(&mut self, one_in: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(one_in) == 0).then(|| make(self))
    }
}

const PATHS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/b/a", "/A/b"];
const HOSTS: [&str; 5] = ["a.x", "b.x", "c.b.x", "d", "x"];

fn any_match(chance: &mut Chance, istio: bool) -> Match {
    let text = |chance: &mut Chance| match chance.below(3) {
        0 => StringMatch::Exact(chance.one(&["1", "2"]).into()),
        1 if istio => StringMatch::Prefix(chance.one(&["1", "2"]).into()),
        _ => StringMatch::Regex(Regex::new(chance.one(&["1", "[12]", "1.*"])).unwrap()),
    };
    let named = |chance: &mut Chance, names: &[&str]| -> Vec<NamedMatch> {
        let all: Vec<_> = names
            .iter()
            .filter_map(|n| chance.maybe(4, |c| NamedMatch { name: (*n).into(), value: text(c) }))
            .collect();
        all
    };
    let path = chance.maybe(2, |c| c.one(&PATHS).into()).map(|p: Arc<str>| {
        match (chance.below(3), istio) {
            (0, _) => PathMatch::Exact(p),
            (1, true) => PathMatch::StringPrefixNoCase(p),
            (_, true) => PathMatch::StringPrefix(p),
            (_, false) => PathMatch::ElementPrefix(p),
        }
    });
    Match {
        // Gateway API's default.
        path: path.or_else(|| (!istio).then(|| PathMatch::ElementPrefix("/".into()))),
        method: chance.maybe(4, |c| StringMatch::Exact(c.one(&["GET", "PUT"]).into())),
        headers: named(chance, &["x-a", "x-b", "x-real-ip", "x-envoy-x", "keep-alive"]),
        query: named(chance, &["q", "r"]),
        without_headers: if istio { named(chance, &["x-c"]) } else { Vec::new() },
        ..Match::default()
    }
}

fn any_rule(chance: &mut Chance, route: &str, i: usize, istio: bool) -> Rule {
    let n = chance.below(3);
    let matches = (0..n).map(|_| any_match(chance, istio)).collect();
    let field = format!("spec.rules[{i}]");
    let id = format!("{route} {field}");
    let mut filters = Vec::new();
    let action = match chance.below(6) {
        0 => {
            let set = vec![("x-e-rule".into(), id.clone().into())];
            filters.push(Filter::RequestHeaders(HeaderEdit { set, ..HeaderEdit::default() }));
            Action::Forward(vec![to("user", "", 1), to("none", "", 0)])
        }
        1 => Action::Redirect(Redirect {
            host: Some(id.replace([' ', '[', ']'], "-").into()),
            status: 302,
            ..Redirect::default()
        }),
        2 => Action::Fail { status: 500, reason: id.into() },
        3 => Action::Forward(vec![to("none", "", 1)]),
        _ => Action::Direct { status: 200, body: id.into() },
    };
    let origin = Origin { field: field.into(), ..origin_of(route) };
    Rule { matches, filters, action, origin, ..rule("/", Action::Forward(Vec::new())) }
}

fn any_routes(chance: &mut Chance, istio: bool) -> Vec<Named> {
    let mut out = Vec::new();
    for r in 0..=chance.below(ROUTES) {
        let name = format!("r{r}");
        let n = 1 + chance.below(4);
        let rules = (0..n).map(|i| any_rule(chance, &name, i, istio)).collect();
        let hosts = ["a.x", "*.x", "*.b.x", "d"];
        let hosts: Vec<&str> = hosts.into_iter().filter(|_| chance.below(3) == 0).collect();
        let (child, mut resource) = match istio {
            true => mesh_route("user", rules),
            false => gateway_route(&name, &hosts, rules),
        };
        if let Resource::Route(route) = &mut resource {
            // Two of them may be of an age.
            route.rank.created_ms = u64::try_from(chance.below(2)).unwrap();
            route.rank.name = name.clone().into();
        }
        let child = child.root.child(format!("route/any/shop/{name}"));
        out.push((child, resource));
    }
    out
}

fn any_request(chance: &mut Chance, istio: bool) -> Request<Full<Bytes>> {
    let path = chance.one(&PATHS).to_owned();
    let query = chance.one(&["", "?q=1", "?q=2&r=1", "?r=12&q=2"]);
    let host = if istio { "user" } else { chance.one(&HOSTS) };
    let uri = if istio { format!("http://{host}{path}{query}") } else { path + query };
    let mut request =
        Request::builder().method(chance.one(&["GET", "PUT"])).uri(uri).header("host", host);
    for name in ["x-a", "x-b", "x-c", "x-real-ip", "x-envoy-x", "keep-alive"] {
        if let Some(value) = chance.maybe(2, |c| c.one(&["1", "2", "12"])) {
            request = request.header(name, value);
        }
    }
    request.body(Full::default()).unwrap()
}

// === the reference: no decision of the model ===

fn text_fits(m: &StringMatch, got: &str) -> bool {
    match m {
        StringMatch::Exact(s) => **s == *got,
        StringMatch::Prefix(s) => got.starts_with(&**s),
        // The expressions of this test, by hand.
        StringMatch::Regex(r) => match r.source() {
            "1" => got == "1",
            "[12]" => got == "1" || got == "2",
            "1.*" => got.starts_with('1'),
            other => panic!("{other}"),
        },
        StringMatch::Present => true,
    }
}

fn fits(m: &Match, request: &Request<Full<Bytes>>) -> bool {
    let path = request.uri().path();
    // Of one connection (RFC 9110 §7.6.1), or for a gateway to say.
    let passes = |name: &str| match name {
        "keep-alive" => false,
        "x-real-ip" | "x-envoy-x" => request.uri().host().is_some(),
        _ => true,
    };
    let header = |name: &str| {
        let given = request.headers().get(name).filter(|_| passes(name));
        given.map(|v| v.to_str().unwrap())
    };
    let query: BTreeMap<&str, &str> = request
        .uri()
        .query()
        .into_iter()
        .flat_map(|q| q.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let path_fits = match &m.path {
        None => true,
        Some(PathMatch::Exact(p)) => path == &**p,
        Some(PathMatch::StringPrefix(p)) => path.starts_with(&**p),
        Some(PathMatch::StringPrefixNoCase(p)) => {
            path.to_lowercase().starts_with(&p.to_lowercase())
        }
        Some(PathMatch::ElementPrefix(p)) => {
            let wanted: Vec<&str> = p.split('/').filter(|e| !e.is_empty()).collect();
            let is: Vec<&str> = path.split('/').collect();
            is.get(1..=wanted.len()).is_some_and(|begin| begin == wanted)
        }
        Some(other) => panic!("{other:?}"),
    };
    path_fits
        && m.method.as_ref().is_none_or(|s| text_fits(s, request.method().as_str()))
        && m.headers.iter().all(|h| header(&h.name).is_some_and(|v| text_fits(&h.value, v)))
        && !m
            .without_headers
            .iter()
            .any(|h| header(&h.name).is_some_and(|v| text_fits(&h.value, v)))
        && m.query.iter().all(|q| query.get(&*q.name).is_some_and(|v| text_fits(&q.value, v)))
}

/// Gateway API: "HTTPRouteRule.matches" and "HTTPRouteSpec.hostnames" on precedence.
fn most_specific(routes: &[&Route], request: &Request<Full<Bytes>>) -> Option<String> {
    let host = request.headers()["host"].to_str().unwrap();
    let mut open = Vec::new();
    for route in routes {
        let Parent::Listener { hostnames, .. } = &route.parent else { panic!() };
        let mut best: Option<(u8, usize)> = hostnames.is_empty().then_some((0, 0));
        for name in hostnames {
            let fit = match name.strip_prefix("*.") {
                Some(rest) => host.ends_with(&format!(".{rest}")).then_some((1, name.len())),
                None => (**name == *host).then_some((2, name.len())),
            };
            best = best.max(fit);
        }
        let Some(host_fit) = best else { continue };
        for (i, rule) in route.rules.iter().enumerate() {
            let everything = [Match::default()];
            let all = if rule.matches.is_empty() { &everything[..] } else { &rule.matches };
            for m in all.iter().filter(|m| fits(m, request)) {
                let path = match &m.path {
                    Some(PathMatch::Exact(p)) => (1, p.len()),
                    Some(PathMatch::ElementPrefix(p)) => (0, p.len()),
                    // "the default is a prefix path match on '/'"
                    None => (0, 1),
                    other => panic!("{other:?}"),
                };
                let strength = (host_fit, path, m.method.is_some(), m.headers.len(), m.query.len());
                let age = (route.rank.created_ms, &route.rank.name, i);
                open.push((std::cmp::Reverse(strength), age, rule.origin.to_string()));
            }
        }
    }
    open.into_iter().min().map(|(.., rule)| rule)
}

/// Istio: "rules are evaluated in order, the first match is used".
fn first(routes: &[&Route], request: &Request<Full<Bytes>>) -> Option<String> {
    let mut routes = routes.to_vec();
    routes.sort_by_key(|r| (r.rank.created_ms, r.rank.name.clone()));
    let mut rules = routes.iter().flat_map(|r| &r.rules);
    let taken = rules.find(|r| r.matches.is_empty() || r.matches.iter().any(|m| fits(m, request)));
    taken.map(|rule| rule.origin.to_string())
}

// === the comparison ===

struct Case {
    bed: Bed,
    builder: Builder,
    base: Vec<Named>,
    place: Place,
    client: Client,
    istio: bool,
    /// How often each kind of answer was seen.
    kinds: BTreeMap<String, usize>,
}

impl Case {
    async fn new(istio: bool, origin: SocketAddr) -> Self {
        let mut base = http_service("user", &[origin]);
        base.extend(http_service("none", &[]));
        if !istio {
            base.push(gateway(None));
        }
        let bed = match istio {
            true => Bed::sidecar(base.clone()).await,
            false => Bed::gateway(base.clone()).await,
        };
        let (door, local) = match istio {
            true => (Door::Forward, bed.outbound()),
            false => (Door::Gateway("shop/web/8000".into()), bed.listener()),
        };
        let client = client(local).await;
        let place = Place { door, local, scheme: "http", server_name: None };
        let builder = Builder::new(1, Clock::system(), "shop".into());
        Self { bed, builder, base, place, client, istio, kinds: BTreeMap::new() }
    }

    /// Gives proxy and table the same routes.
    async fn apply(&mut self, generation: u64, routes: &[Named]) -> Arc<Table> {
        let all: Vec<Named> = self.base.iter().chain(routes).cloned().collect();
        let root = match self.istio {
            true => Root::host(fqdn("user")),
            false => Root::listener("shop/web/8000"),
        };
        let gone: Vec<ResourceName> = (0..ROUTES)
            .map(|r| root.child(format!("route/any/shop/r{r}")))
            .filter(|name| !routes.iter().any(|(n, _)| n == name))
            .collect();
        self.bed.remove(generation * 2, gone.clone()).await;
        let applied = self.bed.apply(generation * 2 + 1, all.clone()).await;
        assert!(applied.rejected.is_empty(), "{applied:?}");
        let all = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
        self.builder.apply(generation, all, &gone).0
    }

    async fn check(&mut self, table: &Table, routes: &[&Route], chance: &mut Chance) {
        let request = any_request(chance, self.istio);
        let shown = format!("{request:?}\n{routes:#?}");
        let (head, body) = request.into_parts();
        let asked = Request::from_parts(head.clone(), ());
        let request = Request::from_parts(head, body);
        let said = explain(table, &self.place, &asked);
        let wanted =
            if self.istio { first(routes, &request) } else { most_specific(routes, &request) };
        *self.kinds.entry(said.answer.kind.clone()).or_default() += 1;
        let told = said.route.as_ref().map(|r| format!("{} {}", r.object, r.field));
        assert_eq!(told, wanted, "explain against the specification: {shown}");
        let got = self.client.send(request).await;
        assert_eq!(seen(&said), outcome(&got), "explain against the proxy: {shown}\n{said:#?}");
    }
}

/// What the explanation promises, in the form of [`outcome`].
fn seen(said: &Explanation) -> (Option<u16>, String) {
    let rule = said.route.as_ref().map(|r| format!("{} {}", r.object, r.field));
    let rule = rule.unwrap_or_default().replace("HTTPRoute shop/", "");
    match &*said.answer.kind {
        "forwarded" => (Some(200), format!("forwarded {rule}")),
        "direct" => (Some(200), rule),
        "redirect" => (Some(302), rule.replace([' ', '[', ']'], "-")),
        _ => (said.answer.status, said.answer.flag.clone()),
    }
}

fn outcome(got: &Got) -> (Option<u16>, String) {
    let text = match got.status {
        200 => got.body.trim_end().to_owned(),
        302 => {
            let location = got.header("location");
            location.split('/').nth(2).unwrap().split(':').next().unwrap().to_owned()
        }
        _ => match got.header("x-weft-flags") {
            "" => got.body.clone(),
            flags => flags.to_owned(),
        },
    };
    (Some(got.status), text)
}

async fn compared(istio: bool) {
    let origin = Server::http(|_, request| async move {
        let rule = request.headers()["x-e-rule"].to_str().unwrap().to_owned();
        text(200, format!("forwarded {rule}"))
    })
    .await;
    let mut case = Case::new(istio, origin.address).await;
    let mut chance = Chance(Rng::seeded(if istio { 1 } else { 2 }));
    for n in 0..configs() {
        let routes = any_routes(&mut chance, istio);
        let table = case.apply(n as u64 + 1, &routes).await;
        let routes: Vec<&Route> = routes
            .iter()
            .map(|(_, resource)| match resource {
                Resource::Route(route) => route,
                _ => panic!(),
            })
            .collect();
        for _ in 0..REQUESTS_PER_CONFIG {
            case.check(&table, &routes, &mut chance).await;
        }
    }
    // Neither is the test about nothing but missing routes.
    let least = configs() * REQUESTS_PER_CONFIG / 50;
    for kind in ["forwarded", "redirect", "direct", "refused"] {
        assert!(case.kinds.get(kind).is_some_and(|n| *n >= least), "{:?}", case.kinds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_a_gateway_does() {
    compared(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_a_sidecar_does() {
    compared(true).await;
}
