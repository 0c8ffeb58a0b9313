// SPDX-License-Identifier: Apache-2.0
//! Queries that wait. One that finds nothing new is put aside as what it asked, and is asked again
//! when what it waits for has moved: a query may wait for minutes, thousands of them at a time,
//! and neither its handler nor the World that it saw is held for that. Called by `http.rs`, which
//! says what else ends a wait; never answers.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use weft_base::task::TaskGroup;
use weft_registry::consul::{self, Waiter};

use super::Door;
use super::error::Refusal;
use super::http::Ask;
use super::index::{Subscription, Topic};
use super::params::Blocking;
use super::render::Form;
use super::reply::{Body, Reply};
use super::routes::Endpoint;
use super::view::View;

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
    Both(Subscription, Waiter),
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
    /// A digest of the answer that its client has, for a query that sees only a part of what its
    /// topic is about: a change that it does not see does not end its wait.
    seen: Option<u64>,
    until: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

// === impl Asked ===

impl Asked {
    /// Whether its answer shows a part only of what it waits for: by its parameters, or by what its
    /// token may see. What is asked of pairs and sessions has topics of its own.
    fn is_partial(&self, moves: &Moves) -> bool {
        match (self.endpoint, moves) {
            (
                Endpoint::HealthIngress
                | Endpoint::DiscoveryChain
                | Endpoint::GatewayServices
                | Endpoint::IntentionExact
                | Endpoint::IntentionMatch,
                _,
            ) => true,
            (_, Moves::Shelf(_)) => false,
            _ => self.ask.params.is_partial() || self.ask.who.table.is_some(),
        }
    }
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
            Self::Both(world, shelf) => tokio::select! {
                () = world.moved() => {}
                () = shelf.moved() => {}
            },
        }
    }

    /// Whether nothing moved since the wait began.
    fn are_still(&self) -> bool {
        match self {
            Self::World(moves) => moves.is_still(),
            Self::Shelf(moves) => moves.is_still(),
            Self::Both(world, shelf) => world.is_still() && shelf.is_still(),
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

    /// It waits on: what moved changed nothing that it sees.
    pub fn on(form: Form, asked: Asked, held: Held) -> Box<Self> {
        Box::new(Self { form, asked, held })
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

impl Held {
    /// Whether an answer says nothing new to who waited.
    pub fn has_seen(&self, reply: &Reply) -> bool {
        self.seen.is_some_and(|seen| seen == digest(reply))
    }
}

impl Door {
    /// Answers a read of what the World and what only Consul's API knows decide about together, or
    /// puts it aside until either moves.
    pub(super) async fn read_both(
        &self,
        (topic, shelf): (Topic, consul::Topic),
        blocking: &Blocking,
        build: impl Fn(&View, &consul::State) -> Result<Value, Refusal>,
    ) -> Result<Reply, Refusal> {
        let blocking = &Box::pin(self.catch_up(blocking)).await;
        let mut moves = None;
        loop {
            let (view, state, index) = self.look_at_both(&topic, &shelf).await;
            let head = state.revision().max(self.indexes().head());
            if blocking.is_answered_by(index, head) {
                let reply = Reply::json(build(&view, &state)?);
                return Ok(reply.at(blocking.told(index, head), blocking));
            }
            // Looked at again with the wait begun: nothing is missed.
            if let Some(moves) = moves {
                return Ok(Reply::later(Later::new(moves, blocking.wait)));
            }
            let wait = self.consul().shelf().wait(shelf.clone());
            moves = Some(Moves::Both(self.indexes().subscribe(&topic), wait));
        }
    }

    /// Both as of one moment: neither is without what the index of the other one is past.
    async fn look_at_both(
        &self,
        topic: &Topic,
        shelf: &consul::Topic,
    ) -> (View, consul::State, u64) {
        loop {
            let first = self.consul().state().index(shelf);
            tokio::select! {
                () = self.indexes().reached(first) => {}
                // Nobody feeds the table any more.
                () = self.0.tasks.draining() => {}
            }
            let (view, index) = self.indexes().read(topic);
            // The shelf is ahead of the World.
            let state = self.consul().state();
            if state.index(shelf) == first {
                return (view, state, index.max(first));
            }
        }
    }

    /// Puts a query aside. `held`: what it waited with before.
    pub(super) async fn waiting(
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
                let seen = self.seen(&asked, &moves).await;
                Held { moves, seen, until, _place: place }
            }
        };
        Ok(Box::new(Waiting { form, asked, held }))
    }

    /// What a client that begins to wait has, if it sees a part only. Nothing where something moved
    /// meanwhile, which may be in it already: then the next look is answered.
    async fn seen(&self, asked: &Asked, moves: &Moves) -> Option<u64> {
        if !asked.is_partial(moves) || !moves.are_still() {
            return None;
        }
        let mut ask = asked.ask.clone();
        ask.params.wait_no_more();
        let reply = Box::pin(self.dispatch(asked.endpoint, &ask)).await.ok()?;
        moves.are_still().then(|| digest(&reply))
    }
}

// === helpers ===

fn digest(reply: &Reply) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &reply.body {
        Body::Json(value) => value.to_string().hash(&mut hasher),
        Body::Text(text) => text.hash(&mut hasher),
        Body::Bytes(_, bytes) | Body::Whole(bytes) => bytes.hash(&mut hasher),
        Body::Shared(_, written) => written.plain().hash(&mut hasher),
        Body::Empty | Body::Later(_) | Body::Flow(..) => {}
    }
    (reply.status.as_u16(), hasher.finish()).hash(&mut hasher);
    hasher.finish()
}
