// SPDX-License-Identifier: Apache-2.0
//! Bytes of model version 1. They are what an older release sends and a newer one must read, so a
//! change of the model may add to them and never turn them into something else.
//!
//! While version 1 is unreleased, `UPDATE_GOLDEN=1` writes them anew; afterwards a change that
//! needs it is a new version with a directory of its own, and these stay as they are.

use std::fs;
use std::path::PathBuf;

use weft_model::{MODEL_VERSION, Resource};

use crate::samples;

fn fixture(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join(format!("tests/fixtures/v{MODEL_VERSION}/{name}.cbor"))
}

fn encoded(resource: &Resource) -> Vec<u8> {
    let mut out = Vec::new();
    ciborium::into_writer(resource, &mut out).unwrap();
    out
}

#[test]
fn todays_bytes_decode_to_the_model_and_encode_to_the_same() {
    for (name, resource) in samples::all() {
        let path = fixture(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, encoded(&resource)).unwrap();
        }
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let decoded: Resource = ciborium::from_reader(bytes.as_slice()).unwrap();
        assert_eq!(decoded, resource, "{name} means something else now");
        assert_eq!(encoded(&decoded), bytes, "{name} is written in another way now");
    }
}

#[test]
fn every_fixture_is_read() {
    let names: Vec<String> = samples::all().into_iter().map(|(n, _)| n.to_owned()).collect();
    let directory = fixture("x");
    for entry in fs::read_dir(directory.parent().unwrap()).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(names.contains(&name), "{} has no sample", file.display());
    }
}
