// SPDX-License-Identifier: Apache-2.0
//! Pairs, locks, transactions, queries, snapshots and access lists, asked as clients ask.

use super::*;

pub(super) const ROOT: &str = "0d9a0f1e-6f3c-4a53-9f6b-6c1f3a0e7b11";

pub(super) async fn guarded(allow: bool) -> Rig {
    let acl = AclConfig { default_allow: allow, initial_management: Some(ROOT.into()) };
    rig_with(Access { acl: Some(acl), ..Access::default() }).await
}

impl Rig {
    pub(super) async fn as_token(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Answer {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             X-Consul-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes()).await
    }

    /// A token under these rules.
    pub(super) async fn token(&self, rules: &str) -> String {
        let name = format!("p{}", rules.len());
        let policy = json!({"Name": name, "Rules": rules}).to_string();
        let made = self.as_token(ROOT, "PUT", "/v1/acl/policy", &policy).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let token = json!({"Policies": [{"Name": name}]}).to_string();
        let made = self.as_token(ROOT, "PUT", "/v1/acl/token", &token).await;
        assert_eq!(made.status, 200, "{}", made.text);
        made.json()["SecretID"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn pairs_are_kept_listed_and_compared_as_in_consul() {
    let rig = rig().await;
    let missing = rig.get("/v1/kv/a/b").await;
    assert_eq!((missing.status, missing.text.as_str()), (404, ""));
    assert!(missing.index() > 0, "clients read the index of what is missing, too");
    assert_eq!(rig.ask("PUT", "/v1/kv/a/b?flags=7", "x\u{0}y").await.text, "true");
    rig.ask("PUT", "/v1/kv/a/c/d", "2").await;
    rig.ask("PUT", "/v1/kv/empty", "").await;
    let found = rig.get("/v1/kv/a/b").await.json();
    assert_eq!(found[0]["Value"], "eAB5");
    assert_eq!((&found[0]["Flags"], &found[0]["LockIndex"]), (&json!(7), &json!(0)));
    assert_eq!(rig.get("/v1/kv/empty").await.json()[0]["Value"], Value::Null);
    assert_eq!(rig.get("/v1/kv/a/b?raw").await.text, "x\u{0}y");
    assert_eq!(rig.get("/v1/kv/?keys").await.json(), json!(["a/b", "a/c/d", "empty"]));
    assert_eq!(rig.get("/v1/kv/a/?keys&separator=/").await.json(), json!(["a/b", "a/c/"]));
    assert_eq!(count(&rig.get("/v1/kv/a?recurse").await), 2);
    let index = found[0]["ModifyIndex"].as_u64().unwrap();
    let cas = |index: u64| format!("/v1/kv/a/b?cas={index}");
    assert_eq!(rig.ask("PUT", &cas(index - 1), "3").await.text, "false");
    assert_eq!(rig.ask("PUT", &cas(index), "3").await.text, "true");
    assert_eq!(rig.ask("DELETE", &cas(index), "").await.text, "false");
    assert_eq!(rig.ask("DELETE", "/v1/kv/a?recurse", "").await.text, "true");
    assert_eq!(rig.get("/v1/kv/a?recurse").await.status, 404);
    let large = "x".repeat(512 * 1024 + 1);
    assert_eq!(rig.ask("PUT", "/v1/kv/large", &large).await.status, 413);
}

#[tokio::test]
async fn a_missing_key_can_be_waited_for_and_others_do_not_wake_it() {
    let rig = rig().await;
    let first = rig.get("/v1/kv/late").await;
    let path = format!("/v1/kv/late?index={}&wait=60s", first.index());
    let blocked = rig.get(&path);
    tokio::pin!(blocked);
    tokio::select! {
        answer = &mut blocked => panic!("answered early: {}", answer.text),
        () = rig.blocked(1) => {}
    }
    for n in 0..5 {
        let path = format!("/v1/kv/late/{n}");
        tokio::select! {
            answer = &mut blocked => panic!("woken by another key: {}", answer.text),
            _ = rig.ask("PUT", &path, "x") => {}
        }
    }
    let (answer, _) = tokio::join!(&mut blocked, rig.ask("PUT", "/v1/kv/late", "y"));
    assert_eq!(answer.json()[0]["Value"], "eQ==");
}

#[tokio::test]
async fn a_lock_has_one_holder_until_its_session_ends() {
    let rig = rig().await;
    let session = async || {
        let made = rig.put("/v1/session/create", json!({"LockDelay": "0s", "TTL": "10s"})).await;
        made.json()["ID"].as_str().unwrap().to_owned()
    };
    let (one, two) = (session().await, session().await);
    let acquire = async |s: &str| {
        rig.ask("PUT", &format!("/v1/kv/leader?acquire={s}"), "x").await.text == "true"
    };
    assert!(acquire(&one).await);
    assert!(!acquire(&two).await);
    assert_eq!(rig.get("/v1/kv/leader").await.json()[0]["Session"], one.as_str());
    assert_eq!(count(&rig.get("/v1/session/list").await), 2);
    assert_eq!(count(&rig.get("/v1/session/node/n1").await), 2);
    let renewed = rig.put(&format!("/v1/session/renew/{one}"), Value::Null).await.json();
    assert_eq!((&renewed[0]["TTL"], &renewed[0]["Behavior"]), (&json!("10s"), &json!("release")));
    rig.put(&format!("/v1/session/destroy/{one}"), Value::Null).await;
    assert_eq!(rig.get("/v1/kv/leader").await.json()[0].get("Session"), None);
    assert!(acquire(&two).await);
    assert_eq!(rig.get("/v1/kv/leader").await.json()[0]["LockIndex"], 2);
    assert_eq!(rig.get(&format!("/v1/session/info/{one}")).await.json(), json!([]));
}

#[tokio::test]
async fn a_transaction_is_done_as_a_whole_or_not_at_all() {
    let rig = rig().await;
    let ops = json!([
        {"KV": {"Verb": "set", "Key": "a", "Value": "MQ=="}},
        {"KV": {"Verb": "get", "Key": "a"}},
        {"Node": {"Verb": "set", "Node": {"Node": "ext", "Address": "10.0.0.9"}}},
        {"Service": {"Verb": "set", "Node": "ext", "Service": {"ID": "db", "Service": "db"}}},
        {"Check": {"Verb": "set", "Check": {
            "Node": "ext", "CheckID": "c", "Name": "c", "ServiceID": "db", "Status": "passing"}}},
    ]);
    let done = rig.put("/v1/txn", ops).await.json();
    assert_eq!(done["Errors"], Value::Null);
    assert_eq!(done["Results"][0]["KV"]["Value"], Value::Null, "set shows no value");
    assert_eq!(done["Results"][1]["KV"]["Value"], "MQ==");
    assert_eq!(done["Results"][3]["Service"]["Service"], "db");
    let health = rig.get("/v1/health/service/db").await.json();
    assert_eq!(health[0]["Node"]["Address"], "10.0.0.9");
    assert_eq!(health[0]["Checks"][0]["Status"], "passing");
    let ops = json!([
        {"KV": {"Verb": "set", "Key": "b", "Value": "MQ=="}},
        {"KV": {"Verb": "cas", "Key": "a", "Value": "Mg==", "Index": 1}},
        {"Service": {"Verb": "delete", "Node": "ext", "Service": {"ID": "db"}}},
    ]);
    let refused = rig.ask("PUT", "/v1/txn", &ops.to_string()).await;
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["Errors"][0]["OpIndex"], 1);
    assert!(refused.text.contains("index is stale"), "{}", refused.text);
    assert_eq!(rig.get("/v1/kv/b").await.status, 404);
    assert_eq!(count(&rig.get("/v1/health/service/db").await), 1);
    let stale = done["Results"][3]["Service"]["ModifyIndex"].as_u64().unwrap();
    let delete = |index: u64| {
        let of = json!({"ID": "db", "ModifyIndex": index});
        json!([{"Service": {"Verb": "delete-cas", "Node": "ext", "Service": of}}]).to_string()
    };
    assert_eq!(rig.ask("PUT", "/v1/txn", &delete(stale + 1)).await.status, 409);
    assert_eq!(rig.ask("PUT", "/v1/txn", &delete(stale)).await.status, 200);
    assert_eq!(count(&rig.get("/v1/health/service/db").await), 0);
}

#[tokio::test]
async fn a_prepared_query_is_found_by_name_and_by_template() {
    let rig = rig().await;
    for (id, tag) in [("w1", "v1"), ("w2", "v2")] {
        let check = json!({"TTL": "60s", "Status": "passing"});
        let body = json!({"Name": "web", "ID": id, "Tags": [tag], "Check": check});
        rig.put("/v1/agent/service/register", body).await;
    }
    let query = json!({"Name": "q", "Service": {"Service": "web", "Tags": ["!v2"]}});
    let id = rig.ask("POST", "/v1/query", &query.to_string()).await.json()["ID"].clone();
    let found = rig.get("/v1/query/q/execute").await.json();
    assert_eq!(found["Nodes"][0]["Service"]["ID"], "w1");
    assert_eq!((found["Nodes"].as_array().unwrap().len(), &found["Failovers"]), (1, &json!(0)));
    assert_eq!(rig.ask("POST", "/v1/query", &query.to_string()).await.status, 500, "a name twice");
    let template = json!({
        "Name": "geo-", "Template": {"Type": "name_prefix_match", "Regexp": "^geo-(.*)-(v.)$"},
        "Service": {"Service": "${match(1)}", "Tags": ["${match(2)}"]},
    });
    rig.ask("POST", "/v1/query", &template.to_string()).await;
    let found = rig.get("/v1/query/geo-web-v2/execute?limit=1").await.json();
    assert_eq!(found["Nodes"][0]["Service"]["ID"], "w2", "{found}");
    let explained = rig.get("/v1/query/geo-web-v2/explain").await.json();
    assert_eq!(explained["Query"]["Service"]["Service"], "web");
    let id = id.as_str().unwrap();
    assert_eq!(count(&rig.get(&format!("/v1/query/{id}")).await), 1);
    rig.ask("DELETE", &format!("/v1/query/{id}"), "").await;
    assert_eq!(rig.get("/v1/query/q/execute").await.status, 404);
}

#[tokio::test]
async fn a_prepared_query_that_could_answer_nothing_is_refused_when_it_is_written() {
    let rig = rig().await;
    let query = |more: Value| {
        let mut query = json!({"Name": "q-", "Service": {"Service": "web"},
                               "Template": {"Type": "name_prefix_match"}});
        query.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        query.to_string()
    };
    let first = rig.ask("POST", "/v1/query", &query(json!({"Name": "first"}))).await;
    let id = first.json()["ID"].as_str().unwrap().to_owned();
    let node_meta = json!({"Service": {"Service": "web", "NodeMeta": {"a b": "x"}}});
    for (more, status, why) in [
        (json!({"Service": {"Service": "${name.full"}}), 400, "in Service.Service: a \"}\""),
        (json!({"Service": {"Service": "a", "Tags": ["${bogus}"]}}), 400, "in Service.Tags[0]"),
        (json!({"ID": "x"}), 500, "ID must be empty when creating"),
        (json!({"Name": id}), 500, "aliases an existing query ID"),
        (json!({"Token": "<hidden>"}), 400, "Bad Token '<hidden>'"),
        (node_meta, 400, "Couldn't load metadata pair ('a b', 'x')"),
    ] {
        let said = rig.ask("POST", "/v1/query", &query(more.clone())).await;
        assert!(said.status == status && said.text.contains(why), "{more}: {}", said.text);
    }
    assert_eq!(count(&rig.get("/v1/query").await), 1);
    // What is no template may be called so, and one that is there is written back as it was read.
    let plain = json!({"Name": "p", "Template": {}, "Service": {"Service": "${odd"}});
    assert_eq!(rig.ask("POST", "/v1/query", &query(plain)).await.status, 200);
    let same = rig.get(&format!("/v1/query/{id}")).await.json()[0].clone();
    let mut same = same.as_object().unwrap().clone();
    same.retain(|name, _| !name.ends_with("Index"));
    let path = format!("/v1/query/{id}");
    assert_eq!(rig.ask("PUT", &path, &Value::Object(same).to_string()).await.status, 200);
}

#[tokio::test]
async fn events_are_listed_by_name_and_waited_for() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"Name": "web"})).await;
    let first = rig.get("/v1/event/list?name=deploy").await;
    assert_eq!(first.json(), json!([]));
    let path = format!("/v1/event/list?name=deploy&index={}&wait=60s", first.index());
    let fire = async {
        rig.blocked(1).await;
        rig.ask("PUT", "/v1/event/fire/other", "x").await;
        rig.ask("PUT", "/v1/event/fire/deploy?service=web", "now").await
    };
    let (answer, fired) = tokio::join!(rig.get(&path), fire);
    assert_eq!(answer.json()[0]["Payload"], "bm93");
    assert_eq!(answer.json()[0]["ID"], fired.json()["ID"]);
    let all = rig.get("/v1/event/list").await;
    assert_eq!(count(&all), 2);
    // Clients know the last one that they had by the index, which is made of its id.
    let id: uuid::Uuid = all.json()[1]["ID"].as_str().unwrap().parse().unwrap();
    let (upper, lower) = id.as_u64_pair();
    assert_eq!(all.index(), upper ^ lower);
    // An index of no event that is last is answered at once.
    assert_eq!(count(&rig.get("/v1/event/list?index=7").await), 2);
    let large = "x".repeat(513);
    assert_eq!(rig.ask("PUT", "/v1/event/fire/x", &large).await.status, 413);
}

