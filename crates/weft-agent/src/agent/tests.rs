// SPDX-License-Identifier: Apache-2.0
//! Real processes: python programs as apps and, for the sidecar, as the proxy's readiness port.

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::sync::watch;
use weft_base::snapshot::{Publisher, snapshot};
use weft_identity::{Authority, Bundle, ca::Issued};

use super::*;
use crate::checks::CheckReport;
use crate::config::ProxyProgram;
use crate::link::{BoxFuture, LinkError, PodNote, PodReport, SignAsk};
use crate::machine::QUIET_MAX;
use crate::pod::Configs;
use crate::procfs;

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server in the test: signs for real, remembers what it is told.
#[derive(Debug)]
struct Link {
    ca: Authority,
    pods: watch::Sender<BTreeMap<PodKey, PodReport>>,
    notes: Mutex<Vec<PodNote>>,
    acks: watch::Sender<bool>,
    drains: Mutex<Vec<PodKey>>,
}

impl ServerLink for Link {
    fn report_pod(&self, report: PodReport) -> BoxFuture<Result<(), LinkError>> {
        self.pods.send_modify(|pods| {
            pods.insert(report.pod.clone(), report);
        });
        Box::pin(async { Ok(()) })
    }
    fn note(&self, note: PodNote) {
        self.notes.lock().unwrap().push(note);
    }
    fn sign(&self, ask: SignAsk) -> BoxFuture<Result<(Issued, Bundle), LinkError>> {
        let name = |s: &str| weft_base::name::Label::new(s).unwrap();
        let td = self.ca.trust_domain();
        let id = td.workload(&name(&ask.pod.namespace), &name(&ask.service_account));
        let signed = self.ca.sign(&ask.csr, &id, weft_identity::ca::SVID_TTL_DEFAULT);
        let bundle = self.ca.bundle().clone();
        Box::pin(async move {
            signed.map(|i| (i, bundle)).map_err(|e| LinkError::Refused(e.to_string()))
        })
    }
    fn inbound_acked(&self, _: PodKey) -> BoxFuture<()> {
        let mut acks = self.acks.subscribe();
        Box::pin(async move {
            let _ = acks.wait_for(|a| *a).await;
        })
    }
    fn drained(&self, pod: PodKey) -> BoxFuture<()> {
        self.drains.lock().unwrap().push(pod);
        Box::pin(async {})
    }
    fn report_checks(&self, _: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        Box::pin(async { Ok(()) })
    }
}

/// What the agent needs of a proxy: readiness on its port. Also writes what it was given.
const PROXY: &str = r#"
import http.server, os, sys, threading
a = sys.argv
address = a[a.index("--address") + 1]
credential = a[a.index("--credential") + 1] if "--credential" in a else None
print("proxy", " ".join(a[1:]), open(credential).read() if credential else "", flush=True)
busy = a[a.index("--last-good") + 1] + ".busy"
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        if self.path == "/stats":
            active = 0
            if os.path.exists(busy):
                active = 1; open(busy, "a").write("asked\n")
            self.wfile.write(b"weft_x: 9\nweft_inbound_requests_active: %d\n" % active)
    def log_message(self, *x): pass
S = http.server.ThreadingHTTPServer
threading.Thread(target=S((address, 15000), H).serve_forever, daemon=True).start()
S((address, int(a[a.index("--ready-port") + 1])), H).serve_forever()
"#;

/// An app as users write them: HTTP on POD_IP:PORT, ends politely on SIGTERM.
const APP: &str = r#"
import http.server, os, signal, sys, threading
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get(self.path[1:], "").encode()
        self.send_response(200 if body or self.path == "/" else 503)
        self.end_headers(); self.wfile.write(body)
    def log_message(self, *x): pass
s = http.server.ThreadingHTTPServer((os.environ["POD_IP"], int(os.environ["PORT"])), H)
def end(*x):
    print("bye", flush=True); threading.Thread(target=s.shutdown).start()
signal.signal(signal.SIGTERM, end)
print("hello from", os.environ["POD_NAME"], flush=True)
s.serve_forever()
"#;

struct Rig {
    dir: tempfile::TempDir,
    agent: Agent,
    link: Arc<Link>,
    desired: Publisher<Desired>,
    tasks: TaskGroup,
}

/// A loopback address of its own per test, and a port that is free there and everywhere.
fn free_address() -> (IpAddr, u16) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() % 4000 * 64;
    let [_, b, c, d] = n.to_be_bytes();
    (IpAddr::from([127, 70 + b, c, d]), weft_testkit::ports::free())
}

