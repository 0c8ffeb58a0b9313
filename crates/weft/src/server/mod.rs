// SPDX-License-Identifier: Apache-2.0
//! The server role: store, registry, control, CA and doors in one process; under `weft up` the
//! agent too.

pub mod agency;
mod alarms;
mod consul_args;
pub mod consul_doors;
mod control;
mod drain;
mod explained;
mod facts;
mod hosts;
pub mod link;
pub mod names;
mod open;
mod rates;
mod refusals;
pub mod resolver;
mod scrape;
pub mod shared;
pub mod streams;
pub mod usage;
pub mod vault;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use weft_agent::agent::Agent;
use weft_agent::config::{AgentConfig, ProxyProgram};
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_control::push::{ProxyStatus, Pusher};
use weft_identity::{TrustDomain, provider};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, PodsMode};
use weft_registry::hosts::Hosts;
use weft_registry::servers::Server;
use weft_registry::{NodeInfo, Registry, controllers};
use weft_server::consul::node_id;
use weft_server::k8s::{PodLogs, PodStreams, Pods};
use weft_server::{admin, consul, dns, k8s, serve, tokens};
use weft_store::{DataDir, EtcdStore};

use crate::asked::Asked;
use crate::cli::ServerArgs;
use crate::client::objects::FIELD_MANAGER;
use crate::manifest::Manifest;
use crate::ports::{self, Bound};
use crate::store::etcd::Shared;
use crate::up::{DoorAddresses, announcement};
use crate::{data, print, state_home};
use agency::{AgentLogs, NoLogs};
use alarms::Alarms;
pub use consul_args::ConsulArgs;
pub use consul_doors::Openings;
use drain::Drainer;
use facts::ServerFacts;
use hosts::{AllLogs, AllStreams, HostDoor, HostTokens};
use link::LocalLink;
use streams::{AgentStreams, NoStreams};
use usage::Meters;

const DATACENTER: &str = "dc1";
const CLUSTER_DOMAIN: &str = "cluster.local";
const PROXY_OUTBOUND_PORT: u16 = 15001;
const PROXY_READY_PORT: u16 = 15021;
/// Grace of everything that is stopped with the server.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Pods of this machine at a time.
const PODS_MAX: usize = 1_000;
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// What a server starts with.
#[derive(Debug)]
pub struct Settings {
    pub data: PathBuf,
    pub trust_domain: Option<String>,
    /// This machine's name in the catalog.
    pub node: Option<String>,
    /// The store that it shares with other servers, when it is not the data directory's own.
    pub store: Option<Shared>,
    /// Runs pods as processes of this machine.
    pub agency: Option<Agency>,
    /// What clients of Consul's API may do.
    pub consul: consul::Access,
    /// Where it is served besides its port.
    pub openings: Openings,
}

#[derive(Debug)]
pub struct Agency {
    pub images: Vec<(String, String)>,
    /// Where relative commands start from when a pod does not say: the manifests' folder, so that
    /// `kubectl apply` of the same files means the same programs.
    pub workdir: PathBuf,
    pub access_log: String,
    pub pods: PodsMode,
}

/// A running server.
pub struct Running {
    registry: Registry,
    pusher: Pusher,
    agent: Option<Agent>,
    facts: Arc<ServerFacts>,
    tasks: TaskGroup,
    doors: DoorAddresses,
    data: Arc<DataDir>,
    started: Mono,
    clock: Clock,
    /// The store, when other servers use it, too, and this one among them.
    etcd: Option<(Arc<EtcdStore>, Server)>,
}

/// `weft server`.
pub fn run(args: &ServerArgs) -> Result<()> {
    let settings = Settings {
        data: data::location(args.data.as_deref(), None, &state_home()),
        trust_domain: args.trust_domain.clone(),
        node: args.node.clone(),
        store: args.store.shared()?,
        agency: None,
        consul: args.consul.access()?,
        openings: args.consul.openings()?,
    };
    let leave = settings.consul.leave.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut asked = Asked::listen()?;
        let running = Running::start(settings, ports::bind(&args.doors)?).await?;
        let doors = running.doors();
        crate::say!("API http://{}   consul {}   dns {}", doors.api, doors.consul, doors.dns);
        if let Some(https) = doors.consul_https {
            crate::say!("consul over HTTPS at {https}");
        }
        if let Some(agents) = doors.agents {
            crate::say!("agents join at {agents}: `weft token create` prints the command for them");
        }
        if args.announce {
            print::print_text(&format!("{}\n", announcement(&doors, running.data(), None)));
        }
        tokio::select! {
            () = asked.end_wanted() => {}
            () = left(leave) => {}
        }
        running.stop().await;
        Ok(())
    })
}

