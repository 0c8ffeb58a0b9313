// SPDX-License-Identifier: Apache-2.0
//! That regressions by number can fail: those of this crate that `regressions.ledger` names are run
//! again without the guard that they rely on, one guard at a time, and each must fail with what the
//! ledger says. A module of the tests of each crate that has such cases; never in a build of weft.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

const LEDGER: &str = include_str!("regressions.ledger");
/// The variable that names the guard to do without.
const WITHOUT: &str = "WEFT_TEST_WITHOUT_GUARD";
/// For all cases of one guard, on a machine with much else to do. What hangs is no proof.
const PATIENCE: Duration = Duration::from_secs(600);

/// Checks that are left out at the same time, each in a process of its own.
const WORKERS: usize = 4;

/// Whether a guard is in force.
pub(crate) fn on(guard: &str) -> bool {
    without() != Some(guard)
}

/// The guard that this run does without.
#[allow(clippy::disallowed_methods)] // Only how tests start themselves again.
pub(crate) fn without() -> Option<&'static str> {
    static OFF: OnceLock<Option<String>> = OnceLock::new();
    OFF.get_or_init(|| std::env::var(WITHOUT).ok()).as_deref()
}

/// A case without its guard.
#[derive(Debug, PartialEq, Eq)]
struct Row<'l> {
    case: &'l str,
    guard: &'l str,
    /// What its panic says then.
    says: &'l str,
}

/// `07 guard bare-lf   reg_07_bare_lf_between_headers | not refused`.
fn row(line: &str) -> Option<Row<'_>> {
    let (columns, says) = line.split_once(" | ")?;
    let mut words = columns.split_whitespace().skip(1);
    let (how, guard, case) = (words.next()?, words.next()?, words.next()?);
    (how == "guard").then_some(Row { case, guard, says })
}

/// This program's tests, by the last part of their names.
fn own() -> BTreeMap<String, String> {
    let output = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(|n| (n.rsplit("::").next().unwrap_or(n).to_owned(), n.to_owned())).collect()
}

/// What the panic of each test that failed says.
fn panics(text: &str) -> BTreeMap<&str, &str> {
    let blocks = text.split("\n---- ").skip(1);
    let named = blocks.filter_map(|block| block.split_once(" stdout ----\n"));
    named
        .filter_map(|(name, said)| {
            let (_, message) = said.split_once(" panicked at ")?;
            let (_, message) = message.split_once(":\n")?;
            Some((name, message.split("\nfailures:\n").next()?))
        })
        .collect()
}

/// Runs tests without a guard; what they wrote, or `None` when they did not end.
#[allow(clippy::disallowed_methods)] // No runtime here, and nothing to wake anybody.
fn played_without(guard: &str, tests: &[&str]) -> Option<String> {
    let unique = format!("weft-without-{}-{guard}", std::process::id());
    let path = std::env::temp_dir().join(unique);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=4"])
        .args(tests)
        .env(WITHOUT, guard)
        // Names of functions are no words of the case.
        .env("RUST_BACKTRACE", "0")
        // What proptest finds here is nothing to keep, nor to make small for long.
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .env("PROPTEST_MAX_SHRINK_ITERS", "100")
        .stdout(File::create(&path).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let step = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    let ended = loop {
        if child.try_wait().unwrap().is_some() {
            break true;
        }
        if waited >= PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            break false;
        }
        std::thread::sleep(step);
        waited += step;
    };
    let text = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    ended.then(|| String::from_utf8_lossy(&text).into_owned())
}

/// What is wrong with the proof of one row.
fn doubt(row: &Row<'_>, test: &str, text: &str) -> Option<String> {
    let Row { case, guard, says } = row;
    if text.lines().any(|line| line == format!("test {test} ... ok")) {
        return Some(format!("{case} passes without {guard}"));
    }
    match panics(text).get(test) {
        None => Some(format!("{case} without {guard}: it did not run, or did not panic")),
        Some(said) if said.contains(says) => None,
        Some(said) => {
            let said: String = said.chars().take(400).collect();
            Some(format!("{case} without {guard} does not say {says:?} but: {said}"))
        }
    }
}

/// What is wrong with the proofs of one guard.
fn doubts_of(guard: &str, rows: &[(Row<'_>, &str)]) -> Vec<String> {
    let tests: Vec<&str> = rows.iter().map(|(_, test)| *test).collect();
    match played_without(guard, &tests) {
        None => vec![format!("without {guard} its cases do not end: {tests:?}")],
        Some(text) => rows.iter().filter_map(|(row, test)| doubt(row, test, &text)).collect(),
    }
}

/// Plays all of this crate's cases without their guards.
pub(crate) fn prove() {
    let own = own();
    let mut by_guard: BTreeMap<&str, Vec<(Row<'_>, &str)>> = BTreeMap::new();
    for row in LEDGER.lines().filter_map(row) {
        assert!(!row.says.trim().is_empty(), "{} says nothing", row.case);
        let all = by_guard.entry(row.guard).or_default();
        // A case of two numbers has two rows.
        if let Some(test) = own.get(row.case).filter(|_| all.iter().all(|(r, _)| *r != row)) {
            all.push((row, test));
        }
    }
    by_guard.retain(|_, rows| !rows.is_empty());
    assert!(!by_guard.is_empty(), "the ledger names no case of this crate");
    // Most of them wait for what does not come.
    let (todo, doubts) = (Mutex::new(by_guard.iter()), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let Some((guard, rows)) = todo.lock().unwrap().next() else { break };
            let found = doubts_of(guard, rows);
            doubts.lock().unwrap().extend(found);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(worker);
        }
    });
    let doubts = doubts.into_inner().unwrap();
    assert!(doubts.is_empty(), "{} are not shown:\n{}", doubts.len(), doubts.join("\n"));
}

#[test]
fn only_what_a_case_says_itself_is_a_proof() {
    let line = "07 guard bare-lf            reg_07_a | not refused";
    let row = row(line).unwrap();
    assert_eq!(row, Row { case: "reg_07_a", guard: "bare-lf", says: "not refused" });
    let text = |panic: &str| {
        let begin = "\nrunning 1 test\ntest m::reg_07_a ... FAILED\n\nfailures:\n\n";
        let end = "\nnote: run with\n\n\nfailures:\n    m::reg_07_a\n\ntest result: FAILED.\n";
        format!("{begin}---- m::reg_07_a stdout ----\n\nthread 'x' (7) {panic}{end}")
    };
    let said = |panic: &str| doubt(&row, "m::reg_07_a", &text(panic));
    assert_eq!(said("panicked at a.rs:1:2:\nnot refused: GET"), None);
    assert!(said("panicked at a.rs:1:2:\nnothing came: Elapsed").unwrap().contains("Elapsed"));
    assert!(said("overflowed its stack").unwrap().contains("did not panic"));
    let passed = "\nrunning 1 test\ntest m::reg_07_a ... ok\n";
    assert!(doubt(&row, "m::reg_07_a", passed).unwrap().contains("passes"));
    assert!(doubt(&row, "m::reg_07_a", "").unwrap().contains("did not run"));
}
