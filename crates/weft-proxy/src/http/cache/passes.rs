// SPDX-License-Identifier: Apache-2.0
//! What nobody waits for, for a while: its answers cannot be stored. A table of fixed size that
//! knows hashes only, made when the first is noted. A place may be taken by another: then somebody
//! waits once in vain. One per shard of the store, which does the hashing.

use weft_base::clock::Mono;

/// What is remembered at one time, at most.
const PLACES: usize = 1_024;

#[derive(Debug, Default)]
pub struct Passes(Vec<(u64, Mono)>);

// === impl Passes ===

impl Passes {
    pub fn has(&self, key: u64, now: Mono) -> bool {
        self.0.get(place(key)).is_some_and(|(known, until)| *known == key && now < *until)
    }

    pub fn note(&mut self, key: u64, until: Mono) {
        if self.0.is_empty() {
            self.0.resize(PLACES, (0, Mono(0)));
        }
        if let Some(slot) = self.0.get_mut(place(key)) {
            *slot = (key, until);
        }
    }

    pub fn forget(&mut self, key: u64) {
        if let Some(slot) = self.0.get_mut(place(key)).filter(|(known, _)| *known == key) {
            *slot = (0, Mono(0));
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // Only the low bits are of interest.
fn place(key: u64) -> usize {
    key as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_came_last_until_its_time_is_over() {
        let mut passes = Passes::default();
        assert!(!passes.has(7, Mono(0)) && !passes.has(0, Mono(0)));
        passes.note(7, Mono(100));
        assert!(passes.has(7, Mono(99)) && !passes.has(7, Mono(100)) && !passes.has(8, Mono(0)));
        for key in 0..100_000 {
            passes.note(key, Mono(100));
            assert!(passes.has(key, Mono(0)));
        }
        assert_eq!(passes.0.len(), PLACES);
        passes.forget(99_998);
        assert!(!passes.has(99_998, Mono(0)) && passes.has(99_999, Mono(0)));
    }
}