/// Until a client of Consul's API ends this server.
async fn left(leave: Option<Arc<tokio::sync::Notify>>) {
    match leave {
        Some(leave) => leave.notified().await,
        None => std::future::pending().await,
    }
}

// === impl Running ===

impl Running {
    pub async fn start(settings: Settings, bound: Bound) -> Result<Self> {
        provider::install();
        let (clock, tasks) = (Clock::system(), TaskGroup::new());
        let started = clock.now();
        let data = Arc::new(DataDir::open(&settings.data)?);
        let node = settings.node.clone().unwrap_or_else(hostname);
        let api = bound.api.local_addr()?;
        let ground = open::ground(&settings, &data, &node, api, (&clock, &tasks)).await?;
        let (registry, authority) = (ground.registry, ground.authority);
        let agents = bound.agents.as_ref().map(|l| l.local_addr()).transpose()?;
        let own = consul_config(&node);
        shared::announce(ground.server.as_ref(), own.server_node(), &registry, &tasks);
        if let Some(agency) = &settings.agency {
            registry.set_pods_mode(agency.pods).await?;
        }
        controllers::run(&registry);
        let (pusher, mesh) = control::start(&registry, authority.trust_domain(), &tasks);
        let link =
            Arc::new(LocalLink { registry: registry.clone(), pusher: pusher.clone(), authority });
        let hosts = Hosts::start(registry.clone(), &node, &tasks).await?;
        let (consul_door, consul_https) =
            consul_doors::start(&settings, &registry, (ground.consul_ca, own), &clock)?;
        let door = host_door(&hosts, &link, &consul_door);
        let listeners = std::iter::once(bound.xds).chain(bound.agents).collect();
        let alarms = Alarms::start(&link.authority, registry.world(), &clock, &tasks)?;
        let xds = control::serve_xds(listeners, &alarms.svid(), &pusher, &registry, &door)?;
        let trust_domain = link.authority.trust_domain();
        let pod_dns = resolver::start(&registry, &node, consul_door.clone())?;
        let agent = match &settings.agency {
            Some(agency) => {
                let address = agents.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.ip());
                registry.register_node(&node_info(&node, address)).await?;
                let mut config = agent_config(agency, &data, (xds, pod_dns), trust_domain)?;
                config.host_ip = address;
                Some(start_agent(&registry, config, &node, link.clone(), &tasks)?)
            }
            None => None,
        };
        let pods = pods_of(agent.as_ref(), door.clone(), &node);
        let facts = Arc::new(ServerFacts {
            world: registry.world(),
            mesh,
            loads: scrape::Loads::new(),
            proxies: Arc::new(pusher.clone()),
            clock: clock.clone(),
            started,
            trust_domain: trust_domain.as_str().to_owned(),
            api: bound.api.local_addr()?,
            servers: shared::follow_servers(&registry, &tasks),
            alarms,
            registry: registry.clone(),
            consul: consul_door.clone(),
            checks: agency::start_checks(&registry, &node, link.clone(), &tasks),
            log: ground.log,
        });
        keep_scraping(&facts, &registry, &tasks);
        let authority = link.authority.clone();
        let tokens = Arc::new(HostTokens { hosts, authority, clock: clock.clone(), agents });
        let drains = Arc::new(Drainer { registry: registry.clone(), pusher: pusher.clone() });
        let Bound { api, consul, dns_tcp, dns_udp, names, .. } = bound;
        let doors = open_doors(
            Doors { api, consul, dns_tcp, dns_udp, names },
            &registry,
            pods,
            Routes { facts: facts.clone(), tokens, drains, consul: consul_door },
        )?;
        let doors = DoorAddresses { xds, agents, pod_dns, consul_https, ..doors };
        let etcd = ground.etcd.zip(ground.server);
        Ok(Self { registry, pusher, agent, facts, tasks, doors, data, started, clock, etcd })
    }

    pub fn doors(&self) -> DoorAddresses {
        self.doors
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    pub fn api_url(&self) -> String {
        format!("http://{}", self.doors.api)
    }

    pub fn facts(&self) -> &ServerFacts {
        &self.facts
    }

    pub fn uptime(&self) -> Duration {
        self.clock.now().since(self.started)
    }

    /// What is not ready yet: workloads without their replicas, Gateways not programmed, and
    /// proxies that have not applied what they should.
    pub fn missing(&self) -> Vec<String> {
        let world = self.registry.now();
        let mut out = Vec::new();
        for kind in [KindId::Deployment, KindId::StatefulSet, KindId::DaemonSet] {
            for object in world.objects(kind, None) {
                let (ready, wanted) = available(object);
                if ready < wanted {
                    let word = kind.row().singular;
                    out.push(format!("{word} {} {ready}/{wanted}", object.key.name));
                }
            }
        }
        for kind in [KindId::Gateway, KindId::IstioGateway] {
            for object in world.objects(kind, None) {
                let name = &object.key.name;
                let node = weft_xds::NodeId::gateway(&object.key.namespace, name);
                if !node.ok().is_some_and(|n| self.is_synced(&n.to_string())) {
                    out.push(format!("gateway {name}{}", not_programmed(object)));
                }
            }
        }
        if out.is_empty() {
            let behind = self.pusher.status().into_iter().filter(|p| p.connected && !p.synced);
            out.extend(behind.map(|p| format!("proxy {}", p.node)));
        }
        out
    }

    fn is_synced(&self, node: &str) -> bool {
        let well = |p: &ProxyStatus| p.connected && p.synced && p.rejected.is_empty();
        self.pusher.status().iter().any(|p| p.node == node && well(p))
    }

    /// Where gateways listen, as URLs.
    pub fn gateways(&self) -> Vec<String> {
        let mut out = Vec::new();
        let refused: HashSet<String> =
            self.pusher.status().into_iter().flat_map(|p| p.rejected).map(|r| r.name).collect();
        for (name, entry) in &self.pusher.resources() {
            if refused.contains(&name.to_string()) {
                continue;
            }
            if let weft_model::Resource::Listener(listener) = &*entry.resource
                && let weft_model::ListenerKind::Gateway(gateway) = &listener.kind
            {
                let tls = gateway.sections.iter().any(|s| s.tls.is_some());
                let any =
                    |p: weft_model::Protocol| gateway.sections.iter().any(|s| s.protocol == p);
                let scheme = if any(weft_model::Protocol::Udp) {
                    "udp"
                } else if any(weft_model::Protocol::Tls) {
                    "tls"
                } else if any(weft_model::Protocol::Tcp) {
                    if tls { "tls" } else { "tcp" }
                } else if tls {
                    "https"
                } else {
                    "http"
                };
                out.extend(gateway.bind.iter().map(|a| format!("{scheme}://{a}")));
            }
        }
        out
    }

    /// Objects that files once said and these do not: `service user -n shop`.
    pub fn applied_before(&self, manifests: &[Manifest]) -> Vec<String> {
        let world = self.registry.now();
        let ours = |object: &&Arc<Object>| {
            let managers = object.raw.pointer("/metadata/managedFields").and_then(Value::as_array);
            managers.into_iter().flatten().any(|m| m["manager"] == FIELD_MANAGER)
        };
        let said = |object: &Object| {
            let key = &object.key;
            manifests.iter().any(|m| {
                (m.kind, m.namespace.as_str(), m.name.as_str())
                    == (key.kind, &*key.namespace, &*key.name)
            })
        };
        let kept = world.all_objects().filter(ours).filter(|o| !said(o) && !o.meta.is_deleting());
        kept.map(|o| {
            let row = o.key.kind.row();
            let place = match row.namespaced {
                true => format!(" -n {}", o.key.namespace),
                false => String::new(),
            };
            format!("{} {}{place}", row.singular, o.key.name)
        })
        .collect()
    }

    /// Ends the pods, then the doors, then everything.
    pub async fn stop(self) {
        if let Some(agent) = &self.agent {
            agent.stop(STOP_GRACE).await;
        }
        self.tasks.shutdown(Duration::from_secs(2)).await;
        if let Some((etcd, server)) = &self.etcd {
            // Its name is free; what only it said ends now rather than with its lease.
            let leaving = async { (server.leave().await, etcd.leave().await) };
            let left = tokio::time::timeout(Duration::from_secs(2), leaving).await;
            tracing::debug!(?left, "left the store");
        }
    }
}

