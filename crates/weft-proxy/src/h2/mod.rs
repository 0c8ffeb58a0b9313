// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 (RFC 9113) around the h2 crate, which keeps streams, windows and header tables.
//! [`guard`] stands between it and the socket and counts frames by [`budget`], [`gather`] below it
//! makes one write of a turn's many, [`paths`] beside it sees what the
//! h2 crate hides of a path; [`server`] drives a client's connection and [`client`] one
//! exchange on an upstream's. Called by `http/serve.rs` and
//! `upstream/pool`; what a request means is no business of this module.
//!
//! A message that ends otherwise than by END_STREAM is broken, whatever code its reset has: what
//! was cut off is never passed on as whole.

pub mod begin;
pub mod budget;
pub mod client;
mod fields;
pub mod frames;
pub mod gather;
pub mod guard;
pub mod incoming;
pub mod paths;
mod pump;
pub mod server;
mod tunnel;

pub use client::Exchange;
pub use incoming::Incoming;

/// Streams of one client connection at a time.
pub const STREAMS_MAX: u32 = 128;
/// What may come of a stream while nobody reads it. Smaller ones stall big bodies, and a proxied
/// connection must never use adaptive windows (h2 then takes small frames for an attack).
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of a connection: that of all its streams, so that none waits for another's reader.
pub const WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Bytes of one request that wait for its upstream.
pub const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of one answer that wait for its client: it may read nothing and have many. One piece.
pub const ANSWER_BUFFER: usize = 16 * 1024;

#[cfg(test)]
pub(crate) mod tests;
