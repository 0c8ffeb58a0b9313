// SPDX-License-Identifier: Apache-2.0
//! Turns, ejection and second choices, without any socket.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::{Ask, LocalBackend, LocalEndpoint};
use crate::table::{BackendEntry, Builder, EndpointEntry};
use crate::tests::bed::*;
use crate::upstream::connect::{Dialer, Peer};
use crate::upstream::pool::{InFlight, Pool, PoolContext};

fn pool(entry: &EndpointEntry) -> Rc<Pool> {
    let context = PoolContext {
        dialer: Arc::new(Dialer {
            source: None,
            tls: None,
            mesh_port: MESH_PORT,
            config: Arc::new(config("sidecar~shop~a")),
        }),
        tasks: TaskGroup::new(),
        opened: Cell::new(0),
        noting: false,
    };
    Pool::new(Peer::of(&entry.endpoint, MESH_PORT), Rc::new(context))
}

fn backend(lb: LbPolicy, weights: &[u32]) -> (LocalBackend, Arc<BackendEntry>, Rng) {
    let endpoints = weights.iter().zip(1u16..).map(|(weight, port)| Endpoint {
        weight: *weight,
        ..endpoint(&port.to_string(), ([127, 0, 0, 1], port).into())
    });
    backend_of(BackendPolicy { lb, ..BackendPolicy::default() }, endpoints.collect())
}

fn backend_of(
    policy: BackendPolicy,
    endpoints: Vec<Endpoint>,
) -> (LocalBackend, Arc<BackendEntry>, Rng) {
    let all = service("a", Protocol::Http1, policy, endpoints);
    let upserts = all.into_iter().map(|(n, r)| (n, Ok(r))).collect();
    let (table, _) = Builder::new(1, Clock::system(), "shop".into()).apply(1, upserts, &[]);
    let entry = table.host("a").unwrap().backends["backend/80"].clone();
    let mut rng = Rng::seeded(3);
    (LocalBackend::new(entry.clone(), &mut rng, pool), entry, rng)
}

#[test]
fn a_gateways_backends_have_a_gate_where_no_policy_says_otherwise() {
    let gated = |policy: BackendPolicy| {
        let all = service("a", Protocol::Http1, policy, Vec::new());
        let upserts = all.into_iter().map(|(n, r)| (n, Ok(r))).collect();
        let (table, _) = Builder::new(1, Clock::system(), "shop".into()).apply(1, upserts, &[]);
        let entry = table.host("a").unwrap().backends["backend/80"].clone();
        let mut local = LocalBackend::new(entry, &mut Rng::seeded(3), pool);
        assert!(local.gate.is_none(), "a sidecar's has none");
        local.set_gated(1, Arc::default());
        local.gate.is_some()
    };
    assert!(gated(BackendPolicy::default()));
    let limits = Limits { requests_max: Some(9), ..Limits::default() };
    assert!(!gated(BackendPolicy { limits, ..BackendPolicy::default() }));
    for protection in [
        Protection { ungated: true, ..Protection::default() },
        Protection { adaptive: Some(Adaptive::default()), ..Protection::default() },
    ] {
        let protection = Some(Box::new(protection));
        assert!(!gated(BackendPolicy { protection, ..BackendPolicy::default() }));
    }
}

fn again(
    local: &mut LocalBackend,
    rng: &mut Rng,
    tried: &[Rc<LocalEndpoint>],
) -> Rc<LocalEndpoint> {
    local.pick(Ask { tried, hash: None }, rng, Mono(1)).unwrap()
}

fn tally(local: &mut LocalBackend, rng: &mut Rng, n: usize, weights: usize) -> Vec<usize> {
    let mut counts = vec![0; weights];
    for _ in 0..n {
        let picked = local.pick(Ask::default(), rng, Mono(1)).unwrap();
        counts[usize::from(picked.entry.endpoint.address.port()) - 1] += 1;
    }
    counts
}

