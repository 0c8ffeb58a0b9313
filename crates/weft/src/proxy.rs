// SPDX-License-Identifier: Apache-2.0
//! `weft proxy`: one proxy process, driven by a control plane or by a file.
//!
//! With files it serves what they say ([`standalone`]). With a control plane it gets its SVID from
//! the agent's Unix socket first, then subscribes over mTLS. It ends on SIGTERM after draining, or
//! when a newer process has taken its sockets over ([`upgrade`]).

mod file;
mod notify;
mod standalone;
mod upgrade;

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use weft_base::clock::Clock;
use weft_base::issue::FieldPath;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::sockets::{PROXY_MARK, SocketFactory};
use weft_base::task::TaskGroup;
use weft_identity::{Alpn, ClientTls, Expected, Svid, provider, uds};
use weft_model::decide::Own;
use weft_model::{Labels, Locality};
use weft_proxy::config::{AccessLog, LogFormat, LogWhat, Ports};
use weft_proxy::handover::Sockets;
use weft_proxy::ingest::source;
use weft_proxy::networks::Cidr;
use weft_proxy::observe::format::Format;
use weft_proxy::{Capture, Feed, NodeId, Proxy, ProxyConfig, feed};
use weft_xds::NodeInfo;
use weft_xds::client::{self, Dial, Options};

use crate::cli::ProxyArgs;
use crate::exit::Usage;
use crate::levels;
use crate::sys;

pub use standalone::{Loaded, Source};
pub use upgrade::Succession;

use standalone::Keeper;

/// TLS name of the server; the SPIFFE identity is what is checked.
const SERVER_NAME: &str = "server.weft.internal";
/// One try to reach it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a successor may take to have a table; then it gives up, and the older process goes on.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// What only the start has needed is over by then.
const STARTED_AFTER: Duration = Duration::from_millis(300);
/// Work that blocks the control side at one time: reading files, handing over, the end of workers.
/// Lookups of names have threads of their own.
const BLOCKING_THREADS: usize = 16;

pub fn run(args: &ProxyArgs) -> Result<()> {
    provider::install();
    let source = match (&args.config, &args.envoy) {
        (Some(path), _) => Some(Source::File(path.clone())),
        (None, Some(path)) => Some(Source::Envoy(path.clone(), args.allow_unsupported)),
        (None, None) => None,
    };
    let loaded = source.as_ref().map(Source::load).transpose()?;
    if args.check && source.is_none() {
        return Err(anyhow!(Usage("--check needs -c or --envoy".into())));
    }
    // What is said beside the file is checked with it.
    let config = config(args, loaded.as_ref())?;
    warn(loaded.as_ref());
    if let Some(source) = source.as_ref().filter(|_| args.check) {
        crate::say!("{} can be served", source.path().display());
        return Ok(());
    }
    // One thread carries the control side; requests are served by the workers' own threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(args, config, source.zip(loaded)));
    // A successor that is still being waited for, and the like, hold up no end.
    runtime.shutdown_background();
    served
}

