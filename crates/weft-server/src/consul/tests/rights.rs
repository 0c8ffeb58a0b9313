// SPDX-License-Identifier: Apache-2.0
//! Where rights come from: datacentres that policies and identities are for, tokens in bodies, and
//! tokens of prepared queries.

use super::records::{ROOT, guarded};
use super::*;

impl Rig {
    /// A token of this body; its secret.
    async fn token_of(&self, body: Value) -> String {
        let made = self.as_token(ROOT, "PUT", "/v1/acl/token", &body.to_string()).await;
        assert_eq!(made.status, 200, "{body}: {}", made.text);
        made.json()["SecretID"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn every_answer_says_what_is_done_where_no_rule_speaks() {
    let of = async |rig: Rig| {
        let answer = rig.get("/v1/catalog/nodes").await;
        answer.headers["x-consul-default-acl-policy"].clone()
    };
    assert_eq!(of(guarded(false).await).await, "deny");
    assert_eq!(of(guarded(true).await).await, "allow");
    assert_eq!(of(rig().await).await, "allow", "as Consul says without access lists");
}

#[tokio::test]
async fn what_is_for_another_datacentre_grants_nothing_here() {
    let rig = guarded(false).await;
    let web = json!({"name": "web"}).to_string();
    let ext = json!({"Node": "ext", "Address": "10.0.0.1"}).to_string();
    let (service, node) = (("/v1/agent/service/register", &web), ("/v1/catalog/register", &ext));
    for (at, datacenters, status) in
        [(0, json!(["dc2"]), 403), (1, json!(["dc2", "dc1"]), 200), (2, json!([]), 200)]
    {
        let rules = r#"key_prefix "" { policy = "write" }"#;
        let policy = json!({"Name": format!("p{at}"), "Rules": rules, "Datacenters": datacenters});
        let made = rig.as_token(ROOT, "PUT", "/v1/acl/policy", &policy.to_string()).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let named = json!([{"Name": format!("p{at}")}]);
        let role = json!({"Name": format!("r{at}"), "Policies": named}).to_string();
        let role = rig.as_token(ROOT, "PUT", "/v1/acl/role", &role).await;
        assert_eq!(role.status, 200, "{}", role.text);
        let identity = json!([{"ServiceName": "web", "Datacenters": datacenters}]);
        let template = json!([{"TemplateName": "builtin/node", "Datacenters": datacenters,
                               "TemplateVariables": {"Name": "ext"}}]);
        for (token, (path, body)) in [
            (json!({"Policies": named}), ("/v1/kv/a", &web)),
            (json!({"Roles": [{"Name": format!("r{at}")}]}), ("/v1/kv/a", &web)),
            (json!({"ServiceIdentities": identity}), service),
            (json!({"TemplatedPolicies": template}), node),
        ] {
            let secret = rig.token_of(token.clone()).await;
            let answer = rig.as_token(&secret, "PUT", path, body).await;
            assert_eq!(answer.status, status, "{datacenters} {token}: {}", answer.text);
        }
    }
    for (datacenter, status) in [("dc2", 403), ("dc1", 200)] {
        let identity = json!([{"NodeName": "ext", "Datacenter": datacenter}]);
        let secret = rig.token_of(json!({"NodeIdentities": identity})).await;
        let moved = ext.replace("10.0.0.1", "10.0.0.2");
        let answer = rig.as_token(&secret, "PUT", node.0, &moved).await;
        assert_eq!(answer.status, status, "{datacenter}: {}", answer.text);
    }
}

#[tokio::test]
async fn identities_say_which_datacentre_they_are_for_as_in_consul() {
    let rig = guarded(false).await;
    let nowhere = json!({"NodeIdentities": [{"NodeName": "ext"}]});
    let local = json!({"Local": true,
                       "ServiceIdentities": [{"ServiceName": "web", "Datacenters": ["dc1"]}]});
    let mut role = nowhere.clone();
    role["Name"] = json!("r");
    for (path, body, why) in [
        ("token", nowhere, "Node identity is missing the datacenter field on this token"),
        ("role", role, "Node identity is missing the datacenter field on this role"),
        (
            "token",
            local,
            "Service identity \"web\" cannot specify a list of datacenters on a local token",
        ),
    ] {
        let path = format!("/v1/acl/{path}");
        let answer = rig.as_token(ROOT, "PUT", &path, &body.to_string()).await;
        assert_eq!((answer.status, answer.text.as_str()), (500, why), "{body}");
    }
}

#[tokio::test]
async fn a_token_in_the_body_counts_where_no_other_is_shown() {
    let rig = guarded(false).await;
    let may = rig.token(r#"node "ext" { policy = "write" }"#).await;
    let may_not = rig.token(r#"key_prefix "" { policy = "write" }"#).await;
    let body = |secret: &str| {
        json!({"Node": "ext", "Address": "10.0.0.1", "WriteRequest": {"Token": secret}}).to_string()
    };
    for path in ["/v1/catalog/register", "/v1/catalog/deregister"] {
        let nobody = rig.ask("PUT", path, &body("nobody")).await;
        assert_eq!((nobody.status, nobody.text.as_str()), (403, "ACL not found"), "{path}");
        for secret in ["", &may_not] {
            assert_eq!(rig.ask("PUT", path, &body(secret)).await.status, 403, "{path} {secret:?}");
        }
        // What is shown counts, whatever the body says.
        assert_eq!(rig.as_token(&may_not, "PUT", path, &body(&may)).await.status, 403, "{path}");
        let done = rig.ask("PUT", path, &body(&may)).await;
        assert_eq!(done.status, 200, "{path}: {}", done.text);
        let known = rig.as_token(ROOT, "GET", "/v1/catalog/node/ext", "").await;
        assert_eq!(known.json().is_null(), path.ends_with("/deregister"), "{}", known.text);
    }
}

#[tokio::test]
async fn a_prepared_query_is_run_with_its_own_token() {
    let rig = guarded(false).await;
    let web = json!({"Node": "ext", "Address": "10.0.0.1", "Service": {"Service": "web"}});
    let web = web.to_string();
    assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", &web).await.status, 200);
    let rules = r#"service "web" { policy = "read" } node "ext" { policy = "read" }"#;
    let reader = rig.token(rules).await;
    for (name, token, found) in
        [("own", &*reader, Some(1)), ("bare", "", Some(0)), ("lost", "nobody", None)]
    {
        let query = json!({"Name": name, "Service": {"Service": "web"}, "Token": token});
        let made = rig.as_token(ROOT, "POST", "/v1/query", &query.to_string()).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let answer = rig.get(&format!("/v1/query/{name}/execute")).await;
        match found {
            Some(count) => {
                assert_eq!(answer.status, 200, "{name}: {}", answer.text);
                assert_eq!(answer.json()["Nodes"].as_array().unwrap().len(), count, "{name}");
            }
            None => assert_eq!((answer.status, &*answer.text), (403, "ACL not found"), "{name}"),
        }
    }
    // The asker's own rights do where the query has none.
    let asked = rig.as_token(&reader, "GET", "/v1/query/bare/execute", "").await.json();
    assert_eq!(asked["Nodes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_that_went_is_shown_nothing_more_however_long_it_waits() {
    let rig = guarded(false).await;
    let register = json!({"Node": "ext", "Address": "10.0.0.1", "Service": {"Service": "web"}});
    let register = register.to_string();
    assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", &register).await.status, 200);
    let rules = r#"service "web" { policy = "read" } node "ext" { policy = "read" }"#;
    let reader = rig.token(rules).await;
    let own = rig.as_token(&reader, "GET", "/v1/acl/token/self", "").await.json();
    let first = rig.as_token(&reader, "GET", "/v1/health/service/web", "").await;
    assert_eq!(count(&first), 1);
    let path = format!("/v1/health/service/web?index={}&wait=60s", first.index());
    let changed = async {
        rig.blocked(1).await;
        let token = format!("/v1/acl/token/{}", own["AccessorID"].as_str().unwrap());
        assert_eq!(rig.as_token(ROOT, "DELETE", &token, "").await.status, 200);
        let moved = register.replace("10.0.0.1", "10.0.0.2");
        assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", &moved).await.status, 200);
    };
    let (answer, ()) = tokio::join!(rig.as_token(&reader, "GET", &path, ""), changed);
    assert_eq!((answer.status, answer.text.as_str()), (403, "ACL not found"));
}

#[tokio::test]
async fn the_first_token_that_says_something_counts() {
    let rig = guarded(false).await;
    let ask = async |query: &str, headers: &str| {
        let request = format!(
            "GET /v1/agent/self{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             {headers}\r\n"
        );
        rig.raw(request.as_bytes()).await.status
    };
    let query = format!("?token={ROOT}");
    assert_eq!(ask("", "").await, 403);
    assert_eq!(ask(&query, "X-Consul-Token: \r\n").await, 200);
    let bearer = format!("X-Consul-Token: \r\nAuthorization: Bearer {ROOT}\r\n");
    assert_eq!(ask("?token=", &bearer).await, 200);
    assert_eq!(ask("?token=nobody", &bearer).await, 403, "Consul's order");
}

#[tokio::test]
async fn nothing_that_clients_write_is_in_the_way_of_who_manages() {
    let rig = guarded(false).await;
    let own = rig.as_token(ROOT, "GET", "/v1/acl/token/self", "").await.json();
    let accessor = own["AccessorID"].as_str().unwrap();
    let at = format!("/v1/acl/token/{accessor}");
    let reserved = "00000000-0000-0000-0000-000000000009";
    for (path, body, status, why) in [
        ("/v1/acl/token", json!({"SecretID": ROOT}), 500, "SecretID is already in use"),
        ("/v1/acl/token", json!({"AccessorID": accessor}), 500, "AccessorID is already in use"),
        ("/v1/acl/token", json!({"AccessorID": reserved}), 500, "are reserved"),
        ("/v1/acl/token", json!({"SecretID": reserved}), 500, "are reserved"),
        (&*at, json!({"Description": "x"}), 403, "--consul-management-token-file"),
    ] {
        let answer = rig.as_token(ROOT, "PUT", path, &body.to_string()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        assert!(answer.text.contains(why), "{body}: {}", answer.text);
    }
    // Such as an older weft let somebody write.
    let secret = format!("secret/{}", crate::consul::acl::hash(ROOT));
    let shadow = json!({"AccessorID": "0190a6c8-0000-7000-8000-00000000000a", "SecretID": ROOT});
    let name = format!("token/{}", shadow["AccessorID"].as_str().unwrap());
    let plan = |_: &consul::State| {
        let put = |name: &String| consul::Change::Put(name.clone(), shadow.clone());
        Ok::<_, Refusal>((vec![put(&name), put(&secret)], ()))
    };
    rig.door.consul().change("acl", plan).await.unwrap();
    let still = rig.as_token(ROOT, "GET", "/v1/acl/token/self", "").await;
    assert_eq!(still.json()["AccessorID"], accessor, "{}", still.text);
    assert_eq!(rig.as_token(ROOT, "GET", "/v1/acl/tokens", "").await.status, 200);
}
