// SPDX-License-Identifier: Apache-2.0
//! What keeps an overloaded backend useful where nobody configured anything: the gate of one
//! backend on one worker. Called by the proxy's attempts; pure, time comes in as a number.
//!
//! It refuses nothing; what waits may leave, or have a deadline of its own that ends. When answers
//! take longer and longer, nearly all of them much longer than usual, while fewer end than come,
//! requests beyond what the backend works on at a time wait at the gate instead of in the backend's
//! line. A client that leaves meanwhile costs the backend nothing; in its own line it would, since
//! most servers do not hear that a client left. Once clients do leave, the newest go first: they
//! are those whose clients are still there for the answer.
//!
//! Whether it was a line is measured: answers that are as slow with fewer in flight mean a backend
//! that became slower, and the gate opens. Nobody waits here for longer than a few seconds: then a
//! request goes on as if there were no gate.

/// A window of answers lasts so long, or until it has enough of them to say anything.
const WINDOW_US: u64 = 100_000;
const WINDOW_US_MAX: u64 = 1_000_000;
const ANSWERS_MIN: u64 = 5;
/// Windows in a row in which requests pile up, and those of them with slow answers: more while
/// little is known of what is usual.
const PILED: u32 = 3;
const SLOW: u32 = 2;
const SLOW_COLD: u32 = 3;
/// Windows without a line, until that is known.
const WARM: u32 = 5;
/// So much longer each takes than the one before it, of the time between them: what comes is a
/// third more than what ends.
const RISE: f64 = 0.25;
/// What was ahead of a request when it came explains so much of how long it took.
const EXPLAINED: f64 = 0.6;
/// Answers that take so many times what is usual are slow.
const TOLERATED: f64 = 2.0;
/// Less than this is never a line.
const AHEAD_US_MIN: f64 = 150_000.0;
/// Jitter that says nothing.
const SLACK_US: f64 = 5_000.0;
/// A request waits so long at most.
const WAIT_US_MAX: f64 = 2_500_000.0;
/// And so long where it is known that the backend's own line would be no shorter.
const LINE_US_MAX: f64 = 5_000_000.0;
/// Clients that wait longer than this wait for something else than a line: long polls.
const PATIENCE_US_MAX: u64 = 10_000_000;
/// Without a request that waited for so long there is no gate any more.
const CALM_US: u64 = 5_000_000;
/// Nor when nothing was learnt of answers for so long.
const FORGOTTEN_US: u64 = 2_000_000;

/// What becomes of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Go,
    /// At the gate, in line.
    Wait,
}

#[derive(Clone, Debug)]
pub struct Gate {
    /// There is always room for so many.
    least: f64,
    /// What the backend gets at a time; `None`: nothing says that there is too much.
    limit: Option<f64>,
    /// Microseconds of a usual answer.
    usual: f64,
    /// Answers per second.
    pace: f64,
    /// Those that nobody waits for any more and that the backend still has, about.
    left: f64,
    left_at: u64,
    window: Window,
    piled: u32,
    slow: u32,
    warm: u32,
    /// What answers took in the window before.
    before: f64,
    /// When a request last had to wait.
    busy_at: u64,
    changed_at: u64,
    /// When something was learnt of answers.
    known_at: u64,
    /// What was in flight before it was cut, and what answers took then.
    cut: Option<(f64, f64)>,
    /// Fewer in flight made answers quicker: it was a line.
    confirmed: bool,
    /// Clients leave the line.
    newest_first: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began: u64,
    came: u64,
    ended: u64,
    quick: u64,
    ahead: u64,
    /// Those that were sent since the limit was changed, and how long they took.
    fresh: u64,
    took: u64,
    busy: bool,
}

// === impl Gate ===

impl Gate {
    pub fn new(least: u32) -> Self {
        Self {
            least: f64::from(least.max(1)),
            limit: None,
            usual: 0.0,
            pace: 0.0,
            left: 0.0,
            left_at: 0,
            window: Window::default(),
            piled: 0,
            slow: 0,
            warm: 0,
            before: 0.0,
            busy_at: 0,
            changed_at: 0,
            known_at: 0,
            cut: None,
            confirmed: false,
            newest_first: false,
        }
    }

