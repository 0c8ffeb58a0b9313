// SPDX-License-Identifier: Apache-2.0
//! Fields as HTTP/2 carries them: what belongs to a connection of HTTP/1 is left out, and values
//! that no second message has are kept out of the tables by which both sides shorten the others:
//! there they would drive out what comes again, and make every look-up long. Called by both drivers
//! with a head that is about to be sent, and with what came.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};

use crate::guards;

/// Belong to a connection of HTTP/1.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usual,
    /// One message's own.
    Own,
    /// One connection's.
    Hop,
}

/// Makes ready the fields of an answer, whoever made them.
pub(super) fn of_answer(headers: &mut HeaderMap) {
    if mark(headers) {
        for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
            headers.remove(name);
        }
    }
}

/// The same of a request, of which the phases have left out what is a connection's.
pub(super) fn of_request(headers: &mut HeaderMap) {
    mark(headers);
}

/// Takes the blanks off the ends of values, as who reads a field must (RFC 9110 §5.5): HTTP/1 cuts
/// them off, and a server behind would read another value than rules did. Not refused, as RFC 9113
/// §8.2.1 has it: servers of gRPC end messages with them.
pub(super) fn trim(headers: &mut HeaderMap) {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let padded = |value: &HeaderValue| {
        is_blank(value.as_bytes().first()) || is_blank(value.as_bytes().last())
    };
    if !headers.values().any(padded) || !guards::on("h2-blank") {
        return;
    }
    for value in headers.values_mut().filter(|value| padded(value)) {
        let rest = value.as_bytes().trim_ascii();
        // A part of a value is one.
        *value = HeaderValue::from_bytes(rest).unwrap_or_else(|_| HeaderValue::from_static(""));
    }
}

/// Whether there is any field of a connection.
fn mark(headers: &mut HeaderMap) -> bool {
    let mut hop = false;
    for (name, value) in headers.iter_mut() {
        match kind(name) {
            Kind::Usual => {}
            Kind::Own => value.set_sensitive(true),
            Kind::Hop => hop = true,
        }
    }
    hop
}

fn kind(name: &HeaderName) -> Kind {
    match name.as_str() {
        "x-request-id" | "traceparent" | "tracestate" | "b3" | "x-b3-traceid" | "x-b3-spanid"
        | "x-b3-parentspanid" | "grpc-timeout" => Kind::Own,
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => {
            Kind::Hop
        }
        _ => Kind::Usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[&'static str]) -> HeaderMap {
        let value = HeaderValue::from_static("x");
        names.iter().map(|name| (HeaderName::from_static(name), value.clone())).collect()
    }

    #[test]
    fn what_is_a_connections_is_left_out_and_nothing_else() {
        let hop = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
        for name in hop {
            let mut fields = headers(&["content-type", name, "x-a"]);
            fields.append(name, HeaderValue::from_static("again"));
            of_answer(&mut fields);
            assert_eq!(fields, headers(&["content-type", "x-a"]), "{name}");
        }
        let mut fields = headers(&["te", "trailer", "upgrade-insecure-requests", "date"]);
        of_answer(&mut fields);
        assert_eq!(fields.len(), 4);
    }

    #[test]
    fn blanks_are_taken_off_the_ends_of_values_and_nothing_else() {
        let mut fields = HeaderMap::new();
        for value in ["", "a b", " ", "\ta", "a ", "\t a\tb \t"] {
            fields.append("x-a", HeaderValue::from_static(value));
        }
        trim(&mut fields);
        let left: Vec<&str> =
            fields.get_all("x-a").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(left, ["", "a b", "", "a", "a", "a\tb"]);
    }

    #[test]
    fn values_of_one_message_stay_out_of_tables() {
        let mut fields = headers(&["x-request-id", "traceparent", "b3", "user-agent", "accept"]);
        fields.append("b3", HeaderValue::from_static("another"));
        of_request(&mut fields);
        for (name, value) in &fields {
            let own = !["user-agent", "accept"].contains(&name.as_str());
            assert_eq!(value.is_sensitive(), own, "{name}");
        }
    }
}
