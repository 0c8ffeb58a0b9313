// SPDX-License-Identifier: Apache-2.0
//! Real sockets on both sides: a resolver that answers as it is told, and the door for pods.

use std::collections::BTreeMap;

use domain::base::Ttl;
use domain::base::iana::Class;
use domain::base::opt::AllOptData;
use domain::rdata::{A, Txt};
use serde_json::json;
use tokio::net::TcpListener;
use weft_base::snapshot::{Publisher, snapshot};
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::NodeRecord;
use weft_kinds::world::World;

use super::super::{Server, Zones, answer};
use super::*;
use crate::consul::view::Identity;

const LONG: Duration = Duration::from_secs(60);

/// What the machine's resolver does with a name.
#[derive(Clone, Copy)]
pub enum Does {
    Address([u8; 4]),
    /// More than a datagram holds.
    Long,
    Refuse,
    Nothing,
    /// First an answer to another question, and one with another id.
    Lie([u8; 4]),
    /// An address that ends with how many bytes of EDNS options came, and a cookie of its own.
    Options,
}

pub type Script = BTreeMap<&'static str, Does>;

/// A resolver on loopback, over UDP and TCP.
pub async fn resolver(tasks: &TaskGroup, script: Script) -> SocketAddr {
    let at = SocketAddr::from(([127, 0, 0, 1], weft_testkit::ports::free()));
    let tcp = TcpListener::bind(at).await.unwrap();
    let udp = UdpSocket::bind(at).await.unwrap();
    let (over_udp, group) = (script.clone(), tasks.clone());
    tasks.spawn("resolver", async move {
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                () = group.draining() => return,
                got = udp.recv_from(&mut buffer) => {
                    let (len, from) = got.unwrap();
                    for answer in reply(&over_udp, &buffer[..len], true) {
                        udp.send_to(&answer, from).await.unwrap();
                    }
                }
            }
        }
    });
    let group = tasks.clone();
    tasks.spawn("resolver over tcp", async move {
        loop {
            tokio::select! {
                () = group.draining() => return,
                got = tcp.accept() => {
                    // Who gave up is not answered.
                    let _ = answer_over_tcp(got.unwrap().0, &script).await;
                }
            }
        }
    });
    at
}

async fn answer_over_tcp(mut stream: TcpStream, script: &Script) -> std::io::Result<()> {
    let mut query = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut query).await?;
    for answer in reply(script, &query, false) {
        stream.write_u16(answer.len().try_into().unwrap()).await?;
        stream.write_all(&answer).await?;
    }
    Ok(())
}

fn reply(script: &Script, query: &[u8], datagram: bool) -> Vec<Vec<u8>> {
    let mut all = replies(script, query, datagram);
    // Recursion available, as a resolver says.
    all.iter_mut().for_each(|answer| answer[3] |= 0x80);
    all
}

fn replies(script: &Script, query: &[u8], datagram: bool) -> Vec<Vec<u8>> {
    let message = Message::from_octets(query).unwrap();
    let name = message.sole_question().unwrap().qname().to_string();
    let address = |ip: [u8; 4]| {
        let mut answer = MessageBuilder::new_vec().start_answer(&message, Rcode::NOERROR).unwrap();
        let owner: Name<Vec<u8>> = message.sole_question().unwrap().qname().to_name();
        answer.push((owner, Class::IN, Ttl::from_secs(60), A::new(ip.into()))).unwrap();
        answer.finish()
    };
    match script.get(name.as_str()) {
        Some(Does::Address(ip)) => vec![address(*ip)],
        Some(Does::Nothing) => Vec::new(),
        Some(Does::Lie(ip)) => {
            let good = address(*ip);
            let mut other_id = address([6, 6, 6, 6]);
            other_id[0] ^= 0xff;
            let mut other_name = address([6, 6, 6, 6]);
            other_name[13] ^= 1;
            vec![other_id, other_name, good]
        }
        Some(Does::Options) => {
            // Header, question (a length before each label, the root), OPT without options.
            let bare = 12 + name.len() + 2 + 4 + 11;
            let mut answer = address([192, 0, 2, u8::try_from(query.len() - bare).unwrap()]);
            answer[11] = 1;
            answer.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\x1c\0\x0a\0\x18");
            answer.extend_from_slice(&[9; 24]);
            vec![answer]
        }
        Some(Does::Refuse) => {
            vec![MessageBuilder::new_vec().start_answer(&message, Rcode::REFUSED).unwrap().finish()]
        }
        Some(Does::Long) => {
            let answer = MessageBuilder::new_vec().start_answer(&message, Rcode::NOERROR);
            let mut answer = answer.unwrap();
            if datagram {
                answer.header_mut().set_tc(true);
                return vec![answer.finish()];
            }
            let owner: Name<Vec<u8>> = message.sole_question().unwrap().qname().to_name();
            for n in 0..40u8 {
                let text = Txt::<Vec<u8>>::build_from_slice(&[n; 200]).unwrap();
                answer.push((&owner, Class::IN, Ttl::from_secs(60), text)).unwrap();
            }
            vec![answer.finish()]
        }
        None => {
            let no = MessageBuilder::new_vec().start_answer(&message, Rcode::NXDOMAIN).unwrap();
            vec![no.finish()]
        }
    }
}

