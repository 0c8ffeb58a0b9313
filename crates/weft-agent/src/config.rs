// SPDX-License-Identifier: Apache-2.0
//! What the binary tells the agent once: directories, environment, the proxy program.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_kinds::views::Meta;
use weft_kinds::world::{MESH_ADDRESS_ANNOTATION, PodsMode, workload};

use crate::command::Images;
use crate::pod::{DesiredPod, Pod, ProxyKind};

/// Labels of a pod that its proxy knows; by the last four policies see where it is.
const PROXY_LABELS: [&str; 6] = [
    "app",
    "version",
    "istio-locality",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];
/// Where Services have addresses, in both ways to run pods.
const SERVICE_NETWORKS: [&str; 3] = ["127.96.0.0/12", "10.96.0.0/16", "fd00:7766:1::/112"];
/// The proxies' admin port, where the agent reads their counters.
pub(crate) const ADMIN_PORT: u16 = 15000;

/// The agent's own settings. Nothing here is read from the environment by the agent itself.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// For the socket, credentials, records of children and last good tables; made private.
    pub dir: PathBuf,
    /// For the logs of containers.
    pub log_dir: PathBuf,
    /// This machine's address as pods' `hostIP`.
    pub host_ip: IpAddr,
    /// Variables that programs inherit: PATH, HOME, LANG and what else the binary lets through.
    pub base_env: Vec<(String, String)>,
    /// Image name to local command.
    pub images: Images,
    /// Where programs start and relative ones are looked for, unless annotated otherwise.
    pub workdir: PathBuf,
    /// How proxies are started; without it no pod has a sidecar.
    pub proxy: Option<ProxyProgram>,
    /// Directories that pods in namespaces do not see: weft's own data.
    pub hidden: Vec<PathBuf>,
    /// Whether pods may run in namespaces (`weft up --pods`); one that is to and may not waits.
    pub namespaces: bool,
    /// Adopt processes whose parent ended, so that none stays behind as a zombie. One agent of a
    /// process at most.
    pub subreaper: bool,
}

/// The proxy: `weft proxy` of the own executable.
#[derive(Clone, Debug)]
pub struct ProxyProgram {
    pub program: PathBuf,
    /// `["proxy"]`.
    pub args: Vec<String>,
    /// Flags all proxies share: `--xds`, `--trust-domain`, `--cluster-domain`, `--access-log`.
    pub common: Vec<String>,
    pub outbound_port: u16,
    pub ready_port: u16,
    /// The resolver on the machine's side that answers the names pods ask for.
    pub dns: Option<SocketAddr>,
    /// The one that answers the names captured programs of the machine ask for.
    pub machine_dns: Option<SocketAddr>,
}

// === impl AgentConfig ===

impl AgentConfig {
    pub fn svid_socket(&self) -> PathBuf {
        self.dir.join("svid.sock")
    }

    /// Where proxies of pods in namespaces get sockets of the machine.
    pub fn host_door(&self) -> PathBuf {
        self.dir.join("host.sock")
    }

    /// Where a pod's proxy finds the credential that its app must show.
    pub fn credential_file(&self, pod: &Pod) -> PathBuf {
        self.dir.join("credentials").join(file_name(pod))
    }

    pub fn last_good_file(&self, pod: &Pod) -> PathBuf {
        self.dir.join("lastgood").join(file_name(pod))
    }
}

// === impl ProxyProgram ===

