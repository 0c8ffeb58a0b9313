// SPDX-License-Identifier: Apache-2.0
//! One stored answer: whether it may be stored, how old it is, and what a request may have of it
//! (RFC 9111 §3, §4). Pure; time is a parameter.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    AGE, AUTHORIZATION, CONTENT_LENGTH, DATE, ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue,
    LAST_MODIFIED, SET_COOKIE, VARY,
};
use weft_base::clock::Mono;
use weft_model::Cache;

use super::directives::{Directives, members, seconds};
use crate::http::headers;
use crate::observe::record::is_grpc;

/// Header bytes of a stored answer.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Header names that an answer may vary by.
const VARY_MAX: usize = 16;
/// What an object costs besides its bytes, about.
const OWN_BYTES: usize = 512;
/// Statuses that say no time themselves and may be kept all the same (RFC 9110 §15.1), but for 206.
const HEURISTIC: [u16; 10] = [200, 203, 204, 300, 301, 404, 405, 410, 414, 501];
/// Errors that answer one request: what it carried, when it came, or its client. Stored, they would
/// keep everybody from what is there (RFC 6585 forbids four of them). 401, 403 and 404 may be kept
/// as their origin says.
const OF_ONE: [u16; 15] =
    [400, 406, 408, 412, 413, 415, 416, 417, 421, 425, 426, 428, 429, 431, 511];
/// Reasons that lie in the request: what others are answered they do not touch.
const ITS_OWN: [&str; 5] =
    ["status", "client-error", "authorization", "conditional", "request-header"];

/// A header that an answer varies by, with the value that it is for.
pub type Varies = (HeaderName, Option<Box<str>>);

/// A stored answer.
#[derive(Clone, Debug)]
pub struct Object {
    pub status: StatusCode,
    /// Without those of a connection, `Age` and weft's own.
    pub headers: HeaderMap,
    pub body: Bytes,
    pub said: Directives,
    pub times: Times,
    /// Who may have it: the names that it varies by, with the values they had.
    pub vary: Vec<Varies>,
    /// Where it came from, and as what.
    pub lane: Arc<str>,
}

/// When an answer was made and how long it is fresh (RFC 9111 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How old it was when it came.
    age_s: u64,
    came: Mono,
    pub lifetime_s: u64,
    /// Its `Date`, in seconds since the epoch; one that lies ahead is the time when it came.
    date_s: u64,
}

/// When an exchange with the origin took place.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub asked: Mono,
    pub came: Mono,
    /// Of `came`, in milliseconds since the epoch.
    pub wall_ms: u64,
}

/// What a request may have of a stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fresh,
    /// Old, and allowed to be.
    Stale,
    /// The same, while somebody asks the origin (RFC 5861 §3).
    Refresh,
    /// Only after the origin was asked.
    Validate,
}

/// Whether an answer may be stored.
///
/// # Errors
/// Why not, in a word.
pub fn storable(
    asked: &HeaderMap,
    status: StatusCode,
    headers: &HeaderMap,
    rule: &Cache,
    exchange: Exchange,
) -> Result<(Directives, Times), &'static str> {
    let said = Directives::of_response(headers);
    let known = status.canonical_reason().is_some();
    let understood = said.must_understand && known;
    if said.must_understand && !known {
        return Err("status-not-understood");
    }
    if status.is_informational() || matches!(status.as_u16(), 206 | 304) {
        return Err("status");
    }
    if OF_ONE.contains(&status.as_u16()) {
        return Err("client-error");
    }
    if (said.no_store && !understood) || Directives::of_request(asked).no_store {
        return Err("no-store");
    }
    if said.private {
        return Err("private");
    }
    if asked.contains_key(AUTHORIZATION) && !said.is_shared() {
        return Err("authorization");
    }
    if headers.contains_key(SET_COOKIE) && !rule.set_cookie {
        return Err("set-cookie");
    }
    if is_grpc(headers) || headers.contains_key(headers::FLAGS) {
        return Err("not-of-the-origin");
    }
    let times = Times::of(headers, &said, status, rule, exchange);
    let explicit = headers.contains_key(EXPIRES)
        || said.max_age.is_some()
        || said.s_maxage.is_some()
        || said.public
        || said.no_cache
        || said.must_revalidate;
    if !explicit && times.lifetime_s == 0 {
        return Err("says-no-time");
    }
    let askable = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
    let later = said.stale_while_revalidate.max(said.stale_if_error) > Some(0);
    let fresh = times.lifetime_s > 0 && !said.no_cache;
    if !fresh && !askable && !later {
        return Err("never-fresh");
    }
    Ok((said, times))
}

