// SPDX-License-Identifier: Apache-2.0
//! What is told when, and what of it.

use std::io;

use tokio::sync::{mpsc, watch};
use weft_base::clock::{Clock, Mono};
use weft_kinds::views::catalog::{NodeRecord, Registration};
use weft_kinds::world::StoreKey;
use weft_registry::catalog::ServiceRequest;
use weft_store::MemoryStore;

use super::*;
use crate::agent::session::Contact;

/// A server that takes all that it is told.
struct Server(mpsc::Sender<SyncAsk>);

impl Hears for Server {
    async fn hear(&self, json: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        self.0.send(serde_json::from_slice(&json).unwrap()).await.unwrap();
        Ok(b"{}".to_vec())
    }
}

/// A machine, and what its server is told.
struct Rig {
    registry: Registry,
    way: Arc<Way>,
    contact: watch::Sender<Contact>,
    told: mpsc::Receiver<SyncAsk>,
    tasks: TaskGroup,
    _data: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let (tasks, clock) = (TaskGroup::new(), Clock::system());
        let data = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let registry = Registry::open(store, clock.clone(), tasks.clone()).await.unwrap();
        let there = Contact { there: true, at: Mono::default(), life: 1 };
        let (contact, reader) = watch::channel(there);
        let nobody = || async { Err::<tokio::io::DuplexStream, _>(io::Error::other("nobody")) };
        let client = AgentClient::new("127.0.0.1:1", nobody).unwrap();
        let way = Way::start(&client, reader, data.path(), (&clock, &tasks));
        let (sender, told) = mpsc::channel(16);
        let teller = Teller {
            registry: registry.clone(),
            node: "m1".into(),
            way: way.clone(),
            server: Server(sender),
            clock,
            rng: Rng::seeded(7),
            told: Told::default(),
            every: WHOLE_EVERY,
        };
        let group = tasks.clone();
        tasks.spawn("anti-entropy", async move {
            tokio::select! {
                () = group.draining() => {}
                () = teller.run() => {}
            }
        });
        Self { registry, way, contact, told, tasks, _data: data }
    }

    async fn register(&self, id: &str, port: u16) {
        let registration = Registration {
            namespace: "default".into(),
            node: "m1".into(),
            service: id.into(),
            ..service(id, port).registration
        };
        let node = NodeRecord { node: "m1".into(), ..NodeRecord::default() };
        let request = ServiceRequest { registration, node, ..ServiceRequest::default() };
        self.registry.catalog().register_service(request).await.unwrap();
    }

    async fn next(&mut self) -> SyncAsk {
        let next = tokio::time::timeout(Duration::from_secs(30), self.told.recv());
        next.await.expect("something is told").unwrap()
    }
}

#[tokio::test]
async fn a_server_that_lost_what_it_knew_is_told_everything_whenever_that_was() {
    let mut rig = Rig::start().await;
    assert!(rig.next().await.whole);
    rig.register("web", 1).await;
    let ask = rig.next().await;
    assert!(!ask.whole && ask.services.len() == 1, "{ask:?}");
    for port in 2..10 {
        // Both at once: whichever is seen first, nothing of the other is lost.
        rig.register("web", port).await;
        rig.contact.send_modify(|contact| contact.life += 1);
        while !rig.next().await.whole {}
    }
    rig.tasks.begin_drain();
}

#[tokio::test]
async fn what_has_no_token_of_its_own_is_told_with_the_default_one_as_it_is() {
    let mut rig = Rig::start().await;
    assert!(rig.next().await.whole);
    rig.register("web", 1).await;
    assert_eq!(rig.next().await.services[0].token, "");
    for default in ["first", "second"] {
        rig.way.secrets().set_default(default);
        assert_eq!(rig.next().await.services[0].token, default);
    }
    rig.tasks.begin_drain();
}

fn key(id: &str) -> Key {
    ("default".into(), id.into())
}

fn service(id: &str, port: u16) -> SyncService {
    let registration = Registration { id: id.into(), port, ..Registration::default() };
    SyncService { registration, ..SyncService::default() }
}

#[test]
fn only_what_changed_is_told_and_what_went_is_named() {
    let mut told = Whole::default();
    told.services.insert(key("a"), service("a", 1));
    told.services.insert(key("b"), service("b", 1));
    told.services.insert(key("c"), service("c", 1));
    assert_eq!(told.since(&told), SyncAsk::default(), "nothing changed");
    let mut now = told.clone();
    now.services.insert(key("b"), service("b", 2));
    now.services.remove(&key("c"));
    let ask = now.since(&told);
    assert_eq!(ask.services, [service("b", 2)]);
    assert_eq!(ask.gone, [key("c")]);
    assert!(!ask.whole && now.everything().whole);
    assert_eq!(now.everything().services.len(), 2);
}

#[test]
fn of_an_instance_is_said_whether_it_is_news_or_one_of_its_checks() {
    let mut told = Whole::default();
    told.services.insert(key("a"), service("a", 1));
    told.services.insert(key("b"), service("b", 1));
    let mut now = told.clone();
    let check = SyncCheck { token: "turned".into(), ..SyncCheck::default() };
    now.services.insert(key("a"), SyncService { checks: vec![check], ..service("a", 1) });
    now.services.insert(key("b"), service("b", 2));
    now.services.insert(key("c"), service("c", 1));
    let retold = |ask: SyncAsk| -> Vec<bool> { ask.services.iter().map(|s| s.retold).collect() };
    assert_eq!(retold(now.since(&told)), [true, false, false]);
    assert_eq!(retold(now.everything()), [true; 3]);
}

#[test]
fn everything_is_told_to_another_server_and_when_it_is_time_whatever_changed_meanwhile() {
    let at = |s: u64| Mono::default().plus(Duration::from_secs(s));
    let mut now = Whole::default();
    let mut told = Told::default();
    assert!(told.ask(1, &now, at(0)).whole, "nothing was told yet");
    told = Told { whole: Some(now.clone()), life: 1, again: at(60) };
    for second in 0..60 {
        assert_eq!(told.ask(1, &now, at(second)), SyncAsk::default(), "{second}");
        now.services.insert(key("a"), service("a", u16::try_from(second).unwrap()));
        let ask = told.ask(1, &now, at(second));
        assert!(!ask.whole && ask.services.len() == 1, "{second}");
        told.whole = Some(now.clone());
    }
    assert!(told.ask(1, &now, at(60)).whole, "it changed every second, and is told all the same");
    assert!(told.ask(2, &now, at(1)).whole, "it is another server");
    told.whole = None;
    assert!(told.ask(1, &now, at(1)).whole, "it could not be told");
}

#[test]
fn tokens_are_kept_for_what_is_there() {
    let mut world = World::new();
    let registration = StoreKey::Registration(RegistrationKey {
        namespace: "default".into(),
        node: "m1".into(),
        id: "web".into(),
    });
    let check = StoreKey::Check(CheckKey {
        namespace: "default".into(),
        node: "m1".into(),
        id: "ping".into(),
    });
    let web = serde_json::to_vec(&service("web", 1).registration).unwrap();
    let ping = serde_json::to_vec(&CheckRecord::default()).unwrap();
    world.apply(&registration.to_string(), Some(&web), 1);
    world.apply(&check.to_string(), Some(&ping), 2);
    let here = |what: &str| is_there(world.catalog(), &"m1".into(), what);
    for there in ["service/default/web", "check/default/ping"] {
        assert!(here(there), "{there}");
    }
    for gone in ["service/default/old", "service/other/web", "check/default/pong", "x"] {
        assert!(!here(gone), "{gone}");
    }
}
