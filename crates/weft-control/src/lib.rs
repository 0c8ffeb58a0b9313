// SPDX-License-Identifier: Apache-2.0
//! World to Mesh to what each proxy may see; pushes and statuses.
//!
//! [`compiler::Compiler`] turns World deltas into a Mesh and statuses; [`mesh::Mesh`] says which
//! proxy sees what; [`push::Pusher`] keeps proxies there. Architecture invariant: the input is
//! World; no store, no door, and no time or randomness in compiling.

pub mod compile;
pub mod compiler;
pub mod mesh;
pub mod push;
pub mod status;
