// SPDX-License-Identifier: Apache-2.0
//! The last good table as bytes: what a proxy keeps on disk and starts from when no server
//! answers. The proxy does the file I/O; this is only the form.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_model::{Resource, ResourceName, Root};

use crate::client::Upsert;
use crate::codec::{self, CodecError, Version};

/// A saved table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastGood {
    pub generation: u64,
    pub resources: Vec<Upsert>,
    pub notes: Notes,
}

/// What a proxy that asks for hosts by name must know to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    /// It holds a part of what it may see.
    pub partial: bool,
    /// Names that it asks for.
    pub asked: BTreeSet<Arc<str>>,
    /// Hosts that it gave back; they are in the file all the same.
    pub evicted: BTreeSet<Root>,
}

/// Resources of an older file, as they are written there.
#[derive(Debug, Default)]
pub struct Carried(Vec<Saved>);

/// Name, version, CBOR.
type Saved = (String, Version, serde_bytes_vec::Blob);

#[derive(Serialize, Deserialize)]
struct File {
    model_version: u32,
    generation: u64,
    resources: Vec<Saved>,
    #[serde(default)]
    notes: Notes,
}

/// A byte string, not a list of numbers.
mod serde_bytes_vec {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Debug)]
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
pub fn encode<N: Borrow<ResourceName>, R: Borrow<Resource>>(
    generation: u64,
    resources: impl IntoIterator<Item = (N, R)>,
    notes: &Notes,
    carried: Carried,
) -> Result<Bytes, CodecError> {
    let Carried(mut out) = carried;
    for (name, resource) in resources {
        let encoded = codec::encode(resource.borrow())?;
        let blob = serde_bytes_vec::Blob(encoded.bytes.to_vec());
        out.push((name.borrow().to_string(), encoded.version, blob));
    }
    let (model_version, notes) = (weft_model::MODEL_VERSION, notes.clone());
    codec::to_cbor(&File { model_version, generation, resources: out, notes })
}

/// Takes what a file says of some roots, to write it into the next one.
///
/// # Errors
/// When the bytes are no saved table.
pub fn carry(bytes: &[u8], roots: &BTreeSet<Root>) -> Result<Carried, CodecError> {
    let file: File = codec::from_cbor(bytes)?;
    let is_of = |name: &str| {
        let root = name.split_once('/').map_or(name, |(root, _)| root);
        Root::try_from(root.to_owned()).is_ok_and(|root| roots.contains(&root))
    };
    Ok(Carried(file.resources.into_iter().filter(|(name, ..)| is_of(name)).collect()))
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
            let resource = Ok(codec::decode(&blob.0).ok()?);
            Some(Upsert { name, version, bytes: blob.0.len(), resource })
        })
        .collect();
    Ok(LastGood { generation: file.generation, resources, notes: file.notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::Fail;

    fn saved(name: ResourceName, reason: &str) -> Upsert {
        let resource = Resource::Fail(Fail { reason: reason.into(), origin: None });
        let encoded = codec::encode(&resource).unwrap();
        let (version, bytes) = (encoded.version, encoded.bytes.len());
        Upsert { name, version, bytes, resource: Ok(resource) }
    }

    fn written(upserts: &[&Upsert], notes: &Notes, carried: Carried) -> Bytes {
        let resources = upserts.iter().map(|u| (&u.name, u.resource.as_ref().unwrap()));
        encode(7, resources, notes, carried).unwrap()
    }

    #[test]
    fn a_saved_table_reads_back_and_garbage_is_refused() {
        let upsert = saved(Root::host("a.b").own(), "why");
        let notes = Notes { partial: true, asked: ["a.b".into()].into(), ..Notes::default() };
        let bytes = written(&[&upsert], &notes, Carried::default());
        let back = decode(&bytes).unwrap();
        assert_eq!(back, LastGood { generation: 7, resources: vec![upsert], notes });
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode(b"not cbor").is_err());
    }

    #[test]
    fn what_is_carried_over_is_as_it_was() {
        let far = saved(Root::host("far").child("backend/80"), "far");
        let other = saved(Root::host("fart").own(), "another whose name begins alike");
        let first = written(&[&far, &other], &Notes::default(), Carried::default());
        let roots = BTreeSet::from([Root::host("far")]);
        let near = saved(Root::host("near").own(), "near");
        let notes = Notes { evicted: roots.clone(), ..Notes::default() };
        let second = written(&[&near], &notes, carry(&first, &roots).unwrap());
        assert_eq!(decode(&second).unwrap().resources, [far, near]);
        assert!(carry(b"not cbor", &roots).is_err());
    }

    /// A file of a release that knew no notes.
    #[test]
    fn an_older_file_reads() {
        #[derive(Serialize)]
        struct Old {
            model_version: u32,
            generation: u64,
            resources: Vec<Saved>,
        }
        let old = Old { model_version: 1, generation: 3, resources: Vec::new() };
        let back = decode(&codec::to_cbor(&old).unwrap()).unwrap();
        assert_eq!(back, LastGood { generation: 3, ..LastGood::default() });
    }
}
