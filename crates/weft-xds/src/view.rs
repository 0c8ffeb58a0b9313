// SPDX-License-Identifier: Apache-2.0
//! What a node must hold: an immutable map that views of many nodes share structurally.

use std::sync::Arc;

use weft_model::{Resource, ResourceName};

use crate::codec::{CodecError, Encoded, Version, encode};
use bytes::Bytes;

/// One resource, encoded once and shared by every view and stream that has it.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    pub bytes: Bytes,
    /// The same as a value, for scoping and for people.
    pub resource: Arc<Resource>,
}

/// The desired resources of one node at a generation. Cloning is cheap; the difference of two
/// views that came from each other costs what changed, not what they hold.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub generation: u64,
    pub resources: imbl::OrdMap<ResourceName, Arc<Entry>>,
}

// === impl Entry ===

impl Entry {
    /// # Errors
    /// When the resource cannot be encoded.
    pub fn new(resource: Arc<Resource>) -> Result<Self, CodecError> {
        let Encoded { version, bytes } = encode(&resource)?;
        Ok(Self { version, bytes, resource })
    }
}

impl PartialEq for Entry {
    /// Equal bytes have equal versions.
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl Eq for Entry {}
