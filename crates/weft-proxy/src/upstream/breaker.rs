// SPDX-License-Identifier: Apache-2.0
//! Circuit breakers of one backend as one worker knows them: a bounded line of requests that wait
//! for one of its connections, and what of the whole proxy's limits is in use here. Called by the
//! attempt loop, and told by pools; of these it knows which have something idle that counts here.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use weft_base::limits::PENDING_MAX;
use weft_model::Limits;

use super::pool::{Closed, Pool};
use super::quota::Quota;

mod known;

pub use known::Breakers;

/// How often those in line look by themselves, and ask other workers again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The limits of one backend, which all workers share; they outlive tables.
#[derive(Debug)]
pub struct Quotas {
    born: Instant,
    connections: Quota,
    pending: Quota,
    requests: Quota,
    retries: Quota,
}

#[derive(Debug, Default)]
pub struct Breaker {
    /// `None`: the backend never had a limit.
    quotas: Option<Arc<Quotas>>,
    worker: usize,
    /// First come, first served. What becomes free wakes one, the first that does not know yet;
    /// who cannot use it passes it on to those behind.
    line: RefCell<VecDeque<Rc<Waiter>>>,
    /// Whose connections may be counted here.
    pools: RefCell<Vec<Weak<Pool>>>,
    /// Somebody looks for room right now; what it closes for that is its own.
    looking: Cell<bool>,
}

/// What somebody in line finds.
#[derive(Debug)]
pub enum Found<T> {
    Room(T),
    /// Something idle was closed, and is over in a moment: who waits for that is no crowd.
    Soon,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Look,
    AskAgain,
}

#[derive(Debug)]
struct Waiter {
    since: u64,
    /// Told of something free, and has not looked yet.
    told: Cell<bool>,
    wake: Notify,
}

/// A place in the line; leaving it passes on what was not used.
#[derive(Debug)]
struct InLine {
    breaker: Rc<Breaker>,
    waiter: Rc<Waiter>,
    _pending: Option<Taken>,
}

/// A unit of a limit, until it is dropped.
#[derive(Debug)]
pub struct Taken {
    of: Rc<Breaker>,
    which: fn(&Quotas) -> &Quota,
}

/// The right of an attempt to open a connection to its backend.
#[derive(Default)]
pub struct Grant {
    /// Of a backend with a limit.
    of: Option<(Rc<Breaker>, u32)>,
    held: Cell<Option<Taken>>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").field("limit", &self.of.as_ref().map(|(_, most)| most)).finish()
    }
}

// === impl Quotas ===

impl Quotas {
    /// What all workers use of them: connections, waiting requests, requests, retries.
    pub fn used(&self) -> [u64; 4] {
        let all = [&self.connections, &self.pending, &self.requests, &self.retries];
        all.map(Quota::used)
    }

    pub fn new(workers: usize) -> Arc<Self> {
        let quota = || Quota::new(workers);
        Arc::new(Self {
            born: Instant::now(),
            connections: quota(),
            pending: quota(),
            requests: quota(),
            retries: quota(),
        })
    }

    /// Whether a backend with these limits needs such.
    pub fn are_for(limits: &Limits) -> bool {
        *limits != Limits::default()
    }

    /// Whether a worker has connections, or the right to open some.
    pub fn is_connected(&self, worker: usize) -> bool {
        self.connections.used_by(worker) > 0
    }

    /// Milliseconds that are never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

// === impl Breaker ===

impl Breaker {
    pub fn new(quotas: Option<Arc<Quotas>>, worker: usize) -> Rc<Self> {
        Rc::new(Self { quotas, worker, ..Self::default() })
    }

    /// Whether it counts there.
    pub fn is_of(&self, quotas: Option<&Arc<Quotas>>) -> bool {
        self.quotas.as_ref().map(Arc::as_ptr) == quotas.map(Arc::as_ptr)
    }

