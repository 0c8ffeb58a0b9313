// SPDX-License-Identifier: Apache-2.0
//! Names for captured programs of this machine: a DNS door on a loopback port that only their
//! sidecar is told. Every question goes to the server first, over the agent's link; what the mesh
//! does not know is asked of this machine's own resolvers, as the programs themselves would have.
//!
//! While the server cannot be asked, what it said last is said again, and everything else is the
//! machine's: a lost server takes nobody's names away.
//!
//! The machine's own DNS door ([`Names::of_machine`]) does the same for everybody of the machine,
//! asks nobody else, and keeps what was asked lately fresh, so that what is said last is what was
//! so when the server was lost.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_server::dns::{Carrier, Mesh, Server, Told};
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{PodRef, Refusal, Resolved};

use super::session::Contact;
use crate::server::resolver;

/// How long the server may take, and how long nobody asks it after it took longer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(1);
const AWAY: Duration = Duration::from_secs(2);
/// Answers that are remembered.
const MEMORY_MAX: usize = 4096;
/// What the machine's programs asked within this is asked again by itself, this often; so many of
/// it, the oldest first, and so many at the same time.
const ASKED_WITHIN: Duration = Duration::from_secs(3600);
const FRESH_EVERY: Duration = Duration::from_secs(5);
const FRESH_MAX: usize = 512;
const FRESH_AT_ONCE: usize = 32;
/// The same for names that are not there: programs try many such on their way to one that is.
const NONE_ASKED_WITHIN: Duration = Duration::from_secs(60);
const NXDOMAIN: u8 = 3;
/// In the first byte of a message behind its id: it was cut to fit.
const CUT: u8 = 0x02;
/// A message's head without its id, and what every resolver takes over UDP.
const HEAD_BYTES: usize = 10;
const UDP_BYTES: usize = 512;
/// Longer questions are not remembered.
const QUESTION_BYTES_MAX: usize = 512;

/// Asks the server; remembers what it said.
pub struct Names {
    client: AgentClient,
    clock: Clock,
    state: Mutex<State>,
    /// For the machine itself, while its server is there; `None` for one pod.
    machine: Option<watch::Receiver<Contact>>,
}

#[derive(Default)]
struct State {
    /// The pod that stands for the programs, once the server placed it.
    pod: Option<PodRef>,
    away_until: Option<Mono>,
    memory: Memory,
}

/// Whether it came over TCP, and the question.
type Key = (bool, Box<[u8]>);

/// The last answers of the mesh by question, whose first two bytes, the id, are left out. Pure.
#[derive(Debug, Default)]
struct Memory {
    answers: HashMap<Key, Remembered>,
}

#[derive(Debug)]
struct Remembered {
    /// When the question was sent that it answers, and when somebody asked.
    said: Mono,
    asked: Mono,
    answer: Box<[u8]>,
}

// === impl Names ===

impl Names {
    pub fn new(client: AgentClient, clock: Clock) -> Arc<Self> {
        Arc::new(Self { client, clock, state: Mutex::default(), machine: None })
    }

    /// For the machine itself.
    pub fn of_machine(
        client: AgentClient,
        clock: Clock,
        contact: watch::Receiver<Contact>,
    ) -> Arc<Self> {
        let state = Mutex::new(State { pod: Some(PodRef::default()), ..State::default() });
        Arc::new(Self { client, clock, state, machine: Some(contact) })
    }

    /// Asks again what was asked lately, as long as there is a server.
    pub fn keep_fresh(self: &Arc<Self>, tasks: &TaskGroup) {
        let (names, group) = (self.clone(), tasks.clone());
        let Some(mut contact) = self.machine.clone() else { return };
        tasks.spawn("names asked lately", async move {
            let again = async {
                let mut rng = Rng::from_system();
                loop {
                    tokio::time::sleep(rng.jitter(FRESH_EVERY, 20)).await;
                    if contact.wait_for(|contact| contact.there).await.is_err() {
                        return;
                    }
                    names.ask_again().await;
                }
            };
            tokio::select! {
                () = group.draining() => {}
                () = again => {}
            }
        });
    }

