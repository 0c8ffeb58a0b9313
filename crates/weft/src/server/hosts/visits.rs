// SPDX-License-Identifier: Apache-2.0
//! Visits to pods of other machines: the question goes down the host's stream, and the agent
//! opens a call that carries the visit both ways. A host serves its own pods' visits only, since
//! it is asked for no others.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use weft_server::k8s::{Opened, PodStreams, StreamError, Visit};
use weft_xds::agent::visit::{VisitDown, VisitUp};
use weft_xds::agent::{HostUpdate, Refusal, server};
use weft_xds::server::Peer;

use super::HostDoor;
use crate::visit::{self, Ready};

/// Visits to the pods of one host at a time.
pub const VISITS_PER_HOST_MAX: usize = 128;
/// How long an agent may take to have one ready, or to say its first word in it.
const FIRST_MAX: Duration = Duration::from_secs(5);

/// Who waits for which visit, by the number of the question.
#[derive(Debug, Default)]
pub struct Visits {
    last: u64,
    waiting: HashMap<u64, Waiter>,
    /// Places of each host's visits; a host that has none is not kept.
    places: HashMap<String, Arc<Semaphore>>,
}

type Answer = Result<(Ready, Peer), StreamError>;

#[derive(Debug)]
struct Waiter {
    host: String,
    answer: oneshot::Sender<Answer>,
}

/// Visits to this machine's pods, and to the hosts'.
pub struct AllStreams {
    pub own: Arc<dyn PodStreams>,
    pub door: HostDoor,
}

// === impl Visits ===

impl Visits {
    /// A place, and the number of a question that its host will answer.
    fn ask(
        &mut self,
        host: &str,
    ) -> Option<(OwnedSemaphorePermit, u64, oneshot::Receiver<Answer>)> {
        self.waiting.retain(|_, waiter| !waiter.answer.is_closed());
        self.places.retain(|_, places| places.available_permits() < VISITS_PER_HOST_MAX);
        let new = || Arc::new(Semaphore::new(VISITS_PER_HOST_MAX));
        let places = self.places.entry(host.to_owned()).or_insert_with(new);
        let place = places.clone().try_acquire_owned().ok()?;
        let (answer, answered) = oneshot::channel();
        self.last += 1;
        self.waiting.insert(self.last, Waiter { host: host.to_owned(), answer });
        Some((place, self.last, answered))
    }

    /// Who asked this very host; a question is answered once.
    fn take(&mut self, id: u64, host: &str) -> Option<oneshot::Sender<Answer>> {
        let theirs = self.waiting.get(&id).is_some_and(|waiter| waiter.host == host);
        if theirs { self.waiting.remove(&id).map(|waiter| waiter.answer) } else { None }
    }
}

// === impl HostDoor ===

impl HostDoor {
    fn visits(&self) -> std::sync::MutexGuard<'_, Visits> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open_visit(self, host: String, visit: Visit) -> Result<Opened, StreamError> {
        let unavailable = |why: &str| StreamError::Unavailable(format!("host {host}: {why}"));
        let away = || unavailable("its agent does not answer; `weft status` says more");
        let asked = self.visits().ask(&host);
        let busy = || unavailable("as many visits as it may have are open; end some");
        let (place, id, answered) = asked.ok_or_else(busy)?;
        let stream_to_host = self.stream_of(&host).ok_or_else(away)?;
        let visits = vec![visit::ask(id, visit)];
        let update = HostUpdate { visits, ..HostUpdate::default() };
        stream_to_host.try_send(update).map_err(|_| away())?;
        let answer = tokio::time::timeout(FIRST_MAX, answered).await;
        let (ready, peer) = answer.map_err(|_| away())?.map_err(|_| away())??;
        let removed = async move {
            // Held until the visit is over.
            let _place = place;
            self.no_host_any_more(&peer).await
        };
        Ok(ready.opened(removed))
    }

    /// Resolves when who showed this certificate is a host no more, and says why.
    async fn no_host_any_more(self, peer: &Peer) -> String {
        let mut worlds = self.registry.world();
        loop {
            if let Err(refusal) = self.caller(peer) {
                return refusal.to_string();
            }
            tokio::time::sleep(super::watch::PAUSE).await;
            if !worlds.changed().await {
                return "the server is going away".into();
            }
        }
    }

    /// A host's answer: the visit, or why there is none.
    ///
    /// # Errors
    /// When nobody asked this host, or nobody waits any more.
    pub(super) async fn begin_visit(
        self,
        peer: Peer,
        mut up: server::VisitUps,
    ) -> Result<mpsc::Receiver<VisitDown>, Refusal> {
        let host = self.caller(&peer)?.name;
        let late = |_| Refusal::Invalid("a visit begins with its number".into());
        let first = tokio::time::timeout(FIRST_MAX, up.next()).await.map_err(late)?;
        let (id, refused) = match first {
            Some(Ok(VisitUp::Ready(id))) => (id, None),
            Some(Ok(VisitUp::Failed(failure))) => (failure.id, Some(failure)),
            Some(Err(refusal)) => return Err(refusal),
            Some(Ok(_)) | None => {
                return Err(Refusal::Invalid("a visit begins with its number".into()));
            }
        };
        let waiter = self.visits().take(id, &host);
        let waiter = waiter.ok_or_else(|| Refusal::Denied("nobody asked for this visit".into()))?;
        let (down, words) = mpsc::channel(visit::WORDS_MAX);
        let answer = match refused {
            Some(failure) => Err(visit::failed(&host, failure)),
            None => Ok((Ready { host, up, down }, peer)),
        };
        let over = |_| Refusal::Invalid("nobody waits for this visit any more".into());
        waiter.send(answer).map_err(over)?;
        Ok(words)
    }
}

// === impl AllStreams ===

impl PodStreams for AllStreams {
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        match self.door.host_of(&visit.pod.namespace, &visit.pod.name) {
            Some(host) => self.door.clone().open_visit(host, visit).boxed(),
            None => self.own.open(visit),
        }
    }
}

impl fmt::Debug for AllStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllStreams")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_is_taken_once_and_by_the_host_that_was_asked() {
        let mut visits = Visits::default();
        let (_place, id, _answered) = visits.ask("m1").unwrap();
        assert!(visits.take(id, "m2").is_none(), "another host answers nothing");
        assert!(visits.take(id + 1, "m1").is_none());
        assert!(visits.take(id, "m1").is_some());
        assert!(visits.take(id, "m1").is_none());
    }

    #[test]
    fn a_host_has_so_many_visits_and_others_have_theirs() {
        let mut visits = Visits::default();
        let mut open: Vec<_> =
            (0..VISITS_PER_HOST_MAX).map(|_| visits.ask("m1").unwrap()).collect();
        assert!(visits.ask("m1").is_none());
        assert!(visits.ask("m2").is_some());
        open.pop();
        assert!(visits.ask("m1").is_some());
        // What is over is not kept.
        drop(open);
        assert!(visits.ask("m3").is_some());
        assert!(visits.waiting.len() <= 2, "{}", visits.waiting.len());
        assert!(!visits.places.contains_key("m1"));
    }
}
