// SPDX-License-Identifier: Apache-2.0
//! The gate with real waiting, before a server of twenty places that does not hear that clients go
//! away; and its line, at a limit that time does not change. How much it answers is shown by the
//! model's tests and by drill F12.

use std::pin::Pin;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::*;

const SERVICE: Duration = Duration::from_millis(20);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
struct Bench {
    gate: Rc<BackendGate>,
    places: Rc<Semaphore>,
    good: Cell<u32>,
    left: Cell<u32>,
}

fn bench() -> Rc<Bench> {
    let gate = BackendGate::new(1, Arc::default(), "user:80".into());
    let places = Rc::new(Semaphore::new(20));
    let zero = Cell::default;
    Rc::new(Bench { gate, places, good: zero(), left: zero() })
}

async fn ask(bench: Rc<Bench>) {
    let came = Instant::now();
    let permit = match bench.gate.arrive(came) {
        Some(permit) => permit,
        None => bench.gate.clone().wait(came, None).await.expect("there is no deadline"),
    };
    let (done, over) = oneshot::channel();
    let places = bench.places.clone();
    tokio::task::spawn_local(async move {
        let _place = places.acquire().await;
        sleep(SERVICE).await;
        let _ = done.send(());
    });
    over.await.unwrap();
    permit.answered(Instant::now());
    bench.good.set(bench.good.get() + 1);
}

/// So many clients a second for some seconds, which wait for `patience`.
async fn load(bench: &Rc<Bench>, per_second: u32, seconds: u32, patience: Duration) {
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for n in 0..per_second * seconds {
        sleep_until(began + Duration::from_secs(1) / per_second * n).await;
        let bench = bench.clone();
        clients.spawn_local(async move {
            if timeout(patience, ask(bench.clone())).await.is_err() {
                bench.left.set(bench.left.get() + 1);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn everybody_is_answered_who_waits() {
    let all = async {
        let bench = bench();
        load(&bench, 2_000, 1, Duration::from_secs(600)).await;
        assert_eq!((bench.good.get(), bench.left.get()), (2_000, 0));
        assert_eq!((bench.gate.flying.get(), bench.gate.line.waiting.get()), (0, 0));
    };
    LocalSet::new().run_until(all).await;
}

type Waiting = Pin<Box<dyn Future<Output = Option<Permit>>>>;

/// A gate with a limit, whose clock stands still, and as many permits as it gives.
fn limited() -> (Rc<BackendGate>, Vec<Permit>) {
    let mut gate = Gate::new(16);
    // Three requests come in a millisecond, and one of them ends.
    let mut line: VecDeque<(u64, u32)> = VecDeque::new();
    let mut now = 0;
    while gate.is_open() {
        now += 1_000;
        assert!(now < 10_000_000, "there is no limit");
        for _ in 0..3 {
            let flying = u32::try_from(line.len()).unwrap();
            gate.arrive(flying, 0, now);
            line.push_back((now, flying));
        }
        if let Some((came, ahead)) = line.pop_front_if(|(came, _)| *came + 20_000 <= now) {
            let flying = u32::try_from(line.len()).unwrap();
            gate.answered((true, ahead), now - came, flying, now);
        }
    }
    let made = BackendGate::new(1, Arc::default(), "user:80".into());
    let mut made = Rc::into_inner(made).unwrap();
    (made.since, made.gate) = (Instant::now() + LONG, gate.into());
    let made = Rc::new(made);
    let each = std::iter::from_fn(|| made.arrive(Instant::now())).take(10_000);
    let permits: Vec<Permit> = each.collect();
    assert!(permits.len() < 10_000, "there is a limit");
    (made, permits)
}

/// Waits in line, for a time that is not over while a test runs.
async fn in_line(gate: &Rc<BackendGate>) -> Waiting {
    let mut waiting: Waiting = Box::pin(gate.clone().wait(Instant::now() + LONG, None));
    assert!(timeout(Duration::ZERO, &mut waiting).await.is_err(), "it has to wait");
    waiting
}

#[tokio::test]
async fn places_in_line_are_passed_on_by_those_who_leave() {
    let (gate, permits) = limited();
    let (first, second) = (in_line(&gate).await, in_line(&gate).await);
    permits.into_iter().for_each(Permit::failed);
    // Both have a place now; who goes away gives it back.
    assert_eq!((gate.flying.get(), gate.line.waiting.get()), (2, 0));
    drop(first);
    let permit = second.await.unwrap();
    assert_eq!(gate.flying.get(), 1);
    drop(permit);
    assert_eq!((gate.flying.get(), gate.line.waiting.get()), (0, 0));
}

#[tokio::test]
async fn those_who_left_are_passed_by() {
    let (gate, mut permits) = limited();
    let dead = || gate.line.places.borrow().len() - gate.line.waiting.get();
    // Who has waited for as long as one may goes on.
    let long_ago = Instant::now() - Duration::from_secs(60);
    permits.extend(gate.clone().wait(long_ago, None).await);
    assert_eq!((gate.line.waiting.get(), dead()), (0, 1));
    let (first, second) = (in_line(&gate).await, in_line(&gate).await);
    permits.pop().unwrap().failed();
    permits.pop().unwrap().failed();
    assert_eq!((gate.line.waiting.get(), dead()), (1, 0));
    let permit = first.await.unwrap();
    // A deadline ends it: from now on the newest goes first that is there.
    let late = Instant::now() + LONG;
    assert!(gate.clone().wait(late, Some(late)).await.is_none());
    let third = in_line(&gate).await;
    drop(in_line(&gate).await);
    assert_eq!((gate.line.waiting.get(), dead()), (2, 2));
    permit.failed();
    let permit = third.await.unwrap();
    assert_eq!((gate.line.waiting.get(), dead()), (1, 1));
    permit.failed();
    second.await.unwrap().failed();
    drop(permits);
    assert_eq!((gate.flying.get(), gate.line.waiting.get()), (0, 0));
}

#[tokio::test]
async fn when_the_gate_opens_it_does_so_for_those_in_line_too() {
    let (gate, permits) = limited();
    let (first, second) = (in_line(&gate).await, in_line(&gate).await);
    // Nothing was heard for so long that what was known is worth nothing any more.
    let permit = gate.arrive(Instant::now() + 2 * LONG).expect("it opens");
    assert_eq!(gate.line.waiting.get(), 0, "nobody waits behind an open gate");
    let woken = timeout(LONG, async { (first.await.unwrap(), second.await.unwrap()) });
    drop((woken.await.unwrap(), permit, permits));
    assert_eq!((gate.flying.get(), gate.line.waiting.get()), (0, 0));
}

#[tokio::test]
async fn to_leave_costs_little_however_long_the_line_is() {
    let (gate, permits) = limited();
    let mut all = Vec::new();
    for _ in 0..4_096 {
        all.push(in_line(&gate).await);
    }
    let series = gate.seen.cells.gate(&"user:80".into());
    assert_eq!((series.waiting.get(), series.held.get()), (4_096, 4_096));
    drop(all);
    assert_eq!((gate.line.waiting.get(), series.waiting.get()), (0, 0));
    assert!(gate.line.places.borrow().len() <= LEFT_MIN);
    let swept = gate.line.swept.get();
    assert!(swept <= 4 * 4_096, "{swept} places were looked at");
    drop(permits);
}
