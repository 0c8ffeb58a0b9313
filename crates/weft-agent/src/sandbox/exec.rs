// SPDX-License-Identifier: Apache-2.0
//! The role `weft pod-exec`: puts a program into a pod.
//!
//! A container's program becomes a child in the pod's PID namespace; this process waits for it,
//! leaves ending signals to it (it is in the same process group) and ends as it ended. A sidecar
//! takes this process's place, in the pod's network namespace only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use super::init::{pipe, tie_to};
use super::spec::{self, ContainerSpec, ExecSpec};
use super::{holder, root, sys, user};

/// The exit code that says that there was no program, as container runtimes have it.
pub const NOT_STARTED: u8 = 128;

/// Runs the role; the code to end with.
///
/// # Errors
/// A sentence that says why the program could not be started.
pub fn run(file: &Path) -> Result<u8, String> {
    let spec: ExecSpec = spec::take(file)?;
    let parent = rustix::process::getppid();
    let init = spec.init.open().map_err(|e| e.to_string())?;
    let mut into = ThreadNameSpaceType::NETWORK;
    if spec.userns {
        into |= ThreadNameSpaceType::USER;
    }
    if spec.container.is_some() {
        into |= ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    }
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), into)
        .map_err(|e| format!("the pod cannot be entered: {e}"))?;
    drop(init);
    holder::tie(parent).map_err(|e| e.to_string())?;
    let Some(container) = &spec.container else {
        return Err(start(&spec));
    };
    let (lifeline, held) = pipe().map_err(|e| e.to_string())?;
    sys::hold_ending_signals();
    match sys::fork().map_err(|e| e.to_string())? {
        sys::Forked::Child => {
            drop(held);
            Err(inside(&spec, container, &lifeline).unwrap_or_else(|e| e))
        }
        sys::Forked::Parent(pid) => {
            drop(lifeline);
            sys::leave_to_program();
            let code = wait_for(pid);
            drop(held);
            Ok(code)
        }
    }
}

/// The child's way to its program. Comes back only when there is none.
fn inside(
    spec: &ExecSpec,
    container: &ContainerSpec,
    lifeline: &OwnedFd,
) -> Result<String, String> {
    tie_to(lifeline).map_err(|e| e.to_string())?;
    for group in &container.cgroups {
        // Which limits there are was told when the group was made; less is worth a line.
        if let Err(error) = std::fs::write(group, "0") {
            eprintln!("weft: a limit does not hold, {}: {error}", group.display());
        }
    }
    sys::unshare(UnshareFlags::NEWNS).map_err(|e| format!("it can have no mounts: {e}"))?;
    root::build(container)?;
    // A terminal as standard input controls the program's session.
    if rustix::termios::isatty(io::stdin()) {
        let _ = rustix::process::setsid();
        let _ = rustix::process::ioctl_tiocsctty(io::stdin());
    }
    user::become_user(&container.user, spec.userns)?;
    if let Some(most) = container.processes_max {
        // A limit that was narrower before stays: nobody may widen it.
        let before = rustix::process::getrlimit(Resource::Nproc).maximum;
        let most = Some(before.map_or(most, |b| b.min(most)));
        rustix::process::setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most })
            .map_err(|e| format!("its number of processes cannot be limited: {e}"))?;
    }
    tie_to(lifeline).map_err(|e| e.to_string())?;
    Ok(start(spec))
}

/// Becomes the program, or says why not.
fn start(spec: &ExecSpec) -> String {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear().envs(spec.env.iter().map(|(k, v)| (k, v)));
    if let Err(error) = std::env::set_current_dir(&spec.workdir) {
        let user = rustix::process::getuid().as_raw();
        let dir = spec.workdir.display();
        return format!("its working directory {dir} cannot be entered as user {user}: {error}");
    }
    // Said by whoever gave the terminal.
    if let Some(term) = std::env::var_os("TERM")
        && !spec.env.iter().any(|(name, _)| name == "TERM")
    {
        command.env("TERM", term);
    }
    sys::as_a_program();
    let error = command.exec();
    format!("{} cannot be started: {error}", spec.program.display())
}

fn wait_for(pid: Pid) -> u8 {
    let status = loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(_) => return NOT_STARTED,
        }
    };
    if let Some(signal) = status.terminating_signal() {
        sys::end_by(signal);
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
