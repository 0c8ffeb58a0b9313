// SPDX-License-Identifier: Apache-2.0
//! Captured programs of a machine: the plan that `weft agent --capture` writes down, and the role
//! that holds the rules. The agent starts the role as the program of the pod that stands for the
//! programs, so the rules come after the sidecar is ready.
//!
//! They go, before the sidecar ends, only when the agent itself leaves, which it says in a note of
//! its own. When the agent is killed, or the pod is taken away by whoever may delete pods, they
//! stay: what was captured is then refused, not let by. They are known by a note in the data
//! directory; the next start of an agent with that directory, and `weft down`, take them away.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use weft_agent::net::capture::{self, CaptureSpec, Who};

use crate::asked::Asked;
use crate::exit::Usage;

/// In the data directory's `run`: the plan, the note that rules are there, and the one that the
/// agent leaves.
const PLAN: &str = "capture.json";
const NOTE: &str = "captured";
const LEAVING: &str = "captured-leaving";
/// How often it is looked whether the rules are still there, and the control group the same.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Addresses of pods and Services in process mode, which the kernel takes for its own.
const MESH_NETWORKS: [(IpAddr, u8); 2] = [
    (IpAddr::V4(std::net::Ipv4Addr::new(127, 64, 0, 0)), 11),
    (IpAddr::V4(std::net::Ipv4Addr::new(127, 96, 0, 0)), 12),
];

/// Whose traffic is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Whose {
    Users(Vec<u32>),
    /// Its path beneath the root of control groups.
    Cgroup(String),
}

/// What the role does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub whose: Whose,
    pub inbound_ports: Vec<u16>,
    pub exclude_inbound_ports: Vec<u16>,
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound: Vec<(IpAddr, u8)>,
}

// === impl Plan ===

impl Plan {
    /// Writes it where the role reads it, whose agent is here to stay.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, data: &Path) -> Result<PathBuf> {
        let path = data.join("run").join(PLAN);
        no_more(&path.with_file_name(LEAVING))?;
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// As the rules have it now: a control group that was made anew has another number.
    fn spec(&self) -> Result<CaptureSpec> {
        let who = match &self.whose {
            Whose::Users(users) => {
                Who::Users { users: users.clone(), inbound_ports: self.inbound_ports.clone() }
            }
            Whose::Cgroup(path) => Who::cgroup(path, self.inbound_ports.clone())
                .with_context(|| format!("the control group {path}"))?,
        };
        let mut spec = CaptureSpec::new(who);
        // Names asked of another machine are not that of a pod.
        spec.pod_networks = Vec::new();
        spec.mesh_networks = MESH_NETWORKS.to_vec();
        spec.exclude_inbound_ports = self.exclude_inbound_ports.clone();
        spec.exclude_outbound_ports = self.exclude_outbound_ports.clone();
        spec.exclude_outbound = self.exclude_outbound.clone();
        Ok(spec)
    }
}

/// `weft pod-capture`: makes the rules and keeps them as they should be.
pub fn hold(plan: &Path) -> Result<()> {
    let text = fs::read(plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let read: Plan = serde_json::from_slice(&text)?;
    let note = plan.with_file_name(NOTE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut asked = Asked::listen()?;
        let mut spec = read.spec()?;
        // First, so that rules are never there without it.
        fs::write(&note, "").with_context(|| format!("cannot write {}", note.display()))?;
        spec.install().context("the capture rules")?;
        crate::say!("capturing {}", read.whose);
        loop {
            tokio::select! {
                () = asked.end_wanted() => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Err(error) = keep(&read, &mut spec) {
                tracing::warn!(error = %format!("{error:#}"), "the capture rules");
            }
        }
        if note.with_file_name(LEAVING).exists() {
            take_away(&note)?;
            crate::say!("capture ended");
        } else {
            crate::say!("the rules stay: {} is refused until it is captured again", read.whose);
        }
        Ok(())
    })
}

/// Makes the rules right again when something changed under them.
fn keep(plan: &Plan, spec: &mut CaptureSpec) -> Result<()> {
    // While the control group is away its old rules stay: they match nobody.
    let now = plan.spec().unwrap_or_else(|_| spec.clone());
    if now != *spec {
        now.install()?;
        crate::say!("{} was made anew and is captured again", plan.whose);
        *spec = now;
    } else if spec.ensure()? {
        tracing::warn!("another program took the capture rules away; they are there again");
    }
    Ok(())
}

/// Says that the agent leaves: its role takes the rules away when it is asked to end.
///
/// # Errors
/// When the file cannot be written.
pub fn leaving(data: &Path) -> Result<()> {
    let path = data.join("run").join(LEAVING);
    fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))
}

