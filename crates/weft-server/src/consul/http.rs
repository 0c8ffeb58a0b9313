// SPDX-License-Identifier: Apache-2.0
//! The door's HTTP: limits, who may ask (Host and Origin), dispatch, and an answer's bytes.
//! Connections are in `line.rs`. Knows nothing of services.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{DATE, EXPECT, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use weft_base::limits::{CHECK_HEADER, CONNECTIONS_MAX};
use weft_base::task::TaskGroup;

use super::error::Refusal;
use super::far::{self, FarAsk};
use super::flow::Flow;
use super::host::{self, Unawaited};
use super::line::{Line, Manner, Next, Wire};
use super::params::Params;
use super::register::known;
use super::render::{Form, date, render};
use super::reply::{Body, Reply};
use super::routes::{self, Endpoint};
use super::secure::{HANDSHAKES_MAX, Opening};
use super::view::Identity;
use super::wait::{Asked, Held, Waiting};
use super::who::{Secret, Who, secret};
use super::{Door, view};
use crate::guards;

/// Time for a request's head, and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that was refused for its size, and for how long, so that its sender
/// comes to read the answer instead of a broken connection.
const LINGER_BYTES_MAX: usize = 128 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(10);
/// Room that a body is given for what it says of its length.
const BODY_ROOM_BYTES: usize = 64 * 1024;
/// How often a request is judged while what it is judged by keeps changing.
const ADMISSIONS_MAX: usize = 5;

/// What is done where no rule speaks of it: whoever is shown nothing may have no right to more.
const DEFAULT_POLICY: HeaderName = HeaderName::from_static("x-consul-default-acl-policy");

/// What a health check that a client defined may ask of this door.
const FOR_CHECKS: [&str; 3] = ["/", "/v1/status/leader", "/v1/status/peers"];

/// One request, read and taken apart.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What follows the endpoint's path, decoded.
    pub argument: String,
    pub params: Params,
    pub body: Bytes,
    /// `?ns=` or `default`.
    pub namespace: Arc<str>,
    pub method: Method,
    /// Who asks, and what they may.
    pub who: Who,
    /// What they showed, to be looked at again after a wait, and shown to the server where that is
    /// elsewhere. Never the agent's default token, which may be another by then.
    pub secret: Option<Secret>,
}

/// An answer, whatever carries it.
pub(super) type Answer = Response<Full<Bytes>>;

/// What came of a request so far.
enum Turn {
    Answered(Box<Answer>),
    /// Its head; the rest is still to come.
    Flows(Box<(Answer, Flow)>),
    Waits(Box<Waiting>),
}

/// What a request was read as: something to do, or answered already. With its turn among those
/// that are done one at a time.
enum Read<'a> {
    Asked(Box<Asked>, Option<SemaphorePermit<'a>>),
    Answer(Reply),
}

/// Of a request over TLS or a Unix socket: under no name of its own does a page of a browser come
/// this way, since it has no certificate for it.
#[derive(Clone, Copy, Debug)]
struct Direct;

impl Door {
    /// Serves connections until the group drains.
    pub async fn serve(self, listener: TcpListener, tasks: TaskGroup) {
        self.serve_at(Opening::Plain(listener), tasks).await;
    }