fn config(dir: &Path, ready_port: Option<u16>) -> AgentConfig {
    let proxy = ready_port.map(|ready_port| ProxyProgram {
        program: "/usr/bin/env".into(),
        args: vec!["python3".into(), "-c".into(), PROXY.into()],
        common: vec!["--ready-port".into(), ready_port.to_string()],
        outbound_port: 15001,
        ready_port,
        dns: None,
        machine_dns: None,
    });
    AgentConfig {
        dir: dir.join("agent"),
        log_dir: dir.join("logs"),
        host_ip: "127.0.0.1".parse().unwrap(),
        base_env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        images: [("app:1".to_owned(), "python3".to_owned())].into(),
        workdir: PathBuf::from("/"),
        proxy,
        hidden: Vec::new(),
        namespaces: false,
        subreaper: false,
    }
}

fn rig(ready_port: Option<u16>) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let ca = Authority::open(&dir.path().join("ca"), None, &clock).unwrap();
    let link = Arc::new(Link {
        ca,
        pods: watch::Sender::new(BTreeMap::new()),
        notes: Mutex::default(),
        acks: watch::Sender::new(true),
        drains: Mutex::default(),
    });
    let (desired, reader) = snapshot(Desired::new());
    let tasks = TaskGroup::new();
    let config = config(dir.path(), ready_port);
    let agent = Agent::start(config, reader, link.clone(), clock, &tasks).unwrap();
    Rig { dir, agent, link, desired, tasks }
}

fn key() -> PodKey {
    PodKey::new("shop", "web-1")
}

fn pod(ip: IpAddr, port: u16, mut container: Value) -> DesiredPod {
    container["name"] = json!("app");
    if port != 0 {
        container["ports"] = json!([{"name": "http", "containerPort": port}]);
    }
    DesiredPod {
        object: Arc::new(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1"},
            "spec": {"containers": [container], "serviceAccountName": "web",
                     "terminationGracePeriodSeconds": 120},
        })),
        address: ip,
        addresses: vec![ip],
        admin_address: ip,
        mode: weft_kinds::world::PodsMode::Process,
        upstreams: Vec::new(),
        configs: Configs::default(),
    }
}

/// The same app's pod after `kubectl delete`.
fn going(ip: IpAddr, port: u16) -> DesiredPod {
    let mut going = pod(ip, port, python(APP));
    let mut object = (*going.object).clone();
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    going.object = Arc::new(object);
    going
}

fn python(script: &str) -> Value {
    json!({"image": "app:1", "args": ["-c", script]})
}

impl Rig {
    fn want(&self, pod: DesiredPod) {
        self.desired.publish(Desired::from([(key(), Arc::new(pod))]));
    }

    /// Waits until the reported status satisfies this.
    async fn until(&self, what: &str, mut holds: impl FnMut(&PodReport) -> bool) -> PodReport {
        let mut pods = self.link.pods.subscribe();
        let found = pods.wait_for(|pods| pods.get(&key()).is_some_and(&mut holds));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(pods) => pods.unwrap()[&key()].clone(),
            Err(_) => panic!("never {what}: {:#?}", self.link.pods.borrow()),
        }
    }

    async fn ready(&self) -> PodReport {
        self.until("ready", |r| condition(&r.status, "Ready")).await
    }

    /// Waits until the app can be ended politely, of which it says something. It is ready before:
    /// as soon as it listens.
    async fn settled(&self) {
        let greeted = async {
            while self.log("app", LogQuery::default()).await != "hello from web-1\n" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, greeted).await.expect("it greets");
    }

    async fn log(&self, container: &str, query: LogQuery) -> String {
        let mut out = Vec::new();
        let mut reader = self.agent.read_log(&key(), container, &query).unwrap();
        while let Some(piece) = reader.next().await.unwrap() {
            out.extend(piece);
        }
        String::from_utf8(out).unwrap()
    }
}

fn condition(status: &Value, kind: &str) -> bool {
    let all = status["conditions"].as_array().into_iter().flatten();
    all.clone().any(|c| c["type"] == kind && c["status"] == "True")
}

fn container(report: &PodReport) -> &Value {
    &report.status["containerStatuses"][0]
}

async fn get(ip: IpAddr, port: u16, path: &str) -> (u16, String) {
    answer(ip, port, path).await.unwrap()
}

