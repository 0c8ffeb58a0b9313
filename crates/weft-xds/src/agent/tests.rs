// SPDX-License-Identifier: Apache-2.0
//! Both halves against each other over real sockets; who calls is what the transport says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use weft_base::task::TaskGroup;

use super::client::AgentClient;
use super::server::{AgentService, Hosts};
use super::visit::*;
use super::*;
use crate::server::{self, Guests, Handshake, Peer};

type Answer<T> = futures_util::future::BoxFuture<'static, Result<T, Refusal>>;

/// Answers what it was asked, with the caller's name in it.
#[derive(Debug, Default)]
struct Echo {
    seen: Mutex<Vec<String>>,
}

impl Echo {
    fn note(&self, peer: &Peer, what: String) {
        let who = peer.spiffe_id.as_deref().unwrap_or("nobody");
        self.seen.lock().unwrap().push(format!("{who}: {what}"));
    }
}

fn host() -> Host {
    Host {
        name: "m1".into(),
        addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        version: "weft-1".into(),
        boot_id: "b".into(),
        instance: "i".into(),
        kernel: "k".into(),
        cpus: 2,
        memory_bytes: 1 << 33,
        pods_max: 110,
    }
}

fn pod(name: &str) -> PodRef {
    PodRef { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}") }
}

fn certificate() -> Certificate {
    Certificate { chain: vec![vec![1], vec![2]], bundle: vec![vec![3]], not_after_ms: 7 }
}

fn joined() -> Joined {
    Joined {
        certificate: certificate(),
        trust_domain: "cluster.local".into(),
        cluster_domain: "c".into(),
    }
}

fn updates() -> Vec<HostUpdate> {
    let first = HostUpdate {
        revision: 4,
        whole: true,
        more: true,
        upserts: vec![(pod("a"), b"{}".to_vec())],
        upstreams: vec![("shop".into(), b"[]".to_vec())],
        ..HostUpdate::default()
    };
    let second = HostUpdate {
        revision: 4,
        removes: vec![pod("b")],
        checks: Some(b"[]".to_vec()),
        logs: vec![LogAsk { id: 3, pod: pod("a"), container: "c".into(), query: b"{}".to_vec() }],
        visits: visits(),
        measure: Duration::from_secs(35),
        ..HostUpdate::default()
    };
    vec![first, second]
}

fn visits() -> Vec<VisitAsk> {
    let container = || "c".to_owned();
    let whats = [
        VisitWhat::Exec { container: container(), command: vec!["sh".into()], tty: true },
        VisitWhat::Attach { container: container() },
        VisitWhat::Connect { port: 65_535 },
    ];
    (4..).zip(whats).map(|(id, what)| VisitAsk { id, pod: pod("a"), what }).collect()
}

fn said_up() -> Vec<VisitUp> {
    let kinds = [
        FailureKind::NotRunning,
        FailureKind::Refused,
        FailureKind::NotStarted,
        FailureKind::Lost,
        FailureKind::Unavailable,
    ];
    let failure = |kind| VisitUp::Failed(VisitFailure { id: 4, kind, message: "m".into() });
    let mut all = vec![
        VisitUp::Ready(4),
        VisitUp::Stdout("out".into()),
        VisitUp::Stderr("err".into()),
        VisitUp::Ended(Output::Stdout),
        VisitUp::Ended(Output::Stderr),
        VisitUp::Exit(-1),
    ];
    all.extend(kinds.map(failure));
    all
}

fn said_down() -> Vec<VisitDown> {
    let streams = VisitStreams { stdin: true, stdout: false, stderr: true, resize: true };
    vec![
        VisitDown::Begin(streams),
        VisitDown::Stdin("in".into()),
        VisitDown::StdinEnded,
        VisitDown::Size { columns: 80, rows: 24 },
    ]
}

fn usage() -> UsageReport {
    let container = ContainerUsage {
        namespace: "shop".into(),
        pod: "a".into(),
        container: "c".into(),
        cpu_milli: 1,
        memory_bytes: 2,
    };
    let machine = Some(MachineUsage { cpu_milli: 3, memory_bytes: 4 });
    UsageReport { containers: vec![container], machine }
}

fn log_pieces() -> Vec<LogPiece> {
    let piece = |what| LogPiece { id: 3, what };
    vec![
        piece(LogWhat::Data(b"line\n".to_vec())),
        piece(LogWhat::NotThere("no such container".into())),
        piece(LogWhat::Failed("disk".into())),
    ]
}

