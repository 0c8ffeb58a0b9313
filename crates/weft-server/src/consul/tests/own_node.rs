// SPDX-License-Identifier: Apache-2.0
//! Of a server's own node its agent is the truth, whatever is written to the catalog.

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
    for (path, body) in [
        ("register", &other),
        ("register", &sick),
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
    }
    assert_eq!(rig.put("/v1/agent/check/pass/service:web", json!(null)).await.status, 200);
    // What somebody else wrote there went with the last one.
    assert_eq!(rig.get("/v1/catalog/service/others").await.json(), json!([]));
    // Its agent takes it away.
    rig.put("/v1/agent/service/deregister/web", json!(null)).await;
    assert_eq!(passing().await, json!([]));
}
