// SPDX-License-Identifier: Apache-2.0
//! A field that a body cannot have is refused by its name, wherever one is read: misspelled it
//! would be left out in silence.

use super::records::{ROOT, guarded};
use super::*;

#[tokio::test]
async fn a_misspelled_field_is_refused_by_its_name_and_nothing_is_done() {
    let rig = guarded(false).await;
    let node = json!({"Node": "n9", "Address": "10.0.0.9", "Service": {"Service": "db"}});
    let root = async |method: &str, path: &str, body: &Value| {
        rig.as_token(ROOT, method, path, &body.to_string()).await
    };
    assert_eq!(root("PUT", "/v1/catalog/register", &node).await.status, 200);
    let query = |more: Value| {
        let mut query = json!({"Name": "q", "Service": {"Service": "web"}});
        for (name, value) in more.as_object().unwrap() {
            match name.split_once('.') {
                None => query[name] = value.clone(),
                Some((part, name)) => query[part][name] = value.clone(),
            }
        }
        query
    };
    let txn = |what: &str, part: Value| json!([{what: part}]);
    for (method, path, body, field) in [
        ("PUT", "catalog/deregister", json!({"Node": "n9", "Service": "db"}), "Service"),
        ("PUT", "catalog/deregister", json!({"Node": "n9", "ServiceId ": "db"}), "ServiceId "),
        ("PUT", "txn", json!([{"KVs": {}}]), "KVs"),
        (
            "PUT",
            "txn",
            txn("KV", json!({"Verb": "cas", "Key": "z", "Value": "eA==", "Indx": 9})),
            "Indx",
        ),
        (
            "PUT",
            "txn",
            txn("Node", json!({"Verb": "set", "Node": {"Node": "a", "Adress": "10.0.0.1"}})),
            "Adress",
        ),
        (
            "PUT",
            "txn",
            txn(
                "Service",
                json!({"Verb": "set", "Node": "n9", "Service": {"Service": "x", "Prt": 1}}),
            ),
            "Prt",
        ),
        (
            "PUT",
            "txn",
            txn(
                "Check",
                json!({"Verb": "set", "Check": {"Node": "n9", "CheckID": "c", "Stat": 1}}),
            ),
            "Stat",
        ),
        ("PUT", "txn", txn("Check", json!({"Vrb": "get", "Check": {}})), "Vrb"),
        ("PUT", "session/create", json!({"Behaviour": "delete"}), "Behaviour"),
        ("POST", "query", query(json!({"Bogus": 1})), "Bogus"),
        ("POST", "query", query(json!({"Service.OnlyPasing": true})), "OnlyPasing"),
        ("POST", "query", query(json!({"DNS": {"Ttl ": "1s"}})), "Ttl "),
        ("POST", "query", query(json!({"Template": {"Kind": ""}})), "Kind"),
        ("POST", "query", query(json!({"Service.Failover": {"Nearest": 1}})), "Nearest"),
        ("PUT", "acl/policy", json!({"Name": "p", "Rule": "acl = \"read\""}), "Rule"),
        ("PUT", "acl/role", json!({"Name": "r", "Policy": []}), "Policy"),
        ("PUT", "acl/token", json!({"Polices": []}), "Polices"),
        ("PUT", "acl/token", json!({"Type": "client"}), "Type"),
        ("PUT", "acl/auth-method", json!({"Name": "m", "Typ": "jwt"}), "Typ"),
        ("PUT", "acl/binding-rule", json!({"Select": ""}), "Select"),
        ("POST", "acl/login", json!({"Method": "m"}), "Method"),
        ("PUT", "acl/bootstrap", json!({"Secret": "m"}), "Secret"),
        ("PUT", "agent/token/default", json!({"token ": "m"}), "token "),
        (
            "PUT",
            "connect/intentions/exact?source=a&destination=b",
            json!({"Action": "deny", "Bogus": 1}),
            "Bogus",
        ),
        ("POST", "connect/intentions", json!({"Source": "a"}), "Source"),
        ("PUT", "connect/ca/configuration", json!({"Configuration": {}}), "Configuration"),
        ("POST", "agent/connect/authorize", json!({"Traget": "a"}), "Traget"),
        ("PUT", "operator/autopilot/configuration", json!({"Bogus": 1}), "Bogus"),
        ("PUT", "coordinate/update", json!({"Node": "n9", "Coordinate": {}}), "Coordinate"),
        ("POST", "discovery-chain/web", json!({"Protocol": "http"}), "Protocol"),
        ("PUT", "agent/check/update/c", json!({"State": "passing"}), "State"),
    ] {
        let said = root(method, &format!("/v1/{path}"), &body).await;
        assert_eq!(said.status, 400, "{path} {body}: {}", said.text);
        let wanted = format!("unknown field {field:?}");
        assert!(said.text.contains(&wanted), "{path} {body}: {}", said.text);
    }
    assert_eq!(count(&root("GET", "/v1/catalog/service/db", &Value::Null).await), 1);
    // However clients spell what there is.
    let spelled = json!({"node": "n9", "service_id": "db", "WriteRequest": {"Token": ""}});
    assert_eq!(root("PUT", "/v1/catalog/deregister", &spelled).await.status, 200);
    assert_eq!(count(&root("GET", "/v1/catalog/service/db", &Value::Null).await), 0);
}