    /// The same wherever they come from.
    pub async fn serve_at(self, opening: Opening, tasks: TaskGroup) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let turns = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let accepted = tokio::select! {
                () = tasks.draining() => return,
                accepted = opening.accept() => accepted,
            };
            let caller = match accepted {
                Ok(caller) => caller,
                Err(why) => {
                    tracing::warn!(%why, "the Consul door could not accept a connection");
                    // Out of descriptors: give others time to close theirs.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(max = CONNECTIONS_MAX, "the Consul door is full; connection closed");
                continue;
            };
            let (door, group) = (self.clone(), tasks.clone());
            let (place, turns) = (Arc::new(place), turns.clone());
            // In a box, so that what wraps a task holds it once.
            let connection = Box::pin(async move {
                if let Some(wire) = caller.wire(&group, &place, &turns).await {
                    door.connection(wire, group).await;
                }
                drop(place);
            });
            tasks.spawn("consul connection", connection);
        }
    }

    async fn connection(self, wire: Wire, tasks: TaskGroup) {
        let mut line = Line::new(wire);
        loop {
            let next = tokio::select! {
                next = line.next() => next,
                () = tasks.draining(), if line.is_idle() => Next::Over,
            };
            let (request, mut manner) = match next {
                Next::Request(request, manner) => (request, manner),
                Next::Refused(why) => {
                    let (status, why_not) = why;
                    tracing::debug!(%status, why_not, "the Consul door was sent no request");
                    Box::pin(line.refuse(why)).await;
                    break;
                }
                Next::Over => return,
            };
            // What a request needs is held neither between requests nor while one waits.
            let mut turn = Box::pin(self.exchange(&mut line, request, &mut manner)).await;
            while let Some(Turn::Waits(mut waiting)) = turn {
                let gone = line.gone();
                turn = match Box::pin(waiting.stirred(&self.0.tasks, gone)).await {
                    true => Some(Box::pin(self.resume(waiting)).await),
                    false => None,
                };
            }
            let response = match turn {
                Some(Turn::Answered(response)) => response,
                Some(Turn::Flows(flows)) => {
                    Box::pin(line.flow(&flows.0, flows.1, (manner, &tasks))).await;
                    break;
                }
                _ => return,
            };
            manner.keep &= !tasks.is_draining();
            if let Err(why) = Box::pin(line.answer(&response, manner)).await {
                tracing::debug!(%why, "a connection to the Consul door ended early");
                return;
            }
            if !manner.keep {
                break;
            }
        }
        Box::pin(line.close()).await;
    }

    /// One request, until it is answered or waits; nothing when nobody waits for its answer.
    async fn exchange(
        &self,
        line: &mut Line,
        mut request: Box<Request<()>>,
        manner: &mut Manner,
    ) -> Option<Turn> {
        // A question that may take minutes is for who waits for its answer; anything else is done,
        // whoever does: a client may have closed its half, having said all.
        let may_leave = host::is_slow_question(&request);
        if line.is_direct() {
            request.extensions_mut().insert(Direct);
        }
        let over = Notify::new();
        let mut body = line.body(*manner, &over);
        let gone = body.gone();
        let turn = tokio::select! {
            biased;
            turn = self.begin(request.map(|()| &mut body)) => turn,
            () = gone, if may_leave => return None,
        };
        // What was not read would be taken for a request.
        manner.keep &= body.is_end_stream();
        Some(turn)
    }

    /// Answers one request, whatever carries it, however long it waits. Cancel-safe.
    pub(super) async fn handle<B>(&self, request: Request<B>) -> Answer
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut turn = Box::pin(self.begin(request)).await;
        loop {
            match turn {
                Turn::Answered(response) => return *response,
                // Nobody reads on here.
                Turn::Flows(flows) => return flows.0,
                Turn::Waits(mut waiting) => {
                    Box::pin(waiting.stirred(&self.0.tasks, std::future::pending())).await;
                    turn = Box::pin(self.resume(waiting)).await;
                }
            }
        }
    }

    /// Reads one request and does what it asks.
    async fn begin<B>(&self, request: Request<B>) -> Turn
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let form = Form::of(&request);
        match self.read_request(request).await {
            Ok(Read::Asked(asked, _turn)) => self.settle(form, *asked, None).await,
            Ok(Read::Answer(reply)) => self.answered(reply, form),
            Err(refusal) => self.answered(refusal.into(), form),
        }
    }

    /// Asks again what waited.
    async fn resume(&self, waiting: Box<Waiting>) -> Turn {
        self.meter().woken();
        let (form, mut asked, held) = waiting.again();
        match self.still(&asked.ask) {
            Ok(who) => asked.ask.who = who,
            Err(refusal) => return self.answered(refusal.into(), form),
        }
        self.settle(form, asked, Some(held)).await
    }

    /// Does what a request asks. `held`: what it waited with; where it waits again, it does so
    /// until the same time.
    async fn settle(&self, form: Form, asked: Asked, held: Option<Held>) -> Turn {
        let (told, reply) = (asked.awaited, self.judged(&asked).await);
        match self.told(asked.endpoint, told, reply).await {
            Ok(Reply { body: Body::Later(later), .. }) => {
                match Box::pin(self.waiting(form, asked, *later, held)).await {
                    Ok(waiting) => Turn::Waits(waiting),
                    Err(refusal) => self.answered(refusal.into(), form),
                }
            }
            Ok(reply) => match held.filter(|h| !asked.ask.params.is_over() && h.has_seen(&reply)) {
                Some(held) => {
                    self.meter().in_vain();
                    Turn::Waits(Waiting::on(form, asked, held))
                }
                None => self.answered(filtered(&asked.ask, reply), form),
            },
            Err(refusal) => self.answered(refusal.into(), form),
        }
    }

    async fn judged(&self, asked: &Asked) -> Result<Reply, Refusal> {
        for _ in 1..ADMISSIONS_MAX {
            match self.dispatch(asked.endpoint, &asked.ask).await {
                Err(Refusal { again: true, .. }) => {}
                other => return other,
            }
        }
        self.dispatch(asked.endpoint, &asked.ask).await
    }

    fn answered(&self, mut reply: Reply, form: Form) -> Turn {
        self.meter().request(form.part, reply.status.as_u16());
        let mut flow = None;
        if let Body::Flow(kind, begun) = reply.body {
            flow = Some(begun);
            reply.body = Body::Bytes(kind, Bytes::new());
        }
        let mut response = render(reply, form);
        // A machine's door says what its server said.
        if self.far().is_none() {
            let policy = if self.acl().default_allow() { "allow" } else { "deny" };
            response.headers_mut().insert(DEFAULT_POLICY, HeaderValue::from_static(policy));
        }
        if let Some(date) = date(self.wall_ms()) {
            response.headers_mut().insert(DATE, date);
        }
        match flow {
            None => Turn::Answered(Box::new(response)),
            Some(flow) => Turn::Flows(Box::new((response, flow))),
        }
    }

    async fn read_request<B>(&self, request: Request<B>) -> Result<Read<'_>, Refusal>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        self.judge_head(&head)?;
        let path = head.uri.path().to_owned();
        if head.method == Method::OPTIONS {
            let reply = Reply::empty().with("Allow", routes::allowed(&path)?);
            return Ok(Read::Answer(reply));
        }
        let found = routes::find(&head.method, &path);
        let (endpoint, argument) = found.map_err(|refusal| refusal.asking(head.uri.query()))?;
        let params = Params::parse(head.uri.query())?;
        self.check_place(&params)?;
        let waits = head.headers.contains_key(EXPECT);
        let shown = match head.extensions.get::<Secret>() {
            Some(secret) => &*secret.0,
            None => secret(&head.headers, &params),
        };
        let secret = self.or_default(shown);
        if let Some(far) = self.far().filter(|_| !far::is_own(endpoint)) {
            let max = routes::body_bytes_max(endpoint).min(far::BODY_BYTES_MAX);
            let body = kept(&head.method, read(body, waits, max).await?);
            let of = (&head.method, &head.uri);
            let secret = secret.into_owned();
            let ask = FarAsk::new(of, (endpoint, &params), secret.clone(), body)?;
            let is_question = ask.kept;
            drop(head);
            let away = match far.ask(ask).await {
                Ok(answer) => return Ok(Read::Answer(answer.into())),
                Err(away) => far::no_leader(&away),
            };
            if !is_question {
                return Err(away);
            }
            let own = Box::pin(self.alone((endpoint, argument), params, &secret)).await;
            return own.map(Read::Answer).ok_or(away);
        }
        // Nothing of a body is kept before it is known whose it is.
        let who = match head.extensions.get::<Who>() {
            Some(who) => Ok(who.clone()),
            // As in Consul, which looks at no token for what everybody may know.
            None if routes::is_open(endpoint) => Ok(Who::without_rights()),
            None => self.caller(&secret).await,
        };
        let admitted = who.and_then(|who| {
            let turn = self.turn(endpoint, &who)?;
            Ok((who, turn))
        });
        let (who, turn) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                forget(body, waits).await;
                return Err(refusal);
            }
        };
        let body = read(body, waits, routes::body_bytes_max(endpoint)).await?;
        let body = kept(&head.method, body);
        let namespace = params.filled("ns").unwrap_or(view::DEFAULT_NAMESPACE).into();
        let who = who.of_request();
        let secret = Some(Secret(shown.into()));
        let awaited = head.extensions.get::<Unawaited>().is_none();
        let ask = Ask { argument, params, body, namespace, method: head.method, who, secret };
        Ok(Read::Asked(Box::new(Asked { endpoint, ask, awaited }), turn))
    }

    /// Whether a request is for this door, and may come this way.
    fn judge_head(&self, head: &Parts) -> Result<(), Refusal> {
        // What this process asks itself is for nobody in particular.
        if head.extensions.get::<Who>().is_none() {
            one_host(head.version, &head.headers)?;
        }
        admit(&head.headers, &self.0.hosts, head.extensions.get::<Direct>().is_some())?;
        if is_out_of_bounds(&head.headers, head.uri.path()) {
            let why = "health checks that clients define may ask this door for its leader only";
            return Err(Refusal::new(StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }

    /// What was written to a machine's own registry is told its server before it is answered.
    async fn told(
        &self,
        endpoint: Endpoint,
        awaited: bool,
        reply: Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        if let (Ok(_), Some(far), true) = (&reply, self.far(), awaited)
            && far::writes_here(endpoint)
        {
            far.wrote(self.catalog().revision()).await;
        }
        reply
    }

    /// Snapshots are large, so they are taken and put back one at a time, by who may.
    fn turn(&self, endpoint: Endpoint, who: &Who) -> Result<Option<SemaphorePermit<'_>>, Refusal> {
        if endpoint != Endpoint::Snapshot {
            return Ok(None);
        }
        who.demand_management()?;
        self.0.snapshots.try_acquire().map(Some).map_err(|_| {
            Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "another snapshot is being taken or put back; try again later",
            )
        })
    }

    /// Requests are for this datacentre; others are not reachable from here.
    fn check_place(&self, params: &Params) -> Result<(), Refusal> {
        if params.filled("dc").is_some_and(|dc| !dc.eq_ignore_ascii_case(&self.own().datacenter)) {
            return Err(Refusal::internal("No path to datacenter"));
        }
        if params.filled("partition").is_some_and(|p| p != "default") {
            return Err(Refusal::not_offered("weft has no partitions besides \"default\""));
        }
        match params.filled("ns") {
            Some("*") => Err(Refusal::not_offered("name one namespace; ?ns=* is not offered")),
            Some(named) => known::namespace(named),
            None => Ok(()),
        }
    }
}

