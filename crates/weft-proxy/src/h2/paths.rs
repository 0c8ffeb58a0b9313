// SPDX-License-Identifier: Apache-2.0
//! Which requests have a fragment in their `:path`. It never leaves a client (RFC 9110 §4.2.5), and
//! the http crate cuts it off without a word: whoever judged the path before us saw another one. So
//! the blocks of headers are followed beside the h2 crate (RFC 7541), as far as that needs: lengths
//! are skipped over, only values of `:path` are read, and of the dynamic table is known which
//! entries are paths and which of them have a fragment. Called by [`super::guard`] with each frame
//! of a client; in doubt every request of the connection is refused.
//!
//! Fields whose name begins with a colon are found on the way where they may not be (RFC 9113 §8.1,
//! §8.3): in trailers, and in a server's answers but for `:status`. The h2 crate throws them away.

use super::STREAMS_MAX;
use super::frames::{CONTINUATION, DATA, END_STREAM, HEADERS, Head, PUSH_PROMISE, RST_STREAM};
use crate::guards;

mod answers;
mod text;

use self::answers::Answers;
use self::text::{Name, Path};

const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Index of the first entry that is a connection's own.
const DYNAMIC: u32 = 62;
/// Of the static table: `/` and `/index.html`.
const STATIC_PATHS: [u32; 2] = [4, 5];
/// Of the static table: `:authority` to `:status`, and the last one alone.
const STATIC_PSEUDOS: std::ops::RangeInclusive<u32> = 1..=14;
const STATIC_STATUSES: std::ops::RangeInclusive<u32> = 8..=14;
/// No integer is longer, for the h2 crate.
const SHIFT_MAX: u32 = 28;
/// Streams that are noted and not answered yet.
const NOTED_MAX: usize = 2 * STREAMS_MAX as usize;

/// Follows the blocks of headers of one connection.
#[derive(Debug, Default)]
pub struct Paths {
    /// Of the frame's payload, that are to come.
    left: u32,
    stream: u32,
    /// Before the block: a byte for the length of the padding, and five of a priority.
    lead: Lead,
    at: At,
    /// The streams up to this one have begun: what they say now are trailers.
    begun: u32,
    trailers: bool,
    /// There was a field in them that begins with a colon.
    wrong: bool,
    /// The field's name is `:path`, or begins with a colon.
    is_path: bool,
    is_pseudo: bool,
    is_status: bool,
    /// The field enters the table.
    enters: bool,
    huffman: bool,
    /// Of a text, that are to come.
    text: u32,
    name: Name,
    path: Path,
    table: Table,
    noted: Noted,
    /// Of a server.
    answers: Option<Answers>,
}

/// Streams whose path has a fragment.
#[derive(Debug, Default)]
struct Noted {
    streams: Vec<u32>,
    /// What the table holds is not known any longer, or there are too many.
    all: bool,
}

#[derive(Debug, Default)]
struct Lead {
    padded: bool,
    pad: u32,
    /// Bytes of a priority that are to come, and the first four.
    priority: u8,
    depends: u32,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Field,
    Length(Part),
    /// An integer goes on: what it has come to, and how far.
    Int(Int, u32, u32),
    Text(Part),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Int {
    Indexed,
    Name,
    Length(Part),
    Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    Value,
}

/// Of each entry, the newest in the lowest bit. It takes 32 bytes at least of 4096 (RFC 7541 §4.1),
/// and an index that leads beyond what was driven out ends the connection.
#[derive(Debug, Default)]
struct Table {
    pseudos: u128,
    statuses: u128,
    interims: u128,
    paths: u128,
    fragments: u128,
}

// === impl Paths ===

impl Paths {
    /// The same for what a server sends.
    pub fn of_answers() -> Self {
        Self { answers: Some(Answers::default()), ..Self::default() }
    }

