// SPDX-License-Identifier: Apache-2.0
//! One program for all fuzz targets, so that one build and one link serve them. `run.sh` starts
//! it; the target's name is in `WEFT_FUZZ_TARGET`. A panic is a find.
#![no_main]

use std::sync::OnceLock;

mod consul;
mod h1;
mod kube;
mod proofs;
mod wire;
mod words;

/// Every target, with what it reads.
const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("h1_request", h1::request),
    ("h1_response", h1::response),
    ("h1_round_trip", h1::round_trip),
    ("path", h1::path),
    ("authority", h1::authority),
    ("sniff", wire::sniff),
    ("client_hello", wire::client_hello),
    ("proxy_header", wire::proxy_header),
    ("h2_frames", wire::h2_frames),
    ("grpc_web", wire::grpc_web),
    ("small_headers", wire::small_headers),
    ("dns_message", wire::dns_message),
    ("model_cbor", wire::model_cbor),
    ("xds_delta", wire::xds_delta),
    ("xds_request", wire::xds_request),
    ("kinds_yaml", words::kinds_yaml),
    ("kinds_protobuf", words::kinds_protobuf),
    ("consul_line", consul::line),
    ("consul_filter", words::consul_filter),
    ("consul_body", words::consul_body),
    ("consul_query", words::consul_query),
    ("permissions", words::permissions),
    ("kube_words", kube::words),
    ("spdy", kube::spdy),
    ("proofs", proofs::any),
];

fn target() -> fn(&[u8]) {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("WEFT_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(n, _)| *n == name);
        let all = || TARGETS.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(" ");
        found.unwrap_or_else(|| panic!("WEFT_FUZZ_TARGET is none of: {}", all())).1
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
