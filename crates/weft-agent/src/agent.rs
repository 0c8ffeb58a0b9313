// SPDX-License-Identifier: Apache-2.0
//! The agent: keeps this machine's processes as the desired state says.
//!
//! Made by the binary (`weft up`, `weft agent`). It starts a task per pod, tells those about
//! changes, and on stopping ends everything it started.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use weft_base::clock::Clock;
use weft_base::snapshot::Snapshot;
use weft_base::sockets::SocketFactory;
use weft_base::task::TaskGroup;
use weft_identity::token::Token;

use crate::child::{ChildTable, Spawner};
use crate::config::AgentConfig;
use crate::enter::{EnterError, Entry, Inside, Target};
use crate::exec::TERMINAL;
use crate::exec::attach::Taps;
use crate::leftover::{self, Ledger};
use crate::link::ServerLink;
use crate::logs::{LogKey, LogQuery, LogReader, LogStore};
use crate::machine::Event;
use crate::pod::{DesiredPod, Pod, PodKey, ProxyKind, RestartPolicy};
use crate::sandbox::Host;
use crate::svid::{self, SocketError};
use crate::usage::Marked;
use crate::worker::{self, Handle, Msg, Shared};

/// Pods of one machine.
const PODS_MAX: usize = 1_000;

/// What pods get when the agent's tasks are drained without [`Agent::stop`].
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// What stopping may take beyond the graces of app and proxy.
const STOP_MARGIN: Duration = Duration::from_secs(3);

/// All pods that should be here.
pub type Desired = BTreeMap<PodKey, Arc<DesiredPod>>;

/// Why the agent could not start.
#[derive(Debug, Error)]
pub enum AgentError {
    #[error("the agent's directory {0} cannot be used")]
    Dir(String, #[source] io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the agent has no randomness for its pods' credentials")]
    Random(#[from] weft_identity::provider::NoRandomness),
}

/// A running agent. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    pods: Pods,
    table: ChildTable,
    orders: mpsc::Sender<Order>,
}

type Pods = Arc<Mutex<HashMap<PodKey, Handle>>>;

enum Order {
    /// End every pod, with at most this grace.
    Stop { grace: Duration, done: oneshot::Sender<()> },
}

struct Manager {
    shared: Arc<Shared>,
    pods: Pods,
    ended: mpsc::Sender<PodKey>,
    warned: HashSet<PodKey>,
    /// Objects (by uid) whose end was reported and that the server has not removed yet.
    over: HashSet<Arc<str>>,
    /// Set once everything is being ended; who asked, if anybody waits.
    stopping: Option<Option<oneshot::Sender<()>>>,
}

// === impl Agent ===

impl Agent {
    /// Ends what an earlier agent left, opens the SVID socket and follows the desired state.
    ///
    /// # Errors
    /// When its directories or its socket cannot be used.
    pub fn start(
        config: AgentConfig,
        desired: Snapshot<Desired>,
        link: Arc<dyn ServerLink>,
        clock: Clock,
        tasks: &TaskGroup,
    ) -> Result<Self, AgentError> {
        let dir = |e| AgentError::Dir(config.dir.display().to_string(), e);
        make_private(&config.dir).map_err(dir)?;
        make_private(&config.log_dir).map_err(dir)?;
        let agent_id = agent_id(&config.dir).map_err(dir)?;
        let ledger = Ledger::open(&config.dir).map_err(dir)?;
        let ended = leftover::end_leftovers(&ledger, &agent_id);
        if ended > 0 {
            tracing::info!(processes = ended, "ended what an earlier run left behind");
        }
        let table = ChildTable::default();
        let spawner = Spawner::new(table.clone(), ledger).map_err(dir)?;
        svid::serve(&config.svid_socket(), table.clone(), link.clone(), tasks)?;
        if config.subreaper {
            reap(&table, tasks);
        }
        let logs = LogStore::new(config.log_dir.clone(), clock.clone());
        let host = match (&config.proxy, config.namespaces) {
            (Some(proxy), true) => {
                let parts = (agent_id.as_str(), &spawner, &table);
                let host = Host::start(&config, proxy, parts, tasks);
                Some(Arc::new(host.map_err(dir)?))
            }
            _ => None,
        };
        let shared = Arc::new(Shared {
            host,
            config,
            agent_id,
            spawner,
            logs,
            link,
            clock,
            tasks: tasks.clone(),
            machine: machine_size(),
        });
        let missing = shared.host.as_ref().map(|h| h.cgroups.missing().join(", "));
        if let Some(missing) = missing.filter(|m| !m.is_empty()) {
            tracing::info!(missing, "the system gives no control groups for some limits");
        }
        let (orders, inbox) = mpsc::channel(4);
        let pods = Pods::default();
        let (ended, endings) = mpsc::channel(PODS_MAX);
        let manager = Manager {
            shared: shared.clone(),
            pods: pods.clone(),
            ended,
            warned: HashSet::new(),
            over: HashSet::new(),
            stopping: None,
        };
        tasks.spawn("agent", manager.run(desired, inbox, endings));
        Ok(Self { shared, pods, table, orders })
    }

