// SPDX-License-Identifier: Apache-2.0
//! Addresses of names outside the mesh. However many requests need a name, it is looked up once at
//! a time, and few names are at once, on threads of their own. A name that one is stuck with is not
//! asked for again until that has come back, and is in nobody's way meanwhile. An answer is kept
//! for a moment, a failure for a shorter one, and the last good address for as long as the resolver
//! fails. Called where a destination is unknown to the table.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use weft_base::clock::{Clock, Mono};
use weft_base::task::TaskGroup;

use crate::observe::metrics::lock;

/// Look-ups at a time.
const LOOKUPS_MAX: usize = 8;
/// Those that the system does not come back from, beside these. With so many their turns are kept.
const STUCK_MAX: usize = 24;
/// Names that are kept.
const NAMES_MAX: usize = 1_024;
/// A look-up's time, with that for its turn.
const TIME: Duration = Duration::from_secs(5);
const KEPT: Duration = Duration::from_secs(5);
/// The same of a failure.
const KEPT_FAILURE: Duration = Duration::from_secs(1);
/// How long a name keeps its last address while nobody can say another.
const KEPT_GOOD: Duration = Duration::from_secs(600);

const LATE: &str = "resolving its name took too long";

type Looking = BoxFuture<'static, io::Result<Vec<IpAddr>>>;
type Lookup = Box<dyn Fn(&str) -> Looking + Send + Sync>;

/// What all workers know of names.
pub struct Resolver {
    clock: Clock,
    lookup: Lookup,
    turns: Semaphore,
    stuck: Semaphore,
    time: Duration,
    names: Mutex<HashMap<Box<str>, Name>>,
}

#[derive(Default)]
struct Name {
    /// Closes when the look-up under way is over, or has taken too long.
    asked: Option<watch::Receiver<()>>,
    /// It has, and holds its thread still.
    stuck: bool,
    answer: Option<(Result<IpAddr, Arc<str>>, Mono)>,
    /// The last good address, and until when it is one.
    good: Option<(IpAddr, Mono)>,
}

// === impl Resolver ===

impl Resolver {
    /// By the system's resolver. Each look-up has a thread: those that runtimes have for what
    /// blocks are few, and are for other things, too.
    pub fn system(clock: Clock) -> Arc<Self> {
        Self::by(clock, |name| {
            let name = name.to_owned();
            let (tell, told) = oneshot::channel();
            let look = move || {
                let found = (&*name, 0).to_socket_addrs();
                // Nobody waits any more when the proxy ends.
                let _ = tell.send(found.map(|all| all.map(|at| at.ip()).collect()));
            };
            let begun = std::thread::Builder::new().name("weft-look-up".into()).spawn(look);
            async move {
                begun?;
                told.await.map_err(io::Error::other)?
            }
            .boxed()
        })
    }

    fn by(clock: Clock, lookup: impl Fn(&str) -> Looking + Send + Sync + 'static) -> Arc<Self> {
        let [turns, stuck] = [LOOKUPS_MAX, STUCK_MAX].map(Semaphore::new);
        let (lookup, names) = (Box::new(lookup), Mutex::default());
        Arc::new(Self { clock, lookup, turns, stuck, time: TIME, names })
    }

    /// The address of a name. Look-ups are `tasks`' own: who asked first may leave.
    ///
    /// # Errors
    /// Why it has none.
    pub async fn address(
        self: &Arc<Self>,
        tasks: &TaskGroup,
        name: &str,
    ) -> Result<IpAddr, String> {
        let asking = async {
            loop {
                let mut asked = match self.known(tasks, name) {
                    Ok(answer) => return answer,
                    Err(asked) => asked,
                };
                // It only ever closes.
                let _ = asked.changed().await;
            }
        };
        // A look-up ends by itself; another one may follow if its answer is old at once.
        let limit = self.time * 2;
        let late = |_| LATE.to_owned();
        tokio::time::timeout(limit, asking).await.map_err(late)?
    }

    /// What is known of a name, or what to wait for until it is.
    fn known(
        self: &Arc<Self>,
        tasks: &TaskGroup,
        name: &str,
    ) -> Result<Result<IpAddr, String>, watch::Receiver<()>> {
        let now = self.clock.now();
        let mut names = lock(&self.names);
        if let Some(known) = names.get(name) {
            if let Some((answer, _)) = known.answer.as_ref().filter(|(_, until)| now < *until) {
                return Ok(answer.clone().map_err(|why| why.to_string()));
            }
            if known.stuck {
                let last = known.answer.as_ref().map(|(answer, _)| answer.clone());
                return Ok(last.unwrap_or_else(|| Err(LATE.into())).map_err(|why| why.to_string()));
            }
            if let Some(asked) = known.asked.as_ref().filter(|asked| asked.has_changed().is_ok()) {
                return Err(asked.clone());
            }
        } else if !make_room(&mut names, now) {
            return Ok(Err(format!("{NAMES_MAX} other names are being looked up, the most")));
        }
        let (over, asked) = watch::channel(());
        names.entry(name.into()).or_default().asked = Some(asked.clone());
        drop(names);
        let (resolver, name) = (self.clone(), Box::<str>::from(name));
        tasks.spawn("look-up of a name", async move {
            resolver.look_up(&name, over).await;
        });
        Err(asked)
    }

