// SPDX-License-Identifier: Apache-2.0
//! What other registries were attacked with.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::records::{ROOT, guarded};
use super::*;

/// One request in the two forms that a body has.
fn forms(path: &str, body: &[u8]) -> [Vec<u8>; 2] {
    let head = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let mut sized = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    sized.extend_from_slice(body);
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for part in body.chunks(64 << 10) {
        write!(chunked, "{:x}\r\n", part.len()).unwrap();
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    [sized, chunked]
}

#[tokio::test]
async fn reg_57_no_endpoint_reads_more_than_its_bound_whatever_the_head_says() {
    let rig = rig().await;
    let large = vec![b'x'; (3 << 20) + 1];
    for path in [
        "/v1/kv/large",
        "/v1/event/fire/large",
        "/v1/txn",
        "/v1/query",
        "/v1/config",
        "/v1/session/create",
        "/v1/catalog/register",
        "/v1/agent/service/register",
        "/v1/connect/ca/configuration",
    ] {
        let path = if path == "/v1/query" { "/v1/query/x" } else { path };
        for request in forms(path, &large) {
            assert_eq!(rig.raw(&request).await.status, 413, "{path}");
        }
    }
}

#[tokio::test]
async fn reg_57_values_and_payloads_have_bounds_of_their_own_below_the_doors() {
    let rig = rig().await;
    let large = vec![b'x'; (512 << 10) + 1];
    for (path, bytes) in [("/v1/kv/k", (512 << 10) + 1), ("/v1/event/fire/e", 513)] {
        for request in forms(path, &large[..bytes]) {
            assert_eq!(rig.raw(&request).await.status, 413, "{path}");
        }
        for request in forms(path, &large[..bytes - 1]) {
            assert_eq!(rig.raw(&request).await.status, 200, "{path}");
        }
    }
    let set = json!([{"KV": {"Verb": "set", "Key": "k", "Value": STANDARD.encode(&large)}}]);
    for request in forms("/v1/txn", set.to_string().as_bytes()) {
        assert_eq!(rig.raw(&request).await.status, 413, "/v1/txn");
    }
}

#[tokio::test]
async fn reg_59_no_door_takes_a_command_in_any_form_of_body() {
    let rig = rig().await;
    let args = json!({"Args": ["touch", "/tmp/owned"], "Interval": "1s"});
    let script = json!({"script": "touch /tmp/owned", "interval": "1s"});
    let docker = json!({"docker_container_id": "x", "shell": "sh", "script": "id",
                        "interval": "1s"});
    for command in [args, script, docker] {
        let mut named = command.clone();
        named["Name"] = json!("c");
        let service = |check: &Value| json!({"Name": "web", "Check": check});
        let list = json!({"Name": "web", "Checks": [{"TTL": "1s"}, command]});
        for (path, body) in [
            ("/v1/agent/check/register", named),
            ("/v1/agent/service/register", service(&command)),
            ("/v1/agent/service/register", list),
        ] {
            let body = body.to_string();
            let answer = rig.ask("PUT", path, &body).await;
            assert_eq!(answer.status, 400, "{path} {body}");
            assert!(answer.text.contains("Scripts are disabled"), "{}", answer.text);
        }
    }
    // What nobody runs may be described: nothing in the catalog is a command.
    let checks = rig.get("/v1/health/state/any").await.text;
    assert!(!checks.contains("touch"), "{checks}");
}

#[tokio::test]
async fn reg_60_a_path_in_a_field_is_a_text_and_never_opened() {
    let rig = guarded(false).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "the secret itself").unwrap();
    let path = secret.to_str().unwrap();
    let put = async |at: &str, body: Value| {
        let answer = rig.as_token(ROOT, "PUT", at, &body.to_string()).await;
        answer.text + &answer.status.to_string()
    };
    let method = json!({"Name": "m", "Type": "jwt", "Config": {
        "JWKSCACert": path, "JWTValidationPubKeys": [path], "CACert": path,
        "OIDCDiscoveryCACert": path, "BoundIssuer": path}});
    let gateway = json!({"Kind": "terminating-gateway", "Name": "t", "Services": [
        {"Name": "db", "CAFile": path, "CertFile": path, "KeyFile": path}]});
    let files = json!({"Kind": "file-system-certificate", "Name": "f", "Certificate": path,
                       "PrivateKey": path});
    let authority = json!({"Provider": "consul", "Config": {"PrivateKey": path, "RootCert": path}});
    let check = json!({"Name": "c", "HTTP": format!("file://{path}"), "Interval": "1s"});
    let mut said = Vec::new();
    for (at, body) in [
        ("/v1/acl/auth-method", method),
        ("/v1/config", gateway),
        ("/v1/config", files),
        ("/v1/connect/ca/configuration", authority),
        ("/v1/agent/check/register", check),
    ] {
        said.push(put(at, body).await);
    }
    for at in [
        "/v1/acl/auth-method/m",
        "/v1/config/terminating-gateway/t",
        "/v1/config/file-system-certificate/f",
        "/v1/catalog/gateway-services/t",
        "/v1/connect/ca/configuration",
        "/v1/agent/checks",
    ] {
        said.push(rig.as_token(ROOT, "GET", at, "").await.text);
    }
    assert!(said.iter().all(|text| !text.contains("the secret itself")), "{said:?}");
    assert!(said[2].contains("inline-certificate") && said[2].ends_with("501"), "{}", said[2]);
    let refused = said[4].contains("not an http:// or https:// URL");
    assert!(refused, "a path is taken as what is asked: {}", said[4]);
    assert!(said[8].contains(path), "it is kept and shown as it was: {}", said[8]);
}

