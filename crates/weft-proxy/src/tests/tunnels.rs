// SPDX-License-Identifier: Apache-2.0
//! CONNECT is granted once there is somebody to speak to, and what a rule says of silence holds for
//! what has left HTTP too.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, peer, server};

const PACE: Duration = Duration::from_millis(25);

async fn echo() -> Server {
    Server::raw(|_, mut stream| async move {
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await
}

/// A listener that takes nobody any more, and who stands in its line: what knocks hears nothing.
pub(super) async fn black_hole() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut line = Vec::new();
    while let Ok(taken) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        line.push(taken.unwrap());
        assert!(line.len() < 64, "its line has no end");
    }
    (listener, line)
}

/// How many connections were counted with a flag.
async fn connections(bed: &Bed, flag: &str) -> u64 {
    let (metrics, flag) = (bed.metrics().await, format!("response_flags=\"{flag}\""));
    let lines = metrics.lines().filter(|l| l.starts_with("istio_tcp_connections_opened"));
    let counts = lines.filter(|l| l.contains(&flag)).filter_map(|l| l.rsplit(' ').next());
    counts.map(|n| n.parse::<u64>().unwrap()).sum()
}

/// Sends a head and reads the answer's, and its body when it says how long that is.
async fn asked(at: std::net::SocketAddr, ask: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |n| n.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    (stream, head + std::str::from_utf8(&body).unwrap())
}

