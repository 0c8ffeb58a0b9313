// SPDX-License-Identifier: Apache-2.0
//! The server end of one stream as a machine: what the client holds, what it should hold, and one
//! transaction in flight between the two.
//!
//! Driven by [`super::AdsService`] and by the pair tests. It never awaits and never sends a second
//! transaction before the first is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_base::limits::{XDS_RESPONSE_BYTES, XDS_RESPONSE_RESOURCES_MAX, XDS_SUBSCRIPTIONS_MAX};
use weft_model::{ResourceName, Root};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use weft_proto::google::protobuf::Any;
use weft_proto::google::rpc::Status;

use crate::codec::{self, Commit, Rejected, Version};
use crate::view::{Asked, Entry, View};
use crate::{COMMIT_NAME, COMMIT_TYPE_URL, MODEL_TYPE_URL, NodeInfo, REJECTED_TYPE_URL, WILDCARD};

/// What the shell must do.
#[derive(Clone, Debug)]
pub enum Output {
    Send(Box<DeltaDiscoveryResponse>),
    /// The client has a transaction of this many bytes on its way.
    Sent {
        generation: u64,
        resources: usize,
        removed: usize,
        bytes: usize,
    },
    /// The client asks for these hosts by name, beside what is in its scope anyway: all of them,
    /// not only the newest.
    Wanted(BTreeSet<Arc<str>>),
    /// The client holds this view, but for what it refused: all that is refused now, not only in
    /// the last transaction.
    Answered {
        view: Arc<View>,
        rejected: Vec<Rejected>,
    },
}

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Unavailable(String),
}

#[derive(Debug)]
pub struct Machine {
    client: Client,
    in_flight: Option<InFlight>,
    /// The transaction that was answered last: its answer may be amended.
    answered: Option<Answered>,
    /// Host names that the client asks for.
    asks: BTreeSet<Arc<str>>,
    /// The newest view, when it could not be sent yet.
    wanted: Option<Arc<View>>,
    txn: u64,
    chunk: Chunk,
    /// What the client refused, and in which version (`None`: of no name in its view).
    refused: BTreeMap<String, (Option<Version>, Rejected)>,
}

/// What a name of a host begins with.
const HOST_PREFIX: &str = "host:";
/// Longest host name that is asked for (RFC 1035).
const HOST_BYTES_MAX: usize = 255;

/// How much goes into one response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub items: usize,
    pub bytes: usize,
}

/// What the client holds.
#[derive(Debug)]
enum Client {
    /// As it said when the stream began. `None`: it holds something that is no version of ours.
    Said { versions: BTreeMap<ResourceName, Option<Version>>, foreign: Vec<String> },
    /// All of what was sent (what it refused it was sent, too).
    View(Arc<View>),
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    view: Arc<View>,
}

#[derive(Debug)]
struct Answered {
    nonce: String,
    /// Names that the answer refused.
    refused: Vec<String>,
}

#[derive(Debug, Default)]
struct Diff {
    upserts: Vec<(ResourceName, Arc<Entry>)>,
    removes: Vec<String>,
}

// === impl Machine ===

impl Machine {
    /// Begins a stream with its first request.
    ///
    /// # Errors
    /// When the request does not say who asks, or asks for what is not served here.
    pub fn open(request: DeltaDiscoveryRequest) -> Result<(Self, NodeInfo), Refusal> {
        check_type(&request)?;
        let mut asks = BTreeSet::new();
        take_names(&mut asks, &request)?;
        let node = request.node.as_ref().ok_or(crate::node::NodeError::Missing);
        let node = node
            .and_then(NodeInfo::from_proto)
            .map_err(|error| Refusal::Invalid(error.to_string()))?;
        node.agreed_version().map_err(|error| Refusal::Invalid(error.to_string()))?;
        let mut versions = BTreeMap::new();
        let mut foreign = Vec::new();
        for (name, version) in request.initial_resource_versions {
            match ResourceName::try_from(name.clone()) {
                Ok(parsed) => {
                    versions.insert(parsed, Version::parse(&version));
                }
                Err(_) => foreign.push(name),
            }
        }
        foreign.sort_unstable();
        let client = Client::Said { versions, foreign };
        let chunk = Chunk { items: XDS_RESPONSE_RESOURCES_MAX, bytes: XDS_RESPONSE_BYTES };
        let refused = BTreeMap::new();
        let machine = Self {
            client,
            in_flight: None,
            answered: None,
            asks,
            wanted: None,
            txn: 0,
            chunk,
            refused,
        };
        Ok((machine, node))
    }

