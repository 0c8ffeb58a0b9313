// SPDX-License-Identifier: Apache-2.0
//! The last good table as bytes: what a proxy keeps on disk and starts from when no server
//! answers. The proxy does the file I/O; this is only the form.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_model::{Resource, ResourceName};

use crate::codec::{self, CodecError, Version};

/// A saved table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastGood {
    pub generation: u64,
    pub resources: Vec<(ResourceName, Version, Resource)>,
}

#[derive(Serialize, Deserialize)]
struct File {
    model_version: u32,
    generation: u64,
    /// Name, version, CBOR.
    resources: Vec<(String, Version, serde_bytes_vec::Blob)>,
}

/// A byte string, not a list of numbers.
mod serde_bytes_vec {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub struct Blob(pub Vec<u8>);

    impl Serialize for Blob {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_bytes(&self.0)
        }
    }

    struct Reader;

    impl de::Visitor<'_> for Reader {
        type Value = Blob;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a byte string")
        }

        fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Blob, E> {
            Ok(Blob(v.to_vec()))
        }

        fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Blob, E> {
            Ok(Blob(v))
        }
    }

    impl<'de> Deserialize<'de> for Blob {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            d.deserialize_byte_buf(Reader)
        }
    }
}

/// # Errors
/// When a value of the model cannot be written as CBOR.
pub fn encode<'a>(
    generation: u64,
    resources: impl IntoIterator<Item = (&'a ResourceName, &'a Resource)>,
) -> Result<Bytes, CodecError> {
    let mut out = Vec::new();
    for (name, resource) in resources {
        let encoded = codec::encode(resource)?;
        let blob = serde_bytes_vec::Blob(encoded.bytes.to_vec());
        out.push((name.to_string(), encoded.version, blob));
    }
    let file = File { model_version: weft_model::MODEL_VERSION, generation, resources: out };
    codec::to_cbor(&file)
}

/// Reads a saved table. What does not decode any more (a file of another release) is left out:
/// the server sends it again.
///
/// # Errors
/// When the bytes are no such table at all.
pub fn decode(bytes: &[u8]) -> Result<LastGood, CodecError> {
    let file: File = codec::from_cbor(bytes)?;
    let resources = file
        .resources
        .into_iter()
        .filter_map(|(name, version, blob)| {
            let name = ResourceName::try_from(name).ok()?;
            Some((name, version, codec::decode(&blob.0).ok()?))
        })
        .collect();
    Ok(LastGood { generation: file.generation, resources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::{Fail, Root};

    #[test]
    fn a_saved_table_reads_back_and_garbage_is_refused() {
        let name = Root::host("a.b").own();
        let resource = Resource::Fail(Fail { reason: "why".into(), origin: None });
        let bytes = encode(7, [(&name, &resource)]).unwrap();
        let back = decode(&bytes).unwrap();
        let version = codec::encode(&resource).unwrap().version;
        assert_eq!(back, LastGood { generation: 7, resources: vec![(name, version, resource)] });
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode(b"not cbor").is_err());
    }
}