/// Takes away the rules that an agent with this data directory left behind. Whether there were
/// some.
///
/// # Errors
/// When this process may not.
pub fn end_leftover(data: &Path) -> Result<bool> {
    let note = data.join("run").join(NOTE);
    if !note.exists() {
        return Ok(false);
    }
    take_away(&note)?;
    Ok(true)
}

fn take_away(note: &Path) -> Result<()> {
    capture::remove().with_context(|| {
        format!(
            "the capture rules that {} tells of cannot be removed; as root: nft delete table inet \
             weft",
            note.display()
        )
    })?;
    no_more(note)
}

fn no_more(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether this process may make rules here.
///
/// # Errors
/// With what is missing, and what to do.
pub fn may() -> Result<()> {
    capture::trial().map_err(|e| {
        anyhow!(
            "--capture changes rules of this network namespace, which is not allowed here: {e}; \
             start it as root, or with the capability CAP_NET_ADMIN"
        )
    })
}

// === impl Whose ===

impl Whose {
    /// What the flags name: `user=NAME|UID[,...]`, once or more, or one `cgroup=/PATH`.
    ///
    /// # Errors
    /// When they name nobody, or someone who must not be captured.
    pub fn read(flags: &[String], passwd: &str, own: &Own) -> Result<Self> {
        let (mut users, mut cgroup) = (Vec::new(), None);
        for flag in flags {
            match flag.split_once('=') {
                Some(("user", names)) => {
                    for name in names.split(',').filter(|n| !n.is_empty()) {
                        users.push(user(name, passwd, own)?);
                    }
                }
                Some(("cgroup", path)) if cgroup.is_none() => cgroup = Some(group(path, own)?),
                Some(("cgroup", _)) => usage("--capture: one control group can be named")?,
                _ => usage(&format!(
                    "--capture {flag:?}: expected user=NAME, user=NUMBER or cgroup=/PATH"
                ))?,
            }
        }
        users.sort_unstable();
        users.dedup();
        match (users.is_empty(), cgroup) {
            (false, None) => Ok(Self::Users(users)),
            (true, Some(path)) => Ok(Self::Cgroup(path)),
            (true, None) => usage("--capture names nobody; give it user=NAME or cgroup=/PATH"),
            (false, Some(_)) => usage("--capture: name users or a control group, not both"),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Own {
    pub uid: u32,
    /// Its control group, of version 2.
    pub cgroup: Option<String>,
}

fn user(name: &str, passwd: &str, own: &Own) -> Result<u32> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    let known = lines.find_map(|mut fields| {
        (fields.next()? == name).then(|| fields.nth(1)?.parse::<u32>().ok())?
    });
    let uid = match known.or_else(|| name.parse().ok()) {
        Some(uid) => uid,
        None => usage(&format!(
            "--capture: /etc/passwd has no user {name}; users of other directories are named by \
             their number"
        ))?,
    };
    if uid == 0 {
        usage("--capture: root is not captured: weft itself and the machine's services are root")?;
    }
    if uid == own.uid {
        usage(&format!(
            "--capture: {name} is the user that weft runs as, whose traffic would go round in \
             circles; run the programs as another user"
        ))?;
    }
    Ok(uid)
}

fn group(path: &str, own: &Own) -> Result<String> {
    let short = path.trim_start_matches("/sys/fs/cgroup").trim_matches('/');
    if !path.starts_with('/') || short.is_empty() || short.split('/').any(|part| part == "..") {
        return usage(&format!(
            "--capture cgroup={path}: name a control group by its path, such as \
             /system.slice/shop.service; the root has every process in it"
        ));
    }
    let path = format!("/{short}");
    let inside = |own: &String| own == &path || own.starts_with(&format!("{path}/"));
    if own.cgroup.as_ref().is_some_and(inside) {
        return usage(&format!(
            "--capture: weft itself runs in the control group {path}, and its traffic would go \
             round in circles; start it in another one"
        ));
    }
    if let Err(error) = Who::cgroup(&path, Vec::new()) {
        bail!(
            "--capture cgroup={path}: {error}; it needs control groups of version 2, mounted at \
             /sys/fs/cgroup or /sys/fs/cgroup/unified, and the group must exist"
        );
    }
    Ok(path)
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Users(users) => {
                let all: Vec<String> = users.iter().map(ToString::to_string).collect();
                write!(f, "users {}", all.join(", "))
            }
            Self::Cgroup(path) => write!(f, "the control group {path}"),
        }
    }
}

fn usage<T>(text: &str) -> Result<T> {
    Err(anyhow!(Usage(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nshop:x:1001:1001::/:/bin/sh\n";

    fn read(flags: &[&str]) -> Result<Whose, String> {
        let own = Own { uid: 500, cgroup: Some("/system.slice/weft.service".into()) };
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        Whose::read(&flags, PASSWD, &own).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn users_are_named_or_numbered() {
        assert_eq!(read(&["user=shop"]), Ok(Whose::Users(vec![1001])));
        let both = read(&["user=shop,4711", "user=1001"]);
        assert_eq!(both, Ok(Whose::Users(vec![1001, 4711])));
    }

    #[test]
    fn whom_to_capture_would_be_wrong_is_refused_with_the_reason() {
        for (flags, word) in [
            (&["user=root"][..], "root is not captured"),
            (&["user=0"], "root is not captured"),
            (&["user=500"], "round in circles"),
            (&["user=nobody-here"], "by their number"),
            (&["user="], "names nobody"),
            (&["group=x"], "expected user=NAME"),
            (&["shop"], "expected user=NAME"),
            (&["cgroup=/"], "every process"),
            (&["cgroup=shop.service"], "by its path"),
            (&["cgroup=/a/../b"], "by its path"),
            (&["cgroup=/system.slice"], "round in circles"),
            (&["cgroup=/system.slice/weft.service"], "round in circles"),
            (&["cgroup=/no/such.group"], "version 2"),
        ] {
            let why = read(flags).unwrap_err();
            assert!(why.contains(word), "{flags:?}: {why}");
        }
    }

    #[test]
    fn a_plan_comes_back_and_its_rules_know_the_mesh() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let plan = Plan {
            whose: Whose::Users(vec![1001]),
            inbound_ports: vec![8080],
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: vec![25],
            exclude_outbound: vec![("10.0.0.0".parse().unwrap(), 8)],
        };
        let path = plan.write(dir.path()).unwrap();
        let back: Plan = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(back, plan);
        let spec = plan.spec().unwrap();
        assert!(spec.pod_networks.is_empty() && spec.mesh_networks.len() == 2);
        assert!(!end_leftover(dir.path()).unwrap());
        // An agent that starts does not leave, whatever an earlier one did.
        leaving(dir.path()).unwrap();
        let note = dir.path().join("run").join(LEAVING);
        assert!(note.exists());
        plan.write(dir.path()).unwrap();
        assert!(!note.exists());
    }
}
