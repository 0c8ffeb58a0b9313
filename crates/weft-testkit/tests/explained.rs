// SPDX-License-Identifier: Apache-2.0
//! 100,000 random requests over 2,000 random configurations: users' objects are compiled, a real
//! proxy serves over in-memory streams, `explain` is asked, and a reference that was written from
//! the texts judges. What the proxy did, the record that it emitted, what was explained and what
//! the texts say must agree.
//!
//! `WEFT_EXPLAIN_SEED=gateway:17` repeats one configuration; `WEFT_EXPLAIN_CONFIGS` runs more.

mod harness;

use harness::{Harness, Kind};

/// Configurations of each test, and requests of each configuration.
const CONFIGS: u64 = 500;
const REQUESTS: usize = 50;

fn configs() -> u64 {
    #[allow(clippy::disallowed_methods)] // A longer run of the same test.
    let asked = std::env::var("WEFT_EXPLAIN_CONFIGS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(CONFIGS)
}

/// The one seed that is asked for.
fn only(kind: Kind) -> Option<u64> {
    #[allow(clippy::disallowed_methods)] // Repeats what failed.
    let asked = std::env::var("WEFT_EXPLAIN_SEED").ok()?;
    let (of, seed) = asked.split_once(':')?;
    (of == kind.name()).then(|| seed.parse().ok()).flatten()
}

fn proved(kind: Kind, from: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut harness = Harness::new(kind);
        if let Some(seed) = only(kind) {
            return harness.check(seed, REQUESTS).await;
        }
        for seed in from..from + configs() {
            harness.check(seed, REQUESTS).await;
        }
        // Neither is the test about nothing but missing routes.
        let asked = usize::try_from(configs()).unwrap() * REQUESTS;
        for (seen, n) in &harness.seen {
            assert!(*n * 100 >= asked, "only {n} of {asked} requests were {seen}");
        }
        assert!(harness.seen.len() >= 3, "{:?}", harness.seen);
    });
}

#[test]
fn gateways_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Gateway, 0);
}

#[test]
fn gateways_do_what_is_explained_and_what_the_texts_say_too() {
    proved(Kind::Gateway, 1_000_000);
}

#[test]
fn sidecars_do_what_is_explained_and_what_the_texts_say() {
    proved(Kind::Mesh, 0);
}

#[test]
fn sidecars_do_what_is_explained_and_what_the_texts_say_too() {
    proved(Kind::Mesh, 1_000_000);
}