async fn answer(ip: IpAddr, port: u16, path: &str) -> Result<(u16, String), String> {
    let ask = crate::probe::ask::HttpAsk {
        uri: format!("http://{ip}:{port}/{path}").parse().unwrap(),
        method: http::Method::GET,
        headers: Vec::new(),
        body: String::new(),
        tls: crate::probe::ask::Tls::default(),
        via: weft_base::sockets::SocketFactory::Here,
        guarded: false,
    };
    let answer = crate::probe::ask::http(&ask, PATIENCE).await?;
    Ok((answer.status.as_u16(), answer.body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_with_its_sidecar_and_goes_politely() {
    let (ip, port) = free_address();
    let (_, ready_port) = free_address();
    let rig = rig(Some(ready_port));
    rig.link.acks.send_replace(false);
    rig.want(pod(ip, port, python(APP)));
    let report = rig.until("up", |r| condition(&r.status, "ContainersReady")).await;
    assert!(!condition(&report.status, "Ready"), "the sidecar has not acknowledged");
    rig.link.acks.send_replace(true);
    let report = rig.ready().await;
    assert_eq!(report.status["phase"], "Running");
    assert_eq!(container(&report)["ready"], true);

    let (_, proxy_url) = get(ip, port, "HTTP_PROXY").await;
    let credential = proxy_url.strip_prefix("http://pod:").unwrap();
    let credential = credential.strip_suffix(&format!("@{ip}:15001")).unwrap();
    assert_eq!(get(ip, port, "POD_NAME").await, (200, "web-1".into()));
    // The proxy was told who it is, and knows the same credential. What it says takes its time to
    // be in its log.
    let mut told = String::new();
    while !told.ends_with('\n') {
        told = rig.log("weft-proxy", LogQuery::default()).await;
        tokio::task::yield_now().await;
    }
    assert!(
        told.contains("--node sidecar~shop~web-1") && told.contains(&format!("pod:{credential}")),
        "{told}"
    );
    assert!(told.contains(&format!("--address {ip}")) && told.contains("--workers 1"), "{told}");
    rig.settled().await;

    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut follower = rig.agent.read_log(&key(), "app", &query).unwrap();
    rig.want(going(ip, port));
    let report = rig.until("finished", |r| r.finished).await;
    assert_eq!(container(&report)["state"]["terminated"]["exitCode"], 0, "{report:#?}");
    assert_eq!(*rig.link.drains.lock().unwrap(), [key()]);
    let mut said = Vec::new();
    while let Some(piece) = follower.next().await.unwrap() {
        said.extend(piece);
    }
    assert_eq!(String::from_utf8(said).unwrap(), "hello from web-1\nbye\n");
    assert!(rig.agent.processes().is_empty());
    assert!(!rig.dir.path().join("agent/credentials/shop_web-1").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_not_ended_while_it_answers() {
    // A sidecar that stands still is not waited for: then the next one is looked at.
    for _ in 0..20 {
        if is_waited_for().await {
            return;
        }
    }
    panic!("it was ended each time");
}

/// Whether an app that goes is waited for while its sidecar says that it answers a request.
async fn is_waited_for() -> bool {
    let (ip, port) = free_address();
    let (_, ready_port) = free_address();
    let rig = rig(Some(ready_port));
    rig.want(pod(ip, port, python(APP)));
    rig.ready().await;
    rig.settled().await;
    let busy = rig.dir.path().join("agent/lastgood/shop_web-1.busy");
    std::fs::write(&busy, "").unwrap();
    rig.want(going(ip, port));
    let asked = async {
        while std::fs::read_to_string(&busy).unwrap().lines().count() < 5 {
            tokio::task::yield_now().await;
        }
        // Asked five times, it still answers.
        answer(ip, port, "POD_NAME").await.is_ok_and(|(status, _)| status == 200)
    };
    let waited = tokio::time::timeout(QUIET_MAX, asked).await == Ok(true);
    std::fs::remove_file(&busy).unwrap();
    let report = rig.until("finished", |r| r.finished).await;
    assert_eq!(container(&report)["state"]["terminated"]["exitCode"], 0);
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_app_comes_back_and_a_crashing_one_backs_off_with_its_reason() {
    let (ip, port) = free_address();
    let rig = rig(None);
    rig.want(pod(ip, port, python(APP)));
    rig.ready().await;
    rig.settled().await;
    let pid = rig.agent.processes()[0];
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let report =
        rig.until("back", |r| container(r)["restartCount"] == 1 && condition(&r.status, "Ready"));
    let report = report.await;
    let last = &container(&report)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["signal"]), (&json!(137), &json!(9)));
    assert_eq!(
        rig.log("app", LogQuery { previous: true, ..LogQuery::default() }).await,
        "hello from web-1\n"
    );

    // Another object of the same name: the old one ends, the new one begins.
    let mut crashing = pod(ip, port, python("import sys; sys.exit('no database')"));
    let mut object = (*crashing.object).clone();
    object["metadata"]["uid"] = json!("u2");
    crashing.object = Arc::new(object);
    rig.want(crashing);
    let report = rig.until("backing off", |r| {
        r.uid == "u2" && container(r)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let message = container(&report.await)["state"]["waiting"]["message"].clone();
    assert!(message.as_str().unwrap().contains("no database"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_on_the_wrong_address_and_one_on_a_taken_port_are_told() {
    let (ip, port) = free_address();
    let rig_ = rig(None);
    let elsewhere = APP.replace("os.environ[\"POD_IP\"]", "\"127.0.0.1\"");
    rig_.want(pod(ip, port, python(&elsewhere)));
    let report = rig_.until("told", |r| r.status["message"].is_string()).await;
    let message = report.status["message"].as_str().unwrap();
    assert!(message.contains(&format!("listens on 127.0.0.1:{port}")), "{message}");
    assert!(message.contains("$POD_IP:$PORT"), "{message}");
    assert!(!condition(&report.status, "Ready"));
    drop(rig_);

    let port = weft_testkit::ports::free();
    let _holder = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let rig_ = rig(None);
    let everywhere = APP.replace("os.environ[\"POD_IP\"]", "\"0.0.0.0\"");
    rig_.want(pod(ip, port, python(&everywhere)));
    let report =
        rig_.until("told", |r| container(r)["state"]["waiting"]["reason"] == "CrashLoopBackOff");
    let message = container(&report.await)["state"]["waiting"]["message"].clone();
    let text = message.as_str().unwrap();
    assert!(
        text.contains(&format!("port {port} is held by process {}", std::process::id())),
        "{text}"
    );
    assert!(text.contains("replicas"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_decide_readiness_and_restarts() {
    let (ip, port) = free_address();
    let rig = rig(None);
    let flag = rig.dir.path().join("ready");
    // Ready while a file exists (exec), alive while another does not.
    let sick = rig.dir.path().join("sick");
    let mut app = python(APP);
    app["readinessProbe"] = json!({"periodSeconds": 1, "failureThreshold": 1,
        "timeoutSeconds": 60, "exec": {"command": ["test", "-e", flag]}});
    app["livenessProbe"] = json!({"periodSeconds": 1, "failureThreshold": 1,
        "timeoutSeconds": 60, "exec": {"command": ["test", "!", "-e", sick]}});
    app["startupProbe"] = json!({"periodSeconds": 1, "failureThreshold": 60,
        "timeoutSeconds": 60, "httpGet": {"path": "/POD_NAME", "port": "http"}});
    rig.want(pod(ip, port, app));
    rig.until("started", |r| container(r)["started"] == true).await;
    std::fs::write(&flag, "").unwrap();
    rig.ready().await;
    std::fs::remove_file(&flag).unwrap();
    rig.until("unready", |r| !condition(&r.status, "Ready")).await;
    assert_eq!(container(&rig.until("", |_| true).await)["restartCount"], 0);
    std::fs::write(&flag, "").unwrap();
    std::fs::write(&sick, "").unwrap();
    // More than once, if nobody looks for long.
    rig.until("restarted", |r| container(r)["restartCount"].as_u64() > Some(0)).await;
    std::fs::remove_file(&sick).unwrap();
    rig.ready().await;
    let notes = rig.link.notes.lock().unwrap();
    assert!(notes.iter().any(|n| n.reason == "Unhealthy" && n.message.contains("liveness")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_so_and_starts_once_it_can() {
    let (ip, port) = free_address();
    let rig = rig(None);
    rig.want(pod(ip, port, json!({"image": "unknown:2"})));
    let report = rig.until("told", |r| r.status["message"].is_string()).await;
    assert_eq!(container(&report)["state"]["waiting"]["reason"], "ErrImageNeverPull");
    assert!(report.status["message"].as_str().unwrap().contains("--image unknown:2=COMMAND"));
    assert_eq!(report.status["phase"], "Pending");

    let late = rig.dir.path().join("late.sh");
    let mut app = json!({"command": [late]});
    app["name"] = json!("app");
    let mut object = (*pod(ip, 0, app).object).clone();
    object["metadata"]["uid"] = json!("u2");
    let later = DesiredPod { object: Arc::new(object), ..pod(ip, 0, json!({})) };
    rig.want(later);
    rig.until("told", |r| r.uid == "u2" && r.status["message"].is_string()).await;
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let temporary = late.with_extension("new");
    std::fs::write(&temporary, script).unwrap();
    std::fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    std::fs::rename(&temporary, &late).unwrap();
    let report = rig.ready().await;
    assert_eq!(container(&report)["restartCount"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_container_prepares_what_its_app_needs() {
    let (ip, port) = free_address();
    let rig = rig(None);
    let file = rig.dir.path().join("prepared");
    let script = format!("import os; assert os.path.exists({file:?})\n{APP}");
    let mut wanted = pod(ip, port, python(&script));
    let mut object = (*wanted.object).clone();
    object["spec"]["initContainers"] =
        json!([{"name": "prepare", "command": ["sh", "-c", "echo done; touch $0", file]}]);
    // Stands for the app's image only.
    object["metadata"]["annotations"] = json!({"weft.dev/command": "python3"});
    wanted.object = Arc::new(object);
    rig.want(wanted);
    let report = rig.ready().await;
    assert_eq!(container(&report)["restartCount"], 0);
    let init = &report.status["initContainerStatuses"][0];
    assert_eq!((&init["name"], &init["ready"]), (&json!("prepare"), &json!(true)));
    assert_eq!(init["state"]["terminated"]["reason"], "Completed");
    assert_eq!(rig.log("prepare", LogQuery::default()).await, "done\n");
    rig.settled().await;
    assert_eq!(rig.log("", LogQuery::default()).await, "hello from web-1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_leaves_nobody_even_who_left_the_group_or_ignores_sigterm() {
    let (ip, _) = free_address();
    let rig = rig(None);
    let script = "trap '' TERM; setsid sleep 1000 & echo $!; while :; do sleep 1; done";
    rig.want(pod(ip, 0, json!({"command": ["sh", "-c", script]})));
    rig.ready().await;
    let escaped = loop {
        if let Ok(pid) = rig.log("app", LogQuery::default()).await.trim().parse::<u32>() {
            break pid;
        }
        tokio::task::yield_now().await;
    };
    assert!(procfs::stat(escaped).is_some());
    let begun = tokio::time::Instant::now();
    rig.agent.stop(Duration::from_millis(100)).await;
    // What takes as long as that is not waited for.
    while begun.elapsed() >= STOP_MARGIN && !rig.agent.pods().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.agent.processes().is_empty());
    assert!(procfs::stat(escaped).is_none_or(|s| s.state == 'Z'));
    assert!(rig.agent.pods().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_the_tasks_ends_everything_at_once() {
    // On a machine that stands still an app may be killed before it has heard that it is to end.
    for _ in 0..5 {
        let (ip, port) = free_address();
        let rig = rig(None);
        rig.want(pod(ip, port, python(APP)));
        rig.ready().await;
        rig.settled().await;
        // By itself, not by force: nothing here waits for a time-out.
        assert!(rig.tasks.shutdown(PATIENCE).await);
        assert!(rig.agent.processes().is_empty());
        let report = rig.until("ended", |r| r.finished).await;
        let code = &container(&report)["state"]["terminated"]["exitCode"];
        if *code != 137 {
            assert_eq!(*code, 0);
            return;
        }
    }
    panic!("it was killed each time");
}

async fn shows_its_mark(pid: u32, mark: &str) {
    while procfs::marked(pid, mark) != procfs::Marked::Yes {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_the_agent_the_next_one_clears_up_and_goes_on() {
    let (ip, port) = free_address();
    let rig = rig(None);
    rig.want(pod(ip, port, python(APP)));
    rig.ready().await;
    // What a killed agent leaves of a child that outlived it: a marked process.
    let id = std::fs::read_to_string(rig.dir.path().join("agent/id")).unwrap();
    let mut orphan = std::process::Command::new("sleep");
    let mut orphan = orphan.arg("1000").env("WEFT_AGENT", &id).spawn().unwrap();
    // Its start is over before its program begins.
    shows_its_mark(orphan.id(), &format!("WEFT_AGENT={id}")).await;
    let first = rig.agent.processes()[0];
    rig.tasks.shutdown(Duration::ZERO).await;

    let (_publisher, reader) = snapshot((*rig.desired.load()).clone());
    let tasks = TaskGroup::new();
    let config = config(rig.dir.path(), None);
    rig.link.pods.send_replace(BTreeMap::new());
    let agent = Agent::start(config, reader, rig.link.clone(), Clock::system(), &tasks).unwrap();
    let killed = async {
        while orphan.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, killed).await.expect("the orphan is ended");
    assert!(procfs::stat(first).is_none_or(|s| s.state == 'Z'));
    rig.ready().await;
    assert_ne!(agent.processes()[0], first);
    assert_eq!(get(ip, port, "POD_NAME").await.1, "web-1");
    agent.stop(Duration::from_secs(5)).await;
}
