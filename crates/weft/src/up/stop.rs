// SPDX-License-Identifier: Apache-2.0
//! `weft down` and `weft reset`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{DataArgs, ResetArgs};
use crate::exit::Usage;
use crate::{capture, data, state_home};

/// How long a run may take to end its children before `down` says so.
const PATIENCE: Duration = Duration::from_secs(40);

pub fn down(args: &DataArgs) -> Result<()> {
    let runs = chosen(args)?;
    let mut stopped = 0;
    for path in &runs {
        if let Some(pid) = data::holder(path) {
            end(path, pid)?;
            crate::say!("stopped PID {pid} ({})", path.display());
            stopped += 1;
        }
        // Control groups outlive a run that was killed; everything else went with it.
        weft_agent::sandbox::cgroup::sweep(&path.join("run"));
        if capture::end_leftover(path)? {
            crate::say!("removed the capture rules of an agent that was killed");
            stopped += 1;
        }
    }
    if stopped == 0 {
        crate::say!("nothing is running");
    }
    Ok(())
}

pub fn reset(args: &ResetArgs) -> Result<()> {
    let runs = chosen(&args.data)?;
    if runs.is_empty() {
        crate::say!("there is no data of any run; `--data DIR` names one that is elsewhere");
        return Ok(());
    }
    let [path] = runs.as_slice() else {
        let list: Vec<String> = runs.iter().map(|p| format!("  {}", p.display())).collect();
        bail!(Usage(format!(
            "name which run to reset, by its manifests' folder or `--data DIR`; there are:\n{}",
            list.join("\n")
        )));
    };
    if !path.join("VERSION").exists() {
        bail!("{} is not a data directory of weft; nothing was deleted", path.display());
    }
    if !args.yes {
        crate::say!(
            "This deletes {} with its store, certificates and logs. Type yes:",
            path.display()
        );
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            bail!("nothing was deleted");
        }
    }
    if let Some(pid) = data::holder(path) {
        end(path, pid)?;
    }
    weft_agent::sandbox::cgroup::sweep(&path.join("run"));
    capture::end_leftover(path)?;
    fs::remove_dir_all(path).with_context(|| format!("cannot delete {}", path.display()))?;
    crate::say!("deleted {}", path.display());
    Ok(())
}

/// The data directories meant: the named one, or all of this user.
fn chosen(args: &DataArgs) -> Result<Vec<PathBuf>> {
    if args.data.is_some() || args.path.is_some() {
        let one = data::location(args.data.as_deref(), args.path.as_deref(), &state_home());
        return Ok(vec![one]);
    }
    let home = state_home().join("weft");
    let entries = fs::read_dir(&home).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.join("VERSION").exists()).collect();
    all.sort();
    Ok(all)
}

/// Asks the process to stop and waits until it let its data directory go.
fn end(path: &Path, pid: u32) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid_of = raw.with_context(|| format!("{pid} is no process id"))?;
    kill_process(pid_of, Signal::TERM).with_context(|| format!("cannot signal PID {pid}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let gone = async {
            while data::holder(path) == Some(pid) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.map_err(|_| {
            anyhow::anyhow!(
                "PID {pid} was asked to stop and still runs after {} s; `kill -9 {pid}` ends it \
                 and its children",
                PATIENCE.as_secs()
            )
        })
    })
}
