// SPDX-License-Identifier: Apache-2.0
//! Sends load to the shop and checks its books. Exit codes: 0 all well, 1 could not run,
//! 2 usage, 3 a request failed or the books do not hold.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use shop::load::{self, check, report::Report};

/// Open-loop load on the shop through a gateway; with --check, compares the databases instead
#[derive(Debug, Parser)]
#[command(name = "shop-load", version)]
struct Config {
    /// Send nothing; check the databases against the ids in --ids.
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    load: load::Options,

    #[command(flatten)]
    books: check::CheckOptions,

    /// Write the report here as well.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Config::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("shop-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> anyhow::Result<bool> {
    let (good, report) = if config.check {
        let ids = match &config.load.ids {
            Some(path) => check::read_ids(path)?,
            None => Vec::new(),
        };
        let verdict = check::check(&config.books, &ids)?;
        (verdict["held"] == true, verdict)
    } else {
        let report = send(config)?;
        (report.failed() == 0, report.to_json())
    };
    print(config, &report)?;
    Ok(good)
}

fn send(config: &Config) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load::run(&config.load))
}

fn print(config: &Config, report: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    println!("{text}");
    if let Some(path) = &config.report {
        std::fs::write(path, text)
            .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}
