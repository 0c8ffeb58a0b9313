// SPDX-License-Identifier: Apache-2.0
//! L1: both ends of the xDS protocol as sans-I/O machines with thin gRPC shells.
//!
//! Control's pusher serves [`server::AdsService`] over a [`server::Source`]; the proxy runs
//! [`client::run`] and hands each [`Transaction`] to its tables. Envoy's delta discovery messages
//! carry weft's own model: type [`MODEL_TYPE_URL`], CBOR resources named `root/child`.
//!
//! **A push is a transaction.** One or more responses with nonces `T/0`, `T/1`, ...; the last one
//! carries the resource named `commit` ([`Commit`]), which counts what came before. The client
//! shows the proxy nothing before the commit, and answers once per transaction, on the commit's
//! nonce, when every worker has passed it: an ACK, or a NACK that lists the resources it refused
//! (the rest is applied; of the refused ones the last good form stays). The server sends the next
//! transaction only after that answer, so a slow proxy is sent the newest state, not a backlog.
//!
//! **Removing a root removes its children** on both ends.
//!
//! [`agent`] is the other protocol of the same port, `weft.agent.v1`: shells only.
//!
//! Architecture invariant: the machines (`client::state`, `server::state`) neither await nor read
//! a clock; this crate names no kind of any user and no socket option of the data path.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod agent;
pub mod client;
pub mod codec;
mod guards;
#[cfg(test)]
mod hostile;
pub mod last_good;
mod node;
#[cfg(test)]
mod pair;
pub mod server;
mod view;

pub use client::{Applied, Transaction, Upsert};
pub use codec::{Commit, Encoded, Rejected, Version};
pub use node::{NodeId, NodeInfo, NodeKind};
pub use view::{Asked, Entry, View};

/// Type of every subscription and response on weft's own streams.
pub const MODEL_TYPE_URL: &str = "weft.dev/model.v1";
/// Type of the resource that ends a transaction.
pub const COMMIT_TYPE_URL: &str = "weft.dev/commit.v1";
/// Type of a NACK's detail: the list of refused resources.
pub const REJECTED_TYPE_URL: &str = "weft.dev/rejected.v1";
/// Name of the resource that ends a transaction.
pub const COMMIT_NAME: &str = "commit";
/// Subscribes to what is in the node's scope: all of it or, beyond what a proxy holds, the part
/// that is always sent. Further hosts are subscribed by name, as `host:NAME` with any of their
/// names; one that means nothing is answered by its removal.
pub const WILDCARD: &str = "*";
