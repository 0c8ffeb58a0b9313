// SPDX-License-Identifier: Apache-2.0
//! CORS as Gateway API and the Fetch standard write it, faults by their shares.

use super::*;
use crate::decide::Headers;
use crate::{Delay, Regex, SessionBy};

struct List(Vec<(&'static str, &'static str)>);

impl Headers for List {
    fn any(&self, name: &str, f: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(n, v)| *n == name && f(v.as_bytes()))
    }
}

fn judged(cors: &Cors, method: &str, headers: &[(&'static str, &'static str)]) -> CorsVerdict {
    let headers = List(headers.to_vec());
    cors_verdict(
        cors,
        &Request {
            method,
            scheme: "http",
            host: "a",
            port: 80,
            written: None,
            path: "/",
            query: "",
            headers: &headers,
        },
    )
}

fn texts(list: &[&str]) -> Vec<std::sync::Arc<str>> {
    list.iter().map(|t| (*t).into()).collect()
}

fn named() -> Cors {
    Cors {
        origins: vec![
            StringMatch::Exact("https://www.foo.com".into()),
            StringMatch::Regex(Regex::origin("https://*.bar.com").unwrap()),
        ],
        methods: texts(&["GET", "OPTIONS"]),
        headers: texts(&["x-header-1", "x-header-2"]),
        expose: texts(&["x-header-3"]),
        max_age_s: Some(3600),
        credentials: true,
        forward_unmatched: false,
    }
}

const ASK: (&str, &str) = ("access-control-request-method", "PUT");

fn said(headers: &CorsHeaders) -> String {
    let lines: Vec<_> = headers
        .iter()
        .map(|(n, v)| format!("{}={v}", n.strip_prefix("access-control-").unwrap()))
        .collect();
    lines.join("; ")
}

#[test]
fn named_origins_get_leave_and_others_none() {
    for origin in ["https://www.foo.com", "https://www.bar.com", "https://a.b.bar.com"] {
        let CorsVerdict::Preflight(headers) =
            judged(&named(), "OPTIONS", &[("origin", origin), ASK])
        else {
            panic!("{origin} was not answered")
        };
        assert_eq!(
            said(&headers),
            format!(
                "allow-origin={origin}; allow-credentials=true; expose-headers=x-header-3; \
                 allow-methods=GET, OPTIONS; allow-headers=x-header-1, x-header-2; max-age=3600"
            )
        );
        let CorsVerdict::Pass(headers) = judged(&named(), "GET", &[("origin", origin)]) else {
            panic!()
        };
        let want = "allow-credentials=true; expose-headers=x-header-3";
        assert_eq!(said(&headers), format!("allow-origin={origin}; {want}"));
    }
    for origin in ["https://bar.com", "http://www.foo.com", "https://evil.com/.bar.com", "null", ""]
    {
        assert_eq!(
            judged(&named(), "OPTIONS", &[("origin", origin), ASK]),
            match origin {
                "" => CorsVerdict::Pass(Vec::new()),
                _ => CorsVerdict::Preflight(Vec::new()),
            },
            "{origin}"
        );
        assert_eq!(judged(&named(), "GET", &[("origin", origin)]), CorsVerdict::Pass(Vec::new()));
    }
    // OPTIONS without a question is a request like any other.
    let plain = judged(&named(), "OPTIONS", &[("origin", "https://www.foo.com")]);
    assert!(matches!(plain, CorsVerdict::Pass(h) if !h.is_empty()));
    let forwards = Cors { forward_unmatched: true, ..named() };
    let other = judged(&forwards, "OPTIONS", &[("origin", "https://other"), ASK]);
    assert_eq!(other, CorsVerdict::Pass(Vec::new()));
    // Two origins are nobody's.
    let two = [("origin", "https://www.foo.com"), ("origin", "https://www.bar.com")];
    assert_eq!(judged(&named(), "GET", &two), CorsVerdict::Pass(Vec::new()));
}

#[test]
fn a_star_is_never_said_to_a_browser_with_credentials() {
    let every = |credentials| Cors {
        origins: vec![StringMatch::Present],
        methods: texts(&["*"]),
        headers: texts(&["*"]),
        expose: texts(&["*"]),
        credentials,
        ..Cors::default()
    };
    let asked = [("origin", "https://o"), ASK, ("access-control-request-headers", "x-a, x-b")];
    let CorsVerdict::Preflight(open) = judged(&every(false), "OPTIONS", &asked) else { panic!() };
    assert_eq!(said(&open), "allow-origin=*; expose-headers=*; allow-methods=*; allow-headers=*");
    let CorsVerdict::Preflight(held) = judged(&every(true), "OPTIONS", &asked) else { panic!() };
    assert_eq!(
        said(&held),
        "allow-origin=https://o; allow-credentials=true; allow-methods=PUT; \
         allow-headers=x-a, x-b"
    );
    let bare = [("origin", "https://o"), ASK];
    let CorsVerdict::Preflight(bare) = judged(&every(true), "OPTIONS", &bare) else { panic!() };
    assert!(!said(&bare).contains("allow-headers"));
}

#[test]
fn faults_hit_their_share() {
    let fault = Fault {
        delay: Some(Delay { ms: 100, share: Share::of(1, 4) }),
        abort: Some(Abort { answer: AbortAnswer::Http(503), share: Share::of(1, 1_000_000) }),
    };
    let hit = |d, a| fault_verdict(&fault, d, a);
    assert_eq!(hit(249_999, 1), FaultVerdict { delay_ms: Some(100), abort: None });
    assert_eq!(hit(250_000, 1), FaultVerdict::default());
    assert_eq!(hit(999_999, 0).abort, Some(AbortAnswer::Http(503)));
    assert!(Share::ALL.takes(Share::POINTS - 1) && !Share::NONE.takes(0));
    assert_eq!(Share::of(3, 2), Share::ALL);
    assert_eq!((Share::of(1, 8).to_string(), Share::of(5, 0)), ("12.5 %".into(), Share::ALL));
}

#[test]
fn statuses_of_both_protocols_have_their_word_in_the_other() {
    for (http, grpc) in [(401, 16), (403, 7), (503, 14)] {
        assert_eq!((grpc_of_http(http), http_of_grpc(grpc)), (grpc, http));
    }
    assert_eq!((grpc_of_http(404), http_of_grpc(5), http_of_grpc(2)), (12, 404, 500));
}

#[test]
fn a_session_reads_back_until_it_is_over() {
    let mut session = Session { by: SessionBy::Header, name: "s".into(), absolute_s: Some(100) };
    let text = session_text(0xabc, 1_000);
    assert_eq!(session_read(&session, &text, 1_099), Some((0xabc, 1_000)));
    assert_eq!(session_read(&session, &text, 1_100), None);
    assert_eq!(session_read(&session, &text, 900), None, "it begins in the future");
    session.absolute_s = None;
    assert_eq!(session_read(&session, &text, 1 << 40), Some((0xabc, 1_000)));
    for wrong in ["", ".", "0000000000000abc", "abc.1", "00000000000000zz.1", "+000000000000abc.1"]
    {
        assert_eq!(session_read(&session, wrong, 2_000), None, "{wrong}");
    }
    assert_eq!(cookie("a=1; s=x=y; b=2", "s"), Some("x=y"));
    assert_eq!(cookie("as=1; sa=2", "s"), None);
}
