// SPDX-License-Identifier: Apache-2.0
//! Whole proxies against real peers over loopback sockets. `bed` is the bench; each other file is
//! one trait of the data plane.

mod admin;
mod balance;
pub mod bed;
mod black_hole;
mod bulk;
mod cache;
mod captured;
mod captured_inbound;
mod dns;
mod drain;
mod explained;
mod explained_arrived;
mod explained_live;
mod explained_refused;
mod explained_tls;
mod faults;
mod grpc;
mod introduced;
mod istio;
mod l4;
mod mtls;
mod noticed;
mod observed;
mod on_demand;
mod outside;
mod panics;
mod patience;
mod policies;
mod pooled;
mod protection;
mod regressions;
mod retry;
mod routing;
mod rules;
mod share;
mod slashes;
mod swaps;
mod tcp;
mod tunnels;
mod upgrades;
mod wire;
mod workers;
