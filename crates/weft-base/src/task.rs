// SPDX-License-Identifier: Apache-2.0
//! Tasks have parents. A group's tasks end with it; a panic in one is logged and counted.
#![allow(clippy::disallowed_methods)]

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics caught in tasks since the process started (`weft_panics_total`).
pub fn panics_total() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// A named set of tasks that is drained and then stopped together.
#[derive(Clone, Debug, Default)]
pub struct TaskGroup {
    tracker: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
}

impl TaskGroup {
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that drains and stops when its parent does, and also by itself.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            drain: self.drain.child_token(),
            stop: self.stop.child_token(),
        }
    }

    /// Runs `fut` on the current runtime until it ends or the group is stopped.
    pub fn spawn<F>(&self, name: &'static str, fut: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(until(self.stop.clone(), guarded(name, fut)));
    }

    /// The same on a current-thread runtime, for futures that stay on it.
    pub fn spawn_local<F>(&self, name: &'static str, fut: F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.tracker.spawn_local(until(self.stop.clone(), guarded(name, fut)));
    }

    /// Asks tasks to finish what they have and take nothing new.
    pub fn begin_drain(&self) {
        self.drain.cancel();
    }

    /// Resolves once draining has begun.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Stops all tasks now, wherever they are.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Drains, waits at most `grace` for the tasks, then stops what is left.
    /// Returns whether everything ended by itself.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.drain.cancel();
        self.tracker.close();
        let clean = tokio::time::timeout(grace, self.tracker.wait()).await.is_ok();
        self.stop.cancel();
        self.tracker.wait().await;
        clean
    }
}

/// Runs `work` until it ends or `stop` comes. A task is polled often and stopped once, so it asks
/// to be told of the stop once, not with every poll.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    let (mut stopped, mut work) = (pin!(stop.cancelled()), pin!(work));
    let mut told: Option<Waker> = None;
    poll_fn(|cx| {
        let known = told.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        let over = if known { stop.is_cancelled() } else { stopped.as_mut().poll(cx).is_ready() };
        if over {
            return Poll::Ready(());
        }
        if !known {
            told = Some(cx.waker().clone());
        }
        work.as_mut().poll(cx)
    })
    .await;
}

async fn guarded(name: &'static str, fut: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(fut).catch_unwind().await {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!(task = name, panic = text, "a task panicked; its work is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drain_lets_tasks_finish_and_stop_ends_the_rest() {
        let group = TaskGroup::new();
        let g = group.clone();
        group.spawn("polite", async move { g.draining().await });
        assert!(group.shutdown(Duration::from_secs(60)).await);

        let group = TaskGroup::new();
        group.spawn("stubborn", std::future::pending());
        assert!(!group.shutdown(Duration::from_millis(1)).await);
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_disturbs_nobody() {
        let before = panics_total();
        let group = TaskGroup::new();
        group.spawn("bad", async { panic!("on purpose") });
        assert!(group.shutdown(Duration::from_secs(60)).await);
        assert!(panics_total() > before);
    }
}
