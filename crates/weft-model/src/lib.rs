// SPDX-License-Identifier: Apache-2.0
//! The mesh model: plain data that control compiles, pushes carry, proxies run and `weft explain`
//! reads, and the *pure decisions* over it ([`decide`]). No I/O, no kind of any user's dialect.
//!
//! Architecture invariant: everything here is `Clone + Eq` data with serde; fractions are basis
//! points; unknown fields are refused in what decides who may do what (`Match`, `Filter`,
//! identities) and tolerated elsewhere.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

pub mod access;
pub mod backend;
pub mod cache;
pub mod clients;
pub mod connections;
pub mod decide;
pub mod endpoint;
pub mod features;
mod guards;
pub mod listener;
pub mod policy;
pub mod resource;
pub mod route;
pub mod sources;
pub mod timeouts;
pub mod tls;
pub mod traffic;

pub use access::*;
pub use backend::*;
pub use cache::*;
pub use clients::*;
pub use connections::*;
pub use endpoint::*;
pub use features::*;
pub use listener::*;
pub use policy::*;
pub use resource::*;
pub use route::*;
pub use sources::*;
pub use timeouts::*;
pub use tls::*;
pub use traffic::*;

/// Version of this model on the wire. A server emits this one and the one before.
pub const MODEL_VERSION: u32 = 1;
