// SPDX-License-Identifier: Apache-2.0
//! Commands beside a container's program: what `kubectl exec` and exec probes run. They get the
//! container's environment and directory, and in namespace mode its namespaces and mounts.
//!
//! `worker::process` says what runs; `exec` and the probes ask [`Agent::enter`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use crate::env::Env;
use crate::exec::attach::Taps;
use crate::pod::PodKey;
use crate::sandbox::Cell;

/// A container of one pod object: a successor of the same name has another uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub pod: PodKey,
    pub uid: Arc<str>,
    /// Empty is the first one.
    pub container: String,
}

/// Why a command cannot be run in a container.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnterError {
    #[error("pod {0} is not here")]
    NoPod(PodKey),
    #[error("pod {0} is not here: another of that name is, made later or earlier")]
    OtherPod(PodKey),
    #[error("pod {pod} has no container {container:?}; it has: {all}")]
    NoContainer { pod: PodKey, container: String, all: String },
    #[error("container {container:?} of pod {pod} does not run now")]
    NotRunning { pod: PodKey, container: String },
    #[error("the command is empty")]
    NoCommand,
    #[error("the command cannot be handed over to pod {pod}: {why}")]
    Handover { pod: PodKey, why: String },
}

/// A command that is ready to be started, by the agent's spawner as every process.
#[derive(Debug)]
pub struct Entry {
    pub command: Command,
    /// With a terminal as its standard input the program makes itself the leader of a session
    /// that the terminal controls; the caller must not do that then.
    pub own_session: bool,
}

/// What a running container's program was started with.
#[derive(Clone, Debug)]
pub(crate) struct Inside {
    pub(crate) env: Env,
    pub(crate) workdir: PathBuf,
    /// Its streams, for who attaches.
    pub(crate) taps: Option<Taps>,
    /// In namespace mode.
    pub(crate) cell: Option<Arc<Cell>>,
}

/// The running containers of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Insides(Arc<Mutex<HashMap<Arc<str>, Inside>>>);

// === impl Inside ===

impl Inside {
    /// # Errors
    /// When the command is empty or cannot be written down for the pod.
    pub(crate) fn command(&self, pod: &PodKey, line: &[String]) -> Result<Entry, EnterError> {
        let (program, args) = line.split_first().ok_or(EnterError::NoCommand)?;
        if let Some(cell) = &self.cell {
            let entry = cell.command(program, args, &self.env, &self.workdir);
            let command =
                entry.map_err(|e| EnterError::Handover { pod: pod.clone(), why: e.to_string() })?;
            return Ok(Entry { command, own_session: true });
        }
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(self.env.iter()).current_dir(&self.workdir);
        Ok(Entry { command, own_session: false })
    }
}

// === impl Insides ===

impl Insides {
    pub(crate) fn set(&self, container: Arc<str>, inside: Inside) {
        self.lock().insert(container, inside);
    }

    pub(crate) fn remove(&self, container: &str) {
        self.lock().remove(container);
    }

    pub(crate) fn get(&self, container: &str) -> Option<Inside> {
        self.lock().get(container).cloned()
    }

    /// Every running container with a variable of its program's environment.
    pub(crate) fn variables(&self, name: &str) -> Vec<(Arc<str>, String)> {
        let all = self.lock();
        let value = |inside: &Inside| inside.env.get(name).map(str::to_owned);
        all.iter().filter_map(|(container, i)| Some((container.clone(), value(i)?))).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Inside>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
