// SPDX-License-Identifier: Apache-2.0
//! Transactions, operation by operation: each is done on what those before it left.

use serde_json::{Value, json};

use super::{Rig, count, rig};

const KINDS: [&str; 4] = ["KV", "Check", "Service", "Node"];

/// An operation on the one record of its kind that these tests know.
fn op(what: &str, verb: &str, index: u64, says: &str) -> Value {
    match what {
        "KV" => {
            let value = if says == "old" { "MQ==" } else { "Mg==" };
            json!({"KV": {"Verb": verb, "Key": "k", "Value": value, "Index": index}})
        }
        "Node" => json!({"Node": {"Verb": verb, "Node": {
            "Node": "n9", "Address": "10.0.0.9", "Meta": {"says": says}, "ModifyIndex": index}}}),
        "Service" => json!({"Service": {"Verb": verb, "Node": "n9", "Service": {
            "ID": "s1", "Service": "web", "Tags": [says], "ModifyIndex": index}}}),
        _ => json!({"Check": {"Verb": verb, "Check": {"Node": "n9", "CheckID": "c1",
            "Name": "c1", "Notes": says, "ServiceID": "s1", "ModifyIndex": index}}}),
    }
}

async fn with_all() -> Rig {
    let rig = rig().await;
    let all = ["KV", "Node", "Service", "Check"].map(|what| op(what, "set", 0, "old"));
    rig.put("/v1/txn", json!(all)).await;
    rig
}

/// The place of the one operation that is refused, and why.
async fn refused(rig: &Rig, ops: Value) -> (u64, String) {
    let answer = rig.ask("PUT", "/v1/txn", &ops.to_string()).await;
    assert_eq!(answer.status, 409, "{ops}: {}", answer.text);
    let errors = answer.json()["Errors"].clone();
    assert_eq!(errors.as_array().unwrap().len(), 1, "{ops}: {errors}");
    (errors[0]["OpIndex"].as_u64().unwrap(), errors[0]["What"].as_str().unwrap().to_owned())
}

async fn done(rig: &Rig, ops: Value) -> Value {
    rig.put("/v1/txn", ops).await.json()["Results"].clone()
}

#[tokio::test]
async fn an_operation_compares_with_what_those_before_it_left() {
    let rig = with_all().await;
    for what in KINDS {
        let found = done(&rig, json!([op(what, "get", 0, "")])).await;
        let index = found[0][what]["ModifyIndex"].as_u64().unwrap();
        for (first, second) in [
            (op(what, "set", 0, "new"), op(what, "cas", index, "old")),
            (op(what, "set", 0, "new"), op(what, "cas", 0, "old")),
            (op(what, "set", 0, "new"), op(what, "delete-cas", index, "")),
            (op(what, "cas", index, "new"), op(what, "cas", index, "old")),
            (op(what, "delete", 0, ""), op(what, "cas", index, "old")),
        ] {
            let (at, why) = refused(&rig, json!([first, second])).await;
            assert!(at == 1 && why.contains("index is stale"), "{first}, {second}: {why}");
        }
        // What is deleted and made again is another one, however equal.
        let anew = json!([
            op(what, "delete", 0, ""),
            op(what, "set", 0, "old"),
            op(what, "delete-cas", index, ""),
        ]);
        assert_eq!(refused(&rig, anew).await.0, 2, "{what}");
        let same = json!([op(what, "set", 0, "old"), op(what, "delete-cas", index, "")]);
        done(&rig, same).await;
        assert_eq!(refused(&rig, json!([op(what, "get", 0, "")])).await.0, 0, "{what}");
        // Of pairs alone what is not there is deleted at every index.
        if what != "KV" {
            let (_, why) = refused(&rig, json!([op(what, "delete-cas", 0, "")])).await;
            assert!(why.contains("failed to delete") && why.contains("stale"), "{why}");
        }
    }
}

#[tokio::test]
async fn a_check_of_an_index_sees_what_was_written_before_it() {
    let rig = with_all().await;
    let changed = json!([op("KV", "set", 0, "new"), op("KV", "check-index", 0, "")]);
    assert_eq!(refused(&rig, changed).await.0, 1);
    let found = done(&rig, json!([op("KV", "get", 0, "")])).await;
    let index = found[0]["KV"]["ModifyIndex"].as_u64().unwrap();
    done(&rig, json!([op("KV", "set", 0, "old"), op("KV", "check-index", index, "")])).await;
}

#[tokio::test]
async fn an_operation_shows_what_it_left() {
    let rig = with_all().await;
    for what in ["Node", "Service", "Check"] {
        let ops = [op(what, "set", 0, "new"), op(what, "get", 0, ""), op(what, "set", 0, "old")];
        let shown = done(&rig, json!(ops)).await;
        let kept = done(&rig, json!([op(what, "get", 0, "")])).await;
        for (at, says) in [(0, "new"), (1, "new"), (2, "old")] {
            let record = &shown[at][what];
            let found = match what {
                "Node" => &record["Meta"]["says"],
                "Service" => &record["Tags"][0],
                _ => &record["Notes"],
            };
            assert_eq!(found, says, "{what} {at}: {record}");
            for index in ["CreateIndex", "ModifyIndex"] {
                assert_eq!(record[index], kept[0][what][index], "{what} {at}: {record}");
            }
        }
    }
    // Also where a later one takes it away.
    let ops = json!([op("Service", "set", 0, "new"), op("Service", "delete", 0, "")]);
    let shown = done(&rig, ops).await;
    assert_eq!(shown[0]["Service"]["Tags"][0], "new", "{shown}");
    assert_eq!(count(&rig.get("/v1/catalog/service/web").await), 0);
}

#[tokio::test]
async fn nothing_is_put_where_an_operation_before_has_taken_the_ground_away() {
    let rig = with_all().await;
    let [node, service] = ["Node", "Service"].map(|what| op(what, "delete", 0, ""));
    for ops in [
        json!([node, op("Service", "set", 0, "old")]),
        json!([node, op("Check", "set", 0, "old")]),
        json!([service, op("Check", "set", 0, "old")]),
    ] {
        assert_eq!(refused(&rig, ops).await.0, 1);
    }
    assert_eq!(count(&rig.get("/v1/health/service/web").await), 1);
    let all = ["Node", "Service", "Check"].map(|what| op(what, "set", 0, "old"));
    let [n, s, c] = &all;
    done(&rig, json!([node, n, s, c])).await;
    let health = rig.get("/v1/health/service/web").await.json();
    assert_eq!(health[0]["Node"]["Address"], "10.0.0.9", "the node that was made again: {health}");
    assert_eq!(health[0]["Checks"].as_array().unwrap().len(), 1, "{health}");
    // Before what it needs is there nothing is put, either.
    done(&rig, json!([node])).await;
    assert_eq!(refused(&rig, json!([s, n])).await.0, 0);
    assert_eq!(refused(&rig, json!([n, c, s])).await.0, 1);
}