// === helpers ===

/// The names that requests may be for besides addresses: those that our own DNS answers with this
/// server, and the ones that its operator adds. Nobody else's page has one of them; a bare `consul`
/// or name of a node may be anybody's in a network that answers such names (LLMNR, mDNS).
pub(super) fn own_names(own: &Identity, more: Vec<String>) -> Vec<String> {
    let (node, dc) = (&own.node.node, &own.datacenter);
    let mut names = more;
    for own in ["consul.service".to_owned(), format!("{node}.node")] {
        names.extend([format!("{own}.consul"), format!("{own}.{dc}.consul")]);
    }
    names
}

/// By RFC 9112, 3.2: who leaves it out, or says two, may be understood in two ways.
fn one_host(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if version != Version::HTTP_11 => Ok(()),
        0 => Err(Refusal::bad("missing required Host header")),
        more => Err(Refusal::bad(format!("one Host header is expected, not {more}"))),
    }
}

/// Pages of other sites reach loopback doors through a browser: by rebinding a name of theirs
/// (Host), or by plain cross-site requests (Origin). Neither is for us.
fn admit(headers: &HeaderMap, hosts: &[String], direct: bool) -> Result<(), Refusal> {
    let refuse = |what: &str, found: &str| {
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "{what} {found:?} is not this server; use localhost or its IP address, or start it \
                 with --consul-host NAME"
            ),
        ))
    };
    if let Some(host) = headers.get(HOST).filter(|_| !direct) {
        let host = host.to_str().unwrap_or("?");
        if !host.is_empty() && !is_own(host, hosts) {
            return refuse("Host", host);
        }
    }
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        if !is_own(host, hosts) {
            return refuse("Origin", origin);
        }
    }
    Ok(())
}

