// SPDX-License-Identifier: Apache-2.0
//! Where this agent may make control groups, and what an earlier one left there. Called by
//! `cgroup` when an agent begins and ends, and by `weft down`. Never looks into a group of a pod.
//!
//! Every directory is written down before it is made: whoever cleans up may stand elsewhere in
//! the hierarchy than the agent did.

use std::io;
use std::path::{Path, PathBuf};

use rustix::event::Timespec;

pub(super) const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// What the names of all directories made here begin with.
const PREFIX: &str = "weft-";
/// Ends the name of the group into which the agent itself goes.
const AGENT: &str = "-agent";
/// What `statfs` says of the two kinds of hierarchies.
const MAGIC: [i64; 2] = [0x6367_7270, 0x0027_e0eb];
/// How often, and after which pauses, a group is tried that processes hold which are about to end.
const REMOVE_TRIES: usize = 200;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A directory in one hierarchy, below which containers are limited.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) unified: bool,
    pub(super) dir: PathBuf,
    pub(super) controllers: Vec<&'static str>,
}

/// What the kernel says of this process and its mounts.
#[derive(Debug)]
pub(super) struct Seen {
    own: String,
    mounts: String,
}

/// A place of the unified hierarchy that may be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Below a group that has no processes of ours.
    Below(PathBuf),
    /// Below the agent's own group. As a place of processes that can have no limited children,
    /// so the agent goes one level down.
    Own(PathBuf),
}

// === impl Seen ===

impl Seen {
    pub(super) fn now() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self { own: read("/proc/self/cgroup"), mounts: read("/proc/self/mounts") }
    }

    /// Beside our own group first, since that leaves us where we are; then our own, if it was
    /// delegated to us; then the root of what we see.
    pub(super) fn unified(&self) -> Vec<Place> {
        let Some(root) = self.mount_point(|kind, _| kind == "cgroup2") else { return Vec::new() };
        let Some(path) = self.own.lines().find_map(|l| l.strip_prefix("0::")) else {
            return Vec::new();
        };
        let mine = root.join(path.trim_start_matches('/'));
        if mine == root {
            return vec![Place::Below(root.clone()), Place::Own(root)];
        }
        let beside = mine.parent().map(|p| Place::Below(p.to_owned()));
        let mut out: Vec<Place> = beside.into_iter().collect();
        out.push(Place::Own(mine));
        let top = Place::Below(root);
        if !out.contains(&top) {
            out.push(top);
        }
        out
    }

    /// Our own group in the older hierarchy of a controller.
    pub(super) fn older(&self, controller: &str) -> Option<PathBuf> {
        let has = |list: &str| list.split(',').any(|c| c == controller);
        let root = self.mount_point(|kind, options| kind == "cgroup" && has(options))?;
        let path = self.own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            has(controllers).then_some(path)
        })?;
        Some(root.join(path.trim_start_matches('/')))
    }

    fn mount_point(&self, is: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
        self.mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
            is(kind, options).then(|| path.into())
        })
    }
}

/// Takes what this system gives, one tree for each controller at most. `record` is the file that
/// says where they are.
pub(super) fn take(name: &str, record: &Path) -> Vec<Tree> {
    let seen = Seen::now();
    let (unified, older) = (seen.unified(), CONTROLLERS.map(|c| (c, seen.older(c))));
    let mut written = String::new();
    let dirs = unified.iter().flat_map(|p| p.dirs(name));
    let others = older.iter().filter_map(|(_, parent)| Some(parent.as_ref()?.join(name)));
    for dir in dirs.chain(others) {
        written.push_str(&format!("{}\n", dir.display()));
    }
    if let Err(error) = std::fs::write(record, written) {
        tracing::warn!(%error, "control groups are not made, since they could not be found again");
        return Vec::new();
    }
    let mut trees: Vec<Tree> = unified.iter().find_map(|p| p.make(name)).into_iter().collect();
    for (controller, parent) in older {
        let has = trees.iter().any(|t| t.controllers.contains(&controller));
        let Some(dir) = parent.filter(|_| !has).map(|p| p.join(name)) else { continue };
        if std::fs::create_dir(&dir).is_ok() {
            trees.push(Tree { unified: false, dir, controllers: vec![controller] });
        }
    }
    trees
}

/// The name of an agent's directories.
pub(super) fn name(agent_id: &str) -> String {
    format!("{PREFIX}{}", agent_id.get(..8).unwrap_or(agent_id))
}

/// Removes what is written down there. What still holds a process stays, and stays written down.
pub(super) fn sweep(record: &Path) {
    let Ok(text) = std::fs::read_to_string(record) else { return };
    let dirs = || text.lines().map(Path::new).filter(|d| is_ours(d));
    // Who is not the agent of these groups any more has no place in them.
    dirs().filter(|d| d.to_string_lossy().ends_with(AGENT)).for_each(leave);
    for _ in 0..REMOVE_TRIES {
        dirs().for_each(remove_tree);
        if !dirs().any(Path::exists) {
            let _ = std::fs::remove_file(record);
            return;
        }
        let _ = rustix::event::poll(&mut [], Some(&PAUSE));
    }
    tracing::warn!(record = %record.display(), "control groups of an earlier run are still in use");
}

