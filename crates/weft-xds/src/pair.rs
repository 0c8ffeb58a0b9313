// SPDX-License-Identifier: Apache-2.0
//! Client ⇄ server machines over a bad network, by seed: messages are lost, doubled and swapped,
//! streams break, the proxy is slow and refuses things, the server restarts. Never is half a
//! transaction visible; after quiescence the proxy holds what the server wants, and of what it
//! refused what it made of it.

mod again;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use weft_base::rng::Rng;
use weft_model::{Fail, Resource, ResourceName, Root};
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::client::{self, Applied, Transaction};
use crate::codec::{Rejected, Version};
use crate::server;
use crate::{Asked, Entry, NodeId, NodeInfo, View};

/// How bad the network is, in percent per step.
#[derive(Clone, Copy)]
struct Faults {
    lose: u64,
    double: u64,
    swap: u64,
    cut: u64,
}

const CALM: Faults = Faults { lose: 0, double: 0, swap: 0, cut: 0 };

/// What the proxy holds of a name.
#[derive(Clone, Debug, PartialEq)]
enum Holds {
    Good(Version),
    Placeholder,
}

struct World {
    rng: Rng,
    faults: Faults,
    client: client::Machine,
    server: Option<server::Machine>,
    connected: bool,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaDiscoveryResponse>,
    delivered: Option<Transaction>,
    table: BTreeMap<ResourceName, Holds>,
    view: View,
    history: BTreeMap<u64, View>,
    answered: u64,
    /// What the server says is refused.
    refused_by_server: BTreeSet<String>,
    /// The server sends `h0`, `h1` and what is asked for, not everything.
    on_demand: bool,
    /// What the server knows to be asked for, with the number of each asking.
    asks: BTreeMap<Arc<str>, u64>,
    /// What the proxy asks for, and what it was told is not there.
    wanted: BTreeSet<Arc<str>>,
    absent: BTreeSet<Arc<str>>,
    /// Resources in one response; 0 leaves the server's own limits.
    chunk: usize,
    stats: Stats,
}

#[derive(Debug, Default)]
struct Stats {
    transactions: usize,
    resets: usize,
    nacks: usize,
    resources_sent: usize,
    removes_seen: usize,
    absents: usize,
}

