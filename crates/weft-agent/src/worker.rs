// SPDX-License-Identifier: Apache-2.0
//! One task per pod: feeds the pod's machine with what happens and carries out what it decides.
//! Started by `agent`; processes run in `worker::process`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use weft_base::clock::Clock;
use weft_base::sockets::SocketFactory;
use weft_base::task::TaskGroup;
use weft_kinds::world::PodsMode;

use crate::child::{Signaller, Spawner};
use crate::config::AgentConfig;
use crate::enter::Insides;
use crate::env::Facts;
use crate::link::{LinkError, PodNote, PodReport, ServerLink};
use crate::logs::LogStore;
use crate::machine::{Action, DRAIN_MAX, Event, Machine, Part, QUIET_MAX};
use crate::pod::{DesiredPod, Pod, PodKey};
use crate::sandbox::measure::Bounds;
use crate::sandbox::{Host, PodBox};
use crate::status::StatusWriter;

pub(crate) mod process;

/// How often what a pod keeps on disk is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(2);

/// What all pods of an agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    /// Marks this agent's processes.
    pub(crate) agent_id: String,
    pub(crate) spawner: Spawner,
    pub(crate) logs: LogStore,
    pub(crate) link: Arc<dyn ServerLink>,
    pub(crate) clock: Clock,
    pub(crate) tasks: TaskGroup,
    /// Cores and bytes of memory of this machine.
    pub(crate) machine: (u64, u64),
    /// Where pods run in namespaces.
    pub(crate) host: Option<Arc<Host>>,
}

/// Messages to a pod's task.
#[derive(Debug)]
pub(crate) enum Msg {
    Event(Event),
    /// A process came to be.
    Spawned {
        part: Part,
        attempt: u32,
        id: Arc<str>,
        signaller: Signaller,
    },
    /// The object changed; its new form is used from the next start of a process on.
    Update(Arc<DesiredPod>),
    /// The pod's namespaces ended, and every process in them.
    NamespacesGone,
}

/// A running pod as `agent` holds it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) uid: Arc<str>,
    /// Names under which there are logs: the apps', then the proxy's.
    pub(crate) containers: Vec<Arc<str>>,
    pub(crate) messages: mpsc::Sender<Msg>,
    /// The desired state that the pod's task knows; `None` once it was to be gone.
    pub(crate) last: Option<Arc<DesiredPod>>,
    /// Its running containers.
    pub(crate) insides: Insides,
    /// Where sockets of its network come from.
    pub(crate) sockets: SocketFactory,
}

struct Worker {
    shared: Arc<Shared>,
    desired: Arc<DesiredPod>,
    pod: Arc<Pod>,
    key: PodKey,
    credential: Arc<str>,
    machine: Machine,
    messages: mpsc::Receiver<Msg>,
    to_self: mpsc::Sender<Msg>,
    processes: HashMap<Part, (u32, Signaller)>,
    status: StatusWriter,
    reports: watch::Sender<Option<PodReport>>,
    insides: Insides,
    /// In namespace mode.
    boxed: Option<Arc<PodBox>>,
}