/// The pods of a workload that can be counted on, and how many there should be.
fn available(workload: &Object) -> (u64, u64) {
    let (spec, status) = (&workload.raw["spec"], &workload.raw["status"]);
    let number = |value: &Value| value.as_u64();
    match workload.key.kind {
        KindId::DaemonSet => (
            number(&status["numberAvailable"]).unwrap_or(0),
            number(&status["desiredNumberScheduled"]).unwrap_or(0),
        ),
        _ => (
            number(&status["availableReplicas"]).unwrap_or(0),
            number(&spec["replicas"]).unwrap_or(1),
        ),
    }
}

/// Why a Gateway says that it does not listen.
fn not_programmed(gateway: &Object) -> String {
    let conditions = gateway.raw.pointer("/status/conditions").and_then(Value::as_array);
    let is = |c: &&Value| c["type"] == "Programmed" && c["status"] == "False";
    let message = conditions.into_iter().flatten().find(is).and_then(|c| c["message"].as_str());
    message.map(|m| format!(": {m}")).unwrap_or_default()
}

struct Doors {
    api: std::net::TcpListener,
    consul: std::net::TcpListener,
    dns_tcp: std::net::TcpListener,
    dns_udp: std::net::UdpSocket,
    names: crate::cli::Names,
}

/// What the API door answers besides objects.
struct Routes {
    facts: Arc<ServerFacts>,
    tokens: Arc<HostTokens>,
    drains: Arc<Drainer>,
    /// Answers Consul's API, also for other machines.
    consul: consul::Door,
}

