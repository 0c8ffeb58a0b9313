// SPDX-License-Identifier: Apache-2.0
//! What a node is sent of more than a proxy holds, against a plain reading of the rule; and what a
//! node is sent that lacks something.

use std::net::IpAddr;

use super::super::book::{Book, Change};
use super::*;
use weft_model::{
    Action, BackendPolicy, Dialect, LbPolicy, Matching, Origin, Parent, Rank, Route, Rule, Scope,
    Target, WeightedBackend,
};
use weft_xds::{Entry, View};

/// Sees what its bits say, keeps namespace shop, and asks.
#[derive(Debug)]
struct Asking(u64);

impl NodeScope for Asking {
    fn sees(&self, name: &ResourceName, _: &Resource) -> bool {
        let hash = weft_base::name::fnv1a(name.to_string().as_bytes());
        self.0 >> (hash % 64) & 1 == 1
    }

    fn asks(&self) -> bool {
        true
    }

    fn keeps(&self, root: &Root) -> bool {
        matches!(root, Root::Host(host) if host.contains(".shop."))
    }
}

fn root_of(n: u64) -> Root {
    let namespace = if n < 3 { "shop" } else { "far" };
    Root::host(format!("s{n}.{namespace}.svc.cluster.local"))
}

fn address_of(n: u64) -> IpAddr {
    format!("127.96.0.{n}").parse().unwrap()
}

fn host(n: u64) -> Resource {
    let name = root_of(n).to_string().trim_start_matches("host:").into();
    // Two hosts of one alias, so that the one that is seen is found.
    let aliases = vec![format!("s{n}.alias").into(), format!("pair{}.alias", n / 2).into()];
    Resource::Host(Host { name, aliases, addresses: vec![address_of(n)], ports: Vec::new() })
}

fn origin() -> Origin {
    Origin { kind: "K".into(), namespace: "n".into(), name: "x".into(), field: "".into() }
}

fn route_to(parent: u64, target: u64) -> Resource {
    let forward = Action::Forward(vec![WeightedBackend {
        target: Target::Backend(root_of(target).child("backend/80")),
        weight: 1,
        filters: Vec::new(),
    }]);
    let rule = Rule {
        name: "".into(),
        matches: Vec::new(),
        filters: Vec::new(),
        action: forward,
        timeouts: Default::default(),
        session: None,
        retry: Default::default(),
        origin: origin(),
        sources: weft_model::Sources::default(),
    };
    Resource::Route(Route {
        parent: Parent::Host { root: root_of(parent), port: None },
        scope: Scope::Any,
        matching: Matching::FirstMatch,
        rank: Rank { dialect: Dialect::VirtualService, created_ms: 0, name: "n/x".into() },
        rules: vec![rule],
        origin: origin(),
    })
}

fn backend(lb: LbPolicy) -> Resource {
    Resource::Backend(Backend {
        service: "s".into(),
        port: 80,
        subset: "".into(),
        selector: Default::default(),
        policy: BackendPolicy { lb, ..BackendPolicy::default() },
        origin: None,
    })
}

fn instances(rng: &mut Rng) -> Resource {
    let ips: Vec<String> = (0..rng.below(3)).map(|_| instance_of(rng.below(5))).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    endpoints("x", &ips).1.as_ref().clone()
}

fn instance_of(n: u64) -> String {
    format!("127.64.0.{n}")
}

fn entry(resource: Resource) -> Arc<Entry> {
    Arc::new(Entry::new(Arc::new(resource)).unwrap())
}

fn random_change(rng: &mut Rng, generation: u64) -> Change {
    let mut upserts = BTreeMap::new();
    let mut removes = BTreeSet::new();
    for _ in 0..=rng.below(4) {
        let n = rng.below(9);
        let root = root_of(n);
        let (name, resource) = match rng.below(5) {
            4 => (root.child("endpoints/80"), instances(rng)),
            0 => (root.own(), host(n)),
            1 => (root.child("route/r"), route_to(n, rng.below(9))),
            2 => (root.child("backend/80"), backend(LbPolicy::Random)),
            _ => (root.child("backend/81"), backend(LbPolicy::RoundRobin)),
        };
        if rng.below(4) == 0 {
            removes.insert(name);
        } else {
            upserts.insert(name, entry(resource));
        }
    }
    Change { generation, upserts: upserts.into_iter().collect(), removes, scopes: Vec::new() }
}

/// The rule as it is written: nothing is remembered, everything is looked through.
struct Reading<'a> {
    all: &'a BTreeMap<ResourceName, Arc<Entry>>,
    scope: &'a Asking,
}

