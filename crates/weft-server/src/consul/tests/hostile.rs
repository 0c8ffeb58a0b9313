// SPDX-License-Identifier: Apache-2.0
//! What other registries were attacked with, each shown to be told by the check that is named.

use std::io::Write as _;

use super::records::{ROOT, guarded};
use super::*;
use crate::guard;

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
    // Values and payloads have bounds of their own, below the door's.
    for (path, bytes) in [("/v1/kv/k", (512 << 10) + 1), ("/v1/event/fire/e", 513)] {
        for request in forms(path, &large[..bytes]) {
            assert_eq!(rig.raw(&request).await.status, 413, "{path}");
            let taken = guard::without("body-size", rig.raw(&request)).await;
            assert_ne!(taken.status, 413, "{path}");
        }
        for request in forms(path, &large[..bytes - 1]) {
            assert_eq!(rig.raw(&request).await.status, 200, "{path}");
        }
    }
    for request in forms("/v1/txn", &large) {
        let read = guard::without("body-size", rig.raw(&request)).await;
        assert_eq!(read.status, 400, "without the bound it was read to its end");
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
            let taken = guard::without("scripts", rig.ask("PUT", path, &body)).await;
            assert!(!taken.text.contains("Scripts are disabled"), "{}", taken.text);
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
    assert!(said[4].contains("not an http:// or https:// URL"), "{}", said[4]);
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
    let proxy = json!({"ID": "i", "Service": "web", "Kind": "connect-proxy",
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
        let ops = json!([set, wrong]).to_string();
        let done = guard::without("txn-each", rig.as_token(&token, "PUT", "/v1/txn", &ops)).await;
        assert!(!done.text.contains("Permission denied"), "{at}: {}", done.text);
    }
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
    let all = guard::without("rows", seen("/v1/kv/?keys")).await;
    assert!(all.contains("app/secret/x") && all.contains("apply"), "{all}");
    // What is only for management is for nobody else, whatever the prefix.
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
