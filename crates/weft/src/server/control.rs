// SPDX-License-Identifier: Apache-2.0
//! The compile loop: follows `World`, runs the compiler, hands deltas to the pusher and statuses
//! to the registry; and the xDS door, which admits a node only with its own pod's identity.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_control::compile::Env;
use weft_control::mesh::Mesh;
use weft_control::push::{Driver, MeshNodes, ProxyStatus, Pusher};
use weft_control::status::StatusUpdate;
use weft_identity::tls::{self, PeerError};
use weft_identity::{ServerTls, Svid, TrustDomain};
use weft_kinds::kind::KindId;
use weft_kinds::world::ObjectKey;
use weft_registry::{Registry, WorldChange};
use weft_xds::agent::gate::Gate;
use weft_xds::agent::server::AgentService;
use weft_xds::server::{self, AdsService, Guests, Handshake, Peer};

use super::facts::{ProxyFact, ProxyFacts};
use super::hosts::HostDoor;
use super::refusals::Refusals;

/// Compile steps whose statuses may wait to be written.
const STATUS_BATCHES_MAX: usize = 256;

/// Starts compiling and pushing; the Mesh is what proxies are sent.
pub fn start(
    registry: &Registry,
    trust_domain: &TrustDomain,
    tasks: &TaskGroup,
) -> (Pusher, Snapshot<Mesh>) {
    let (publisher, mesh) = snapshot(Mesh::default());
    let domain: Arc<str> = trust_domain.as_str().into();
    let nodes =
        MeshNodes { mesh: mesh.clone(), world: registry.world(), trust_domain: domain.clone() };
    let pusher = Pusher::start(Arc::new(nodes), registry.clock().clone(), tasks);
    let env = Env {
        cluster_domain: "cluster.local".into(),
        trust_domain: domain,
        low_ports: rustix::process::geteuid().is_root(),
    };
    let (registry, handle, group) = (registry.clone(), pusher.clone(), tasks.clone());
    tasks.spawn("compile", async move {
        tokio::select! {
            () = group.draining() => {}
            () = compile(registry, env, publisher, handle) => {}
        }
    });
    (pusher, mesh)
}

async fn compile(registry: Registry, env: Env, publisher: Publisher<Mesh>, pusher: Pusher) {
    let (world, mut watch) = registry.watch_world();
    let (mut driver, first) = Driver::start(env, &world, publisher, pusher);
    // Statuses are written beside, so that pushes do not wait for the store.
    let (queue, inbox) = mpsc::channel(STATUS_BATCHES_MAX);
    let writer = Statuses { registry: registry.clone(), pusher: driver.pusher().clone() };
    registry.tasks().spawn("statuses", writer.run(inbox));
    let _ = queue.send(first).await;
    while let Some(change) = watch.next().await {
        let statuses = match change {
            WorldChange::Delta(world, delta) => driver.step(&world, &delta),
            WorldChange::Reset(world) => driver.reset(&world),
        };
        if !statuses.is_empty() {
            let _ = queue.send(statuses).await;
        }
    }
}

/// Writes the statuses that compiling found. A Gateway's and a ListenerSet's say more: whether the
/// proxy could listen where it should.
struct Statuses {
    registry: Registry,
    pusher: Pusher,
}

// === impl Statuses ===

impl Statuses {
    async fn run(self, mut inbox: mpsc::Receiver<Vec<StatusUpdate>>) {
        let mut listening: BTreeMap<ObjectKey, StatusUpdate> = BTreeMap::new();
        let mut refused = Refusals::default();
        let mut changes = self.pusher.changes();
        let leader = self.registry.leader().clone();
        let mut terms = leader.changes();
        // Of several servers the one that leads writes; the others know what they would.
        let mut kept: BTreeMap<ObjectKey, StatusUpdate> = BTreeMap::new();
        loop {
            tokio::select! {
                Ok(()) = terms.changed() => {
                    for status in std::mem::take(&mut kept).into_values() {
                        self.write(&status, &refused).await;
                        kept.insert(status.object.clone(), status);
                    }
                }
                statuses = inbox.recv() => {
                    let Some(statuses) = statuses else { return };
                    if leader.is_shared() {
                        let all = statuses.iter().map(|s| (s.object.clone(), s.clone()));
                        kept.extend(all);
                        let world = self.registry.now();
                        kept.retain(|key, _| world.object(key).is_some());
                    }
                    for status in statuses {
                        self.write(&status, &refused).await;
                        if matches!(status.object.kind, KindId::Gateway | KindId::ListenerSet) {
                            listening.insert(status.object.clone(), status);
                        }
                    }
                    let world = self.registry.now();
                    listening.retain(|key, _| world.object(key).is_some());
                }
                Ok(()) = changes.changed() => {
                    let proxies = self.pusher.status();
                    let connected = proxies.iter().filter(|p| p.connected);
                    let now = Refusals::read(connected.map(|p| (&*p.node, &p.rejected[..])));
                    let world = self.registry.now();
                    for (key, status) in &listening {
                        if world.object(key).is_some_and(|object| now.differ(&refused, object)) {
                            self.write(status, &now).await;
                        }
                    }
                    refused = now;
                }
            }
        }
    }

