// SPDX-License-Identifier: Apache-2.0
//! The schemas' share of the server's memory (40 MB Pss in all). Alone in its binary, since it
//! reads the whole process's resident size.

use weft_kinds::kind::{KINDS, KindId};
use weft_kinds::{openapi, schema};

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    // Not the pages of files: the system takes those away and brings them back as it likes.
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).expect("the line is there");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn schemas_stay_small() {
    let empty = resident_kib();
    // What the shop uses.
    for kind in [
        KindId::Namespace,
        KindId::Service,
        KindId::Deployment,
        KindId::ReplicaSet,
        KindId::Pod,
        KindId::Gateway,
        KindId::HttpRoute,
        KindId::VirtualService,
        KindId::DestinationRule,
    ] {
        schema::stored(kind);
    }
    let shop = resident_kib().saturating_sub(empty);
    for row in KINDS {
        row.versions.iter().for_each(|v| drop(schema::of(row.id, v)));
    }
    let all = resident_kib().saturating_sub(empty);
    for (group, version) in openapi::group_versions() {
        openapi::document(group, version).expect("it is served");
    }
    let after = resident_kib().saturating_sub(empty);
    println!("shop {shop} KiB, all kinds {all} KiB, after every OpenAPI document {after} KiB");
    assert!(shop < 6 * 1024, "the shop's schemas take {shop} KiB");
    assert!(all < 16 * 1024, "all schemas take {all} KiB");
}
