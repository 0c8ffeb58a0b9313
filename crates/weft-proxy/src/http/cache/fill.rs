// SPDX-License-Identifier: Apache-2.0
//! An answer's body on its way to a client and into the store. Part of the reply's body: it sees
//! what passes, keeps a copy within its limits, and stores it when all of it has passed. What
//! breaks off, grows too large or is left by its client is never stored.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Frame;

use super::object::Object;
use super::store::{Lead, Room, Ticket};

/// A copy under way.
#[derive(Debug)]
pub struct Fill {
    state: Option<Filling>,
}

#[derive(Debug)]
struct Filling {
    /// Without its body.
    object: Object,
    body: Vec<u8>,
    bytes_max: u64,
    /// What its head said.
    length: Option<u64>,
    room: Room,
    ticket: Ticket,
    /// Others wait for it.
    _lead: Option<Lead>,
}

// === impl Fill ===

impl Fill {
    pub fn new(
        object: Object,
        (length, bytes_max): (Option<u64>, u64),
        room: Room,
        ticket: Ticket,
        lead: Option<Lead>,
    ) -> Self {
        let body = Vec::new();
        let state = Filling { object, body, bytes_max, length, room, ticket, _lead: lead };
        Self { state: Some(state) }
    }

    /// There is no body.
    pub fn end(&mut self) {
        self.note::<std::convert::Infallible>(None, true);
    }

    /// What has passed; `ended` when nothing comes behind it.
    pub fn note<E>(&mut self, frame: Option<&Result<Frame<Bytes>, E>>, ended: bool) {
        let Some(filling) = &mut self.state else { return };
        let goes_on = match frame {
            None => true,
            Some(Ok(frame)) => frame.data_ref().is_some_and(|data| filling.keep(data)),
            Some(Err(_)) => false,
        };
        if !goes_on {
            // Trailers, too: they cannot be given with the stored answer.
            self.state = None;
        } else if (frame.is_none() || ended)
            && let Some(whole) = self.state.take()
        {
            whole.store();
        }
    }
}

impl Filling {
    fn keep(&mut self, data: &Bytes) -> bool {
        let bytes = (self.body.len() + data.len()) as u64;
        if bytes > self.bytes_max || !self.room.take(data.len() as u64) {
            return false;
        }
        if self.body.is_empty()
            && let Some(length) = self.length.and_then(|length| usize::try_from(length).ok())
        {
            self.body.reserve_exact(length);
        }
        self.body.extend_from_slice(data);
        true
    }

    fn store(self) {
        let Self { object, body, length, ticket, .. } = self;
        if length.is_some_and(|length| length != body.len() as u64) {
            return;
        }
        let store = ticket.store.clone();
        store.put(&ticket, Arc::new(Object { body: body.into_boxed_slice().into(), ..object }));
        // Then those who wait look again.
    }
}
