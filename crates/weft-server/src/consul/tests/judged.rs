// SPDX-License-Identifier: Apache-2.0
//! What Consul refuses: names that are taken, tokens that delete themselves, entries that do not go
//! together; and what its filters and rights let through.

use super::records::{ROOT, guarded};
use super::*;

#[tokio::test]
async fn a_prepared_querys_name_is_one_however_it_is_written() {
    let rig = rig().await;
    let query = |name: &str, template: &str| {
        json!({"Name": name, "Service": {"Service": "web"}, "Template": {"Type": template}})
            .to_string()
    };
    let made = rig.ask("POST", "/v1/query", &query("dup", "")).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let other = rig.ask("POST", "/v1/query", &query("DUP", "")).await;
    assert_eq!(other.status, 500, "{}", other.text);
    assert!(other.text.contains("aliases an existing query name"), "{}", other.text);
    // It may be spelled anew itself.
    let path = format!("/v1/query/{}", made.json()["ID"].as_str().unwrap());
    assert_eq!(rig.ask("PUT", &path, &query("Dup", "")).await.status, 200);
    for status in [200, 500] {
        let all = rig.ask("POST", "/v1/query", &query("", "name_prefix_match")).await;
        assert_eq!(all.status, status, "{}", all.text);
    }
}

#[tokio::test]
async fn a_query_answers_what_speaks_connect_where_that_is_asked() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"Name": "web", "Port": 80})).await;
    let native = json!({"Name": "web", "ID": "n", "Port": 81, "Connect": {"Native": true}});
    rig.put("/v1/agent/service/register", native).await;
    let query = json!({"Name": "q", "Service": {"Service": "web"}}).to_string();
    assert_eq!(rig.ask("POST", "/v1/query", &query).await.status, 200);
    for (asked, found) in [("", 2), ("?connect=true", 1), ("?connect=0", 2), ("?connect=", 2)] {
        let ran = rig.get(&format!("/v1/query/q/execute{asked}")).await.json();
        assert_eq!(ran["Nodes"].as_array().unwrap().len(), found, "{asked}: {ran}");
    }
    let wrong = rig.get("/v1/query/q/execute?connect=yes").await;
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    assert!(wrong.text.contains("Error parsing 'connect' value"), "{}", wrong.text);
}

#[tokio::test]
async fn a_token_does_not_delete_itself() {
    let rig = guarded(false).await;
    let of = json!({"Policies": [{"Name": "global-management"}]}).to_string();
    let made = rig.as_token(ROOT, "PUT", "/v1/acl/token", &of).await.json();
    let path = format!("/v1/acl/token/{}", made["AccessorID"].as_str().unwrap());
    let secret = made["SecretID"].as_str().unwrap();
    let own = rig.as_token(secret, "DELETE", &path, "").await;
    assert_eq!(own.status, 500, "{}", own.text);
    assert!(own.text.contains("Deletion of the request's authorization token"), "{}", own.text);
    assert_eq!(rig.as_token(secret, "GET", "/v1/acl/tokens", "").await.status, 200);
    assert_eq!(rig.as_token(ROOT, "DELETE", &path, "").await.status, 200);
}

#[tokio::test]
async fn what_is_made_gets_its_id_here() {
    let rig = guarded(false).await;
    for (path, more) in [
        ("/v1/acl/policy", json!({"Name": "p"})),
        ("/v1/acl/role", json!({"Name": "r"})),
        ("/v1/acl/binding-rule", json!({"AuthMethod": "m", "BindType": "role", "BindName": "r"})),
    ] {
        let mut body = more;
        body["ID"] = json!("0190a6c8-0000-7000-8000-00000000000f");
        let said = rig.as_token(ROOT, "PUT", path, &body.to_string()).await;
        assert_eq!(said.status, 400, "{path}: {}", said.text);
        assert!(said.text.contains("Cannot specify the ID when creating a new"), "{}", said.text);
    }
}

#[tokio::test]
async fn a_registration_that_is_refused_leaves_nothing() {
    let rig = rig().await;
    let checks = json!([{"CheckID": "n", "Name": "n"}, {"CheckID": "q", "ServiceID": "nope"}]);
    let body = json!({"Node": "x", "Address": "10.1.1.1", "Service": {"Service": "s"},
                      "Checks": checks});
    let said = rig.ask("PUT", "/v1/catalog/register", &body.to_string()).await;
    assert_eq!(said.status, 500, "{}", said.text);
    assert!(said.text.contains("ServiceID \"nope\" does not exist"), "{}", said.text);
    assert_eq!(count(&rig.get("/v1/catalog/service/s").await), 0);
    assert_eq!(count(&rig.get("/v1/catalog/nodes").await), 1);
}

