// SPDX-License-Identifier: Apache-2.0
//! The unsafe corner of the tests of `net`: a second run of the test program in namespaces of
//! its own, so that tests change nothing of the machine and an ordinary user can run them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::UnshareFlags;

const INSIDE: &str = "WEFT_TEST_INSIDE";
const NOBODY: u32 = 65_534;

/// Who runs a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    Root,
    /// One without any privilege; in the user namespace it is root.
    User,
}

/// Whether this is the second run. Otherwise runs `test` in new namespaces, as root if we are and
/// as an ordinary user, and fails when it fails.
#[allow(clippy::disallowed_methods)]
pub(super) fn inside(test: &str) -> bool {
    if std::env::var(INSIDE).is_ok() {
        return true;
    }
    let root = rustix::process::geteuid().is_root();
    let runs = if root { &[As::Root, As::User][..] } else { &[As::User] };
    for who in runs {
        let out = match again(test, *who, root) {
            Ok(out) => out,
            Err(e) if *who == As::User && says_no(&e) => {
                eprintln!("{test} as {who:?}: this system allows no user namespaces ({e})");
                continue;
            }
            Err(e) => panic!("{test} as {who:?}: {e}"),
        };
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(out.status.success() && said.contains("1 passed"), "{test} as {who:?}:\n{said}");
    }
    false
}

/// The system lets an ordinary user have no user namespaces, or none of use.
fn says_no(error: &io::Error) -> bool {
    let known = [Errno::PERM, Errno::ACCESS, Errno::NOSPC, Errno::NOSYS, Errno::INVAL];
    known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn again(test: &str, who: As, root: bool) -> io::Result<Output> {
    let mut command = Command::new("/proc/self/exe");
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let ids = match root {
        true => (NOBODY, NOBODY),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    let maps = (format!("0 {} 1", ids.0), format!("0 {} 1", ids.1));
    // SAFETY: the hook runs between fork and exec. It makes system calls on memory that was there
    // before, allocates nothing, takes no lock and does not unwind.
    unsafe {
        command.pre_exec(move || match who {
            As::Root => Ok(rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)?),
            As::User => ordinary(root, &maps.0, &maps.1),
        });
    }
    command.output()
}

/// Becomes an ordinary user in namespaces of its own.
fn ordinary(root: bool, uids: &str, gids: &str) -> io::Result<()> {
    if root {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        // Changing the user made /proc/self root's.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    }
    // SAFETY: descriptors stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
    for (file, text) in [
        (c"/proc/self/setgroups", "deny"),
        (c"/proc/self/uid_map", uids),
        (c"/proc/self/gid_map", gids),
    ] {
        let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, text.as_bytes())?;
    }
    // Some systems give the namespace and deny what one is root for.
    // SAFETY: as above.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUTS) }?)
}

/// A new network namespace.
pub(super) fn new_namespace() -> OwnedFd {
    let thread = std::thread::spawn(|| {
        // SAFETY: descriptors stay shared; the namespace is this thread's alone.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    });
    thread.join().unwrap()
}
