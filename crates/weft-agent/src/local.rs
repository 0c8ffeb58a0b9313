// SPDX-License-Identifier: Apache-2.0
//! What a machine's own Consul door needs besides the door: the last good answers of the server
//! ([`kept`]), what the operator's files define ([`files`]), and the scripts that only those may
//! name ([`script`]).
//!
//! Put together by `weft agent`. Nothing here speaks to a server.

pub mod files;
pub mod kept;
pub mod script;
