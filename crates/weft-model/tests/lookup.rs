// SPDX-License-Identifier: Apache-2.0
//! To find the rule among 5,000 routes costs at most twice as many instructions as among 10:
//! routes apart by host, by path, by expression, and in written order. Counted by valgrind, which
//! must be installed: without it this fails, it does not skip.

use std::path::{Path, PathBuf};
use std::process::Command;

const LOOKUPS: u64 = 2_000;

fn instructions_per_lookup(example: &Path, shape: &str, routes: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*one_lookup*"])
        .arg("--callgrind-out-file=/dev/null")
        .arg(example)
        .args([shape.to_owned(), routes.to_string(), LOOKUPS.to_string()])
        .output()
        .expect("valgrind counts instructions; install it (Debian: apt-get install valgrind)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|l| l.contains("Collected")).unwrap_or_else(|| panic!("{text}"));
    let count = line.split(':').next_back().unwrap_or("").trim();
    count.parse::<u64>().unwrap_or_else(|_| panic!("{line}")) / LOOKUPS
}

/// Builds the example (alone, `cargo test --test` does not) and says where it is: beside the
/// tests of the same profile.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps");
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace, so that dependencies are those that its tests built.
    cargo.args(["build", "--quiet", "--workspace", "--example", "lookup"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    assert!(status.success(), "the example did not build");
    profile.join("examples").join("lookup")
}

#[test]
fn five_thousand_routes_cost_at_most_twice_ten() {
    let example = example();
    for shape in ["hosts", "paths", "regex", "first"] {
        let few = instructions_per_lookup(&example, shape, 10);
        let many = instructions_per_lookup(&example, shape, 5_000);
        println!("{shape}: {few} instructions among 10 routes, {many} among 5,000");
        assert!(few > 50, "nothing was measured: {few}");
        assert!(many <= few * 2, "{shape}: {many} is more than twice {few}");
    }
}
