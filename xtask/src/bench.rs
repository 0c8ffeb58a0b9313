// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench proxy [SCENARIO] [ARG ...]`: weft's data plane beside Envoy, HAProxy, nginx.
//! `cargo xtask bench registry [dns|watch|size] [ARG ...]`: the registry, its DNS beside unbound.
//!
//! Builds weft as it is shipped (`cargo xtask dist`; or takes `--weft PATH`), the rig's programs
//! and peers, then runs `benches/proxy/bench.py`; what stands behind the scenario goes to that.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let rest = args.get(1..).unwrap_or(&[]);
    match args.first().map(String::as_str) {
        Some("proxy") => proxy(root, rest),
        Some("registry") => registry(root, rest),
        _ => bail!(
            "usage: cargo xtask bench proxy [SCENARIO|equal|all] [--weft PATH|--plain] ...\n\
             or:    cargo xtask bench registry [dns|watch|size|all] [--weft PATH|--plain] ..."
        ),
    }
}

fn proxy(root: &Path, rest: &[String]) -> Result<()> {
    let (scenario, rest) = match rest.split_first() {
        Some((first, rest)) if !first.starts_with("--") => (first.as_str(), rest),
        _ => ("equal", rest),
    };
    let mut bench = data_plane(root, scenario)?;
    measure(root, rest, &mut bench)
}

fn registry(root: &Path, rest: &[String]) -> Result<()> {
    let mut bench = names(root)?;
    measure(root, rest, &mut bench)
}

/// Puts each load for a moment on `weft`, which counts what runs and writes that to `counts`.
pub fn train(root: &Path, weft: &Path, counts: &Path) -> Result<()> {
    let mut proxy = data_plane(root, "equal")?;
    proxy.args(["--proxies", "weft,weft-chain,weft-chain2,weft-sidecars", "--rounds", "1"]);
    // Other work on the machine does no harm: nothing is timed here.
    proxy.args(["--dur", "3", "--force", "--foreign", "1000"]);
    let mut registry = names(root)?;
    registry.args(["all", "--rounds", "1", "--seconds", "2", "--sizes", "1000"]);
    for bench in [&mut proxy, &mut registry] {
        bench.arg("--weft").arg(weft).env("LLVM_PROFILE_FILE", counts);
        called(bench, "put load on weft")?;
    }
    Ok(())
}

/// The rig of the data plane with its programs built and its peers unpacked.
fn data_plane(root: &Path, scenario: &str) -> Result<Command> {
    let rig = root.join("benches/proxy");
    let (target, peers) = (root.join("target/bench-kit"), root.join("target/bench-peers"));
    let manifest = rig.join("kit/Cargo.toml");
    let mut kit = Command::new("cargo");
    kit.args(["build", "--release", "--manifest-path"]).arg(manifest);
    called(kit.arg("--target-dir").arg(&target), "build the rig's programs")?;
    called(Command::new(rig.join("peers.sh")).arg(&peers), "unpack the peers")?;
    let mut bench = Command::new("python3");
    bench.arg(rig.join("bench.py")).arg(scenario).arg("--dir").arg(root.join("target/bench"));
    bench.arg("--kit").arg(target.join("release")).arg("--peers").arg(peers);
    Ok(bench)
}

/// The rig of the registry with its peers unpacked.
fn names(root: &Path) -> Result<Command> {
    let peers = root.join("target/peers");
    called(Command::new(root.join("tests/peers.sh")).arg(&peers), "unpack the peers")?;
    let mut bench = Command::new("python3");
    bench.arg(root.join("benches/registry/bench.py")).arg("--peers").arg(peers);
    bench.arg("--dir").arg(root.join("target/bench-registry"));
    Ok(bench)
}

/// Measures the program that `--weft` names, or builds it as it is shipped (`--plain`: unguided).
fn measure(root: &Path, rest: &[String], bench: &mut Command) -> Result<()> {
    let (plain, rest): (Vec<_>, Vec<_>) = rest.iter().cloned().partition(|arg| arg == "--plain");
    if !rest.iter().any(|arg| arg == "--weft") {
        crate::dist::run(root, &plain)?;
        bench.arg("--weft").arg(crate::dist::program(root));
    }
    called(bench.args(rest), "measure")
}

fn called(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot {what}"))?;
    if !status.success() {
        bail!("could not {what}; its output says why");
    }
    Ok(())
}
