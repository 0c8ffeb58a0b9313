// SPDX-License-Identifier: Apache-2.0
//! What keeps an overloaded backend useful without a number from anybody: the gate of one backend
//! on one worker. Called by the proxy's attempts; pure, time comes in as a number.
//!
//! Where nobody configured anything it refuses nothing; what waits may leave, or have a deadline of
//! its own that ends. Where a policy asks for adaptive concurrency, what would wait is refused.
//!
//! When answers take longer and longer, nearly all of them much longer than usual, while fewer end
//! than come, requests beyond what the backend works on at a time wait at the gate instead of in
//! the backend's line. A client that leaves meanwhile costs the backend nothing; in its own line
//! it would, since most servers do not hear that a client left. Once clients do leave, the newest
//! go first: they are those whose clients are still there for the answer.
//!
//! It begins with a suspicion, for which requests wait for a moment: every tenth of a second more
//! of five times too much is half a second in which the backend works for nobody.
//!
//! Whether it was a line is measured: with fewer in flight a line is shorter, and as many end as
//! before. Where answers are as slow and fewer end, the backend became slower, and the gate opens.
//! Nobody waits here for longer than a few seconds: then a request goes on as if there were no
//! gate.
//!
//! All of this is learnt from answers, and those end once the line is as long as clients wait: from
//! then on nobody is answered, and who would wait for proof sees none. So what was seen counts for
//! a few windows, also where the machine stands still for a while and answers come in lumps; and
//! clients that leave where there was a line, while nobody is answered, are proof as well.

use crate::Adaptive;

/// A window of answers lasts so long, or until it has enough of them to say anything.
const WINDOW_US: u64 = 100_000;
const WINDOW_US_MAX: u64 = 1_000_000;
const ANSWERS_MIN: u64 = 5;
/// Windows in a row in which requests pile up, and those of them with slow answers: more while
/// little is known of what is usual.
const PILED: u32 = 3;
const SLOW: u32 = 2;
const SLOW_COLD: u32 = 3;
/// So often a thing counts at most that was seen in windows.
const SEEN_MAX: u32 = 6;
/// Windows without a line, until that is known.
const WARM: u32 = 5;
/// So much longer each takes than the one before it, of the time between them: what comes is a
/// third more than what ends.
const RISE: f64 = 0.25;
/// No more answers a second than so many times those of before.
const FULL: f64 = 1.4;
/// What was ahead of a request when it came explains so much of how long it took.
const EXPLAINED: f64 = 0.6;
/// What is left of an older window with each one that comes.
const FADES: f64 = 0.6;
/// Answers that take so many times what is usual are slow.
const TOLERATED: f64 = 2.0;
/// Less than this is never a line.
const AHEAD_US_MIN: f64 = 150_000.0;
/// A suspicion holds requests for so long at most, and the next one comes so much later.
const SUSPECTED_US: u64 = 400_000;
const SUSPECTED_AGAIN_US: u64 = 2_000_000;
/// Windows in a row in which requests pile up, and answers that take so many times what is usual,
/// for a suspicion. What is in line must take so many times as long.
const SUSPECTED_PILED: u32 = 2;
const SUSPECTED_SLOW: f64 = 1.3;
const SUSPECTED_AHEAD: f64 = 3.0;
/// What is left of an older line becomes shorter by at least this from window to window.
const SHRINKS: f64 = 0.9;
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
    bounds: Bounds,
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
    /// Windows in which it looked as if there were a line.
    lined: u32,
    warm: u32,
    /// What answers took in the window before.
    before: f64,
    /// Answers, and in how many microseconds: of the last window, and less and less of older ones.
    counted: (f64, f64),
    /// When a request last had to wait.
    busy_at: u64,
    changed_at: u64,
    /// When something was learnt of answers.
    known_at: u64,
    /// When the last one came.
    ended_at: u64,
    suspicion: Option<Suspicion>,
    /// The earliest time of the next one.
    suspects_at: u64,
    cut: Option<Cut>,
    /// What was in flight before the limit is gone.
    settled: bool,
    /// What answers took in the window before, while it is judged whether that was a line.
    judged: Option<f64>,
    /// Fewer in flight made answers quicker: it was a line.
    confirmed: bool,
    /// Clients leave the line.
    newest_first: bool,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// There is always room for so many, and never for more than that.
    least: f64,
    most: f64,
    /// Answers that take so many times what is usual are slow.
    tolerated: f64,
    /// What is in line takes so long, else there is none.
    ahead_us: f64,
}

