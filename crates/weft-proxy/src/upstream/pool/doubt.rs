// SPDX-License-Identifier: Apache-2.0
//! Whether an endpoint is still there, as the connections of one pool tell. Called by the pool and,
//! before a request goes to an endpoint, by the attempt loop. It ends nothing and refuses nothing:
//! while there is a doubt, requests that have another endpoint go there, and one connection that is
//! opened says who is right.
//!
//! There is a doubt when a connection takes much longer to open than it should, and when requests
//! on kept connections hear nothing while the system sends them again and again. Without that,
//! whatever is sent until the first connection was given up waits as long as that one.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::tcp::half_open;

/// To open a connection takes no longer, unless the last one took long too.
const PATIENCE: Duration = Duration::from_millis(250);
/// So many times what the last one took is no longer usual.
const TIMES: u32 = 3;
/// Requests under way hear nothing for so long before their sockets are looked at.
const QUIET: Duration = Duration::from_millis(300);
/// And are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Requests that wait for an answer's head on connections of HTTP/1.
    asking: Cell<u32>,
    /// When something was last heard, or when they began to wait.
    heard: Cell<Option<Instant>>,
    looked: Cell<Option<Instant>>,
    /// What was sent is sent again and again: kept connections are not to be used.
    mute: Cell<bool>,
    /// Connections that take too long to open, now.
    overdue: Cell<u32>,
    /// What it took to open the last one.
    took: Cell<Duration>,
}

/// One request that waits for its answer's head.
#[derive(Debug)]
pub(super) struct Asking<'a>(&'a Doubt);

/// One connection that takes too long.
#[derive(Debug)]
struct Overdue<'a>(&'a Doubt);

// === impl Doubt ===

impl Doubt {
    #[cfg(test)]
    pub fn set_mute(&self, mute: bool) {
        self.mute.set(mute);
    }

    /// A connection is being opened that takes too long, or longer than what is known of it allows.
    pub fn is_raised(&self) -> bool {
        self.overdue.get() > 0
    }

    /// Whether a request that is sent `now` may use a connection that was kept.
    pub fn trusts_kept(&self, address: SocketAddr, now: Instant) -> bool {
        if self.mute.get() {
            return false;
        }
        let quiet = |since: Instant| now.saturating_duration_since(since) > QUIET;
        if self.asking.get() == 0 || !self.heard.get().is_some_and(quiet) {
            return true;
        }
        let recent = |at: Instant| now.saturating_duration_since(at) < LOOK_EVERY;
        if self.looked.get().is_some_and(recent) {
            return true;
        }
        self.looked.set(Some(now));
        self.mute.set(half_open::is_mute(address));
        !self.mute.get()
    }

    /// A request is sent `now`.
    pub fn asks(&self, now: Instant) -> Asking<'_> {
        if self.asking.get() == 0 {
            self.heard.set(Some(now));
        }
        self.asking.set(self.asking.get() + 1);
        Asking(self)
    }

    /// The endpoint said something just now: it is there, whoever else waits for it.
    pub fn heard(&self, now: Instant) {
        self.heard.set(Some(now));
        self.mute.set(false);
    }

    /// Opens a connection and learns from how long it takes. Cancel-safe as `opening` is.
    pub async fn opens<T, E>(&self, opening: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let mut opening = pin!(opening);
        let mut late = self.mute.get().then(|| Overdue::of(self));
        if late.is_none() {
            match timeout(self.patience(), opening.as_mut()).await {
                Ok(opened) => return self.opened(opened, began),
                Err(_) => late = Some(Overdue::of(self)),
            }
        }
        let opened = opening.await;
        drop(late);
        self.opened(opened, began)
    }

    fn patience(&self) -> Duration {
        PATIENCE.max(self.took.get() * TIMES)
    }

    fn opened<T, E>(&self, opened: Result<T, E>, began: Instant) -> Result<T, E> {
        if opened.is_ok() {
            let now = Instant::now();
            self.took.set(now.saturating_duration_since(began));
            self.heard(now);
        }
        opened
    }
}

