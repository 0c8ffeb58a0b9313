// SPDX-License-Identifier: Apache-2.0
//! The door over real sockets.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use weft_base::snapshot::{Publisher, snapshot};
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::NodeRecord;

use super::forward::tests::{Does, answering, resolver};
use super::*;

fn server() -> (Server, Publisher<World>) {
    let node =
        NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..NodeRecord::default() };
    let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "".into() };
    let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
    let (publisher, world) = snapshot(World::new());
    (Server::new(world, Arc::new(own), zones, Rng::seeded(1)), publisher)
}

/// `n1.node.consul A`, recursion desired.
const QUERY: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x02n1\x04node\x06consul\0\0\x01\0\x01";

fn check(answer: &[u8]) {
    assert_eq!(&answer[..2], b"\0\x07");
    assert_eq!(answer[3] & 0x0f, 0, "NOERROR");
    assert!(answer.ends_with(&[127, 0, 0, 1]), "{answer:?}");
}

#[tokio::test]
async fn udp_and_tcp_answer_the_same_and_survive_garbage() {
    let (server, _publisher) = server();
    let tasks = TaskGroup::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp = socket.local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = listener.local_addr().unwrap();
    tasks.spawn("udp", server.clone().serve_udp(socket, tasks.clone()));
    tasks.spawn("tcp", server.serve_tcp(listener, tasks.clone()));

    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(udp).await.unwrap();
    for garbage in [&b""[..], b"x", &[0xff; 600]] {
        client.send(garbage).await.unwrap();
    }
    let mut buffer = [0; 1500];
    // Nothing answers garbage but, where it has a header, an error; ours is told by its id.
    client.send(QUERY).await.unwrap();
    let answer = loop {
        let len = client.recv(&mut buffer).await.unwrap();
        if buffer[..2] == QUERY[..2] {
            break buffer[..len].to_vec();
        }
    };
    check(&answer);

    let mut garbage = TcpStream::connect(tcp).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut stream = TcpStream::connect(tcp).await.unwrap();
    for _ in 0..3 {
        let mut framed = u16::try_from(QUERY.len()).unwrap().to_be_bytes().to_vec();
        framed.extend_from_slice(QUERY);
        stream.write_all(&framed).await.unwrap();
        let len = stream.read_u16().await.unwrap();
        let mut whole = vec![0; usize::from(len)];
        stream.read_exact(&mut whole).await.unwrap();
        check(&whole);
    }
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

/// A mesh that does not know what is called `far`, and comes to no answer about anything else.
struct Slow;

impl Mesh for Slow {
    fn ask(&self, query: Vec<u8>, _: Carrier) -> BoxFuture<'_, Told> {
        match query.windows(3).any(|some| some == b"far") {
            true => std::future::ready(Told::Outside).boxed(),
            false => std::future::pending().boxed(),
        }
    }

    fn keeps(&self, _: &[&str]) -> bool {
        true
    }
}

/// A mesh that cannot be asked; what it said of `ext.consul` is known.
struct Gone;

impl Mesh for Gone {
    fn ask(&self, query: Vec<u8>, _: Carrier) -> BoxFuture<'_, Told> {
        let told = match query == EXT {
            true => Told::Answer([ALIAS_HEAD, &EXT[12..], ALIAS].concat()),
            false => Told::Away,
        };
        std::future::ready(told).boxed()
    }

    fn keeps(&self, labels: &[&str]) -> bool {
        labels.last() == Some(&"consul")
    }
}

const EXT: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03ext\x06consul\0\0\x01\0\x01";
const ALIAS_HEAD: &[u8] = b"\0\x07\x85\x80\0\x01\0\x01\0\0\0\0";
/// `CNAME far.example` for nine seconds.
const ALIAS: &[u8] = b"\xc0\x0c\0\x05\0\x01\0\0\0\x09\0\x0d\x03far\x07example\0";