    /// A request comes while `flying` others are at the backend and `waiting` are in line.
    pub fn arrive(&mut self, flying: u32, waiting: u32, now_us: u64) -> Entry {
        if self.window.came == 0 && self.window.ended == 0 {
            self.window.began = now_us;
        }
        self.window.came += 1;
        let Some(_) = self.limit else { return Entry::Go };
        self.forget(flying, now_us);
        let forgotten = now_us.saturating_sub(self.known_at) > FORGOTTEN_US;
        if forgotten || now_us.saturating_sub(self.busy_at) > CALM_US {
            self.open();
            return Entry::Go;
        }
        if waiting == 0 && self.has_room(flying) {
            return Entry::Go;
        }
        self.note_busy(now_us);
        Entry::Wait
    }

    /// Whether one more may go to the backend.
    pub fn has_room(&self, flying: u32) -> bool {
        // One is always under way: it tells when there is room.
        self.limit.is_none_or(|limit| flying == 0 || f64::from(flying) + self.left < limit)
    }

    /// A client left the line.
    pub fn left_line(&mut self) {
        self.newest_first = true;
    }

    /// Who goes next. Those that have waited for longest leave next, once some do: an answer comes
    /// too late for them.
    pub fn newest_first(&self) -> bool {
        self.newest_first
    }

    /// How much longer one waits that has waited for so long.
    pub fn more_us(&self, waited_us: u64) -> u64 {
        whole(self.wait_us()).saturating_sub(waited_us)
    }

    pub fn is_open(&self) -> bool {
        self.limit.is_none()
    }

    /// An answer's head came; `flying` others are left. `counts` is whether the backend had the
    /// whole request: otherwise its client may be what is slow.
    pub fn answered(
        &mut self,
        (counts, ahead): (bool, u32),
        took_us: u64,
        flying: u32,
        now_us: u64,
    ) {
        if !counts {
            self.window.came = self.window.came.saturating_sub(1);
            return;
        }
        let took = float(took_us);
        self.window.ended += 1;
        if now_us.saturating_sub(took_us) >= self.changed_at {
            self.window.fresh += 1;
            self.window.took = self.window.took.saturating_add(took_us);
        }
        self.window.ahead += u64::from(ahead);
        self.window.quick += u64::from(took <= self.usual * TOLERATED + SLACK_US);
        // No more can have been ahead of it.
        self.left = self.left.min(took * self.pace * 1.5 / 1e6 + 1.0);
        let age = now_us.saturating_sub(self.window.began);
        if (age >= WINDOW_US && self.window.ended >= ANSWERS_MIN) || age >= WINDOW_US_MAX {
            self.turn(flying, now_us);
        }
    }

    /// A request was given up before its answer came, and the backend had it in full, `flew_us`
    /// long after it had been at the gate for `held_us`.
    pub fn given_up(&mut self, held_us: u64, flew_us: u64, flying: u32, now_us: u64) {
        self.forget(flying, now_us);
        self.newest_first |= held_us > flew_us;
        self.known_at = now_us;
        if flew_us > PATIENCE_US_MAX {
            self.window.came = self.window.came.saturating_sub(1);
        } else {
            self.left = (self.left + 1.0).min(self.pace.max(1.0) * float(PATIENCE_US_MAX) / 1e6);
        }
        if now_us.saturating_sub(self.window.began) >= WINDOW_US_MAX.min(WINDOW_US * 2) {
            self.turn(flying, now_us);
        }
    }

    /// Requests that the backend gets at a time; `None` is any number.
    pub fn limit(&self) -> Option<u32> {
        self.limit.map(|limit| u32::try_from(whole(limit)).unwrap_or(u32::MAX))
    }

    fn note_busy(&mut self, now_us: u64) {
        self.busy_at = now_us;
        self.window.busy = true;
    }

    fn open(&mut self) {
        (self.limit, self.cut, self.confirmed, self.newest_first) = (None, None, false, false);
        (self.piled, self.slow) = (0, 0);
    }

    /// How long one waits at the gate at most.
    fn wait_us(&self) -> f64 {
        if self.confirmed { LINE_US_MAX } else { WAIT_US_MAX }
    }

    /// Those that were left are worked on as the others are.
    fn forget(&mut self, flying: u32, now_us: u64) {
        let passed = float(now_us.saturating_sub(self.left_at)) / 1e6;
        self.left_at = now_us;
        if self.left > 0.0 {
            let share = self.left / (self.left + f64::from(flying));
            self.left = (self.left - passed * self.pace.max(1.0) * share).max(0.0);
        }
    }

