// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask budgets`: what the project promised to stay below, measured now.
//!
//! Prints one row per budget; `--build` also times a clean release build in a folder of its own.
//! Timed rows inform; they never fail a test run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

const BUILD_SECONDS_MAX: f64 = 480.0;
const DIST_MB_MAX: f64 = 30.0;

pub fn run(root: &Path, args: &[String]) -> Result<()> {
    println!("| budget | limit | measured |\n|---|---|---|");
    if args.iter().any(|a| a == "--build") {
        build(root)?;
    }
    dist(root)?;
    crate::budgets::shop(root)
}

#[allow(clippy::disallowed_methods)] // a chore that measures reads the clock
fn build(root: &Path) -> Result<()> {
    let target = root.join("target/budget-build");
    let _ = fs::remove_dir_all(&target);
    let start = Instant::now();
    cargo(root, &["build", "--release", "-p", "weft"], &target)?;
    let seconds = start.elapsed().as_secs_f64();
    row("clean release build", format!("{BUILD_SECONDS_MAX:.0} s"), format!("{seconds:.0} s"));
    fs::remove_dir_all(&target).context("remove the measured build")
}

fn dist(root: &Path) -> Result<()> {
    crate::dist::run(root, &[])?;
    let size = fs::metadata(crate::dist::program(root))?.len();
    #[allow(clippy::cast_precision_loss)] // megabytes with one digit
    let mb = size as f64 / 1e6;
    row("stripped dist binary", format!("{DIST_MB_MAX:.0} MB"), format!("{mb:.1} MB"));
    Ok(())
}

/// Starts the shop with the dist binary and asks it for its own figures.
pub fn shop(root: &Path) -> Result<()> {
    let script = root.join("tests/shop_budget.py");
    let status = Command::new("python3")
        .arg(&script)
        .arg(crate::dist::program(root))
        .current_dir(root)
        .status()
        .with_context(|| format!("python3 runs {}", script.display()))?;
    if !status.success() {
        bail!("{} failed; its output says why", script.display());
    }
    Ok(())
}

fn cargo(root: &Path, args: &[&str], target: &Path) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root);
    command.env("CARGO_TARGET_DIR", target);
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

fn row(name: &str, limit: String, measured: String) {
    println!("| {name} | ≤ {limit} | {measured} |");
}
