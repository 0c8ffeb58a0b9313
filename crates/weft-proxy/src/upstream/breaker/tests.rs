// SPDX-License-Identifier: Apache-2.0
//! The line of those that wait for a connection, and the count of retries.

use std::cell::RefCell;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// From now on.
fn within(patience: Duration) -> (Instant, Duration) {
    (Instant::now() + patience, patience)
}

fn limits(pending_max: u32) -> Limits {
    Limits { connections_max: Some(1), pending_max: Some(pending_max), ..Limits::default() }
}

fn breaker() -> Rc<Breaker> {
    Breaker::new(Some(Quotas::new(1)), 0)
}

fn found(full: bool) -> Found<()> {
    if full { Found::Nothing } else { Found::Room(()) }
}

#[tokio::test]
async fn a_line_is_bounded_in_order_and_in_time() {
    let breaker = breaker();
    let room = Cell::new(0);
    let served = RefCell::new(Vec::new());
    let one = |name: u32, patience: Duration| {
        let (room, served, breaker) = (&room, &served, breaker.clone());
        async move {
            breaker.wait(&limits(2), within(patience), || found(room.get() == 0), || {}).await?;
            room.set(room.get() - 1);
            served.borrow_mut().push(name);
            Ok::<_, String>(())
        }
    };
    let open = async {
        for _ in 0..2 {
            tokio::task::yield_now().await;
            room.set(room.get() + 1);
            breaker.freed();
        }
    };
    let (first, second, third, ()) = tokio::join!(one(1, LONG), one(2, LONG), one(3, LONG), open);
    assert_eq!((first, second), (Ok(()), Ok(())));
    assert!(third.unwrap_err().contains("2 requests wait, its limit"));
    assert_eq!(*served.borrow(), [1, 2]);
    let short = Duration::from_millis(1);
    assert!(one(4, short).await.unwrap_err().contains("became free within 1 ms"));
    // The line is empty again.
    room.set(1);
    assert_eq!(one(5, short).await, Ok(()));
}

type Waiting<'a> = LocalBoxFuture<'a, Result<(), String>>;

/// A line of requests for two endpoints; who looks is noted.
struct Line<'a> {
    breaker: Rc<Breaker>,
    room: [Cell<u32>; 2],
    looks: RefCell<Vec<usize>>,
    waiting: RefCell<Vec<Option<Waiting<'a>>>>,
}

impl<'a> Line<'a> {
    /// One request for each of `endpoints`, all of which find no room.
    fn of(endpoints: &[usize]) -> &'a Self {
        let line: &'a Self = Box::leak(Box::new(Self {
            breaker: breaker(),
            room: Default::default(),
            looks: RefCell::default(),
            waiting: RefCell::default(),
        }));
        for (name, endpoint) in endpoints.iter().copied().enumerate() {
            let one = async move {
                let look = || {
                    line.looks.borrow_mut().push(name);
                    found(line.room[endpoint].get() == 0)
                };
                line.breaker.wait(&limits(1_000), within(LONG), look, || {}).await?;
                line.room[endpoint].set(line.room[endpoint].get() - 1);
                Ok(())
            };
            line.waiting.borrow_mut().push(Some(one.boxed_local()));
        }
        assert!(line.woken().is_empty(), "nothing is free yet");
        line
    }

    /// Lets those that were told look until nobody is left to; gives back who was served.
    fn woken(&self) -> Vec<usize> {
        let mut served = Vec::new();
        for _ in 0..2 {
            for (name, slot) in self.waiting.borrow_mut().iter_mut().enumerate() {
                if slot.as_mut().is_some_and(|one| one.now_or_never().is_some()) {
                    served.push(name);
                    *slot = None;
                }
            }
        }
        served
    }

    fn free(&self, endpoint: usize) {
        self.room[endpoint].set(self.room[endpoint].get() + 1);
        self.breaker.freed();
    }

    fn looked(&self) -> Vec<usize> {
        std::mem::take(&mut self.looks.borrow_mut())
    }
}

