// SPDX-License-Identifier: Apache-2.0
//! Two servers on one store, of which one is behind: what the other acknowledged is in the store,
//! and its log has not come here yet. What is asked of it is done all the same.
//!
//! Each server is a runtime of its own: its log moves on only while something of it is run.

use serde_json::Value;
use tokio::runtime::Runtime;
use weft_kinds::views::catalog::{CheckRecord, Registration, Status};
use weft_kinds::views::check::{CheckDefinition, Probe};

use super::*;
use crate::Leader;
use crate::catalog::{CatalogError, ServiceRequest, registration_key};

struct Server {
    runtime: Runtime,
    registry: Registry,
}

impl Server {
    fn new(name: &str, store: &Arc<MemoryStore>, clock: &Clock) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let leader = Leader::among(name, clock.clone());
        let opened = Registry::open_as(store.clone(), clock.clone(), TaskGroup::new(), leader);
        let registry = runtime.block_on(opened).unwrap();
        Self { runtime, registry }
    }

    /// Does something with what is known here, and what it looks for.
    fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn consul(&self) -> &Handle {
        self.registry.consul()
    }

    /// Shows all that was acknowledged.
    fn catch_up(&self) {
        self.run(self.consul().barrier()).unwrap();
    }

    fn pair(&self, name: &str) -> Option<Pair> {
        self.catch_up();
        match &self.consul().state().item(&at(name))?.what {
            What::Pair(pair) => Some((**pair).clone()),
            _ => None,
        }
    }

    fn verb<T>(&self, name: &str, verb: impl Fn(&mut Draft, &str) -> T) -> T {
        let at = at(name);
        self.run(self.consul().pairs(&at, |draft| Ok(verb(draft, &at)))).unwrap().1
    }

    fn set(&self, name: &str, value: &'static str) {
        self.verb(name, |draft, at| draft.set(at, value.into(), 0));
    }

    fn lock(&self, name: &str, session: &str) -> Result<bool, ConsulError> {
        let at = at(name);
        let verbs = |draft: &mut Draft| draft.lock(&at, Bytes::new(), 0, session);
        self.run(self.consul().pairs(&at, verbs)).map(|(_, locked)| locked)
    }

    fn register(&self, port: u16) {
        self.register_with(port, "up");
    }

    fn register_with(&self, port: u16, id: &str) {
        let registration = Registration { port, ..web() };
        let definition =
            CheckDefinition { probe: Probe::Ttl { ttl_ms: 60_000 }, ..Default::default() };
        let check = CheckRecord { id: id.into(), name: id.into(), ..CheckRecord::default() };
        let checks = vec![check.with(&definition)];
        let request = ServiceRequest { registration, checks, node: node(), ..Default::default() };
        self.run(self.registry.catalog().register_service(request)).unwrap();
    }

    fn port(&self) -> Option<u16> {
        self.catch_up();
        let world = self.registry.now();
        world.catalog().registration(&registration_key(&web())).map(|web| web.port)
    }

    fn record(&self, value: &Value) {
        let plan = |_: &State| Ok::<_, ConsulError>((vec![put("r", value)], ()));
        self.run(self.consul().change("config", plan)).unwrap();
    }

    fn recorded(&self) -> Option<Value> {
        self.catch_up();
        self.consul().state().record("config", "r").map(|(value, _)| (**value).clone())
    }
}

fn at(name: &str) -> String {
    keys::pair("default", name)
}

fn put(name: &str, value: &Value) -> Change {
    Change::Put(name.to_owned(), value.clone())
}

fn node() -> NodeRecord {
    NodeRecord { node: "n1".into(), address: "10.0.0.1".into(), ..NodeRecord::default() }
}

fn web() -> Registration {
    Registration {
        id: "web".into(),
        service: "web".into(),
        node: "n1".into(),
        namespace: "default".into(),
        ..Registration::default()
    }
}

/// The first acknowledges; the second does not know it yet.
fn servers() -> (Server, Server) {
    let (clock, _) = Clock::manual();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let [a, b] = ["a", "b"].map(|name| Server::new(name, &store, &clock));
    a.run(a.registry.catalog().register_node(&node(), true)).unwrap();
    b.catch_up();
    (a, b)
}

#[test]
fn what_another_server_wrote_is_deleted() {
    let (a, b) = servers();
    a.set("x", "1");
    b.verb("x", |draft, at| draft.delete(at));
    assert_eq!(a.pair("x"), None);
    a.set("t/y", "1");
    b.run(b.consul().delete_tree(&at("t/"))).unwrap();
    assert_eq!(a.pair("t/y"), None);
    a.record(&json!(1));
    let plan = |_: &State| Ok::<_, ConsulError>((vec![Change::Delete("r".into())], ()));
    b.run(b.consul().change("config", plan)).unwrap();
    assert_eq!(a.recorded(), None);
}

#[test]
fn what_was_so_before_another_server_wrote_is_written_again() {
    let (a, b) = servers();
    let value = |server: &Server| server.pair("x").unwrap().value;
    a.set("x", "1");
    b.catch_up();
    a.set("x", "2");
    b.set("x", "1");
    assert_eq!(value(&a), "1");
    a.record(&json!(1));
    b.catch_up();
    a.record(&json!(2));
    b.record(&json!(1));
    assert_eq!(a.recorded(), Some(json!(1)));
    a.register(1);
    b.catch_up();
    a.register(2);
    b.register(1);
    assert_eq!(a.port(), Some(1));
    // Also where another part of it is new.
    b.catch_up();
    a.register(2);
    b.register_with(1, "new");
    assert_eq!(a.port(), Some(1));
    b.catch_up();
    a.register(2);
    let change = |_: &mut Draft, catalog: &mut CatalogDraft| {
        catalog.make(CatalogOp::SetService(Registration { port: 1, ..web() }))?;
        Ok(catalog.make(CatalogOp::SetNode(NodeRecord { node: "other".into(), ..node() }))?)
    };
    b.run(b.consul().transact((&[], false), change)).unwrap();
    assert_eq!(a.port(), Some(1));
}