/// The resolvers at these addresses, which answer: they are waited for however slow the machine is.
pub fn answering(servers: Vec<SocketAddr>) -> Upstream {
    Upstream::new(Servers::Fixed(servers), Clock::system(), Rng::seeded(1)).patient(LONG, 2 * LONG)
}

struct Door {
    udp: SocketAddr,
    tcp: SocketAddr,
    _world: Publisher<World>,
}

async fn door(tasks: &TaskGroup, upstream: Upstream) -> Door {
    let node =
        NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..NodeRecord::default() };
    let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "".into() };
    let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
    let mut world = World::new();
    for (name, spec) in [
        ("web", json!({"clusterIP": "10.96.1.1"})),
        ("out", json!({"type": "ExternalName", "externalName": "far.example"})),
    ] {
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let (key, revision) = (format!("/o/core/services/shop/{name}"), world.revision() + 1);
        world.apply(&key, Some(object.to_string().as_bytes()), revision);
    }
    let (publisher, world) = snapshot(world);
    let server = Server::recursive(world, Arc::new(own), zones, Rng::seeded(1), upstream);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    tasks.spawn("udp", server.clone().serve_udp(socket, tasks.clone()));
    tasks.spawn("tcp", server.serve_tcp(listener, tasks.clone()));
    Door { udp, tcp, _world: publisher }
}

fn query(name: &str, rtype: Rtype) -> Vec<u8> {
    let mut query = question(name, rtype).unwrap();
    (query[0], query[1]) = (0, 7);
    query
}

fn shown(answer: &[u8]) -> (String, Vec<String>) {
    let message = Message::from_octets(answer).unwrap();
    assert_eq!((message.header().id(), message.header().ra()), (7, true));
    let line = |(owner, data): (String, Data)| format!("{owner} {data:?}");
    let lines = records(answer).unwrap().into_iter().map(line).collect();
    (message.opt_rcode().to_string(), lines)
}

