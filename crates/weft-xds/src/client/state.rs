// SPDX-License-Identifier: Apache-2.0
//! The client end of one node's stream as a machine: events in, outputs out, no I/O, no clock.
//!
//! Driven by [`super::run`] and by the pair tests. It never shows half a transaction, and never
//! answers one before the proxy has said that it is applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_base::limits::XDS_TRANSACTION_BYTES_MAX;
use weft_base::rng::Rng;
use weft_model::{Fail, Resource, ResourceName, Root};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use weft_proto::google::protobuf::Any;
use weft_proto::google::rpc::Status;

use crate::codec::{self, Commit, Rejected, Version};
use crate::{COMMIT_NAME, MODEL_TYPE_URL, NodeInfo, REJECTED_TYPE_URL, WILDCARD};

/// First wait after a stream was lost; doubles up to [`BACKOFF_MAX`], half of it jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const INVALID_ARGUMENT: i32 = 3;

/// A whole change, to be applied as one table swap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub generation: u64,
    /// By name, each once.
    pub upserts: Vec<Upsert>,
    /// By name; children of a removed root are listed. None of them is in `upserts`.
    pub removes: Vec<ResourceName>,
    /// Host names that were asked for and mean nothing (any more).
    pub absent: Vec<Arc<str>>,
    /// What is not held may exist all the same: ask for it.
    pub partial: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upsert {
    pub name: ResourceName,
    pub version: Version,
    /// Its size on the wire.
    pub bytes: usize,
    /// `Err` when it did not decode: keep the last good form, or install the `Fail` when there is
    /// none. The machine lists it in the NACK by itself.
    pub resource: Result<Resource, Fail>,
}

/// The proxy's answer: every worker has passed the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub generation: u64,
    /// What it refused beyond what did not decode. It may use some of it all the same, or nothing
    /// in its place: what it holds of these is unknown.
    pub rejected: Vec<Rejected>,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Send(Box<DeltaDiscoveryRequest>),
    Deliver(Transaction),
    /// The server broke the protocol: drop the stream and say why.
    Reset(String),
}

#[derive(Debug)]
pub struct Machine {
    node: NodeInfo,
    /// What the proxy holds. `None`: it was sent and refused, and the proxy holds a placeholder
    /// that says why, or something else that is no form of a server's. It is sent again on the
    /// next stream, which is told again that it is refused.
    held: BTreeMap<ResourceName, Option<Version>>,
    /// Host names that the proxy asks for.
    wanted: BTreeSet<Arc<str>>,
    stream: Stream,
    pending: Option<Pending>,
    /// The last answer that was sent on this stream.
    answered: Option<Answered>,
    failures: u32,
    rng: Rng,
}

/// An answer that may be amended.
#[derive(Debug)]
struct Answered {
    generation: u64,
    nonce: String,
    /// What did not decode stays refused.
    undecodable: Vec<Rejected>,
    /// What was refused, with the version that it would have.
    refused: BTreeMap<ResourceName, Version>,
}

#[derive(Debug)]
enum Stream {
    Down,
    /// Up, but the proxy still applies a transaction of the stream before; what it holds is
    /// known only then, so the first request waits.
    Held,
    Up(Building),
}

/// A transaction that the proxy is applying.
#[derive(Debug)]
struct Pending {
    generation: u64,
    /// Nonce to answer; `None` once its stream is gone.
    nonce: Option<String>,
    upserts: Vec<(ResourceName, Version)>,
    removes: Vec<ResourceName>,
    undecodable: Vec<Rejected>,
}

/// A transaction that is arriving.
#[derive(Debug, Default)]
struct Building {
    /// Number of the last transaction that ended; the next is greater.
    done: u64,
    txn: u64,
    /// Next response expected.
    next: u32,
    resources: u32,
    removed: u32,
    bytes: usize,
    upserts: BTreeMap<ResourceName, (Version, Bytes)>,
    removes: BTreeSet<ResourceName>,
    unnamed: Vec<Rejected>,
}

enum Step {
    /// Seen before; nothing to do.
    Duplicate,
    More,
    Commit(Commit),
}

// === impl Machine ===