/// Perhaps there is too much.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    limit: f64,
    until: u64,
    /// In flight when it came up.
    all: f64,
}

/// How it was before the backend got less: in flight, what answers took, and how many came.
#[derive(Clone, Copy, Debug)]
struct Cut {
    all: f64,
    took: f64,
    pace: f64,
}

/// What a window says.
#[derive(Clone, Copy, Debug)]
struct Said {
    age: f64,
    took: f64,
    rate: f64,
    busy: bool,
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
    /// Those that were given up though they were there for longer than an answer may take, and how
    /// long they were.
    lost: u64,
    lost_us: u64,
    busy: bool,
}

// === impl Gate ===

impl Gate {
    /// Where nobody said anything.
    pub fn new(least: u32) -> Self {
        let least = f64::from(least.max(1));
        let (tolerated, ahead_us) = (TOLERATED, AHEAD_US_MIN);
        Self::within(Bounds { least, most: f64::INFINITY, tolerated, ahead_us })
    }

    /// As a policy says. What has to wait is to be refused.
    pub fn by(policy: &Adaptive) -> Self {
        let least = policy.limit_min.max(1);
        Self::within(Bounds {
            least: f64::from(least),
            most: f64::from(policy.limit_max.max(least)),
            tolerated: f64::from(policy.tolerance_permille.max(1_000)) / 1_000.0,
            ahead_us: f64::from(policy.wait_ms) * 1e3,
        })
    }

