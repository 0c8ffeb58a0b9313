// SPDX-License-Identifier: Apache-2.0
//! The trace that a request belongs to: W3C Trace Context is kept or begun, and B3 (single and
//! several headers) passes as it came. Whoever says that a trace is not sampled is believed, also
//! in B3's words. Called by the phases' headers; knows no exporter. Pure but for random numbers.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use weft_base::rng::Rng;

use super::made;
use super::present::Present;
use crate::observe::quick;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// `00-<32 hex>-<16 hex>-<2 hex>`
const LENGTH: usize = 55;

/// Trace, span and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// What B3 says, as far as it says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FromB3 {
    ids: Option<(u128, u64)>,
    sampled: Option<bool>,
}

/// Every request has a trace context; one that came along is kept.
/// `present` is what came along.
pub fn keep_or_begin(headers: &mut HeaderMap, present: Present, rng: &mut Rng) {
    if !present.has(Present::TRACE) {
        headers.insert(TRACEPARENT, begun(FromB3::default(), rng).header());
        return;
    }
    let mut given = headers.get_all(&TRACEPARENT).iter();
    let kept = match (given.next(), given.next()) {
        // Of this version it is passed on as it is; what a later one has besides is not known.
        (Some(only), None) if is_current(only.as_bytes()) => return,
        (Some(only), None) => match parse(only.as_bytes()) {
            Some((0, _)) => return,
            Some((_, context)) => Some(context),
            None => None,
        },
        _ => None,
    };
    if kept.is_none() {
        // "If parsing traceparent fails, tracestate must not be propagated."
        headers.remove(TRACESTATE);
    }
    let context = kept.unwrap_or_else(|| begun(from_b3(headers), rng));
    headers.insert(TRACEPARENT, context.header());
}

fn begun(b3: FromB3, rng: &mut Rng) -> Context {
    let mut id = || rng.next_u64();
    let (trace, span) =
        b3.ids.unwrap_or_else(|| ((u128::from(id()) << 64) | u128::from(id() | 1), id() | 1));
    Context { trace, span, sampled: b3.sampled.unwrap_or(true) }
}

/// Whether this is a context of this version, as nearly all are: [`parse`] says so too, but takes
/// it apart.
fn is_current(text: &[u8]) -> bool {
    let lower_hex =
        |part: &[u8]| part.iter().fold(true, |all, b| all & matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let Some((b"00-", rest)) = text.split_first_chunk::<3>() else { return false };
    let Some((trace, rest)) = rest.split_first_chunk::<32>() else { return false };
    let Some((b"-", rest)) = rest.split_first_chunk::<1>() else { return false };
    let Some((span, [b'-', flags @ ..])) = rest.split_first_chunk::<16>() else { return false };
    let zero = *trace == [b'0'; 32] || *span == [b'0'; 16];
    !zero && flags.len() == 2 && lower_hex(trace) && lower_hex(span) && lower_hex(flags)
}

/// Version and context; `None` for what no version may look like.
fn parse(text: &[u8]) -> Option<(u8, Context)> {
    let mut parts = text.splitn(5, |b| *b == b'-');
    let version = lower_hex(parts.next()?, 2)?;
    let (trace, span) = (lower_hex(parts.next()?, 32)?, lower_hex(parts.next()?, 16)?);
    let flags = lower_hex(parts.next()?, 2)?;
    let version = u8::try_from(version).ok().filter(|v| *v != 0xff)?;
    let rest = parts.next();
    if trace == 0 || span == 0 || (version == 0 && rest.is_some()) {
        return None;
    }
    let span = u64::try_from(span).ok()?;
    Some((version, Context { trace, span, sampled: flags & 1 == 1 }))
}

fn lower_hex(text: &[u8], digits: usize) -> Option<u128> {
    let lower = text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && text.len() == digits).then(|| hex(text)).flatten()
}

fn hex(text: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(text).ok().filter(|t| !t.starts_with('+'))?;
    u128::from_str_radix(text, 16).ok()
}

