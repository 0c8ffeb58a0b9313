// SPDX-License-Identifier: Apache-2.0
//! Processes that the agent starts, and the table of them by which it knows its callers.
//!
//! Used by `worker` (proxies and apps), `probe::ask` (exec) and `svid` (who is asking). Every
//! process leads its own group; when it ends, so does the rest of its group. A table entry goes
//! before its process is reaped, so that an entry's pid is never somebody else's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::leftover::Ledger;
use crate::machine::Exit;
use crate::pod::PodKey;
use crate::procfs;

/// Starts that wait for the one thread; a start takes about a millisecond.
const STARTS_MAX: usize = 4096;
/// How long somebody who may just be starting is waited for until he is known.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Starts processes, all from one thread: a child is killed when the thread that forked it ends,
/// so that thread must live exactly as long as the agent.
#[derive(Clone, Debug)]
pub struct Spawner {
    jobs: SyncSender<Job>,
    table: ChildTable,
    ledger: Ledger,
}

struct Job {
    command: Command,
    reply: oneshot::Sender<io::Result<std::process::Child>>,
}

/// What the agent knows a child for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// May have the pod's SVID.
    Proxy {
        pod: PodKey,
        service_account: Arc<str>,
    },
    App {
        pod: PodKey,
    },
    /// A command beside the program: an exec probe, `kubectl exec`.
    Probe {
        pod: PodKey,
    },
    /// Holds a pod's namespaces.
    Sandbox {
        pod: PodKey,
    },
    /// Holds the network of the pods.
    Network,
}

/// All living children by pid.
#[derive(Clone, Debug, Default)]
pub struct ChildTable(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    living: Mutex<HashMap<u32, Entry>>,
    /// How many starts are under way: a process runs before it is among the living.
    starts: watch::Sender<usize>,
}

/// A start that is under way.
struct Starting(ChildTable);

/// Nobody can say yet whether the agent started a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillStarting;

#[derive(Clone, Debug)]
struct Entry {
    start_time: u64,
    role: Role,
}

/// A running process. Dropping it kills it with its group.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    process: std::process::Child,
    table: ChildTable,
    ledger: Ledger,
    exit: Option<Exit>,
}

/// Sends signals to a process and its group while it lives.
#[derive(Clone, Debug)]
pub struct Signaller {
    pid: u32,
    start_time: u64,
    table: ChildTable,
}

// === impl Spawner ===

impl Spawner {
    /// # Errors
    /// When no thread can be made.
    pub fn new(table: ChildTable, ledger: Ledger) -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(STARTS_MAX);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            for mut job in queue {
                let _ = job.reply.send(job.command.spawn());
            }
        })?;
        Ok(Self { jobs, table, ledger })
    }

    /// Starts a process in its own group. Not cancel-safe: a process whose caller went away is
    /// ended by its dropped handle.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn spawn(&self, mut command: Command, role: Role) -> io::Result<Child> {
        command.stdin(Stdio::null());
        self.spawn_with(command, role).await
    }

    /// The same with the command's own standard input.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn spawn_with(&self, mut command: Command, role: Role) -> io::Result<Child> {
        crate::sys::prepare(&mut command);
        self.start(command, role).await
    }

    /// The same at a terminal, which is its standard input: the process leads the session that
    /// the terminal controls.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn spawn_session(&self, mut command: Command, role: Role) -> io::Result<Child> {
        crate::sys::prepare_session(&mut command);
        self.start(command, role).await
    }

    async fn start(&self, command: Command, role: Role) -> io::Result<Child> {
        let _starting = self.table.starting();
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the agent is stopping and starts no process");
        self.jobs.try_send(Job { command, reply }).map_err(|_| gone())?;
        let mut process = answer.await.map_err(|_| gone())??;
        let pid = process.id();
        let known = (|| {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
            let fd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
            Ok::<_, io::Error>((crate::sys::watch(fd)?, procfs::stat(pid).ok_or_else(gone)?))
        })();
        let (pidfd, stat) = match known {
            Ok(known) => known,
            Err(e) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(e);
            }
        };
        self.table.insert(pid, Entry { start_time: stat.start_time, role });
        self.ledger.add(pid, stat.start_time);
        let (table, ledger) = (self.table.clone(), self.ledger.clone());
        Ok(Child { pid, pidfd, process, table, ledger, exit: None })
    }
}

