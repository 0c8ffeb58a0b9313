// SPDX-License-Identifier: Apache-2.0
//! What faults, CORS and redirects by expression mean for one request. Chance comes in as a number.

use super::route::Request;
use crate::{Abort, AbortAnswer, Cors, Endpoint, Fault, ResourceName, Session, Share, StringMatch};

/// Headers of an answer that a browser reads.
pub type CorsHeaders = Vec<(&'static str, String)>;

/// What CORS makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsVerdict {
    /// It goes its way; these are set on its answer (none: no origin, or one without leave).
    Pass(CorsHeaders),
    /// It is a question that is answered here with these; none of them is no leave.
    Preflight(CorsHeaders),
}

/// What a fault does to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultVerdict {
    pub delay_ms: Option<u64>,
    pub abort: Option<AbortAnswer>,
}

/// Judges a fault with two points uniform in `0..Share::POINTS`; delay and abort are independent.
pub fn fault_verdict(fault: &Fault, delay_point: u64, abort_point: u64) -> FaultVerdict {
    let hit = |abort: &&Abort| abort.share.takes(abort_point);
    FaultVerdict {
        delay_ms: fault.delay.as_ref().filter(|d| d.share.takes(delay_point)).map(|d| d.ms),
        abort: fault.abort.as_ref().filter(hit).map(|a| a.answer),
    }
}

/// The share of requests that a fault aborts.
pub fn abort_share(fault: &Fault) -> Share {
    fault.abort.as_ref().map_or(Share::NONE, |a| a.share)
}

/// Judges a request of a browser. What has no `Origin` is none of CORS' business.
pub fn cors_verdict(cors: &Cors, req: &Request<'_>) -> CorsVerdict {
    let Some(origin) = text(req, "origin") else { return CorsVerdict::Pass(Vec::new()) };
    let asked_method = text(req, "access-control-request-method");
    let preflight = req.method == "OPTIONS" && asked_method.is_some();
    let allowed = cors.origins.iter().any(|o| o.holds(origin.as_bytes()));
    match (preflight, allowed) {
        (true, false) if cors.forward_unmatched => CorsVerdict::Pass(Vec::new()),
        (true, false) => CorsVerdict::Preflight(Vec::new()),
        (false, false) => CorsVerdict::Pass(Vec::new()),
        (false, true) => CorsVerdict::Pass(shared(cors, &origin)),
        (true, true) => {
            let mut out = shared(cors, &origin);
            let asked_headers = text(req, "access-control-request-headers");
            let methods = listed(&cors.methods, cors.credentials, asked_method);
            out.extend(methods.map(|m| ("access-control-allow-methods", m)));
            let headers = listed(&cors.headers, cors.credentials, asked_headers);
            out.extend(headers.map(|h| ("access-control-allow-headers", h)));
            let age = cors.max_age_s.map(|s| s.to_string());
            out.extend(age.map(|s| ("access-control-max-age", s)));
            CorsVerdict::Preflight(out)
        }
    }
}

/// What every answer to an allowed origin says.
fn shared(cors: &Cors, origin: &str) -> CorsHeaders {
    let any = cors.origins.contains(&StringMatch::Present);
    let shown = if any && !cors.credentials { "*" } else { origin };
    let mut out = vec![("access-control-allow-origin", shown.to_owned())];
    if cors.credentials {
        out.push(("access-control-allow-credentials", "true".to_owned()));
    }
    let every = cors.expose.iter().any(|h| &**h == "*");
    // `*` means nothing to a browser that sends credentials.
    if !cors.expose.is_empty() && (!every || !cors.credentials) {
        out.push(("access-control-expose-headers", cors.expose.join(", ")));
    }
    out
}

/// A list as a preflight is told it. `*` is said as it stands, but with credentials a browser
/// would take it for a name, so that what it asked for is repeated.
fn listed(
    list: &[std::sync::Arc<str>],
    credentials: bool,
    asked: Option<String>,
) -> Option<String> {
    if list.is_empty() {
        return None;
    }
    let every = list.iter().any(|item| &**item == "*");
    match (every, credentials) {
        (true, true) => asked,
        (true, false) => Some("*".to_owned()),
        (false, _) => Some(list.join(", ")),
    }
}

/// A header's only value as text; several are none that anybody can judge.
fn text(req: &Request<'_>, name: &str) -> Option<String> {
    let mut found: Vec<String> = Vec::new();
    req.headers.any(name, &mut |value| {
        found.extend(std::str::from_utf8(value).ok().map(str::to_owned));
        false
    });
    match (found.pop(), found.is_empty()) {
        (Some(only), true) if !only.is_empty() => Some(only),
        _ => None,
    }
}

/// What a session remembers of its instance: a number that tells nobody where it is.
pub fn session_token(backend: &ResourceName, endpoint: &Endpoint) -> u64 {
    let words = [backend.child.as_bytes(), endpoint.id.as_bytes()];
    let root = backend.root.to_string();
    let address = endpoint.address.to_string();
    let words = words.into_iter().chain([root.as_bytes(), address.as_bytes()]);
    // FNV-1a: the same in every proxy and release.
    words.flat_map(|word| word.iter().chain(&[0])).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A session as its client keeps it: which instance, and when it began (seconds of wall time).
pub fn session_text(token: u64, began_s: u64) -> String {
    format!("{token:016x}.{began_s:x}")
}

/// What a client kept; `None` for anything that is not of that form or over.
pub fn session_read(session: &Session, text: &str, now_s: u64) -> Option<(u64, u64)> {
    let (token, began) = text.split_once('.')?;
    let hex = |t: &str| t.bytes().all(|b| b.is_ascii_hexdigit()) && t.len() <= 16;
    if token.len() != 16 || !hex(token) || !hex(began) {
        return None;
    }
    let token = u64::from_str_radix(token, 16).ok()?;
    let began = u64::from_str_radix(began, 16).ok()?;
    let over = session.absolute_s.is_some_and(|most| now_s.saturating_sub(began) >= most);
    // One that begins later than now was made up.
    (!over && began <= now_s.saturating_add(60)).then_some((token, began))
}

/// The value of a cookie among those of a `Cookie` header.
pub fn cookie<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').find_map(|pair| {
        let (have, value) = pair.trim().split_once('=')?;
        (have == name).then_some(value)
    })
}

/// The HTTP status that says a gRPC status to a client of plain HTTP (gRPC's own table).
pub fn http_of_grpc(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The gRPC status that says an HTTP status to a gRPC client (gRPC's own table).
pub fn grpc_of_http(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