#[tokio::test]
async fn names_outside_outlive_the_mesh_where_a_machine_has_resolvers() {
    const FAR: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03far\x07example\0\0\x01\0\x01";
    let tasks = TaskGroup::new();
    let script = [("far.example", Does::Address([192, 0, 2, 2]))];
    let at = resolver(&tasks, script.into()).await;
    let with = Server::distant(Arc::new(Gone), answering(vec![at]));
    let without = Server::elsewhere_with(Arc::new(Gone), Options::new(Clock::system()));
    let (ask, bare) = (|query| with.answer(query, Carrier::Udp), &without);
    let far = ask(FAR).await.unwrap();
    assert_eq!((far[3] & 0x0f, far.ends_with(&[192, 0, 2, 2])), (0, true));
    // What is the mesh's nobody else hears of.
    assert_eq!(ask(QUERY).await.unwrap()[3] & 0x0f, 2, "SERVFAIL");
    assert_eq!(bare.answer(FAR, Carrier::Udp).await.unwrap()[3] & 0x0f, 2, "SERVFAIL");
    // An alias's end comes with it, and keeps what was said of the alias.
    let ext = ask(EXT).await.unwrap();
    assert_eq!((ext[3] & 0x0f, ext[7]), (0, 2), "{ext:?}");
    let alias = &ALIAS[..10];
    assert!(ext.windows(alias.len()).any(|some| some == alias), "{ext:?}");
    assert!(ext.ends_with(&[192, 0, 2, 2]), "{ext:?}");
    let ext = bare.answer(EXT, Carrier::Udp).await.unwrap();
    assert_eq!(ext, [ALIAS_HEAD, &EXT[12..], ALIAS].concat());
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

/// `out.shop.svc.cluster.local A`, an alias of `far.example`.
const OUT: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\
    \x03out\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01";

#[tokio::test]
async fn a_machine_does_not_wait_long_for_what_an_alias_leads_to() {
    let tasks = TaskGroup::new();
    let silent = resolver(&tasks, [("far.example", Does::Nothing)].into()).await;
    let upstream = answering(vec![silent]);
    let spec = json!({"type": "ExternalName", "externalName": "far.example"});
    let object = json!({"metadata": {"name": "out", "namespace": "shop"}, "spec": spec});
    let (publisher, world) = snapshot({
        let mut world = World::new();
        world.apply("/o/core/services/shop/out", Some(object.to_string().as_bytes()), 1);
        world
    });
    let (plain, _publisher) = server();
    let Source::Here { own, zones, .. } = &plain.0.source else { panic!("it has a World") };
    let (own, zones) = (own.clone(), zones.clone());
    let server = Server::recursive(world, own, zones, Rng::seeded(1), upstream);
    let answer = tokio::select! {
        told = server.of_mesh(OUT, Carrier::Udp, None) => told,
        _ = server.answer(OUT, Carrier::Udp) => panic!("its agent waits for a second"),
    };
    let Told::Answer(answer) = answer else { panic!("{answer:?}") };
    assert_eq!((answer[3] & 0x0f, answer[7]), (0, 1), "the alias alone: {answer:?}");
    drop(publisher);
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_name_that_the_mesh_has_no_place_for_is_asked_of_nobody_else() {
    const FAR: &[u8] = b"\0\x08\x01\0\0\x01\0\0\0\0\0\0\x03far\x06consul\0\0\x01\0\x01";
    let tasks = TaskGroup::new();
    let known = [("n1.node.consul", Does::Address([192, 0, 2, 1]))];
    let script = known.into_iter().chain([("far.consul", Does::Address([192, 0, 2, 2]))]);
    let at = resolver(&tasks, script.collect()).await;
    let server = Server::distant(Arc::new(Slow), answering(vec![at]));
    let far = server.answer(FAR, Carrier::Udp).await.unwrap();
    assert_eq!((far[3] & 0x0f, far.ends_with(&[192, 0, 2, 2])), (0, true), "it is outside");
    let ask = || Box::pin(server.answer(QUERY, Carrier::Udp));
    let mut waiting: Vec<_> = (0..DNS_FORWARDS_MAX).map(|_| ask()).collect();
    for one in &mut waiting {
        assert_eq!(one.as_mut().now_or_never(), None);
    }
    let refused = server.answer(QUERY, Carrier::Udp).await.unwrap();
    assert_eq!((&refused[..2], refused[3] & 0x0f), (&b"\0\x07"[..], 2), "SERVFAIL");
    waiting.clear();
    assert!(server.answer(FAR, Carrier::Udp).await.unwrap().ends_with(&[192, 0, 2, 2]));
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}
