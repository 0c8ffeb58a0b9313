// SPDX-License-Identifier: Apache-2.0
//! The store by itself: bounds, one fetch at a time, changes that overtake fetches.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use weft_model::Cache;

use super::super::object::{Exchange, storable};
use super::*;

fn object(lane: &str, vary: Option<&str>, bytes: usize) -> Arc<Object> {
    made(lane, vary, bytes, Exchange { asked: Mono(0), came: Mono(0), wall_ms: 0 })
}

fn made(lane: &str, vary: Option<&str>, bytes: usize, exchange: Exchange) -> Arc<Object> {
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static("cache-control"),
        HeaderValue::from_static("max-age=60"),
    )]);
    let (status, none) = (StatusCode::OK, HeaderMap::new());
    let (said, times) = storable(&none, status, &headers, &Cache::default(), exchange).unwrap();
    let vary = vary.map(|v| (HeaderName::from_static("a"), Some(v.into())));
    let (body, vary, lane) = (vec![0; bytes].into(), vary.into_iter().collect(), lane.into());
    let _: &Bytes = &body;
    Arc::new(Object { status, headers, body, said, times, vary, lane })
}

fn asking(value: Option<&'static str>) -> HeaderMap {
    let name = HeaderName::from_static("a");
    value.map(|v| (name, HeaderValue::from_static(v))).into_iter().collect()
}

fn put(store: &Arc<Store>, url: &str, object: Arc<Object>) -> bool {
    let ticket = store.ticket(&url.into());
    store.put(&ticket, object)
}

fn has(store: &Store, url: &str, lane: &str, value: Option<&'static str>) -> bool {
    matches!(store.find(url, lane, &asking(value)), Found::Object(_))
}

#[test]
fn it_never_holds_more_than_it_may() {
    let store = Arc::new(Store::new(1 << 20));
    for n in 0..5_000 {
        assert!(put(&store, &format!("http://a/{n}"), object("l", None, 10_000)));
        // One that everybody wants.
        if n == 0 {
            continue;
        }
        assert!(has(&store, "http://a/0", "l", None), "gone after {n}");
        assert!(store.bytes() <= 1 << 20);
    }
    assert!((90..105).contains(&store.objects()), "{}", store.objects());
    assert!(!put(&store, "http://a/large", object("l", None, 2 << 20)));
    assert_eq!(
        store.purge("http://a/"),
        store.counts.stored.load(Ordering::Relaxed) as usize
            - store.counts.evicted.load(Ordering::Relaxed) as usize
    );
    assert_eq!((store.bytes(), store.objects()), (0, 0));
    assert!(store.shards.iter().all(|s| s.lock().unwrap().urls.is_empty()), "nothing is left");
}

#[test]
fn answers_of_one_url_are_kept_apart_and_bounded() {
    let store = Arc::new(Store::new(1 << 20));
    put(&store, "u", object("one", Some("1"), 1));
    put(&store, "u", object("one", Some("2"), 1));
    put(&store, "u", object("two", None, 1));
    assert!(has(&store, "u", "one", Some("1")) && has(&store, "u", "one", Some("2")));
    assert!(!has(&store, "u", "one", None) && has(&store, "u", "two", Some("9")));
    assert!(matches!(store.find("u", "three", &asking(None)), Found::Nothing { others: true }));
    assert!(matches!(store.find("v", "one", &asking(None)), Found::Nothing { others: false }));
    // The same again takes the place of what it follows.
    let bytes = store.bytes();
    put(&store, "u", object("two", None, 1));
    assert_eq!((store.objects(), store.bytes()), (3, bytes));
    for n in 0..100 {
        put(&store, "u", object(&format!("lane {n}"), None, 1));
    }
    assert_eq!(store.objects(), VARIANTS_MAX);
    assert_eq!(store.invalidate("u"), VARIANTS_MAX);
    assert_eq!(store.bytes(), 0);
}

#[test]
fn a_change_overtakes_the_fetches_under_way() {
    let store = Arc::new(Store::new(1 << 20));
    let url: Arc<str> = "http://a/x".into();
    let (before, other) = (store.ticket(&url), store.ticket(&"http://a/y".into()));
    assert_eq!(store.invalidate(&url), 0);
    let after = store.ticket(&url);
    assert!(!store.put(&before, object("l", None, 1)), "it was fetched before the change");
    assert!(store.put(&after, object("l", None, 1)) && store.put(&other, object("l", None, 1)));
    let old = store.ticket(&url);
    assert_eq!(store.purge("http://a/"), 2);
    assert!(!store.put(&old, object("l", None, 1)));
    drop((before, after, old, other));
    assert!(store.shards.iter().all(|s| s.lock().unwrap().urls.is_empty()));
}

