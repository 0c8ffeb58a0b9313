// SPDX-License-Identifier: Apache-2.0
//! The host's life with its server: heartbeats, and the stream of what should run here. Both go
//! on for ever, with pauses that grow while the server is away; only a server that says that this
//! host is none of the mesh ends them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::sync::watch;
use weft_agent::agent::Desired;
use weft_agent::checks::Checks;
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{Host, Refusal};

use super::link::RemoteLink;
use crate::wire::Mirror;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// Whether the server is there, and when it was heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    pub there: bool,
    pub at: Mono,
    /// Another one whenever the server may not know any more what it was told: it said so, or was
    /// away.
    pub life: u64,
}

/// What the tasks of a session say.
#[derive(Debug)]
pub struct Session {
    desired: Snapshot<Desired>,
    checks: Snapshot<Checks>,
    state: watch::Receiver<State>,
    contact: watch::Receiver<Contact>,
    client: AgentClient,
    /// Draining it ends both tasks.
    tasks: TaskGroup,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// The server has said what should be here.
    told: bool,
    /// Why this host is none any more.
    removed: Option<String>,
}

/// Pauses between tries: longer each time, with jitter, until one works. Pure.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    rng: Rng,
}

// === impl Contact ===

impl Contact {
    /// A heartbeat was answered. `resync`: by a server that knows nothing of this host yet.
    fn heard(&mut self, at: Mono, resync: bool) {
        let another = resync || !self.there;
        *self = Self { there: true, at, life: self.life + u64::from(another) };
    }
}

// === impl Session ===

impl Session {
    /// Resolves when the server has said what should be here.
    ///
    /// # Errors
    /// When it says that this host is none.
    pub async fn first(&self) -> Result<(Snapshot<Desired>, Snapshot<Checks>)> {
        let mut state = self.state.clone();
        let state = state.wait_for(|s| s.told || s.removed.is_some()).await?.clone();
        match state.removed {
            Some(why) => Err(anyhow!(why)),
            None => Ok((self.desired.clone(), self.checks.clone())),
        }
    }

    /// Follows whether the server is there.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.clone()
    }

    /// Ends the session, and tells the server so if it can be told.
    pub async fn leave(&self) {
        self.tasks.begin_drain();
        let told = tokio::time::timeout(LEAVE_MAX, self.client.leave()).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!("the server was not told that this host goes");
        }
    }

    /// Resolves when this host is none any more, with the server's sentence.
    pub async fn removed(&self) -> anyhow::Error {
        let mut state = self.state.clone();
        let removed = match state.wait_for(|s| s.removed.is_some()).await {
            Ok(state) => state.removed.clone(),
            Err(_) => None,
        };
        anyhow!(removed.unwrap_or_else(|| "the session with the server ended".into()))
    }
}

/// Starts both.
pub fn start(
    client: AgentClient,
    host: Host,
    link: Arc<RemoteLink>,
    (clock, tasks): (&Clock, &TaskGroup),
) -> Session {
    let (heard, contact) = watch::channel(Contact { there: false, at: clock.now(), life: 0 });
    let (state, reader) = watch::channel(State::default());
    let state = Arc::new(state);
    let (desired, desired_reader) = snapshot(Desired::new());
    let (checks, checks_reader) = snapshot(Checks::new());
    let heart = Heart { client: client.clone(), host, clock: clock.clone(), heard };
    let beats = beat(heart, link.clone(), state.clone());
    let follows =
        follow(client.clone(), link, Told { desired, checks, state, mirror: Mirror::default() });
    let tasks = tasks.child();
    let group = tasks.clone();
    tasks.spawn("heartbeats", async move {
        tokio::select! {
            () = group.draining() => {}
            () = beats => {}
        }
    });
    let group = tasks.clone();
    tasks.spawn("what should be here", async move {
        tokio::select! {
            () = group.draining() => {}
            () = follows => {}
        }
    });
    Session {
        desired: desired_reader,
        checks: checks_reader,
        state: reader,
        contact,
        client,
        tasks,
    }
}

struct Heart {
    client: AgentClient,
    host: Host,
    clock: Clock,
    heard: watch::Sender<Contact>,
}

