// SPDX-License-Identifier: Apache-2.0
//! What the agent tells the roles `pod-init` and `pod-exec`: one JSON file for each start, in the
//! agent's private directory, read once and removed by its reader. (Not arguments, which every
//! process of the machine can read; not the environment, which belongs to the program.)

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::procfs;

/// A process, named so that its successor of the same number is not meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
}

/// What a pod's first process sets up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InitSpec {
    /// For messages: `shop/user-1`.
    pub(crate) pod: String,
    /// Who holds the pod network.
    pub(crate) holder: Process,
    /// The pod network lives in a user namespace of weft's.
    pub(crate) userns: bool,
    pub(crate) hostname: String,
    /// Name of the pod's cable on the network's side.
    pub(crate) cable: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// `None` without a sidecar.
    pub(crate) capture: Option<Capture>,
    /// Where sockets made inside are asked for.
    pub(crate) door: PathBuf,
    /// File systems in memory that the containers share: where, and how large at most.
    pub(crate) memory: Vec<(PathBuf, u64)>,
}

/// What is not captured, by the pod's annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capture {
    pub(crate) exclude_inbound_ports: Vec<u16>,
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Addresses with prefix length.
    pub(crate) exclude_outbound: Vec<(IpAddr, u8)>,
}

/// What is started in a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExecSpec {
    /// Process 1 of the pod.
    pub(crate) init: Process,
    pub(crate) userns: bool,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) workdir: PathBuf,
    /// `None`: the sidecar, which shares only the pod's network.
    pub(crate) container: Option<ContainerSpec>,
}

/// What a container's program finds, and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// An empty directory to build the root on.
    pub(crate) base: PathBuf,
    /// Directories of the machine that it does not see.
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) read_only_root: bool,
    pub(crate) user: User,
    /// `cgroup.procs` files to enter.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Processes of this container where no cgroup counts them.
    pub(crate) processes_max: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// A file or directory of the machine.
    pub(crate) source: PathBuf,
    /// A path beneath the source, whatever links lie there.
    pub(crate) beneath: Option<PathBuf>,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// Who the program is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Bits of `CAP_*`; what root may still do.
    pub(crate) capabilities: u64,
    pub(crate) may_gain_privileges: bool,
}

// === impl Process ===

impl Process {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        procfs::stat(pid).map(|s| Self { pid, start_time: s.start_time })
    }

    /// A handle of exactly this process.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn open(self) -> io::Result<OwnedFd> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the pod's first process has ended");
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Looked at after opening: from here on the number is this process's or nobody's.
        let same = procfs::stat(self.pid).is_some_and(|s| s.start_time == self.start_time);
        if same && !has_ended(&fd) { Ok(fd) } else { Err(gone()) }
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut ended = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    rustix::event::poll(&mut ended, Some(&now)).is_ok_and(|n| n > 0)
}

/// Writes a spec for one reader.
pub(crate) fn write<T: Serialize>(path: &Path, spec: &T) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(spec).map_err(io::Error::other)?)
}

/// Reads and removes it.
pub(crate) fn take<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
    let _ = std::fs::remove_file(path);
    serde_json::from_slice(&bytes).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_meant_and_not_its_number() {
        let own = Process::of(std::process::id()).unwrap();
        own.open().unwrap();
        let successor = Process { start_time: own.start_time + 1, ..own };
        assert_eq!(successor.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Process::of(child.id()).unwrap();
        // Not reaped yet, it still has its number.
        while procfs::stat(gone.pid).is_some_and(|s| s.state != 'Z') {
            std::thread::yield_now();
        }
        gone.open().unwrap_err();
        child.wait().unwrap();
        gone.open().unwrap_err();
    }

    #[test]
    fn a_spec_is_read_once_by_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.exec");
        write(&path, &User { uid: 7, ..User::default() }).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        write(&path, &User::default()).unwrap_err();
        assert_eq!(take::<User>(&path).unwrap().uid, 7);
        assert!(take::<User>(&path).unwrap_err().contains("x.exec"));
    }
}
