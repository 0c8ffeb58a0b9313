// SPDX-License-Identifier: Apache-2.0
//! Memory that runs short: a watcher on the control runtime compares what is used with the limit
//! of the control group (or one that was configured), and above nine tenths of it new requests are
//! answered 503, new connections closed, long heads that are not complete given up, and of what is
//! under way that which waits for its peer longest ([`stuck`]), until there is room again. Workers
//! read one atomic that almost never changes, and look themselves behind what they have read
//! ([`dose`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

pub mod crowd;
pub mod dose;
pub mod stuck;

use crowd::{Crowd, Crowds};
use dose::Doses;

/// Shares of the limit, in percent: from the first on requests are refused, below the second
/// no more.
const SHED_PERCENT: u64 = 90;
const RELIEF_PERCENT: u64 = 80;
/// Where requests are refused already, nothing is read from this share on for as long as can be.
const HOLD_PERCENT: u64 = 95;
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
/// What a request may come to hold, and for how long this cannot be seen.
const REQUEST_BYTES: u64 = 32 * 1024;
const PERIOD: Duration = Duration::from_secs(1);
/// The allocator gives back by itself what was free for about as long.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(1);

/// The same as [`Pressure`] for what knows no worker: memory is short in this process.
static SHORT: AtomicBool = AtomicBool::new(false);
/// There is a limit, and somebody watches it.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether requests are refused now.
#[derive(Debug, Default)]
pub struct Pressure {
    high: AtomicBool,
    /// Bytes beyond what is used when requests are taken again.
    excess: AtomicU64,
    /// What is used of the limit.
    percent: AtomicU64,
    used: AtomicU64,
    /// 0 while nobody watches.
    limit: AtomicU64,
    period: AtomicU64,
    crowds: Crowds,
    doses: Doses,
    /// How it is looked at, while somebody watches.
    gauge: OnceLock<Gauge>,
    /// A request was refused for those that are young.
    refused: AtomicBool,
    risen: Notify,
}

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

/// Whether whoever waits for a peer may have to give up.
pub fn is_watched() -> bool {
    #[cfg(test)]
    if tests::WATCHED_HERE.get() {
        return true;
    }
    WATCHED.load(Ordering::Relaxed)
}

/// Whether memory is short in this process.
pub fn is_short() -> bool {
    #[cfg(test)]
    if tests::SHORT_HERE.get() {
        return true;
    }
    SHORT.load(Ordering::Relaxed)
}

// === impl Pressure ===

