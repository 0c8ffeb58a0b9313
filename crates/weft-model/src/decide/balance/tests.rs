// SPDX-License-Identifier: Apache-2.0
//! Shares, places, hashing and ejection as pure functions.

use std::sync::Arc;

use super::*;
use crate::*;

const OPEN: Member = Member {
    weight: 1,
    health: Health::Healthy,
    failing: false,
    ejected: false,
    pausing: false,
    warm_basis_points: 10_000,
    place: Some(0),
};

fn at(place: u32, n: usize, open: usize) -> Vec<Member> {
    let member = |i| Member {
        health: if i < open { Health::Healthy } else { Health::Unhealthy },
        place: Some(place),
        ..OPEN
    };
    (0..n).map(member).collect()
}

fn settled(members: &[Member], rule: &PlaceRule, panic: u32) -> Shares {
    let mut shares = Shares::default();
    shares.settle(members, rule, panic);
    shares
}

/// Percent of requests by place, rounded.
fn percent(members: &[Member], shares: &Shares, places: usize) -> Vec<u64> {
    let total = total_weight(&shares.weights).max(1);
    (0..places)
        .map(|p| {
            let of = members.iter().zip(&shares.weights).filter(|(m, _)| m.place == Some(p as u32));
            (of.map(|(_, w)| u64::from(*w)).sum::<u64>() * 100 + total / 2) / total
        })
        .collect()
}

#[test]
fn who_is_out_says_why_and_weights_stay_plain() {
    let members = [
        Member { weight: 3, ..OPEN },
        Member { health: Health::Unhealthy, ..OPEN },
        Member { health: Health::Draining, ..OPEN },
        Member { weight: 0, ..OPEN },
        Member { ejected: true, ..OPEN },
        Member { pausing: true, ..OPEN },
        Member { place: None, ..OPEN },
    ];
    let shares = settled(&members, &PlaceRule::Any, 0);
    assert_eq!(shares.weights, [3, 0, 0, 0, 0, 0, 0]);
    use Standing::*;
    assert_eq!(shares.standings, [Open, Unhealthy, Draining, NoWeight, Ejected, Pausing, NoPlace]);
    // Nobody else is left: guesses give way, facts do not.
    let shares = settled(&members[1..], &PlaceRule::Any, 0);
    assert_eq!(shares.weights, [0, 0, 0, 1, 1, 0]);
    assert_eq!(shares.standings[3], Panic);
}

#[test]
fn in_panic_everybody_but_the_leaving_is_used() {
    let mut members = at(0, 10, 4);
    members.push(Member { health: Health::Draining, ..OPEN });
    assert_eq!(total_weight(&settled(&members, &PlaceRule::Any, 4_000).weights), 4);
    let shares = settled(&members, &PlaceRule::Any, 4_001);
    assert_eq!(total_weight(&shares.weights), 10);
    assert_eq!(shares.weights[10], 0);
    assert_eq!(shares.standings.iter().filter(|s| **s == Standing::Panic).count(), 6);
}

#[test]
fn nobody_is_in_panic_while_those_that_are_left_carry_everything() {
    for (open, panic, in_use) in [(3, 10_000, 3), (3, 8_000, 3), (2, 10_000, 4), (2, 5_000, 2)] {
        let shares = settled(&at(0, 4, open), &PlaceRule::Any, panic);
        assert_eq!(total_weight(&shares.weights), in_use, "{open} of 4, {panic}");
    }
}