// === impl ChildTable ===

impl ChildTable {
    /// The role of a living child; `None` for any process that the agent did not start itself.
    pub fn role(&self, pid: u32) -> Option<Role> {
        let entry = self.lock().get(&pid).cloned()?;
        let same = procfs::stat(pid).is_some_and(|s| s.start_time == entry.start_time);
        same.then_some(entry.role)
    }

    /// The same of somebody who calls, and may do so before its start is over. `Err` where some
    /// start takes so long that it may be the caller's yet.
    pub async fn role_of_caller(&self, pid: u32) -> Result<Option<Role>, StillStarting> {
        let mut starts = self.0.starts.subscribe();
        let known = async {
            loop {
                let under_way = *starts.borrow_and_update();
                let role = self.role(pid);
                if role.is_some() || under_way == 0 || starts.changed().await.is_err() {
                    return role;
                }
            }
        };
        tokio::time::timeout(KNOWN_WITHIN, known).await.map_err(|_| StillStarting)
    }

    fn starting(&self) -> Starting {
        self.0.starts.send_modify(|starts| *starts += 1);
        Starting(self.clone())
    }

    pub fn pids(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    fn insert(&self, pid: u32, entry: Entry) {
        self.lock().insert(pid, entry);
    }

    fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    fn start_time(&self, pid: u32) -> Option<u64> {
        self.lock().get(&pid).map(|e| e.start_time)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.0.starts.send_modify(|starts| *starts -= 1);
    }
}

// === impl Child ===

impl Child {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn signaller(&self) -> Signaller {
        let start_time = self.table.start_time(self.pid).unwrap_or_default();
        Signaller { pid: self.pid, start_time, table: self.table.clone() }
    }

    pub fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.process.stdin.take().map(OwnedFd::from)
    }

    pub fn take_stdout(&mut self) -> Option<OwnedFd> {
        self.process.stdout.take().map(OwnedFd::from)
    }

    pub fn take_stderr(&mut self) -> Option<OwnedFd> {
        self.process.stderr.take().map(OwnedFd::from)
    }

    /// Waits for the end, ends what is left of its group, and reaps it. Cancel-safe.
    ///
    /// # Errors
    /// When the system loses the process, which only a bug can cause.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.try_reap()? {
                return Ok(exit);
            }
            // Cleared before looking: an end after the look makes it readable again.
            self.pidfd.readable().await?.clear_ready();
        }
    }

    fn try_reap(&mut self) -> io::Result<Option<Exit>> {
        use std::os::unix::process::ExitStatusExt;
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        // Looks without reaping: while it is a zombie, its pid and group are nobody else's. (Its
        // state in /proc would not do: a main thread can end before the others.)
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), look)?.is_none() {
            return Ok(None);
        }
        kill_group(self.pid, Signal::KILL);
        self.table.remove(self.pid);
        self.ledger.remove(self.pid);
        let status = self.process.wait()?;
        self.exit = Some(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::code(code),
            (None, signal) => Exit::signal(signal.unwrap_or(9)),
        });
        Ok(self.exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            kill_group(self.pid, Signal::KILL);
            self.table.remove(self.pid);
            self.ledger.remove(self.pid);
            let _ = self.process.wait();
        }
    }
}

// === impl Signaller ===

impl Signaller {
    /// SIGTERM or SIGKILL to the process and its group; nothing when it has ended.
    pub fn send(&self, kill: bool) {
        if !self.is_alive() {
            return;
        }
        kill_group(self.pid, if kill { Signal::KILL } else { Signal::TERM });
        // A stopped process hears SIGTERM only when it goes on.
        kill_group(self.pid, Signal::CONT);
    }

    /// What a program hears when its terminal or its user is gone.
    pub fn hang_up(&self) {
        if self.is_alive() {
            kill_group(self.pid, Signal::HUP);
            kill_group(self.pid, Signal::CONT);
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn is_alive(&self) -> bool {
        self.table.start_time(self.pid) == Some(self.start_time)
    }
}

fn kill_group(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // ESRCH: everyone has gone already.
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

#[cfg(test)]
mod tests;
