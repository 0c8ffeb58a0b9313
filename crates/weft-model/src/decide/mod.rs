// SPDX-License-Identifier: Apache-2.0
//! The pure decisions over the model: which section, route and rule, which rewrite, which retry,
//! which endpoints and whose turn. The proxy runs these; `weft explain` runs the very same.
//! They never read a clock, a socket or a random source.

mod access;
mod balance;
mod capture;
mod explain;
mod host;
mod index;
mod limit;
mod policy;
mod retry;
mod rewrite;
mod route;

pub use access::*;
pub use balance::*;
pub use capture::*;
pub use explain::*;
pub use host::*;
pub use index::Routes;
pub use limit::*;
pub use policy::*;
pub use retry::*;
pub use rewrite::*;
pub use route::*;

#[cfg(test)]
mod tests;
