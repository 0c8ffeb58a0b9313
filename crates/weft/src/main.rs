// SPDX-License-Identifier: Apache-2.0
//! The `weft` binary: roles, configuration, command line, assembly. The only crate that sees
//! every other; what is in here connects rooms and decides nothing about traffic.

mod agent;
mod asked;
mod builds;
mod capture;
mod check;
mod cli;
mod client;
mod data;
mod drain;
mod exit;
mod explain;
mod help;
mod kubeconfig;
mod levels;
mod lines;
mod manifest;
mod pod;
mod ports;
mod print;
mod proxy;
mod run;
mod server;
mod store;
mod sys;
mod token;
mod up;
mod visit;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command, MtlsCommand, ProxyCommand};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas and quick return of unused pages: a sidecar's memory is counted in megabytes.
#[allow(non_upper_case_globals, unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8] = b"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:8192\0";

/// Open files that a server or proxy asks for, when the system allows them.
const FILES_WANTED: u64 = 65_536;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli);
    if let Command::PodExec { file } = &cli.command {
        return pod::exec(file);
    }
    if let Command::Run(args) = &cli.command {
        return run::run(args);
    }
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft: {}", exit::sentence(&error));
            exit::code(&error)
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    let serves = matches!(
        &cli.command,
        Command::Up(_) | Command::Server(_) | Command::Agent(_) | Command::Proxy(_)
    );
    if serves {
        raise_file_limit();
    }
    match cli.command {
        Command::Up(args) => up::run(*args),
        Command::Down(args) => up::stop::down(&args),
        Command::Reset(args) => up::stop::reset(&args),
        Command::Server(args) => server::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Store(command) => wait(store::run(&command)),
        Command::Token(command) => wait(token::run(&command)),
        Command::Proxy(args) => match args.command {
            Some(ProxyCommand::Status(client)) => wait(client::report::proxies(&client)),
            None => proxy::run(&args),
        },
        Command::Apply(args) => wait(client::objects::apply(&args)),
        Command::Get(args) => wait(client::objects::get(&args)),
        Command::Describe(args) => wait(client::objects::describe(&args)),
        Command::Delete(args) => wait(client::objects::delete(&args)),
        Command::Explain(args) => wait(explain::run(&args)),
        Command::Drain(args) => wait(drain::run(&args)),
        Command::Status(args) => wait(client::report::status(&args)),
        Command::Top(args) => wait(client::report::top(&args)),
        Command::Mtls(MtlsCommand::Report(args)) => wait(client::report::mtls(&args)),
        Command::Kubeconfig(args) => kubeconfig::write(&args),
        Command::Schema(args) => check::print_schema(args.kind.as_deref()),
        Command::Help(args) => help::run(&args),
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut out);
            print::print_text(&String::from_utf8_lossy(&out));
            Ok(())
        }
        Command::Man { dir } => man(&dir),
        Command::PodNet { trial } => pod::net(trial),
        Command::PodInit { file } => pod::init(&file),
        Command::PodExec { .. } | Command::Run(_) => Ok(()),
        Command::PodCapture { file } => capture::hold(&file),
        Command::Version => {
            crate::say!("weft {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

/// A connection is a file, and shells often allow 1,024: a few hundred idle clients of one door
/// would then close all others, and probes could not be made.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|now| now >= FILES_WANTED) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(FILES_WANTED, |most| most.min(FILES_WANTED)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Runs a client command on a small runtime.
fn wait<F: Future<Output = Result<()>>>(command: F) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// Where data directories are kept: `$XDG_STATE_HOME`, or `~/.local/state`.
#[allow(clippy::disallowed_methods)] // the one place that reads these
pub fn state_home() -> PathBuf {
    let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty()).map(PathBuf::from);
    var("XDG_STATE_HOME")
        .or_else(|| var("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
}

fn man(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write man pages into {}", dir.display()))?;
    crate::say!("written; read them with\n  man -l {}", dir.join("weft.1").display());
    Ok(())
}

fn start_log(cli: &Cli) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let said = levels::asked(cli);
    let filter = EnvFilter::try_new(said).unwrap_or_else(|error| {
        eprintln!("weft: --log {said:?}: {error}; logging warnings");
        EnvFilter::new(levels::USUAL)
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = if levels::are_plain() { log.with_ansi(false) } else { log };
    if cli.log_json {
        let log = log.json().with_filter_reloading();
        levels::keep(log.reload_handle());
        log.finish().with(lines::Lines).init();
    } else {
        let log = log.with_target(true).with_filter_reloading();
        levels::keep(log.reload_handle());
        log.finish().with(lines::Lines).init();
    }
}
