// SPDX-License-Identifier: Apache-2.0
//! Connections before and below HTTP: what arrives, what it speaks, and opaque bytes.

pub mod accept;
pub mod joined;
pub mod prefixed;
pub mod relay;
pub mod route;
pub mod sniff;
