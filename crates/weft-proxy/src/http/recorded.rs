// SPDX-License-Identifier: Apache-2.0
//! A tunnel that an answer opened, from that to its end: the record is written then, with the bytes
//! of both ways and why it ended. Called by `upgrade.rs`, once both sides have left HTTP.

use std::cell::Cell;
use std::time::Duration;

use crate::observe::flags::{Flag, Flags};
use crate::observe::record::Record;
use crate::tcp::joined::{self, Ended, Tally};
use crate::tcp::route::FOR_EVER;
use crate::tcp::socket::Socket;

/// What moved, and which side broke.
#[derive(Debug, Default)]
struct Seen {
    received: Cell<u64>,
    sent: Cell<u64>,
    client_broke: Cell<bool>,
}

/// A tunnel on its way, whose record is written with what it moved whatever ends it.
struct Open<'r> {
    record: &'r mut Record,
    seen: Seen,
    over: bool,
}

/// Moves bytes until both sides have ended, nothing moved for `idle`, or its request is `longest`
/// ago.
pub async fn join<A: Socket, B: Socket>(
    record: &mut Record,
    (client, upstream): (&mut A, &mut B),
    idle: Duration,
    longest: Option<Duration>,
) {
    let mut open = Open { record, seen: Seen::default(), over: false };
    let moving = joined::join(client, upstream, idle, &open.seen);
    // From the request's beginning on.
    let left = longest.map(|longest| longest.saturating_sub(open.record.started.elapsed()));
    let moved = tokio::time::timeout(left.unwrap_or(FOR_EVER), moving).await;
    open.over = true;
    let early = match moved {
        Ok(Ok(())) => None,
        Ok(Err(Ended::Silence(idle))) => {
            let ms = idle.as_millis();
            Some((Flag::SI, format!("no byte in either direction for {ms} ms after {START}")))
        }
        Ok(Err(Ended::Broke(error))) if open.seen.client_broke.get() => {
            Some((Flag::DC, format!("the client's side broke after {START}: {error}")))
        }
        Ok(Err(Ended::Broke(error))) => {
            Some((Flag::UC, format!("the upstream's side broke after {START}: {error}")))
        }
        Err(_) => {
            let ms = longest.unwrap_or_default().as_millis();
            Some((Flag::DT, format!("it was open for {ms} ms, its longest duration")))
        }
    };
    let (flag, sentence) = early.unzip();
    let bytes = open.seen.bytes();
    open.record.tunnelled(bytes, flag.map_or_else(Flags::default, Flags::from), sentence);
}

/// What becomes of a tunnel whose worker ends first.
pub const CUT_OFF: &str = "the proxy ended while its tunnel was open";
const START: &str = "its tunnel was opened";

// === impl Open ===

/// Its worker ended before the tunnel did.
impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.over {
            let sentence = Some(CUT_OFF.to_owned());
            self.record.tunnelled(self.seen.bytes(), Flag::DC.into(), sentence);
        }
    }
}

// === impl Seen ===

impl Seen {
    fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

impl Tally for Seen {
    fn first(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    fn second(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    fn broke(&self, first: bool) {
        self.client_broke.set(first);
    }
}
