// SPDX-License-Identifier: Apache-2.0
//! Names of services and nodes differ by more than case, as in Consul's own tables.

use super::records::{ROOT, guarded};
use super::*;

/// The ids of the instances that an answer lists.
fn ids(answer: &Answer) -> Vec<String> {
    let list = answer.json();
    let mut ids: Vec<String> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["Service"]["ID"].as_str().or(of["ServiceID"].as_str()).unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

fn on(node: &str, id: &str, service: &str) -> Value {
    json!({"Node": node, "Address": "10.7.7.1", "Service": {"ID": id, "Service": service}})
}

#[tokio::test]
async fn a_service_is_one_however_its_name_is_written() {
    let rig = rig().await;
    for (node, id, name) in
        [("hn1", "a", "MyApp"), ("hn2", "b", "myapp"), ("hn7", "c", "MYAPP"), ("hn3", "d", "Solo")]
    {
        rig.put("/v1/catalog/register", on(node, id, name)).await;
    }
    for asked in ["MyApp", "myapp", "mYaPP"] {
        for path in ["/v1/health/service", "/v1/catalog/service"] {
            let found = rig.get(&format!("{path}/{asked}")).await;
            assert_eq!(ids(&found), ["a", "b", "c"], "{path}/{asked}");
        }
    }
    assert_eq!(ids(&rig.get("/v1/health/service/solo").await), ["d"]);
    let shown = rig.get("/v1/health/service/solo").await.json();
    assert_eq!(shown[0]["Service"]["Service"], "Solo", "shown as it was written");
    let proxy = json!({"Node": "hn1", "Address": "10.7.7.1", "Service": {"ID": "p",
        "Service": "proxy", "Kind": "connect-proxy", "Port": 1,
        "Proxy": {"DestinationServiceName": "Solo"}}});
    rig.put("/v1/catalog/register", proxy).await;
    rig.put("/v1/catalog/register", on("hn2", "q", "PROXY")).await;
    assert_eq!(ids(&rig.get("/v1/health/connect/sOLO").await), ["p"]);
}

#[tokio::test]
async fn a_query_is_woken_by_the_other_spelling() {
    let rig = rig().await;
    rig.put("/v1/catalog/register", on("hn1", "a", "MyApp")).await;
    let before = rig.get("/v1/health/service/myapp").await;
    let path = format!("/v1/health/service/myapp?index={}&wait=60s", before.index());
    let (after, _) = tokio::join!(rig.get(&path), async {
        rig.blocked(1).await;
        rig.put("/v1/catalog/register", on("hn2", "b", "MYAPP")).await
    });
    assert_eq!(ids(&after), ["a", "b"]);
}

#[tokio::test]
async fn a_node_is_one_however_its_name_is_written() {
    let rig = rig().await;
    rig.put("/v1/catalog/register", on("nA", "a", "x")).await;
    rig.put("/v1/catalog/register", on("NA", "b", "x")).await;
    let nodes = rig.get("/v1/catalog/nodes").await.json();
    let names: Vec<_> = nodes.as_array().unwrap().iter().map(|n| n["Node"].clone()).collect();
    assert_eq!(names, ["n1", "nA"]);
    let node = rig.get("/v1/catalog/node/na").await.json();
    assert_eq!(node["Services"].as_object().unwrap().len(), 2);
    assert_eq!(rig.get("/v1/catalog/node/N1").await.json()["Node"]["Node"], "n1");
    assert_eq!(count(&rig.get("/v1/health/node/N1").await), 1);
    let ops = json!([{"Service": {"Verb": "delete", "Node": "na", "Service": {"ID": "a"}}}]);
    rig.put("/v1/txn", ops).await;
    assert_eq!(ids(&rig.get("/v1/catalog/service/x").await), ["b"]);
    rig.put("/v1/catalog/deregister", json!({"Node": "Na"})).await;
    assert_eq!(count(&rig.get("/v1/catalog/nodes").await), 1);
}

#[tokio::test]
async fn another_spelling_is_no_way_around_a_rule() {
    let rig = guarded(true).await;
    let body = on("hn1", "a", "web").to_string();
    let made = rig.as_token(ROOT, "PUT", "/v1/catalog/register", &body).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let token = rig.token("service \"web\" { policy = \"deny\" }").await;
    let seen = rig.as_token(&token, "GET", "/v1/health/service/WEB", "").await;
    assert_eq!(ids(&seen).len(), 0);
    let body = on("hn1", "b", "WEB").to_string();
    let joined = rig.as_token(&token, "PUT", "/v1/catalog/register", &body).await;
    assert_eq!(joined.status, 403, "{}", joined.text);
}
