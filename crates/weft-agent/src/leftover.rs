// SPDX-License-Identifier: Apache-2.0
//! No orphans: what an agent that was killed left behind is ended at the next start, and
//! processes that left their group are ended with their container.
//!
//! Two traces are kept: a ledger file per child (pid and start time), and a marker in each
//! child's environment that its descendants inherit. Called by `agent` and `worker`.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::procfs::{self, Marked, Stat};

/// Environment variable that marks every process of one agent.
pub const MARK_AGENT: &str = "WEFT_AGENT";
/// Environment variable that marks every process of one container's run.
pub const MARK_CONTAINER: &str = "WEFT_CONTAINER";

/// How long a killed process is waited for; only a stuck system call takes so long.
const END_MAX: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// After how long one that is in the midst of an exec is looked at again.
const EXEC: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// One small file per living child.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<PathBuf>);

// === impl Ledger ===

impl Ledger {
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join("children");
        std::fs::create_dir_all(&dir)?;
        Ok(Self(Arc::new(dir)))
    }

    pub(crate) fn add(&self, pid: u32, start_time: u64) {
        // A child that is not recorded is still found by its marker.
        if let Err(error) = std::fs::write(self.0.join(pid.to_string()), start_time.to_string()) {
            tracing::warn!(%error, pid, "a child could not be recorded");
        }
    }

    pub(crate) fn remove(&self, pid: u32) {
        let _ = std::fs::remove_file(self.0.join(pid.to_string()));
    }

    /// Ends the groups of recorded processes that still live, and forgets all records.
    /// Returns how many there were.
    fn end_recorded(&self) -> usize {
        let Ok(entries) = std::fs::read_dir(&*self.0) else { return 0 };
        let mut ended = 0;
        for entry in entries.flatten() {
            let recorded = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok());
            let start = std::fs::read_to_string(entry.path()).ok();
            let start = start.and_then(|s| s.trim().parse::<u64>().ok());
            if let (Some(pid), Some(start)) = (recorded, start) {
                let alive = procfs::stat(pid).filter(|s| s.start_time == start);
                if alive.is_some_and(|s| s.state != 'Z') {
                    kill(pid, true);
                    ended += 1;
                }
            }
            let _ = std::fs::remove_file(entry.path());
        }
        ended
    }
}

/// At start: ends everything that an earlier agent of this directory left. Returns the number.
pub fn end_leftovers(ledger: &Ledger, agent_id: &str) -> usize {
    let recorded = ledger.end_recorded();
    recorded + end_marked(&format!("{MARK_AGENT}={agent_id}"))
}

/// Ends all processes with this marker, until none is found. Reads all of `/proc`: a few
/// milliseconds, off the async threads.
pub fn end_marked(marker: &str) -> usize {
    let own = std::process::id();
    let mut ended = 0;
    // A process may fork while it is being looked for; a killed one may still be listed.
    for _ in 0..50 {
        let (mut found, mut begins) = (Vec::<Stat>::new(), None);
        for other in procfs::all().into_iter().filter(|s| s.pid != own && s.state != 'Z') {
            match procfs::marked(other.pid, marker) {
                Marked::Yes => found.push(other),
                Marked::No => {}
                Marked::NotYet => begins = Some(other.pid),
            }
        }
        ended = ended.max(found.len());
        found.iter().for_each(|s| kill(s.pid, false));
        match begins {
            None if found.is_empty() => break,
            Some(pid) if found.is_empty() => wait(pid, &EXEC),
            _ => {}
        }
    }
    ended
}

/// Reaps processes that came to us when their parent, one of our children, ended before them
/// (the agent is a subreaper). One that is a zombie in two sweeps has no handle that reaps it.
pub fn reap_adopted(known: &[u32], seen: &mut HashSet<(u32, u64)>) {
    let own = std::process::id();
    let zombie = |s: &Stat| s.ppid == own && s.state == 'Z' && !known.contains(&s.pid);
    let now: HashSet<(u32, u64)> =
        procfs::all().into_iter().filter(zombie).map(|s| (s.pid, s.start_time)).collect();
    for (pid, _) in now.intersection(seen) {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
    *seen = now;
}

/// Kills, and waits until the process let go of its ports and files.
fn kill(pid: u32, group: bool) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    if group {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    if let Ok(fd) = fd {
        ends(&fd, &END_MAX);
    }
}

/// Waits for so long, or until the process ends.
fn wait(pid: u32, most: &Timespec) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        ends(&fd, most);
    }
}

fn ends(process: &OwnedFd, most: &Timespec) {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    let _ = rustix::event::poll(&mut ended, Some(most));
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process::{Command, Stdio};

    fn sleeper(marker: Option<&str>) -> std::process::Child {
        let mut command = Command::new("sleep");
        command.arg("1000").stdout(Stdio::null());
        command.envs(marker.map(|m| m.split_once('=').unwrap()));
        command.spawn().unwrap()
    }

    #[test]
    fn what_an_earlier_agent_left_is_ended_by_record_and_by_mark() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let id = format!("test-{}", std::process::id());
        let mut recorded = sleeper(None);
        let mut marked = sleeper(Some(&format!("{MARK_AGENT}={id}")));
        let mut innocent = sleeper(Some(&format!("{MARK_AGENT}={id}0")));
        let mut reused = sleeper(None);
        // Their starts are over before their programs begin.
        for child in [&recorded, &marked, &innocent, &reused] {
            while procfs::marked(child.id(), "") == Marked::NotYet {
                std::thread::yield_now();
            }
        }
        ledger.add(recorded.id(), procfs::stat(recorded.id()).unwrap().start_time);
        // A record of a process that ended; its pid is somebody else's now.
        ledger.add(reused.id(), procfs::stat(reused.id()).unwrap().start_time + 1);

        assert_eq!(end_leftovers(&ledger, &id), 2);
        recorded.wait().unwrap();
        marked.wait().unwrap();
        for bystander in [&mut innocent, &mut reused] {
            assert!(bystander.try_wait().unwrap().is_none());
            bystander.kill().unwrap();
            bystander.wait().unwrap();
        }
        assert_eq!(end_leftovers(&ledger, &id), 0);
    }
}
