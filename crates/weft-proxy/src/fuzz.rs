// SPDX-License-Identifier: Apache-2.0
//! Doors for the fuzz targets (`fuzz/`) to parsers that nobody outside of this crate calls. Decides
//! nothing; each function says what must hold for any bytes.
#![doc(hidden)]

use std::time::Duration;

use http::header::{
    CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, RANGE, RETRY_AFTER, VARY,
};
use http::{Response, StatusCode};
use weft_base::clock::Clock;
use weft_base::limits::RETRY_AFTER_MS_MAX;
use weft_base::rng::Rng;
use weft_model::decide::{cookie, session_read, session_text};
use weft_model::{Session, SessionBy};
use weft_xds::NodeInfo;

use crate::capture::dns::message;
use crate::h2::budget::{Budget, Peer};
use crate::h2::frames::Scanner;
use crate::h2::paths::Paths;
use crate::http::grpc_web::Decoder;
use crate::http::present::Present;
use crate::http::{cache, headers, trace};
use crate::tcp::hello::{self, Hello};
use crate::tcp::proxy_header::{self, Judged};
use crate::tcp::sniff;
use crate::upstream::ask;

/// What a connection's first bytes are taken for.
pub fn sniff(bytes: &[u8]) -> &'static str {
    match sniff::judge(bytes) {
        None => "open",
        Some(sniff::Spoken::Http1) => "http1",
        Some(sniff::Spoken::Http2) => "http2",
        Some(sniff::Spoken::Opaque) => "opaque",
    }
}

/// # Panics
/// More is wanted than there can be, or a name has odd characters.
pub fn client_hello(bytes: &[u8]) {
    match hello::judge(bytes) {
        Hello::More(wanted) => assert!(wanted > bytes.len()),
        Hello::Named(Some(name)) => assert!(!name.contains(['/', '\0', ' ', '@'])),
        Hello::Named(None) | Hello::Wrong(_) => {}
    }
}

/// # Panics
/// More is wanted than there can be.
pub fn proxy_header(bytes: &[u8]) {
    if let Judged::More(wanted) = proxy_header::judge(bytes) {
        assert!(wanted > bytes.len());
    }
}

/// # Panics
/// Frames, or which streams have a fragment, depend on how their bytes were cut, or an attack goes
/// on for too long.
pub fn h2_frames(cut: usize, bytes: &[u8]) {
    let mut budget = Budget::new(Peer::Client, 0);
    let mut abused = false;
    let mut frames = |cut: usize, budget: &mut Option<&mut Budget>| {
        let (mut scanner, mut paths) = (Scanner::new(0), Paths::default());
        let mut seen = Vec::new();
        for mut piece in bytes.chunks(cut) {
            paths.payload(piece);
            while let Some((head, end)) = scanner.next(piece) {
                paths.frame(head, piece.get(end..).unwrap_or_default());
                seen.push((head.kind, head.stream, head.bytes));
                if let Some(budget) = budget {
                    abused |= budget.received(head, || 0).is_err();
                }
                piece = piece.get(end..).unwrap_or_default();
            }
        }
        let mut streams: Vec<u32> = seen.iter().map(|(_, stream, _)| *stream).collect();
        streams.sort_unstable();
        streams.dedup();
        streams.retain(|stream| paths.take(*stream));
        (seen, streams)
    };
    let parts = frames(cut.max(1), &mut None);
    let whole = frames(bytes.len().max(1), &mut Some(&mut budget));
    assert_eq!(whole, parts);
    let (whole, _) = whole;
    // Settings, pings and resets, and no request between them.
    let bare = whole.iter().all(|(kind, ..)| matches!(kind, 3 | 4 | 6));
    assert!(!bare || abused || whole.len() < 1000, "{} frames for nothing", whole.len());
}