fn warn(loaded: Option<&Loaded>) {
    for warning in loaded.iter().flat_map(|l| &l.warnings) {
        // Nobody may read it.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
}

async fn serve(
    args: &ProxyArgs,
    config: ProxyConfig,
    files: Option<(Source, Loaded)>,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut rotated = Rotated::listen(files.is_some())?;
    let (clock, tasks) = (Clock::system(), TaskGroup::new());
    let identity = identity(args, &clock, &tasks).await?;
    let (feed, deliveries) = feed();
    let mut config = config;
    let older = take_over(args, &mut config)?;
    let proxy = Proxy::start(config.clone(), identity.clone(), deliveries, clock.clone()).await?;
    match (files, args.xds) {
        (Some((source, loaded)), _) => Keeper::start(source, loaded, feed).await?.keep(&tasks)?,
        (None, Some(_)) => {
            let identity = identity.ok_or_else(|| {
                anyhow!(Usage(
                    "--xds needs --svid-socket: the server admits known proxies only".into()
                ))
            })?;
            subscribe(args, &proxy, identity, feed, &clock, &tasks)?;
        }
        (None, None) => {
            return Err(anyhow!(Usage(
                "name where the configuration comes from: `-c FILE`, `--envoy FILE` or `--xds \
                 HOST:PORT`"
                    .into()
            )));
        }
    }
    let started = upgrade::Started::default();
    let handover = Handover { config: &config, older, started: &started };
    let mut replaced = match succeed(args, &proxy, handover, &tasks).await {
        Ok(replaced) => replaced,
        Err(error) => {
            // Clients that came here meanwhile are served to their end.
            proxy.drain().await;
            tasks.shutdown(Duration::from_millis(200)).await;
            return Err(error);
        }
    };
    notify::ready();
    forget_start(&tasks);
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let replaced = loop {
        tokio::select! {
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            () = proxy.asked_to_quit() => break false,
            () = wait(&mut replaced) => break true,
            () = rotated.told() => proxy.reopen_logs(),
            _ = upgrade.recv() => match &args.succession.handover {
                Some(_) => upgrade::start_successor(&started, &tasks).unwrap_or_else(|error| {
                    tracing::error!("{error:#}; this process goes on");
                }),
                None => tracing::error!("SIGUSR2 needs --handover; this process goes on"),
            },
        }
    };
    let clean = ended(proxy, replaced, [terminate, interrupt], config.drain_grace).await;
    tasks.shutdown(Duration::from_millis(200)).await;
    if clean { Ok(()) } else { Err(anyhow!("a worker panicked; its log line says where")) }
}

/// Finishes what is open. Where a newer process serves there is much time for it, until a signal
/// asks this one to end too: from then on there is `grace`.
async fn ended(
    proxy: Proxy,
    replaced: bool,
    [mut terminate, mut interrupt]: [Signal; 2],
    grace: Duration,
) -> bool {
    if !replaced {
        notify::stopping();
        return proxy.drain().await;
    }
    notify::replaced();
    let hurried = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        clean = proxy.succeed() => clean,
        () = hurried => true,
    }
}

/// What only the start has used of the program is charged to an idle proxy no longer.
fn forget_start(tasks: &TaskGroup) {
    tasks.spawn("start", async {
        tokio::time::sleep(STARTED_AFTER).await;
        weft_proxy::sys::program::forget_used_pages();
    });
}

/// Who this proxy is, where an agent says so.
async fn identity(
    args: &ProxyArgs,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<Option<Snapshot<Svid>>> {
    let Some(path) = &args.svid_socket else { return Ok(None) };
    // Beside the table, which is of no use to a proxy that starts without an identity.
    let kept = args.last_good.as_ref().map(|path| weft_identity::join::beside(path));
    let fetched = uds::fetch_and_renew(path.clone(), kept, clock.clone(), tasks).await;
    fetched.map(Some).with_context(|| format!("no identity from the agent at {}", path.display()))
}

/// Asks the process that serves now for its sockets.
fn take_over(args: &ProxyArgs, config: &mut ProxyConfig) -> Result<Option<upgrade::Older>> {
    let Some(path) = &args.succession.handover else { return Ok(None) };
    let (older, inherited) = upgrade::ask(path)?.unzip();
    let sockets = Sockets::keeping(inherited.unwrap_or_default());
    config.handover = Arc::new(sockets.context("what the older proxy handed over is no door")?);
    Ok(older)
}

/// What one process has of the one before it and of the one after it.
struct Handover<'a> {
    config: &'a ProxyConfig,
    older: Option<upgrade::Older>,
    started: &'a upgrade::Started,
}

/// Tells the older process that this one serves, and stands ready for the next one.
///
/// # Errors
/// When this one has nothing to serve: the older one is not told, and goes on.
async fn succeed(
    args: &ProxyArgs,
    proxy: &Proxy,
    Handover { config, older, started }: Handover<'_>,
    tasks: &TaskGroup,
) -> Result<Option<oneshot::Receiver<()>>> {
    let Some(path) = &args.succession.handover else { return Ok(None) };
    if older.is_some() {
        upgrade::within(READY_TIMEOUT, || proxy.status().is_configured()).await?;
    }
    let unclaimed = config.handover.drop_unclaimed();
    if unclaimed > 0 {
        tracing::info!(unclaimed, "doors of the older process are not opened here");
    }
    if let Some(older) = older {
        tokio::task::spawn_blocking(|| older.serving()).await?;
    }
    upgrade::offer(path, config.handover.clone(), started.clone(), tasks).map(Some)
}

