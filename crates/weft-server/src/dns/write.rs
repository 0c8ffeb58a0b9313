// SPDX-License-Identifier: Apache-2.0
//! Writes answers: into a buffer that is used again and again, within a limit, names compressed.
//! Called by `answer.rs`. What does not fit is left out and marked (TC); what is only a courtesy
//! is left out silently.

use std::net::IpAddr;

use weft_base::limits::DNS_UDP_BYTES_MAX;
use weft_base::rng::Rng;

use super::query::{HEADER_BYTES, Query, REFUSED, TYPE_OPT};
use super::ready::{A, AAAA, Rdata, Ready};
use super::theirs::Theirs;

const CLASS_IN: u16 = 1;
const TYPE_HINFO: u16 = 13;
const OPTION_COOKIE: u16 = 10;
const OPTION_ERROR: u16 = 15;
/// Nobody could be asked (RFC 8914).
const NO_REACHABLE_AUTHORITY: u16 = 22;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;
/// The question's name, as a pointer to it.
const QUESTION: [u8; 2] = [0xc0, 12];
/// Instead of everything (RFC 8482), and for how many seconds.
const HINFO: &[u8] = b"\x07RFC8482\0";
const HINFO_TTL: u32 = 3600;
const SOA_TIMES: [u32; 3] = [3600, 600, 86_400];
/// An OPT record without options; a cookie option with both cookies.
const OPT_BYTES: usize = 11;
const COOKIE_BYTES: usize = 24;
/// Names' places that are remembered: what is beyond is written out.
const NAMES_MAX: usize = 32;
/// Pointers reach this far.
const POINTER_MAX: usize = 0x3fff;
/// What our sockets take.
const UDP_SIZE: u16 = {
    assert!(DNS_UDP_BYTES_MAX <= u16::MAX as usize);
    #[allow(clippy::cast_possible_truncation)] // asserted above
    let size = DNS_UDP_BYTES_MAX as u16;
    size
};

/// What every answer to one question shares.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub query: &'a Query<'a>,
    pub limit: usize,
    /// This door looks up what it does not hold itself.
    pub recursive: bool,
    /// The client's cookie and ours.
    pub cookie: Option<&'a [u8; COOKIE_BYTES]>,
}

/// What is used again from answer to answer.
#[derive(Debug, Default)]
pub struct Scratch {
    order: Vec<u16>,
    targets: Vec<(u16, u16)>,
}

/// One answer in the making.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    /// Where labels of names begin.
    names: [u16; NAMES_MAX],
    named: usize,
}

/// An error of a header alone: what came could not be read further.
pub fn header_only(out: &mut Vec<u8>, id: [u8; 2], flags: [u8; 2], rcode: u8) {
    out.clear();
    out.extend_from_slice(&id);
    // The opcode and RD come back.
    out.extend_from_slice(&[0x80 | (flags[0] & 0x79), rcode & 0x0f]);
    out.extend_from_slice(&[0; 8]);
}

/// What was found, shuffled unless it has an order: clients that take the first answer spread.
pub fn answer(out: &mut Vec<u8>, frame: &Frame, ready: &Ready, rng: &mut Rng, own: &mut Scratch) {
    let mut writer = Writer::start(out, frame);
    let (mut cut, mut answers) = (false, 0u16);
    let count = u16::try_from(ready.answers.len()).unwrap_or(u16::MAX);
    own.order.clear();
    own.order.extend(0..count);
    own.targets.clear();
    for at in 0..own.order.len() {
        // Fisher and Yates, as far as there is room.
        let left = if ready.in_order { 1 } else { own.order.len() - at };
        let other = at + usize::try_from(rng.below(left as u64)).unwrap_or(0);
        own.order.swap(at, other);
        let Some(rdata) = own.order.get(at).and_then(|n| ready.answers.get(usize::from(*n))) else {
            break;
        };
        let Some(target) = writer.record(None, rdata, ready.ttl) else {
            cut = true;
            break;
        };
        if matches!(rdata, Rdata::Srv { .. }) {
            own.targets.push((own.order.get(at).copied().unwrap_or(0), target));
        }
        answers += 1;
    }
    for (owner, rdata) in &ready.chain {
        if cut || writer.record(Some(owner), rdata, ready.zone_ttl).is_none() {
            cut = true;
            break;
        }
        answers += 1;
    }
    let mut authority = 0;
    if ready.answers.is_empty()
        && ready.chain.is_empty()
        && writer.record(Some(&ready.apex), &ready.soa, ready.zone_ttl).is_some()
    {
        authority = 1;
    }
    let mut additional = 0;
    if !cut {
        additional = writer.glue(ready, &own.targets);
    }
    let rcode = if ready.exists { 0 } else { NXDOMAIN };
    writer.finish(frame, Flags { rcode, aa: true, tc: cut }, [answers, authority, additional]);
}

