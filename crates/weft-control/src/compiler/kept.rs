// SPDX-License-Identifier: Apache-2.0
//! What the compiler keeps of each unit: what it gave, and what it read. A mesh of ten thousand
//! services has twenty thousand units, so both are kept as small as they can be found by.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use weft_kinds::world::ReadKey;
use weft_model::ResourceName;

use crate::compile::{Draft, Output, Unit};

/// What one unit gave.
#[derive(Debug, Default)]
pub(super) struct Kept {
    resources: Box<[(ResourceName, Draft)]>,
    /// All but the resources. Most units give nothing else.
    rest: Option<Box<Output>>,
}

/// A question, as a number: it takes a tenth of the room. Of two questions that have the same
/// number, a change of one runs the readers of both, which does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Question(u64);

/// Which units asked what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    by_unit: HashMap<Arc<Unit>, Box<[Question]>>,
    by_question: HashMap<Question, Readers>,
}

/// Who asked a question. Most are asked by one unit: a set of one is large, and a set that is not
/// boxed makes each of these as large as itself.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(clippy::box_collection)]
enum Readers {
    #[default]
    None,
    One(Arc<Unit>),
    Many(Box<HashSet<Arc<Unit>>>),
}

// === impl Kept ===

impl Kept {
    pub fn new(mut output: Output) -> Self {
        let resources = std::mem::take(&mut output.resources).into_iter().collect();
        let rest = (output != Output::default()).then(|| Box::new(output));
        Self { resources, rest }
    }

    /// As it was given.
    pub fn whole(self) -> Output {
        let mut output = self.rest.map_or_else(Output::default, |rest| *rest);
        output.resources = self.resources.into_iter().collect();
        output
    }

    pub fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.resources.iter().map(|(name, _)| name)
    }

    /// Everything but the resources, where there is something.
    pub fn rest(&self) -> Option<&Output> {
        self.rest.as_deref()
    }
}

// === impl Question ===

impl Question {
    fn of(key: &ReadKey) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        Self(hasher.finish())
    }
}

// === impl Reads ===

impl Reads {
    /// The units that asked this, among them at most a few that did not.
    pub fn readers(&self, key: &ReadKey) -> impl Iterator<Item = &Unit> {
        self.by_question.get(&Question::of(key)).into_iter().flat_map(Readers::iter)
    }

    /// Notes all that a unit asked; nothing when it is gone.
    pub fn note(&mut self, unit: &Unit, asked: &HashSet<ReadKey>) {
        let (unit, old) = match self.by_unit.remove_entry(unit) {
            Some(known) => known,
            None => (Arc::new(unit.clone()), Box::default()),
        };
        let mut new: Vec<Question> = asked.iter().map(Question::of).collect();
        new.sort_unstable();
        new.dedup();
        for question in old.iter().filter(|q| new.binary_search(q).is_err()) {
            let Some(readers) = self.by_question.get_mut(question) else { continue };
            readers.remove(&unit);
            if *readers == Readers::None {
                self.by_question.remove(question);
            }
        }
        for question in new.iter().filter(|q| old.binary_search(q).is_err()) {
            self.by_question.entry(*question).or_default().insert(&unit);
        }
        if !new.is_empty() {
            self.by_unit.insert(unit, new.into());
        }
    }
}

// === impl Readers ===

impl Readers {
    fn iter(&self) -> impl Iterator<Item = &Unit> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(unit) => (Some(unit), None),
            Self::Many(units) => (None, Some(&**units)),
        };
        one.into_iter().chain(many.into_iter().flatten()).map(|unit| &**unit)
    }

    fn insert(&mut self, unit: &Arc<Unit>) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(unit.clone()),
            Self::One(one) if one == *unit => Self::One(one),
            Self::One(one) => Self::Many(Box::new(HashSet::from([one, unit.clone()]))),
            Self::Many(mut units) => {
                units.insert(unit.clone());
                Self::Many(units)
            }
        };
    }

    fn remove(&mut self, unit: &Arc<Unit>) {
        *self = match std::mem::take(self) {
            Self::One(one) if one == *unit => Self::None,
            Self::Many(mut units) => {
                units.remove(unit);
                let last = if units.len() == 1 { units.drain().next() } else { None };
                last.map_or(Self::Many(units), Self::One)
            }
            other => other,
        };
    }
}
