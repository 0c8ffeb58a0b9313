// SPDX-License-Identifier: Apache-2.0
//! Adaptive concurrency of one backend on one worker. A window of answers ends a few times a
//! second. Overload is two signs together: answers are slower than usual by more than is
//! tolerated, *and* fewer requests end than come, so that they pile up. Slowness alone is no sign:
//! a mix of quick and slow requests is slow at times and does not pile up. Then the limit falls to
//! what keeps answers tolerable (the gradient of Netflix's concurrency-limits and Envoy's filter),
//! and from time to time more is tried: it stays when more answers come of it.

use crate::Adaptive;

/// A window lasts so long, or until it has enough answers to say anything.
const WINDOW_US: u64 = 100_000;
const ANSWERS_MIN: u64 = 10;
/// A window that never fills says what it has after this.
const WINDOW_US_MAX: u64 = 500_000;
/// Windows that a trial of a higher limit is measured for, and those before it as well.
const MEASURED: u32 = 5;
/// Windows between a change of the limit and what it brings.
const SETTLING: u32 = 2;
/// Windows in a row in which requests must pile up before there is a limit.
const PILED: u32 = 3;
/// Windows without a sign of overload until there is no limit any more.
const CALM: u32 = 50;

#[derive(Clone, Debug)]
pub struct Limiter {
    /// `None`: nothing says that there is too much.
    limit: Option<f64>,
    /// Microseconds of a usual answer.
    usual: f64,
    began: u64,
    came: u64,
    ended: u64,
    took: u64,
    most: u32,
    /// Windows in a row in which requests piled up.
    piled: u32,
    calm: u32,
    trial: Trial,
    /// Those that nobody waits for any more and that the server still has, about: it does not
    /// hear that they are gone, and works on them at its own pace.
    left: f64,
    left_at: u64,
    /// Answers per second.
    pace: f64,
}

/// Answers per second at a limit, and at a higher one.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    windows: u32,
    before: f64,
    /// The limit that was there before, while a higher one is tried.
    from: Option<f64>,
    during: f64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            limit: None,
            usual: 0.0,
            began: 0,
            came: 0,
            ended: 0,
            took: 0,
            most: 0,
            piled: 0,
            calm: 0,
            trial: Trial::default(),
            left: 0.0,
            left_at: 0,
            pace: 0.0,
        }
    }
}

impl Limiter {
    /// A request comes while `in_flight` others are there.
    ///
    /// # Errors
    /// The limit that it is beyond.
    pub fn begin(&mut self, in_flight: u32, now_us: u64) -> Result<(), u32> {
        if self.came == 0 && self.ended == 0 {
            self.began = now_us;
        }
        self.came += 1;
        self.forget(in_flight, now_us);
        let all = f64::from(in_flight) + self.left;
        match self.limit {
            Some(limit) if all >= limit => Err(whole(limit)),
            _ => {
                self.most = self.most.max(whole(all) + 1);
                Ok(())
            }
        }
    }

    /// A request's client went away before its answer came: that is no answer, and the server
    /// still has it.
    pub fn gone(&mut self, policy: &Adaptive, in_flight: u32, now_us: u64) {
        self.forget(in_flight, now_us);
        self.left += 1.0;
        if now_us.saturating_sub(self.began) >= WINDOW_US_MAX {
            self.turn(policy, in_flight, now_us);
        }
    }

    /// Those that were left are worked on as the others are.
    fn forget(&mut self, in_flight: u32, now_us: u64) {
        let passed = float(now_us.saturating_sub(self.left_at)) / 1e6;
        self.left_at = now_us;
        if self.left > 0.0 {
            let share = self.left / (self.left + f64::from(in_flight));
            self.left = (self.left - passed * self.pace.max(1.0) * share).max(0.0);
        }
    }

    /// A request ended, well or not, and `in_flight` others are left.
    pub fn end(&mut self, policy: &Adaptive, took_us: u64, in_flight: u32, now_us: u64) {
        self.ended += 1;
        self.took = self.took.saturating_add(took_us);
        let age = now_us.saturating_sub(self.began);
        let full = age >= WINDOW_US && self.ended >= ANSWERS_MIN;
        if full || age >= WINDOW_US_MAX {
            self.forget(in_flight, now_us);
            self.turn(policy, in_flight, now_us);
        }
    }

