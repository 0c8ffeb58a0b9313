// SPDX-License-Identifier: Apache-2.0
//! The role `weft pod-init`: makes a pod's namespaces and holds them.
//!
//! The process that the agent starts makes the namespaces, plugs the pod into the pod network,
//! captures its traffic and forks the pod's process 1, which reaps orphans and serves the pod
//! door. It then waits for that one. When either ends, the kernel ends the other and everything
//! in the pod.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use tokio::signal::unix::{SignalKind, signal};
use weft_base::sockets::{self, Ask, Peer};
use weft_base::task::TaskGroup;

use super::holder::{READY, tie};
use super::spec::{self, Capture, InitSpec};
use super::{root, sys};
use crate::net::capture::{CaptureSpec, Who};
use crate::net::pods;

/// Ports that any user of the pod may listen on: all, as in a container.
const LOW_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Runs the role.
///
/// # Errors
/// A sentence that says what could not be set up.
pub fn run(file: &Path) -> Result<(), String> {
    let spec: InitSpec = spec::take(file)?;
    let parent = rustix::process::getppid();
    set_up(&spec).map_err(|e| format!("pod {}: {e}", spec.pod))?;
    let told = |e: io::Error| format!("pod {}: {e}", spec.pod);
    tie(parent).map_err(told)?;
    let (lifeline, held) = pipe().map_err(told)?;
    let (up, say) = pipe().map_err(told)?;
    match sys::fork().map_err(told)? {
        sys::Forked::Child => {
            drop((held, up));
            first_process(&spec.door, &lifeline, say).map_err(told)
        }
        sys::Forked::Parent(pid) => {
            drop((lifeline, say));
            // Nothing comes when the child failed; it has said why.
            if std::fs::File::from(up).read(&mut [0]).map_err(told)? == 1 {
                let mut out = io::stdout().lock();
                let said = writeln!(out, "{READY} {}", pid.as_raw_pid());
                said.and_then(|()| out.flush()).map_err(told)?;
            }
            wait_for(pid);
            drop(held);
            Ok(())
        }
    }
}

fn set_up(spec: &InitSpec) -> Result<(), String> {
    let holder = spec.holder.open().map_err(|_| "the pod network has ended".to_owned())?;
    let into = match spec.userns {
        true => ThreadNameSpaceType::USER | ThreadNameSpaceType::NETWORK,
        false => ThreadNameSpaceType::NETWORK,
    };
    rustix::thread::move_into_thread_name_spaces(holder.as_fd(), into)
        .map_err(|e| format!("the pod network cannot be entered: {e}"))?;
    // Opened here, it stays a socket of the pod network.
    let network = pods::Network::open().map_err(|e| e.to_string())?;
    let new = UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWPID;
    sys::unshare(new).map_err(|e| format!("its namespaces cannot be made: {e}"))?;
    network.plug(&spec.cable, &spec.addresses).map_err(|e| e.to_string())?;
    if let Some(capture) = &spec.capture {
        pods::capture(&rules(capture)).map_err(|e| e.to_string())?;
    }
    // A kernel without the setting lets root alone have low ports.
    let _ = std::fs::write(LOW_PORTS, "0");
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|e| format!("its host name {:?} cannot be set: {e}", spec.hostname))?;
    root::private().map_err(|e| format!("its mounts cannot be made private: {e}"))?;
    for (path, bytes) in &spec.memory {
        root::memory_at(path, *bytes)
            .map_err(|e| format!("{} cannot be made in memory: {e}", path.display()))?;
    }
    Ok(())
}

fn rules(wanted: &Capture) -> CaptureSpec {
    CaptureSpec {
        exclude_inbound_ports: wanted.exclude_inbound_ports.clone(),
        exclude_outbound_ports: wanted.exclude_outbound_ports.clone(),
        exclude_outbound: wanted.exclude_outbound.clone(),
        ..CaptureSpec::new(Who::Pod)
    }
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Dies with whoever holds the other end of this pipe, and asks to be told of its death.
pub(super) fn tie_to(lifeline: &OwnedFd) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above; then nobody would ever end us.
    let mut ended = [PollFd::new(lifeline, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut ended, Some(&now))?;
    if ended.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
        return Err(io::Error::other("whoever started this has ended"));
    }
    Ok(())
}

/// Process 1: reaps, and makes sockets for the agent.
fn first_process(door: &Path, lifeline: &OwnedFd, say: OwnedFd) -> io::Result<()> {
    tie_to(lifeline)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let _ = rustix::thread::set_name(c"weft-pod");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let (listener, tasks) = (sockets::bind_door(door)?, TaskGroup::new());
        tasks.spawn("pod door", sockets::serve_door(listener, admit, tasks.clone()));
        std::fs::File::from(say).write_all(b"1")?;
        loop {
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
            if ended.recv().await.is_none() {
                return Ok(());
            }
        }
    })
}

/// Who is not of this pod has no number here: that is the agent. What is in the pod does not
/// even see the door.
fn admit(peer: &Peer, _: &Ask) -> Result<(), String> {
    match peer.pid {
        None => Ok(()),
        Some(pid) => Err(format!("process {pid} is of the pod itself")),
    }
}

fn wait_for(pid: Pid) {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}
