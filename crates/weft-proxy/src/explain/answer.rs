// SPDX-License-Identifier: Apache-2.0
//! What a client would get: from an instance, or from weft itself with the status, the flag and,
//! for clients of gRPC, the code that refusals have. Made by `explain` and what it asks.

use http::header::HeaderMap;
use serde::Serialize;

use crate::http::grpc_web;
use crate::http::reply::{Cause, Refusal};
use crate::observe::flags::Flags;
use crate::observe::record::is_grpc;

/// The kind of an answer that an instance gives.
pub(super) const FORWARDED: &str = "forwarded";
/// The status of all that is told to clients of gRPC.
const GRPC_STATUS: u16 = 200;

/// What the client would get from weft itself, or that an instance answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// `forwarded`, `redirect`, `direct`, `preflight`, `refused`, or `closed` without an answer.
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flag: String,
    pub text: String,
    /// What a client of gRPC would be told instead of the status.
    #[serde(skip)]
    pub(super) grpc: Option<u16>,
}

// === impl Answer ===

impl Answer {
    /// With another status and another code of gRPC.
    pub(super) fn with(mut self, status: u16, code: u16) -> Self {
        (self.status, self.grpc) = (Some(status), Some(code));
        self
    }

    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Refuses in the words of whoever asks with these headers.
    pub(super) fn is_asked_by(&mut self, headers: &HeaderMap) {
        let in_grpc = is_grpc(headers) || grpc_web::asked(headers).is_some();
        if let Some(code) = self.grpc.take().filter(|_| in_grpc) {
            self.status = Some(GRPC_STATUS);
            self.text = format!("grpc-status {code}; {}", self.text);
        }
    }
}

pub(super) fn refused(cause: Cause, text: String) -> Answer {
    let row = cause.row();
    Answer {
        kind: "refused".into(),
        status: Some(row.status),
        flag: Flags::from(row.flag).to_string(),
        text,
        grpc: Some(row.grpc),
    }
}

/// As the proxy refuses.
pub(super) fn of_refusal(refusal: &Refusal) -> Answer {
    let row = refusal.cause.row();
    let text = match refusal.detail.is_empty() {
        true => row.what.to_owned(),
        false => format!("{}; {}", row.what, refusal.detail),
    };
    let (status, code) = (refusal.status.unwrap_or(row.status), refusal.grpc.unwrap_or(row.grpc));
    let flag = refusal.flags.to_string();
    Answer { flag, ..refused(refusal.cause, text) }.with(status, code)
}

/// What a rule answers that only fails.
pub(super) fn failing(status: u16, reason: &str) -> Answer {
    refused(Cause::of_failing(status), reason.to_owned()).with_status(status)
}

/// Nothing is answered.
pub(super) fn closed(text: String) -> Answer {
    Answer { kind: "closed".into(), text, ..Answer::default() }
}

pub(super) fn forwarded(text: String) -> Answer {
    Answer { kind: FORWARDED.into(), text, ..Answer::default() }
}