impl Pressure {
    pub fn new(workers: usize) -> Self {
        Self { crowds: Crowds::new(workers), doses: Doses::new(workers), ..Self::default() }
    }

    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::Relaxed)
    }

    /// Whether one more request may begin on a worker, beside those whose memory is not in use yet.
    pub fn admits(&self, crowd: &Crowd, worker: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 || self.is_high() {
            return !self.is_high();
        }
        let young = self.crowds.young(crowd, worker, self.period.load(Ordering::Relaxed));
        let coming = young.saturating_mul(REQUEST_BYTES);
        let used = self.used.load(Ordering::Relaxed).saturating_add(coming);
        let admits = used <= (limit / 100).saturating_mul(SHED_PERCENT);
        if !admits {
            self.refused.store(true, Ordering::Relaxed);
        }
        admits
    }

    /// Bytes that must become free before requests are taken again.
    fn excess(&self) -> u64 {
        self.excess.load(Ordering::Relaxed)
    }

    fn percent(&self) -> u64 {
        self.percent.load(Ordering::Relaxed)
    }

    /// Resolves while memory is short.
    async fn risen(&self) {
        loop {
            let risen = self.risen.notified();
            if self.is_high() {
                return;
            }
            risen.await;
        }
    }

    /// Says how much may be read until somebody looks again; whether there is room for that.
    fn measure(&self, used: u64, limit: u64, high: bool) -> bool {
        let share = if high { HOLD_PERCENT } else { SHED_PERCENT };
        let most = (limit / 100).saturating_mul(share);
        self.doses.measure(most.saturating_sub(used), limit);
        used < most
    }

    /// A worker has read its dose, so many bytes. What was seen a moment ago says enough while
    /// there is room for all that was read since.
    fn look_again(&self, read: u64, now: Instant) {
        let Some(gauge) = self.gauge.get() else { return };
        let (limit, high) = (gauge.limit, self.is_high());
        if self.doses.seen_lately(read, now).is_some_and(|used| self.measure(used, limit, high)) {
            return;
        }
        let used = gauge.counted();
        self.doses.saw(used, now);
        if !self.measure(used, limit, high) {
            self.doses.hold();
        }
    }

    /// Notes how much of the limit is used.
    fn note(&self, used: u64, limit: u64) {
        let percent = used.saturating_mul(100) / limit.max(1);
        let relief = (limit / 100).saturating_mul(RELIEF_PERCENT);
        self.excess.store(used.saturating_sub(relief), Ordering::Relaxed);
        self.percent.store(percent, Ordering::Relaxed);
        self.used.store(used, Ordering::Relaxed);
        let high = self.is_high();
        let now = if high { percent >= RELIEF_PERCENT } else { percent >= SHED_PERCENT };
        self.measure(used, limit, now);
        if now == high {
            return;
        }
        self.high.store(now, Ordering::Relaxed);
        if now {
            self.risen.notify_waiters();
        }
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

    /// What is used; nothing, where it is not this process's use: others of the group may need it
    /// all, and refusing requests would not help them.
    fn counted(&self) -> u64 {
        let used = self.read().unwrap_or(0);
        if self.percent(own_bytes().unwrap_or(0)) >= OWN_PERCENT { used } else { 0 }
    }

    fn percent(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(100) / self.limit.max(1)
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
    Some(pages * crate::sys::program::page_size() as u64)
}

/// Watches until the group of tasks ends. Before anybody is refused, what the allocator keeps of
/// that which was freed is given back: it counts as used.
pub async fn watch(gauge: Gauge, pressure: Arc<Pressure>, give_back: impl Fn()) {
    tracing::debug!(limit = gauge.limit, "watching memory");
    WATCHED.store(true, Ordering::Relaxed);
    pressure.limit.store(gauge.limit, Ordering::Relaxed);
    let gauge = pressure.gauge.get_or_init(|| gauge);
    let mut period = Instant::now();
    let (mut given_back, mut held): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        if period.elapsed() >= PERIOD {
            period = Instant::now();
            pressure.period.fetch_add(1, Ordering::Relaxed);
        }
        let percent = look(gauge, &pressure, &mut given_back, Instant::now(), &give_back);
        SHORT.store(pressure.is_high(), Ordering::Relaxed);
        pressure.doses.looked(percent < HOLD_PERCENT, &mut held, Instant::now());
        let pause = if percent >= NEAR_PERCENT { OFTEN } else { SELDOM };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = pressure.doses.asked() => {}
        }
    }
}

