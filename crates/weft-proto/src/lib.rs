// SPDX-License-Identifier: Apache-2.0
//! L0: generated prost and tonic code, committed, so that building weft needs no `protoc`.
//!
//! Called by `weft-xds` (discovery), the agent link (`weft.agent.v1`) and gRPC health checks.
//! Architecture invariant: no hand logic here. `cargo xtask codegen` writes `src/gen` from
//! `proto/`; `cargo xtask codegen --check` fails when they differ.

/// The generated modules, one per proto package.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::disallowed_methods,
    missing_debug_implementations,
    rustdoc::all
)]
#[rustfmt::skip]
mod r#gen;

pub use r#gen::*;