impl Hosts for Echo {
    fn join(&self, peer: Peer, ask: JoinAsk) -> Answer<Joined> {
        self.note(&peer, format!("join {} {:?}", ask.token, ask.csr));
        let same = ask.host == host();
        async move {
            if same { Ok(joined()) } else { Err(Refusal::Invalid("another host".into())) }
        }
        .boxed()
    }

    fn renew(&self, peer: Peer, csr: Vec<u8>) -> Answer<Joined> {
        self.note(&peer, format!("renew {csr:?}"));
        async { Ok(joined()) }.boxed()
    }

    fn heartbeat(&self, peer: Peer, host: Host) -> Answer<Beat> {
        self.note(&peer, format!("heartbeat {}", host.name));
        async { Ok(Beat { interval: Duration::from_millis(1500), resync: true }) }.boxed()
    }

    fn leave(&self, peer: Peer) -> Answer<()> {
        self.note(&peer, "leave".into());
        async { Ok(()) }.boxed()
    }

    fn watch(&self, peer: Peer) -> Answer<mpsc::Receiver<Result<HostUpdate, Refusal>>> {
        self.note(&peer, "watch".into());
        async {
            let (tx, rx) = mpsc::channel(4);
            for update in updates() {
                tx.try_send(Ok(update)).unwrap();
            }
            tx.try_send(Err(Refusal::Unavailable("going away".into()))).unwrap();
            Ok(rx)
        }
        .boxed()
    }

    fn report_pods(&self, peer: Peer, pods: Vec<PodReport>, notes: Vec<PodNote>) -> Answer<()> {
        self.note(&peer, format!("report {} {}", pods.len(), notes.len()));
        async { Err(Refusal::Denied("that pod is another host's".into())) }.boxed()
    }

    fn report_checks(&self, peer: Peer, results: Vec<CheckResult>) -> Answer<()> {
        self.note(&peer, format!("checks {results:?}"));
        async { Ok(()) }.boxed()
    }

    fn sign(&self, peer: Peer, pod: PodRef, csr: Vec<u8>) -> Answer<(Certificate, String)> {
        self.note(&peer, format!("sign {} {csr:?}", pod.name));
        async { Ok((certificate(), "cluster.local".into())) }.boxed()
    }

    fn send_log(&self, peer: Peer, pieces: super::server::LogPieces) -> Answer<()> {
        self.note(&peer, "log".into());
        async move {
            let all: Vec<LogPiece> = pieces.collect().await;
            assert_eq!(all, log_pieces());
            Ok(())
        }
        .boxed()
    }

    fn visit(&self, peer: Peer, up: super::server::VisitUps) -> Answer<mpsc::Receiver<VisitDown>> {
        self.note(&peer, "visit".into());
        async move {
            let all: Vec<_> = up.map(|up| up.unwrap()).take(said_up().len()).collect().await;
            assert_eq!(all, said_up());
            let (down, rx) = mpsc::channel(4);
            said_down().into_iter().for_each(|d| down.try_send(d).unwrap());
            Ok(rx)
        }
        .boxed()
    }

    fn report_usage(&self, peer: Peer, report: UsageReport) -> Answer<()> {
        self.note(&peer, "usage".into());
        assert_eq!(report, usage());
        async { Ok(()) }.boxed()
    }

    fn wait(&self, peer: Peer, what: Wait, limit: Duration) -> Answer<bool> {
        self.note(&peer, format!("wait {what:?} {limit:?}"));
        async move { Ok(matches!(what, Wait::Inbound(_))) }.boxed()
    }

    fn declare(&self, peer: Peer, declared: Declared) -> Answer<Option<PodRef>> {
        self.note(&peer, format!("declare {declared:?}"));
        let pod = (!declared.service_account.is_empty()).then(|| pod("d"));
        async move { Ok(pod) }.boxed()
    }

    fn resolve(&self, _: Peer, _: PodRef, query: Vec<u8>, tcp: bool) -> Answer<Resolved> {
        let resolved = match query.as_slice() {
            b"web" if tcp => Resolved::Answer(b"whole".to_vec()),
            b"web" => Resolved::Answer(b"short".to_vec()),
            b"garbage" => Resolved::Silence,
            _ => Resolved::Outside,
        };
        async move { Ok(resolved) }.boxed()
    }

    fn consul(&self, peer: Peer, ask: ConsulAsk) -> Answer<ConsulAnswer> {
        self.note(&peer, format!("{} {} {}", ask.method, ask.target, ask.token));
        let headers = vec![("x-consul-index".to_owned(), "7".to_owned())];
        async move { Ok(ConsulAnswer { status: 200, headers, body: ask.body }) }.boxed()
    }

