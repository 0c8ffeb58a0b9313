// SPDX-License-Identifier: Apache-2.0
//! `weft agent`: this machine as a host of a mesh whose server runs elsewhere. It joins with a
//! token, runs the pods that the server places here, and says how they are.
//!
//! When the server cannot be reached everything here goes on as it was last told.

mod captured;
pub mod identity;
mod link;
pub mod local;
mod meter;
mod names;
mod outbox;
mod relay;
mod session;
pub mod visits;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;
use weft_agent::agent::{Agent, Desired};
use weft_agent::checks::{Checks, Runner};
use weft_base::clock::Clock;
use weft_base::name::{Label, slug};
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_identity::join::{CaPin, JoinText};
use weft_identity::provider;
use weft_kinds::world::PodsMode;
use weft_store::DataDir;
use weft_xds::agent::Host;

use crate::asked::Asked;
use crate::cli::AgentArgs;
use crate::exit::Usage;
use crate::server::{self, Agency};
use crate::{capture, manifest, print, state_home};
use link::RemoteLink;
use local::Own;

/// The server's port when `--server` names none.
const SERVER_PORT: u16 = 15012;
/// What pods get when the agent is asked to end.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What an agent was told at its start.
struct Setup {
    /// Any of them will do.
    servers: Vec<SocketAddr>,
    /// Where they are asked: the only one, or the relay that leads to them.
    server: SocketAddr,
    token: Option<JoinText>,
    name: Label,
    address: Option<IpAddr>,
    data: Arc<DataDir>,
}

