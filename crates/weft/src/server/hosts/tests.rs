// SPDX-License-Identifier: Apache-2.0
//! Who may do what at the door for agents, over a real registry and a real authority.

use std::net::IpAddr;

use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_identity::join::JoinText;
use weft_identity::svid::KeyRequest;
use weft_identity::{Authority, Leaf, Svid, TrustDomain};
use weft_registry::WriteOptions;
use weft_server::tokens::{TokenAsk, TokenError, Tokens as _};
use weft_store::MemoryStore;

use futures_util::StreamExt as _;
use weft_server::k8s::{Opened, PodStreams, StreamError, Visit, VisitIo, VisitWhat};
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::visit::{ContainerUsage, MachineUsage, VisitUp};

use super::*;
use crate::agent::identity::{self, Identity};
use crate::server::control;
use crate::server::streams::NoStreams;

struct Bed {
    door: HostDoor,
    tokens: HostTokens,
    registry: Registry,
    _dir: tempfile::TempDir,
}

/// The server's own certificate, as its door shows it.
fn own_svid(link: &LocalLink) -> weft_base::snapshot::Snapshot<Svid> {
    let life = std::time::Duration::from_secs(3600);
    weft_base::snapshot::snapshot(link.authority.server_svid(life).unwrap()).1
}

async fn bed() -> Bed {
    let (clock, tasks) = (Clock::system(), TaskGroup::new());
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(&dir.path().join("ca"), None, &clock).unwrap());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock.clone(), tasks.clone()).await.unwrap();
    let (pusher, _) = control::start(&registry, authority.trust_domain(), &tasks);
    let link =
        Arc::new(LocalLink { registry: registry.clone(), pusher, authority: authority.clone() });
    let hosts = Hosts::start(registry.clone(), "server", &tasks).await.unwrap();
    let door = HostDoor::new(hosts.clone(), link, "cluster.local");
    Bed { door, tokens: HostTokens { hosts, authority, clock, agents: None }, registry, _dir: dir }
}

fn peer(id: Option<&str>) -> Peer {
    Peer { spiffe_id: id.map(Into::into), address: "10.9.0.2:4711".parse().ok() }
}

/// `m1` is at 10.9.0.2.
fn address_of(name: &str) -> IpAddr {
    let number: u8 = name.trim_start_matches('m').parse().unwrap();
    IpAddr::from([10, 9, 0, number + 1])
}

fn described_host(name: &str) -> Host {
    Host {
        name: name.into(),
        addresses: vec![address_of(name)],
        instance: "i1".into(),
        cpus: 2,
        pods_max: 110,
        ..Host::default()
    }
}

fn ask(text: &str, name: &str) -> JoinAsk {
    let text: JoinText = text.parse().unwrap();
    let csr = KeyRequest::generate().unwrap().csr().to_vec();
    JoinAsk { token: text.token.reveal().into(), host: described_host(name), csr }
}

impl Bed {
    /// A token's text.
    async fn token(&self, ask: TokenAsk) -> String {
        let made = self.tokens.create(ask).await.unwrap();
        made["token"].as_str().unwrap().to_owned()
    }

    async fn joined(&self, name: &str, allow: &[&str]) -> Peer {
        let allow = allow.iter().map(ToString::to_string).collect();
        let text = self.token(TokenAsk { allow, ..TokenAsk::default() }).await;
        let joined = self.door.join(peer(None), ask(&text, name)).await.unwrap();
        let leaf = Leaf::read(&joined.certificate.chain[0].clone().into()).unwrap();
        let caller = peer(Some(leaf.id.as_str()));
        self.door.heartbeat(caller.clone(), described_host(name)).await.unwrap();
        caller
    }