#[tokio::test]
async fn what_a_token_was_made_with_is_not_changed_in_silence() {
    let rig = guarded(false).await;
    let root =
        async |path: &str, body: Value| rig.as_token(ROOT, "PUT", path, &body.to_string()).await;
    let made = root("/v1/acl/token", json!({"ExpirationTTL": "1h", "Local": false})).await.json();
    let path = format!("/v1/acl/token/{}", made["AccessorID"].as_str().unwrap());
    for (body, why) in [
        (json!({"ExpirationTTL": "5h"}), "Cannot change expiration time of"),
        (json!({"ExpirationTime": "2040-01-01T00:00:00Z"}), "Cannot change expiration time of"),
        (json!({"Local": true}), "Cannot toggle local mode of"),
        (json!({"AuthMethod": "m"}), "Cannot change AuthMethod of"),
    ] {
        let said = root(&path, body.clone()).await;
        assert!(said.status == 500 && said.text.contains(why), "{body}: {}", said.text);
    }
    let mut same = made.clone();
    same["Description"] = json!("kept");
    // As another client writes the same instant, and no time to live.
    let ends: jiff::Timestamp = made["ExpirationTime"].as_str().unwrap().parse().unwrap();
    same["ExpirationTime"] = json!(format!("{ends:.9}").replace('Z', "+00:00"));
    same["ExpirationTTL"] = json!("0s");
    let said = root(&path, same).await;
    assert_eq!((said.status, &said.json()["Description"]), (200, &json!("kept")));
    let said = root("/v1/acl/token", json!({"AuthMethod": "m"})).await;
    assert!(said.status == 500 && said.text.contains("outside of login"), "{}", said.text);
}

#[tokio::test]
async fn a_transaction_says_of_each_key_that_is_not_there_that_it_is_not() {
    let rig = rig().await;
    rig.put("/v1/kv/b", json!(1)).await;
    let get = |key: &str| json!({"KV": {"Verb": "get-or-empty", "Key": key}});
    let said = rig.put("/v1/txn", json!([get("a"), get("b")])).await.json();
    let of = |at: usize| said["Results"][at]["KV"].clone();
    assert_eq!((&of(0)["Key"], &of(0)["Value"]), (&json!("a"), &Value::Null));
    assert_eq!((&of(1)["Key"], &of(1)["Value"]), (&json!("b"), &json!("MQ==")));
}

#[tokio::test]
async fn paths_without_their_name_and_pairs_that_are_there_are_answered_in_consuls_words() {
    let rig = rig().await;
    for (path, status, text) in [
        ("health/state/bogus", 200, "[]"),
        ("health/state/", 400, "Missing check state"),
        ("agent/health/service/name/", 400, "Missing service Name"),
        ("agent/health/service/id/", 400, "Missing serviceID"),
    ] {
        let said = rig.get(&format!("/v1/{path}")).await;
        assert_eq!((said.status, said.text.as_str()), (status, text), "{path}");
    }
    let pair = |action: &str| {
        json!({"SourceName": "a", "DestinationName": "b", "Action": action}).to_string()
    };
    let post = async |action: &str| rig.ask("POST", "/v1/connect/intentions", &pair(action)).await;
    let id = post("allow").await.json()["ID"].clone();
    let said = post("deny").await;
    let is_told = said.text.starts_with("duplicate intention found");
    assert!(said.status == 500 && is_told, "{}", said.text);
    let path = format!("/v1/connect/intentions/{}", id.as_str().unwrap());
    assert_eq!(rig.get(&path).await.json()["Action"], "allow");
    assert_eq!(rig.ask("PUT", &path, &pair("deny")).await.status, 200);
    assert_eq!(rig.get(&path).await.json()["Action"], "deny");
}
