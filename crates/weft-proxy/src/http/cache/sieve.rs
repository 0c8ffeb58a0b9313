// SPDX-License-Identifier: Apache-2.0
//! The order in which stored answers are given up: SIEVE (Zhang et al., NSDI 2024). What was asked
//! for since the hand last passed stays once more; a scan of things asked for once passes through
//! without driving others out. One per shard of the store; knows nothing of HTTP.

/// Values by place. A place is used again once it is free.
#[derive(Debug)]
pub struct Sieve<T> {
    nodes: Vec<Option<Node<T>>>,
    free: Vec<usize>,
    newest: Option<usize>,
    oldest: Option<usize>,
    hand: Option<usize>,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    visited: bool,
    newer: Option<usize>,
    older: Option<usize>,
}

// === impl Sieve ===

impl<T> Default for Sieve<T> {
    fn default() -> Self {
        let (nodes, free) = (Vec::new(), Vec::new());
        Self { nodes, free, newest: None, oldest: None, hand: None }
    }
}

impl<T> Sieve<T> {
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> usize {
        let node = Node { value, visited: false, newer: None, older: self.newest };
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
        };
        if let Some(slot) = self.nodes.get_mut(place) {
            *slot = Some(node);
        }
        match self.newest {
            Some(before) => self.with(before, |node| node.newer = Some(place)),
            None => self.oldest = Some(place),
        }
        self.newest = Some(place);
        place
    }

    /// The value, without a sign that anybody wanted it.
    pub fn get(&self, place: usize) -> Option<&T> {
        self.nodes.get(place)?.as_ref().map(|node| &node.value)
    }

    /// Somebody wanted it.
    pub fn visit(&mut self, place: usize) {
        self.with(place, |node| node.visited = true);
    }

    pub fn remove(&mut self, place: usize) -> Option<T> {
        let node = self.nodes.get_mut(place)?.take()?;
        self.free.push(place);
        match node.newer {
            Some(newer) => self.with(newer, |n| n.older = node.older),
            None => self.newest = node.older,
        }
        match node.older {
            Some(older) => self.with(older, |n| n.newer = node.newer),
            None => self.oldest = node.newer,
        }
        if self.hand == Some(place) {
            self.hand = node.newer;
        }
        Some(node.value)
    }

    /// The place whose turn it is to go.
    pub fn victim(&mut self) -> Option<usize> {
        let mut at = self.hand.or(self.oldest)?;
        // Each is passed at most once: the second time it is unvisited.
        loop {
            let node = self.nodes.get_mut(at)?.as_mut()?;
            let next = node.newer;
            if !std::mem::take(&mut node.visited) {
                self.hand = next;
                return Some(at);
            }
            at = next.or(self.oldest)?;
        }
    }

    fn with(&mut self, place: usize, change: impl FnOnce(&mut Node<T>)) {
        if let Some(Some(node)) = self.nodes.get_mut(place) {
            change(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_stays_and_a_scan_passes_through() {
        let mut sieve = Sieve::default();
        let wanted: Vec<usize> = (0..4).map(|n| sieve.insert(n)).collect();
        for n in 100..200 {
            wanted.iter().for_each(|place| sieve.visit(*place));
            sieve.insert(n);
            if sieve.len() > 8 {
                let victim = sieve.victim().unwrap();
                assert!(sieve.remove(victim).unwrap() >= 100);
            }
        }
        assert_eq!(sieve.len(), 8);
        assert!(wanted.iter().all(|place| sieve.get(*place).is_some()));
    }

    #[test]
    fn everything_can_go_in_any_order() {
        let mut sieve = Sieve::default();
        let mut rng = weft_base::rng::Rng::seeded(9);
        let mut there = std::collections::BTreeMap::new();
        for n in 0..20_000u64 {
            match rng.below(4) {
                0 | 1 => {
                    assert!(there.insert(sieve.insert(n), n).is_none());
                }
                2 => {
                    let place = rng.below(64) as usize;
                    assert_eq!(sieve.remove(place), there.remove(&place));
                }
                _ => {
                    if let Some(place) = there.keys().next().copied() {
                        sieve.visit(place);
                    }
                    let victim = sieve.victim();
                    assert_eq!(victim.is_some(), !there.is_empty());
                    let gone = victim.map(|place| (sieve.remove(place), there.remove(&place)));
                    assert!(gone.is_none_or(|(a, b)| a == b && a.is_some()));
                }
            }
            assert_eq!(sieve.len(), there.len());
        }
    }
}
