// SPDX-License-Identifier: Apache-2.0
//! The way from this machine's Consul door to the server, over the agent's link. Reads of the
//! catalog and of health that were asked lately are kept fresh by blocking queries of the agent's
//! own; while no server answers they are answered as the server said last, with headers that say
//! so. Everything else then fails with Consul's words.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Method;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use weft_agent::local::kept::{Kept, Question, Said, Turn};
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_server::consul::far::{Away, Coming, Far, FarAnswer, FarAsk};
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{ConsulAnswer, ConsulAsk, Refusal};

use super::secrets::Secrets;
use crate::agent::session::{Backoff, Contact};

/// Connections for questions that wait, and how many questions each carries: fewer than a server
/// lets one have.
const LANES: usize = 8;
const PER_LANE: usize = 100;
/// How long a server may take beyond what a client waits for.
const MARGIN: Duration = Duration::from_secs(20);
/// The same for reads that the last good answer will do for, and while nothing is heard.
const READ_MAX: Duration = Duration::from_secs(5);
const SILENT_MAX: Duration = Duration::from_millis(700);
/// The server is silent when nothing was heard for this long; heartbeats go every 1.5 s.
const SILENT_AFTER: Duration = Duration::from_secs(4);
/// How long it is not asked again after it could not be.
const PAUSE: Duration = Duration::from_millis(500);
/// What the agent's own blocking queries wait for.
const KEEP_WAIT: Duration = Duration::from_secs(240);
/// The least between two of one question.
const KEEP_PAUSE: Duration = Duration::from_millis(100);
/// The same where the server has no place for a question that waits.
const KEEP_YIELD: Duration = Duration::from_secs(30);
/// How long a client that registered waits for the server to know.
const TOLD_MAX: Duration = Duration::from_millis(500);
const SECRET_BYTES_MAX: usize = 512;

/// The way. Cheap to clone through its `Arc`.
pub struct Way {
    /// The first is for what is answered at once.
    lanes: Vec<Lane>,
    contact: watch::Receiver<Contact>,
    /// A server was there since this process began.
    there: AtomicBool,
    failed: Mutex<Option<Mono>>,
    kept: Mutex<Kept>,
    secrets: Arc<Secrets>,
    /// What of this machine's registry the server has.
    told: watch::Sender<u64>,
    clock: Clock,
    rng: Mutex<Rng>,
    tasks: TaskGroup,
    /// For tasks that outlive a call.
    own: std::sync::Weak<Way>,
}

struct Lane {
    client: AgentClient,
    places: Semaphore,
}

// === impl Way ===

impl Way {
    pub fn start(
        client: &AgentClient,
        contact: watch::Receiver<Contact>,
        data: &Path,
        (clock, tasks): (&Clock, &TaskGroup),
    ) -> Arc<Self> {
        let lane = || Lane { client: client.apart(), places: Semaphore::new(PER_LANE) };
        let way = Arc::new_cyclic(|own| Self {
            lanes: (0..=LANES).map(|_| lane()).collect(),
            contact,
            there: AtomicBool::new(false),
            failed: Mutex::default(),
            kept: Mutex::default(),
            secrets: Arc::new(Secrets::read(data)),
            told: watch::Sender::new(0),
            clock: clock.clone(),
            rng: Mutex::new(Rng::from_system()),
            tasks: tasks.clone(),
            own: own.clone(),
        });
        let (learns, group) = (way.clone(), tasks.clone());
        tasks.spawn("access lists", async move {
            tokio::select! {
                () = group.draining() => {}
                () = learns.learn() => {}
            }
        });
        way
    }

