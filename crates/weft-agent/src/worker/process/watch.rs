// SPDX-License-Identifier: Apache-2.0
//! What is looked at while a process runs: the proxy's readiness, the app's probes and ports.
//! Each future runs until the process ends, and tells the pod only what changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::sync::watch;
use weft_base::rng::Rng;
use weft_base::sockets::SocketFactory;
use weft_kinds::world::PodsMode;

use super::Run;
use crate::child::Role;
use crate::config::ADMIN_PORT;
use crate::machine::Event;
use crate::pod::{Container, Probe, ProxyKind};
use crate::probe::ask::{self, HttpAsk, Target, Tls};
use crate::probe::{ProbeKind, ProbeMachine};
use crate::{ports as verdict, procfs};

/// How often a proxy is asked: at first, while it is not ready, and when it is.
const PROXY_POLL_FIRST: Duration = Duration::from_millis(4);
const PROXY_POLL: Duration = Duration::from_millis(32);
const PROXY_POLL_READY: Duration = Duration::from_secs(2);
/// How often a program's sockets are looked at: at first, and before and after it is ready.
const PORTS_POLL_FIRST: Duration = Duration::from_millis(4);
/// How long the first pace is kept; what a program still lacks then is no trouble yet.
const PORTS_FIRST: Duration = Duration::from_millis(40);
const PORTS_POLL: Duration = Duration::from_millis(500);
const PORTS_POLL_LATE: Duration = Duration::from_secs(10);
/// A program that declares ports but opens none is called ready after this, as Kubernetes would.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// The proxy's gauge of requests that its app is answering, and how often it is read.
const ACTIVE_GAUGE: &str = "weft_inbound_requests_active";
const QUIET_POLL: Duration = Duration::from_millis(20);
/// Limit of a readiness question to the proxy, and how many may fail in a row.
const PROXY_TIMEOUT: Duration = Duration::from_secs(2);
const PROXY_FAILURES: u32 = 5;

/// Asks the proxy's readiness port, and the server about its configuration.
pub(super) async fn proxy(run: &Run) {
    let Some(at) = run.proxy_ready_at() else { return };
    let Ok(uri) = format!("http://{at}/healthz/ready").parse() else { return };
    let question = HttpAsk {
        uri,
        method: Method::GET,
        headers: Vec::new(),
        body: String::new(),
        tls: Tls::default(),
        via: SocketFactory::Here,
        guarded: false,
    };
    let acked = async {
        run.shared.link.inbound_acked(run.pod.key()).await;
        run.tell(Event::InboundAcked { attempt: run.attempt }).await;
    };
    let mut acked = std::pin::pin!(acked);
    // The server learns of a proxy's configuration as it becomes ready: reason to ask it now.
    let mut news = std::pin::pin!(run.shared.link.inbound_acked(run.pod.key()));
    let (mut awaits_news, mut poll) = (true, PROXY_POLL_FIRST);
    let mut wants_ack = run.pod.proxy_kind() == ProxyKind::Sidecar;
    let (mut ready, mut failures) = (false, 0);
    loop {
        let answer = ask::http(&question, PROXY_TIMEOUT).await;
        let ok = answer.is_ok_and(|a| a.status.is_success());
        failures = if ok { 0 } else { failures + 1 };
        // A busy proxy may be late; taking its pod away then would make others busier.
        let now_ready = ok || (ready && failures < PROXY_FAILURES);
        if now_ready != ready {
            ready = now_ready;
            run.tell(Event::ProxyReady(ready)).await;
        }
        let pause = tokio::time::sleep(if ok { PROXY_POLL_READY } else { poll });
        tokio::select! {
            () = &mut acked, if wants_ack && ready => wants_ack = false,
            () = &mut news, if wants_ack && awaits_news && !ready => {
                (awaits_news, poll) = (false, PROXY_POLL_FIRST);
            }
            () = pause => poll = (poll * 2).min(PROXY_POLL),
        }
    }
}

