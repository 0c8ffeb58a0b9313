// SPDX-License-Identifier: Apache-2.0
//! The life of one pod as a pure machine: what is started, signalled, restarted and shown, when.
//!
//! `worker` feeds it events and carries its actions out; `status` shows it as Kubernetes does.
//! It owns no process, reads no clock, and never waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::Mono;

use crate::pod::{PROXY_CONTAINER, Pod, ProxyKind, RestartPolicy};
use crate::probe::ProbeKind;

mod container;
mod evict;
mod hooks;
mod words;

pub use container::{ContainerState, Exit, State, Terminated};
pub use words::{Action, Event, HookKind, Part};

/// Time that subscribers get to hear that an instance is going.
pub const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Time that requests under way then get before the app hears SIGTERM: many programs end at once
/// on it, whatever they are doing.
pub const QUIET_MAX: Duration = Duration::from_secs(3);
/// Time a sidecar gets to finish after its app ended.
pub const PROXY_GRACE: Duration = Duration::from_secs(5);

/// How far the pod's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Up,
    Draining {
        until: Mono,
        kill_at: Mono,
        grace: Duration,
    },
    /// The apps, then what runs beside them.
    StoppingApps {
        kill_at: Mono,
        killed: bool,
        grace: Duration,
    },
    StoppingProxy {
        kill_at: Mono,
        killed: bool,
    },
    Done,
}

/// See the module's page.
#[derive(Debug)]
pub struct Machine {
    pod: Arc<Pod>,
    kind: ProxyKind,
    proxy: Option<ContainerState>,
    proxy_ready: bool,
    /// The apps wait for the first readiness of the sidecar only.
    proxy_was_ready: bool,
    inbound_acked: bool,
    /// Init containers first.
    apps: Vec<ContainerState>,
    /// How many of them are init containers.
    inits: usize,
    life: Life,
    /// Which of those beside the apps was asked to end last.
    beside_asked: Option<usize>,
    deleting: bool,
    /// Its object is being deleted, rather than everything here being stopped.
    deleted: bool,
    /// Everything here was stopped while it still worked.
    cut: bool,
    /// It used more than it may.
    evicted: Option<String>,
    started_wall_ms: u64,
    actions: VecDeque<Action>,
    changed: bool,
}

// === impl Machine ===

