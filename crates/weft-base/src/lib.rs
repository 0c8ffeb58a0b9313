// SPDX-License-Identifier: Apache-2.0
//! L0: the words and weights that every plane shares: names, limits, clock, seeded randomness,
//! task groups and drain, the snapshot cell, metric cells, field-path errors, and where sockets
//! come from.
//!
//! Architecture invariant: this crate knows no kind and no protocol that others speak.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

pub mod clock;
pub mod error;
pub mod issue;
pub mod limits;
pub mod lines;
pub mod metrics;
pub mod name;
pub mod pod_network;
pub mod rng;
pub mod snapshot;
pub mod sockets;
pub mod task;
