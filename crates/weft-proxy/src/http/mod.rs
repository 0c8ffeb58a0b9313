// SPDX-License-Identifier: Apache-2.0
//! HTTP from the client's head to the last byte of the answer. [`phases`] is the order, written
//! once; the other files are its steps.

mod admit;
pub mod attempt;
pub mod body;
pub mod bounds;
pub mod cache;
pub mod clean;
pub mod copied;
pub mod grpc_web;
pub mod handshake;
pub mod headers;
pub mod interim;
pub mod limits;
pub mod made;
pub mod mirror;
pub mod normalise;
pub mod phases;
mod plan;
pub mod policy;
pub mod present;
pub mod recorded;
pub mod reply;
pub mod rewritten;
pub mod route;
pub mod serve;
pub mod session;
mod shed;
pub mod slashes;
pub mod trace;
pub mod trust;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;

/// An error with its causes, outermost first, without saying anything twice.
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let next = e.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = e.source();
    }
    text
}
