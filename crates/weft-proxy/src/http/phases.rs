// SPDX-License-Identifier: Apache-2.0
//! The order in which a request is handled, written once, to be read from top to bottom.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, Uri};
use weft_model::decide::{Authority, Found, redirect_location};
use weft_model::{Action, Match, Protocol, Redirect, Target};

use super::admit;
use super::attempt::{self, Call};
use super::body::{Replay, ReplyBody};
use super::cache::{self, Asking, Given};
use super::clean;
use super::interim::Interim;
use super::limits;
use super::made::{self, Text};
use super::mirror::{self, Original};
use super::normalise::{self, HeaderView};
use super::plan::{self, Plan};
use super::policy::{self, Cross};
use super::present::Present;
use super::reply::{self, Cause, Refusal};
use super::rewritten::rewritten;
use super::route::{self, Asked, Choice};
use super::serve::Received;
use super::session::Kept;
use super::upgrade::Upgrade;
use super::{grpc_web, headers, slashes, tunnel, upgrade};
use crate::capture;
use crate::config::UnknownDestinations;
use crate::guards;
use crate::observe::quick;
use crate::observe::record::Record;
use crate::on_demand;
use crate::pinned::Pinned;
use crate::sys::pooled::Pooled;
use crate::table::{BackendEntry, Door, Table};
use crate::tcp::relay;
use crate::upstream::pick::LocalBackend;
use crate::upstream::pool::Client;
use crate::worker::{Conn, Worker};

/// What becomes of a request once its rule is known.
#[allow(clippy::large_enum_variant)] // Moved once.
enum Next {
    Forward(Rc<std::cell::RefCell<LocalBackend>>),
    Answer(Response<ReplyBody>),
}

/// A request as its backend gets it.
struct Ready<'t> {
    head: Parts,
    body: Replay,
    authority: Text,
    backend: Rc<RefCell<LocalBackend>>,
    interim: Option<Rc<Interim>>,
    upgrade: Option<Upgrade>,
    cache: Option<cache::Ruled<'t>>,
}

/// Handles one request; always answers.
pub async fn handle(
    worker: Rc<Worker>,
    conn: Rc<Conn>,
    request: Request<Received>,
) -> Response<ReplyBody> {
    let mut record = Pooled::new(Record::begin(&worker, &conn, &request));
    // Boxed: an idle HTTP/1 connection keeps room for this future, and run's is the large one.
    let result = Pooled::pin(|| run(&worker, &conn, request, &mut record)).await;
    let mut ends = worker.conns.is_draining();
    let mut response = match result {
        Ok(response) => response,
        Err(refusal) => {
            // Whoever sends what can be read in two ways, or does not come to an end, is not
            // listened to any further.
            ends |= matches!(refusal.cause, Cause::BadRequest | Cause::RequestLate);
            refusal.answer(&mut record)
        }
    };
    record.status = response.status().as_u16();
    if record.grpc_status.is_none() {
        record.grpc_status = crate::observe::record::grpc_status(response.headers());
    }
    if let Some(web) = record.web {
        response = web.answer(response);
    }
    if !record.cross.is_empty() {
        policy::tell(response.headers_mut(), &record.cross);
    }
    record.note_response(response.headers());
    if ends && record.version < http::Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| body.recorded(record))
}

/// What stands for the host that HTTP/1.0 need not name: where its client connected to. The other
/// doors are dialled for many hosts, and by that address they would forward to themselves.
fn stands_for_host(conn: &Conn) -> Option<SocketAddr> {
    let own = || matches!(conn.door, Door::Gateway(_)).then_some(conn.local);
    conn.original.or_else(own)
}

