// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask tidy`: the rules of `CONTRIBUTING.md` that a program can check. All findings are
//! printed; any finding fails.
//!
//! Exceptions stand in `xtask/tidy-allow.txt`, one `RULE PATH[:NAME]` a line. The list may only
//! shrink: an exception that is no longer needed is a finding too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const FILE_LINES_MAX: usize = 600;
const FN_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// What each crate may depend on (architecture, §3). `weft` sees everyone.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-base", &[]),
    ("weft-proto", &[]),
    ("weft-model", &["base"]),
    ("weft-kinds", &["base"]),
    ("weft-store", &["base", "proto"]),
    ("weft-identity", &["base"]),
    ("weft-xds", &["base", "proto", "model"]),
    ("weft-envoy", &["base", "model", "proto"]),
    ("weft-registry", &["base", "kinds", "store"]),
    ("weft-control", &["base", "kinds", "model", "xds", "identity"]),
    ("weft-proxy", &["base", "model", "xds", "identity"]),
    ("weft-agent", &["base", "kinds", "identity"]),
    ("weft-server", &["base", "kinds", "registry", "identity"]),
];

/// Texts that say where a file was made, not what it is.
const MACHINE_PATHS: &[&str] = &["/work/", "/root/", "/farm/"];

struct Findings {
    list: Vec<String>,
    allow: BTreeSet<String>,
    used: BTreeSet<String>,
}

pub fn run(root: &Path, _args: &[String]) -> Result<()> {
    let allow = fs::read_to_string(root.join("xtask/tidy-allow.txt")).unwrap_or_default();
    let allow = allow.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let mut found =
        Findings { list: vec![], allow: allow.map(str::to_owned).collect(), used: BTreeSet::new() };
    let files = tracked(root)?;
    let mut tests = BTreeSet::new();
    let mut codes = BTreeMap::new();
    for file in &files {
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        machine_paths(file, &text, &mut found);
        if file.ends_with(".rs") {
            test_names(file, &text, &mut tests);
            if !file.contains("/gen/") {
                source(file, &text, &mut found);
                error_codes(file, &text, &mut codes);
            }
        } else if file.ends_with(".py") {
            python_tests(file, &text, &mut tests);
        }
    }
    dependencies(root, &mut found)?;
    features(root, &tests, &mut found);
    error_index(root, &codes, &mut found);
    unused_exceptions(&mut found);
    for line in &found.list {
        println!("{line}");
    }
    if !found.list.is_empty() {
        bail!(
            "{} findings in {} files; mend them, none is a warning",
            found.list.len(),
            files.len()
        );
    }
    println!("tidy: {} files, no findings", files.len());
    Ok(())
}

impl Findings {
    fn add(&mut self, rule: &str, place: &str, what: impl std::fmt::Display) {
        let key = format!("{rule} {place}");
        if self.allow.contains(&key) {
            self.used.insert(key);
        } else {
            self.list.push(format!("{place}: {what} [{rule}]"));
        }
    }
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git lists the files; is it installed?")?;
    let mut files: Vec<String> =
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    if files.is_empty() {
        bail!("git lists no file in {}; run tidy in a checkout", root.display());
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn source(file: &str, text: &str, found: &mut Findings) {
    let lines: Vec<&str> = text.lines().collect();
    if !text.starts_with("// SPDX-License-Identifier: Apache-2.0") {
        found.add("spdx", file, "the first line must be `// SPDX-License-Identifier: Apache-2.0`");
    }
    if !lines.iter().take(6).any(|l| l.starts_with("//!")) {
        found.add("header", file, "a `//!` header says which room this is");
    }
    let is_test = file.contains("/tests/") || file.ends_with("tests.rs");
    let code_lines = lines.iter().position(|l| l.trim() == "mod tests {").unwrap_or(lines.len());
    if !is_test && code_lines > FILE_LINES_MAX {
        found.add("file-lines", file, format!("{code_lines} lines; at most {FILE_LINES_MAX}"));
    }
    let sys = file.contains("/sys.rs") || file.contains("/sys/");
    for (i, line) in lines.iter().enumerate() {
        let at = format!("{file}:{}", i + 1);
        if line.chars().count() > COLUMNS_MAX && !line.contains("http") {
            found.add("columns", file, format!("line {} is over {COLUMNS_MAX} columns", i + 1));
        }
        let code = line.split("//").next().unwrap_or("");
        let is_unsafe =
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
        if !sys && is_unsafe && !file.starts_with("xtask/") {
            found.add("unsafe", file, format!("`unsafe` outside a sys module at {at}"));
        }
        if code.trim_start().starts_with("#[ignore") {
            found.add("ignore", file, format!("an ignored test at {at}; assert today's answer"));
        }
    }
    if !is_test {
        functions(file, &lines, code_lines, found);
    }
}

/// Function lengths by indentation: rustfmt closes a function at the column where it began.
fn functions(file: &str, lines: &[&str], until: usize, found: &mut Findings) {
    for (i, line) in lines.iter().take(until).enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let words = trimmed.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let words = words.trim_start_matches("pub(super) ").trim_start_matches("async ");
        let Some(rest) = words.strip_prefix("fn ").or_else(|| words.strip_prefix("const fn "))
        else {
            continue;
        };
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let close = format!("{}}}", " ".repeat(indent));
        let body = lines.iter().skip(i).position(|l| *l == close || l.trim_end() == close);
        let one_line = line.trim_end().ends_with('}') || line.trim_end().ends_with(';');
        if let Some(length) = body.filter(|_| !one_line)
            && length + 1 > FN_LINES_MAX
        {
            let what = format!("fn {name} has {} lines; at most {FN_LINES_MAX}", length + 1);
            found.add("fn-lines", &format!("{file}:{name}"), what);
        }
    }
}

fn machine_paths(file: &str, text: &str, found: &mut Findings) {
    if file == "xtask/src/tidy.rs" || file.contains("/schemas/") {
        return;
    }
    for path in MACHINE_PATHS {
        // Only where a path begins: `$peers/root/usr` is nobody's home.
        let begins = |(at, _): (usize, &str)| {
            let before = text.get(..at).and_then(|t| t.chars().next_back());
            !before.is_some_and(|c| c.is_alphanumeric() || "._-}".contains(c))
        };
        if text.match_indices(path).any(begins) {
            found.add("machine-path", file, format!("names {path:?}, a path of one machine"));
        }
    }
}

/// A test by its place (`weft_proxy`, or a Python file) and its name.
type Tests = BTreeSet<(String, String)>;

fn test_names(file: &str, text: &str, tests: &mut Tests) {
    let folder = file.trim_start_matches("crates/").trim_start_matches("examples/");
    let place = folder.split('/').next().unwrap_or(folder).replace('-', "_");
    let mut marked = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(at) = line.find("fn ").filter(|_| marked || line.starts_with("fn ")) {
            let name = line.get(at + 3..).unwrap_or("");
            let name: String =
                name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            tests.insert((place.clone(), name));
            marked = false;
        }
    }
}