/// Waits until the sidecar says twice that its app answers no request. A sidecar that does not
/// say ends the wait: there is nothing to wait for.
pub(crate) async fn quiet(address: IpAddr) {
    let at = SocketAddr::new(address, ADMIN_PORT);
    let Ok(uri) = format!("http://{at}/stats").parse() else { return };
    let question = HttpAsk {
        uri,
        method: Method::GET,
        headers: Vec::new(),
        body: String::new(),
        tls: Tls::default(),
        via: SocketFactory::Here,
        guarded: false,
    };
    let mut before = false;
    loop {
        let answer = ask::http(&question, PROXY_TIMEOUT).await;
        let active = answer.ok().and_then(|a| {
            let line = a.body.lines().find_map(|l| l.strip_prefix(ACTIVE_GAUGE))?;
            line.trim_start_matches(':').trim().parse::<u64>().ok()
        });
        let quiet = active.is_none_or(|n| n == 0);
        if active.is_none() || (quiet && before) {
            return;
        }
        before = quiet;
        tokio::time::sleep(QUIET_POLL).await;
    }
}

/// Runs one probe by its machine. `started` says whether the container's startup probe, if it has
/// one, succeeded: the others wait for that.
pub(super) async fn probe(
    run: &Run,
    (index, container): (usize, &Container),
    kind: ProbeKind,
    probe: &Probe,
    seed: u64,
    started: &watch::Sender<bool>,
) {
    let clock = &run.shared.clock;
    if kind != ProbeKind::Startup {
        let _ = started.subscribe().wait_for(|started| *started).await;
    }
    let mut rng = Rng::seeded(seed);
    let mut machine = ProbeMachine::new(kind, probe, clock.now(), &mut rng);
    while !machine.is_over() {
        tokio::time::sleep(machine.due().since(clock.now())).await;
        let answer = once(run, container, probe).await;
        let message = answer.as_ref().err().cloned().unwrap_or_default();
        if let Some(ok) = machine.result(answer.is_ok(), clock.now()) {
            let attempt = run.attempt;
            run.tell(Event::Probe { index, attempt, kind, ok, message }).await;
        }
    }
    started.send_replace(true);
}

/// Where the program listens, until that is as it should be.
pub(super) async fn ports(run: &Run, index: usize, container: &Container, pid: u32) {
    let declared = container.tcp_ports();
    // Programs of the machine are nobody's children here: a probe asks their ports.
    if declared.is_empty() || run.desired.mode == PodsMode::Machine {
        return;
    }
    let (clock, attempt) = (&run.shared.clock, run.attempt);
    let begun = clock.now();
    let implied = container.readiness_probe.is_none();
    let mut wait = PORTS_POLL_FIRST;
    let (mut told, mut ready, mut before) = (String::new(), false, None);
    loop {
        tokio::time::sleep(wait).await;
        let thorough = wait >= PORTS_POLL / 2;
        // A program that is awaited is looked at often; one that left a port closed, seldom.
        let early = clock.now().since(begun) < PORTS_FIRST;
        if !early {
            wait = (wait * 2).min(if implied && !ready { PORTS_POLL } else { PORTS_POLL_LATE });
        }
        let Ok(listening) = tokio::task::spawn_blocking(move || listening(pid, thorough)).await
        else {
            return;
        };
        let trouble = match run.desired.mode {
            PodsMode::Process => verdict::trouble(run.desired.address, &declared, &listening),
            // As in a cluster: whoever declares a port and listens elsewhere is not reached,
            // and what it says about itself is all there is.
            PodsMode::Namespace | PodsMode::Machine => None,
        };
        let reached = declared.iter().filter(|p| listening.iter().any(|a| a.port() == **p));
        let complete = trouble.is_none() && reached.count() == declared.len();
        let some = trouble.is_none() && !listening.is_empty();
        let silent = listening.is_empty() && clock.now().since(begun) >= SILENT_MAX;
        if implied && !ready && (some || silent) {
            ready = true;
            let (kind, message) = (ProbeKind::Readiness, String::new());
            run.tell(Event::Probe { index, attempt, kind, ok: true, message }).await;
        }
        // Told when seen twice: a program opens its ports one after the other.
        let message = trouble.unwrap_or_default();
        if before.as_ref() == Some(&message) && told != message {
            told.clone_from(&message);
            let message = message.clone();
            run.tell(Event::PortTrouble { index, attempt, message }).await;
        }
        before = (!early).then_some(message);
        if complete && told.is_empty() {
            return;
        }
    }
}