impl Machine {
    pub fn new(pod: Arc<Pod>, now: Mono, wall_ms: u64) -> Self {
        let kind = pod.proxy_kind();
        let inits = if kind == ProxyKind::Gateway { 0 } else { pod.spec.init_containers.len() };
        let waits = match kind {
            ProxyKind::None if inits == 0 => "ContainerCreating",
            _ => "PodInitializing",
        };
        let programs = pod.programs().filter(|_| kind != ProxyKind::Gateway);
        let apps = programs.enumerate().map(|(index, c)| {
            let mut state = ContainerState::of(c, waits);
            state.beside = index < inits && c.restart_policy == Some(RestartPolicy::Always);
            state
        });
        let apps = apps.collect();
        let proxy = (kind != ProxyKind::None)
            .then(|| ContainerState::named(PROXY_CONTAINER, "weft", "ContainerCreating"));
        let mut machine = Self {
            pod,
            kind,
            proxy,
            proxy_ready: false,
            proxy_was_ready: false,
            inbound_acked: false,
            apps,
            inits,
            life: Life::Up,
            beside_asked: None,
            deleting: false,
            deleted: false,
            cut: false,
            evicted: None,
            started_wall_ms: wall_ms,
            actions: VecDeque::new(),
            changed: true,
        };
        machine.start_what_is_due(now);
        machine
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether the status may differ since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// When a [`Event::Tick`] is wanted.
    pub fn wakeup(&self) -> Option<Mono> {
        let restarts = self.parts().filter_map(|(_, c)| c.start_at());
        let kills = self.apps.iter().filter_map(ContainerState::kill_at);
        let life = match self.life {
            Life::Draining { until, .. } => Some(until),
            Life::StoppingApps { kill_at, killed: false, .. }
            | Life::StoppingProxy { kill_at, killed: false } => Some(kill_at),
            _ => None,
        };
        let restarts = restarts.filter(|_| self.life == Life::Up);
        restarts.chain(kills).chain(life).min()
    }

    pub fn is_finished(&self) -> bool {
        self.life == Life::Done
    }

    /// Whether the pod takes requests.
    pub fn is_ready(&self) -> bool {
        self.life == Life::Up && self.containers_ready() && self.mesh_ready()
    }

    pub fn containers_ready(&self) -> bool {
        let mut shown = self.shown().peekable();
        shown.peek().is_some() && shown.all(|c| c.is_ready())
    }

    /// The sidecar is up and acknowledged this pod's inbound configuration.
    pub fn mesh_ready(&self) -> bool {
        match self.kind {
            ProxyKind::None => true,
            ProxyKind::Sidecar => self.proxy_ready && self.inbound_acked,
            ProxyKind::Gateway => self.proxy_ready,
        }
    }

    /// The processes a user sees as the pod's containers.
    pub fn shown(&self) -> impl Iterator<Item = &ContainerState> {
        let proxy = self.proxy.iter().filter(|_| self.kind == ProxyKind::Gateway);
        proxy.chain(self.apps.iter().skip(self.inits))
    }

    /// What runs to its end before them.
    pub fn inits(&self) -> &[ContainerState] {
        self.apps.get(..self.inits).unwrap_or_default()
    }

    /// The sidecar was ready and every init container succeeded.
    pub fn is_initialized(&self) -> bool {
        self.may_start(self.inits)
    }

    pub fn proxy(&self) -> Option<&ContainerState> {
        self.proxy.as_ref()
    }

    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    pub fn kind(&self) -> ProxyKind {
        self.kind
    }

    pub fn is_deleting(&self) -> bool {
        self.deleting
    }

    pub fn started_wall_ms(&self) -> u64 {
        self.started_wall_ms
    }

    /// Feeds one event.
    pub fn step(&mut self, event: Event, now: Mono, wall_ms: u64) {
        match event {
            Event::Tick => {}
            Event::Started { part, attempt, id } => {
                self.on_started(part, attempt, id, now, wall_ms)
            }
            Event::NotStarted { part, attempt, reason, message } => {
                self.on_not_started(part, attempt, reason, message, now);
            }
            Event::Exited { part, attempt, exit, hint } => {
                self.on_exited(part, attempt, (exit, hint), now, wall_ms);
            }
            Event::ProxyReady(ready) => self.on_proxy_ready(ready),
            Event::InboundAcked { attempt } => {
                if self.proxy.as_ref().is_some_and(|p| p.attempt == attempt) {
                    self.changed |= !self.inbound_acked;
                    self.inbound_acked = true;
                }
            }
            Event::Probe { index, attempt, kind, ok, message } => {
                self.on_probe(index, attempt, kind, (ok, message), now);
            }
            Event::PortTrouble { index, attempt, message } => {
                let Some(app) = self.current(Part::App(index), attempt) else { return };
                if app.trouble != message {
                    app.trouble.clone_from(&message);
                    self.changed = true;
                    if !message.is_empty() {
                        self.note(true, "NotListening", message);
                    }
                }
            }
            Event::Delete { grace, drain } => self.on_delete(grace, drain, now),
            Event::Evict(why) => self.on_evict(why, now),
            Event::HookDone { part, attempt, hook, failed } => {
                self.on_hook(part, attempt, hook, failed, now);
            }
            Event::Drained => {
                if let Life::Draining { kill_at, grace, .. } = self.life {
                    self.stop_apps(kill_at, grace, now);
                }
            }
        }
        self.on_time(now);
        self.start_what_is_due(now);
        self.advance_end(now);
    }

    fn on_started(&mut self, part: Part, attempt: u32, id: Arc<str>, now: Mono, wall_ms: u64) {
        let ending = self.life != Life::Up;
        let has_probe = |c: &ContainerState| c.has_startup || c.has_readiness;
        let Some(c) = self.current(part, attempt) else { return };
        c.run(id, now, wall_ms);
        c.started = !c.has_startup;
        c.probe_ready = part != Part::Proxy && !has_probe(c);
        let hooked = c.has_post_start;
        let name = c.name.clone();
        self.changed = true;
        self.note(false, "Started", format!("Started container {name}"));
        if part == Part::Proxy {
            self.inbound_acked = false;
        }
        if ending {
            // It was deleted between the order to start and the start.
            self.actions.push_back(Action::Signal { part, attempt, kill: false });
        } else if hooked {
            let hook = HookKind::PostStart;
            self.actions.push_back(Action::Hook { part, attempt, hook });
        }
    }

    fn on_not_started(
        &mut self,
        part: Part,
        attempt: u32,
        reason: &'static str,
        message: String,
        now: Mono,
    ) {
        let Some(c) = self.current(part, attempt) else { return };
        c.fail_to_start(reason, &message, now);
        self.changed = true;
        self.note(true, "Failed", message);
    }

    fn on_exited(
        &mut self,
        part: Part,
        attempt: u32,
        (exit, hint): (Exit, String),
        now: Mono,
        wall_ms: u64,
    ) {
        let policy = match (part, self.pod.spec.restart_policy) {
            (Part::Proxy, _) => RestartPolicy::Always,
            (Part::App(i), _) if self.is_beside(i) => RestartPolicy::Always,
            (Part::App(i), RestartPolicy::Always) if i < self.inits => RestartPolicy::OnFailure,
            (Part::App(_), policy) => policy,
        };
        let up = self.life == Life::Up;
        let key = self.pod.key();
        let Some(c) = self.current(part, attempt) else { return };
        let again = up
            && match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => !exit.is_success(),
                RestartPolicy::Never => false,
            };
        let wait = c.exit(exit, hint, now, wall_ms, again);
        let name = c.name.clone();
        self.changed = true;
        if part == Part::Proxy {
            self.proxy_ready = false;
            self.inbound_acked = false;
        }
        if let Some(wait) = wait.filter(|w| !w.is_zero()) {
            let s = wait.as_secs();
            let text = format!("Back-off {s}s restarting failed container {name} in pod {key}");
            self.note(true, "BackOff", text);
        }
    }

