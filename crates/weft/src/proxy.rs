// SPDX-License-Identifier: Apache-2.0
//! `weft proxy`: one proxy process, driven by a control plane or by a file.
use anyhow::Result;
use crate::cli::ProxyArgs;
pub fn run(_args: &ProxyArgs) -> Result<()> { Ok(()) }
