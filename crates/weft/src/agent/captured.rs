// SPDX-License-Identifier: Apache-2.0
//! `weft agent --capture`: programs of this machine, declared to the server as one workload. The
//! server places a pod for them here; its sidecar is theirs, and its program holds the rules
//! (`crate::capture`).
//!
//! Called by `weft agent` before it runs anything. Which programs are captured the flags alone
//! say; the server never does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use weft_agent::agent::{Agent, Desired};
use weft_agent::config::AgentConfig;
use weft_agent::pod::PodKey;
use weft_base::clock::Clock;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_registry::hosts::declared::CAPTURED_IMAGE;
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{Declared, Host, PodRef, Refusal};

use super::names::Names;
use crate::capture::{self, Own, Plan, Whose};
use crate::cli::CaptureArgs;
use crate::exit::Usage;

/// Between tries to declare while the server is away, and when it refuses what it took before.
const PAUSE: Duration = Duration::from_millis(500);
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// A pod that was declared is missed only after this: the server tells of it a moment later.
const MISSED_AFTER: Duration = Duration::from_secs(2);
/// What the pod is given to end in good order, when the agent was asked to end.
const LEAVE_MAX: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the flags say.
#[derive(Clone, Debug)]
pub struct Workload {
    declared: Declared,
    plan: Plan,
}

/// A workload that the server knows.
pub struct Captured {
    client: AgentClient,
    key: PodKey,
    data: PathBuf,
}

// === impl Workload ===

impl Workload {
    /// `None` without `--capture`.
    ///
    /// # Errors
    /// When the flags contradict each other or this machine.
    pub fn read(args: &CaptureArgs, address: IpAddr) -> Result<Option<Self>> {
        if args.capture.is_empty() {
            return Ok(None);
        }
        let usage = |text: String| anyhow!(Usage(text));
        if address.is_loopback() {
            return Err(usage(format!(
                "--capture needs an address at which others reach this machine, and {address} is \
                 none; name one with --address"
            )));
        }
        let account = args.service_account.as_deref().unwrap_or_default();
        let (namespace, account) = account.split_once('/').ok_or_else(|| {
            usage(format!("--service-account {account:?}: expected NAMESPACE/NAME"))
        })?;
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let whose = Whose::read(&args.capture, &passwd, &own())?;
        let ports = args.ports.iter().map(|text| port(text)).collect::<Result<Vec<_>>>()?;
        if args.service.is_some() && ports.is_empty() {
            return Err(usage("--service: name the port that it serves on with --port".into()));
        }
        let networks = args.exclude_outbound_addresses.iter().map(|text| network(text));
        let plan = Plan {
            whose,
            inbound_ports: ports.iter().map(|(port, _)| *port).collect(),
            exclude_inbound_ports: args.exclude_inbound_ports.clone(),
            exclude_outbound_ports: args.exclude_outbound_ports.clone(),
            exclude_outbound: networks.collect::<Result<_>>()?,
        };
        let label = |text: &String| {
            let pair = text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
            pair.ok_or_else(|| usage(format!("--workload-label {text:?} is not KEY=VALUE")))
        };
        let declared = Declared {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            service: args.service.clone().unwrap_or_default(),
            ports,
            labels: args.workload_labels.iter().map(label).collect::<Result<BTreeMap<_, _>>>()?,
        };
        capture::may()?;
        Ok(Some(Self { declared, plan }))
    }

    /// Makes everything ready that the pod needs here, and declares it. Waits while the server
    /// cannot be asked.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn start(
        self,
        (client, host): (&AgentClient, &Host),
        (data, config): (&Path, &mut AgentConfig),
        desired: Snapshot<Desired>,
        (clock, tasks): (&Clock, &TaskGroup),
    ) -> Result<Captured> {
        let plan = self.plan.write(data)?;
        let program = std::env::current_exe().context("the own program cannot be found")?;
        let line = [&program, Path::new("pod-capture"), &plan].map(quoted).join(" ");
        config.images.insert(CAPTURED_IMAGE.into(), line);
        let names = Names::new(client.clone(), clock.clone());
        let at = names.serve(tasks)?;
        if let Some(proxy) = &mut config.proxy {
            proxy.machine_dns = Some(at);
        }
        // The pod's address is this machine's, which heartbeats tell.
        let pod = loop {
            match declare(client, host, &self.declared).await {
                Ok(pod) => break pod,
                Err(why) if why.is_passing() => {
                    tracing::debug!(%why, "the server cannot be told of captured programs yet");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(why) => return Err(anyhow!("the server refuses --capture: {why}")),
            }
        };
        let key = PodKey::new(&pod.namespace, &pod.name);
        names.speak_for(pod);
        let (client, host) = (client.clone(), host.clone());
        let keeper =
            Keeper { client: client.clone(), host, declared: self.declared, names, desired };
        let (group, pod) = (tasks.clone(), key.clone());
        tasks.spawn("captured programs", async move {
            tokio::select! {
                () = group.draining() => {}
                () = keeper.run(pod) => {}
            }
        });
        crate::say!("capturing {} as {key}", self.plan.whose);
        Ok(Captured { client, key, data: data.to_owned() })
    }
}

