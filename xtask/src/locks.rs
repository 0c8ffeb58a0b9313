// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask locks FILE`: whether what clients of Consul's locks were told can be explained by
//! one order of all operations, in which each lock has one holder at a time. The drill
//! `tests/faults/s02_locks.py` notes every answer with its beginning and end; todc-utils decides.
//! It never looks at a running weft.
//!
//! Linearizability is local, so each lock is judged by itself. What nobody was told is no
//! operation of its own, which would let the search grow without bound: an operation leads from a
//! set of possible worlds to a set of possible worlds. A write without an answer adds those in
//! which it happened; a session that ended by itself may have let go at any moment. That it has let
//! go in the end is what the last look at each lock must show: `rest`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// A lock whose history takes longer is one that could not be decided, which is no pass.
const EACH_MAX: Duration = Duration::from_secs(60);
/// Operations that are shown before the one that nothing explains.
const SHOWN: usize = 12;

/// What the drill wrote down.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    /// Sessions that ended without being asked to: with their machine.
    ended: BTreeSet<Arc<str>>,
    locks: BTreeMap<String, Vec<Note>>,
}

/// One operation of one client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    began: u64,
    /// Nothing for one that may happen at any later time.
    ended: Option<u64>,
    what: What,
    /// Who takes, gives back or ends; who was seen as the holder.
    session: Option<Arc<str>>,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Take,
    Give,
    Look,
    /// A look when all has been quiet for a while: who is over holds nothing any more.
    Rest,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Yes,
    No,
    /// The session is not there any more.
    Gone,
    /// None came.
    Unknown,
}

/// How a lock may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct World {
    holder: Option<Arc<str>>,
    /// Sessions that take nothing any more.
    over: BTreeSet<Arc<str>>,
}

/// A note as the judge takes it.
#[derive(Clone, Debug)]
struct Step {
    note: Note,
    ended: Arc<BTreeSet<Arc<str>>>,
}

struct Lock;

// === impl What ===

impl What {
    /// Changes nothing.
    fn is_look(self) -> bool {
        matches!(self, Self::Look | Self::Rest)
    }
}

// === impl Lock ===

impl Specification for Lock {
    type State = BTreeSet<World>;
    type Operation = Step;

    fn init() -> Self::State {
        BTreeSet::from([World::default()])
    }

    fn apply(step: &Step, worlds: &Self::State) -> (bool, Self::State) {
        let mut after = BTreeSet::new();
        for world in worlds {
            step.lead(world.clone(), &mut after);
            if let Some(own) = world.holder.as_ref().filter(|own| step.ended.contains(*own)) {
                step.lead(world.without(own), &mut after);
            }
        }
        match after.is_empty() {
            true => (false, worlds.clone()),
            false => (true, freest(after)),
        }
    }
}

/// Without worlds in which no more can happen than in another one: with the same holder, and more
/// sessions that are over. They would double with each session that ends.
fn freest(worlds: BTreeSet<World>) -> BTreeSet<World> {
    let freer = |one: &World, other: &World| {
        one != other && one.holder == other.holder && one.over.is_subset(&other.over)
    };
    let kept = worlds.iter().filter(|world| !worlds.iter().any(|one| freer(one, world)));
    kept.cloned().collect()
}

// === impl World ===

impl World {
    /// The same after a session's end.
    fn without(&self, session: &Arc<str>) -> Self {
        let holder = self.holder.clone().filter(|own| own != session);
        let mut over = self.over.clone();
        over.insert(session.clone());
        Self { holder, over }
    }
}

// === impl Step ===

impl Step {
    /// Adds the worlds that this one becomes, if this answer could be given in it.
    fn lead(&self, world: World, after: &mut BTreeSet<World>) {
        let who = self.note.session.as_ref();
        match (self.note.what, self.note.answer) {
            (What::Look, _) => {
                if world.holder.as_ref() == who {
                    after.insert(world);
                }
            }
            (What::Rest, _) => {
                let gone = |who: &Arc<str>| self.ended.contains(who) || world.over.contains(who);
                if world.holder.as_ref() == who && !who.is_some_and(gone) {
                    after.insert(world);
                }
            }
            (What::End, _) => {
                after.extend(who.map(|who| world.without(who)));
            }
            (_, Answer::Gone) => {
                let who = who.filter(|who| self.ended.contains(*who) || world.over.contains(*who));
                after.extend(who.map(|who| {
                    let mut over = world.over.clone();
                    over.insert(who.clone());
                    World { holder: world.holder.clone(), over }
                }));
            }
            (_, Answer::Yes) => after.extend(self.done(&world)),
            (What::Take, Answer::No) => {
                // Who asks for a session that is over is told so.
                if world.holder.is_some() && world.holder.as_ref() != who {
                    after.insert(world);
                }
            }
            (What::Give, Answer::No) => {
                if world.holder.as_ref() != who {
                    after.insert(world);
                }
            }
            (_, Answer::Unknown) => {
                after.extend(self.done(&world));
                after.insert(world);
            }
        }
    }

