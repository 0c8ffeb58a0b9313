// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the pod network: its holder, the host door, and one [`PodBox`] for each
//! pod in namespaces. Made by `agent`, used by `worker`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Mutex, mpsc, watch};
use weft_base::sockets::{self, Ask, Peer, SocketFactory};
use weft_base::task::TaskGroup;

use super::cell;
use super::cgroup::Cgroups;
use super::holder::READY;
use super::measure::Bounds;
use super::remove::remove_tree;
use super::spec::{self, InitSpec, Process};
use super::volumes::{self, Content};
use crate::child::{Child, ChildTable, Role, Spawner};
use crate::config::{AgentConfig, ProxyProgram};
use crate::env::Facts;
use crate::leftover::MARK_AGENT;
use crate::pod::{DesiredPod, Pod, ProxyKind};
use crate::worker::Msg;

/// How long a namespace may take to be there.
const SET_UP_MAX: Duration = Duration::from_secs(15);
/// How long the end of a pod's processes is waited for.
const END_MAX: Duration = Duration::from_secs(2);
/// Bytes kept of what a role complains.
const COMPLAINT_MAX: u64 = 2048;
/// Marks the directory of an earlier agent's pods, until it is removed.
const ASIDE: &str = ".old-";

/// What all pods in namespaces of one agent share.
#[derive(Debug)]
pub(crate) struct Host {
    /// The own binary, for its roles.
    pub(crate) program: PathBuf,
    pub(crate) rootless: bool,
    /// Directories that pods do not see.
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) cgroups: Cgroups,
    dir: PathBuf,
    agent_id: String,
    spawner: Spawner,
    tasks: TaskGroup,
    holder: Mutex<Option<Holder>>,
}

#[derive(Debug, Clone)]
struct Holder {
    process: Process,
    /// Closed when it has ended.
    alive: watch::Receiver<()>,
    stop: mpsc::Sender<()>,
}

/// One pod's namespaces, made when they are first needed and again when they were lost.
#[derive(Debug)]
pub(crate) struct PodBox {
    pub(crate) host: Arc<Host>,
    pub(crate) pod: Arc<Pod>,
    to_pod: mpsc::Sender<Msg>,
    live: Mutex<Option<Arc<Live>>>,
}

/// Namespaces that are there.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) init: Process,
    alive: watch::Receiver<()>,
    stop: mpsc::Sender<()>,
}

// === impl Host ===

impl Host {
    /// Opens the host door and forgets what an earlier agent left of its pods.
    ///
    /// # Errors
    /// When the agent's directory cannot be used.
    pub(crate) fn start(
        config: &AgentConfig,
        proxy: &ProxyProgram,
        (agent_id, spawner, table): (&str, &Spawner, &ChildTable),
        tasks: &TaskGroup,
    ) -> io::Result<Self> {
        let dir = config.dir.join("pods");
        let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let earlier = put_aside(&dir);
        std::fs::create_dir_all(&dir)?;
        tasks.spawn("earlier pods' files", async move {
            for path in earlier {
                remove_files(vec![path]).await;
            }
        });
        let listener = sockets::bind_door(&config.host_door())?;
        let (rule, group) = (only_proxies(table.clone()), tasks.clone());
        tasks.spawn("host door", sockets::serve_door(listener, rule, group));
        Ok(Self {
            program: proxy.program.clone(),
            rootless: !rustix::process::geteuid().is_root(),
            hidden: config.hidden.iter().map(real).collect(),
            cgroups: Cgroups::open(&config.dir, agent_id),
            dir,
            agent_id: agent_id.to_owned(),
            spawner: spawner.clone(),
            tasks: tasks.clone(),
            holder: Mutex::new(None),
        })
    }

    /// Where a pod's files are.
    pub(crate) fn dir_of(&self, pod: &Pod) -> PathBuf {
        self.dir.join(&*pod.metadata.uid)
    }

    /// The door of a pod: a short path, since a socket's may not be long.
    pub(crate) fn door_of(&self, pod: &Pod) -> PathBuf {
        let hash = weft_base::name::fnv1a(pod.metadata.uid.as_bytes());
        self.dir.join(format!("{hash:016x}"))
    }

