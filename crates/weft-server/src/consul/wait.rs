// SPDX-License-Identifier: Apache-2.0
//! Queries that wait. One that finds nothing new is put aside as what it asked, and is asked again
//! when what it waits for has moved: a query may wait for minutes, thousands of them at a time,
//! and neither its handler nor the World that it saw is held for that. Called by `http.rs`, which
//! says what else ends a wait; never answers.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use http::Method;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use weft_base::task::TaskGroup;
use weft_registry::consul::Waiter;

use super::Door;
use super::error::Refusal;
use super::http::{Ask, Form};
use super::index::Subscription;
use super::routes::Endpoint;

/// A request, and whose answer it is.
#[derive(Debug)]
pub struct Asked {
    pub endpoint: Endpoint,
    pub ask: Ask,
    /// Somebody waits until the server has heard of what it wrote.
    pub awaited: bool,
}

/// What a query waits for, and for how long.
#[derive(Debug)]
pub struct Later {
    moves: Moves,
    wait: Duration,
}

#[derive(Debug)]
pub enum Moves {
    World(Subscription),
    Shelf(Waiter),
}

/// A query put aside.
#[derive(Debug)]
pub struct Waiting {
    form: Form,
    asked: Asked,
    held: Held,
}

/// What a query waits with. It keeps its place and its time when it waits again; and as long as it
/// is judged, what it waited for stays known.
pub struct Held {
    moves: Moves,
    until: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

// === impl Later ===

impl Later {
    pub fn new(moves: impl Into<Moves>, wait: Duration) -> Self {
        Self { moves: moves.into(), wait }
    }
}

// === impl Moves ===

impl Moves {
    async fn moved(&mut self) {
        match self {
            Self::World(moves) => moves.moved().await,
            Self::Shelf(moves) => moves.moved().await,
        }
    }
}

impl From<Subscription> for Moves {
    fn from(moves: Subscription) -> Self {
        Self::World(moves)
    }
}

impl From<Waiter> for Moves {
    fn from(moves: Waiter) -> Self {
        Self::Shelf(moves)
    }
}

// === impl Waiting ===

impl Waiting {
    /// Resolves when it is to be asked again; `false` when nobody waits for its answer any more.
    /// Cancel-safe.
    pub async fn stirred(&mut self, tasks: &TaskGroup, gone: impl Future<Output = ()>) -> bool {
        let is_question = matches!(self.asked.ask.method, Method::GET | Method::HEAD);
        tokio::select! {
            () = self.held.moves.moved() => return true,
            () = self.held.until.as_mut() => {}
            () = tasks.draining() => {}
            () = gone, if is_question => return false,
        }
        self.asked.ask.params.wait_no_more();
        true
    }

    /// What is asked again.
    pub fn again(self) -> (Form, Asked, Held) {
        (self.form, self.asked, self.held)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("moves", &self.moves).finish_non_exhaustive()
    }
}

impl Door {
    /// Puts a query aside. `held`: what it waited with before.
    pub(super) fn waiting(
        &self,
        form: Form,
        asked: Asked,
        later: Later,
        held: Option<Held>,
    ) -> Result<Box<Waiting>, Refusal> {
        let Later { moves, wait } = later;
        let held = match held {
            Some(held) => Held { moves, ..held },
            None => {
                let place = self.place()?;
                let until = Box::pin(tokio::time::sleep(self.jittered(wait)));
                Held { moves, until, _place: place }
            }
        };
        Ok(Box::new(Waiting { form, asked, held }))
    }
}
