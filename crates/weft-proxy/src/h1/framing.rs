// SPDX-License-Identifier: Apache-2.0
//! Where a message ends (RFC 9112 §6), decided from what its headers claim. Pure; called by
//! [`super::head`] for both directions, and strict in both: two claims are never weighed.

use http::{Method, StatusCode, Version};

use super::wrong::Wrong;
use crate::guards;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    Length(u64),
    Chunked,
    /// The body of an answer that ends with its connection.
    UntilClose,
    /// No HTTP follows: a granted CONNECT or upgrade.
    Tunnel,
}

/// What the headers of one message say about its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub length: Option<u64>,
    pub coding: Coding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    #[default]
    None,
    Chunked,
    /// Something was said that does not end with `chunked` yet.
    Other,
    /// Another coding under `chunked`.
    Both,
}

// === impl Claims ===

impl Claims {
    /// Takes a Content-Length field.
    ///
    /// # Errors
    /// It is not a number, or not the only one.
    pub fn content_length(&mut self, value: &[u8]) -> Result<(), Wrong> {
        let length = match number(value) {
            None if guards::on("length-number") => return Err(Wrong::LengthNumber),
            length => length.unwrap_or_default(),
        };
        match self.length.replace(length) {
            Some(_) if guards::on("length-twice") => Err(Wrong::LengthTwice),
            _ => Ok(()),
        }
    }

    /// Takes an answer's Content-Length field. Repeating the same number is forgiven there
    /// (RFC 9112 §6.3); one is passed on.
    ///
    /// # Errors
    /// It is not a number, or not the same as before.
    pub fn content_length_of_answer(&mut self, value: &[u8]) -> Result<(), Wrong> {
        for value in value.split(|b| *b == b',') {
            let length = number(value.trim_ascii()).ok_or(Wrong::LengthNumber)?;
            if self.length.replace(length).is_some_and(|before| before != length) {
                return Err(Wrong::LengthTwice);
            }
        }
        Ok(())
    }

    /// Takes a Transfer-Encoding field; several are one list.
    ///
    /// # Errors
    /// `chunked` is repeated or not the last, or something is no coding at all.
    pub fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Wrong> {
        for coding in value.split(|b| *b == b',') {
            let coding = trim(coding);
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.coding = match (self.coding, chunked) {
                (coding, _) if !guards::on("encoding-list") => {
                    if chunked {
                        Coding::Chunked
                    } else {
                        coding
                    }
                }
                (Coding::Chunked | Coding::Both, true) => return Err(Wrong::EncodingTwice),
                (Coding::Chunked | Coding::Both, false) => return Err(Wrong::EncodingNotChunked),
                (Coding::None, true) => Coding::Chunked,
                (Coding::Other, true) => Coding::Both,
                (_, false) if is_known(coding) => Coding::Other,
                (_, false) => return Err(Wrong::EncodingNotChunked),
            };
        }
        Ok(())
    }

    fn is_chunked(self, version: Version) -> Result<bool, Wrong> {
        let both = self.coding != Coding::None && self.length.is_some();
        if both && guards::on("length-and-encoding") {
            return Err(Wrong::LengthAndEncoding);
        }
        let old = self.coding != Coding::None && version == Version::HTTP_10;
        if old && guards::on("encoding-old") {
            return Err(Wrong::EncodingOld);
        }
        match self.coding {
            Coding::None => Ok(false),
            Coding::Chunked => Ok(true),
            _ if !guards::on("encoding-known") => Ok(true),
            Coding::Other => Err(Wrong::EncodingNotChunked),
            Coding::Both => Err(Wrong::EncodingUnsupported),
        }
    }

    /// Where a request ends. A request body never ends with its connection.
    ///
    /// # Errors
    /// It cannot be said for certain.
    pub fn request(self, method: &Method, version: Version) -> Result<Framing, Wrong> {
        let framing = match (self.is_chunked(version)?, self.length) {
            (true, _) => Framing::Chunked,
            (false, None) if !guards::on("request-end") => Framing::UntilClose,
            (false, None | Some(0)) => Framing::Empty,
            (false, Some(n)) => Framing::Length(n),
        };
        match (method, framing) {
            (&Method::CONNECT, Framing::Empty) => Ok(Framing::Tunnel),
            (&Method::CONNECT | &Method::TRACE, f) if f != Framing::Empty => {
                Err(Wrong::BodyForbidden)
            }
            _ => Ok(framing),
        }
    }

    /// Where an answer to `method` ends.
    ///
    /// # Errors
    /// It cannot be said for certain.
    pub fn response(
        self,
        method: &Method,
        status: StatusCode,
        version: Version,
    ) -> Result<Framing, Wrong> {
        if status == StatusCode::SWITCHING_PROTOCOLS
            || (method == Method::CONNECT && status.is_success())
        {
            return Ok(Framing::Tunnel);
        }
        let chunked = self.is_chunked(version)?;
        let bodiless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if bodiless || method == Method::HEAD {
            return Ok(Framing::Empty);
        }
        Ok(match (chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::Empty,
            (false, Some(n)) => Framing::Length(n),
            (false, None) => Framing::UntilClose,
        })
    }
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    digits.then(|| value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// Optional white space is space and tab, nothing else.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Registered codings that weft could be asked to undo; what is not registered is not guessed at.
fn is_known(coding: &[u8]) -> bool {
    let known: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
    known.iter().any(|k| coding.eq_ignore_ascii_case(k))
}