#[test]
fn every_policy_keeps_its_shares() {
    let (mut local, _, mut rng) = backend(LbPolicy::RoundRobin, &[1, 1, 1]);
    assert_eq!(tally(&mut local, &mut rng, 300, 3), [100, 100, 100]);
    let (mut local, _, mut rng) = backend(LbPolicy::RoundRobin, &[7, 2, 1]);
    assert_eq!(tally(&mut local, &mut rng, 1_000, 3), [700, 200, 100]);
    let (mut local, _, mut rng) = backend(LbPolicy::Random, &[7, 2, 1]);
    let n = 100_000;
    for (count, share) in tally(&mut local, &mut rng, n, 3).into_iter().zip([0.7, 0.2, 0.1]) {
        let error = 3.0 * (n as f64 * share * (1.0 - share)).sqrt();
        assert!((count as f64 - n as f64 * share).abs() < error, "{count} for {share}");
    }
    let (mut local, _, mut rng) = backend(LbPolicy::RoundRobin, &[0, 0]);
    assert!(local.pick(Ask::default(), &mut rng, Mono(1)).is_none());
}

/// So many requests at a time, each of which ends when as many others have begun: how many of
/// 12,000 each endpoint got.
fn busy(
    local: &mut LocalBackend,
    rng: &mut Rng,
    at_a_time: usize,
    took_ms: [u64; 4],
) -> [usize; 4] {
    let (mut counts, mut open) = ([0; 4], std::collections::VecDeque::new());
    for i in 0..12_000 {
        if open.len() == at_a_time {
            drop(open.pop_front());
        }
        let now = Mono(i);
        let picked = local.pick(Ask::default(), rng, now).unwrap();
        let at = usize::from(picked.entry.endpoint.address.port()) - 1;
        picked.note_pace(std::time::Duration::from_millis(took_ms[at]), true, now);
        counts[at] += 1;
        open.push_back(InFlight::begin(&picked, 0));
    }
    counts
}

const COMPARING: [LbPolicy; 2] = [LbPolicy::LeastRequest, LbPolicy::PeakEwma];