    fn consul_token(&self, _: Peer, token: String) -> Answer<Vec<u8>> {
        async move { Ok(token.into_bytes()) }.boxed()
    }

    fn consul_sync(&self, _: Peer, json: Vec<u8>) -> Answer<Vec<u8>> {
        async move { Ok(json) }.boxed()
    }
}

/// Serves an echo to callers of one identity, or of none.
async fn serve(id: Option<&'static str>, tasks: &TaskGroup) -> (Arc<Echo>, AgentClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handshake: Handshake<TcpStream> = Arc::new(move |io: TcpStream| {
        async move { Ok((io, Peer { spiffe_id: id.map(Into::into), address: None })) }.boxed()
    });
    let incoming = server::incoming_with(listener, handshake, Guests::Briefly, tasks);
    let echo = Arc::new(Echo::default());
    let service = AgentService::new(echo.clone()).into_server();
    let group = tasks.clone();
    tasks.spawn("server", async move {
        let serving = server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { group.draining().await });
        serving.await.unwrap();
    });
    let client = AgentClient::new(&address.to_string(), move || TcpStream::connect(address));
    (echo, client.unwrap())
}

#[tokio::test]
async fn every_call_arrives_as_it_was_made_with_its_caller() {
    let tasks = TaskGroup::new();
    let (echo, client) = serve(Some("spiffe://cluster.local/weft/host/m1/x"), &tasks).await;
    assert_eq!(client.renew(vec![9]).await, Ok(joined()));
    let beat = client.heartbeat(host()).await.unwrap();
    assert_eq!(beat, Beat { interval: Duration::from_millis(1500), resync: true });
    let mut stream = client.watch().await.unwrap();
    for update in updates() {
        assert_eq!(stream.next().await, Ok(Some(update)));
    }
    assert_eq!(stream.next().await, Err(Refusal::Unavailable("going away".into())));
    let report = PodReport { pod: pod("a"), status: b"{}".to_vec(), finished: false };
    let refused = client.report_pods(vec![report], Vec::new()).await;
    assert_eq!(refused, Err(Refusal::Denied("that pod is another host's".into())));
    let result = CheckResult {
        namespace: "default".into(),
        id: "c".into(),
        status: CheckStatus::Warning,
        output: "slow".into(),
    };
    client.report_checks(vec![result]).await.unwrap();
    let signed = client.sign(pod("a"), vec![5]).await;
    assert_eq!(signed, Ok((certificate(), "cluster.local".into())));
    let hour = Duration::from_secs(3600);
    assert_eq!(client.wait(Wait::Inbound(pod("a")), hour).await, Ok(true));
    assert_eq!(client.wait(Wait::Drained(pod("a")), hour).await, Ok(false));

    client.leave().await.unwrap();
    let (tx, rx) = mpsc::channel(4);
    log_pieces().into_iter().for_each(|p| tx.try_send(p).unwrap());
    drop(tx);
    client.send_log(rx).await.unwrap();
    client.report_usage(usage()).await.unwrap();
    // On a connection of its own, still in the same name.
    let (tx, rx) = mpsc::channel(16);
    said_up().into_iter().for_each(|up| tx.try_send(up).unwrap());
    let mut downs = client.apart().visit(rx).await.unwrap();
    for down in said_down() {
        assert_eq!(downs.next().await, Some(Ok(down)));
    }
    assert_eq!(downs.next().await, None);
    tokio::time::timeout(Duration::from_secs(60), tx.closed()).await.expect("the visit is over");
    let seen = echo.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|s| s.starts_with("spiffe://cluster.local/weft/host/m1/x: ")));
    assert_eq!(seen.len(), 12);
    // What a client asks for is bounded here.
    assert!(seen[6].ends_with(&format!("{:?}", server_wait_max())), "{}", seen[6]);
    tasks.shutdown(Duration::from_secs(1)).await;
}

fn server_wait_max() -> Duration {
    super::server::WAIT_MAX
}

