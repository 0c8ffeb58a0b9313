// SPDX-License-Identifier: Apache-2.0
//! gRPC with real tonic peers: unary, streaming, trailers, trailers-only, local errors.

use std::time::Duration;

use http_body_util::BodyExt;
use tonic::Code;
use tonic::transport::{Channel, Endpoint as Grpc, Server as GrpcServer};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::HealthReporter;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, peer, server};
use crate::table::Door;

struct Health {
    address: std::net::SocketAddr,
    reporter: HealthReporter,
    tasks: TaskGroup,
}

async fn health() -> Health {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("up", ServingStatus::Serving).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("grpc server", async move {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        GrpcServer::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    Health { address, reporter, tasks }
}

async fn channel(bed: &Bed) -> HealthClient<Channel> {
    let address = bed.door(|d| matches!(d, Door::Upstream { .. }));
    let channel = Grpc::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    HealthClient::new(channel)
}

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

fn is_serving(status: i32) -> bool {
    status == ServingStatus::Serving as i32
}

#[tokio::test(flavor = "multi_thread")]
async fn unary_streaming_and_errors_through_two_sidecars() {
    let ca = Ca::new();
    let health = health().await;
    let far = server(&ca, health.address, Protocol::Grpc).await;
    let endpoints = vec![meshed(health.address, "user", Transport::MeshH2)];
    let near = peer(&ca, &far, Protocol::Grpc, endpoints).await;
    let mut client = channel(&near).await;
    // Unary, many at a time on one connection.
    let calls = (0..50).map(|_| {
        let mut client = client.clone();
        async move { client.check(ask("up")).await.unwrap().into_inner().status }
    });
    let statuses = futures_util::future::join_all(calls).await;
    assert!(statuses.into_iter().all(is_serving));
    // A server's own error is passed on as it is.
    let error = client.check(ask("nobody")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "service not registered"));
    // A stream: messages arrive when they are sent, not when it ends.
    let mut watch = client.watch(ask("up")).await.unwrap().into_inner();
    assert!(is_serving(watch.message().await.unwrap().unwrap().status));
    health.reporter.set_service_status("up", ServingStatus::NotServing).await;
    assert!(!is_serving(watch.message().await.unwrap().unwrap().status));
    drop(watch);
    wait_until("the calls are counted with their gRPC status", || async {
        let metrics = near.metrics().await;
        metrics.contains("request_protocol=\"grpc\"")
            && metrics.contains("grpc_response_status=\"0\"")
            && metrics.contains("grpc_response_status=\"5\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_errors_are_grpc_errors_with_the_sentence() {
    let all = service("user", Protocol::Grpc, BackendPolicy::default(), Vec::new());
    let bed = Bed::sidecar(all).await;
    let error = channel(&bed).await.check(ask("up")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("it has no instances"), "{error}");
    assert_eq!(error.metadata().get("x-weft-flags").unwrap(), "UH");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_left_and_declared_calls_go_on() {
    let (a, b) = (health().await, health().await);
    let endpoints = vec![endpoint("a", a.address), endpoint("b", b.address)];
    let mut all = service("user", Protocol::Grpc, BackendPolicy::default(), endpoints);
    let mut declared = rule("/", Action::Forward(vec![to("user", "", 1)]));
    declared.retry.declared_idempotent = true;
    all.push(mesh_route("user", vec![declared]));
    let bed = Bed::sidecar(all).await;
    let mut client = channel(&bed).await;
    for i in 0..200 {
        if i == 50 {
            a.tasks.shutdown(Duration::ZERO).await;
        }
        let status = client.check(ask("up")).await.unwrap_or_else(|e| panic!("call {i}: {e}"));
        assert!(is_serving(status.into_inner().status));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http1_client_reaches_an_http2_server_with_trailers() {
    let health = health().await;
    let all = service(
        "user",
        Protocol::Http2,
        BackendPolicy::default(),
        vec![endpoint("a", health.address)],
    );
    let bed = Bed::sidecar(all).await;
    // The empty message of a health check, by hand.
    let request = http::Request::post("http://user/grpc.health.v1.Health/Check")
        .header("host", "user")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(&[0, 0, 0, 0, 0])))
        .unwrap();
    let stream = tokio::net::TcpStream::connect(bed.outbound()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    assert_eq!(collected.to_bytes().as_ref(), [0, 0, 0, 0, 2, 8, 1]);
    assert_eq!(trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_limit_holds_without_a_route() {
    let never = Server::http(|_, _| std::future::pending()).await;
    let bed = Bed::sidecar(http_service("user", &[never.address])).await;
    let ask = |timeout: &str| {
        http::Request::post("http://user/x.Y/Z")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .body(http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5])))
            .unwrap()
    };
    let got = bed.send(ask("80m")).await;
    assert_eq!((got.status, got.header("grpc-status")), (200, "4"));
    let message = got.header("grpc-message");
    assert!(message.contains("no response within 80 ms (grpc-timeout of its client)"), "{message}");
    // What is no number limits nothing: the request is still waiting when the client leaves.
    let waiting = tokio::time::timeout(Duration::from_millis(300), bed.send(ask("soon"))).await;
    assert!(waiting.is_err());
}

/// Answers with a message, then with this status in the trailers.
async fn trailing(status: &'static str) -> Server {
    Server::raw(move |_, stream| async move {
        let service = hyper::service::service_fn(move |_| async move {
            let data = hyper::body::Frame::data(bytes::Bytes::from_static(&[0; 5]));
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static(status));
            let frames = [data, hyper::body::Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, std::convert::Infallible>);
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
            let answer = http::Response::builder().header("content-type", "application/grpc");
            Ok::<_, std::convert::Infallible>(answer.body(body).unwrap())
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(stream);
        let _ =
            hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_said_in_trailers_eject_too() {
    let (good, bad) = (trailing("0").await, trailing("14").await);
    let endpoints = vec![endpoint("good", good.address), endpoint("bad", bad.address)];
    let outlier =
        Outlier { consecutive_failures: 3, base_ejection_ms: 60_000, ..Outlier::default() };
    let policy = BackendPolicy { outlier, ..BackendPolicy::default() };
    let bed = Bed::sidecar(service("user", Protocol::Grpc, policy, endpoints)).await;
    let ask = || {
        http::Request::post("http://user/x.Y/Z")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5])))
            .unwrap()
    };
    wait_until("the bad one is ejected", || async {
        bed.send(ask()).await;
        let table = bed.proxy.status().table.load();
        let backend = &table.host("user").unwrap().backends["backend/80"];
        let ejected = |id: &str| {
            let found = backend.endpoints.iter().find(|e| &*e.endpoint.id == id).unwrap();
            found.shared.ejected_until.load(std::sync::atomic::Ordering::Relaxed) != 0
        };
        assert!(!ejected("good"));
        ejected("bad")
    })
    .await;
    // The good one alone is asked now.
    let status = |line: &str| line.contains("grpc_response_status=\"14\"");
    let failures = async || {
        let metrics = bed.metrics().await;
        let line = metrics.lines().find(|l| l.starts_with("istio_requests_total{") && status(l));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<usize>().ok()).unwrap_or(0)
    };
    let before = failures().await;
    assert!(before >= 3);
    for _ in 0..20 {
        bed.send(ask()).await;
    }
    assert_eq!(failures().await, before);
}

/// What refuses a browser's call before anybody knows its backend is told as gRPC-Web, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_call_that_is_refused_early_is_told_in_grpc() {
    let bed = Bed::gateway(vec![gateway(None)]).await;
    let call = async |kind: &'static str| {
        let mut request = get("/a.Service/Call", "a");
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
        let got = send(bed.listener(), request).await;
        (got.status, got.header("content-type").to_owned(), got.header("grpc-status").to_owned())
    };
    for (kind, told) in [
        ("application/grpc-web", "application/grpc-web+proto"),
        ("application/grpc-web-text+proto", "application/grpc-web-text+proto"),
        ("application/grpc", "application/grpc"),
    ] {
        assert_eq!(call(kind).await, (200, told.into(), "12".into()), "{kind}");
    }
    let plain = (404, "text/plain; charset=utf-8".into(), String::new());
    assert_eq!(call("application/grpc-websocket").await, plain);
}
