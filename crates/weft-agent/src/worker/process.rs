// SPDX-License-Identifier: Apache-2.0
//! One process of a pod from its start to its end: environment, logs, probes, readiness, reaping.
//! Ordered by `worker`, which it tells everything; it decides nothing about restarts.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{self, mpsc};
use weft_base::rng::Rng;
use weft_base::sockets::SocketFactory;
use weft_kinds::world::PodsMode;

use super::{Msg, Shared};
use crate::child::{Child, Role};
use crate::enter::{Inside, Insides};
use crate::env::{self, Env, Facts, PROXY_USER};
use crate::exec::attach::{Output, Wired, Wiring};
use crate::leftover::{MARK_AGENT, MARK_CONTAINER};
use crate::link::PodNote;
use crate::logs::{LogKey, Writer};
use crate::machine::{Event, Exit, Part};
use crate::pod::{Container, DesiredPod, PROXY_CONTAINER, Pod, ProxyKind};
use crate::probe::ProbeKind;
use crate::sandbox::{Cell, Live, PodBox};
use crate::{command, leftover, ports, procfs};

mod hook;
mod logpump;
mod watch;

pub(crate) use watch::quiet;

/// How long output is still read after the end, should somebody hold the pipe.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Everything one run needs.
pub(crate) struct Run {
    pub(crate) shared: Arc<Shared>,
    pub(crate) desired: Arc<DesiredPod>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) credential: Arc<str>,
    pub(crate) part: Part,
    pub(crate) attempt: u32,
    pub(crate) to_pod: mpsc::Sender<Msg>,
    pub(crate) insides: Insides,
    /// In namespace mode.
    pub(crate) boxed: Option<Arc<PodBox>>,
}

/// A program ready to be started.
struct Prepared {
    command: Command,
    role: Role,
    /// Of a container.
    inside: Option<Inside>,
}

