// SPDX-License-Identifier: Apache-2.0
//! This machine's own Consul door and DNS door. What is registered here lives in a registry of
//! the machine's own (a store in its data directory), is checked here, and is told to the server
//! ([`sync`]); everything else is the server's to answer ([`way`]).
//!
//! Started by `weft agent` before any server has answered: what is registered here is there, and
//! is checked, without one.

mod alone;
mod files;
mod parts;
mod secrets;
mod sync;
mod way;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use weft_agent::checks::{CheckReport, CheckSink, Runner};
use weft_agent::link::{BoxFuture, LinkError};
use weft_base::clock::Clock;
use weft_base::limits::DNS_QUESTIONS_PER_SOURCE;
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_registry::Registry;
use weft_registry::catalog::Runnable;
use weft_server::consul::{Access, Config, Door};
use weft_server::dns::{Mesh, Options, Server};
use weft_store::{DataDir, RedbStore, Store};
use weft_xds::agent::client::AgentClient;

use super::names::Names;
use super::session::Session;
use crate::exit::Usage;
use crate::server::{self, agency, link, resolver};
use alone::Alone;
use way::Way;

/// The doors of this machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Consul's API and DNS on this machine")]
pub struct LocalArgs {
    /// Loopback address of this machine's own Consul API, or `none`. Default, where nobody else
    /// has it: 127.0.0.1:8500, as Consul's agents.
    #[arg(long, env = "WEFT_CONSUL_LISTEN", value_name = "ADDRESS:PORT|none")]
    pub consul_listen: Option<String>,
    /// The same for DNS, over UDP and TCP. Default, where nobody else has it: 127.0.0.1:8600.
    #[arg(long, env = "WEFT_DNS_LISTEN", value_name = "ADDRESS:PORT|none")]
    pub dns_listen: Option<String>,
    /// As long as no server was there, leave instances whose checks warn out of DNS; from then on
    /// it is the server's to say.
    #[arg(long, env = "WEFT_DNS_ONLY_PASSING")]
    pub dns_only_passing: bool,
    /// Resolver that this machine's DNS asks for names that are not the mesh's; may be given
    /// several times, in order. Without one they are refused.
    #[arg(long = "dns-recursor", env = "WEFT_DNS_RECURSORS", value_name = "ADDRESS[:PORT]",
          value_delimiter = ',', value_parser = crate::cli::resolver)]
    pub recursors: Vec<SocketAddr>,
    /// A name that clients reach Consul's API under besides addresses, localhost and the machine's
    /// own under .consul; requests for any other are refused. May be given several times.
    #[arg(long, env = "WEFT_CONSUL_HOST", value_name = "NAME", value_delimiter = ',',
          value_parser = server::consul_doors::host)]
    pub consul_host: Vec<String>,
    /// Folder with definitions of services and checks of this machine, `*.json` as Consul's
    /// agents read them. Only these may name programs as checks.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
}

/// The doors as they are open.
#[derive(Debug, Default)]
pub struct Local {
    pub consul: Option<SocketAddr>,
    pub dns: Option<SocketAddr>,
}

/// Whose doors these are.
#[derive(Clone, Debug)]
pub struct Own {
    pub node: String,
    pub address: IpAddr,
    pub data: Arc<DataDir>,
}

/// Where Consul's agents have their doors.
const USUAL_CONSUL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8500);
const USUAL_DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8600);

/// Where a door is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    /// Nobody said: there, unless another program is.
    Usual(SocketAddr),
    Asked(SocketAddr),
}

// === impl Place ===

impl Place {
    /// What a flag says; only this machine may reach the door.
    fn read(text: Option<&str>, flag: &str, usual: SocketAddr) -> Result<Self> {
        let usage = |text: String| anyhow!(Usage(text));
        match text.map(|text| (text, text.parse::<SocketAddr>())) {
            None => Ok(Self::Usual(usual)),
            Some(("none", _)) => Ok(Self::Nowhere),
            Some((_, Ok(at))) if at.ip().is_loopback() => Ok(Self::Asked(at)),
            Some((_, Ok(at))) => Err(usage(format!(
                "{flag} {at}: only loopback addresses are served, since whoever reaches the door \
                 may use it; name 127.0.0.1 or ::1"
            ))),
            Some((_, Err(_))) => Err(usage(format!("{flag}: expected ADDRESS:PORT, or none"))),
        }
    }