#[test]
fn nobody_is_in_panic_while_others_carry_everything() {
    // Of two groups, endpoints that are well; the percent of each group, and who is back.
    for (near, far, shares, back) in [
        // The nearest is gone, whatever its size: the standby takes all.
        ((4, 0), (2, 2), [0, 100], 0),
        ((10, 1), (2, 2), [14, 86], 0),
        // Together they carry too little: each falls into panic by what is left of its own.
        ((4, 0), (2, 1), [0, 100], 0),
        ((5, 1), (4, 2), [29, 71], 4),
        // Nobody is left anywhere: all are asked, each as much as any other.
        ((4, 0), (2, 0), [67, 33], 6),
        ((4, 1), (8, 0), [33, 67], 11),
    ] {
        let members = [at(0, near.0, near.1), at(1, far.0, far.1)].concat();
        let zones =
            PlaceRule::Zones(ZoneRule { callers: vec![1], callers_all: 1, endpoints_min: 0 });
        for rule in [PlaceRule::Levels, zones] {
            let settled = settled(&members, &rule, 5_000);
            assert_eq!(percent(&members, &settled, 2), shares, "{near:?} {far:?} {rule:?}");
            let panic = settled.standings.iter().filter(|s| **s == Standing::Panic).count();
            assert_eq!(panic, back, "{near:?} {far:?} {rule:?}");
        }
    }
    // Places that have weights are asked side by side, and fall into panic together.
    let members = [at(0, 4, 0), at(1, 4, 3)].concat();
    let weights = PlaceRule::Weights { weights: vec![50, 50], rest: false };
    assert_eq!(percent(&members, &settled(&members, &weights, 5_000), 2), [50, 50]);
    assert_eq!(percent(&members, &settled(&members, &weights, 3_000), 2), [0, 100]);
    // In panic weights do not count, but where there is none there is none.
    let members = [at(0, 2, 0), at(1, 1, 1), at(2, 3, 1)].concat();
    for (weights, shares) in [(vec![9, 1, 1], [33, 17, 50]), (vec![9, 1, 0], [67, 33, 0])] {
        let rule = PlaceRule::Weights { weights, rest: false };
        assert_eq!(percent(&members, &settled(&members, &rule, 5_000), 3), shares);
    }
}

#[test]
fn places_without_a_weight_stand_in_for_those_with_one_where_nobody_of_these_is_left() {
    let rule = |rest| PlaceRule::Weights { weights: vec![9, 1, 0, 0], rest };
    // Who is left of each place, and the percent of each.
    for (left, panic, shares) in [
        ([1, 1, 2, 1], 5_000, [90, 10, 0, 0]),
        ([0, 1, 2, 1], 5_000, [0, 100, 0, 0]),
        ([0, 0, 2, 1], 5_000, [0, 0, 67, 33]),
        ([0, 0, 2, 0], 5_000, [20, 20, 40, 20]),
    ] {
        let place = |n: usize| match n {
            2 => at(2, 2, left[n]),
            3 => at(3, 1, left[n]),
            _ => at(u32::try_from(n).unwrap(), 1, left[n]),
        };
        let members: Vec<Member> = (0..4).flat_map(place).collect();
        assert_eq!(
            percent(&members, &settled(&members, &rule(true), panic), 4),
            shares,
            "{left:?}"
        );
    }
    let members = [at(0, 1, 0), at(1, 1, 0), at(2, 2, 2), at(3, 1, 1)].concat();
    assert_eq!(total_weight(&settled(&members, &rule(false), 0).weights), 0);
}

#[test]
fn a_level_spills_over_as_far_as_it_lacks_endpoints() {
    // Of ten near endpoints so many are left; percent near, middle, far.
    for (left, near, middle, far) in
        [(10, 100, 0, 0), (8, 100, 0, 0), (7, 98, 2, 0), (5, 70, 30, 0), (0, 0, 100, 0)]
    {
        let members = [at(0, 10, left), at(1, 10, 10), at(2, 10, 10)].concat();
        let shares = settled(&members, &PlaceRule::Levels, 0);
        assert_eq!(percent(&members, &shares, 3), [near, middle, far], "{left} left");
        assert_eq!(shares.standings[29], Standing::Standby);
    }
    // What no level can carry is shared as it would be.
    let members = [at(0, 10, 2), at(1, 10, 4)].concat();
    let shares = settled(&members, &PlaceRule::Levels, 0);
    assert_eq!(percent(&members, &shares, 2), [33, 67]);
}

#[test]
fn places_have_their_weights_whatever_their_sizes_and_lose_with_their_endpoints() {
    let rule = PlaceRule::Weights { weights: vec![80, 20], rest: false };
    let members = [at(0, 2, 2), at(1, 8, 8)].concat();
    assert_eq!(percent(&members, &settled(&members, &rule, 0), 2), [80, 20]);
    // Half of a place at 1.4: 80 × 0.7 against 20.
    let members = [at(0, 2, 1), at(1, 8, 8)].concat();
    assert_eq!(percent(&members, &settled(&members, &rule, 0), 2), [74, 26]);
    let members = [at(0, 2, 0), at(1, 8, 8)].concat();
    let shares = settled(&members, &rule, 0);
    assert_eq!(percent(&members, &shares, 2), [0, 100]);
    assert_eq!(shares.weights[2], 1, "one place: plain weights, exact turns");
}