    /// The host names that the client asks for.
    pub fn asks(&self) -> &BTreeSet<Arc<str>> {
        &self.asks
    }

    /// A request after the first: an answer, names to subscribe or not any more, or both.
    ///
    /// # Errors
    /// When it asks for what is not served here.
    pub fn received(&mut self, request: DeltaDiscoveryRequest) -> Result<Vec<Output>, Refusal> {
        check_type(&request)?;
        let mut out = Vec::new();
        if take_names(&mut self.asks, &request)? {
            out.push(Output::Wanted(self.asks.clone()));
        }
        let rejected = |request: DeltaDiscoveryRequest| {
            request.error_detail.map(rejections).unwrap_or_default()
        };
        if self.answered.as_ref().is_some_and(|a| a.nonce == request.response_nonce) {
            out.extend(self.amended(rejected(request)));
            return Ok(out);
        }
        let answers = |f: &InFlight| f.nonce == request.response_nonce;
        if !self.in_flight.as_ref().is_some_and(answers) {
            return Ok(out);
        }
        let Some(done) = self.in_flight.take() else { return Ok(out) };
        let rejected = rejected(request);
        let refused = rejected.iter().map(|r| r.name.clone()).collect();
        self.answered = Some(Answered { nonce: done.nonce, refused });
        out.push(self.answered(done.view, rejected));
        if let Some(view) = self.wanted.take() {
            out.extend(self.offer(view));
        }
        Ok(out)
    }

    /// Another answer to the transaction that was answered last: what it refused then and does not
    /// refuse now is taken after all. The same answer again (it may come twice) changes nothing.
    fn amended(&mut self, rejected: Vec<Rejected>) -> Option<Output> {
        let last = self.answered.as_mut()?;
        let now: Vec<String> = rejected.iter().map(|r| r.name.clone()).collect();
        let before = std::mem::replace(&mut last.refused, now);
        let cleared: Vec<&String> = before.iter().filter(|n| !last.refused.contains(n)).collect();
        if cleared.is_empty() {
            return None;
        }
        for name in cleared {
            self.refused.remove(name);
        }
        let Client::View(view) = &self.client else { return None };
        let view = view.clone();
        let all = self.refused.values().map(|(_, rejected)| rejected.clone());
        Some(Output::Answered { view, rejected: all.collect() })
    }

    /// The client should hold `view` now.
    pub fn offer(&mut self, view: Arc<View>) -> Vec<Output> {
        if self.in_flight.is_some() {
            self.wanted = Some(view);
            return Vec::new();
        }
        let diff = match &self.client {
            Client::Said { versions, foreign } => diff_said(versions, foreign, &view),
            Client::View(held) => diff_views(held, &view),
        };
        let news = match &self.client {
            Client::Said { .. } => true,
            Client::View(held) => held.partial != view.partial || !diff.is_empty(),
        };
        if !news {
            return vec![self.answered(view, Vec::new())];
        }
        self.txn += 1;
        let out = responses(diff, self.txn, &view, self.chunk);
        let nonce = match out.iter().rev().find_map(sent_nonce) {
            Some(nonce) => nonce,
            None => return out,
        };
        self.in_flight = Some(InFlight { nonce, view });
        out
    }

    /// The client holds `view`. A refusal lasts until its resource has another version or is gone.
    fn answered(&mut self, view: Arc<View>, rejected: Vec<Rejected>) -> Output {
        let version_of = |name: &str| {
            let name = ResourceName::try_from(name.to_owned()).ok()?;
            view.resources.get(&name).map(|entry| entry.version)
        };
        self.refused.retain(|name, (version, _)| version.is_some() && version_of(name) == *version);
        for rejected in rejected {
            let version = version_of(&rejected.name);
            self.refused.insert(rejected.name.clone(), (version, rejected));
        }
        let all = self.refused.values().map(|(_, rejected)| rejected.clone());
        let output = Output::Answered { view: view.clone(), rejected: all.collect() };
        self.client = Client::View(view);
        output
    }

