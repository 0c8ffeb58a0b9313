// SPDX-License-Identifier: Apache-2.0
//! Which streams of a connection to a server have had their answer's head, so that trailers are
//! told from it, and which answers had a field that begins with a colon where none may be. Part of
//! `paths.rs`, which reads the blocks.

use std::collections::VecDeque;

use super::NOTED_MAX;
use crate::h2::frames::{END_STREAM, Head};

#[derive(Debug, Default)]
pub struct Answers {
    /// Streams whose answer goes on behind its head.
    headed: Vec<u32>,
    /// Streams that we gave up, newest last: what crosses that is no answer's head.
    reset: VecDeque<u32>,
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
        } else if !trailers && !self.reset.contains(&head.stream) {
            if self.headed.len() >= NOTED_MAX {
                self.headed.swap_remove(0);
            }
            self.headed.push(head.stream);
        }
        trailers
    }

    /// The block was one before the answer.
    pub fn goes_on(&mut self, stream: u32) {
        self.over(stream);
    }

    /// We have reset it.
    pub fn given_up(&mut self, stream: u32) {
        self.over(stream);
        if self.reset.len() >= NOTED_MAX {
            self.reset.pop_front();
        }
        self.reset.push_back(stream);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::frames::{END_HEADERS, HEADERS};

    fn head(stream: u32, flags: u8) -> Head {
        Head { kind: HEADERS, flags: END_HEADERS | flags, bytes: 1, stream }
    }

    #[test]
    fn trailers_are_told_from_heads_however_many_streams_were_given_up() {
        let mut answers = Answers::default();
        for stream in (1..2_000).step_by(2) {
            answers.given_up(stream);
            assert!(!answers.begins(head(stream, 0)));
        }
        assert!(answers.headed.is_empty());
        assert!(!answers.begins(head(2_001, 0)) && answers.begins(head(2_001, END_STREAM)));
        for stream in (3_001..9_001).step_by(2) {
            assert!(!answers.begins(head(stream, 0)));
        }
        assert!(answers.begins(head(8_999, END_STREAM)) && answers.headed.len() < NOTED_MAX);
    }
}
