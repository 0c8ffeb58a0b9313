// SPDX-License-Identifier: Apache-2.0
//! Which item is seen to next: each waits at most once, and one that fails waits longer each
//! time. Pure: the runner says what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_base::clock::Mono;

use super::Item;

const FIRST_DELAY: Duration = Duration::from_millis(10);
const LAST_DELAY: Duration = Duration::from_secs(30);

/// Items by when they are due.
#[derive(Debug, Default)]
pub(super) struct Queue {
    due: BTreeSet<(Mono, u64, Item)>,
    at: BTreeMap<Item, (Mono, u64)>,
    failures: BTreeMap<Item, u32>,
    /// Those due at the same time go in the order they came.
    next: u64,
}

// === impl Queue ===

impl Queue {
    /// To be seen to at `at`, or sooner if it is already waiting for that.
    pub fn push(&mut self, item: Item, at: Mono) {
        if let Some((known, order)) = self.at.get(&item).copied() {
            if known <= at {
                return;
            }
            self.due.remove(&(known, order, item.clone()));
        }
        self.next += 1;
        self.at.insert(item.clone(), (at, self.next));
        self.due.insert((at, self.next, item));
    }

    /// The next item that is due.
    pub fn pop(&mut self, now: Mono) -> Option<Item> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, _, item) = self.due.pop_first()?;
        self.at.remove(&item);
        Some(item)
    }

    /// When the next item is due.
    pub fn next_due(&self) -> Option<Mono> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// It was overtaken or could not be written: again later, and later each time.
    pub fn failed(&mut self, item: Item, now: Mono) {
        let n = self.failures.entry(item.clone()).or_default();
        *n = n.saturating_add(1);
        let delay = FIRST_DELAY.saturating_mul(1u32.checked_shl(*n - 1).unwrap_or(u32::MAX));
        self.push(item, now.plus(delay.min(LAST_DELAY)));
    }

    pub fn worked(&mut self, item: &Item) {
        self.failures.remove(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        Item::Namespace(name.into())
    }

    #[test]
    fn an_item_waits_once_and_in_order() {
        let mut q = Queue::default();
        for name in ["b", "a", "b", "b"] {
            q.push(item(name), Mono(0));
        }
        assert_eq!(q.pop(Mono(0)), Some(item("b")));
        assert_eq!(q.pop(Mono(0)), Some(item("a")));
        assert_eq!(q.pop(Mono(0)), None);
    }

    #[test]
    fn sooner_wins_and_later_does_not() {
        let mut q = Queue::default();
        q.push(item("a"), Mono(100));
        q.push(item("a"), Mono(50));
        q.push(item("a"), Mono(200));
        assert_eq!(q.next_due(), Some(Mono(50)));
        assert_eq!(q.pop(Mono(49)), None);
        assert_eq!(q.pop(Mono(50)), Some(item("a")));
        assert_eq!(q.next_due(), None);
    }

    #[test]
    fn failures_wait_longer_up_to_a_limit_until_it_works() {
        let mut q = Queue::default();
        let mut delays = Vec::new();
        for _ in 0..40 {
            q.failed(item("a"), Mono(0));
            delays.push(q.next_due().unwrap().0);
            q.pop(Mono(u64::MAX));
        }
        assert_eq!(delays[..4], [10, 20, 40, 80]);
        assert_eq!(delays.last(), Some(&30_000));
        q.worked(&item("a"));
        q.failed(item("a"), Mono(0));
        assert_eq!(q.next_due(), Some(Mono(10)));
    }
}