/// The phases.
async fn run(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    mut request: Request<Received>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    // 1. One canonical form, or none.
    let authority = normalise::canonical(&request, stands_for_host(conn))
        .map_err(|why| Refusal::new(Cause::BadRequest, why))?;
    record.authority = Some(shown(&authority));
    let moved = slashes::request(worker, conn, &mut request)?;

    // 2. Who may use this door, and whether there is room.
    admit::admit(worker, conn, &request)?;
    if let Some(to) = moved {
        return Ok(reply::redirect(record, 307, &to));
    }
    if request.method() == Method::CONNECT && !matches!(conn.door, Door::Gateway(_)) {
        return rare(admit::connect(worker, conn, request, &authority, record)).await;
    }

    // 3. Headers that must not pass, and those that every request has.
    let (mut head, received) = request.into_parts();
    let tunnel = tunnel::wanted(&mut head);
    let upgrade = upgrade::wanted(&mut head, conn);
    let interim = received.interim();
    let body = replay(received, worker.config.limits.body_bytes_max)?;
    record.body = body.clone();
    clean::request(worker, conn, &mut head, record)?;

    // 4. Route: pin the table, let the model choose.
    let asked = route::asked(conn, &authority);
    let table = table(worker, conn, &asked).await?;
    record.generation = table.generation;
    let choice = chosen(&table, conn, &head, &asked)?;

    // 5. What the rule says: its answer to a browser, trouble on purpose, filters in written
    //    order, an answer of its own, or a backend.
    let mut plan = Plan::at(&conn.door);
    let following = follow(worker, conn, &head, &asked, choice, &table, &mut plan, record);
    let backend = match following.await.map_err(|why| plan.said(why))? {
        Next::Answer(response) => return Ok(response),
        Next::Forward(backend) => backend,
    };
    let protocols = upgrade.as_ref().map(Upgrade::protocols);
    upgrade::judge(protocols, plan.upgrades).map_err(|why| plan.said(why))?;
    let plain = tunnel.is_none() && upgrade.is_none();
    let cache = cache::rule(conn, &plan, &authority, &head).filter(|_| plain);
    if cache.is_none() {
        let room = protect(worker, conn, &head, &body, &backend, &mut plan);
        room.map_err(|why| plan.said(why))?;
    }
    if let Some(client) = tunnel {
        let granted = rare(tunnel::forward(worker, conn, client, &backend, &plan, record)).await;
        return granted.map_err(|why| plan.said(why));
    }
    browser(&mut head, &body, &backend, record);
    let applied = apply(&plan, &mut head, &asked, authority);
    let authority = applied.map_err(|why| plan.said(why))?;

    let ready = Ready { head, body, authority, backend, interim, upgrade, cache };
    exchange(worker, conn, ready, plan, record).await
}

/// The phases of a request that is as its backend gets it.
async fn exchange<'t>(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    ready: Ready<'t>,
    mut plan: Plan<'t>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let Ready { mut head, body, authority, backend, interim, upgrade, cache } = ready;
    // 6. An answer that is stored, or leave to fetch one.
    let mut fetch = None;
    if let Some(rule) = cache {
        let (head, body, backend) = (&mut head, &body, &backend);
        let asking = stored(worker, conn, head, body, &authority, backend, &plan, rule, record);
        match rare(asking).await {
            Given::Answer(response) => return Ok(response),
            Given::Fetch(it) => fetch = Some(it),
            Given::Refused(why) => return Err(plan.said(why)),
        }
        let room = protect(worker, conn, head, body, backend, &mut plan);
        room.map_err(|why| plan.said(why))?;
        fetch.iter().for_each(|fetch| fetch.shorten(&mut plan.timeouts));
    }

    // 7. Copies for mirrors; attempts, until there is an answer to pass on.
    let (version, scheme) = (head.version, conn.scheme);
    let (timeouts, retry) = (&plan.timeouts, &plan.retry);
    let pinned = plan.kept.as_ref().and_then(|kept| kept.endpoint(worker, &backend));
    let call = Call {
        worker,
        backend,
        head,
        body,
        authority,
        scheme,
        version,
        timeouts,
        retry,
        interim,
        pinned,
        client: Client::Of(conn),
    };
    let sent = sent(call, upgrade, &plan, record).await;
    let answered = match fetch {
        None => sent,
        Some(fetch) => fetch.answered(sent, record),
    };
    let mut response = answered.map_err(|why| plan.said(why))?;

    // 8. The answer's headers.
    settle(conn, &plan, &mut response, record);
    Ok(response)
}

/// Asks the gateway's store, and finishes what it answers.
#[allow(clippy::too_many_arguments)] // The phases' own state; a struct would be used only here.
async fn stored(
    worker: &Rc<Worker>,
    conn: &Conn,
    head: &mut Parts,
    body: &Replay,
    authority: &str,
    backend: &Rc<RefCell<LocalBackend>>,
    plan: &Plan<'_>,
    (rule, url): cache::Ruled<'_>,
    record: &mut Record,
) -> Given {
    let scheme = conn.scheme;
    let asking = Asking { worker, conn, head, body, authority, scheme, backend, plan, rule, url };
    let mut given = cache::ask(asking, record).await;
    if let Given::Answer(response) = &mut given {
        settle(conn, plan, response, record);
    }
    given
}

