// SPDX-License-Identifier: Apache-2.0
//! Rights on what is not there, or is another's by the time it is written; and bodies of those
//! who have none.

use ::http::Method;
use weft_kinds::world::{RegistrationKey, StoreKey};
use weft_registry::catalog::CatalogError;
use weft_registry::consul::{CatalogOp, ConsulError};

use super::records::{ROOT, guarded};
use super::*;

async fn as_root(rig: &Rig, path: &str, body: &Value) {
    let answer = rig.as_token(ROOT, "PUT", path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
}

fn delete(id: &str) -> String {
    json!([{"Service": {"Verb": "delete", "Node": "n1", "Service": {"ID": id}}}]).to_string()
}

#[tokio::test]
async fn what_is_not_there_is_its_nodes() {
    let rig = guarded(false).await;
    let token = rig.token(r#"service "web" { policy = "write" }"#).await;
    let put = async |path: &str, body: &str| rig.as_token(&token, "PUT", path, body).await;
    let check = |verb: &str, id: &str| {
        let of = json!({"Node": "n1", "CheckID": "c", "Name": "c", "ServiceID": id});
        json!({"Check": {"Verb": verb, "Check": of}})
    };
    let get = json!([{"Service": {"Verb": "get", "Node": "n1", "Service": {"ID": "i"}}}]);
    for (ops, why) in [
        (delete("i"), "Permission denied"),
        (json!([check("set", "i")]).to_string(), "Permission denied"),
        (json!([check("delete", "")]).to_string(), "Permission denied"),
        (get.to_string(), "doesn't exist"),
    ] {
        let answer = put("/v1/txn", &ops).await;
        assert_eq!(answer.status, 409, "{ops}: {}", answer.text);
        assert!(answer.text.contains(why), "{ops}: {}", answer.text);
    }
    let gone = json!({"Node": "n1", "ServiceID": "i"}).to_string();
    assert_eq!(put("/v1/catalog/deregister", &gone).await.status, 403);
    assert_eq!(put("/v1/agent/service/deregister/i", "").await.status, 404, "as Consul's agent");
    assert_eq!(put("/v1/agent/check/deregister/i", "").await.status, 403);
    // A service of one's own is no one's before, and its checks come with it.
    as_root(&rig, "/v1/agent/service/register", &json!({"name": "other"})).await;
    let own = json!({"Service": {"Verb": "set", "Node": "n1",
                                 "Service": {"ID": "i", "Service": "web"}}});
    let both = put("/v1/txn", &json!([own, check("set", "i")]).to_string()).await;
    assert_eq!(both.status, 200, "{}", both.text);
    assert_eq!(put("/v1/agent/service/deregister/i", "").await.status, 200);
}

#[tokio::test]
async fn what_became_anothers_since_it_was_admitted_is_judged_again() {
    let rig = guarded(false).await;
    as_root(&rig, "/v1/agent/service/register", &json!({"name": "other"})).await;
    let token = rig.token(r#"node "n1" { policy = "write" }"#).await;
    let params = params::Params::parse(None).unwrap();
    let ask = super::super::http::Ask {
        who: rig.door.caller(&token).await.unwrap(),
        secret: None,
        argument: String::new(),
        params,
        body: bytes::Bytes::new(),
        namespace: "default".into(),
        method: Method::PUT,
    };
    let key = RegistrationKey { namespace: "default".into(), node: "n1".into(), id: "i".into() };
    let admitted = rig.door.for_instance(&ask, &key).await.expect("nothing is there yet");
    let keys = |_: &View| vec![StoreKey::Registration(key.clone())];
    let look = rig.door.look(&ask, keys).await.unwrap();
    as_root(&rig, "/v1/agent/service/register", &json!({"name": "db", "id": "i"})).await;
    let late = admitted.deregister_service(&key).await;
    assert!(matches!(late, Err(CatalogError::Overtaken)), "{late:?}");
    let late = rig
        .door
        .consul()
        .transact((&look.seen, false), |_, catalog| {
            Ok(catalog.make(CatalogOp::DeleteService(key.clone()))?)
        })
        .await;
    let overtaken =
        |why: &ConsulError| matches!(why, ConsulError::Catalog(CatalogError::Overtaken));
    assert!(late.as_ref().is_err_and(overtaken), "{late:?}");
    let now = rig.as_token(&token, "PUT", "/v1/txn", &delete("i")).await;
    assert_eq!(now.status, 409, "{}", now.text);
    assert!(now.text.contains("lacks permission 'service:write' on \\\"db\\\""), "{}", now.text);
    let left = rig.as_token(ROOT, "GET", "/v1/catalog/service/db", "").await;
    assert_eq!(count(&left), 1);
}

#[tokio::test]
async fn a_check_is_taken_over_only_by_who_may_write_what_it_is_about() {
    let rig = guarded(false).await;
    let check = json!({"CheckID": "up", "TTL": "60s"});
    let db = json!({"name": "db", "check": check});
    as_root(&rig, "/v1/agent/service/register", &db).await;
    let node = json!({"name": "disk", "id": "disk", "ttl": "60s"});
    as_root(&rig, "/v1/agent/check/register", &node).await;
    let token = rig.token(r#"service "web" { policy = "write" }"#).await;
    for id in ["up", "disk"] {
        let web = json!({"name": "web", "check": {"CheckID": id, "TTL": "60s"}}).to_string();
        let answer = rig.as_token(&token, "PUT", "/v1/agent/service/register", &web).await;
        assert_eq!(answer.status, 403, "{id}: {}", answer.text);
        let web = json!({"Node": "n1", "Address": "127.0.0.1", "SkipNodeUpdate": true,
                         "Service": {"Service": "web"},
                         "Check": {"Name": id, "CheckID": id, "ServiceID": "web"}});
        let answer = rig.as_token(&token, "PUT", "/v1/catalog/register", &web.to_string()).await;
        assert_eq!(answer.status, 403, "{id}: {}", answer.text);
    }
    let web = json!({"name": "web", "check": {"CheckID": "own", "TTL": "60s"}}).to_string();
    for _ in 0..2 {
        let answer = rig.as_token(&token, "PUT", "/v1/agent/service/register", &web).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    for path in ["/v1/agent/check/pass/own", "/v1/agent/check/deregister/own"] {
        assert_eq!(rig.as_token(&token, "PUT", path, "").await.status, 200, "{path}");
    }
    assert_eq!(rig.as_token(&token, "PUT", "/v1/agent/check/pass/up", "").await.status, 403);
}

#[tokio::test]
async fn a_body_is_asked_for_only_from_who_may_send_it() {
    let rig = guarded(false).await;
    let reader = rig.token(r#"operator = "read""#).await;
    for (path, token) in [("/v1/snapshot", &*reader), ("/v1/kv/a", "nobody")] {
        // Nothing of it follows: whoever waited for it would not answer.
        let request = format!(
            "PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Expect: 100-continue\r\nX-Consul-Token: {token}\r\nContent-Length: 400000\r\n\r\n"
        );
        let answer = rig.raw(request.as_bytes()).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text);
    }
    // Who sends it anyhow comes to read the answer.
    let large = "x".repeat(20 << 20);
    assert_eq!(rig.as_token(&reader, "PUT", "/v1/snapshot", &large).await.status, 403);
}

#[tokio::test]
async fn snapshots_are_taken_one_at_a_time() {
    let rig = guarded(false).await;
    let taken = rig.door.0.snapshots.try_acquire().unwrap();
    for method in ["GET", "PUT"] {
        let answer = rig.as_token(ROOT, method, "/v1/snapshot", "").await;
        assert_eq!(answer.status, 429, "{method}: {}", answer.text);
    }
    drop(taken);
    assert_eq!(rig.as_token(ROOT, "GET", "/v1/snapshot", "").await.status, 200);
    assert_eq!(rig.as_token(ROOT, "GET", "/v1/snapshot", "").await.status, 200);
}

#[tokio::test]
async fn a_coordinate_of_a_node_is_known_by_its_name_with_the_datacentre() {
    let rig = rig().await;
    let listed = rig.get("/v1/coordinate/datacenters").await.json();
    let node = listed[0]["Coordinates"][0]["Node"].as_str().unwrap().to_owned();
    let coord =
        json!({"Adjustment": 0, "Error": 2.5, "Height": 0, "Vec": [0, 0, 0, 0, 0, 0, 0, 1]});
    rig.put("/v1/coordinate/update", json!({"Node": node, "Coord": coord})).await;
    let found = rig.get(&format!("/v1/coordinate/node/{node}")).await.json();
    assert_eq!((&found[0]["Node"], &found[0]["Coord"]), (&json!(node), &coord));
    let strange = json!({"Node": "n1.dc2", "Coord": coord}).to_string();
    assert_eq!(rig.ask("PUT", "/v1/coordinate/update", &strange).await.status, 500);
}