fn open_doors(
    bound: Doors,
    registry: &Registry,
    pods: Pods,
    routes: Routes,
) -> Result<DoorAddresses> {
    let tasks = registry.tasks();
    bound.dns_udp.set_nonblocking(true)?;
    let api = listener(bound.api)?;
    let (consul_door, dns_tcp) = (listener(bound.consul)?, listener(bound.dns_tcp)?);
    let dns_udp = tokio::net::UdpSocket::from_std(bound.dns_udp)?;
    let addresses = DoorAddresses {
        api: api.local_addr()?,
        consul: consul_door.local_addr()?,
        consul_https: None,
        dns: dns_udp.local_addr()?,
        pod_dns: dns_udp.local_addr()?,
        xds: api.local_addr()?,
        agents: None,
    };
    let k8s = k8s::Door::new(registry.clone(), pods, env!("CARGO_PKG_VERSION"));
    let router =
        k8s::router(k8s).merge(admin::router(routes.facts)).merge(tokens::router(routes.tokens));
    let router = router.merge(weft_server::drain::router(routes.drains));
    tasks.spawn("api door", serve::serve(api, router, Arc::new([]), tasks.clone()));
    let door = routes.consul;
    let identity = door.identity().clone();
    tasks.spawn("consul door", door.clone().serve(consul_door, tasks.clone()));
    let zones = dns::Zones { datacenter: DATACENTER.into(), cluster_domain: CLUSTER_DOMAIN.into() };
    let options = names::options(&bound.names, addresses.dns, registry, door)?;
    let rng = Rng::from_system();
    let server = dns::Server::with(registry.world(), identity, zones, rng, options);
    tasks.spawn("dns over udp", server.clone().serve_udp(dns_udp, tasks.clone()));
    tasks.spawn("dns over tcp", server.serve_tcp(dns_tcp, tasks.clone()));
    Ok(addresses)
}

