// SPDX-License-Identifier: Apache-2.0
//! The product service's gRPC messages and stubs, generated from `proto/` by
//! `tests/codegen.rs` and committed. No hand logic.
#![allow(missing_debug_implementations, clippy::all)]

include!("gen/shop.product.v1.rs");

/// What server reflection answers from.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("gen/shop.product.v1.bin");