    /// Writes a status; an object that is gone meanwhile needs none.
    async fn write(&self, update: &StatusUpdate, refused: &Refusals) {
        if !self.registry.leader().is_here() {
            return;
        }
        let key = &update.object;
        let world = self.registry.now();
        let Some(object) = world.object(key) else { return };
        let wall_ms = i64::try_from(self.registry.clock().wall_ms()).unwrap_or_default();
        let now = jiff::Timestamp::from_millisecond(wall_ms)
            .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
            .unwrap_or_default();
        let old = object.raw.get("status");
        let same = || refused.touch(object).then(|| old.cloned()).flatten();
        let Some(mut status) = update.settle(old, &now).or_else(same) else { return };
        refused.tell(object, &mut status, old, &now);
        if Some(&status) == old {
            return;
        }
        let objects = self.registry.objects().as_leader();
        let written = objects.write_status(key.kind, &key.namespace, &key.name, &status);
        if let Err(error) = written.await {
            tracing::debug!(%error, object = ?key, "a status was not written");
        }
    }
}

/// Opens the door of proxies and agents on each listener: mTLS with the CA's own identities, and
/// nothing but joining for who has none. Returns the address of the first.
pub fn serve_xds(
    listeners: Vec<TcpListener>,
    svid: &Snapshot<Svid>,
    pusher: &Pusher,
    registry: &Registry,
    hosts: &HostDoor,
) -> Result<SocketAddr> {
    let first = listeners.first().context("a door needs a socket")?.local_addr()?;
    let tasks = registry.tasks().clone();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let handshake = handshake(svid.clone(), registry);
        let incoming = server::incoming_with(listener, handshake, Guests::Briefly, &tasks);
        let ads = AdsService::new(Arc::new(pusher.clone()), tasks.clone()).into_server();
        let agents = AgentService::new(Arc::new(hosts.clone())).into_server();
        let group = tasks.clone();
        tasks.spawn("xds", async move {
            let serve = server::builder()
                .add_service(Gate::new(ads, &[]))
                .add_service(agents)
                .serve_with_incoming_shutdown(incoming, async move { group.draining().await });
            if let Err(error) = serve.await {
                tracing::error!(%error, "the xDS door ended");
            }
        });
    }
    Ok(first)
}

fn handshake(
    svid: Snapshot<Svid>,
    registry: &Registry,
) -> Handshake<tokio_rustls::server::TlsStream<TcpStream>> {
    let clock = registry.clock().clone();
    let tls_of = Arc::new(ServerTls::with_guests(svid, clock.clone()));
    Arc::new(move |stream: TcpStream| {
        let (tls_of, clock) = (tls_of.clone(), clock.clone());
        async move {
            let address = stream.peer_addr().ok();
            let config = tls_of.config().map_err(io::Error::other)?;
            let stream = TlsAcceptor::from(config).accept(stream).await?;
            let spiffe_id = match tls::peer(stream.get_ref().1.peer_certificates(), &clock) {
                Ok(leaf) => Some(leaf.id.to_string().into()),
                // A host that wants to join; the gates let it do nothing else.
                Err(PeerError::NoCertificate) => None,
                Err(why) => return Err(io::Error::other(why)),
            };
            Ok((stream, Peer { spiffe_id, address }))
        }
        .boxed()
    })
}

impl ProxyFacts for Pusher {
    fn all(&self) -> Vec<ProxyFact> {
        let fact = |p: ProxyStatus| ProxyFact {
            connected: p.connected,
            sent: p.sent_generation.unwrap_or(0).max(p.desired_generation),
            applied: p.acked_generation.unwrap_or(0),
            rejected: p.rejected.into_iter().map(|r| (r.name, r.reason)).collect(),
            node: p.node,
        };
        self.status().into_iter().map(fact).collect()
    }

    fn metrics(&self) -> String {
        let pushed = Pusher::metrics(self);
        let rows = [
            ("weft_push_streams_total", "Streams that proxies opened", &pushed.connects),
            ("weft_push_transactions_total", "Transactions sent to proxies", &pushed.transactions),
            ("weft_push_resources_total", "Resources sent to proxies", &pushed.resources),
            ("weft_push_removed_total", "Resources taken from proxies", &pushed.removed),
            ("weft_push_bytes_total", "Bytes of resources sent to proxies", &pushed.bytes),
            ("weft_push_refused_total", "Answers that newly refused something", &pushed.nacks),
        ];
        let mut text = String::new();
        for (name, help, cell) in rows {
            let value = cell.get();
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{name} {value}");
        }
        text
    }
}