/// Signals after which the access log has another file.
struct Rotated {
    asked: Signal,
    /// To a proxy that serves a file a hang-up says to read that again, and this.
    again: Option<Signal>,
}

impl Rotated {
    fn listen(files: bool) -> Result<Self> {
        let asked = signal(SignalKind::user_defined1())?;
        let again = files.then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self { asked, again })
    }

    /// Cancel-safe.
    async fn told(&mut self) {
        let again = async {
            match &mut self.again {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.asked.recv() => {}
            _ = again => {}
        }
    }
}

/// Never, when there is nothing to wait for.
async fn wait(replaced: &mut Option<oneshot::Receiver<()>>) {
    let told = match replaced {
        Some(receiver) => receiver.await.is_ok(),
        None => false,
    };
    if !told {
        *replaced = None;
        std::future::pending::<()>().await;
    }
}

/// Streams the control plane's transactions into the proxy.
fn subscribe(
    args: &ProxyArgs,
    proxy: &Proxy,
    identity: Snapshot<Svid>,
    feed: Feed,
    clock: &Clock,
    tasks: &TaskGroup,
) -> Result<()> {
    let server = args.xds.context("--xds names the server")?;
    let node: weft_xds::NodeId = args.node.parse()?;
    let domain = identity.load().bundle().trust_domain().clone();
    let expected = Expected::OneOf([domain.server()].into());
    let tls = Arc::new(ClientTls::new(identity, clock.clone()));
    let host = host(args);
    let dial = Dial::new(server.to_string(), move || {
        let (tls, expected, host) = (tls.clone(), expected.clone(), host.clone());
        async move {
            let config = tls.config(&expected, Alpn::H2).map_err(io::Error::other)?;
            let stream = TcpStream::from_std(host.connect(server, DIAL_TIMEOUT).await?)?;
            stream.set_nodelay(true)?;
            let name = SERVER_NAME.try_into().map_err(io::Error::other)?;
            TlsConnector::from(config).connect(name, stream).await
        }
    });
    let options = Options {
        node: NodeInfo::this_release(node, env!("CARGO_PKG_VERSION")),
        held: proxy.held().clone(),
        wanted: proxy.wanted(),
        rng: Rng::from_system(),
    };
    let handle = client::run(Arc::new(dial), options, tasks);
    tasks.spawn("configuration", source::pump(handle, feed, proxy.amended()));
    Ok(())
}

/// What this proxy is to policies that look at their client.
fn own(args: &ProxyArgs) -> Own {
    let labels = args.labels.iter().filter_map(|label| label.split_once('='));
    let labels: Labels = labels.map(|(key, value)| (key.into(), value.into())).collect();
    // `sidecar~NAMESPACE~POD`
    let id = args.node.rsplit('~').next().unwrap_or_default().into();
    Own { locality: Locality::of_labels(&labels), labels, id, ..Own::default() }
}

fn config(args: &ProxyArgs, loaded: Option<&Loaded>) -> Result<ProxyConfig> {
    let node = match args.node.as_str() {
        "standalone" => NodeId::parse("gateway~standalone~standalone")?,
        id => NodeId::parse(id).map_err(|e| anyhow!(Usage(e.to_string())))?,
    };
    let mut config = ProxyConfig::new(node);
    // A file's author says `detect` and means it.
    config.follows_client |= loaded.is_some();
    config.from_file = loaded.is_some();
    config.address = args.address;
    config.cluster_domain = args.cluster_domain.as_str().into();
    config.trust_domain = args.trust_domain.as_str().into();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let usual = if config.is_gateway() { cores.min(8) } else { 1 };
    config.workers = args.workers.unwrap_or(usual).max(1);
    config.succession_grace = Duration::from_secs(args.succession.drain_time);
    if let Some(path) = &args.credential {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the credential {}", path.display()))?;
        config.credential = Some(text.trim().into());
    }
    config.own = own(args);
    config.last_good = args.last_good.clone();
    config.ports = ports(args, loaded);
    config.one_door = loaded.is_some() && args.metrics_port.is_none() && args.ready_port.is_none();
    capture(args, &mut config)?;
    config.limits.memory_bytes_max = loaded.and_then(|l| l.memory);
    config.purge = sys::give_back;
    config.give_back = || {
        sys::give_back();
        // Among it the pages of all that only changes need.
        weft_proxy::sys::program::forget_used_pages();
    };
    if let Some(admin) = loaded.and_then(|l| l.admin).filter(|_| args.admin_address.is_none()) {
        config.admin_address = Some(admin.ip());
    }
    config.log_filter = levels::change;
    config.access_log = match (&args.access_log, loaded.and_then(|l| l.log.clone())) {
        (None, Some(log)) => log,
        (said, _) => access_log(said.as_deref().unwrap_or("text"))?,
    };
    if let Some(format) = &args.access_log_format {
        config.access_log.format = LogFormat::Of(Arc::new(log_format(format)?));
    }
    if let Some(workload) = args.labels.iter().find_map(|l| l.strip_prefix("workload=")) {
        config.workload = workload.into();
    }
    warn_of_operators(&config.access_log);
    if config.address == IpAddr::from([0, 0, 0, 0]) {
        return Err(anyhow!(Usage("--address: name one address, not 0.0.0.0".into())));
    }
    Ok(config)
}