/// Whether an answer that is not stored for that reason, or is another than the stored one, says
/// nothing of what others would be answered: the request brought it about.
pub fn is_its_own(why: Option<&str>, asked: &HeaderMap, headers: &HeaderMap) -> bool {
    why.is_some_and(|why| ITS_OWN.contains(&why))
        || (asked.contains_key(AUTHORIZATION) && !Directives::of_response(headers).is_shared())
}

/// The names that an answer varies by, with the request's values.
///
/// # Errors
/// It varies by what no header says, or by too much.
pub fn varies(headers: &HeaderMap, asked: &HeaderMap) -> Result<Vec<Varies>, &'static str> {
    let mut out: Vec<Varies> = Vec::new();
    for line in headers.get_all(VARY) {
        for name in members(line.to_str().map_err(|_| "vary")?) {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "vary")?;
            if name.as_str() == "*" || out.len() >= VARY_MAX {
                return Err("vary");
            }
            if !out.iter().any(|(known, _)| *known == name) {
                let value = combined(asked, &name)?;
                out.push((name, value));
            }
        }
    }
    Ok(out)
}

/// All lines of a header as one value; blanks around commas are no difference (RFC 9111 §4.1).
fn combined(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Box<str>>, &'static str> {
    let mut out: Option<String> = None;
    for line in headers.get_all(name) {
        let line = line.to_str().map_err(|_| "request-header")?;
        let text = out.get_or_insert_default();
        if !text.is_empty() {
            text.push(',');
        }
        // Within quotes a blank may be one.
        match line.contains('"') {
            true => text.push_str(line),
            false => {
                let parts: Vec<&str> = line.split(',').map(str::trim).collect();
                text.push_str(&parts.join(","));
            }
        }
    }
    Ok(out.map(String::into_boxed_str))
}

/// Headers that are the answer's own, in memory of their own: what a codec made may be cut from
/// something much larger.
pub fn own_headers(headers: &HeaderMap) -> Result<HeaderMap, &'static str> {
    let mut kept = headers.clone();
    headers::strip_hop_by_hop(&mut kept);
    headers::strip_own(&mut kept);
    kept.remove(AGE);
    kept.remove(http::header::TRAILER);
    let bytes: usize = kept.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
    if bytes > HEADER_BYTES_MAX {
        return Err("headers-too-large");
    }
    let copied = |v: &HeaderValue| HeaderValue::from_bytes(v.as_bytes());
    let mut out = HeaderMap::with_capacity(kept.len());
    for (name, value) in &kept {
        out.append(name, copied(value).map_err(|_| "headers")?);
    }
    Ok(out)
}

/// An HTTP-date in seconds since the epoch.
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

// === impl Times ===

impl Times {
    fn of(
        headers: &HeaderMap,
        said: &Directives,
        status: StatusCode,
        rule: &Cache,
        exchange: Exchange,
    ) -> Self {
        let now_s = exchange.wall_ms / 1_000;
        let date_s = date(headers, &DATE).unwrap_or(now_s);
        // §4.2.3. The first of several counts; what is no number is as good as none.
        let age = headers.get(AGE).and_then(|v| v.to_str().ok());
        let age = age.and_then(|text| seconds(text.split(',').next().map(str::trim)));
        let delay = exchange.came.0.saturating_sub(exchange.asked.0) / 1_000;
        let corrected = age.unwrap_or(0) + delay;
        let age_s = corrected.max(now_s.saturating_sub(date_s));
        let lifetime_s = lifetime(headers, said, status, rule, date_s);
        Self { age_s, came: exchange.came, lifetime_s, date_s: date_s.min(now_s) }
    }

    pub fn age_s(&self, now: Mono) -> u64 {
        self.age_s + now.0.saturating_sub(self.came.0) / 1_000
    }

    /// Seconds for which it is fresh still; negative once it is stale.
    pub fn ttl_s(&self, now: Mono) -> i64 {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        signed(self.lifetime_s) - signed(self.age_s(now))
    }

    /// The later of two.
    pub fn newness(&self) -> (u64, Mono) {
        (self.date_s, self.came)
    }
}

/// §4.2.1, the first that is there.
fn lifetime(
    headers: &HeaderMap,
    said: &Directives,
    status: StatusCode,
    rule: &Cache,
    date_s: u64,
) -> u64 {
    if let Some(seconds) = said.s_maxage.or(said.max_age) {
        return seconds;
    }
    let mut lines = headers.get_all(EXPIRES).iter();
    if let Some(first) = lines.next() {
        // Two that differ say nothing, and what is no date is the past (§5.3).
        let same = lines.all(|other| other == first);
        let at = same.then(|| date(headers, &EXPIRES)).flatten();
        return at.map_or(0, |at| at.saturating_sub(date_s));
    }
    let heuristic = HEURISTIC.contains(&status.as_u16()) || status == 308 || said.public;
    let modified = date(headers, &LAST_MODIFIED).filter(|_| heuristic);
    modified.map_or(0, |at| (date_s.saturating_sub(at) / 10).min(rule.heuristic_ms_max / 1_000))
}

