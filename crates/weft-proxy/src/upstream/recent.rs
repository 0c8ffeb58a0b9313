// SPDX-License-Identifier: Apache-2.0
//! What was looked up in a worker's newest table lately: backends that rules led to, by where in
//! the table that is written, and what a gateway's listener says of its clients. An address is
//! compared sooner than a name is hashed. Called by the worker, which forgets all of it with the
//! table; opens no connection.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use weft_model::Edge;

use super::pick::LocalBackend;

/// Places that are remembered; two that share a slot take turns.
const SLOTS: usize = 64;

/// The address of what led to it, and the backend.
type Slot = Option<(usize, Rc<RefCell<LocalBackend>>)>;

#[derive(Debug, Default)]
pub struct Recent {
    backends: RefCell<Vec<Slot>>,
    /// The gateway whose clients were asked about last, and what its listener says of them.
    edge: RefCell<Option<(Arc<str>, Option<Edge>)>>,
}

// === impl Recent ===

impl Recent {
    /// `at` lives as long as the table does that is in force.
    pub fn get<T>(&self, at: &T) -> Option<Rc<RefCell<LocalBackend>>> {
        let address = std::ptr::from_ref(at).addr();
        match self.backends.borrow().get(slot(address)) {
            Some(Some((known, backend))) if *known == address => Some(backend.clone()),
            _ => None,
        }
    }

    pub fn set<T>(&self, at: &T, backend: &Rc<RefCell<LocalBackend>>) {
        let address = std::ptr::from_ref(at).addr();
        let mut slots = self.backends.borrow_mut();
        if slots.is_empty() {
            slots.resize(SLOTS, None);
        }
        if let Some(slot) = slots.get_mut(slot(address)) {
            *slot = Some((address, backend.clone()));
        }
    }

    /// What the listener of `gateway` says, which `find` looks up.
    pub fn edge(&self, gateway: &Arc<str>, find: impl FnOnce() -> Option<Edge>) -> Option<Edge> {
        if let Some((name, edge)) = &*self.edge.borrow()
            && Arc::ptr_eq(name, gateway)
        {
            return *edge;
        }
        let edge = find();
        // The name is kept, so that no other one has its place meanwhile.
        self.edge.replace(Some((gateway.clone(), edge)));
        edge
    }

    /// Nothing of the table before is at its place any more.
    pub fn clear(&self) {
        self.backends.borrow_mut().clear();
        self.edge.take();
    }
}

/// Addresses are multiples of eight, and neighbours are far apart.
fn slot(address: usize) -> usize {
    (address >> 4 ^ address >> 10) % SLOTS
}