#[test]
fn one_fetches_and_the_others_wait_until_it_is_over() {
    let store = Arc::new(Store::new(1 << 20));
    let url: Arc<str> = "u".into();
    let turn = |lane, value| store.turn(&url, lane, &asking(value), Mono(0));
    let Turn::Lead(lead) = turn("l", None) else { panic!() };
    let Turn::Wait(flight) = turn("l", None) else { panic!() };
    assert!(!flight.is_cancelled());
    assert!(matches!(turn("other lane", None), Turn::Lead(_)));
    drop(lead);
    assert!(flight.is_cancelled());
    // Once it is known what answers vary by, only the same wait for each other.
    put(&store, "u", object("l", Some("1"), 1));
    let Turn::Lead(_second) = turn("l", Some("2")) else { panic!() };
    assert!(matches!(turn("l", Some("2")), Turn::Wait(_)));
    let Turn::Lead(third) = turn("l", Some("3")) else { panic!() };
    store.pass(&url, "l", Mono(0), 1_000);
    assert!(matches!(turn("l", Some("2")), Turn::Alone), "it cannot be stored");
    let Turn::Lead(_theirs) = turn("a claim", None) else { panic!("what others claim is theirs") };
    assert!(matches!(store.turn(&url, "l", &asking(None), Mono(1_000)), Turn::Lead(_)));
    drop(third);
}

#[test]
fn what_was_long_under_way_does_not_replace_what_is_newer() {
    let store = Arc::new(Store::new(1 << 20));
    let url: Arc<str> = "http://a/x".into();
    let at = |ms| Exchange { asked: Mono(ms), came: Mono(ms), wall_ms: 1_800_000_000_000 + ms };
    let bytes = || match store.find(&url, "l", &asking(None)) {
        Found::Object(object) => object.body.len(),
        Found::Nothing { .. } => 0,
    };
    // The head of the slow one came first, and its last byte comes last.
    let (slow, quick) = (store.ticket(&url), store.ticket(&url));
    let old = made("l", None, 1, at(5_000));
    assert!(store.put(&quick, made("l", None, 2, at(5_500))));
    assert!(!store.put(&slow, old.clone()) && bytes() == 2);
    let held = store.bytes();
    assert!(!store.put(&slow, old) && store.bytes() == held && store.objects() == 1);
    assert!(store.put(&slow, made("l", None, 3, at(5_500))) && bytes() == 3, "as new as it");
    assert!(store.put(&slow, made("l", None, 4, at(9_000))) && bytes() == 4);
}

#[test]
fn a_quarter_goes_when_memory_is_short() {
    let store = Arc::new(Store::new(1 << 20));
    for n in 0..40 {
        put(&store, &format!("http://a/{n}"), object("l", None, 10_000));
    }
    let before = store.bytes();
    store.shed();
    assert!((before / 2..=before / 4 * 3).contains(&store.bytes()), "{}", store.bytes());
    (0..50).for_each(|_| store.shed());
    assert_eq!((store.bytes(), store.objects()), (0, 0));
}

#[test]
fn places_are_bounded_and_come_back() {
    let store = Arc::new(Store::new(1_000));
    let places: Vec<_> = (0..REFRESHING_MAX).map(|_| store.place_to_refresh().unwrap()).collect();
    assert!(store.place_to_refresh().is_none());
    drop(places);
    assert!(store.place_to_refresh().is_some());
}

#[test]
fn urls_that_cannot_be_stored_leave_nothing_but_a_hash() {
    let store = Arc::new(Store::new(1 << 20));
    for n in 0..100_000 {
        store.pass(&format!("http://a/{n}").into(), "l", Mono(n / 100), 1_000);
    }
    assert!(store.shards.iter().all(|s| s.lock().unwrap().urls.is_empty()));
    let last: Arc<str> = "http://a/99999".into();
    assert!(matches!(store.turn(&last, "l", &asking(None), Mono(1_000)), Turn::Alone));
    // What can be stored after all is waited for again.
    put(&store, &last, object("l", None, 1));
    assert!(matches!(store.turn(&last, "l", &asking(None), Mono(1_000)), Turn::Lead(_)));
}
