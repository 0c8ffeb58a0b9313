// SPDX-License-Identifier: Apache-2.0
//! What a client gets of a stored answer: all of it, a part, or that it has it already (RFC 9110
//! §13, §14; RFC 9111 §4.3.2). Pure.

use std::ops::Range;

use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{Response, StatusCode};

use super::directives::members;
use super::object::{Object, date};
use crate::http::body::ReplyBody;

const CONDITIONS: [HeaderName; 4] = [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE, IF_RANGE];

/// What of a stored answer is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    NotModified,
    Bytes(Range<usize>),
    Unsatisfiable,
}

/// Whether only the origin can judge a request's conditions.
pub fn is_for_the_origin(asked: &HeaderMap) -> bool {
    asked.contains_key(IF_MATCH) || asked.contains_key(IF_UNMODIFIED_SINCE)
}

/// Whether its answer may be less than the whole.
pub fn is_conditional(asked: &HeaderMap) -> bool {
    CONDITIONS.iter().any(|name| asked.contains_key(name))
}

/// Makes a request ask for the whole.
pub fn unconditional(asked: &mut HeaderMap) {
    for name in CONDITIONS {
        asked.remove(name);
    }
}

/// Makes a request ask whether a stored answer still holds (RFC 9111 §4.3.1). `false` when there is
/// nothing to ask by.
pub fn ask_whether(asked: &mut HeaderMap, object: &Object) -> bool {
    let stored = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
    let known: Vec<(HeaderName, HeaderValue)> = stored
        .into_iter()
        .filter_map(|(from, to)| Some((to, object.headers.get(from)?.clone())))
        .collect();
    if known.is_empty() {
        return false;
    }
    unconditional(asked);
    asked.extend(known);
    true
}

/// What a GET or HEAD gets.
pub fn part(asked: &HeaderMap, head: bool, object: &Object) -> Part {
    if object.status != StatusCode::OK {
        return Part::Whole;
    }
    if asked.contains_key(IF_NONE_MATCH) {
        // §13.2.2: with it the date does not count.
        if matches_any(asked, object) {
            return Part::NotModified;
        }
    } else if let Some(since) = date(asked, &IF_MODIFIED_SINCE)
        && modified(object).is_some_and(|at| at <= since)
    {
        return Part::NotModified;
    }
    match asked.get(RANGE).and_then(|v| v.to_str().ok()) {
        Some(range) if !head && range_applies(asked, object) => bytes(range, object.body.len()),
        _ => Part::Whole,
    }
}

fn modified(object: &Object) -> Option<u64> {
    date(&object.headers, &LAST_MODIFIED).or_else(|| date(&object.headers, &DATE))
}

/// The weak comparison (RFC 9110 §8.8.3.2).
fn matches_any(asked: &HeaderMap, object: &Object) -> bool {
    let tag = object.headers.get(ETAG).and_then(|v| v.to_str().ok()).map(opaque);
    let lines = asked.get_all(IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(members).any(|member| member == "*" || Some(opaque(member)) == tag)
}

fn opaque(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// RFC 9110 §13.1.5: the strong comparison, or the very date.
fn range_applies(asked: &HeaderMap, object: &Object) -> bool {
    let Some(wanted) = asked.get(IF_RANGE) else { return true };
    let stored = match wanted.as_bytes() {
        [b'"', ..] => object.headers.get(ETAG),
        [b'W', b'/', ..] => None,
        _ => object.headers.get(LAST_MODIFIED),
    };
    stored.is_some_and(|stored| stored.as_bytes() == wanted.as_bytes())
}

/// One range; several are answered with the whole, as is what cannot be read (RFC 9110 §14.2).
fn bytes(range: &str, length: usize) -> Part {
    let Some((unit, spec)) = range.split_once('=') else { return Part::Whole };
    let spec = spec.trim();
    let Some((from, to)) = spec.split_once('-').filter(|_| !spec.contains(',')) else {
        return Part::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<usize>().unwrap_or(usize::MAX))
    };
    match (number(from), number(to), from.is_empty(), to.is_empty()) {
        (Some(from), _, _, true) if from < length => Part::Bytes(from..length),
        (Some(from), Some(to), ..) if from > to => Part::Whole,
        (Some(from), Some(to), ..) if from < length => {
            Part::Bytes(from..to.saturating_add(1).min(length))
        }
        (Some(_), Some(_), ..) | (Some(_), _, _, true) => Part::Unsatisfiable,
        (_, Some(last), true, _) if last > 0 && length > 0 => {
            Part::Bytes(length.saturating_sub(last)..length)
        }
        (_, Some(_), true, _) => Part::Unsatisfiable,
        _ => Part::Whole,
    }
}

/// The answer that a client gets.
pub fn answer(object: &Object, part: &Part, head: bool) -> Response<ReplyBody> {
    let mut headers = object.headers.clone();
    let length = object.body.len();
    let (status, body) = match part {
        Part::Whole => (object.status, object.body.clone()),
        Part::NotModified => {
            // RFC 9110 §15.4.5.
            for name in ["content-type", "content-encoding", "content-language"] {
                headers.remove(name);
            }
            (StatusCode::NOT_MODIFIED, Default::default())
        }
        Part::Bytes(range) => {
            let text = format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1));
            insert(&mut headers, CONTENT_RANGE, &text);
            (StatusCode::PARTIAL_CONTENT, object.body.slice(range.clone()))
        }
        Part::Unsatisfiable => {
            insert(&mut headers, CONTENT_RANGE, &format!("bytes */{length}"));
            headers.remove("content-type");
            (StatusCode::RANGE_NOT_SATISFIABLE, Default::default())
        }
    };
    headers.remove(CONTENT_LENGTH);
    let bodiless = matches!(status.as_u16(), 204 | 304);
    if !bodiless {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let body = if head || body.is_empty() { ReplyBody::empty() } else { ReplyBody::full(body) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
