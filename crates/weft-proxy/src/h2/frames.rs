// SPDX-License-Identifier: Apache-2.0
//! Finds frame heads in a stream of bytes that comes in pieces; reads no payload and keeps nothing
//! but an unfinished head. Called by [`super::guard`] for both directions.

/// What a client sends before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const PREFACE_BYTES: u32 = 24;
pub const HEAD_BYTES: usize = 9;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// A frame's head (RFC 9113 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    pub flags: u8,
    pub bytes: u32,
    pub stream: u32,
}

/// Where in the stream we are.
#[derive(Debug)]
pub struct Scanner {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Payload, or the preface, still to come.
    left: u32,
    /// Inside of DATA.
    data: bool,
}

// === impl Head ===

impl Head {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn parse(bytes: [u8; HEAD_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            kind,
            flags,
            bytes: u32::from_be_bytes([0, l0, l1, l2]),
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }
}

// === impl Scanner ===

impl Scanner {
    /// `skip` is what comes before the first frame.
    pub fn new(skip: u32) -> Self {
        Self { head: [0; HEAD_BYTES], have: 0, left: skip, data: false }
    }

    /// Goes on to the next frame head. Returns it with the number of `bytes` up to its end, or
    /// `None` when they are used up.
    pub fn next(&mut self, bytes: &[u8]) -> Option<(Head, usize)> {
        let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= u32::try_from(skipped).unwrap_or(self.left);
        let rest = bytes.get(skipped..)?;
        let wanted = self.head.get_mut(self.have..)?;
        let taken = rest.len().min(wanted.len());
        wanted.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.have += taken;
        if self.have < HEAD_BYTES {
            return None;
        }
        let head = Head::parse(self.head);
        (self.have, self.left, self.data) = (0, head.bytes, head.kind == DATA);
        Some((head, skipped + taken))
    }

    /// What is missing of the frame that was found last.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Whether a frame, other than one of a body, or a head has begun and not ended.
    pub fn is_midway(&self) -> bool {
        self.have > 0 || (self.left > 0 && !self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn heads_are_found_however_the_bytes_are_cut() {
        let mut bytes = vec![0xff; 24];
        let kinds = [(SETTINGS, 0, 12), (HEADERS, 1, 30), (DATA, 1, 0), (DATA, 1, 300), (77, 9, 1)];
        for (kind, stream, n) in kinds {
            bytes.extend(frame(kind, stream, &vec![0xee; n]));
        }
        for cut in 1..bytes.len() {
            let mut scanner = Scanner::new(PREFACE_BYTES);
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(cut) {
                while let Some((head, end)) = scanner.next(piece) {
                    seen.push((head.kind, head.stream, head.bytes as usize));
                    piece = &piece[end..];
                }
            }
            assert_eq!(seen, kinds, "pieces of {cut}");
            assert!(!scanner.is_midway());
        }
    }

    #[test]
    fn an_unfinished_frame_is_known_unless_it_is_a_body() {
        let mut scanner = Scanner::new(0);
        assert!(!scanner.is_midway());
        let ping = frame(PING, 0, &[0; 8]);
        assert_eq!(scanner.next(&ping[..5]), None);
        assert!(scanner.is_midway());
        assert!(scanner.next(&ping[5..12]).is_some());
        assert_eq!(scanner.next(&ping[9..12]), None);
        assert!(scanner.is_midway());
        assert_eq!(scanner.next(&ping[12..]), None);
        assert!(!scanner.is_midway());
        assert!(scanner.next(&frame(DATA, 1, &[0; 8])[..12]).is_some());
        assert!(!scanner.is_midway());
    }
}