    fn on_proxy_ready(&mut self, ready: bool) {
        self.changed |= self.proxy_ready != ready;
        self.proxy_ready = ready;
        self.proxy_was_ready |= ready;
        if let Some(proxy) = &mut self.proxy {
            proxy.probe_ready = ready;
        }
    }

    fn on_probe(
        &mut self,
        index: usize,
        attempt: u32,
        kind: ProbeKind,
        (ok, message): (bool, String),
        now: Mono,
    ) {
        let grace = Duration::from_secs(self.pod.grace_seconds());
        let Some(app) = self.current(Part::App(index), attempt) else { return };
        let name = app.name.clone();
        match kind {
            ProbeKind::Startup if ok => {
                app.started = true;
                app.probe_ready |= !app.has_readiness;
            }
            ProbeKind::Readiness => app.probe_ready = ok,
            // Restarted by the ordinary way of an exit.
            ProbeKind::Liveness | ProbeKind::Startup if !ok && app.kill_at().is_none() => {
                app.probe_ready = false;
                app.set_kill_at(now.plus(grace));
                self.ask_to_end(index);
                let text = format!("Container {name} failed {kind} probe, will be restarted");
                self.note(false, "Killing", text);
            }
            _ => {}
        }
        self.changed = true;
        if !ok {
            self.note(true, "Unhealthy", format!("{kind} probe of {name} failed: {message}"));
        }
    }

