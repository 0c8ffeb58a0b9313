// SPDX-License-Identifier: Apache-2.0
//! When endpoints are asked, under a clock that only the test moves.

use weft_model::decide::Probe;
use weft_model::{BackendPolicy, CheckKind, Protection, Protocol};

use super::*;
use crate::table::Builder;
use crate::tests::bed;

const CHECK: HealthCheck = HealthCheck {
    kind: CheckKind::Tcp { send: Vec::new(), expect: Vec::new() },
    interval_ms: 5_000,
    timeout_ms: 100,
    unhealthy_interval_ms: Some(700),
    jitter_basis_points: 0,
    healthy: 2,
    unhealthy: 2,
    port: None,
};

struct Sim {
    schedule: Schedule,
    builder: Builder,
    generation: u64,
    now: Mono,
}

impl Sim {
    fn new() -> Self {
        let (clock, _) = Clock::manual();
        let schedule = Schedule { rng: Rng::seeded(7), jobs: BTreeMap::new(), under_way: 0 };
        let builder = Builder::new(1, clock, "shop".into());
        Self { schedule, builder, generation: 0, now: Mono(10_000) }
    }

    fn apply(&mut self, endpoints: u16, check: Option<HealthCheck>) -> Arc<Table> {
        let each = (0..endpoints).map(|i| {
            bed::endpoint(&format!("e{i}"), format!("127.0.0.1:{}", 9_000 + i).parse().unwrap())
        });
        let protection = Protection { health_check: check, ..Protection::default() };
        let policy =
            BackendPolicy { protection: Some(Box::new(protection)), ..BackendPolicy::default() };
        let all = bed::service("user", Protocol::Http1, policy, each.collect());
        self.generation += 1;
        let upserts = all.into_iter().map(|(name, resource)| (name, Ok(resource))).collect();
        let (table, rejected) = self.builder.apply(self.generation, upserts, &[]);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.schedule.follow(&table, self.now);
        table
    }

    /// Goes on for `ms`; every check ends at once as `seen` says. Returns when each endpoint was
    /// asked, in milliseconds from now.
    fn run(&mut self, ms: u64, seen: impl Fn(&str) -> Probe) -> BTreeMap<String, Vec<u64>> {
        let (began, mut asked) = (self.now, BTreeMap::<String, Vec<u64>>::new());
        while self.now < began.plus(Duration::from_millis(ms)) {
            while let Some((key, entry, _)) = self.schedule.next(self.now) {
                let id = entry.endpoint.id.to_string();
                let seen = seen(&id);
                asked.entry(id).or_default().push(self.now.0 - began.0);
                self.schedule.take(&Answer { key, seen, why: "no".into() }, self.now);
            }
            let pause = self.schedule.pause(self.now);
            assert!(pause > Duration::ZERO, "nothing is due any more");
            self.now = self.now.plus(pause);
        }
        asked
    }
}

fn failing(table: &Table) -> Vec<String> {
    let all = table.backends().flat_map(|b| &b.endpoints);
    all.filter(|e| e.shared.is_failing()).map(|e| e.endpoint.id.to_string()).collect()
}

#[test]
fn endpoints_are_asked_at_their_times_evenly_spread() {
    let mut sim = Sim::new();
    let table = sim.apply(10, Some(CHECK));
    let asked = sim.run(12_000, |_| Probe::Pass);
    let mut first: Vec<u64> = asked.values().map(|times| times[0]).collect();
    first.sort_unstable();
    assert_eq!(first, (0..10).map(|i| i * 100).collect::<Vec<_>>(), "spread over a second");
    for times in asked.values() {
        assert_eq!(times[1] - times[0], 5_000, "{times:?}");
    }
    assert!(failing(&table).is_empty());
}

#[test]
fn who_fails_is_out_and_asked_more_often_until_it_is_back() {
    let mut sim = Sim::new();
    let table = sim.apply(2, Some(CHECK));
    sim.run(1_000, |_| Probe::Pass);
    sim.run(5_000, |id| if id == "e1" { Probe::Fail } else { Probe::Pass });
    assert!(failing(&table).is_empty(), "one failure is not two");
    let asked = sim.run(6_000, |id| if id == "e1" { Probe::Fail } else { Probe::Pass });
    assert_eq!(failing(&table), ["e1"]);
    assert_eq!(asked["e1"][1] - asked["e1"][0], 700);
    // A newer table goes on where the old one was.
    let table = sim.apply(3, Some(CHECK));
    assert_eq!(failing(&table), ["e1"]);
    sim.run(1_400, |_| Probe::Pass);
    assert!(failing(&table).is_empty());
}

#[test]
fn who_is_asked_no_more_does_not_fail() {
    let mut sim = Sim::new();
    let table = sim.apply(2, Some(CHECK));
    sim.run(1_000, |_| Probe::Refuses);
    assert_eq!(failing(&table).len(), 2, "the first answer decides alone");
    let why = table.backends().find_map(|b| b.endpoints[0].shared.failing_why());
    assert_eq!(why.as_deref(), Some("no"));
    let table = sim.apply(2, None);
    assert!(failing(&table).is_empty());
    assert_eq!(sim.schedule.pause(sim.now), Duration::from_secs(3_600));
}

#[test]
fn no_more_than_so_many_are_asked_at_a_time() {
    let mut sim = Sim::new();
    sim.apply(200, Some(CHECK));
    sim.now = sim.now.plus(Duration::from_secs(60));
    let begun: Vec<_> = std::iter::from_fn(|| sim.schedule.next(sim.now)).collect();
    assert_eq!(begun.len(), CHECKS_MAX);
    assert!(sim.schedule.pause(sim.now) > Duration::from_secs(60), "an answer wakes the rest");
    let answer = Answer { key: begun[0].0, seen: Probe::Pass, why: String::new() };
    sim.schedule.take(&answer, sim.now);
    assert!(sim.schedule.next(sim.now).is_some());
}
