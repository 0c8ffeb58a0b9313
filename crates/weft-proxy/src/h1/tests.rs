// SPDX-License-Identifier: Apache-2.0
//! What the codec does with bytes: a table of verdicts from the RFCs, and both drivers at work.

mod client;
mod cut;
mod properties;
mod server;
mod table;
mod usual;
