// SPDX-License-Identifier: Apache-2.0
//! Takes a body apart as its framing says. Pure: bytes come from the driver's buffer, and data
//! leaves as slices of it.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::framing::Framing;
use super::head::{self, Scan};
use super::wrong::Wrong;
use crate::guards;

/// A chunk's size line, extensions included.
pub const CHUNK_LINE_MAX: usize = 64;
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Where in a body we are.
#[derive(Clone, Copy, Debug)]
pub enum Decoder {
    Done,
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers(Scan),
}

#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

// === impl Decoder ===

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Tunnel => Self::Done,
            Framing::Length(n) => Self::Length(n),
            Framing::Chunked => Self::ChunkSize,
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// What is left, when that was said.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(n) => Some(*n),
            _ => None,
        }
    }

    /// The peer has closed its side.
    ///
    /// # Errors
    /// The body was not complete.
    pub fn end_of_stream(&mut self) -> Result<(), Wrong> {
        match self {
            Self::Done => Ok(()),
            Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            _ => Err(Wrong::Truncated),
        }
    }

    /// Takes the next piece of a request's body off the buffer; `None` when it is done or needs
    /// more bytes.
    ///
    /// # Errors
    /// Its framing is wrong; nothing behind it can be understood.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, Wrong> {
        self.take(buffer, head::trailers)
    }

    /// The same of an answer's.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_of_answer(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, Wrong> {
        self.take(buffer, head::trailers_of_answer)
    }

    fn take(
        &mut self,
        buffer: &mut BytesMut,
        trailers: fn(Bytes) -> Result<HeaderMap, Wrong>,
    ) -> Result<Option<Piece>, Wrong> {
        loop {
            match self {
                Self::Done => return Ok(None),
                _ if buffer.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(Piece::Data(buffer.split().freeze()))),
                Self::Length(left) => {
                    let data = up_to(buffer, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Some(Piece::Data(data)));
                }
                Self::ChunkData(left) => {
                    let data = up_to(buffer, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(Some(Piece::Data(data)));
                }
                Self::ChunkEnd => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        drop(buffer.split_to(2));
                        *self = Self::ChunkSize;
                    }
                    None if buffer.first() == Some(&b'\r') => return Ok(None),
                    _ if guards::on("chunk-end") => return Err(Wrong::ChunkEnd),
                    _ => *self = Self::ChunkSize,
                },
                Self::ChunkSize => match chunk_line(buffer)? {
                    None => return Ok(None),
                    Some((line, 0)) => {
                        drop(buffer.split_to(line));
                        *self = Self::Trailers(Scan::default());
                    }
                    Some((line, size)) => {
                        drop(buffer.split_to(line));
                        *self = Self::ChunkData(size);
                    }
                },
                Self::Trailers(scan) => {
                    let end = match scan.end(buffer, TRAILER_BYTES_MAX) {
                        Ok(None) => return Ok(None),
                        Ok(Some(end)) => end,
                        Err(Wrong::HeadTooLarge) => return Err(Wrong::TrailersTooLarge),
                        Err(wrong) => return Err(wrong),
                    };
                    *self = Self::Done;
                    let lines = buffer.split_to(end);
                    if end == 2 {
                        return Ok(None);
                    }
                    let kept = Some(trailers(lines.freeze())?).filter(|kept| !kept.is_empty());
                    return Ok(kept.map(Piece::Trailers));
                }
            }
        }
    }

    /// Passes over what holds no data if it is there already, so that the end is known early.
    pub fn look_ahead(&mut self, buffer: &mut BytesMut) {
        if matches!(self, Self::ChunkEnd) && buffer.starts_with(b"\r\n0\r\n\r\n") {
            drop(buffer.split_to(7));
            *self = Self::Done;
        }
    }
}

fn up_to(buffer: &mut BytesMut, left: u64) -> Bytes {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    buffer.split_to(n).freeze()
}

/// A chunk's size line: how long the line is, and the size it says.
fn chunk_line(buffer: &[u8]) -> Result<Option<(usize, u64)>, Wrong> {
    let window = buffer.get(..CHUNK_LINE_MAX + 2).unwrap_or(buffer);
    let digits = window.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits > 15 && guards::on("chunk-overflow") {
        return Err(Wrong::ChunkOverflow);
    }
    let strict = guards::on("chunk-size-line");
    if digits == 0 && strict {
        return Err(Wrong::ChunkSize);
    }
    match window.get(digits) {
        _ if !strict => {}
        None | Some(b'\r' | b';') => {}
        Some(b'\n') => return Err(Wrong::BareLf),
        Some(b) if b.is_ascii_graphic() => return Err(Wrong::ChunkSize),
        Some(_) if guards::on("chunk-extension") => return Err(Wrong::ChunkExtension),
        Some(_) => {}
    }
    let Some(end) = memchr::memchr(b'\n', window) else {
        if window.len() >= CHUNK_LINE_MAX + 2 && guards::on("chunk-line-long") {
            return Err(Wrong::ChunkLine);
        }
        // What is there of it may be wrong already.
        let extension = window.get(digits..).unwrap_or_default();
        let extension = extension.strip_suffix(b"\r").unwrap_or(extension);
        let fine = extension.iter().all(u8::is_ascii_graphic) || !guards::on("chunk-extension");
        return if fine { Ok(None) } else { Err(Wrong::ChunkExtension) };
    };
    let line = window.get(..end).unwrap_or_default();
    let line = match line.strip_suffix(b"\r") {
        None if strict => return Err(Wrong::BareLf),
        stripped => stripped.unwrap_or(line),
    };
    check_extension(line.get(digits..).unwrap_or_default())?;
    let size = line.iter().take(digits).fold(0u64, |n, b| {
        n.wrapping_mul(16) + u64::from(char::from(*b).to_digit(16).unwrap_or(0))
    });
    Ok(Some((end + 1, size)))
}

/// `;name` or `;name=value`, any number of them; a value is a token or quoted (RFC 9112 §7.1.1). No
/// white space: recipients disagree about it.
fn check_extension(extension: &[u8]) -> Result<(), Wrong> {
    if !guards::on("chunk-extension") {
        return Ok(());
    }
    let token = |text: &[u8]| text.iter().take_while(|b| head::is_token(**b)).count();
    let mut rest = extension;
    while !rest.is_empty() {
        let named = rest.strip_prefix(b";").ok_or(Wrong::ChunkExtension)?;
        let name = token(named);
        rest = named.get(name..).filter(|_| name > 0).ok_or(Wrong::ChunkExtension)?;
        if let Some(value) = rest.strip_prefix(b"=") {
            let end = match value.strip_prefix(b"\"") {
                Some(text) => quoted(text).map(|n| n + 1),
                None => Some(token(value)).filter(|n| *n > 0),
            };
            rest = end.and_then(|n| value.get(n..)).ok_or(Wrong::ChunkExtension)?;
        }
    }
    Ok(())
}

/// Up to and with the quotation mark that ends it. Nothing in it is escaped: that is one more thing
/// to disagree about.
fn quoted(text: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'"', text)?;
    let plain = text.get(..end)?.iter().all(|b| b.is_ascii_graphic() && *b != b'\\');
    plain.then_some(end + 1)
}