    /// Asks the system, which cannot be told to stop: `over` goes when nobody need wait any more.
    async fn look_up(&self, name: &str, over: watch::Sender<()>) {
        let end = Instant::now() + self.time;
        let Ok(turn) = timeout_at(end, self.turns.acquire()).await else {
            return self.found(name, None, false);
        };
        let mut looking = (self.lookup)(name);
        if let Ok(found) = timeout_at(end, &mut looking).await {
            return self.found(name, Some(found), false);
        }
        self.found(name, None, true);
        drop(over);
        let stuck = self.stuck.try_acquire();
        // Others have its turn, unless too many never come back.
        let _turn = stuck.is_err().then_some(turn);
        let found = looking.await;
        self.found(name, Some(found), false);
    }

    /// Notes what was found; nothing is known when it took too long.
    fn found(&self, name: &str, found: Option<io::Result<Vec<IpAddr>>>, stuck: bool) {
        let found = match found {
            Some(Ok(found)) => found.first().copied().ok_or("its name has no address".into()),
            Some(Err(error)) => Err(format!("its name cannot be resolved: {error}").into()),
            None => Err(Arc::from(LATE)),
        };
        let now = self.clock.now();
        let mut names = lock(&self.names);
        let known = names.entry(name.into()).or_default();
        (known.asked, known.stuck) = (None, stuck);
        let (answer, kept) = match found {
            Ok(address) => {
                known.good = Some((address, now.plus(KEPT_GOOD)));
                (Ok(address), KEPT)
            }
            Err(why) => {
                let good = known.good.filter(|(_, until)| now < *until);
                (good.map(|(address, _)| address).ok_or(why), KEPT_FAILURE)
            }
        };
        known.answer = Some((answer, now.plus(kept)));
    }
}

/// Forgets what is old, and then what is only known; `false` when all of it is being asked for.
/// What a thread is stuck with is.
fn make_room(names: &mut HashMap<Box<str>, Name>, now: Mono) -> bool {
    if names.len() >= NAMES_MAX {
        let is_fresh = |name: &Name| name.answer.as_ref().is_some_and(|(_, until)| now < *until);
        names.retain(|_, name| name.is_asked() || is_fresh(name));
    }
    if names.len() >= NAMES_MAX {
        names.retain(|_, name| name.is_asked());
    }
    names.len() < NAMES_MAX
}

// === impl Name ===