#[tokio::test]
async fn links_are_shown_as_what_they_lead_to_is_now() {
    let rig = guarded(false).await;
    let ask = async |method: &str, path: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let said = rig.as_token(ROOT, method, path, &body).await;
        assert_eq!(said.status, 200, "{method} {path}: {}", said.text);
        said.json()
    };
    let mut ids = Vec::new();
    for name in ["gone", "old"] {
        let made = ask("PUT", "/v1/acl/policy", &json!({"Name": name})).await;
        ids.push(made["ID"].as_str().unwrap().to_owned());
    }
    let policies = json!([{"Name": "gone"}, {"Name": "old"}]);
    let role = ask("PUT", "/v1/acl/role", &json!({"Name": "r", "Policies": policies})).await;
    let of = json!({"Policies": policies, "Roles": [{"Name": "r"}]});
    let token = ask("PUT", "/v1/acl/token", &of).await;
    ask("DELETE", &format!("/v1/acl/policy/{}", ids[0]), &Value::Null).await;
    ask("PUT", &format!("/v1/acl/policy/{}", ids[1]), &json!({"Name": "new"})).await;
    let left = json!([{"ID": ids[1], "Name": "new"}]);
    let token = format!("/v1/acl/token/{}", token["AccessorID"].as_str().unwrap());
    let role = format!("/v1/acl/role/{}", role["ID"].as_str().unwrap());
    for path in [&token, &role, &format!("{token}?expanded=true")] {
        let shown = ask("GET", path, &Value::Null).await;
        assert_eq!(shown["Policies"], left, "{path}: {shown}");
    }
    for path in ["/v1/acl/tokens", "/v1/acl/roles"] {
        let all = ask("GET", path, &Value::Null).await;
        let has = |one: &Value| one["Policies"] == left;
        assert!(all.as_array().unwrap().iter().any(has), "{path}: {all}");
    }
    // What was read may be written again.
    for path in [&token, &role] {
        let mut read = ask("GET", path, &Value::Null).await;
        read["Description"] = json!("again");
        let written = ask("PUT", path, &read).await;
        assert_eq!(written["Policies"], left, "{path}: {written}");
    }
    ask("DELETE", &role, &Value::Null).await;
    assert_eq!(ask("GET", &token, &Value::Null).await.get("Roles"), None);
}

#[tokio::test]
async fn what_speaks_connect_has_a_port() {
    let rig = rig().await;
    let proxy = json!({"Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "x"}});
    for (more, what) in [(proxy, "a connect-proxy"), (json!({"Connect": {"Native": true}}), "a C")]
    {
        let mut body = more;
        body["Name"] = json!("w");
        let said = rig.ask("PUT", "/v1/agent/service/register", &body.to_string()).await;
        assert_eq!(said.status, 400, "{}", said.text);
        let words = format!("Port or SocketPath must be set for {what}");
        assert!(said.text.contains(&words), "{}", said.text);
        body["Port"] = json!(1);
        rig.put("/v1/agent/service/register", body).await;
    }
}

#[tokio::test]
async fn what_looks_at_requests_is_for_services_that_have_them() {
    let rig = rig().await;
    let protocol =
        |name: &str| json!({"Kind": "service-defaults", "Name": "b", "Protocol": name}).to_string();
    let looks = json!({"Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/x"}}]});
    let exact = "/v1/connect/intentions/exact?source=a&destination=b";
    let entry = json!({"Kind": "service-intentions", "Name": "b",
        "Sources": [{"Name": "a", "Permissions": looks["Permissions"]}]});
    let refused = async |method: &str, path: &str, body: &str| {
        let said = rig.ask(method, path, body).await;
        assert_eq!(said.status, 500, "{path} {body}: {}", said.text);
        let words = "has protocol \"tcp\", which is incompatible with L7 intentions permissions";
        assert!(said.text.contains(words), "{}", said.text);
    };
    refused("PUT", exact, &looks.to_string()).await;
    refused("PUT", "/v1/config", &entry.to_string()).await;
    assert_eq!(rig.ask("PUT", "/v1/config", &protocol("grpc")).await.status, 200);
    rig.put(exact, looks).await;
    rig.put("/v1/config", entry).await;
    refused("PUT", "/v1/config", &protocol("tcp")).await;
    refused("DELETE", "/v1/config/service-defaults/b", "").await;
    // The defaults of all say it as well.
    let all = json!({"Kind": "proxy-defaults", "Config": {"protocol": "http"}});
    rig.put("/v1/config", all).await;
    assert_eq!(rig.ask("DELETE", "/v1/config/service-defaults/b", "").await.status, 200);
    refused("DELETE", "/v1/config/proxy-defaults/global", "").await;
    rig.put(exact, json!({"Action": "deny"})).await;
    assert_eq!(rig.ask("DELETE", "/v1/config/proxy-defaults/global", "").await.status, 200);
    rig.put("/v1/connect/intentions/exact?source=a&destination=*", json!({"Action": "deny"})).await;
}