/// # Panics
/// What a browser's base64 says depends on how it was cut, or is more than its bytes can say.
pub fn grpc_web(cut: usize, bytes: &[u8]) {
    let unpack = |cut: usize| {
        let mut decoder = Decoder::default();
        let mut said = Vec::new();
        for piece in bytes.chunks(cut) {
            said.extend_from_slice(&decoder.unpack(piece).ok()?);
        }
        Some((said, decoder.is_whole()))
    };
    let whole = unpack(bytes.len().max(1));
    assert_eq!(whole, unpack(cut.max(1)));
    let most = bytes.len() / 4 * 3;
    assert!(
        whole.is_none_or(
            |(said, whole)| said.len() <= most && whole == bytes.len().is_multiple_of(4)
        )
    );
}

/// Values of small headers that others' programs send, each as its reader gets it.
///
/// # Panics
/// A reader says what its header cannot say, or leaves behind what it was to mend.
pub fn small_headers(which: u8, value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let with = |name: HeaderName| HeaderMap::from_iter([(name, value.clone())]);
    match which % 6 {
        0 => {
            let (map, asked) = (with(CACHE_CONTROL), with(CACHE_CONTROL));
            let _ = (cache::Said::of_response(&map), cache::Said::of_request(&asked));
            let names = cache::varies(&with(VARY), &map).map(|names| names.len());
            assert!(names.is_err() || names.is_ok_and(|n| n <= value.len()));
        }
        1 => {
            for name in [IF_NONE_MATCH, IF_MATCH, IF_MODIFIED_SINCE, RANGE, IF_RANGE] {
                let mut asked = with(name);
                let _ = cache::is_for_the_origin(&asked);
                cache::unconditional(&mut asked);
                assert!(!asked.contains_key(IF_NONE_MATCH));
            }
            let mut busy = Response::new(());
            *busy.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *busy.headers_mut() = with(RETRY_AFTER);
            let pause = ask::pause_ms(&busy, &Clock::system());
            assert!(pause.is_none_or(|ms| ms <= RETRY_AFTER_MS_MAX));
        }
        2 => {
            let mut headers = with(HeaderName::from_static("grpc-timeout"));
            let given = headers::grpc_timeout(&headers);
            let left = Duration::from_millis(1_500);
            headers::shorten_grpc_timeout(&mut headers, left);
            let told = headers::grpc_timeout(&headers);
            assert!(given.is_none() || told.is_some_and(|told| told <= left));
        }
        3 => {
            let Ok(text) = value.to_str() else { return };
            if let Some(found) = cookie(text, "sid") {
                assert!(text.contains(found) && !found.contains(';'));
            }
            let session =
                Session { name: "sid".into(), by: SessionBy::Header, absolute_s: Some(60) };
            if let Some((token, began)) = session_read(&session, text, 1_000) {
                let again = session_read(&session, &session_text(token, began), 1_000);
                assert_eq!(again, Some((token, began)));
            }
        }
        _ => {
            let names = ["traceparent", "b3"];
            let name = names.get(usize::from(which % 2)).copied().unwrap_or_default();
            let mut map = with(HeaderName::from_static(name));
            let present = Present::of(&map);
            trace::keep_or_begin(&mut map, present, &mut Rng::seeded(1));
            let told: Vec<_> = map.get_all("traceparent").iter().collect();
            assert_eq!(told.len(), 1, "there is one");
            let digits = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
            let good = |v: &&HeaderValue| v.len() == 55 && v.as_bytes().iter().all(digits);
            assert!(told.iter().all(good), "{told:?}");
        }
    }
}

/// # Panics
/// A question and its own failed answer do not fit.
pub fn dns_message(bytes: &[u8]) {
    let _ = (message::id(bytes), message::is_response(bytes));
    let Some(question) = message::question(bytes) else { return };
    if let Some(answer) = message::failure(bytes) {
        assert!(message::is_response(&answer));
        assert!(message::answers(&answer, question));
        assert_eq!(message::id(&answer), message::id(bytes));
    }
}

/// Somebody who may ask for the mesh.
pub fn node() -> NodeInfo {
    let id = "sidecar~shop~web".parse().expect("it has three parts");
    NodeInfo {
        id,
        model_version: weft_model::MODEL_VERSION,
        model_version_oldest: weft_model::features::MODEL_VERSION_OLDEST,
        features: Vec::new(),
        release: "fuzz".into(),
    }
}