/// Sends a request until there is an answer to pass on, and copies of it to its mirrors.
async fn sent(
    mut call: Call<'_>,
    upgrade: Option<Upgrade>,
    plan: &Plan<'_>,
    record: &mut Record,
) -> Result<Response<ReplyBody>, Refusal> {
    let Call { worker, head, body, authority, scheme, timeouts, client, .. } = &call;
    let (authority, scheme, grpc) = (&**authority, *scheme, record.is_grpc);
    let original = Original { head, body, authority, scheme, grpc, client };
    mirror::send(worker, original, &plan.mirrors, timeouts);
    if let Some(upgrade) = upgrade {
        return rare(upgrade::forward(upgrade, call, record)).await;
    }
    let answered = match call.timeouts.receive_ms {
        Some(1..) if !call.body.is_whole() => rare(attempt::whole(&call, record)).await,
        _ => attempt::forward(&call, record).await,
    };
    // Nobody reads them behind this.
    made::give_back(std::mem::take(&mut call.head.headers));
    answered
}

/// A browser's call to a backend that speaks gRPC becomes one it understands.
fn browser(
    head: &mut Parts,
    body: &Replay,
    backend: &std::cell::RefCell<LocalBackend>,
    record: &mut Record,
) {
    if backend.borrow().entry.protocol == Protocol::Grpc && !record.is_grpc {
        record.web = grpc_web::translate(&mut head.headers, body);
        record.is_grpc = record.web.is_some();
    }
}

/// What a rule asks for before a request goes on: who may, its answer to a browser's question, then
/// trouble on purpose, which a browser must be able to read too.
async fn before(
    worker: &Rc<Worker>,
    conn: &Conn,
    head: &Parts,
    asked: &Asked,
    plan: &Plan<'_>,
    record: &mut Record,
) -> Result<Option<Response<ReplyBody>>, Refusal> {
    if !plan.cors_first {
        policy::admit(&plan.access, conn, head, asked)?;
    }
    if let Some(cors) = plan.cors {
        match policy::cross(cors, conn, head, asked) {
            Cross::Pass(headers) => record.cross = headers,
            Cross::Answer(response) => return Ok(Some(response)),
        }
    }
    if plan.cors_first {
        policy::admit(&plan.access, conn, head, asked)?;
    }
    limits::admit(worker, conn, &head.headers, &plan.limits)?;
    if let Some(fault) = plan.fault {
        rare(policy::inject(worker, fault, record)).await?;
    }
    Ok(None)
}

/// What the backend is protected from, whatever rule leads to it.
fn protect(
    worker: &Worker,
    conn: &Conn,
    head: &Parts,
    body: &Replay,
    backend: &RefCell<LocalBackend>,
    plan: &mut Plan<'_>,
) -> Result<(), Refusal> {
    let entry = backend.borrow().entry.clone();
    if let Some(protection) = entry.backend.policy.protection.as_deref() {
        let own: Vec<_> = protection.rate_limits.iter().collect();
        limits::admit(worker, conn, &head.headers, &own)?;
        protection.body_bytes_max.into_iter().for_each(|bytes| plan.narrow(bytes));
        plan.timeouts.fill(&protection.timeouts);
    }
    match plan.body_bytes_max {
        None => Ok(()),
        Some(bytes_max) => body.narrow(bytes_max).map_err(|bytes| too_large(bytes, bytes_max)),
    }
}

/// The newest table; when it cannot judge what is asked for, the first one that can.
async fn table(worker: &Worker, conn: &Conn, asked: &Asked) -> Result<Pinned<Table>, Refusal> {
    if on_demand::is_unknown(worker, conn, Some(&asked.host)) {
        let known = rare(on_demand::known(worker, conn, Some(&asked.host))).await;
        known.map_err(|why| Refusal::new(Cause::NotKnown, why))?;
    }
    Ok(worker.table())
}

/// What few requests do has no room in the future of all.
fn rare<F: Future>(future: F) -> Pin<Box<F>> {
    Box::pin(future)
}

/// A body that says itself that it is too large is not even begun.
fn replay(body: Received, bytes_max: u64) -> Result<Replay, Refusal> {
    match http_body::Body::size_hint(&body).exact() {
        Some(bytes) if bytes_max != 0 && bytes > bytes_max => Err(too_large(bytes, bytes_max)),
        _ => Ok(Replay::new(body, bytes_max)),
    }
}

fn too_large(bytes: u64, bytes_max: u64) -> Refusal {
    let detail = format!("it has {bytes} bytes, at most {bytes_max} are allowed");
    Refusal::new(Cause::BodyTooLarge, detail)
}

