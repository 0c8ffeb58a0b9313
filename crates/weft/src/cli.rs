// SPDX-License-Identifier: Apache-2.0
//! The command line, as one declaration: help, completions and man pages derive from it.
//! Flags win over `WEFT_*` environment variables, which win over defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const ACCESS_LOGS: [&str; 4] = ["text", "json", "failures", "off"];

/// A service mesh in one binary: registry, control plane, proxy and gateway, CA, monitoring.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Begin with `weft up examples/shop`. `weft help topics` lists what is explained \
                  offline.\nExit codes: 0 ok, 1 failed, 2 usage, 3 a check did not hold, 4 server \
                  unreachable."
)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// What to log, for example `info` or `weft_proxy=debug`.
    #[arg(long, env = "WEFT_LOG", default_value = "warn", global = true)]
    pub log: String,
    /// Log lines as JSON.
    #[arg(long, env = "WEFT_LOG_JSON", global = true)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run manifests as local processes with server, gateway and sidecars, for development.
    Up(Box<UpArgs>),
    /// Run one program as an instance of a service, registered for as long as it lives.
    Run(Box<crate::run::RunArgs>),
    /// Stop a running `weft up`.
    Down(DataArgs),
    /// Stop it and delete its data: store, certificates, logs.
    Reset(ResetArgs),
    /// Run the server: registry, control plane, CA and doors.
    Server(Box<ServerArgs>),
    /// The store of a server at rest: check, repair, backup, restore, migrate.
    #[command(subcommand)]
    Store(crate::store::StoreCommand),
    /// Make this machine a host of a mesh whose server runs elsewhere, and run pods on it.
    Agent(Box<AgentArgs>),
    /// Join tokens, with which machines become hosts.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Run one proxy (`weft up` and agents start these themselves), or ask about all: `status`.
    Proxy(Box<ProxyArgs>),
    /// Create or change objects from files (server-side apply).
    Apply(ApplyArgs),
    /// Show objects: `weft get pods -n shop`; also `weft get endpoints`.
    Get(GetArgs),
    /// Show one object with its status and conditions.
    Describe(DescribeArgs),
    /// Delete objects by file or name.
    Delete(DeleteArgs),
    /// Why a request would be answered as it would be: route, policies, instances.
    Explain(Box<ExplainArgs>),
    /// Let requests go to others while an instance finishes what it has.
    Drain(crate::drain::DrainArgs),
    /// What is running, what is not healthy, and why.
    Status(ClientArgs),
    /// Requests per second, errors and latency per service, refreshed.
    Top(TopArgs),
    /// Mutual TLS: who is encrypted, and what can be bypassed.
    #[command(subcommand)]
    Mtls(MtlsCommand),
    /// Write a kubeconfig for kubectl and Kubernetes clients.
    Kubeconfig(KubeconfigArgs),
    /// Print the JSON Schema of a kind, for editors; without KIND, list the kinds.
    Schema(SchemaArgs),
    /// Explain a topic offline.
    Help(HelpArgs),
    /// Print shell completions.
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory.
    Man {
        /// Directory to write into; made when it does not exist.
        #[arg(default_value = "man")]
        dir: PathBuf,
    },
    /// Print the version.
    Version,
    /// Hold the network of pods in namespaces (agents start this themselves).
    #[command(hide = true)]
    PodNet {
        /// Try what pods need, and end.
        #[arg(long)]
        trial: bool,
    },
    /// Hold the namespaces of one pod (agents start this themselves).
    #[command(hide = true)]
    PodInit { file: PathBuf },
    /// Run a program in a pod (agents start this themselves).
    #[command(hide = true)]
    PodExec { file: PathBuf },
    /// Hold the rules that capture programs of this machine (agents start this themselves).
    #[command(hide = true)]
    PodCapture { file: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum MtlsCommand {
    /// Per service: encrypted or not, and whether it can be bypassed.
    Report(ClientArgs),
}

#[derive(Debug, Args, Clone)]
pub struct DataArgs {
    /// Manifest folder or file whose run is meant (its data directory is derived from it).
    pub path: Option<PathBuf>,
    /// Data directory; default `$XDG_STATE_HOME/weft/NAME`.
    #[arg(long, env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ResetArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Args, Clone)]
pub struct Doors {
    /// `fixed` uses the ports below; `auto` takes free ones and prints them.
    #[arg(long, env = "WEFT_PORTS", value_enum, default_value_t = Ports::Fixed)]
    pub ports: Ports,
    /// Address that the doors bind. Anything but loopback is refused until TLS and tokens guard
    /// them.
    #[arg(long, env = "WEFT_BIND", default_value = "127.0.0.1")]
    pub bind: IpAddr,
    /// Kubernetes-style API.
    #[arg(long, env = "WEFT_API_PORT", default_value_t = 7080)]
    pub api_port: u16,
    /// Consul HTTP API.
    #[arg(long, env = "WEFT_CONSUL_PORT", default_value_t = 8500)]
    pub consul_port: u16,
    /// DNS, UDP and TCP.
    #[arg(long, env = "WEFT_DNS_PORT", default_value_t = 8600)]
    pub dns_port: u16,
    /// xDS and agents, over mTLS.
    #[arg(long, env = "WEFT_XDS_PORT", default_value_t = 15012)]
    pub xds_port: u16,
    /// Address at which agents of other machines reach this server: opens the mTLS port there
    /// too. No other door is opened on it.
    #[arg(long, env = "WEFT_AGENTS_BIND", value_name = "ADDRESS")]
    pub agents_bind: Option<IpAddr>,
    #[command(flatten)]
    pub names: Names,
}

#[derive(Debug, Args, Clone, Default)]
pub struct Names {
    /// Address that the DNS door binds, if not that of the other doors: names may be asked for
    /// from other machines.
    #[arg(long, env = "WEFT_DNS_BIND", value_name = "ADDRESS")]
    pub dns_bind: Option<IpAddr>,
    /// Resolver that the DNS door asks for names that are not the mesh's, for clients of private
    /// networks; may be given several times, in order. Without one they are refused.
    #[arg(long = "dns-recursor", env = "WEFT_DNS_RECURSORS", value_name = "ADDRESS[:PORT]",
          value_delimiter = ',', value_parser = resolver)]
    pub recursors: Vec<SocketAddr>,
    /// Questions over UDP that each source may ask the DNS door in a second; 0 is without bound.
    /// Unless it is given it is 1000, and loopback is not counted.
    #[arg(long, env = "WEFT_DNS_RATE", value_name = "QUESTIONS")]
    pub dns_rate: Option<u32>,
    /// Leave instances whose checks warn out of Consul's names: those that pass only.
    #[arg(long, env = "WEFT_DNS_ONLY_PASSING")]
    pub dns_only_passing: bool,
}