type Refusal = (&'static str, String);

// === impl Run ===

impl Run {
    /// Cancelling kills the process.
    pub(crate) async fn run(self) {
        let id: Arc<str> = uuid::Uuid::now_v7().to_string().into();
        match self.spawn(&id).await {
            Ok((child, inside, wired, log)) => self.attend(child, inside, wired, log, id).await,
            Err((reason, message)) => {
                let (part, attempt) = (self.part, self.attempt);
                self.tell(Event::NotStarted { part, attempt, reason, message }).await;
            }
        }
    }

    async fn spawn(&self, id: &str) -> Result<(Child, Option<Inside>, Wired, Writer), Refusal> {
        let prepared = match self.part {
            Part::Proxy => self.prepare_proxy().await?,
            Part::App(index) => self.prepare_app(index, id).await?,
        };
        let Prepared { mut command, role, mut inside } = prepared;
        command.env(MARK_AGENT, &self.shared.agent_id).env(MARK_CONTAINER, id);
        let failed = |what: &str, e: std::io::Error| ("StartError", format!("{what}: {e}"));
        let log = self.shared.logs.begin(&self.log_key());
        let log = log.map_err(|e| failed("its log cannot be written", e))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let wiring = Wiring::new(&mut command, self.container());
        let wiring = wiring.map_err(|e| failed("its streams cannot be made", e))?;
        let own_session = inside.as_ref().is_some_and(|i| i.cell.is_some());
        let child = wiring.spawn(&self.shared.spawner, command, role, own_session).await;
        let mut child = child.map_err(|e| failed(&format!("{program} cannot be started"), e))?;
        let wired = wiring.connect(&mut child);
        let wired = wired.map_err(|e| failed("its streams cannot be read", e))?;
        if let Some(inside) = &mut inside {
            inside.taps = Some(wired.taps.clone());
        }
        Ok((child, inside, wired, log))
    }

    /// While it runs: its output, its probes, its ports; then its end.
    async fn attend(
        &self,
        mut child: Child,
        inside: Option<Inside>,
        wired: Wired,
        log: Writer,
        id: Arc<str>,
    ) {
        let (part, attempt) = (self.part, self.attempt);
        if let (Some(container), Some(inside)) = (self.container(), &inside) {
            self.insides.set(container.name.clone(), inside.clone());
        }
        let signaller = child.signaller();
        let spawned = Msg::Spawned { part, attempt, id: id.clone(), signaller };
        let _ = self.to_pod.send(spawned).await;
        let Wired { stdout, stderr, feed, taps } = wired;
        let pumps = async {
            tokio::join!(
                logpump::pump(stdout, Output::Stdout, &taps, &log),
                logpump::pump(stderr, Output::Stderr, &taps, &log)
            )
        };
        let mut pumps = std::pin::pin!(pumps);
        let pid = child.pid();
        let mut output_ended = false;
        let exit = {
            let mut watching = std::pin::pin!(async { tokio::join!(self.watch(pid), feed.run()) });
            let mut waiting = std::pin::pin!(child.wait());
            loop {
                tokio::select! {
                    exit = &mut waiting => break exit,
                    _ = &mut pumps, if !output_ended => output_ended = true,
                    _ = &mut watching => {}
                }
            }
        };
        if !output_ended {
            let _ = tokio::time::timeout(OUTPUT_GRACE, pumps).await;
        }
        log.close();
        if let Some(container) = self.container() {
            self.insides.remove(&container.name);
        }
        let exit = exit.unwrap_or_else(|error| {
            tracing::error!(%error, pid, "the end of a child could not be seen");
            Exit::code(255)
        });
        let cell = inside.and_then(|i| i.cell);
        let exit = match cell {
            Some(cell) if cell.was_out_of_memory() && !exit.is_success() => exit.out_of_memory(),
            _ => exit,
        };
        let hint = self.after_end(exit, &log, &id).await;
        self.tell(Event::Exited { part, attempt, exit, hint }).await;
    }

    /// Never ends while the process runs.
    async fn watch(&self, pid: u32) {
        match self.part {
            Part::Proxy => watch::proxy(self).await,
            Part::App(index) => {
                let Some(container) = self.pod.programs().nth(index) else { return };
                let probes = [
                    (ProbeKind::Startup, &container.startup_probe),
                    (ProbeKind::Readiness, &container.readiness_probe),
                    (ProbeKind::Liveness, &container.liveness_probe),
                ];
                let mut rng = Rng::from_system();
                let (started, _) = sync::watch::channel(container.startup_probe.is_none());
                let probes = probes.into_iter().filter_map(|(kind, probe)| {
                    let (probe, seed) = (probe.as_ref()?, rng.next_u64());
                    Some(watch::probe(self, (index, container), kind, probe, seed, &started))
                });
                let ports = watch::ports(self, index, container, pid);
                tokio::join!(join_all(probes), ports);
            }
        }
        std::future::pending().await
    }

    /// Ends what left the process's group, and explains an end that has an explanation.
    async fn after_end(&self, exit: Exit, log: &Writer, id: &str) -> String {
        let marker = format!("{MARK_CONTAINER}={id}");
        let (ports, tail) = (self.container().map(Container::tcp_ports), log.tail());
        let address = self.desired.address;
        // Elsewhere a port is the pod's own, and nobody else can have it.
        let shared = self.desired.mode == PodsMode::Process && self.part != Part::Proxy;
        let look = tokio::task::spawn_blocking(move || {
            leftover::end_marked(&marker);
            if exit.is_success() {
                return String::new();
            }
            let declared = ports.unwrap_or_default();
            let owner = || declared.first().and_then(|port| procfs::owner_of_port(*port));
            let taken = shared.then(|| ports::taken(address, &declared, &tail, owner())).flatten();
            taken.unwrap_or_else(|| last_words(&tail))
        });
        look.await.unwrap_or_default()
    }

    async fn prepare_proxy(&self) -> Result<Prepared, Refusal> {
        let config = &self.shared.config;
        let Some(proxy) = &config.proxy else {
            return Err(("CreateContainerError", "this agent has no proxy program".into()));
        };
        self.write_files().map_err(|e| {
            ("CreateContainerError", format!("the proxy's files cannot be written: {e}"))
        })?;
        let args = proxy.arguments(config, &self.desired, &self.pod);
        let service_account = self.pod.service_account().into();
        let role = Role::Proxy { pod: self.pod.key(), service_account };
        let command = match self.live().await? {
            Some((boxed, live)) => {
                let env = Env::of(&config.base_env);
                let cell = Cell::proxy(boxed, live);
                let program = proxy.program.to_string_lossy();
                cell.command(&program, &args, &env, Path::new("/")).map_err(handover)?
            }
            None => {
                let mut command = Command::new(&proxy.program);
                command.args(args);
                command.env_clear().envs(config.base_env.iter().map(|(k, v)| (k, v)));
                command
            }
        };
        Ok(Prepared { command, role, inside: None })
    }

    async fn prepare_app(&self, index: usize, id: &str) -> Result<Prepared, Refusal> {
        let config = &self.shared.config;
        let missing = || ("CreateContainerError", "the container is gone".to_owned());
        let container = self.pod.programs().nth(index).ok_or_else(missing)?;
        let live = self.live().await?;
        let facts = self.facts(container);
        let mut env = env::build(&config.base_env, &facts)
            .map_err(|e| ("CreateContainerConfigError", e.to_string()))?;
        env.set(MARK_AGENT, &*self.shared.agent_id);
        env.set(MARK_CONTAINER, id);
        if container.tty && env.get("TERM").is_none() {
            env.set("TERM", crate::exec::TERMINAL);
        }
        let found = command::resolve(&self.pod, container, &env, &config.images, &config.workdir);
        let found = found.map_err(|e| (e.reason(), e.to_string()))?;
        let role = Role::App { pod: self.pod.key() };
        let (cell, command) = match live {
            Some((boxed, live)) => {
                let cell = Cell::container(boxed, live, &facts, &env)?;
                self.tell_unlimited(container, &boxed.host.cgroups.missing());
                if cell.may_fork_forever() {
                    self.tell_unbounded(container);
                }
                let program = found.program.to_string_lossy();
                let command = cell.command(&program, &found.args, &env, &found.workdir);
                (Some(Arc::new(cell)), command.map_err(handover)?)
            }
            None => {
                let mut command = Command::new(&found.program);
                command.args(&found.args).current_dir(&found.workdir);
                command.env_clear().envs(env.iter());
                (None, command)
            }
        };
        let inside = Inside { env, workdir: found.workdir, taps: None, cell };
        Ok(Prepared { command, role, inside: Some(inside) })
    }

    /// Says once which limits do not hold, since nothing else would show it.
    fn tell_unlimited(&self, container: &Container, missing: &[&str]) {
        let wanted = |name: &&&str| container.resources.limits.contains_key(**name);
        let loose: Vec<&str> = missing.iter().filter(wanted).copied().collect();
        if loose.is_empty() || self.attempt > 1 {
            return;
        }
        let message = format!(
            "the limits of {} of container {} do not hold: this system gives weft no control \
             groups for them; run weft as root, or in a session whose cgroup v2 is delegated",
            loose.join(" and "),
            container.name
        );
        self.warn("LimitsNotEnforced", message);
    }

    fn tell_unbounded(&self, container: &Container) {
        if self.attempt > 1 {
            return;
        }
        let message = format!(
            "nothing bounds the number of processes of container {}: it runs as the machine's \
             root, and this system has no pids controller; mount one, or give the container a \
             runAsUser",
            container.name
        );
        self.warn("LimitsNotEnforced", message);
    }

    fn warn(&self, reason: &'static str, message: String) {
        let (pod, uid) = (self.pod.key(), self.pod.metadata.uid.to_string());
        self.shared.link.note(PodNote { pod, uid, warning: true, reason, message });
    }

    /// The pod's namespaces, if it is to have some.
    async fn live(&self) -> Result<Option<(&Arc<PodBox>, Arc<Live>)>, Refusal> {
        let wrong = |why: String| ("CreateContainerError", why);
        let Some(boxed) = &self.boxed else {
            return match self.desired.mode {
                PodsMode::Process | PodsMode::Machine => Ok(None),
                PodsMode::Namespace => Err(wrong(
                    "the pod is to run in namespaces, which this agent does not make; start weft \
                     with --pods=namespace"
                        .into(),
                )),
            };
        };
        let container = self.pod.programs().next();
        let container = container.ok_or_else(|| wrong("the pod has no container".into()))?;
        let live = boxed.live(&self.facts(container)).await;
        Ok(Some((boxed, live.map_err(wrong)?)))
    }

    fn facts<'a>(&'a self, container: &'a Container) -> Facts<'a> {
        let config = &self.shared.config;
        let proxy = config.proxy.as_ref().filter(|_| self.pod.proxy_kind() == ProxyKind::Sidecar);
        Facts {
            desired: &self.desired,
            pod: &self.pod,
            container,
            proxy: proxy.map(|p| (p.outbound_port, &*self.credential)),
            host_ip: config.host_ip,
            machine: self.shared.machine,
        }
    }

    /// Where sockets of the pod's network come from.
    fn sockets(&self) -> SocketFactory {
        self.boxed.as_ref().map_or(SocketFactory::Here, |b| b.sockets())
    }

    /// `user:password` that the app shows to its sidecar, readable by this user only.
    fn write_files(&self) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let config = &self.shared.config;
        let path = config.credential_file(&self.pod);
        for file in [&path, &config.last_good_file(&self.pod)] {
            if let Some(dir) = file.parent() {
                std::fs::create_dir_all(dir)?;
            }
        }
        let temporary = path.with_extension("new");
        let _ = std::fs::remove_file(&temporary);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{PROXY_USER}:{}", self.credential).as_bytes())?;
        std::fs::rename(temporary, path)
    }

    fn container(&self) -> Option<&Container> {
        match self.part {
            Part::App(index) => self.pod.programs().nth(index),
            Part::Proxy => None,
        }
    }

    fn log_key(&self) -> LogKey {
        let container = self.container().map_or_else(|| PROXY_CONTAINER.into(), |c| c.name.clone());
        LogKey { pod: self.pod.key(), uid: self.pod.metadata.uid.clone(), container }
    }

    fn proxy_ready_at(&self) -> Option<SocketAddr> {
        let proxy = self.shared.config.proxy.as_ref()?;
        Some(SocketAddr::new(self.desired.admin_address, proxy.ready_port))
    }

    async fn tell(&self, event: Event) {
        // The pod's task outlives its processes, except when everything is being stopped.
        let _ = self.to_pod.send(Msg::Event(event)).await;
    }
}

fn handover(error: std::io::Error) -> Refusal {
    ("CreateContainerError", format!("its command cannot be handed over: {error}"))
}

/// The last line that says something, for the message of a crash.
fn last_words(tail: &[String]) -> String {
    let line = tail.iter().rev().map(|l| l.trim()).find(|l| !l.is_empty());
    line.map(|l| format!("its last line: {}", l.chars().take(300).collect::<String>()))
        .unwrap_or_default()
}