impl Name {
    fn is_asked(&self) -> bool {
        self.asked.is_some() || self.stuck
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("names", &lock(&self.names).len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use weft_base::clock::ManualClock;

    use super::*;

    /// A resolver whose answers are the test's: how often it was asked, and how often at once.
    struct Asked {
        resolver: Arc<Resolver>,
        clock: Arc<ManualClock>,
        times: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        fails: Arc<std::sync::atomic::AtomicBool>,
        go: Arc<Semaphore>,
        tasks: TaskGroup,
    }

    fn asked() -> Asked {
        let clock = Arc::new(ManualClock::default());
        let [times, most, now] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let go = Arc::new(Semaphore::new(0));
        let (t, m, f, g) = (times.clone(), most.clone(), fails.clone(), go.clone());
        let resolver = Resolver::by(Clock::Manual(clock.clone()), move |_| {
            t.fetch_add(1, Ordering::SeqCst);
            let (now, m, f, g) = (now.clone(), m.clone(), f.clone(), g.clone());
            async move {
                m.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                g.acquire().await.unwrap().forget();
                now.fetch_sub(1, Ordering::SeqCst);
                let n =
                    if f.load(Ordering::SeqCst) { return Err(io::Error::other("no")) } else { 1 };
                Ok(vec![IpAddr::from([127, 0, 0, n])])
            }
            .boxed()
        });
        Asked { resolver, clock, times, most, fails, go, tasks: TaskGroup::new() }
    }

    impl Asked {
        async fn ask(&self, name: &str) -> Result<IpAddr, String> {
            self.resolver.address(&self.tasks, name).await
        }

        fn times(&self) -> usize {
            self.times.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn f17_a_thousand_requests_of_one_name_are_one_look_up() {
        let asked = asked();
        let all = join_all((0..1_000).map(|_| asked.ask("a.example")));
        let go = async {
            tokio::task::yield_now().await;
            asked.go.add_permits(1);
        };
        let (all, ()) = tokio::join!(all, go);
        assert!(all.iter().all(|one| one.as_ref().is_ok_and(|ip| ip.is_loopback())));
        assert_eq!(asked.times(), 1);
        // The answer is kept for a while, and not for ever.
        asked.ask("a.example").await.unwrap();
        assert_eq!(asked.times(), 1);
        asked.clock.advance(KEPT);
        asked.go.add_permits(1);
        asked.ask("a.example").await.unwrap();
        assert_eq!(asked.times(), 2);
    }

    #[tokio::test]
    async fn few_names_are_looked_up_at_once_and_who_asked_first_may_leave() {
        let asked = asked();
        let names: Vec<String> = (0..100).map(|n| format!("{n}.example")).collect();
        {
            // All of them go away again, and what they asked for goes on.
            let leaving = join_all(names.iter().map(|name| asked.ask(name)));
            assert!(leaving.now_or_never().is_none());
        }
        while asked.times() < LOOKUPS_MAX {
            tokio::task::yield_now().await;
        }
        asked.go.add_permits(100);
        let all = join_all(names.iter().map(|name| asked.ask(name))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!((asked.times(), asked.most.load(Ordering::SeqCst)), (100, LOOKUPS_MAX));
    }

    #[tokio::test]
    async fn failures_are_kept_shortly_and_the_last_good_address_stays() {
        let asked = asked();
        asked.go.add_permits(100);
        asked.fails.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            let why = asked.ask("a.example").await.unwrap_err();
            assert!(why.contains("cannot be resolved: no"), "{why}");
        }
        assert_eq!(asked.times(), 1);
        asked.clock.advance(KEPT_FAILURE);
        asked.fails.store(false, Ordering::SeqCst);
        let good = asked.ask("a.example").await.unwrap();
        asked.clock.advance(KEPT);
        asked.fails.store(true, Ordering::SeqCst);
        assert_eq!(asked.ask("a.example").await, Ok(good));
        assert_eq!(asked.times(), 3);
        asked.clock.advance(KEPT_GOOD);
        assert!(asked.ask("a.example").await.is_err());
    }

    /// A name whose servers are gone takes up one thread, however often it is asked for.
    #[tokio::test]
    async fn a_look_up_that_is_stuck_holds_one_thread_and_no_other_name() {
        let mut asked = asked();
        Arc::get_mut(&mut asked.resolver).unwrap().time = Duration::from_millis(500);
        for _ in 0..10 {
            let why = asked.ask("stuck.example").await.unwrap_err();
            assert_eq!(why, LATE);
            asked.clock.advance(KEPT);
        }
        assert_eq!(asked.times(), 1);
        // It comes back; the next one asks anew, and others were never in its way.
        asked.go.add_permits(2);
        asked.ask("other.example").await.unwrap();
        while lock(&asked.resolver.names)["stuck.example"].stuck {
            tokio::task::yield_now().await;
        }
        asked.ask("stuck.example").await.unwrap();
        assert_eq!(asked.times(), 2);
    }

    #[tokio::test]
    async fn more_names_than_there_are_turns_may_be_stuck() {
        let mut asked = asked();
        Arc::get_mut(&mut asked.resolver).unwrap().time = Duration::from_millis(500);
        let names: Vec<String> = (0..LOOKUPS_MAX).map(|n| format!("{n}.stuck.example")).collect();
        let all = join_all(names.iter().map(|name| asked.ask(name))).await;
        assert!(all.iter().all(|one| one.as_ref().is_err_and(|why| why == LATE)));
        // Those come back first, one of them for each permit.
        asked.go.add_permits(LOOKUPS_MAX + 1);
        assert!(asked.ask("other.example").await.is_ok());
        assert_eq!(asked.resolver.turns.available_permits(), LOOKUPS_MAX);
    }

    #[tokio::test]
    async fn names_are_bounded() {
        let asked = asked();
        let names: Vec<String> = (0..NAMES_MAX).map(|n| format!("{n}.example")).collect();
        let mut all = Box::pin(join_all(names.iter().map(|name| asked.ask(name))));
        assert!((&mut all).now_or_never().is_none());
        let why = asked.ask("one.more.example").await.unwrap_err();
        assert!(why.contains("1024 other names are being looked up"), "{why}");
        asked.go.add_permits(NAMES_MAX + 1);
        all.await;
        assert!(asked.ask("one.more.example").await.is_ok());
        assert!(lock(&asked.resolver.names).len() <= NAMES_MAX);
    }
}
