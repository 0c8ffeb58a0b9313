// SPDX-License-Identifier: Apache-2.0
//! The book alone: whatever deltas and rescopes come, every view is its scope's part of the whole.

use super::super::book::{Book, Change};
use super::*;
use weft_xds::{Entry, View};

#[derive(Debug)]
struct Bits(u64);

impl NodeScope for Bits {
    fn sees(&self, name: &ResourceName, _: &Resource) -> bool {
        let hash = weft_base::name::fnv1a(name.to_string().as_bytes());
        (self.0 >> (hash % 64)) & 1 == 1
    }
}

fn names(view: &View) -> Vec<(String, Version)> {
    view.resources.iter().map(|(n, e)| (n.to_string(), e.version)).collect()
}

fn random_change(rng: &mut Rng, generation: u64) -> Change {
    let mut change = Change { generation, ..Change::default() };
    for _ in 0..rng.below(5) {
        let root = host_root(&format!("s{}", rng.below(8)));
        let child = rng.below(4);
        let name = if child == 0 { root.own() } else { root.child(format!("c{child}")) };
        if rng.below(4) == 0 {
            change.removes.insert(name);
        } else {
            let reason = format!("{}", rng.below(6)).into();
            let resource = Arc::new(Resource::Fail(Fail { reason, origin: None }));
            change.upserts.retain(|(n, _)| *n != name);
            change.upserts.push((name, Arc::new(Entry::new(resource).unwrap())));
        }
    }
    change
}

#[test]
fn every_view_is_its_scopes_part_of_the_whole() {
    for seed in 0..200 {
        let mut rng = Rng::seeded(seed);
        let mut book = Book::default();
        book.apply(Change::default());
        let mut nodes: BTreeMap<NodeId, (u64, server::Session)> = BTreeMap::new();
        for generation in 1..80 {
            match rng.below(8) {
                0 => {
                    let id = NodeId::sidecar("shop", &format!("p{}", rng.below(4))).unwrap();
                    let bits = rng.next_u64() | (rng.next_u64() * rng.below(2));
                    let info = NodeInfo::this_release(id.clone(), "test");
                    let scope: Option<Arc<dyn NodeScope>> = Some(Arc::new(Bits(bits)));
                    let session =
                        book.open(info, &Peer::default(), scope, &BTreeSet::new(), 0).unwrap();
                    nodes.insert(id, (bits, session));
                }
                1 => {
                    let mut change = random_change(&mut rng, generation);
                    for (id, (bits, _)) in &mut nodes {
                        *bits = rng.next_u64();
                        change.scopes.push((id.clone(), Some(Arc::new(Bits(*bits)))));
                    }
                    book.apply(change);
                }
                _ => book.apply(random_change(&mut rng, generation)),
            }
            let all = book.resources();
            for (bits, session) in nodes.values() {
                let scope = Bits(*bits);
                let mine = all.iter().filter(|(n, e)| scope.sees(n, &e.resource));
                let mine: Vec<_> = mine.map(|(n, e)| (n.to_string(), e.version)).collect();
                assert_eq!(
                    names(session.views.borrow().as_ref().unwrap()),
                    mine,
                    "seed {seed} at {generation}"
                );
            }
        }
    }
}

#[test]
fn a_node_that_is_gone_loses_its_stream_and_a_second_stream_ends_the_first() {
    let mut book = Book::default();
    let id = NodeId::sidecar("shop", "a").unwrap();
    let info = NodeInfo::this_release(id.clone(), "test");
    let scope = || Some(Arc::new(Bits(u64::MAX)) as Arc<dyn NodeScope>);
    let first = book.open(info.clone(), &Peer::default(), scope(), &BTreeSet::new(), 0).unwrap();
    let second = book.open(info, &Peer::default(), scope(), &BTreeSet::new(), 0).unwrap();
    assert!(first.views.has_changed().is_err(), "superseded");
    // The end of the first is no end of the second.
    book.closed(&first.key, "superseded", 1);
    assert_eq!(book.connected(), 1);
    book.apply(Change { generation: 1, scopes: vec![(id, None)], ..Change::default() });
    assert!(second.views.has_changed().is_err());
    assert!(book.status().is_empty());
}

#[test]
fn nobody_is_offered_what_did_not_change() {
    let mut book = Book::default();
    let info = NodeInfo::this_release(NodeId::sidecar("shop", "a").unwrap(), "test");
    let scope = Some(Arc::new(Bits(u64::MAX)) as Arc<dyn NodeScope>);
    let mut session = book.open(info, &Peer::default(), scope, &BTreeSet::new(), 0).unwrap();
    let entry = |reason: &str| Arc::new(Entry::new(fail("a", reason).1).unwrap());
    let name = host_root("a").own();
    let mut at = |generation, reason| {
        let upserts = vec![(name.clone(), entry(reason))];
        book.apply(Change { generation, upserts, ..Change::default() });
        let offered = session.views.has_changed().unwrap();
        session.views.mark_unchanged();
        offered
    };
    assert!(at(1, "x"));
    assert!(!at(2, "x"));
    assert!(at(3, "y"));
}

#[test]
fn merged_deltas_mean_the_same_as_one_after_the_other() {
    for seed in 0..500 {
        let mut rng = Rng::seeded(seed);
        let (mut one_by_one, mut at_once) = (Book::default(), Book::default());
        let mut merged = Delta::default();
        for generation in 1..8 {
            let change = random_change(&mut rng, generation);
            let values = change.upserts.iter().map(|(n, e)| (n.clone(), e.resource.clone()));
            // Within one delta a name is either changed or removed, with its root or by itself.
            let removes: BTreeSet<ResourceName> = change
                .removes
                .iter()
                .filter(|r| change.upserts.iter().all(|(n, _)| n.root != r.root))
                .cloned()
                .collect();
            let next = Delta { removes: removes.clone(), ..delta(generation, values) };
            merged.merge(next);
            one_by_one.apply(Change { removes, ..change });
        }
        let upserts = merged
            .upserts
            .into_iter()
            .map(|(n, r)| (n, Arc::new(Entry::new(r).unwrap())))
            .collect();
        let Delta { generation, removes, .. } = merged;
        at_once.apply(Change { generation, upserts, removes, scopes: Vec::new() });
        assert_eq!(at_once.resources(), one_by_one.resources(), "seed {seed}");
    }
}
