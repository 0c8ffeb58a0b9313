// SPDX-License-Identifier: Apache-2.0
//! Assembles a proxy: control side on the caller's runtime, one thread per worker. The binary
//! calls [`Proxy::start`], feeds it transactions and ends it with [`Proxy::drain`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_identity::{ClientTls, ServerTls, Svid};
use weft_xds::Applied;

use crate::capture::dns;
use crate::config::ProxyConfig;
use crate::handover::Sockets;
use crate::http::cache::{self, Store};
use crate::ingest::{Delivery, Held, Ingest, Status, Wanted};
use crate::listen::{self, ListenError};
use crate::observe::access_log::{self, Reopen};
use crate::observe::admin::{self, Admin};
use crate::observe::metrics::{WorkerCells, WorkerMetrics};
use crate::on_demand;
use crate::overload::{self, Gauge, Pressure};
use crate::table::{Door, Table};
use crate::upstream::connect::Dialer;
use crate::upstream::health::Checker;
use crate::upstream::outlier;
use crate::upstream::resolver::Resolver;
use crate::worker::neighbours::{Favour, Neighbours};
use crate::worker::{self, COMMANDS_MAX, Command, Names, Shared, Worker};

#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot start a worker thread: {0}; check the limit of processes")]
    Thread(#[source] std::io::Error),
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    addresses: Addresses,
    status: Status,
    commands: Vec<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
    tasks: TaskGroup,
    quit: CancellationToken,
    held: Held,
    wanted: watch::Receiver<Wanted>,
    amended: watch::Receiver<Applied>,
    config: Arc<ProxyConfig>,
    handover: Arc<Sockets>,
    reopen: Reopen,
}

/// Where the proxy's own doors are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
    pub ready: SocketAddr,
    /// Sidecars only: the forward proxy, or what the pod sends when that is captured.
    pub outbound: Option<SocketAddr>,
    /// What is sent to the pod, when that is captured.
    pub inbound: Option<SocketAddr>,
    /// Sidecars with an identity only.
    pub mesh: Option<SocketAddr>,
}

// === impl Proxy ===

impl Proxy {
    /// Starts threads and doors, and the last good table when there is one. Must be called on a
    /// tokio runtime, which runs the control side.
    ///
    /// # Errors
    /// When a door's address cannot be bound or a thread cannot be started.
    pub async fn start(
        config: ProxyConfig,
        identity: Option<Snapshot<Svid>>,
        deliveries: mpsc::Receiver<Delivery>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let tasks = TaskGroup::new();
        let (reporter, ejector) = outlier::ejector(clock.clone());
        let (on_demand, asks) = on_demand::channel(&config.limits.on_demand);
        let (log_lines, log_writer, reopen) = access_log::channel(&config.access_log);
        let (neighbours, favours) = Neighbours::new(config.workers);
        let svid = identity.as_ref().map(Snapshot::load);
        let shared = Shared {
            names: Names::of(&config, svid.as_ref().map(|s| s.id())),
            dialer: Arc::new(dialer(&config, identity.as_ref(), &clock)),
            server_tls: identity
                .as_ref()
                .map(|svid| Arc::new(ServerTls::new(svid.clone(), clock.clone()))),
            config: config.clone(),
            clock: clock.clone(),
            reporter,
            on_demand,
            log_lines,
            buckets: Arc::default(),
            cache: Arc::new(Store::new(config.limits.cache_bytes_max)),
            pressure: Arc::new(Pressure::new(config.workers)),
            neighbours,
            resolver: Resolver::system(clock.clone()),
        };
        let names = shared.names.clone();
        let (commands, cells, threads) = start_workers(&shared, favours)?;
        let (dialer, pressure) = (shared.dialer.clone(), shared.pressure.clone());
        let (cache, stored) = (shared.cache.clone(), shared.cache.clone());
        drop(shared);
        let mut ingest = Ingest::new(config.clone(), &clock, commands.clone());
        let status = ingest.status();
        let rng = config.seed.map_or_else(Rng::from_system, Rng::seeded);
        let checker = Checker::new(status.table.clone(), dialer, clock.clone(), rng);
        let quit = CancellationToken::new();
        let admin = Admin::new(config.clone(), names, status.clone(), cells, quit.clone(), cache)
            .identified(identity.clone(), clock.clone())
            .over(commands.clone(), reopen.clone());
        let addresses = open_doors(&config, identity.is_some(), &mut ingest, admin, &tasks).await?;
        let held = ingest.load_last_good().await.unwrap_or_else(|error| {
            tracing::error!(%error, "starting without a last good table");
            Held::new()
        });
        let (wanted, amended) = (ingest.wanted(), ingest.amended());
        tasks.spawn("ingest", ingest.run(deliveries, asks));
        tasks.spawn("ejector", ejector.run());
        tasks.spawn("health checks", checker.run(tasks.clone()));
        watch_memory(&tasks, &config, stored, pressure);
        tasks.spawn("access log", log_writer.run());
        let handover = config.handover.clone();
        Ok(Self {
            addresses,
            status,
            commands,
            threads,
            tasks,
            quit,
            held,
            wanted,
            amended,
            config,
            handover,
            reopen,
        })
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    /// What the last good table gave, for the stream's first message.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// The hosts that it asks for by name, for the stream.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.clone()
    }