    /// A pod that the server placed.
    async fn pod(&self, name: &str, host: &str, account: &str) -> PodRef {
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": host, "serviceAccountName": account,
                "containers": [{ "name": "c", "image": "i" }],
            },
            "status": { "phase": "Pending", "podIP": "127.64.0.9",
                        "podIPs": [{ "ip": "127.64.0.9" }] },
        });
        let objects = self.registry.objects();
        let made = objects.create(KindId::Pod, "default", pod, WriteOptions::SYSTEM).await;
        let uid = made.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        PodRef { namespace: "default".into(), name: name.into(), uid }
    }

    /// Everything that is about a pod, asked by somebody.
    async fn all_about(&self, caller: &Peer, pod: &PodRef) -> Vec<Result<(), Refusal>> {
        let door = &self.door;
        let report = PodReport {
            pod: pod.clone(),
            status: b"{\"phase\":\"Running\"}".to_vec(),
            finished: false,
        };
        let note = PodNote {
            pod: pod.clone(),
            warning: false,
            reason: "Started".into(),
            message: "m".into(),
        };
        let csr = KeyRequest::generate().unwrap().csr().to_vec();
        let wait = |what| door.wait(caller.clone(), what, Duration::from_millis(1));
        vec![
            door.report_pods(caller.clone(), vec![report], Vec::new()).await,
            door.report_pods(caller.clone(), Vec::new(), vec![note]).await,
            door.sign(caller.clone(), pod.clone(), csr).await.map(drop),
            wait(Wait::Inbound(pod.clone())).await.map(drop),
            wait(Wait::Drained(pod.clone())).await.map(drop),
        ]
    }

    fn status(&self, pod: &PodRef) -> Value {
        let world = self.registry.now();
        world.get(KindId::Pod, "default", &pod.name).unwrap().raw["status"].clone()
    }
}

fn denied<T: std::fmt::Debug>(outcome: &Result<T, Refusal>) -> bool {
    matches!(outcome, Err(Refusal::Denied(_)))
}

