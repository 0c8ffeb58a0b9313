// SPDX-License-Identifier: Apache-2.0
//! Answers that many watchers get at once: a service's health as everybody may see it, written
//! once for each World. Called by `health.rs`. Holds nothing that anybody may not see, and neither
//! more answers nor more bytes, names among them, than it may: anybody asks for any name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use weft_base::limits::SHARED_ANSWER_BYTES_MAX;
use weft_kinds::world::World;

/// What an answer costs beside its own bytes and its names'.
const ENTRY_BYTES: usize = 256;
const ANSWERS_MAX: usize = 4_096;

/// Namespace, the service's slug, and whether only passing instances were asked for.
pub(super) type Asked = (Arc<str>, String, bool);

#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    world: Option<Arc<World>>,
    answers: HashMap<Asked, Bytes>,
    bytes: usize,
}

impl Shared {
    /// The answer to a question about this World, if it was written already.
    pub(super) fn get(&self, world: &Arc<World>, asked: &Asked) -> Option<Bytes> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.world.as_ref().is_some_and(|held| Arc::ptr_eq(held, world));
        known.then(|| held.answers.get(asked).cloned()).flatten()
    }

    /// Keeps an answer. One that says that there is nothing is as soon written as found, and there
    /// are as many of those as there are names.
    pub(super) fn put(&self, world: &Arc<World>, asked: Asked, answer: &Bytes) {
        let bytes = cost(&asked, answer);
        if **answer == *b"[]" || bytes > SHARED_ANSWER_BYTES_MAX {
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

fn cost((namespace, service, _): &Asked, answer: &Bytes) -> usize {
    ENTRY_BYTES + namespace.len() + service.len() + answer.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_worlds_and_their_bytes_are_bounded() {
        let (one, other) = (Arc::new(World::new()), Arc::new(World::new()));
        let asked = |name: &str| -> Asked { ("default".into(), name.into(), false) };
        let shared = Shared::default();
        assert_eq!(shared.get(&one, &asked("web")), None);
        shared.put(&one, asked("web"), &Bytes::from_static(b"[1]"));
        assert_eq!(shared.get(&one, &asked("web")).unwrap(), "[1]");
        assert_eq!(shared.get(&one, &("default".into(), "web".into(), true)), None);
        assert_eq!(shared.get(&other, &asked("web")), None);
        shared.put(&other, asked("api"), &Bytes::from_static(b"[2]"));
        assert_eq!(shared.get(&one, &asked("web")), None);
        // The largest one that fits, alone, and one that does not.
        let room = SHARED_ANSWER_BYTES_MAX - cost(&asked("large"), &Bytes::new());
        shared.put(&other, asked("large"), &Bytes::from(vec![0; room]));
        assert_eq!(shared.get(&other, &asked("api")), None);
        assert_eq!(shared.get(&other, &asked("large")).unwrap().len(), room);
        shared.put(&other, asked("huge!"), &Bytes::from(vec![0; room + 1]));
        assert_eq!(shared.get(&other, &asked("huge!")), None);
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
            shared.put(&world, asked, &Bytes::from_static(b"[]"));
        }
        assert_eq!(held(&shared), (0, 0), "anybody may ask for names that nobody has");
        // Short answers under long names, and many of them.
        let mut most = (0, 0);
        for n in 0..2 * ANSWERS_MAX {
            let name = if n < 100 { format!("{n}{}", "x".repeat(100_000)) } else { n.to_string() };
            let asked = ("default".into(), name.clone(), true);
            shared.put(&world, asked.clone(), &Bytes::from_static(b"[1]"));
            shared.put(&world, asked, &Bytes::from_static(b"[1]"));
            let now = held(&shared);
            most = (most.0.max(now.0), most.1.max(now.1));
            let names = shared.0.lock().unwrap().answers.keys().map(|k| k.1.len()).sum::<usize>();
            assert!(names <= now.1, "names count");
        }
        assert_eq!(most.0, ANSWERS_MAX);
        assert!(most.1 <= SHARED_ANSWER_BYTES_MAX, "{most:?}");
    }
}