impl Machine {
    /// `held` is what the proxy started with, from its last-good file.
    pub fn new(
        node: NodeInfo,
        held: impl IntoIterator<Item = (ResourceName, Version)>,
        rng: Rng,
    ) -> Self {
        let held = held.into_iter().map(|(name, version)| (name, Some(version))).collect();
        Self {
            node,
            held,
            wanted: BTreeSet::new(),
            stream: Stream::Down,
            pending: None,
            answered: None,
            failures: 0,
            rng,
        }
    }

    /// A stream is open.
    pub fn connected(&mut self) -> Option<Output> {
        if self.pending.is_some() {
            self.stream = Stream::Held;
            return None;
        }
        Some(self.subscribe())
    }

    /// The proxy asks for these hosts, and for no others. Those that are new are answered by a
    /// transaction that brings them or calls them absent; a later stream asks for all again.
    pub fn want(&mut self, hosts: BTreeSet<Arc<str>>) -> Option<Output> {
        let before = std::mem::replace(&mut self.wanted, hosts);
        let name = |host: &Arc<str>| Root::Host(host.clone()).to_string();
        let subscribe: Vec<String> = self.wanted.difference(&before).map(name).collect();
        let unsubscribe: Vec<String> = before.difference(&self.wanted).map(name).collect();
        let up = matches!(self.stream, Stream::Up(_));
        if !up || (subscribe.is_empty() && unsubscribe.is_empty()) {
            return None;
        }
        Some(Output::Send(Box::new(DeltaDiscoveryRequest {
            type_url: MODEL_TYPE_URL.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })))
    }