    /// Where the server does not answer several of them, the rest waits for the next time.
    async fn ask_again(&self) {
        let stale = self.state().memory.stale(self.clock.now());
        let failed = AtomicUsize::new(0);
        let one = |(tcp, question): Key| {
            let failed = &failed;
            async move {
                if failed.load(Ordering::Relaxed) >= FRESH_AT_ONCE {
                    return;
                }
                let query = [&[0, 0][..], &question].concat();
                let now = self.clock.now();
                let asked = self.client.resolve(PodRef::default(), query.clone(), tcp);
                match tokio::time::timeout(SERVER_TIMEOUT, asked).await {
                    Ok(Ok(told)) => self.state().memory.renew(&query, tcp, &told, now),
                    _ => drop(failed.fetch_add(1, Ordering::Relaxed)),
                }
            }
        };
        futures_util::stream::iter(stale).for_each_concurrent(FRESH_AT_ONCE, one).await;
    }

    /// For whom questions are asked from now on.
    pub fn speak_for(&self, pod: PodRef) {
        self.state().pod = Some(pod);
    }

    /// Opens the door; where it is.
    ///
    /// # Errors
    /// When no port is free.
    pub fn serve(self: &Arc<Self>, tasks: &TaskGroup) -> Result<SocketAddr> {
        let (udp, tcp) = resolver::bind().context("the resolver of captured programs")?;
        let at = udp.local_addr()?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let server = Server::distant(self.clone(), resolver::machines_own(&self.clock));
        tasks.spawn("names over udp", server.clone().serve_udp(udp, tasks.clone()));
        tasks.spawn("names over tcp", server.serve_tcp(tcp, tasks.clone()));
        Ok(at)
    }

    async fn ask_now(&self, query: Vec<u8>, carrier: Carrier) -> Told {
        let tcp = carrier == Carrier::Tcp;
        let now = self.clock.now();
        let (pod, away) = {
            let state = self.state();
            (state.pod.clone(), state.away_until.is_some_and(|until| now < until))
        };
        let Some(pod) = pod else { return Told::Outside };
        // Nothing that is known now waits for a server that is known to be gone.
        let away = away || self.machine.as_ref().is_some_and(|contact| !contact.borrow().there);
        if away {
            return self.remembered(&query, tcp);
        }
        let asked = self.client.resolve(pod, query.clone(), tcp);
        match tokio::time::timeout(SERVER_TIMEOUT, asked).await {
            Ok(Ok(told)) => {
                let mut state = self.state();
                state.away_until = None;
                state.memory.note(&query, tcp, &told, now);
                match told {
                    Resolved::Answer(answer) => Told::Answer(answer),
                    Resolved::Silence => Told::Silence,
                    Resolved::Outside => Told::Outside,
                }
            }
            // The pod is not placed any more, or the question is none.
            Ok(Err(why @ (Refusal::Denied(_) | Refusal::Invalid(_)))) => {
                tracing::debug!(%why, "the server does not answer a question");
                self.unknown()
            }
            Ok(Err(_)) | Err(_) => {
                self.state().away_until = Some(self.clock.now().plus(AWAY));
                self.remembered(&query, tcp)
            }
        }
    }

    fn remembered(&self, query: &[u8], tcp: bool) -> Told {
        let now = self.clock.now();
        let known = self.state().memory.answer(query, tcp, now);
        known.map_or_else(|| self.unknown(), Told::Answer)
    }

    /// What is said where the mesh says nothing: a machine's own names are not told to others.
    fn unknown(&self) -> Told {
        if self.machine.is_some() { Told::Away } else { Told::Outside }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mesh for Names {
    fn ask(&self, query: Vec<u8>, carrier: Carrier) -> BoxFuture<'_, Told> {
        self.ask_now(query, carrier).boxed()
    }

    fn is_apart(&self) -> bool {
        self.machine.is_some()
    }

    fn keeps(&self, labels: &[&str]) -> bool {
        resolver::zones().hold(labels)
    }
}

// === impl Remembered ===

impl Remembered {
    /// Whether it says that there is no such name.
    fn is_none(&self) -> bool {
        self.answer.get(1).is_some_and(|flags| flags & 0x0f == NXDOMAIN)
    }
}

// === impl Memory ===

impl Memory {
    /// `now` is when the question was sent: an answer that was overtaken is let go.
    fn note(&mut self, query: &[u8], tcp: bool, told: &Resolved, now: Mono) {
        let Some(question) = query.get(2..).filter(|q| q.len() <= QUESTION_BYTES_MAX) else {
            return;
        };
        let key = (tcp, question.into());
        if self.answers.get(&key).is_some_and(|known| known.said > now) {
            return;
        }
        let Resolved::Answer(answer) = told else {
            // It is somebody else's name now.
            self.answers.remove(&key);
            return;
        };
        let Some(answer) = answer.get(2..) else { return };
        if self.answers.len() >= MEMORY_MAX && !self.answers.contains_key(&key) {
            let oldest = self.answers.iter().min_by_key(|(_, known)| known.asked);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.answers.remove(&oldest);
            }
        }
        self.answers.insert(key, Remembered { said: now, asked: now, answer: answer.into() });
    }

