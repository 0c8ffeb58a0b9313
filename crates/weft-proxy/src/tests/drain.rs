// SPDX-License-Identifier: Apache-2.0
//! Ending without breaking anything, and the doors that say so.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use weft_base::task::TaskGroup;
use weft_model::*;

use super::bed::*;

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_open_and_takes_nothing_new() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (begun, go) = (begun.clone(), go.clone());
        Server::http(move |_, _| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                text(200, "finished")
            }
        })
        .await
    };
    let bed = Bed::sidecar(http_service("user", &[slow.address])).await;
    let outbound = bed.outbound();
    let mut idle = client(outbound).await;
    let mut busy = client(outbound).await;
    let asked = busy.send(get("http://user/", "user"));
    let draining = async {
        begun.notified().await;
        let drained = bed.proxy.drain();
        let watching = async {
            wait_until("the door is closed", || async {
                TcpStream::connect(outbound).await.is_err()
            })
            .await;
            go.notify_one();
        };
        tokio::join!(drained, watching).0
    };
    let (got, clean) = tokio::join!(asked, draining);
    assert_eq!((got.body.as_str(), got.header("connection")), ("finished", "close"));
    assert!(clean);
    assert!(idle.try_send(get("http://user/", "user")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_clients_are_told_to_go_and_streams_finish() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (begun, go) = (begun.clone(), go.clone());
        Server::http(move |_, _| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                text(200, "finished")
            }
        })
        .await
    };
    let mut all = http_service("user", &[slow.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    let stream = TcpStream::connect(bed.listener()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    let request = Request::get("http://a/").body(Full::<bytes::Bytes>::default()).unwrap();
    let answer = sender.send_request(request);
    let draining = async {
        begun.notified().await;
        let release = async {
            tokio::task::yield_now().await;
            go.notify_one();
        };
        tokio::join!(bed.proxy.drain(), release).0
    };
    let (response, clean) = tokio::join!(answer, draining);
    let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "finished");
    assert!(clean);
    wait_until("the connection is closed", || async { sender.is_closed() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f09_clients_in_the_backlog_are_served_before_the_door_closes() {
    let user = Server::named("user").await;
    for _ in 0..5 {
        let bed = Bed::sidecar(http_service("user", &[user.address])).await;
        let outbound = bed.outbound();
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(TcpStream::connect(outbound).await.unwrap());
        }
        // They are connected, accepted or not; the door closes while they ask.
        let asking = streams.into_iter().map(|stream| async move {
            let mut client = client_on(stream).await;
            client.send(get("http://user/", "user")).await.status
        });
        let (statuses, clean) =
            tokio::join!(futures_util::future::join_all(asking), bed.proxy.drain());
        assert!(clean);
        assert_eq!(statuses, [200; 20]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_period_ends_what_does_not_end_by_itself() {
    let stuck = Server::http(|_, _| std::future::pending()).await;
    let mut config = config("sidecar~shop~client-1");
    config.drain_grace = Duration::from_millis(100);
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[stuck.address])).await;
    let mut client = client(bed.outbound()).await;
    let asking = client.try_send(get("http://user/", "user"));
    let draining = async {
        wait_until("the request is in flight", || async { stuck.hits() == 1 }).await;
        bed.proxy.drain().await
    };
    let (got, _) = tokio::join!(asking, draining);
    assert!(got.is_err(), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_successor_has_much_time_for_long_answers() {
    let go = Arc::new(Notify::new());
    let told = go.clone();
    let slow = Server::http(move |_, _| {
        let told = told.clone();
        async move {
            told.notified().await;
            text(200, "finished")
        }
    })
    .await;
    let mut config = config("sidecar~shop~client-1");
    config.drain_grace = Duration::from_millis(50);
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[slow.address])).await;
    let mut client = client(bed.outbound()).await;
    let asking = client.send(get("http://user/", "user"));
    let succeeding = async {
        wait_until("the request is in flight", || async { slow.hits() == 1 }).await;
        let later = async {
            // Much longer than a process has that nobody follows.
            tokio::time::sleep(Duration::from_millis(500)).await;
            go.notify_one();
        };
        tokio::join!(bed.proxy.succeed(), later).0
    };
    let (got, clean) = tokio::join!(asking, succeeding);
    assert_eq!(got.body, "finished");
    assert!(clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_doors_answer_with_envoys_paths() {
    let user = Server::named("user").await;
    let bed = Bed::start(config("sidecar~shop~client-1"), None).await;
    let addresses = bed.proxy.addresses();
    let ask = |to, path: &'static str| send(to, get(path, "127.0.0.1"));
    assert_eq!(ask(addresses.ready, "/healthz/ready").await.status, 503);
    bed.apply(3, http_service("user", &[user.address])).await;
    assert_eq!(ask(addresses.ready, "/healthz/ready").await.status, 200);
    assert_eq!(bed.get("http://user/").await.status, 200);
    assert_eq!(ask(addresses.admin, "/ready").await.body, "LIVE\n");
    let info: serde_json::Value =
        serde_json::from_str(&ask(addresses.admin, "/server_info").await.body).unwrap();
    assert_eq!((&info["state"], &info["weft"]["generation"]), (&"LIVE".into(), &3.into()));
    let clusters: serde_json::Value =
        serde_json::from_str(&ask(addresses.admin, "/clusters?format=json").await.body).unwrap();
    let host = &clusters["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["address"]["socket_address"]["port_value"], user.address.port());
    let dump = ask(addresses.admin, "/config_dump").await.body;
    assert!(dump.contains("user.shop.svc.cluster.local"), "{dump}");
    assert_eq!(ask(addresses.admin, "/quitquitquit").await.status, 405);
    // Not through anybody's browser.
    let page = Request::post("/quitquitquit").header("origin", "http://evil.example");
    let page = page.header("host", "127.0.0.1").body(Full::default()).unwrap();
    assert_eq!(send(addresses.admin, page).await.status, 403);
    assert_eq!(send(addresses.admin, get("/config_dump", "rebound.example")).await.status, 403);
    let quit =
        Request::post("/quitquitquit").header("host", "127.0.0.1").body(Full::default()).unwrap();
    assert_eq!(send(addresses.admin, quit).await.status, 200);
    bed.proxy.asked_to_quit().await;
    assert_eq!(ask(addresses.ready, "/healthz/ready").await.status, 503);
    let metrics = bed.metrics().await;
    for part in [
        "# TYPE istio_requests_total counter",
        "istio_requests_total{reporter=\"source\"",
        "istio_request_duration_milliseconds_bucket{",
        "destination_service=\"user.shop.svc.cluster.local\"",
        "source_workload=\"client-1\"",
        "weft_config_generation 3",
    ] {
        assert!(metrics.contains(part), "{part} in {metrics}");
    }
}