// === impl Asking ===

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.set(self.0.asking.get().saturating_sub(1));
    }
}

// === impl Overdue ===

impl<'a> Overdue<'a> {
    fn of(doubt: &'a Doubt) -> Self {
        doubt.overdue.set(doubt.overdue.get() + 1);
        Self(doubt)
    }
}

impl Drop for Overdue<'_> {
    fn drop(&mut self) {
        self.0.overdue.set(self.0.overdue.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const NOBODY: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    type Opened = Result<(), ()>;

    #[tokio::test]
    async fn what_takes_too_long_to_open_is_doubted_until_it_ends() {
        let doubt = Doubt::default();
        assert_eq!(doubt.opens(ready(Opened::Ok(()))).await, Ok(()));
        assert!(!doubt.is_raised());
        let began = Instant::now();
        {
            let mut opening = pin!(doubt.opens(pending::<Opened>()));
            while !doubt.is_raised() {
                let waiting = timeout(Duration::from_millis(10), opening.as_mut());
                assert!(waiting.await.is_err() && began.elapsed() < PATIENCE * 100);
            }
            assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
        }
        assert!(!doubt.is_raised(), "whoever wanted it is gone");
    }

    #[test]
    fn who_is_far_away_may_take_longer() {
        let doubt = Doubt::default();
        assert_eq!(doubt.patience(), PATIENCE);
        doubt.took.set(Duration::from_millis(2));
        assert_eq!(doubt.patience(), PATIENCE);
        doubt.took.set(Duration::from_millis(400));
        assert_eq!(doubt.patience(), Duration::from_millis(1_200));
    }

    #[test]
    fn slow_answers_of_somebody_who_is_there_raise_no_doubt() {
        let doubt = Doubt::default();
        let began = Instant::now();
        let asking = doubt.asks(began);
        assert!(doubt.trusts_kept(NOBODY, began + QUIET) && doubt.looked.get().is_none());
        // No socket of this thread goes there, so none is stuck.
        let later = began + QUIET * 3;
        assert!(doubt.trusts_kept(NOBODY, later));
        assert_eq!(doubt.looked.get(), Some(later), "it was looked at");
        assert!(doubt.trusts_kept(NOBODY, later + LOOK_EVERY / 2));
        assert_eq!(doubt.looked.get(), Some(later), "not again so soon");
        drop(asking);
        assert!(doubt.trusts_kept(NOBODY, later + QUIET));
        assert_eq!(doubt.looked.get(), Some(later), "nobody waits");
    }

    #[test]
    fn an_answer_on_a_kept_connection_ends_the_doubt() {
        let doubt = Doubt::default();
        let now = Instant::now();
        let _asking = doubt.asks(now);
        doubt.mute.set(true);
        assert!(!doubt.trusts_kept(NOBODY, now + QUIET * 2));
        doubt.heard(now + QUIET * 2);
        assert!(doubt.trusts_kept(NOBODY, now + QUIET * 2));
        assert!(doubt.looked.get().is_none(), "nobody had to look");
    }

    #[tokio::test]
    async fn one_that_is_mute_is_asked_once_more_and_trusted_when_it_answers() {
        let doubt = Doubt::default();
        doubt.mute.set(true);
        assert!(!doubt.trusts_kept(NOBODY, Instant::now()));
        {
            let mut opening = pin!(doubt.opens(pending::<Opened>()));
            let early = timeout(Duration::from_millis(1), opening.as_mut()).await;
            assert!(early.is_err() && doubt.is_raised(), "others avoid it at once");
        }
        assert!(!doubt.trusts_kept(NOBODY, Instant::now()), "that nobody waited says nothing");
        assert_eq!(doubt.opens(ready(Opened::Err(()))).await, Err(()));
        assert!(!doubt.trusts_kept(NOBODY, Instant::now()));
        assert_eq!(doubt.opens(ready(Opened::Ok(()))).await, Ok(()));
        assert!(doubt.trusts_kept(NOBODY, Instant::now()) && !doubt.is_raised());
    }
}
