// SPDX-License-Identifier: Apache-2.0
//! The reply table: every answer that the proxy makes itself has a status, a response flag and a
//! sentence that names route, backend, instances, last cause and next step. Sidecars send the
//! sentence to their app; a gateway shows its outside clients flag and request id only.

use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode, Version};
use weft_model::HeaderEdit;

use super::body::ReplyBody;
use super::headers::{FLAGS, NOT_FORWARDED, REQUEST_ID, edit};
use super::limits::Quota;
use crate::observe::flags::{Flag, Flags};
use crate::observe::record::Record;
use crate::table::Door;

/// Why the proxy answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    BadRequest,
    BodyTooLarge,
    Credential,
    MethodRefused,
    Plaintext,
    NotAllowed,
    NoRoute,
    NoService,
    /// Whether there is such a service could not be found out.
    NotKnown,
    NoBackend,
    NoInstance,
    Misconfigured,
    ConnectFailed,
    Reset,
    /// Its stream alone.
    StreamReset,
    /// The same, with the word that nobody looked at the request.
    StreamRefused,
    Garbage,
    AttemptTimeout,
    RequestTimeout,
    /// The client's own part of it.
    RequestLate,
    ClientGone,
    Overload,
    RateLimited,
    Shed,
    Fault,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub cause: Cause,
    pub status: u16,
    pub flag: Flag,
    /// gRPC's code for it.
    pub grpc: u16,
    pub what: &'static str,
    pub next: &'static str,
}

const fn row(
    cause: Cause,
    status: u16,
    flag: Flag,
    grpc: u16,
    what: &'static str,
    next: &'static str,
) -> Row {
    Row { cause, status, flag, grpc, what, next }
}

/// Where a proxy serves a file.
const NEXT_OF_FILE: &str = "see why with: weft explain -f FILE URL";

/// Every locally made answer.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row(Cause::BadRequest, 400, Flag::DPE, 13,
        "the request cannot be understood safely", "correct the client"),
    row(Cause::BodyTooLarge, 413, Flag::DPE, 8,
        "the request body is too large", "send less, or raise the proxy's body limit"),
    row(Cause::Credential, 407, Flag::UAEX, 16,
        "the forward proxy admits only its own app",
        "use the HTTP_PROXY of the pod's environment as it is"),
    row(Cause::MethodRefused, 405, Flag::DPE, 12,
        "CONNECT is not served here", "use the sidecar's forward proxy"),
    row(Cause::Plaintext, 403, Flag::UAEX, 7,
        "plaintext is refused here",
        "call it from a pod of the mesh, or permit plaintext on this port"),
    row(Cause::NotAllowed, 403, Flag::UAEX, 7,
        "an access policy refuses this request",
        "ask as who is allowed to, or change the policy"),
    row(Cause::NoRoute, 404, Flag::NR, 12,
        "no route takes this request",
        "see which hosts and paths are routed with: weft get httproutes -A"),
    row(Cause::NoService, 502, Flag::NR, 12,
        "no service has this name and port", "see what exists with: weft get services -A"),
    row(Cause::NotKnown, 503, Flag::NC, 14,
        "this proxy does not know the service yet, and the server does not tell",
        "see whether this proxy is connected with: weft proxy status"),
    row(Cause::NoBackend, 503, Flag::NC, 14,
        "the route's backend does not exist", "see why with: weft status"),
    row(Cause::NoInstance, 503, Flag::UH, 14,
        "no instance can take the request", "see their checks with: weft get endpoints -A -o wide"),
    row(Cause::Misconfigured, 500, Flag::NC, 13,
        "the route is not valid", "see why with: weft status"),
    row(Cause::ConnectFailed, 503, Flag::UF, 14,
        "no connection to an instance was possible",
        "see whether it listens with: weft get endpoints -A -o wide"),
    row(Cause::Reset, 503, Flag::UC, 14,
        "the instance closed the connection before it answered",
        "see which pod that is, to read its log, with: weft get endpoints -A"),
    row(Cause::StreamReset, 503, Flag::UR, 14,
        "the instance reset the request's stream before it answered",
        "see which pod that is, to read its log, with: weft get endpoints -A"),
    row(Cause::StreamRefused, 503, Flag::UR, 14,
        "the instance refused the request's stream unseen",
        "see whether it stops, or is at its limit of streams: weft get endpoints -A names its pod"),
    row(Cause::Garbage, 502, Flag::UPE, 14,
        "the instance answered with something that is not HTTP",
        "check the port's protocol (appProtocol)"),
    row(Cause::AttemptTimeout, 504, Flag::UT, 4,
        "the instance did not answer in time",
        "raise the route's backend timeout or make the service faster"),
    row(Cause::RequestTimeout, 504, Flag::UT, 4,
        "the request took longer than its route allows",
        "raise the route's request timeout or make the service faster"),
    row(Cause::RequestLate, 408, Flag::DT, 4,
        "the request did not come whole in time",
        "send it faster, or raise the time for whole requests (timeouts.receive_ms)"),
    row(Cause::ClientGone, 499, Flag::DC, 1, "the client went away", "nothing to do here"),
    row(Cause::Overload, 503, Flag::UO, 8,
        "a limit of the backend is reached", "raise the limit or add instances"),
    row(Cause::RateLimited, 429, Flag::RL, 8,
        "a rate limit is reached", "wait as Retry-After says, or raise the limit"),
    row(Cause::Shed, 503, Flag::OM, 8,
        "this proxy has no memory to spare",
        "try again later; give it more memory or fewer connections"),
    row(Cause::Fault, 503, Flag::FI, 14,
        "the route's fault policy aborts this request", "take the fault out of the route"),
];