    /// Whether there are access lists must be known before no server can say.
    async fn learn(&self) {
        let mut contact = self.contact.clone();
        let mut backoff = Backoff::new();
        while contact.wait_for(|contact| contact.there).await.is_ok() {
            self.there.store(true, Ordering::Relaxed);
            match self.token_now(String::new()).await {
                Ok(_) => {
                    backoff.worked();
                    if contact.wait_for(|contact| !contact.there).await.is_err() {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(backoff.failed()).await,
            }
        }
    }

    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// A server was there since this process began.
    pub fn was_there(&self) -> bool {
        self.there.load(Ordering::Relaxed) || self.contact.borrow().there
    }

    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.clone()
    }

    /// The server has everything up to this revision of the machine's own registry.
    pub fn note_told(&self, revision: u64) {
        self.told.send_replace(revision);
    }

    async fn ask_now(&self, ask: FarAsk) -> Result<FarAnswer, Away> {
        if ask.token.len() > SECRET_BYTES_MAX {
            return Ok(answer(403, "ACL not found"));
        }
        let question = ask.kept.then(|| Question { target: bare(&ask), token: ask.token.clone() });
        let until = self.clock.now().plus(ask.wait);
        loop {
            let left = match ask.index {
                0 => Duration::ZERO,
                _ => until.since(self.clock.now()),
            };
            let away = match self.once(&ask, left).await {
                Ok(said) => {
                    if let Some(question) = question {
                        self.note(question, &said);
                    }
                    return Ok(of(said));
                }
                Err(Refusal::Busy(why)) => return Ok(answer(429, &why)),
                Err(Refusal::Invalid(why)) => return Ok(answer(400, &why)),
                Err(why) => Away(why.to_string()),
            };
            let Some(question) = &question else { return Err(away) };
            let known = lock(&self.kept).asked(question, self.clock.now());
            let Some(said) = known else { return Err(away) };
            if ask.index != said.index || left.is_zero() {
                return Ok(self.last(said));
            }
            // It would wait for a change; so it waits for a server that may know of one.
            let pause = lock(&self.rng).jitter(PAUSE, 50);
            tokio::time::sleep(pause.min(left)).await;
        }
    }

    /// One try. `wait` is what the server is asked to wait for at most.
    async fn once(&self, ask: &FarAsk, wait: Duration) -> Result<ConsulAnswer, Refusal> {
        let now = self.clock.now();
        let contact = *self.contact.borrow();
        let silent = !contact.there || now.since(contact.at) > SILENT_AFTER;
        let failed = lock(&self.failed).is_some_and(|at| now.since(at) < PAUSE);
        if silent && failed {
            return Err(Refusal::Unavailable("it was asked a moment ago".into()));
        }
        let limit = match (silent, ask.kept) {
            // What is cut short may have been done all the same.
            (true, _) if !matches!(ask.method, Method::GET | Method::HEAD) => READ_MAX,
            (true, _) => SILENT_MAX,
            (false, true) => wait + wait / 16 + READ_MAX,
            (false, false) => wait + wait / 16 + MARGIN,
        };
        // It is not waited for what cannot be: a server that is back answers at once.
        let index = if silent { 0 } else { ask.index };
        let (client, _place) = self.lane(index > 0)?;
        let asked = ConsulAsk {
            method: ask.method.to_string(),
            target: ask.target(index, wait.max(Duration::from_millis(1))),
            token: ask.token.clone(),
            body: ask.body.to_vec(),
        };
        let said = client.consul(asked, limit).await;
        *lock(&self.failed) = match &said {
            Err(why) if why.is_passing() => Some(self.clock.now()),
            _ => None,
        };
        said
    }

    fn lane(&self, waits: bool) -> Result<(&AgentClient, SemaphorePermit<'_>), Refusal> {
        let lanes = if waits { self.lanes.get(1..) } else { self.lanes.get(..1) };
        for lane in lanes.unwrap_or_default() {
            if let Ok(place) = lane.places.try_acquire() {
                return Ok((&lane.client, place));
            }
        }
        Err(Refusal::Busy("as many queries as it may have wait for this machine's server".into()))
    }

    /// Takes an answer, and has it kept fresh from now on.
    fn note(&self, question: Question, said: &ConsulAnswer) {
        let mut kept = lock(&self.kept);
        let Some(found) = found(said) else {
            if is_denial(said.status) {
                kept.forget(&question);
            }
            return;
        };
        let index = found.index;
        let Some(turn) = kept.note(&question, found, self.clock.now()) else { return };
        drop(kept);
        let Some(way) = self.own.upgrade() else { return };
        let group = self.tasks.clone();
        self.tasks.spawn("kept answer", async move {
            tokio::select! {
                () = group.draining() => {}
                () = way.keep(question, turn, index) => {}
            }
        });
    }

    /// Asks again and again as long as somebody may want the answer.
    async fn keep(&self, question: Question, turn: Turn, mut index: u64) {
        let mut backoff = Backoff::new();
        loop {
            let now = self.clock.now();
            if !lock(&self.kept).is_wanted(&question, turn, now) {
                return;
            }
            let joint = if question.target.contains('?') { '&' } else { '?' };
            let waiting = match index {
                0 => String::new(),
                index => format!("{joint}index={index}&wait={}ms", KEEP_WAIT.as_millis()),
            };
            let ask = ConsulAsk {
                method: "GET".into(),
                target: format!("{}{waiting}", question.target),
                token: question.token.clone(),
                body: Vec::new(),
            };
            let said = match self.lane(true) {
                Ok((client, _place)) => client.consul(ask, KEEP_WAIT + MARGIN * 2).await,
                Err(busy) => Err(busy),
            };
            match said.as_ref().map(|said| (found(said), said.status)) {
                Ok((Some(found), _)) => {
                    backoff.worked();
                    index = found.index;
                    lock(&self.kept).renew(&question, turn, found, (now, self.clock.now()));
                    tokio::time::sleep(KEEP_PAUSE).await;
                }
                // Places to wait in are scarce there: it is asked now and then instead.
                Ok((None, 429)) => {
                    index = 0;
                    let pause = lock(&self.rng).jitter(KEEP_YIELD, 50);
                    tokio::time::sleep(pause).await;
                }
                // It is refused now: nobody is told it from here any more.
                Ok((None, status)) if is_denial(status) => return self.let_go(&question, turn),
                Ok((None, _)) => tokio::time::sleep(backoff.failed()).await,
                Err(why) if why.is_passing() => tokio::time::sleep(backoff.failed()).await,
                Err(_) => return self.let_go(&question, turn),
            }
        }
    }

    fn let_go(&self, question: &Question, turn: Turn) {
        let mut kept = lock(&self.kept);
        if kept.is_wanted(question, turn, self.clock.now()) {
            kept.forget(question);
        }
    }

    /// The last good answer, and how old it may be.
    fn last(&self, said: Said) -> FarAnswer {
        let since = self.clock.now().since(self.contact.borrow().at);
        let ours =
            ["x-consul-knownleader", "x-consul-lastcontact", "x-consul-effective-consistency"];
        let mut headers = said.headers;
        headers.retain(|(name, _)| !ours.contains(&name.to_ascii_lowercase().as_str()));
        let more = [
            ("x-consul-knownleader", "false".to_owned()),
            ("x-consul-lastcontact", since.as_millis().to_string()),
            ("x-consul-effective-consistency", "stale".to_owned()),
            ("x-cache", "HIT".to_owned()),
            ("age", since.as_secs().to_string()),
        ];
        headers.extend(more.map(|(name, value)| (name.to_owned(), value)));
        FarAnswer { status: 200, headers, body: said.body }
    }

    async fn token_now(&self, secret: String) -> Result<Vec<u8>, Away> {
        const OPEN: &[u8] = b"{\"acl\":false}";
        if secret.len() > SECRET_BYTES_MAX {
            return Err(Away("the token is longer than any that is given out".into()));
        }
        let now = self.clock.now();
        let contact = *self.contact.borrow();
        let silent = !contact.there || now.since(contact.at) > SILENT_AFTER;
        let limit = if silent { SILENT_MAX } else { READ_MAX };
        let failed = lock(&self.failed).is_some_and(|at| now.since(at) < PAUSE);
        let said = match (silent && failed, self.lane(false)) {
            (true, _) => Err(Refusal::Unavailable("it was asked a moment ago".into())),
            (false, Err(busy)) => Err(busy),
            (false, Ok((client, _place))) => {
                let late = |_| Refusal::Unavailable("it did not answer in time".into());
                let asked = tokio::time::timeout(limit, client.consul_token(secret)).await;
                asked.map_err(late).and_then(|said| said)
            }
        };
        match said {
            Ok(json) => {
                *lock(&self.failed) = None;
                let read: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
                self.secrets.note_open(read["acl"] == false);
                Ok(json)
            }
            Err(why) => {
                *lock(&self.failed) = Some(self.clock.now());
                // Without access lists everybody of this machine may do everything here.
                match self.secrets.is_open() {
                    true => Ok(OPEN.to_vec()),
                    false => Err(Away(why.to_string())),
                }
            }
        }
    }

    async fn wrote_now(&self, revision: u64) {
        if !self.contact.borrow().there {
            return;
        }
        let mut told = self.told.subscribe();
        let known = told.wait_for(|told| *told >= revision);
        // The client is answered either way: what it registered is here.
        let _ = tokio::time::timeout(TOLD_MAX, known).await;
    }
}

impl Far for Way {
    fn token(&self, secret: String) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        self.token_now(secret).boxed()
    }

