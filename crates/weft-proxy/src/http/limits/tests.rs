// SPDX-License-Identifier: Apache-2.0
//! Counts of many clients and many threads.

use super::*;
use crate::table::Door;

const SECOND: u64 = 1_000_000_000;

fn limit(requests: u32, by: Vec<LimitBy>, keys_max: u32) -> Arc<RateLimit> {
    let name = "TrafficPolicy shop/a spec.rateLimits[0]".into();
    Arc::new(RateLimit { name, requests, per_ms: 1_000, burst: 0, by, keys_max })
}

fn conn(client: &str) -> Conn {
    let here = "127.0.0.1:80".parse().unwrap();
    Conn::new(Door::Forward, here, format!("{client}:999").parse().unwrap())
}

#[test]
fn clients_are_told_apart_by_all_that_is_named() {
    let by = vec![LimitBy::Client, LimitBy::Header("x-user".into())];
    let bucket = Bucket::new(limit(2, by, 0));
    let user = |name: &'static str| {
        HeaderMap::from_iter([(HeaderName::from_static("x-user"), HeaderValue::from_static(name))])
    };
    let take = |client: &str, headers: &HeaderMap| {
        bucket.take_for(bucket.key(&conn(client), headers), SECOND).is_ok()
    };
    for (client, headers) in [
        ("10.0.0.1", user("a")),
        ("10.0.0.2", user("a")),
        ("10.0.0.1", user("b")),
        ("10.0.0.1", HeaderMap::new()),
    ] {
        let taken: Vec<bool> = (0..3).map(|_| take(client, &headers)).collect();
        assert_eq!(taken, [true, true, false], "{client} {headers:?}");
    }
}

#[test]
fn a_full_table_counts_the_rest_together_and_forgets_who_is_quiet() {
    let bucket = Bucket::new(limit(1, vec![LimitBy::Client], 16));
    let granted = (1..=1_000).filter(|key| bucket.take_for(*key, SECOND).is_ok()).count();
    assert!((9..=17).contains(&granted), "{granted}: sixteen places and one for all others");
    let size = bucket.places.get().unwrap().len();
    // A second later everybody's count has run out, and with it the right to a place.
    let later = (2_001..=2_008).filter(|key| bucket.take_for(*key, 3 * SECOND).is_ok()).count();
    assert_eq!((later, size), (8, 16));
}

#[test]
fn threads_together_get_what_the_limit_says() {
    for (burst, most) in [(10_000, 10_000 + 10_000 / 8), (31, 31)] {
        let bucket = Arc::new(Bucket::new(limit(burst, vec![], 0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let bucket = bucket.clone();
                std::thread::spawn(move || {
                    let leased = Leased { bucket, left: Cell::new(0) };
                    let (conn, none) = (conn("10.0.0.1"), HeaderMap::new());
                    (0..20_000).filter(|_| leased.take(&conn, &none, 4, SECOND).is_ok()).count()
                })
            })
            .collect();
        let all: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(all, burst as usize, "all is given out, and no more than {most}");
    }
}

#[test]
fn what_a_client_is_told() {
    let mut headers = HeaderMap::new();
    Quota::of(&limit(10, vec![], 0), SECOND + 1).tell(&mut headers);
    assert_eq!(headers["retry-after"], "2");
    assert_eq!(headers["ratelimit-policy"], "\"weft\";q=10;w=1");
    assert_eq!(headers["ratelimit"], "\"weft\";r=0;t=2");
}

#[test]
fn a_changed_limit_begins_anew_and_an_equal_one_goes_on() {
    let (all, own) = (Buckets::default(), LocalBuckets::default());
    let (conn, none) = (conn("10.0.0.1"), HeaderMap::new());
    let take = |l: Arc<RateLimit>| own.of(&l, &all).take(&conn, &none, 1, SECOND).is_ok();
    assert!(take(limit(1, vec![], 0)) && !take(limit(1, vec![], 0)), "tables change, counts stay");
    assert!(take(limit(2, vec![], 0)));
}
