// SPDX-License-Identifier: Apache-2.0
//! Each kind of check against a real peer, and where none may go.

use std::net::IpAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::*;
use crate::checks::reach::refusal;

fn of(probe: Probe) -> CheckDefinition {
    CheckDefinition { probe, timeout_ms: 60_000, ..CheckDefinition::default() }
}

fn http(url: &str) -> Probe {
    Probe::Http {
        url: url.into(),
        method: String::new(),
        header: BTreeMap::new(),
        body: String::new(),
        tls_skip_verify: false,
        tls_server_name: String::new(),
    }
}

async fn asked(probe: Probe) -> (Status, String) {
    ask::ask(&of(probe)).await.unwrap()
}

#[tokio::test]
async fn udp_passes_when_it_is_answered_or_met_with_silence_and_fails_when_nobody_is_there() {
    let address = format!("127.0.0.1:{}", weft_testkit::ports::free());
    let socket = UdpSocket::bind(&address).await.unwrap();
    let probe = Probe::Udp { address: address.clone() };
    let well = (Status::Passing, format!("UDP connect {address}: Success"));
    assert_eq!(asked(probe.clone()).await, well, "silence");
    let answers = async {
        let mut buffer = [0; 16];
        // The first one waited here since the question before.
        for _ in 0..2 {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            assert_eq!(length, 0);
            socket.send_to(b"yes", from).await.unwrap();
        }
    };
    let (said, ()) = tokio::join!(asked(probe.clone()), answers);
    assert_eq!(said, well, "an answer");
    drop(socket);
    let (status, why) = asked(probe).await;
    assert_eq!(status, Status::Critical);
    assert_eq!(why, format!("dial udp {address}: connect: connection refused"));
}

#[tokio::test]
async fn an_http2_ping_is_echoed_by_a_real_server_and_by_nobody_else() {
    let address = format!("127.0.0.1:{}", weft_testkit::ports::free());
    let listener = TcpListener::bind(&address).await.unwrap();
    let probe = Probe::H2Ping {
        address: address.clone(),
        tls: false,
        tls_skip_verify: false,
        tls_server_name: String::new(),
    };
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(async |_| {
            let empty = http_body_util::Empty::<bytes::Bytes>::new();
            Ok::<_, std::convert::Infallible>(http::Response::new(empty))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // The check just closes its connection.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    };
    let (said, ()) = tokio::join!(asked(probe.clone()), serve);
    assert_eq!(said, (Status::Passing, "HTTP2 ping was successful".to_owned()));

    // HTTP/1 answers, but not with settings; and one that says nothing runs out of time.
    let http1 = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut [0; 256]).await;
    };
    let (said, ()) = tokio::join!(asked(probe.clone()), http1);
    assert_eq!(said.0, Status::Critical);
    assert!(said.1.contains("does not speak HTTP/2"), "{}", said.1);
    let definition = CheckDefinition { timeout_ms: 50, ..of(probe.clone()) };
    let said = ask::ask(&definition).await.unwrap();
    assert_eq!(said, (Status::Critical, "no answer within 50 ms".to_owned()));
    drop(listener);
    let (status, why) = asked(probe).await;
    assert_eq!(status, Status::Critical);
    assert!(why.starts_with(&format!("Failed to dial to {address}: dial tcp")), "{why}");
}

/// A peer with a certificate that no system knows: hands over the name that each client asked for,
/// and whether it took the certificate.
async fn stranger() -> (String, TaskGroup, tokio::sync::mpsc::Receiver<(String, bool)>) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let ca = weft_identity::Authority::open(dir.path(), None, &clock).unwrap();
    let long = Duration::from_hours(1);
    let key = ca.door_certificate(&[], &["127.0.0.1".parse().unwrap()], long).unwrap();
    let config = weft_identity::tls::door_server(Arc::new(key), weft_identity::Alpn::Both, &clock);
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (met, clients) = tokio::sync::mpsc::channel(8);
    let tasks = TaskGroup::new();
    tasks.spawn("stranger", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hello = tokio_rustls::LazyConfigAcceptor::new(Default::default(), stream);
            let hello = hello.await.unwrap();
            let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
            let done = hello.into_stream(config.clone()).await;
            met.send((name, done.is_ok())).await.unwrap();
        }
    });
    (address, tasks, clients)
}

#[tokio::test]
async fn every_kind_of_check_over_tls_verifies_unless_told_otherwise_and_names_the_server() {
    let (address, _tasks, mut clients) = stranger().await;
    let kinds = |tls_skip_verify, name: &str| {
        let (tls, tls_server_name, address) = (true, name.to_owned(), address.clone());
        let mut https = http(&format!("https://{address}/"));
        if let Probe::Http { tls_skip_verify: skip, tls_server_name: to, .. } = &mut https {
            (*skip, *to) = (tls_skip_verify, tls_server_name.clone());
        }
        let (to, at) = (tls_server_name.clone(), address.clone());
        [
            https,
            Probe::Tcp { address: at.clone(), tls, tls_skip_verify, tls_server_name: to.clone() },
            Probe::Grpc { target: at, tls, tls_skip_verify, tls_server_name: to },
            Probe::H2Ping { address, tls, tls_skip_verify, tls_server_name },
        ]
    };
    for probe in kinds(false, "") {
        let (status, why) = asked(probe.clone()).await;
        assert_eq!(status, Status::Critical, "{probe:?}");
        assert!(why.contains("certificate"), "{probe:?}: {why}");
        assert_eq!(clients.recv().await.unwrap(), (String::new(), false), "{probe:?}");
    }
    for probe in kinds(true, "shop.example") {
        // What it asks after that nobody answers here, but of TCP.
        let (status, why) = asked(probe.clone()).await;
        let passing = matches!(probe, Probe::Tcp { .. });
        assert_eq!(status == Status::Passing, passing, "{probe:?}: {why}");
        assert_eq!(clients.recv().await.unwrap(), ("shop.example".to_owned(), true), "{probe:?}");
    }
}

