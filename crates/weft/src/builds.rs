// SPDX-License-Identifier: Apache-2.0
//! Build commands that manifests declare (`weft.dev/build`): each distinct one is run once, with
//! its own output as progress, before the clock of the start begins.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::manifest::{BUILD, Manifest};

pub fn run(manifests: &[Manifest]) -> Result<()> {
    let mut done: Vec<(PathBuf, String)> = Vec::new();
    for manifest in manifests {
        let Some(command) = declared(manifest) else { continue };
        let key = (manifest.folder.clone(), command.to_owned());
        if done.contains(&key) {
            continue;
        }
        crate::say!("building: {command}");
        let folder = if key.0.as_os_str().is_empty() { PathBuf::from(".") } else { key.0.clone() };
        let status = Command::new("sh")
            .args(["-c", command])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("{}: cannot run {command:?}", manifest.place))?;
        if !status.success() {
            bail!(
                "{}: the build command of {} failed ({status}): {command}\n  mend it, or leave \
                 it out with `--no-build` when the programs are there",
                manifest.place,
                manifest.title()
            );
        }
        done.push(key);
    }
    Ok(())
}

fn declared(manifest: &Manifest) -> Option<&str> {
    let template = manifest.object.pointer("/spec/template/metadata/annotations");
    let of_template = template.and_then(|a| a.get(BUILD)).and_then(Value::as_str);
    manifest.annotation(BUILD).or(of_template)
}
