// SPDX-License-Identifier: Apache-2.0
//! The `weft` binary: roles, configuration, command line, assembly.
fn main() {}
