// SPDX-License-Identifier: Apache-2.0
//! 100,000 random requests over 2,000 random configurations: users' objects (HTTPRoutes,
//! GRPCRoutes, VirtualServices of clients of the mesh and of gateways, with time-outs and retries)
//! are compiled, a real proxy serves over in-memory streams, `explain` is asked, and a reference
//! that was written from the texts judges. What the proxy did, the record that it emitted, what was
//! explained and what the texts say must agree. A last test plants bugs, each of which is found.
//!
//! `WEFT_EXPLAIN_SEED=gateway:17` repeats one configuration; `WEFT_EXPLAIN_CONFIGS` says how many
//! each of the four tests makes (500), `WEFT_EXPLAIN_REQUESTS` how much each of those is asked
//! (50).

mod harness;

use harness::{Bug, Harness, Kind};
use weft_model::{Action, Parent, PathMatch, Route};

/// Configurations of each test.
fn configs() -> u64 {
    asked("WEFT_EXPLAIN_CONFIGS").unwrap_or(500)
}

/// Requests of each configuration.
const REQUESTS: usize = 50;

fn requests() -> usize {
    asked("WEFT_EXPLAIN_REQUESTS").unwrap_or(REQUESTS)
}

fn asked<N: std::str::FromStr>(name: &str) -> Option<N> {
    #[allow(clippy::disallowed_methods)] // A longer run of the same test.
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// The one seed that is asked for.
fn only(kind: Kind) -> Option<u64> {
    #[allow(clippy::disallowed_methods)] // Repeats what failed.
    let asked = std::env::var("WEFT_EXPLAIN_SEED").ok()?;
    let (of, seed) = asked.split_once(':')?;
    (of == kind.name()).then(|| seed.parse().ok()).flatten()
}

/// Everything is on one thread and in memory, and time passes only while nobody has anything to do:
/// a time-out ends what nobody answers, and nothing else, however slow the machine is.
fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn proved(kind: Kind, from: u64) {
    run(async {
        let mut harness = Harness::new(kind);
        if let Some(seed) = only(kind) {
            return harness.check(seed, requests()).await;
        }
        for seed in from..from + configs() {
            harness.check(seed, requests()).await;
        }
        // Neither is the test about nothing but missing routes.
        let asked = usize::try_from(configs()).unwrap() * requests();
        for (seen, n) in &harness.seen {
            assert!(*n * 100 >= asked, "only {n} of {asked} requests were {seen}");
        }
        assert!(harness.seen.len() >= 2, "{:?}", harness.seen);
    });
}

#[test]
fn gateways_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Gateway, 0);
}

#[test]
fn sidecars_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Mesh, 0);
}

#[test]
fn gateways_of_calls_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Calls, 0);
}

#[test]
fn gateways_of_istio_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Edge, 0);
}

/// Configurations within which a bug is found.
const SOON: u64 = 60;

fn rules(route: &mut Route, change: impl Fn(&mut weft_model::Rule)) {
    route.rules.iter_mut().for_each(change);
}

/// A method's name is not looked at.
fn any_method(route: &mut Route) {
    rules(route, |rule| {
        for found in rule.matches.iter_mut().filter_map(|m| m.path.as_mut()) {
            if let PathMatch::Exact(path) = found {
                let service = path.rsplit_once('/').map_or("", |(service, _)| service);
                *found = PathMatch::ElementPrefix(service.into());
            }
        }
    });
}

/// A VirtualService takes the hosts of all.
fn any_host(route: &mut Route) {
    if let Parent::Listener { hostnames, .. } = &mut route.parent {
        hostnames.clear();
    }
}

fn once_more(route: &mut Route) {
    rules(route, |rule| rule.retry.attempts += 1);
}

fn any_status(route: &mut Route) {
    rules(route, |rule| rule.retry.statuses.push(500));
}

fn longer(route: &mut Route) {
    rules(route, |rule| rule.timeouts.request_ms = rule.timeouts.request_ms.map(|ms| ms + 1));
}

fn unlimited(route: &mut Route) {
    rules(route, |rule| rule.timeouts.request_ms = None);
}

/// What a delegate has of its root is told of the delegate.
fn own_word(route: &mut Route) {
    rules(route, |rule| rule.sources = weft_model::Sources::default());
}

fn first_backend(route: &mut Route) {
    rules(route, |rule| {
        if let Action::Forward(shares) = &mut rule.action {
            shares.truncate(1);
        }
    });
}

#[test]
fn planted_bugs_are_found() {
    let bugs: [(&str, Kind, Bug); 10] = [
        ("a method is not looked at", Kind::Calls, any_method),
        ("hosts are not looked at", Kind::Edge, any_host),
        ("hosts are not looked at", Kind::Gateway, any_host),
        ("one retry more", Kind::Gateway, once_more),
        ("one retry more", Kind::Mesh, once_more),
        ("retries on a status that nobody named", Kind::Edge, any_status),
        ("a time-out that is longer", Kind::Gateway, longer),
        ("no time-out", Kind::Mesh, unlimited),
        ("a root's word as its delegate's", Kind::Mesh, own_word),
        ("backends are left out", Kind::Calls, first_backend),
    ];
    run(async {
        for (what, kind, bug) in bugs {
            let mut harness = Harness::with_bug(kind, bug);
            let mut found = false;
            let mut seeds = 0..SOON;
            while let Some(seed) = seeds.next().filter(|_| !found) {
                found = harness.differences(seed, REQUESTS).await.is_err();
            }
            assert!(found, "not found in {SOON} configurations: {what}, {kind:?}");
        }
    });
}
