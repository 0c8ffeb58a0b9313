// SPDX-License-Identifier: Apache-2.0
//! The shop: three small services, each with its own database, and a load client that checks
//! that no order is lost and no stock appears or disappears.
//!
//! These are ordinary programs. They know nothing of weft: they read their addresses from the
//! environment, speak plain HTTP and gRPC, and stop when they get SIGTERM.

pub mod config;
pub mod db;
pub mod headers;
pub mod load;
pub mod order;
pub mod pb;
pub mod product;
pub mod server;
pub mod user;