#[test]
fn new_endpoints_warm_up() {
    let warmup =
        Warmup { duration_ms: 10_000, min_basis_points: 1_000, aggression_permille: 1_000 };
    let part = |age| warm_basis_points(&warmup, age);
    assert_eq!(
        [part(0), part(500), part(5_000), part(9_999), part(10_000)],
        [1_000, 1_000, 5_000, 9_999, 10_000]
    );
    let sooner = Warmup { aggression_permille: 2_000, ..warmup };
    assert_eq!(warm_basis_points(&sooner, 2_500), 5_000);
    let members =
        [Member { weight: 4, ..OPEN }, Member { weight: 4, warm_basis_points: 2_500, ..OPEN }];
    let shares = settled(&members, &PlaceRule::Any, 0);
    assert_eq!(shares.weights[0] / shares.weights[1], 4);
}

fn endpoint(locality: &str, labels: &[(&str, &str)]) -> Endpoint {
    Endpoint {
        id: locality.into(),
        address: "127.0.0.1:80".parse().unwrap(),
        labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        locality: Locality::parse(locality),
        weight: 1,
        health: Health::Healthy,
        identity: None,
        transport: Transport::Plaintext,
        workload: "".into(),
        mesh_address: None,
    }
}

#[test]
fn places_are_seen_from_the_client() {
    let endpoints = ["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "asia/a/1"].map(|l| endpoint(l, &[]));
    let seen = |policy: &LocalityPolicy, own: &str| {
        let own = Own { locality: Locality::parse(own), ..Own::default() };
        let places = places(policy, &own, endpoints.iter());
        (0..5).map(|i| places.of(i)).collect::<Vec<_>>()
    };
    let regions = vec![("eu".into(), "us".into())];
    let failover = LocalityPolicy::Failover(Failover { regions, labels: Vec::new() });
    assert_eq!(seen(&failover, "eu/a/1"), [0, 1, 2, 3, 4].map(Some));
    assert_eq!(seen(&failover, "us/a/1"), [4, 4, 4, 0, 4].map(Some));
    assert_eq!(seen(&failover, ""), [0; 5].map(Some));
    let pattern = |text: &str| LocalityPattern(text.into());
    let distribute = LocalityPolicy::Distribute(vec![Distribution {
        from: pattern("eu/a/*"),
        to: vec![(pattern("eu/a/*"), 70), (pattern("us/*"), 30)],
    }]);
    assert_eq!(seen(&distribute, "eu/a/2"), [Some(0), Some(0), None, Some(1), None]);
    assert_eq!(seen(&distribute, "us/a/1"), [Some(0); 5]);
    // Whoever asks; names are no patterns.
    let named = |text: &str| (Locality::parse(text), 1);
    let weights = LocalityPolicy::Weights(vec![named("us/a/1"), named("eu/a/1"), named("*")]);
    assert_eq!(seen(&weights, ""), [1, 3, 3, 0, 3].map(Some));
}

#[test]
fn failover_by_labels_counts_what_is_shared_from_the_first_on() {
    let failover = LocalityPolicy::Failover(Failover {
        labels: vec!["net".into(), "topology.kubernetes.io/zone".into(), "tier=gold".into()],
        ..Failover::default()
    });
    let own = Own {
        locality: Locality::parse("eu/a"),
        labels: [("net".into(), "n1".into())].into(),
        ..Own::default()
    };
    let endpoints = [
        endpoint("eu/a", &[("net", "n1"), ("tier", "gold")]),
        endpoint("eu/a", &[("net", "n1")]),
        endpoint("eu/b", &[("net", "n1"), ("tier", "gold")]),
        endpoint("eu/a", &[("net", "n2"), ("tier", "gold")]),
    ];
    let places = places(&failover, &own, endpoints.iter());
    assert_eq!([0, 1, 2, 3].map(|i| places.of(i)), [0, 1, 2, 3].map(Some));
}

#[test]
fn pods_say_where_they_are() {
    let labels = |list: &[(&str, &str)]| -> Labels {
        list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    };
    let of = |list| Locality::of_labels(&labels(list));
    assert_eq!(of(&[("istio-locality", "eu.a.1")]), Locality::parse("eu/a/1"));
    let topology = [("topology.kubernetes.io/region", "eu"), ("topology.kubernetes.io/zone", "a")];
    assert_eq!(of(&topology), Locality::parse("eu/a"));
    assert!(of(&[("app", "x")]).is_unknown());
}

/// What each endpoint is sent, in requests per caller of all zones, when every caller sends one.
fn loads(callers: &[u32], endpoints: &[usize], min: u32) -> Vec<f64> {
    let zone = |i: usize| format!("eu/z{i}");
    let all: Vec<Endpoint> = (0..endpoints.len())
        .flat_map(|z| (0..endpoints[z]).map(move |_| endpoint(&zone(z), &[])))
        .collect();
    let known: std::collections::BTreeMap<Arc<str>, u32> =
        callers.iter().enumerate().map(|(z, n)| (format!("z{z}").into(), *n)).collect();
    let zoned = ZoneAware { endpoints_min: min, ..ZoneAware::default() };
    let policy = LocalityPolicy::Zones(zoned);
    let mut loads = vec![0.0; all.len()];
    for (z, n) in callers.iter().enumerate() {
        let own =
            Own { locality: Locality::parse(&zone(z)), callers: known.clone(), ..Own::default() };
        let places = places(&policy, &own, all.iter());
        let members: Vec<Member> =
            (0..all.len()).map(|i| Member { place: places.of(i), ..OPEN }).collect();
        let shares = settled(&members, &places.rule, 0);
        let total: f64 = shares.weights.iter().map(|w| f64::from(*w)).sum();
        for (load, weight) in loads.iter_mut().zip(&shares.weights) {
            *load += f64::from(*n) * f64::from(*weight) / total;
        }
    }
    loads
}

proptest::proptest! {
    #[test]
    fn zones_give_every_endpoint_the_same_load(
        zones in proptest::collection::vec((1u32..20, 1usize..20), 1..5),
    ) {
        let callers: Vec<u32> = zones.iter().map(|z| z.0).collect();
        let endpoints: Vec<usize> = zones.iter().map(|z| z.1).collect();
        let all: u32 = callers.iter().sum();
        let count = u32::try_from(endpoints.iter().sum::<usize>()).unwrap();
        for load in loads(&callers, &endpoints, 1) {
            let want = f64::from(all) / f64::from(count);
            proptest::prop_assert!((load - want).abs() < want * 0.02, "{load} is not {want}");
        }
    }
}

#[test]
fn requests_stay_in_their_zone_as_far_as_it_has_its_part() {
    let policy = |min| {
        LocalityPolicy::Zones(ZoneAware {
            endpoints_min: min,
            failover: Failover { regions: vec![("eu".into(), "us".into())], labels: Vec::new() },
        })
    };
    // Two in the own zone, four in the other, one in the next region, one in the last.
    let places_of = ["eu/a", "eu/a", "eu/b", "eu/b", "eu/b", "eu/b", "us/a", "asia/a"];
    let endpoints = places_of.map(|place| endpoint(place, &[]));
    let callers = |a: u32, b: u32| [("a".into(), a), ("b".into(), b)].into();
    let shared = |callers, min, open: &dyn Fn(usize) -> bool| {
        let own = Own { locality: Locality::parse("eu/a"), callers, ..Own::default() };
        let places = places(&policy(min), &own, endpoints.iter());
        let member = |i: usize| Member { place: places.of(i), failing: !open(i), ..OPEN };
        let members: Vec<Member> = (0..endpoints.len()).map(member).collect();
        let shares = settled(&members, &places.rule, 0);
        let total: u64 = total_weight(&shares.weights);
        let sum = |range: std::ops::Range<usize>| {
            let part: u64 = shares.weights[range].iter().copied().map(u64::from).sum();
            (part * 1_000 + total / 2) / total
        };
        [sum(0..2), sum(2..6), sum(6..7), sum(7..8)]
    };
    let all = |_: usize| true;
    assert_eq!(shared(callers(1, 2), 6, &all), [1_000, 0, 0, 0], "a third calls a third");
    assert_eq!(shared(callers(2, 1), 6, &all), [500, 500, 0, 0], "two thirds call a third");
    assert_eq!(shared(callers(1, 2), 7, &all), [333, 667, 0, 0], "too few to be told apart");
    assert_eq!(shared([].into(), 6, &all), [333, 667, 0, 0], "nobody else is known to call");
    let own_gone = |i: usize| i > 1;
    assert_eq!(shared(callers(1, 2), 1, &own_gone), [0, 933, 67, 0], "4 of 6 carry 93 %");
    let region_gone = |i: usize| i > 5;
    assert_eq!(shared(callers(1, 2), 1, &region_gone), [0, 0, 1_000, 0]);
}

const TABLES: [HashTable; 2] =
    [HashTable::Ring { points_min: 1_024 }, HashTable::Maglev { size: 65_537 }];

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("pod-{i}")).collect()
}