    fn turn(&mut self, policy: &Adaptive, in_flight: u32, now_us: u64) {
        let all = f64::from(in_flight) + self.left;
        self.settle(policy, all, now_us.saturating_sub(self.began));
        (self.came, self.ended, self.took, self.most) = (0, 0, 0, whole(all));
        self.began = now_us;
    }

    /// Requests that may be in flight; `None` is no limit.
    pub fn limit(&self) -> Option<u32> {
        self.limit.map(whole)
    }

    fn settle(&mut self, policy: &Adaptive, in_flight: f64, age_us: u64) {
        let rate = float(self.ended) * 1e6 / float(age_us.max(1));
        if self.ended > 0 {
            self.pace = if self.pace == 0.0 { rate } else { (self.pace + rate) / 2.0 };
        }
        // What the last of those in line will take, as answers come now.
        let ahead = in_flight * 1e6 / self.pace.max(0.001);
        let took = match self.ended {
            0 => ahead,
            ended => float(self.took) / float(ended),
        };
        if self.usual == 0.0 && self.ended > 0 {
            self.usual = took;
        }
        let tolerated = self.usual * f64::from(policy.tolerance_permille.max(1_000)) / 1_000.0;
        let piling = self.ended * 10 < self.came * 9;
        let slow = took > tolerated || (piling && ahead > tolerated);
        if self.ended == 0 {
            // Nothing is known of answers.
        } else if took < self.usual {
            self.usual += (took - self.usual) * 0.3;
        } else if !piling {
            self.usual += (took - self.usual) * 0.02;
        }
        let least = f64::from(policy.limit_min.max(1));
        let worst = if piling { took.max(ahead) } else { took };
        let gradient = (tolerated / worst.max(1.0)).clamp(0.5, 1.0);
        self.piled = if piling { self.piled + 1 } else { 0 };
        let Some(limit) = self.limit else {
            // What is in line already takes so long, as answers come now.
            let long = self.piled >= PILED && ahead >= f64::from(policy.wait_ms) * 1e3;
            if slow && long && f64::from(self.most) >= 2.0 * least {
                self.limit = Some((f64::from(self.most) * gradient).max(least));
                (self.calm, self.trial) = (0, Trial::default());
            }
            return;
        };
        // What was let in under an older limit says nothing about this one.
        if in_flight > limit + 1.0 {
            return;
        }
        self.calm = if piling { 0 } else { self.calm + 1 };
        if self.calm >= CALM {
            self.limit = None;
            return;
        }
        let limit = match self.trial.from {
            Some(from) => self.tried(limit, from, rate),
            None if slow && piling => {
                let cut = (limit * gradient).max(least);
                // Near where it settles: measure, then try more.
                let steady = cut >= limit * 0.9 || cut <= least;
                self.steady(if steady { cut.max(limit.min(cut)) } else { cut }, rate, steady)
            }
            None if f64::from(self.most) >= limit * 0.9 => {
                self.steady(limit + limit.sqrt().max(1.0), rate, true)
            }
            None => limit,
        };
        self.limit = Some(limit.clamp(least, f64::from(policy.limit_max.max(policy.limit_min))));
    }

    /// Counts windows at about one limit; after enough of them a higher one is tried.
    fn steady(&mut self, limit: f64, rate: f64, steady: bool) -> f64 {
        if !steady {
            self.trial = Trial::default();
            return limit;
        }
        self.trial.windows += 1;
        self.trial.before += rate / f64::from(MEASURED);
        if self.trial.windows < MEASURED {
            return limit;
        }
        self.trial.windows = 0;
        self.trial.from = Some(limit);
        limit * 1.3 + 1.0
    }

    /// A window of a trial: at its end the higher limit stays if it brought a tenth more.
    fn tried(&mut self, limit: f64, from: f64, rate: f64) -> f64 {
        self.trial.windows += 1;
        if self.trial.windows > SETTLING {
            self.trial.during += rate / f64::from(MEASURED);
        }
        if self.trial.windows < SETTLING + MEASURED {
            return limit;
        }
        let more = self.trial.during > self.trial.before * 1.1;
        self.trial = Trial::default();
        if more { limit } else { from }
    }
}

#[allow(clippy::cast_precision_loss)]
fn float(n: u64) -> f64 {
    n as f64
}

// Between the policy's two numbers.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(limit: f64) -> u32 {
    limit as u32
}
