// SPDX-License-Identifier: Apache-2.0
//! The door over a real socket and a memory store, asked as clients ask.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_registry::Registry;
use weft_store::{MemoryStore, Op, Txn};

use super::*;

mod admission;
mod answers;
mod authority;
mod behind;
mod blind;
mod bodies;
mod cases;
mod entries;
mod flows;
mod hostile;
mod judged;
mod kinds;
mod lines;
mod logins;
mod machines;
mod own_node;
mod records;
mod rights;
mod secure;
mod servers;
mod transactions;
mod waits;

struct Rig {
    address: SocketAddr,
    door: Door,
    registry: Registry,
    tasks: TaskGroup,
}

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    text: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
            .collect();
        Self { status, headers, text: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {:?}", self.text))
    }

    fn index(&self) -> u64 {
        self.headers["x-consul-index"].parse().unwrap()
    }
}

async fn rig() -> Rig {
    rig_with(Access::default()).await
}

async fn rig_with(access: Access) -> Rig {
    rig_at(Clock::system(), access).await
}

async fn rig_at(clock: Clock, access: Access) -> Rig {
    let tasks = TaskGroup::new();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let config = Config {
        node_name: "n1".into(),
        node_id: "0190a6c8-0000-7000-8000-000000000001".into(),
        address: "127.0.0.1".parse().unwrap(),
        datacenter: "dc1".into(),
        version: "0.1.0".into(),
        hosts: Vec::new(),
    };
    let door = Door::with_access(&registry, config, access, &tasks);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("consul door", door.clone().serve(listener, tasks.clone()));
    Rig { address, door, registry, tasks }
}

impl Rig {
    /// Until so many queries are blocked in the door.
    async fn blocked(&self, count: usize) {
        while WATCHERS_MAX - self.door.0.watchers.available_permits() != count {
            tokio::task::yield_now().await;
        }
    }

    async fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Answer::read(&bytes)
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.ask("PUT", path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer
    }
}

fn count(answer: &Answer) -> usize {
    answer.json().as_array().unwrap().len()
}

#[tokio::test]
async fn a_bare_service_looks_exactly_as_in_consul() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"name": "foo"})).await;
    let services = rig.get("/v1/agent/services").await.json();
    assert_eq!(
        services,
        json!({"foo": {
            "ID": "foo", "Service": "foo", "Tags": [], "Meta": {}, "Port": 0, "Address": "",
            "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": false,
            "Datacenter": "dc1",
        }})
    );
    let catalog = rig.get("/v1/catalog/services").await.json();
    assert_eq!(catalog, json!({"consul": [], "foo": []}));
    let health = rig.get("/v1/health/service/foo").await.json();
    assert_eq!(health[0]["Checks"][0]["CheckID"], "serfHealth");
    assert_eq!(health[0]["Node"]["Node"], "n1");
    assert_eq!(health[0]["Service"]["Port"], 0);
    let deregister = rig.put("/v1/agent/service/deregister/foo", Value::Null).await;
    assert_eq!(deregister.text, "");
    assert_eq!(rig.get("/v1/catalog/services").await.json(), json!({"consul": []}));
}

#[tokio::test]
async fn a_blocked_query_wakes_when_its_check_turns_and_not_for_others() {
    let rig = rig().await;
    let check = json!({"ttl": "600s", "status": "passing"});
    rig.put("/v1/agent/service/register", json!({"name": "web", "check": check})).await;
    let first = rig.get("/v1/health/service/web?passing=1").await;
    assert_eq!(count(&first), 1);
    let index = first.index();
    let path = format!("/v1/health/service/web?passing=1&index={index}&wait=300s");
    let clock = Clock::system();
    let blocked = rig.get(&path);
    tokio::pin!(blocked);
    tokio::select! {
        answer = &mut blocked => panic!("answered early: {}", answer.text),
        () = rig.blocked(1) => {}
    }
    // Changes of something else neither wake it nor move its index.
    for n in 0..5 {
        let other = rig.put("/v1/agent/service/register", json!({"name": format!("other-{n}")}));
        tokio::select! {
            answer = &mut blocked => panic!("woken by another's change: {}", answer.text),
            _ = other => {}
        }
    }
    let short = format!("/v1/health/service/web?passing=1&index={index}&wait=10ms");
    assert_eq!(rig.get(&short).await.index(), index, "a timeout answers with the same index");
    let turned = clock.now();
    let (answer, _) = tokio::join!(
        &mut blocked,
        rig.put("/v1/agent/check/fail/service:web?note=gone", Value::Null)
    );
    let took = clock.now().since(turned);
    assert!(took < Duration::from_secs(150), "woken, and not at the end of its wait: {took:?}");
    assert_eq!(count(&answer), 0);
    assert!(answer.index() > index);
    let checks = rig.get("/v1/health/checks/web").await.json();
    assert_eq!((&checks[0]["Status"], &checks[0]["Output"]), (&json!("critical"), &json!("gone")));
}