/// Follows what was chosen to a backend or an answer.
#[allow(clippy::too_many_arguments)] // The phases' own state; a struct would be used only here.
async fn follow<'t>(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    head: &Parts,
    asked: &Asked,
    choice: Choice<'t>,
    table: &'t Table,
    plan: &mut Plan<'t>,
    record: &mut Record,
) -> Result<Next, Refusal> {
    let next = match choice {
        Choice::Rule(found) => {
            tunnel::permit(head, &found)?;
            rule(worker, conn, head, asked, &found, table, plan, record).await?
        }
        Choice::Backend(backend) => {
            let entry = || Ok::<_, Refusal>(backend.clone());
            Next::Forward(worker.backend_at(&**backend, table, entry)?)
        }
        Choice::Own(backend) => Next::Forward(worker.backend(&backend)),
        Choice::Outside(target) => {
            Next::Forward(rare(outside(worker, conn, &target, record)).await?)
        }
    };
    let next = match next {
        Next::Forward(backend) => Next::Forward(capture::dialled(worker, conn, table, backend)),
        answer @ Next::Answer(_) => answer,
    };
    if let (Next::Forward(backend), false) = (&next, record.passthrough) {
        record.backend = Some(backend.borrow().entry.clone());
    }
    Ok(next)
}

/// What the model says of a request.
fn chosen<'t>(
    table: &'t Table,
    conn: &Conn,
    head: &Parts,
    asked: &Asked,
) -> Result<Choice<'t>, Refusal> {
    let headers = HeaderView(&head.headers);
    let view = route::view(head, &headers, conn.scheme, asked);
    route::choose(table, conn, &view).map_err(|why| tunnel::unrouted(head, why))
}

/// Follows a rule to its backend or its own answer.
#[allow(clippy::too_many_arguments)] // The phases' own state; a struct would be used only here.
async fn rule<'t>(
    worker: &Rc<Worker>,
    conn: &Conn,
    head: &Parts,
    asked: &Asked,
    found: &Found<'t>,
    table: &'t Table,
    plan: &mut Plan<'t>,
    record: &mut Record,
) -> Result<Next, Refusal> {
    record.route = Some(route::label(found));
    plan.take(found);
    if let Some(answer) = before(worker, conn, head, asked, plan, record).await? {
        return Ok(Next::Answer(answer));
    }
    let mut answer = match &found.rule.action {
        Action::Forward(backends) => {
            plan.kept = found.rule.session.as_ref().map(|s| Kept::read(s, head, worker));
            let kept = plan.kept.as_ref().and_then(|kept| kept.share(worker, table, backends));
            let chosen = kept.map_or_else(|| plan::share(worker, backends), Ok)?;
            plan.filters(&chosen.filters);
            return target(worker, table, &chosen.target).map(Next::Forward);
        }
        Action::Redirect(redirect) => {
            redirected(conn, head, asked, redirect, found.matched, record)
        }
        Action::Direct { status, body } => reply::direct(record, *status, body),
        Action::Fail { status, reason } => {
            return Err(Refusal::new(Cause::of_failing(*status), &**reason).with_status(*status));
        }
    };
    plan.edit_response(&mut answer);
    Ok(Next::Answer(answer))
}

fn target(
    worker: &Rc<Worker>,
    table: &Table,
    target: &Target,
) -> Result<Rc<std::cell::RefCell<LocalBackend>>, Refusal> {
    match target {
        Target::Backend(name) => worker.backend_at(target, table, || {
            table.backend(name).cloned().ok_or_else(|| {
                let why = table
                    .fail(name)
                    .map_or_else(|| format!("{name} is not known here"), |f| f.reason.to_string());
                Refusal::new(Cause::NoBackend, why)
            })
        }),
        Target::Fail { status, reason } => {
            Err(Refusal::new(Cause::NoBackend, &**reason).with_status(*status))
        }
    }
}

