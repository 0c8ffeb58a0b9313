// SPDX-License-Identifier: Apache-2.0
//! What the link says to the agent when the store does not take what it reports.

use weft_agent::checks;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckRecord, NodeRecord, Status};

use super::*;
use crate::server::control;
use crate::store::doctored::Doctored;

#[tokio::test]
async fn a_check_result_that_the_store_did_not_take_is_not_said_to_be_told() {
    let (clock, tasks) = (Clock::system(), TaskGroup::new());
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(&dir.path().join("ca"), None, &clock).unwrap());
    let store = Doctored::new(clock.clone());
    let registry = Registry::open(store.clone(), clock, tasks.clone()).await.unwrap();
    let (pusher, _) = control::start(&registry, authority.trust_domain(), &tasks);
    let node = NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..<_>::default() };
    let check = CheckRecord {
        namespace: "default".into(),
        node: "n".into(),
        id: "c".into(),
        name: "c".into(),
        ..CheckRecord::default()
    };
    let key = weft_registry::catalog::check_key(&check);
    registry.catalog().register_check(&node, check).await.unwrap();
    let link = LocalLink { registry: registry.clone(), pusher, authority };
    let report = |id: &str| CheckReport {
        key: checks::CheckKey { namespace: "default".into(), node: "n".into(), id: id.into() },
        status: Status::Passing,
        output: String::new(),
    };
    store.fail("", usize::MAX);
    let told = link.report_checks(vec![report("c")]).await;
    assert!(matches!(told, Err(LinkError::Unavailable(_))), "{told:?}");
    store.heal();
    // One that was deregistered meanwhile holds up no other.
    link.report_checks(vec![report("gone"), report("c")]).await.unwrap();
    assert_eq!(registry.now().catalog().status(&key), Status::Passing);
}