impl Door {
    async fn udp(&self, name: &str, rtype: Rtype) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query(name, rtype), self.udp).await.unwrap();
        let mut buffer = vec![0; 4096];
        let len = socket.recv(&mut buffer).await.unwrap();
        buffer.truncate(len);
        buffer
    }

    async fn tcp(&self, name: &str, rtype: Rtype) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.tcp).await.unwrap();
        let query = query(name, rtype);
        stream.write_u16(query.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn what_is_outside_is_asked_of_the_machines_resolvers() {
    let tasks = TaskGroup::new();
    let script: Script = [
        ("far.example", Does::Address([192, 0, 2, 1])),
        ("long.example", Does::Long),
        ("lied.example", Does::Lie([192, 0, 2, 2])),
    ]
    .into();
    let at = resolver(&tasks, script).await;
    let door = door(&tasks, answering(vec![at])).await;
    let far = "far.example Address(192.0.2.1)";
    assert_eq!(
        shown(&door.udp("far.example", Rtype::A).await),
        ("NOERROR".into(), vec![far.into()])
    );
    assert_eq!(
        shown(&door.tcp("far.example", Rtype::A).await),
        ("NOERROR".into(), vec![far.into()])
    );
    assert_eq!(shown(&door.udp("none.example", Rtype::A).await).0, "NXDOMAIN");
    let lied = shown(&door.udp("lied.example", Rtype::A).await).1;
    assert_eq!(lied, ["lied.example Address(192.0.2.2)"], "only the answer to the question counts");
    // Cut for who came by datagram, whole for who came over TCP.
    let cut = door.udp("long.example", Rtype::TXT).await;
    assert!(Message::from_octets(&cut).unwrap().header().tc());
    let whole = door.tcp("long.example", Rtype::TXT).await;
    assert_eq!(Message::from_octets(&whole).unwrap().header_counts().ancount(), 40);
    // Ours are ours, and what a search list makes of a foreign name is known not to be.
    let web = shown(&door.udp("web.shop.svc.cluster.local", Rtype::A).await).1;
    assert_eq!(web, ["web.shop.svc.cluster.local Address(10.96.1.1)"]);
    assert_eq!(shown(&door.udp("far.example.svc.cluster.local", Rtype::A).await).0, "NXDOMAIN");
    // An alias leads outside.
    let out = shown(&door.udp("out.shop.svc.cluster.local", Rtype::A).await).1;
    assert_eq!(out, ["out.shop.svc.cluster.local Cname(\"far.example\")", far]);
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_resolver_that_does_not_help_is_not_the_last_one() {
    let tasks = TaskGroup::new();
    let refuses = resolver(&tasks, [("far.example", Does::Refuse)].into()).await;
    let knows = resolver(&tasks, [("far.example", Does::Address([192, 0, 2, 1]))].into()).await;
    let door = door(&tasks, answering(vec![refuses, knows])).await;
    let got = shown(&door.udp("far.example", Rtype::A).await);
    assert_eq!(got.1, ["far.example Address(192.0.2.1)"]);
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn silence_ends_in_a_sentence_and_keeps_nobody_else_waiting() {
    let tasks = TaskGroup::new();
    let at = resolver(&tasks, [("dumb.example", Does::Nothing)].into()).await;
    let upstream = Upstream::new(Servers::Fixed(vec![at]), Clock::system(), Rng::seeded(3));
    let door = door(&tasks, upstream.patient(Duration::from_millis(500), TIMEOUT)).await;
    let (dumb, ours) = tokio::join!(
        door.udp("dumb.example", Rtype::A),
        door.udp("web.shop.svc.cluster.local", Rtype::A),
    );
    assert_eq!(shown(&ours).1.len(), 1);
    assert_eq!(shown(&dumb).0, "SERVFAIL");
    let text = String::from_utf8_lossy(&dumb).into_owned();
    assert!(text.contains("resolvers did not answer"), "{text}");
    let nobody = self::door(&tasks, answering(Vec::new())).await;
    let text = nobody.udp("far.example", Rtype::A).await;
    assert!(String::from_utf8_lossy(&text).contains("names no resolver"));
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

/// A question with a client's cookie.
fn with_cookie(mut query: Vec<u8>) -> Vec<u8> {
    *query.last_mut().unwrap() = 12;
    query.extend_from_slice(b"\0\x0a\0\x08");
    query.extend_from_slice(&[7; 8]);
    query
}

#[tokio::test]
async fn cookies_are_between_each_two_and_not_passed_on() {
    let tasks = TaskGroup::new();
    let at = resolver(&tasks, [("cookies.example", Does::Options)].into()).await;
    let door = door(&tasks, answering(vec![at])).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = with_cookie(query("cookies.example", Rtype::A));
    socket.send_to(&asked, door.udp).await.unwrap();
    let mut buffer = vec![0; 4096];
    let len = socket.recv(&mut buffer).await.unwrap();
    let got = &buffer[..len];
    let lines = vec!["cookies.example Address(192.0.2.0)".to_owned()];
    assert_eq!(shown(got), ("NOERROR".into(), lines), "the resolver saw no option");
    let opt = Message::from_octets(got).unwrap().opt().unwrap();
    let cookies = opt.opt().iter::<AllOptData<_, _>>().map(|option| match option.unwrap() {
        AllOptData::Cookie(cookie) => cookie,
        other => panic!("{other:?}"),
    });
    let [cookie] = cookies.collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(cookie.client().into_octets(), [7; 8], "the client's own comes back");
    assert!(cookie.server().is_some() && !got.windows(8).any(|some| some == [9; 8]), "and ours");
    // Without EDNS none is sent on, and none comes back.
    let mut plain = query("cookies.example", Rtype::A);
    plain.truncate(plain.len() - 11);
    plain[11] = 0;
    let parsed = answer::question(&plain, &mut Vec::new()).unwrap();
    assert_eq!(answer::onward(&parsed), plain);
    assert!(tasks.shutdown(Duration::from_secs(20)).await);
}

#[test]
fn what_is_for_the_last_server_is_passed_on() {
    let mut asked = query("far.example", Rtype::A);
    let at = asked.len() - 4;
    // CD and AD, and DO.
    asked[3] |= 0x30;
    asked[at] = 0x80;
    let with = with_cookie(asked.clone());
    let parsed = answer::question(&with, &mut Vec::new()).unwrap();
    assert_eq!(answer::onward(&parsed), asked);
}

#[test]
fn a_resolv_conf_is_read_as_libc_reads_it() {
    let text = "# home\nsearch lan\nnameserver 192.0.2.53\n nameserver\t2001:db8::1 \n\
                nameserver fe80::1%eth0\noptions edns0\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n";
    let all: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
    assert_eq!(all, ["192.0.2.53:53", "[2001:db8::1]:53", "1.1.1.1:53"]);
}