#[test]
fn weights_hold_however_many_requests_run_at_a_time() {
    for lb in COMPARING {
        for weights in [&[1, 9][..], &[1, 1, 1, 9], &[9, 10], &[1, 2, 3, 4], &[1, 1, 1, 1]] {
            for at_a_time in [1, 2, 8, 80] {
                let (mut local, _, mut rng) = backend(lb.clone(), weights);
                let counts = busy(&mut local, &mut rng, at_a_time, [10; 4]);
                let all: u32 = weights.iter().sum();
                for (count, weight) in counts.iter().zip(weights) {
                    let (got, want) =
                        (*count as f64 / 12_000.0, f64::from(*weight) / f64::from(all));
                    assert!(
                        (got - want).abs() < 0.04,
                        "{lb:?} {weights:?} {at_a_time}: {counts:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn slow_endpoints_get_less_than_their_weight() {
    let (mut local, _, mut rng) = backend(LbPolicy::PeakEwma, &[1, 2, 3, 4]);
    for at_a_time in [1, 8] {
        let counts = busy(&mut local, &mut rng, at_a_time, [10, 10, 10, 100]);
        assert!(counts[3] < 2_400, "{at_a_time}: {counts:?}");
    }
}

#[test]
fn places_keep_their_shares_however_many_requests_run_at_a_time() {
    let to = |weight, zone: &str| (LocalityPattern(format!("r/{zone}/*").into()), weight);
    let distribute = || Distribution {
        from: LocalityPattern("*".into()),
        to: vec![to(90, "near"), to(10, "far")],
    };
    for lb in COMPARING {
        for near in [1, 2, 3] {
            let endpoints = (1..=4u16).map(|port| Endpoint {
                locality: Locality::parse(if port <= near { "r/near" } else { "r/far" }),
                ..endpoint(&port.to_string(), ([127, 0, 0, 1], port).into())
            });
            let policy = BackendPolicy {
                lb: lb.clone(),
                locality: LocalityPolicy::Distribute(vec![distribute()]),
                ..BackendPolicy::default()
            };
            let (mut local, _, mut rng) = backend_of(policy, endpoints.collect());
            let counts = busy(&mut local, &mut rng, 8, [10; 4]);
            let here: usize = counts.iter().take(usize::from(near)).sum();
            assert!(here.abs_diff(10_800) < 150, "{lb:?} {near}: {counts:?}");
        }
    }
}

#[test]
fn ejected_endpoints_are_passed_over_unless_nothing_else_is_left() {
    let (mut local, entry, mut rng) = backend(LbPolicy::RoundRobin, &[1, 1, 1]);
    entry.endpoints[0].shared.ejected_until.store(1_000, Ordering::Relaxed);
    entry.set.changed();
    assert_eq!(tally(&mut local, &mut rng, 100, 3), [0, 50, 50]);
    for e in &entry.endpoints {
        e.shared.ejected_until.store(1_000, Ordering::Relaxed);
    }
    entry.set.changed();
    assert!(local.pick(Ask::default(), &mut rng, Mono(1)).is_some());
    // Their time is over.
    let picked: Vec<_> =
        (0..3).map(|_| local.pick(Ask::default(), &mut rng, Mono(1_000)).unwrap()).collect();
    let mut ports: Vec<u16> = picked.iter().map(|p| p.entry.endpoint.address.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3]);
}

#[test]
fn another_attempt_goes_elsewhere_first() {
    for lb in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest, LbPolicy::PeakEwma] {
        let (mut local, _, mut rng) = backend(lb.clone(), &[1, 1, 1]);
        for _ in 0..50 {
            let first = local.pick(Ask::default(), &mut rng, Mono(1)).unwrap();
            let second = again(&mut local, &mut rng, std::slice::from_ref(&first));
            let third = again(&mut local, &mut rng, &[first.clone(), second.clone()]);
            let mut ports = [&first, &second, &third].map(|e| e.entry.endpoint.address.port());
            ports.sort_unstable();
            assert_eq!(ports, [1, 2, 3], "{lb:?}");
            let all = [first, second, third];
            again(&mut local, &mut rng, &all);
        }
    }
}

#[test]
fn turns_go_on_over_changes() {
    let (mut local, entry, mut rng) = backend(LbPolicy::RoundRobin, &[1, 1]);
    let mut counts = [0usize; 2];
    for _ in 0..100 {
        local.update(entry.clone(), pool);
        let picked = local.pick(Ask::default(), &mut rng, Mono(1)).unwrap();
        counts[usize::from(picked.entry.endpoint.address.port()) - 1] += 1;
    }
    assert_eq!(counts, [50, 50]);
}

#[test]
fn every_key_has_an_instance_whatever_the_tables_size() {
    for table in [HashTable::Ring { points_min: 100_000 }, HashTable::Maglev { size: 11 }] {
        let by = HashBy::SourceIp;
        let hashing = Hashing { by, table, load_max_basis_points: None };
        let (mut local, entry, mut rng) = backend(LbPolicy::Hash(Box::new(hashing)), &[1; 20]);
        // Whoever is left, its key is found.
        for left in 0..20 {
            for (i, e) in entry.endpoints.iter().enumerate() {
                let until = if i == left { 0 } else { u64::MAX };
                e.shared.ejected_until.store(until, Ordering::Relaxed);
            }
            entry.set.changed();
            let ask = Ask { hash: Some(7), tried: &[] };
            let picked = local.pick(ask, &mut rng, Mono(1)).unwrap();
            assert!(Rc::ptr_eq(&picked, &local.candidates()[left]), "{table:?}");
        }
    }
}