/// Notes what is used, with what is free given back where that is much or somebody was refused; its
/// share of the limit.
fn look(
    gauge: &Gauge,
    pressure: &Pressure,
    given_back: &mut Option<Instant>,
    now: Instant,
    give_back: &impl Fn(),
) -> u64 {
    let mut used = gauge.counted();
    let lately = given_back.is_some_and(|at| now < at + GIVE_BACK_EVERY);
    let from = if pressure.is_high() { RELIEF_PERCENT } else { SHED_PERCENT };
    let refused = || pressure.refused.swap(false, Ordering::Relaxed);
    if !lately && (gauge.percent(used) >= from || refused()) {
        give_back();
        *given_back = Some(now);
        used = gauge.counted();
    }
    pressure.note(used, gauge.limit);
    gauge.percent(used)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// As if memory were short, for what one test does on its own thread.
        pub(crate) static SHORT_HERE: Cell<bool> = const { Cell::new(false) };
        /// As if there were a limit.
        pub(crate) static WATCHED_HERE: Cell<bool> = const { Cell::new(false) };
    }

    /// Memory is short from now on.
    pub(crate) fn fill(pressure: &Pressure) {
        pressure.note(99, 100);
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
    fn many_at_once_count_before_they_hold_anything() {
        let (pressure, crowd) = (Pressure::new(2), Crowd::default());
        let taken = |most: u64| {
            let begin = |n: &u64| {
                crowd.begin();
                let taken = pressure.admits(&crowd, 0);
                if !taken {
                    crowd.end();
                }
                taken && *n < most
            };
            (0..most).take_while(begin).count()
        };
        assert_eq!(taken(5_000), 5_000, "nobody watches");
        pressure.limit.store(100 << 20, Ordering::Relaxed);
        pressure.period.store(5, Ordering::Relaxed);
        assert_eq!(taken(5_000), 2_881, "90 MB, and the first was there before");
        let other = Crowd::default();
        assert!(pressure.admits(&other, 1), "there is room for none but nobody is there");
        (0..10).for_each(|_| other.begin());
        assert!(!pressure.admits(&other, 1), "nor is anything left for the other worker");
        (0..10).for_each(|_| other.end());
        // They hold it now: what is left is for few.
        pressure.note(85 << 20, 100 << 20);
        for (period, most) in [(6, 0), (7, 1)] {
            pressure.period.store(period, Ordering::Relaxed);
            assert_eq!(taken(1), most, "period {period}");
        }
        pressure.period.store(8, Ordering::Relaxed);
        assert!((150..165).contains(&taken(1_000)), "5 MB");
        pressure.note(95 << 20, 100 << 20);
        assert_eq!(taken(10), 0);
    }

    /// A group that uses so much, of which so much is free and goes when it is given back. Whether
    /// anybody is refused after a second and a half, and how often it was given back.
    fn watched(pressure: &Pressure, used: u64, free: u64) -> (bool, u32) {
        let dir = tempfile::tempdir().unwrap();
        let current = dir.path().join("current");
        fs::write(&current, format!("{used}\n")).unwrap();
        let (left, asked) = (used - free, Cell::new(0));
        let stat = dir.path().join("stat");
        let used = Used::Group { current: current.clone(), stat, keys: FILES };
        let give_back = || {
            asked.set(asked.get() + 1);
            fs::write(&current, left.to_string()).unwrap();
        };
        let (gauge, mut given_back) = (Gauge { limit: 1_000, used }, None);
        let began = Instant::now();
        for n in 0..150 {
            look(&gauge, pressure, &mut given_back, began + OFTEN * n, &give_back);
        }
        (pressure.is_high(), asked.get())
    }

    #[test]
    fn what_is_free_is_given_back_before_anybody_is_refused() {
        let fresh = |used, free| watched(&Pressure::default(), used, free);
        assert_eq!(fresh(950, 300), (false, 1), "it is free again");
        assert_eq!(fresh(950, 20), (true, 2), "it is used, and looked at each second");
        assert_eq!(fresh(890, 300), (false, 0), "there is room");
        let pressure = Pressure::default();
        pressure.note(950, 1_000);
        assert_eq!(watched(&pressure, 850, 250), (false, 1), "its clients have left");
        pressure.limit.store(1_000, Ordering::Relaxed);
        pressure.note(700, 1_000);
        let crowd = Crowd::default();
        assert!(pressure.admits(&crowd, 0));
        crowd.begin();
        assert!(!pressure.admits(&crowd, 0));
        assert_eq!(watched(&pressure, 700, 300), (false, 1), "somebody was refused");
        assert_eq!(watched(&pressure, 700, 300), (false, 0), "nobody since");
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
