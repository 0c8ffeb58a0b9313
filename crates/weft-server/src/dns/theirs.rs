// SPDX-License-Identifier: Apache-2.0
//! Another server's answer, skimmed: where its EDNS record is and what that says. Called by
//! `answer.rs` before the answer is passed on. Total, allocates nothing, follows no pointer.

use super::query::{HEADER_BYTES, TYPE_OPT, owner_bytes};

/// What is of use of another server's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Theirs {
    /// Where its records end that may be passed on: at its OPT record. What follows that (nothing,
    /// as a rule) is additional; without it no pointer leads astray.
    pub end: usize,
    /// Additional records before that.
    pub additional: u16,
    /// The upper bits of its code, and whether it holds signatures as was asked for (DO).
    pub rcode: u8,
    pub signed: bool,
}

/// Skims an answer; `None` when it is none.
pub fn skim(answer: &[u8]) -> Option<Theirs> {
    let (header, _) = answer.split_first_chunk::<HEADER_BYTES>()?;
    let [.., q0, q1, a0, a1, n0, n1, r0, r1] = *header;
    let mut at = HEADER_BYTES;
    for _ in 0..u16::from_be_bytes([q0, q1]) {
        at += owner_bytes(answer.get(at..)?)? + 4;
    }
    let others = u32::from(u16::from_be_bytes([a0, a1])) + u32::from(u16::from_be_bytes([n0, n1]));
    for _ in 0..others {
        at = record(answer, at)?.end;
    }
    let additional = u16::from_be_bytes([r0, r1]);
    for before in 0..additional {
        let found = record(answer, at)?;
        if found.rtype == TYPE_OPT {
            let Record { rcode, signed, .. } = found;
            return Some(Theirs { end: at, additional: before, rcode, signed });
        }
        at = found.end;
    }
    let whole = Theirs { end: at, additional, rcode: 0, signed: false };
    (at <= answer.len()).then_some(whole)
}

struct Record {
    end: usize,
    rtype: u16,
    rcode: u8,
    signed: bool,
}

fn record(answer: &[u8], at: usize) -> Option<Record> {
    let bytes = answer.get(at..)?;
    let owner = owner_bytes(bytes)?;
    let [t0, t1, _, _, rcode, _, z0, _, l0, l1] = *bytes.get(owner..)?.first_chunk::<10>()?;
    let length = owner + 10 + usize::from(u16::from_be_bytes([l0, l1]));
    bytes.get(..length)?;
    let rtype = u16::from_be_bytes([t0, t1]);
    Some(Record { end: at + length, rtype, rcode, signed: z0 & 0x80 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\0\x07\x81\x80\0\x01\0\x01\0\0\0\x03\x01a\0\0\x01\0\x01";
    const ANSWER: &[u8] = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01";
    const OPT: &[u8] = b"\0\0\x29\x04\xd0\x01\0\x80\0\0\x02ab";

    #[test]
    fn an_answer_ends_at_its_opt_record() {
        let answer = [QUESTION, ANSWER, ANSWER, OPT, ANSWER].concat();
        let end = QUESTION.len() + 2 * ANSWER.len();
        let wanted = Theirs { end, additional: 1, rcode: 1, signed: true };
        assert_eq!(skim(&answer), Some(wanted));
        let none = [QUESTION, ANSWER, ANSWER, ANSWER, ANSWER].concat();
        let wanted = Theirs { end: none.len(), additional: 3, rcode: 0, signed: false };
        assert_eq!(skim(&none), Some(wanted));
    }

    #[test]
    fn what_is_cut_off_is_no_answer() {
        let answer = [QUESTION, ANSWER, ANSWER, OPT].concat();
        for end in 0..answer.len() {
            assert_eq!(skim(&answer[..end]), None, "{end}");
        }
        assert!(skim(&answer).is_some(), "what follows an OPT record is not looked at");
    }
}