impl Reading<'_> {
    fn find(&self, asked: &str) -> Vec<Root> {
        let seen = |root: &Root| {
            self.all.get(&root.own()).is_some_and(|e| self.scope.sees(&root.own(), &e.resource))
        };
        let canonical = Root::host(asked);
        if seen(&canonical) {
            return vec![canonical];
        }
        let named = self.all.iter().filter(|(name, entry)| match &*entry.resource {
            Resource::Host(host) => seen(&name.root) && host.aliases.iter().any(|a| &**a == asked),
            _ => false,
        });
        if let Some((name, _)) = { named }.next() {
            return vec![name.root.clone()];
        }
        let there = self.all.iter().filter(|(_, entry)| match &*entry.resource {
            Resource::Host(host) => host.addresses.iter().any(|a| a.to_string() == asked),
            Resource::Endpoints(set) => {
                set.endpoints.iter().any(|e| e.address.ip().to_string() == asked)
            }
            _ => false,
        });
        there.map(|(name, _)| name.root.clone()).filter(seen).collect()
    }

    fn names(&self, asks: &BTreeSet<Arc<str>>) -> BTreeSet<ResourceName> {
        let mut held: BTreeSet<Root> = asks.iter().flat_map(|a| self.find(a)).collect();
        held.extend(self.all.keys().map(|n| n.root.clone()).filter(|r| self.scope.keeps(r)));
        loop {
            let before = held.len();
            for (name, entry) in self.all {
                let Resource::Route(route) = &*entry.resource else { continue };
                if held.contains(&name.root) && self.scope.sees(name, &entry.resource) {
                    held.extend(crate::compiler::targets_of(route).map(|t| t.root.clone()));
                }
            }
            if held.len() == before {
                break;
            }
        }
        let sent = self.all.iter().filter(|(n, e)| self.scope.sees(n, &e.resource));
        sent.map(|(n, _)| n.clone()).filter(|n| held.contains(&n.root)).collect()
    }
}

fn asked_names(rng: &mut Rng) -> BTreeSet<Arc<str>> {
    let name = |rng: &mut Rng| -> Arc<str> {
        let n = rng.below(9);
        match rng.below(5) {
            0 => format!("s{n}.alias").into(),
            1 => format!("pair{}.alias", n / 2).into(),
            2 => address_of(n).to_string().into(),
            3 if n < 5 => instance_of(n).into(),
            3 => format!("nobody{n}").into(),
            _ => root_of(n).to_string().trim_start_matches("host:").into(),
        }
    };
    (0..rng.below(5)).map(|_| name(rng)).collect()
}

#[test]
fn a_part_is_what_is_kept_asked_for_and_routed_to_and_nothing_else() {
    const LIMITS: HoldLimits = HoldLimits { backends_max: 5, bytes_max: usize::MAX };
    let (mut partials, mut wholes) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::seeded(seed);
        let mut book = Book::new(LIMITS);
        let mut scope = Arc::new(Asking(rng.next_u64() | rng.next_u64()));
        let id = NodeId::sidecar("shop", "p").unwrap();
        let info = NodeInfo::this_release(id.clone(), "test");
        let mut asks = asked_names(&mut rng);
        let open = |book: &mut Book, scope: &Arc<Asking>, asks: &BTreeSet<Arc<str>>| {
            let scope: Arc<dyn NodeScope> = scope.clone();
            book.open(info.clone(), &Peer::default(), Some(scope), asks, 0).unwrap()
        };
        let mut session = open(&mut book, &scope, &asks);
        book.apply(random_change(&mut rng, 0));
        for generation in 1..60 {
            match rng.below(12) {
                0..=2 => {
                    asks = asked_names(&mut rng);
                    book.wanted(&session.key, &asks);
                }
                3 => session = open(&mut book, &scope, &asks),
                4 => {
                    scope = Arc::new(Asking(rng.next_u64() | rng.next_u64()));
                    let scopes = vec![(id.clone(), Some(scope.clone() as Arc<dyn NodeScope>))];
                    book.apply(Change { generation, scopes, ..Change::default() });
                }
                _ => book.apply(random_change(&mut rng, generation)),
            }
            let all: BTreeMap<_, _> = book.resources().into_iter().collect();
            let view = session.views.borrow().clone().unwrap();
            let seen = all.iter().filter(|(n, e)| scope.sees(n, &e.resource));
            let backends = seen.filter(|(n, _)| n.child.starts_with("backend/")).count();
            let why = format!("seed {seed} at {generation}, {backends} backends");
            assert_eq!(view.partial, backends > 5, "{why}");
            let reading = Reading { all: &all, scope: &scope };
            let want: BTreeSet<ResourceName> = if view.partial {
                partials += 1;
                reading.names(&asks)
            } else {
                wholes += 1;
                let seen = all.iter().filter(|(n, e)| scope.sees(n, &e.resource));
                seen.map(|(n, _)| n.clone()).collect()
            };
            assert_eq!(view.resources.keys().cloned().collect::<BTreeSet<_>>(), want, "{why}");
            let asked: BTreeMap<_, _> =
                view.asked.iter().map(|(n, a)| (n.clone(), a.exists)).collect();
            let found = asks.iter().map(|a| (a.clone(), !reading.find(a).is_empty())).collect();
            assert_eq!(asked, found, "{why}");
        }
    }
    assert!(partials > 2_000 && wholes > 3_000, "{partials} {wholes}");
}

