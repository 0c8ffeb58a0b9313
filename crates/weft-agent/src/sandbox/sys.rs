// SPDX-License-Identifier: Apache-2.0
//! The unsafe corner of the sandbox's roles: fork, unshare, and which signals are heard. All of
//! it runs in processes of one thread, which `fork` makes sure of.
#![allow(unsafe_code)]

use std::io;

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

/// Which side of a fork this is.
pub(super) enum Forked {
    Parent(Pid),
    Child,
}

/// Signals that end a program in order; a waiting `pod-exec` leaves them to its program.
const ENDING: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Leaves namespaces for new ones.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: only `FILES` may break what other code assumes of descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// A child that may go on like any program, since there was only one thread.
///
/// # Errors
/// When there are more threads, or the system refuses.
pub(super) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process of {threads} threads does not fork")));
    }
    // SAFETY: with one thread no lock can be held by a thread that the child lacks, so the child
    // may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) => Ok(Forked::Parent(pid)),
            None => Err(io::Error::other("fork gave no process")),
        },
    }
}

/// Keeps ending signals back until [`leave_to_program`] or [`as_a_program`].
pub(super) fn hold_ending_signals() {
    let set = ending_set();
    // SAFETY: the set is initialised; the mask of this only thread is changed.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Ignores ending signals from now on: the program in the same process group hears them.
pub(super) fn leave_to_program() {
    for signal in ENDING {
        // SAFETY: `SIG_IGN` runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let set = ending_set();
    // SAFETY: as above.
    unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Hears signals as a program expects it: ending ones, also those that were kept back, and that
/// nobody reads any more, which Rust's programs ignore.
pub(super) fn as_a_program() {
    let set = ending_set();
    // SAFETY: as above; `SIG_DFL` runs no code of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Ends this process as the given signal ended its program, so that its parent sees the same.
/// Returns when the signal does not end processes.
pub(super) fn end_by(signal: i32) {
    // SAFETY: `SIG_DFL` runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
}

fn ending_set() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initialises the set, which is plain data; the numbers are valid.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in ENDING {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
