// SPDX-License-Identifier: Apache-2.0
//! weft's own configuration file.

use std::path::Path;

use anyhow::{Result, anyhow};
use weft_proxy::ingest::source;

use super::standalone::Loaded;

pub fn load(path: &Path, text: &str) -> Result<Loaded> {
    let listed = source::from_yaml(text).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    let resources = listed.upserts.into_iter().filter_map(|u| Some((u.name, u.resource.ok()?)));
    Ok(Loaded { resources: resources.collect(), ..Loaded::default() })
}
