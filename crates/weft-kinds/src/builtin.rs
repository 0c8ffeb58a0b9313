// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes' API server adds to and asks of its own kinds by code rather than by schema:
//! [`complete`] fills in its defaults, [`judge`] holds objects against its rules.
//!
//! Called by the door after the schema's own pass. Pure; allocations that need the store (cluster
//! addresses, uids) are the registry's.

mod defaults;
mod rules;
mod workloads;

pub use defaults::complete;
pub use rules::judge;

#[cfg(test)]
mod tests;
