// SPDX-License-Identifier: Apache-2.0
//! What becomes of calls while members of an etcd say nothing, as those do that are cut off: wires
//! before one etcd stand for its members, and carry nothing for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::etcd::{Lagging, PATIENCE, Server, counted, open, put};
use crate::{EtcdConfig, Op, Store, StoreError, Txn};

/// An etcd behind three wires, a store that asks it through these, and one that asks it directly.
struct Behind {
    wires: [Lagging; 3],
    store: Arc<dyn Store>,
    direct: Arc<dyn Store>,
    _server: Server,
}

impl Behind {
    async fn new() -> Self {
        let server = Server::start();
        let direct = server.open().await;
        let before = || Lagging::before(server.client());
        let wires = [before().await, before().await, before().await];
        let members = wires.each_ref().map(|wire| wire.address().to_string()).join(",");
        let store = open(EtcdConfig::parse(&format!("etcd://{members}/t")).unwrap()).await;
        put(&store, Op::put("/a", "1")).await;
        store.barrier().await.unwrap();
        Self { wires, store, direct, _server: server }
    }

    fn hold(&self, held: bool) {
        for wire in &self.wires {
            wire.hold(held);
        }
    }

    /// A call that somebody makes meanwhile.
    fn ask(&self) -> impl Future<Output = ()> {
        let store = self.store.clone();
        async move {
            let _ = store.get("/a").await;
        }
    }

    async fn is_each_asked(&self) {
        for wire in &self.wires {
            wire.is_sent_something().await;
        }
    }
}

async fn soon<T>(what: &str, one: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, one).await.expect(what)
}

#[tokio::test]
async fn a_read_is_answered_by_another_member_before_its_own_is_given_up() {
    // One member may take 3 s for a call, and until then it was the only one asked. This machine
    // may stand still as long as that, but not each time.
    let mut took = Vec::new();
    let behind = loop {
        let behind = Behind::new().await;
        behind.wires[0].hold(true);
        let began = Instant::now();
        assert!(behind.store.get("/a").await.unwrap().1.is_some());
        took.push(began.elapsed());
        if began.elapsed() < Duration::from_secs(3) {
            break behind;
        }
        assert!(took.len() < 5, "{took:?}");
    };
    assert!(counted(&behind.store, "weft_store_etcd_member_changes_total") > 0);
    // Writes go on there, and the log is followed there, too.
    for n in 0..20 {
        put(&behind.store, Op::put("/b", n.to_string())).await;
    }
    let last = put(&behind.direct, Op::put("/a", "2")).await;
    let shown = async { while behind.store.barrier().await.ok() != Some(last) {} };
    soon("the watch has gone over", shown).await;
}

#[tokio::test]
async fn a_write_that_begins_while_no_member_answers_reaches_nobody_and_says_so() {
    let behind = Behind::new().await;
    behind.hold(true);
    let write = async {
        soon("all are asked", behind.is_each_asked()).await;
        behind.store.txn(Txn::of([Op::put("/a", "2")])).await
    };
    let (_, answer) = tokio::join!(behind.ask(), write);
    let refused = answer.unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable { unknown: false, .. }), "{refused}");
    assert!(refused.to_string().contains("nothing was written"), "{refused}");
    behind.hold(false);
    let back = async { while behind.store.barrier().await.is_err() {} };
    soon("it answers again", back).await;
    assert_eq!(behind.store.get("/a").await.unwrap().1.unwrap().value, "1");
}

#[tokio::test]
async fn a_write_that_waits_goes_to_the_member_that_answers_first() {
    let behind = Behind::new().await;
    behind.hold(true);
    let write = async {
        soon("all are asked", behind.is_each_asked()).await;
        let writes = (0..8).map(|n| put(&behind.store, Op::put(format!("/w/{n}"), "x")));
        let answer = async {
            // One is over its election; the others say nothing yet.
            behind.wires[2].hold(false);
        };
        tokio::join!(futures_util::future::join_all(writes), answer).0
    };
    let (_, written) = tokio::join!(behind.ask(), soon("all are written", write));
    assert_eq!(written.len(), 8);
}