#[tokio::test]
async fn a_missing_service_can_be_waited_for() {
    let rig = rig().await;
    let first = rig.get("/v1/catalog/service/late").await;
    assert_eq!(first.json(), json!([]));
    let path = format!("/v1/catalog/service/late?index={}&wait=60s", first.index());
    let register = rig.put("/v1/agent/service/register", json!({"name": "late"}));
    let (answer, _) = tokio::join!(rig.get(&path), register);
    assert_eq!(count(&answer), 1);
}

#[tokio::test]
async fn maintenance_ttl_and_updates_speak_consuls_words() {
    let rig = rig().await;
    let body = json!({"Name": "web", "ID": "w#1", "Check": {"TTL": "600s"}});
    rig.put("/v1/agent/service/register", body).await;
    rig.put("/v1/agent/check/update/service:w%231", json!({"Status": "passing", "Output": "up"}))
        .await;
    assert_eq!(rig.get("/v1/agent/health/service/id/w%231").await.status, 200);
    rig.put("/v1/agent/service/maintenance/w%231?enable=true&reason=upgrade", Value::Null).await;
    let checks = rig.get("/v1/agent/checks").await.json();
    let maintenance = &checks["_service_maintenance:w#1"];
    assert_eq!(
        (&maintenance["Notes"], &maintenance["Status"]),
        (&json!("upgrade"), &json!("critical"))
    );
    let text = rig.get("/v1/agent/health/service/name/web?format=text").await;
    assert_eq!((text.status, text.text.as_str()), (503, "maintenance"));
    rig.put("/v1/agent/service/maintenance/w%231?enable=false", Value::Null).await;
    rig.put("/v1/agent/maintenance?enable=True", Value::Null).await;
    assert_eq!(count(&rig.get("/v1/health/service/web?passing").await), 0);
    let critical = rig.get("/v1/health/state/critical").await.json();
    assert_eq!(critical[0]["CheckID"], "_node_maintenance");
    rig.put("/v1/agent/maintenance?enable=false", Value::Null).await;
    assert_eq!(count(&rig.get("/v1/health/service/web?passing").await), 1);
    assert_eq!(rig.ask("PUT", "/v1/agent/maintenance", "").await.status, 400);
    let check = json!({"name": "tcp", "tcp": "127.0.0.1:1", "interval": "10s"});
    rig.put("/v1/agent/check/register", check).await;
    let wrong = rig.ask("PUT", "/v1/agent/check/pass/tcp", "").await;
    assert!(wrong.text.contains("does not have associated TTL"), "{}", wrong.text);
}

#[tokio::test]
async fn the_catalog_takes_external_nodes_and_lets_them_go() {
    let rig = rig().await;
    let body = json!({
        "Datacenter": "dc1", "Node": "ext", "Address": "10.1.1.1", "NodeMeta": {"rack": "a"},
        "Service": {"Service": "db", "Port": 5432, "Tags": ["primary"]},
        "Check": {"Name": "db up", "CheckID": "dbcheck", "Status": "passing", "ServiceID": "db"},
    });
    assert_eq!(rig.put("/v1/catalog/register", body).await.text, "true");
    let found = rig.get("/v1/catalog/service/db?tag=primary&node-meta=rack:a").await.json();
    assert_eq!(
        (&found[0]["Address"], &found[0]["ServicePort"]),
        (&json!("10.1.1.1"), &json!(5432))
    );
    assert_eq!(rig.get("/v1/catalog/service/db?tag=primary&tag=x").await.json(), json!([]));
    let health = rig.get("/v1/health/service/db?passing").await.json();
    assert_eq!(health[0]["Checks"][0]["CheckID"], "dbcheck", "no serfHealth: nobody watches it");
    let filter = "/v1/catalog/service/db?filter=ServiceTags%20contains%20%22primary%22";
    assert_eq!(count(&rig.get(filter).await), 1);
    assert_eq!(rig.get("/v1/catalog/service/db?filter=((").await.status, 400);
    let nodes = rig.get("/v1/catalog/nodes").await.json();
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    rig.put("/v1/catalog/deregister", json!({"Node": "ext"})).await;
    assert_eq!(rig.get("/v1/catalog/node/ext").await.json(), Value::Null);
    assert_eq!(rig.get("/v1/catalog/services").await.json(), json!({"consul": []}));
}

