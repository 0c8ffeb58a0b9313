// SPDX-License-Identifier: Apache-2.0
//! Names of services and nodes differ by more than case, as in Consul's own tables.

use super::records::{ROOT, guarded};
use super::*;
use weft_identity::permission::{Kind, Names, Permission, Permissions, Verb};

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

/// Neither while no instance of the denied name is there, nor by a rule for all others.
#[tokio::test]
async fn a_denied_name_is_denied_in_every_spelling_though_nobody_has_it() {
    let rig = guarded(true).await;
    let denied = rig.token("service \"payments\" { policy = \"deny\" }").await;
    let all = "service_prefix \"\" { policy = \"write\" } node_prefix \"\" { policy = \"write\" }";
    let but = format!("{all} service \"payments\" {{ policy = \"deny\" }}");
    let others = rig.token(&but).await;
    for (token, name) in
        [(&denied, "Payments"), (&others, "PAYMENTS"), (&denied, "payments"), (&others, "payments")]
    {
        let body = on("hn1", "p", name).to_string();
        let made = rig.as_token(token, "PUT", "/v1/catalog/register", &body).await;
        assert_eq!(made.status, 403, "{name}: {}", made.text);
    }
    let body = on("hn1", "p", "PAYMENTS").to_string();
    assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", &body).await.status, 200);
    for name in ["payments", "Payments", "PAYMENTS"] {
        let path = format!("/v1/health/service/{name}");
        assert_eq!(ids(&rig.as_token(&denied, "GET", &path, "").await).len(), 0, "{name}");
    }
    // A rule for one's own spelling is enough for it.
    let own = "service \"Web\" { policy = \"write\" } service_prefix \"\" { policy = \"read\" }";
    let own = rig.token(own).await;
    let body = on("hn1", "w", "Web").to_string();
    let made = rig.as_token(&own, "PUT", "/v1/catalog/register", &body).await;
    assert_eq!(made.status, 200, "{}", made.text);
}

#[tokio::test]
async fn an_intention_holds_for_every_spelling_and_a_denial_before_what_allows() {
    let rig = rig().await;
    let at = |what: &str, source: &str, destination: &str| {
        format!("/v1/connect/intentions/{what}?source={source}&destination={destination}")
    };
    rig.put(&at("exact", "web", "db"), json!({"Action": "deny"})).await;
    rig.put(&at("exact", "WEB", "DB"), json!({"Action": "allow"})).await;
    for (source, destination) in [("web", "db"), ("Web", "db"), ("WEB", "Db"), ("WEB", "DB")] {
        let answer = rig.get(&at("check", source, destination)).await.json();
        assert_eq!(answer["Allowed"], false, "{source} to {destination}");
    }
    assert_eq!(rig.get(&at("check", "webs", "db")).await.json()["Allowed"], true);
    let matched = rig.get("/v1/connect/intentions/match?by=source&name=Web").await.json();
    assert_eq!(matched["Web"].as_array().unwrap().len(), 2);
}

#[test]
fn rows_about_services_hold_for_every_spelling_and_those_about_keys_for_their_own() {
    let row =
        |kind, names, verb| Permission { subject: "p".into(), kind, namespace: None, names, verb };
    let exactly = |name: &str| Names::Exactly(name.into());
    let rows = vec![
        row(Kind::Service, Names::Prefix("".into()), Some(Verb::Read)),
        row(Kind::Service, Names::Prefix("Pay".into()), Some(Verb::Write)),
        row(Kind::Service, exactly("payments"), None),
        row(Kind::Service, exactly("Web"), Some(Verb::Write)),
        row(Kind::Key, exactly("payments"), None),
    ];
    let table = Permissions::new(rows, true);
    let may = |verb, kind, name| table.allows(verb, kind, "default", name);
    for name in ["payments", "Payments", "PAYMENTS"] {
        assert!(!may(Verb::Read, Kind::Service, name), "{name}");
    }
    for name in ["payouts", "PAY", "web", "Web"] {
        assert!(may(Verb::Write, Kind::Service, name), "{name}");
    }
    assert!(!may(Verb::Write, Kind::Service, "other") && !may(Verb::Write, Kind::Service, "pé"));
    assert!(may(Verb::Write, Kind::Key, "Payments"), "keys are what they are written as");
    assert!(!table.allows_tree(Verb::Write, Kind::Service, "default", "PAY"));
}