/// Removes empty groups, the innermost first; what still holds a process stays.
pub(super) fn remove_tree(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

pub(super) fn enable(dir: &Path, controllers: &[&str]) {
    // One by one: an unknown one must not keep the others out.
    for controller in controllers {
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

// === impl Place ===

impl Place {
    fn dirs(&self, name: &str) -> Vec<PathBuf> {
        match self {
            Self::Below(parent) => vec![parent.join(name)],
            Self::Own(mine) => vec![mine.join(name), mine.join(format!("{name}{AGENT}"))],
        }
    }

    fn make(&self, name: &str) -> Option<Tree> {
        match self {
            Self::Below(parent) => make_unified(parent, name),
            Self::Own(mine) => {
                let agent = mine.join(format!("{name}{AGENT}"));
                let made = go_down(mine, &agent).is_ok().then(|| make_unified(mine, name));
                let made = made.flatten();
                if made.is_none() {
                    leave(&agent);
                }
                made
            }
        }
    }
}

/// Makes a group that has limited children.
fn make_unified(parent: &Path, name: &str) -> Option<Tree> {
    let dir = parent.join(name);
    enable(parent, &CONTROLLERS);
    std::fs::create_dir(&dir).ok()?;
    enable(&dir, &CONTROLLERS);
    let text = std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |c: &&str| text.split_whitespace().any(|w| w == *c);
    let controllers: Vec<&str> = CONTROLLERS.into_iter().filter(has).collect();
    if controllers.is_empty() {
        let _ = std::fs::remove_dir(&dir);
        return None;
    }
    Some(Tree { unified: true, dir, controllers })
}

/// The agent's way out of a group that is its own and nobody else's.
fn go_down(mine: &Path, agent: &Path) -> io::Result<()> {
    let who = std::fs::read_to_string(mine.join("cgroup.procs"))?;
    if who.trim() != std::process::id().to_string() {
        return Err(io::Error::other("others are in the agent's group"));
    }
    std::fs::create_dir(agent)?;
    std::fs::write(agent.join("cgroup.procs"), "0")
}

/// Takes whoever is in the agent's group back to where the agent began.
fn leave(agent: &Path) {
    let Some(mine) = agent.parent().filter(|_| agent.is_dir()) else { return };
    let siblings = agent.to_string_lossy();
    remove_tree(Path::new(siblings.trim_end_matches(AGENT)));
    for controller in CONTROLLERS {
        let _ = std::fs::write(mine.join("cgroup.subtree_control"), format!("-{controller}"));
    }
    for pid in std::fs::read_to_string(agent.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = std::fs::write(mine.join("cgroup.procs"), pid);
    }
    let _ = std::fs::remove_dir(agent);
}

/// Whether this is a control group that an agent may have made: what is written in a data
/// directory must not make root remove anything else.
fn is_ours(dir: &Path) -> bool {
    let named = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
    let plain = dir.is_absolute() && dir.components().all(|c| c.as_os_str() != "..");
    let magic = || rustix::fs::statfs(dir).map(|s| s.f_type);
    named && plain && magic().is_ok_and(|m| MAGIC.contains(&m))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(own: &str, mounts: &str) -> Seen {
        Seen { own: own.into(), mounts: mounts.into() }
    }

    #[test]
    fn hierarchies_are_found_in_what_the_kernel_says() {
        let seen = seen(
            "8:pids:/\n4:memory:/a/b\n0::/user.slice/u.service/app.scope\n",
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
             cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n",
        );
        let root = Path::new("/sys/fs/cgroup/unified");
        let service = root.join("user.slice/u.service");
        assert_eq!(
            seen.unified(),
            [
                Place::Below(service.clone()),
                Place::Own(service.join("app.scope")),
                Place::Below(root.to_owned())
            ]
        );
        let memory = seen.older("memory");
        assert_eq!(memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/a/b")));
        assert_eq!(seen.older("cpu"), None);
    }

    #[test]
    fn at_the_top_there_is_nothing_beside() {
        let root = Path::new("/sys/fs/cgroup");
        let mounts = "none /sys/fs/cgroup cgroup2 rw 0 0\n";
        let below = Place::Below(root.to_owned());
        assert_eq!(seen("0::/\n", mounts).unified(), [below.clone(), Place::Own(root.to_owned())]);
        let own = Place::Own(root.join("x"));
        assert_eq!(seen("0::/x\n", mounts).unified(), [below, own]);
        assert_eq!(seen("0::/x\n", "").unified(), []);
        assert_eq!(seen("", mounts).unified(), []);
    }

    #[test]
    fn nothing_but_control_groups_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let innocent = dir.path().join("weft-12345678");
        std::fs::create_dir(&innocent).unwrap();
        let record = dir.path().join("groups");
        let written = format!("{}\n/proc\n/\n../weft-x\n", innocent.display());
        std::fs::write(&record, written).unwrap();
        sweep(&record);
        assert!(innocent.is_dir());
        assert!(!record.exists(), "there is nothing to come back for");
    }
}
