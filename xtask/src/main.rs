// SPDX-License-Identifier: Apache-2.0
//! Project chores. `cargo xtask` lists them; each lives in a file of its own.

mod bench;
mod budgets;
mod codegen;
mod dist;
mod locks;
mod schemas;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One chore: its name, what it does, and its function.
type Chore = (&'static str, &'static str, fn(&Path, &[String]) -> anyhow::Result<()>);

const CHORES: &[Chore] = &[
    ("tidy", "check structure, sizes, headers, dependencies, documents", tidy::run),
    (
        "budgets",
        "print build time, binary size, start-up time and memory beside their limits",
        budgets::run,
    ),
    ("bench", "measure the proxy beside others: `bench proxy [SCENARIO]`", bench::run),
    ("dist", "build weft as it is shipped, guided by a profile: target/dist/weft", dist::run),
    ("codegen", "write weft-proto's code from its protos; --check only compares", codegen::run),
    ("locks", "judge what clients of locks were told: `locks FILE`", locks::run),
    ("schemas", "bring the upstream schemas of the served kinds up to date", schemas::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let chore = args.first().and_then(|name| CHORES.iter().find(|(n, ..)| n == name));
    let Some((_, _, run)) = chore else {
        eprintln!("usage: cargo xtask CHORE [ARG ...]\n");
        for (name, what, _) in CHORES {
            eprintln!("  {name:10} {what}");
        }
        return ExitCode::from(2);
    };
    match run(&root(), args.get(1..).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root: the parent of this package's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
