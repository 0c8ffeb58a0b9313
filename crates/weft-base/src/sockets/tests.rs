// SPDX-License-Identifier: Apache-2.0
//! Sockets over a real door, with the caller and the other side in one process.

use std::io::{Read, Write};
use std::net::Ipv6Addr;

use tokio::io::AsyncReadExt;

use super::*;
use crate::limits::DOOR_EXCHANGES_PER_CALLER_MAX;
use crate::task::TaskGroup;

const LOOPBACK: &str = "127.0.0.1:0";
/// Long enough for a loaded machine; nothing waits for it when all is well.
const SOON: Duration = Duration::from_secs(60);

struct Rig {
    _dir: tempfile::TempDir,
    path: Arc<Path>,
    tasks: TaskGroup,
}

fn rig(rule: impl Fn(&Peer, &Ask) -> Result<(), String> + Send + Sync + 'static) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path: Arc<Path> = dir.path().join("door.sock").into();
    let (tasks, listener) = (TaskGroup::new(), bind_door(&path).unwrap());
    tasks.spawn("door", serve_door(listener, rule, tasks.clone()));
    Rig { _dir: dir, path, tasks }
}

fn open() -> Rig {
    rig(|peer, _| (peer.pid == Some(std::process::id())).then_some(()).ok_or("who?".into()))
}

impl Rig {
    fn factory(&self) -> SocketFactory {
        SocketFactory::Door(self.path.clone())
    }
}

#[test]
fn requests_are_read_as_they_were_written() {
    let v6 = std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 0, 7).into();
    let timeout = Duration::from_millis(1234);
    for ask in [
        Ask::Connect { to: "10.0.0.1:80".parse().unwrap(), timeout },
        Ask::Listen { at: v6, reuse_port: true },
        Ask::Listen { at: v6, reuse_port: false },
        Ask::Udp { peer: "[fd00::1]:53".parse().unwrap() },
        Ask::Datagrams { at: "[::]:53".parse().unwrap() },
    ] {
        let bytes = ask.encode();
        assert_eq!(Ask::decode(&bytes), Some(ask));
        // A bad version, operation, flag or family is no request.
        for at in 0..4 {
            let mut bad = bytes;
            bad[at] = 9;
            assert_eq!(Ask::decode(&bad), None, "byte {at} of {ask}");
        }
    }
}

proptest::proptest! {
    #[test]
    fn whatever_arrives_is_a_request_or_none(bytes in proptest::prelude::any::<[u8; 32]>()) {
        if let Some(ask) = Ask::decode(&bytes) {
            proptest::prop_assert_eq!(Ask::decode(&ask.encode()), Some(ask));
        }
        // And nearly a request.
        let mut near = bytes;
        near[..4].copy_from_slice(&[1, 1 + bytes[1] % 3, bytes[2] % 2, 4 + 2 * (bytes[3] % 2)]);
        if let Some(ask) = Ask::decode(&near) {
            proptest::prop_assert_eq!(Ask::decode(&ask.encode()), Some(ask));
        }
    }
}

