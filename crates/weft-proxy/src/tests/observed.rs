// SPDX-License-Identifier: Apache-2.0
//! What is known afterwards: log lines, ids, metrics over several workers.

use http::Request;
use http_body_util::Full;
use weft_model::*;

use super::bed::*;
use crate::config::{LogFormat, LogWhat};

async fn logged(format: LogFormat, what: LogWhat) -> Vec<String> {
    let user = Server::named("user").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let mut config = config("sidecar~shop~client-1");
    config.access_log.what = what;
    config.access_log.format = format;
    config.access_log.path = Some(path.clone());
    let bed = Bed::start(config, None).await;
    let mut all = http_service("user", &[user.address]);
    all.extend(http_service("gone", &[nobody().await]));
    bed.apply(1, all).await;
    let ok = Request::get("http://user/a?b=%22c")
        .header("user-agent", "agent \"x\"")
        .header("x-request-id", "id-1");
    assert_eq!(bed.send(ok.body(Full::default()).unwrap()).await.status, 200);
    assert_eq!(bed.get("http://gone/").await.status, 503);
    let lines = match what {
        LogWhat::Everything => 2,
        _ => 1,
    };
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    wait_until("the lines are written", || async { read().lines().count() == lines }).await;
    read().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_log_has_every_field_and_the_sentence() {
    let lines = logged(LogFormat::Json, LogWhat::Everything).await;
    let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let ok = lines.iter().map(|l| parse(l)).find(|l| l["response_code"] == 200).unwrap();
    assert_eq!((&ok["method"], &ok["path"]), (&"GET".into(), &"/a?b=%22c".into()));
    assert_eq!((&ok["user_agent"], &ok["request_id"]), (&"agent \"x\"".into(), &"id-1".into()));
    assert_eq!(ok["upstream_cluster"], "outbound|80||user.shop.svc.cluster.local");
    assert!(ok.get("sentence").is_none() && ok["bytes_sent"] == 4);
    let failed = lines.iter().map(|l| parse(l)).find(|l| l["response_code"] == 503).unwrap();
    assert_eq!((&failed["response_flags"], &failed["attempts"]), (&"UF,URX".into(), &3.into()));
    let sentence = failed["sentence"].as_str().unwrap();
    assert!(sentence.contains("instances healthy: 1 of 1") && sentence.contains("next: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_log_of_failures_is_istios_format() {
    let lines = logged(LogFormat::Text, LogWhat::Failures).await;
    let line = lines.first().unwrap();
    let details = "upstream_reset_before_response_started{connection_failure}";
    assert!(line.starts_with('['), "{line}");
    assert!(line.contains(&format!("\"GET / HTTP/1.1\" 503 UF,URX {details} - \"")), "{line}");
    assert!(line.ends_with(" - - generation=1 node=sidecar~shop~client-1"), "{line}");
    assert!(line.contains("no connection to an instance was possible"), "{line}");
    assert!(line.contains(" outbound|80||gone.shop.svc.cluster.local - "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_connections_have_their_line_and_their_sentence() {
    let greeting = Server::raw(|_, mut stream| async move {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await;
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let mut config = config("sidecar~shop~client-1");
    config.access_log.what = LogWhat::Everything;
    config.access_log.format = LogFormat::Json;
    config.access_log.path = Some(path.clone());
    let bed = Bed::start(config, None).await;
    let up = vec![endpoint("a", greeting.address)];
    bed.apply(1, service("user", Protocol::Tcp, BackendPolicy::default(), up)).await;
    let door = bed.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    let lines = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let parse = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap();
        text.lines().map(parse).collect::<Vec<_>>()
    };
    let visit = async || {
        let mut all = Vec::new();
        // A connection without an instance is reset, maybe before its client looks.
        if let Ok(mut stream) = tokio::net::TcpStream::connect(door).await {
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all).await;
        }
        all
    };
    assert_eq!(visit().await, b"hello");
    wait_until("its line", || async { lines().len() == 1 }).await;
    let line = lines().remove(0);
    assert_eq!((&line["bytes_sent"], &line["response_flags"]), (&5.into(), &"-".into()));
    assert_eq!(line["upstream_cluster"], "outbound|80||user.shop.svc.cluster.local");
    let down = vec![endpoint("a", nobody().await)];
    bed.apply(2, vec![endpoints_of("user", Protocol::Tcp, down)]).await;
    visit().await;
    wait_until("the second line", || async { lines().len() == 2 }).await;
    let line = lines().remove(1);
    assert_eq!(line["response_flags"], "UF");
    let sentence = line["sentence"].as_str().unwrap();
    for part in ["connecting to 127.0.0.1:", "user.shop", "1 of 1", "next: "] {
        assert!(sentence.contains(part), "{part} in {sentence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_an_id_and_a_trace_to_the_app() {
    let echo = Server::http(|_, request| async move {
        let seen = |name: &str| {
            request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned()
        };
        text(200, format!("{} {} {}", seen("x-request-id"), seen("traceparent"), seen("x-weft-a")))
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[echo.address])).await;
    let made = bed.get("http://user/").await.body;
    let parts: Vec<&str> = made.split(' ').collect();
    assert_eq!((parts[0].len(), parts[1].len()), (36, 55), "{made}");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = Request::get("http://user/")
        .header("x-request-id", "mine")
        .header("traceparent", trace)
        .header("x-weft-a", "forged");
    let kept = bed.send(request.body(Full::default()).unwrap()).await.body;
    assert_eq!(kept, format!("mine {trace} -"));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_serve_one_table_and_one_sum_of_metrics() {
    let (a, b) = (Server::named("a").await, Server::named("b").await);
    let mut config = config("sidecar~shop~client-1");
    config.workers = 3;
    let bed = Bed::start(config, None).await;
    bed.apply(1, http_service("user", &[a.address])).await;
    for _ in 0..40 {
        assert_eq!(bed.get("http://user/").await.body, "a");
    }
    bed.apply(2, http_service("user", &[b.address])).await;
    // Every worker has passed the swap by now: no connection sees the old table.
    for _ in 0..40 {
        assert_eq!(bed.get("http://user/").await.body, "b");
    }
    wait_until("all requests are counted", || async {
        let metrics = bed.metrics().await;
        let counts = metrics.lines().filter(|l| l.starts_with("istio_requests_total{"));
        let sum: u64 = counts.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        sum == 80
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f21_a_million_paths_are_no_million_series() {
    let user = Server::named("user").await;
    let bed = Bed::sidecar(http_service("user", &[user.address])).await;
    let mut client = client(bed.outbound()).await;
    for i in 0..500 {
        let mut request = get(&format!("http://user/{i}?q={i}"), &format!("host-{i}"));
        *request.method_mut() = format!("M{i}").parse().unwrap();
        client.send(request).await;
    }
    let metrics = bed.metrics().await;
    let series = metrics.lines().filter(|l| l.starts_with("istio_requests_total{")).count();
    assert!(series <= 3, "{series} series");
}

#[test]
fn sizes_of_what_every_request_has() {
    // Budgets, both ways: growth must be meant, and what shrank is written down here.
    let record = std::mem::size_of::<crate::observe::record::Record>();
    assert!((400..=900).contains(&record), "a record has {record} bytes");
    let conn = std::mem::size_of::<crate::worker::Conn>();
    assert!((100..=328).contains(&conn), "a connection's facts have {conn} bytes");
    let endpoint = std::mem::size_of::<Endpoint>();
    assert!(endpoint <= 256, "an endpoint has {endpoint} bytes");
}

#[tokio::test]
async fn sizes_of_what_every_connection_holds() {
    use std::rc::Rc;
    let (reporter, _ejector) = crate::upstream::outlier::ejector(weft_base::clock::Clock::system());
    let config = std::sync::Arc::new(config("sidecar~shop~client-1"));
    let dialer = crate::upstream::connect::Dialer {
        source: None,
        tls: None,
        mesh_port: MESH_PORT,
        config: config.clone(),
    };
    let shared = crate::worker::Shared {
        names: crate::worker::Names::of(&config, None),
        dialer: std::sync::Arc::new(dialer),
        server_tls: None,
        config,
        clock: weft_base::clock::Clock::system(),
        reporter,
        on_demand: crate::on_demand::channel(&Default::default()).0,
        log_lines: tokio::sync::mpsc::channel(1).0,
        buckets: Default::default(),
        pressure: Default::default(),
        resolver: crate::upstream::resolver::Resolver::system(weft_base::clock::Clock::system()),
        neighbours: crate::worker::neighbours::Neighbours::new(1).0,
        cache: std::sync::Arc::new(crate::http::cache::Store::new(0)),
    };
    let metrics = crate::observe::metrics::WorkerMetrics::new(Default::default(), 1);
    let table = std::sync::Arc::new(crate::table::Table::default());
    let worker = crate::worker::Worker::new(0, shared, metrics, table);
    let address: std::net::SocketAddr = ([127, 0, 0, 1], 1).into();
    let conn = || crate::worker::Conn::new(crate::table::Door::Forward, address, address);
    let (serving, streaming) = crate::http::serve::connection_bytes();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = crate::tcp::accept::Accepted {
        stream,
        remote: address,
        door: conn().door,
        open: worker.open_connection().map(Rc::new),
    };
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let looking = crate::tcp::accept::http(worker.clone(), stream, Rc::new(conn()));
    let looking = std::mem::size_of_val(&looking);
    let beginning = crate::http::serve::beginning_bytes();
    let accept = crate::tcp::accept::connection(worker, accepted);
    let accepted = std::mem::size_of_val(&accept);
    let handling = size_of_future(crate::http::phases::handle);
    // Every one of these is held by an idle connection, so growth must be meant.
    assert!((600..=1_200).contains(&serving), "serving holds {serving} bytes");
    assert!((200..=640).contains(&streaming), "a stream and its buffers hold {streaming} bytes");
    // These only until it is known what is spoken, and until HTTP/2 has begun: anybody may connect
    // and say no more.
    assert!((100..=400).contains(&accepted), "a connection's task holds {accepted} bytes");
    assert!((300..=900).contains(&looking), "looking at first bytes holds {looking} bytes");
    assert!((300..=900).contains(&beginning), "beginning HTTP/2 holds {beginning} bytes");
    assert!((100..=640).contains(&handling), "a request's future holds {handling} bytes");
}

fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    std::mem::size_of::<F>()
}
