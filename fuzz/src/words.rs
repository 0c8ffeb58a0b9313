// SPDX-License-Identifier: Apache-2.0
//! What people and their programs write: objects, Consul's expressions and bodies, rules.

use weft_kinds::decode::{Format, documents, kind_of};
use weft_server::consul::fuzz;

pub fn kinds_yaml(data: &[u8]) {
    let (documents, _) = documents(data, Format::Yaml);
    for document in documents {
        drop(kind_of(&document.value));
    }
}

pub fn kinds_protobuf(data: &[u8]) {
    drop(weft_kinds::protobuf::decode(data));
}

pub fn consul_filter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    fuzz::filter(text);
}

/// A body, an archive to restore from, and the keys of somebody's tokens.
pub fn consul_body(data: &[u8]) {
    fuzz::body(data);
    fuzz::archive(data);
    fuzz::keys(data);
}

pub fn consul_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    fuzz::query(text);
}

pub fn permissions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    fuzz::rules(text);
}