fn python_tests(file: &str, text: &str, tests: &mut Tests) {
    for line in text.lines().map(str::trim_start) {
        if let Some(name) = line.strip_prefix("def test_") {
            let name: String =
                name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            tests.insert((file.to_owned(), format!("test_{name}")));
        }
    }
}

fn dependencies(root: &Path, found: &mut Findings) -> Result<()> {
    for entry in fs::read_dir(root.join("crates"))? {
        let dir: PathBuf = entry?.path();
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let manifest = dir.join("Cargo.toml");
        if name == "weft" || name == "weft-testkit" || !manifest.exists() {
            continue;
        }
        let text = fs::read_to_string(&manifest)?;
        let Some((_, allowed)) = ALLOWED.iter().find(|(n, _)| *n == name) else {
            found.add("crates", &name, "is not in the architecture's list of crates");
            continue;
        };
        let deps = text.split("[dev-dependencies]").next().unwrap_or("");
        for line in deps.lines().filter(|l| l.starts_with("weft-")) {
            let dep: String = line
                .chars()
                .skip(5)
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            if !allowed.contains(&dep.as_str()) {
                found.add(
                    "planes",
                    &name,
                    format!("may not depend on weft-{dep}; an edge needs an ADR"),
                );
            }
        }
    }
    Ok(())
}

/// Every test that `docs/features.md` names as proof must exist where it says:
/// `crate::module::test` or `tests/test_x.py::test_y`. Claims need a proof, and `part` a note.
fn features(root: &Path, tests: &Tests, found: &mut Findings) {
    let file = "docs/features.md";
    let Ok(text) = fs::read_to_string(root.join(file)) else {
        found.add("features", file, "is missing");
        return;
    };
    for (i, row) in text.lines().enumerate().filter(|(_, l)| l.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (Some(state), Some(proof)) = (cells.get(1), cells.get(2)) else { continue };
        let note = cells.get(3).copied().unwrap_or("");
        let mut wrong = |what: String| {
            found.add("features", file, format!("line {}: {what}", i + 1));
        };
        let mut any = false;
        for name in proof.split('`').skip(1).step_by(2) {
            any = true;
            let place = name.split("::").next().unwrap_or(name);
            let last = name.rsplit("::").next().unwrap_or(name);
            if !tests.contains(&(place.to_owned(), last.to_owned())) {
                wrong(format!("no test {name}"));
            }
        }
        match *state {
            "yes" | "part" if !any => wrong(format!("claims {state:?} with no test")),
            "part" if note.is_empty() => wrong("a part needs a note: what is missing".into()),
            "yes" | "part" | "planned" | "state" => {}
            other if other.chars().all(|c| c == '-') => {}
            other => wrong(format!("{other:?} is no state; yes, part or planned")),
        }
    }
}

