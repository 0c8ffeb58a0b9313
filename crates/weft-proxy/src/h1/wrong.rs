// SPDX-License-Identifier: Apache-2.0
//! Everything that can be wrong with an HTTP/1 message, as a table: the status that a client is
//! answered, and the sentence for it. Pure.

use thiserror::Error;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("{}", self.sentence())]
pub enum Wrong {
    EmptyLines,
    BareLf,
    BareCr,
    Nul,
    RequestLine,
    Method,
    Target,
    Fragment,
    TargetTooLong,
    Version,
    StatusLine,
    HeaderName,
    SpaceBeforeColon,
    NoColon,
    Folded,
    HeaderValue,
    HeadTooLarge,
    TooManyHeaders,
    LengthTwice,
    LengthNumber,
    LengthAndEncoding,
    EncodingNotChunked,
    EncodingTwice,
    EncodingUnsupported,
    EncodingOld,
    BodyForbidden,
    Expectation,
    Connection,
    ChunkSize,
    ChunkOverflow,
    ChunkExtension,
    ChunkLine,
    ChunkEnd,
    TrailerForbidden,
    TrailersTooLarge,
    Truncated,
    HeadTruncated,
    Switched,
    Protocol,
    HeadTimeout,
}

/// What is wrong, the status a client is answered, and the sentence.
#[rustfmt::skip]
pub const WRONGS: &[(Wrong, u16, &str)] = &[
    (Wrong::EmptyLines, 400, "more than one empty line stands before the request"),
    (Wrong::BareLf, 400, "a line ends without carriage return"),
    (Wrong::BareCr, 400, "a carriage return stands within a line"),
    (Wrong::Nul, 400, "the head has a zero byte in it"),
    (Wrong::RequestLine, 400, "the first line is not method, target and version, one space apart"),
    (Wrong::Method, 400, "the method is not a token of at most 32 characters"),
    (Wrong::Target, 400, "the request target is not of a form that its method may have"),
    (Wrong::Fragment, 400, "the request target has a fragment, which never leaves a client"),
    (Wrong::TargetTooLong, 414, "the request target is too long"),
    (Wrong::Version, 505, "the version is neither HTTP/1.1 nor HTTP/1.0"),
    (Wrong::StatusLine, 400, "the first line is not version, status (100 to 599) and reason"),
    (Wrong::HeaderName, 400, "a header's name is empty or not a token"),
    (Wrong::SpaceBeforeColon, 400, "white space stands between a header's name and its colon"),
    (Wrong::NoColon, 400, "a header has no colon"),
    (Wrong::Folded, 400, "a header is folded over lines"),
    (Wrong::HeaderValue, 400, "a header's value has a control character in it"),
    (Wrong::HeadTooLarge, 431, "the head is too large"),
    (Wrong::TooManyHeaders, 431, "there are too many headers"),
    (Wrong::LengthTwice, 400, "Content-Length is there more than once"),
    (Wrong::LengthNumber, 400, "Content-Length is not a number of at most 18 digits"),
    (Wrong::LengthAndEncoding, 400, "both Content-Length and Transfer-Encoding are there"),
    (Wrong::EncodingNotChunked, 400, "Transfer-Encoding does not end with one 'chunked'"),
    (Wrong::EncodingTwice, 400, "Transfer-Encoding says 'chunked' more than once"),
    (Wrong::EncodingUnsupported, 501, "Transfer-Encoding has a coding besides 'chunked'"),
    (Wrong::EncodingOld, 400, "HTTP/1.0 has no Transfer-Encoding"),
    (Wrong::BodyForbidden, 400, "its method may not have a body"),
    (Wrong::Expectation, 417, "Expect asks for something else than 100-continue"),
    (Wrong::Connection, 400, "Connection is not a list of tokens"),
    (Wrong::ChunkSize, 400, "a chunk's size is not a hexadecimal number"),
    (Wrong::ChunkOverflow, 400, "a chunk's size has more than 15 digits"),
    (Wrong::ChunkExtension, 400, "a chunk's size line has something odd behind the number"),
    (Wrong::ChunkLine, 400, "a chunk's size line is longer than 64 bytes"),
    (Wrong::ChunkEnd, 400, "a chunk is not followed by the end of a line"),
    (Wrong::TrailerForbidden, 400, "a trailer has a name that only headers may have"),
    (Wrong::TrailersTooLarge, 400, "the trailers are too large"),
    (Wrong::Truncated, 400, "the connection ended within a body"),
    (Wrong::HeadTruncated, 400, "the connection ended within a head"),
    (Wrong::Switched, 400, "protocols were switched though nobody asked for it"),
    (Wrong::Protocol, 501, "it asks for a protocol that is not spoken here"),
    (Wrong::HeadTimeout, 408, "the head was not complete in time"),
];

impl Wrong {
    /// What a client is answered.
    pub fn status(self) -> u16 {
        WRONGS.iter().find(|(w, ..)| *w == self).map_or(400, |(_, status, _)| *status)
    }

    pub fn sentence(self) -> &'static str {
        WRONGS.iter().find(|(w, ..)| *w == self).map_or("", |(.., sentence)| sentence)
    }
}