#[tokio::test]
async fn a_host_speaks_for_the_pods_placed_on_it_and_for_no_others() {
    let bed = bed().await;
    let (m1, m2) = (bed.joined("m1", &[]).await, bed.joined("m2", &[]).await);
    let (mine, other) = (bed.pod("a", "m1", "user").await, bed.pod("b", "m2", "order").await);
    for outcome in bed.all_about(&m1, &mine).await {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    assert_eq!(bed.status(&mine)["phase"], "Running");
    let before = bed.status(&other);
    for outcome in bed.all_about(&m1, &other).await {
        assert!(denied(&outcome), "{outcome:?}");
    }
    assert_eq!(bed.status(&other), before);
    assert!(bed.all_about(&m2, &other).await.iter().all(Result::is_ok));

    let successor = PodRef { uid: "another".into(), ..mine.clone() };
    let nowhere = PodRef { name: "none".into(), ..mine.clone() };
    for pod in [&successor, &nowhere] {
        assert!(bed.all_about(&m1, pod).await.iter().all(denied), "{pod:?}");
    }
    // Nobody but hosts: workloads of the mesh, the server itself, strangers, other domains.
    let domain = "spiffe://cluster.local";
    let m1_id = m1.spiffe_id.as_deref().unwrap().to_owned();
    let strangers = [
        format!("{domain}/ns/default/sa/user"),
        format!("{domain}/ns/weft/sa/host"),
        format!("{domain}/weft/server"),
        format!("{domain}/weft/host/m1/j0000"),
        m1_id.replace("cluster.local", "other.example"),
        String::new(),
    ];
    for stranger in strangers {
        let caller = peer(Some(&stranger));
        assert!(bed.all_about(&caller, &mine).await.iter().all(denied), "{stranger}");
        assert!(denied(&bed.door.watch(caller.clone()).await));
        assert!(denied(&bed.door.renew(caller.clone(), Vec::new()).await));
        assert!(denied(&bed.door.report_checks(caller.clone(), Vec::new()).await));
        assert!(denied(&bed.door.heartbeat(caller, described_host("m1")).await));
    }
}

#[tokio::test]
async fn what_is_signed_is_the_pods_own_identity_and_only_an_allowed_one() {
    let bed = bed().await;
    let m1 = bed.joined("m1", &["default/user"]).await;
    let (user, order) = (bed.pod("a", "m1", "user").await, bed.pod("b", "m1", "order").await);
    let csr = KeyRequest::generate().unwrap();
    let signed = bed.door.sign(m1.clone(), user.clone(), csr.csr().to_vec()).await.unwrap();
    let leaf = Leaf::read(&signed.0.chain[0].clone().into()).unwrap();
    assert_eq!(leaf.id.as_str(), "spiffe://cluster.local/ns/default/sa/user");
    let wanted = SpiffeId::new("spiffe://cluster.local/ns/default/sa/order").unwrap();
    let named = KeyRequest::naming(Some(&wanted)).unwrap();
    let refused = bed.door.sign(m1.clone(), user, named.csr().to_vec()).await;
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    let refused = bed.door.sign(m1, order, csr.csr().to_vec()).await;
    assert!(denied(&refused), "{refused:?}");
}

#[tokio::test]
async fn a_token_serves_once_for_its_host_and_a_removed_host_is_nobody() {
    let bed = bed().await;
    let text = bed.token(TokenAsk::default()).await;
    let text_pin = text.parse::<JoinText>().unwrap().pin;
    assert_eq!(text_pin, Some(bed.tokens.authority.pin()));
    let stored = bed.tokens.hosts.tokens().await.unwrap();
    let secret = text.split('.').next().unwrap();
    assert!(!format!("{stored:?}").contains(secret), "the store has hashes only");
    let listed = bed.tokens.list().await.unwrap();
    assert!(!listed.to_string().contains(secret));
    assert_eq!(listed["tokens"][0]["state"], "unused");

    let broken = JoinAsk { csr: vec![1, 2, 3], ..ask(&text, "m1") };
    let broken = bed.door.join(peer(None), broken).await;
    assert!(matches!(broken, Err(Refusal::Invalid(_))), "{broken:?}");
    assert_eq!(bed.tokens.list().await.unwrap()["tokens"][0]["state"], "unused");
    bed.door.join(peer(None), ask(&text, "m1")).await.unwrap();
    let again = bed.door.join(peer(None), ask(&text, "m2")).await;
    assert!(matches!(again, Err(Refusal::Unauthenticated(_))), "{again:?}");
    assert_eq!(bed.tokens.list().await.unwrap()["tokens"][0]["state"], "used");
    let unknown = bed.door.join(peer(None), ask("weft_nothing", "m3")).await;
    assert!(matches!(unknown, Err(Refusal::Unauthenticated(_))), "{unknown:?}");
    // m1's name is taken, but not for a token that names it.
    let free = bed.token(TokenAsk::default()).await;
    assert!(denied(&bed.door.join(peer(None), ask(&free, "m1")).await));
    bed.door.join(peer(None), ask(&free, "m5")).await.expect("the token was not used up");
    let named = TokenAsk { host: Some("m1".into()), ..TokenAsk::default() };
    let text = bed.token(named).await;
    let wrong = bed.door.join(peer(None), ask(&text, "m4")).await;
    assert!(matches!(wrong, Err(Refusal::Unauthenticated(_))), "{wrong:?}");
    bed.door.join(peer(None), ask(&text, "m1")).await.unwrap();

    let m2 = bed.joined("m2", &[]).await;
    let pod = bed.pod("a", "m2", "user").await;
    let mut stream = bed.door.watch(m2.clone()).await.unwrap();
    assert!(stream.recv().await.unwrap().unwrap().whole);
    let gone = weft_registry::DeleteOptions::default();
    bed.registry.objects().delete(KindId::Node, "", "m2", &gone).await.unwrap();
    assert!(bed.all_about(&m2, &pod).await.iter().all(denied));
    let last = loop {
        match stream.recv().await {
            Some(Ok(_)) => {}
            Some(Err(refusal)) => break refusal,
            None => panic!("the stream says why it ends"),
        }
    };
    assert!(matches!(last, Refusal::Denied(_)), "{last:?}");
}

#[tokio::test]
async fn one_address_cannot_try_for_ever() {
    let bed = bed().await;
    let tries = async |bed: &Bed| bed.door.join(peer(None), ask("weft_x", "m1")).await;
    for _ in 0..10 {
        assert!(matches!(tries(&bed).await, Err(Refusal::Unauthenticated(_))));
    }
    // It has one more every few seconds.
    for _ in 0..100 {
        match tries(&bed).await {
            Err(Refusal::Busy(_)) => return,
            said => assert!(matches!(said, Err(Refusal::Unauthenticated(_)))),
        }
    }
    panic!("it can");
}

#[tokio::test]
async fn a_host_is_told_its_pods_as_they_come_and_go() {
    let bed = bed().await;
    let m1 = bed.joined("m1", &[]).await;
    let (a, _) = (bed.pod("a", "m1", "user").await, bed.pod("b", "m2", "user").await);
    let mut stream = bed.door.watch(m1.clone()).await.unwrap();
    let mut mirror = crate::wire::Mirror::default();
    let first = stream.recv().await.unwrap().unwrap();
    assert!(first.whole);
    mirror.apply(first).unwrap();
    let names = |m: &crate::wire::Mirror| {
        m.desired().keys().map(|k| k.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&mirror), ["a"]);
    // Its own report changes nothing for it; a new pod does.
    bed.all_about(&m1, &a).await;
    bed.pod("c", "m1", "user").await;
    while names(&mirror) != ["a", "c"] {
        mirror.apply(stream.recv().await.unwrap().unwrap()).unwrap();
    }
    let mut options = weft_registry::DeleteOptions::default();
    options.grace_s = Some(0);
    bed.registry.objects().delete(KindId::Pod, "default", "a", &options).await.unwrap();
    while names(&mirror) != ["c"] {
        mirror.apply(stream.recv().await.unwrap().unwrap()).unwrap();
    }
    // The host opens its stream anew: the older one ends.
    let mut newer = bed.door.watch(m1).await.unwrap();
    assert!(newer.recv().await.unwrap().unwrap().whole);
    assert!(matches!(stream.recv().await, Some(Err(Refusal::Unavailable(_)))));
}

#[tokio::test]
async fn a_host_cannot_draw_traffic_to_other_addresses() {
    let bed = bed().await;
    let m1 = bed.joined("m1", &[]).await;
    let pod = bed.pod("a", "m1", "user").await;
    let lie = json!({
        "phase": "Running", "podIP": "10.0.0.66", "podIPs": [{ "ip": "10.0.0.66" }],
        "hostIP": "10.0.0.66",
    });
    let report =
        PodReport { pod: pod.clone(), status: lie.to_string().into_bytes(), finished: false };
    bed.door.report_pods(m1, vec![report], Vec::new()).await.unwrap();
    let status = bed.status(&pod);
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("127.64.0.9")));
    assert_eq!(status["hostIP"], "10.9.0.2");
    let host = |label: &str| {
        let labels = [(label.to_owned(), "x".to_owned())].into();
        described("m1", Host { labels, ..described_host("m1") })
    };
    assert!(host("disk").is_ok() && host("topology.kubernetes.io/zone").is_ok());
    for label in ["node-role.kubernetes.io/control-plane", "weft.dev/x", "kubernetes.io/hostname"] {
        assert!(matches!(host(label), Err(Refusal::Invalid(_))), "{label}");
    }
    assert!(described("m1", Host { addresses: Vec::new(), ..described_host("m1") }).is_err());
}