#[test]
fn bytes_count_too() {
    let mut book = Book::new(HoldLimits { backends_max: 100, bytes_max: 1_000 });
    let id = NodeId::sidecar("shop", "p").unwrap();
    let info = NodeInfo::this_release(id, "test");
    let scope = Some(Arc::new(Asking(u64::MAX)) as Arc<dyn NodeScope>);
    let session = book.open(info, &Peer::default(), scope, &BTreeSet::new(), 0).unwrap();
    let upserts = (3..8).map(|n| (root_of(n).own(), entry(host(n)))).collect();
    book.apply(Change { generation: 1, upserts, ..Change::default() });
    let view = |session: &server::Session| session.views.borrow().clone().unwrap();
    assert!(!view(&session).partial && view(&session).resources.len() == 5);
    let large = Resource::Fail(Fail { reason: "x".repeat(1_000).into(), origin: None });
    let upserts = vec![(root_of(3).child("route/x"), entry(large))];
    book.apply(Change { generation: 2, upserts, ..Change::default() });
    assert!(view(&session).partial && view(&session).resources.is_empty());
    let removes = [root_of(3).own()].into();
    book.apply(Change { generation: 3, removes, ..Change::default() });
    assert!(!view(&session).partial && view(&session).resources.len() == 4);
}

/// A proxy of another release that lacks one thing: it is told so where it matters, the rest is
/// shared with those that have all.
#[test]
fn a_node_that_lacks_something_is_told_in_another_way() {
    let mut book = Book::default();
    let mut open = |name: &str, lacks: &str| {
        let mut info = NodeInfo::this_release(NodeId::sidecar("shop", name).unwrap(), "test");
        info.features.retain(|f| &**f != lacks);
        let scope = Some(Arc::new(Asking(u64::MAX)) as Arc<dyn NodeScope>);
        book.open(info, &Peer::default(), scope, &BTreeSet::new(), 0).unwrap()
    };
    let new = open("new", "");
    let olds = [open("old-1", "backend.least-request"), open("old-2", "backend.least-request")];
    let name = root_of(1).child("backend/80");
    let upserts = vec![
        (root_of(1).own(), entry(host(1))),
        (name.clone(), entry(backend(LbPolicy::LeastRequest))),
    ];
    book.apply(Change { generation: 1, upserts, ..Change::default() });
    let at = |session: &server::Session, name: &ResourceName| -> Arc<Entry> {
        let view: Arc<View> = session.views.borrow().clone().unwrap();
        view.resources[name].clone()
    };
    assert!(matches!(*at(&new, &name).resource, Resource::Backend(_)));
    let Resource::Fail(fail) = &*at(&olds[0], &name).resource else { panic!() };
    assert!(fail.reason.contains("backend.least-request"), "{}", fail.reason);
    assert!(Arc::ptr_eq(&at(&olds[0], &name), &at(&olds[1], &name)), "made once");
    assert!(Arc::ptr_eq(&at(&olds[0], &root_of(1).own()), &at(&new, &root_of(1).own())));

    // Changed later, and read anew by a stream that opens later.
    let upserts = vec![(name.clone(), entry(backend(LbPolicy::Random)))];
    book.apply(Change { generation: 2, upserts, ..Change::default() });
    assert!(matches!(*at(&olds[1], &name).resource, Resource::Backend(_)));
    let upserts = vec![(name.clone(), entry(backend(LbPolicy::LeastRequest)))];
    book.apply(Change { generation: 3, upserts, ..Change::default() });
    let mut info = NodeInfo::this_release(NodeId::sidecar("shop", "late").unwrap(), "test");
    info.features.clear();
    let scope = Some(Arc::new(Asking(u64::MAX)) as Arc<dyn NodeScope>);
    let late = book.open(info, &Peer::default(), scope, &BTreeSet::new(), 0).unwrap();
    assert!(matches!(*at(&late, &name).resource, Resource::Fail(_)));
}
