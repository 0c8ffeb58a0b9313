// SPDX-License-Identifier: Apache-2.0
//! Time is a parameter. Monotonic time drives timers; wall time only dates certificates and
//! objects. This module is the one place that reads the system's clocks.
#![allow(clippy::disallowed_methods)]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic milliseconds since an arbitrary start; comparable within one process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

/// Where time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    System(SystemClock),
    /// A clock that a test moves by hand.
    Manual(Arc<ManualClock>),
}

#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

#[derive(Debug, Default)]
pub struct ManualClock {
    mono_ms: AtomicU64,
    wall_ms: AtomicU64,
}

/// What a task does between two waits. It takes no time worth measuring, so that one reading of
/// the clock serves all of it.
#[derive(Debug)]
pub struct Turn(());

thread_local! {
    /// Whether a turn is under way, and what was read in it.
    static TURN: Cell<(bool, Option<tokio::time::Instant>)> = const { Cell::new((false, None)) };
}

/// Begins a turn, which ends with what this returns. Turns do not nest: the inner one ends both.
#[must_use]
pub fn turn() -> Turn {
    TURN.set((true, None));
    Turn(())
}

/// Now, as far as the turn can tell; outside of one exactly.
pub fn moment() -> tokio::time::Instant {
    if let (true, Some(read)) = TURN.get() {
        return read;
    }
    let now = tokio::time::Instant::now();
    if let (true, None) = TURN.get() {
        TURN.set((true, Some(now)));
    }
    now
}

// === impl Turn ===

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.set((false, None));
    }
}

// === impl Mono ===

impl Mono {
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time since `earlier`; zero when that lies ahead.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

// === impl Clock ===

impl Clock {
    pub fn system() -> Self {
        Self::System(SystemClock { start: Instant::now() })
    }

    pub fn manual() -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        clock.wall_ms.store(1_700_000_000_000, Ordering::Relaxed);
        (Self::Manual(clock.clone()), clock)
    }

    /// Monotonic time.
    pub fn now(&self) -> Mono {
        match self {
            Self::System(c) => {
                Mono(u64::try_from(c.start.elapsed().as_millis()).unwrap_or(u64::MAX))
            }
            Self::Manual(c) => Mono(c.mono_ms.load(Ordering::Relaxed)),
        }
    }

    /// A moment that was read already, as monotonic time: one reading serves many.
    pub fn at(&self, moment: tokio::time::Instant) -> Mono {
        match self {
            Self::System(c) => {
                let since = moment.into_std().saturating_duration_since(c.start);
                Mono(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Manual(_) => self.now(),
        }
    }

    /// Milliseconds since the Unix epoch at a moment that was just read; a step of the system's
    /// clock shows within a second.
    pub fn wall_ms_at(&self, moment: tokio::time::Instant) -> u64 {
        match self {
            Self::System(_) => SystemClock::wall_ms_at(moment.into_std()),
            Self::Manual(_) => self.wall_ms(),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn wall_ms(&self) -> u64 {
        match self {
            Self::System(_) => wall_ms(),
            Self::Manual(c) => c.wall_ms.load(Ordering::Relaxed),
        }
    }
}

// === impl SystemClock ===

impl SystemClock {
    /// Wall time at a moment, from a reading that is at most a second old.
    fn wall_ms_at(moment: Instant) -> u64 {
        thread_local! {
            static READ: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
        }
        if let Some((at, wall_ms)) = READ.get()
            && let Some(since) = moment.checked_duration_since(at)
            && since < Duration::from_secs(1)
        {
            return wall_ms + u64::try_from(since.as_millis()).unwrap_or_default();
        }
        let wall_ms = wall_ms();
        READ.set(Some((moment, wall_ms)));
        wall_ms
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

// === impl ManualClock ===

impl ManualClock {
    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.mono_ms.fetch_add(ms, Ordering::Relaxed);
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_reads_the_clock_once() {
        let passed = |before| loop {
            if tokio::time::Instant::now() > before {
                return;
            }
        };
        let turn = turn();
        let read = moment();
        passed(read);
        assert_eq!(moment(), read);
        drop(turn);
        assert!(moment() > read);
        let _next = super::turn();
        let later = moment();
        assert!(later > read);
        let _again = super::turn();
        passed(later);
        assert!(moment() > later, "a new turn begins with nothing");
    }
}