async fn beat(heart: Heart, link: Arc<RemoteLink>, state: Arc<watch::Sender<State>>) {
    let Heart { client, host, clock, heard } = heart;
    let mut backoff = Backoff::new();
    let mut lost = false;
    let mut untold = false;
    loop {
        let pause = match client.heartbeat(host.clone()).await {
            Ok(beat) => {
                let at = clock.now();
                heard.send_modify(|contact| contact.heard(at, beat.resync));
                if std::mem::take(&mut lost) {
                    tracing::warn!("the server is there again");
                }
                backoff.worked();
                untold |= beat.resync;
                if untold && let Err(why) = link.tell_all().await {
                    tracing::debug!(%why, "the server has not heard all yet");
                } else {
                    untold = false;
                }
                beat.interval.clamp(Duration::from_millis(100), Duration::from_secs(60))
            }
            Err(Refusal::Denied(why)) => {
                state.send_modify(|s| s.removed = Some(why));
                return;
            }
            Err(why) => {
                heard.send_if_modified(|c| std::mem::replace(&mut c.there, false));
                if !std::mem::replace(&mut lost, true) {
                    tracing::warn!(%why, "the server is lost; what runs here goes on");
                }
                backoff.failed()
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Where what the server says goes.
struct Told {
    desired: Publisher<Desired>,
    checks: Publisher<Checks>,
    state: Arc<watch::Sender<State>>,
    mirror: Mirror,
}

async fn follow(client: AgentClient, link: Arc<RemoteLink>, mut told: Told) {
    let mut backoff = Backoff::new();
    loop {
        let ended = stream(&client, &link, &mut told, &mut backoff).await;
        tracing::debug!(why = ended, "the stream of pods ended");
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// One stream to its end, and why it ended.
async fn stream(
    client: &AgentClient,
    link: &RemoteLink,
    told: &mut Told,
    backoff: &mut Backoff,
) -> String {
    let mut updates = match client.watch().await {
        Ok(updates) => updates,
        Err(why) => return why.to_string(),
    };
    loop {
        let mut update = match updates.next().await {
            Ok(Some(update)) => update,
            Ok(None) => return "the server ended it".into(),
            Err(why) => return why.to_string(),
        };
        if link.answer(&mut update) {
            // Questions come by themselves, beside what should be here.
            continue;
        }
        match told.mirror.apply(update) {
            Ok(false) => continue,
            Ok(true) => backoff.worked(),
            Err(error) => return format!("the server says what is not understood here: {error}"),
        }
        told.publish(link);
    }
}

// === impl Told ===

impl Told {
    fn publish(&self, link: &RemoteLink) {
        let desired = self.mirror.desired();
        let uid = |pod: &_| self.mirror.uid(pod).cloned();
        let uids: HashMap<_, _> =
            desired.keys().filter_map(|pod| Some((pod.clone(), uid(pod)?))).collect();
        // First, since pods that start ask for certificates at once.
        link.know(uids);
        if desired != *self.desired.load() {
            self.desired.publish(desired);
        }
        if *self.mirror.checks() != *self.checks.load() {
            self.checks.publish(self.mirror.checks().clone());
        }
        self.state.send_if_modified(|s| !std::mem::replace(&mut s.told, true));
    }
}

// === impl Backoff ===

impl Backoff {
    pub fn new() -> Self {
        Self { next: PAUSE_MIN, rng: Rng::from_system() }
    }

    pub fn worked(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// How long to wait before the next try.
    pub fn failed(&mut self) -> Duration {
        let pause = self.rng.jitter(self.next, 20);
        self.next = (self.next * 2).min(PAUSE_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_knows_nothing_any_more_is_another_one() {
        let mut contact = Contact { there: false, at: Mono::default(), life: 0 };
        let mut heard = |resync| {
            contact.heard(Mono::default(), resync);
            contact.life
        };
        let first = heard(true);
        assert_eq!(heard(false), first);
        // Within one pause between heartbeats it ended and began anew: nobody saw it away.
        let second = heard(true);
        assert_ne!(second, first);
        contact.there = false;
        contact.heard(Mono::default(), false);
        assert_ne!(contact.life, second);
    }

    #[test]
    fn pauses_grow_to_a_limit_and_begin_again_when_it_worked() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.failed()).collect();
        assert!(pauses[0] >= PAUSE_MIN && pauses[0] < PAUSE_MIN * 13 / 10);
        assert!(pauses.windows(2).take(4).all(|w| w[1] > w[0]), "{pauses:?}");
        assert!(pauses[11] >= PAUSE_MAX && pauses[11] <= PAUSE_MAX * 12 / 10);
        backoff.worked();
        assert!(backoff.failed() < PAUSE_MIN * 13 / 10);
    }
}