#[tokio::test]
async fn kubernetes_services_are_seen_and_are_read_only() {
    let rig = rig().await;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "user-1", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "user"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {"addresses": ["127.64.0.2"], "conditions": {"ready": true}, "nodeName": "n1",
             "targetRef": {"kind": "Pod", "name": "user-a"}},
            {"addresses": ["127.64.0.3"], "conditions": {"ready": false}, "nodeName": "n1",
             "targetRef": {"kind": "Pod", "name": "user-b"}},
        ],
    });
    let service = json!({"apiVersion": "v1", "kind": "Service",
                         "metadata": {"name": "user", "namespace": "default"}, "spec": {}});
    let store = rig.registry.store();
    let outcome = store
        .txn(Txn::of([
            Op::put("/o/core/services/default/user", service.to_string()),
            Op::put("/o/discovery.k8s.io/endpointslices/default/user-1", slice.to_string()),
        ]))
        .await
        .unwrap();
    rig.registry.wait_revision(outcome.revision).await;
    let mut health = rig.get("/v1/health/service/user?passing").await;
    while count(&health) == 0 {
        let path = format!("/v1/health/service/user?passing&index={}", health.index());
        health = rig.get(&path).await;
    }
    let entry = &health.json()[0];
    assert_eq!(
        (&entry["Service"]["Address"], &entry["Service"]["Port"]),
        (&json!("127.64.0.2"), &json!(8080))
    );
    assert_eq!(entry["Service"]["ID"], "user-a-user");
    assert_eq!(entry["Checks"][1]["CheckID"], "service:user-a-user");
    assert_eq!(count(&rig.get("/v1/health/service/user").await), 2);
    let refused = rig.ask("PUT", "/v1/agent/service/register", "{\"Name\":\"user\"}").await;
    assert_eq!(refused.status, 409);
    assert!(refused.text.contains("owned by the Kubernetes door"), "{}", refused.text);
    let refused = rig.ask("PUT", "/v1/agent/service/deregister/user-a-user", "").await;
    assert_eq!(refused.status, 409, "{}", refused.text);
}

