// SPDX-License-Identifier: Apache-2.0
//! Push: from compiled resources to what each connected proxy holds, and back: what it answered.
//!
//! The compile loop calls [`Pusher::submit`] with what changed; `weft-xds` serves the pusher as
//! its [`weft_xds::server::Source`]; doors and controllers read [`Pusher::status`] and wait with
//! [`Pusher::wait_acked`] and [`Pusher::inbound_acked`].
//!
//! Each resource is encoded once. A node's view is an immutable map that shares its structure
//! with the other nodes' views, so that one changed endpoint costs one small resource and one
//! insertion per node that sees it. A node that may see more than a proxy holds is sent a part and
//! asks for the rest by name (`hold`). It compiles nothing and opens no socket.

mod book;
mod debounce;
mod delta;
mod driver;
mod hold;
mod node;
mod nodes;
mod pusher;
mod status;
#[cfg(test)]
mod tests;

pub use book::{NodeScope, Nodes};
pub use debounce::Debounce;
pub use delta::{Delta, Rescope};
pub use driver::Driver;
pub use hold::HoldLimits;
pub use nodes::MeshNodes;
pub use pusher::{Laggards, Pusher};
pub use status::{Metrics, ProxyStatus, Refused};
