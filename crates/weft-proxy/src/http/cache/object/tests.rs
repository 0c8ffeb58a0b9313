// SPDX-License-Identifier: Apache-2.0
//! RFC 9111 as a table: what a cache has of one answer when a second request comes.

use http::header::HeaderName;

use super::*;

/// Seconds since the epoch at which every first answer comes.
const NOW: u64 = 1_800_000_000;

/// `@-60` is the HTTP-date of a minute ago.
fn headers(lines: &[&str]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        let value = match value.strip_prefix('@').and_then(|s| s.parse::<i64>().ok()) {
            Some(offset) => {
                let at = NOW.checked_add_signed(offset).unwrap();
                httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs(at))
            }
            None => value.to_owned(),
        };
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap();
        out.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    out
}

/// One line: `REQUEST > STATUS RESPONSE > SECONDS REQUEST`, headers parted by `|`.
fn outcome(script: &str, rule: &Cache) -> String {
    let parts: Vec<&str> = script.split(" > ").collect();
    let [first, answer, second] = parts.as_slice() else { panic!("{script}") };
    let split = |text: &str| -> HeaderMap {
        let lines: Vec<&str> = text.split('|').map(str::trim).filter(|l| !l.is_empty()).collect();
        headers(&lines)
    };
    let (status, answer) = answer.trim().split_at(3);
    let (later, second) = second.trim().split_once(' ').unwrap_or((second.trim(), ""));
    let asked = split(first);
    let answer = split(answer);
    let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
    let exchange = Exchange { asked: Mono(5_000), came: Mono(5_000), wall_ms: NOW * 1_000 };
    let made = storable(&asked, status, &answer, rule, exchange);
    let made = made.and_then(|made| Ok((made, varies(&answer, &asked)?, own_headers(&answer)?)));
    let ((said, times), vary, headers) = match made {
        Ok(made) => made,
        Err(why) => return format!("no: {why}"),
    };
    let object =
        Object { status, headers, body: Bytes::new(), said, times, vary, lane: "lane".into() };
    let second = split(second);
    if !object.is_for("lane", &second) {
        return "another".into();
    }
    let now = Mono(5_000 + later.parse::<u64>().unwrap() * 1_000);
    let asked = Directives::of_request(&second);
    let verdict = object.verdict(&asked, now);
    match verdict {
        Verdict::Validate if object.instead_of_error(&asked, now) => "validate, stale on error",
        Verdict::Validate => "validate",
        Verdict::Fresh => "fresh",
        Verdict::Stale => "stale",
        Verdict::Refresh => "refresh",
    }
    .into()
}

