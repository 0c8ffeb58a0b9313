// SPDX-License-Identifier: Apache-2.0
//! One container in a pod's namespaces, as the agent sees it: what is mounted, who runs, and the
//! command that puts a program there. Made by `worker::process` before each start.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::cgroup::{Group, Limits, PROCESSES_MAX};
use super::host::{Live, PodBox, volume_dir};
use super::security;
use super::spec::{self, Capture, ContainerSpec, ExecSpec, Mount};
use super::volumes::{self, Content};
use crate::env::{self, Env, Facts};
use crate::pod::{Container, DesiredPod, Pod};

/// Where pods ask for names: no address of anybody, since their questions are captured.
pub(crate) const NAMESERVER: &str = "10.96.0.10";
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Files of the pod that stand in the place of the machine's.
const OWN_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Cell {
    boxed: Arc<PodBox>,
    live: Arc<Live>,
    container: Option<ContainerSpec>,
    group: Group,
}

// === impl Cell ===

impl Cell {
    /// The sidecar's: the pod's network and nothing else.
    pub(crate) fn proxy(boxed: &Arc<PodBox>, live: Arc<Live>) -> Self {
        Self { boxed: boxed.clone(), live, container: None, group: Group::default() }
    }

    /// A container's.
    ///
    /// # Errors
    /// Kubernetes' word and a sentence.
    pub(crate) fn container(
        boxed: &Arc<PodBox>,
        live: Arc<Live>,
        facts: &Facts<'_>,
        env: &Env,
    ) -> Result<Self, (&'static str, String)> {
        let wrong = |e: String| ("CreateContainerConfigError", e);
        let (host, pod, container) = (&boxed.host, facts.pod, facts.container);
        let user =
            security::user(pod, container, host.rootless).map_err(|e| wrong(e.to_string()))?;
        let plan = volumes::plan(facts, &host.hidden).map_err(|e| wrong(e.to_string()))?;
        let dir = host.dir_of(pod);
        let mounts = mounts(&dir, container, &plan, env).map_err(wrong)?;
        let uid = &pod.metadata.uid;
        let group = host.cgroups.container(uid, &container.name, limits(pod, container));
        let read_only = container.security_context.read_only_root_filesystem == Some(true);
        let spec = ContainerSpec {
            base: dir.join("root"),
            hidden: host.hidden.clone(),
            mounts,
            read_only_root: read_only,
            user,
            cgroups: group.entrances(),
            processes_max: (!group.counts_processes()).then_some(PROCESSES_MAX),
        };
        Ok(Self { boxed: boxed.clone(), live, container: Some(spec), group })
    }

    /// A command that puts a program here.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(crate) fn command(
        &self,
        program: &str,
        args: &[String],
        env: &Env,
        workdir: &Path,
    ) -> io::Result<Command> {
        let host = &self.boxed.host;
        let spec = ExecSpec {
            init: self.live.init,
            userns: host.rootless,
            program: program.into(),
            args: args.to_vec(),
            env: env.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            workdir: workdir.to_owned(),
            container: self.container.clone(),
        };
        let dir = host.dir_of(&self.boxed.pod);
        let file = dir.join(format!("{}.exec", uuid::Uuid::now_v7()));
        spec::write(&file, &spec)?;
        let mut command = host.role("pod-exec");
        command.arg(file);
        Ok(command)
    }

    /// Whether nothing bounds the number of its processes: the kernel lets the machine's root
    /// have as many as it likes, except in a control group.
    pub(crate) fn may_fork_forever(&self) -> bool {
        let root = |c: &ContainerSpec| c.user.uid == 0 && !self.boxed.host.rootless;
        !self.group.counts_processes() && self.container.as_ref().is_some_and(root)
    }

    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.group.was_out_of_memory()
    }
}

fn mounts(
    dir: &Path,
    container: &Container,
    plan: &std::collections::BTreeMap<Arc<str>, Content>,
    env: &Env,
) -> Result<Vec<Mount>, String> {
    let own = OWN_FILES.iter().map(|name| Mount {
        source: dir.join("etc").join(name),
        beneath: None,
        target: Path::new("/etc").join(name),
        read_only: false,
    });
    let mut out: Vec<Mount> = own.collect();
    for wanted in &container.volume_mounts {
        let content = plan
            .get(&wanted.name)
            .ok_or_else(|| format!("volumeMounts: the pod has no volume {:?}", &*wanted.name))?;
        let target = PathBuf::from(&wanted.mount_path);
        if !target.is_absolute() || target.components().any(|c| c.as_os_str() == "..") {
            return Err(format!("volumeMounts: {:?} is no absolute path", wanted.mount_path));
        }
        let source = match content {
            Content::Host(path) => path.clone(),
            _ => volume_dir(dir, &wanted.name),
        };
        let beneath = match (wanted.sub_path.as_str(), wanted.sub_path_expr.as_str()) {
            ("", "") => None,
            ("", expression) => Some(env.expand(expression)),
            (path, _) => Some(path.to_owned()),
        };
        if let Some(path) = &beneath
            && matches!(content, Content::Empty { .. } | Content::Host(_))
        {
            make_beneath(&source, path)
                .map_err(|e| format!("volumeMounts: subPath {path:?}: {e}"))?;
        }
        let files = matches!(content, Content::Files(_));
        out.retain(|m| m.target != target);
        out.push(Mount {
            source,
            beneath: beneath.map(PathBuf::from),
            target,
            read_only: wanted.read_only || files,
        });
    }
    // What lies in another comes after it.
    out.sort_by_key(|m| m.target.components().count());
    Ok(out)
}