/// It comes from this machine, and not from who defined it.
fn is_out_of_bounds(headers: &HeaderMap, path: &str) -> bool {
    headers.contains_key(CHECK_HEADER) && !FOR_CHECKS.contains(&path) && guards::on("client-checks")
}

fn is_own(host: &str, hosts: &[String]) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    bare.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(bare))
}

/// Says that a list is not whole, as far as its reader may know.
fn filtered(ask: &Ask, reply: Reply) -> Reply {
    let is_question = matches!(ask.method, Method::GET | Method::HEAD);
    match is_question && reply.status.is_success() && ask.who.was_filtered() {
        true => reply.with("X-Consul-Results-Filtered-By-ACLs", "true"),
        false => reply,
    }
}

/// What is kept of a body. A question is all in its address, and may wait for minutes.
fn kept(method: &Method, body: Bytes) -> Bytes {
    match *method {
        Method::GET | Method::HEAD => Bytes::new(),
        _ => body,
    }
}

/// `waits`: the sender asked before sending (`Expect`), so a refusal alone is enough.
async fn read<B>(body: B, waits: bool, max: usize) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let max = if guards::on("body-size") { max } else { usize::MAX };
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Request body too large, max size: {max} bytes"),
        )
    };
    if usize::try_from(body.size_hint().lower()).is_ok_and(|n| n > max) {
        forget(body, waits).await;
        return Err(too_large());
    }
    let mut body = Box::pin(body);
    match tokio::time::timeout(READ_TIMEOUT, whole(body.as_mut(), max)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            linger(body.as_mut()).await;
            Err(too_large())
        }
        Ok(Err(why)) => {
            let why = why.into();
            Err(Refusal::bad(format!("the request body ended early: {why}")))
        }
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request body took too long")),
    }
}

