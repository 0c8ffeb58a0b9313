// SPDX-License-Identifier: Apache-2.0
//! What is known about traffic afterwards: flags, one record per request, metrics, access log,
//! and the admin doors that show them.

pub mod access_log;
pub mod admin;
pub mod certificates;
pub mod exposition;
pub mod facts;
pub mod flags;
pub mod format;
pub mod metrics;
pub mod quick;
pub mod record;