/// Declares again what somebody deleted, or a changed address made void.
struct Keeper {
    client: AgentClient,
    host: Host,
    declared: Declared,
    names: Arc<Names>,
    desired: Snapshot<Desired>,
}

impl Keeper {
    /// Goes on until nothing is desired any more.
    async fn run(mut self, mut key: PodKey) {
        loop {
            if self.desired.load().contains_key(&key) {
                if !self.desired.changed().await {
                    return;
                }
                continue;
            }
            if tokio::time::timeout(MISSED_AFTER, self.is_back(&key)).await.is_ok() {
                continue;
            }
            match declare(&self.client, &self.host, &self.declared).await {
                Ok(pod) => {
                    key = PodKey::new(&pod.namespace, &pod.name);
                    self.names.speak_for(pod);
                }
                Err(why) if why.is_passing() => tokio::time::sleep(PAUSE).await,
                Err(why) => {
                    tracing::error!(%why, "the server refuses the captured programs now");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    async fn is_back(&mut self, key: &PodKey) {
        while !self.desired.load().contains_key(key) && self.desired.changed().await {}
    }
}

async fn declare(
    client: &AgentClient,
    host: &Host,
    declared: &Declared,
) -> Result<PodRef, Refusal> {
    client.heartbeat(host.clone()).await?;
    let pod = client.declare(declared.clone()).await?;
    pod.ok_or_else(|| Refusal::Unavailable("the server named no pod".into()))
}

// === impl Captured ===

impl Captured {
    /// Takes the workload out of the mesh before its sidecar ends: who sends to it hears first.
    pub async fn leave(&self, agent: &Agent) {
        if let Err(error) = capture::leaving(&self.data) {
            tracing::warn!(error = %format!("{error:#}"), "captured programs");
        }
        let gone = async {
            if let Err(why) = self.client.declare(Declared::default()).await {
                tracing::debug!(%why, "the server was not told that captured programs go");
                return;
            }
            while agent.pods().contains(&self.key) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(LEAVE_MAX, gone).await.is_err() {
            tracing::warn!("captured programs did not leave the mesh in good order");
        }
    }

    /// Takes away rules that nobody was there to take away.
    ///
    /// # Errors
    /// When this process may not.
    pub fn end(&self) -> Result<()> {
        capture::end_leftover(&self.data).map(drop)
    }
}

/// This process, whose own traffic must never be captured.
fn own() -> Own {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut lines = cgroups.lines();
    let cgroup = lines.find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
    Own { uid: rustix::process::geteuid().as_raw(), cgroup }
}

/// `8080` or `8080:http`.
fn port(text: &str) -> Result<(u16, String)> {
    let (number, protocol) = text.split_once(':').unwrap_or((text, ""));
    match number.parse() {
        Ok(number) if number > 0 => Ok((number, protocol.to_owned())),
        _ => Err(anyhow!(Usage(format!("--port {text:?}: expected PORT or PORT:PROTOCOL")))),
    }
}

/// `10.0.0.0/8` or one address.
fn network(text: &str) -> Result<(IpAddr, u8)> {
    let wrong = || {
        let text = format!("--exclude-outbound-addresses {text:?}: expected ADDRESS or NETWORK/N");
        anyhow!(Usage(text))
    };
    let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
    if bits > most { Err(wrong()) } else { Ok((ip, bits)) }
}

/// A word of a command line that is split as a shell would.
fn quoted(path: impl AsRef<Path>) -> String {
    format!("'{}'", path.as_ref().display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_networks_are_read_or_refused_with_what_is_expected() {
        assert_eq!(port("8080").unwrap(), (8080, String::new()));
        assert_eq!(port("8080:http").unwrap(), (8080, "http".into()));
        for wrong in ["", "0", "x:http", "70000"] {
            assert!(port(wrong).unwrap_err().to_string().contains("PORT:PROTOCOL"), "{wrong}");
        }
        assert_eq!(network("10.0.0.0/8").unwrap(), ("10.0.0.0".parse().unwrap(), 8));
        assert_eq!(network("fd00::1").unwrap(), ("fd00::1".parse().unwrap(), 128));
        for wrong in ["", "10.0.0.0/33", "x/8", "10.0.0.0/x"] {
            assert!(network(wrong).unwrap_err().to_string().contains("NETWORK/N"), "{wrong}");
        }
    }

    #[test]
    fn a_path_stays_one_word() {
        for path in ["/a b/weft", "/it's/weft", "/plain"] {
            let words = weft_agent::command::split(&quoted(path)).unwrap();
            assert_eq!(words, [path]);
        }
    }
}