/// Addresses that answer only to this machine, however they are written.
const OFF_LIMITS: [&str; 21] = [
    "169.254.169.254",
    "169.254.170.2",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fe80::1",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:1:a9:fea9:fe00:0",
    "2002:a9fe:a9fe::1",
    "::ffff:0:169.254.169.254",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd00:ec2:0:1::254",
    "fd20:ce::254",
    "fd00:42::42",
    "64:ff9b::6464:64c8",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
];

#[test]
fn reg_58_what_answers_only_this_machine_is_off_limits_however_it_is_written() {
    let refused = |text: &str| refusal(text.parse::<IpAddr>().unwrap());
    for text in OFF_LIMITS {
        assert!(refused(text).is_some(), "{text}");
    }
    for text in [
        "127.0.0.1",
        "::1",
        "::",
        "10.0.0.1",
        "192.168.1.1",
        "8.8.8.8",
        "2001:db8::1",
        "fd00:7766::1",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "fd00:ec3::254",
    ] {
        assert_eq!(refused(text), None, "{text}");
    }
}

#[tokio::test]
async fn reg_58_no_kind_of_check_goes_there() {
    let kinds = |host: &str| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let address = format!("{host}:80");
        let (tls, tls_skip_verify, tls_server_name) = (false, false, String::new());
        [
            // First what asks nothing, for who plays this without the guard.
            Probe::Udp { address: address.clone() },
            http(&format!("http://{address}/latest/meta-data/")),
            Probe::tcp(address.clone()),
            Probe::Grpc {
                target: format!("{address}/s"),
                tls,
                tls_skip_verify,
                tls_server_name: String::new(),
            },
            Probe::H2Ping { address, tls, tls_skip_verify, tls_server_name },
        ]
    };
    for host in OFF_LIMITS {
        for probe in kinds(host) {
            let (status, why) = asked(probe.clone()).await;
            assert!(why.contains("is not asked"), "{probe:?} went there: {why}");
            assert_eq!(status, Status::Critical);
        }
    }
}

#[tokio::test]
async fn reg_58_weft_can_tell_a_clients_check_from_its_own_questions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let seen = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let length = stream.read(&mut head).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&head[..length]).to_lowercase()
    };
    let mut probe = http(&url);
    if let Probe::Http { header, .. } = &mut probe {
        // Whoever defines the check cannot take the mark off.
        header.insert("X-Weft-Check".into(), vec!["".into()]);
        header.insert("X-Own".into(), vec!["kept".into()]);
    }
    let (said, head) = tokio::join!(asked(probe), seen);
    assert_eq!(said.0, Status::Passing);
    assert!(head.contains("\r\nx-weft-check: 1\r\n") && head.contains("x-own: kept"), "{head}");
    assert_eq!(head.matches("x-weft-check").count(), 1, "{head}");
}

#[tokio::test]
async fn who_a_url_names_is_shown_as_basic_and_is_no_part_of_the_host() {
    for (who, own, wanted) in [
        ("u:p%40%3a@", "", "authorization: basic dtpwqdo="),
        ("u@", "", "authorization: basic dto="),
        ("u:p@", "Bearer x", "authorization: bearer x"),
        ("", "", ""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..length]).to_lowercase()
        };
        let mut probe = http(&format!("http://{who}{at}/a@b"));
        if let (Probe::Http { header, .. }, false) = (&mut probe, own.is_empty()) {
            header.insert("Authorization".into(), vec![own.into()]);
        }
        let (said, head) = tokio::join!(asked(probe), seen);
        assert_eq!(said.0, Status::Passing, "{}", said.1);
        assert!(head.contains(&format!("\r\nhost: {at}\r\n")), "{head}");
        assert!(head.starts_with("get /a@b ") && head.contains(wanted), "{head}");
        let many = usize::from(!wanted.is_empty());
        assert_eq!(head.matches("authorization:").count(), many, "{head}");
    }
}

#[test]
fn an_output_is_cut_where_its_definition_says() {
    let of = |output_bytes_max| {
        let mut m = machine(CheckDefinition { output_bytes_max, ..CheckDefinition::default() });
        m.result(Status::Passing, &"x".repeat(9_000), Mono(0)).unwrap().1.len()
    };
    assert_eq!([of(10), of(0), of(8_000)], [10, 4096, 4096]);
}

#[test]
fn checks_that_begin_together_are_spread_over_their_interval() {
    let interval_ms = 10_000;
    let definition = CheckDefinition { interval_ms, ..CheckDefinition::default() };
    let mut slices = [0_u32; 10];
    for seed in 0..1_000 {
        let mut m = CheckMachine::new(&spec(definition.clone()), Mono(0), &mut Rng::seeded(seed));
        assert!(m.due().0 < 500, "nobody waits an interval for the first answer");
        let first = m.due();
        m.result(Status::Passing, "", first);
        slices[usize::try_from((m.due().0 - first.0) * 10 / interval_ms).unwrap()] += 1;
    }
    assert!(slices.iter().all(|n| (60..150).contains(n)), "{slices:?}");
}