/// One header wins over several, as B3 says.
fn from_b3(headers: &HeaderMap) -> FromB3 {
    let text = |name: &HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    if let Some(single) = text(&B3) {
        let mut parts = single.split(|b| *b == b'-');
        let (first, span) = (parts.next(), parts.next());
        return match (first, span) {
            (Some(decision), None) => FromB3 { ids: None, sampled: sampled(decision) },
            (trace, span) => {
                FromB3 { ids: b3_ids(trace, span), sampled: parts.next().and_then(sampled) }
            }
        };
    }
    let debug = text(&B3_FLAGS) == Some(b"1");
    let decision = text(&B3_SAMPLED).and_then(sampled);
    FromB3 {
        ids: b3_ids(text(&B3_TRACE), text(&B3_SPAN)),
        sampled: debug.then_some(true).or(decision),
    }
}

/// 64 or 128 bits of trace, 64 bits of span; ids in upper case are taken too.
fn b3_ids(trace: Option<&[u8]>, span: Option<&[u8]>) -> Option<(u128, u64)> {
    let trace = trace.filter(|t| matches!(t.len(), 16 | 32)).and_then(hex)?;
    let span = span.filter(|s| s.len() == 16).and_then(hex)?;
    let span = u64::try_from(span).ok()?;
    (trace != 0 && span != 0).then_some((trace, span))
}