#[tokio::test]
async fn a_host_claims_no_address_of_another_machine() {
    let bed = bed().await;
    let (m1, _m2) = (bed.joined("m1", &[]).await, bed.joined("m2", &[]).await);
    let claims = |from: Peer, addresses: &[&str]| {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        bed.door.heartbeat(from, Host { addresses, ..described_host("m1") })
    };
    for (claim, why) in [
        (&["127.0.0.1"][..], "on each machine"),
        (&["10.9.0.2", "::1"], "on each machine"),
        (&["10.9.0.3"], "node m2's"),
        (&["10.9.0.2", "10.9.0.3"], "node m2's"),
        (&["::ffff:127.0.0.1"], "on each machine"),
        (&["10.9.0.2", "::ffff:127.9.9.9"], "on each machine"),
        (&["::ffff:10.9.0.3"], "node m2's"),
        (&["::ffff:0.0.0.0", "224.0.0.1", "255.255.255.255"], "no address"),
    ] {
        let refused = claims(m1.clone(), claim).await;
        assert!(
            matches!(&refused, Err(Refusal::Invalid(text)) if text.contains(why)),
            "{refused:?}"
        );
    }
    claims(m1.clone(), &["10.9.0.2", "10.9.0.9"]).await.unwrap();
    // What is kept has one form, and is of one machine.
    let all = ["::", "::ffff:10.9.0.2", "10.9.0.2", "0.0.0.0", "ff02::1", "fd00::2"];
    let addresses = all.iter().map(|a| a.parse().unwrap()).collect();
    let info = described("m1", Host { addresses, ..described_host("m1") }).unwrap();
    let kept: Vec<String> = info.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["10.9.0.2", "fd00::2"]);
    assert_eq!(info.node.address, info.addresses[0]);
    // An agent on the server's own machine is there under its loopback address.
    let near = Peer { address: "127.0.0.1:4711".parse().ok(), ..m1.clone() };
    claims(near, &["127.0.0.1"]).await.unwrap();
    // What a machine that is gone had is free.
    bed.tokens.hosts.leave("m2").await.unwrap();
    claims(m1, &["10.9.0.3"]).await.unwrap();
}