pub fn resolver(text: &str) -> Result<SocketAddr, String> {
    let parsed = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)));
    parsed.map_err(|_| format!("{text:?} is no address; write 10.0.0.2 or 10.0.0.2:53"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ports {
    Fixed,
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pods {
    /// In namespaces where this system allows it, else as processes; says which and why.
    Auto,
    /// As in a cluster: own address, usual ports, nothing that an app must do.
    Namespace,
    /// Plain processes that are told where to listen and whom to ask.
    Process,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Folders and files with manifests (YAML or JSON). Default: the current folder.
    pub paths: Vec<PathBuf>,
    /// Data directory; default `$XDG_STATE_HOME/weft/NAME`.
    #[arg(long, env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub doors: Doors,
    /// Runs a local command for an image name: `--image user-service:1.0=./user.py`.
    #[arg(long = "image", value_name = "IMAGE=COMMAND")]
    pub images: Vec<String>,
    /// Runs pods as plain processes, or in namespaces of their own with captured traffic.
    #[arg(long, env = "WEFT_PODS", value_enum, default_value_t = Pods::Process)]
    pub pods: Pods,
    /// Trust domain of identities; fixed at the first start.
    #[arg(long, env = "WEFT_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// Skip the build commands that manifests declare.
    #[arg(long)]
    pub no_build: bool,
    /// Seconds after which the doors are announced though not all is ready.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub ready_timeout: u64,
    /// Print plain lines even on a terminal.
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON line with every door's address once all is ready.
    #[arg(long)]
    pub announce: bool,
    /// Access log of the gateway and sidecars.
    #[arg(long, env = "WEFT_ACCESS_LOG", default_value = "text", value_parser = ACCESS_LOGS)]
    pub access_log: String,
}

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Data directory; default `$XDG_STATE_HOME/weft/server`.
    #[arg(long, env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub doors: Doors,
    /// Trust domain of identities; fixed at the first start.
    #[arg(long, env = "WEFT_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// Name of this machine in the catalog.
    #[arg(long, env = "WEFT_NODE")]
    pub node: Option<String>,
    /// Print one JSON line with every door's address once all is ready.
    #[arg(long)]
    pub announce: bool,
    #[command(flatten)]
    pub store: crate::store::etcd::StoreArgs,
    #[command(flatten)]
    pub consul: crate::server::ConsulArgs,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The server's mTLS port (`--agents-bind`), `HOST:15012`; several servers with commas between.
    #[arg(long, env = "WEFT_AGENT_SERVER", value_name = "HOST:PORT,...")]
    pub server: String,
    /// Join token from `weft token create`; needed until the machine has joined.
    #[arg(long, env = "WEFT_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the join token, so that it stands in no list of processes.
    #[arg(long, conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The authority that may answer, instead of the one that the token names.
    #[arg(long, value_name = "sha256:HEX")]
    pub ca_pin: Option<String>,
    /// Name of this machine in the mesh; default its host name.
    #[arg(long, env = "WEFT_NODE")]
    pub name: Option<String>,
    /// Address at which other machines reach this one; default the one towards the server.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// Data directory; default `$XDG_STATE_HOME/weft/agent`.
    #[arg(long, env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
    /// Labels of this machine, for node selectors: `--label disk=ssd`.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Runs a local command for an image name: `--image user-service:1.0=./user.py`.
    #[arg(long = "image", value_name = "IMAGE=COMMAND")]
    pub images: Vec<String>,
    /// Where programs start and relative ones are looked for; default the current folder.
    #[arg(long)]
    pub workdir: Option<PathBuf>,
    /// Access log of the sidecars.
    #[arg(long, env = "WEFT_ACCESS_LOG", default_value = "text", value_parser = ACCESS_LOGS)]
    pub access_log: String,
    /// Print one JSON line once the machine is a host.
    #[arg(long)]
    pub announce: bool,
    #[command(flatten)]
    pub captured: CaptureArgs,
    #[command(flatten)]
    pub local: crate::agent::local::LocalArgs,
}

/// Programs of the machine that did not come from weft, meshed as one workload.
#[derive(Debug, Args)]
#[command(next_help_heading = "Programs of this machine")]
pub struct CaptureArgs {
    /// Take what programs of a user or a control group (version 2) of this machine send, and what
    /// is sent to their `--port`s, through a sidecar. Users may be several: `user=shop,1002`.
    #[arg(long, value_name = "user=NAME|cgroup=/PATH", requires = "service_account")]
    pub capture: Vec<String>,
    /// Who they are in the mesh; the join token must name it (`weft token create --allow`).
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "capture")]
    pub service_account: Option<String>,
    /// The Service that they are an instance of; made for the `--port`s when it is not there.
    #[arg(long, value_name = "NAME", requires = "capture")]
    pub service: Option<String>,
    /// Where they listen, and what they speak there: `--port 8080:http`; may be repeated.
    #[arg(long = "port", value_name = "PORT[:PROTOCOL]", requires = "capture")]
    pub ports: Vec<String>,
    /// Labels that Services and policies select them by; may be repeated.
    #[arg(long = "workload-label", value_name = "KEY=VALUE", requires = "capture")]
    pub workload_labels: Vec<String>,
    /// Ports of theirs that are reached without the sidecar.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', requires = "capture")]
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports that they reach without the sidecar; 53 leaves their names to this machine.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', requires = "capture")]
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses and networks that they reach without the sidecar.
    #[arg(long, value_name = "NETWORK,...", value_delimiter = ',', requires = "capture")]
    pub exclude_outbound_addresses: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for one machine; it is shown once.
    Create(TokenCreateArgs),
    /// The tokens that are there, without their secrets.
    List(ClientArgs),
    /// Delete a token by its id, or the beginning of it.
    Delete {
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// The name that the machine must join with; with it a name that is in the mesh can be given
    /// to another machine. Default: any name that is free.
    #[arg(long)]
    pub host: Option<String>,
    /// How long it may be used, an hour at most: `10m`.
    #[arg(long)]
    pub ttl: Option<String>,
    /// Place only pods of this service account there, and sign for no others; may be repeated.
    /// Default: all.
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    pub allow: Vec<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// What each proxy was sent, what it applied, and what it refused.
    Status(ClientArgs),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ProxyArgs {
    #[command(subcommand)]
    pub command: Option<ProxyCommand>,
    /// Serve what this file says, with no control plane; it is read again when it changes.
    #[arg(long, short = 'c', value_name = "FILE", conflicts_with = "xds")]
    pub config: Option<PathBuf>,
    /// Serve an Envoy bootstrap (JSON or YAML) in the same way.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["xds", "config"])]
    pub envoy: Option<PathBuf>,
    /// What weft does not do of the bootstrap is a warning; without this nothing starts.
    #[arg(long, requires = "envoy")]
    pub allow_unsupported: bool,
    #[command(flatten)]
    pub succession: crate::proxy::Succession,
    /// Only say whether the file, and what is said beside it, can be served.
    #[arg(long, conflicts_with = "xds")]
    pub check: bool,
    /// Who this proxy is: `sidecar~NAMESPACE~POD` or `gateway~NAMESPACE~GATEWAY`.
    #[arg(long, default_value = "standalone")]
    pub node: String,
    /// Address that its own ports bind.
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// Control plane to subscribe to.
    #[arg(long)]
    pub xds: Option<SocketAddr>,
    /// Unix socket of the agent that hands out the SVID.
    #[arg(long)]
    pub svid_socket: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Worker threads; default 1 for sidecars, cores up to 8 for gateways.
    #[arg(long)]
    pub workers: Option<usize>,
    /// File with the credential that the forward proxy asks for.
    #[arg(long)]
    pub credential: Option<PathBuf>,
    /// Where the last good table is kept.
    #[arg(long)]
    pub last_good: Option<PathBuf>,
    /// Access log; default what the file says, otherwise text.
    #[arg(long, value_parser = ACCESS_LOGS)]
    pub access_log: Option<String>,
    /// A line of your own with Envoy's operators, as text or as a JSON object of them; see
    /// docs/access-log.md. It takes the place of the form that --access-log names.
    #[arg(long, env = "WEFT_ACCESS_LOG_FORMAT", value_name = "FORMAT")]
    pub access_log_format: Option<String>,
    /// Take the traffic of this network namespace as nftables rules redirect it: what the pod
    /// sends on 15001, what is sent to it on 15006, its DNS questions on 15053. The mesh port is
    /// then open on all addresses, and there is no forward proxy.
    #[arg(long, conflicts_with_all = ["outbound_port", "mesh_port", "credential"])]
    pub capture: bool,
    /// Unix socket where sockets of the host's network namespace come from.
    #[arg(long, value_name = "PATH")]
    pub host_door: Option<PathBuf>,
    /// Address of the admin, metrics and readiness ports, when it is not `--address`.
    #[arg(long, value_name = "IP")]
    pub admin_address: Option<IpAddr>,
    /// The server's resolver for pods, reached through the host's door.
    #[arg(long, value_name = "IP:PORT", requires = "capture")]
    pub dns: Option<SocketAddr>,
    /// Addresses of pods, which are reached within this namespace; may be repeated. Default
    /// 10.244.0.0/16 and fd00:7766::/64.
    #[arg(long = "pod-network", value_name = "CIDR")]
    pub pod_networks: Vec<String>,
    /// Addresses of Services; may be repeated. Default 10.96.0.0/16 and fd00:7766:1::/112.
    #[arg(long = "service-network", value_name = "CIDR")]
    pub service_networks: Vec<String>,
    /// Port of the HTTP forward proxy.
    #[arg(long, default_value_t = 15001)]
    pub outbound_port: u16,
    /// Mesh port (mTLS).
    #[arg(long, default_value_t = 15008)]
    pub mesh_port: u16,
    /// Where other machines reach the mesh port, when they cannot reach `--address`.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "mesh_port")]
    pub mesh_address: Option<SocketAddr>,
    /// Admin port; default 15000, or what the file says.
    #[arg(long)]
    pub admin_port: Option<u16>,
    /// Port of metrics; default 15020, with a file that of the admin door.
    #[arg(long)]
    pub metrics_port: Option<u16>,
    /// Port of readiness; default 15021, with a file that of the admin door.
    #[arg(long)]
    pub ready_port: Option<u16>,
    /// Labels of this workload for metrics: `workload=user`, `namespace=shop`, ...
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

#[derive(Debug, Args, Clone)]
pub struct ClientArgs {
    /// The server's API.
    #[arg(long, env = "WEFT_SERVER", default_value = "http://127.0.0.1:7080")]
    pub server: String,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Files or folders; `-` reads standard input.
    #[arg(long = "filename", short = 'f', required = true)]
    pub files: Vec<PathBuf>,
    /// Check only; change nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args, Clone)]
pub struct Scope {
    /// Namespace; default `default`.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// All namespaces.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// Kind, plural or short name, or several: `pods`, `svc`, `httproutes,grpcroutes`;
    /// `endpoints` shows who takes traffic.
    pub kind: String,
    pub name: Option<String>,
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct DescribeArgs {
    pub kind: String,
    pub name: String,
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The URL as its client writes it: `http://localhost:8000/users/1`, `http://user/user/1`.
    #[arg(required_unless_present = "log", conflicts_with = "log")]
    pub url: Option<String>,
    /// A line of an access log, text or JSON; `-` reads it from the standard input.
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    pub log: Option<String>,
    /// Who calls: a workload or pod, `NAME` or `NAMESPACE/NAME`. Without it, a client outside of
    /// the mesh that comes to a gateway.
    #[arg(long, value_name = "WORKLOAD")]
    pub from: Option<String>,
    /// A header of the request.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The request's method.
    #[arg(long = "request", short = 'X', value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Ask these files or folders instead of a server.
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Files or folders with the objects to delete.
    #[arg(long = "filename", short = 'f', conflicts_with_all = ["kind", "name"])]
    pub files: Vec<PathBuf>,
    pub kind: Option<String>,
    pub name: Option<String>,
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Print once and exit.
    #[arg(long)]
    pub once: bool,
}

#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// The server's API.
    #[arg(long, env = "WEFT_SERVER", default_value = "http://127.0.0.1:7080")]
    pub server: String,
    /// File to write; default: print.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// For example `HTTPRoute`, `deployments` or `VirtualService`.
    pub kind: Option<String>,
}

#[derive(Debug, Args)]
pub struct HelpArgs {
    /// A topic or a command; `topics` lists them.
    pub topic: Vec<String>,
}
