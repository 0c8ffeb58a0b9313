// SPDX-License-Identifier: Apache-2.0
//! What a rule asks for before a request goes on: an answer to a browser's question, trouble made
//! on purpose. Called by the phases; decides nothing, the model does.

use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use weft_identity::SpiffeId;
use weft_model::decide::{AccessVerdict, Client, access_verdict};
use weft_model::decide::{CorsHeaders, CorsVerdict, cors_verdict, fault_verdict};
use weft_model::decide::{grpc_of_http, http_of_grpc};
use weft_model::{AbortAnswer, Access, Cors, Fault, Share};

use super::body::ReplyBody;
use super::normalise::{HeaderView, readings};
use super::reply::{Cause, Refusal};
use super::route::{self, Asked};
use crate::observe::flags::Flag;
use crate::observe::record::Record;
use crate::worker::{Conn, Worker};

/// What a browser is told: with its answer, or at once.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Moved once.
pub enum Cross {
    Pass(CorsHeaders),
    Answer(Response<ReplyBody>),
}

/// Refuses what the rule's lists do not let pass; what they say is for the log, not for the client.
///
/// # Errors
/// The refusal, which names the policy.
pub fn admit(lists: &[&Access], conn: &Conn, head: &Parts, asked: &Asked) -> Result<(), Refusal> {
    if lists.is_empty() {
        return Ok(());
    }
    let headers = HeaderView(&head.headers);
    let request = route::view(head, &headers, conn.scheme, asked);
    let identity = conn.peer.as_ref().map(SpiffeId::as_str);
    let client = Client { ip: conn.remote.ip(), identity, names: &conn.client_names };
    // However a server behind may read the path, it must be allowed to be asked for.
    let others = readings(request.path);
    let paths = std::iter::once(request.path).chain(others.iter().map(String::as_str));
    for (access, path) in paths.flat_map(|path| lists.iter().map(move |access| (access, path))) {
        let request = weft_model::decide::Request { path, ..request };
        if let AccessVerdict::Refuse(by) = access_verdict(access, &request, &client) {
            let detail = match by {
                Some(policy) => format!("policy {:?} denies it", &*policy.name),
                None => "no policy allows it".to_owned(),
            };
            return Err(Refusal::new(Cause::NotAllowed, detail));
        }
    }
    Ok(())
}

pub fn cross(cors: &Cors, conn: &Conn, head: &Parts, asked: &Asked) -> Cross {
    let view_headers = HeaderView(&head.headers);
    match cors_verdict(cors, &route::view(head, &view_headers, conn.scheme, asked)) {
        CorsVerdict::Pass(headers) => Cross::Pass(headers),
        CorsVerdict::Preflight(headers) => {
            let mut response = Response::new(ReplyBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            tell(response.headers_mut(), &headers);
            Cross::Answer(response)
        }
    }
}

/// Replaces what the app said about CORS by what its route says.
pub fn tell(headers: &mut HeaderMap, cors: &CorsHeaders) {
    for (name, value) in cors {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(*name, value);
        }
    }
    // Caches must not give one origin's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// Delays or aborts a request that chance picks.
///
/// # Errors
/// The refusal to abort with.
pub async fn inject(
    worker: &Rc<Worker>,
    fault: &Fault,
    record: &mut Record,
) -> Result<(), Refusal> {
    let point = || worker.rng.borrow_mut().below(Share::POINTS);
    let verdict = fault_verdict(fault, point(), point());
    if let Some(ms) = verdict.delay_ms {
        record.flags.add(Flag::DI);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let Some(answer) = verdict.abort else { return Ok(()) };
    let (status, grpc, what) = match answer {
        AbortAnswer::Http(status) => (status, grpc_of_http(status), format!("status {status}")),
        AbortAnswer::Grpc(code) => (http_of_grpc(code), code, format!("grpc-status {code}")),
    };
    Err(Refusal::new(Cause::Fault, what).with_status(status).with_grpc(grpc))
}