#[tokio::test]
async fn what_becomes_free_wakes_one_that_can_use_it() {
    let line = Line::of(&[0; 50]);
    line.looked();
    line.free(0);
    assert_eq!((line.woken(), line.looked()), (vec![0], vec![0]), "nobody else is woken");
    // Two at once, of which the first is taken by one that goes away.
    line.free(0);
    line.free(0);
    line.waiting.borrow_mut()[1] = None;
    assert_eq!((line.woken(), line.looked()), (vec![2, 3], vec![2, 3]));
    // Who cannot use it passes it on and keeps its place.
    let line = Line::of(&[0, 0, 1, 0]);
    line.looked();
    line.free(1);
    assert_eq!((line.woken(), line.looked()), (vec![2], vec![0, 1, 2]));
    line.free(0);
    assert_eq!((line.woken(), line.looked()), (vec![0], vec![0]));
    line.room[0].set(2);
    line.breaker.opened();
    assert_eq!(line.woken(), [1, 3]);
}

#[tokio::test]
async fn nobody_passes_those_that_were_told() {
    let line = Line::of(&[0]);
    line.free(0);
    let limits = limits(9);
    let look = || found(line.room[0].get() == 0);
    let late = line.breaker.wait(&limits, within(LONG), look, || {});
    let mut late = std::pin::pin!(late);
    assert!(late.as_mut().now_or_never().is_none());
    assert_eq!(line.woken(), [0]);
    line.free(0);
    assert_eq!(late.now_or_never(), Some(Ok(())));
}

#[tokio::test]
async fn a_grant_that_is_not_used_is_for_who_waits() {
    let breaker = breaker();
    let limits = limits(2);
    let look = || breaker.connect(1).map_or(Found::Nothing, Found::Room);
    let held = breaker.wait(&limits, within(LONG), look, || {}).await.unwrap();
    let (mut first, mut second) = (
        Box::pin(breaker.wait(&limits, within(LONG), look, || {})),
        Box::pin(breaker.wait(&limits, within(LONG), look, || {})),
    );
    assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
    // Whoever had it joined another's, or went away.
    let grant = Grant::of(breaker.clone(), 1, Some(held));
    grant.release();
    let given = first.now_or_never().expect("it was told").unwrap();
    drop(Grant::of(breaker.clone(), 1, Some(given)));
    assert!(second.now_or_never().expect("it was told").is_ok());
}

#[test]
fn retries_and_requests_in_flight_are_bounded() {
    let breaker = breaker();
    let limits = Limits { retries_max: Some(1), requests_max: Some(2), ..Limits::default() };
    let first = breaker.retry(&limits).unwrap();
    assert!(breaker.retry(&limits).unwrap_err().contains("1 retries are in flight"));
    drop(first);
    assert!(breaker.retry(&limits).is_ok());
    let two = [breaker.request(&limits).unwrap(), breaker.request(&limits).unwrap()];
    assert!(breaker.request(&limits).unwrap_err().contains("2 requests are in flight"));
    drop(two);
    assert!(breaker.request(&limits).is_ok());
}

#[tokio::test]
async fn a_line_is_one_of_the_whole_proxy_and_any_worker_is_given_a_turn() {
    let quotas = Quotas::new(2);
    let [one, two] = [0, 1].map(|worker| Breaker::new(Some(quotas.clone()), worker));
    let limits = limits(1);
    let look = |breaker: &Rc<Breaker>| match breaker.connect(1) {
        Some(taken) => Found::Room(taken),
        None => Found::Nothing,
    };
    let held = one.wait(&limits, within(LONG), || look(&one), || {}).await.unwrap();
    let asked = Cell::new(0);
    let ask = || asked.set(asked.get() + 1);
    let mut waiting = Box::pin(two.wait(&limits, within(LONG), || look(&two), ask));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(asked.get(), 1, "who has some is asked for what is idle");
    assert!(one.owes_idle() && held.is_owed());
    // The line has a place for one, wherever that waits.
    let refused = one.wait(&limits, within(LONG), || look(&one), || {}).await.unwrap_err();
    assert!(refused.contains("1 requests wait, its limit"), "{refused}");
    drop(held);
    assert!(one.connect(1).is_none(), "it is not for whoever comes first");
    let given = waiting.await.unwrap();
    assert!(!one.owes_idle());
    drop(given);
    assert!(one.connect(1).is_some());
}