#[test]
fn what_a_transaction_saw_of_pairs_holds_when_only_the_catalog_is_written() {
    let (a, b) = servers();
    let other = |name: &str| CatalogOp::SetNode(NodeRecord { node: name.into(), ..node() });
    a.set("x", "1");
    b.catch_up();
    a.set("x", "2");
    let same = |draft: &mut Draft, catalog: &mut CatalogDraft| {
        draft.set(&at("x"), "1".into(), 0);
        Ok(catalog.make(other("n2"))?)
    };
    b.run(b.consul().transact((&[], false), same)).unwrap();
    assert_eq!(a.pair("x").unwrap().value, "1");
    // Nor does a guard hold that another server has moved.
    let seen = b.consul().state().item(&at("x")).unwrap().modified;
    a.set("x", "3");
    let guarded = |draft: &mut Draft, catalog: &mut CatalogDraft| {
        let is_same = |pair: Seen| pair.item.is_some_and(|item| item.modified == seen);
        match draft.get(&at("x")).is_some_and(is_same) {
            true => Ok(catalog.make(other("n3"))?),
            false => Err(ConsulError::Invalid("index is stale".into())),
        }
    };
    let refused = b.run(b.consul().transact((&[], false), guarded));
    assert!(matches!(refused, Err(ConsulError::Invalid(_))), "{refused:?}");
}

#[test]
fn a_check_that_another_server_registered_goes_with_its_service() {
    let (a, b) = servers();
    a.register(1);
    b.catch_up();
    a.register_with(1, "second");
    b.run(b.registry.catalog().deregister_service(&registration_key(&web()))).unwrap();
    a.catch_up();
    assert_eq!(a.registry.now().catalog().checks_on("n1").count(), 0);
}

#[test]
fn a_session_names_a_node_that_another_server_registered() {
    let (a, b) = servers();
    let node = NodeRecord { node: "n2".into(), ..node() };
    a.run(a.registry.catalog().register_node(&node, true)).unwrap();
    let session = Session {
        id: "s".into(),
        namespace: "default".into(),
        node: "n2".into(),
        ..Session::default()
    };
    b.run(b.consul().create_session(session)).unwrap();
}

#[test]
fn an_index_that_another_server_told_is_compared_with() {
    let (a, b) = servers();
    a.set("x", "1");
    let index = a.consul().state().item(&at("x")).unwrap().modified;
    assert!(b.verb("x", |draft, at| draft.cas(at, "2".into(), 0, index)));
    assert!(!b.verb("x", |draft, at| draft.cas(at, "3".into(), 0, index)));
    assert_eq!(a.pair("x").unwrap().value, "2");
}

#[test]
fn a_session_that_another_server_made_holds_locks_and_ends() {
    let (a, b) = servers();
    let session = |id: &str| Session {
        id: id.into(),
        namespace: "default".into(),
        node: "n1".into(),
        ttl_ms: 10_000,
        ..Session::default()
    };
    a.run(a.consul().create_session(session("s1"))).unwrap();
    b.run(b.consul().renew_session("default", "s1")).unwrap();
    a.run(a.consul().create_session(session("s2"))).unwrap();
    assert!(b.lock("l", "s2").unwrap());
    a.catch_up();
    assert!(a.verb("l", |draft, at| draft.unlock(at, Bytes::new(), 0, "s2")));
    assert!(a.lock("l", "s1").unwrap());
    assert!(b.verb("l", |draft, at| draft.unlock(at, Bytes::new(), 0, "s1")), "a's lock");
    assert_eq!(&*a.pair("l").unwrap().session, "");
    a.run(a.consul().create_session(session("s3"))).unwrap();
    b.run(b.consul().destroy_session("s3")).unwrap();
    a.catch_up();
    assert!(a.consul().state().session("s3").is_none());
    let gone = b.run(b.consul().renew_session("default", "s3"));
    assert!(matches!(gone, Err(ConsulError::UnknownSession { .. })), "{gone:?}");
}

#[test]
fn what_another_server_registered_is_known_and_taken_away() {
    let (a, b) = servers();
    let key = registration_key(&web());
    let up = crate::catalog::check_key(&CheckRecord {
        id: "up".into(),
        node: "n1".into(),
        namespace: "default".into(),
        ..CheckRecord::default()
    });
    a.register(1);
    let beat = b.registry.catalog().report_ttl(&up, Status::Passing, "");
    b.run(beat).unwrap();
    a.run(a.registry.catalog().deregister_service(&key)).unwrap();
    b.catch_up();
    a.register(1);
    b.run(b.registry.catalog().service_maintenance(&key, true, "why")).unwrap();
    a.run(a.registry.catalog().deregister_service(&key)).unwrap();
    b.catch_up();
    a.register(1);
    b.run(b.registry.catalog().deregister_service(&key)).unwrap();
    assert_eq!(a.port(), None);
    let none = b.run(b.registry.catalog().deregister_service(&key));
    assert!(matches!(none, Err(CatalogError::UnknownService { .. })), "{none:?}");
    a.register(1);
    b.run(b.registry.catalog().deregister_node("n1")).unwrap();
    assert_eq!(a.port(), None);
}
