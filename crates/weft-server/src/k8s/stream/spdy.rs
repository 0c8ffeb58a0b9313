// SPDX-License-Identifier: Apache-2.0
//! SPDY/3.1 as far as Kubernetes' clients speak it, without I/O: bytes in, events and bytes out.
//!
//! Driven by `spdy_conn`. Its peers (client-go and all that derive from it) neither send nor
//! honour windows; a peer that does is held to them from its first SETTINGS or WINDOW_UPDATE on.
//! What a peer consumes of our memory is bounded by the driver, which stops reading.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

mod dictionary;
mod headers;

pub(crate) use headers::Headers;

/// Open streams of one connection; a forwarded connection has two.
pub(crate) const STREAMS_MAX: usize = 512;
/// Bytes of one control frame.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// A window's size until a peer says otherwise.
const WINDOW: i64 = 64 * 1024;
/// Consumed bytes after which the peer is told that it may send more.
const WINDOW_STEP: u32 = 32 * 1024;
const WINDOW_MAX: i64 = i32::MAX as i64;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const SETTING_INITIAL_WINDOW: u32 = 7;

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SpdyError {
    #[error("a frame of SPDY version {0} came; this is SPDY/3.1")]
    Version(u16),
    #[error("{0} has more than {1} {2}")]
    TooLarge(&'static str, usize, &'static str),
    #[error("a control frame of type {0} is too short")]
    ShortFrame(u16),
    #[error("a header block ends too early")]
    ShortBlock,
    #[error("a header block cannot be decompressed")]
    Compression,
    #[error("stream {0} may not be opened by a client now")]
    StreamId(u32),
    #[error("data came for stream {0}, which was never opened")]
    NoStream(u32),
}

/// Status of a stream's reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    Refused = 3,
    Cancel = 5,
    FlowControl = 7,
}

/// What the peer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Opened {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        piece: Bytes,
    },
    /// Nothing more comes on this stream.
    Finished {
        stream: u32,
    },
    Reset {
        stream: u32,
    },
    /// The peer opens no more streams.
    GoingAway,
}

/// The server's half of one connection.
#[derive(Debug)]
pub(crate) struct Machine {
    inbox: BytesMut,
    /// Inside a data frame.
    frame: Option<DataFrame>,
    reader: headers::Reader,
    writer: headers::Writer,
    streams: HashMap<u32, Stream>,
    newest: u32,
    /// The peer minds windows; what it may still be sent, and what its streams begin with.
    windows: bool,
    window: i64,
    initial_window: i64,
    consumed: u32,
    ready: VecDeque<Event>,
    out: BytesMut,
}

#[derive(Debug)]
struct DataFrame {
    stream: u32,
    left: usize,
    fin: bool,
}

#[derive(Debug)]
struct Stream {
    /// The peer may still send.
    theirs: bool,
    /// We may still send.
    ours: bool,
    window: i64,
    consumed: u32,
}

