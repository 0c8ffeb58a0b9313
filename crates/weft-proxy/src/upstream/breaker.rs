// SPDX-License-Identifier: Apache-2.0
//! Circuit breakers of one backend on one worker: a bounded line of requests that wait for one of
//! its connections, and a count of its retries in flight. Limits are shared evenly by workers.
//! Called by the attempt loop; knows no pool, only whether there is room, and is told by pools.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use weft_base::limits::PENDING_MAX;
use weft_model::Limits;

#[derive(Debug, Default)]
pub struct Breaker {
    /// First come, first served. What becomes free wakes one, the first that does not know yet;
    /// who cannot use it passes it on to those behind.
    line: RefCell<VecDeque<Rc<Waiter>>>,
    /// Somebody looks for room right now; what it closes for that is its own.
    looking: Cell<bool>,
    retrying: Cell<usize>,
}

#[derive(Debug, Default)]
struct Waiter {
    /// Told of something free, and has not looked yet.
    told: Cell<bool>,
    wake: Notify,
}

/// A place in the line; leaving it passes on what was not used.
#[derive(Debug)]
struct InLine {
    breaker: Rc<Breaker>,
    waiter: Rc<Waiter>,
}

/// Counts a retry while it lasts.
#[derive(Debug)]
pub struct Counted(Rc<Breaker>);

/// One worker's part of a limit; a limit that is not 0 leaves room for one.
pub fn part(most: u32, workers: usize) -> usize {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    most.div_ceil(workers.max(1)).min(most)
}

// === impl Breaker ===

impl Breaker {
    /// Waits in line until `full` no longer holds. `full` may close what is idle to make room.
    /// Cancel-safe: who goes away leaves the line.
    ///
    /// # Errors
    /// The sentence to refuse the request with: the line is full, or it took too long.
    pub async fn wait(
        self: &Rc<Self>,
        limits: &Limits,
        workers: usize,
        patience: Duration,
        full: impl Fn() -> bool,
    ) -> Result<(), String> {
        // What those in line were told of is theirs; what they have left is anybody's.
        let theirs = self.line.borrow().iter().any(|w| w.told.get());
        if !theirs && !self.look(&full) {
            return Ok(());
        }
        let open = limits.connections_max.unwrap_or(u32::MAX);
        let most = limits.pending_max.unwrap_or(PENDING_MAX);
        if self.line.borrow().len() >= part(most, workers) {
            let line = match most {
                0 => String::new(),
                _ => format!(", and {most} requests wait, its limit"),
            };
            return Err(format!("{open} connections are open, its limit, and all are busy{line}"));
        }
        let place = InLine::at_the_end(self);
        let in_line = async {
            loop {
                place.waiter.wake.notified().await;
                if place.waiter.told.replace(false) {
                    if !self.look(&full) {
                        break;
                    }
                    self.tell_behind(Some(&place.waiter));
                }
            }
        };
        tokio::time::timeout(patience, in_line).await.map_err(|_| {
            let ms = patience.as_millis();
            format!("none of its {open} connections became free within {ms} ms")
        })
    }

    /// There is room for one more request than before.
    pub fn freed(&self) {
        if !self.looking.get() {
            self.tell_behind(None);
        }
    }

    /// There is room for many more.
    pub fn opened(&self) {
        self.line.borrow().iter().for_each(|w| w.tell());
    }

    fn look(&self, full: impl Fn() -> bool) -> bool {
        self.looking.set(true);
        let full = full();
        self.looking.set(false);
        full
    }

    /// Tells the first behind `waiter`, or of all, that does not know of something free.
    fn tell_behind(&self, waiter: Option<&Rc<Waiter>>) {
        let line = self.line.borrow();
        let place = waiter.and_then(|waiter| line.iter().position(|w| Rc::ptr_eq(w, waiter)));
        let mut behind = line.iter().skip(place.map_or(0, |place| place + 1));
        if let Some(next) = behind.find(|w| !w.told.get()) {
            next.tell();
        }
    }

    /// Takes room for one retry.
    ///
    /// # Errors
    /// Why there is none.
    pub fn retry(self: &Rc<Self>, limits: &Limits, workers: usize) -> Result<Counted, String> {
        match limits.retries_max {
            Some(most) if self.retrying.get() >= part(most, workers) => {
                Err(format!("{most} retries are in flight, its limit, so it was not sent again"))
            }
            _ => {
                self.retrying.set(self.retrying.get() + 1);
                Ok(Counted(self.clone()))
            }
        }
    }
}

// === impl Waiter ===

impl Waiter {
    fn tell(&self) {
        self.told.set(true);
        self.wake.notify_one();
    }
}

// === impl InLine ===

impl InLine {
    fn at_the_end(breaker: &Rc<Breaker>) -> Self {
        let waiter = Rc::<Waiter>::default();
        breaker.line.borrow_mut().push_back(waiter.clone());
        Self { breaker: breaker.clone(), waiter }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.waiter.told.get() {
            self.breaker.tell_behind(Some(&self.waiter));
        }
        self.breaker.line.borrow_mut().retain(|w| !Rc::ptr_eq(w, &self.waiter));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.retrying.set(self.0.retrying.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
