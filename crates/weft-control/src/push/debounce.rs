// SPDX-License-Identifier: Apache-2.0
//! When to push: after a few quiet milliseconds, at the latest after a bounded time, and at once
//! when only endpoints changed. A pure machine; the pusher's task sleeps.

use std::time::Duration;

use weft_base::clock::Mono;

/// Quiet this long, it is pushed.
const QUIET: Duration = Duration::from_millis(5);
/// Pushed this long after the first change, quiet or not.
const MAX: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default)]
pub struct Debounce {
    first: Option<Mono>,
    due: Option<Mono>,
}

// === impl Debounce ===

impl Debounce {
    /// A change came in. An urgent one takes what waits along.
    pub fn offer(&mut self, now: Mono, urgent: bool) {
        let first = *self.first.get_or_insert(now);
        let latest = first.plus(MAX);
        let due = if urgent { now } else { now.plus(QUIET).min(latest) };
        // Once something urgent waits, nothing later puts it off.
        let overdue = self.due.filter(|due| *due <= now);
        self.due = Some(overdue.unwrap_or(due));
    }

    /// When to push; `None` when nothing waits.
    pub fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Whether to push now; if so, everything that waits goes.
    pub fn take(&mut self, now: Mono) -> bool {
        let take = self.due.is_some_and(|due| due <= now);
        if take {
            *self = Self::default();
        }
        take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers at the given milliseconds (`!` marks an urgent one); expects the pushes.
    fn check(script: &str, pushes: &[u64]) {
        let mut offers: Vec<(u64, bool)> = script
            .split_whitespace()
            .map(|w| (w.trim_end_matches('!').parse().unwrap(), w.ends_with('!')))
            .collect();
        offers.reverse();
        let mut debounce = Debounce::default();
        let mut got = Vec::new();
        for ms in 0..1_000 {
            while offers.last().is_some_and(|(at, _)| *at == ms) {
                let (_, urgent) = offers.pop().unwrap();
                debounce.offer(Mono(ms), urgent);
            }
            if debounce.take(Mono(ms)) {
                got.push(ms);
            }
        }
        assert_eq!(got, pushes, "{script}");
    }

    #[test]
    fn waits_for_quiet_but_not_for_ever_and_never_for_endpoints() {
        check("10", &[15]);
        check("10 12 14", &[19]);
        check("10 15 21", &[15, 26]);
        check("10 12!", &[12]);
        check("10 10! 10", &[10]);
        let busy: Vec<String> = (0..150).map(|i| (i * 2).to_string()).collect();
        check(&busy.join(" "), &[100, 202, 303]);
    }
}
