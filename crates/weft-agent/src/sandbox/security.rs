// SPDX-License-Identifier: Apache-2.0
//! From security contexts to who a program is and what it may do; what cannot be had here is
//! refused with a sentence. Pure; called by `cell` before each start.

use rustix::thread::CapabilitySet;
use thiserror::Error;

use super::spec::User;
use crate::pod::inside::SecurityContext;
use crate::pod::{Container, Pod};

/// Why a container cannot run as it says (`CreateContainerConfigError`).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SecurityError {
    #[error(
        "securityContext.privileged: a container that may do everything could walk around its \
         sidecar; name the capabilities it needs instead"
    )]
    Privileged,
    #[error("securityContext.capabilities.add: {0:?} is no capability")]
    Unknown(String),
    #[error(
        "securityContext.capabilities.add: {0} could be used to walk around the pod's sidecar or \
         out of the pod; leave it out"
    )]
    TooMuch(String),
    #[error(
        "securityContext.runAsNonRoot is set and the user is root; set runAsUser to another number"
    )]
    Root,
    #[error(
        "securityContext.supplementalGroups: an ordinary user can give no other groups to a \
         program; run weft as root, or leave them out"
    )]
    Groups,
}

/// What container runtimes leave to a container's root, but for raw sockets.
const USUAL: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// What may be added: nothing with which rules, marks or namespaces could be changed.
const ADDABLE: CapabilitySet = USUAL
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::NET_BROADCAST)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::SYS_TTY_CONFIG);

/// Who the container's program is. `rootless` when weft itself is an ordinary user's.
///
/// # Errors
/// When it asks for what cannot be had, or must not.
pub(crate) fn user(
    pod: &Pod,
    container: &Container,
    rootless: bool,
) -> Result<User, SecurityError> {
    let (own, shared) = (&container.security_context, &pod.spec.security_context);
    if own.privileged == Some(true) {
        return Err(SecurityError::Privileged);
    }
    let uid = own.run_as_user.or(shared.run_as_user).unwrap_or(0);
    let gid = own.run_as_group.or(shared.run_as_group).unwrap_or(0);
    if uid == 0 && own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        return Err(SecurityError::Root);
    }
    let mut groups = shared.supplemental_groups.clone();
    if rootless && !groups.is_empty() {
        return Err(SecurityError::Groups);
    }
    groups.extend(shared.fs_group);
    Ok(User {
        uid,
        gid,
        groups,
        capabilities: capabilities(own)?.bits(),
        may_gain_privileges: own.allow_privilege_escalation == Some(true),
    })
}

fn capabilities(context: &SecurityContext) -> Result<CapabilitySet, SecurityError> {
    let mut out = USUAL;
    for name in &context.capabilities.drop {
        out = match plain(name).as_str() {
            "ALL" => CapabilitySet::empty(),
            name => {
                out.difference(CapabilitySet::from_name(name).unwrap_or(CapabilitySet::empty()))
            }
        };
    }
    for name in &context.capabilities.add {
        let plain = plain(name);
        let one =
            CapabilitySet::from_name(&plain).ok_or_else(|| SecurityError::Unknown(name.clone()))?;
        if !ADDABLE.contains(one) {
            return Err(SecurityError::TooMuch(plain));
        }
        out = out.union(one);
    }
    Ok(out)
}

/// `CAP_net_bind_service` and `NET_BIND_SERVICE` are the same.
fn plain(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(pod: Value, container: Value, rootless: bool) -> Result<User, SecurityError> {
        let object = json!({"spec": {"securityContext": pod,
            "containers": [{"name": "c", "securityContext": container}]}});
        let pod: Pod = weft_kinds::views::read(&object).unwrap();
        user(&pod, &pod.spec.containers[0], rootless)
    }

    #[test]
    fn the_containers_word_wins() {
        let pod = json!({"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000});
        let got = check(pod.clone(), json!({"runAsUser": 7}), false).unwrap();
        assert_eq!((got.uid, got.gid, got.groups), (7, 1001, vec![2000]));
        assert!(!got.may_gain_privileges);
    }

    #[test]
    fn capabilities_are_the_usual_ones_less_raw_sockets() {
        let bits = |v: Value| check(json!({}), v, false).unwrap().capabilities;
        let usual = bits(json!({}));
        assert_eq!(usual & CapabilitySet::NET_RAW.bits(), 0);
        assert_eq!(usual & CapabilitySet::NET_ADMIN.bits(), 0);
        let dropped = bits(json!({"capabilities": {"drop": ["ALL"], "add": ["CAP_KILL"]}}));
        assert_eq!(dropped, CapabilitySet::KILL.bits());
        let one = bits(json!({"capabilities": {"drop": ["kill"]}}));
        assert_eq!(one, usual & !CapabilitySet::KILL.bits());
    }

    #[test]
    fn what_could_walk_around_the_sidecar_is_refused() {
        let refused = |v: Value| check(json!({}), v, false).unwrap_err().to_string();
        for name in ["NET_ADMIN", "CAP_NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"] {
            let text = refused(json!({"capabilities": {"add": [name]}}));
            assert!(text.contains("walk around"), "{text}");
        }
        assert!(refused(json!({"privileged": true})).contains("privileged"));
        assert!(refused(json!({"capabilities": {"add": ["FLY"]}})).contains("FLY"));
        assert!(refused(json!({"runAsNonRoot": true})).contains("runAsUser"));
        let groups = check(json!({"supplementalGroups": [5]}), json!({}), true);
        assert_eq!(groups, Err(SecurityError::Groups));
    }
}
