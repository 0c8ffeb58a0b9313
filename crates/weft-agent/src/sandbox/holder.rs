// SPDX-License-Identifier: Apache-2.0
//! The role `weft pod-net`: holds the network that the pods of one agent share. It makes a user
//! namespace when it is not root and a network namespace that routes between pods, says so, and
//! waits to be ended. With `trial` it tries what a pod needs as well and ends at once.

use std::io::{self, Write};
use std::path::Path;

use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::UnshareFlags;

use super::sys;
use crate::net::pods;

/// What it says when the network is there.
pub(crate) const READY: &str = "ready";

/// Runs the role.
///
/// # Errors
/// A sentence that says what the system does not allow.
pub fn run(trial: bool) -> Result<(), String> {
    let parent = rustix::process::getppid();
    if !rustix::process::geteuid().is_root() {
        own_user_namespace().map_err(|e| {
            format!(
                "this kernel lets an ordinary user make no user namespace ({e}); allow it \
                 (sysctl kernel.unprivileged_userns_clone=1, or AppArmor's \
                 apparmor_restrict_unprivileged_userns=0), or run weft as root"
            )
        })?;
    }
    sys::unshare(UnshareFlags::NEWNET)
        .map_err(|e| format!("this system allows no network namespace ({e}){}", hint()))?;
    pods::router().map_err(|e| e.to_string())?;
    if trial {
        return try_pod();
    }
    tie(parent).map_err(|e| e.to_string())?;
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    drop(out);
    loop {
        std::thread::park();
    }
}

/// What a refusal most likely comes from.
fn hint() -> &'static str {
    let restricted = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    match std::fs::read_to_string(restricted) {
        Ok(text) if text.trim() == "1" => {
            "; AppArmor restricts ordinary users' namespaces: \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0 allows them, or run weft as root"
        }
        _ => "",
    }
}

/// A new user namespace in which this user is root, and nobody else is anybody.
pub(super) fn own_user_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    sys::unshare(UnshareFlags::NEWUSER)?;
    map_ids((0, uid.as_raw()), (0, gid.as_raw()))
}

/// Maps one user and one group (inside, outside) in a user namespace just made.
pub(super) fn map_ids(uid: (u32, u32), gid: (u32, u32)) -> io::Result<()> {
    // Without this an ordinary user may map no group. It may be denied above already.
    let _ = std::fs::write("/proc/self/setgroups", "deny");
    std::fs::write("/proc/self/uid_map", format!("{} {} 1", uid.0, uid.1))?;
    std::fs::write("/proc/self/gid_map", format!("{} {} 1", gid.0, gid.1))
}

/// Dies with its parent, also after what forgot that (a change of user or capabilities), and can
/// be looked into by the agent.
pub(super) fn tie(parent: Option<rustix::process::Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Err(io::Error::other("whoever started this has ended"));
    }
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// The rest of what a pod needs, each with a sentence of its own.
fn try_pod() -> Result<(), String> {
    pods::trial().map_err(|e| e.to_string())?;
    let new =
        UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
    sys::unshare(new).map_err(|e| format!("this system allows no mount or PID namespace ({e})"))?;
    match sys::fork().map_err(|e| e.to_string())? {
        sys::Forked::Parent(pid) => {
            let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            let code = ended.ok().flatten().and_then(|(_, status)| status.exit_status());
            match code {
                Some(0) => Ok(()),
                _ => Err("a PID namespace cannot have its own /proc here (is this a container \
                          whose /proc is masked?)"
                    .into()),
            }
        }
        sys::Forked::Child => {
            let mounted =
                super::root::private().and_then(|()| super::root::proc_at(Path::new("/proc")));
            std::process::exit(i32::from(mounted.is_err()))
        }
    }
}