    /// The stream is gone, or could not be opened. Returns how long to wait.
    pub fn disconnected(&mut self) -> Duration {
        self.stream = Stream::Down;
        self.answered = None;
        if let Some(pending) = &mut self.pending {
            pending.nonce = None;
        }
        let doubled = BACKOFF_MIN.saturating_mul(1_u32 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.rng.jitter(doubled.min(BACKOFF_MAX) / 2, 100)
    }

    /// A response arrived.
    pub fn received(&mut self, response: DeltaDiscoveryResponse) -> Option<Output> {
        let Stream::Up(building) = &mut self.stream else { return None };
        let nonce = response.nonce.clone();
        let commit = match building.take(response, self.pending.is_some()) {
            Ok(Step::Commit(commit)) => commit,
            Ok(Step::Duplicate | Step::More) => return None,
            Err(reason) => return Some(Output::Reset(reason)),
        };
        let done = building.txn;
        let built = std::mem::replace(building, Building { done, ..Building::default() });
        self.failures = 0;
        Some(Output::Deliver(self.deliver(built, commit, nonce)))
    }

    /// The proxy applied what was delivered.
    pub fn applied(&mut self, applied: Applied) -> Option<Output> {
        if self.pending.as_ref().is_none_or(|p| p.generation != applied.generation) {
            return None;
        }
        let mut pending = self.pending.take()?;
        let undecodable = std::mem::take(&mut pending.undecodable);
        let mut rejected = undecodable.clone();
        rejected.extend(applied.rejected);
        let nonce = pending.nonce.take();
        let refused = self.settle(pending, (&undecodable, &rejected));
        if matches!(self.stream, Stream::Held) {
            return Some(self.subscribe());
        }
        let nonce = nonce?;
        self.answered = Some(Answered {
            generation: applied.generation,
            nonce: nonce.clone(),
            undecodable,
            refused,
        });
        Some(Output::Send(Box::new(answer(nonce, rejected))))
    }

    /// The proxy took later what it had refused in its last answer: a door whose address was taken
    /// is open now. `applied` lists what is still refused.
    pub fn amended(&mut self, applied: Applied) -> Option<Output> {
        let is_up = matches!(self.stream, Stream::Up(_)) && self.pending.is_none();
        let last = self.answered.as_mut()?;
        if !is_up || last.generation != applied.generation {
            return None;
        }
        let mut rejected = last.undecodable.clone();
        rejected.extend(applied.rejected);
        let still: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        let held = &mut self.held;
        last.refused.retain(|name, version| {
            let stays = still.contains(name.to_string().as_str());
            if !stays {
                held.insert(name.clone(), Some(*version));
            }
            stays
        });
        Some(Output::Send(Box::new(answer(last.nonce.clone(), rejected))))
    }

    /// Whether a transaction was delivered and not answered yet.
    pub fn is_applying(&self) -> bool {
        self.pending.is_some()
    }

    /// Names and versions that the proxy holds in a good form.
    #[cfg(test)]
    pub(crate) fn held(&self) -> &BTreeMap<ResourceName, Option<Version>> {
        &self.held
    }

    /// The first request of a stream.
    fn subscribe(&mut self) -> Output {
        self.stream = Stream::Up(Building::default());
        self.answered = None;
        let mut names = vec![WILDCARD.to_owned()];
        names.extend(self.wanted.iter().map(|host| Root::Host(host.clone()).to_string()));
        // A placeholder has no version: the empty text equals none of the server's.
        let text = |v: &Option<Version>| v.map(|v| v.to_string()).unwrap_or_default();
        let held: HashMap<_, _> =
            self.held.iter().map(|(name, version)| (name.to_string(), text(version))).collect();
        Output::Send(Box::new(DeltaDiscoveryRequest {
            node: Some(self.node.to_proto()),
            type_url: MODEL_TYPE_URL.to_owned(),
            resource_names_subscribe: names,
            initial_resource_versions: held,
            ..DeltaDiscoveryRequest::default()
        }))
    }

    fn deliver(&mut self, built: Building, commit: Commit, nonce: String) -> Transaction {
        let generation = commit.generation;
        let removes = self.expand(&built);
        let absent = self.absent(&built);
        let mut undecodable = built.unnamed;
        let upserts: Vec<Upsert> = built
            .upserts
            .into_iter()
            .map(|(name, (version, bytes))| {
                let resource = codec::decode(&bytes).map_err(|error| {
                    undecodable.push(Rejected::new(name.to_string(), error.to_string()));
                    Fail { reason: format!("{name} {error}").into(), origin: None }
                });
                Upsert { name, version, bytes: bytes.len(), resource }
            })
            .collect();
        self.pending = Some(Pending {
            generation,
            nonce: Some(nonce),
            upserts: upserts.iter().map(|u| (u.name.clone(), u.version)).collect(),
            removes: removes.clone(),
            undecodable,
        });
        Transaction { generation, upserts, removes, absent, partial: commit.partial }
    }

    /// Names that were asked for and are removed: what is held is removed in the ordinary way.
    fn absent(&self, built: &Building) -> Vec<Arc<str>> {
        let asked = built.removes.iter().filter(|name| {
            name.child.is_empty()
                && !self.held.contains_key(*name)
                && !built.upserts.contains_key(*name)
        });
        asked
            .filter_map(|name| match &name.root {
                Root::Host(host) => self.wanted.get(host).cloned(),
                Root::Listener(_) => None,
            })
            .collect()
    }

    /// The removed names that are held, a root's children with it, less what is sent anew.
    fn expand(&self, built: &Building) -> Vec<ResourceName> {
        let mut out = BTreeSet::new();
        for name in &built.removes {
            if name.child.is_empty() {
                let children = self.held.range(name..).map(|(n, _)| n);
                out.extend(children.take_while(|n| n.root == name.root).cloned());
            } else if self.held.contains_key(name) {
                out.insert(name.clone());
            }
        }
        out.into_iter().filter(|name| !built.upserts.contains_key(name)).collect()
    }

    /// Notes what is held now; returns what of it was refused.
    fn settle(
        &mut self,
        pending: Pending,
        (undecodable, rejected): (&[Rejected], &[Rejected]),
    ) -> BTreeMap<ResourceName, Version> {
        let mut out = BTreeMap::new();
        for name in &pending.removes {
            self.held.remove(name);
        }
        let names = |of: &'_ [Rejected]| of.iter().map(|r| r.name.clone()).collect();
        let (unread, refused): (BTreeSet<String>, BTreeSet<String>) =
            (names(undecodable), names(rejected));
        for (name, version) in pending.upserts {
            let text = if refused.is_empty() { String::new() } else { name.to_string() };
            if !refused.contains(&text) {
                self.held.insert(name, Some(version));
                continue;
            }
            out.insert(name.clone(), version);
            if unread.contains(&text) {
                // The form before is in use.
                self.held.entry(name).or_insert(None);
            } else {
                self.held.insert(name, None);
            }
        }
        out
    }
}

fn answer(nonce: String, rejected: Vec<Rejected>) -> DeltaDiscoveryRequest {
    let error_detail = (!rejected.is_empty()).then(|| nack(codec::bound_rejected(rejected)));
    DeltaDiscoveryRequest {
        type_url: MODEL_TYPE_URL.to_owned(),
        response_nonce: nonce,
        error_detail,
        ..DeltaDiscoveryRequest::default()
    }
}

fn nack(rejected: Vec<Rejected>) -> Status {
    let first = rejected.first().map(ToString::to_string).unwrap_or_default();
    let message = match rejected.len() {
        1 => first,
        n => format!("{n} resources were refused, the first: {first}"),
    };
    // Two strings in a list are always CBOR; the message alone would still be a NACK.
    let value = codec::to_cbor(&rejected).unwrap_or_default();
    let details = vec![Any { type_url: REJECTED_TYPE_URL.to_owned(), value }];
    Status { code: INVALID_ARGUMENT, message, details }
}

// === impl Building ===

impl Building {
    /// Takes one response; whatever is out of step ends the stream, since a half is never shown.
    fn take(&mut self, response: DeltaDiscoveryResponse, applying: bool) -> Result<Step, String> {
        if response.type_url != MODEL_TYPE_URL {
            return Err(format!("got type {:?}, subscribed {MODEL_TYPE_URL}", response.type_url));
        }
        let (txn, seq) = parse_nonce(&response.nonce)?;
        if txn <= self.done || (txn == self.txn && seq < self.next) {
            return Ok(Step::Duplicate);
        }
        if applying {
            return Err(format!("transaction {txn} came before the last one was answered"));
        }
        let expected = if txn == self.txn { self.next } else { 0 };
        let new_while_building = txn != self.txn && self.next > 0;
        if seq != expected || new_while_building {
            return Err(format!("got response {txn}/{seq}, expected {}/{expected}", self.txn));
        }
        (self.txn, self.next) = (txn, seq + 1);
        self.take_names(response.removed_resources);
        let mut commit = None;
        for resource in response.resources {
            if resource.name == COMMIT_NAME {
                commit = Some(resource);
            } else {
                self.take_resource(resource)?;
            }
        }
        commit.map_or(Ok(Step::More), |c| self.check(&c).map(Step::Commit))
    }

