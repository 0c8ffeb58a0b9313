// SPDX-License-Identifier: Apache-2.0
//! What this process logs, changed while it runs: the admin door of a proxy asks for it. Kept by
//! `main` when the log begins; decides nothing about what is worth a line.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

type Change = Box<dyn Fn(Option<EnvFilter>) -> Result<String, String> + Send + Sync>;

static LEVELS: OnceLock<Change> = OnceLock::new();

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