fn owners(ring: &HashRing, open: impl Fn(usize) -> bool, keys: u32) -> Vec<usize> {
    let owner = |key: u32| ring.find(key_hash(&key.to_le_bytes()), &open).unwrap();
    (0..keys).map(owner).collect()
}

#[test]
fn keys_are_shared_by_weight() {
    let names = names(10);
    for (table, tolerance) in TABLES.into_iter().zip([0.35, 0.05]) {
        let members: Vec<_> = names.iter().zip([1u32, 2].into_iter().cycle()).collect();
        let members: Vec<_> = members.into_iter().map(|(n, w)| (n.as_str(), w)).collect();
        let ring = HashRing::new(table, &members);
        let keys = 60_000u32;
        let mut counts = [0u32; 10];
        for owner in owners(&ring, |_| true, keys) {
            counts[owner] += 1;
        }
        for (count, (name, weight)) in counts.iter().zip(&members) {
            let want = f64::from(keys) * f64::from(*weight) / 15.0;
            let off = (f64::from(*count) - want).abs() / want;
            assert!(off < tolerance, "{table:?}: {name} has {count} for {want}");
        }
    }
}

#[test]
fn who_closes_gives_up_only_its_own_keys_and_gets_them_back() {
    let names = names(10);
    let members: Vec<_> = names.iter().map(|n| (n.as_str(), 1)).collect();
    for table in TABLES {
        let ring = HashRing::new(table, &members);
        let all = owners(&ring, |_| true, 20_000);
        let without = owners(&ring, |i| i != 3, 20_000);
        let mut heirs = [0u32; 10];
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || *before == 3, "{table:?}");
            if before != after {
                heirs[*after] += 1;
            }
        }
        // Its keys are spread over all others, not heaped on a neighbour.
        let most = heirs.iter().max().unwrap();
        assert!(*most < 700 && heirs.iter().filter(|n| **n > 50).count() == 9, "{heirs:?}");
        assert_eq!(owners(&ring, |i| i == 7, 50), [7; 50]);
        assert_eq!(ring.find(1, |_| false), None);
    }
}