    /// The same for what nobody asked just now.
    fn renew(&mut self, query: &[u8], tcp: bool, told: &Resolved, now: Mono) {
        let key = (tcp, query.get(2..).unwrap_or_default().into());
        let Some(asked) = self.answers.get(&key).map(|known| known.asked) else { return };
        self.note(query, tcp, told, now);
        if let Some(known) = self.answers.get_mut(&key) {
            known.asked = asked;
        }
    }

    /// What was asked lately and is not so new any more, the oldest first. Forgets what nobody
    /// asked for long.
    fn stale(&mut self, now: Mono) -> Vec<Key> {
        self.answers.retain(|_, known| now.since(known.asked) < ASKED_WITHIN);
        let wanted = |(_, known): &(&Key, &Remembered)| {
            !known.is_none() || now.since(known.asked) < NONE_ASKED_WITHIN
        };
        let mut stale: Vec<(Mono, &Key)> =
            self.answers.iter().filter(wanted).map(|(key, known)| (known.said, key)).collect();
        stale.sort();
        stale.into_iter().take(FRESH_MAX).map(|(_, key)| key.clone()).collect()
    }

    /// With the question's own id. What was said over the other carrier only will do.
    fn answer(&mut self, query: &[u8], tcp: bool, now: Mono) -> Option<Vec<u8>> {
        let (id, question) = query.split_at_checked(2)?;
        let mut key: Key = (tcp, question.into());
        let is_own = self.answers.contains_key(&key);
        key.0 = tcp == is_own;
        let known = self.answers.get_mut(&key)?;
        known.asked = now;
        let said = if is_own { known.answer.to_vec() } else { carried(&known.answer, tcp)? };
        Some([id, &said].concat())
    }
}

// === helpers ===

/// An answer, without its id, as it goes over the other carrier: nothing of one that was cut for
/// UDP, and cut where it may not fit that.
fn carried(answer: &[u8], tcp: bool) -> Option<Vec<u8>> {
    match (tcp, *answer.first()? & CUT != 0) {
        (true, true) => None,
        (false, _) if answer.len() + 2 > UDP_BYTES => cut(answer),
        _ => Some(answer.to_vec()),
    }
}