/// Starts a pod's task. `ended` is told when no process of the pod is left.
pub(crate) fn start(
    shared: &Arc<Shared>,
    desired: Arc<DesiredPod>,
    pod: Pod,
    credential: Arc<str>,
    ended: impl FnOnce() + Send + 'static,
) -> Handle {
    let (to_self, messages) = mpsc::channel(256);
    let last = Some(desired.clone());
    let (reports, latest) = watch::channel(None);
    let (pod, key, uid) = (Arc::new(pod.clone()), pod.key(), pod.metadata.uid.clone());
    let (done, reported) = oneshot::channel();
    shared.tasks.spawn("pod reports", report(latest, shared.link.clone(), done));
    let machine = Machine::new(pod.clone(), shared.clock.now(), shared.clock.wall_ms());
    let proxy = machine.proxy().map(|p| p.name.clone());
    let apps = machine.shown().chain(machine.inits()).map(|c| c.name.clone());
    let mut containers: Vec<Arc<str>> = apps.chain(proxy).collect();
    containers.dedup();
    let insides = Insides::default();
    let inside = shared.host.as_ref().filter(|_| desired.mode == PodsMode::Namespace);
    let boxed =
        inside.map(|host| Arc::new(PodBox::new(host.clone(), pod.clone(), to_self.clone())));
    let sockets = boxed.as_ref().map_or(SocketFactory::Here, |b| b.sockets());
    let handle_insides = insides.clone();
    let worker = Worker {
        shared: shared.clone(),
        desired,
        pod,
        key,
        credential,
        machine,
        messages,
        to_self: to_self.clone(),
        processes: HashMap::new(),
        status: StatusWriter::default(),
        reports,
        insides,
        boxed: boxed.clone(),
    };
    if let Some(bounds) = boxed.as_ref().and_then(|b| b.bounds()) {
        let (clock, to_self) = (shared.clock.clone(), to_self.clone());
        shared.tasks.spawn("pod volumes measured", measure(bounds, clock, to_self));
    }
    shared.tasks.spawn("pod", async move {
        worker.run().await;
        if let Some(boxed) = boxed {
            boxed.end().await;
        }
        // The last report says that the object can go; it must have arrived.
        let _ = reported.await;
        ended();
    });
    Handle { uid, containers, messages: to_self, last, insides: handle_insides, sockets }
}

// === impl Worker ===

impl Worker {
    async fn run(mut self) {
        loop {
            while let Some(action) = self.machine.next_action() {
                self.perform(action);
            }
            if self.machine.take_changed() {
                self.report();
            }
            if self.machine.is_finished() {
                return;
            }
            if self.machine.is_evicted_whole()
                && let Some(boxed) = self.boxed.take()
            {
                boxed.end().await;
            }
            let clock = self.shared.clock.clone();
            let wakeup = self.machine.wakeup();
            let tick = async {
                match wakeup {
                    Some(at) => tokio::time::sleep(at.since(clock.now())).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = self.messages.recv() => message,
                () = tick => Some(Msg::Event(Event::Tick)),
            };
            // `to_self` keeps the channel open.
            let Some(message) = message else { return };
            self.receive(message);
        }
    }

    fn receive(&mut self, message: Msg) {
        let event = match message {
            Msg::Event(event) => event,
            Msg::Spawned { part, attempt, id, signaller } => {
                self.processes.insert(part, (attempt, signaller));
                Event::Started { part, attempt, id }
            }
            Msg::Update(desired) => {
                self.desired = desired;
                self.refresh();
                Event::Tick
            }
            Msg::NamespacesGone => {
                // Containers ended with them; the sidecar talks to nobody any more.
                self.processes.values().for_each(|(_, signaller)| signaller.send(true));
                Event::Tick
            }
        };
        if let Event::Exited { part, attempt, .. } = &event
            && self.process(*part, *attempt).is_some()
        {
            self.processes.remove(part);
        }
        self.machine.step(event, self.shared.clock.now(), self.shared.clock.wall_ms());
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { part, attempt } => self.start_process(part, attempt),
            Action::Signal { part, attempt, kill } => {
                if let Some(signaller) = self.process(part, attempt) {
                    signaller.send(kill);
                }
            }
            Action::BeginDrain => {
                let drained = self.shared.link.drained(self.key.clone());
                let (to_self, address) = (self.to_self.clone(), self.desired.admin_address);
                self.shared.tasks.spawn("pod drain", async move {
                    // The machine goes on by itself when this takes too long.
                    let _ = tokio::time::timeout(DRAIN_MAX, drained).await;
                    let _ = tokio::time::timeout(QUIET_MAX, process::quiet(address)).await;
                    let _ = to_self.send(Msg::Event(Event::Drained)).await;
                });
            }
            Action::Hook { part, attempt, hook } => {
                let (run, tasks) = (self.run_of(part, attempt), self.shared.tasks.clone());
                tasks.spawn("pod hook", async move { run.hook(hook).await });
            }
            Action::Note { warning, reason, message } => {
                tracing::info!(pod = %self.key, reason, message, "pod");
                let (pod, uid) = (self.key.clone(), self.pod.metadata.uid.to_string());
                self.shared.link.note(PodNote { pod, uid, warning, reason, message });
            }
            Action::Finished => self.clean_up(),
        }
    }