// === impl Object ===

impl Object {
    /// What it takes of the cache's bytes.
    pub fn bytes(&self) -> u64 {
        let headers: usize =
            self.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 64).sum();
        let vary: usize =
            self.vary.iter().map(|(_, v)| 64 + v.as_ref().map_or(0, |v| v.len())).sum();
        (OWN_BYTES + self.body.len() + headers + vary + self.lane.len()) as u64
    }

    /// Whether a request has the values that it was made for.
    pub fn is_for(&self, lane: &str, asked: &HeaderMap) -> bool {
        let same = |(name, value): &Varies| {
            combined(asked, name).is_ok_and(|has| has.as_deref() == value.as_deref())
        };
        *self.lane == *lane && self.vary.iter().all(same)
    }

    /// §4.2.4, §5.2.1.
    pub fn verdict(&self, asked: &Directives, now: Mono) -> Verdict {
        if self.said.no_cache || asked.no_cache {
            return Verdict::Validate;
        }
        let (age, life) = (self.times.age_s(now), self.times.lifetime_s);
        let tolerated = |most: u64| age.saturating_sub(life) <= most;
        if asked.max_age.is_some_and(|most| age > most) {
            return Verdict::Validate;
        }
        if life > age {
            let enough = asked.min_fresh.is_none_or(|least| life - age >= least);
            return if enough { Verdict::Fresh } else { Verdict::Validate };
        }
        if asked.min_fresh.is_some() || self.forbids_stale() {
            return Verdict::Validate;
        }
        if asked.max_stale.is_some_and(tolerated) {
            return Verdict::Stale;
        }
        if asked.max_age.is_some() || asked.max_stale.is_some() {
            return Verdict::Validate;
        }
        match self.said.stale_while_revalidate {
            Some(most) if most > 0 && tolerated(most) => Verdict::Refresh,
            _ => Verdict::Validate,
        }
    }

    /// Whether it may be given in the place of an error (RFC 5861 §4).
    pub fn instead_of_error(&self, asked: &Directives, now: Mono) -> bool {
        if self.said.no_cache || asked.no_cache || self.forbids_stale() {
            return false;
        }
        let most = self.said.stale_if_error.max(asked.stale_if_error).max(asked.max_stale);
        let late = self.times.age_s(now).saturating_sub(self.times.lifetime_s);
        most.is_some_and(|most| most > 0 && late <= most)
    }

    fn forbids_stale(&self) -> bool {
        self.said.must_revalidate || self.said.proxy_revalidate || self.said.s_maxage.is_some()
    }

    /// The same answer after its origin said that it holds (RFC 9111 §3.2, §4.3.4).
    ///
    /// # Errors
    /// Why it cannot be stored any more.
    pub fn freshened(
        &self,
        said: &HeaderMap,
        asked: &HeaderMap,
        rule: &Cache,
        exchange: Exchange,
    ) -> Result<Self, &'static str> {
        let tag = |headers: &HeaderMap| headers.get(ETAG).cloned();
        if tag(said).is_some() && tag(said) != tag(&self.headers) {
            return Err("another-answer");
        }
        let mut headers = self.headers.clone();
        let newer = own_headers(said)?;
        for name in newer.keys() {
            if is_about_the_body(name) {
                continue;
            }
            headers.remove(name);
            newer.get_all(name).iter().for_each(|value| {
                headers.append(name, value.clone());
            });
        }
        // Its age is that of what came now.
        let mut timed = headers.clone();
        said.get(AGE).into_iter().for_each(|age| {
            timed.insert(AGE, age.clone());
        });
        let (directives, times) = storable(asked, self.status, &timed, rule, exchange)?;
        let vary = varies(&headers, asked)?;
        let (body, lane) = (self.body.clone(), self.lane.clone());
        Ok(Self { status: self.status, headers, body, said: directives, times, vary, lane })
    }
}

/// What a 304 cannot change: it would no longer fit the stored body.
fn is_about_the_body(name: &HeaderName) -> bool {
    *name == CONTENT_LENGTH
        || matches!(name.as_str(), "content-encoding" | "content-range" | "content-md5")
}

#[cfg(test)]
mod tests;