#[tokio::test]
async fn tokens_are_made_within_limits_and_deleted_by_a_part_of_their_id() {
    let bed = bed().await;
    let refused = |ask: TokenAsk| {
        let tokens = bed.tokens.clone();
        async move { tokens.create(ask).await.unwrap_err() }
    };
    for bad in [
        TokenAsk { ttl_seconds: Some(3601), ..TokenAsk::default() },
        TokenAsk { ttl_seconds: Some(0), ..TokenAsk::default() },
        TokenAsk { host: Some("Not A Name".into()), ..TokenAsk::default() },
        TokenAsk { allow: vec!["shop".into()], ..TokenAsk::default() },
    ] {
        assert!(matches!(refused(bad).await, TokenError::Invalid(_)));
    }
    let made = bed.tokens.create(TokenAsk::default()).await.unwrap();
    let id = made["id"].as_str().unwrap().to_owned();
    assert!(matches!(bed.tokens.delete("ff".into()).await, Err(TokenError::NotFound(_))));
    bed.tokens.delete(id[..6].to_owned()).await.unwrap();
    assert!(matches!(bed.tokens.delete(id).await, Err(TokenError::NotFound(_))));
}

/// A certificate from an answer, with the key that it was asked for.
fn svid(request: KeyRequest, joined: Joined) -> Svid {
    let domain = TrustDomain::new(&joined.trust_domain).unwrap();
    let (chain, bundle) = identity::certificates(joined.certificate, domain).unwrap();
    request.complete(chain, bundle).unwrap()
}