#[tokio::test]
async fn certificates_and_routes_of_entries_are_ones() {
    let rig = rig().await;
    let services = json!([{"Name": "a"}, {"Name": "b"}]);
    for (entry, why) in [
        (
            json!({"Kind": "inline-certificate", "Certificate": "x", "PrivateKey": "y"}),
            "failed to parse",
        ),
        (json!({"Kind": "tcp-route", "Services": services}), "currently only supports one service"),
    ] {
        let mut entry = entry;
        entry["Name"] = json!("e");
        let said = rig.ask("PUT", "/v1/config", &entry.to_string()).await;
        assert_eq!(said.status, 500, "{}", said.text);
        assert!(said.text.contains(why), "{}", said.text);
    }
    // As `openssl` makes them without extensions, and as Consul takes them.
    let old = include_str!("../../../../weft-identity/testdata/version-1.pem");
    let entry = json!({"Kind": "inline-certificate", "Name": "old", "Certificate": old,
                       "PrivateKey": old});
    rig.put("/v1/config", entry).await;
}

#[tokio::test]
async fn a_list_is_filtered_by_what_its_items_may_have() {
    let rig = rig().await;
    let defaults = |name: &str, more: Value| {
        let mut entry = json!({"Kind": "service-defaults", "Name": name, "Protocol": "http"});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    };
    let permissions = json!([{"Action": "allow", "HTTP": {"PathExact": "/x"}}]);
    for path in ["connect/intentions?filter=Bogus==1", "config/service-defaults?filter=Bogus==1"] {
        let said = rig.get(&format!("/v1/{path}")).await;
        assert_eq!(said.status, 400, "of an empty list, too: {}", said.text);
    }
    rig.put("/v1/config", defaults("b", json!({}))).await;
    rig.put("/v1/config", defaults("mt", json!({"MutualTLSMode": "permissive"}))).await;
    for (source, body) in [
        ("x", json!({"Action": "deny"})),
        ("y", json!({"Action": "allow", "Meta": {"k": "v"}})),
        ("z", json!({"Permissions": permissions})),
    ] {
        let path = format!("/v1/connect/intentions/exact?source={source}&destination=b");
        rig.put(&path, body).await;
    }
    for (path, found) in [
        ("connect/intentions?filter=Action==deny", 1),
        ("connect/intentions?filter=Action!=deny", 2),
        ("connect/intentions?filter=Meta.k==v", 1),
        ("connect/intentions?filter=Precedence==9", 3),
        ("config/service-defaults?filter=MutualTLSMode==permissive", 1),
        ("config/service-defaults?filter=MutualTLSMode!=permissive", 1),
        ("config/service-defaults?filter=TransparentProxy.DialedDirectly==false", 2),
        ("agent/members?filter=Tags.dc==dc1", 1),
        ("agent/members?filter=Name==other", 0),
    ] {
        assert_eq!(count(&rig.get(&format!("/v1/{path}")).await), found, "{path}");
    }
    let other = rig.get("/v1/config/service-resolver?filter=Name==b").await;
    assert_eq!(other.status, 500, "{}", other.text);
    assert!(other.text.contains("filtering not supported"), "{}", other.text);
}