    /// One of the binary's small roles.
    pub(crate) fn role(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(name).env_clear().env(MARK_AGENT, &self.agent_id);
        command
    }

    /// Ends the pod network, when no pod is left.
    pub(crate) async fn stop(&self) {
        let held = self.holder.lock().await.take();
        if let Some(mut holder) = held {
            let _ = holder.stop.send(()).await;
            let _ = tokio::time::timeout(END_MAX, holder.alive.changed()).await;
        }
        self.cgroups.remove();
    }

    async fn holder(&self) -> Result<Holder, String> {
        let mut place = self.holder.lock().await;
        if let Some(holder) = place.as_ref().filter(|h| h.alive.has_changed().is_ok()) {
            return Ok(holder.clone());
        }
        let (child, _) = self.begin(self.role("pod-net"), Role::Network).await?;
        let pid = child.pid();
        let process = Process::of(pid).ok_or("the pod network ended at once")?;
        let (alive, stop) = attend(child, &self.tasks, || {
            tracing::debug!("the pod network ended");
        });
        let holder = Holder { process, alive, stop };
        *place = Some(holder.clone());
        Ok(holder)
    }

    /// Starts a role and waits until it says that it is ready; what else it says then.
    async fn begin(&self, mut command: Command, role: Role) -> Result<(Child, String), String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = self.spawner.spawn(command, role).await;
        let mut child = started.map_err(|e| format!("{}: {e}", self.program.display()))?;
        let out = receiver(child.take_stdout())?;
        let err = receiver(child.take_stderr())?;
        let mut line = String::new();
        let mut reader = BufReader::new(out);
        let read = tokio::time::timeout(SET_UP_MAX, reader.read_line(&mut line)).await;
        if let Ok(Ok(_)) = read
            && let Some(rest) = line.strip_prefix(READY)
        {
            // What it complains later is for the agent's own log.
            self.tasks.spawn("complaints", complaints(err));
            return Ok((child, rest.trim().to_owned()));
        }
        let mut why = String::new();
        let mut err = err.take(COMPLAINT_MAX);
        let said = err.read_to_string(&mut why);
        let _ = tokio::time::timeout(Duration::from_secs(1), said).await;
        let why = why.trim().trim_start_matches("weft: ").to_owned();
        Err(if why.is_empty() { "it did not get ready in time".into() } else { why })
    }
}

/// Moves the files of an earlier agent's pods out of the way; what is to be removed of them and
/// of agents before it. That may take long, and what cannot go must not keep this one from work.
fn put_aside(dir: &Path) -> Vec<PathBuf> {
    let mut aside = dir.as_os_str().to_owned();
    aside.push(format!("{ASIDE}{}", uuid::Uuid::now_v7()));
    match std::fs::rename(dir, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "files of earlier pods stay in place");
        }
        _ => {}
    }
    let Some((above, name)) = dir.parent().zip(dir.file_name()) else { return Vec::new() };
    let mut prefix = name.as_encoded_bytes().to_vec();
    prefix.extend_from_slice(ASIDE.as_bytes());
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().as_encoded_bytes().starts_with(&prefix))
        .map(|e| e.path())
        .collect()
}

/// Removes files of pods. What stays is told, and tried again when the next agent starts.
async fn remove_files(paths: Vec<PathBuf>) {
    let removed = tokio::task::spawn_blocking(move || {
        for path in paths {
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(%error, path = %path.display(), "files of a pod cannot be removed");
            }
        }
    });
    // It fails only when the agent ends at this moment.
    let _ = removed.await;
}

/// Only proxies that this agent started may have sockets of the machine.
fn only_proxies(
    table: ChildTable,
) -> impl Fn(&Peer, &Ask) -> Result<(), String> + Send + Sync + 'static {
    move |peer, _| match peer.pid.and_then(|pid| table.role(pid)) {
        Some(Role::Proxy { .. }) => Ok(()),
        _ => Err("this door is for the proxies of this machine's pods".into()),
    }
}

