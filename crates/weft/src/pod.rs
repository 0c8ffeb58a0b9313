// SPDX-License-Identifier: Apache-2.0
//! The small roles that hold pods in namespaces, and the choice of how pods run.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use weft_agent::sandbox::{exec, holder, init};
use weft_kinds::world::PodsMode;

use crate::cli::Pods;

/// `weft pod-net`.
pub fn net(trial: bool) -> Result<()> {
    holder::run(trial).map_err(|why| anyhow!(why))
}

/// `weft pod-init`.
pub fn init(file: &Path) -> Result<()> {
    init::run(file).map_err(|why| anyhow!(why))
}

/// `weft pod-exec`: ends as the program ended.
pub fn exec(file: &Path) -> ExitCode {
    match exec::run(file) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("weft: {why}");
            ExitCode::from(exec::NOT_STARTED)
        }
    }
}

/// How pods run, by what was asked and what this system allows; says which, and why.
pub fn choose(asked: Pods) -> Result<PodsMode> {
    match asked {
        Pods::Process => Ok(PodsMode::Process),
        Pods::Namespace => match trial()? {
            None => Ok(PodsMode::Namespace),
            Some(why) => bail!(
                "pods cannot run in namespaces here: {why}; `--pods=process` runs them as plain \
                 processes"
            ),
        },
        Pods::Auto => Ok(match trial()? {
            None => {
                crate::say!("pods run in namespaces of their own (--pods=auto)");
                PodsMode::Namespace
            }
            Some(why) => {
                crate::say!("pods run as plain processes (--pods=auto): {why}");
                PodsMode::Process
            }
        }),
    }
}

/// Tries everything that a pod in namespaces needs; the reason when it cannot be had.
fn trial() -> Result<Option<String>> {
    let program = std::env::current_exe().context("the own program cannot be found")?;
    let tried = Command::new(program)
        .args(["pod-net", "--trial"])
        .stdin(Stdio::null())
        .output()
        .context("the trial of namespaces cannot be started")?;
    if tried.status.success() {
        return Ok(None);
    }
    let why = String::from_utf8_lossy(&tried.stderr);
    let why = why.trim().trim_start_matches("weft: ");
    let why = if why.is_empty() { "the trial ended without a word" } else { why };
    Ok(Some(why.to_owned()))
}
