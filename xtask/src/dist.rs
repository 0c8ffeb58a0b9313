// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask dist`: the program as it is shipped, `target/dist/weft`.
//!
//! The compiler is guided by a profile of weft at work (profile-guided optimisation: what runs
//! often is laid out and inlined for speed, what never ran for size):
//!
//! 1. a build that counts what runs, under `target/guide`,
//! 2. the loads of `cargo xtask bench` against it, a few seconds each,
//! 3. the build that is shipped, with those counts.
//!
//! `--plain` leaves the guide out: the same code in half the time, with a fourth more instructions
//! for each request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::bench;

pub fn run(root: &Path, args: &[String]) -> Result<()> {
    match args {
        [] => guided(root),
        [only] if only == "--plain" => build(root, &root.join("target"), None),
        _ => bail!("usage: cargo xtask dist [--plain]"),
    }
}

/// The program as it is shipped.
pub fn program(root: &Path) -> PathBuf {
    root.join("target/dist/weft")
}

fn guided(root: &Path) -> Result<()> {
    let tool = merging_tool()?;
    let guide = root.join("target/guide");
    let counts = guide.join("counts");
    eprintln!("dist: 1 of 3: the build that counts what runs");
    build(root, &guide, Some(&format!("-Cprofile-generate={}", counts.display())))?;
    eprintln!("dist: 2 of 3: the loads that it counts");
    let _ = fs::remove_dir_all(&counts);
    bench::train(root, &guide.join("dist/weft"), &counts.join("weft-%4m.profraw"))?;
    let profile = merged(&tool, &guide, &counts)?;
    eprintln!("dist: 3 of 3: the build that is shipped");
    build(root, &root.join("target"), Some(&format!("-Cprofile-use={}", profile.display())))
}

/// The counts in one file. Its name tells them from others: the flag alone makes cargo build anew.
fn merged(tool: &Path, guide: &Path, counts: &Path) -> Result<PathBuf> {
    let made = guide.join("weft.profdata");
    called(Command::new(tool).args(["merge", "-o"]).arg(&made).arg(counts), "merge the counts")?;
    let mut hasher = DefaultHasher::new();
    fs::read(&made)?.hash(&mut hasher);
    let named = guide.join(format!("weft-{:016x}.profdata", hasher.finish()));
    fs::rename(&made, &named)?;
    Ok(named)
}

/// One build with the profile `dist`; `flag` goes to the compiler beside the caller's own.
fn build(root: &Path, target: &Path, flag: Option<&str>) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--profile", "dist", "-p", "weft"]).current_dir(root);
    cargo.env("CARGO_TARGET_DIR", target);
    if let Some(flag) = flag {
        cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", with_callers(flag));
    }
    called(&mut cargo, "build weft")
}

/// `flag` behind the flags that the caller set, in the encoding of `CARGO_ENCODED_RUSTFLAGS`.
#[allow(clippy::disallowed_methods)] // a chore takes the caller's flags
fn with_callers(flag: &str) -> String {
    let encoded = env::var("CARGO_ENCODED_RUSTFLAGS").ok();
    let plain = || {
        env::var("RUSTFLAGS")
            .ok()
            .map(|all| all.split_whitespace().collect::<Vec<_>>().join("\u{1f}"))
    };
    let theirs = encoded.or_else(plain).unwrap_or_default();
    if theirs.is_empty() { flag.to_owned() } else { format!("{theirs}\u{1f}{flag}") }
}

/// `llvm-profdata` of the compiler that builds weft: another version may not read its counts.
fn merging_tool() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).args(["--print", "target-libdir"]).output();
    let said = said.context("ask rustc where it is")?.stdout;
    let lib = PathBuf::from(String::from_utf8_lossy(&said).trim());
    let tool = lib.with_file_name("bin").join("llvm-profdata");
    if !tool.is_file() {
        bail!(
            "{} is missing, which merges the counts that guide the build. \
             `rustup component add llvm-tools` brings it; `cargo xtask dist --plain` does without",
            tool.display()
        );
    }
    Ok(tool)
}

fn called(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot {what}"))?;
    if !status.success() {
        bail!("could not {what}; its output says why");
    }
    Ok(())
}