fn refused(name: &ResourceName, version: Version) -> bool {
    weft_base::name::fnv1a(format!("{name}{version}").as_bytes()).is_multiple_of(11)
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let node = NodeInfo::this_release(NodeId::sidecar("shop", "user-1").unwrap(), "test");
        Self {
            rng: Rng::seeded(seed),
            faults,
            client: client::Machine::new(node, [], Rng::seeded(seed)),
            server: None,
            connected: false,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            delivered: None,
            table: BTreeMap::new(),
            view: View::default(),
            history: BTreeMap::new(),
            answered: 0,
            refused_by_server: BTreeSet::new(),
            on_demand: false,
            asks: BTreeMap::new(),
            wanted: BTreeSet::new(),
            absent: BTreeSet::new(),
            chunk: 0,
            stats: Stats::default(),
        }
    }

    fn percent(&mut self, p: u64) -> bool {
        self.rng.below(100) < p
    }

    /// A few random changes to what is desired, under a new generation.
    fn change(&mut self) {
        self.view.generation += 1;
        let generation = self.view.generation;
        for _ in 0..=self.rng.below(4) {
            let root = Root::host(format!("h{}", self.rng.below(6)));
            let child = match self.rng.below(4) {
                0 => String::new(),
                n => format!("c{n}"),
            };
            let name = root.child(child);
            match self.rng.below(10) {
                0..=5 => {
                    let entry = self.entry(generation);
                    self.view.resources.insert(name, Arc::new(entry));
                }
                6..=7 => drop(self.view.resources.remove(&name)),
                8 => {
                    let all = std::mem::take(&mut self.view.resources);
                    let keep = all.into_iter().filter(|(n, _)| n.root != root);
                    self.view.resources = keep.collect();
                }
                // Back to an older state: the same version again.
                _ => {
                    let at = self.rng.below(generation);
                    if let Some(old) = self.history.get(&at).and_then(|v| v.resources.get(&name)) {
                        self.view.resources.insert(name, old.clone());
                    }
                }
            }
        }
        self.offer();
    }

    /// What the server wants the client to hold, under the newest generation.
    fn offer(&mut self) {
        let view = self.desired();
        self.history.insert(view.generation, view.clone());
        if let Some(server) = &mut self.server {
            let outputs = server.offer(Arc::new(view));
            self.serve(outputs);
        }
    }

    fn desired(&self) -> View {
        let mut view = self.view.clone();
        if !self.on_demand {
            return view;
        }
        let exists = |root: &Root| self.view.resources.keys().any(|n| n.root == *root);
        let asked = |(host, number): (&Arc<str>, &u64)| {
            let exists = exists(&Root::Host(host.clone()));
            (host.clone(), Asked { number: *number, exists })
        };
        view.partial = true;
        view.asked = self.asks.iter().map(asked).collect();
        let sent = |name: &ResourceName| match &name.root {
            Root::Host(host) => matches!(&**host, "h0" | "h1") || self.asks.contains_key(host),
            Root::Listener(_) => true,
        };
        view.resources = view.resources.into_iter().filter(|(n, _)| sent(n)).collect();
        view
    }

    fn ask(&mut self, asks: &BTreeSet<Arc<str>>) {
        self.asks.retain(|host, _| asks.contains(host));
        for host in asks {
            self.view.generation += 1;
            self.asks.entry(host.clone()).or_insert(self.view.generation);
        }
        self.view.generation += 1;
    }

    /// The proxy needs other hosts than before.
    fn want(&mut self) {
        let host: Arc<str> = format!("h{}", self.rng.below(9)).into();
        if !self.wanted.remove(&host) {
            self.absent.remove(&host);
            self.wanted.insert(host);
        }
        let output = self.client.want(self.wanted.clone());
        self.client_output(output);
    }

    fn entry(&mut self, generation: u64) -> Entry {
        let reason = format!("{generation} {}", self.rng.below(5)).into();
        let resource = Arc::new(Resource::Fail(Fail { reason, origin: None }));
        let mut entry = Entry::new(resource).unwrap();
        if self.percent(5) {
            let bytes = Bytes::from(format!("no cbor {generation}"));
            entry.version = Version::of(&bytes);
            entry.bytes = bytes.into();
        }
        entry
    }

    fn serve(&mut self, outputs: Vec<server::Output>) {
        for output in outputs {
            match output {
                server::Output::Send(response) => self.to_client.push_back(*response),
                server::Output::Wanted(asks) => {
                    self.ask(&asks);
                    self.offer();
                }
                server::Output::Sent { resources, .. } => self.stats.resources_sent += resources,
                server::Output::Answered { view, rejected } => {
                    self.answered = view.generation;
                    self.stats.nacks += usize::from(!rejected.is_empty());
                    self.refused_by_server = rejected.into_iter().map(|r| r.name).collect();
                }
            }
        }
    }

    fn step(&mut self) {
        match self.rng.below(6) {
            0 if self.on_demand && self.percent(50) => self.want(),
            0 => self.change(),
            1 | 2 => self.carry_to_client(),
            3 => self.carry_to_server(),
            4 => self.apply(),
            _ if !self.connected => self.connect(),
            _ => {
                let cut = self.faults.cut;
                if self.percent(cut) {
                    self.disconnect();
                }
            }
        }
    }

    fn connect(&mut self) {
        self.connected = true;
        let first = self.client.connected();
        self.client_output(first);
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.server = None;
        self.to_client.clear();
        self.to_server.clear();
        self.client.disconnected();
    }

    fn client_output(&mut self, output: Option<client::Output>) {
        match output {
            None => {}
            Some(client::Output::Send(request)) => self.to_server.push_back(*request),
            Some(client::Output::Deliver(transaction)) => {
                assert!(self.delivered.is_none(), "a transaction on top of an unanswered one");
                self.delivered = Some(transaction);
            }
            Some(client::Output::Reset(_)) => {
                self.stats.resets += 1;
                self.disconnect();
            }
        }
    }

    fn carry_to_client(&mut self) {
        let Faults { lose, double, swap, .. } = self.faults;
        if self.percent(swap) && self.to_client.len() > 1 {
            self.to_client.swap(0, 1);
        }
        let Some(message) = self.to_client.pop_front() else { return };
        if self.percent(lose) {
            return;
        }
        if self.percent(double) {
            self.to_client.push_front(message.clone());
        }
        let output = self.client.received(message);
        self.client_output(output);
    }

    fn carry_to_server(&mut self) {
        let Some(message) = self.to_server.pop_front() else { return };
        let (lose, double) = (self.faults.lose, self.faults.double);
        if self.server.is_some() && self.percent(lose) {
            return;
        }
        if self.server.is_some() && self.percent(double) {
            self.to_server.push_front(message.clone());
        }
        let outputs = match &mut self.server {
            Some(server) => server.received(message).unwrap(),
            None => {
                let (mut server, _) = server::Machine::open(message).unwrap();
                if self.chunk > 0 {
                    server.set_chunk(server::Chunk { items: self.chunk, bytes: usize::MAX });
                }
                let asks = server.asks().clone();
                self.server = Some(server);
                if self.on_demand {
                    self.asks.clear();
                    self.ask(&asks);
                }
                self.offer();
                Vec::new()
            }
        };
        self.serve(outputs);
    }

    /// The proxy swaps its table and answers.
    fn apply(&mut self) {
        let Some(transaction) = self.delivered.take() else { return };
        self.stats.transactions += 1;
        self.stats.removes_seen += transaction.removes.len();
        let mut rejected = Vec::new();
        self.stats.absents += transaction.absent.len();
        self.absent.extend(transaction.absent.iter().cloned());
        self.absent.extend(transaction.removes.iter().filter_map(|name| match &name.root {
            Root::Host(host) => Some(host.clone()),
            Root::Listener(_) => None,
        }));
        for name in &transaction.removes {
            assert!(self.table.remove(name).is_some(), "{name} was removed but not held");
        }
        for upsert in &transaction.upserts {
            let name = upsert.name.clone();
            let bad = refused(&name, upsert.version);
            if bad && upsert.resource.is_ok() {
                rejected.push(Rejected::new(name.to_string(), "the proxy does not like it"));
            }
            if upsert.resource.is_err() {
                self.table.entry(name).or_insert(Holds::Placeholder);
            } else if bad {
                // It may use a part of it: that is none of the server's forms.
                self.table.insert(name, Holds::Placeholder);
            } else {
                self.table.insert(name, Holds::Good(upsert.version));
            }
        }
        let generation = transaction.generation;
        self.check_whole(generation);
        let output = self.client.applied(Applied { generation, rejected });
        self.client_output(output);
    }

    /// The table is exactly that of one generation: nothing missing, nothing left over.
    fn check_whole(&self, generation: u64) {
        let empty = View::default();
        let view = self.history.get(&generation).unwrap_or(&empty);
        let wanted: Vec<_> = view.resources.keys().collect();
        assert_eq!(self.table.keys().collect::<Vec<_>>(), wanted, "generation {generation}");
        for (name, entry) in &view.resources {
            let good = self.table[name] == Holds::Good(entry.version);
            let undecodable = entry.bytes().starts_with(b"no cbor");
            if refused(name, entry.version) || undecodable {
                // Last good, or the placeholder; a version is never good once it was refused.
                assert!(!good, "{name} was refused and is in use");
            } else {
                assert!(good, "{name}: {:?} at {generation}, wanted {}", self.table[name], {
                    entry.version
                });
            }
        }
    }

    /// Everything arrives from here on; what was lost before is found by reconnecting.
    fn quiesce(&mut self) {
        self.faults = CALM;
        for round in 0..50 {
            if !self.connected {
                self.connect();
            }
            for _ in 0..1_000 {
                self.carry_to_client();
                self.apply();
                self.carry_to_server();
            }
            let server = self.server.as_ref();
            let idle = server.is_some_and(|s| !s.is_in_flight()) && !self.client.is_applying();
            if idle && self.answered == self.view.generation {
                self.check_whole(self.view.generation);
                self.check_held();
                self.check_asked();
                return;
            }
            assert!(round < 40, "no quiescence");
            self.disconnect();
        }
    }

    /// Everything that is asked for is there, or known not to be.
    fn check_asked(&self) {
        for host in &self.wanted {
            let held = self.table.keys().any(|n| n.root == Root::Host(host.clone()));
            let exists = self.view.resources.keys().any(|n| n.root == Root::Host(host.clone()));
            assert_eq!(held, exists, "{host}");
            assert!(held || self.absent.contains(host), "{host} was never answered");
        }
    }

    /// The client's book is the proxy's table, and the server knows what is refused in it.
    fn check_held(&self) {
        let view = self.desired();
        let refused = view.resources.iter().filter(|(name, entry)| {
            refused(name, entry.version) || entry.bytes().starts_with(b"no cbor")
        });
        let refused: BTreeSet<String> = refused.map(|(name, _)| name.to_string()).collect();
        assert_eq!(self.refused_by_server, refused);
        let book =
            self.client.held().iter().map(|(name, version)| {
                (name.clone(), version.map_or(Holds::Placeholder, Holds::Good))
            });
        assert_eq!(book.collect::<BTreeMap<_, _>>(), self.table);
    }
}