fn connect(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

async fn is_echoed(stream: &mut TcpStream) -> bool {
    let mut back = [0u8; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut back).await.is_ok()
        && &back == b"ping"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_an_app_that_is_down_is_refused_with_the_reason() {
    let (ca, down) = (Ca::new(), nobody().await);
    let server = server(&ca, down, Protocol::Tcp).await;
    let only = vec![meshed(down, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Tcp, only).await;
    let (_, answer) = asked(client.outbound(), &connect("user:80")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("x-weft-flags: UF\r\n"), "{answer}");
    // What the app's own sidecar says of it, not only that it said no.
    for part in ["refused the tunnel with status 503: ", &format!("connecting to {down} failed")] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
    for bed in [&client, &server] {
        wait_until("it is counted", || async { connections(bed, "UF").await == 1 }).await;
    }
    // The same through a port of the service: the connection ends, and nothing was promised.
    let door = client.door(|d| matches!(d, crate::table::Door::Upstream { .. }));
    // It may be reset before this side has seen that it was there.
    if let Ok(mut stream) = TcpStream::connect(door).await {
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
    for bed in [&client, &server] {
        wait_until("another", || async { connections(bed, "UF").await == 2 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_app_that_answers_nothing_its_own_sidecar_speaks() {
    let (ca, (hole, _line)) = (Ca::new(), black_hole().await);
    let app = hole.local_addr().unwrap();
    let server = server(&ca, app, Protocol::Tcp).await;
    let only = vec![meshed(app, "user", Transport::MeshH1)];
    let client = peer(&ca, &server, Protocol::Tcp, only).await;
    // Both sides give a connection as long: who asked first must not stop waiting first.
    let (_, answer) = asked(client.outbound(), &connect("user:80")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let late = format!("connecting to {app} took longer than 1000 ms");
    for part in ["refused the tunnel with status 503: ", &late] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
}

/// Waits until an answer says all this of an instance whose check of bytes, over a tunnel to its
/// app, fails. A check that was held up by the machine may say something else before.
async fn is_said(app: std::net::SocketAddr, timeout_ms: u64, parts: &[&str]) {
    let ca = Ca::new();
    let server = server(&ca, app, Protocol::Tcp).await;
    let check = HealthCheck {
        kind: CheckKind::Tcp { send: Vec::new(), expect: Vec::new() },
        interval_ms: 20,
        timeout_ms,
        healthy: 1,
        unhealthy: 1,
        jitter_basis_points: 0,
        ..HealthCheck::default()
    };
    let protection = Protection { health_check: Some(check), ..Protection::default() };
    let policy =
        BackendPolicy { protection: Some(Box::new(protection)), ..BackendPolicy::default() };
    let client = peer(&ca, &server, Protocol::Http1, Vec::new()).await;
    let only = vec![meshed(app, "user", Transport::MeshH1)];
    client.apply(2, service("user", Protocol::Http1, policy, only)).await;
    wait_until(&format!("its check says {parts:?}"), async || {
        let said = client.get("http://user/").await.body;
        parts.iter().all(|part| said.contains(part))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_over_a_tunnel_says_what_it_waited_for_or_why_it_was_refused() {
    let (hole, _line) = black_hole().await;
    // Its sidecar waits for the app for a second, the check does not.
    let at = hole.local_addr().unwrap();
    let late = format!("its sidecar did not reach the app's port {} within 300 ms", at.port());
    is_said(at, 300, &["check", &late]).await;
    let down = nobody().await;
    let failed = format!("connecting to {down} failed");
    let refused = "refused the tunnel with status 503: ";
    is_said(down, 60_000, &["check", refused, &failed]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_one_instance_refuses_leads_to_another() {
    let (ca, down, app) = (Ca::new(), nobody().await, echo().await);
    let server = server(&ca, app.address, Protocol::Tcp).await;
    server.apply(2, vec![super::mtls::inbound(down, Protocol::Tcp)]).await;
    let both = [down, app.address].map(|at| meshed(at, "user", Transport::MeshH1));
    let client = peer(&ca, &server, Protocol::Tcp, both.to_vec()).await;
    for _ in 0..4 {
        let (mut stream, answer) = asked(client.outbound(), &connect("user:80")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(is_echoed(&mut stream).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_says_of_silence_holds_for_tunnels_and_upgrades() {
    let app = Server::raw(|_, mut stream| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"ping") {
            let Ok(byte) = stream.read_u8().await else { return };
            seen.push(byte);
            if seen.ends_with(b"\r\n\r\n") {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: other\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap();
            }
        }
        stream.write_all(b"ping").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    // Longer than a busy machine holds a test up between two of its steps.
    let idle = Duration::from_secs(5);
    let idle_ms = u64::try_from(idle.as_millis()).ok();
    let timeouts = Timeouts { idle_ms, ..Timeouts::default() };
    let method = Some(StringMatch::Exact("CONNECT".into()));
    let tunnels = Rule {
        matches: vec![Match { method, ..Match::default() }],
        timeouts: timeouts.clone(),
        ..rule("/", Action::Forward(vec![to("user", "", 1)]))
    };
    let others = Rule { timeouts, ..rule("/", Action::Forward(vec![to("user", "", 1)])) };
    let mut resources = http_service("user", &[app.address]);
    resources.push(gateway(None));
    resources.push(gateway_route("r", &[], vec![tunnels, others]));
    let bed = Bed::gateway(resources).await;
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
    let ends = async |ask: &str, granted: &str| {
        let (mut stream, answer) = asked(bed.listener(), ask).await;
        assert!(answer.contains(granted), "{answer}");
        // Before the last bytes, which nobody can have seen earlier.
        let began = Instant::now();
        assert!(is_echoed(&mut stream).await, "{ask}");
        let ended = timeout(Duration::from_secs(60), stream.read_u8()).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "{ask} was never ended");
        assert!(began.elapsed() >= idle, "{ask}: {:?}", began.elapsed());
    };
    let tunnel = connect("a:80");
    tokio::join!(ends(&tunnel, " 200 "), ends(upgrade, " 101 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_be_silent_while_its_answer_flows() {
    // Much more than the pace: the answer is silent for less, however busy the machine is.
    let silence = Duration::from_secs(4);
    // Says something all the time, and in the end what it was told.
    let app = Server::raw(|_, mut stream| async move {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            match timeout(PACE, stream.read_u8()).await {
                Ok(Ok(byte)) => seen.push(byte),
                Ok(Err(_)) => return,
                Err(_) => drop(stream.write_all(b"1\r\n.\r\n").await),
            }
        }
        let text = String::from_utf8(seen).unwrap().to_lowercase();
        let told = format!("{}", text.contains("first") && text.contains("second"));
        let last = format!("{:x}\r\n{told}\r\n0\r\n\r\n", told.len());
        stream.write_all(last.as_bytes()).await.unwrap();
    })
    .await;
    let mut config = config("gateway~shop~web");
    config.limits.stream_idle_timeout = silence;
    let bed = Bed::start(config, None).await;
    let mut resources = http_service("user", &[app.address]);
    resources.push(gateway(None));
    let all = rule("/", Action::Forward(vec![to("user", "", 1)]));
    resources.push(gateway_route("r", &[], vec![all]));
    bed.apply(1, resources).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    let (mut stream, answer) = asked(bed.listener(), post).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let began = Instant::now();
    let mut seen = Vec::new();
    while began.elapsed() < silence * 3 / 2 {
        seen.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    while !seen.ends_with(b"0\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    let text = String::from_utf8(seen).unwrap();
    assert!(text.ends_with("4\r\ntrue\r\n0\r\n\r\n"), "{text}");
}

/// Grants an upgrade, if it begins with that, and echoes from then on.
async fn granting() -> Server {
    Server::raw(|_, mut stream| async move {
        let mut first = [0; 4];
        if stream.peek(&mut first).await.is_ok() && &first[..3] == b"GET" {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                seen.push(byte);
            }
            let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                          upgrade: other\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
        }
        let (mut r, mut w) = stream.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await
}

/// A gateway that takes CONNECT and upgrades by rules with these time-outs, and its log.
async fn noted(timeouts: Timeouts) -> (Bed, Server, super::noticed::Log) {
    let app = granting().await;
    let format = "%REQ(:METHOD)% %RESPONSE_CODE% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% \
                  %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %DURATION%";
    let (mut config, log) = super::noticed::Log::of("gateway~shop~web", format);
    config.drain_grace = Duration::from_millis(50);
    let method = Some(StringMatch::Exact("CONNECT".into()));
    let tunnels = Rule {
        matches: vec![Match { method, ..Match::default() }],
        timeouts: timeouts.clone(),
        ..rule("/", Action::Forward(vec![to("user", "", 1)]))
    };
    let others = Rule { timeouts, ..rule("/", Action::Forward(vec![to("user", "", 1)])) };
    let mut resources = http_service("user", &[app.address]);
    resources.push(gateway(None));
    resources.push(gateway_route("r", &[], vec![tunnels, others]));
    let bed = Bed::start(config, None).await;
    bed.apply(1, resources).await;
    (bed, app, log)
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";

/// The line of a request, once it is there, without how long it took, and that.
async fn line_of(log: &super::noticed::Log, method: &str) -> (String, u64) {
    let find = || log.lines().into_iter().find(|line| line.starts_with(method));
    wait_until("its line is written", || async { find().is_some() }).await;
    let line = find().unwrap();
    let (line, ms) = line.rsplit_once(' ').unwrap();
    (line.to_owned(), ms.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnels_record_is_written_at_its_end_with_all_that_moved() {
    let (bed, app, log) = noted(Timeouts::default()).await;
    for (ask, granted, said) in [
        (connect("a:80"), " 200 ", "CONNECT 200 8 8 -"),
        (UPGRADE.to_owned(), " 101 ", "GET 101 8 8 -"),
    ] {
        let (mut stream, answer) = asked(bed.listener(), &ask).await;
        assert!(answer.contains(granted), "{answer}");
        assert!(is_echoed(&mut stream).await);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(is_echoed(&mut stream).await);
        drop(stream);
        let (line, ms) = line_of(&log, said.split(' ').next().unwrap()).await;
        assert_eq!(line, format!("{said} via_upstream {}", app.address));
        assert!(ms >= 60, "{ms} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_the_proxys_end_cuts_off_says_so_and_what_moved() {
    let (bed, _app, log) = noted(Timeouts::default()).await;
    let (mut stream, _) = asked(bed.listener(), &connect("a:80")).await;
    assert!(is_echoed(&mut stream).await);
    bed.proxy.drain().await;
    let (line, _) = line_of(&log, "CONNECT").await;
    assert!(line.starts_with("CONNECT 200 4 4 DC "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_was_never_answered_is_no_success() {
    let (hole, _line) = black_hole().await;
    let format = "%REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION%";
    let (config, log) = super::noticed::Log::of("sidecar~shop~client-1", format);
    let bed = Bed::start(config, None).await;
    let policy = BackendPolicy { connect_timeout_ms: 60_000, ..BackendPolicy::default() };
    let only = vec![endpoint("a", hole.local_addr().unwrap())];
    bed.apply(1, service("user", Protocol::Tcp, policy, only)).await;
    let mut stream = TcpStream::connect(bed.outbound()).await.unwrap();
    stream.write_all(connect("user:80").as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(line_of(&log, "CONNECT").await.0, "CONNECT 0 DC");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_stream_ends_tunnels_in_which_bytes_move() {
    // Longer than a busy machine takes until it is granted.
    let longest = Duration::from_millis(3_000);
    let timeouts = Timeouts { stream_ms: Some(3_000), ..Timeouts::default() };
    let (bed, _app, log) = noted(timeouts).await;
    for ask in [connect("a:80"), UPGRADE.to_owned()] {
        let (method, began) = (ask.split(' ').next().unwrap(), Instant::now());
        let (mut stream, _) = asked(bed.listener(), &ask).await;
        let moving = async { while is_echoed(&mut stream).await {} };
        let ended = timeout(Duration::from_secs(60), moving).await;
        assert!(ended.is_ok(), "{method} was never ended");
        assert!(began.elapsed() >= longest, "{method}: {:?}", began.elapsed());
        let (line, ms) = line_of(&log, method).await;
        assert!(line.contains(" DT ") && ms >= 3_000, "{line} {ms}");
    }
}