fn check(rule: &Cache, rows: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (section, script, want) in rows {
        let got = outcome(script, rule);
        if got != *want {
            wrong.push(format!("§{section} {script}: {got}, not {want}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_may_be_stored() {
    check(
        &Cache::default(),
        &[
            ("3", " > 200 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 200 Expires: @60 > 0", "fresh"),
            ("3", " > 200 Cache-Control: s-maxage=60 > 0", "fresh"),
            ("3", " > 200 ETag: \"a\" > 0", "no: says-no-time"),
            ("3", " > 200 > 0", "no: says-no-time"),
            ("3", " > 200 Last-Modified: @-999999 > 0", "no: says-no-time"),
            ("3", " > 200 Cache-Control: public > 0", "no: never-fresh"),
            ("3", " > 200 Cache-Control: public | ETag: \"a\" > 0", "validate"),
            ("3", " > 203 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 204 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 301 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 302 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 302 Expires: @60 > 0", "fresh"),
            ("3", " > 307 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 404 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 410 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 500 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 599 Cache-Control: max-age=60 > 0", "fresh"),
            ("3", " > 500 > 0", "no: says-no-time"),
            ("-", " > 400 Cache-Control: max-age=60 > 0", "no: client-error"),
            ("-", " > 416 Cache-Control: max-age=60 > 0", "no: client-error"),
            ("6585-4", " > 429 Cache-Control: max-age=60 > 0", "no: client-error"),
            ("6585-5", " > 431 Cache-Control: max-age=60 > 0", "no: client-error"),
            ("3.3", " > 206 Cache-Control: max-age=60 > 0", "no: status"),
            ("3.2", " > 304 Cache-Control: max-age=60 > 0", "no: status"),
            ("3", " > 101 Cache-Control: max-age=60 > 0", "no: status"),
            ("5.2.2.5", " > 200 Cache-Control: no-store > 0", "no: no-store"),
            ("5.2.2.5", " > 200 Cache-Control: no-store, max-age=60 > 0", "no: no-store"),
            (
                "5.2.2.5",
                " > 200 Cache-Control: max-age=60 | Cache-Control: No-Store > 0",
                "no: no-store",
            ),
            (
                "5.2.1.5",
                "Cache-Control: no-store > 200 Cache-Control: max-age=60 > 0",
                "no: no-store",
            ),
            ("5.2.2.7", " > 200 Cache-Control: private, max-age=60 > 0", "no: private"),
            ("5.2.2.7", " > 200 Cache-Control: private=\"x\", max-age=60 > 0", "no: private"),
            ("5.2.2.3", " > 200 Cache-Control: must-understand, no-store, max-age=60 > 0", "fresh"),
            (
                "5.2.2.3",
                " > 599 Cache-Control: must-understand, max-age=60 > 0",
                "no: status-not-understood",
            ),
            ("3.5", "Authorization: x > 200 Cache-Control: max-age=60 > 0", "no: authorization"),
            ("3.5", "Authorization: x > 200 Expires: @60 > 0", "no: authorization"),
            ("3.5", "Authorization: x > 200 Cache-Control: max-age=60, public > 0", "fresh"),
            ("3.5", "Authorization: x > 200 Cache-Control: s-maxage=60 > 0", "fresh"),
            (
                "3.5",
                "Authorization: x > 200 Cache-Control: max-age=60, must-revalidate > 0",
                "fresh",
            ),
            ("7.3", " > 200 Cache-Control: max-age=60 | Set-Cookie: a=b > 0", "no: set-cookie"),
            (
                "-",
                " > 200 Cache-Control: max-age=60 | Content-Type: application/grpc > 0",
                "no: not-of-the-origin",
            ),
            (
                "-",
                " > 200 Cache-Control: max-age=60 | X-Weft-Flags: UF > 0",
                "no: not-of-the-origin",
            ),
        ],
    );
    let cookies = Cache { set_cookie: true, ..Cache::default() };
    check(&cookies, &[("7.3", " > 200 Cache-Control: max-age=60 | Set-Cookie: a=b > 0", "fresh")]);
}

#[test]
fn how_long_it_is_fresh() {
    check(
        &Cache::default(),
        &[
            ("4.2", " > 200 Cache-Control: max-age=60 > 59", "fresh"),
            ("4.2", " > 200 Cache-Control: max-age=60 > 60", "validate"),
            ("4.2.1", " > 200 Cache-Control: max-age=9, s-maxage=60 > 30", "fresh"),
            ("4.2.1", " > 200 Cache-Control: max-age=60, s-maxage=9 > 30", "validate"),
            ("4.2.1", " > 200 Cache-Control: max-age=60 | Expires: @-60 > 30", "fresh"),
            (
                "4.2.1",
                " > 200 Cache-Control: max-age=0 | Expires: @60 | ETag: \"a\" > 0",
                "validate",
            ),
            ("4.2.1", " > 200 Cache-Control: max-age=9, max-age=60 | ETag: \"a\" > 0", "validate"),
            ("4.2.1", " > 200 Cache-Control: max-age=60, max-age=60 > 0", "fresh"),
            ("4.2.1", " > 200 Expires: @60 | Expires: @90 | ETag: \"a\" > 0", "validate"),
            ("5.3", " > 200 Expires: @60 | Date: @0 > 59", "fresh"),
            ("5.3", " > 200 Expires: @60 | Date: @0 > 60", "validate"),
            ("5.3", " > 200 Expires: @60 | Date: @30 > 29", "fresh"),
            ("5.3", " > 200 Expires: @60 | Date: @30 > 31", "validate"),
            ("5.3", " > 200 Expires: @-60 | ETag: \"a\" > 0", "validate"),
            ("5.3", " > 200 Expires: 0 | ETag: \"a\" > 0", "validate"),
            ("5.3", " > 200 Expires: 0 > 0", "no: never-fresh"),
            ("5.3", " > 200 Expires: Thu, 18 Aug 2050 02:01:18 GMT > 0", "fresh"),
            ("5.3", " > 200 Expires: Thursday, 18-Aug-50 02:01:18 GMT > 0", "fresh"),
            ("5.3", " > 200 Expires: Mon Aug  8 02:01:18 2050 > 0", "fresh"),
            ("5.3", " > 200 Expires: 2050-08-18 | ETag: \"a\" > 0", "validate"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: 50 > 9", "fresh"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: 50 > 10", "validate"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: 50 | Age: 0 > 10", "validate"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: 0, 50 > 20", "fresh"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: x > 20", "fresh"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: -50 > 20", "fresh"),
            ("5.1", " > 200 Cache-Control: max-age=60 | Age: 99999999999999999999 > 0", "validate"),
            ("4.2.3", " > 200 Cache-Control: max-age=60 | Date: @-50 > 9", "fresh"),
            ("4.2.3", " > 200 Cache-Control: max-age=60 | Date: @-50 > 10", "validate"),
            ("4.2.3", " > 200 Cache-Control: max-age=60 | Date: @-50 | Age: 55 > 5", "validate"),
            ("4.2.3", " > 200 Cache-Control: max-age=60 | Date: @5000 > 59", "fresh"),
            ("1.2.2", " > 200 Cache-Control: max-age=99999999999999999999 > 99999999", "fresh"),
            ("4.2.1", " > 200 Cache-Control: max-age=1.5 | ETag: \"a\" > 0", "validate"),
            ("4.2.1", " > 200 Cache-Control: max-age='60' | ETag: \"a\" > 0", "validate"),
            ("5.2", " > 200 Cache-Control: max-age=\"60\" > 0", "fresh"),
            ("5.2", " > 200 cache-control: MaX-aGe=60 > 0", "fresh"),
            ("5.2.3", " > 200 Cache-Control: foobar=99, max-age=60 > 0", "fresh"),
        ],
    );
    let ten = Cache { heuristic_ms_max: 100_000, ..Cache::default() };
    check(
        &ten,
        &[
            ("4.2.2", " > 200 Last-Modified: @-600 > 59", "fresh"),
            ("4.2.2", " > 200 Last-Modified: @-600 > 60", "validate"),
            ("4.2.2", " > 200 Last-Modified: @-999999 > 99", "fresh"),
            ("4.2.2", " > 200 Last-Modified: @-999999 > 100", "validate"),
            ("4.2.2", " > 404 Last-Modified: @-600 > 0", "fresh"),
            ("4.2.2", " > 500 Last-Modified: @-600 > 0", "no: says-no-time"),
            ("4.2.2", " > 302 Last-Modified: @-600 > 0", "no: says-no-time"),
            ("4.2.2", " > 302 Last-Modified: @-600 | Cache-Control: public > 0", "fresh"),
            ("4.2.2", " > 200 Last-Modified: @600 > 0", "no: says-no-time"),
            ("4.2.2", " > 200 Last-Modified: @-600 | Expires: @-1 > 0", "validate"),
        ],
    );
}

#[test]
fn what_a_request_may_ask_for() {
    check(
        &Cache::default(),
        &[
            ("5.2.1.4", " > 200 Cache-Control: max-age=60 > 0 Cache-Control: no-cache", "validate"),
            ("5.4", " > 200 Cache-Control: max-age=60 > 0 Pragma: no-cache", "validate"),
            (
                "5.4",
                " > 200 Cache-Control: max-age=60 > 0 Pragma: no-cache | Cache-Control: x",
                "fresh",
            ),
            ("5.2.1.1", " > 200 Cache-Control: max-age=60 > 9 Cache-Control: max-age=9", "fresh"),
            (
                "5.2.1.1",
                " > 200 Cache-Control: max-age=60 > 9 Cache-Control: max-age=8",
                "validate",
            ),
            (
                "5.2.1.1",
                " > 200 Cache-Control: max-age=60 > 1 Cache-Control: max-age=0",
                "validate",
            ),
            (
                "5.2.1.1",
                " > 200 Cache-Control: max-age=60 > 1 Cache-Control: max-age=x",
                "validate",
            ),
            (
                "5.2.1.3",
                " > 200 Cache-Control: max-age=60 > 50 Cache-Control: min-fresh=10",
                "fresh",
            ),
            (
                "5.2.1.3",
                " > 200 Cache-Control: max-age=60 > 51 Cache-Control: min-fresh=10",
                "validate",
            ),
            (
                "5.2.1.2",
                " > 200 Cache-Control: max-age=60 > 70 Cache-Control: max-stale=10",
                "stale",
            ),
            (
                "5.2.1.2",
                " > 200 Cache-Control: max-age=60 > 71 Cache-Control: max-stale=10",
                "validate",
            ),
            (
                "5.2.1.2",
                " > 200 Cache-Control: max-age=60 > 9999 Cache-Control: max-stale",
                "stale",
            ),
            (
                "5.2.1.2",
                " > 200 Cache-Control: max-age=60 > 99 Cache-Control: max-stale, max-age=80",
                "validate, stale on error",
            ),
        ],
    );
}

#[test]
fn what_is_never_given_stale() {
    check(
        &Cache::default(),
        &[
            ("5.2.2.4", " > 200 Cache-Control: no-cache, max-age=60 | ETag: \"a\" > 0", "validate"),
            (
                "5.2.2.4",
                " > 200 Cache-Control: no-cache=\"a\", max-age=60 | ETag: \"a\" > 0",
                "validate",
            ),
            ("5.2.2.4", " > 200 Cache-Control: no-cache > 0", "no: never-fresh"),
            ("5.2.2.2", " > 200 Cache-Control: max-age=60, must-revalidate > 59", "fresh"),
            (
                "5.2.2.2",
                " > 200 Cache-Control: max-age=60, must-revalidate > 61 \
            Cache-Control: max-stale",
                "validate",
            ),
            (
                "5.2.2.8",
                " > 200 Cache-Control: max-age=60, proxy-revalidate > 61 \
            Cache-Control: max-stale",
                "validate",
            ),
            (
                "5.2.2.10",
                " > 200 Cache-Control: s-maxage=60 > 61 Cache-Control: max-stale",
                "validate",
            ),
            ("5861-3", " > 200 Cache-Control: max-age=60, stale-while-revalidate=30 > 59", "fresh"),
            (
                "5861-3",
                " > 200 Cache-Control: max-age=60, stale-while-revalidate=30 > 90",
                "refresh",
            ),
            (
                "5861-3",
                " > 200 Cache-Control: max-age=60, stale-while-revalidate=30 > 91",
                "validate",
            ),
            (
                "5861-3",
                " > 200 Cache-Control: max-age=60, stale-while-revalidate=30 > 70 \
            Cache-Control: max-age=600",
                "validate",
            ),
            (
                "5861-3",
                " > 200 Cache-Control: max-age=60, stale-while-revalidate=30, \
            must-revalidate > 70",
                "validate",
            ),
            (
                "4.2.4",
                " > 200 Cache-Control: s-maxage=60, stale-while-revalidate=30 > 70",
                "validate",
            ),
            (
                "5861-4",
                " > 200 Cache-Control: max-age=60, stale-if-error=30 > 90",
                "validate, stale on error",
            ),
            ("5861-4", " > 200 Cache-Control: max-age=60, stale-if-error=30 > 91", "validate"),
            (
                "5861-4",
                " > 200 Cache-Control: max-age=60 > 90 Cache-Control: stale-if-error=30",
                "validate, stale on error",
            ),
            (
                "4.2.4",
                " > 200 Cache-Control: max-age=60, stale-if-error=30, must-revalidate > 70",
                "validate",
            ),
            (
                "4.2.4",
                " > 200 Cache-Control: max-age=60, stale-if-error=30, proxy-revalidate > 70",
                "validate",
            ),
            (
                "4.2.4",
                " > 200 Cache-Control: max-age=60, stale-if-error=99 > 61 Cache-Control: no-cache",
                "validate",
            ),
            (
                "5861-4",
                " > 200 Cache-Control: max-age=0, stale-if-error=30 > 9",
                "validate, stale on error",
            ),
        ],
    );
}

#[test]
fn who_may_have_it() {
    check(
        &Cache::default(),
        &[
            ("4.1", "A: 1 > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 1", "fresh"),
            ("4.1", "A: 1 > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 2", "another"),
            ("4.1", "A: 1 > 200 Cache-Control: max-age=60 | Vary: A > 0", "another"),
            ("4.1", " > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 1", "another"),
            ("4.1", " > 200 Cache-Control: max-age=60 | Vary: A > 0", "fresh"),
            (
                "4.1",
                "A: 1 | B: 2 > 200 Cache-Control: max-age=60 | Vary: A, b > 0 A: 1 | B: 2",
                "fresh",
            ),
            (
                "4.1",
                "A: 1 | B: 2 > 200 Cache-Control: max-age=60 | Vary: A | Vary: B > 0 A: 1 | B: 3",
                "another",
            ),
            ("4.1", "A: 1 | A: 2 > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 1,2", "fresh"),
            ("4.1", "A: 1, 2 > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 1,2", "fresh"),
            ("4.1", "A: 1, 2 > 200 Cache-Control: max-age=60 | Vary: A > 0 A: 2,1", "another"),
            (
                "4.1",
                "A: \"1, 2\" > 200 Cache-Control: max-age=60 | Vary: A > 0 A: \"1,2\"",
                "another",
            ),
            ("4.1", "A: x > 200 Cache-Control: max-age=60 | Vary: A > 0 A: X", "another"),
            ("4.1", " > 200 Cache-Control: max-age=60 | Vary: * > 0", "no: vary"),
            ("4.1", " > 200 Cache-Control: max-age=60 | Vary: A, * > 0", "no: vary"),
            ("4.1", " > 200 Cache-Control: max-age=60 | Vary: \"A > 0", "no: vary"),
            (
                "4.1",
                " > 200 Cache-Control: max-age=60 | Vary: a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q > 0",
                "no: vary",
            ),
        ],
    );
}

#[test]
fn what_one_request_brought_about_says_nothing_of_others() {
    let (none, auth) = (HeaderMap::new(), headers(&["Authorization: x"]));
    let (private, shared) =
        (headers(&["Cache-Control: private"]), headers(&["Cache-Control: public"]));
    for why in ITS_OWN {
        assert!(is_its_own(Some(why), &none, &none), "{why}");
    }
    assert!(!is_its_own(Some("no-store"), &none, &private) && !is_its_own(None, &none, &none));
    assert!(is_its_own(Some("private"), &auth, &private) && is_its_own(None, &auth, &none));
    assert!(!is_its_own(Some("set-cookie"), &auth, &shared));
    let mut odd = headers(&["A: 1"]);
    odd.append("a", HeaderValue::from_bytes(b"\xff").unwrap());
    let why = varies(&headers(&["Vary: A"]), &odd).unwrap_err();
    assert!(is_its_own(Some(why), &none, &none), "no text, and only one client's: {why}");
}

#[test]
fn a_date_that_lies_ahead_makes_nothing_newer() {
    let rule = Cache::default();
    let ahead = object(&["Cache-Control: max-age=60", "Date: @5000"], &rule);
    let now = object(&["Cache-Control: max-age=60", "Date: @0"], &rule);
    let before = object(&["Cache-Control: max-age=60", "Date: @-1"], &rule);
    assert_eq!(ahead.times.newness(), now.times.newness());
    assert!(before.times.newness() < now.times.newness());
}

#[test]
fn what_belongs_to_a_connection_is_not_kept() {
    let came = headers(&[
        "Cache-Control: max-age=60",
        "Connection: close, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: 1",
        "Proxy-Authenticate: Basic",
        "Age: 5",
        "X-Weft-Source: a",
        "ETag: \"a\"",
    ]);
    let kept = own_headers(&came).unwrap();
    assert_eq!(kept, headers(&["Cache-Control: max-age=60", "ETag: \"a\""]));
    let long = format!("X-Long: {}", "x".repeat(HEADER_BYTES_MAX));
    assert_eq!(own_headers(&headers(&[&long])), Err("headers-too-large"));
}

fn object(lines: &[&str], rule: &Cache) -> Object {
    let headers = headers(lines);
    let exchange = Exchange { asked: Mono(0), came: Mono(0), wall_ms: NOW * 1_000 };
    let asked = HeaderMap::new();
    let (said, times) = storable(&asked, StatusCode::OK, &headers, rule, exchange).unwrap();
    let body = Bytes::from_static(b"body");
    Object { status: StatusCode::OK, headers, body, said, times, vary: vec![], lane: "".into() }
}

#[test]
fn a_304_renews_everything_but_the_body() {
    let rule = Cache::default();
    let old = object(
        &[
            "Cache-Control: max-age=5",
            "ETag: \"a\"",
            "Content-Length: 4",
            "Content-Type: text/plain",
            "Content-Encoding: gzip",
            "X-Kept: 1",
            "X-New: old",
            "X-New: older",
        ],
        &rule,
    );
    assert_eq!(old.verdict(&Directives::default(), Mono(9_000)), Verdict::Validate);
    let said = headers(&[
        "Cache-Control: max-age=60",
        "ETag: \"a\"",
        "Content-Length: 0",
        "Content-Type: text/html",
        "Content-Encoding: br",
        "X-New: 2",
        "Connection: X-Gone",
        "X-Gone: 1",
        "Age: 3",
        "Date: @9",
    ]);
    let later = Exchange { asked: Mono(9_000), came: Mono(9_000), wall_ms: (NOW + 9) * 1_000 };
    let new = old.freshened(&said, &HeaderMap::new(), &rule, later).unwrap();
    let want = [
        "Cache-Control: max-age=60",
        "ETag: \"a\"",
        "Content-Length: 4",
        "Content-Type: text/html",
        "Content-Encoding: gzip",
        "X-Kept: 1",
        "X-New: 2",
        "Date: @9",
    ];
    assert_eq!((&new.headers, &new.body), (&headers(&want), &old.body));
    assert_eq!(new.times.ttl_s(Mono(9_000)), 57);
    // It is about another one, or may be kept no longer.
    let other = headers(&["ETag: \"b\"", "Cache-Control: max-age=60"]);
    assert_eq!(
        old.freshened(&other, &HeaderMap::new(), &rule, later).err(),
        Some("another-answer")
    );
    let private = headers(&["ETag: \"a\"", "Cache-Control: private"]);
    assert_eq!(old.freshened(&private, &HeaderMap::new(), &rule, later).err(), Some("private"));
}
