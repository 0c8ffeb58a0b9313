// SPDX-License-Identifier: Apache-2.0
//! Limits of containers: a control group for each, where the system lets this agent make some.
//!
//! The unified hierarchy is taken where its controllers are, else the older ones, each of its
//! own. Groups are made beside or below the agent's own, so that the agent's limits stay what
//! they are, and carry the agent's id, so that the next agent finds what was left.

use std::io;
use std::path::{Path, PathBuf};

/// Processes of one container.
pub(crate) const PROCESSES_MAX: u64 = 1024;
const PERIOD_US: u64 = 100_000;
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Where groups are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    trees: Vec<Tree>,
}

#[derive(Clone, Debug)]
struct Tree {
    unified: bool,
    dir: PathBuf,
    controllers: Vec<&'static str>,
}

/// What one container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) cpu_milli: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
}

/// One container's groups. Dropping removes them, once they are empty.
#[derive(Debug, Default)]
pub(crate) struct Group {
    dirs: Vec<(bool, PathBuf)>,
    has_pids: bool,
    oom_before: u64,
}

// === impl Cgroups ===

impl Cgroups {
    /// Finds what this system allows, and removes what an earlier agent of this id left.
    pub(crate) fn open(agent_id: &str) -> Self {
        let name = format!("weft-{}", agent_id.get(..8).unwrap_or(agent_id));
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut trees: Vec<Tree> = Vec::new();
        for parent in unified_parents(&own, &mounts) {
            let dir = parent.join(&name);
            remove_tree(&dir);
            let controllers = make_unified(&parent, &dir);
            if !controllers.is_empty() {
                trees.push(Tree { unified: true, dir, controllers });
                break;
            }
            let _ = std::fs::remove_dir(&dir);
        }
        for controller in CONTROLLERS {
            if trees.iter().any(|t| t.controllers.contains(&controller)) {
                continue;
            }
            let Some(parent) = older_parent(controller, &own, &mounts) else { continue };
            let dir = parent.join(&name);
            remove_tree(&dir);
            if std::fs::create_dir(&dir).is_ok() {
                trees.push(Tree { unified: false, dir, controllers: vec![controller] });
            }
        }
        Self { trees }
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
                set(tree.unified, controller, &dir, limits);
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
        self.trees.iter().for_each(|tree| remove_tree(&tree.dir));
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

/// Where the unified hierarchy may let us: beside our own group, which as a place of processes
/// can have no limited children, or at the root of what we see.
fn unified_parents(own: &str, mounts: &str) -> Vec<PathBuf> {
    let Some(root) = mount_point(mounts, |kind, _| kind == "cgroup2") else { return Vec::new() };
    let Some(path) = own.lines().find_map(|l| l.strip_prefix("0::")) else { return Vec::new() };
    let mine = root.join(path.trim_start_matches('/'));
    let mut out = Vec::new();
    if mine != root {
        out.extend(mine.parent().map(Path::to_owned));
    }
    out.push(root);
    out.dedup();
    out
}

/// Makes a group that has limited children; which limits.
fn make_unified(parent: &Path, dir: &Path) -> Vec<&'static str> {
    enable(parent, &CONTROLLERS);
    if std::fs::create_dir(dir).is_err() {
        return Vec::new();
    }
    enable(dir, &CONTROLLERS);
    let text = std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    CONTROLLERS.into_iter().filter(|c| text.split_whitespace().any(|w| w == *c)).collect()
}

fn enable(dir: &Path, controllers: &[&str]) {
    // One by one: an unknown one must not keep the others out.
    for controller in controllers {
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn older_parent(controller: &str, own: &str, mounts: &str) -> Option<PathBuf> {
    let has = |list: &str| list.split(',').any(|c| c == controller);
    let root = mount_point(mounts, |kind, options| kind == "cgroup" && has(options))?;
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        has(controllers).then_some(path)
    })?;
    Some(root.join(path.trim_start_matches('/')))
}

fn mount_point(mounts: &str, is: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
        is(kind, options).then(|| path.into())
    })
}

fn set(unified: bool, controller: &str, dir: &Path, limits: Limits) {
    let memory = limits.memory_bytes.map(|b| b.to_string());
    let quota = limits.cpu_milli.map(|m| (m * PERIOD_US / 1000).max(1000).to_string());
    let settings: Vec<(&str, Option<String>)> = match (controller, unified) {
        ("memory", true) => {
            let none = memory.as_ref().map(|_| "0".to_owned());
            vec![("memory.max", memory), ("memory.swap.max", none)]
        }
        ("memory", false) => {
            vec![("memory.limit_in_bytes", memory.clone()), ("memory.memsw.limit_in_bytes", memory)]
        }
        ("cpu", true) => vec![("cpu.max", quota.map(|q| format!("{q} {PERIOD_US}")))],
        ("cpu", false) => vec![("cpu.cfs_quota_us", quota)],
        _ => vec![("pids.max", Some(PROCESSES_MAX.to_string()))],
    };
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

/// Removes empty groups, the innermost first; what still holds a process stays.
fn remove_tree(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

/// Removes what an agent of this directory left, when none runs.
pub fn sweep(run_dir: &Path) {
    let Ok(agent_id) = std::fs::read_to_string(run_dir.join("id")) else { return };
    let name = format!("weft-{}", agent_id.get(..8).unwrap_or(&agent_id));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let unified = unified_parents(&own, &mounts).into_iter();
    let older = CONTROLLERS.iter().filter_map(|c| older_parent(c, &own, &mounts));
    unified.chain(older).for_each(|parent| remove_tree(&parent.join(&name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_what_the_kernel_says() {
        let own = "8:pids:/\n4:memory:/a/b\n0::/user.slice/u.service/app.scope\n";
        let mounts = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n";
        let parents = unified_parents(own, mounts);
        let root = Path::new("/sys/fs/cgroup/unified");
        assert_eq!(parents, [root.join("user.slice/u.service"), root.to_owned()]);
        let memory = older_parent("memory", own, mounts);
        assert_eq!(memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/a/b")));
        assert_eq!(older_parent("cpu", own, mounts), None);
    }
}
