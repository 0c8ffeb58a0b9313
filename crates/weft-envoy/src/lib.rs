// SPDX-License-Identifier: Apache-2.0
//! L2: Envoy v3 at the border. Today one direction: a bootstrap file (JSON or YAML) becomes the
//! mesh model ([`bootstrap`]), for `weft proxy --envoy` and `weft explain -f`.
//!
//! Strict: a field that weft does not do as Envoy does is listed with its path, all of them at
//! once, and nothing is guessed. What has no meaning for one proxy (names for statistics, sizes of
//! buffers) is known and passed over; the lists of those names stand beside the code that reads
//! the message.
//!
//! [`read`] is also how `weft proxy -c` reads its own file: the same strictness, the same words.
//!
//! Architecture invariant: pure but for the files that a bootstrap names, which are read through
//! the caller's [`Files`].
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod ingest;
pub mod read;

pub use ingest::{Bootstrap, DnsSet, Files, Log, Resolved, bootstrap};
pub use read::Unreadable;

#[cfg(test)]
mod tests;
