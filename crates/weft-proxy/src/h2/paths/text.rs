// SPDX-License-Identifier: Apache-2.0
//! Texts of a block of headers, in pieces and in Huffman's code (RFC 7541 §5.2 and appendix B):
//! whether a name is `:path` or `:status`, or begins with a colon, whether a path has a `#`, and
//! whether a status is one before the answer.

/// `:path`, and the same in code with its padding, which is the only way to say it.
const PLAIN: &[u8] = b":path";
const CODED: &[u8] = &[0xb9, 0x58, 0xd3, 0x3f];
/// The same of `:status`.
const STATUS: &[u8] = b":status";
const STATUS_CODED: &[u8] = &[0xb8, 0x84, 0x8d, 0x36, 0xa3];
/// Codes of digits that a status may begin with have five bits: this is that of 1.
const ONE: u8 = 1;
/// The code of a colon: seven bits.
const COLON: u8 = 0xb8 >> 1;
/// Of `#`.
const FRAGMENT: (u32, u64) = (12, 0xffa);
/// Codes are ordered by their lengths: all that begin below the first number, filled up to 32 bits,
/// have so many bits. Those above the last have thirty.
const LENGTHS: [(u32, u32); 20] = [
    (0x5000_0000, 5),
    (0xb800_0000, 6),
    (0xf800_0000, 7),
    (0xfe00_0000, 8),
    (0xff40_0000, 10),
    (0xffa0_0000, 11),
    (0xffc0_0000, 12),
    (0xfff0_0000, 13),
    (0xfff8_0000, 14),
    (0xfffe_0000, 15),
    (0xfffe_6000, 19),
    (0xfffe_e000, 20),
    (0xffff_4800, 21),
    (0xffff_b000, 22),
    (0xffff_ea00, 23),
    (0xffff_f600, 24),
    (0xffff_f800, 25),
    (0xffff_fbc0, 26),
    (0xffff_fe20, 27),
    (0xffff_fff0, 28),
];

/// A field's name: as much of it as `:status` is long.
#[derive(Debug, Default)]
pub struct Name {
    bytes: [u8; STATUS.len()],
    have: usize,
}

/// A path's value, or a status.
#[derive(Debug, Default)]
pub struct Path {
    /// Those of a code that has no end yet, at the top.
    bits: u64,
    have: u32,
    fragment: bool,
    /// Of a status: anything came of it, and it begins with 1.
    begun: bool,
    interim: bool,
}

// === impl Name ===

impl Name {
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.iter_mut().skip(self.have);
        room.zip(bytes).for_each(|(to, from)| *to = *from);
        self.have += bytes.len();
    }

    pub fn is_path(&self, huffman: bool) -> bool {
        let wanted = if huffman { CODED } else { PLAIN };
        self.bytes.get(..self.have) == Some(wanted)
    }

    pub fn is_status(&self, huffman: bool) -> bool {
        let wanted = if huffman { STATUS_CODED } else { STATUS };
        self.bytes.get(..self.have) == Some(wanted)
    }

    pub fn is_pseudo(&self, huffman: bool) -> bool {
        let [first, ..] = self.bytes;
        if huffman { first >> 1 == COLON } else { first == b':' }
    }
}

// === impl Path ===

impl Path {
    pub fn push(&mut self, bytes: &[u8], huffman: bool) {
        if !huffman {
            self.fragment |= memchr::memchr(b'#', bytes).is_some();
            return;
        }
        for byte in bytes {
            self.bits |= u64::from(*byte) << (56 - self.have);
            self.have += 8;
            self.codes();
        }
    }

    /// It is a status' value.
    pub fn is_status(&mut self, bytes: &[u8], huffman: bool) {
        if let Some(first) = bytes.first().filter(|_| !self.begun) {
            self.begun = true;
            self.interim = if huffman { first >> 3 == ONE } else { *first == b'1' };
        }
    }

    pub fn is_interim(&self) -> bool {
        self.interim
    }

    pub fn has_fragment(&self) -> bool {
        self.fragment
    }

    /// Takes the codes that are whole. No more than 29 bits are left.
    fn codes(&mut self) {
        loop {
            let length = length(self.bits);
            if length > self.have {
                return;
            }
            self.fragment |= (length, self.bits >> (64 - FRAGMENT.0)) == FRAGMENT;
            self.bits <<= length;
            self.have -= length;
        }
    }
}

/// Of the code that these bits begin with. Those that are not there yet are zero: it is then too
/// short, but never as short as what is there.
fn length(bits: u64) -> u32 {
    let top = u32::try_from(bits >> 32).unwrap_or(u32::MAX);
    LENGTHS.iter().find(|(end, _)| top < *end).map_or(30, |(_, length)| *length)
}