    fn within(bounds: Bounds) -> Self {
        Self {
            bounds,
            limit: None,
            usual: 0.0,
            pace: 0.0,
            left: 0.0,
            left_at: 0,
            window: Window::default(),
            piled: 0,
            slow: 0,
            lined: 0,
            warm: 0,
            before: 0.0,
            counted: (0.0, 0.0),
            busy_at: 0,
            changed_at: 0,
            known_at: 0,
            ended_at: 0,
            suspicion: None,
            suspects_at: 0,
            cut: None,
            settled: false,
            judged: None,
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
        if self.limit.is_none() {
            return self.suspected(flying, waiting, now_us);
        }
        self.forget(flying, now_us);
        // Who waits here and then for an answer may leave just before that comes, for good.
        let forgotten = now_us.saturating_sub(self.known_at) > FORGOTTEN_US
            || now_us.saturating_sub(self.ended_at) > PATIENCE_US_MAX;
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

    fn suspected(&mut self, flying: u32, waiting: u32, now_us: u64) -> Entry {
        let Some(suspicion) = self.suspicion else { return Entry::Go };
        if now_us >= suspicion.until {
            self.suspicion = None;
            return Entry::Go;
        }
        if waiting == 0 && self.has_room(flying) { Entry::Go } else { Entry::Wait }
    }

    /// Whether one more may go to the backend.
    pub fn has_room(&self, flying: u32) -> bool {
        // One is always under way: it tells when there is room.
        let limit = self.limit.or(self.suspicion.map(|s| s.limit));
        limit.is_none_or(|limit| flying == 0 || f64::from(flying) + self.left < limit)
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

    /// How much longer one waits now that has waited for so long.
    pub fn more_us(&self, waited_us: u64, now_us: u64) -> u64 {
        match (self.limit, self.suspicion) {
            (None, None) => 0,
            (None, Some(suspicion)) => suspicion.until.saturating_sub(now_us),
            _ => whole(self.wait_us()).saturating_sub(waited_us),
        }
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
        self.ended_at = now_us;
        if now_us.saturating_sub(took_us) >= self.changed_at {
            self.window.fresh += 1;
            self.window.took = self.window.took.saturating_add(took_us);
        }
        self.window.ahead += u64::from(ahead);
        self.window.quick += u64::from(took <= self.tolerated());
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
            let long = float(flew_us) > self.tolerated();
            self.window.lost += u64::from(long);
            self.window.lost_us += if long { flew_us } else { 0 };
            self.left = (self.left + 1.0).min(self.pace.max(1.0) * float(PATIENCE_US_MAX) / 1e6);
        }
        if now_us.saturating_sub(self.window.began) >= WINDOW_US_MAX.min(WINDOW_US * 2) {
            self.turn(flying, now_us);
        }
    }

    /// Requests that the backend gets at a time; `None` is any number.
    pub fn limit(&self) -> Option<u32> {
        let limit = self.limit.or(self.suspicion.map(|s| s.limit));
        limit.map(|limit| u32::try_from(whole(limit)).unwrap_or(u32::MAX))
    }

    fn note_busy(&mut self, now_us: u64) {
        self.busy_at = now_us;
        self.window.busy = true;
    }

    fn open(&mut self) {
        (self.limit, self.cut, self.confirmed, self.newest_first) = (None, None, false, false);
        (self.suspicion, self.settled, self.judged) = (None, false, None);
        (self.piled, self.slow, self.lined, self.counted) = (0, 0, 0, (0.0, 0.0));
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
            self.starved(&window, all, now_us);
            return;
        }
        let took = float(window.took) / float(window.fresh.max(1));
        let said = Said { age, took, rate, busy: window.busy };
        let Some(limit) = self.limit else {
            return self.watch(&window, said, all, now_us);
        };
        let fewer = self.left < 1.0 && f64::from(flying) >= limit * 0.8;
        let part = if rate > self.pace { 0.5 } else { 0.2 };
        if rate > self.pace || fewer {
            self.pace += (rate - self.pace) * part;
        }
        if now_us.saturating_sub(self.busy_at) > CALM_US {
            self.open();
        } else if all > limit + 1.0 {
            // What was let in under an older limit says nothing about this one. But what goes past
            // the gate after its time does: as long as it comes at this pace, there would never be
            // less in flight, and each request would wait for nothing.
            let since = now_us.saturating_sub(self.changed_at);
            if since > whole(self.wait_us()) && window.fresh >= ANSWERS_MIN {
                self.open();
                self.usual = took;
            }
        } else if !self.settled {
            (self.settled, self.judged, self.changed_at) = (true, None, now_us);
        } else if window.fresh * 2 >= window.ended && window.fresh >= ANSWERS_MIN {
            let adjusted = self.adjusted(limit, said);
            let adjusted = self.bounded(adjusted);
            if adjusted.to_bits() != limit.to_bits() {
                (self.limit, self.changed_at) = (Some(adjusted), now_us);
            }
        }
    }

    /// No answers came. Where there was a line shortly before, clients left it before it was their
    /// turn, and nothing else will ever be seen of it.
    fn starved(&mut self, window: &Window, all: f64, now_us: u64) {
        if self.limit.is_some() {
            return;
        }
        let left = window.lost >= ANSWERS_MIN && window.lost >= window.ended * 10;
        self.lined = counted(self.lined, left && self.lined > 0);
        if left && self.lined >= SLOW_COLD {
            let took = float(window.lost_us) / float(window.lost);
            let limit = self.bounded(self.pace * self.tolerated() / 1e6);
            self.cut = Some(Cut { all, took, pace: self.pace });
            (self.limit, self.suspicion, self.settled) = (Some(limit), None, false);
            (self.busy_at, self.changed_at) = (now_us, now_us);
        }
    }

    /// Without a gate: whether there must be one.
    fn watch(&mut self, window: &Window, said: Said, all: f64, now_us: u64) {
        let Said { age, took, rate, .. } = said;
        let piling = window.ended * 10 < window.came * 9;
        let slow = window.quick * 10 < window.ended && self.usual > 0.0;
        self.piled = counted(self.piled, piling);
        // What waits in a line waits for longer and longer; what is slow by itself does not.
        let longer = took - self.before >= age * RISE;
        // And who has a line cannot do more; those who begin with slow requests will.
        let pace = self.measured(window.ended, age);
        let full = pace <= self.pace * FULL;
        (self.before, self.pace) = (took, pace);
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
        let in_line = piling
            && full
            && longer
            && explained >= took * EXPLAINED
            && ahead >= self.bounds.ahead_us;
        let much = all >= 2.0 * self.bounds.least;
        // Answers that come in lumps are no proof that it can do more, nor that it cannot.
        if in_line || !(piling && slow) {
            self.slow = counted(self.slow, in_line && slow);
        }
        self.lined = counted(self.lined, piling && longer && ahead >= self.bounds.ahead_us);
        let limit = self.bounded(self.pace * self.tolerated() / 1e6);
        let held = self.suspicion.filter(|s| now_us < s.until);
        let known = self.warm >= WARM || held.is_some();
        let enough = self.slow >= if known { SLOW } else { SLOW_COLD };
        if self.piled >= PILED && enough && (much || held.is_some()) {
            let all = held.map_or(all, |s| s.all.max(all));
            self.cut = Some(Cut { all, took, pace: self.pace.max(rate) });
            (self.limit, self.suspicion, self.settled) = (Some(limit), None, false);
            (self.busy_at, self.changed_at) = (now_us, now_us);
        } else if self.suspicion.is_some() {
            // What it was suspected of may still be seen in windows to come.
            if held.is_none() || self.lined == 0 {
                self.suspicion = None;
            }
        } else if in_line
            && much
            && window.came >= window.ended * 2
            && self.piled >= SUSPECTED_PILED
            && now_us >= self.suspects_at
            && took >= self.usual * SUSPECTED_SLOW
            && ahead >= self.usual * SUSPECTED_AHEAD
        {
            self.suspicion = Some(Suspicion { limit, until: now_us + SUSPECTED_US, all });
            self.suspects_at = now_us + SUSPECTED_AGAIN_US;
        }
    }

    /// Answers a second, of the last few windows: what stood still for a while answers in lumps.
    fn measured(&mut self, ended: u64, age: f64) -> f64 {
        let (answers, time) = self.counted;
        self.counted = (answers * FADES + float(ended), time * FADES + age);
        self.counted.0 * 1e6 / self.counted.1
    }

    /// What answers may take.
    fn tolerated(&self) -> f64 {
        self.usual * self.bounds.tolerated + SLACK_US
    }

    fn bounded(&self, limit: f64) -> f64 {
        limit.clamp(self.bounds.least, self.bounds.most)
    }

    /// The limit after a window in which nothing older was in flight.
    fn adjusted(&mut self, limit: f64, said: Said) -> f64 {
        let Said { took, .. } = said;
        let tolerated = self.tolerated();
        if took <= tolerated {
            self.judged = None;
            self.confirmed |= self.cut.take().is_some();
            return match said.busy {
                true if took <= self.usual * 1.2 + SLACK_US => limit * 1.3 + 1.0,
                true => limit * 1.05 + 0.2,
                false => limit,
            };
        }
        if let Some(cut) = self.cut.filter(|cut| limit <= cut.all * 0.8) {
            // A line is shorter when there are fewer in it, and no fewer end. What is as slow as
            // before while fewer end is slow by itself.
            let part = f64::midpoint(1.0, limit / cut.all);
            if took > cut.took * part && said.rate < cut.pace * part {
                // Unless it is what is left of the line, which becomes shorter.
                let before = self.judged.replace(took);
                if before.is_none_or(|before| took < before * SHRINKS) {
                    return limit;
                }
                (self.cut, self.judged, self.settled) = (None, None, false);
                (self.usual, self.confirmed) = (took, false);
                return cut.all * 1.3 + 1.0;
            }
            (self.cut, self.confirmed) = (None, true);
        }
        self.judged = None;
        if limit <= self.bounds.least {
            self.usual = took;
            return limit;
        }
        self.cut = self.cut.or(Some(Cut { all: limit, took, pace: self.pace }));
        limit * (tolerated / took).max(0.5)
    }
}

/// How often something was seen, of late: one window that says otherwise is no proof of anything.
fn counted(seen: u32, again: bool) -> u32 {
    if again { (seen + 1).min(SEEN_MAX) } else { seen.saturating_sub(1) }
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
