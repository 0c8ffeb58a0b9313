// SPDX-License-Identifier: Apache-2.0
//! Answers that many watchers get at once: a service's health as everybody may see it, written
//! once for each World. Called by `health.rs`. Holds nothing that anybody may not see, and neither
//! more answers nor more bytes, names among them, than it may: anybody asks for any name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use weft_base::limits::SHARED_ANSWER_BYTES_MAX;
use weft_kinds::world::World;

/// What an answer costs beside its own bytes and its names'.
const ENTRY_BYTES: usize = 256;
const ANSWERS_MAX: usize = 4_096;

/// Namespace, the service's slug, and whether only passing instances were asked for.
pub(super) type Asked = (Arc<str>, String, bool);

/// An answer's bytes, and the same made small for who takes that, made once.
#[derive(Debug)]
pub struct Written {
    plain: Bytes,
    small: OnceLock<Option<Bytes>>,
}

#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    world: Option<Arc<World>>,
    answers: HashMap<Asked, Arc<Written>>,
    bytes: usize,
}

// === impl Written ===

impl Written {
    pub fn new(plain: impl Into<Bytes>) -> Self {
        Self { plain: plain.into(), small: OnceLock::new() }
    }

    pub fn plain(&self) -> &Bytes {
        &self.plain
    }

    /// `None` when it cannot be made small, or is not smaller then.
    pub fn small(&self, make: impl FnOnce(&Bytes) -> Option<Bytes>) -> Option<Bytes> {
        let made = self
            .small
            .get_or_init(|| make(&self.plain).filter(|small| small.len() < self.plain.len()));
        made.clone()
    }
}

// === impl Shared ===

impl Shared {
    /// The answer to a question about this World, if it was written already.
    pub(super) fn get(&self, world: &Arc<World>, asked: &Asked) -> Option<Arc<Written>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.world.as_ref().is_some_and(|held| Arc::ptr_eq(held, world));
        known.then(|| held.answers.get(asked).cloned()).flatten()
    }

    /// Keeps an answer. One that says that there is nothing is as soon written as found, and there
    /// are as many of those as there are names.
    pub(super) fn put(&self, world: &Arc<World>, asked: Asked, answer: &Arc<Written>) {
        let bytes = cost(&asked, answer);
        if **answer.plain() == *b"[]" || bytes > SHARED_ANSWER_BYTES_MAX {
            return;
        }
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.world.as_ref().is_some_and(|held| Arc::ptr_eq(held, world));
        // Two may have written the same answer at the same time.
        if known && held.answers.contains_key(&asked) {
            return;
        }
        let full =
            held.bytes + bytes > SHARED_ANSWER_BYTES_MAX || held.answers.len() >= ANSWERS_MAX;
        if !known || full {
            *held = Held { world: Some(world.clone()), ..Held::default() };
        }
        held.answers.insert(asked, answer.clone());
        held.bytes += bytes;
    }
}

/// The small form counts as if it were as large: it may be made later.
fn cost((namespace, service, _): &Asked, answer: &Written) -> usize {
    ENTRY_BYTES + namespace.len() + service.len() + 2 * answer.plain.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: impl Into<Bytes>) -> Arc<Written> {
        Arc::new(Written::new(bytes))
    }

    #[test]
    fn a_small_form_is_made_once_and_only_where_it_is_smaller() {
        let answer = written("aaaa");
        let made = |text: &'static str| move |_: &Bytes| Some(Bytes::from_static(text.as_bytes()));
        assert_eq!(answer.small(made("a")).unwrap(), "a");
        assert_eq!(answer.small(made("b")).unwrap(), "a");
        assert_eq!(written("aaaa").small(made("larger")), None);
    }

    #[test]
    fn an_answer_is_its_worlds_and_their_bytes_are_bounded() {
        let (one, other) = (Arc::new(World::new()), Arc::new(World::new()));
        let asked = |name: &str| -> Asked { ("default".into(), name.into(), false) };
        let shared = Shared::default();
        assert!(shared.get(&one, &asked("web")).is_none());
        shared.put(&one, asked("web"), &written("[1]"));
        assert_eq!(shared.get(&one, &asked("web")).unwrap().plain(), "[1]");
        assert!(shared.get(&one, &("default".into(), "web".into(), true)).is_none());
        assert!(shared.get(&other, &asked("web")).is_none());
        shared.put(&other, asked("api"), &written("[2]"));
        assert!(shared.get(&one, &asked("web")).is_none());
        // The largest one that fits, alone, and one that does not.
        let room = (SHARED_ANSWER_BYTES_MAX - cost(&asked("large"), &written(""))) / 2;
        shared.put(&other, asked("large"), &written(vec![0; room]));
        assert!(shared.get(&other, &asked("api")).is_none());
        assert_eq!(shared.get(&other, &asked("large")).unwrap().plain().len(), room);
        shared.put(&other, asked("huge!"), &written(vec![0; room + 1]));
        assert!(shared.get(&other, &asked("huge!")).is_none());
        assert!(shared.get(&other, &asked("large")).is_some());
    }

    #[test]
    fn names_count_and_what_is_not_there_is_not_kept() {
        let world = Arc::new(World::new());
        let shared = Shared::default();
        let held = |shared: &Shared| {
            let held = shared.0.lock().unwrap();
            (held.answers.len(), held.bytes)
        };
        for n in 0..10 {
            let asked = ("default".into(), format!("none-{n}"), false);
            shared.put(&world, asked, &written("[]"));
        }
        assert_eq!(held(&shared), (0, 0), "anybody may ask for names that nobody has");
        // Short answers under long names, and many of them.
        let mut most = (0, 0);
        for n in 0..2 * ANSWERS_MAX {
            let name = if n < 100 { format!("{n}{}", "x".repeat(100_000)) } else { n.to_string() };
            let asked = ("default".into(), name.clone(), true);
            shared.put(&world, asked.clone(), &written("[1]"));
            shared.put(&world, asked, &written("[1]"));
            let now = held(&shared);
            most = (most.0.max(now.0), most.1.max(now.1));
            let names = shared.0.lock().unwrap().answers.keys().map(|k| k.1.len()).sum::<usize>();
            assert!(names <= now.1, "names count");
        }
        assert_eq!(most.0, ANSWERS_MAX);
        assert!(most.1 <= SHARED_ANSWER_BYTES_MAX, "{most:?}");
    }
}
