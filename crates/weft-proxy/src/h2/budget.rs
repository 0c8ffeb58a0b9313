// SPDX-License-Identifier: Apache-2.0
//! What a peer may do without getting anything done. Each kind of frame that costs us more than
//! its sender is paid for out of a purse; real work fills it again, and so does time. Who runs out
//! is told to calm down. Pure: called by [`super::guard`] with every frame's head.

use std::collections::VecDeque;

use h2::Reason;
use thiserror::Error;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Head, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};
use crate::guards;

/// What a client's SETTINGS may have: six are known (RFC 9113 §6.5.2), and 170 fit. A longer one
/// would be kept until it is whole.
pub const SETTINGS_BYTES_MAX: u32 = 1_024;

/// What a peer does too much of.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Abuse {
    #[error("it resets too many of its streams")]
    Resets,
    #[error("it makes too many streams fail")]
    Faults,
    #[error("it sends too many PING or SETTINGS frames, or SETTINGS that are too long")]
    Pings,
    #[error("it opens its windows in too small steps")]
    Windows,
    #[error("it sends too many frames that say nothing")]
    Chatter,
    #[error("it sends too many empty frames")]
    Empty,
    #[error("it begins a frame and does not end it")]
    Unfinished,
    #[error("memory is short, and its headers are long and have no end yet")]
    Shed,
    #[error("its trailers have a field that begins with a colon")]
    Trailers,
}

/// Who is on the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client that nobody vouches for.
    Client,
    /// A proxy of the mesh, which has many clients itself.
    MeshClient,
    Server,
}

/// Frames that are paid for in advance, and how many a second adds.
#[derive(Clone, Copy, Debug)]
struct Purse {
    left: u32,
    most: u32,
    per_second: u32,
    /// When time was last added, milliseconds.
    at: u64,
}

/// All purses of one connection.
#[derive(Debug)]
pub struct Budget {
    peer: Peer,
    resets: Purse,
    faults: Purse,
    pings: Purse,
    windows: Purse,
    chatter: Purse,
    empty: Purse,
    /// A header block has begun and not ended.
    block: bool,
    /// Streams that we reset of our own will, newest last.
    dropped: VecDeque<u32>,
}

/// (most, per second) for a client; a mesh peer has [`TRUST`] times as many.
const RESETS: (u32, u32) = (64, 10);
const FAULTS: (u32, u32) = (64, 2);
const PINGS: (u32, u32) = (100, 10);
const WINDOWS: (u32, u32) = (400, 100);
const CHATTER: (u32, u32) = (100, 10);
const EMPTY: (u32, u32) = (50, 10);
const TRUST: u32 = 8;
/// Streams whose late frames are no fault of the client, which did not know yet that we want none.
/// The h2 crate ends a connection that goes on with such.
const DROPPED_MAX: usize = 512;
const STREAM_CLOSED: u32 = 5;
/// DATA that is worth a window's update.
const DATA_BYTES: u32 = 256;
/// What a request may come with: a PRIORITY_UPDATE, a window of its own.
const CHATTER_PER_STREAM: u32 = 4;
const WINDOWS_PER_STREAM: u32 = 2;
const WINDOWS_PER_DATA: u32 = 2;

// Whoever attacks is stopped within a thousand frames.
const _: () = assert!(RESETS.0 * TRUST < 1000 && FAULTS.0 * TRUST < 1000 && PINGS.0 * TRUST < 1000);
const _: () = assert!(CHATTER.0 * TRUST < 1000 && EMPTY.0 * TRUST < 1000 && WINDOWS.0 < 1000);

// === impl Abuse ===

impl Abuse {
    /// What its GOAWAY says.
    pub fn reason(self) -> Reason {
        match self {
            Self::Trailers => Reason::PROTOCOL_ERROR,
            _ => Reason::ENHANCE_YOUR_CALM,
        }
    }

    /// The check that notices it.
    const fn check(self) -> &'static str {
        match self {
            Self::Resets => "h2-resets",
            Self::Faults => "h2-faults",
            Self::Pings => "h2-pings",
            Self::Windows => "h2-windows",
            Self::Chatter => "h2-chatter",
            Self::Empty => "h2-empty",
            Self::Unfinished => "h2-unfinished",
            Self::Shed => "h2-shed",
            Self::Trailers => "h2-trailers",
        }
    }
}

// === impl Budget ===

impl Budget {
    /// `now` is any clock's time in milliseconds.
    pub fn new(peer: Peer, now: u64) -> Self {
        let times = if peer == Peer::Client { 1 } else { TRUST };
        let purse = |(most, per_second): (u32, u32)| Purse {
            left: most * times,
            most: most * times,
            per_second: per_second * times,
            at: now,
        };
        Self {
            peer,
            resets: purse(RESETS),
            faults: purse(FAULTS),
            pings: purse(PINGS),
            windows: Purse { left: WINDOWS.0, most: WINDOWS.0, ..purse(WINDOWS) },
            chatter: purse(CHATTER),
            empty: purse(EMPTY),
            block: false,
            dropped: VecDeque::new(),
        }
    }

