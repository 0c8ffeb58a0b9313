// SPDX-License-Identifier: Apache-2.0
//! The model's encoding as it is on the wire today, and what proxies that lack something are told.

mod encoding;
mod features;
mod samples;
