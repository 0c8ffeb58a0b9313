// SPDX-License-Identifier: Apache-2.0
//! A change of one endpoint costs at most 1.5 times as many instructions among 5,000 services as
//! among 50, from the store event to the changed resource. Counted by valgrind, which must be
//! installed: without it this fails, it does not skip.

use std::path::{Path, PathBuf};
use std::process::Command;

const CHANGES: u64 = 200;

/// Instructions of one change. Only `one_change` is counted: the set-up of 5,000 services is so
/// much larger that the hash seeds of one run would hide what is looked for.
fn instructions_per_change(example: &Path, services: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*one_change*"])
        .arg("--callgrind-out-file=/dev/null")
        .arg(example)
        .args([services.to_string(), CHANGES.to_string()])
        .output()
        .expect("valgrind counts instructions; install it (Debian: apt-get install valgrind)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|l| l.contains("Collected")).unwrap_or_else(|| panic!("{text}"));
    let count = line.split(':').next_back().unwrap_or("").trim();
    count.parse::<u64>().unwrap_or_else(|_| panic!("{line}")) / CHANGES
}

/// Builds the example (alone, `cargo test --test` does not) and says where it is: beside the
/// tests of the same profile.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace, so that dependencies are those that its tests built.
    cargo.args(["build", "--quiet", "--workspace", "--example", "incremental"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    assert!(status.success(), "the example did not build");
    profile.join("examples").join("incremental")
}

#[test]
fn one_endpoint_costs_the_same_among_many_services() {
    let example = example();
    let few = instructions_per_change(&example, 50);
    let many = instructions_per_change(&example, 5_000);
    println!("instructions per change: {few} among 50 services, {many} among 5,000");
    assert!(few > 1_000, "nothing was measured: {few}");
    assert!(many * 2 <= few * 3, "{many} is more than 1.5 times {few}");
}