    /// A frame of the peer. `now` is asked only when a purse is empty.
    ///
    /// # Errors
    /// What it is one too many of.
    pub fn received(&mut self, head: Head, now: impl FnOnce() -> u64) -> Result<(), Abuse> {
        match head.kind {
            DATA => {
                if head.bytes == 0 && !head.has(END_STREAM) {
                    return self.empty.spend(now, Abuse::Empty);
                }
            }
            HEADERS | CONTINUATION => {
                self.block = !head.has(END_HEADERS);
                if head.kind == HEADERS {
                    self.chatter.earn(CHATTER_PER_STREAM);
                    self.windows.earn(WINDOWS_PER_STREAM);
                }
                if head.bytes == 0 && (self.block || head.kind == CONTINUATION) {
                    return self.empty.spend(now, Abuse::Empty);
                }
            }
            // A server fails its own streams only.
            RST_STREAM if self.peer == Peer::Server => {}
            RST_STREAM => return self.resets.spend(now, Abuse::Resets),
            SETTINGS if head.bytes > SETTINGS_BYTES_MAX && self.peer == Peer::Client => {
                return Err(Abuse::Pings);
            }
            SETTINGS | PING | GOAWAY => return self.pings.spend(now, Abuse::Pings),
            WINDOW_UPDATE => return self.windows.spend(now, Abuse::Windows),
            _ => return self.chatter.spend(now, Abuse::Chatter),
        }
        Ok(())
    }

    /// A frame of ours. `code` is a reset's, when it is known.
    ///
    /// # Errors
    /// As [`Self::received`].
    pub fn sent(
        &mut self,
        head: Head,
        code: Option<u32>,
        now: impl FnOnce() -> u64,
    ) -> Result<(), Abuse> {
        match head.kind {
            DATA | HEADERS => {
                self.pings.earn(1);
                if head.kind == DATA && head.bytes >= DATA_BYTES {
                    self.windows.earn(WINDOWS_PER_DATA);
                }
                if head.has(END_STREAM) {
                    self.resets.earn(1);
                }
                Ok(())
            }
            RST_STREAM if self.peer != Peer::Server => {
                if !is_fault(code) {
                    self.dropped(head.stream);
                    return Ok(());
                }
                if code == Some(STREAM_CLOSED) && self.dropped.contains(&head.stream) {
                    return Ok(());
                }
                self.faults.spend(now, Abuse::Faults)
            }
            _ => Ok(()),
        }
    }

    /// We want no more of a stream.
    fn dropped(&mut self, stream: u32) {
        if self.dropped.len() == DROPPED_MAX {
            self.dropped.pop_front();
        }
        self.dropped.push_back(stream);
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether headers have begun and their end must follow.
    pub fn is_in_block(&self) -> bool {
        self.block
    }
}

/// Whether the peer made us send it: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED,
/// FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM.
fn is_fault(code: Option<u32>) -> bool {
    code.is_none_or(|code| matches!(code, 1 | 3 | 5 | 6 | 7 | 9 | 11))
}

// === impl Purse ===

impl Purse {
    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(self.most);
    }