#[tokio::test]
async fn the_most_exact_intention_decides_and_entries_show_it() {
    let rig = rig().await;
    let exact =
        |s: &str, d: &str| format!("/v1/connect/intentions/exact?source={s}&destination={d}");
    let check = async |s: &str, d: &str| {
        let path = format!("/v1/connect/intentions/check?source={s}&destination={d}");
        rig.get(&path).await.json()["Allowed"].clone()
    };
    assert_eq!(check("web", "db").await, true, "without access lists what nobody wrote is allowed");
    rig.put(&exact("*", "db"), json!({"Action": "deny"})).await;
    rig.put(&exact("web", "db"), json!({"Action": "allow"})).await;
    assert_eq!((check("web", "db").await, check("x", "db").await), (json!(true), json!(false)));
    let entry = rig.get("/v1/config/service-intentions/db").await.json();
    assert_eq!(entry["Sources"].as_array().unwrap().len(), 2);
    let matched = rig.get("/v1/connect/intentions/match?by=destination&name=db").await.json();
    assert_eq!(matched["db"][0]["SourceName"], "web", "the most exact one first");
    rig.ask("DELETE", &exact("web", "db"), "").await;
    assert_eq!(check("web", "db").await, false);
}

#[tokio::test]
async fn a_snapshot_puts_back_what_was_there() {
    let rig = rig().await;
    rig.ask("PUT", "/v1/kv/a", "before").await;
    rig.put("/v1/agent/service/register", json!({"name": "web"})).await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream
        .write_all(b"GET /v1/snapshot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let body = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    rig.ask("PUT", "/v1/kv/a", "after").await;
    rig.ask("PUT", "/v1/kv/b", "new").await;
    rig.put("/v1/agent/service/deregister/web", Value::Null).await;
    let mut request = format!(
        "PUT /v1/snapshot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        bytes.len() - body
    )
    .into_bytes();
    request.extend_from_slice(&bytes[body..]);
    let restored = rig.raw(&request).await;
    assert_eq!(restored.status, 200, "{}", restored.text);
    assert_eq!(rig.get("/v1/kv/a?raw").await.text, "before");
    assert_eq!(rig.get("/v1/kv/b").await.status, 404);
    assert_eq!(count(&rig.get("/v1/catalog/service/web").await), 1);
}

#[tokio::test]
async fn without_a_right_nothing_is_read_or_written() {
    let rig = guarded(false).await;
    for (method, path) in [
        ("GET", "/v1/kv/a"),
        ("PUT", "/v1/kv/a"),
        ("DELETE", "/v1/kv/a?recurse"),
        ("PUT", "/v1/session/create"),
        ("PUT", "/v1/event/fire/x"),
        ("GET", "/v1/acl/tokens"),
        ("GET", "/v1/snapshot"),
        ("GET", "/v1/agent/self"),
        ("PUT", "/v1/agent/leave"),
        ("GET", "/v1/operator/raft/configuration"),
    ] {
        let answer = rig.ask(method, path, "").await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text);
        assert!(answer.text.contains("Permission denied"), "{}", answer.text);
        let unknown = rig.as_token("nobody", method, path, "").await;
        assert_eq!((unknown.status, unknown.text.as_str()), (403, "ACL not found"));
    }
    let register = r#"{"Name": "web"}"#;
    assert_eq!(rig.ask("PUT", "/v1/agent/service/register", register).await.status, 403);
    let done = rig.as_token(ROOT, "PUT", "/v1/agent/service/register", register).await;
    assert_eq!(done.status, 200, "{}", done.text);
    assert_eq!(rig.get("/v1/catalog/services").await.json(), json!({}));
    assert_eq!(rig.get("/v1/health/service/web").await.json(), json!([]));
    assert_eq!(rig.get("/v1/health/state/any").await.json(), json!([]));
}

