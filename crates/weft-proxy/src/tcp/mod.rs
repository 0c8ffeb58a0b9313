// SPDX-License-Identifier: Apache-2.0
//! Connections before and below HTTP: what arrives, what it speaks, and opaque bytes.

pub mod accept;
pub mod half_open;
pub mod hello;
pub mod joined;
pub mod named;
mod pipe;
pub mod preface;
pub mod prefixed;
pub mod proxy_header;
pub mod relay;
pub mod route;
pub mod sniff;
pub mod socket;
mod sys;
pub mod through;
