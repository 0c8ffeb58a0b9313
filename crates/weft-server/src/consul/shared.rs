// SPDX-License-Identifier: Apache-2.0
//! Answers that many watchers get at once: a service's health as everybody may see it, written
//! once for each World. Called by `health.rs`. Holds nothing that anybody may not see, and no more
//! than a bounded number of bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use weft_base::limits::SHARED_ANSWER_BYTES_MAX;
use weft_kinds::world::World;

/// Namespace, service, and whether only passing instances were asked for.
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

    pub(super) fn put(&self, world: &Arc<World>, asked: Asked, answer: &Bytes) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.world.as_ref().is_some_and(|held| Arc::ptr_eq(held, world));
        if !known || held.bytes + answer.len() > SHARED_ANSWER_BYTES_MAX {
            *held = Held { world: Some(world.clone()), ..Held::default() };
        }
        if answer.len() <= SHARED_ANSWER_BYTES_MAX {
            held.bytes += answer.len();
            held.answers.insert(asked, answer.clone());
        }
    }
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
        // The last one that fits, and one that does not.
        let large = Bytes::from(vec![0; SHARED_ANSWER_BYTES_MAX]);
        shared.put(&other, asked("large"), &large);
        assert_eq!(shared.get(&other, &asked("api")), None);
        assert_eq!(shared.get(&other, &asked("large")).unwrap().len(), SHARED_ANSWER_BYTES_MAX);
        shared.put(&other, asked("larger"), &Bytes::from(vec![0; SHARED_ANSWER_BYTES_MAX + 1]));
        assert_eq!(shared.get(&other, &asked("larger")), None);
    }
}
