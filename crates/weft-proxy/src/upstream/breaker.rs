// SPDX-License-Identifier: Apache-2.0
//! Circuit breakers of one backend on one worker: a bounded queue of requests that wait for one of
//! its connections, and a count of its retries in flight. Limits are shared evenly by workers.
//! Called by the attempt loop; knows no pool, only whether there is room.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use weft_base::limits::PENDING_MAX;
use weft_model::Limits;

#[derive(Debug, Default)]
pub struct Breaker {
    waiting: Cell<usize>,
    retrying: Cell<usize>,
}

/// Counts a waiting request, or a retry, while it lasts.
#[derive(Debug)]
pub struct Counted {
    breaker: Rc<Breaker>,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Waiting,
    Retrying,
}

/// One worker's part of a limit; a limit that is not 0 leaves room for one.
pub fn part(most: u32, workers: usize) -> usize {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    most.div_ceil(workers.max(1)).min(most)
}

// === impl Breaker ===

impl Breaker {
    /// Waits in line until `full` no longer holds. Cancel-safe: who goes away leaves the line.
    ///
    /// # Errors
    /// The sentence to refuse the request with: the line is full, or it took too long.
    pub async fn wait(
        self: &Rc<Self>,
        limits: &Limits,
        workers: usize,
        patience: Duration,
        freed: &Notify,
        full: impl Fn() -> bool,
    ) -> Result<(), String> {
        if self.waiting.get() == 0 && !full() {
            return Ok(());
        }
        let open = limits.connections_max.unwrap_or(u32::MAX);
        let most = limits.pending_max.unwrap_or(PENDING_MAX);
        if self.waiting.get() >= part(most, workers) {
            let line = match most {
                0 => String::new(),
                _ => format!(", and {most} requests wait, its limit"),
            };
            return Err(format!("{open} connections are open, its limit, and all are busy{line}"));
        }
        let _in_line = self.count(What::Waiting);
        let in_line = async {
            loop {
                // Enabled before the look, so that nothing freed in between is missed.
                let next = freed.notified();
                tokio::pin!(next);
                next.as_mut().enable();
                if !full() {
                    break;
                }
                next.await;
            }
        };
        let waited = tokio::time::timeout(patience, in_line).await;
        // Whoever came meanwhile looks again behind this one.
        freed.notify_waiters();
        waited.map_err(|_| {
            let ms = patience.as_millis();
            format!("none of its {open} connections became free within {ms} ms")
        })
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
            _ => Ok(self.count(What::Retrying)),
        }
    }

    fn count(self: &Rc<Self>, what: What) -> Counted {
        let cell = self.cell(what);
        cell.set(cell.get() + 1);
        Counted { breaker: self.clone(), what }
    }

    fn cell(&self, what: What) -> &Cell<usize> {
        match what {
            What::Waiting => &self.waiting,
            What::Retrying => &self.retrying,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let cell = self.breaker.cell(self.what);
        cell.set(cell.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_limit_leave_room_for_one() {
        assert_eq!([part(0, 4), part(1, 4), part(8, 4), part(9, 4)], [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_line_is_bounded_in_order_and_in_time() {
        let (breaker, freed) = (Rc::new(Breaker::default()), Rc::new(Notify::new()));
        let limits = Limits { connections_max: Some(1), pending_max: Some(2), ..Limits::default() };
        let room = Cell::new(0);
        let served = std::cell::RefCell::new(Vec::new());
        let one = |name: u32, patience_ms: u64| {
            let (room, served) = (&room, &served);
            let (breaker, freed, limits) = (breaker.clone(), freed.clone(), limits.clone());
            let patience = Duration::from_millis(patience_ms);
            async move {
                breaker.wait(&limits, 1, patience, &freed, || room.get() == 0).await?;
                room.set(room.get() - 1);
                served.borrow_mut().push(name);
                Ok::<_, String>(())
            }
        };
        let open = async {
            for _ in 0..2 {
                tokio::task::yield_now().await;
                room.set(room.get() + 1);
                freed.notify_waiters();
            }
        };
        let long = 60_000;
        let (first, second, third, ()) =
            tokio::join!(one(1, long), one(2, long), one(3, long), open);
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert!(third.unwrap_err().contains("2 requests wait, its limit"));
        assert_eq!(*served.borrow(), [1, 2]);
        assert!(one(4, 1).await.unwrap_err().contains("became free within 1 ms"));
        // The line is empty again.
        room.set(1);
        assert_eq!(one(5, 1).await, Ok(()));
    }

    #[test]
    fn retries_in_flight_are_bounded() {
        let breaker = Rc::new(Breaker::default());
        let limits = Limits { retries_max: Some(1), ..Limits::default() };
        let first = breaker.retry(&limits, 1).unwrap();
        assert!(breaker.retry(&limits, 1).unwrap_err().contains("1 retries are in flight"));
        drop(first);
        assert!(breaker.retry(&limits, 1).is_ok());
    }
}