    /// A container's log; that of a gateway's proxy or of a sidecar is called `weft-proxy`. An
    /// empty name is the first container's.
    ///
    /// # Errors
    /// When the pod is not here or has written nothing.
    pub fn read_log(
        &self,
        pod: &PodKey,
        container: &str,
        query: &LogQuery,
    ) -> io::Result<LogReader> {
        let none = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
        let key = {
            let pods = lock(&self.pods);
            let handle = pods.get(pod).ok_or_else(|| none(format!("pod {pod} is not here")))?;
            let found = match container {
                "" => handle.containers.first(),
                name => handle.containers.iter().find(|c| ***c == *name),
            };
            let found = found.ok_or_else(|| {
                let all = handle.containers.join(", ");
                none(format!("pod {pod} has no container {container:?}; it has: {all}"))
            })?;
            LogKey { pod: pod.clone(), uid: handle.uid.clone(), container: found.clone() }
        };
        self.shared.logs.read(&key, query)
    }

    /// A command beside a container's program, ready to be started.
    ///
    /// # Errors
    /// When the container does not run here.
    pub fn enter(&self, target: &Target, line: &[String], tty: bool) -> Result<Entry, EnterError> {
        let mut inside = self.inside(target)?;
        if tty {
            inside.env.set("TERM", TERMINAL);
        }
        inside.command(&target.pod, line)
    }

    /// Whether [`Agent::enter`] would find the container running.
    ///
    /// # Errors
    /// When it would not.
    pub fn can_enter(&self, target: &Target) -> Result<(), EnterError> {
        self.inside(target).map(drop)
    }

    fn inside(&self, target: &Target) -> Result<Inside, EnterError> {
        let Target { pod, uid, container } = target;
        let pods = lock(&self.pods);
        let handle = here(&pods, pod, uid)?;
        let name = match container.as_str() {
            "" => handle.containers.first(),
            name => handle.containers.iter().find(|c| ***c == *name),
        };
        let name = name.ok_or_else(|| EnterError::NoContainer {
            pod: pod.clone(),
            container: container.clone(),
            all: handle.containers.join(", "),
        })?;
        handle
            .insides
            .get(name)
            .ok_or_else(|| EnterError::NotRunning { pod: pod.clone(), container: name.to_string() })
    }

    pub(crate) fn taps(&self, target: &Target) -> Result<Taps, EnterError> {
        let Target { pod, container, .. } = target;
        let not_running =
            || EnterError::NotRunning { pod: pod.clone(), container: container.clone() };
        self.inside(target)?.taps.ok_or_else(not_running)
    }

    /// The running containers by the mark of their processes.
    pub(crate) fn marked(&self) -> Vec<Marked> {
        let pods = lock(&self.pods);
        let of = |(pod, handle): (&PodKey, &Handle)| {
            let pod = pod.clone();
            let all = handle.insides.variables(leftover::MARK_CONTAINER).into_iter();
            all.map(move |(container, mark)| Marked { mark, pod: pod.clone(), container })
        };
        pods.iter().flat_map(of).collect()
    }

    /// Where connections into a pod are made, and to which address of it: for `port-forward`.
    /// In namespaces a program may listen on its loopback alone, or on the pod's address alone:
    /// the addresses are to be tried in turn.
    ///
    /// # Errors
    /// When the pod does not run here.
    pub fn reach(
        &self,
        pod: &PodKey,
        uid: &str,
    ) -> Result<(SocketFactory, Vec<IpAddr>), EnterError> {
        let pods = lock(&self.pods);
        let handle = here(&pods, pod, uid)?;
        let desired = handle.last.as_ref().ok_or_else(|| EnterError::NoPod(pod.clone()))?;
        let addresses = match &handle.sockets {
            SocketFactory::Here => vec![desired.address],
            SocketFactory::Door(_) => {
                let own = desired.addresses.iter().copied();
                let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                loopback.into_iter().chain(own).collect()
            }
        };
        Ok((handle.sockets.clone(), addresses))
    }