#[tokio::test]
async fn errors_are_text_with_consuls_codes() {
    let rig = rig().await;
    for (method, path, body, status, part) in [
        ("PUT", "/v1/agent/service/register", "{\"Name\":", 400, "Request decode failed"),
        ("PUT", "/v1/agent/service/register", "[]", 400, "expected a JSON object"),
        ("PUT", "/v1/agent/service/register", "{\"Port\":1}", 400, "Missing service name"),
        ("PUT", "/v1/agent/service/deregister/nope", "", 404, "Unknown service ID \"nope\""),
        ("PUT", "/v1/agent/check/pass/nope", "", 404, "Unknown check ID \"nope\""),
        (
            "PUT",
            "/v1/agent/check/register",
            "{\"name\":\"x\",\"ttl\":\"1s\",\"serviceid\":\"no\"}",
            404,
            "does not exist",
        ),
        (
            "PUT",
            "/v1/agent/service/register?ns=B%20d",
            "{\"Name\":\"x\"}",
            400,
            "namespace does not do",
        ),
        ("GET", "/v1/catalog/services?dc=other", "", 500, "No path to datacenter"),
        ("GET", "/v1/catalog/services?wait=x", "", 400, "Invalid wait time"),
        ("GET", "/v1/agent/check/pass/x", "", 405, "not allowed"),
        ("GET", "/v1/acl/tokens", "", 401, "ACL support disabled"),
        ("PUT", "/v1/acl/create", "", 410, "legacy ACL"),
        ("GET", "/v1/peerings", "", 501, "no peering"),
        ("GET", "/v1/kv/", "", 400, "Missing key name"),
        ("PUT", "/v1/kv/a?cas=1&acquire=x", "", 400, "Conflicting flags"),
        ("PUT", "/v1/kv/a?acquire=nope", "", 500, "invalid session \"nope\""),
        ("PUT", "/v1/session/renew/nope", "", 404, "Session id 'nope' not found"),
        ("PUT", "/v1/session/create", "{\"TTL\":\"5s\"}", 500, "Invalid Session TTL"),
        ("PUT", "/v1/session/create", "{\"Node\":\"n2\"}", 500, "Missing node registration"),
        ("PUT", "/v1/txn", "[{\"KV\":{\"Verb\":\"no\",\"Key\":\"a\"}}]", 400, "unknown KV verb"),
        ("GET", "/v1/config/nope/x", "", 400, "invalid config entry kind"),
        ("PUT", "/v1/agent/leave", "", 403, "may not end this server"),
        ("PUT", "/v1/snapshot", "x", 400, "failed to read snapshot"),
        ("GET", "/nope", "", 404, "not a recognized"),
    ] {
        let answer = rig.ask(method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        assert!(answer.text.contains(part), "{method} {path}: {}", answer.text);
        assert!(answer.headers["content-type"].starts_with("text/plain"), "{path}");
    }
    let allow = rig.ask("POST", "/v1/catalog/nodes", "").await;
    assert_eq!(allow.headers["allow"], "GET,HEAD,OPTIONS");
}

#[tokio::test]
async fn reads_carry_the_headers_that_clients_rely_on() {
    let rig = rig().await;
    let nodes = rig.get("/v1/catalog/nodes?stale").await;
    assert!(nodes.index() > 0);
    assert_eq!(nodes.headers["x-consul-knownleader"], "true");
    assert_eq!(nodes.headers["x-consul-lastcontact"], "0");
    assert_eq!(nodes.headers["x-consul-effective-consistency"], "stale");
    assert_eq!(nodes.headers["x-content-type-options"], "nosniff");
    let own = rig.get("/v1/agent/self").await.json();
    let mut keys: Vec<&String> = own.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["Config", "Coord", "DebugConfig", "Member", "Meta", "Stats", "xDS"]);
    let leader = rig.get("/v1/status/leader").await.json();
    assert_eq!(own["Stats"]["consul"]["leader_addr"], leader);
    assert_eq!(rig.get("/v1/status/peers").await.json(), json!([leader]));
    assert_eq!(rig.get("/v1/agent/members").await.json()[0], own["Member"]);
    let head = rig.ask("HEAD", "/v1/catalog/nodes", "").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn reg_57_large_bodies_and_strangers_are_turned_away() {
    let rig = rig().await;
    // By length, and by what comes when no length is given: the sender reads its answer.
    let large = vec![b'x'; 20 << 20];
    let head =
        "PUT /v1/agent/service/register HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let mut by_length = format!("{head}Content-Length: {}\r\n\r\n", large.len()).into_bytes();
    by_length.extend_from_slice(&large);
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for part in large.chunks(1 << 20) {
        chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let asks = format!("{head}Expect: 100-continue\r\nContent-Length: 104857600\r\n\r\n");
    for request in [by_length, chunked, asks.into_bytes()] {
        let answer = rig.raw(&request).await;
        assert_eq!(answer.status, 413, "{}", answer.text);
    }
    let rebound = b"GET /v1/agent/self HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(rig.raw(rebound).await.status, 403);
    // Whatever came before, the door still answers.
    for garbage in [&b"\x16\x03\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
    }
    assert_eq!(rig.get("/v1/status/leader").await.status, 200);
    assert!(rig.tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_blocked_query_ends_with_the_server_and_keeps_its_index() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"name": "web"})).await;
    let index = rig.get("/v1/health/service/web").await.index();
    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let blocked = rig.get(&path);
    tokio::pin!(blocked);
    tokio::select! {
        answer = &mut blocked => panic!("answered early: {}", answer.text),
        () = rig.blocked(1) => {}
    }
    rig.tasks.begin_drain();
    let answer = blocked.await;
    assert_eq!((answer.status, answer.index(), count(&answer)), (200, index, 1));
}

#[tokio::test]
async fn an_agent_service_can_be_waited_for_by_its_hash() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"name": "web", "port": 1})).await;
    let first = rig.get("/v1/agent/service/web").await;
    let hash = first.headers["x-consul-contenthash"].clone();
    assert_eq!(first.json()["ContentHash"], hash);
    let same = rig.get(&format!("/v1/agent/service/web?hash={hash}&wait=10ms")).await;
    assert_eq!(same.headers["x-consul-contenthash"], hash);
    let path = format!("/v1/agent/service/web?hash={hash}&wait=60s");
    let change = rig.put("/v1/agent/service/register", json!({"name": "web", "port": 2}));
    let (answer, _) = tokio::join!(rig.get(&path), change);
    assert_eq!(answer.json()["Port"], 2);
    assert_eq!(rig.get("/v1/agent/service/nope").await.status, 404);
}