    fn turn(&mut self, flying: u32, now_us: u64) {
        self.forget(flying, now_us);
        let window = std::mem::take(&mut self.window);
        self.window.began = now_us;
        let age = float(now_us.saturating_sub(window.began).max(1));
        let rate = float(window.ended) * 1e6 / age;
        let all = f64::from(flying) + self.left;
        if window.ended >= ANSWERS_MIN {
            self.known_at = now_us;
        }
        if window.ended < ANSWERS_MIN {
            // Nothing is known of answers; only of those who do not wait for them.
            (self.piled, self.slow) = (0, 0);
            return;
        }
        let took = float(window.took) / float(window.fresh.max(1));
        match self.limit {
            None => {
                let known = self.pace > 0.0;
                self.pace = if known { (self.pace + rate) / 2.0 } else { rate };
                self.watch(&window, (took, age), all, now_us);
            }
            Some(limit) => {
                let fewer = self.left < 1.0 && f64::from(flying) >= limit * 0.8;
                let part = if rate > self.pace { 0.5 } else { 0.2 };
                if rate > self.pace || fewer {
                    self.pace += (rate - self.pace) * part;
                }
                if now_us.saturating_sub(self.busy_at) > CALM_US {
                    self.open();
                } else if all <= limit + 1.0 && window.fresh * 2 >= window.ended {
                    self.limit = Some(self.adjusted(limit, took, window.busy));
                    self.changed_at = now_us;
                }
            }
        }
    }

    /// Without a gate: whether there must be one.
    fn watch(&mut self, window: &Window, (took, age): (f64, f64), all: f64, now_us: u64) {
        let piling = window.ended * 10 < window.came * 9;
        let slow = window.quick * 10 < window.ended && self.usual > 0.0;
        self.piled = if piling { self.piled + 1 } else { 0 };
        // What waits in a line waits for longer and longer; what is slow by itself does not.
        let longer = took - self.before >= age * RISE;
        self.before = took;
        self.slow = if piling && slow && longer { self.slow + 1 } else { 0 };
        self.warm += u32::from(!piling);
        if self.usual == 0.0 {
            self.usual = took;
        } else if took < self.usual {
            self.usual += (took - self.usual) * 0.3;
        } else if !piling {
            self.usual += (took - self.usual) * 0.05;
        }
        let ahead = all * 1e6 / self.pace.max(0.001);
        // What waited in a line took as long as those before it needed to end.
        let explained = float(window.ahead) / float(window.ended) * 1e6 / self.pace.max(0.001);
        self.slow = if explained >= took * EXPLAINED { self.slow } else { 0 };
        let line = self.piled >= PILED
            && self.slow >= if self.warm >= WARM { SLOW } else { SLOW_COLD }
            && ahead >= AHEAD_US_MIN;
        if line && all >= 2.0 * self.least {
            let limit = self.pace * (self.usual * TOLERATED + SLACK_US) / 1e6;
            self.limit = Some(limit.max(self.least));
            self.cut = Some((all, took));
            (self.busy_at, self.changed_at) = (now_us, now_us);
        }
    }

    /// The limit after a window in which nothing older was in flight.
    fn adjusted(&mut self, limit: f64, took: f64, busy: bool) -> f64 {
        let tolerated = self.usual * TOLERATED + SLACK_US;
        if took > tolerated {
            if let Some((before, slow)) = self.cut
                && limit <= before * 0.8
            {
                self.cut = None;
                // A line is shorter when there are fewer in it. What is as slow as before is slow
                // by itself.
                if took > slow * (1.0 + limit / before) / 2.0 {
                    (self.usual, self.confirmed) = (took, false);
                    return before * 1.3 + 1.0;
                }
                self.confirmed = true;
            }
            if limit <= self.least {
                self.usual = took;
                return limit;
            }
            self.cut = self.cut.or(Some((limit, took)));
            return (limit * (tolerated / took).max(0.5)).max(self.least);
        }
        self.confirmed |= self.cut.take().is_some();
        match busy {
            true if took <= self.usual * 1.2 + SLACK_US => limit * 1.3 + 1.0,
            true => limit * 1.05 + 0.2,
            false => limit,
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn float(n: u64) -> f64 {
    n as f64
}

// Never negative; far below what 64 bits hold.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(n: f64) -> u64 {
    n as u64
}

#[cfg(test)]
mod tests;