    /// Smaller responses, so that a test's few resources fill several.
    #[cfg(test)]
    pub(crate) fn set_chunk(&mut self, chunk: Chunk) {
        self.chunk = chunk;
    }

    /// Whether a transaction waits for its answer.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }
}

fn sent_nonce(output: &Output) -> Option<String> {
    match output {
        Output::Send(response) => Some(response.nonce.clone()),
        Output::Sent { .. } | Output::Answered { .. } | Output::Wanted(_) => None,
    }
}

fn check_type(request: &DeltaDiscoveryRequest) -> Result<(), Refusal> {
    if request.type_url == MODEL_TYPE_URL {
        return Ok(());
    }
    let shown: String = request.type_url.chars().take(200).collect();
    Err(Refusal::Unimplemented(format!(
        "type {shown:?} is not served on this stream; weft's proxies subscribe {MODEL_TYPE_URL}"
    )))
}

/// Follows the names that a request subscribes and unsubscribes; whether that changed anything.
fn take_names(
    asks: &mut BTreeSet<Arc<str>>,
    request: &DeltaDiscoveryRequest,
) -> Result<bool, Refusal> {
    let mut changed = false;
    for name in &request.resource_names_unsubscribe {
        changed |= asks.remove(asked_host(name)?);
    }
    for name in request.resource_names_subscribe.iter().filter(|n| *n != WILDCARD) {
        changed |= asks.insert(asked_host(name)?.into());
    }
    if asks.len() > XDS_SUBSCRIPTIONS_MAX {
        return Err(Refusal::Invalid(format!(
            "{} hosts are asked for by name, at most {XDS_SUBSCRIPTIONS_MAX} may be",
            asks.len()
        )));
    }
    Ok(changed)
}

/// The host in `host:NAME`.
fn asked_host(name: &str) -> Result<&str, Refusal> {
    let host = name.strip_prefix(HOST_PREFIX);
    host.filter(|h| !h.is_empty() && h.len() <= HOST_BYTES_MAX && !h.contains('/')).ok_or_else(
        || {
            let shown: String = name.chars().take(200).collect();
            Refusal::Unimplemented(format!(
                "{shown:?} cannot be subscribed; subscribe \"*\", the node's scope, and hosts as \
             \"host:NAME\""
            ))
        },
    )
}

/// The refused resources of a NACK; at least one, so that a NACK never looks like an ACK.
fn rejections(status: Status) -> Vec<Rejected> {
    let listed = status
        .details
        .iter()
        .filter(|d| d.type_url == REJECTED_TYPE_URL)
        .find_map(|d| codec::from_cbor::<Vec<Rejected>>(&d.value).ok())
        .filter(|list| !list.is_empty())
        .unwrap_or_else(|| vec![Rejected::new("", status.message)]);
    codec::bound_rejected(listed)
}

// === impl Diff ===

impl Diff {
    fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty()
    }
}

fn diff_said(
    versions: &BTreeMap<ResourceName, Option<Version>>,
    foreign: &[String],
    view: &View,
) -> Diff {
    let gone: Vec<&ResourceName> =
        versions.keys().filter(|name| !view.resources.contains_key(*name)).collect();
    let mut diff = Diff::default();
    diff.removes.extend_from_slice(foreign);
    remove(&mut diff, gone, view);
    let removed: BTreeSet<String> = diff.removes.iter().cloned().collect();
    for (host, asked) in &view.asked {
        absent(&mut diff, host, asked, |name| removed.contains(name));
    }
    for (name, entry) in &view.resources {
        if versions.get(name).copied().flatten() != Some(entry.version) {
            upsert(&mut diff, name, entry);
        }
    }
    diff.upserts.sort_by(|a, b| a.0.cmp(&b.0));
    diff.upserts.dedup_by(|a, b| a.0 == b.0);
    diff
}

