// SPDX-License-Identifier: Apache-2.0
//! What `weft store` and `--store` take on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Look at every page and record of a log at rest; nothing is changed.
    Check(AtRest),
    /// Mend a log at rest: pages, then records. A copy stays beside it when anything was mended.
    Repair(AtRest),
    /// Write a backup: the log as of one revision, and the authority's key. Keep it secret.
    Backup(BackupArgs),
    /// Make a data directory from a backup.
    Restore(RestoreArgs),
    /// Move a data directory to this weft's form, or its log into an etcd with `--to`.
    Migrate(MigrateArgs),
}

#[derive(Debug, Args)]
pub struct AtRest {
    /// Data directory; default that of `weft server`. No weft may be using it.
    #[arg(long, env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
    /// Do not tell how far it is.
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pub at: AtRest,
    /// Ask a running server instead (its log alone, without the authority): `http://HOST:PORT`.
    #[arg(long, conflicts_with = "data", value_name = "URL")]
    pub server: Option<String>,
    /// Leave the authority's key out: who restores it begins with another authority.
    #[arg(long)]
    pub without_ca: bool,
    /// File to write; one that is there is not replaced.
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub at: AtRest,
    /// Replace what is in the data directory; its log and its authority are kept beside the new
    /// ones, as `log.redb.replaced` and `root.pem.replaced`.
    #[arg(long)]
    pub force: bool,
    /// The backup.
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub at: AtRest,
    #[command(flatten)]
    pub to: super::etcd::ToEtcd,
}
