// SPDX-License-Identifier: Apache-2.0
//! World to Mesh to what each proxy may see; pushes and statuses.

pub mod push;