    /// Its last answer when it took later what it had refused, for [`crate::ingest::source::pump`].
    pub fn amended(&self) -> watch::Receiver<Applied> {
        self.amended.clone()
    }

    /// Resolves when somebody asked the admin door to end the proxy.
    pub async fn asked_to_quit(&self) {
        self.quit.cancelled().await;
    }

    /// Opens the access log's file again, after somebody gave the old one another name.
    pub fn reopen_logs(&self) {
        self.reopen.ask();
    }

    /// Takes nothing new, finishes what is open within the grace period, and ends. `false` when a
    /// worker's thread panicked.
    pub async fn drain(self) -> bool {
        self.end(false).await
    }

    /// The same when another process serves already, on the same sockets, with a grace period of
    /// its own.
    pub async fn succeed(self) -> bool {
        self.end(true).await
    }

    async fn end(self, succeeded: bool) -> bool {
        // Readiness goes first.
        self.quit.cancel();
        self.handover.close();
        for worker in &self.commands {
            // A worker that is gone is drained.
            let _ = worker.send(Command::Drain { succeeded }).await;
        }
        drop(self.commands);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count() == 0
        });
        // Workers stop by themselves after their grace; the margin is for slow machines.
        let limit = self.config.grace(succeeded) * 2 + std::time::Duration::from_secs(5);
        let clean = matches!(tokio::time::timeout(limit, joined).await, Ok(Ok(true)));
        self.tasks.shutdown(std::time::Duration::from_millis(200)).await;
        clean
    }
}

fn watch_memory(
    tasks: &TaskGroup,
    config: &ProxyConfig,
    stored: Arc<Store>,
    pressure: Arc<Pressure>,
) {
    if let Some(gauge) = Gauge::find(config.limits.memory_bytes_max) {
        tasks.spawn("stored answers", cache::watch(stored, pressure.clone()));
        tasks.spawn("memory", overload::watch(gauge, pressure, config.purge));
    }
}

type Workers = (Vec<mpsc::Sender<Command>>, Vec<Arc<WorkerCells>>, Vec<JoinHandle<()>>);

