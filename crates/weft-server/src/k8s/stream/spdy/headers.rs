// SPDX-License-Identifier: Apache-2.0
//! Header blocks of SPDY/3: names and values with lengths, compressed by one zlib stream per
//! direction that lives as long as the connection.
//!
//! Used by the machine in `spdy`. A block is read only up to its limits, whatever it inflates to.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::{SpdyError, dictionary};
use crate::guards;

/// Bytes of one block, inflated.
pub(crate) const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// Headers of one block.
const HEADERS_MAX: usize = 64;

/// Names (in lower case) and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

/// Reads what the peer compresses.
#[derive(Debug)]
pub(super) struct Reader {
    inflate: Decompress,
}

/// Compresses what we say.
#[derive(Debug)]
pub(super) struct Writer {
    deflate: Compress,
}

// === impl Headers ===

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[cfg(test)]
    pub(super) fn new(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = length(self.0.len()).to_vec();
        for text in self.0.iter().flat_map(|(n, v)| [n, v]) {
            out.extend_from_slice(&length(text.len()));
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    fn decode(mut block: &[u8]) -> Result<Self, SpdyError> {
        let count = take_length(&mut block)?;
        if count > HEADERS_MAX {
            return Err(SpdyError::TooLarge("a header block", HEADERS_MAX, "headers"));
        }
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut block)?.to_ascii_lowercase();
            out.push((name, take_text(&mut block)?));
        }
        Ok(Self(out))
    }
}

fn length(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap_or(u32::MAX).to_be_bytes()
}

fn take_length(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let (head, rest) = block.split_first_chunk::<4>().ok_or(SpdyError::ShortBlock)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*head)).map_err(|_| SpdyError::ShortBlock)
}

fn take_text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let len = take_length(block)?;
    let (text, rest) = block.split_at_checked(len).ok_or(SpdyError::ShortBlock)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

// === impl Reader ===

impl Reader {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// Inflates and reads one block. After an error the connection is useless: its state is.
    pub(super) fn read(&mut self, mut block: &[u8]) -> Result<Headers, SpdyError> {
        let most = if guards::on("spdy-block") { BLOCK_BYTES_MAX } else { 16 * 1024 * 1024 };
        let mut out = vec![0; most + 1];
        let mut filled = 0;
        loop {
            let (ins, outs) = (self.inflate.total_in(), self.inflate.total_out());
            let room = out.get_mut(filled..).unwrap_or_default();
            let step = self.inflate.decompress(block, room, FlushDecompress::Sync);
            let took = usize::try_from(self.inflate.total_in() - ins).unwrap_or(usize::MAX);
            filled += usize::try_from(self.inflate.total_out() - outs).unwrap_or(0);
            block = block.get(took..).unwrap_or_default();
            match step {
                Err(e) if e.needs_dictionary().is_some() => {
                    let set = self.inflate.set_dictionary(&dictionary::bytes());
                    set.map_err(|_| SpdyError::Compression)?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Compression),
                Ok(_) => {}
            }
            if filled > most {
                return Err(SpdyError::TooLarge("a header block", BLOCK_BYTES_MAX, "bytes"));
            }
            let moved = self.inflate.total_in() > ins || self.inflate.total_out() > outs;
            if block.is_empty() || !moved {
                break;
            }
        }
        if !block.is_empty() {
            return Err(SpdyError::Compression);
        }
        Headers::decode(out.get(..filled).unwrap_or_default())
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // A fresh stream takes any dictionary; without it, peers would still read what we write.
        let _ = deflate.set_dictionary(&dictionary::bytes());
        Self { deflate }
    }

    pub(super) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let plain = headers.encode();
        // What does not shrink grows by a few bytes.
        let mut out = Vec::with_capacity(plain.len() + 128);
        let (ins, mut left) = (self.deflate.total_in(), plain.as_slice());
        loop {
            let full = out.len() == out.capacity();
            if full {
                out.reserve(256);
            }
            let step = self.deflate.compress_vec(left, &mut out, FlushCompress::Sync);
            step.map_err(|_| SpdyError::Compression)?;
            let took = usize::try_from(self.deflate.total_in() - ins).unwrap_or(usize::MAX);
            left = plain.get(took..).unwrap_or_default();
            // Room left over says that the flush is complete.
            if left.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_that_of_the_protocol() {
        // The identifier that every SPDY/3 peer asks for.
        let mut inflate = Decompress::new(true);
        let block = Writer::new().write(&Headers::new(&[("a", "b")])).unwrap();
        let mut out = [0; 64];
        let error = inflate.decompress(&block, &mut out, FlushDecompress::Sync).unwrap_err();
        assert_eq!(error.needs_dictionary(), Some(0xe3c6_a7c2));
        assert_eq!(dictionary::bytes().len(), 1423);
    }

    #[test]
    fn reg_64_a_small_block_does_not_unpack_to_megabytes() {
        let large = "b".repeat(4 * 1024 * 1024);
        let block = Writer::new().write(&Headers::new(&[("a", &large)])).unwrap();
        assert!(block.len() < 64 * 1024, "{}", block.len());
        let error = Reader::new().read(&block).expect_err("it is unpacked whole").to_string();
        assert!(error.contains("a header block"), "{error}");
    }

    #[test]
    fn blocks_of_one_connection_are_read_in_order() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        for n in 0..50 {
            let id = n.to_string();
            let headers =
                Headers::new(&[("streamtype", "data"), ("port", "80"), ("requestid", &id)]);
            let block = writer.write(&headers).unwrap();
            assert_eq!(reader.read(&block).unwrap(), headers);
        }
        let none = writer.write(&Headers::default()).unwrap();
        assert_eq!(reader.read(&none).unwrap(), Headers::default());
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        let long = "a".repeat(1 << 20);
        let block = writer.write(&Headers::new(&[("bomb", &long)])).unwrap();
        assert!(block.len() < 16 * 1024);
        assert!(matches!(reader.read(&block), Err(SpdyError::TooLarge(..))));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for block in [&b""[..], b"\0\0\0\x01", b"\0\0\0\x01\0\0\0\x09a", b"\xff\xff\xff\xff"] {
            assert!(Headers::decode(block).is_err(), "{block:?}");
        }
        assert!(Reader::new().read(b"no zlib at all").is_err());
    }
}