    /// What commands beside a program are started with.
    pub(crate) fn for_exec(&self) -> (&Spawner, TaskGroup) {
        (&self.shared.spawner, self.shared.tasks.clone())
    }

    /// Processes that run now.
    pub fn processes(&self) -> Vec<u32> {
        self.table.pids()
    }

    /// Pods that have processes, or will.
    pub fn pods(&self) -> Vec<PodKey> {
        lock(&self.pods).keys().cloned().collect()
    }

    /// Ends every pod: SIGTERM, then SIGKILL after `grace` at most. The desired state is not
    /// followed any more. Resolves when no process is left.
    pub async fn stop(&self, grace: Duration) {
        let (done, wait) = oneshot::channel();
        if self.orders.send(Order::Stop { grace, done }).await.is_ok() {
            // Processes end by SIGKILL at the latest; last reports are not waited for for ever.
            let _ = tokio::time::timeout(grace * 2 + STOP_MARGIN, wait).await;
        }
        if let Some(host) = &self.shared.host {
            host.stop().await;
        }
    }
}

// === impl Manager ===

impl Manager {
    async fn run(
        mut self,
        mut desired: Snapshot<Desired>,
        mut orders: mpsc::Receiver<Order>,
        mut endings: mpsc::Receiver<PodKey>,
    ) {
        self.shared.logs.keep_only(&known(&desired.load()));
        let tasks = self.shared.tasks.clone();
        let mut followed = true;
        loop {
            if self.stopping.is_none() {
                self.apply(&desired.load()).await;
            } else if lock(&self.pods).is_empty() {
                if let Some(done) = self.stopping.take().flatten() {
                    let _ = done.send(());
                }
                return;
            }
            tokio::select! {
                changed = desired.changed(), if followed => followed = changed,
                Some(pod) = endings.recv() => {
                    tracing::debug!(pod = %pod, "a pod ended");
                    let ended = lock(&self.pods).remove(&pod);
                    self.over.extend(ended.map(|handle| handle.uid));
                }
                Some(Order::Stop { grace, done }) = orders.recv() => {
                    self.stopping = Some(Some(done));
                    self.end_all(grace).await;
                }
                () = tasks.draining(), if self.stopping.is_none() => {
                    self.stopping = Some(None);
                    self.end_all(DRAIN_GRACE).await;
                }
            }
        }
    }

    async fn end_all(&self, grace: Duration) {
        let all: Vec<_> = lock(&self.pods).values().map(|h| h.messages.clone()).collect();
        for pod in all {
            let _ = pod.send(Msg::Event(Event::Delete { grace, drain: false })).await;
        }
    }

    async fn apply(&mut self, desired: &Desired) {
        let mut orders = Vec::new();
        for (key, handle) in lock(&self.pods).iter_mut() {
            let wanted = desired.get(key);
            // Most changes are of other pods. (Objects are compared by their pointers first.)
            if wanted == handle.last.as_ref() {
                continue;
            }
            handle.last = wanted.cloned();
            let same = wanted.and_then(|d| Some((d, d.read().ok()?)));
            let same = same.filter(|(_, pod)| pod.metadata.uid == handle.uid);
            let message = match same {
                Some((_, pod)) if pod.metadata.deletion_timestamp.is_some() => {
                    let grace = Duration::from_secs(pod.grace_seconds());
                    Msg::Event(Event::Delete { grace, drain: true })
                }
                Some((desired, _)) => Msg::Update(desired.clone()),
                // Gone without a word (`--force`), or another object of the same name.
                None => Msg::Event(Event::Delete { grace: Duration::from_secs(1), drain: false }),
            };
            orders.push((handle.messages.clone(), message));
        }
        for (pod, message) in orders {
            let _ = pod.send(message).await;
        }
        if !self.over.is_empty() {
            let known: HashSet<Arc<str>> = known(desired).into_iter().map(|(_, uid)| uid).collect();
            self.over.retain(|uid| known.contains(uid));
        }
        for (key, wanted) in desired {
            if !lock(&self.pods).contains_key(key) {
                self.begin(key, wanted).await;
            }
        }
    }

