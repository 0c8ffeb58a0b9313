// SPDX-License-Identifier: Apache-2.0
//! Every endpoint that shows something, asked by who has no rights: refused, or nothing of what is
//! there. A new endpoint is in the table, or the test fails.

use super::records::{ROOT, guarded};
use super::*;
use crate::consul::routes::ROUTES;

/// What the caller may see.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sees {
    /// 403.
    Refused,
    /// An answer without any name.
    Nothing,
    /// What Consul shows to everybody: which servers there are, what they are called, roots.
    Public,
}

use Sees::{Nothing, Public, Refused};

/// Path with its argument, and what is seen. Everything hidden has "hidden" in its name.
const READS: &[(&str, Sees)] = &[
    ("/v1/agent/self", Refused),
    ("/v1/agent/host", Refused),
    ("/v1/agent/version", Public),
    ("/v1/agent/members", Nothing),
    ("/v1/agent/services", Nothing),
    ("/v1/agent/service/hidden-web", Refused),
    ("/v1/agent/checks", Nothing),
    ("/v1/agent/health/service/id/hidden-web", Refused),
    ("/v1/agent/health/service/name/hidden-web", Refused),
    ("/v1/catalog/datacenters", Public),
    ("/v1/catalog/nodes", Nothing),
    ("/v1/catalog/services", Nothing),
    ("/v1/catalog/service/hidden-web", Nothing),
    ("/v1/catalog/connect/hidden-web", Nothing),
    ("/v1/catalog/node/hidden-ext", Nothing),
    ("/v1/catalog/node-services/hidden-ext", Nothing),
    ("/v1/catalog/gateway-services/hidden-gate", Refused),
    ("/v1/health/node/hidden-ext", Nothing),
    ("/v1/health/checks/hidden-web", Nothing),
    ("/v1/health/service/hidden-web", Nothing),
    ("/v1/health/connect/hidden-web", Nothing),
    ("/v1/health/ingress/hidden-web", Nothing),
    ("/v1/health/state/any", Nothing),
    ("/v1/status/leader", Public),
    ("/v1/status/peers", Public),
    ("/v1/coordinate/datacenters", Nothing),
    ("/v1/coordinate/nodes", Nothing),
    ("/v1/coordinate/node/hidden-ext", Refused),
    ("/v1/kv/hidden/key", Refused),
    ("/v1/session/info/SESSION", Nothing),
    ("/v1/session/list", Nothing),
    ("/v1/session/node/n1", Nothing),
    ("/v1/event/list", Nothing),
    ("/v1/query", Nothing),
    ("/v1/query/QUERY", Refused),
    ("/v1/config/service-defaults", Nothing),
    ("/v1/connect/intentions", Nothing),
    ("/v1/connect/intentions/ID", Nothing),
    ("/v1/connect/intentions/exact?source=hidden-web&destination=hidden-db", Refused),
    ("/v1/connect/intentions/match?by=destination&name=hidden-db", Refused),
    ("/v1/connect/intentions/check?source=hidden-web&destination=hidden-db", Refused),
    ("/v1/connect/ca/roots", Public),
    ("/v1/connect/ca/configuration", Refused),
    ("/v1/agent/connect/ca/roots", Public),
    ("/v1/agent/connect/ca/leaf/hidden-web", Refused),
    ("/v1/discovery-chain/hidden-web", Refused),
    ("/v1/agent/metrics", Refused),
    ("/v1/agent/metrics/stream", Refused),
    ("/v1/agent/monitor", Refused),
    ("/v1/operator/raft/configuration", Refused),
    ("/v1/operator/autopilot/configuration", Refused),
    ("/v1/operator/autopilot/health", Refused),
    ("/v1/operator/autopilot/state", Refused),
    ("/v1/operator/keyring", Nothing),
    ("/v1/operator/usage", Refused),
    ("/v1/snapshot", Refused),
    ("/v1/acl/replication", Public),
    ("/v1/acl/tokens", Refused),
    ("/v1/acl/token/ID", Refused),
    ("/v1/acl/token/self", Public),
    ("/v1/acl/policies", Refused),
    ("/v1/acl/policy/ID", Refused),
    ("/v1/acl/policy/name/hidden-policy", Refused),
    ("/v1/acl/roles", Refused),
    ("/v1/acl/role/ID", Refused),
    ("/v1/acl/role/name/hidden-role", Refused),
    ("/v1/acl/auth-methods", Refused),
    ("/v1/acl/auth-method/hidden-method", Refused),
    ("/v1/acl/binding-rules", Refused),
    ("/v1/acl/binding-rule/ID", Refused),
    ("/v1/acl/templated-policies", Refused),
    ("/v1/acl/templated-policy/name/builtin/service", Refused),
];

