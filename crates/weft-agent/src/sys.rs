// SPDX-License-Identifier: Apache-2.0
//! The one unsafe corner of the agent: what a new process does between fork and exec, waiting for
//! a descriptor, and the size of a page.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::unix::AsyncFd;

/// Descriptors a program may open unless its hard limit is lower.
const NOFILE: u64 = 65_536;

/// Prepares a command: the process leads its own group, is killed when the thread that started it
/// ends (so also when the agent is killed), writes no core files, and gets an ordinary limit of
/// descriptors whatever the agent raised its own to.
pub(crate) fn prepare(command: &mut Command) {
    command.process_group(0);
    let parent = rustix::process::getpid();
    // SAFETY: the hook runs in the child between fork and exec, where only async-signal-safe
    // functions may be called. It makes four system calls, neither allocates nor locks nor
    // unwinds, and touches no memory but its own stack.
    unsafe { command.pre_exec(move || before_exec(parent)) };
}

/// The same for a program at a terminal, which is its standard input: instead of a group of its
/// own it leads a session, so that it and what it starts hear when the terminal is gone.
pub(crate) fn prepare_session(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: as above; two more system calls.
    unsafe {
        command.pre_exec(move || {
            before_exec(parent)?;
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(io::stdin())?)
        })
    };
}

/// The system's. As the C library knows it: rustix reads what the kernel told at the start once
/// more, and crashes where valgrind hides a part of that.
pub(crate) fn page_size() -> u64 {
    // SAFETY: it only looks something up.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().filter(|n| n.is_power_of_two()).unwrap_or(4096)
}

/// A descriptor that can be waited for.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is valid as long as it lives and always gives the same descriptor; it
    // is dropped only after `AsyncFd` deregistered it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

fn before_exec(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above: then nobody would ever end us.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
    }
    // Limits are a courtesy: failing to set them must not stop the program.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let files = rustix::process::getrlimit(Resource::Nofile);
    let current = files.maximum.map_or(NOFILE, |max| max.min(NOFILE));
    let files = Rlimit { current: Some(current), maximum: files.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    Ok(())
}