/// A locally made answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub cause: Cause,
    /// Other than the table's, when the configuration says so.
    pub status: Option<u16>,
    pub grpc: Option<u16>,
    pub flags: Flags,
    /// What exactly, for this request.
    pub detail: String,
    /// Retries that were wanted and why they stopped.
    pub retries: Option<String>,
    /// The rate limit that it is beyond.
    pub quota: Option<Quota>,
    /// What its rule makes of an answer's headers.
    pub edits: Box<[HeaderEdit]>,
}

// === impl Refusal ===

impl Refusal {
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            status: None,
            grpc: None,
            flags: cause.row().flag.into(),
            detail: detail.into(),
            retries: None,
            quota: None,
            edits: Box::default(),
        }
    }

    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    #[must_use]
    pub fn with_grpc(mut self, code: u16) -> Self {
        self.grpc = Some(code);
        self
    }

    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = Some(quota);
        self
    }

    /// The whole sentence.
    pub fn sentence(&self, record: &Record) -> String {
        let row = self.cause.row();
        let mut text = String::from(row.what);
        let mut part = |name: &str, value: &str| {
            if !value.is_empty() {
                text.push_str("; ");
                text.push_str(name);
                text.push_str(value);
            }
        };
        part("", &self.detail);
        if let Some(to) = record.conn.original {
            part("original destination: ", &to.to_string());
        }
        part("route: ", record.route.as_deref().unwrap_or_default());
        if let Some(backend) = &record.backend {
            part("backend: ", &backend.label());
        }
        if let Some((healthy, total)) = record.instances() {
            part("instances healthy: ", &format!("{healthy} of {total}"));
        }
        if record.attempts > 0 {
            part("attempts: ", &record.attempts.to_string());
        }
        part("", self.retries.as_deref().unwrap_or_default());
        match record.last_cause.as_deref() {
            Some(last) if last != self.detail => part("last cause: ", last),
            _ => {}
        }
        part("next: ", row.next(record.worker.config.from_file));
        text
    }

    /// Makes the answer and completes the record but for its body.
    pub fn answer(self, record: &mut Record) -> Response<ReplyBody> {
        let row = self.cause.row();
        let status = self.status.unwrap_or(row.status);
        let sentence = self.sentence(record);
        for (flag, _, _) in crate::observe::flags::FLAGS {
            if self.flags.has(*flag) {
                record.flags.add(*flag);
            }
        }
        let outside = matches!(record.conn.door, Door::Gateway(_));
        // A stream whose peer opens no window would go on holding what it is told.
        let silent = self.cause == Cause::Shed && record.version >= Version::HTTP_2;
        let shown = match outside {
            _ if silent => String::new(),
            true => self.outside(record),
            false => sentence.clone(),
        };
        let code = self.grpc.unwrap_or(row.grpc);
        // A browser's is made of it, also where nobody knows yet what its backend would speak.
        let in_grpc = record.is_grpc || record.web.is_some();
        let mut response = if in_grpc { grpc(code, &shown, record) } else { plain(status, shown) };
        let headers = response.headers_mut();
        if let Ok(flags) = HeaderValue::from_str(&record.flags.to_string()) {
            headers.insert(FLAGS, flags);
        }
        if let (true, Some(id)) = (outside, &record.request_id) {
            headers.insert(REQUEST_ID, id.clone());
        }
        let unsent = matches!(self.cause, Cause::ConnectFailed | Cause::StreamRefused);
        if record.conn.door == Door::Mesh && unsent {
            headers.insert(NOT_FORWARDED, HeaderValue::from_static("1"));
        }
        if let Some(quota) = &self.quota {
            quota.tell(headers);
        }
        self.edits.iter().for_each(|with| edit(headers, with));
        if self.cause == Cause::Credential {
            let ask = HeaderValue::from_static("Basic realm=\"weft\"");
            headers.insert(http::header::PROXY_AUTHENTICATE, ask);
        }
        record.status = response.status().as_u16();
        record.sentence = Some(sentence);
        response
    }

    /// What an outside client is told.
    fn outside(&self, record: &Record) -> String {
        let id = record.request_id.as_ref().and_then(|v| v.to_str().ok()).unwrap_or("-");
        let mut flags = record.flags.to_string();
        if record.flags.is_empty() {
            flags = self.flags.to_string();
        }
        format!("{flags} {id}")
    }
}