/// What is there to be hidden; the id of a session and that of a prepared query.
async fn fill(rig: &Rig) -> (String, String) {
    let done = async |method: &str, path: &str, body: Value| {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = rig.as_token(ROOT, method, path, &text).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer
    };
    let web = json!({"Name": "hidden-web", "Port": 80, "Check": {"TTL": "60s", "Status": "passing"},
                     "Connect": {"Native": true}});
    done("PUT", "/v1/agent/service/register", web.clone()).await;
    let ext = json!({"Node": "hidden-ext", "Address": "10.0.0.9",
                     "Service": {"Service": "hidden-web"}});
    done("PUT", "/v1/catalog/register", ext).await;
    let proxy = json!({"Name": "hidden-gate", "Kind": "ingress-gateway"});
    done("PUT", "/v1/agent/service/register", proxy).await;
    let coordinate = json!({"Node": "hidden-ext", "Coord": {"Vec": [0, 0, 0, 0, 0, 0, 0, 0]}});
    done("PUT", "/v1/coordinate/update", coordinate).await;
    done("PUT", "/v1/kv/hidden/key", json!("hidden")).await;
    done("PUT", "/v1/event/fire/hidden-event", Value::Null).await;
    let defaults = json!({"Kind": "service-defaults", "Name": "hidden-web", "Protocol": "http"});
    done("PUT", "/v1/config", defaults).await;
    let gate = json!({"Kind": "ingress-gateway", "Name": "hidden-gate", "Listeners": [
        {"Port": 80, "Protocol": "tcp", "Services": [{"Name": "hidden-web"}]}]});
    done("PUT", "/v1/config", gate).await;
    let exact = "/v1/connect/intentions/exact?source=hidden-web&destination=hidden-db";
    done("PUT", exact, json!({"Action": "allow"})).await;
    let session = done("PUT", "/v1/session/create", json!({"Name": "hidden-session"})).await;
    let query = json!({"Name": "hidden-query", "Service": {"Service": "hidden-web"}});
    let query = done("POST", "/v1/query", query).await;
    let id = |answer: &Answer| answer.json()["ID"].as_str().unwrap().to_owned();
    (id(&session), id(&query))
}

#[tokio::test]
async fn who_has_no_rights_is_shown_nothing() {
    let rig = guarded(false).await;
    let (session, query) = fill(&rig).await;
    let blind = rig.token(r#"service "other" { policy = "read" }"#).await;
    for token in [blind.as_str(), "anonymous"] {
        for (path, sees) in READS {
            let path = path.replace("SESSION", &session).replace("QUERY", &query);
            let path = path.replace("ID", "0190a6c8-0000-7000-8000-00000000000f");
            let answer = rig.as_token(token, "GET", &path, "").await;
            let said = format!("{path}: {} {}", answer.status, answer.text);
            match sees {
                Refused => assert_eq!(answer.status, 403, "{said}"),
                Public => {}
                // A name that was asked for may be said again where there is no such thing.
                Nothing if answer.status >= 400 => {
                    assert!([404, 501].contains(&answer.status), "{said}");
                }
                Nothing => {
                    for name in ["hidden", "\"n1", "10.0.0.9", &*session, &*query] {
                        assert!(!answer.text.contains(name), "{name} in {said}");
                    }
                }
            }
            // The very same shows something to who may; of what does not end its beginning does.
            let flows = path.ends_with("/monitor") || path.ends_with("/stream");
            let method = if flows { "HEAD" } else { "GET" };
            let seen = rig.as_token(ROOT, method, &path, "").await;
            let unknown = seen.text.contains("Cannot find token");
            assert!(seen.status != 403 || unknown, "{path}: {}", seen.text);
        }
    }
}

#[tokio::test]
async fn a_prepared_query_shows_no_instance_to_who_may_not_see_it() {
    let rig = guarded(false).await;
    let (_, query) = fill(&rig).await;
    let blind = rig.token(r#"service "other" { policy = "read" }"#).await;
    let path = format!("/v1/query/{query}/execute");
    assert_eq!(rig.as_token(&blind, "GET", &path, "").await.json()["Nodes"], json!([]));
    let seen = rig.as_token(ROOT, "GET", &path, "").await.json();
    assert_eq!(seen["Nodes"].as_array().unwrap().len(), 2, "{seen}");
    let explained = rig.as_token(&blind, "GET", &format!("/v1/query/{query}/explain"), "").await;
    assert_eq!(explained.status, 403, "{}", explained.text);
}

#[test]
fn every_endpoint_that_reads_is_in_the_table() {
    let reads = ROUTES.iter().filter(|route| route.methods.contains(&"GET"));
    // A path with another one below it is in the table with its own endpoint.
    let missing: Vec<&str> = reads
        .filter(|route| {
            let bare = |path: &str| path.split('?').next().unwrap_or_default().to_owned();
            !READS.iter().any(|(path, _)| {
                match crate::consul::routes::find(&::http::Method::GET, &bare(path)) {
                    Ok((endpoint, _)) => endpoint == route.endpoint,
                    Err(_) => false,
                }
            })
        })
        .map(|route| route.path)
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[tokio::test]
async fn the_agents_tokens_say_who_asks_over_dns() {
    let rig = guarded(false).await;
    fill(&rig).await;
    let sees = || {
        let kind = weft_identity::permission::Kind::Service;
        let verb = weft_identity::permission::Verb::Read;
        rig.door.over_dns().may(verb, kind, "default", "hidden-web")
    };
    assert!(!sees(), "the anonymous");
    let reader = rig.token(r#"service_prefix "" { policy = "read" }"#).await;
    let other = rig.token(r#"service "other" { policy = "read" }"#).await;
    for (kind, secret, seen) in [
        ("default", &*reader, true),
        ("dns", &*other, false),
        ("default", "", false),
        ("dns", &*reader, true),
        ("dns", "nobody", false),
        ("dns", "", false),
    ] {
        let path = format!("/v1/agent/token/{kind}");
        let body = json!({"Token": secret}).to_string();
        assert_eq!(rig.as_token(ROOT, "PUT", &path, &body).await.status, 200);
        assert_eq!(sees(), seen, "{kind} {secret:?}");
    }
    // What the anonymous may is seen at once.
    let policy = json!({"Name": "all", "Rules": r#"service_prefix "" { policy = "read" }"#});
    let made = rig.as_token(ROOT, "PUT", "/v1/acl/policy", &policy.to_string()).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let anonymous = "/v1/acl/token/00000000-0000-0000-0000-000000000002";
    let body = json!({"Policies": [{"Name": "all"}]}).to_string();
    let told = rig.as_token(ROOT, "PUT", anonymous, &body).await;
    assert_eq!(told.status, 200, "{}", told.text);
    assert!(sees());
}
