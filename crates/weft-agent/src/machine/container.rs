// SPDX-License-Identifier: Apache-2.0
//! One container of a pod: its state as Kubernetes names it, its restarts and their back-off.
//! Pure; driven by `machine`, shown by `status`.

use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::Mono;

use crate::pod::Container;

/// The first restart is at once, the next after this, then twice as long each time.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Kubernetes' longest back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A process that ran this long, and twice its back-off, begins anew.
pub const BACKOFF_RESET: Duration = Duration::from_secs(60);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell shows it: 128 + signal when one ended it.
    pub code: i32,
    pub signal: Option<i32>,
    /// The kernel ended it because its memory limit was reached.
    pub out_of_memory: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Waiting {
        reason: &'static str,
        message: String,
        /// When to start; `None` never.
        until: Option<Mono>,
    },
    /// Ordered, not yet there.
    Starting,
    Running {
        since: Mono,
        wall_ms: u64,
    },
    /// Ended for good.
    Terminated(Terminated),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminated {
    pub exit: Exit,
    pub reason: &'static str,
    pub message: String,
    pub started_wall_ms: u64,
    pub finished_wall_ms: u64,
    pub id: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    pub name: Arc<str>,
    pub image: Arc<str>,
    pub state: State,
    pub last: Option<Terminated>,
    /// Processes there have been before this one.
    pub restarts: u32,
    /// Counts starts; tells late events apart.
    pub attempt: u32,
    pub id: Arc<str>,
    pub has_startup: bool,
    pub has_readiness: bool,
    /// The startup probe, if any, succeeded.
    pub started: bool,
    pub probe_ready: bool,
    /// Why nobody can reach it, although it runs; empty when fine.
    pub trouble: String,
    /// An init container that runs beside the others from its turn on.
    pub beside: bool,
    /// What its program is asked before it is ready, and before it is ended.
    pub(super) has_post_start: bool,
    pub(super) has_pre_stop: bool,
    /// The first is done; the second was begun.
    pub(super) post_started: bool,
    pub(super) pre_stopping: bool,
    backoff: Duration,
    kill_at: Option<Mono>,
}

// === impl Exit ===

impl Exit {
    pub fn code(code: i32) -> Self {
        Self { code, signal: None, out_of_memory: false }
    }

    pub fn signal(signal: i32) -> Self {
        Self { code: 128 + signal, signal: Some(signal), out_of_memory: false }
    }

    pub fn out_of_memory(self) -> Self {
        Self { out_of_memory: true, ..self }
    }

    pub fn is_success(self) -> bool {
        self.code == 0
    }
}

// === impl ContainerState ===

impl ContainerState {
    pub(super) fn of(container: &Container, waits: &'static str) -> Self {
        let mut state = Self::named(&container.name, &container.image, waits);
        state.has_startup = container.startup_probe.is_some();
        // Without a probe, a program that declares ports is ready when it listens.
        state.has_readiness =
            container.readiness_probe.is_some() || !container.tcp_ports().is_empty();
        state.has_post_start = container.lifecycle.post_start.is_some();
        state.has_pre_stop = container.lifecycle.pre_stop.is_some();
        state
    }

    pub(super) fn named(name: &str, image: &str, waits: &'static str) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            state: State::Waiting {
                reason: waits,
                message: String::new(),
                until: Some(Mono::default()),
            },
            last: None,
            restarts: 0,
            attempt: 0,
            id: "".into(),
            has_startup: false,
            has_readiness: false,
            started: false,
            probe_ready: false,
            trouble: String::new(),
            beside: false,
            has_post_start: false,
            has_pre_stop: false,
            post_started: false,
            pre_stopping: false,
            backoff: Duration::ZERO,
            kill_at: None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Starting)
    }

    pub fn is_terminated(&self) -> bool {
        matches!(self.state, State::Terminated(_))
    }

    pub fn has_succeeded(&self) -> bool {
        matches!(&self.state, State::Terminated(t) if t.exit.is_success())
    }

    /// Whether those after it may begin: it succeeded, or is there to stay.
    pub fn lets_next_begin(&self) -> bool {
        let up = matches!(self.state, State::Running { .. }) && self.started && self.post_started;
        if self.beside { up } else { self.has_succeeded() }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Running { .. })
            && self.started
            && self.probe_ready
            && self.post_started
            && self.trouble.is_empty()
    }

    pub(super) fn start_at(&self) -> Option<Mono> {
        match self.state {
            State::Waiting { until, .. } => until,
            _ => None,
        }
    }

    pub(super) fn kill_at(&self) -> Option<Mono> {
        self.kill_at
    }

    pub(super) fn set_kill_at(&mut self, at: Mono) {
        self.kill_at = Some(at);
    }

    pub(super) fn clear_kill_at(&mut self) {
        self.kill_at = None;
    }

    pub(super) fn begin_start(&mut self) -> u32 {
        self.attempt += 1;
        self.state = State::Starting;
        self.kill_at = None;
        self.trouble.clear();
        (self.started, self.probe_ready) = (false, false);
        (self.post_started, self.pre_stopping) = (!self.has_post_start, false);
        self.attempt
    }

    pub(super) fn run(&mut self, id: Arc<str>, now: Mono, wall_ms: u64) {
        self.id = id;
        self.restarts += u32::from(self.last.is_some());
        self.state = State::Running { since: now, wall_ms };
    }

    /// No process came to be; tried again later, with no restart counted.
    pub(super) fn fail_to_start(&mut self, reason: &'static str, message: &str, now: Mono) {
        let wait = self.next_backoff().max(BACKOFF_FIRST);
        let until = Some(now.plus(wait));
        self.state = State::Waiting { reason, message: message.to_owned(), until };
    }

    /// The process ended. Returns how long until the next one, if there is to be one.
    pub(super) fn exit(
        &mut self,
        exit: Exit,
        hint: String,
        now: Mono,
        wall_ms: u64,
        again: bool,
    ) -> Option<Duration> {
        let (since, started_wall_ms) = match self.state {
            State::Running { since, wall_ms } => (since, wall_ms),
            _ => (now, wall_ms),
        };
        let reason = match exit {
            exit if exit.is_success() => "Completed",
            Exit { out_of_memory: true, .. } => "OOMKilled",
            _ => "Error",
        };
        let (id, finished_wall_ms) = (self.id.clone(), wall_ms);
        let ended = Terminated {
            exit,
            reason,
            message: hint.clone(),
            started_wall_ms,
            finished_wall_ms,
            id,
        };
        self.kill_at = None;
        (self.started, self.probe_ready) = (false, false);
        if !again {
            self.state = State::Terminated(ended);
            return None;
        }
        self.last = Some(ended);
        let lived = now.since(since);
        if lived >= BACKOFF_RESET && lived >= self.backoff * 2 {
            self.backoff = Duration::ZERO;
        }
        let wait = self.next_backoff();
        let mut message =
            format!("back-off {}s restarting failed container={}", wait.as_secs(), self.name);
        if !hint.is_empty() {
            message.push_str(": ");
            message.push_str(&hint);
        }
        let until = Some(now.plus(wait));
        self.state = State::Waiting { reason: "CrashLoopBackOff", message, until };
        Some(wait)
    }

    /// The wait before the next start: none, then 1 s, 2 s, 4 s … 5 min.
    fn next_backoff(&mut self) -> Duration {
        let wait = self.backoff;
        self.backoff = (wait * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
        wait
    }
}
