// SPDX-License-Identifier: Apache-2.0
//! Copies that are given up: by what passes, by clients that do not read, by others that need room.

use std::convert::Infallible;
use std::time::Duration;

use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue};
use weft_base::clock::ManualClock;
use weft_model::Cache;

use super::super::object::{Exchange, storable};
use super::super::store::{Found, Store, Turn};
use super::*;

/// Bytes that all copies under way may have.
const ROOM: u64 = 100_000;

struct Bed {
    store: Arc<Store>,
    clock: Clock,
    hand: Arc<ManualClock>,
}

fn bed() -> Bed {
    let (clock, hand) = Clock::manual();
    Bed { store: Arc::new(Store::new(ROOM * 4)), clock, hand }
}

fn object() -> Object {
    let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static("max-age=60"))]);
    let exchange = Exchange { asked: Mono(0), came: Mono(0), wall_ms: 0 };
    let (status, none) = (StatusCode::OK, HeaderMap::new());
    let (said, times) = storable(&none, status, &headers, &Cache::default(), exchange).unwrap();
    let (body, vary, lane) = (Bytes::new(), Vec::new(), "l".into());
    Object { status, headers, body, said, times, vary, lane }
}

fn data(bytes: usize) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(vec![0; bytes].into()))
}

impl Bed {
    fn turn(&self, url: &str) -> Turn {
        self.store.turn(&url.into(), "l", &HeaderMap::new(), self.clock.now())
    }

    /// A fetch that others wait for, of a body of at most that many bytes.
    fn fill(&self, url: &str, length: Option<u64>, bytes_max: u64) -> Fill {
        let Turn::Lead(lead) = self.turn(url) else { panic!("{url} has another lead") };
        let ticket = self.store.ticket(&url.into());
        Fill::new(object(), (length, bytes_max), ticket, Some(lead), self.clock.clone())
    }

    fn has(&self, url: &str) -> bool {
        matches!(self.store.find(url, "l", &HeaderMap::new()), Found::Object(_))
    }

    fn taken(&self) -> u64 {
        self.store.rooms.taken()
    }
}

#[test]
fn what_passed_whole_is_stored_and_its_room_comes_back() {
    let bed = bed();
    let mut fill = bed.fill("a", None, 1_000);
    fill.note(Some(&data(300)), false);
    fill.note(Some(&data(300)), false);
    assert!(matches!(bed.turn("a"), Turn::Wait(_)) && !bed.has("a"));
    fill.note(Some(&data(300)), true);
    assert!(bed.has("a") && matches!(bed.turn("a"), Turn::Lead(_)));
    drop(fill);
    assert_eq!(bed.taken(), 0);
}

#[test]
fn nobody_waits_for_what_turned_out_not_to_be_storable() {
    let trailers = Ok::<_, Infallible>(Frame::trailers(HeaderMap::new()));
    let bed = bed();
    // Without a length nobody knows beforehand.
    for (url, frame, ms) in [("large", data(600), PASS_MS), ("trailers", trailers, PASS_MS)] {
        let mut fill = bed.fill(url, None, 1_000);
        fill.note(Some(&data(600)), false);
        let Turn::Wait(flight) = bed.turn(url) else { panic!("{url}") };
        fill.note(Some(&frame), false);
        assert!(flight.is_cancelled() && matches!(bed.turn(url), Turn::Alone), "{url}");
        fill.note::<Infallible>(None, true);
        bed.hand.advance(Duration::from_millis(ms));
        assert!(!bed.has(url) && matches!(bed.turn(url), Turn::Lead(_)), "{url}");
    }
    let mut fill = bed.fill("no room", None, ROOM * 2);
    fill.note(Some(&data(ROOM as usize)), false);
    assert!(matches!(bed.turn("no room"), Turn::Alone));
    // One that broke off says nothing of the next.
    let mut fill = bed.fill("broken", None, 1_000);
    fill.note(Some(&Err("gone")), false);
    assert!(matches!(bed.turn("broken"), Turn::Lead(_)));
    drop(fill);
    assert_eq!(bed.taken(), 0);
}

#[test]
fn what_is_allocated_is_taken_as_it_comes() {
    let bed = bed();
    let mut fill = bed.fill("a", Some(ROOM), ROOM);
    fill.note(Some(&data(100)), false);
    assert!(bed.taken() < 2_000, "a length is no byte yet: {}", bed.taken());
    for _ in 0..50 {
        fill.note(Some(&data(100)), false);
        let copy = fill.slot.copy();
        assert!(bed.taken() >= copy.as_ref().unwrap().body.capacity() as u64);
    }
}

#[test]
fn copies_that_do_not_grow_make_room_for_those_that_do() {
    let bed = bed();
    let all = |n: usize| format!("slow {n}");
    let mut slow: Vec<Fill> = (0..9)
        .map(|n| {
            let mut fill = bed.fill(&all(n), None, ROOM);
            fill.note(Some(&data(10_000)), false);
            bed.hand.advance(Duration::from_millis(1));
            fill
        })
        .collect();
    // All are young: there is no room.
    let mut early = bed.fill("early", None, ROOM);
    early.note(Some(&data(20_000)), true);
    assert!(!bed.has("early"));
    bed.hand.advance(Duration::from_millis(SILENT_MS));
    let newest = slow.last_mut().unwrap();
    newest.note(Some(&data(10)), false);
    let mut quick = bed.fill("quick", None, ROOM);
    quick.note(Some(&data(20_000)), true);
    assert!(bed.has("quick"));
    for fill in &mut slow {
        fill.note(Some(&data(10)), true);
    }
    let kept: Vec<usize> = (0..9).filter(|n| bed.has(&all(*n))).collect();
    assert!((2..7).contains(&kept.len()), "enough went, not all: {kept:?}");
    assert!(kept.contains(&8) && !kept.contains(&0), "the oldest went first: {kept:?}");
    drop((slow, early, quick));
    assert_eq!(bed.taken(), 0);
}

#[tokio::test]
async fn who_does_not_read_is_not_waited_for() {
    let bed = bed();
    let pace = Duration::from_millis(SILENT_MS);
    let mut fill = bed.fill("a", None, 1_000);
    let mut watch = Box::pin(fill.watch().unwrap());
    // What its origin has not sent yet, all wait for.
    fill.awaits_origin();
    let Turn::Wait(flight) = bed.turn("a") else { panic!() };
    bed.hand.advance(pace * 3);
    assert!(tokio::time::timeout(pace * 3, watch.as_mut()).await.is_err());
    assert!(!flight.is_cancelled());
    fill.note(Some(&data(10)), false);
    bed.hand.advance(pace);
    watch.await;
    assert!(flight.is_cancelled() && matches!(bed.turn("a"), Turn::Lead(_)));
    // Once it reads on it is stored all the same.
    fill.note(Some(&data(10)), true);
    assert!(bed.has("a") && fill.watch().is_none());
}