    /// Waits in line while `look` finds no room, which may close what is idle to make some. `ask`
    /// asks other workers for theirs. Cancel-safe: who goes away leaves the line. `until` is when
    /// its patience ends, and how long that was.
    ///
    /// # Errors
    /// The sentence to refuse the request with: the line is full, or it took too long.
    pub async fn wait<T>(
        self: &Rc<Self>,
        limits: &Limits,
        (until, patience): (Instant, Duration),
        look: impl Fn() -> Found<T>,
        ask: impl Fn(),
    ) -> Result<T, String> {
        // What those in line were told of is theirs; what they have left is anybody's.
        let theirs = self.line.borrow().iter().any(|w| w.told.get());
        let found = if theirs { Found::Nothing } else { self.look(&look) };
        let soon = matches!(found, Found::Soon);
        if let Found::Room(room) = found {
            return Ok(room);
        }
        let open = limits.connections_max.unwrap_or(u32::MAX);
        let most = limits.pending_max.unwrap_or(PENDING_MAX);
        let pending = self.take(|q| &q.pending, most);
        if pending.is_none() && self.quotas.is_some() && !soon {
            let line = match most {
                0 => String::new(),
                _ => format!(", and {most} requests wait, its limit"),
            };
            return Err(format!("{open} connections are open, its limit, and all are busy{line}"));
        }
        let (place, first) = InLine::at_the_end(self, pending);
        let in_line = async {
            // Before it said that it waits nobody could tell it of anything.
            if first && let Found::Room(room) = self.look(&look) {
                return room;
            }
            ask();
            loop {
                match place.told().await {
                    Told::Nothing => continue,
                    Told::AskAgain => ask(),
                    Told::Look => {}
                }
                if let Found::Room(room) = self.look(&look) {
                    return room;
                }
                self.tell_behind(Some(&place.waiter));
            }
        };
        // Boxed: every request has room for this future, and few wait.
        Box::pin(tokio::time::timeout_at(until, in_line)).await.map_err(|_| {
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

    fn look<T>(&self, look: impl Fn() -> Found<T>) -> Found<T> {
        self.looking.set(true);
        let found = look();
        self.looking.set(false);
        found
    }

    /// Counts another connection; `None`: there may be no more.
    pub fn connect(self: &Rc<Self>, most: u32) -> Option<Taken> {
        self.take(|q| &q.connections, most)
    }

    /// What one more connection is counted by; one that is idle gives way.
    pub fn place(self: &Rc<Self>, most: u32) -> Found<Taken> {
        loop {
            if let Some(taken) = self.connect(most) {
                return Found::Room(taken);
            }
            match self.close_idle() {
                Some(Closed::Now) => {}
                Some(Closed::Soon) => return Found::Soon,
                None => return Found::Nothing,
            }
        }
    }

    /// Connections of a pool may be counted here from now on.
    pub(super) fn counts(&self, pool: &Rc<Pool>) {
        let mut pools = self.pools.borrow_mut();
        if pools.len() == pools.capacity() {
            pools.retain(|known| known.strong_count() > 0);
        }
        pools.push(Rc::downgrade(pool));
    }

    /// Closes what has been idle for longest of what is counted here; `None` when all is busy.
    fn close_idle(&self) -> Option<Closed> {
        let oldest = {
            let pools = self.pools.borrow();
            let idle = pools.iter().filter_map(Weak::upgrade);
            let idle = idle.filter_map(|pool| Some((pool.idle_since(self)?, pool)));
            idle.min_by_key(|(since, _)| *since)
        };
        oldest.and_then(|(_, pool)| pool.close_idle(self))
    }

    /// Lets other workers have what is idle here, as far as they wait for it; and where one of
    /// them has waited for long what is never idle.
    pub fn give_way(&self) {
        // What is over in a moment is one for who asked; others that wait ask themselves.
        while self.owes_idle() && self.close_idle() == Some(Closed::Now) {}
        if self.owes_busy() {
            let pools = self.pools.borrow();
            pools.iter().filter_map(Weak::upgrade).any(|pool| pool.leave_one(self));
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// Why there may be no more.
    pub fn request(self: &Rc<Self>, limits: &Limits) -> Result<Option<Taken>, String> {
        let Some(most) = limits.requests_max else { return Ok(None) };
        let taken = self.take(|q| &q.requests, most);
        let full = || format!("{most} requests are in flight, its limit");
        taken.map(Some).ok_or_else(full)
    }

    /// Counts a retry.
    ///
    /// # Errors
    /// Why there may be no more.
    pub fn retry(self: &Rc<Self>, limits: &Limits) -> Result<Option<Taken>, String> {
        let Some(most) = limits.retries_max else { return Ok(None) };
        let taken = self.take(|q| &q.retries, most);
        let full = || format!("{most} retries are in flight, its limit, so it was not sent again");
        taken.map(Some).ok_or_else(full)
    }

    fn take(self: &Rc<Self>, which: fn(&Quotas) -> &Quota, most: u32) -> Option<Taken> {
        let quotas = self.quotas.as_ref()?;
        which(quotas).take(self.worker, most).then(|| Taken { of: self.clone(), which })
    }

    /// Gives back what is leased here and was not used for a while.
    pub fn rest(&self) {
        if let Some(q) = &self.quotas {
            for quota in [&q.connections, &q.pending, &q.requests, &q.retries] {
                quota.rest(self.worker);
            }
        }
    }

    /// Whether a connection that has become idle here belongs to another worker.
    pub fn owes_idle(&self) -> bool {
        self.quotas.as_ref().is_some_and(|q| q.connections.is_owed(self.worker))
    }

    /// Whether one does that is never idle.
    fn owes_busy(&self) -> bool {
        let in_earnest = |q: &Arc<Quotas>| q.connections.is_owed_in_earnest(self.worker, q.now());
        self.quotas.as_ref().is_some_and(in_earnest)
    }

    /// Says to other workers whether somebody waits here, and since when.
    fn publish(&self) {
        if let Some(q) = &self.quotas {
            let since = self.line.borrow().front().map(|first| first.since);
            q.connections.waits(self.worker, since);
        }
    }

    async fn given(&self) {
        match &self.quotas {
            Some(q) => q.connections.given(self.worker).await,
            None => std::future::pending().await,
        }
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
    /// With whether it is the first.
    fn at_the_end(breaker: &Rc<Breaker>, pending: Option<Taken>) -> (Self, bool) {
        let since = breaker.quotas.as_ref().map_or(0, |q| q.now());
        let waiter = Rc::new(Waiter { since, told: Cell::new(false), wake: Notify::new() });
        let first = breaker.line.borrow().is_empty();
        breaker.line.borrow_mut().push_back(waiter.clone());
        if first {
            breaker.publish();
        }
        (Self { breaker: breaker.clone(), waiter, _pending: pending }, first)
    }

    fn is_first(&self) -> bool {
        self.breaker.line.borrow().front().is_some_and(|w| Rc::ptr_eq(w, &self.waiter))
    }

    /// Waits until it was told of something, or may ask for it again.
    async fn told(&self) -> Told {
        tokio::select! {
            biased;
            () = self.waiter.wake.notified() => {}
            // Another worker tells whoever of this one hears it.
            () = self.breaker.given() => self.breaker.tell_behind(None),
            () = tokio::time::sleep(LOOK_AGAIN) => {
                if self.is_first() {
                    self.waiter.told.set(false);
                    return Told::AskAgain;
                }
            }
        }
        if self.waiter.told.replace(false) { Told::Look } else { Told::Nothing }
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.waiter.told.get() {
            self.breaker.tell_behind(Some(&self.waiter));
        }
        let first = self.is_first();
        self.breaker.line.borrow_mut().retain(|w| !Rc::ptr_eq(w, &self.waiter));
        if first {
            self.breaker.publish();
        }
    }
}

// === impl Taken ===

impl Taken {
    pub fn is_of(&self, breaker: &Breaker) -> bool {
        std::ptr::eq(&*self.of, breaker)
    }

    /// Whether what it was taken for is owed to another worker, once it is idle.
    pub fn is_owed(&self) -> bool {
        self.of.owes_idle()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(quotas) = &self.of.quotas {
            (self.which)(quotas).put(self.of.worker);
        }
    }
}

// === impl Grant ===

impl Grant {
    /// For a backend whose limit is `most`; `held` when a connection is to be opened.
    pub fn of(breaker: Rc<Breaker>, most: u32, held: Option<Taken>) -> Self {
        Self { of: Some((breaker, most)), held: Cell::new(held) }
    }

    /// What a new connection is counted by.
    ///
    /// # Errors
    /// The limit is reached.
    pub fn claim(&self) -> Result<Option<Taken>, u32> {
        let Some((breaker, most)) = &self.of else { return Ok(None) };
        let taken = self.held.take().or_else(|| breaker.connect(*most));
        taken.map(Some).ok_or(*most)
    }

    /// No connection is to be opened for it: somebody in line may open one.
    pub fn release(&self) {
        if let (Some(held), Some((breaker, _))) = (self.held.take(), &self.of) {
            drop(held);
            breaker.freed();
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests;