    fn ask(&self, ask: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>> {
        self.ask_now(ask).boxed()
    }

    fn was_there(&self) -> bool {
        Self::was_there(self)
    }

    fn registers(&self, what: String, secret: &str) -> Box<dyn Coming> {
        self.secrets.coming(what, secret)
    }

    fn defaults(&self, secret: &str) {
        self.secrets.set_default(secret);
    }

    fn wrote(&self, revision: u64) -> BoxFuture<'_, ()> {
        self.wrote_now(revision).boxed()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Way")
    }
}

// === helpers ===

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Path and query alone: how a client waits, and for which consistency, changes no answer.
fn bare(ask: &FarAsk) -> String {
    match ask.query.is_empty() {
        true => ask.path.clone(),
        false => format!("{}?{}", ask.path, ask.query),
    }
}

/// Whether an answer says that the question is none for who asked it: what was said before is
/// not said again then. A server that is busy or in trouble says nothing of the kind.
fn is_denial(status: u16) -> bool {
    (400..500).contains(&status) && status != 429
}

/// An answer that can be said again.
fn found(said: &ConsulAnswer) -> Option<Said> {
    let is_index = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("x-consul-index");
    let index = said.headers.iter().find(is_index)?.1.parse().ok()?;
    let body = Bytes::from(said.body.clone());
    (said.status == 200).then(|| Said { headers: said.headers.clone(), body, index })
}

fn of(said: ConsulAnswer) -> FarAnswer {
    FarAnswer { status: said.status, headers: said.headers, body: said.body.into() }
}

fn answer(status: u16, text: &str) -> FarAnswer {
    let kind = ("content-type".to_owned(), "text/plain; charset=utf-8".to_owned());
    FarAnswer { status, headers: vec![kind], body: Bytes::from(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_denial_takes_back_what_was_said() {
        assert!([400, 403, 404].into_iter().all(is_denial));
        assert!(![200, 429, 500, 502, 503].into_iter().any(is_denial));
    }
}
