// SPDX-License-Identifier: Apache-2.0
//! From manifests to the Mesh, through the crate's public doors. One binary: it links once.

mod client_tls;
mod common;
mod golden;
mod hostile;
mod istio_fields;
mod late;
mod listener_sets;
mod on_demand;
mod peer_authentication;
mod plane;
mod rule_clients;
mod rule_layers;
mod service_entry;
mod set_limits;
mod virtual_service;
mod who_follows_what;