fn run(seeds: std::ops::Range<u64>, faults: Faults) -> Stats {
    let mut total = Stats::default();
    for seed in seeds {
        let mut world = World::new(seed, faults);
        world.history.insert(0, View::default());
        world.chunk = 2;
        for _ in 0..400 {
            world.step();
        }
        world.quiesce();
        total.transactions += world.stats.transactions;
        total.resets += world.stats.resets;
        total.nacks += world.stats.nacks;
        total.removes_seen += world.stats.removes_seen;
    }
    total
}

#[test]
fn on_a_good_stream_every_transaction_is_whole_and_both_ends_agree() {
    let stats = run(0..300, CALM);
    assert_eq!(stats.resets, 0);
    assert!(stats.transactions > 3_000 && stats.nacks > 300 && stats.removes_seen > 1_000);
}

#[test]
fn streams_that_break_resume_where_they_were() {
    let stats = run(1_000..1_300, Faults { cut: 30, ..CALM });
    assert_eq!(stats.resets, 0);
    assert!(stats.transactions > 1_000 && stats.nacks > 100, "{stats:?}");
}

#[test]
fn lost_doubled_and_swapped_messages_never_show_a_half() {
    let stats = run(2_000..2_600, Faults { lose: 10, double: 10, swap: 20, cut: 5 });
    assert!(stats.transactions > 1_000 && stats.resets > 10, "{stats:?}");
}

