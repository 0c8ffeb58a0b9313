// SPDX-License-Identifier: Apache-2.0
//! What a pod's machine is told and what it orders. Made and carried out by `worker`.

use std::sync::Arc;
use std::time::Duration;

use super::Exit;
use crate::probe::ProbeKind;

/// One of the pod's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    Proxy,
    /// By index in [`Pod::programs`]: init containers first.
    App(usize),
}

/// When a hook is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    PostStart,
    PreStop,
}

/// What happened. `attempt` tells late news of an earlier process apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed; see [`Machine::wakeup`].
    Tick,
    Started {
        part: Part,
        attempt: u32,
        id: Arc<str>,
    },
    /// There is no process: a program is missing, a reference dangles, fork failed.
    NotStarted {
        part: Part,
        attempt: u32,
        reason: &'static str,
        message: String,
    },
    Exited {
        part: Part,
        attempt: u32,
        exit: Exit,
        hint: String,
    },
    /// The proxy's readiness port answered otherwise than before.
    ProxyReady(bool),
    /// The proxy acknowledged the pod's inbound listeners.
    InboundAcked {
        attempt: u32,
    },
    /// A probe's verdict changed.
    Probe {
        index: usize,
        attempt: u32,
        kind: ProbeKind,
        ok: bool,
        message: String,
    },
    /// The program does not listen where it should; empty when it does now.
    PortTrouble {
        index: usize,
        attempt: u32,
        message: String,
    },
    /// The pod is to end. Subscribers are told first when `drain` is set; when everything here
    /// is being stopped, they are stopped too.
    Delete {
        grace: Duration,
        drain: bool,
    },
    /// The pod used more than it may, and ends for good.
    Evict(String),
    /// A hook's program or request is over; a message when it failed.
    HookDone {
        part: Part,
        attempt: u32,
        hook: HookKind,
        failed: Option<String>,
    },
    /// Subscribers know that this instance is going, and it answers no request any more.
    Drained,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start {
        part: Part,
        attempt: u32,
    },
    /// To the process and its group.
    Signal {
        part: Part,
        attempt: u32,
        kill: bool,
    },
    BeginDrain,
    /// Asks the container what its hook says.
    Hook {
        part: Part,
        attempt: u32,
        hook: HookKind,
    },
    /// Something for the pod's list of events.
    Note {
        warning: bool,
        reason: &'static str,
        message: String,
    },
    /// No process is left and none will be started; the object can go.
    Finished,
}
