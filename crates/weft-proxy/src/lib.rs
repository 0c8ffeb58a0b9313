// SPDX-License-Identifier: Apache-2.0
//! L2: the data plane. Sockets → tables → upstreams.
//!
//! [`Proxy`] runs one sidecar or gateway: it takes transactions of the mesh model
//! ([`ingest`]), makes immutable tables of them ([`table`]), and serves requests by them
//! ([`http::phases`] is the order in which one is handled). Workers are threads that share no
//! lock ([`worker`]).
//!
//! Architecture invariant: no kind of any user is named here, only the model; codecs are named in
//! `http/serve.rs` and `upstream/pool` only (the control side's admin doors
//! aside).
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod capture;
pub mod config;
mod descriptors;
pub mod explain;
pub mod fuzz;
mod guards;
pub mod h1;
pub mod h2;
pub mod handover;
pub mod http;
pub mod ingest;
pub mod listen;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod networks;
pub mod observe;
pub mod on_demand;
pub mod overload;
pub mod pinned;
pub mod run;
pub mod sys;
pub mod table;
pub mod tcp;
pub mod udp;
pub mod upstream;
pub mod worker;

pub use config::{Capture, NodeId, NodeKind, ProxyConfig};
pub use ingest::source::{Feed, feed};
pub use run::{Addresses, Proxy, StartError};

#[cfg(test)]
mod tests;