    /// What becomes of a world in which this succeeds.
    fn done(&self, world: &World) -> Option<World> {
        let who = self.note.session.as_ref()?;
        let own = world.holder.as_ref() == Some(who);
        let holder = match self.note.what {
            What::Take if world.over.contains(who) || !(own || world.holder.is_none()) => {
                return None;
            }
            What::Take => Some(who.clone()),
            What::Give if own => None,
            _ => return None,
        };
        Some(World { holder, over: world.over.clone() })
    }
}

/// The chore: judges the file.
pub fn run(_: &Path, args: &[String]) -> anyhow::Result<()> {
    let [file] = args else { bail!("usage: cargo xtask locks FILE") };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let told: Told =
        serde_json::from_str(&text).with_context(|| format!("{file} is no history"))?;
    let (locks, mut operations) = (told.locks.len(), 0);
    let ended = Arc::new(told.ended);
    for (lock, notes) in told.locks {
        operations += notes.len();
        judge(notes, &ended).with_context(|| format!("lock {lock:?}"))?;
    }
    println!("{operations} operations on {locks} locks are linearizable");
    Ok(())
}

/// Fails when no order explains what was told, and says where that begins.
fn judge(notes: Vec<Note>, ended: &Arc<BTreeSet<Arc<str>>>) -> anyhow::Result<()> {
    if decide(notes.clone(), ended)? {
        return Ok(());
    }
    // What a history begins with is explained if the whole is: the first moment can be halved for.
    let mut moments: Vec<u64> = notes.iter().filter_map(|note| note.ended).collect();
    moments.sort_unstable();
    let (mut good, mut bad) = (0, moments.len().saturating_sub(1));
    while good < bad {
        let middle = good.midpoint(bad);
        match decide(until(&notes, moments[middle]), ended)? {
            true => good = middle + 1,
            false => bad = middle,
        }
    }
    let at = moments.get(bad).copied().unwrap_or(u64::MAX);
    let mut before: Vec<&Note> = notes.iter().filter(|note| note.began <= at).collect();
    before.sort_by_key(|note| note.ended.unwrap_or(u64::MAX).min(at));
    let shown = before.get(before.len().saturating_sub(SHOWN)..).unwrap_or_default();
    let lines: Vec<String> = shown.iter().map(|note| format!("  {note:?}")).collect();
    bail!("no order explains what was told up to {at}:\n{}", lines.join("\n"))
}

/// What was told until a moment: later answers are not known yet.
fn until(notes: &[Note], moment: u64) -> Vec<Note> {
    let open = |note: &Note| note.ended.is_none_or(|ended| ended > moment);
    let begun = notes.iter().filter(|note| note.began <= moment);
    let told = begun.filter(|note| !(open(note) && note.what.is_look())).map(|note| match note {
        note if !open(note) => note.clone(),
        note if note.what == What::End => Note { ended: None, ..note.clone() },
        note => Note { ended: None, answer: Answer::Unknown, ..note.clone() },
    });
    told.collect()
}

fn decide(notes: Vec<Note>, ended: &Arc<BTreeSet<Arc<str>>>) -> anyhow::Result<bool> {
    let ended = ended.clone();
    let (said, hear) = mpsc::sync_channel(1);
    // Left behind when it takes too long: nothing can stop a search.
    std::thread::spawn(move || said.send(is_linearizable(notes, &ended)));
    match hear.recv_timeout(EACH_MAX) {
        Ok(decided) => Ok(decided),
        Err(why) => bail!("not decided within {EACH_MAX:?} ({why})"),
    }
}

fn is_linearizable(notes: Vec<Note>, ended: &Arc<BTreeSet<Arc<str>>>) -> bool {
    let mut moments = Vec::with_capacity(notes.len() * 2);
    for (at, note) in notes.into_iter().enumerate() {
        let (began, over) = (note.began, note.ended.unwrap_or(u64::MAX));
        let step = Step { note, ended: ended.clone() };
        moments.push((began, at, Action::Call(step.clone())));
        moments.push((over, at, Action::Response(step)));
    }
    // Calls before responses at the same moment: they overlap.
    moments.sort_by_key(|(when, at, action)| (*when, matches!(action, Action::Response(_)), *at));
    let actions: Vec<_> = moments.into_iter().map(|(_, at, action)| (at, action)).collect();
    actions.is_empty() || WGLChecker::<Lock>::is_linearizable(History::from_actions(actions))
}

#[cfg(test)]
mod tests;
