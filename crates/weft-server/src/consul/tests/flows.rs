// SPDX-License-Identifier: Apache-2.0
//! Answers without an end, and what an agent is asked about its cluster.

use tracing::Level;
use weft_base::lines::{Line, hand};

use super::records::{ROOT, guarded};
use super::*;

/// A connection that something was asked on.
struct Reading(TcpStream, Vec<u8>);

impl Reading {
    async fn of(rig: &Rig, path: &str, token: &str) -> Self {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        // One line too many, as old clients send: that it goes away is seen all the same.
        let ask = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Consul-Token: {token}\r\n\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        Self(stream, Vec::new())
    }

    /// Until what came contains this.
    async fn until(&mut self, part: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.1).into_owned();
            if text.contains(part) {
                return text;
            }
            assert_ne!(self.0.read_buf(&mut self.1).await.unwrap(), 0, "{part}: {text}");
        }
    }
}

fn says(level: Level, message: &str) {
    let fields = vec![("name", "web".to_owned()), ("why", "two words".to_owned())];
    hand(Line { level, target: "weft_tests".into(), message: message.to_owned(), fields });
}

#[tokio::test]
async fn who_may_read_the_agent_reads_its_log_along() {
    let rig = guarded(false).await;
    let mut text = Reading::of(&rig, "/v1/agent/monitor?loglevel=warn", ROOT).await;
    let mut json = Reading::of(&rig, "/v1/agent/monitor?logjson=true", ROOT).await;
    for reading in [&mut text, &mut json] {
        let head = reading.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.contains("content-length") && head.contains("connection: close"), "{head}");
    }
    rig.blocked(2).await;
    says(Level::INFO, "first");
    says(Level::DEBUG, "second");
    says(Level::WARN, "third\nline");
    let line = "[WARN]  weft_tests: third line: name=web why=\"two words\"\n";
    let read = text.until(line).await;
    assert!(!read.contains("first") && !read.contains("second"), "{read}");
    let read = json.until("third").await;
    let line = read.lines().find(|line| line.contains("first")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["@level"], &line["@message"]), (&json!("info"), &json!("first")));
    assert_eq!((&line["name"], &line["@module"]), (&json!("web"), &json!("weft_tests")));
    assert!(!read.contains("second"), "{read}");
    drop((text, json));
    rig.blocked(0).await;

    let bare = rig.get("/v1/agent/monitor").await;
    assert_eq!(bare.status, 403, "{}", bare.text);
    let level = rig.as_token(ROOT, "GET", "/v1/agent/monitor?loglevel=loud", "").await;
    assert_eq!((level.status, level.text.as_str()), (400, "Unknown log level: loud"));
}

#[tokio::test]
async fn figures_come_as_long_as_the_server_is_there() {
    let rig = rig().await;
    let mut stream = Reading::of(&rig, "/v1/agent/metrics/stream", "").await;
    let text = stream.until("}\n").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    let said: Value = serde_json::from_str(body.trim()).unwrap();
    let said: Vec<&str> =
        said["Gauges"].as_array().unwrap().iter().map(|g| g["Name"].as_str().unwrap()).collect();
    assert!(said.contains(&"consul.catalog.services"), "{said:?}");
    rig.tasks.begin_drain();
    while stream.0.read_buf(&mut stream.1).await.unwrap() > 0 {}
}

#[tokio::test]
async fn a_machine_is_with_those_that_it_is_asked_to_join() {
    let rig = rig().await;
    let register = json!({"Node": "ext", "Address": "10.0.0.1"});
    rig.put("/v1/catalog/register", register).await;
    for known in ["127.0.0.1", "127.0.0.1:8301", "ext", "10.0.0.1:8301"] {
        let answer = rig.ask("PUT", &format!("/v1/agent/join/{known}?wan=1"), "").await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""), "{known}");
    }
    for unknown in ["10.0.0.2", "10.0.0.11:8301", "web"] {
        let answer = rig.ask("PUT", &format!("/v1/agent/join/{unknown}"), "").await;
        assert_eq!(answer.status, 500, "{}", answer.text);
        assert!(answer.text.contains(&format!("Failed to join {unknown}")), "{}", answer.text);
    }
    let state = rig.get("/v1/operator/autopilot/state").await.json();
    let (leader, servers) = (state["Leader"].as_str().unwrap(), &state["Servers"]);
    assert_eq!(servers[leader]["Status"], "leader");
    assert_eq!((&state["Healthy"], &state["Voters"]), (&json!(true), &json!([leader])));
}
