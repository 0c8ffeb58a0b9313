// SPDX-License-Identifier: Apache-2.0
//! A registry, its World, and a resolver over real sockets.

use std::sync::Arc;

use serde_json::json;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_kinds::world::RESOLVED_SETTINGS;
use weft_registry::{DeleteOptions, WriteOptions};
use weft_store::MemoryStore;

use super::super::forward::tests::{Does, answering, resolver};
use super::*;

const USER: WriteOptions = WriteOptions::SYSTEM;

async fn until(registry: &Registry, holds: impl Fn(&World) -> bool) {
    let mut worlds = registry.world();
    let wait = async {
        while !holds(&worlds.load()) {
            assert!(worlds.changed().await);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), wait).await.expect("it comes to hold");
}

#[tokio::test]
async fn names_of_entries_are_kept_up_and_forgotten() {
    let (clock, tasks) = (Clock::system(), TaskGroup::new());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let script = [
        ("api.example.com", Does::Address([192, 0, 2, 1])),
        ("a.example.com", Does::Address([192, 0, 2, 2])),
    ];
    let at = resolver(&tasks, script.into()).await;
    tasks.spawn("outside", run(registry.clone(), answering(vec![at])));
    let entry = |spec| json!({ "metadata": { "name": "e" }, "spec": spec });
    let spec = json!({ "hosts": ["API.example.com", "no.example.com"], "resolution": "DNS",
        "ports": [{ "number": 443, "name": "https", "protocol": "HTTPS" }] });
    let objects = registry.objects();
    objects.create(KindId::ServiceEntry, "default", entry(spec), USER).await.unwrap();
    let first: IpAddr = [192, 0, 2, 1].into();
    until(&registry, |w| w.resolved("api.example.com") == [first]).await;
    assert_eq!(registry.now().resolved("no.example.com"), Vec::<IpAddr>::new());

    // Endpoints with names take the place of the hosts; addresses need no looking up.
    let spec = json!({ "hosts": ["api.example.com"], "resolution": "DNS",
        "endpoints": [{ "address": "a.example.com" }, { "address": "192.0.2.7" }] });
    let part = weft_registry::Part::Spec;
    objects.update(KindId::ServiceEntry, "default", entry(spec), part, USER).await.unwrap();
    let second: IpAddr = [192, 0, 2, 2].into();
    until(&registry, |w| {
        w.resolved("a.example.com") == [second] && w.resolved("api.example.com").is_empty()
    })
    .await;
    let options = DeleteOptions::default();
    objects.delete(KindId::ServiceEntry, "default", "e", &options).await.unwrap();
    until(&registry, |w| !w.settings().any(|(k, _)| k.starts_with(RESOLVED_SETTINGS))).await;
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}