#[tokio::test]
async fn over_the_wire_a_machine_joins_lives_and_renews_and_guests_do_nothing_else() {
    let bed = bed().await;
    let clock = bed.tokens.clock.clone();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = &bed.door.link;
    let at =
        control::serve_xds(vec![listener], &own_svid(link), &link.pusher, &bed.registry, &bed.door);
    let at = at.unwrap();
    let text: JoinText = bed.token(TokenAsk::default()).await.parse().unwrap();
    let guest = identity::pinned_client(at, text.pin.unwrap(), &clock).unwrap();
    let refused = guest.heartbeat(described_host("m1")).await.unwrap_err();
    assert!(matches!(refused, Refusal::Unauthenticated(_)), "{refused:?}");
    let request = KeyRequest::generate().unwrap();
    let ask = JoinAsk {
        token: text.token.reveal().into(),
        host: described_host("m1"),
        csr: request.csr().to_vec(),
    };
    let own = svid(request, guest.join(ask).await.unwrap());
    let name = own.id().host().map(|(name, _)| name.to_owned());
    assert_eq!(name.as_deref(), Some("m1"));

    let host = identity::client(at, &Identity::new(own), &clock).unwrap();
    assert!(host.heartbeat(described_host("m1")).await.unwrap().resync);
    assert!(!host.heartbeat(described_host("m1")).await.unwrap().resync);
    let mut updates = host.watch().await.unwrap();
    assert!(updates.next().await.unwrap().unwrap().whole);
    let request = KeyRequest::generate().unwrap();
    let renewed = host.renew(request.csr().to_vec()).await.unwrap();
    let renewed = svid(request, renewed);
    let host = identity::client(at, &Identity::new(renewed), &clock).unwrap();
    host.heartbeat(described_host("m1")).await.unwrap();

    // A workload of the mesh has a certificate of the same authority, and is no host.
    let id = SpiffeId::new("spiffe://cluster.local/ns/default/sa/user").unwrap();
    let workload = link.authority.own_svid(&id, Duration::from_hours(1)).unwrap();
    let workload = identity::client(at, &Identity::new(workload), &clock).unwrap();
    assert!(denied(&workload.heartbeat(described_host("m1")).await));
    // Another authority's pin meets nobody here.
    let other = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let stranger = identity::pinned_client(at, other, &clock).unwrap();
    let ask = JoinAsk { token: "weft_x".into(), host: described_host("m1"), csr: Vec::new() };
    let refused = stranger.join(ask).await.unwrap_err();
    assert!(refused.to_string().contains("not of the pinned authority"), "{refused}");
}

/// Programs and connections of an agent, as small futures.
struct Programs;

impl PodStreams for Programs {
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        let pod = visit.pod;
        async move {
            let VisitWhat::Exec { command, .. } = visit.what else {
                return Err(StreamError::NotRunning(format!("container of {} rests", pod.name)));
            };
            let words = command.join(" ");
            Ok(Box::new(move |io: VisitIo| {
                async move {
                    let stdout = io.stdout.unwrap();
                    stdout
                        .send(format!("{} of {}: {words}\n", pod.name, pod.uid).into())
                        .await
                        .unwrap();
                    let mut stdin = io.stdin.unwrap();
                    while let Some(piece) = stdin.recv().await {
                        stdout.send(piece).await.unwrap();
                    }
                    Ok(3)
                }
                .boxed()
            }) as Opened)
        }
        .boxed()
    }
}

/// A host that joined over the wire and answers for its pods.
async fn answering_host(bed: &Bed, name: &str, tasks: &TaskGroup) -> (Peer, AgentClient) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = &bed.door.link;
    let listeners = vec![listener];
    let at = control::serve_xds(listeners, &own_svid(link), &link.pusher, &bed.registry, &bed.door);
    let caller = bed.joined(name, &[]).await;
    let id = SpiffeId::new(caller.spiffe_id.as_deref().unwrap()).unwrap();
    let own = link.authority.own_svid(&id, Duration::from_hours(1)).unwrap();
    let client = identity::client(at.unwrap(), &Identity::new(own), &bed.tokens.clock).unwrap();
    let visits = crate::agent::visits::Visits::new(client.clone(), tasks);
    visits.attach(Arc::new(Programs));
    let mut updates = client.watch().await.unwrap();
    assert!(updates.next().await.unwrap().unwrap().whole);
    tasks.spawn("host", async move {
        while let Ok(Some(update)) = updates.next().await {
            update.visits.into_iter().for_each(|ask| visits.answer(ask));
        }
    });
    (caller, client)
}

fn exec(pod: &PodRef) -> Visit {
    let PodRef { namespace, name, uid } = pod.clone();
    let command = vec!["echo".into(), "back".into()];
    let what = VisitWhat::Exec { container: "c".into(), command, tty: false };
    Visit { pod: weft_server::k8s::PodRef { namespace, name, uid }, what }
}