// === impl Machine ===

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            inbox: BytesMut::new(),
            frame: None,
            reader: headers::Reader::new(),
            writer: headers::Writer::new(),
            streams: HashMap::new(),
            newest: 0,
            windows: false,
            window: WINDOW,
            initial_window: WINDOW,
            consumed: 0,
            ready: VecDeque::new(),
            out: BytesMut::new(),
        }
    }

    /// Takes bytes from the peer; [`Machine::next`] tells what they say.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
    }

    /// The next thing that the peer did; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the peer breaks the protocol: the connection is to be closed.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, SpdyError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.frame.is_some() {
                match self.next_data() {
                    Some(event) => return Ok(Some(event)),
                    None if self.frame.is_some() => return Ok(None),
                    None => continue,
                }
            }
            let Some(head) = self.inbox.first_chunk::<8>() else { return Ok(None) };
            let [a, b, c, d, flags, x, y, z] = *head;
            let word = u32::from_be_bytes([a, b, c, d]);
            let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap_or(usize::MAX);
            if word & 0x8000_0000 == 0 {
                self.inbox.advance(8);
                self.begin_data(word, length, flags & FLAG_FIN != 0)?;
                continue;
            }
            if length > CONTROL_BYTES_MAX {
                return Err(SpdyError::TooLarge("a control frame", CONTROL_BYTES_MAX, "bytes"));
            }
            if self.inbox.len() < 8 + length {
                return Ok(None);
            }
            self.inbox.advance(8);
            let body = self.inbox.split_to(length).freeze();
            let version = u16::from_be_bytes([a, b]) & 0x7fff;
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            self.control(u16::from_be_bytes([c, d]), flags, body)?;
        }
    }

    /// Accepts a stream: its reply goes out.
    ///
    /// # Errors
    /// When the compressor fails, which only a bug can cause.
    pub(crate) fn reply(&mut self, stream: u32) -> Result<(), SpdyError> {
        if !self.streams.contains_key(&stream) {
            return Ok(());
        }
        let block = self.writer.write(&Headers::default())?;
        self.head(SYN_REPLY, 0, 4 + block.len());
        self.out.put_u32(stream);
        self.out.extend_from_slice(&block);
        Ok(())
    }

    /// Whether so many bytes may be sent now. What cannot be sent at all is thrown away, so yes.
    pub(crate) fn has_window(&self, stream: u32, bytes: usize) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        match self.streams.get(&stream) {
            Some(s) if self.windows && s.ours => s.window.min(self.window) >= bytes,
            _ => true,
        }
    }

    /// Sends data; nothing when the stream is not open for it.
    pub(crate) fn data(&mut self, stream: u32, piece: &[u8]) {
        let Some(s) = self.streams.get_mut(&stream).filter(|s| s.ours) else { return };
        let len = i64::try_from(piece.len()).unwrap_or(i64::MAX);
        s.window -= len;
        self.window -= len;
        self.data_frame(stream, 0, piece);
    }

    /// Says that nothing more comes from us on this stream.
    pub(crate) fn finish(&mut self, stream: u32) {
        let Some(s) = self.streams.get_mut(&stream).filter(|s| s.ours) else { return };
        s.ours = false;
        self.data_frame(stream, FLAG_FIN, &[]);
        self.forget_if_over(stream);
    }

    /// Ends a stream at once, both ways.
    pub(crate) fn reset(&mut self, stream: u32, status: Reset) {
        if self.streams.remove(&stream).is_some() {
            self.reset_frame(stream, status);
        }
    }

    /// The driver has handed on so many bytes of a stream: the peer may send as many more.
    pub(crate) fn consumed(&mut self, stream: u32, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(bytes);
        if self.consumed >= WINDOW_STEP {
            let all = std::mem::take(&mut self.consumed);
            self.window_frame(0, all);
        }
        let Some(s) = self.streams.get_mut(&stream).filter(|s| s.theirs) else { return };
        s.consumed = s.consumed.saturating_add(bytes);
        if s.consumed >= WINDOW_STEP {
            let all = std::mem::take(&mut s.consumed);
            self.window_frame(stream, all);
        }
    }

    /// Says that the connection ends.
    pub(crate) fn go_away(&mut self) {
        self.head(GOAWAY, 0, 8);
        self.out.put_u32(self.newest);
        self.out.put_u32(0);
    }

    /// Streams that are open in a direction.
    pub(crate) fn open(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn take_output(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    fn begin_data(&mut self, stream: u32, left: usize, fin: bool) -> Result<(), SpdyError> {
        if stream == 0 || stream > self.newest || stream.is_multiple_of(2) {
            return Err(SpdyError::NoStream(stream));
        }
        self.frame = Some(DataFrame { stream, left, fin });
        Ok(())
    }

    /// A piece of the data frame that is being read. Data of a stream that has ended crossed its
    /// end on the way; it is thrown away.
    fn next_data(&mut self) -> Option<Event> {
        loop {
            let frame = self.frame.as_mut()?;
            let stream = frame.stream;
            if frame.left == 0 {
                let fin = frame.fin;
                self.frame = None;
                return if fin { self.finished(stream) } else { None };
            }
            if self.inbox.is_empty() {
                return None;
            }
            let piece = self.inbox.split_to(frame.left.min(self.inbox.len())).freeze();
            frame.left -= piece.len();
            if self.streams.get(&stream).is_some_and(|s| s.theirs) {
                return Some(Event::Data { stream, piece });
            }
            self.consumed(stream, piece.len());
        }
    }

    fn finished(&mut self, stream: u32) -> Option<Event> {
        let s = self.streams.get_mut(&stream).filter(|s| s.theirs)?;
        s.theirs = false;
        self.forget_if_over(stream);
        Some(Event::Finished { stream })
    }

    fn forget_if_over(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|s| !s.theirs && !s.ours) {
            self.streams.remove(&stream);
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<(), SpdyError> {
        let short = |_| SpdyError::ShortFrame(kind);
        match kind {
            SYN_STREAM => return self.opened(flags, body),
            SYN_REPLY | HEADERS => {
                let stream = body.try_get_u32().map_err(short)? & 0x7fff_ffff;
                // Read in any case: the next block builds on it.
                self.reader.read(&body)?;
                if flags & FLAG_FIN != 0 {
                    let end = self.finished(stream);
                    self.ready.extend(end);
                }
            }
            RST_STREAM => {
                let stream = body.try_get_u32().map_err(short)? & 0x7fff_ffff;
                if self.streams.remove(&stream).is_some() {
                    self.ready.push_back(Event::Reset { stream });
                }
            }
            SETTINGS => self.settings(body).map_err(|()| SpdyError::ShortFrame(kind))?,
            PING => {
                let id = body.try_get_u32().map_err(short)?;
                // Even ones would answer ours; we send none.
                if !id.is_multiple_of(2) {
                    self.head(PING, 0, 4);
                    self.out.put_u32(id);
                }
            }
            GOAWAY => self.ready.push_back(Event::GoingAway),
            WINDOW_UPDATE => {
                let stream = body.try_get_u32().map_err(short)? & 0x7fff_ffff;
                let more = i64::from(body.try_get_u32().map_err(short)? & 0x7fff_ffff);
                self.window_grows(stream, more);
            }
            // What is unknown is skipped, says the protocol.
            _ => {}
        }
        Ok(())
    }

    fn opened(&mut self, flags: u8, mut body: Bytes) -> Result<(), SpdyError> {
        if body.len() < 10 {
            return Err(SpdyError::ShortFrame(SYN_STREAM));
        }
        let stream = body.get_u32() & 0x7fff_ffff;
        // The associated stream, the priority and the slot mean nothing here.
        body.advance(6);
        let headers = self.reader.read(&body)?;
        if stream.is_multiple_of(2) || stream <= self.newest {
            return Err(SpdyError::StreamId(stream));
        }
        self.newest = stream;
        if self.streams.len() >= STREAMS_MAX {
            self.reset_frame(stream, Reset::Refused);
            return Ok(());
        }
        let (ours, window) = (flags & FLAG_UNIDIRECTIONAL == 0, self.initial_window);
        self.streams.insert(stream, Stream { theirs: true, ours, window, consumed: 0 });
        self.ready.push_back(Event::Opened { stream, headers });
        if flags & FLAG_FIN != 0 {
            let end = self.finished(stream);
            self.ready.extend(end);
        }
        Ok(())
    }

    fn settings(&mut self, mut body: Bytes) -> Result<(), ()> {
        let count = body.try_get_u32().map_err(|_| ())?;
        for _ in 0..count {
            let id = body.try_get_u32().map_err(|_| ())? & 0x00ff_ffff;
            let value = i64::from(body.try_get_u32().map_err(|_| ())?);
            if id == SETTING_INITIAL_WINDOW {
                self.windows = true;
                let value = value.min(WINDOW_MAX);
                let by = value - self.initial_window;
                self.initial_window = value;
                self.streams.values_mut().for_each(|s| s.window += by);
            }
        }
        Ok(())
    }

    fn window_grows(&mut self, stream: u32, more: i64) {
        self.windows = true;
        if stream == 0 {
            self.window = (self.window + more).min(WINDOW_MAX);
            return;
        }
        let Some(s) = self.streams.get_mut(&stream) else { return };
        s.window += more;
        if s.window > WINDOW_MAX {
            self.reset(stream, Reset::FlowControl);
            self.ready.push_back(Event::Reset { stream });
        }
    }

    fn head(&mut self, kind: u16, flags: u8, length: usize) {
        self.out.put_u16(0x8000 | VERSION);
        self.out.put_u16(kind);
        self.out.put_u8(flags);
        self.out.put_uint(u64::try_from(length).unwrap_or(0), 3);
    }

    fn data_frame(&mut self, stream: u32, flags: u8, piece: &[u8]) {
        self.out.put_u32(stream);
        self.out.put_u8(flags);
        self.out.put_uint(u64::try_from(piece.len()).unwrap_or(0), 3);
        self.out.extend_from_slice(piece);
    }

    fn reset_frame(&mut self, stream: u32, status: Reset) {
        self.head(RST_STREAM, 0, 8);
        self.out.put_u32(stream);
        self.out.put_u32(status as u32);
    }

    fn window_frame(&mut self, stream: u32, more: u32) {
        self.head(WINDOW_UPDATE, 0, 8);
        self.out.put_u32(stream);
        self.out.put_u32(more);
    }
}

#[cfg(test)]
mod tests;