/// What the Consul door says of itself.
fn consul_config(node: &str) -> consul::Config {
    consul_config_at(node, IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The same of a machine that others reach at an address.
pub fn consul_config_at(node: &str, address: IpAddr) -> consul::Config {
    consul::Config {
        node_name: node.to_owned(),
        node_id: node_id(node),
        address,
        datacenter: DATACENTER.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        hosts: Vec::new(),
    }
}

fn listener(socket: std::net::TcpListener) -> Result<tokio::net::TcpListener> {
    socket.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(socket)?)
}

/// What machines ask of this server, their clients' questions included.
fn host_door(hosts: &Hosts, link: &Arc<LocalLink>, consul: &consul::Door) -> HostDoor {
    HostDoor::new(hosts.clone(), link.clone(), CLUSTER_DOMAIN).attached(consul.clone())
}

fn start_agent(
    registry: &Registry,
    config: AgentConfig,
    node: &str,
    link: Arc<LocalLink>,
    tasks: &TaskGroup,
) -> Result<Agent> {
    let node = node.to_owned();
    let desired = agency::derive(registry.world(), tasks, move |w| agency::desired(w, &node));
    Ok(Agent::start(config, desired, link, registry.clock().clone(), tasks)?)
}

#[allow(clippy::disallowed_methods)] // what programs inherit is read here, once
pub fn agent_config(
    agency: &Agency,
    data: &DataDir,
    (xds, pod_dns): (SocketAddr, SocketAddr),
    trust_domain: &TrustDomain,
) -> Result<AgentConfig> {
    let inherited = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "RUST_BACKTRACE"];
    let extra = std::env::vars().filter(|(k, _)| {
        inherited.contains(&k.as_str()) || k.starts_with("SHOP_") || k.starts_with("WEFT_POD_")
    });
    let log = std::env::var("WEFT_LOG").unwrap_or_else(|_| "warn".into());
    Ok(AgentConfig {
        dir: data.sub("run")?,
        log_dir: data.sub("logs")?,
        host_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        base_env: extra.collect(),
        images: agency.images.iter().cloned().collect(),
        workdir: agency.workdir.clone(),
        proxy: Some(ProxyProgram {
            program: std::env::current_exe().context("the own program cannot be found")?,
            args: vec!["proxy".into()],
            common: [
                ("--xds", xds.to_string()),
                ("--trust-domain", trust_domain.as_str().to_owned()),
                ("--cluster-domain", CLUSTER_DOMAIN.to_owned()),
                ("--access-log", agency.access_log.clone()),
                ("--log", log),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect(),
            outbound_port: PROXY_OUTBOUND_PORT,
            ready_port: PROXY_READY_PORT,
            dns: (agency.pods == PodsMode::Namespace).then_some(pod_dns),
            machine_dns: None,
        }),
        hidden: vec![data.path().to_owned()],
        namespaces: agency.pods == PodsMode::Namespace,
        subreaper: true,
    })
}

/// The agent of this process and those of other machines, as the Kubernetes door knows them.
fn pods_of(agent: Option<&Agent>, door: HostDoor, node: &str) -> Pods {
    let own = agent.map(|agent| (agent.clone(), node));
    let meter = Arc::new(Meters::start(door.clone(), own));
    let (logs, streams): (Arc<dyn PodLogs>, Arc<dyn PodStreams>) = match agent {
        Some(a) => (Arc::new(AgentLogs(a.clone())), Arc::new(AgentStreams(a.clone()))),
        None => (Arc::new(NoLogs), Arc::new(NoStreams)),
    };
    Pods {
        logs: Arc::new(AllLogs { own: logs, door: door.clone() }),
        streams: Arc::new(AllStreams { own: streams, door }),
        meter,
    }
}

/// This machine, as the agent tells it.
pub fn node_info(name: &str, address: IpAddr) -> NodeInfo {
    let memory_kb = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    NodeInfo {
        name: name.to_owned(),
        address,
        version: format!("weft-{}", env!("CARGO_PKG_VERSION")),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory_kb.unwrap_or_default() * 1024,
        pods_max: PODS_MAX,
    }
}

fn keep_scraping(facts: &Arc<ServerFacts>, registry: &Registry, tasks: &TaskGroup) {
    let (facts, registry, group) = (facts.clone(), registry.clone(), tasks.clone());
    tasks.spawn("load", async move {
        loop {
            tokio::select! {
                () = group.draining() => return,
                () = tokio::time::sleep(SCRAPE_EVERY) => {}
            }
            let world = facts.world.load();
            if world.objects(KindId::Pod, None).any(|o| matches!(o.view, View::Pod(_))) {
                facts.loads.refresh(&world, &facts.clock).await;
                let (pods, services) = facts.loads.requests(&world);
                registry.note_requests(pods, services);
            }
        }
    });
}

/// The machine's name as an object name.
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    weft_base::name::slug(name.split('.').next().unwrap_or("host"))
}
