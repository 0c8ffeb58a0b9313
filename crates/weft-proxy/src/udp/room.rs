// SPDX-License-Identifier: Apache-2.0
//! Room for flows, whose number is limited over all workers. What is left is anybody's; when
//! nothing is left, flows that have been silent for a while give way: to a new one of their own
//! worker at once, to those of others when they ask. Called by the doors of datagrams.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{Door, LOOK_EVERY};
use crate::worker::Worker;

/// One worker's doors, and when it looked for silent flows.
#[derive(Debug, Default)]
pub struct Flows {
    doors: RefCell<Vec<Weak<Door>>>,
    looked: Cell<Option<Instant>>,
}

/// The right to one flow, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Rc<Worker>);

/// Room for one more flow of this worker, if there is any, or a silent flow's.
pub(super) fn place(worker: &Rc<Worker>) -> Option<Place> {
    let neighbours = &worker.shared.neighbours;
    let most = u32::try_from(worker.config.limits.udp_flows_max).unwrap_or(u32::MAX);
    if neighbours.flows.take(worker.id, most.max(1)) {
        return Some(Place(worker.clone()));
    }
    let now = Instant::now();
    if worker.flows.looked.get().is_some_and(|at| now - at < LOOK_EVERY) {
        return None;
    }
    worker.flows.looked.set(Some(now));
    let given = worker.flows.give_way(worker.config.limits.udp_silent, now);
    if given.is_none() {
        neighbours.ask_for_flows(worker.id);
    }
    given
}

// === impl Flows ===

impl Flows {
    pub(super) fn add(&self, door: &Rc<Door>) {
        let mut doors = self.doors.borrow_mut();
        doors.retain(|known| known.strong_count() > 0);
        doors.push(Rc::downgrade(door));
    }

    /// Ends flows that have been silent for so long; one of their places is kept for the caller.
    fn give_way(&self, silent: Duration, now: Instant) -> Option<Place> {
        let doors: Vec<Rc<Door>> = self.doors.borrow().iter().filter_map(Weak::upgrade).collect();
        let flows = doors.iter().flat_map(|door| door.flows_silent_for(silent, now));
        flows.fold(None, |kept, flow| {
            flow.end();
            // Its place is free from now on, whenever its task comes to its end.
            kept.or(flow.leaves())
        })
    }

    /// The same for another worker, which has no room.
    pub fn give_way_to_others(&self, silent: Duration) {
        drop(self.give_way(silent, Instant::now()));
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shared.neighbours.flows.put(self.0.id);
    }
}
