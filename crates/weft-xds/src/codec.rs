// SPDX-License-Identifier: Apache-2.0
//! The bytes of a push: CBOR with named fields, and versions that are hashes of those bytes.
//!
//! Called by control's pusher (encode, once per change) and by the client machine (decode).
//! Unknown fields are refused where the model's types refuse them (`Match`, `Filter`), and
//! tolerated elsewhere; a resource that does not decode fails itself, never its transaction.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_base::limits::{CBOR_DEPTH_MAX, XDS_REASON_BYTES_MAX, XDS_REJECTED_MAX};
use weft_model::Resource;

use crate::guards;

/// What one form of a resource is told apart by: the first eight bytes of its SHA-256. The default
/// is of no form: for resources that came from elsewhere than a server.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

/// A resource in its wire form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub version: Version,
    pub bytes: Bytes,
}

/// Ends a transaction. The counts let a client notice that something before it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// What the transaction brings the client to: the revision of the World it was compiled from.
    pub generation: u64,
    /// Responses of the transaction, this one included.
    pub responses: u32,
    /// Resources in them, the commit not counted.
    pub resources: u32,
    /// Names in their lists of removed resources.
    pub removed: u32,
    /// The node holds a part of what it may see, and asks for the rest by name.
    #[serde(default)]
    pub partial: bool,
}

/// A resource that a proxy did not take, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejected {
    /// The resource's name as it was sent.
    pub name: String,
    /// Lower case, no full stop: what is wrong and what to do.
    pub reason: String,
    /// The sections of a listener that it is about, where it is not about all: the others are used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("cannot be encoded: {0}")]
    Encode(String),
    #[error(
        "is not a resource that this proxy understands: {0}; \
         run a proxy of the server's release, or remove what is new from the object"
    )]
    Decode(String),
    #[error("{0} bytes follow its end")]
    Trailing(usize),
}

/// # Errors
/// When a value of the model cannot be written as CBOR.
pub fn encode(resource: &Resource) -> Result<Encoded, CodecError> {
    let bytes = to_cbor(resource)?;
    Ok(Encoded { version: Version::of(&bytes), bytes })
}

/// # Errors
/// When the bytes are no resource, or have a field unknown to a type that refuses those.
pub fn decode(bytes: &[u8]) -> Result<Resource, CodecError> {
    from_cbor(bytes)
}

pub(crate) fn to_cbor<T: Serialize>(value: &T) -> Result<Bytes, CodecError> {
    let mut out = Vec::with_capacity(256);
    ciborium::into_writer(value, &mut out).map_err(|e| CodecError::Encode(e.to_string()))?;
    // It is kept for as long as the resource is there.
    out.shrink_to_fit();
    Ok(out.into())
}

pub(crate) fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut rest = bytes;
    let deepest = if guards::on("cbor-depth") { CBOR_DEPTH_MAX } else { usize::MAX };
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, deepest)
        .map_err(|e| CodecError::Decode(e.to_string()))?;
    match rest.len() {
        0 => Ok(value),
        n => Err(CodecError::Trailing(n)),
    }
}

/// Keeps a list of refusals within its limits; what is cut is said.
pub(crate) fn bound_rejected(mut rejected: Vec<Rejected>) -> Vec<Rejected> {
    let count = rejected.len();
    if count > XDS_REJECTED_MAX {
        rejected.truncate(XDS_REJECTED_MAX);
        let more = count - XDS_REJECTED_MAX;
        rejected.push(Rejected::new("", format!("and {more} more")));
    }
    for r in &mut rejected {
        // Too many to say: it is about all then.
        let said = r.sections.iter().map(|section| section.len() + 1).sum::<usize>();
        if said > XDS_REASON_BYTES_MAX {
            r.sections = Vec::new();
        }
        if r.reason.len() > XDS_REASON_BYTES_MAX {
            let cut = r.reason.floor_char_boundary(XDS_REASON_BYTES_MAX);
            r.reason.truncate(cut);
        }
    }
    rejected
}

// === impl Version ===

impl Version {
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        Self(digest.iter().take(8).fold(0, |acc, b| (acc << 8) | u64::from(*b)))
    }

    /// From its text form; `None` when it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u64::deserialize(d).map(Self)
    }
}

// === impl Rejected ===

impl Rejected {
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), reason: reason.into(), sections: Vec::new() }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.name, self.reason)
        }
    }
}

#[cfg(test)]
mod tests;
