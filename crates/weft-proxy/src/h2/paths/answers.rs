// SPDX-License-Identifier: Apache-2.0
//! Which streams of a connection to a server have had their answer's head, so that trailers are
//! told from it, and which answers had a field that begins with a colon where none may be. Part of
//! `paths.rs`, which reads the blocks.

use super::NOTED_MAX;
use crate::h2::frames::{END_STREAM, Head};

#[derive(Debug, Default)]
pub struct Answers {
    /// Streams whose answer goes on behind its head.
    headed: Vec<u32>,
    /// Newest last; whose end nobody asked for is forgotten with the connection, or for others.
    wrong: Vec<u32>,
}

// === impl Answers ===

impl Answers {
    /// A block begins; returns whether it is of trailers.
    pub fn begins(&mut self, head: Head) -> bool {
        let trailers = self.headed.contains(&head.stream);
        if head.has(END_STREAM) {
            self.over(head.stream);
        } else if !trailers && self.headed.len() < NOTED_MAX {
            self.headed.push(head.stream);
        }
        trailers
    }

    /// The block was one before the answer.
    pub fn goes_on(&mut self, stream: u32) {
        self.over(stream);
    }

    pub fn over(&mut self, stream: u32) {
        if let Some(at) = self.headed.iter().position(|known| *known == stream) {
            self.headed.swap_remove(at);
        }
    }

    pub fn is_wrong_now(&mut self, stream: u32) {
        if self.wrong.last() == Some(&stream) {
            return;
        }
        if self.wrong.len() >= NOTED_MAX {
            self.wrong.remove(0);
        }
        self.wrong.push(stream);
    }

    pub fn is_wrong(&self, stream: u32) -> bool {
        self.wrong.contains(&stream)
    }
}
