// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench proxy [SCENARIO] [ARG ...]`: weft's data plane beside Envoy, HAProxy, nginx.
//!
//! Builds weft with the `dist` profile (or takes `--weft PATH`), the rig's own programs and peers,
//! then runs `benches/proxy/bench.py`; what stands behind the scenario goes to that.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let (Some("proxy"), rest) = (args.first().map(String::as_str), args.get(1..).unwrap_or(&[]))
    else {
        bail!("usage: cargo xtask bench proxy [SCENARIO|equal|all] [--rounds N] [--weft PATH] ...");
    };
    let (scenario, rest) = match rest.split_first() {
        Some((first, rest)) if !first.starts_with("--") => (first.as_str(), rest),
        _ => ("equal", rest),
    };
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
    if !rest.iter().any(|arg| arg == "--weft") {
        let mut weft = Command::new("cargo");
        weft.args(["build", "--profile", "dist", "-p", "weft"]).current_dir(root);
        called(&mut weft, "build weft")?;
        bench.arg("--weft").arg(root.join("target/dist/weft"));
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
