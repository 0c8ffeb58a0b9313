// SPDX-License-Identifier: Apache-2.0
//! What cannot be said in safe Rust, each in a file with its reasons. Called by the rooms that
//! need it; decides nothing.

pub mod pooled;
pub mod program;
pub mod value;
