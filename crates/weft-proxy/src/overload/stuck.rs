// SPDX-License-Identifier: Apache-2.0
//! Work that holds memory and waits for a peer that takes nothing, or sends nothing, in the order
//! in which the waits began. While memory is short those that have waited longest are told to give
//! up, as many as too much is held; but nobody whose wait is young, as those of all that moves are.
//! Called by the codecs, which wait, and by each worker, for itself. Where no limit is watched,
//! nothing is noted and nobody is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::{OFTEN, Pressure, SHED_PERCENT, is_watched};

/// About what one of them holds: a buffer, two connections and the futures between them.
const EACH_BYTES: u64 = 32 * 1024;
/// What was freed is seen by the system this much later at the latest: the allocator keeps it for
/// a while. Until then it counts as free.
const SEEN_AFTER: Duration = Duration::from_millis(1_500);
/// Whoever has waited for less may well be moving.
const PATIENCE: Duration = Duration::from_secs(1);
/// It doubles up to this while nothing is gained by giving anybody up.
const PATIENCE_MAX: Duration = Duration::from_secs(16);
/// It shrinks towards this share of the limit, from which on nobody's wait is too young: soon the
/// kernel would end all of them.
const END_PERCENT: u64 = 98;

thread_local! {
    static WAITING: RefCell<Waiting> = const {
        RefCell::new(Waiting { newest: 0, by_age: BTreeMap::new(), given_up: None })
    };
}

struct Waiting {
    newest: u64,
    /// Since when, and whom to wake.
    by_age: BTreeMap<u64, (Instant, Waker)>,
    /// Hears of each that gives up.
    given_up: Option<Box<dyn Fn()>>,
}

/// One wait, if there is any. Over when it is dropped.
#[derive(Debug, Default)]
pub struct Stuck(u64);

/// What is done about one time in which memory is short.
#[derive(Debug)]
struct Relief {
    /// Whose memory is on its way back already.
    coming: VecDeque<(Instant, u64)>,
    /// When how many were told, and how many bytes were too much then: it is looked whether that
    /// was of any use.
    trial: Option<(Instant, u64, u64)>,
    patience: Duration,
}

// === impl Stuck ===

impl Stuck {
    /// Waits; ready when it must give up.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !is_watched() {
            return Poll::Pending;
        }
        WAITING.with_borrow_mut(|waiting| {
            if self.0 == 0 {
                waiting.newest += 1;
                self.0 = waiting.newest;
                waiting.by_age.insert(self.0, (Instant::now(), cx.waker().clone()));
                return Poll::Pending;
            }
            match waiting.by_age.get_mut(&self.0) {
                Some((_, waker)) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                None => {
                    self.0 = 0;
                    waiting.given_up.iter().for_each(|given_up| given_up());
                    Poll::Ready(())
                }
            }
        })
    }

    /// Something has moved: the next wait is a new one.
    pub fn moved(&mut self) {
        if self.0 != 0 {
            // The thread may be ending.
            let _ = WAITING.try_with(|waiting| waiting.borrow_mut().by_age.remove(&self.0));
            self.0 = 0;
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.moved();
    }
}

// === impl Relief ===

impl Relief {
    fn new() -> Self {
        Self { coming: VecDeque::new(), trial: None, patience: PATIENCE }
    }

    /// How many more are to be told, when so many bytes are too much.
    fn due(&mut self, excess: u64, now: Instant) -> u64 {
        while self.coming.front().is_some_and(|(at, _)| now - *at >= SEEN_AFTER) {
            self.coming.pop_front();
        }
        let coming: u64 = self.coming.iter().map(|(_, n)| n * EACH_BYTES).sum();
        excess.saturating_sub(coming).div_ceil(EACH_BYTES)
    }

    /// How old a wait must be, when that share of the limit is used.
    fn patience(&self, percent: u64) -> Duration {
        let whole = END_PERCENT - SHED_PERCENT;
        let left = END_PERCENT.saturating_sub(percent).min(whole);
        self.patience.mul_f64(left as f64 / whole as f64)
    }

    fn note(&mut self, n: u64, excess: u64, now: Instant) {
        if n > 0 {
            self.coming.push_back((now, n));
            self.trial.get_or_insert((now, n, excess));
        }
    }

    /// Looks what came of it. Where not half of it is free, something else holds the memory, and
    /// only those go on to be given up that hardly move at all.
    fn judge(&mut self, excess: u64, now: Instant) {
        let Some((_, n, before)) = self.trial.take_if(|(at, ..)| now - *at >= SEEN_AFTER) else {
            return;
        };
        let useful = before.saturating_sub(excess) >= n * EACH_BYTES / 2;
        self.patience = if useful { PATIENCE } else { (self.patience * 2).min(PATIENCE_MAX) };
    }
}

/// Tells so many of those that have waited that long on this thread, the oldest first; how many
/// there were.
pub(crate) fn tell(most: u64, patience: Duration, now: Instant) -> u64 {
    let mut told = 0;
    while told < most {
        let waker = WAITING.with_borrow_mut(|waiting| {
            let oldest = waiting.by_age.first_entry()?;
            let is_due = now.saturating_duration_since(oldest.get().0) >= patience;
            is_due.then(|| oldest.remove().1)
        });
        let Some(waker) = waker else { break };
        waker.wake();
        told += 1;
    }
    told
}

/// Whenever memory is short, has this worker's share of what is too much given up. `given_up` hears
/// of each that was.
pub async fn relieve(pressure: Arc<Pressure>, workers: usize, given_up: impl Fn() + 'static) {
    WAITING.with_borrow_mut(|waiting| waiting.given_up = Some(Box::new(given_up)));
    let workers = u64::try_from(workers.max(1)).unwrap_or(1);
    loop {
        pressure.risen().await;
        let mut relief = Relief::new();
        while pressure.is_high() {
            let (now, excess) = (Instant::now(), pressure.excess());
            relief.judge(excess, now);
            let due = relief.due(excess / workers, now);
            let n = tell(due, relief.patience(pressure.percent()), now);
            relief.note(n, excess, now);
            tokio::time::sleep(OFTEN).await;
        }
    }
}

#[cfg(test)]
mod tests;
