// SPDX-License-Identifier: Apache-2.0
//! CONNECT on a gateway. It is off: only a rule that names the method itself opens a tunnel, to
//! the rule's backend and nowhere else, whatever the client names. The client is told that it may
//! speak once the backend is connected; not a byte of what it sent before that goes anywhere else.
//! Called by the phases; the forward proxy and the mesh port have a CONNECT of their own.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, Response};
use weft_model::StringMatch;
use weft_model::decide::Found;

use super::body::ReplyBody;
use super::plan::Plan;
use super::reply::{Cause, Refusal};
use crate::guards;
use crate::h1::Handover;
use crate::observe::record::Record;
use crate::tcp::relay;
use crate::tcp::route::{Way, idle, longest};
use crate::upstream::pick::LocalBackend;
use crate::worker::{Conn, Worker};

/// Takes the client's end out of a CONNECT's head.
pub fn wanted(head: &mut Parts) -> Option<Handover> {
    if head.method != Method::CONNECT {
        return None;
    }
    head.extensions.remove::<Handover>()
}

/// Whether a rule is for this method.
///
/// # Errors
/// The refusal of a CONNECT that no rule names.
pub fn permit(head: &Parts, found: &Found<'_>) -> Result<(), Refusal> {
    let names = |m: &StringMatch| matches!(m, StringMatch::Exact(method) if &**method == "CONNECT");
    let named = || found.matched.and_then(|m| m.method.as_ref()).is_some_and(names);
    let fits = head.method != Method::CONNECT || named() || !guards::on("connect-named");
    if fits { Ok(()) } else { Err(refused()) }
}

/// What a CONNECT is answered that no route takes at all.
pub fn unrouted(head: &Parts, refusal: Refusal) -> Refusal {
    if head.method == Method::CONNECT { refused() } else { refusal }
}

fn refused() -> Refusal {
    Refusal::new(Cause::MethodRefused, "no rule of this gateway names the method CONNECT")
}

/// Connects the backend, and joins both once the answer is out.
///
/// # Errors
/// Why there is no connection.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    client: Handover,
    backend: &RefCell<LocalBackend>,
    plan: &Plan<'_>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let timeouts = &plan.timeouts;
    let entry = backend.borrow().entry.clone();
    let way = Way { backend: Arc::clone(&entry), idle: idle(timeouts), longest: longest(timeouts) };
    let opening = relay::asked(worker, conn, relay::begin_at(worker, conn, way)).await?;
    record.status = 200;
    record.backend = Some(entry);
    record.attempts = opening.tries();
    if let Some((picked, tunnel)) = &opening.upstream {
        (record.endpoint, record.upstream) = (Some(picked.clone()), tunnel.facts());
    }
    let (body, heir) = ReplyBody::bequeathed();
    relay::go_on(worker, conn, (client, heir), opening);
    Ok(Response::new(body))
}