#[tokio::test]
async fn many_clients_at_once_end_with_one_truth() {
    let rig = rig().await;
    let clients = (0..40).map(|n| {
        let rig = &rig;
        async move {
            let body = json!({"Name": "web", "ID": format!("w{n}"), "Check": {"TTL": "60s"}});
            for _ in 0..3 {
                rig.put("/v1/agent/service/register", body.clone()).await;
                rig.put(&format!("/v1/agent/check/warn/service:w{n}"), Value::Null).await;
                rig.put(&format!("/v1/agent/check/pass/service:w{n}"), Value::Null).await;
            }
            if n % 2 == 0 {
                rig.put(&format!("/v1/agent/service/deregister/w{n}"), Value::Null).await;
            }
        }
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(count(&rig.get("/v1/health/service/web?passing").await), 20);
    assert_eq!(rig.get("/v1/agent/checks").await.json().as_object().unwrap().len(), 20);
}

#[tokio::test]
async fn sidecars_are_registered_with_ports_of_their_own_and_go_with_their_service() {
    let rig = rig().await;
    for name in ["a", "b"] {
        let body = json!({"name": name, "port": 80, "connect": {"sidecar_service": {}}});
        rig.put("/v1/agent/service/register", body.clone()).await;
        rig.put("/v1/agent/service/register", body).await;
    }
    let services = rig.get("/v1/agent/services").await.json();
    let ports = [&services["a-sidecar-proxy"]["Port"], &services["b-sidecar-proxy"]["Port"]];
    assert_eq!(ports, [&json!(21000), &json!(21001)]);
    let checks = rig.get("/v1/agent/checks").await.json();
    let own = [&checks["service:a-sidecar-proxy:1"], &checks["service:a-sidecar-proxy:2"]];
    assert_eq!(own.map(|check| &check["Type"]), [&json!("tcp"), &json!("alias")]);
    assert_eq!(own[1]["Name"], "Connect Sidecar Aliasing a");
    let shown = rig.get("/v1/agent/service/a-sidecar-proxy").await;
    let hash = &shown.headers["x-consul-contenthash"];
    let path = format!("/v1/agent/service/a-sidecar-proxy?hash={hash}&wait=60s");
    let moved = json!({"name": "a", "port": 81, "connect": {"sidecar_service": {}}});
    let moved = async {
        rig.blocked(1).await;
        rig.put("/v1/agent/service/register", moved).await;
    };
    let (answer, ()) = tokio::join!(rig.get(&path), moved);
    assert_eq!(answer.json()["Proxy"]["LocalServicePort"], 81);
    assert_eq!(answer.json()["Port"], 21000, "a sidecar keeps its port");
    let connect = rig.get("/v1/health/connect/a").await.json();
    assert_eq!(connect[0]["Service"]["Service"], "a-sidecar-proxy");
    rig.put("/v1/agent/service/deregister/a", Value::Null).await;
    assert_eq!(rig.get("/v1/health/connect/a").await.json(), json!([]));
    let left = rig.get("/v1/agent/services").await.json();
    assert_eq!(left.as_object().unwrap().len(), 2);
    let left = rig.get("/v1/agent/checks").await.json();
    assert_eq!(left.as_object().unwrap().len(), 2, "{left}");
}

#[tokio::test]
async fn sidecars_that_come_together_have_a_port_each_until_none_is_left() {
    let rig = rig().await;
    let register = async |n: usize| {
        let body = json!({"name": format!("s{n}"), "connect": {"sidecar_service": {}}});
        rig.ask("PUT", "/v1/agent/service/register", &body.to_string()).await
    };
    futures_util::future::join_all((0..256).map(&register)).await;
    let services = rig.get("/v1/agent/services").await.json();
    let all = services.as_object().unwrap().values();
    let ports: std::collections::BTreeSet<u64> =
        all.filter(|s| s["Kind"] == "connect-proxy").map(|s| s["Port"].as_u64().unwrap()).collect();
    assert_eq!(ports, (21_000..=21_255).collect());
    let more = register(256).await;
    assert_eq!(more.status, 400, "{}", more.text);
    assert!(more.text.contains("none left in the configured sidecar port range"), "{}", more.text);
    let unknown = rig.get("/v1/agent/service/s256").await;
    assert_eq!(unknown.status, 404, "what is refused is not half there");
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_asks() {
    let rig = rig().await;
    for n in 0..20 {
        rig.put("/v1/agent/service/register", json!({"name": format!("service-{n}")})).await;
    }
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let ask = b"GET /v1/agent/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
        Accept-Encoding: gzip\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert!(String::from_utf8_lossy(&bytes[..end]).contains("content-encoding: gzip"));
    let mut text = String::new();
    let mut decoder = flate2::read::GzDecoder::new(&bytes[end..]);
    std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
    let plain = rig.get("/v1/agent/services").await;
    assert_eq!(text, plain.text);
    assert!(plain.text.len() > 2 * bytes.len());
    let pretty = rig.get("/v1/agent/services?pretty").await;
    assert!(pretty.text.contains("\n  \"service-0\": {") && pretty.json() == plain.json());
}
