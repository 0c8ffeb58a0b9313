// SPDX-License-Identifier: Apache-2.0
//! The breakers of one worker: one for each backend's limits, whichever of its forms a request
//! has. An instance that is dialled by its own address is a backend made for one request, which
//! counts, waits and gives way with all others of its service.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::{Breaker, Quotas};

#[derive(Debug, Default)]
pub struct Breakers {
    worker: usize,
    /// By their limits, which they hold: while one lives nothing else has the address.
    all: RefCell<HashMap<*const Quotas, Weak<Breaker>>>,
}

// === impl Breakers ===

impl Breakers {
    pub fn new(worker: usize) -> Rc<Self> {
        Rc::new(Self { worker, ..Self::default() })
    }

    /// The one that counts there.
    pub fn of(&self, quotas: Option<&Arc<Quotas>>) -> Rc<Breaker> {
        let Some(quotas) = quotas else { return Breaker::new(None, self.worker) };
        self.known(quotas).unwrap_or_else(|| {
            let made = Breaker::new(Some(quotas.clone()), self.worker);
            self.all.borrow_mut().insert(Arc::as_ptr(quotas), Rc::downgrade(&made));
            made
        })
    }

    /// The same if there is any yet.
    pub fn known(&self, quotas: &Arc<Quotas>) -> Option<Rc<Breaker>> {
        self.all.borrow().get(&Arc::as_ptr(quotas)).and_then(Weak::upgrade)
    }

    /// Gives back what is leased here and was not used for a while.
    pub fn rest(&self) {
        let rests = |breaker: &mut Weak<Breaker>| breaker.upgrade().inspect(|b| b.rest()).is_some();
        self.all.borrow_mut().retain(|_, breaker| rests(breaker));
    }
}
