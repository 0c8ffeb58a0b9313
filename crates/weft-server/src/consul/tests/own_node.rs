// SPDX-License-Identifier: Apache-2.0
//! Of a server's own node its agent is the truth, whatever is written to the catalog.

use weft_registry::NodeInfo;
use weft_registry::hosts::{HostInfo, Hosts};

use super::*;

#[tokio::test]
async fn what_others_write_of_the_own_node_changes_nothing_of_what_its_agent_says() {
    let rig = rig().await;
    let own = rig.get("/v1/agent/self").await.json()["Config"]["NodeName"].clone();
    let web = json!({"Name": "web", "Port": 80, "Check": {"TTL": "600s", "Status": "passing"}});
    rig.put("/v1/agent/service/register", web).await;
    let other = json!({"Node": own, "Address": "6.6.6.6",
        "ID": "0190a6c8-0000-7000-8000-999999999999",
        "Service": {"Service": "others", "Port": 81}});
    let passing = async || rig.get("/v1/health/service/web?passing").await.json();
    let before = passing().await;
    assert_eq!(before.as_array().map(Vec::len), Some(1), "{before}");
    let sick = json!({"Node": own, "SkipNodeUpdate": true,
        "Check": {"CheckID": "serfHealth", "Name": "x", "Status": "critical"}});
    let service = json!({"Node": own, "ServiceID": "web"});
    let check = json!({"Node": own, "CheckID": "service:web"});
    let same = json!({"Node": own, "SkipNodeUpdate": true,
        "Service": {"ID": "web", "Service": "web", "Port": 81},
        "Checks": [{"CheckID": "service:web", "ServiceID": "web", "Status": "critical"}]});
    for (path, body) in [
        ("register", &other),
        ("register", &sick),
        ("register", &same),
        ("deregister", &service),
        ("deregister", &check),
        ("deregister", &json!({"Node": own})),
    ] {
        let answer = rig.put(&format!("/v1/catalog/{path}"), body.clone()).await;
        assert_eq!((answer.status, answer.json()), (200, json!(true)), "{body}");
        let now = passing().await;
        assert_eq!(now[0]["Node"]["Address"], before[0]["Node"]["Address"], "{body}");
        assert_eq!(now[0]["Node"]["ID"], before[0]["Node"]["ID"], "{body}");
        assert_eq!(now[0]["Service"]["ID"], "web", "{body}");
        assert_eq!(now[0]["Service"]["Port"], 80, "{body}");
    }
    let node = json!({"Node": own, "Address": "6.6.6.6"});
    for verb in [
        json!({"Service": {"Verb": "set", "Node": own,
            "Service": {"ID": "web", "Service": "web", "Port": 81}}}),
        json!({"Service": {"Verb": "delete", "Node": own, "Service": {"ID": "web"}}}),
        json!({"Check": {"Verb": "set", "Check": {"Node": own, "CheckID": "service:web",
            "ServiceID": "web", "Status": "critical"}}}),
        json!({"Check": {"Verb": "delete", "Check": {"Node": own, "CheckID": "service:web"}}}),
        json!({"Check": {"Verb": "set", "Check": {"Node": own, "CheckID": "serfHealth",
            "Name": "x", "Status": "critical"}}}),
        json!({"Node": {"Verb": "set", "Node": node}}),
        json!({"Node": {"Verb": "delete", "Node": node}}),
    ] {
        let answer = rig.put("/v1/txn", json!([verb])).await;
        assert_eq!(answer.status, 200, "{verb}: {}", answer.text);
        let now = passing().await;
        assert_eq!(now[0]["Node"]["Address"], before[0]["Node"]["Address"], "{verb}");
        assert_eq!(now[0]["Service"]["Port"], 80, "{verb}");
    }
    assert_eq!(rig.put("/v1/agent/check/pass/service:web", json!(null)).await.status, 200);
    // What somebody else wrote there went with the last one.
    assert_eq!(rig.get("/v1/catalog/service/others").await.json(), json!([]));
    // Its agent takes it away.
    rig.put("/v1/agent/service/deregister/web", json!(null)).await;
    assert_eq!(passing().await, json!([]));
}

fn machine(name: &str) -> HostInfo {
    HostInfo {
        node: NodeInfo {
            name: name.into(),
            address: "10.0.0.1".parse().unwrap(),
            version: "weft-1".into(),
            kernel: "6".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            pods_max: 110,
        },
        addresses: vec!["10.0.0.1".parse().unwrap()],
        labels: Default::default(),
        boot_id: "b".into(),
        instance: "i".into(),
    }
}

