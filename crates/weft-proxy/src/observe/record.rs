// SPDX-License-Identifier: Apache-2.0
//! One record per request, begun when its head is read and written exactly once: when the answer
//! ended, or when it was dropped before that. Feeds metrics and access log.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri, Version};
use tokio::time::Instant;
use weft_base::clock::moment;
use weft_model::Health;
use weft_model::decide::{CorsHeaders, Outcome, outcome_of_grpc};

use super::facts;
use super::flags::{Flag, Flags};
use super::format::Noted;
use super::metrics::{Labels, Reporter, RequestProtocol};
use crate::http::body::{BodyError, Replay};
use crate::http::cache::Outcome as Cached;
use crate::http::grpc_web::{self, Web};
use crate::http::made::Text;
use crate::http::present;
use crate::pinned::Pinned;
use crate::table::{BackendEntry, EndpointEntry};
use crate::upstream::pick::{Ending, LocalEndpoint};
use crate::upstream::pool::Break;
use crate::worker::{Conn, Worker};

/// What happened to one request.
#[derive(Debug)]
pub struct Record {
    pub worker: Rc<Worker>,
    pub conn: Rc<Conn>,
    pub started: Instant,
    pub wall_ms: u64,
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub authority: Option<Text>,
    pub user_agent: Option<HeaderValue>,
    pub forwarded_for: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    /// `workload.namespace` of the client as its sidecar says; read only within mesh TLS.
    pub source: Option<HeaderValue>,
    pub is_grpc: bool,
    /// How its client reads what is gRPC for its backend only, or would have been.
    pub web: Option<Web>,
    /// `HTTPRoute shop/users` and the rule's place.
    pub route: Option<Text>,
    pub backend: Option<Pinned<BackendEntry>>,
    pub endpoint: Option<Rc<LocalEndpoint>>,
    pub passthrough: bool,
    /// It asked for a destination outside that is not allowed.
    pub denied: bool,
    /// The answer broke off behind its head.
    pub cut_off: bool,
    pub attempts: u32,
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub flags: Flags,
    pub sentence: Option<String>,
    pub last_cause: Option<String>,
    /// Of the table that decided; 0 before one was asked.
    pub generation: u64,
    /// Headers that the access log shows besides; `None` when its format names none.
    pub noted: Option<Box<Noted>>,
    /// What a browser of another origin is told with the answer.
    pub cross: CorsHeaders,
    /// What became of it at the cache; `None` when its rule has none.
    pub cache: Option<Cached>,
    pub body: Replay,
    pub bytes_sent: u64,
    /// Of a tunnel, after the answer that opened it.
    tunnel_received: u64,
    pub upstream_ms: Option<u64>,
    /// When the last attempt's answer began, or the attempt failed.
    pub headed: Option<Instant>,
    /// The connection that the last attempt had.
    pub upstream: Option<Rc<facts::Upstream>>,
    /// Who answered a gRPC call that has not said yet how it went.
    pub unjudged: Option<(Pinned<BackendEntry>, Arc<EndpointEntry>)>,
    written: bool,
    /// Its line of the access log is due, and what it took. The line is written when the record
    /// goes: an answer's last bytes do not wait for it.
    line: Option<u64>,
}

// === impl Record ===

impl Record {
    pub fn begin<B>(worker: &Rc<Worker>, conn: &Rc<Conn>, request: &http::Request<B>) -> Self {
        let headers = request.headers();
        let started = moment();
        worker.metrics.crowd.begin();
        Self {
            worker: worker.clone(),
            conn: conn.clone(),
            started,
            wall_ms: worker.clock.wall_ms_at(started),
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            authority: None,
            user_agent: present::get(headers, &http::header::USER_AGENT).cloned(),
            forwarded_for: None,
            request_id: None,
            source: None,
            is_grpc: is_grpc(headers),
            web: grpc_web::asked(headers),
            route: None,
            backend: None,
            endpoint: None,
            passthrough: false,
            denied: false,
            cut_off: false,
            attempts: 0,
            status: 0,
            grpc_status: None,
            flags: Flags::default(),
            sentence: None,
            last_cause: None,
            generation: 0,
            noted: None,
            cross: Vec::new(),
            cache: None,
            body: Replay::default(),
            bytes_sent: 0,
            tunnel_received: 0,
            upstream_ms: None,
            headed: None,
            upstream: None,
            unjudged: None,
            written: false,
            line: None,
        }
    }