/// The question alone, marked as cut.
fn cut(answer: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEAD_BYTES;
    loop {
        let length = usize::from(*answer.get(end)?);
        end += 1 + length;
        match length {
            0 => break,
            1..=63 => {}
            _ => return None,
        }
    }
    // Its type and class.
    let mut out = answer.get(..end + 4)?.to_vec();
    *out.first_mut()? |= CUT;
    // Of answers, authority and more there is none.
    out.get_mut(4..HEAD_BYTES)?.fill(0);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_is_said_again_under_the_new_questions_id() {
        let mut memory = Memory::default();
        let now = Mono::default();
        let answer = |text: &[u8]| Resolved::Answer(text.to_vec());
        memory.note(b"\0\x01web", false, &answer(b"\0\x01one"), now);
        assert_eq!(memory.answer(b"\0\x07web", false, now).unwrap(), b"\0\x07one");
        assert_eq!(memory.answer(b"\0\x07other", false, now), None);
        memory.note(b"\0\x02web", false, &answer(b"\0\x02two"), now);
        assert_eq!(memory.answer(b"\0\x07web", false, now).unwrap(), b"\0\x07two");
        memory.note(b"\0\x02web", false, &Resolved::Outside, now);
        assert_eq!(memory.answer(b"\0\x07web", false, now), None);
        assert_eq!(memory.answer(b"\0", false, now), None);
    }

    #[test]
    fn what_was_said_over_the_other_carrier_is_said_as_it_fits_this_one() {
        let mut memory = Memory::default();
        let now = Mono::default();
        let head = |flags: u8, records: u8| [flags, 0, 0, 1, 0, records, 0, 0, 0, 1];
        let of = |name: &[u8]| [name, &[0, 0, 1, 0, 1][..]].concat();
        let told = |flags: u8, name: &[u8], bytes: usize| {
            let said = [&[0, 9][..], &head(flags, 3), &of(name), &vec![7; bytes]].concat();
            Resolved::Answer(said)
        };
        memory.note(b"\0\x01long", true, &told(0x80, b"\x04long", 600), now);
        let expect = [&[0, 5, 0x82, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &of(b"\x04long")].concat();
        assert_eq!(memory.answer(b"\0\x05long", false, now), Some(expect));
        memory.note(b"\0\x01fits", true, &told(0x80, b"\x04fits", 60), now);
        let whole = memory.answer(b"\0\x05fits", true, now).unwrap();
        assert_eq!(memory.answer(b"\0\x05fits", false, now).unwrap(), whole);
        memory.note(b"\0\x01part", false, &told(0x82, b"\x04part", 0), now);
        assert_eq!(memory.answer(b"\0\x05part", true, now), None, "there is more of it");
        // What is no message is not looked into.
        for odd in [&b""[..], b"\x80", &[0x80; 700]] {
            let said = Resolved::Answer([&[0, 9][..], odd].concat());
            memory.note(b"\0\x01odd", true, &said, now);
            assert!(memory.answer(b"\0\x05odd", false, now).is_none_or(|said| said.len() < 4));
        }
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_what_is_oldest() {
        let mut memory = Memory::default();
        let query = |n: usize| [&b"\0\0"[..], &n.to_be_bytes()].concat();
        let now = Mono::default();
        for n in 0..=MEMORY_MAX {
            let at = Mono::default().plus(Duration::from_secs(u64::try_from(n).unwrap()));
            memory.note(&query(n), false, &Resolved::Answer(b"\0\0a".to_vec()), at);
        }
        assert_eq!(memory.answers.len(), MEMORY_MAX);
        assert_eq!(memory.answer(&query(0), false, now), None);
        assert!(memory.answer(&query(MEMORY_MAX), false, now).is_some());
        let long = vec![0; QUESTION_BYTES_MAX + 3];
        memory.note(&long, false, &Resolved::Answer(b"\0\0a".to_vec()), Mono::default());
        assert_eq!(memory.answer(&long, false, now), None);
    }

    #[test]
    fn what_was_asked_lately_is_asked_again_and_what_was_not_is_forgotten() {
        let mut memory = Memory::default();
        let at = |s| Mono::default().plus(Duration::from_secs(s));
        let answer = |text: &[u8]| Resolved::Answer([&b"\0\0"[..], text].concat());
        memory.note(b"\0\x01web", false, &answer(b"one"), at(0));
        memory.note(b"\0\x01db", true, &answer(b"two"), at(1));
        let keys = |memory: &mut Memory, s| {
            memory.stale(at(s)).into_iter().map(|(_, q)| q.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&mut memory, 5), [b"web".to_vec(), b"db".to_vec()]);
        memory.renew(b"\0\0web", false, &answer(b"new"), at(6));
        assert_eq!(keys(&mut memory, 7), [b"db".to_vec(), b"web".to_vec()]);
        memory.answer(b"\0\x05db", true, at(3000)).unwrap();
        assert_eq!(keys(&mut memory, 3601), [b"db".to_vec()], "renewing is not asking");
        memory.renew(b"\0\0web", false, &answer(b"old"), at(3602));
        assert_eq!(memory.answer(b"\0\x05web", false, at(3602)), None);
    }

    #[test]
    fn an_answer_that_was_overtaken_is_let_go_and_names_that_are_not_there_soon_rest() {
        let mut memory = Memory::default();
        let at = |s| Mono::default().plus(Duration::from_secs(s));
        let answer = |flags: u8, text: &[u8]| Resolved::Answer([&[0, 0, 0, flags], text].concat());
        memory.note(b"\0\0web", false, &answer(0, b"new"), at(2));
        memory.renew(b"\0\0web", false, &answer(0, b"old"), at(1));
        memory.note(b"\0\0web", false, &Resolved::Outside, at(1));
        assert_eq!(memory.answer(b"\0\0web", false, at(2)).unwrap(), b"\0\0\0\0new");
        memory.note(b"\0\0none", false, &answer(NXDOMAIN, b""), at(2));
        assert_eq!(memory.stale(at(61)).len(), 2);
        assert_eq!(memory.stale(at(62)).len(), 1, "it is answered still, and asked no more");
        assert!(memory.answer(b"\0\0none", false, at(62)).is_some());
        // All of what is in use is asked again, soon.
        for n in 0..2 * FRESH_MAX {
            let query = [&b"\0\0"[..], &n.to_be_bytes()].concat();
            memory.note(&query, false, &answer(0, b""), at(3));
        }
        assert_eq!(memory.stale(at(4)).len(), FRESH_MAX);
    }
}