#[test]
fn another_endpoint_disturbs_few_keys() {
    let names = names(11);
    let members: Vec<_> = names.iter().map(|n| (n.as_str(), 1)).collect();
    for table in TABLES {
        let before = owners(&HashRing::new(table, &members[..10]), |_| true, 20_000);
        let after = owners(&HashRing::new(table, &members), |_| true, 20_000);
        let moved = before.iter().zip(&after).filter(|(b, a)| b != a).count();
        let to_others = before.iter().zip(&after).filter(|(b, a)| b != a && **a != 10).count();
        // An eleventh must move; a ring moves nothing else, Maglev a little.
        assert!((1_000..3_500).contains(&moved), "{table:?} moved {moved}");
        assert!(to_others < 1_200, "{table:?} moved {to_others} among the old ones");
    }
}

#[test]
fn everybody_has_a_place_in_a_table_of_any_size() {
    let names = names(300);
    let few = [1, 2, 20];
    let alike = few.into_iter().chain([300]).map(|n| vec![1u32; n]);
    let apart = few.into_iter().map(|n| [vec![u32::MAX; n], vec![1, 3]].concat());
    for weights in alike.chain(apart) {
        let members: Vec<_> =
            names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        for table in [
            HashTable::Ring { points_min: 1 },
            HashTable::Ring { points_min: 100_000 },
            HashTable::Ring { points_min: u32::MAX },
            HashTable::Maglev { size: 1 },
            HashTable::Maglev { size: 65_537 },
        ] {
            let ring = HashRing::new(table, &members);
            for i in 0..members.len() {
                let found = ring.find(7, |m| m == i);
                assert_eq!(found, Some(i), "{table:?} of {}", members.len());
            }
        }
    }
}

