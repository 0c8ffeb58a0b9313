// SPDX-License-Identifier: Apache-2.0
//! Forms of HTTP that proxies get wrong: answers without bodies, expectations, HTTP/1.0, and
//! HTTP/2 clients that mean harm.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;

/// Answers each request head with what its path names, byte for byte.
async fn scripted() -> Server {
    Server::raw(|_, mut stream| async move {
        let mut seen = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                return;
            }
            seen.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            if !text.contains("\r\n\r\n") {
                continue;
            }
            let path = text.split(' ').nth(1).unwrap_or("");
            let answer = match path {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
                "/hints" => {
                    "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                     HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                }
                "/trailers" => {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                     3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n"
                }
                "/close" => "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if path == "/close" {
                return;
            }
            seen.clear();
        }
    })
    .await
}

async fn exchange(to: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_bodies_end_where_they_end() {
    let app = scripted().await;
    let bed = Bed::sidecar(http_service("user", &[app.address])).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    for (first, status, body) in [
        ("GET /204", "204", ""),
        ("GET /304", "304", ""),
        ("HEAD /head", "200", ""),
        ("GET /hints", "200", "ok"),
        ("GET /close", "200", "until the end"),
    ] {
        // A second request on the same connection shows that the first answer's end was found.
        let both = format!(
            "{first} HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        );
        let all = exchange(door, &both).await;
        // Answers before the answer pass too.
        let hints = all.matches("HTTP/1.1 103 ").count();
        assert_eq!(hints, usize::from(first == "GET /hints"), "{first}: {all}");
        let answers: Vec<&str> = all.split("HTTP/1.1 ").skip(1 + hints).collect();
        assert_eq!(answers.len(), 2, "{first}: {all}");
        assert!(answers[0].starts_with(status), "{first}: {all}");
        let (head, rest) = answers[0].split_once("\r\n\r\n").unwrap();
        let plain = rest == body || rest.contains(body) && head.contains("chunked");
        assert!(plain, "{first}: {all}");
        assert!(answers[1].ends_with("\r\n\r\nok"), "{first}: {all}");
    }
    let head = exchange(door, "HEAD /head HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(head.to_lowercase().contains("content-length: 7"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_clients_are_served_and_let_go() {
    let app = scripted().await;
    let bed = Bed::sidecar(http_service("user", &[app.address])).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let all = exchange(door, "GET /trailers HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(all.starts_with("HTTP/1.0 200") && all.ends_with("\r\n\r\nabc"), "{all}");
    assert!(!all.to_lowercase().contains("transfer-encoding"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_without_a_host_takes_routes_of_every_host() {
    let mut all = vec![gateway(None)];
    let only = Action::Direct { status: 200, body: "named".into() };
    all.push(gateway_route("named", &["a.example"], vec![rule("/", only)]));
    let bed = Bed::gateway(all.clone()).await;
    let asked = "OPTIONS / HTTP/1.0\r\n\r\n";
    let none = exchange(bed.listener(), asked).await;
    assert!(none.starts_with("HTTP/1.0 404"), "only a route of a name is there: {none}");
    let every = Action::Direct { status: 200, body: "every".into() };
    all.push(gateway_route("every", &[], vec![rule("/", every)]));
    bed.apply(2, all).await;
    for method in ["GET", "OPTIONS"] {
        let got = exchange(bed.listener(), &format!("{method} / HTTP/1.0\r\n\r\n")).await;
        assert!(got.starts_with("HTTP/1.0 200") && got.ends_with("every"), "{method}: {got}");
    }
    let named = exchange(bed.listener(), "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").await;
    assert!(named.ends_with("named"), "{named}");
    // HTTP/1.1 has to say it.
    let new = exchange(bed.listener(), "GET / HTTP/1.1\r\n\r\n").await;
    assert!(new.starts_with("HTTP/1.1 400"), "{new}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_is_met_before_the_body_is_sent() {
    let echo = Server::http(|_, request| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap();
        text(200, body.to_bytes())
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[echo.address])).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let mut stream = TcpStream::connect(door).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\
                Connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = [0u8; 25];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("body"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_19_rapid_reset_reaches_the_upstream_rarely_and_ends_the_connection() {
    let app = Server::http(|_, _| std::future::pending()).await;
    let mut all = http_service("user", &[app.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    let stream = TcpStream::connect(bed.listener()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let (mut sent, many) = (0, 200_000);
    while sent < many {
        let Ok(ready) = client.clone().ready().await else { break };
        client = ready;
        let request = http::Request::get("http://a/").body(()).unwrap();
        let Ok((_, mut stream)) = client.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        sent += 1;
        // Whoever passes the goodbye on needs a turn, too, on a machine with much else to do.
        match sent % 100 {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            n if n % 10 == 0 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    assert!(sent < many, "the connection was never ended");
    assert!(app.hits() <= 100, "{} requests reached the upstream", app.hits());
    // Others are served all the while.
    let other = send(bed.listener(), get("/../x", "a")).await;
    assert_eq!(other.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_31_http2_authority_and_host_must_agree() {
    let app = Server::named("user").await;
    let mut all = http_service("user", &[app.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    let stream = TcpStream::connect(bed.listener()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let mut client = client.ready().await.unwrap();
    for (host, status) in [("b", 400), ("a", 200), ("A.", 200)] {
        let request = http::Request::get("http://a/").header("host", host).body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), status, "{host}");
    }
}
