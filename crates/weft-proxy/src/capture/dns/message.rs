// SPDX-License-Identifier: Apache-2.0
//! As much of a DNS message as forwarding needs (RFC 1035 §4.1, RFC 6891, RFC 8914). Pure.

const HEADER: usize = 12;
/// QR, and the flags of a failed answer: the opcode and RD of the question stay.
const RESPONSE: u8 = 0x80;
const OPCODE_AND_RD: u8 = 0x79;
const RECURSION_AVAILABLE: u8 = 0x80;
const SERVFAIL: u8 = 2;
const OPT: u16 = 41;
const EXTENDED_ERROR: u16 = 15;
/// RFC 8914 §5.2: Network Error.
const NETWORK_ERROR: u16 = 23;
const WHY: &str = "weft: the mesh's resolver does not answer; see whether the server runs";

/// The id of a message that is long enough to have one.
pub fn id(message: &[u8]) -> Option<u16> {
    let id = message.first_chunk::<2>().filter(|_| message.len() >= HEADER)?;
    Some(u16::from_be_bytes(*id))
}

pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
}

pub fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & RESPONSE != 0)
}

/// The question section of a message with exactly one question, name and type and class.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length if length < 64 => at += 1 + length,
            _ => return None,
        }
    }
    message.get(HEADER..at + 5)
}

/// Whether an answer may belong to a question: names are compared as DNS does. Answers that
/// repeat no question (some failures) are told by their id alone.
pub fn answers(answer: &[u8], asked: &[u8]) -> bool {
    match question(answer) {
        Some(repeated) => repeated.eq_ignore_ascii_case(asked),
        None => answer.get(4..6) == Some(&[0, 0]),
    }
}

/// SERVFAIL with its reason, if the question says that it understands one.
pub fn failure(asked: &[u8]) -> Option<Vec<u8>> {
    let question = question(asked)?;
    let [id_hi, id_lo, flags, ..] = *asked.first_chunk::<HEADER>()?;
    let opt = has_opt(asked, HEADER + question.len());
    let mut out = Vec::with_capacity(HEADER + question.len() + 32 + WHY.len());
    out.extend([id_hi, id_lo, RESPONSE | (flags & OPCODE_AND_RD), RECURSION_AVAILABLE | SERVFAIL]);
    out.extend([0, 1, 0, 0, 0, 0, 0, u8::from(opt)]);
    out.extend(question);
    if opt {
        let text = u16::try_from(WHY.len()).ok()? + 2;
        out.push(0);
        out.extend(OPT.to_be_bytes());
        // Largest datagram that we take, no flags, version 0.
        out.extend(1232u16.to_be_bytes());
        out.extend([0; 4]);
        out.extend((text + 4).to_be_bytes());
        out.extend(EXTENDED_ERROR.to_be_bytes());
        out.extend(text.to_be_bytes());
        out.extend(NETWORK_ERROR.to_be_bytes());
        out.extend(WHY.as_bytes());
    }
    Some(out)
}

/// Whether the first record behind the question, which is where clients put it, is OPT.
fn has_opt(message: &[u8], at: usize) -> bool {
    let counts = message.get(6..10) == Some(&[0, 0, 0, 0]);
    let some = message.get(10..12).is_some_and(|n| n != [0, 0]);
    let record = message.get(at..at + 3);
    let [hi, lo] = OPT.to_be_bytes();
    counts && some && record == Some(&[0, hi, lo])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(opt: bool) -> Vec<u8> {
        let mut out = vec![0xab, 0xcd, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, u8::from(opt)];
        out.extend(b"\x04User\x04shop\x03svc\0\0\x01\0\x01");
        if opt {
            out.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        }
        out
    }

    #[test]
    fn an_answer_is_told_by_its_question() {
        let asked = query(false);
        let section = question(&asked).unwrap();
        assert_eq!(section, b"\x04User\x04shop\x03svc\0\0\x01\0\x01");
        let mut answer = asked.clone();
        answer[2] |= RESPONSE;
        assert!(is_response(&answer) && !is_response(&asked));
        assert!(answers(&answer.to_ascii_lowercase(), section));
        answer[14] = b'x';
        assert!(!answers(&answer, section));
        set_id(&mut answer, 7);
        assert_eq!(id(&answer), Some(7));
        assert!(answers(&[0, 7, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0], section));
    }

    #[test]
    fn a_failure_repeats_the_question_and_says_why_to_those_who_understand() {
        let plain = failure(&query(false)).unwrap();
        assert_eq!(plain[..12], [0xab, 0xcd, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question(&plain), question(&query(false)));
        assert_eq!(plain.len(), query(false).len());
        let extended = failure(&query(true)).unwrap();
        assert_eq!(extended[11], 1);
        let text = String::from_utf8_lossy(&extended);
        assert!(text.ends_with(WHY), "{text}");
    }

    proptest! {
        #[test]
        fn no_message_disturbs(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (id(&bytes), is_response(&bytes), question(&bytes), failure(&bytes));
            prop_assert!(!answers(&bytes, b"") || bytes.get(4..6) == Some(&[0, 0]));
        }
    }
}