    /// Opens it, if it is to be and can be.
    fn open<T>(
        self,
        flag: &str,
        bind: impl Fn(SocketAddr) -> std::io::Result<T>,
    ) -> Result<Option<T>> {
        match self {
            Self::Nowhere => Ok(None),
            Self::Asked(at) => bind(at).map(Some).with_context(|| format!("{flag} {at}")),
            Self::Usual(at) => match bind(at) {
                Ok(door) => Ok(Some(door)),
                Err(why) => {
                    tracing::info!(%at, %why, flag, "this door stays closed; name another place");
                    Ok(None)
                }
            },
        }
    }
}

/// Opens the doors that are wanted, before anything else starts.
///
/// # Errors
/// When one cannot be where it was asked for, or the machine's own registry cannot be opened.
pub async fn start(
    args: &LocalArgs,
    own: Own,
    (client, session): (&AgentClient, &Session),
    (clock, tasks): (&Clock, &TaskGroup),
) -> Result<Local> {
    let flag = "--consul-listen";
    let consul = Place::read(args.consul_listen.as_deref(), flag, USUAL_CONSUL)?;
    let consul = consul.open(flag, std::net::TcpListener::bind)?;
    let flag = "--dns-listen";
    let dns = Place::read(args.dns_listen.as_deref(), flag, USUAL_DNS)?.open(flag, both)?;
    let mut local = Local::default();
    let names = Names::of_machine(client.clone(), clock.clone(), session.contact());
    if let Some((udp, _)) = &dns {
        local.dns = Some(udp.local_addr()?);
        names.keep_fresh(tasks);
    }
    if consul.is_none() && args.config_dir.is_none() {
        if let Some(dns) = dns {
            serve_dns(names, dns, &args.recursors, (clock, tasks))?;
        }
        return Ok(local);
    }
    let registry = own_registry(&own, clock, tasks).await?;
    let node: Arc<str> = own.node.as_str().into();
    forget_others(&registry, &node).await?;
    let wanted = agency::derive(registry.world(), tasks, {
        let (node, mut known) = (node.clone(), Runnable::default());
        move |world| agency::checks(world, &node, &mut known)
    });
    let sink = Arc::new(Here(registry.clone()));
    Runner::start(wanted, sink, clock.clone(), Rng::from_system(), tasks);
    let way = Way::start(client, session.contact(), own.data.path(), (clock, tasks));
    let hosts = args.consul_host.clone();
    let config = Config { hosts, ..server::consul_config_at(&own.node, own.address) };
    if let Some(dns) = dns {
        let own = Arc::new(config.identity());
        let own = resolver::of_own(&registry, own, args.dns_only_passing);
        let names = Arc::new(Alone { names, own, way: way.clone() });
        serve_dns(names, dns, &args.recursors, (clock, tasks))?;
    }
    let access = Access { far: Some(way.clone()), ..Access::default() };
    let door = Door::with_access(&registry, config, access, tasks);
    if let Some(dir) = &args.config_dir {
        files::take(dir, &door, (&registry, &node), (own.data.path(), tasks)).await?;
    }
    // Not before: what the files define would not be named, and the server would remove it.
    sync::start((registry, node), way, client.clone(), tasks);
    if let Some(listener) = consul {
        local.consul = Some(listener.local_addr()?);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn("consul door", door.serve(listener, tasks.clone()));
    }
    Ok(local)
}

/// The same port for UDP and TCP.
fn both(at: SocketAddr) -> std::io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let mut last = None;
    for _ in 0..32 {
        let tcp = std::net::TcpListener::bind(at)?;
        match std::net::UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(why) if at.port() == 0 => last = Some(why),
            Err(why) => return Err(why),
        }
    }
    Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()))
}