/// What a line asks for that weft never has is said once, and not refused.
fn warn_of_operators(log: &AccessLog) {
    let LogFormat::Of(format) = &log.format else { return };
    for operator in format.never() {
        let what = "has no value in weft: it is always `-`";
        // Nobody may read it.
        let _ = writeln!(io::stderr(), "warning: access log: %{operator}% {what}");
    }
}

fn ports(args: &ProxyArgs, loaded: Option<&Loaded>) -> Ports {
    let usual = Ports::default();
    let own = loaded.map(|loaded| loaded.admin.map_or(0, |at| at.port()));
    Ports {
        admin: args.admin_port.or(own).unwrap_or(usual.admin),
        outbound: args.outbound_port,
        mesh: args.mesh_port,
        metrics: args.metrics_port.unwrap_or(usual.metrics),
        ready: args.ready_port.unwrap_or(usual.ready),
        ..usual
    }
}

/// What a proxy in a pod's own network namespace does otherwise.
fn capture(args: &ProxyArgs, config: &mut ProxyConfig) -> Result<()> {
    config.host = host(args);
    config.admin_address = args.admin_address;
    config.mesh_address = args.mesh_address;
    let ranges = |flag: &str, texts: &[String]| {
        let parsed = texts.iter().map(|text| text.parse::<Cidr>());
        parsed.collect::<Result<Vec<_>, _>>().map_err(|e| anyhow!(Usage(format!("{flag}: {e}"))))
    };
    if !args.pod_networks.is_empty() {
        config.networks.pods = ranges("--pod-network", &args.pod_networks)?;
    }
    if !args.service_networks.is_empty() {
        config.networks.services = ranges("--service-network", &args.service_networks)?;
    }
    if args.capture {
        let mut capture = Capture::new(args.dns);
        if let Some(mesh) = args.mesh_address {
            // The namespace is the machine's, where others have the usual port.
            capture.mesh = vec![mesh];
        }
        config.capture = Some(capture);
        config.mark = Some(PROXY_MARK);
    }
    Ok(())
}

fn host(args: &ProxyArgs) -> SocketFactory {
    args.host_door.as_deref().map_or(SocketFactory::Here, SocketFactory::door)
}

/// A format string, or a format dictionary as JSON.
fn log_format(text: &str) -> Result<Format> {
    let value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text)
            .map_err(|e| anyhow!(Usage(format!("--access-log-format: it is no JSON: {e}"))))?,
        false => serde_json::Value::from(text),
    };
    Format::parse(&value, &FieldPath::new("--access-log-format")).map_err(|issues| {
        let issues: Vec<String> = issues.iter().map(ToString::to_string).collect();
        anyhow!(Usage(issues.join("; ")))
    })
}

fn access_log(text: &str) -> Result<AccessLog> {
    let (what, format) = match text {
        "text" => (LogWhat::Everything, LogFormat::Text),
        "json" => (LogWhat::Everything, LogFormat::Json),
        "failures" => (LogWhat::Failures, LogFormat::Text),
        "off" => (LogWhat::Nothing, LogFormat::Text),
        other => {
            return Err(anyhow!(Usage(format!(
                "--access-log {other:?}: expected text, json, failures or off"
            ))));
        }
    };
    Ok(AccessLog { what, format, path: None })
}