/// Where a process group listens. To look at every process of the machine takes its time: only if
/// `thorough` are those found that have lost their parent.
fn listening(pid: u32, thorough: bool) -> Vec<SocketAddr> {
    let seen = if thorough { None } else { procfs::family(pid) };
    let members = seen.unwrap_or_else(procfs::all).into_iter().filter(|s| s.pgid == pid);
    let group: Vec<u32> = members.map(|s| s.pid).collect();
    // The program's network is that of whoever is not the first, which may only wait for it. A
    // socket shared by several processes is one.
    let shown = group.iter().copied().find(|p| *p != pid).unwrap_or(pid);
    procfs::listening(shown, &group).into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// One question.
pub(super) async fn once(run: &Run, container: &Container, probe: &Probe) -> Result<(), String> {
    let timeout = Duration::from_secs(probe.timeout_seconds.max(1));
    let at = |host: &str, port: &Value| -> Result<String, String> {
        let port = container.port(port).ok_or_else(|| format!("the port {port} is not known"))?;
        if host.is_empty() {
            return Ok(SocketAddr::new(run.desired.address, port).to_string());
        }
        Ok(format!("{host}:{port}"))
    };
    if let Some(get) = &probe.http_get {
        let scheme = if get.scheme.eq_ignore_ascii_case("https") { "https" } else { "http" };
        let path = if get.path.is_empty() { "/" } else { &get.path };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{}{slash}{path}", at(&get.host, &get.port)?);
        let uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
        let headers = get.http_headers.iter().map(|h| (h.name.clone(), h.value.clone())).collect();
        let tls = Tls { skip_verify: true, server_name: String::new() };
        let (method, via) = (Method::GET, run.sockets());
        let (body, guarded) = (String::new(), false);
        let question = HttpAsk { uri, method, headers, body, tls, via, guarded };
        let answer =
            ask::http(&question, timeout).await.map_err(|e| format!("Get {url:?}: {e}"))?;
        return match answer.status.as_u16() {
            200..=399 => Ok(()),
            code => Err(format!("HTTP probe failed with statuscode: {code}")),
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        let (address, via) = (at(&socket.host, &socket.port)?, run.sockets());
        return ask::tcp(Target::via(&address, &via), None, timeout).await;
    }
    if let Some(grpc) = &probe.grpc {
        let address = SocketAddr::new(run.desired.address, grpc.port).to_string();
        let service = grpc.service.as_deref().unwrap_or_default();
        let via = run.sockets();
        return ask::grpc(Target::via(&address, &via), service, None, timeout).await;
    }
    match &probe.exec {
        Some(exec) => command(run, container, &exec.command, timeout).await,
        None => Err("the probe asks nothing: give it httpGet, tcpSocket, grpc or exec".into()),
    }
}

/// An exec probe: a command of the Pod's author, run beside the program.
async fn command(
    run: &Run,
    container: &Container,
    line: &[String],
    limit: Duration,
) -> Result<(), String> {
    let program = line.first().ok_or("exec.command is empty")?;
    let inside = run.insides.get(&container.name).ok_or("the container has ended")?;
    let entry = inside.command(&run.pod.key(), line).map_err(|e| e.to_string())?;
    let mut command = entry.command;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let role = Role::Probe { pod: run.pod.key() };
    let child = run.shared.spawner.spawn(command, role).await;
    let mut child = child.map_err(|e| format!("{program}: {e}"))?;
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(exit)) if exit.is_success() => Ok(()),
        Ok(Ok(exit)) => Err(format!("{program} exited with {}", exit.code)),
        Ok(Err(e)) => Err(e.to_string()),
        // Dropping the child ends it.
        Err(_) => Err(format!("{program} took longer than {} s", limit.as_secs())),
    }
}