fn serve_dns(
    names: Arc<dyn Mesh>,
    (udp, tcp): (std::net::UdpSocket, std::net::TcpListener),
    recursors: &[SocketAddr],
    (clock, tasks): (&Clock, &TaskGroup),
) -> Result<()> {
    let upstream = server::names::upstream(recursors, udp.local_addr()?, clock)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let udp = tokio::net::UdpSocket::from_std(udp)?;
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let per_source = Some(DNS_QUESTIONS_PER_SOURCE);
    let options = Options { per_source, upstream, ..Options::new(clock.clone()) };
    let server = Server::elsewhere_with(names, options);
    tasks.spawn("dns over udp", server.clone().serve_udp(udp, tasks.clone()));
    tasks.spawn("dns over tcp", server.serve_tcp(tcp, tasks.clone()));
    Ok(())
}

async fn own_registry(own: &Own, clock: &Clock, tasks: &TaskGroup) -> Result<Registry> {
    let store = RedbStore::open(own.data.clone(), clock.clone());
    let store: Arc<dyn Store> = Arc::new(store.with_context(|| {
        let data = own.data.path().display();
        format!(
            "what is registered with this machine, in {data}, cannot be opened; see what \
                 `weft store check --data {data}` says, or remove {data}/store and register anew"
        )
    })?);
    Ok(Registry::open(store, clock.clone(), tasks.clone()).await?)
}

/// A machine that was given another name has nothing under the old one.
async fn forget_others(registry: &Registry, node: &str) -> Result<()> {
    let world = registry.now();
    let others: Vec<Arc<str>> =
        world.catalog().nodes().map(|(name, _)| name.clone()).filter(|n| **n != *node).collect();
    drop(world);
    for other in others {
        tracing::warn!(node = %other, "what was registered under this machine's old name is gone");
        registry.catalog().deregister_node(&other).await?;
    }
    Ok(())
}

/// Takes results of this machine's own checks.
struct Here(Registry);

impl CheckSink for Here {
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        link::report_checks(self.0.clone(), reports)
    }
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Here")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_for_this_machine_alone() {
        let read = |text: Option<&str>| Place::read(text, "--consul-listen", USUAL_CONSUL);
        assert_eq!(read(None).unwrap(), Place::Usual("127.0.0.1:8500".parse().unwrap()));
        assert_eq!(read(Some("none")).unwrap(), Place::Nowhere);
        assert_eq!(read(Some("[::1]:1")).unwrap(), Place::Asked("[::1]:1".parse().unwrap()));
        for (wrong, word) in [("0.0.0.0:8500", "loopback"), ("8500", "ADDRESS:PORT")] {
            let why = read(Some(wrong)).unwrap_err().to_string();
            assert!(why.contains(word), "{wrong}: {why}");
        }
    }

    #[test]
    fn a_usual_place_that_is_taken_stays_closed_and_one_that_was_asked_for_is_an_error() {
        let at = (Ipv4Addr::LOCALHOST, weft_testkit::ports::free()).into();
        let taken = std::net::TcpListener::bind(at).unwrap();
        let open = |place: Place| place.open("--consul-listen", std::net::TcpListener::bind);
        assert!(open(Place::Usual(at)).unwrap().is_none());
        let why = format!("{:#}", open(Place::Asked(at)).unwrap_err());
        assert!(why.contains(&format!("--consul-listen {at}")), "{why}");
        assert!(open(Place::Nowhere).unwrap().is_none());
        drop(taken);
        assert!(open(Place::Usual(at)).unwrap().is_some());
    }

    #[test]
    fn the_api_is_asked_under_the_names_that_its_operator_adds() {
        #[derive(Debug, clap::Parser)]
        struct Args {
            #[command(flatten)]
            local: LocalArgs,
        }
        let read =
            |hosts: &str| <Args as clap::Parser>::try_parse_from(["x", "--consul-host", hosts]);
        assert_eq!(read("consul,Mesh.LAN").unwrap().local.consul_host, ["consul", "mesh.lan"]);
        let why = read("mesh.lan:8500").unwrap_err().to_string();
        assert!(why.contains("without a port"), "{why}");
    }

    #[test]
    fn dns_has_one_port_for_both() {
        let (udp, tcp) = both("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        assert!(both(tcp.local_addr().unwrap()).is_err(), "it is taken");
    }
}
