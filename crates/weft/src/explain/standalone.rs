// SPDX-License-Identifier: Apache-2.0
//! `weft explain -f` on what a proxy without a control plane serves: its own file, or a bootstrap
//! of Envoy. The table is the one that `weft proxy` would make.

use std::path::PathBuf;

use anyhow::Result;
use weft_base::clock::Clock;
use weft_proxy::explain::explain;
use weft_proxy::table::Builder;

use super::{Answered, Question};
use crate::proxy::{Loaded, Source};

/// What the files are, when they are one that a proxy serves by itself.
///
/// # Errors
/// What is wrong with it.
pub fn loaded(files: &[PathBuf]) -> Result<Option<Loaded>> {
    let [file] = files else { return Ok(None) };
    let Some(source) = Source::of(file) else { return Ok(None) };
    source.load().map(Some)
}

/// Explains by what the file says.
///
/// # Errors
/// When it has no listener that is meant, or the question is about a workload: it has none.
pub fn answer(loaded: Loaded, question: &Question) -> Result<Answered, String> {
    if let Some(from) = &question.from {
        return Err(format!(
            "the file is one proxy's own, which knows no workloads, so nothing is asked from \
             {from}; leave --from out, or say with -f what the mesh's objects are"
        ));
    }
    let asked = super::read(question)?;
    let mut builder = Builder::new(1, Clock::system(), "standalone".into());
    let upserts = loaded.resources.into_iter().map(|(name, resource)| (name, Ok(resource)));
    let (table, _) = builder.apply(1, upserts.collect(), &[]);
    let (place, request) = asked.at_gateway(&table)?;
    let explanation = explain(&table, &place, &request);
    Ok(Answered { proxy: "standalone".into(), explanation })
}
