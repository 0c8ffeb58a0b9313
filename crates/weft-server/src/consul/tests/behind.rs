// SPDX-License-Identifier: Apache-2.0
//! Two servers on one store, of which one is behind: what another made possible is refused by none,
//! and what it acknowledged is read at each.
//!
//! Each server is a runtime of its own: its log moves on only while something of it is run.

use ::http::Method;
use tokio::runtime::Runtime;
use weft_store::Store;

use super::logins::{Issuer, config};
use super::servers::server;
use super::*;
use crate::consul::acl::Sort;
use crate::consul::http::Ask;
use crate::consul::params::Params;
use crate::consul::reply::{Body, Reply};

struct Behind {
    runtime: Runtime,
    rig: Rig,
}

impl Behind {
    fn new(store: &Arc<dyn Store>, clock: &Clock, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rig = runtime.block_on(server(store, clock, name));
        Self { runtime, rig }
    }

    fn run<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn door(&self) -> &Door {
        &self.rig.door
    }

    /// Shows all that was acknowledged.
    fn catch_up(&self) {
        self.run(self.door().heard()).unwrap();
    }

    fn register(&self, node: &str, more: Value) {
        self.run(self.door().catalog_register(&on(node, more))).unwrap();
    }

    fn deregister(&self, node: &str) {
        self.run(self.door().catalog_deregister(&ask(json!({"Node": node})))).unwrap();
    }

    fn has_node(&self, node: &str) -> bool {
        self.catch_up();
        self.rig.registry.now().catalog().node(node).is_some()
    }

    fn intention(&self, source: &str) -> String {
        let body = json!({"SourceName": source, "DestinationName": "db", "Action": "allow"});
        let made = Ask { method: Method::POST, ..ask(body) };
        id_of(self.run(self.door().intentions(&made)).unwrap())
    }
}

fn ask(body: Value) -> Ask {
    Ask {
        who: Who::anybody(),
        secret: None,
        argument: String::new(),
        params: Params::parse(None).unwrap(),
        body: body.to_string().into(),
        namespace: "default".into(),
        method: Method::PUT,
    }
}

fn on(node: &str, more: Value) -> Ask {
    let mut body = json!({"Node": node, "Address": "10.0.0.9"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask(body)
}

fn get(argument: impl Into<String>) -> Ask {
    Ask { method: Method::GET, argument: argument.into(), ..ask(json!(null)) }
}

fn id_of(reply: Reply) -> String {
    match reply.body {
        Body::Json(made) => made["ID"].as_str().unwrap().to_owned(),
        other => panic!("{other:?}"),
    }
}

/// The first acknowledges; the second does not know it yet. No time passes.
fn servers() -> (Behind, Behind) {
    let (clock, _) = Clock::manual();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
    (Behind::new(&store, &clock, "a"), Behind::new(&store, &clock, "b"))
}

#[test]
fn a_server_that_is_behind_refuses_nothing_that_another_made_possible() {
    let (a, b) = servers();
    a.register("n9", json!({"Service": {"Service": "web"}}));
    let check = json!({"CheckID": "c", "ServiceID": "web", "Status": "passing"});
    b.register("n9", json!({"Check": check}));
    a.register("n8", json!({}));
    let session = ask(json!({"Node": "n8", "NodeChecks": []}));
    b.run(b.door().session_create(&session)).unwrap();
    a.register("n7", json!({}));
    let coord = json!({"Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 1, "Adjustment": 0, "Height": 0});
    let placed = ask(json!({"Node": "n7", "Coord": coord}));
    b.run(b.door().coordinate_update(&placed)).unwrap();
    let pair = |verb: &str| ask(json!([{"KV": {"Verb": verb, "Key": "k", "Value": "MQ=="}}]));
    a.run(a.door().txn(&pair("set"))).unwrap();
    let params = Params::parse(Some("consistent")).unwrap();
    b.run(b.door().txn(&Ask { params, ..pair("get") })).unwrap();
    let nowhere = ask(json!({"Node": "n6", "Coord": coord}));
    assert!(b.run(b.door().coordinate_update(&nowhere)).is_err());
}

#[test]
fn what_a_node_is_now_decides_about_its_id_and_whether_it_is_there() {
    let (a, b) = servers();
    let id = json!({"ID": "0190a6c8-0000-7000-8000-000000000009"});
    a.register("old", id.clone());
    a.register("n1", json!({}));
    b.catch_up();
    a.deregister("old");
    b.register("new", id);
    a.deregister("n1");
    b.register("n1", json!({"SkipNodeUpdate": true}));
    assert!(a.has_node("n1"));
    // Of a server's own node what others wrote goes, known there or not.
    b.register("a", json!({"Service": {"Service": "web"}}));
    a.deregister("a");
    b.catch_up();
    assert_eq!(b.rig.registry.now().catalog().on_node("a").count(), 0);
}

#[test]
fn intentions_are_found_by_id_and_who_logs_in_finds_the_method() {
    let (a, b) = servers();
    let id = a.intention("s1");
    b.run(b.door().intention(&get(id))).unwrap();
    let id = a.intention("s2");
    let put = Ask { argument: id, ..ask(json!({"Action": "deny"})) };
    b.run(b.door().intention(&put)).unwrap();
    a.catch_up();
    let gone = Ask { method: Method::DELETE, ..get(a.intention("s3")) };
    b.run(b.door().intention(&gone)).unwrap();
    let config = config(&Issuer::new());
    let method = ask(json!({"Name": "m", "Type": "jwt", "MaxTokenTTL": "5m", "Config": config}));
    a.run(a.door().acl_record(&method, Sort::Method)).unwrap();
    let login = ask(json!({"AuthMethod": "m", "BearerToken": "x"}));
    let refused = b.run(b.door().acl_login(&login)).unwrap_err().text;
    assert!(refused.starts_with("Permission denied"), "{refused}");
}

#[test]
fn what_one_server_acknowledged_is_read_at_another() {
    let (a, b) = servers();
    let policy = |name: &str| {
        let body = ask(json!({"Name": name, "Rules": ""}));
        id_of(a.run(a.door().acl_record(&body, Sort::Policy)).unwrap())
    };
    let found = |reply: Result<Reply, Refusal>| {
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200);
        let leader = |(name, value): &(_, String)| {
            *name == "X-Consul-Effective-Consistency" && value == "leader"
        };
        assert!(reply.headers.iter().any(leader), "{:?}", reply.headers);
        match reply.body {
            Body::Json(said) => said.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let id = policy("p1");
    found(b.run(b.door().acl_record(&get(id), Sort::Policy)));
    policy("p2");
    found(b.run(b.door().acl_by_name(&get("p2"), Sort::Policy)));
    policy("p3");
    assert!(found(b.run(b.door().acl_list(&get(""), Sort::Policy))).contains("p3"));
    let made = |name: &str| {
        let body = json!({"Name": name, "Service": {"Service": "web"}});
        a.run(a.door().queries(&Ask { method: Method::POST, ..ask(body) })).unwrap();
    };
    made("q1");
    found(b.run(b.door().query(&get("q1/execute"))));
    made("q2");
    b.run(b.door().query(&get("q2/explain"))).unwrap();
}