fn receiver(pipe: Option<std::os::fd::OwnedFd>) -> Result<Receiver, String> {
    let pipe = pipe.ok_or("it has no output")?;
    Receiver::from_owned_fd(pipe).map_err(|e| e.to_string())
}

async fn complaints(pipe: Receiver) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::warn!(line, "a pod's first process says");
    }
}

/// Waits for a role's process in a task of its own; ends it when asked.
fn attend(
    mut child: Child,
    tasks: &TaskGroup,
    over: impl FnOnce() + Send + 'static,
) -> (watch::Receiver<()>, mpsc::Sender<()>) {
    let (living, alive) = watch::channel(());
    let (stop, mut asked) = mpsc::channel(1);
    tasks.spawn("pod namespaces", async move {
        tokio::select! {
            _ = child.wait() => {}
            _ = asked.recv() => {
                child.signaller().send(true);
                let _ = child.wait().await;
            }
        }
        drop(living);
        over();
    });
    (alive, stop)
}

// === impl PodBox ===

impl PodBox {
    pub(crate) fn new(host: Arc<Host>, pod: Arc<Pod>, to_pod: mpsc::Sender<Msg>) -> Self {
        Self { host, pod, to_pod, live: Mutex::new(None) }
    }

    /// Sockets made inside the pod.
    pub(crate) fn sockets(&self) -> SocketFactory {
        SocketFactory::door(&self.host.door_of(&self.pod))
    }

    /// The pod's namespaces, made if there are none.
    ///
    /// # Errors
    /// A sentence that says what could not be set up.
    pub(crate) async fn live(&self, facts: &Facts<'_>) -> Result<Arc<Live>, String> {
        let mut place = self.live.lock().await;
        if let Some(live) = place.as_ref().filter(|l| l.alive.has_changed().is_ok()) {
            return Ok(live.clone());
        }
        let plan = volumes::plan(facts, &self.host.hidden).map_err(|e| e.to_string())?;
        let holder = self.host.holder().await?;
        let spec = self.prepare(facts, &holder, &plan).map_err(|e| e.to_string())?;
        let file = self.host.dir_of(&self.pod).join(format!("{}.init", uuid::Uuid::now_v7()));
        spec::write(&file, &spec).map_err(|e| e.to_string())?;
        let mut command = self.host.role("pod-init");
        command.arg(&file);
        let role = Role::Sandbox { pod: self.pod.key() };
        let (child, pid) = self.host.begin(command, role).await?;
        let gone = || "the pod's first process ended at once".to_owned();
        let pid: u32 = pid.parse().map_err(|_| gone())?;
        let init = Process::of(pid).ok_or_else(gone)?;
        let told = self.to_pod.clone();
        let (alive, stop) = attend(child, &self.host.tasks, move || {
            let _ = told.try_send(Msg::NamespacesGone);
        });
        self.end_with(holder, alive.clone(), stop.clone());
        let live = Arc::new(Live { init, alive, stop });
        *place = Some(live.clone());
        Ok(live)
    }

    /// Without the pod network a pod's namespaces are of no use: they end, and new ones are made.
    fn end_with(&self, mut holder: Holder, mut alive: watch::Receiver<()>, stop: mpsc::Sender<()>) {
        self.host.tasks.spawn("pod network watch", async move {
            tokio::select! {
                _ = alive.changed() => {}
                _ = holder.alive.changed() => drop(stop.send(()).await),
            }
        });
    }

    /// Writes what changed in ConfigMaps, Secrets and labels into the volumes made of them.
    pub(crate) fn refresh(&self, facts: &Facts<'_>) {
        // An object that is gone leaves its volume as it was, as in Kubernetes.
        let Ok(plan) = volumes::plan(facts, &self.host.hidden) else { return };
        if self.host.dir_of(&self.pod).is_dir()
            && let Err(error) = self.fill(&plan)
        {
            tracing::warn!(%error, pod = %self.pod.key(), "a volume cannot be brought up to date");
        }
    }

    /// What it may keep on disk, if that is limited.
    pub(crate) fn bounds(&self) -> Option<Bounds> {
        Bounds::of(&self.pod, &self.host.dir_of(&self.pod))
    }

