// SPDX-License-Identifier: Apache-2.0
//! What is done to a request, or refused, before routes are asked: `weft explain` says what a
//! client is answered that sends the same bytes.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;

/// Method, headers, and the status in common.
type Row<'r> = (&'r str, &'r [(&'r str, &'r str)], u16);

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A rule for requests with this header, which answers so.
fn answering(name: &str, value: &str, status: u16) -> Rule {
    let value = StringMatch::Exact(value.into());
    let named = NamedMatch { name: name.into(), value };
    let matches = vec![Match { headers: vec![named], ..Match::default() }];
    Rule { matches, ..rule("/", Action::Direct { status, body: "".into() }) }
}

/// Rules by headers that a proxy writes or takes away itself.
fn rules() -> Vec<Rule> {
    vec![
        answering("x-forwarded-for", "1.2.3.4", 201),
        answering("x-envoy-internal", "true", 203),
        answering("connection", "close", 204),
        answering("x-forwarded-proto", "http", 202),
        rule("/", Action::Forward(vec![to("user", "", 1)])),
    ]
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// What the proxy explains of itself, and what it does.
async fn both(bed: &Bed, at: std::net::SocketAddr, url: &str, row: &Row<'_>) -> (Value, u16) {
    let (method, headers, _) = row;
    let asked = headers.iter().map(|(n, v)| format!("&header={}", encoded(&format!("{n}:{v}"))));
    let mut query = format!("url={}&method={method}{}", encoded(url), asked.collect::<String>());
    if !url.starts_with("http://user") {
        // Its port is the system's choice.
        query.push_str("&listener=shop/web/8000");
    }
    let door = bed.proxy.addresses().admin;
    let said = send(door, get(&format!("/explain?{query}"), "127.0.0.1")).await;
    assert_eq!(said.status, 200, "{row:?}: {}", said.body);

    let authority = url.split('/').nth(2).unwrap();
    let own = headers.iter().any(|(name, _)| *name == "host");
    let (target, host) = match *method {
        "CONNECT" => (authority.to_owned(), authority),
        _ if url.starts_with("http://user") => (url.to_owned(), authority),
        _ => ("/".to_owned(), authority),
    };
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !own {
        text.push_str(&format!("host: {host}\r\n"));
    }
    headers.iter().for_each(|(n, v)| text.push_str(&format!("{n}: {v}\r\n")));
    text.push_str("\r\n");
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    let status = std::str::from_utf8(&status[9..]).unwrap().parse().unwrap();
    (serde_json::from_str(&said.body).unwrap(), status)
}

async fn agree(bed: &Bed, at: std::net::SocketAddr, url: &str, rows: &[Row<'_>]) {
    for row in rows {
        let (said, does) = both(bed, at, url, row).await;
        assert_eq!(does, row.2, "the proxy: {row:?}");
        let answer = &said["answer"];
        let status = match answer["kind"].as_str().unwrap() {
            "forwarded" => 200,
            _ => answer["status"].as_u64().unwrap_or_default(),
        };
        assert_eq!(status, u64::from(row.2), "explain: {row:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_sees_headers_as_a_gateways_routes_do() {
    let origin = Server::named("user").await;
    let mut all = http_service("user", &[origin.address]);
    all.extend([gateway(None), gateway_route("r", &[], rules())]);
    let bed = Bed::gateway(all).await;
    let at = bed.listener();
    let url = format!("http://a.x:{}/", at.port());
    agree(
        &bed,
        at,
        &url,
        &[
            ("GET", &[], 202),
            ("GET", &[("x-forwarded-for", "1.2.3.4")], 202),
            ("GET", &[("x-envoy-internal", "true")], 202),
            ("GET", &[("connection", "close")], 202),
            ("GET", &[("x-forwarded-proto", "https")], 202),
            ("GET", &[("x_y", "1")], 400),
            ("GET", &[("expect", "foo")], 417),
            ("GET", &[("content-length", "abc")], 400),
            ("POST", &[("content-length", "1"), ("transfer-encoding", "chunked")], 400),
            ("GET", &[("host", "z"), ("host", "y")], 400),
            ("CONNECT", &[], 405),
        ],
    )
    .await;
    let changed = ("GET", &[("x-envoy-internal", "true")][..], 202);
    let (said, _) = both(&bed, at, &url, &changed).await;
    let steps = said["steps"].as_array().unwrap();
    let told = steps.iter().find(|step| step["what"] == "header x-envoy-internal").unwrap();
    assert_eq!(told["value"], "taken away before routes are asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_judges_a_wish_for_a_websocket_that_would_be_passed_on() {
    let origin = Server::named("user").await;
    let mut all = http_service("user", &[origin.address]);
    let forward = rule("/", Action::Forward(vec![to("user", "", 1)]));
    all.extend([gateway(None), gateway_route("r", &[], vec![forward])]);
    let bed = Bed::gateway(all).await;
    let at = bed.listener();
    let url = format!("http://a.x:{}/", at.port());
    let wish: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "websocket")];
    let whole: &[(&str, &str)] = &[
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    // This server answers in HTTP.
    agree(&bed, at, &url, &[("GET", wish, 400), ("GET", whole, 200)]).await;
    let filters = vec![Filter::Upgrades(vec!["tls/1.0".into()])];
    let only = Rule { filters, ..rule("/", Action::Forward(vec![to("user", "", 1)])) };
    bed.apply(2, vec![gateway_route("r", &[], vec![only])]).await;
    agree(&bed, at, &url, &[("GET", whole, 403), ("GET", &[], 200)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_sees_headers_as_a_sidecars_routes_do() {
    let origin = Server::named("user").await;
    let mut all = http_service("user", &[origin.address]);
    all.push(mesh_route("user", rules()));
    let bed = Bed::sidecar(all).await;
    agree(
        &bed,
        bed.outbound(),
        "http://user:80/",
        &[
            ("GET", &[], 200),
            ("GET", &[("x-forwarded-for", "1.2.3.4")], 201),
            ("GET", &[("connection", "close")], 200),
            ("GET", &[("x_y", "1")], 200),
            ("GET", &[("x_real_ip", "1")], 400),
            ("GET", &[("expect", "foo")], 417),
            ("CONNECT", &[], 200),
        ],
    )
    .await;
    // What is inside of a tunnel nobody reads.
    let header = encoded("expect:foo");
    let query = format!("url={}&header={header}", encoded("https://user:80/a/../b"));
    let said = send(bed.proxy.addresses().admin, get(&format!("/explain?{query}"), "127.0.0.1"));
    let said: Value = serde_json::from_str(&said.await.body).unwrap();
    assert_eq!(said["answer"]["kind"], "forwarded", "{said}");
}
