// SPDX-License-Identifier: Apache-2.0
//! The HTTP/1 codec (RFC 9110, 9112). [`head`], [`framing`] and [`body`] decide what bytes mean
//! and await nothing; [`server`] and [`client`] move bytes for one connection each. Called by
//! `http/serve.rs` and `upstream/pool`.
//!
//! What is ambiguous about where a message ends is never repaired: a request is refused with a
//! sentence of [`wrong`], an answer is a bad gateway, and the connection ends. Heads and bodies
//! are passed on as slices of what was read; an idle connection holds no buffer.

pub(crate) mod alarm;
pub mod body;
pub mod buffers;
pub mod client;
pub(crate) mod courtesy;
pub mod encode;
pub mod framing;
pub mod head;
pub mod incoming;
mod names;
mod outbox;
pub mod server;
pub mod upgraded;
mod usual;
pub mod wrong;

pub use client::Exchange;
pub use incoming::Incoming;
pub use upgraded::{Handover, Upgraded};
pub use wrong::Wrong;

#[cfg(test)]
mod tests;
