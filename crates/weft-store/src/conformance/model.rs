// SPDX-License-Identifier: Apache-2.0
//! Every engine against a model that is too simple to be wrong: random transactions, and after
//! each the answers must agree; at the end the watch must retell the whole story.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Fixture, memory, redb};
use crate::{Class, Compare, EventKind, Op, Revision, Txn};

/// Key → (value, created, modified).
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    revision: u64,
    keys: BTreeMap<String, (String, u64, u64)>,
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<(u8, Check)>, Vec<(u8, Write)>),
    Clear(u8),
}

#[derive(Clone, Debug)]
enum Check {
    Absent,
    Exists,
    /// The revision this many before the head.
    At(u64),
    Right,
}

#[derive(Clone, Debug)]
enum Write {
    Put(u8, Class),
    Delete,
}

fn key(n: u8) -> String {
    format!("/{}/{}", n % 3, n)
}

impl Model {
    fn check(&self, n: u8, check: &Check) -> (Compare, bool) {
        let (k, found) = (key(n), self.keys.get(&key(n)));
        match check {
            Check::Absent => (Compare::Absent(k.into()), found.is_none()),
            Check::Exists => (Compare::Exists(k.into()), found.is_some()),
            Check::At(back) => {
                let r = self.revision.saturating_sub(*back);
                let holds = found.is_some_and(|(_, _, m)| *m == r);
                (Compare::ModRevision(k.into(), Revision(r)), holds)
            }
            Check::Right => {
                let r = found.map_or(0, |(_, _, m)| *m);
                (Compare::ModRevision(k.into(), Revision(r)), found.is_some())
            }
        }
    }

    fn apply(&mut self, step: &Step) -> (Txn, bool) {
        let (mut txn, mut ok) = (Txn::default(), true);
        let mut writes = BTreeMap::new();
        match step {
            Step::Txn(checks, steps) => {
                for (n, c) in checks {
                    let (compare, holds) = self.check(*n, c);
                    txn.compares.push(compare);
                    ok &= holds;
                }
                writes.extend(steps.iter().map(|(n, w)| (key(*n), w.clone())));
                txn.ops.extend(writes.iter().map(|(k, w)| match w {
                    Write::Put(v, class) => Op::Put {
                        key: k.as_str().into(),
                        value: v.to_string().into(),
                        class: *class,
                        lease: None,
                    },
                    Write::Delete => Op::delete(k.as_str()),
                }));
            }
            Step::Clear(n) => {
                let prefix = format!("/{n}/");
                let doomed = self.keys.keys().filter(|k| k.starts_with(&prefix));
                writes.extend(doomed.map(|k| (k.clone(), Write::Delete)));
                txn.ops.push(Op::DeletePrefix { prefix: prefix.into() });
            }
        }
        if ok {
            self.write(writes);
        }
        (txn, ok)
    }

    fn write(&mut self, writes: BTreeMap<String, Write>) {
        let next = self.revision + 1;
        let mut changed = false;
        for (k, w) in writes {
            match w {
                Write::Put(v, _) => {
                    let created = self.keys.get(&k).map_or(next, |e| e.1);
                    self.keys.insert(k, (v.to_string(), created, next));
                    changed = true;
                }
                Write::Delete => changed |= self.keys.remove(&k).is_some(),
            }
        }
        if changed {
            self.revision = next;
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let check = prop_oneof![
        Just(Check::Absent),
        Just(Check::Exists),
        (0..4u64).prop_map(Check::At),
        Just(Check::Right),
    ];
    let class = prop_oneof![Just(Class::Synced), Just(Class::Ephemeral)];
    let write = prop_oneof![
        3 => (any::<u8>(), class).prop_map(|(v, c)| Write::Put(v, c)),
        1 => Just(Write::Delete),
    ];
    let checks = proptest::collection::vec((0..9u8, check), 0..2);
    let writes = proptest::collection::vec((0..9u8, write), 0..4);
    prop_oneof![
        9 => (checks, writes).prop_map(|(c, w)| Step::Txn(c, w)),
        1 => (0..3u8).prop_map(Step::Clear),
    ]
}

async fn agree(f: Fixture, steps: &[Step]) {
    let base = f.store.barrier().await.unwrap();
    let mut model = Model { revision: base.0, ..Model::default() };
    for step in steps {
        let (txn, ok) = model.apply(step);
        let out = f.store.txn(txn.clone()).await.unwrap();
        assert_eq!((out.succeeded, out.revision.0), (ok, model.revision), "{txn:?}");
        let page = f.store.range("", 0, None).await.unwrap();
        assert_eq!(page.revision.0, model.revision);
        let told: BTreeMap<_, _> = page
            .entries
            .iter()
            .map(|(k, e)| {
                let value = String::from_utf8(e.value.to_vec()).unwrap();
                (k.to_string(), (value, e.created.0, e.modified.0))
            })
            .collect();
        assert_eq!(told, model.keys);
    }
    f.store.barrier().await.unwrap();
    let mut retold = BTreeMap::new();
    let mut watch = f.store.watch("", Revision(1)).unwrap();
    let mut last = (Revision(0), String::new());
    while watch.position().0 <= model.revision {
        for e in watch.try_next().unwrap() {
            let value = String::from_utf8(e.value.to_vec()).unwrap();
            let at = (e.revision, e.key.to_string());
            assert!(at.0 >= last.0 && at != last, "{at:?} after {last:?}");
            last = at;
            let before = retold.get(&*e.key).cloned();
            let prev = e.prev.map(|p| String::from_utf8(p.to_vec()).unwrap());
            assert_eq!(prev, before, "what was there before {}", e.key);
            match e.kind {
                EventKind::Put => retold.insert(e.key.to_string(), value),
                EventKind::Delete => {
                    assert_eq!(before.as_ref(), Some(&value), "a deletion tells the last value");
                    retold.remove(&*e.key)
                }
            };
        }
    }
    let present: BTreeMap<_, _> = model.keys.into_iter().map(|(k, e)| (k, e.0)).collect();
    assert_eq!(retold, present);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn memory_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        run(agree(memory(Default::default()), &steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn redb_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        run(agree(redb(Default::default()), &steps));
    }
}

#[cfg(feature = "testing")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn etcd_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        run(async { agree(super::etcd::fresh().await, &steps).await });
    }
}

fn run(f: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f);
}
