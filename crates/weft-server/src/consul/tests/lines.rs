// SPDX-License-Identifier: Apache-2.0
//! Connections: several requests on one, bodies in every form, clients that go away.

use super::*;

/// What the door says to bytes, up to and with the last body that ends so.
async fn told(rig: &Rig, sent: &str, end: &str) -> String {
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    until(&mut stream, end).await
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut some = [0; 4096];
        let n = stream.read(&mut some).await.unwrap();
        assert_ne!(n, 0, "it ended with {text:?}");
        text.push_str(&String::from_utf8_lossy(&some[..n]));
    }
    text
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let rig = rig().await;
    let sent = "PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                3\r\none\r\n1\r\n!\r\n0\r\n\r\n\
                PUT /v1/kv/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\ntwo\
                GET /v1/kv/a?raw HTTP/1.1\r\nHost: localhost\r\n\r\n\
                HEAD /v1/kv/b?raw HTTP/1.1\r\nHost: localhost\r\n\r\n\
                GET /v1/kv/b?raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let text = told(&rig, sent, "two").await;
    assert_eq!(text.matches("HTTP/1.1 ").count(), 5, "{text}");
    assert!(text.contains("\r\n\r\none!HTTP/1.1 "), "{text}");
    assert_eq!(text.matches("connection: close").count(), 1);
    assert_eq!(text.matches("\r\ndate: ").count(), 5);
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_it_is_wanted() {
    let rig = rig().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let head = "PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
                Content-Length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    assert!(until(&mut stream, "true").await.starts_with("HTTP/1.1 200 OK\r\n"));
    // Another host's request: its body is not taken, and the connection is of no use any more.
    let foreign = head.replace("localhost", "evil.example");
    stream.write_all(foreign.as_bytes()).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 403 ") && rest.contains("connection: close"), "{rest}");
}

#[tokio::test]
async fn what_is_no_request_is_answered_once() {
    let rig = rig().await;
    for (sent, status, part) in [
        (
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400",
            "where the body ends must be said once",
        ),
        ("hello\r\n\r\n", "400", "cannot be read"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400", "cannot be read"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505", "HTTP/1.1"),
        ("GET / HTTP/1.1\r\nExpect: more\r\n\r\n", "417", "100-continue"),
    ] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let again = format!("{sent}GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(again.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        let (head, why) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.matches("HTTP/1.1 ").count(), 1, "{text}");
        assert!(head.contains("content-type: text/plain"), "{text}");
        assert!(why.contains(part), "it says why: {text}");
    }
}

#[tokio::test]
async fn a_path_without_its_slash_is_elsewhere_with_its_question() {
    let rig = rig().await;
    let moved = rig.get("/v1/kv?recurse&dc=dc1").await;
    assert_eq!((moved.status, &*moved.headers["location"]), (301, "/v1/kv/?recurse&dc=dc1"));
    assert_eq!(rig.get("/v1/kv").await.headers["location"], "/v1/kv/");
    let nobody = rig.raw(b"GET /v1/status/leader HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(nobody.status == 400 && nobody.text.contains("Host"), "{}", nobody.text);
}

#[tokio::test]
async fn a_filter_may_be_sent_with_its_quotes_as_they_are() {
    let rig = rig().await;
    for name in ["web", "db"] {
        rig.put("/v1/agent/service/register", json!({"Name": name})).await;
    }
    let found = rig.get("/v1/agent/services?filter=Service==\"web\"").await;
    let names: Vec<String> = found.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!((found.status, names), (200, vec!["web".to_owned()]));
}

#[tokio::test]
async fn a_query_whose_client_went_away_waits_no_more() {
    let rig = rig().await;
    let index = rig.get("/v1/catalog/nodes").await.index();
    let head =
        format!("GET /v1/catalog/nodes?index={index}&wait=5m HTTP/1.1\r\nHost: localhost\r\n");
    // A body changes nothing: this one means nothing.
    let asks = [
        format!("{head}\r\n"),
        format!("{head}Content-Length: 1\r\n\r\nx"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
    ];
    let mut streams = Vec::new();
    for ask in asks {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    rig.blocked(3).await;
    drop(streams);
    rig.blocked(0).await;
}

#[tokio::test]
async fn a_query_that_waits_keeps_no_world_and_is_answered_by_the_newest() {
    let rig = rig().await;
    rig.put("/v1/agent/service/register", json!({"Name": "web"})).await;
    let index = rig.get("/v1/catalog/service/web").await.index();
    let path = format!("/v1/catalog/service/web?index={index}&wait=60s");
    let blocked = rig.get(&path);
    tokio::pin!(blocked);
    tokio::select! {
        answer = &mut blocked => panic!("answered early: {}", answer.text),
        () = rig.blocked(1) => {}
    }
    let then = Arc::downgrade(&rig.registry.now());
    let gone = async {
        rig.put("/v1/agent/service/register", json!({"Name": "other"})).await;
        while then.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut blocked => panic!("woken by another's change: {}", answer.text),
        done = tokio::time::timeout(Duration::from_secs(50), gone) => done.unwrap(),
    }
    let (answer, _) = tokio::join!(
        blocked,
        rig.put("/v1/agent/service/register", json!({"Name": "web", "Port": 7})),
    );
    assert_eq!(answer.json()[0]["ServicePort"], 7);
    assert!(answer.index() > index);
}

#[tokio::test]
async fn a_write_in_the_smallest_chunks_is_taken_whole() {
    let rig = rig().await;
    let chunks = "1\r\nx\r\n".repeat(20_000);
    let sent = format!(
        "PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
         {chunks}0\r\n\r\n\
         GET /v1/kv/a?raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    let text = told(&rig, &sent, &"x".repeat(20_000)).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2);
}

#[tokio::test]
async fn a_client_that_has_said_all_and_closed_its_half_is_answered() {
    let rig = rig().await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let request = b"GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text:?}");
    }
}
