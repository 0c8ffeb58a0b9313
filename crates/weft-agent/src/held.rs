// SPDX-License-Identifier: Apache-2.0
//! One program in the foreground of this process: it gets the same input and output, and is
//! killed with this process, however that ends. Used by `weft run`; pods have `child`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

use crate::machine::Exit;

/// A running program. Dropping it kills it with its group.
#[derive(Debug)]
pub struct Held {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    process: std::process::Child,
    exit: Option<Exit>,
}

// === impl Held ===

impl Held {
    /// Starts it in a group of its own. Call it on a thread that lives as long as the process: the
    /// program goes with the thread that started it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> io::Result<Self> {
        crate::sys::prepare(&mut command);
        let mut process = command.spawn()?;
        let watched = (|| {
            let none = || io::Error::other("the program has no process id");
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).ok_or_else(none)?;
            let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
            Ok((pid, crate::sys::watch(fd)?))
        })();
        match watched {
            Ok((pid, pidfd)) => Ok(Self { pid, pidfd, process, exit: None }),
            Err(why) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(why)
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the end, ends what is left of its group, and reaps it. Cancel-safe.
    ///
    /// # Errors
    /// When the system loses the process, which only a bug can cause.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.exit {
                return Ok(exit);
            }
            // Looks without reaping: while it is a zombie its group is nobody else's.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let fd = self.pidfd.get_ref().as_fd();
            if rustix::process::waitid(WaitId::PidFd(fd), look)?.is_some() {
                self.signal(Signal::KILL);
                let status = self.process.wait()?;
                self.exit = Some(match status.code() {
                    Some(code) => Exit::code(code),
                    None => Exit::signal(status.signal().unwrap_or(9)),
                });
                continue;
            }
            self.pidfd.readable().await?.clear_ready();
        }
    }

    /// SIGTERM to it and its group, also when it is stopped.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            // ESRCH: everyone has gone already.
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
            let _ = self.process.wait();
        }
    }
}
