// SPDX-License-Identifier: Apache-2.0
//! That the cases can fail: this program runs them again without the check that they rely on, one
//! check at a time, and every one of its cases must fail.

use std::collections::BTreeMap;
use std::process::Command;

use super::{fields, framing, misdirected, targets};
use crate::checks::WITHOUT;
use crate::h2;
use crate::tests::admin;

fn by_check() -> BTreeMap<&'static str, Vec<&'static str>> {
    let tables = framing::CASES.iter().chain(fields::CASES).chain(targets::CASES);
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let more = [misdirected::CASES, h2::tests::abuse::CASES, admin::CASES];
    for (case, check) in tables.chain(&more).flat_map(|t| t.iter()) {
        // The harness leaves the crate's name out.
        let (_, case) = case.split_once("::").unwrap();
        all.entry(check).or_default().push(case);
    }
    all
}

/// What of these failed when run without a check.
fn failed(check: &str, cases: &[&str]) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=4"])
        .args(cases)
        .env(WITHOUT, check)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ran = text.lines().filter(|l| is_verdict(l)).count();
    assert_eq!(ran, cases.len(), "{check}: {text}");
    let lines = text.lines().filter_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    lines.map(str::to_owned).collect()
}

fn is_verdict(line: &str) -> bool {
    line.starts_with("test ") && [" ... ok", " ... FAILED"].iter().any(|v| line.ends_with(v))
}

#[test]
fn every_case_fails_without_its_check() {
    let all = by_check();
    assert!(all.len() >= 20, "{} checks", all.len());
    let cases: usize = all.values().map(Vec::len).sum();
    assert!(cases >= 110, "{cases} cases");
    let mut passed = Vec::new();
    for (check, cases) in all.iter().filter(|(check, _)| **check != "grammar") {
        let failed = failed(check, cases);
        let others = cases.iter().filter(|case| !failed.iter().any(|f| f == *case));
        passed.extend(others.map(|case| format!("{case} without {check}")));
    }
    assert!(passed.is_empty(), "passed all the same:\n{}", passed.join("\n"));
}