/// All of a body in one piece, so that a body of small pieces takes no more memory than another;
/// nothing when it is too large.
async fn whole<B>(mut body: Pin<&mut B>, max: usize) -> Result<Option<Bytes>, B::Error>
where
    B: HttpBody<Data = Bytes>,
{
    let said = usize::try_from(body.size_hint().lower()).unwrap_or(max);
    let mut out = BytesMut::with_capacity(said.min(BODY_ROOM_BYTES));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if data.len() > max - out.len() {
            return Ok(None);
        }
        out.extend_from_slice(&data);
    }
    Ok(Some(out.freeze()))
}

/// What is done about the body of a request that was refused by its head.
async fn forget<B: HttpBody<Data = Bytes>>(body: B, waits: bool) {
    if !waits && !body.is_end_stream() {
        linger(Box::pin(body).as_mut()).await;
    }
}

/// Reads on and forgets.
async fn linger<B: HttpBody<Data = Bytes>>(mut body: Pin<&mut B>) {
    let forget = async {
        let mut left = LINGER_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // However it ended, the answer is next.
    let _ = tokio::time::timeout(LINGER, forget).await;
}

#[cfg(test)]
mod tests {
    use weft_kinds::views::catalog::NodeRecord;

    use super::*;

    #[test]
    fn only_our_own_names_are_admitted() {
        let ask = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            admit(&headers, &["consul.lan".to_owned()], false).is_ok()
        };
        for host in ["localhost:8500", "127.0.0.1:8500", "[::1]:8500", "10.0.0.1", "consul.lan:80"]
        {
            assert!(ask(host, None), "{host}");
        }
        for host in ["evil.example:8500", "localhost.evil.example", "127.0.0.1.nip.io:8500"] {
            assert!(!ask(host, None), "{host}");
        }
        assert!(ask("localhost", Some("http://localhost:3000")));
        assert!(!ask("localhost", Some("https://evil.example")));
        assert!(!ask("localhost", Some("null")));
    }

    #[test]
    fn a_server_is_asked_under_the_names_that_consuls_dns_has_for_it() {
        let node = NodeRecord { node: "N1".into(), ..NodeRecord::default() };
        let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "".into() };
        let names = own_names(&own, vec!["mesh.lan".into()]);
        let ask = |host: &str| {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            admit(&headers, &names, false)
        };
        for host in [
            "consul.service.consul:8500",
            "consul.service.dc1.consul.",
            "n1.node.consul",
            "n1.node.dc1.consul",
            "mesh.lan",
        ] {
            assert!(ask(host).is_ok(), "{host}");
        }
        // Whoever registers may give these an address and a page; and any machine of the network
        // the bare ones.
        let bare = ["consul", "consul:8500", "n1:8500"];
        let others = ["web.service.consul", "n2.node.consul", "a.consul", "n1.evil.example"];
        for host in bare.into_iter().chain(others) {
            let why = ask(host).unwrap_err();
            assert!(why.text.contains("--consul-host"), "{host}: {}", why.text);
        }
        let names = own_names(&own, vec!["consul".into()]);
        let headers = HeaderMap::from_iter([(HOST, "consul:8500".parse().unwrap())]);
        assert!(admit(&headers, &names, false).is_ok(), "its operator says so");
    }

    #[test]
    fn reg_58_a_clients_check_asks_this_door_for_its_leader_only() {
        let out = |path: &str, header: &str| {
            let header = http::HeaderName::from_bytes(header.as_bytes()).unwrap();
            is_out_of_bounds(
                &HeaderMap::from_iter([(header, http::HeaderValue::from_static(""))]),
                path,
            )
        };
        let leave = "/v1/agent/leave";
        for path in [leave, "/v1/kv/x", "/v1/acl/tokens", "/v1/status/leader/", "/V1/status/peers"]
        {
            assert!(out(path, "X-Weft-Check"), "{path}");
            assert!(!out(path, "x-other"), "{path}");
        }
        assert!(!out("/", "x-weft-check") && !out("/v1/status/leader", "x-weft-check"));
    }
}
