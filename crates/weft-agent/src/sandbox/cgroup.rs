// SPDX-License-Identifier: Apache-2.0
//! Limits of containers: a control group for each, where the system lets this agent make some.
//!
//! The unified hierarchy is taken where its controllers are, else the older ones, each of its
//! own. Groups are made where the agent's limits stay what they are (see `place`), and carry the
//! agent's id. What shares and weights mean is converted as Kubernetes does it.

use std::io;
use std::path::{Path, PathBuf};

use place::{CONTROLLERS, Tree, enable, remove_tree};

mod place;

/// Processes of one container.
pub(crate) const PROCESSES_MAX: u64 = 1024;
const PERIOD_US: u64 = 100_000;
/// The file in an agent's directory that says where its groups are.
const RECORD: &str = "groups";
/// Shares of a processor: of who asks for nothing, and of who asks for all.
const SHARES: (u64, u64) = (2, 262_144);

/// Where groups are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    trees: Vec<Tree>,
    record: PathBuf,
}

/// What one container may use, and what it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_milli: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    /// Its part of the processors when all are busy.
    pub(crate) cpu_request_milli: u64,
    /// The same of its whole pod.
    pub(crate) pod_cpu_request_milli: u64,
}

/// One container's groups, which stay until its pod is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Group {
    dirs: Vec<(bool, PathBuf)>,
    has_pids: bool,
    oom_before: u64,
}

// === impl Cgroups ===

impl Cgroups {
    /// Finds what this system allows, and removes what an earlier agent of this directory left.
    pub(crate) fn open(agent_dir: &Path, agent_id: &str) -> Self {
        let record = agent_dir.join(RECORD);
        place::sweep(&record);
        Self { trees: place::take(&place::name(agent_id), &record), record }
    }

    /// What is not limited here, as Kubernetes calls it.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let has = |c: &&str| self.trees.iter().any(|t| t.controllers.contains(c));
        CONTROLLERS.into_iter().filter(|c| !has(c)).collect()
    }

    /// A group for one container. What cannot be limited is left out.
    pub(crate) fn container(&self, pod: &str, container: &str, limits: Limits) -> Group {
        let mut group = Group::default();
        for tree in &self.trees {
            let above = tree.dir.join(pod);
            let dir = above.join(container);
            let made = || {
                make_dir(&above)?;
                if tree.unified {
                    enable(&above, &tree.controllers);
                }
                make_dir(&dir)
            };
            if let Err(error) = made() {
                tracing::warn!(%error, dir = %dir.display(), "a control group cannot be made");
                continue;
            }
            for controller in &tree.controllers {
                if *controller == "cpu" {
                    write(&above, [share(tree.unified, limits.pod_cpu_request_milli)]);
                }
                write(&dir, settings(tree.unified, controller, limits));
                group.has_pids |= *controller == "pids";
            }
            group.dirs.push((tree.unified, dir));
        }
        group.oom_before = group.oom_kills();
        group
    }

    /// Removes a pod's groups.
    pub(crate) fn forget(&self, pod: &str) {
        self.trees.iter().for_each(|tree| remove_tree(&tree.dir.join(pod)));
    }

    /// Removes everything.
    pub(crate) fn remove(&self) {
        place::sweep(&self.record);
    }
}

// === impl Group ===

impl Group {
    /// Where a process enters.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|(_, dir)| dir.join("cgroup.procs")).collect()
    }

    pub(crate) fn counts_processes(&self) -> bool {
        self.has_pids
    }

    /// Whether the kernel ended a process of it because there was no more memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.oom_kills() > self.oom_before
    }

    fn oom_kills(&self) -> u64 {
        let read = |(unified, dir): &(bool, PathBuf)| {
            let file = if *unified { "memory.events" } else { "memory.oom_control" };
            let text = std::fs::read_to_string(dir.join(file)).ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "))?;
            line.trim().parse::<u64>().ok()
        };
        self.dirs.iter().filter_map(read).sum()
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// What is written into which file; `None` leaves what the kernel has.
type Setting = (&'static str, Option<String>);

fn settings(unified: bool, controller: &str, limits: Limits) -> Vec<Setting> {
    let memory = limits.memory_bytes.map(|b| b.to_string());
    let quota = limits.cpu_milli.map(|m| (m * PERIOD_US / 1000).max(1000).to_string());
    let share = share(unified, limits.cpu_request_milli);
    match (controller, unified) {
        ("memory", true) => {
            let if_limited = |text: &str| memory.as_ref().map(|_| text.to_owned());
            // A container that lost one of its processes is no better than one that ended.
            let (none, whole) = (if_limited("0"), if_limited("1"));
            vec![("memory.max", memory), ("memory.swap.max", none), ("memory.oom.group", whole)]
        }
        ("memory", false) => {
            vec![("memory.limit_in_bytes", memory.clone()), ("memory.memsw.limit_in_bytes", memory)]
        }
        ("cpu", true) => vec![("cpu.max", quota.map(|q| format!("{q} {PERIOD_US}"))), share],
        ("cpu", false) => vec![("cpu.cfs_quota_us", quota), share],
        _ => vec![("pids.max", Some(PROCESSES_MAX.to_string()))],
    }
}

/// The part of the processors, as Kubernetes counts it for both kinds of hierarchies.
fn share(unified: bool, milli: u64) -> Setting {
    let (least, most) = SHARES;
    let shares = (milli * 1024 / 1000).clamp(least, most);
    match unified {
        true => ("cpu.weight", Some((1 + (shares - least) * 9999 / (most - least)).to_string())),
        false => ("cpu.shares", Some(shares.to_string())),
    }
}

fn write(dir: &Path, settings: impl IntoIterator<Item = Setting>) {
    for (file, value) in settings {
        let Some(value) = value else { continue };
        // Not every kernel counts swap.
        if let Err(error) = std::fs::write(dir.join(file), &value)
            && !file.contains("sw")
        {
            tracing::warn!(%error, file, value, "a limit cannot be set");
        }
    }
}

/// Removes what an agent of this directory left, when none runs.
pub fn sweep(agent_dir: &Path) {
    place::sweep(&agent_dir.join(RECORD));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(unified: bool, controller: &str, limits: Limits, expect: &[(&str, &str)]) {
        let set = settings(unified, controller, limits);
        let set: Vec<(&str, &str)> =
            set.iter().filter_map(|(file, v)| Some((*file, v.as_deref()?))).collect();
        assert_eq!(set, expect, "{controller}");
    }

    #[test]
    fn limits_are_written_as_kubernetes_has_them() {
        let some = Limits {
            cpu_milli: Some(250),
            memory_bytes: Some(1 << 20),
            cpu_request_milli: 500,
            pod_cpu_request_milli: 500,
        };
        check(true, "cpu", some, &[("cpu.max", "25000 100000"), ("cpu.weight", "20")]);
        check(false, "cpu", some, &[("cpu.cfs_quota_us", "25000"), ("cpu.shares", "512")]);
        let memory =
            [("memory.max", "1048576"), ("memory.swap.max", "0"), ("memory.oom.group", "1")];
        check(true, "memory", some, &memory);
        check(true, "pids", some, &[("pids.max", "1024")]);
        let none = Limits::default();
        check(true, "cpu", none, &[("cpu.weight", "1")]);
        check(false, "cpu", none, &[("cpu.shares", "2")]);
        check(true, "memory", none, &[]);
        let all = Limits { cpu_request_milli: 1 << 40, ..none };
        check(true, "cpu", all, &[("cpu.weight", "10000")]);
    }
}