fn error_codes(file: &str, text: &str, codes: &mut BTreeMap<String, String>) {
    if file.starts_with("xtask/") {
        return;
    }
    for part in text.split('"').skip(1).step_by(2) {
        let digits = part.strip_prefix('W').filter(|d| d.len() == 4);
        if digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit())) {
            codes.entry(part.to_owned()).or_insert_with(|| file.to_owned());
        }
    }
}

/// `docs/errors.md` lists every code that the source uses, and no other.
fn error_index(root: &Path, codes: &BTreeMap<String, String>, found: &mut Findings) {
    let text = fs::read_to_string(root.join("docs/errors.md")).unwrap_or_default();
    let listed: BTreeSet<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("| W").map(|_| l.get(2..7).unwrap_or("")))
        .collect();
    for (code, file) in codes {
        if !listed.contains(code.as_str()) {
            found.add("errors", "docs/errors.md", format!("does not list {code} (used in {file})"));
        }
    }
    for code in listed.iter().filter(|c| !codes.contains_key(**c)) {
        found.add("errors", "docs/errors.md", format!("lists {code}, which nothing uses"));
    }
}

fn unused_exceptions(found: &mut Findings) {
    let stale: Vec<String> = found.allow.difference(&found.used).cloned().collect();
    for key in stale {
        found.list.push(format!("xtask/tidy-allow.txt: {key:?} is no longer needed; remove it"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings { list: vec![], allow: BTreeSet::new(), used: BTreeSet::new() }
    }

    #[test]
    fn paths_of_a_machine_are_found_where_a_path_begins() {
        for (text, count) in [
            ("open(\"/root/x\")", 1),
            ("cd /work/main", 1),
            ("$peers/root/usr", 0),
            ("${peers}/root/usr", 0),
            ("target/work/x", 0),
        ] {
            let mut found = findings();
            machine_paths("a.sh", text, &mut found);
            assert_eq!(found.list.len(), count, "{text}: {:?}", found.list);
        }
    }

    #[test]
    fn long_functions_wide_lines_and_missing_headers_are_found() {
        let body = "    let a = 1;\n".repeat(FN_LINES_MAX);
        let text = format!("fn long() {{\n{body}}}\n// {}\n", "x".repeat(COLUMNS_MAX));
        let mut found = findings();
        source("crates/a/src/a.rs", &text, &mut found);
        for rule in ["[spdx]", "[header]", "[fn-lines]", "[columns]"] {
            assert_eq!(found.list.iter().filter(|l| l.contains(rule)).count(), 1, "{rule}");
        }
        let mut found = findings();
        found.allow.insert("fn-lines crates/a/src/a.rs:long".to_owned());
        found.allow.insert("fn-lines crates/a/src/a.rs:gone".to_owned());
        source("crates/a/src/a.rs", &text, &mut found);
        unused_exceptions(&mut found);
        assert!(!found.list.iter().any(|l| l.contains("[fn-lines]")), "{:?}", found.list);
        assert!(found.list.iter().any(|l| l.contains(":gone") && l.contains("remove it")));
    }

    #[test]
    fn claims_without_a_test_are_found() {
        let dir = std::env::temp_dir().join(format!("weft-tidy-{}", std::process::id()));
        fs::create_dir_all(dir.join("docs")).unwrap();
        let table = "| feature | state | proof | note |\n|---|---|---|---|\n\
                     | a | yes | `x::m::there` | |\n| b | yes | `y::there` | |\n\
                     | c | part | | missing |\n| d | planned | | |\n\
                     | e | part | `x::there` | |\n| f | maybe | | |\n";
        fs::write(dir.join("docs/features.md"), table).unwrap();
        let mut found = findings();
        let mut tests = Tests::new();
        test_names("crates/x/src/m.rs", "#[test]\nfn there() {}\n", &mut tests);
        features(&dir, &tests, &mut found);
        fs::remove_dir_all(&dir).unwrap();
        let words = ["4: no test y::there", "5: claims", "7: a part needs", "8: \"maybe\" is no"];
        assert_eq!(found.list.len(), words.len(), "{:?}", found.list);
        for (line, word) in found.list.iter().zip(words) {
            assert!(line.contains(word), "{line}");
        }
    }

    #[test]
    fn the_licence_is_apache_2_everywhere() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(root.join("LICENSE")).unwrap();
        assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004"));
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("\nlicense = \"Apache-2.0\"\n"));
        let mut members = 0;
        for file in tracked(root).unwrap().iter().filter(|f| f.ends_with("/Cargo.toml")) {
            let text = fs::read_to_string(root.join(file)).unwrap();
            // Workspaces of their own (fuzz, the rig of the benchmarks) say it themselves.
            let own =
                text.contains("\n[workspace]\n") && text.contains("\nlicense = \"Apache-2.0\"\n");
            assert!(own || text.contains("license.workspace = true"), "{file}");
            members += 1;
        }
        assert!(members >= 13, "{members} members");
    }
}