#[tokio::test]
async fn a_machine_is_as_alive_as_it_is_heard_of_whatever_is_written() {
    // No time passes: it is not silent for too long.
    let rig = rig_at(Clock::manual().0, Access::default()).await;
    let hosts = Hosts::start(rig.registry.clone(), "n1", &rig.tasks).await.unwrap();
    hosts.join("m1", false, "j1", &json!("placed")).await.unwrap();
    hosts.heartbeat(&machine("m1")).await.unwrap();
    let web = json!({"Node": "m1", "Address": "10.0.0.1", "Service": {"Service": "web"}});
    rig.put("/v1/catalog/register", web.clone()).await;
    let passing = async || count(&rig.get("/v1/health/service/web?passing").await);
    let said = async |status: &str| {
        let mut life = json!({"CheckID": "serfHealth", "Name": "x", "Status": status});
        let check = json!({"Node": "m1", "SkipNodeUpdate": true, "Check": life});
        for path in ["register", "register?ns=shop"] {
            rig.put(&format!("/v1/catalog/{path}"), check.clone()).await;
        }
        life["Node"] = "m1".into();
        rig.put("/v1/txn", json!([{"Check": {"Verb": "set", "Check": life}}])).await;
    };
    assert_eq!(passing().await, 1);
    said("critical").await;
    assert_eq!(passing().await, 1, "it is heard of");
    hosts.leave("m1").await.unwrap();
    assert_eq!(passing().await, 0);
    said("passing").await;
    assert_eq!(passing().await, 0, "it is not");
    let life = json!({"Node": "m1", "CheckID": "serfHealth"});
    rig.put("/v1/catalog/deregister", life.clone()).await;
    rig.put("/v1/txn", json!([{"Check": {"Verb": "delete", "Check": life}}])).await;
    assert_eq!(passing().await, 0);
    // Not by taking everything away and registering it anew either.
    let node = json!({"Node": "m1"});
    let deleted = json!([{"Node": {"Verb": "delete", "Node": node}}]);
    for (path, body) in [("catalog/deregister", node), ("txn", deleted)] {
        rig.put(&format!("/v1/{path}"), body).await;
        assert_eq!(count(&rig.get("/v1/health/service/web").await), 0, "{path}");
        rig.put("/v1/catalog/register", web.clone()).await;
        said("passing").await;
        assert_eq!(passing().await, 0, "{path}");
    }
    hosts.heartbeat(&machine("m1")).await.unwrap();
    assert_eq!(passing().await, 1, "it is heard of again");
}

#[tokio::test]
async fn nobody_registers_whether_a_node_is_there() {
    let rig = rig().await;
    let check = json!({"CheckID": "serfHealth", "Name": "x", "TTL": "10s"});
    let web = json!({"Name": "web", "Check": check});
    // Without a CheckID the name is the id.
    let named = json!({"Name": "serfHealth", "TTL": "10m"});
    for (path, body) in [("check", &check), ("service", &web), ("check", &named)] {
        let path = format!("/v1/agent/{path}/register");
        let said = rig.ask("PUT", &path, &body.to_string()).await;
        assert_eq!(said.status, 400, "{}", said.text);
        assert!(said.text.contains("another CheckID"), "{}", said.text);
    }
    // Of a service's check it is no id.
    rig.put("/v1/agent/service/register", json!({"Name": "web", "Check": named})).await;
    let checks = rig.get("/v1/agent/checks").await.json();
    assert_eq!(checks["service:web"]["Name"], "serfHealth");
}

#[tokio::test]
async fn tags_that_an_agent_leaves_to_others_are_theirs() {
    let rig = rig().await;
    let own = rig.get("/v1/agent/self").await.json()["Config"]["NodeName"].clone();
    let web = |id: &str, free: bool| {
        json!({"Name": "web", "ID": id, "Port": 80, "Tags": ["orig"], "EnableTagOverride": free,
            "Check": {"TTL": "600s", "Status": "passing"}})
    };
    rig.put("/v1/agent/service/register", web("free", true)).await;
    rig.put("/v1/agent/service/register", web("bound", false)).await;
    let tags = async |id: &str| {
        let all = rig.get("/v1/health/service/web?passing").await.json();
        let all = all.as_array().unwrap().iter().map(|entry| entry["Service"].clone());
        let one = all.into_iter().find(|service| service["ID"] == id).unwrap();
        (one["Tags"][0].as_str().unwrap().to_owned(), one["Port"].clone())
    };
    for (n, id) in ["free", "bound", "free", "bound"].into_iter().enumerate() {
        let tag = format!("t{n}");
        let service = json!({"ID": id, "Service": "web", "Port": 81, "Tags": [tag]});
        let check = json!({"CheckID": format!("service:{id}"), "ServiceID": id,
            "Status": "critical"});
        let written = json!({"Node": own, "SkipNodeUpdate": true, "Service": service,
            "Check": check});
        let set = json!([{"Service": {"Verb": "set", "Node": own, "Service": service}}]);
        let (path, body) = if n < 2 { ("/v1/catalog/register", written) } else { ("/v1/txn", set) };
        rig.put(path, body).await;
        let wanted = if id == "free" { tag } else { "orig".to_owned() };
        assert_eq!(tags(id).await, (wanted, json!(80)), "{path} {id}");
    }
}

#[tokio::test]
async fn who_writes_tags_puts_nothing_else_back() {
    let rig = rig().await;
    let own = rig.get("/v1/agent/self").await.json()["Config"]["NodeName"].clone();
    let web = |port: u16| json!({"Name": "web", "Port": port, "EnableTagOverride": true});
    rig.put("/v1/agent/service/register", web(1)).await;
    for n in 2..60_u16 {
        let service = json!({"Service": "web", "Tags": [n.to_string()]});
        let tags = json!({"Node": own, "SkipNodeUpdate": true, "Service": service});
        let set = json!([{"Service": {"Verb": "set", "Node": own, "Service": service}}]);
        let (path, body) =
            if n % 2 == 0 { ("/v1/catalog/register", tags) } else { ("/v1/txn", set) };
        tokio::join!(rig.put("/v1/agent/service/register", web(n)), rig.put(path, body));
        let now = rig.get("/v1/catalog/service/web").await.json();
        assert_eq!(now[0]["ServicePort"], n, "{path}: the agent's port was put back");
    }
}