/// A sub-path that is not there becomes a directory.
fn make_beneath(volume: &Path, path: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let plain = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
    if !Path::new(path).components().all(plain) {
        return Err(io::Error::other("must be relative and without `..`"));
    }
    let full = volume.join(path);
    // A link is judged where it is followed, when it is mounted.
    if std::fs::symlink_metadata(&full).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(&full)?;
    std::fs::set_permissions(&full, std::fs::Permissions::from_mode(0o777))
}

fn limits(pod: &Pod, container: &Container) -> Limits {
    let read = |name: &str| container.resources.limits.get(name).and_then(env::quantity_milli);
    Limits {
        cpu_milli: read("cpu"),
        memory_bytes: read("memory").map(|milli| milli / 1000),
        cpu_request_milli: cpu_request(container),
        pod_cpu_request_milli: pod.spec.containers.iter().map(cpu_request).sum(),
    }
}

/// Who asks for nothing asks for what it may have at most.
fn cpu_request(container: &Container) -> u64 {
    let resources = &container.resources;
    let asked = resources.requests.get("cpu").or_else(|| resources.limits.get("cpu"));
    asked.and_then(env::quantity_milli).unwrap_or(0)
}

/// The name the pod gives itself.
pub(crate) fn hostname(pod: &Pod) -> String {
    let name = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    // The system's longest.
    name.chars().take(63).collect()
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the pod.
pub(crate) fn write_files(dir: &Path, pod: &Pod, desired: &DesiredPod) -> io::Result<()> {
    let etc = dir.join("etc");
    std::fs::create_dir_all(&etc)?;
    std::fs::write(etc.join("hostname"), format!("{}\n", hostname(pod)))?;
    std::fs::write(etc.join("hosts"), hosts(pod, desired))?;
    std::fs::write(etc.join("resolv.conf"), resolver(pod))
}

fn hosts(pod: &Pod, desired: &DesiredPod) -> String {
    let mut out = String::from(
        "# Written by weft for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
         ip6-loopback\n",
    );
    let name = hostname(pod);
    let full = match &*pod.spec.subdomain {
        "" => name,
        subdomain => {
            let namespace = &pod.metadata.namespace;
            format!("{name}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}\t{name}")
        }
    };
    for address in &desired.addresses {
        out.push_str(&format!("{address}\t{full}\n"));
    }
    for alias in &pod.spec.host_aliases {
        out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
    out
}

fn resolver(pod: &Pod) -> String {
    let own = &pod.spec.dns_config;
    let namespace = &pod.metadata.namespace;
    let (mut servers, mut searches) = match pod.spec.dns_policy.as_str() {
        "None" => (Vec::new(), Vec::new()),
        "Default" => (vec![NAMESERVER.to_owned()], Vec::new()),
        _ => {
            let below = |above: String| format!("{above}{CLUSTER_DOMAIN}");
            let list = [format!("{namespace}.svc."), "svc.".into(), String::new()];
            (vec![NAMESERVER.to_owned()], list.into_iter().map(below).collect())
        }
    };
    servers.extend(own.nameservers.iter().cloned());
    searches.extend(own.searches.iter().cloned());
    let mut options: Vec<String> = Vec::new();
    if !matches!(pod.spec.dns_policy.as_str(), "None" | "Default") {
        options.push("ndots:5".into());
    }
    for option in &own.options {
        options.retain(|o| o.split(':').next() != Some(option.name.as_str()));
        options.push(match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        });
    }
    let mut out = String::new();
    for server in servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    for (word, list) in [("search", searches), ("options", options)] {
        if !list.is_empty() {
            out.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    out
}

// === impl Capture ===

impl Capture {
    /// What a pod's annotations leave out, in weft's words and in Istio's. Words that are no
    /// ports or addresses are left out themselves.
    pub(crate) fn of(pod: &Pod) -> Self {
        let list = |names: [&str; 2]| {
            let text = names.iter().find_map(|n| pod.annotation(n)).unwrap_or_default();
            text.split(',')
                .map(|w| w.trim().to_owned())
                .filter(|w| !w.is_empty())
                .collect::<Vec<_>>()
        };
        let ports = |names| list(names).iter().filter_map(|w| w.parse().ok()).collect();
        let inbound =
            ["weft.dev/exclude-inbound-ports", "traffic.sidecar.istio.io/excludeInboundPorts"];
        let outbound =
            ["weft.dev/exclude-outbound-ports", "traffic.sidecar.istio.io/excludeOutboundPorts"];
        let ranges = [
            "weft.dev/exclude-outbound-addresses",
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        ];
        Self {
            exclude_inbound_ports: ports(inbound),
            exclude_outbound_ports: ports(outbound),
            exclude_outbound: list(ranges).iter().filter_map(|w| range(w)).collect(),
        }
    }
}

fn range(word: &str) -> Option<(std::net::IpAddr, u8)> {
    let (ip, prefix) = word.split_once('/').unwrap_or((word, ""));
    let ip: std::net::IpAddr = ip.parse().ok()?;
    let all = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = if prefix.is_empty() { Some(all) } else { prefix.parse().ok() };
    prefix.filter(|p| *p <= all).map(|p| (ip, p))
}

#[cfg(test)]
mod tests;