/// Instead of everything that a name has (RFC 8482).
pub fn instead_of_any(out: &mut Vec<u8>, frame: &Frame) {
    let mut writer = Writer::start(out, frame);
    writer.head(None, TYPE_HINFO, HINFO_TTL);
    let ok = writer.data(HINFO);
    writer.finish(frame, Flags { rcode: 0, aa: true, tc: !ok }, [u16::from(ok), 0, 0]);
}

/// A code and nothing else; codes from 16 on need an OPT record.
pub fn code(out: &mut Vec<u8>, frame: &Frame, rcode: u8) {
    Writer::start(out, frame).finish(frame, Flags { rcode, aa: false, tc: false }, [0; 3]);
}

pub fn refused(out: &mut Vec<u8>, frame: &Frame) {
    code(out, frame, REFUSED);
}

/// Come again over TCP: an answer without anything.
pub fn cut(out: &mut Vec<u8>, frame: &Frame) {
    Writer::start(out, frame).finish(frame, Flags { rcode: 0, aa: false, tc: true }, [0; 3]);
}

/// Nobody could be asked: SERVFAIL with a sentence (RFC 8914).
pub fn failed(out: &mut Vec<u8>, frame: &Frame, why: &str) {
    let writer = Writer::start(out, frame);
    let flags = Flags { rcode: SERVFAIL, aa: false, tc: false };
    writer.finish_with(frame, flags, [0; 3], Some(why));
}

/// The question for others: with EDNS if it came with it, without the options, which are between
/// the client and this door (RFC 6891, 6.1.1): a cookie is for whoever made it (RFC 7873).
pub fn question(out: &mut Vec<u8>, query: &Query) {
    let [i0, i1] = query.id;
    let additional = u8::from(query.edns.is_some());
    let (recursion, checking) = (u8::from(query.recursion), query.checking);
    out.clear();
    out.extend_from_slice(&[i0, i1, recursion, checking, 0, 1, 0, 0, 0, 0, 0, additional]);
    out.extend_from_slice(query.question);
    if let Some(edns) = query.edns {
        out.extend_from_slice(&opt_head(0, edns.signed));
        out.extend_from_slice(&[0; 2]);
    }
}

/// Another server's answer with this door's OPT record instead of its own.
pub fn reframe(out: &mut Vec<u8>, frame: &Frame, theirs: &Theirs) {
    out.truncate(theirs.end);
    let mut additional = theirs.additional;
    if frame.query.edns.is_some() {
        let limit = usize::from(u16::MAX);
        let mut writer = Writer { out, limit, names: [0; NAMES_MAX], named: 0 };
        writer.put(&opt_head(theirs.rcode, theirs.signed));
        writer.options(frame, None);
        additional = additional.saturating_add(1);
    }
    if let Some(count) = out.get_mut(HEADER_BYTES - 2..HEADER_BYTES) {
        count.copy_from_slice(&additional.to_be_bytes());
    }
}

/// An OPT record up to its length: a code's upper bits, version 0, DO.
fn opt_head(rcode: u8, signed: bool) -> [u8; OPT_BYTES - 2] {
    let ([t0, t1], [s0, s1]) = (TYPE_OPT.to_be_bytes(), UDP_SIZE.to_be_bytes());
    [0, t0, t1, s0, s1, rcode, 0, if signed { 0x80 } else { 0 }, 0]
}

struct Flags {
    rcode: u8,
    aa: bool,
    tc: bool,
}

// === impl Writer ===