pub fn run(args: &AgentArgs) -> Result<()> {
    provider::install();
    let mut setup = Setup::read(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut asked = Asked::listen()?;
        let (clock, tasks) = (Clock::system(), TaskGroup::new());
        setup.server = relay::start(&setup.servers, &tasks).await?;
        let outcome = tokio::select! {
            outcome = serve(args, &setup, &clock, &tasks) => outcome,
            () = asked.end_wanted() => Ok(None),
        };
        let outcome = match outcome {
            Ok(Some(running)) => {
                let ended = tokio::select! {
                    ended = running.session.removed() => Err(ended),
                    () = asked.end_wanted() => Ok(()),
                };
                crate::say!("ending: every process gets SIGTERM and its grace period");
                // Who was removed by others leaves the rules: what was captured is refused.
                let captured = running.captured.as_ref().filter(|_| ended.is_ok());
                if let Some(captured) = captured {
                    captured.leave(&running.agent).await;
                }
                running.agent.stop(STOP_GRACE).await;
                let left = captured.map_or(Ok(()), captured::Captured::end);
                running.session.leave().await;
                ended.and(left)
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        tasks.shutdown(Duration::from_secs(2)).await;
        outcome
    })
}

struct Running {
    agent: Agent,
    captured: Option<captured::Captured>,
    session: session::Session,
}

/// Joins, if need be, waits for the server, and starts what it says.
async fn serve(
    args: &AgentArgs,
    setup: &Setup,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<Option<Running>> {
    let address = match setup.address {
        Some(address) => address,
        None => own_address(setup.servers.first().copied().unwrap_or(setup.server)).await?,
    };
    let host = describe(setup, args, address)?;
    let workload = captured::Workload::read(&args.captured, address)?;
    if workload.is_none() && capture::end_leftover(setup.data.path())? {
        crate::say!("removed the capture rules of an earlier run");
    }
    let identity = identity::obtain(setup, &host, clock).await?;
    let trust_domain = identity.load().bundle().trust_domain().clone();
    let client = identity::client(setup.server, &identity, clock)?;
    identity::keep_fresh(setup, &client, identity, clock, tasks);
    let link = Arc::new(RemoteLink::start(client.clone(), tasks));
    let session = session::start(client.clone(), host.clone(), link.clone(), (clock, tasks));
    // What is registered with this machine is there without a server.
    let own = Own { node: host.name.clone(), address, data: setup.data.clone() };
    let local = local::start(&args.local, own, (&client, &session), (clock, tasks)).await?;
    // Nothing is ended or started before the server has said what should be here.
    let (desired, checks) = session.first().await?;
    let agency = Agency {
        images: manifest::images(&args.images)?,
        workdir: args.workdir.clone().map_or_else(std::env::current_dir, Ok)?,
        access_log: args.access_log.clone(),
        pods: PodsMode::Process,
    };
    // Pods run as processes here, so nobody asks the second one.
    let doors = (setup.server, setup.server);
    let mut config = server::agent_config(&agency, &setup.data, doors, &trust_domain)?;
    config.host_ip = address;
    let captured = match workload {
        Some(workload) => {
            let here = (setup.data.path(), &mut config);
            let desired = desired.clone();
            Some(workload.start((&client, &host), here, desired, (clock, tasks)).await?)
        }
        None => None,
    };
    let agent = start(config, desired, checks, link, clock, tasks)?;
    crate::say!("host {} at {address}, of the mesh at {}", setup.name, setup.server);
    if args.announce {
        let line = json!({
            "consul": local.consul.map(|at| at.to_string()),
            "dns": local.dns.map(|at| at.to_string()),
            "weft": "agent", "name": setup.name.as_str(), "address": address.to_string(),
            "server": setup.server.to_string(), "pid": std::process::id(),
            "data": setup.data.path().display().to_string(),
        });
        print::print_text(&format!("{line}\n"));
    }
    Ok(Some(Running { agent, captured, session }))
}

fn start(
    config: weft_agent::config::AgentConfig,
    desired: Snapshot<Desired>,
    checks: Snapshot<Checks>,
    link: Arc<RemoteLink>,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<Agent> {
    Runner::start(checks, link.clone(), clock.clone(), Rng::from_system(), tasks);
    let agent = Agent::start(config, desired, link.clone(), clock.clone(), tasks)?;
    link.attach(&agent, clock);
    Ok(agent)
}

// === impl Setup ===

impl Setup {
    fn read(args: &AgentArgs) -> Result<Self> {
        let usage = |text: String| anyhow!(Usage(text));
        let servers = args.server.split(',').map(|named| address(named.trim()));
        let servers = servers.collect::<Result<Vec<SocketAddr>>>()?;
        let server = servers.first().copied();
        let server = server.ok_or_else(|| usage("--server names none".to_owned()))?;
        let name = args.name.clone().unwrap_or_else(|| slug(&server::hostname()));
        let name = Label::new(&name).map_err(|e| usage(format!("--name: {e}")))?;
        let data = match &args.data {
            Some(path) => std::path::absolute(path)?,
            None => state_home().join("weft/agent"),
        };
        Ok(Self {
            servers,
            server,
            token: token(args)?,
            name,
            address: args.address,
            data: Arc::new(DataDir::open(&data)?),
        })
    }

    fn identity_file(&self) -> PathBuf {
        self.data.path().join("host.pem")
    }

    /// Which token the machine joined with.
    fn token_file(&self) -> PathBuf {
        self.data.path().join("host.token")
    }
}

/// The first address of one server.
fn address(named: &str) -> Result<SocketAddr> {
    let usage = |text: String| anyhow!(Usage(text));
    let named = match named.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => named.to_owned(),
        _ => format!("{named}:{SERVER_PORT}"),
    };
    let found = named.to_socket_addrs().map(|mut all| all.next());
    found
        .map_err(|e| usage(format!("--server {named}: {e}")))?
        .ok_or_else(|| usage(format!("--server {named}: the name has no address")))
}

/// The token, from the flag or a file, with the pin of its authority.
fn token(args: &AgentArgs) -> Result<Option<JoinText>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))
    };
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => return Ok(None),
    };
    let mut token: JoinText =
        text.parse().map_err(|e| anyhow!(Usage(format!("the token is damaged: {e}"))))?;
    if let Some(pin) = &args.ca_pin {
        let pin: CaPin = pin.parse().map_err(|e| anyhow!(Usage(format!("--ca-pin: {e}"))))?;
        token.pin = Some(pin);
    }
    Ok(Some(token))
}

/// This machine's address towards the server.
async fn own_address(server: SocketAddr) -> Result<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() {
        SocketAddr::from(([0, 0, 0, 0], 0))
    } else {
        SocketAddr::from(([0; 16], 0))
    };
    // Connecting a datagram socket sends nothing; it asks the system for the way.
    let socket = tokio::net::UdpSocket::bind(any).await?;
    let way = socket.connect(server).await;
    way.with_context(|| format!("there is no way to {server}; name an own --address"))?;
    Ok(socket.local_addr()?.ip())
}

/// What this machine says of itself.
fn describe(setup: &Setup, args: &AgentArgs, address: IpAddr) -> Result<Host> {
    let node = server::node_info(setup.name.as_str(), address);
    let label = |text: &String| {
        let pair = text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        pair.ok_or_else(|| anyhow!(Usage(format!("--label {text:?} is not KEY=VALUE"))))
    };
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let instance = provider::random::<8>()?;
    Ok(Host {
        name: setup.name.to_string(),
        addresses: vec![address],
        labels: args.labels.iter().map(label).collect::<Result<_>>()?,
        version: node.version,
        boot_id: boot_id.trim().to_owned(),
        instance: instance.iter().map(|b| format!("{b:02x}")).collect(),
        kernel: node.kernel,
        cpus: u32::try_from(node.cpus).unwrap_or(u32::MAX),
        memory_bytes: node.memory_bytes,
        pods_max: u32::try_from(node.pods_max).unwrap_or(u32::MAX),
    })
}