    /// Healthy and all instances of the backend, as they are now.
    pub fn instances(&self) -> Option<(usize, usize)> {
        let pinned = self.backend.as_ref()?;
        let now = self.worker.table();
        let entry: &Arc<BackendEntry> = now.backend(&pinned.name).unwrap_or(pinned);
        let healthy =
            entry.endpoints.iter().filter(|e| e.endpoint.health == Health::Healthy).count();
        Some((healthy, entry.total()))
    }

    /// Keeps what the access log shows of the request's headers.
    pub fn note_request(&mut self, headers: &HeaderMap) {
        if let Some(wanted) = self.worker.log.wanted() {
            let request = Noted::of(&wanted.request, headers);
            self.noted = Some(Box::new(Noted { request, ..Noted::default() }));
        }
    }

    /// The same of the answer's.
    pub fn note_response(&mut self, headers: &HeaderMap) {
        if let Some(wanted) = self.worker.log.wanted() {
            let response = Noted::of(&wanted.response, headers);
            self.noted.get_or_insert_default().response = response;
        }
    }

    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(wanted) = self.worker.log.wanted() {
            let trailers = Noted::of(&wanted.trailers, trailers);
            self.noted.get_or_insert_default().trailers = trailers;
        }
        if let Some(status) = grpc_status(trailers) {
            self.grpc_status = Some(status);
        }
    }

    /// The answer's body broke off after its head was sent.
    pub fn broke(&mut self, error: &BodyError) {
        let flag = match error {
            BodyError::Idle(_) => Flag::SI,
            BodyError::Deadline(_) => Flag::UT,
            BodyError::Malformed(_) => Flag::DPE,
            BodyError::Client(_) | BodyError::TooLarge(_) | BodyError::GivenUp => Flag::DC,
            BodyError::Shed => Flag::OM,
            BodyError::Upstream(_, Break::Closed) => Flag::UC,
            BodyError::Upstream(_, Break::Reset) => Flag::UR,
            BodyError::Upstream(_, Break::Garbage) => Flag::UPE,
        };
        self.flags.add(flag);
        self.cut_off = true;
        self.sentence = Some(format!("{error} after the response head was sent"));
        match flag {
            // The client's doing, or this proxy's, says nothing about the instance.
            Flag::DC | Flag::DPE | Flag::OM => {}
            _ => self.judge(Outcome::Local),
        }
        self.write();
    }

    /// The answer was passed on whole.
    pub fn complete(&mut self) {
        self.judge(self.grpc_status.map_or(Outcome::Success, outcome_of_grpc));
        self.write();
    }

    /// The tunnel that its answer opened has ended, early for a reason.
    pub fn tunnelled(
        &mut self,
        (received, sent): (u64, u64),
        flags: Flags,
        sentence: Option<String>,
    ) {
        self.tunnel_received += received;
        self.bytes_sent += sent;
        self.flags.add_all(flags);
        self.sentence = sentence.or(self.sentence.take());
        self.write();
    }

    /// Bytes of its body, and of the tunnel behind it.
    pub fn received(&self) -> u64 {
        self.body.received() + self.tunnel_received
    }

    /// Tells the ejector how a gRPC call went, once.
    fn judge(&mut self, outcome: Outcome) {
        if let Some((backend, endpoint)) = self.unjudged.take() {
            self.worker.shared.reporter.note(&backend, &endpoint, outcome, self.worker.id);
        }
    }

    /// Who is on the other end of the connection.
    pub fn client(&self) -> IpAddr {
        self.conn.remote.ip()
    }

    pub fn elapsed_ms(&self) -> u64 {
        let elapsed = moment().saturating_duration_since(self.started);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&mut self) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        let ms = self.elapsed_ms();
        let (received, sent) = (self.received(), self.bytes_sent);
        let find = || self.worker.metrics.request(self.labels());
        match &self.endpoint {
            // The labels of what this proxy sends to an endpoint differ by their ending only.
            Some(endpoint) if !self.conn.door.is_inbound() && !self.passthrough => {
                endpoint.with_series(self.ending(), find, |s| s.observe(ms, received, sent));
            }
            _ => find().observe(ms, received, sent),
        }
        self.line = Some(ms);
    }

    fn ending(&self) -> Ending {
        Ending {
            protocol: if self.is_grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            code: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
        }
    }

    fn labels(&self) -> Labels {
        let names = &self.worker.names;
        let inbound = self.conn.door.is_inbound();
        let (source_workload, source_namespace) = match (inbound, &self.source) {
            (false, _) => (names.workload.clone(), names.namespace.clone()),
            (true, Some(source)) => split_source(source, names),
            (true, None) => (names.unknown.clone(), names.unknown.clone()),
        };
        let own = || (names.workload.clone(), names.namespace.clone());
        let (destination_workload, destination_namespace) = match (inbound, &self.backend) {
            (true, _) => own(),
            (false, Some(backend)) => {
                let workload = self.endpoint.as_ref().map(|e| e.entry.endpoint.workload.clone());
                let workload = workload.filter(|w| !w.is_empty());
                (workload.unwrap_or_else(|| names.unknown.clone()), backend.namespace.clone())
            }
            (false, None) => (names.unknown.clone(), names.unknown.clone()),
        };
        let peer = self.conn.peer.as_ref().map(|p| Arc::<str>::from(p.as_str()));
        let principal = names.principal();
        let upstream = self.endpoint.as_ref().and_then(|e| e.entry.endpoint.identity.clone());
        let unknown = || names.unknown.clone();
        let mtls = if inbound { self.conn.peer.is_some() } else { upstream.is_some() };
        let (source_principal, destination_principal) = match (inbound, mtls) {
            (_, false) => (unknown(), unknown()),
            (true, true) => (peer.unwrap_or_else(unknown), principal),
            (false, true) => (principal, upstream.unwrap_or_else(unknown)),
        };
        Labels {
            reporter: if inbound { Reporter::Destination } else { Reporter::Source },
            source_workload,
            source_namespace,
            source_principal,
            destination_workload,
            destination_namespace,
            destination_principal,
            destination_service: match &self.backend {
                Some(backend) => backend.backend.service.clone(),
                None if self.passthrough => names.passthrough.clone(),
                None if self.denied => names.black_hole.clone(),
                None => names.unknown.clone(),
            },
            protocol: if self.is_grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            code: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            mtls,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.worker.metrics.crowd.end();
        if !self.written {
            self.flags.add(Flag::DC);
            self.sentence.get_or_insert_with(|| "the client went away before the end".into());
            self.write();
        }
        if let Some(ms) = self.line {
            self.worker.log.request(self, ms);
        }
    }
}

/// `application/grpc`, with the messages' format or parameters behind it; not gRPC-Web.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = present::get(headers, &http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
    present::get(headers, &GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// `workload.namespace`; only what looks like names becomes a label.
fn split_source(source: &HeaderValue, names: &crate::worker::Names) -> (Arc<str>, Arc<str>) {
    let good = |s: &str| {
        !s.is_empty()
            && s.len() <= 253
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    match source.to_str().ok().and_then(|s| s.rsplit_once('.')) {
        Some((workload, ns)) if good(workload) && good(ns) => (workload.into(), ns.into()),
        _ => (names.unknown.clone(), names.unknown.clone()),
    }
}