#[tokio::test]
async fn programs_are_declared_and_their_names_asked_for() {
    let tasks = TaskGroup::new();
    let (echo, client) = serve(Some("spiffe://cluster.local/weft/host/m1/x"), &tasks).await;
    let declared = Declared {
        namespace: "shop".into(),
        service_account: "legacy".into(),
        service: "billing".into(),
        ports: vec![(8080, "http".into()), (9000, String::new())],
        labels: BTreeMap::from([("version".into(), "v1".into())]),
    };
    assert_eq!(client.declare(declared.clone()).await, Ok(Some(pod("d"))));
    assert_eq!(client.declare(Declared::default()).await, Ok(None));
    let seen = echo.seen.lock().unwrap().clone();
    assert!(seen[0].ends_with(&format!("declare {declared:?}")), "{}", seen[0]);
    for (query, tcp, resolved) in [
        (&b"web"[..], true, Resolved::Answer(b"whole".to_vec())),
        (b"web", false, Resolved::Answer(b"short".to_vec())),
        (b"garbage", false, Resolved::Silence),
        (b"elsewhere", false, Resolved::Outside),
    ] {
        assert_eq!(client.resolve(pod("d"), query.to_vec(), tcp).await, Ok(resolved));
    }
    let long = client.resolve(pod("d"), vec![0; 5000], true).await;
    assert!(matches!(long, Err(Refusal::Invalid(_))), "{long:?}");
    tasks.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn an_answer_of_consuls_api_comes_whole_however_long_it_is() {
    let tasks = TaskGroup::new();
    let (echo, client) = serve(Some("spiffe://cluster.local/weft/host/m1/x"), &tasks).await;
    for length in [0, 1, 256 * 1024, 1_000_000] {
        let body: Vec<u8> = (0..length).map(|n: usize| n.to_le_bytes()[0]).collect();
        let target = "/v1/kv/a?raw".to_owned();
        let ask = ConsulAsk { method: "GET".into(), target, token: "s".into(), body: body.clone() };
        assert!(!format!("{ask:?}").contains("kv"), "keys and secrets are not printed");
        let answer = client.consul(ask, Duration::from_secs(30)).await.unwrap();
        assert_eq!((answer.status, answer.body == body), (200, true), "{length}");
        assert_eq!(answer.headers, [("x-consul-index".to_owned(), "7".to_owned())]);
    }
    assert!(echo.seen.lock().unwrap()[0].ends_with("m1/x: GET /v1/kv/a?raw s"));
    let long = ConsulAsk { token: "t".repeat(TOKEN_BYTES_MAX + 1), ..ConsulAsk::default() };
    let refused = client.consul(long, Duration::from_secs(30)).await;
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    assert_eq!(client.consul_token("t".into()).await, Ok(b"t".to_vec()));
    assert_eq!(client.consul_sync(b"{}".to_vec()).await, Ok(b"{}".to_vec()));
    tasks.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn without_a_certificate_only_joining_is_heard() {
    let tasks = TaskGroup::new();
    let (echo, client) = serve(None, &tasks).await;
    for refused in [
        client.heartbeat(host()).await.map(drop),
        client.leave().await,
        client.renew(vec![1]).await.map(drop),
        client.watch().await.map(drop),
        client.report_pods(Vec::new(), Vec::new()).await,
        client.report_checks(Vec::new()).await,
        client.report_usage(usage()).await,
        client.visit(mpsc::channel(1).1).await.map(drop),
        client.sign(pod("a"), vec![1]).await.map(drop),
        client.wait(Wait::Inbound(pod("a")), Duration::ZERO).await.map(drop),
        client.consul(ConsulAsk::default(), Duration::from_secs(30)).await.map(drop),
        client.consul_token("t".into()).await.map(drop),
        client.consul_sync(b"{}".to_vec()).await.map(drop),
    ] {
        assert!(matches!(refused, Err(Refusal::Unauthenticated(_))), "{refused:?}");
    }
    assert!(echo.seen.lock().unwrap().is_empty());
    let ask = JoinAsk { token: "t".into(), host: host(), csr: vec![1] };
    assert_eq!(client.join(ask.clone()).await, Ok(joined()));
    let long = JoinAsk { token: "t".repeat(TOKEN_BYTES_MAX + 1), ..ask };
    assert!(matches!(client.join(long).await, Err(Refusal::Invalid(_))));
    assert_eq!(*echo.seen.lock().unwrap(), ["nobody: join t [1]"]);
    tasks.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_server_that_is_away_is_worth_trying_again() {
    let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::ports::free()));
    let client = AgentClient::new(&address.to_string(), move || TcpStream::connect(address));
    let refused = client.unwrap().heartbeat(host()).await.unwrap_err();
    assert!(refused.is_passing(), "{refused:?}");
    assert!(refused.to_string().contains("refused"), "{refused}");
}