    /// Ends what is left of the pod, and removes its files.
    pub(crate) async fn end(&self) {
        let live = self.live.lock().await.take();
        if let Some(live) = live {
            let mut alive = live.alive.clone();
            // The pod's own first process: the kernel ends all others with it, before the one
            // that waits for it can end.
            if let Ok(init) = live.init.open() {
                let kill = rustix::process::Signal::KILL;
                let _ = rustix::process::pidfd_send_signal(&init, kill);
            }
            if tokio::time::timeout(END_MAX, alive.changed()).await.is_err() {
                let _ = live.stop.send(()).await;
                let _ = tokio::time::timeout(END_MAX, alive.changed()).await;
            }
        }
        remove_files(vec![self.host.door_of(&self.pod), self.host.dir_of(&self.pod)]).await;
        self.host.cgroups.forget(&self.pod.metadata.uid);
    }

    /// The pod's directories and files, and what its first process is to do.
    fn prepare(
        &self,
        facts: &Facts<'_>,
        holder: &Holder,
        plan: &std::collections::BTreeMap<Arc<str>, Content>,
    ) -> io::Result<InitSpec> {
        let dir = self.host.dir_of(&self.pod);
        std::fs::create_dir_all(dir.join("root"))?;
        cell::write_files(&dir, &self.pod, facts.desired)?;
        self.fill(plan)?;
        let memory = plan.iter().filter_map(|(name, content)| match content {
            Content::Empty { memory: Some(bytes) } => Some((volume_dir(&dir, name), *bytes)),
            _ => None,
        });
        let hash = weft_base::name::fnv1a(self.pod.metadata.uid.as_bytes());
        Ok(InitSpec {
            pod: self.pod.key().to_string(),
            holder: holder.process,
            userns: self.host.rootless,
            hostname: cell::hostname(&self.pod),
            cable: format!("p{:012x}", hash & 0xffff_ffff_ffff),
            addresses: facts.desired.addresses.clone(),
            capture: capture(&self.pod, facts.desired),
            door: self.host.door_of(&self.pod),
            memory: memory.collect(),
        })
    }

    fn fill(&self, plan: &std::collections::BTreeMap<Arc<str>, Content>) -> io::Result<()> {
        let dir = self.host.dir_of(&self.pod);
        let group = volumes::group_of(&self.pod, self.host.rootless);
        for (name, content) in plan {
            let at = volume_dir(&dir, name);
            match content {
                Content::Files(files) => {
                    std::fs::create_dir_all(&at)?;
                    volumes::write(&at, files, group)?;
                }
                Content::Empty { .. } => volumes::make_empty(&at, group)?,
                Content::Host(_) => {}
            }
        }
        Ok(())
    }
}

/// Where a volume's content is.
pub(crate) fn volume_dir(pod: &Path, volume: &str) -> PathBuf {
    pod.join("volumes").join(volume)
}

/// What is captured of a pod with a sidecar.
fn capture(pod: &Pod, _desired: &DesiredPod) -> Option<spec::Capture> {
    match pod.proxy_kind() {
        ProxyKind::Sidecar => Some(spec::Capture::of(pod)),
        ProxyKind::None | ProxyKind::Gateway => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_earlier_agents_left_is_put_aside_and_removed() {
        let agent = tempfile::tempdir().unwrap();
        let dir = agent.path().join("pods");
        let names = || -> Vec<_> {
            std::fs::read_dir(agent.path()).unwrap().map(|e| e.unwrap().file_name()).collect()
        };
        assert_eq!(put_aside(&dir), Vec::<PathBuf>::new());
        std::fs::write(agent.path().join("id"), "x").unwrap();
        // Deeper than a path may be, of the last agent and of one before it.
        for place in [&dir, &agent.path().join("pods.old-1")] {
            std::fs::create_dir_all(place.join("uid")).unwrap();
            crate::sandbox::remove::tests::chain(&place.join("uid"), 4_000);
        }
        let earlier = put_aside(&dir);
        assert!(!dir.exists());
        assert_eq!((earlier.len(), names().len()), (2, 3));
        remove_files(earlier).await;
        assert_eq!(names(), ["id"]);
    }
}