impl Row {
    /// What to do, where there may be no server that could be asked.
    pub fn next(&self, from_file: bool) -> &'static str {
        if from_file && self.next.contains(": weft ") { NEXT_OF_FILE } else { self.next }
    }
}

impl Cause {
    /// Why a rule answers that only fails: 404 says that there is none for the request.
    pub fn of_failing(status: u16) -> Self {
        if status == 404 { Self::NoRoute } else { Self::Misconfigured }
    }

    pub fn row(self) -> &'static Row {
        TABLE.iter().find(|r| r.cause == self).expect("the table is complete: a test walks it")
    }
}

/// A gateway passes on what the called sidecar answered itself: its sentence names instances and
/// is in its own log under the same request id, so outside clients get flags and id here too.
pub fn hide(response: &mut Response<ReplyBody>, flags: &HeaderValue, record: &Record) {
    let id = record.request_id.as_ref().and_then(|v| v.to_str().ok()).unwrap_or("-");
    let shown = format!("{} {id}", flags.to_str().unwrap_or("-"));
    let headers = response.headers_mut();
    headers.remove(http::header::CONTENT_LENGTH);
    if headers.contains_key("grpc-status") {
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&shown)) {
            headers.insert("grpc-message", message);
        }
        return;
    }
    *response.body_mut() = ReplyBody::full(shown + "\n");
}

/// A redirect or a direct answer of a rule: no failure, no flag.
pub fn direct(record: &mut Record, status: u16, body: &str) -> Response<ReplyBody> {
    record.status = status;
    // What the user wrote, to the byte.
    text(status, body.to_owned())
}

pub fn redirect(record: &mut Record, status: u16, location: &str) -> Response<ReplyBody> {
    record.status = status;
    let mut response = Response::new(ReplyBody::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND);
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn plain(status: u16, line: String) -> Response<ReplyBody> {
    text(status, if line.is_empty() { line } else { line + "\n" })
}

fn text(status: u16, body: String) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Trailers-only: status and message in the head, as gRPC clients expect of a proxy.
fn grpc(code: u16, message: &str, record: &mut Record) -> Response<ReplyBody> {
    record.grpc_status = Some(code);
    let mut response = Response::new(ReplyBody::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        headers.insert("grpc-message", message);
    }
    response
}

/// gRPC's encoding of messages: printable ASCII but for `%`.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if (b' '..=b'~').contains(&b) && b != b'%' {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_and_says_what_to_do() {
        use Cause::*;
        for cause in [
            BadRequest,
            BodyTooLarge,
            Credential,
            MethodRefused,
            Plaintext,
            NotAllowed,
            NoRoute,
            NoService,
            NotKnown,
            NoBackend,
            NoInstance,
            Misconfigured,
            ConnectFailed,
            Reset,
            StreamReset,
            StreamRefused,
            Garbage,
            AttemptTimeout,
            RequestTimeout,
            RequestLate,
            ClientGone,
            Overload,
            RateLimited,
            Shed,
            Fault,
        ] {
            let row = cause.row();
            assert_eq!(row.cause, cause);
            assert!(!row.next.is_empty() && !row.what.ends_with('.'));
            let of_file = row.next(true);
            assert!(of_file == NEXT_OF_FILE || !of_file.contains("weft "), "{of_file}");
            assert_eq!(row.next(false), row.next);
        }
        assert_eq!(percent_encoded("100% ü"), "100%25 %C3%BC");
    }
}