#[test]
fn tables_of_nobody_and_of_the_same_in_another_order() {
    for table in TABLES {
        assert_eq!(HashRing::new(table, &[]).find(7, |_| true), None);
        assert_eq!(HashRing::new(table, &[("a", 0)]).find(7, |_| true), None);
        let one = HashRing::new(table, &[("a", 1), ("b", 1), ("c", 1)]);
        let other = HashRing::new(table, &[("c", 1), ("a", 1), ("b", 1)]);
        for key in 0..1_000u32 {
            let hash = key_hash(&key.to_le_bytes());
            let name = |ring: &HashRing, names: [&'static str; 3]| {
                names[ring.find(hash, |_| true).unwrap()]
            };
            assert_eq!(name(&one, ["a", "b", "c"]), name(&other, ["c", "a", "b"]));
        }
    }
}

#[test]
fn a_bound_keeps_loads_near_their_part() {
    // Four alike with 20 in flight in all: 1.25 × 21 / 4 is 6.6, so the seventh fits, no eighth.
    assert!(within_bound(6, 20, 1, 4, 12_500));
    assert!(!within_bound(7, 20, 1, 4, 12_500));
    assert!(within_bound(13, 20, 2, 4, 12_500));
    assert!(within_bound(0, 0, 1, 100, 10_000), "there is always room for one");
}

#[test]
fn streaks_are_judged_each_by_its_own_limit() {
    let policy = Outlier {
        consecutive_failures: 5,
        consecutive_gateway: 2,
        consecutive_local: Some(3),
        ..Outlier::default()
    };
    let of =
        |failures, gateway, local| judge_streaks(&policy, Streaks { failures, gateway, local });
    assert_eq!(of(4, 1, 2), None);
    assert_eq!(of(5, 0, 0), Some(Ejection::Failures(5)));
    assert_eq!(of(2, 2, 0), Some(Ejection::Gateway(2)));
    assert_eq!(of(0, 0, 3), Some(Ejection::Local(3)));
    assert_eq!(
        judge_streaks(&Outlier::off(), Streaks { failures: 99, gateway: 99, local: 99 }),
        None
    );
    assert!(Outlier::off().is_off() && !policy.is_off());
}

#[test]
fn statuses_blame_who_sent_them() {
    let usual = Outlier::default();
    let of = |policy: &Outlier| [200, 404, 429, 500, 503].map(|s| outcome_of_status(policy, s));
    use Outcome::*;
    assert_eq!(of(&usual), [Success, Success, Success, Failure, Gateway]);
    let listed = Outlier { statuses: vec![429, 503], ..usual };
    assert_eq!(of(&listed), [Success, Success, Failure, Success, Gateway]);
}

#[test]
fn windows_eject_who_fails_much_and_who_fails_more_than_others() {
    let seen = |failures: &[u64]| -> Vec<Seen> {
        failures.iter().map(|f| Seen { requests: 100, failures: *f }).collect()
    };
    let share =
        OutlierWindow { failure_share: Some(FailureShare::default()), ..Default::default() };
    assert_eq!(
        judge_window(&share, &seen(&[84, 85, 100, 0, 0])),
        [(2, Ejection::FailureShare { own: 10_000 }), (1, Ejection::FailureShare { own: 8_500 })]
    );
    assert_eq!(judge_window(&share, &seen(&[100, 0, 0, 0])), [], "too few to compare");
    let rate = OutlierWindow { success_rate: Some(SuccessRate::default()), ..Default::default() };
    // Mean 94 %, deviation 12 %: below 71.2 % is out.
    assert_eq!(
        judge_window(&rate, &seen(&[30, 0, 0, 0, 0])),
        [(0, Ejection::SuccessRate { own: 7_000, least: 7_120 })]
    );
    assert_eq!(judge_window(&rate, &seen(&[30, 30, 30, 30, 30])), [], "all alike");
    let mut few = seen(&[100, 0, 0, 0, 0]);
    few[0].requests = 99;
    assert_eq!(judge_window(&rate, &few), []);
}

#[test]
fn ejections_grow_to_their_limit() {
    let policy = Outlier { base_ejection_ms: 100, max_ejection_ms: 250, ..Outlier::default() };
    assert_eq!([0, 1, 2, 9].map(|n| ejection_ms(&policy, n)), [100, 200, 250, 250]);
}