#[tokio::test]
async fn the_right_to_a_service_is_enough_at_the_agent_that_it_is_registered_at() {
    let rig = guarded(false).await;
    let token = rig.token(r#"service "web" { policy = "write" }"#).await;
    let web = json!({"Name": "web", "Check": {"TTL": "60s", "Status": "passing"}}).to_string();
    let put = rig.as_token(&token, "PUT", "/v1/agent/service/register", &web).await;
    assert_eq!(put.status, 200, "{}", put.text);
    let db = json!({"Name": "db", "Check": {"TTL": "60s"}}).to_string();
    rig.as_token(ROOT, "PUT", "/v1/agent/service/register", &db).await;
    let node = json!({"Name": "disk", "TTL": "60s", "Status": "passing"}).to_string();
    rig.as_token(ROOT, "PUT", "/v1/agent/check/register", &node).await;
    let get = async |path: &str| rig.as_token(&token, "GET", path, "").await;
    let keys = |answer: &Answer| -> Vec<String> {
        answer.json().as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&get("/v1/agent/services").await), ["web"]);
    assert_eq!(keys(&get("/v1/agent/checks").await), ["service:web"]);
    for (path, status) in [
        ("name/web", 200),
        ("id/web", 200),
        ("id/web?format=text", 200),
        ("name/db", 403),
        ("name/nope", 403),
        ("id/db", 403),
        ("id/nope", 404),
    ] {
        let said = get(&format!("/v1/agent/health/service/{path}")).await;
        assert_eq!(said.status, status, "{path}: {}", said.text);
    }
}

#[tokio::test]
async fn a_check_that_names_no_service_is_the_nodes() {
    let rig = rig().await;
    let body = |service: Value, check: Value| {
        let (node, checks) = ("ext", [check]);
        json!({"Node": node, "Address": "10.2.2.2", "Service": service, "Checks": checks})
    };
    let on_a = json!({"CheckID": "a", "Name": "a", "Status": "passing", "ServiceID": "a1"});
    rig.put("/v1/catalog/register", body(json!({"ID": "a1", "Service": "a"}), on_a)).await;
    let with = body(
        json!({"ID": "b1", "Service": "b"}),
        json!({"CheckID": "alive", "Name": "alive", "Status": "critical"}),
    );
    rig.put("/v1/catalog/register", with).await;
    let of_node = rig.get("/v1/health/node/ext").await.json();
    let alive = of_node.as_array().unwrap().iter().find(|c| c["CheckID"] == "alive").unwrap();
    assert_eq!((&alive["ServiceID"], &alive["ServiceName"]), (&json!(""), &json!("")), "{alive}");
    // It speaks for all that is there.
    for name in ["a", "b"] {
        assert_eq!(count(&rig.get(&format!("/v1/health/service/{name}")).await), 1);
        assert_eq!(count(&rig.get(&format!("/v1/health/service/{name}?passing")).await), 0);
        let own = usize::from(name == "a");
        assert_eq!(count(&rig.get(&format!("/v1/health/checks/{name}")).await), own, "{name}");
    }
    // And stays when the service that it came with goes.
    let gone = json!({"Node": "ext", "ServiceID": "b1"});
    rig.put("/v1/catalog/deregister", gone).await;
    assert_eq!(count(&rig.get("/v1/health/service/a?passing").await), 0);
    assert_eq!(count(&rig.get("/v1/health/node/ext").await), 2);
}