    fn on_delete(&mut self, grace: Duration, drain: bool, now: Mono) {
        if self.deleting {
            return self.hasten(now.plus(grace), drain, now);
        }
        self.cut = !drain && !self.is_complete();
        self.deleting = true;
        self.deleted = drain;
        self.changed = true;
        if self.life != Life::Up {
            return;
        }
        let takes_requests = self.kind == ProxyKind::Sidecar && self.running_apps() > 0;
        if takes_requests && drain && !grace.is_zero() {
            // Kubernetes counts what comes before SIGTERM as part of the grace period.
            let until = now.plus((DRAIN_MAX + QUIET_MAX).min(grace / 2));
            self.life = Life::Draining { until, kill_at: now.plus(grace), grace };
            self.actions.push_back(Action::BeginDrain);
        } else {
            self.stop_apps(now.plus(grace), grace, now);
        }
    }

    /// Asked again: a shorter grace counts, a longer one does not.
    fn hasten(&mut self, at: Mono, drain: bool, now: Mono) {
        match &mut self.life {
            Life::Draining { until, kill_at, .. } => {
                *kill_at = at.min(*kill_at);
                *until = if drain { at.min(*until) } else { now };
            }
            Life::StoppingApps { kill_at, .. } | Life::StoppingProxy { kill_at, .. } => {
                *kill_at = at.min(*kill_at);
            }
            Life::Up | Life::Done => {}
        }
    }

    fn stop_apps(&mut self, kill_at: Mono, grace: Duration, now: Mono) {
        let killed = kill_at <= now;
        self.life = Life::StoppingApps { kill_at, killed, grace };
        if killed {
            return self.kill_apps();
        }
        for index in (0..self.apps.len()).filter(|i| !self.is_beside(*i)).collect::<Vec<_>>() {
            self.ask_to_end(index);
        }
    }

    fn kill_apps(&mut self) {
        for (index, app) in self.apps.iter().enumerate().filter(|(_, a)| a.is_running()) {
            let (part, attempt) = (Part::App(index), app.attempt);
            self.actions.push_back(Action::Signal { part, attempt, kill: true });
        }
    }

    /// What time brings: drain time-outs and escalations from SIGTERM to SIGKILL.
    fn on_time(&mut self, now: Mono) {
        for index in 0..self.apps.len() {
            let Some(app) = self.apps.get_mut(index) else { continue };
            if app.kill_at().is_some_and(|at| at <= now) {
                app.clear_kill_at();
                let (part, attempt) = (Part::App(index), app.attempt);
                self.actions.push_back(Action::Signal { part, attempt, kill: true });
            }
        }
        match self.life {
            Life::Draining { until, kill_at, grace } if until <= now => {
                self.stop_apps(kill_at, grace, now);
            }
            Life::StoppingApps { kill_at, killed: false, grace } if kill_at <= now => {
                self.life = Life::StoppingApps { kill_at, killed: true, grace };
                self.kill_apps();
            }
            Life::StoppingProxy { kill_at, killed: false } if kill_at <= now => {
                self.life = Life::StoppingProxy { kill_at, killed: true };
                if let Some(proxy) = self.proxy.as_ref().filter(|p| p.is_running()) {
                    let attempt = proxy.attempt;
                    self.actions.push_back(Action::Signal {
                        part: Part::Proxy,
                        attempt,
                        kill: true,
                    });
                }
            }
            _ => {}
        }
    }

    fn start_what_is_due(&mut self, now: Mono) {
        if self.life != Life::Up {
            return;
        }
        let due = |(part, c): (Part, &ContainerState)| {
            c.start_at().is_some_and(|at| at <= now).then_some(part)
        };
        for part in self.parts().filter_map(due).collect::<Vec<_>>() {
            let Some(c) = self.part_mut(part) else { continue };
            let attempt = c.begin_start();
            self.actions.push_back(Action::Start { part, attempt });
            self.changed = true;
        }
    }