    async fn begin(&mut self, key: &PodKey, wanted: &Arc<DesiredPod>) {
        let pod = match wanted.read() {
            Ok(pod) => pod,
            Err(issues) => return self.warn_once(key, &format!("it cannot be read: {issues}")),
        };
        let ran = pod.spec.restart_policy != RestartPolicy::Always
            && is_over(wanted)
            && pod.metadata.deletion_timestamp.is_none();
        if ran || self.over.contains(&pod.metadata.uid) {
            return;
        }
        if lock(&self.pods).len() >= PODS_MAX {
            return self.warn_once(key, &format!("this machine already has {PODS_MAX} pods"));
        }
        let Ok(token) = Token::generate() else {
            return self.warn_once(key, "there is no randomness for its credential");
        };
        let proxies = self.shared.config.proxy.is_some();
        let mut pod = pod;
        if !proxies && pod.proxy_kind() == ProxyKind::Sidecar {
            let off: Arc<str> = "false".into();
            pod.metadata.annotations.insert(crate::pod::ANNOTATION_INJECT.into(), off);
        }
        let deleting = pod.metadata.deletion_timestamp.is_some();
        tracing::debug!(pod = %key, uid = &*pod.metadata.uid, deleting, "a pod begins");
        let grace = if deleting { Some(Duration::ZERO) } else { None };
        let (ended, name) = (self.ended.clone(), key.clone());
        let tell = move || {
            // The manager takes one ending at a time; a pod ends once.
            if ended.try_send(name.clone()).is_err() {
                tracing::warn!(pod = %name, "the agent was not told that a pod ended");
            }
        };
        let credential = token.reveal().into();
        let handle = worker::start(&self.shared, wanted.clone(), pod, credential, tell);
        if let Some(grace) = grace {
            let _ = handle.messages.send(Msg::Event(Event::Delete { grace, drain: false })).await;
        }
        lock(&self.pods).insert(key.clone(), handle);
    }

    fn warn_once(&mut self, key: &PodKey, why: &str) {
        if self.warned.insert(key.clone()) {
            tracing::warn!(pod = %key, why, "a pod is not run");
        }
    }
}

/// The pod of this very object.
fn here<'a>(
    pods: &'a HashMap<PodKey, Handle>,
    pod: &PodKey,
    uid: &str,
) -> Result<&'a Handle, EnterError> {
    let handle = pods.get(pod).ok_or_else(|| EnterError::NoPod(pod.clone()))?;
    if *handle.uid == *uid { Ok(handle) } else { Err(EnterError::OtherPod(pod.clone())) }
}

fn known(desired: &Desired) -> Vec<(PodKey, Arc<str>)> {
    let read = |d: &Arc<DesiredPod>| d.read().ok();
    desired.values().filter_map(read).map(|p: Pod| (p.key(), p.metadata.uid)).collect()
}

/// A pod that ran to its end is not run again.
fn is_over(desired: &DesiredPod) -> bool {
    let phase = desired.object.pointer("/status/phase").and_then(|p| p.as_str());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// A name for this directory's agents, in the environment of every process they start.
fn agent_id(dir: &Path) -> io::Result<String> {
    let path = dir.join("id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let id = uuid::Uuid::new_v4().to_string();
    std::fs::write(&path, &id)?;
    Ok(id)
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Cores and bytes of memory, for limits that are not set.
fn machine_size() -> (u64, u64) {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let memory = kib.unwrap_or(0) * 1024;
    (u64::try_from(cores).unwrap_or(1), memory)
}

/// Adopts grandchildren and reaps them.
fn reap(table: &ChildTable, tasks: &TaskGroup) {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "orphans are not adopted");
        return;
    }
    let (table, group) = (table.clone(), tasks.clone());
    tasks.spawn("reaper", async move {
        let mut seen = HashSet::new();
        loop {
            tokio::select! {
                () = group.draining() => return,
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
            let known = table.pids();
            let swept = tokio::task::spawn_blocking(move || {
                leftover::reap_adopted(&known, &mut seen);
                seen
            });
            match swept.await {
                Ok(kept) => seen = kept,
                Err(_) => return,
            }
        }
    });
}

fn lock(pods: &Pods) -> std::sync::MutexGuard<'_, HashMap<PodKey, Handle>> {
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}

// Starts Python programs; `./test` runs it, `cargo test` alone needs nothing but cargo.
#[cfg(all(test, feature = "testing"))]
mod tests;