fn io() -> (VisitIo, mpsc::Sender<bytes::Bytes>, mpsc::Receiver<bytes::Bytes>) {
    let (stdin, input) = mpsc::channel(4);
    let (output, stdout) = mpsc::channel(4);
    (VisitIo { stdin: Some(input), stdout: Some(output), ..VisitIo::default() }, stdin, stdout)
}

#[tokio::test]
async fn a_pod_of_another_machine_is_visited_over_the_wire_and_by_nobody_else() {
    let (bed, tasks) = (bed().await, TaskGroup::new());
    let (m1, client) = answering_host(&bed, "m1", &tasks).await;
    let pod = bed.pod("a", "m1", "user").await;
    let streams = AllStreams { own: Arc::new(NoStreams), door: bed.door.clone() };
    let opened = streams.open(exec(&pod)).await.unwrap();
    let (own, stdin, mut stdout) = io();
    let talk = async {
        let first = stdout.recv().await.unwrap();
        assert_eq!(first, format!("a of {}: echo back\n", pod.uid));
        stdin.send("hello".into()).await.unwrap();
        assert_eq!(stdout.recv().await.unwrap(), "hello");
        drop(stdin);
        assert_eq!(stdout.recv().await, None);
    };
    let (outcome, ()) = tokio::join!(opened(own), talk);
    assert_eq!(outcome, Ok(3));
    // A refusal is one before it begins, and names the machine.
    let mut connect = exec(&pod);
    connect.what = VisitWhat::Connect { port: 80 };
    let refused = streams.open(connect).await.map(drop).unwrap_err();
    let why = StreamError::NotRunning("container of a rests (on host m1)".into());
    assert_eq!(refused, why);
    // Nobody answers what he was not asked; a workload answers nothing at all.
    let (up, words) = mpsc::channel(1);
    up.try_send(VisitUp::Ready(4711)).unwrap();
    assert!(denied(&client.visit(words).await.map(drop)));
    let workload = peer(Some("spiffe://cluster.local/ns/default/sa/user"));
    let ready = futures_util::stream::iter([Ok(VisitUp::Ready(1))]).boxed();
    assert!(denied(&bed.door.visit(workload, ready).await));
    // Where no agent is, the answer says which machine it is.
    let _m2 = bed.joined("m2", &[]).await;
    let away = bed.pod("b", "m2", "user").await;
    let refused = streams.open(exec(&away)).await.map(drop).unwrap_err();
    assert!(matches!(&refused, StreamError::Unavailable(why) if why.contains("host m2")));
    // A host that is removed has no visits any more, those that go on either.
    let opened = streams.open(exec(&pod)).await.unwrap();
    let (own, _stdin, mut stdout) = io();
    let removed = async {
        stdout.recv().await.unwrap();
        let gone = weft_registry::DeleteOptions::default();
        bed.registry.objects().delete(KindId::Node, "", "m1", &gone).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(opened(own), removed);
    assert!(matches!(&outcome, Err(StreamError::Lost(why)) if why.contains("m1")), "{outcome:?}");
    assert!(denied(&bed.door.report_usage(m1, UsageReport::default()).await));
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_host_tells_what_its_own_pods_use() {
    let bed = bed().await;
    let (m1, m2) = (bed.joined("m1", &[]).await, bed.joined("m2", &[]).await);
    bed.pod("a", "m1", "user").await;
    bed.pod("b", "m2", "user").await;
    let report = |cpu_milli| {
        let one = |pod: &str| ContainerUsage {
            namespace: "default".into(),
            pod: pod.into(),
            container: "c".into(),
            cpu_milli,
            memory_bytes: 1024,
        };
        let machine = Some(MachineUsage { cpu_milli: 500, memory_bytes: 1 << 20 });
        UsageReport { containers: vec![one("a"), one("b"), one("none")], machine }
    };
    bed.door.report_usage(m1.clone(), report(20)).await.unwrap();
    let usage = bed.registry.usage();
    assert_eq!(usage.resources["default/a"].cpu_milli, 20);
    assert_eq!(usage.resources["default/a/c"].memory_bytes, 1024);
    assert!(!usage.resources.contains_key("default/b"), "that is another host's");
    assert!(!usage.resources.contains_key("default/none"));
    assert_eq!(usage.nodes.keys().map(|n| &**n).collect::<Vec<_>>(), ["m1"]);
    bed.door.report_usage(m2, report(30)).await.unwrap();
    let usage = bed.registry.usage();
    assert_eq!(usage.resources["default/a"].cpu_milli, 20);
    assert_eq!(usage.resources["default/b"].cpu_milli, 30);
    let many =
        UsageReport { containers: vec![report(1).containers[0].clone(); 10_001], machine: None };
    assert!(matches!(bed.door.report_usage(m1, many).await, Err(Refusal::Invalid(_))));
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_configuration() {
    use weft_xds::client::{self, Dial, Options, nothing_more};
    let bed = bed().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = &bed.door.link;
    let listeners = vec![listener];
    let at = control::serve_xds(listeners, &own_svid(link), &link.pusher, &bed.registry, &bed.door);
    let at = at.unwrap();
    let pin = bed.tokens.authority.pin();
    let tls = Arc::new(weft_identity::tls::join_client(pin, &bed.tokens.clock).unwrap());
    let dial = Dial::new(at.to_string(), move || {
        let tls = tls.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(at).await?;
            let name = "server.weft.internal".try_into().unwrap();
            tokio_rustls::TlsConnector::from(tls).connect(name, stream).await
        }
    });
    let node = weft_xds::NodeId::sidecar("shop", "user-0").unwrap();
    let options = Options {
        node: weft_xds::NodeInfo::this_release(node, "test"),
        held: Vec::new(),
        wanted: nothing_more(),
        rng: weft_base::rng::Rng::seeded(1),
    };
    let tasks = TaskGroup::new();
    let mut handle = client::run(Arc::new(dial), options, &tasks);
    let refused = handle.status.wait_for(|s| s.error.is_some()).await.unwrap();
    let why = refused.error.clone().unwrap_or_default();
    assert!(why.contains("needs a certificate"), "{why}");
    assert_eq!(refused.connects, 0);
}

#[tokio::test]
async fn a_host_reports_its_own_checks_and_no_others() {
    use weft_kinds::views::catalog::{CheckRecord, NodeRecord};
    use weft_kinds::views::check::{CheckDefinition, Probe};
    use weft_kinds::world::CheckKey as StoredKey;
    let bed = bed().await;
    let (m1, m2) = (bed.joined("m1", &[]).await, bed.joined("m2", &[]).await);
    let catalog = bed.registry.catalog();
    let key =
        |node: &str| StoredKey { namespace: "default".into(), node: node.into(), id: "c".into() };
    let definition = CheckDefinition {
        probe: Probe::tcp("127.0.0.1:1"),
        agent: true,
        ..CheckDefinition::default()
    };
    for node in ["m1", "m2"] {
        let record =
            NodeRecord { node: node.into(), address: "10.9.0.2".into(), ..NodeRecord::default() };

        let check = CheckRecord {
            namespace: "default".into(),
            node: node.into(),
            id: "c".into(),
            name: "c".into(),
            ..CheckRecord::default()
        };
        let check = check.with(&definition);
        catalog.register_check(&record, check).await.unwrap();
    }
    let result = |status| {
        vec![CheckResult {
            namespace: "default".into(),
            id: "c".into(),
            status,
            output: "x".repeat(9_000),
        }]
    };
    bed.door.report_checks(m1, result(CheckStatus::Passing)).await.unwrap();
    let status = |node: &str| bed.registry.now().catalog().status(&key(node));
    assert_eq!((status("m1"), status("m2")), (Status::Passing, Status::Critical));
    let world = bed.registry.now();
    let kept = world.catalog().result(&key("m1")).unwrap();
    assert!(kept.output.len() <= CHECK_OUTPUT_BYTES_MAX);
    bed.door.report_checks(m2, result(CheckStatus::Warning)).await.unwrap();
    assert_eq!((status("m1"), status("m2")), (Status::Passing, Status::Warning));
}
