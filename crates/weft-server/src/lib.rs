// SPDX-License-Identifier: Apache-2.0
//! The doors: Kubernetes-style HTTP, Consul HTTP, DNS, admin.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

pub mod admin;
pub mod consul;
pub mod dns;
pub mod drain;
mod guards;
mod json;
pub mod k8s;
pub mod meter;
pub mod serve;
pub mod tokens;
