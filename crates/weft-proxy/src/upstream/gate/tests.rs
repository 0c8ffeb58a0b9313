// SPDX-License-Identifier: Apache-2.0
//! The gate with real waiting, before a server of twenty places that does not hear that clients go
//! away. How much it answers is shown by the model's tests and by drill F12.

use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::*;

const SERVICE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Bench {
    gate: Rc<BackendGate>,
    places: Rc<Semaphore>,
    good: Cell<u32>,
    left: Cell<u32>,
}

fn bench() -> Rc<Bench> {
    let gate = BackendGate::new(1);
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
        assert_eq!((bench.gate.flying.get(), bench.gate.line.borrow().len()), (0, 0));
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test]
async fn places_in_line_are_passed_on_by_those_who_leave() {
    let all = async {
        let bench = bench();
        let began = Instant::now();
        while bench.gate.gate.borrow().is_open() {
            assert!(began.elapsed().as_secs() < 60, "there is no limit");
            load(&bench, 3_000, 1, Duration::from_secs(600)).await;
        }
        let permits: Vec<Permit> =
            std::iter::from_fn(|| bench.gate.arrive(Instant::now())).take(10_000).collect();
        assert!(permits.len() < 10_000, "there is a limit");
        let wait = || Box::pin(bench.gate.clone().wait(Instant::now(), None));
        let (mut first, mut second) = (wait(), wait());
        assert!(timeout(SERVICE, &mut first).await.is_err());
        assert!(timeout(SERVICE, &mut second).await.is_err());
        permits.into_iter().for_each(Permit::failed);
        // Both have a place now; who goes away gives it back.
        assert_eq!(bench.gate.flying.get(), 2);
        drop(first);
        let permit = second.await.unwrap();
        assert_eq!(bench.gate.flying.get(), 1);
        drop(permit);
        assert_eq!((bench.gate.flying.get(), bench.gate.line.borrow().len()), (0, 0));
        // A deadline ends it.
        let permits: Vec<Permit> =
            std::iter::from_fn(|| bench.gate.arrive(Instant::now())).take(10_000).collect();
        let soon = Instant::now() + SERVICE;
        assert!(bench.gate.clone().wait(Instant::now(), Some(soon)).await.is_none());
        drop(permits);
    };
    LocalSet::new().run_until(all).await;
}