    fn process(&self, part: Part, attempt: u32) -> Option<&Signaller> {
        self.processes.get(&part).filter(|(a, _)| *a == attempt).map(|(_, s)| s)
    }

    fn start_process(&mut self, part: Part, attempt: u32) {
        let run = self.run_of(part, attempt);
        self.shared.tasks.spawn("pod process", run.run());
    }

    fn run_of(&self, part: Part, attempt: u32) -> process::Run {
        process::Run {
            shared: self.shared.clone(),
            desired: self.desired.clone(),
            pod: self.pod.clone(),
            credential: self.credential.clone(),
            part,
            attempt,
            to_pod: self.to_self.clone(),
            insides: self.insides.clone(),
            boxed: self.boxed.clone(),
        }
    }

    fn report(&mut self) {
        let (now, config) = (self.shared.clock.wall_ms(), &self.shared.config);
        let at = (&*self.desired.addresses, config.host_ip);
        let status = self.status.write(&self.machine, at, now);
        self.reports.send_replace(Some(PodReport {
            pod: self.key.clone(),
            uid: self.pod.metadata.uid.to_string(),
            status,
            finished: self.machine.is_finished(),
        }));
    }

    /// Brings volumes up to date with the objects that they are made of.
    fn refresh(&self) {
        let Some(boxed) = self.boxed.clone() else { return };
        let (desired, pod) = (self.desired.clone(), self.pod.clone());
        let (host_ip, machine) = (self.shared.config.host_ip, self.shared.machine);
        self.shared.tasks.spawn("pod volumes", async move {
            let write = tokio::task::spawn_blocking(move || {
                let Some(container) = pod.programs().next() else { return };
                let facts = Facts {
                    desired: &desired,
                    pod: &pod,
                    container,
                    proxy: None,
                    host_ip,
                    machine,
                };
                boxed.refresh(&facts);
            });
            let _ = write.await;
        });
    }

    fn clean_up(&self) {
        let config = &self.shared.config;
        let table = config.last_good_file(&self.pod);
        let svid = weft_identity::join::beside(&table);
        for file in [config.credential_file(&self.pod), table, svid] {
            let _ = std::fs::remove_file(file);
        }
        self.shared.logs.forget(&self.key, &self.pod.metadata.uid);
    }
}

/// Looks at the pod's volumes until they hold too much or the pod is gone. Looking takes a small
/// part of the time, however much there is.
async fn measure(bounds: Bounds, clock: Clock, to_pod: mpsc::Sender<Msg>) {
    let mut pause = MEASURE_EVERY;
    loop {
        tokio::select! {
            () = to_pod.closed() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let (bounds, begun) = (bounds.clone(), clock.now());
        let look = tokio::task::spawn_blocking(move || bounds.exceeded());
        if let Ok(Some(why)) = look.await {
            let _ = to_pod.send(Msg::Event(Event::Evict(why))).await;
            return;
        }
        pause = MEASURE_EVERY.max(clock.now().since(begun) * 20);
    }
}

/// Hands the newest status over until the final one has arrived; older ones may be skipped.
async fn report(
    mut latest: watch::Receiver<Option<PodReport>>,
    link: Arc<dyn ServerLink>,
    done: oneshot::Sender<()>,
) {
    let mut wait = Duration::from_millis(50);
    loop {
        let report = latest.borrow_and_update().clone();
        if let Some(report) = report {
            let (finished, pod) = (report.finished, report.pod.clone());
            match link.report_pod(report).await {
                Err(LinkError::Unavailable(why)) => {
                    tracing::debug!(%pod, why, "a pod's status waits");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(5));
                    continue;
                }
                Err(LinkError::Refused(why)) => tracing::debug!(%pod, why, "status refused"),
                Ok(()) => {}
            }
            wait = Duration::from_millis(50);
            if finished && !latest.has_changed().unwrap_or(false) {
                let _ = done.send(());
                return;
            }
        }
        if latest.changed().await.is_err() {
            return;
        }
    }
}