fn sampled(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

// === impl Context ===

impl Context {
    fn header(self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut write = |from: usize, value: &[u8]| {
            quick::hex(value, text.get_mut(from..from + 2 * value.len()).unwrap_or_default());
        };
        write(3, &self.trace.to_be_bytes());
        write(36, &self.span.to_be_bytes());
        write(LENGTH - 2, &[self.sampled.into()]);
        made::value(&text).expect("hexadecimal digits and dashes are a value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn after(given: &[(&'static str, String)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let present = Present::of(&headers);
        keep_or_begin(&mut headers, present, &mut Rng::seeded(1));
        headers
    }

    fn traceparent(headers: &HeaderMap) -> &str {
        headers[TRACEPARENT].to_str().unwrap()
    }

    #[test]
    fn a_valid_context_is_kept_with_its_decision_and_state() {
        for (given, want) in [
            (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-01")),
            (format!("00-{TRACE}-{SPAN}-00"), format!("00-{TRACE}-{SPAN}-00")),
            // Flags of this version that are not known yet are kept.
            (format!("00-{TRACE}-{SPAN}-fe"), format!("00-{TRACE}-{SPAN}-fe")),
            // A later version is read as this one and passed on as this one.
            (format!("01-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-01")),
            (format!("cc-{TRACE}-{SPAN}-00-what-comes"), format!("00-{TRACE}-{SPAN}-00")),
        ] {
            let state = ("tracestate", "a=1,b=2".to_owned());
            let headers = after(&[("traceparent", given.clone()), state]);
            assert_eq!(traceparent(&headers), want, "{given}");
            assert_eq!(headers[TRACESTATE], "a=1,b=2", "{given}");
        }
    }

    #[test]
    fn a_current_context_is_one_that_parses() {
        let check = |text: &[u8]| {
            let parsed = matches!(parse(text), Some((0, _)));
            assert_eq!(is_current(text), parsed, "{}", text.escape_ascii());
        };
        let zero = "0".repeat(32);
        for text in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zero[..16]),
            format!("00-{TRACE}-{SPAN}-01-x"),
            format!("00-{TRACE}-{SPAN}-"),
        ] {
            for at in 0..text.len() {
                check(&text.as_bytes()[..at]);
                for byte in 0..=u8::MAX {
                    let mut bytes = text.clone().into_bytes();
                    bytes[at] = byte;
                    check(&bytes);
                }
            }
        }
        assert!(is_current(format!("00-{TRACE}-{SPAN}-fe").as_bytes()));
    }

    #[test]
    fn an_invalid_context_is_begun_anew_without_its_state() {
        let zero = "0".repeat(32);
        let upper = TRACE.to_uppercase();
        for given in [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-0g"),
        ] {
            let state = ("tracestate", "a=1".to_owned());
            let headers = after(&[("traceparent", given.clone()), state]);
            let made = traceparent(&headers);
            assert!(parse(made.as_bytes()).is_some_and(|(v, c)| v == 0 && c.sampled), "{made}");
            assert!(!made.contains(TRACE), "{given}");
            assert!(!headers.contains_key(TRACESTATE), "{given}");
        }
        // Two of them are none.
        let twice = ("traceparent", format!("00-{TRACE}-{SPAN}-01"));
        let headers = after(&[twice.clone(), twice]);
        assert_eq!(headers.get_all(TRACEPARENT).iter().count(), 1);
        assert!(!traceparent(&headers).contains(TRACE));
    }

    #[test]
    fn b3_passes_as_it_came_and_gives_ids_and_decision() {
        let short = &TRACE[16..];
        let padded = format!("{}{short}", "0".repeat(16));
        let multi = |trace: &str, rest: &[(&'static str, &str)]| {
            let mut all = vec![
                ("x-b3-traceid", trace.to_owned()),
                ("x-b3-spanid", SPAN.to_owned()),
                ("x-b3-parentspanid", "05e3ac9a4f6e3b90".to_owned()),
            ];
            all.extend(rest.iter().map(|(n, v)| (*n, (*v).to_owned())));
            all
        };
        for (given, want) in [
            (vec![("b3", format!("{TRACE}-{SPAN}-1"))], format!("00-{TRACE}-{SPAN}-01")),
            (vec![("b3", format!("{TRACE}-{SPAN}-0"))], format!("00-{TRACE}-{SPAN}-00")),
            (vec![("b3", format!("{TRACE}-{SPAN}-d"))], format!("00-{TRACE}-{SPAN}-01")),
            (vec![("b3", format!("{TRACE}-{SPAN}"))], format!("00-{TRACE}-{SPAN}-01")),
            (
                vec![("b3", format!("{short}-{SPAN}-0-05e3ac9a4f6e3b90"))],
                format!("00-{padded}-{SPAN}-00"),
            ),
            (multi(TRACE, &[("x-b3-sampled", "1")]), format!("00-{TRACE}-{SPAN}-01")),
            (multi(TRACE, &[("x-b3-sampled", "0")]), format!("00-{TRACE}-{SPAN}-00")),
            (multi(short, &[("x-b3-sampled", "false")]), format!("00-{padded}-{SPAN}-00")),
            (multi(TRACE, &[("x-b3-flags", "1")]), format!("00-{TRACE}-{SPAN}-01")),
            (multi(&TRACE.to_uppercase(), &[]), format!("00-{TRACE}-{SPAN}-01")),
        ] {
            let headers = after(&given);
            assert_eq!(traceparent(&headers), want, "{given:?}");
            for (name, value) in &given {
                assert_eq!(headers[*name], value, "{given:?}");
            }
        }
        // A decision without ids is one all the same; W3C's word goes before B3's.
        let denied = after(&[("b3", "0".to_owned())]);
        assert!(traceparent(&denied).ends_with("-00"));
        let denied = after(&[("x-b3-sampled", "0".to_owned())]);
        assert!(traceparent(&denied).ends_with("-00"));
        let both = after(&[
            ("b3", format!("{}-{SPAN}-0", "1".repeat(32))),
            ("traceparent", format!("00-{TRACE}-{SPAN}-01")),
        ]);
        assert_eq!(traceparent(&both), format!("00-{TRACE}-{SPAN}-01"));
        // What is no B3 begins a trace.
        for given in ["", "-", "x", "1-2", &format!("{TRACE}-{SPAN}x-1")] {
            let headers = after(&[("b3", given.to_owned())]);
            assert!(!traceparent(&headers).contains(TRACE), "{given}");
        }
    }
}