/// A destination that the mesh does not know, as a backend of one endpoint.
async fn outside(
    worker: &Rc<Worker>,
    conn: &Conn,
    target: &Authority,
    record: &mut Record,
) -> Result<Rc<std::cell::RefCell<LocalBackend>>, Refusal> {
    if let (Door::Outbound, Some(to)) = (&conn.door, conn.original) {
        let entry = capture::egress(worker, &worker.table(), to).map_err(|why| {
            record.denied = true;
            Refusal::new(Cause::NoService, why)
        })?;
        record.passthrough = true;
        return Ok(worker.backend(&entry));
    }
    let unknown = || format!("{}:{}", target.host, target.port.unwrap_or(80));
    record.denied = worker.config.unknown == UnknownDestinations::Deny;
    if record.denied {
        let detail = format!("{} is not in the mesh, and others are denied", unknown());
        return Err(Refusal::new(Cause::NoService, detail));
    }
    record.passthrough = true;
    let address = relay::resolve(worker, target)
        .await
        .map_err(|why| Refusal::new(Cause::NoService, format!("{}: {why}", unknown())))?;
    if address == conn.local {
        return Err(Refusal::new(Cause::NoService, "it would call this proxy itself"));
    }
    let entry: Arc<BackendEntry> = BackendEntry::outside(address, worker.config.workers);
    Ok(worker.backend(&entry))
}

fn redirected(
    conn: &Conn,
    head: &Parts,
    asked: &Asked,
    redirect: &Redirect,
    matched: Option<&Match>,
    record: &mut Record,
) -> Response<ReplyBody> {
    let view_headers = HeaderView(&head.headers);
    let view = route::view(head, &view_headers, conn.scheme, asked);
    let location = redirect_location(redirect, &view, matched);
    reply::redirect(record, redirect.status, &location)
}

/// Applies a plan's request side; returns the authority that the upstream sees.
fn apply(
    plan: &Plan<'_>,
    head: &mut Parts,
    asked: &Asked,
    authority: Authority,
) -> Result<Text, Refusal> {
    for edit in &plan.request_edits {
        headers::edit(&mut head.headers, edit);
    }
    let mut host = asked.authority.clone().map_or_else(|| shown(&authority), Text::from);
    made::keep(authority.host);
    if let Some(rewrite) = plan.rewrite {
        if let Some(new) = &rewrite.host {
            if HeaderValue::from_str(new).is_err() && guards::on("value-lines") {
                let why = "the host of its rewrite is none";
                return Err(Refusal::new(Cause::Misconfigured, why));
            }
            host = Text::from(&**new);
        }
        if let Some(path) = &rewrite.path {
            let path = rewritten(head.uri.path(), path, plan.matched).map_err(|unfit| {
                Refusal::new(Cause::BadRequest, unfit.why).with_status(unfit.status)
            })?;
            let full = match head.uri.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            head.uri = full.parse::<Uri>().map_err(|e| {
                Refusal::new(Cause::Misconfigured, format!("the rewritten path is wrong: {e}"))
            })?;
        }
    }
    Ok(host)
}

/// Applies a plan's response side and removes what is only for proxies.
fn settle(conn: &Conn, plan: &Plan<'_>, response: &mut Response<ReplyBody>, record: &Record) {
    let present = Present::of(response.headers());
    let hop = response.status() != http::StatusCode::SWITCHING_PROTOCOLS;
    // Flags of the upstream's sidecar are worth keeping for the client; not what an app forged.
    let own = present.has(Present::OWN);
    let flags = own.then(|| response.headers_mut().remove(headers::FLAGS)).flatten();
    clean::strip(response.headers_mut(), if hop { present } else { present.but(Present::HOP) });
    if let (Some(flags), false) = (flags, conn.door.is_inbound()) {
        if matches!(conn.door, Door::Gateway(_)) {
            reply::hide(response, &flags, record);
        }
        response.headers_mut().insert(headers::FLAGS, flags);
    }
    if let (Door::Gateway(_), Some(id)) = (&conn.door, &record.request_id) {
        response.headers_mut().insert(headers::REQUEST_ID, id.clone());
    }
    if record.version < http::Version::HTTP_2 && crate::observe::record::is_grpc(response.headers())
    {
        // HTTP/1.1 sends only the trailers that it announced.
        let names = HeaderValue::from_static("grpc-status, grpc-message");
        response.headers_mut().insert(header::TRAILER, names);
    }
    if plan.cors.is_some() && record.cross.is_empty() {
        // A cache must not give this to an origin that may have more.
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
    plan.edit_response(response);
    if let Some(kept) = &plan.kept {
        kept.remember(conn, response, record);
    }
}

fn shown(authority: &Authority) -> Text {
    Text::of(|out| {
        if authority.host.contains(':') {
            out.push('[');
            out.push_str(&authority.host);
            out.push(']');
        } else {
            out.push_str(&authority.host);
        }
        if let Some(port) = authority.port {
            out.push(':');
            quick::number(out, u64::from(port));
        }
    })
}
