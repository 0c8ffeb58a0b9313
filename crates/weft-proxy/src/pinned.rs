// SPDX-License-Identifier: Apache-2.0
//! A worker's own handle on a value that all workers share. Cloning it counts in this worker's
//! memory only: an `Arc` cloned per request would be one cache line that all workers write.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Debug)]
pub struct Pinned<T>(Rc<Held<T>>);

#[derive(Debug)]
struct Held<T>(Arc<T>);

impl<T> Pinned<T> {
    pub fn new(value: Arc<T>) -> Self {
        Self(Rc::new(Held(value)))
    }
}

impl<T> Clone for Pinned<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Pinned<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0.0
    }
}