    fn spend(&mut self, now: impl FnOnce() -> u64, abuse: Abuse) -> Result<(), Abuse> {
        if !guards::on(abuse.check()) {
            return Ok(());
        }
        if self.left == 0 {
            let now = now();
            let passed = now.saturating_sub(self.at);
            let earned = passed.saturating_mul(u64::from(self.per_second)) / 1000;
            self.left = u32::try_from(earned).unwrap_or(u32::MAX).min(self.most);
            self.at = now;
        }
        self.left = self.left.checked_sub(1).ok_or(abuse)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{ACK, PRIORITY};
    use super::*;

    fn head(kind: u8, flags: u8, bytes: u32) -> Head {
        Head { kind, flags, bytes, stream: 1 }
    }

    /// How many of a frame a client may send, and what is said of the next.
    fn most(peer: Peer, frame: Head) -> (u32, Abuse) {
        let mut budget = Budget::new(peer, 0);
        let refused = (0..100_000).find_map(|n| Some((n, budget.received(frame, || 0).err()?)));
        refused.unwrap_or_else(|| panic!("{frame:?} has no limit"))
    }

    #[test]
    fn every_frame_that_does_nothing_has_a_limit() {
        let cases = [
            (head(RST_STREAM, 0, 4), 64, Abuse::Resets),
            (head(PING, 0, 8), 100, Abuse::Pings),
            (head(PING, ACK, 8), 100, Abuse::Pings),
            (head(SETTINGS, 0, 0), 100, Abuse::Pings),
            (head(GOAWAY, 0, 8), 100, Abuse::Pings),
            (head(WINDOW_UPDATE, 0, 4), 400, Abuse::Windows),
            (head(PRIORITY, 0, 5), 100, Abuse::Chatter),
            (head(0x10, 0, 5), 100, Abuse::Chatter),
            (head(0xfa, 0, 0), 100, Abuse::Chatter),
            (head(DATA, 0, 0), 50, Abuse::Empty),
            (head(CONTINUATION, 0, 0), 50, Abuse::Empty),
            (head(HEADERS, 0, 0), 50, Abuse::Empty),
        ];
        for (frame, limit, abuse) in cases {
            assert_eq!(most(Peer::Client, frame), (limit, abuse), "{frame:?}");
        }
        let long = head(SETTINGS, 0, SETTINGS_BYTES_MAX + 1);
        assert_eq!(most(Peer::Client, long), (0, Abuse::Pings));
        assert_eq!(most(Peer::MeshClient, long).0, 100 * TRUST);
        let mesh = most(Peer::MeshClient, head(RST_STREAM, 0, 4));
        assert_eq!(mesh, (512, Abuse::Resets));
    }

    #[test]
    fn work_and_time_fill_the_purses() {
        let mut budget = Budget::new(Peer::Client, 0);
        let reset = head(RST_STREAM, 0, 4);
        for _ in 0..10_000 {
            // A stream that was answered costs nothing to reset.
            budget.sent(head(DATA, END_STREAM, 5), None, || 0).unwrap();
            budget.received(reset, || 0).unwrap();
            // Bulk: two updates for each piece of a body, and a probe of the round trip.
            budget.sent(head(DATA, 0, 16_384), None, || 0).unwrap();
            budget.received(head(WINDOW_UPDATE, 0, 4), || 0).unwrap();
            budget.received(head(WINDOW_UPDATE, 0, 4), || 0).unwrap();
            budget.received(head(PING, 0, 8), || 0).unwrap();
        }
        for second in 0..60 {
            for _ in 0..10 {
                budget.received(reset, || second * 1000).unwrap();
            }
        }
        for _ in 0..64 {
            let _ = budget.received(reset, || 60_000);
        }
        assert_eq!(budget.received(reset, || 60_000), Err(Abuse::Resets));
        assert_eq!(budget.received(reset, || 60_100), Ok(()));
    }

    #[test]
    fn reg_20_only_resets_that_the_peer_caused_are_its_fault() {
        let reset = head(RST_STREAM, 0, 4);
        let mut budget = Budget::new(Peer::Client, 0);
        for code in [0, 2, 8] {
            for _ in 0..1000 {
                budget.sent(Head { stream: 3, ..reset }, Some(code), || 0).unwrap();
            }
        }
        for n in 0..64 {
            let code = [1, 3, 5, 6, 7, 9][n % 6];
            budget.sent(reset, Some(code), || 0).unwrap();
        }
        assert_eq!(budget.sent(reset, Some(1), || 0), Err(Abuse::Faults));
        let mut server = Budget::new(Peer::Server, 0);
        for _ in 0..10_000 {
            server.received(reset, || 0).unwrap();
            server.sent(reset, Some(8), || 0).unwrap();
        }
    }

    #[test]
    fn late_frames_of_streams_that_we_dropped_are_no_fault() {
        let reset = |stream| Head { kind: RST_STREAM, flags: 0, bytes: 4, stream };
        let mut budget = Budget::new(Peer::Client, 0);
        for stream in 0..512 {
            budget.sent(reset(stream), Some(0), || 0).unwrap();
        }
        for stream in 0..512 {
            budget.sent(reset(stream), Some(STREAM_CLOSED), || 0).unwrap();
            budget.sent(reset(stream), Some(STREAM_CLOSED), || 0).unwrap();
        }
        // Frames on a stream that the client ended itself are, and so is any other fault.
        let faults = [(1000, STREAM_CLOSED), (1, 1), (1, 3)];
        for (stream, code) in faults.into_iter().cycle().take(64) {
            budget.sent(reset(stream), Some(code), || 0).unwrap();
        }
        assert_eq!(budget.sent(reset(1000), Some(STREAM_CLOSED), || 0), Err(Abuse::Faults));
        // What was dropped long ago is forgotten.
        budget.sent(reset(2000), Some(8), || 0).unwrap();
        assert_eq!(budget.sent(reset(0), Some(STREAM_CLOSED), || 0), Err(Abuse::Faults));
        assert_eq!(budget.sent(reset(1), Some(STREAM_CLOSED), || 0), Ok(()));
    }

    #[test]
    fn tiny_windows_are_not_earned_by_tiny_data() {
        let mut budget = Budget::new(Peer::Client, 0);
        let stopped = (0..1000).find_map(|n| {
            budget.sent(head(DATA, 0, 1), None, || 0).unwrap();
            Some((n, budget.received(head(WINDOW_UPDATE, 0, 4), || 0).err()?))
        });
        assert_eq!(stopped, Some((400, Abuse::Windows)));
    }

    #[test]
    fn a_header_block_is_open_until_its_end() {
        let mut budget = Budget::new(Peer::Client, 0);
        budget.received(head(HEADERS, 0, 9), || 0).unwrap();
        assert!(budget.is_in_block());
        budget.received(head(CONTINUATION, END_HEADERS, 9), || 0).unwrap();
        assert!(!budget.is_in_block());
    }
}
