// SPDX-License-Identifier: Apache-2.0
//! L1: who is who. SPIFFE names, the certificate authority in the data directory, SVIDs and how
//! they are renewed, the TLS configurations of the mesh and of the doors, and tokens.
//!
//! Called by the proxy (mesh TLS), the agent (hands SVIDs out), the server (signs, doors) and the
//! xDS shells. Architecture invariant: it never decides *what* an identity may do, never opens a
//! listening socket, and trusts no name that a request brings along.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod ca;
pub mod dates;
mod guards;
pub mod handed;
pub mod join;
pub mod leaf;
pub mod outside;
pub mod permission;
pub mod provider;
pub mod seal;
pub mod spiffe;
pub mod svid;
pub mod tls;
pub mod token;
pub mod uds;
pub mod verify;

pub use ca::Authority;
pub use leaf::Leaf;
pub use spiffe::{SpiffeId, TrustDomain};
pub use svid::{Bundle, Svid};
pub use tls::{Alpn, ClientTls, ServerTls};
pub use verify::Expected;