#[tokio::test]
async fn an_instance_is_never_seen_without_what_its_request_says_of_its_node() {
    let rig = rig().await;
    let body = |node: &str, status: &str| {
        let check = json!({"CheckID": "alive", "Name": "alive", "Status": status});
        json!({"Node": node, "Address": "10.2.2.2", "Service": {"Service": "s"}, "Checks": [check]})
    };
    let there = json!({"Node": "there", "Address": "10.2.2.2"});
    rig.put("/v1/catalog/register", there).await;
    let path = "/v1/health/service/s?passing";
    let index = rig.get(path).await.index();
    let query = format!("{path}&index={index}&wait=300s");
    let (woken, ()) = tokio::join!(rig.get(&query), async {
        rig.blocked(1).await;
        for node in ["new", "there"] {
            rig.put("/v1/catalog/register", body(node, "critical")).await;
            let all = rig.get("/v1/health/service/s").await;
            let of_all = all.json();
            let one = of_all.as_array().unwrap().iter().find(|one| one["Node"]["Node"] == node);
            let one = one.unwrap();
            let at = &one["Service"]["ModifyIndex"];
            let check = one["Checks"].as_array().unwrap().iter().find(|c| c["CheckID"] == "alive");
            assert_eq!(&check.unwrap()["ModifyIndex"], at, "{node}: one write: {one}");
            assert_eq!(json!(all.index()), *at, "{node}");
            rig.blocked(1).await;
        }
        rig.put("/v1/catalog/register", body("well", "passing")).await;
    });
    let seen = woken.json();
    assert_eq!((count(&woken), &seen[0]["Node"]["Node"]), (1, &json!("well")), "{seen}");
    // Without a service it is one write as well.
    let two = json!([{"CheckID": "a", "Name": "a"}, {"CheckID": "b", "Name": "b"}]);
    let of_node = json!({"Node": "bare", "Address": "10.2.2.3", "Checks": two});
    rig.put("/v1/catalog/register", of_node).await;
    let checks = rig.get("/v1/health/node/bare").await.json();
    assert_eq!(checks[0]["CreateIndex"], checks[1]["CreateIndex"], "{checks}");
}

#[tokio::test]
async fn a_nodes_check_takes_the_right_to_the_node() {
    let rig = guarded(false).await;
    let node = json!({"Node": "ext", "Address": "10.2.2.2"}).to_string();
    let made = rig.as_token(ROOT, "PUT", "/v1/catalog/register", &node).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let token = rig.token(r#"service "web" { policy = "write" }"#).await;
    for (of, status) in [("web", 200), ("", 403)] {
        let check = json!({"CheckID": format!("c{of}"), "Name": "c", "ServiceID": of,
                           "Status": "passing"});
        let body = json!({"Node": "ext", "Address": "10.2.2.2", "SkipNodeUpdate": true,
                          "Service": {"Service": "web"}, "Check": check});
        let said = rig.as_token(&token, "PUT", "/v1/catalog/register", &body.to_string()).await;
        assert_eq!(said.status, status, "{of:?}: {}", said.text);
    }
}

#[tokio::test]
async fn an_intention_is_changed_by_its_id_as_the_body_says() {
    let rig = rig().await;
    let pair = |source: &str, destination: &str, action: &str| {
        json!({"SourceName": source, "DestinationName": destination, "Action": action}).to_string()
    };
    let make = async |source: &str| {
        let body = pair(source, "db", "allow");
        let made = rig.ask("POST", "/v1/connect/intentions", &body).await.json();
        format!("/v1/connect/intentions/{}", made["ID"].as_str().unwrap())
    };
    let (path, other) = (make("api").await, make("other").await);
    let put = async |body: &str| rig.ask("PUT", &path, body).await;
    let shown = async |path: &str| {
        let one = rig.get(path).await.json();
        ["SourceName", "DestinationName", "Action"]
            .map(|name| one[name].as_str().unwrap().to_owned())
            .join(" ")
    };
    let renamed = put(&pair("api-2", "db", "deny")).await;
    assert_eq!(renamed.status, 200, "{}", renamed.text);
    assert_eq!(shown(&path).await, "api-2 db deny");
    assert_eq!(count(&rig.get("/v1/connect/intentions").await), 2, "the old pair is gone");
    // What is left out stays.
    assert_eq!(put(&json!({"Action": "allow"}).to_string()).await.status, 200);
    assert_eq!(shown(&path).await, "api-2 db allow");
    for (body, why) in [
        (pair("api-2", "db2", "deny"), "Cannot modify Destination partition/namespace/name"),
        (pair("other", "db", "deny"), "duplicate intention found"),
    ] {
        let said = put(&body).await;
        assert!(said.status == 500 && said.text.contains(why), "{body}: {}", said.text);
    }
    assert_eq!(shown(&path).await, "api-2 db allow");
    assert_eq!(shown(&other).await, "other db allow");
    assert_eq!(count(&rig.get("/v1/connect/intentions").await), 2);
    let nobody = "/v1/connect/intentions/0190a6c8-0000-7000-8000-00000000000f";
    let said = rig.ask("PUT", nobody, &pair("x", "db", "deny")).await;
    let why = "Cannot modify non-existent intention";
    assert!(said.status == 500 && said.text.contains(why), "{}", said.text);
}
