// SPDX-License-Identifier: Apache-2.0
//! What this process logs, changed while it runs: the admin door of a proxy asks for it. Kept by
//! `main` when the log begins; decides nothing about what is worth a line.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::cli::{Cli, Command};

/// What is logged when nobody says.
pub const USUAL: &str = "warn";

type Change = Box<dyn Fn(Option<EnvFilter>) -> Result<String, String> + Send + Sync>;

static LEVELS: OnceLock<Change> = OnceLock::new();

/// What a command line asks to be logged. `weft explain --log` names a line of an access log by the
/// same word.
pub fn asked(cli: &Cli) -> &str {
    match &cli.command {
        Command::Explain(args) if args.url.is_none() && args.log.is_some() => USUAL,
        _ => &cli.log,
    }
}

/// Whether the log goes to something else than a terminal: journals and files want no colours.
pub fn are_plain() -> bool {
    !io::stderr().is_terminal()
}

/// Keeps the way to a log's filter.
pub fn keep<S: 'static>(handle: Handle<EnvFilter, S>)
where
    Handle<EnvFilter, S>: Send + Sync,
{
    let change: Change = Box::new(move |filter| {
        if let Some(filter) = filter {
            handle.reload(filter).map_err(|error| error.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|error| error.to_string())
    });
    // A process begins its log once.
    let _ = LEVELS.set(change);
}

/// Sets the filter, or leaves it as it is; says what it is then.
///
/// # Errors
/// When it is no filter.
pub fn change(words: Option<&str>) -> Result<String, String> {
    let filter = words.map(EnvFilter::try_new).transpose().map_err(|error| error.to_string())?;
    LEVELS.get().ok_or("this process has no log to change")?(filter)
}