impl<'a> Writer<'a> {
    /// Header and question, with room kept for the OPT record.
    fn start(out: &'a mut Vec<u8>, frame: &Frame) -> Self {
        out.clear();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        out.extend_from_slice(frame.query.question);
        let mut kept = 0;
        if frame.query.edns.is_some() {
            kept = OPT_BYTES;
        }
        if frame.cookie.is_some() {
            kept += 4 + COOKIE_BYTES;
        }
        let limit = frame.limit.saturating_sub(kept);
        let mut writer = Self { out, limit, names: [0; NAMES_MAX], named: 0 };
        let (name, mut at) = (frame.query.name.as_bytes(), 0);
        while let Some(len @ 1..) = name.get(at) {
            writer.note(HEADER_BYTES + at);
            at += 1 + usize::from(*len);
        }
        writer
    }

    /// One record, or nothing of it: where its data's name begins, if it has one.
    fn record(&mut self, owner: Option<&[u8]>, rdata: &Rdata, ttl: u32) -> Option<u16> {
        let (before, named) = (self.out.len(), self.named);
        self.head(owner, rdata.rtype(), ttl);
        let mut target = 0;
        let ok = match rdata {
            Rdata::Address(IpAddr::V4(v4)) => self.data(&v4.octets()),
            Rdata::Address(IpAddr::V6(v6)) => self.data(&v6.octets()),
            Rdata::Txt(strings) => self.data(strings),
            Rdata::Srv { weight, port, target: name, .. } => self.lengthened(|writer| {
                // All instances are of one priority.
                writer.put(&1u16.to_be_bytes());
                writer.put(&weight.to_be_bytes());
                writer.put(&port.to_be_bytes());
                target = u16::try_from(writer.out.len()).unwrap_or(0);
                // RFC 2782: this name is not compressed.
                writer.put(name);
            }),
            Rdata::Name(_, name) => self.lengthened(|writer| writer.name(name)),
            Rdata::Soa { server, mailbox, serial, minimum } => self.lengthened(|writer| {
                writer.name(server);
                writer.name(mailbox);
                writer.put(&serial.to_be_bytes());
                for time in SOA_TIMES {
                    writer.put(&time.to_be_bytes());
                }
                writer.put(&minimum.to_be_bytes());
            }),
        };
        if ok && self.out.len() <= self.limit {
            return Some(target);
        }
        self.out.truncate(before);
        self.named = named;
        None
    }

    /// Addresses of targets, as many as there is room for.
    fn glue(&mut self, ready: &Ready, targets: &[(u16, u16)]) -> u16 {
        let mut written = 0;
        for (at, place) in targets {
            let Some(Rdata::Srv { addresses, target, .. }) = ready.answers.get(usize::from(*at))
            else {
                continue;
            };
            for address in addresses {
                let near = usize::from(*place) <= POINTER_MAX;
                let [high, low] = place.to_be_bytes();
                let pointer = [0xc0 | high, low];
                let owner = if near { &pointer[..] } else { target };
                if !self.address(owner, *address, ready.ttl) {
                    return written;
                }
                written += 1;
            }
        }
        for (owner, address) in &ready.additional {
            if self.record(Some(owner), &Rdata::Address(*address), ready.zone_ttl).is_none() {
                return written;
            }
            written += 1;
        }
        written
    }

    fn address(&mut self, owner: &[u8], address: IpAddr, ttl: u32) -> bool {
        let before = self.out.len();
        self.put(owner);
        let ok = match address {
            IpAddr::V4(v4) => {
                self.fixed(A, ttl);
                self.data(&v4.octets())
            }
            IpAddr::V6(v6) => {
                self.fixed(AAAA, ttl);
                self.data(&v6.octets())
            }
        };
        if ok && self.out.len() <= self.limit {
            return true;
        }
        self.out.truncate(before);
        false
    }

    /// Owner, type, class and TTL. The name asked for is the owner where none is given.
    fn head(&mut self, owner: Option<&[u8]>, rtype: u16, ttl: u32) {
        match owner {
            None => self.put(&QUESTION),
            Some(name) => self.name(name),
        }
        self.fixed(rtype, ttl);
    }

    fn fixed(&mut self, rtype: u16, ttl: u32) {
        self.put(&rtype.to_be_bytes());
        self.put(&CLASS_IN.to_be_bytes());
        self.put(&ttl.to_be_bytes());
    }

    fn data(&mut self, bytes: &[u8]) -> bool {
        let Ok(len) = u16::try_from(bytes.len()) else { return false };
        self.put(&len.to_be_bytes());
        self.put(bytes);
        self.out.len() <= self.limit
    }

