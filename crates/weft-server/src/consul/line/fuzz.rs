// SPDX-License-Identifier: Apache-2.0
//! A door for the fuzz target to how requests are read here. Decides nothing, does no I/O.

use bytes::BytesMut;

use super::body::{Left, Step};
use super::head::{self, Found, Head};
use super::{Framing, Manner};

/// A request as it was read, beside the bytes that it was read from.
#[derive(Debug)]
pub struct Taken {
    pub head: Vec<u8>,
    /// Its body's length; chunks have none.
    pub length: Option<u64>,
    /// The body as it was sent.
    pub sent: Vec<u8>,
    pub body: Vec<u8>,
}

/// What is read of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    held: BytesMut,
    seen: usize,
    /// The bytes since the last whole request.
    bytes: Vec<u8>,
    open: Option<(Taken, Left)>,
    pub all: Vec<Taken>,
    /// What came last is no request.
    pub wrong: bool,
}

impl Reader {
    /// Reads as far as these bytes allow.
    pub fn read(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
        self.bytes.extend_from_slice(piece);
        while !self.wrong {
            let more = match self.open.is_some() {
                true => self.body(),
                false => self.head(),
            };
            if !more {
                return;
            }
        }
    }

    fn head(&mut self) -> bool {
        match head::take(&mut self.held, &mut self.seen) {
            Found::Part => return false,
            Found::Wrong(_) => self.wrong = true,
            Found::Head(Head { manner: Manner { framing, .. }, .. }) => {
                let length = match framing {
                    Framing::Length(length) => Some(length),
                    Framing::Chunked => None,
                };
                let (head, sent, body) = (self.used(), Vec::new(), Vec::new());
                self.open = Some((Taken { head, length, sent, body }, Left::new(framing)));
                self.seen = 0;
            }
        }
        true
    }

    fn body(&mut self) -> bool {
        let Some((mut taken, mut left)) = self.open.take() else { return true };
        match left.step(&mut self.held) {
            Step::Data(bytes) => taken.body.extend_from_slice(&bytes),
            Step::End => {
                taken.sent = self.used();
                self.all.push(taken);
                return true;
            }
            Step::Wrong => self.wrong = true,
            Step::More => {
                self.open = Some((taken, left));
                return false;
            }
        }
        self.open = Some((taken, left));
        true
    }

    /// The bytes that were taken since it was asked last.
    fn used(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.bytes.len() - self.held.len());
        std::mem::replace(&mut self.bytes, rest)
    }
}
