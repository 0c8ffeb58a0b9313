// SPDX-License-Identifier: Apache-2.0
//! A pod's DNS questions on their way to the resolver and back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use weft_base::task::TaskGroup;
use weft_testkit::ports;

use super::bed::*;
use super::captured::Dialled;

/// A question for the address of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    // Recursion desired; one question, one additional record.
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    // OPT.
    out.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    out
}

/// Answers every question with itself, marked as an answer, in the form `NAME:` and a text.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut out = question.to_vec();
    out[2] |= 0x80;
    out.extend(b"answered");
    out
}

struct Resolver {
    address: SocketAddr,
    /// Datagrams, in the order of arrival.
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    tasks: TaskGroup,
}

/// UDP and TCP on one port; the first `deaf` datagrams are lost.
async fn resolver(at: SocketAddr, deaf: usize) -> Resolver {
    let tcp = TcpListener::bind(at).await.unwrap();
    let udp = UdpSocket::bind(at).await.unwrap();
    let (tasks, asked) = (TaskGroup::new(), Arc::new(Mutex::new(Vec::new())));
    let seen = asked.clone();
    tasks.spawn("udp", async move {
        let mut buffer = [0; 512];
        let mut held: Vec<(Vec<u8>, SocketAddr)> = Vec::new();
        while let Ok((n, client)) = udp.recv_from(&mut buffer).await {
            // On a slow machine it may be asked once more before it has answered.
            let again = {
                let mut seen = seen.lock().unwrap();
                let again = seen.iter().any(|before| *before == buffer[..n]);
                seen.push(buffer[..n].to_vec());
                if seen.len() <= deaf {
                    continue;
                }
                again
            };
            if again && deaf == 0 {
                continue;
            }
            // A forged answer first: of another question, under the same id.
            let mut forged = question(0, "forged.example");
            forged[..2].copy_from_slice(&buffer[..2]);
            udp.send_to(&answer(&forged), client).await.unwrap();
            // Pairs are answered in the other order.
            held.push((answer(&buffer[..n]), client));
            if held.len() == 2 || deaf > 0 {
                for (answer, client) in held.drain(..).rev() {
                    udp.send_to(&answer, client).await.unwrap();
                }
            }
        }
    });
    tasks.spawn("tcp", async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            while let Ok(length) = stream.read_u16().await {
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.unwrap();
                let answer = answer(&question);
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    Resolver { address: at, asked, tasks }
}

/// A sidecar whose questions go to `to`, and where it takes them.
async fn pod(to: SocketAddr) -> (Bed, SocketAddr) {
    let mut config = Dialled::default().config("sidecar~shop~client-1");
    // It must be known, and free for both protocols.
    let free = own();
    let capture = config.capture.as_mut().unwrap();
    (capture.resolver, capture.dns) = (Some(to), vec![free]);
    (Bed::start(config, None).await, free)
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 512];
    let limit = Duration::from_secs(60);
    let n = tokio::time::timeout(limit, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer[..n].to_vec()
}

async fn asker(door: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(door).await.unwrap();
    socket
}

/// An address that nobody else is given, for both protocols.
fn own() -> SocketAddr {
    ([127, 0, 0, 1], ports::free()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_clients_though_ids_are_equal() {
    let resolver = resolver(own(), 0).await;
    let (_bed, door) = pod(resolver.address).await;
    let (one, two) = (asker(door).await, asker(door).await);
    let (first, second) = (question(7, "user.shop"), question(7, "order.shop"));
    one.send(&first).await.unwrap();
    two.send(&second).await.unwrap();
    assert_eq!(receive(&one).await, answer(&first));
    assert_eq!(receive(&two).await, answer(&second));
    // What is no question is nobody's business.
    one.send(b"short").await.unwrap();
    one.send(&answer(&first)).await.unwrap();
    let mut stream = TcpStream::connect(door).await.unwrap();
    for name in ["a.example", "b.example"] {
        let asked = question(1, name);
        stream.write_u16(u16::try_from(asked.len()).unwrap()).await.unwrap();
        stream.write_all(&asked).await.unwrap();
        let mut got = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, answer(&asked));
    }
    let mut asked = resolver.asked.lock().unwrap().clone();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 2, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_question_is_asked_again() {
    let resolver = resolver(own(), 1).await;
    let (_bed, door) = pod(resolver.address).await;
    let client = asker(door).await;
    let asked = question(9, "user.shop");
    client.send(&asked).await.unwrap();
    assert_eq!(receive(&client).await, answer(&asked));
    let times = resolver.asked.lock().unwrap().len();
    assert!(times >= 2, "{times}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_is_away_is_said_and_one_that_is_back_answers() {
    let first = resolver(own(), 1).await;
    let address = first.address;
    first.tasks.shutdown(Duration::ZERO).await;
    let (_bed, door) = pod(address).await;
    let client = asker(door).await;
    let asked = question(3, "user.shop");
    client.send(&asked).await.unwrap();
    let failed = receive(&client).await;
    assert_eq!((failed[..2].to_vec(), failed[3] & 15), (vec![0, 3], 2), "SERVFAIL");
    assert!(String::from_utf8_lossy(&failed).contains("resolver does not answer"));
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_u16(u16::try_from(asked.len()).unwrap()).await.unwrap();
    stream.write_all(&asked).await.unwrap();
    let mut got = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, failed);
    // Asked while it is away, answered once it is back.
    client.send(&asked).await.unwrap();
    let _back = resolver(address, 1).await;
    client.send(&question(4, "order.shop")).await.unwrap();
    let mut answers = [receive(&client).await, receive(&client).await];
    answers.sort();
    assert_eq!(answers, [answer(&asked), answer(&question(4, "order.shop"))]);
}
