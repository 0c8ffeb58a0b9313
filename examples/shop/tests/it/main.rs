// SPDX-License-Identifier: Apache-2.0
//! The shop's programs as real processes on free ports, wired to each other without a mesh.

mod harness;
mod recovery;
mod services;
