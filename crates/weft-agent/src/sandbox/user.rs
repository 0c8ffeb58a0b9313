// SPDX-License-Identifier: Apache-2.0
//! Who a container's program is and what it may do: user, groups, capabilities. Called by `exec`
//! right before the program starts; from here on there is no way back.

use std::io;

use rustix::fs::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::holder::map_ids;
use super::spec::User;
use super::sys;

/// Becomes that user, with no capability but those.
///
/// # Errors
/// A sentence that says what the system does not allow.
pub(super) fn become_user(user: &User, userns: bool) -> Result<(), String> {
    let failed = |e: io::Error| format!("it cannot run as user {}: {e}", user.uid);
    let allowed = CapabilitySet::from_bits_truncate(user.capabilities);
    if userns {
        // One user is all there is. In a user namespace of its own it has any number, counts
        // its own processes, and owns nothing of the pod's network.
        sys::unshare(UnshareFlags::NEWUSER).map_err(failed)?;
        map_ids((user.uid, 0), (user.gid, 0)).map_err(failed)?;
        limit(allowed).map_err(failed)?;
    } else {
        own_output(user.uid);
        limit(allowed).map_err(failed)?;
        let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        match rustix::thread::set_thread_groups(&groups) {
            // Weft is itself in somebody's user namespace, where groups cannot be changed.
            Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
            done => done.map_err(|e| failed(e.into()))?,
        }
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|e| failed(e.into()))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|e| failed(e.into()))?;
    }
    let kept = if user.uid == 0 { allowed } else { CapabilitySet::empty() };
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    rustix::thread::set_capabilities(None, sets).map_err(|e| failed(e.into()))?;
    if !user.may_gain_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// Nobody of this process's descendants ever gets other capabilities.
fn limit(allowed: CapabilitySet) -> io::Result<()> {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if allowed.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // This kernel has no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(rustix::thread::clear_ambient_capability_set()?)
}

/// The log's pipes: a program opens them by name (`/dev/stdout`) as the user it is.
fn own_output(uid: u32) {
    let owner = Some(Uid::from_raw(uid));
    let _ = rustix::fs::fchown(io::stdout(), owner, None);
    let _ = rustix::fs::fchown(io::stderr(), owner, None);
}
