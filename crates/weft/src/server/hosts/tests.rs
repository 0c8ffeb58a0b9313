// SPDX-License-Identifier: Apache-2.0
//! Who may do what at the door for agents, over a real registry and a real authority.

use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_identity::join::JoinText;
use weft_identity::svid::KeyRequest;
use weft_identity::{Authority, Leaf, Svid, TrustDomain};
use weft_registry::WriteOptions;
use weft_server::tokens::{TokenAsk, TokenError, Tokens as _};
use weft_store::MemoryStore;

use super::*;
use crate::agent::identity::{self, Identity};
use crate::server::control;

struct Bed {
    door: HostDoor,
    tokens: HostTokens,
    registry: Registry,
    _dir: tempfile::TempDir,
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
    let hosts = Hosts::start(registry.clone(), &tasks).await.unwrap();
    let door = HostDoor::new(hosts.clone(), link, "cluster.local");
    Bed { door, tokens: HostTokens { hosts, authority, clock, agents: None }, registry, _dir: dir }
}

fn peer(id: Option<&str>) -> Peer {
    Peer { spiffe_id: id.map(Into::into), address: "10.9.0.2:4711".parse().ok() }
}

fn described_host(name: &str) -> Host {
    Host {
        name: name.into(),
        addresses: vec!["10.9.0.2".parse().unwrap()],
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
    assert!(matches!(tries(&bed).await, Err(Refusal::Busy(_))));
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
        control::serve_xds(vec![listener], &link.authority, &link.pusher, &bed.registry, &bed.door);
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
    let workload = link.authority.own_svid(&id, Duration::from_secs(60)).unwrap();
    let workload = identity::client(at, &Identity::new(workload), &clock).unwrap();
    assert!(denied(&workload.heartbeat(described_host("m1")).await));
    // Another authority's pin meets nobody here.
    let other = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let stranger = identity::pinned_client(at, other, &clock).unwrap();
    let ask = JoinAsk { token: "weft_x".into(), host: described_host("m1"), csr: Vec::new() };
    let refused = stranger.join(ask).await.unwrap_err();
    assert!(refused.to_string().contains("not of the pinned authority"), "{refused}");
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_configuration() {
    use weft_xds::client::{self, Dial, Options, nothing_more};
    let bed = bed().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = &bed.door.link;
    let listeners = vec![listener];
    let at = control::serve_xds(listeners, &link.authority, &link.pusher, &bed.registry, &bed.door);
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
        probe: Probe::Tcp { address: "127.0.0.1:1".into(), tls: false },
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
            definition: serde_json::to_value(&definition).ok(),
            ..CheckRecord::default()
        };
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