    /// A frame begins, with so much of its payload.
    pub fn frame(&mut self, head: Head, payload: &[u8]) {
        match head.kind {
            HEADERS => {
                self.at = At::Field;
                self.trailers = match &mut self.answers {
                    Some(answers) => answers.begins(head),
                    None => head.stream <= self.begun,
                };
                self.begun = self.begun.max(head.stream);
                self.lead = Lead {
                    padded: head.has(PADDED),
                    pad: 0,
                    priority: if head.has(PRIORITY) { 5 } else { 0 },
                    depends: 0,
                };
            }
            CONTINUATION => self.lead = Lead::default(),
            PUSH_PROMISE => return self.noted.all = true,
            _ => {
                if head.kind == RST_STREAM || (head.kind == DATA && head.has(END_STREAM)) {
                    self.over(head.stream);
                }
                return self.left = 0;
            }
        }
        (self.left, self.stream) = (head.bytes, head.stream);
        self.payload(payload);
    }

    /// More of the payload of the frame that began last, with whatever is behind it.
    pub fn payload(&mut self, mut bytes: &[u8]) {
        while let Some(byte) = bytes.first().filter(|_| self.left > 0) {
            if self.lead.padded || self.lead.priority > 0 {
                self.left -= 1;
                self.lead(*byte);
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let block = self.left.saturating_sub(self.lead.pad);
            let (all, _) = bytes.split_at_checked(size(block)).unwrap_or((bytes, &[]));
            self.left -= u32::try_from(all.len()).unwrap_or(self.left);
            if self.left <= self.lead.pad {
                self.left = 0;
            }
            return self.block(all);
        }
    }

    /// A stream has come to its end.
    fn over(&mut self, stream: u32) {
        if let Some(answers) = &mut self.answers {
            answers.over(stream);
        }
    }

    /// We have reset a stream.
    pub fn given_up(&mut self, stream: u32) {
        if let Some(answers) = &mut self.answers {
            answers.given_up(stream);
        }
    }

    /// Whether a stream's answer has, so far, a field that begins with a colon and may not be
    /// there.
    pub fn is_wrong(&self, stream: u32) -> bool {
        let wrong = |answers: &Answers| self.noted.all || answers.is_wrong(stream);
        self.answers.as_ref().is_some_and(wrong) && guards::on("h2-answers")
    }

    /// Whether trailers had a field that begins with a colon.
    pub fn has_wrong_trailers(&self) -> bool {
        self.wrong && guards::on("h2-trailers")
    }

    /// Whether a stream's request has a fragment, or may have one. Asked once for each, in the
    /// order of their numbers.
    pub fn take(&mut self, stream: u32) -> bool {
        let Noted { streams, all } = &mut self.noted;
        let noted = streams.contains(&stream);
        streams.retain(|later| *later > stream);
        (noted || *all) && guards::on("h2-fragment")
    }

    fn lead(&mut self, byte: u8) {
        let lead = &mut self.lead;
        if std::mem::take(&mut lead.padded) {
            lead.pad = byte.into();
            return;
        }
        lead.priority -= 1;
        if lead.priority > 0 {
            lead.depends = lead.depends << 8 | u32::from(byte);
        } else if lead.depends & 0x7fff_ffff == self.stream {
            // The h2 crate resets the stream, and does not read the block.
            self.left = 0;
        }
    }

    fn block(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            let mut taken = 1;
            match self.at {
                At::Field => self.field(*first),
                At::Length(part) => {
                    self.huffman = first & 0x80 != 0;
                    self.int(Int::Length(part), *first, 0x7f);
                }
                At::Int(int, value, shift) => self.int_goes_on(int, value, shift, *first),
                At::Text(part) => {
                    let (text, _) = bytes.split_at_checked(size(self.text)).unwrap_or((bytes, &[]));
                    taken = text.len();
                    self.text(part, text);
                }
            }
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// RFC 7541 §6.
    fn field(&mut self, first: u8) {
        self.enters = first & 0xc0 == 0x40;
        match first {
            0x80.. => self.int(Int::Indexed, first, 0x7f),
            0x40.. => self.int(Int::Name, first, 0x3f),
            0x20.. => self.int(Int::Size, first, 0x1f),
            _ => self.int(Int::Name, first, 0xf),
        }
    }

    /// RFC 7541 §5.1.
    fn int(&mut self, int: Int, first: u8, mask: u8) {
        match first & mask {
            value if value < mask => self.has_int(int, value.into()),
            value => self.at = At::Int(int, value.into(), 0),
        }
    }

    fn int_goes_on(&mut self, int: Int, value: u32, shift: u32, byte: u8) {
        let value = value.saturating_add(u32::from(byte & 0x7f) << shift);
        match shift + 7 {
            _ if byte < 0x80 => self.has_int(int, value),
            SHIFT_MAX.. => self.noted.all = true,
            shift => self.at = At::Int(int, value, shift),
        }
    }

    fn has_int(&mut self, int: Int, value: u32) {
        match int {
            Int::Indexed => {
                self.at = At::Field;
                self.note_if(self.table.is_fragment(value));
                if self.table.is_pseudo(value) {
                    self.pseudo(self.table.is_status(value), self.table.is_interim(value));
                }
            }
            Int::Name if value == 0 => self.at = At::Length(Part::Name),
            Int::Name => {
                self.is_path = STATIC_PATHS.contains(&value) || self.table.is_path(value);
                self.is_pseudo = self.table.is_pseudo(value);
                self.is_status = self.table.is_status(value);
                self.at = At::Length(Part::Value);
            }
            Int::Length(part) => {
                self.text = value;
                match part {
                    Part::Name => self.name = Name::default(),
                    Part::Value => self.path = Path::default(),
                }
                self.at = At::Text(part);
                if value == 0 {
                    self.text_ends(part);
                }
            }
            Int::Size => self.at = At::Field,
        }
    }

    fn text(&mut self, part: Part, text: &[u8]) {
        match part {
            Part::Name => self.name.push(text),
            Part::Value if self.is_path => self.path.push(text, self.huffman),
            Part::Value if self.is_status => self.path.is_status(text, self.huffman),
            Part::Value => {}
        }
        self.text -= u32::try_from(text.len()).unwrap_or(self.text);
        if self.text == 0 {
            self.text_ends(part);
        }
    }

    fn text_ends(&mut self, part: Part) {
        if part == Part::Name {
            self.is_path = self.name.is_path(self.huffman);
            self.is_pseudo = self.name.is_pseudo(self.huffman);
            self.is_status = self.name.is_status(self.huffman);
            self.at = At::Length(Part::Value);
            return;
        }
        self.at = At::Field;
        let fragment = self.is_path && self.path.has_fragment();
        self.note_if(fragment);
        let interim = self.is_status && self.path.is_interim();
        if self.is_pseudo {
            self.pseudo(self.is_status, interim);
        }
        if self.enters {
            let table = &mut self.table;
            enter(&mut table.pseudos, self.is_pseudo);
            enter(&mut table.statuses, self.is_status);
            enter(&mut table.interims, interim);
            enter(&mut table.paths, self.is_path);
            enter(&mut table.fragments, fragment);
        }
    }

    /// A field whose name begins with a colon.
    fn pseudo(&mut self, status: bool, interim: bool) {
        match &mut self.answers {
            None => self.wrong |= self.trailers,
            Some(answers) if self.trailers || !status => answers.is_wrong_now(self.stream),
            Some(answers) if interim => answers.goes_on(self.stream),
            Some(_) => {}
        }
    }

    fn note_if(&mut self, fragment: bool) {
        let Noted { streams, all } = &mut self.noted;
        if fragment && streams.last() != Some(&self.stream) {
            *all |= streams.len() >= NOTED_MAX;
            if !*all {
                streams.push(self.stream);
            }
        }
    }
}

// === impl Table ===

impl Table {
    fn is_pseudo(&self, index: u32) -> bool {
        STATIC_PSEUDOS.contains(&index) || has(self.pseudos, index)
    }

    fn is_status(&self, index: u32) -> bool {
        STATIC_STATUSES.contains(&index) || has(self.statuses, index)
    }

    fn is_interim(&self, index: u32) -> bool {
        has(self.interims, index)
    }

    fn is_path(&self, index: u32) -> bool {
        has(self.paths, index)
    }

    fn is_fragment(&self, index: u32) -> bool {
        has(self.fragments, index)
    }
}

fn enter(entries: &mut u128, new: bool) {
    *entries = *entries << 1 | u128::from(new);
}

fn has(entries: u128, index: u32) -> bool {
    let entry = index.checked_sub(DYNAMIC).and_then(|entry| entries.checked_shr(entry));
    entry.is_some_and(|entries| entries & 1 == 1)
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