#[tokio::test]
async fn a_listener_and_a_connection_come_through_a_door() {
    let rig = open();
    let factory = rig.factory();
    for at in [LOOPBACK, "[::1]:0"] {
        let listener = factory.listen_async(at.parse().unwrap(), false).await.unwrap();
        let at = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let client = factory.connect(at, SOON).await.unwrap();
        let (mut server, from) = listener.accept().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        (&client).write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_may_wait_gets_its_listener_too() {
    let rig = open();
    let factory = rig.factory();
    let (ports, other) = tokio::task::spawn_blocking(move || {
        let first = factory.listen(LOOPBACK.parse().unwrap(), true).unwrap();
        let at = first.local_addr().unwrap();
        // Shared because both ask for it; refused when the second does not.
        let second = factory.listen(at, true).unwrap();
        ((at, second.local_addr().unwrap()), factory.listen(at, false).unwrap_err())
    })
    .await
    .unwrap();
    assert_eq!(ports.0, ports.1);
    assert_eq!(other.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(errno(&other), Some(rustix::io::Errno::ADDRINUSE.raw_os_error()));
    assert!(other.to_string().contains(&format!("a listener at {}", ports.0)), "{other}");
}

#[tokio::test]
async fn udp_sockets_talk_to_their_peer() {
    let rig = open();
    let peer = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let socket = rig.factory().udp(peer.local_addr().unwrap()).await.unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    socket.send(b"ask").await.unwrap();
    let mut buffer = [0; 16];
    let (n, from) = peer.recv_from(&mut buffer).await.unwrap();
    assert_eq!((&buffer[..n], from), (&b"ask"[..], socket.local_addr().unwrap()));
}

#[tokio::test]
async fn errors_of_the_other_side_keep_their_number_and_say_what_failed() {
    let rig = open();
    // Somebody's port, so that it is nobody else's, at which he does not listen.
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&LOOPBACK.parse::<SocketAddr>().unwrap().into()).unwrap();
    let closed = held.local_addr().unwrap().as_socket().unwrap();
    for factory in [SocketFactory::Here, rig.factory()] {
        let refused = factory.connect(closed, SOON).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(errno(&refused), Some(rustix::io::Errno::CONNREFUSED.raw_os_error()));
    }
    let refused = rig.factory().connect(closed, SOON).await.unwrap_err().to_string();
    assert!(refused.contains(&closed.to_string()), "{refused}");
    assert!(refused.contains("refused"), "{refused}");
}

#[tokio::test]
async fn the_owners_rule_decides_and_its_sentence_arrives() {
    let rig = rig(|_, ask| match ask {
        Ask::Listen { .. } => Err("only connections are made here".to_owned()),
        _ => Ok(()),
    });
    let refused = rig.factory().listen_async(LOOPBACK.parse().unwrap(), false).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(refused.to_string(), "only connections are made here");
}

#[tokio::test]
async fn a_door_that_is_not_there_is_said() {
    let factory = SocketFactory::door(Path::new("/nonexistent/door.sock"));
    let error = factory.connect("127.0.0.1:1".parse().unwrap(), SOON).await.unwrap_err();
    // Not the number of a target that refused.
    assert_eq!(errno(&error), Some(rustix::io::Errno::HOSTUNREACH.raw_os_error()));
    assert!(error.to_string().contains("/nonexistent/door.sock"), "{error}");
    let long = std::path::PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
    assert!(bind_door(&long).unwrap_err().to_string().contains("longer than"));
}

/// A connection that neither comes about nor fails: the listener's queue is full.
fn stuck() -> (std::net::TcpListener, Vec<TcpStream>, SocketAddr) {
    let kind = socket2::Type::STREAM;
    let full = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
    full.bind(&LOOPBACK.parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let at = full.local_addr().unwrap().as_socket().unwrap();
    let (mut held, mut late) = (Vec::new(), 0);
    // On a busy machine one may be late without the queue being full.
    while late < 3 {
        match TcpStream::connect_timeout(&at, Duration::from_millis(100)) {
            Ok(s) => {
                held.push(s);
                late = 0;
            }
            Err(_) => late += 1,
        }
    }
    (full.into(), held, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_connection_delays_nobody_and_one_caller_cannot_take_all_places() {
    // Both ends and what they make are this process's.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    let rig = open();
    let (_full, _held, at) = stuck();
    let one_more = || {
        let mut s = std::os::unix::net::UnixStream::connect(&*rig.path).unwrap();
        let ask = Ask::Connect { to: at, timeout: Duration::from_secs(100) };
        s.write_all(&ask.encode()).unwrap();
        s
    };
    let mut slow: Vec<_> = (1..DOOR_EXCHANGES_PER_CALLER_MAX).map(|_| one_more()).collect();
    let udp = || async { rig.factory().udp("127.0.0.1:9".parse().unwrap()).await };
    // All its places are taken once the door has seen them all.
    let refused = loop {
        match udp().await {
            // One of them may have come about all the same.
            Ok(_) if slow.len() < 2 * DOOR_EXCHANGES_PER_CALLER_MAX => slow.push(one_more()),
            Ok(_) => panic!("all are served"),
            Err(e) => break e,
        }
    };
    assert_eq!(errno(&refused), Some(rustix::io::Errno::AGAIN.raw_os_error()));
    // Callers that went away give their places back.
    drop(slow);
    while udp().await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_that_takes_too_long_says_so() {
    let rig = open();
    let (_full, _held, at) = stuck();
    let late = rig.factory().connect(at, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert!(late.to_string().contains("within 20ms"), "{late}");
}

#[tokio::test]
async fn garbage_gets_an_answer_and_disturbs_nobody() {
    let rig = open();
    let path = rig.path.clone();
    let reply = tokio::task::spawn_blocking(move || {
        let mut s = std::os::unix::net::UnixStream::connect(&*path).unwrap();
        s.write_all(&[0xff; wire::ASK_BYTES]).unwrap();
        let mut reply = Vec::new();
        s.read_to_end(&mut reply).unwrap();
        reply
    });
    assert!(reply.await.unwrap().ends_with(b"this is no request of a door"));
    // Half a request, held open.
    let mut half = tokio::net::UnixStream::connect(&*rig.path).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut half, &[1, 1]).await.unwrap();
    rig.factory().udp("127.0.0.1:9".parse().unwrap()).await.unwrap();
    drop(half);
    assert!(rig.tasks.shutdown(SOON).await);
}