impl ProxyProgram {
    /// The command line of one pod's proxy.
    pub fn arguments(&self, config: &AgentConfig, desired: &DesiredPod, pod: &Pod) -> Vec<String> {
        let path = |p: &Path| p.display().to_string();
        let mut out = self.args.clone();
        let mut flag = |name: &str, value: String| {
            out.push(name.to_owned());
            out.push(value);
        };
        flag("--node", pod.node_id());
        flag("--address", desired.address.to_string());
        flag("--svid-socket", path(&config.svid_socket()));
        flag("--last-good", path(&config.last_good_file(pod)));
        let sidecar = pod.proxy_kind() == ProxyKind::Sidecar;
        if sidecar {
            flag("--workers", "1".into());
        }
        let mesh_address = pod.metadata.annotations.get(MESH_ADDRESS_ANNOTATION);
        if desired.mode.is_captured() {
            flag("--admin-address", desired.admin_address.to_string());
        }
        match desired.mode {
            PodsMode::Namespace => flag("--host-door", path(&config.host_door())),
            PodsMode::Process if sidecar => {
                flag("--credential", path(&config.credential_file(pod)));
            }
            PodsMode::Process => {}
            // Whichever way the server's own pods run.
            PodsMode::Machine => {
                SERVICE_NETWORKS.iter().for_each(|n| flag("--service-network", (*n).into()));
            }
        }
        let outside = sidecar && desired.mode != PodsMode::Namespace;
        if let Some(address) = mesh_address.filter(|_| outside) {
            flag("--mesh-address", address.to_string());
        }
        flag("--label", format!("workload={}", workload_of(desired, pod)));
        flag("--label", format!("namespace={}", pod.metadata.namespace));
        flag("--label", format!("pod={}", pod.metadata.name));
        flag("--label", format!("service_account={}", pod.service_account()));
        for key in PROXY_LABELS {
            if let Some(value) = pod.metadata.labels.get(key) {
                flag("--label", format!("{key}={value}"));
            }
        }
        out.extend(self.common.iter().cloned());
        if sidecar && desired.mode.is_captured() {
            out.push("--capture".into());
            let machine = desired.mode == PodsMode::Machine;
            if let Some(dns) = if machine { self.machine_dns } else { self.dns } {
                out.extend(["--dns".into(), dns.to_string()]);
            }
        }
        out
    }
}

/// The name of what the pod belongs to, as metrics call it.
fn workload_of(desired: &DesiredPod, pod: &Pod) -> Arc<str> {
    let meta = desired.object.get("metadata").cloned().unwrap_or_default();
    match serde_json::from_value::<Meta>(meta) {
        Ok(meta) => workload(&meta),
        Err(_) => pod.metadata.name.clone(),
    }
}

/// Namespaces and names have no `_`, so that two pods never share a file.
fn file_name(pod: &Pod) -> String {
    let safe = |text: &str| text.replace(['/', '\0'], "-");
    format!("{}_{}", safe(&pod.metadata.namespace), safe(&pod.metadata.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the proxy of a pod with a mesh address is told, by the way that it runs.
    fn told(mode: PodsMode) -> String {
        let object = json!({ "metadata": { "name": "p", "namespace": "n", "annotations": {
            MESH_ADDRESS_ANNOTATION: "10.9.0.2:30007" } } });
        let at = |text: &str| text.parse::<SocketAddr>().ok();
        let proxy = ProxyProgram {
            program: "weft".into(),
            args: vec!["proxy".into()],
            common: Vec::new(),
            outbound_port: 15001,
            ready_port: 15021,
            dns: at("127.0.0.1:1"),
            machine_dns: at("127.0.0.1:2"),
        };
        let config = AgentConfig {
            dir: "/d".into(),
            log_dir: "/l".into(),
            host_ip: "10.9.0.2".parse().unwrap(),
            base_env: Vec::new(),
            images: Images::new(),
            workdir: "/".into(),
            proxy: None,
            hidden: Vec::new(),
            namespaces: false,
            subreaper: false,
        };
        let own: IpAddr = "10.9.0.2".parse().unwrap();
        let desired = DesiredPod {
            object: Arc::new(object),
            address: own,
            addresses: vec![own],
            admin_address: "127.64.0.9".parse().unwrap(),
            mode,
            upstreams: Vec::new(),
            configs: crate::pod::Configs::default(),
        };
        proxy.arguments(&config, &desired, &desired.read().unwrap()).join(" ")
    }

    #[test]
    fn a_sidecar_is_told_how_traffic_comes_to_it() {
        let has = |mode, yes: &[&str], no: &[&str]| {
            let told = told(mode);
            assert!(yes.iter().all(|flag| told.contains(flag)), "{mode:?}: {told}");
            assert!(!no.iter().any(|flag| told.contains(flag)), "{mode:?}: {told}");
        };
        let mesh = "--mesh-address 10.9.0.2:30007";
        let inside = ["--capture --dns 127.0.0.1:1", "--host-door", "--admin-address 127.64.0.9"];
        has(PodsMode::Process, &[mesh, "--credential"], &["--capture", "--admin-address", "--dns"]);
        has(PodsMode::Namespace, &inside, &[mesh, "--credential"]);
        let machine =
            [mesh, "--capture --dns 127.0.0.1:2", "--admin-address 127.64.0.9", "127.96.0.0/12"];
        has(PodsMode::Machine, &machine, &["--host-door", "--credential"]);
    }
}