    /// The last steps: apps gone, then the proxy, then the pod.
    fn advance_end(&mut self, now: Mono) {
        if self.life == Life::Up && self.is_complete() {
            // A pod that runs to completion needs its sidecars no longer.
            let grace = Duration::from_secs(self.pod.grace_seconds());
            let kill_at = now.plus(grace);
            self.life = Life::StoppingApps { kill_at, killed: false, grace };
        }
        self.end_what_is_beside();
        let apps_ended = self.running_apps() == 0;
        if let Life::StoppingApps { grace, .. } = self.life
            && apps_ended
        {
            // A gateway finishes what clients asked; a sidecar's app has ended already.
            let grace = match self.kind {
                ProxyKind::Gateway => grace,
                _ => grace.min(PROXY_GRACE),
            };
            self.life = Life::StoppingProxy { kill_at: now.plus(grace), killed: false };
            if let Some(proxy) = self.proxy.as_ref().filter(|p| p.is_running()) {
                let attempt = proxy.attempt;
                self.actions.push_back(Action::Signal { part: Part::Proxy, attempt, kill: false });
            }
        }
        let proxy_ended = self.proxy.as_ref().is_none_or(|p| !p.is_running());
        let ended = matches!(self.life, Life::StoppingProxy { .. }) && proxy_ended;
        if ended && self.deleting {
            self.life = Life::Done;
            self.changed = true;
            self.actions.push_back(Action::Finished);
        }
    }

    /// Every container ended and none will be started again.
    pub fn is_complete(&self) -> bool {
        let mut apps = self.apps.iter().skip(self.inits).peekable();
        let ended = apps.peek().is_some() && apps.all(ContainerState::is_terminated);
        let failed = |c: &ContainerState| !c.beside && c.is_terminated() && !c.has_succeeded();
        ended || self.inits().iter().any(failed)
    }

    fn is_beside(&self, index: usize) -> bool {
        self.apps.get(index).is_some_and(|c| c.beside)
    }

    /// Whether that is the pod's end. One that is always restarted has none but deletion, and one
    /// whose work was cut short by its agent's end neither: they run again when it is back.
    pub fn is_over(&self) -> bool {
        if self.evicted.is_some() {
            return self.running_apps() == 0;
        }
        let always = self.pod.spec.restart_policy == RestartPolicy::Always;
        self.is_complete() && (self.deleted || !(always || self.cut))
    }

    fn running_apps(&self) -> usize {
        self.apps.iter().filter(|a| a.is_running()).count()
    }

    /// Whether a program's turn has come: after the sidecar, init containers one by one, then
    /// the apps all at once.
    fn may_start(&self, index: usize) -> bool {
        let mut before = self.apps.iter().take(index.min(self.inits));
        let sidecar = self.kind != ProxyKind::Sidecar || self.proxy_was_ready;
        sidecar && before.all(ContainerState::lets_next_begin)
    }

    /// What may run now, or runs.
    fn parts(&self) -> impl Iterator<Item = (Part, &ContainerState)> {
        let apps = self.apps.iter().enumerate().filter(|(i, _)| self.may_start(*i));
        let proxy = self.proxy.iter().map(|c| (Part::Proxy, c));
        proxy.chain(apps.map(|(i, c)| (Part::App(i), c)))
    }

    fn part_mut(&mut self, part: Part) -> Option<&mut ContainerState> {
        match part {
            Part::Proxy => self.proxy.as_mut(),
            Part::App(index) => self.apps.get_mut(index),
        }
    }

    fn current(&mut self, part: Part, attempt: u32) -> Option<&mut ContainerState> {
        let c = self.part_mut(part);
        c.filter(|c| c.attempt == attempt && c.is_running())
    }

    fn note(&mut self, warning: bool, reason: &'static str, message: String) {
        self.actions.push_back(Action::Note { warning, reason, message });
    }
}

#[cfg(test)]
mod tests;