#[tokio::test]
async fn reg_61_every_operation_of_a_transaction_is_admitted_by_itself() {
    let rig = guarded(false).await;
    let rules = r#"key_prefix "app/" { policy = "write" } key "app/no" { policy = "deny" }
                   service "web" { policy = "write" } node_prefix "" { policy = "read" }"#;
    let token = rig.token(rules).await;
    let node = r#"{"Node": "n9", "Address": "10.0.0.1"}"#;
    assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", node).await.status, 200);
    let service = |name: &str, proxy: &str| {
        let of = json!({"ID": "i", "Service": name, "Kind": "connect-proxy", "Port": 1,
                        "Proxy": {"DestinationServiceName": proxy}});
        json!({"Service": {"Verb": "set", "Node": "n9", "Service": of}})
    };
    let set = |key: &str| json!({"KV": {"Verb": "set", "Key": key, "Value": "MQ=="}});
    let tree = json!({"KV": {"Verb": "delete-tree", "Key": "app/"}});
    for wrong in [set("other"), set("app/no"), service("web", "db"), service("db", "web"), tree] {
        let ops = json!([set("app/a"), wrong]).to_string();
        let answer = rig.as_token(&token, "PUT", "/v1/txn", &ops).await;
        assert_eq!(answer.status, 409, "{ops}: {}", answer.text);
        assert_eq!(answer.json()["Errors"][0]["OpIndex"], 1, "{}", answer.text);
        assert!(answer.text.contains("Permission denied"), "{}", answer.text);
    }
    assert_eq!(rig.as_token(ROOT, "GET", "/v1/kv/app/a", "").await.status, 404);
    let fine = json!([set("app/a"), service("web", "web")]).to_string();
    let answer = rig.as_token(&token, "PUT", "/v1/txn", &fine).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    // The id is web's now: who may write db alone may not take it over.
    let other = rig.token(r#"service_prefix "d" { policy = "write" }"#).await;
    let take = json!([service("db", "db")]).to_string();
    assert_eq!(rig.as_token(&other, "PUT", "/v1/txn", &take).await.status, 409);
}

#[tokio::test]
async fn reg_62_a_prefix_is_read_only_as_far_as_its_rows_reach() {
    let rig = guarded(false).await;
    for key in ["app/a", "app/secret/x", "apply"] {
        rig.as_token(ROOT, "PUT", &format!("/v1/kv/{key}"), "x").await;
    }
    let rules =
        r#"key_prefix "app/" { policy = "read" } key_prefix "app/secret/" { policy = "deny" }"#;
    let token = rig.token(rules).await;
    let keys = rig.as_token(&token, "GET", "/v1/kv/?keys", "").await;
    assert_eq!(keys.json(), json!(["app/a"]));
    let hidden = rig.as_token(&token, "GET", "/v1/kv/app/%73ecret/x", "").await;
    assert_eq!(hidden.status, 403, "judged by the name that is looked up");
}

#[tokio::test]
async fn a_policy_that_changes_changes_what_its_tokens_may_at_once() {
    let rig = guarded(false).await;
    let token = rig.token(r#"key_prefix "" { policy = "write" }"#).await;
    assert_eq!(rig.as_token(&token, "PUT", "/v1/kv/a", "x").await.status, 200);
    let policies = rig.as_token(ROOT, "GET", "/v1/acl/policies", "").await.json();
    let made = |p: &&Value| !p["Name"].as_str().unwrap().contains("global-");
    let own = policies.as_array().unwrap().iter().find(made);
    let path = format!("/v1/acl/policy/{}", own.unwrap()["ID"].as_str().unwrap());
    let body = r#"{"Rules": "key_prefix \"\" { policy = \"read\" }"}"#;
    let changed = rig.as_token(ROOT, "PUT", &path, body).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_eq!(rig.as_token(&token, "PUT", "/v1/kv/a", "y").await.status, 403);
    assert_eq!(rig.as_token(&token, "GET", "/v1/kv/a", "").await.status, 200);
    rig.as_token(ROOT, "DELETE", &path, "").await;
    assert_eq!(rig.as_token(&token, "GET", "/v1/kv/a", "").await.status, 403);
}

#[tokio::test]
async fn a_policy_to_read_everything_is_there_from_the_start_and_stays() {
    const NAME: &str = "builtin/global-read-only";
    let rig = guarded(false).await;
    let root = async |method: &str, path: &str, body: Value| {
        rig.as_token(ROOT, method, &format!("/v1{path}"), &body.to_string()).await
    };
    let policies = root("GET", "/acl/policies", Value::Null).await.json();
    assert!(policies.as_array().unwrap().iter().any(|p| p["Name"] == NAME), "{policies}");
    let policy = root("GET", &format!("/acl/policy/name/{NAME}"), Value::Null).await.json();
    let by_id = format!("/acl/policy/{}", policy["ID"].as_str().unwrap());
    assert_eq!(root("GET", &by_id, Value::Null).await.json(), policy);
    let body = json!({"Policies": [{"Name": NAME}]});
    let token = root("PUT", "/acl/token", body).await.json();
    let secret = token["SecretID"].as_str().unwrap();
    root("PUT", "/kv/a", json!(1)).await;
    for path in ["/kv/a", "/operator/raft/configuration", "/agent/self", "/session/list"] {
        let said = rig.as_token(secret, "GET", &format!("/v1{path}"), "").await;
        assert_eq!(said.status, 200, "{path}: {}", said.text);
    }
    assert_eq!(rig.as_token(secret, "PUT", "/v1/kv/a", "2").await.status, 403);
    let tokens = rig.as_token(secret, "GET", "/v1/acl/tokens", "").await;
    assert!(tokens.status == 200 && !tokens.text.contains(ROOT), "{}", tokens.text);
    let path = format!("/acl/token/{}?expanded", token["AccessorID"].as_str().unwrap());
    let shown = root("GET", &path, Value::Null).await.json();
    assert_eq!(shown["ExpandedPolicies"][0]["Name"], NAME, "{shown}");
    for (method, body) in [("DELETE", Value::Null), ("PUT", json!({"Rules": "acl = \"write\""}))] {
        let said = root(method, &by_id, body).await;
        assert!(said.status == 500 && said.text.contains(NAME), "{method}: {}", said.text);
    }
}

#[tokio::test]
async fn bootstrap_makes_one_management_token() {
    let acl = AclConfig { default_allow: true, initial_management: None };
    let rig = rig_with(Access { acl: Some(acl), ..Access::default() }).await;
    assert_eq!(rig.get("/v1/acl/tokens").await.status, 403);
    let first = rig.put("/v1/acl/bootstrap", Value::Null).await.json();
    let secret = first["SecretID"].as_str().unwrap();
    let tokens = rig.as_token(secret, "GET", "/v1/acl/tokens", "").await.json();
    assert_eq!(tokens.as_array().unwrap().len(), 2, "it and the anonymous one");
    assert_eq!(rig.ask("PUT", "/v1/acl/bootstrap", "").await.status, 403);
}
