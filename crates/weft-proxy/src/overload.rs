// SPDX-License-Identifier: Apache-2.0
//! Memory that runs short: a watcher on the control runtime compares what is used with the limit
//! of the control group (or one that was configured), and above nine tenths of it new requests are
//! answered 503, new connections closed, and long heads that are not complete given up, until there
//! is room again. What is under way goes on: all its buffers are bounded. Workers read one atomic
//! that almost never changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Shares of the limit, in percent: from the first on requests are refused, below the second
/// no more.
const SHED_PERCENT: u64 = 90;
const RELIEF_PERCENT: u64 = 80;
/// File pages in `memory.stat`, which the kernel drops before it ends anybody.
const FILES: [&str; 2] = ["inactive_file", "active_file"];
const FILES_V1: [&str; 2] = ["total_inactive_file", "total_active_file"];
/// Incomplete heads beyond this are given up when memory is short.
const HEAD_BYTES: usize = 4 * 1024;
/// A proxy that has less of the limit than this itself has nothing to give.
const OWN_PERCENT: u64 = 25;
/// How often is looked: seldom while there is room, often when it becomes short.
const SELDOM: Duration = Duration::from_millis(100);
const OFTEN: Duration = Duration::from_millis(10);
/// From this share on it is looked often.
const NEAR_PERCENT: u64 = 50;

/// The same as [`Pressure`] for what knows no worker: memory is short in this process.
static SHORT: AtomicBool = AtomicBool::new(false);

/// Whether requests are refused now.
#[derive(Debug, Default)]
pub struct Pressure(AtomicBool);

/// Where the limit is and how use is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauge {
    limit: u64,
    used: Used,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Used {
    /// This process, in pages of `statm`.
    Process,
    /// All of a control group, without file pages that the kernel can drop.
    Group { current: PathBuf, stat: PathBuf, keys: [&'static str; 2] },
}

/// Whether a head that has come so far is waited for any longer.
pub fn gives_up(head_bytes: usize) -> bool {
    head_bytes > HEAD_BYTES && is_short()
}

fn is_short() -> bool {
    #[cfg(test)]
    if tests::SHORT_HERE.get() {
        return true;
    }
    SHORT.load(Ordering::Relaxed)
}

// === impl Pressure ===

impl Pressure {
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes how much of the limit is used.
    fn note(&self, used: u64, limit: u64) {
        let percent = used.saturating_mul(100) / limit.max(1);
        let high = self.is_high();
        let now = if high { percent >= RELIEF_PERCENT } else { percent >= SHED_PERCENT };
        if now == high {
            return;
        }
        self.0.store(now, Ordering::Relaxed);
        let (used, limit) = (used >> 20, limit >> 20);
        match now {
            true => tracing::warn!(used, limit, "memory is short (MiB): new requests are refused"),
            false => tracing::info!(used, limit, "there is memory again (MiB)"),
        }
    }
}

// === impl Gauge ===

impl Gauge {
    /// A configured limit for this process, else the control group's; `None` where there is none.
    pub fn find(configured: Option<u64>) -> Option<Self> {
        match configured {
            Some(limit) => Some(Self { limit, used: Used::Process }),
            None => {
                let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                Self::of_groups(&groups, Path::new("/sys/fs/cgroup"))
            }
        }
    }

    /// The tightest limit among the process's control group and those around it.
    fn of_groups(groups: &str, root: &Path) -> Option<Self> {
        let find = |prefix: &str| groups.lines().find_map(|line| line.split_once(prefix));
        let v2 = find("0::")
            .filter(|(id, _)| id.is_empty())
            .map(|(_, path)| (root.to_owned(), path, ["memory.max", "memory.current"], FILES));
        let v1 = find(":memory:").map(|(_, path)| {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
            (root.join("memory"), path, names, FILES_V1)
        });
        let hierarchies = [v2, v1];
        let limits = hierarchies.into_iter().flatten().flat_map(|(base, path, names, keys)| {
            let [limit, current] = names;
            let mut out = Vec::new();
            // Inside of a container the path may be that of the outside: the root speaks then.
            for path in Path::new(path.trim_start_matches('/')).ancestors() {
                let dir = base.join(path);
                let said = fs::read_to_string(dir.join(limit)).unwrap_or_default();
                // Version 1 says "no limit" as a very large number.
                if let Some(limit) = said.trim().parse().ok().filter(|n| *n < 1u64 << 50) {
                    let (current, stat) = (dir.join(current), dir.join("memory.stat"));
                    out.push(Self { limit, used: Used::Group { current, stat, keys } });
                }
            }
            out
        });
        limits.min_by_key(|gauge| gauge.limit)
    }

    fn read(&self) -> Option<u64> {
        match &self.used {
            Used::Process => own_bytes(),
            Used::Group { current, stat, keys } => {
                let current: u64 = fs::read_to_string(current).ok()?.trim().parse().ok()?;
                let stat = fs::read_to_string(stat).unwrap_or_default();
                let files = stat.lines().filter_map(|line| {
                    let (name, value) = line.split_once(' ')?;
                    value.parse::<u64>().ok().filter(|_| keys.contains(&name))
                });
                Some(current.saturating_sub(files.sum()))
            }
        }
    }
}

/// What this process holds in memory.
fn own_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Watches until the group of tasks ends.
pub async fn watch(gauge: Gauge, pressure: Arc<Pressure>) {
    tracing::debug!(limit = gauge.limit, "watching memory");
    loop {
        let used = gauge.read().unwrap_or(0);
        // Others of the group may need it all: refusing requests would not help them.
        let own = own_bytes().unwrap_or(0).saturating_mul(100) / gauge.limit.max(1);
        let used = if own >= OWN_PERCENT { used } else { 0 };
        pressure.note(used, gauge.limit);
        SHORT.store(pressure.is_high(), Ordering::Relaxed);
        let near = used.saturating_mul(100) / gauge.limit.max(1) >= NEAR_PERCENT;
        tokio::time::sleep(if near { OFTEN } else { SELDOM }).await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// As if memory were short, for what one test does on its own thread.
        pub(crate) static SHORT_HERE: Cell<bool> = const { Cell::new(false) };
    }

    #[test]
    fn pressure_begins_late_and_ends_later() {
        let pressure = Pressure::default();
        let mut at = |used| {
            pressure.note(used, 1_000);
            pressure.is_high()
        };
        let seen: Vec<bool> = [0, 899, 900, 850, 800, 799, 899, 2_000].map(&mut at).into();
        assert_eq!(seen, [false, false, true, true, true, false, false, true]);
    }

    #[test]
    fn the_tightest_group_counts_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 1\ninactive_file 150\nactive_file 50\n");
        let gauge = Gauge::of_groups("0::/a/b\n", dir.path()).unwrap();
        assert_eq!((gauge.limit, gauge.read()), (1_000, Some(500)));
        write("memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.limit_in_bytes", "800\n");
        write("memory/memory.usage_in_bytes", "90\n");
        let gauge = Gauge::of_groups("5:cpu:/x\n7:memory:/x\n0::/\n", dir.path()).unwrap();
        assert_eq!((gauge.limit, gauge.read()), (800, Some(90)));
        assert_eq!(Gauge::of_groups("0::/z\n", Path::new("/nowhere")), None);
        assert!(Gauge::find(Some(1 << 40)).unwrap().read().unwrap() > 1 << 20, "this process");
    }
}