/// Costs what changed between two views of common descent.
fn diff_views(held: &View, view: &View) -> Diff {
    let mut diff = Diff::default();
    let mut gone = Vec::new();
    for item in held.resources.diff(&view.resources) {
        match item {
            imbl::ordmap::DiffItem::Add(name, entry)
            | imbl::ordmap::DiffItem::Update { new: (name, entry), .. } => {
                upsert(&mut diff, name, entry);
            }
            imbl::ordmap::DiffItem::Remove(name, _) => gone.push(name),
        }
    }
    remove(&mut diff, gone, view);
    for item in held.asked.diff(&view.asked) {
        match item {
            imbl::ordmap::DiffItem::Add(host, asked)
            | imbl::ordmap::DiffItem::Update { new: (host, asked), .. } => {
                // What went just now says so by itself.
                let own = Root::host(host.clone()).own();
                absent(&mut diff, host, asked, |_| held.resources.contains_key(&own));
            }
            imbl::ordmap::DiffItem::Remove(..) => {}
        }
    }
    diff.upserts.sort_by(|a, b| a.0.cmp(&b.0));
    diff.upserts.dedup_by(|a, b| a.0 == b.0);
    diff
}

/// A name that was asked for and means nothing is answered by its removal.
fn absent(diff: &mut Diff, host: &str, asked: &Asked, listed: impl Fn(&String) -> bool) {
    if !asked.exists {
        let name = format!("{HOST_PREFIX}{host}");
        if !listed(&name) {
            diff.removes.push(name);
        }
    }
}

fn upsert(diff: &mut Diff, name: &ResourceName, entry: &Arc<Entry>) {
    diff.upserts.push((name.clone(), entry.clone()));
}

/// Lists removed names (in order); a root stands for its children. Children that outlive their
/// root's own resource are sent again, since removing it takes them from the client.
fn remove(diff: &mut Diff, gone: Vec<&ResourceName>, view: &View) {
    let mut root = None;
    for name in gone {
        if root == Some(&name.root) {
            continue;
        }
        diff.removes.push(name.to_string());
        if !name.child.is_empty() {
            continue;
        }
        root = Some(&name.root);
        let rest = view.resources.range(name.clone()..);
        for (child, entry) in rest.take_while(|(child, _)| child.root == name.root) {
            upsert(diff, child, entry);
        }
    }
}

/// Cuts a difference into responses; the last one carries the commit.
fn responses(diff: Diff, txn: u64, view: &View, chunk: Chunk) -> Vec<Output> {
    let generation = view.generation;
    let (resources, removed) = (diff.upserts.len(), diff.removes.len());
    let mut done: Vec<DeltaDiscoveryResponse> = Vec::new();
    let mut open = DeltaDiscoveryResponse::default();
    let (mut items, mut size, mut bytes) = (0_usize, 0_usize, 0_usize);
    let mut room = |open: &mut DeltaDiscoveryResponse, more: usize| {
        bytes += more;
        if items >= chunk.items || (items > 0 && size + more > chunk.bytes) {
            done.push(std::mem::take(open));
            (items, size) = (0, 0);
        }
        items += 1;
        size += more;
    };
    for name in diff.removes {
        room(&mut open, name.len());
        open.removed_resources.push(name);
    }
    for (name, entry) in diff.upserts {
        let name = name.to_string();
        room(&mut open, name.len() + entry.size);
        open.resources.push(wire(name, entry.version.to_string(), MODEL_TYPE_URL, entry.bytes()));
    }
    done.push(open);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let commit = Commit {
        generation,
        responses: count(done.len()),
        resources: count(resources),
        removed: count(removed),
        partial: view.partial,
    };
    // Four integers are always CBOR.
    let value = codec::to_cbor(&commit).unwrap_or_default();
    if let Some(last) = done.last_mut() {
        let version = generation.to_string();
        last.resources.push(wire(COMMIT_NAME.to_owned(), version, COMMIT_TYPE_URL, &value));
    }
    let mut out: Vec<Output> = Vec::with_capacity(done.len() + 1);
    for (seq, mut response) in done.into_iter().enumerate() {
        response.type_url = MODEL_TYPE_URL.to_owned();
        response.system_version_info = generation.to_string();
        response.nonce = format!("{txn}/{seq}");
        out.push(Output::Send(Box::new(response)));
    }
    out.push(Output::Sent { generation, resources, removed, bytes });
    out
}

fn wire(name: String, version: String, type_url: &str, value: &bytes::Bytes) -> WireResource {
    let any = Any { type_url: type_url.to_owned(), value: value.clone() };
    WireResource { name, version, resource: Some(any), ..WireResource::default() }
}
