// SPDX-License-Identifier: Apache-2.0
//! Hostile and broken peers on both sides: each disturbs nobody but itself.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;

use super::bed::*;
use super::panics::{is_here, played_alone};

/// Sends raw bytes, half closes, and returns everything that comes back.
async fn raw(to: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    let reading = stream.read_to_end(&mut all);
    let _ = tokio::time::timeout(Duration::from_secs(60), reading).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn gateway_to(address: std::net::SocketAddr) -> Bed {
    let mut all = http_service("user", &[address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    Bed::gateway(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_01_ambiguous_framing_gets_400_and_nothing_is_forwarded() {
    let user = Server::named("user").await;
    let bed = gateway_to(user.address).await;
    for bad in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n\
         0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET /../x HTTP/1.1\r\nHost: a\r\n\r\n",
        "get / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    ] {
        // A second request behind it would be answered if framing were misread.
        let pipelined =
            format!("{bad}GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = raw(bed.listener(), pipelined.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{bad:?}: {answer}");
    }
    let ok = raw(
        bed.listener(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
          3\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    assert!(ok.starts_with("HTTP/1.1 200 "), "{ok}");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_heads_and_bodies_are_refused() {
    let user = Server::named("user").await;
    let mut config = config("gateway~shop~web");
    config.limits.body_bytes_max = 1_000_000;
    let bed = Bed::start(config, None).await;
    let mut all = http_service("user", &[user.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    bed.apply(1, all).await;
    let at = bed.listener();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let answer = raw(at, long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let many = "X: y\r\n".repeat(200);
    let answer = raw(at, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut big = client(at).await;
    let mut request = post("http://a/", vec![b'x'; 2_000_000]);
    request.headers_mut().insert("host", "a".parse().unwrap());
    if let Ok(got) = big.try_send(request).await {
        assert_eq!(got.status, 413, "{}", got.body);
    }
    assert_eq!(send(at, get("/", "a")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_garbage_connections_disturb_nobody() {
    if !is_here() {
        // Alone: what panics there is counted, and others' servers may panic in this process.
        played_alone(&["faults::ten_thousand_garbage_connections_disturb_nobody"]);
        return;
    }
    let user = Server::named("user").await;
    let bed = gateway_to(user.address).await;
    let at = bed.listener();
    let doors = [at, bed.proxy.addresses().admin, bed.proxy.addresses().ready];
    let before = weft_base::task::panics_total();
    let mut rng = weft_base::rng::Rng::seeded(42);
    for round in 0..100 {
        let garbage = (0..100).map(|i| {
            let mut bytes = vec![0u8; usize::try_from(rng.below(64)).unwrap()];
            bytes.iter_mut().for_each(|b| *b = rng.next_u64().to_le_bytes()[0]);
            let door = doors[i % doors.len()];
            async move {
                let Ok(mut stream) = TcpStream::connect(door).await else { return };
                let _ = stream.write_all(&bytes).await;
            }
        });
        futures_util::future::join_all(garbage).await;
        if round % 20 == 0 {
            assert_eq!(send(at, get("/", "a")).await.status, 200, "round {round}");
        }
    }
    assert_eq!(send(at, get("/", "a")).await.status, 200);
    assert_eq!(weft_base::task::panics_total(), before);
    wait_until("all garbage connections are gone", || async {
        let admin = bed.proxy.addresses().admin;
        let stats = send(admin, get("/stats", "127.0.0.1")).await.body;
        stats.lines().any(|l| {
            l.strip_prefix("weft_downstream_connections_open: ")
                .is_some_and(|n| n.parse::<u32>().unwrap() <= 2)
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_that_send_garbage_are_bad_gateways() {
    let garbage = Server::raw(|_, mut stream| async move {
        let _ = stream.read(&mut [0u8; 512]).await;
        let _ = stream.write_all(b"\x00\x01\x02 this is not HTTP\r\n\r\n").await;
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[garbage.address])).await;
    let got = bed.send(post("http://user/", "x")).await;
    assert_eq!((got.status, got.header("x-weft-flags")), (502, "UPE"), "{}", got.body);
    assert_eq!(garbage.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alive_connections_that_the_app_closes_fail_nothing() {
    // Each connection answers one request with keep-alive, and then closes all the same.
    let closing = Server::raw(|_, mut stream| async move {
        let _ = stream.read(&mut [0u8; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let bed = Bed::sidecar(http_service("user", &[closing.address])).await;
    let mut client = client(bed.outbound()).await;
    for i in 0..200 {
        let got = client.send(get("http://user/", "user")).await;
        assert_eq!(got.status, 200, "request {i}: {}", got.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f10_slow_heads_are_closed_in_time() {
    let user = Server::named("user").await;
    let mut config = config("gateway~shop~web");
    config.limits.header_timeout = Duration::from_millis(100);
    config.limits.idle_timeout = Duration::from_millis(300);
    let bed = Bed::start(config, None).await;
    let mut all = http_service("user", &[user.address]);
    all.push(gateway(None));
    bed.apply(1, all).await;
    let began = tokio::time::Instant::now();
    let mut slow = TcpStream::connect(bed.listener()).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let mut left = Vec::new();
    let _ = slow.read_to_end(&mut left).await;
    assert!(began.elapsed() < Duration::from_secs(8));
}

/// Whoever connects to a gateway has the time of one head for the first request, however little it
/// says; who has begun may be silent until the idle limit.
#[tokio::test(flavor = "multi_thread")]
async fn f10_who_never_asks_is_closed_in_time() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let user = Server::named("user").await;
    let mut config = config("gateway~shop~web");
    // Longer than a busy machine takes between a connection and its first request.
    config.limits.header_timeout = Duration::from_secs(6);
    let bed = Bed::start(config, None).await;
    let mut all = http_service("user", &[user.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    bed.apply(1, all).await;
    let mut asks = client(bed.listener()).await;
    assert_eq!(asks.send(get("/", "a")).await.status, 200);
    // A channel of gRPC before its first call.
    let mut channel = TcpStream::connect(bed.listener()).await.unwrap();
    channel.write_all(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat()).await.unwrap();
    let ended = async |first: &'static [u8], then: &'static [u8]| {
        let mut stream = TcpStream::connect(bed.listener()).await.unwrap();
        stream.write_all(first).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let trickle = async {
            for byte in then.chunks(1) {
                tokio::time::sleep(Duration::from_millis(1_000)).await;
                let _ = write.write_all(byte).await;
            }
            std::future::pending::<()>().await;
        };
        let mut left = Vec::new();
        let limit = Duration::from_secs(60);
        tokio::select! {
            end = tokio::time::timeout(limit, read.read_to_end(&mut left)) => end.is_ok(),
            () = trickle => unreachable!("it has no end"),
        }
    };
    let line = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let all = tokio::join!(
        ended(b"", b""),
        ended(b"", line),
        ended(b"G", line),
        ended(PREFACE, b""),
        ended(b"PRI", b""),
    );
    assert_eq!(all, (true, true, true, true, true));
    assert_eq!(asks.send(get("/", "a")).await.status, 200);
    // A PING is answered, behind what was said at the beginning.
    let ping = b"\0\0\x08\x06\0\0\0\0\x00weftweft";
    channel.write_all(ping).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"weftweft") {
        said.push(channel.read_u8().await.expect("it was closed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_request() {
    let stuck = Server::http(|_, _| std::future::pending()).await;
    let bed = Bed::sidecar(http_service("user", &[stuck.address])).await;
    let mut leaving = TcpStream::connect(bed.outbound()).await.unwrap();
    leaving.write_all(b"GET http://user/ HTTP/1.1\r\nHost: user\r\n\r\n").await.unwrap();
    wait_until("the request is in flight", || async { stuck.hits() == 1 }).await;
    drop(leaving);
    wait_until("it is counted as the client's doing", || async {
        bed.metrics().await.contains("response_flags=\"DC\"")
    })
    .await;
    wait_until("nothing is in flight", || async {
        let admin = bed.proxy.addresses().admin;
        send(admin, get("/clusters", "127.0.0.1")).await.body.contains("rq_active::0")
    })
    .await;
}
