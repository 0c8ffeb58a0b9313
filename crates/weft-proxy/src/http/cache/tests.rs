// SPDX-License-Identifier: Apache-2.0
//! What an answer is stored under, and what a reference means.

use super::fetch::same_origin;
use super::*;

fn stored_under(scheme: &str, authority: &str, path: &str) -> String {
    let authority = Authority::parse(authority).unwrap();
    url(scheme, &authority, &path.parse().unwrap()).to_string()
}

#[test]
fn urls_are_as_the_origin_is_asked() {
    for (scheme, authority, path, want) in [
        ("http", "a.example", "/x?y", "http://a.example/x?y"),
        ("http", "A.Example:80", "/", "http://a.example/"),
        ("https", "a.example:443", "/", "https://a.example/"),
        ("https", "a.example:80", "/", "https://a.example:80/"),
        ("http", "a.example:1337", "/", "http://a.example:1337/"),
        ("http", "[::1]:8080", "/", "http://[::1]:8080/"),
        ("http", "a.example", "http://b.example/x", "http://a.example/x"),
        ("http", "a.example", "/%41%2f?%20", "http://a.example/%41%2f?%20"),
    ] {
        assert_eq!(stored_under(scheme, authority, path), want);
    }
}

#[test]
fn references_count_within_their_origin() {
    let at = "http://a.example:8080/x?y";
    for (reference, want) in [
        ("/other?z", Some("http://a.example:8080/other?z")),
        ("http://a.example:8080/other#part", Some("http://a.example:8080/other")),
        ("HTTP://A.example:8080/other", Some("http://a.example:8080/other")),
        ("http://a.example/other", None),
        ("https://a.example:8080/other", None),
        ("//a.example:8080/other", None),
        ("other", None),
        ("", None),
        ("http://", None),
        ("/ space", None),
    ] {
        assert_eq!(same_origin(at, reference).as_deref(), want, "{reference}");
    }
}

#[test]
fn claims_are_all_that_proxies_say_of_the_way_but_for_the_client() {
    let headers = [
        ("x-url-scheme", "https"),
        ("accept", "*/*"),
        ("x-forwarded-user", "ann"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-ssl", "on"),
        ("front-end-https", "on"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded", "for=x"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
    .collect::<HeaderMap>();
    let names: Vec<&str> = claims(&headers).into_iter().map(|(name, _)| name).collect();
    let want = [
        "front-end-https",
        "x-forwarded",
        "x-forwarded-proto",
        "x-forwarded-ssl",
        "x-forwarded-user",
        "x-url-scheme",
    ];
    assert_eq!(names, want);
}