    /// Data whose length is known when it is written.
    fn lengthened(&mut self, write: impl FnOnce(&mut Self)) -> bool {
        let at = self.out.len();
        self.put(&[0; 2]);
        write(self);
        let len = u16::try_from(self.out.len() - at - 2);
        match (len, self.out.get_mut(at..at + 2)) {
            (Ok(len), Some(place)) => {
                place.copy_from_slice(&len.to_be_bytes());
                true
            }
            _ => false,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A name, its end as a pointer where that was written before.
    fn name(&mut self, mut name: &[u8]) {
        while let Some((len, after)) = name.split_first()
            && *len > 0
        {
            if let Some(place) = self.known(name) {
                let [high, low] = place.to_be_bytes();
                self.put(&[0xc0 | high, low]);
                return;
            }
            self.note(self.out.len());
            let label = after.get(..usize::from(*len)).unwrap_or_default();
            self.out.push(*len);
            self.put(label);
            name = after.get(usize::from(*len)..).unwrap_or_default();
        }
        self.out.push(0);
    }

    fn note(&mut self, at: usize) {
        if at <= POINTER_MAX
            && let (Ok(at), Some(place)) = (u16::try_from(at), self.names.get_mut(self.named))
        {
            *place = at;
            self.named += 1;
        }
    }

    /// Where this name was written.
    fn known(&self, name: &[u8]) -> Option<u16> {
        let places = self.names.get(..self.named).unwrap_or_default();
        places.iter().copied().find(|place| self.is_at(usize::from(*place), name))
    }

    fn is_at(&self, mut at: usize, mut name: &[u8]) -> bool {
        // A name has no more labels than this, and pointers lead backwards.
        for _ in 0..128 {
            let Some(head) = self.out.get(at).copied() else { return false };
            if head >= 0xc0 {
                let low = self.out.get(at + 1).copied().unwrap_or(0);
                at = usize::from(u16::from_be_bytes([head & 0x3f, low]));
                continue;
            }
            let len = 1 + usize::from(head);
            let (Some(here), Some(wanted)) = (self.out.get(at..at + len), name.get(..len)) else {
                return false;
            };
            if !here.eq_ignore_ascii_case(wanted) {
                return false;
            }
            if head == 0 {
                return true;
            }
            at += len;
            name = name.get(len..).unwrap_or_default();
        }
        false
    }

    fn finish(self, frame: &Frame, flags: Flags, counts: [u16; 3]) {
        self.finish_with(frame, flags, counts, None);
    }

    /// The OPT record, and the header now that it is known.
    fn finish_with(mut self, frame: &Frame, flags: Flags, counts: [u16; 3], why: Option<&str>) {
        let [answers, authority, mut additional] = counts;
        if frame.query.edns.is_some() {
            self.opt(frame, flags.rcode, why);
            additional += 1;
        }
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let [i0, i1] = frame.query.id;
        let first =
            0x80 | bit(flags.aa, 0x04) | bit(flags.tc, 0x02) | bit(frame.query.recursion, 0x01);
        let second = bit(frame.recursive, 0x80) | (flags.rcode & 0x0f);
        let [a0, a1] = answers.to_be_bytes();
        let [n0, n1] = authority.to_be_bytes();
        let [r0, r1] = additional.to_be_bytes();
        if let Some(header) = self.out.first_chunk_mut::<HEADER_BYTES>() {
            *header = [i0, i1, first, second, 0, 1, a0, a1, n0, n1, r0, r1];
        }
    }

    fn opt(&mut self, frame: &Frame, rcode: u8, why: Option<&str>) {
        self.put(&opt_head(rcode >> 4, false));
        self.options(frame, why);
    }

    fn options(&mut self, frame: &Frame, why: Option<&str>) {
        let room = frame.limit.saturating_sub(self.out.len() + 2);
        self.lengthened(|writer| {
            let mut left = room;
            if let Some(cookie) = frame.cookie {
                writer.put(&OPTION_COOKIE.to_be_bytes());
                writer.data(cookie);
                left = left.saturating_sub(4 + COOKIE_BYTES);
            }
            let Some(why) = why.filter(|why| why.len() + 6 <= left) else { return };
            let Ok(len) = u16::try_from(why.len() + 2) else { return };
            writer.put(&OPTION_ERROR.to_be_bytes());
            writer.put(&len.to_be_bytes());
            writer.put(&NO_REACHABLE_AUTHORITY.to_be_bytes());
            writer.put(why.as_bytes());
        });
    }
}