/// The same with a server that sends only what is asked for.
#[test]
fn what_is_asked_for_comes_or_is_called_absent_however_bad_the_network_is() {
    for (seeds, faults) in [
        (3_000..3_200, CALM),
        (4_000..4_200, Faults { cut: 30, ..CALM }),
        (5_000..5_200, Faults { lose: 10, double: 10, swap: 20, cut: 5 }),
    ] {
        let mut absents = 0;
        for seed in seeds {
            let mut world = World::new(seed, faults);
            world.on_demand = true;
            world.history.insert(0, View::default());
            world.chunk = 2;
            for _ in 0..600 {
                world.step();
            }
            if faults.lose > 0 {
                // A real stream that loses a request is over; nothing else would find it out.
                world.disconnect();
            }
            world.quiesce();
            absents += world.stats.absents;
        }
        assert!(absents > 200, "{absents}");
    }
}

/// A port that was taken becomes free: the refusal ends without another transaction.
#[test]
fn an_answer_is_amended_when_what_it_refused_is_taken_after_all() {
    let mut world = World::new(1, CALM);
    for (i, reason) in ["a", "b"].into_iter().enumerate() {
        let fail = Resource::Fail(Fail { reason: reason.into(), origin: None });
        let entry = Entry::new(Arc::new(fail)).unwrap();
        world.view.resources.insert(Root::listener(format!("l{i}")).own(), Arc::new(entry));
    }
    world.view.generation = 1;
    world.connect();
    world.carry_to_server();
    world.carry_to_client();
    let transaction = world.delivered.take().unwrap();
    let rejected = vec![
        Rejected::new("listener:l0", "address in use"),
        Rejected::new("listener:l1", "address in use"),
    ];
    let applied = |rejected| Applied { generation: 1, rejected };
    let answer = world.client.applied(applied(rejected.clone()));
    world.client_output(answer);
    world.carry_to_server();
    assert_eq!(world.refused_by_server.len(), 2);
    assert_eq!(transaction.upserts.len(), 2);
    for left in [1, 0] {
        let late = world.client.amended(applied(rejected[..left].to_vec()));
        assert!(late.is_some());
        world.client_output(late);
        world.carry_to_server();
        assert_eq!(world.refused_by_server.len(), left);
        assert_eq!(world.answered, 1);
    }
    // What was taken late is held in its newest form: a new stream sends nothing.
    assert!(world.client.held().values().all(Option::is_some));
    let old = Applied { generation: 0, rejected: Vec::new() };
    assert_eq!(world.client.amended(old), None, "of a transaction long gone");
    world.disconnect();
    assert_eq!(world.client.amended(applied(Vec::new())), None, "there is no stream to say it on");
}

