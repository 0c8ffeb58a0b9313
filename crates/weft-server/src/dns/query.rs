// SPDX-License-Identifier: Apache-2.0
//! A question's bytes, read without copying. Called by `answer.rs` for every datagram and every
//! message over TCP. Total: any bytes are a question, deserve an error of a header alone, or
//! deserve no answer. Never allocates and never follows a pointer.

use domain::base::iana::Rtype;
use weft_base::limits::DNS_QUERY_RECORDS_MAX;

use crate::guards;

/// Bytes of a message's header, and of a name (RFC 1035).
pub const HEADER_BYTES: usize = 12;
pub const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
/// A client's cookie, and how long a server's may be (RFC 7873).
const CLIENT_COOKIE_BYTES: usize = 8;
const COOKIE_BYTES: std::ops::RangeInclusive<usize> = 16..=40;

pub const FORMERR: u8 = 1;
pub const NOTIMP: u8 = 4;
pub const REFUSED: u8 = 5;

const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
pub const TYPE_OPT: u16 = 41;
const OPTION_COOKIE: u16 = 10;

/// One question that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query<'q> {
    pub id: [u8; 2],
    /// How long the message is.
    pub bytes: usize,
    /// Whoever asks wants it looked up elsewhere, too.
    pub recursion: bool,
    /// What whoever asks says of signatures (AD and CD), for whoever signs.
    pub checking: u8,
    /// Name, type and class as they came: they are said again.
    pub question: &'q [u8],
    pub name: Name,
    pub rtype: Rtype,
    pub edns: Option<Edns<'q>>,
}

/// What an OPT record says (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns<'q> {
    pub size: u16,
    pub version: u8,
    /// Signatures are wanted (DO). Nothing here is signed: it is for others.
    pub signed: bool,
    /// The client's eight bytes, and the server's behind them if it has been here before.
    pub cookie: Option<&'q [u8]>,
}

/// Bytes that are no question to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// No header to answer to, or an answer itself: answering answers never ends.
    Silence,
    /// An error of a header alone.
    Refused { id: [u8; 2], flags: [u8; 2], rcode: u8 },
}

/// A name in wire form and lower case.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; NAME_BYTES_MAX],
    len: usize,
}

/// Reads one message.
///
/// # Errors
/// What becomes of it when it is no question.
pub fn read(bytes: &[u8]) -> Result<Query<'_>, Unread> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Unread::Silence);
    };
    let [i0, i1, f0, f1, q0, q1, a0, a1, n0, n1, r0, r1] = *header;
    if f0 & 0x80 != 0 {
        return Err(Unread::Silence);
    }
    let refused = |rcode| Unread::Refused { id: [i0, i1], flags: [f0, f1], rcode };
    if (f0 >> 3) & 0x0f != 0 {
        return Err(refused(NOTIMP));
    }
    // One question (RFC 9619), and no answers in it.
    let counts = [u16::from_be_bytes([a0, a1]), u16::from_be_bytes([n0, n1])];
    if u16::from_be_bytes([q0, q1]) != 1 || counts != [0, 0] {
        return Err(refused(FORMERR));
    }
    let records = u16::from_be_bytes([r0, r1]);
    let (query, class) = body_of(body, records).ok_or_else(|| refused(FORMERR))?;
    if !matches!(class, CLASS_IN | CLASS_ANY) {
        return Err(refused(REFUSED));
    }
    let (recursion, checking) = (f0 & 1 != 0, f1 & 0x30);
    Ok(Query { id: [i0, i1], bytes: bytes.len(), recursion, checking, ..query })
}

/// Name, type, class and additional records.
fn body_of(body: &[u8], records: u16) -> Option<(Query<'_>, u16)> {
    let name = Name::read(body)?;
    let [t0, t1, c0, c1] = *body.get(name.len..)?.first_chunk::<4>()?;
    let (rtype, class) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
    let (question, mut rest) = body.split_at_checked(name.len + 4)?;
    if usize::from(records) > DNS_QUERY_RECORDS_MAX {
        return None;
    }
    let mut edns = None;
    for _ in 0..records {
        let (opt, after) = record(rest)?;
        rest = after;
        if let Some(opt) = opt {
            if edns.is_some() {
                return None;
            }
            edns = Some(opt);
        }
    }
    let rtype = Rtype::from_int(rtype);
    // What follows the last record was not announced.
    let (id, bytes, recursion, checking) = ([0; 2], 0, false, 0);
    let query = Query { id, bytes, recursion, checking, question, name, rtype, edns };
    rest.is_empty().then_some((query, class))
}

/// One additional record: an OPT, or something to pass over.
fn record(bytes: &[u8]) -> Option<(Option<Edns<'_>>, &[u8])> {
    let owner = owner_bytes(bytes)?;
    let (fixed, rest) = bytes.get(owner..)?.split_first_chunk::<10>()?;
    let [t0, t1, c0, c1, _, version, z0, _, l0, l1] = *fixed;
    let (data, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
    if u16::from_be_bytes([t0, t1]) != TYPE_OPT {
        return Some((None, rest));
    }
    let cookie = options(data)?;
    let (size, signed) = (u16::from_be_bytes([c0, c1]), z0 & 0x80 != 0);
    let edns = Edns { size, version, signed, cookie };
    // An OPT record belongs to the root.
    (owner == 1).then_some((Some(edns), rest))
}

/// The first cookie among an OPT record's options.
fn options(mut data: &[u8]) -> Option<Option<&[u8]>> {
    let mut cookie = None;
    while !data.is_empty() {
        let (head, rest) = data.split_first_chunk::<4>()?;
        let [c0, c1, l0, l1] = *head;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
        data = rest;
        if u16::from_be_bytes([c0, c1]) != OPTION_COOKIE || cookie.is_some() {
            continue;
        }
        if value.len() != CLIENT_COOKIE_BYTES && !COOKIE_BYTES.contains(&value.len()) {
            return None;
        }
        cookie = Some(value);
    }
    Some(cookie)
}

/// How long an owner's name is: labels, or labels and a pointer, which is not followed.
pub fn owner_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < NAME_BYTES_MAX {
        match usize::from(*bytes.get(at)?) {
            0 => return Some(at + 1),
            len @ 1..=LABEL_BYTES_MAX => at += 1 + len,
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

// === impl Name ===

impl Name {
    /// The name at the front of a question: there is nothing before it to point to.
    fn read(body: &[u8]) -> Option<Self> {
        let mut at = 0;
        loop {
            match usize::from(*body.get(at)?) {
                0 => break,
                len @ 1..=LABEL_BYTES_MAX => at += 1 + len,
                _ if guards::on("dns-pointers") => return None,
                // Two bytes, which end a name elsewhere.
                _ => {
                    at += 1;
                    break;
                }
            }
            if at >= NAME_BYTES_MAX {
                return None;
            }
        }
        let len = at + 1;
        let mut bytes = [0; NAME_BYTES_MAX];
        let room = bytes.get_mut(..len)?;
        room.copy_from_slice(body.get(..len)?);
        // Lengths of labels are below every letter.
        room.make_ascii_lowercase();
        Some(Self { bytes, len })
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Its labels from the left. What is no text is no label of ours.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            (*len > 0).then(|| std::str::from_utf8(label).unwrap_or("\u{fffd}"))
        })
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_default())?;
        }
        Ok(())
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}
