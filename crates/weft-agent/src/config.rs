// SPDX-License-Identifier: Apache-2.0
//! What the binary tells the agent once: directories, environment, the proxy program.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_kinds::views::Meta;
use weft_kinds::world::{MESH_ADDRESS_ANNOTATION, PodsMode, workload};

use crate::command::Images;
use crate::pod::{DesiredPod, Pod, ProxyKind};

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
        if desired.mode == PodsMode::Namespace {
            flag("--host-door", path(&config.host_door()));
            flag("--admin-address", desired.admin_address.to_string());
        } else if sidecar {
            flag("--credential", path(&config.credential_file(pod)));
            if let Some(address) = pod.metadata.annotations.get(MESH_ADDRESS_ANNOTATION) {
                flag("--mesh-address", address.to_string());
            }
        }
        flag("--label", format!("workload={}", workload_of(desired, pod)));
        flag("--label", format!("namespace={}", pod.metadata.namespace));
        flag("--label", format!("pod={}", pod.metadata.name));
        flag("--label", format!("service_account={}", pod.service_account()));
        for key in ["app", "version"] {
            if let Some(value) = pod.metadata.labels.get(key) {
                flag("--label", format!("{key}={value}"));
            }
        }
        out.extend(self.common.iter().cloned());
        if sidecar && desired.mode == PodsMode::Namespace {
            out.push("--capture".into());
            if let Some(dns) = self.dns {
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