#[test]
fn a_reconnect_of_an_equal_client_sends_no_resource() {
    for seed in 0..50 {
        let mut world = World::new(seed, CALM);
        // No refusals: a refused form is offered again on every new stream.
        for i in 0..200_u64 {
            let name = Root::host(format!("h{i}")).own();
            let resource = Resource::Fail(Fail { reason: "same".into(), origin: None });
            let entry = Entry::new(Arc::new(resource)).unwrap();
            if !refused(&name, entry.version) {
                world.view.resources.insert(name, Arc::new(entry));
            }
        }
        world.view.generation = 1;
        world.history.insert(1, world.view.clone());
        world.quiesce();
        let sent = world.stats.resources_sent;
        assert!(sent > 150);
        world.disconnect();
        world.quiesce();
        assert_eq!(world.stats.resources_sent, sent);
        assert_eq!(world.stats.transactions, 2, "the commit alone says that all is in sync");
    }
}

/// 5,000 resources of 1 kB leave in several responses, none of them far above the limit.
#[test]
fn a_large_view_is_cut_into_responses() {
    let mut world = World::new(1, CALM);
    for i in 0..5_000_u64 {
        let reason = format!("{i} {}", "x".repeat(1_000)).into();
        let entry = Entry::new(Arc::new(Resource::Fail(Fail { reason, origin: None }))).unwrap();
        world.view.resources.insert(Root::host(format!("h{i}")).own(), Arc::new(entry));
    }
    world.view.generation = 1;
    world.history.insert(1, world.view.clone());
    world.connect();
    world.carry_to_server();
    let sizes: Vec<usize> = world.to_client.iter().map(prost::Message::encoded_len).collect();
    assert!(sizes.len() >= 5, "{sizes:?}");
    let most = weft_base::limits::XDS_RESPONSE_BYTES + 200 * 1024;
    assert!(sizes.iter().all(|s| *s < most), "{sizes:?}");
    world.quiesce();
    assert_eq!(world.table.len(), 5_000);
}