    fn take_names(&mut self, removed: Vec<String>) {
        for name in removed {
            self.removed += 1;
            // A name of a later release was never taken, so there is nothing to remove.
            if let Ok(name) = ResourceName::try_from(name) {
                self.removes.insert(name);
            }
        }
    }

    fn take_resource(&mut self, wire: WireResource) -> Result<(), String> {
        self.resources += 1;
        let value = wire.resource.map(|any| any.value).unwrap_or_default();
        self.bytes += value.len() + wire.name.len();
        if self.bytes > XDS_TRANSACTION_BYTES_MAX {
            return Err(format!("a transaction exceeds {XDS_TRANSACTION_BYTES_MAX} bytes"));
        }
        let name = match ResourceName::try_from(wire.name.clone()) {
            Ok(name) => name,
            Err(reason) => {
                self.unnamed.push(Rejected::new(wire.name, reason));
                return Ok(());
            }
        };
        let version = Version::parse(&wire.version).unwrap_or_else(|| Version::of(&value));
        self.upserts.insert(name, (version, value));
        Ok(())
    }

    fn check(&self, wire: &WireResource) -> Result<Commit, String> {
        let value = wire.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        let commit: Commit =
            codec::from_cbor(value).map_err(|e| format!("the commit of a transaction {e}"))?;
        let got = (self.next, self.resources, self.removed);
        if got != (commit.responses, commit.resources, commit.removed) {
            return Err(format!("transaction {} is incomplete: got {got:?}, {commit:?}", self.txn));
        }
        Ok(commit)
    }
}

fn parse_nonce(nonce: &str) -> Result<(u64, u32), String> {
    nonce
        .split_once('/')
        .and_then(|(txn, seq)| Some((txn.parse().ok()?, seq.parse::<u32>().ok()?)))
        .filter(|(txn, seq)| *txn > 0 && *seq < u32::MAX)
        .ok_or_else(|| format!("nonce {nonce:?} is not TRANSACTION/RESPONSE"))
}
