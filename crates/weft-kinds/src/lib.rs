// SPDX-License-Identifier: Apache-2.0
//! The users' nouns: Kubernetes, Gateway API, Istio and Consul records, the schema engine, World.

pub mod apply;
pub mod builtin;
pub mod cel;
pub mod check;
pub mod codes;
pub mod cron;
pub mod decode;
mod guards;
pub mod kind;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod schema;
pub mod views;
pub mod world;
