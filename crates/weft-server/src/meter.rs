// SPDX-License-Identifier: Apache-2.0
//! What the Consul door and the DNS door did, counted: requests by their part of the API, waits
//! and what ended them, answers over DNS. Written by the doors, read by `/metrics`; all labels come
//! from lists here, whatever clients send.

use std::fmt::Write as _;

use weft_base::metrics::Cell;

/// Parts of Consul's API, by the second segment of a path. What is none of them is the last.
const PARTS: [&str; 16] = [
    "agent",
    "catalog",
    "health",
    "kv",
    "session",
    "txn",
    "event",
    "query",
    "config",
    "connect",
    "acl",
    "operator",
    "status",
    "coordinate",
    "snapshot",
    "other",
];
/// By the hundreds of an answer's status.
const CODES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
/// By number (RFC 1035, 4.1.1; RFC 6895, 2.3). What is none of them is the last.
const RCODES: [&str; 7] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];

/// The counts of one server.
#[derive(Debug, Default)]
pub struct Meter {
    requests: [[Cell; CODES.len()]; PARTS.len()],
    /// Waiting queries that were looked at again, and that went on waiting.
    woken: Cell,
    in_vain: Cell,
    answers: [Cell; RCODES.len()],
    truncated: Cell,
    limited: Cell,
}

/// A part of Consul's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part(u8);

// === impl Part ===

impl Part {
    /// Of a request's path, known or not.
    pub fn of(path: &str) -> Self {
        let named = path.strip_prefix("/v1/").unwrap_or_default();
        let named = named.split('/').next().unwrap_or_default();
        let at = PARTS.iter().position(|part| *part == named).unwrap_or(PARTS.len() - 1);
        Self(u8::try_from(at).unwrap_or(u8::MAX))
    }
}

// === impl Meter ===

impl Meter {
    /// A request was answered.
    pub fn request(&self, part: Part, status: u16) {
        let Some(code) = usize::from(status / 100).checked_sub(2) else { return };
        let cell = self.requests.get(usize::from(part.0)).and_then(|codes| codes.get(code));
        if let Some(cell) = cell {
            cell.add(1);
        }
    }

    /// A waiting query was looked at again.
    pub fn woken(&self) {
        self.woken.add(1);
    }

    /// It went on waiting.
    pub fn in_vain(&self) {
        self.in_vain.add(1);
    }

    /// An answer of DNS goes out.
    pub fn answer(&self, bytes: &[u8]) {
        let (Some(high), Some(low)) = (bytes.get(2), bytes.get(3)) else { return };
        let rcode = usize::from(low & 0x0f).min(RCODES.len() - 1);
        if let Some(cell) = self.answers.get(rcode) {
            cell.add(1);
        }
        if high & 0x02 != 0 {
            self.truncated.add(1);
        }
    }

    /// A question over UDP was not answered, or with a truncated answer only: its source asks more
    /// than it may.
    pub fn limited(&self) {
        self.limited.add(1);
    }

    /// Prometheus text format 0.0.4. `waiting`: queries that wait now.
    pub fn text(&self, waiting: usize) -> String {
        let mut out = String::new();
        let name = "weft_consul_requests_total";
        family(&mut out, name, "counter", "Requests to Consul's API by part of it and status");
        for (part, codes) in PARTS.iter().zip(&self.requests) {
            for (code, cell) in CODES.iter().zip(codes) {
                // Writing to a String does not fail.
                let _ = writeln!(out, "{name}{{part=\"{part}\",code=\"{code}\"}} {}", cell.get());
            }
        }
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        one(&mut out, "weft_consul_waiting", "gauge", "Blocking queries that wait now", waiting);
        let help =
            "Blocking queries that were looked at again, since something moved or at their end";
        one(&mut out, "weft_consul_wakeups_total", "counter", help, self.woken.get());
        let help = "Those of them that went on waiting, since they see nothing of what moved";
        one(&mut out, "weft_consul_wakeups_in_vain_total", "counter", help, self.in_vain.get());
        let name = "weft_dns_answers_total";
        family(&mut out, name, "counter", "Answers of the DNS door by code");
        for (rcode, cell) in RCODES.iter().zip(&self.answers) {
            let _ = writeln!(out, "{name}{{rcode=\"{rcode}\"}} {}", cell.get());
        }
        let help = "Answers over UDP that were cut short, to be asked for over TCP";
        one(&mut out, "weft_dns_truncated_total", "counter", help, self.truncated.get());
        let help = "Questions over UDP beyond what their source may ask in a second";
        one(&mut out, "weft_dns_limited_total", "counter", help, self.limited.get());
        out
    }
}

// === helpers ===

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    family(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_whatever_is_asked() {
        let meter = Meter::default();
        for path in ["/v1/kv/a", "/v1/kv/b", "/v1/nope", "/", "/v1/", "kv", "/v1/kvx/a"] {
            meter.request(Part::of(path), 404);
        }
        meter.request(Part::of("/v1/kv/a"), 200);
        meter.request(Part::of("/v1/kv/a"), 199);
        meter.request(Part::of("/v1/kv/a"), 999);
        let text = meter.text(3);
        for line in [
            "weft_consul_requests_total{part=\"kv\",code=\"2xx\"} 1\n",
            "weft_consul_requests_total{part=\"kv\",code=\"4xx\"} 2\n",
            "weft_consul_requests_total{part=\"other\",code=\"4xx\"} 5\n",
            "weft_consul_waiting 3\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 16 * 4 + 3 + 7 + 2);
    }

    #[test]
    fn answers_of_dns_are_told_apart_by_their_head() {
        let meter = Meter::default();
        for head in [&[0, 0, 0x84, 0x03][..], &[0, 0, 0x86, 0], &[0, 0, 0x80, 0x09], &[0]] {
            meter.answer(head);
        }
        let text = meter.text(0);
        for line in [
            "weft_dns_answers_total{rcode=\"NXDOMAIN\"} 1\n",
            "weft_dns_answers_total{rcode=\"NOERROR\"} 1\n",
            "weft_dns_answers_total{rcode=\"other\"} 1\n",
            "weft_dns_truncated_total 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