#[tokio::test]
async fn reg_61_the_judge_of_each_operation_is_what_refuses_it() {
    let rig = guarded(false).await;
    let rules = r#"key_prefix "app/" { policy = "write" } key "app/no" { policy = "deny" }
                   service "web" { policy = "write" } node_prefix "" { policy = "read" }"#;
    let token = rig.token(rules).await;
    let node = r#"{"Node": "n9", "Address": "10.0.0.1"}"#;
    assert_eq!(rig.as_token(ROOT, "PUT", "/v1/catalog/register", node).await.status, 200);
    let proxy = json!({"ID": "i", "Service": "web", "Kind": "connect-proxy", "Port": 1,
                       "Proxy": {"DestinationServiceName": "db"}});
    let check = json!({"Node": "n9", "CheckID": "c", "Name": "c", "Status": "passing"});
    for (at, wrong) in [
        json!({"KV": {"Verb": "set", "Key": "other", "Value": "MQ=="}}),
        json!({"KV": {"Verb": "set", "Key": "app/no", "Value": "MQ=="}}),
        json!({"KV": {"Verb": "delete-tree", "Key": "app/"}}),
        json!({"KV": {"Verb": "get-tree", "Key": ""}}),
        json!({"Service": {"Verb": "set", "Node": "n9", "Service": proxy}}),
        json!({"Node": {"Verb": "set", "Node": {"Node": "n9", "Address": "10.6.6.6"}}}),
        json!({"Check": {"Verb": "set", "Check": check}}),
    ]
    .into_iter()
    .enumerate()
    {
        let set = json!({"KV": {"Verb": "set", "Key": "app/a", "Value": "MQ=="}});
        // First, last, and twice: its place does not matter.
        for ops in [json!([set, wrong]), json!([wrong, set]), json!([set, wrong, set, wrong])] {
            let ops = ops.to_string();
            let answer = rig.as_token(&token, "PUT", "/v1/txn", &ops).await;
            assert_eq!(answer.status, 409, "{ops}: {}", answer.text);
            assert!(answer.text.contains("Permission denied"), "{at}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn reg_61_a_denial_by_path_or_header_is_no_allowance() {
    let rig = guarded(false).await;
    let put = async |source: &str, body: Value| {
        let path = format!("/v1/connect/intentions/exact?source={source}&destination=db");
        let answer = rig.as_token(ROOT, "PUT", &path, &body.to_string()).await;
        answer.status
    };
    let requests = json!({"Kind": "service-defaults", "Name": "db", "Protocol": "http"});
    rig.as_token(ROOT, "PUT", "/v1/config", &requests.to_string()).await;
    let http =
        |action: &str, http: Value| json!({"Permissions": [{"Action": action, "HTTP": http}]});
    for (source, body) in [
        ("path", http("deny", json!({"PathPrefix": "/admin"}))),
        ("exact", http("deny", json!({"PathExact": "/"}))),
        ("header", http("deny", json!({"Header": [{"Name": "x-role", "Exact": "guest"}]}))),
        // Of some requests it allows nobody may conclude anything about a whole connection.
        ("some", http("allow", json!({"PathPrefix": "/public"}))),
        ("*", json!({"Action": "deny"})),
    ] {
        assert_eq!(put(source, body).await, 200, "{source}");
    }
    for source in ["path", "exact", "header", "some", "other"] {
        let path = format!("/v1/connect/intentions/check?source={source}&destination=db");
        let answer = rig.as_token(ROOT, "GET", &path, "").await;
        assert_eq!(answer.json()["Allowed"], false, "{source} is allowed");
    }
    let both = json!({"Action": "allow", "Permissions": [{"Action": "deny", "HTTP": {}}]});
    assert_eq!(put("both", both).await, 400);
}

#[tokio::test]
async fn reg_62_rows_are_judged_by_themselves_and_watches_of_them_too() {
    let rig = guarded(false).await;
    for key in ["app/a", "app/secret/x", "apply"] {
        rig.as_token(ROOT, "PUT", &format!("/v1/kv/{key}"), "x").await;
    }
    let rules =
        r#"key_prefix "app/" { policy = "read" } key_prefix "app/secret/" { policy = "deny" }"#;
    let token = rig.token(rules).await;
    let seen = async |path: &str| rig.as_token(&token, "GET", path, "").await.text;
    for path in [
        "/v1/kv/?keys",
        "/v1/kv/app?recurse",
        "/v1/kv/app/?keys&separator=/",
        "/v1/kv/a%70p/?recurse",
        "/v1/kv/app/?recurse&index=1&wait=10ms",
    ] {
        let text = seen(path).await;
        assert!(text.contains("app/a"), "{path}: {text}");
        assert!(!text.contains("secret") && !text.contains("apply"), "{path}: {text}");
    }
    for path in [
        "/v1/kv/app/secret/x",
        "/v1/kv/app/%73ecret/x",
        "/v1/kv/app/secret%2Fx",
        "/v1/kv/app/secret/x?raw",
        "/v1/kv/app/secret/x?index=1&wait=10ms",
    ] {
        assert_eq!(rig.as_token(&token, "GET", path, "").await.status, 403, "{path}");
    }
    // Dots are characters of a key here and lead nowhere.
    assert_eq!(rig.as_token(&token, "GET", "/v1/kv/app/../apply", "").await.status, 404);
}

#[tokio::test]
async fn reg_62_maintenance_is_for_nobody_but_management() {
    let rig = guarded(false).await;
    let token = rig.token(r#"key_prefix "" { policy = "write" }"#).await;
    for path in [
        "/v1/snapshot",
        "/v1/acl/tokens",
        "/v1/operator/raft/configuration",
        "/v1/agent/host",
        "/v1/agent/connect/ca/leaf/web",
    ] {
        let answer = rig.as_token(&token, "GET", path, "").await;
        assert!([403, 501].contains(&answer.status), "{path}: {} {}", answer.status, answer.text);
    }
}

#[tokio::test]
async fn a_filter_is_judged_before_there_is_anything_to_judge() {
    let rig = rig().await;
    for (path, wrong, fine) in [
        ("/v1/catalog/nodes", "Nope", "Meta.x"),
        ("/v1/catalog/services", "Nope", "ServiceKind"),
        ("/v1/catalog/service/none", "Service", "ServiceKind"),
        ("/v1/catalog/node/n1", "ServiceName", "Kind"),
        ("/v1/catalog/node-services/n1", "Weights.Nope", "Kind"),
        ("/v1/health/service/none", "Checks.Nope", "Service.Kind"),
        ("/v1/health/connect/none", "Nope", "Checks.Status"),
        ("/v1/health/checks/none", "Definition", "Output"),
        ("/v1/health/node/none", "Node.Node", "Status"),
        ("/v1/health/state/warning", "CreateIndex", "Type"),
        ("/v1/agent/services", "Nope", "Kind"),
        ("/v1/agent/checks", "Nope", "Status"),
    ] {
        let told = rig.get(&format!("{path}?filter={wrong}%20==%201")).await;
        assert_eq!(told.status, 400, "{path}: {}", told.text);
        let why = format!(
            "Failed to create boolean expression evaluator: Selector \"{wrong}\" is not valid"
        );
        assert_eq!(told.text, why, "{path}");
        let told = rig.get(&format!("{path}?filter={fine}%20==%20%22%22")).await;
        assert_eq!(told.status, 200, "{path}: {}", told.text);
    }
    rig.put("/v1/agent/service/register", json!({"name": "web", "port": 80})).await;
    for (filter, found) in [
        ("Service.Kind%20==%20%22%22", 1),
        ("Service.Port%20==%200x50", 1),
        ("Service.EnableTagOverride%20==%200", 1),
        ("Service.EnableTagOverride%20==%201", 0),
    ] {
        let listed = rig.get(&format!("/v1/health/service/web?filter={filter}")).await;
        assert_eq!((listed.status, count(&listed)), (200, found), "{filter}: {}", listed.text);
    }
    let told = rig.get("/v1/health/service/web?filter=Service.Port%20==%20abc").await;
    assert_eq!(told.status, 400, "{}", told.text);
    assert!(told.text.contains("Failed to coerce value \"abc\" for selector"), "{}", told.text);
}