fn start_workers(
    shared: &Shared,
    favours: Vec<mpsc::Receiver<Favour>>,
) -> Result<Workers, StartError> {
    let workers = shared.config.workers.max(1);
    let (mut commands, mut all_cells, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for (id, favours) in favours.into_iter().enumerate() {
        let (tx, rx) = mpsc::channel(COMMANDS_MAX);
        let cells = Arc::new(WorkerCells::default());
        let (shared, worker_cells) = (shared.clone(), cells.clone());
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("weft-worker-{id}"))
            .spawn(move || {
                // Built where it stays: its tasks are this thread's, with no queue between.
                let mut builder = tokio::runtime::Builder::new_current_thread();
                let builder = builder.enable_all().max_blocking_threads(2);
                let built = builder.build_local(LocalOptions::default());
                let (runtime, result) = match built {
                    Ok(runtime) => (Some(runtime), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                // The thread that starts this one waits for it.
                let _ = started.send(result);
                let Some(runtime) = runtime else { return };
                runtime.block_on(async move {
                    let metrics = WorkerMetrics::new(worker_cells, workers);
                    let worker = Worker::new(id, shared, metrics, Arc::new(Table::default()));
                    worker::run(worker, rx, favours).await;
                });
            })
            .map_err(StartError::Thread)?;
        let result = start.recv().unwrap_or_else(|_| Err(std::io::Error::other("it is gone")));
        result.map_err(StartError::Thread)?;
        commands.push(tx);
        all_cells.push(cells);
        threads.push(thread);
    }
    Ok((commands, all_cells, threads))
}

fn dialer(config: &Arc<ProxyConfig>, identity: Option<&Snapshot<Svid>>, clock: &Clock) -> Dialer {
    Dialer {
        // In its own namespace a sidecar dials loopback addresses from loopback.
        source: config.has_upstream_ports().then_some(config.address),
        tls: identity.map(|svid| Arc::new(ClientTls::new(svid.clone(), clock.clone()))),
        mesh_port: config.ports.peers,
        config: config.clone(),
    }
}

async fn open_doors(
    config: &ProxyConfig,
    identified: bool,
    ingest: &mut Ingest,
    admin: Admin,
    tasks: &TaskGroup,
) -> Result<Addresses, StartError> {
    let admin = Arc::new(admin);
    let mut doors = Vec::with_capacity(3);
    for (port, role) in [
        (config.ports.admin, admin::Role::Admin),
        (config.ports.metrics, admin::Role::Metrics),
        (config.ports.ready, admin::Role::Ready),
    ] {
        if config.one_door
            && let Some(admin) = doors.first().copied()
        {
            doors.push(admin);
            continue;
        }
        let address = config.admin_door(port);
        let sockets = listen::bind_from(config, address, 1).await?;
        let Some(socket) = sockets.into_iter().next() else { continue };
        let listening = |source| StartError::Listen(ListenError { address, source });
        doors.push(socket.local_addr().map_err(listening)?);
        let socket = tokio::net::TcpListener::from_std(socket).map_err(listening)?;
        tasks.spawn("admin", admin::serve(socket, admin.clone(), role, tasks.clone()));
    }
    let [admin, metrics, ready] = doors.as_slice() else {
        let source = std::io::Error::other("no socket");
        return Err(ListenError { address: config.admin_door(config.ports.admin), source }.into());
    };
    let (admin, metrics, ready) = (*admin, *metrics, *ready);
    let mut open = Addresses { admin, metrics, ready, outbound: None, inbound: None, mesh: None };
    match &config.capture {
        // A gateway has no app whose traffic could be captured.
        _ if config.is_gateway() => {}
        Some(capture) => {
            open.outbound = open_each(ingest, &capture.outbound, &Door::Outbound).await?;
            open.inbound = open_each(ingest, &capture.inbound, &Door::Inbound).await?;
            if identified {
                open.mesh = open_each(ingest, &capture.mesh, &Door::Mesh).await?;
            }
            dns::serve(config, capture, tasks)?;
        }
        None => {
            let address = config.door(config.ports.outbound);
            open.outbound = Some(ingest.open_fixed(address, Door::Forward).await?);
            if identified {
                let usual = config.door(config.ports.mesh);
                let address = config.mesh_address.unwrap_or(usual);
                open.mesh = Some(ingest.open_fixed(address, Door::Mesh).await?);
            }
        }
    }
    Ok(open)
}

/// Opens a door in every family that the machine has; returns where the first one is.
async fn open_each(
    ingest: &mut Ingest,
    addresses: &[SocketAddr],
    door: &Door,
) -> Result<Option<SocketAddr>, StartError> {
    let mut first = None;
    for address in addresses {
        match ingest.open_fixed(*address, door.clone()).await {
            Ok(bound) => first = first.or(Some(bound)),
            Err(error) if first.is_some() && error.is_no_family() => {
                tracing::info!(%address, "this machine has no IPv6: its doors stay closed");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(first)
}
