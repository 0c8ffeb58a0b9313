// SPDX-License-Identifier: Apache-2.0
//! The compile loop: follows `World`, runs the compiler, hands deltas to the pusher and statuses
//! to the registry; and the xDS door, which admits a node only with its own pod's identity.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

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
use weft_identity::{Authority, ServerTls, Svid, TrustDomain, tls};
use weft_registry::{Registry, WorldChange};
use weft_xds::server::{self, AdsService, Handshake, Peer};

use super::facts::{ProxyFact, ProxyFacts};

/// Compile steps whose statuses may wait to be written.
const STATUS_BATCHES_MAX: usize = 256;
/// The server's own certificate is made anew this often; its life is twice as long.
const OWN_SVID_RENEWAL: Duration = Duration::from_secs(6 * 3600);

/// Starts compiling and pushing.
pub fn start(registry: &Registry, trust_domain: &TrustDomain, tasks: &TaskGroup) -> Pusher {
    let (publisher, mesh) = snapshot(Mesh::default());
    let domain: Arc<str> = trust_domain.as_str().into();
    let nodes = MeshNodes { mesh, world: registry.world(), trust_domain: domain.clone() };
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
    pusher
}

async fn compile(registry: Registry, env: Env, publisher: Publisher<Mesh>, pusher: Pusher) {
    let (world, mut watch) = registry.watch_world();
    let (mut driver, first) = Driver::start(env, &world, publisher, pusher);
    // Statuses are written beside, so that pushes do not wait for the store.
    let (queue, inbox) = mpsc::channel(STATUS_BATCHES_MAX);
    registry.tasks().spawn("statuses", write_statuses(registry.clone(), inbox));
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

async fn write_statuses(registry: Registry, mut inbox: mpsc::Receiver<Vec<StatusUpdate>>) {
    while let Some(statuses) = inbox.recv().await {
        for status in statuses {
            write_status(&registry, &status).await;
        }
    }
}

/// Writes a status; an object that is gone meanwhile needs none.
async fn write_status(registry: &Registry, update: &StatusUpdate) {
    let key = &update.object;
    let world = registry.now();
    let Some(object) = world.object(key) else { return };
    let wall_ms = i64::try_from(registry.clock().wall_ms()).unwrap_or_default();
    let now = jiff::Timestamp::from_millisecond(wall_ms)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default();
    let Some(status) = update.settle(object.raw.get("status"), &now) else { return };
    let objects = registry.objects();
    let written = objects.write_status(key.kind, &key.namespace, &key.name, &status);
    if let Err(error) = written.await {
        tracing::debug!(%error, object = ?key, "a status was not written");
    }
}

/// Opens the xDS door: mTLS with the CA's own identities only.
pub fn serve_xds(
    listener: TcpListener,
    authority: &Arc<Authority>,
    pusher: &Pusher,
    registry: &Registry,
) -> Result<SocketAddr> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let tasks = registry.tasks().clone();
    let svid = own_svid(authority, &tasks)?;
    let incoming = server::incoming(listener, handshake(svid, registry), &tasks);
    let service = AdsService::new(Arc::new(pusher.clone()), tasks.clone()).into_server();
    let group = tasks.clone();
    tasks.spawn("xds", async move {
        let serve = server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { group.draining().await });
        if let Err(error) = serve.await {
            tracing::error!(%error, "the xDS door ended");
        }
    });
    Ok(address)
}

fn handshake(
    svid: Snapshot<Svid>,
    registry: &Registry,
) -> Handshake<tokio_rustls::server::TlsStream<TcpStream>> {
    let clock = registry.clock().clone();
    let tls_of = Arc::new(ServerTls::new(svid, clock.clone()));
    Arc::new(move |stream: TcpStream| {
        let (tls_of, clock) = (tls_of.clone(), clock.clone());
        async move {
            let address = stream.peer_addr().ok();
            let config = tls_of.config().map_err(io::Error::other)?;
            let stream = TlsAcceptor::from(config).accept(stream).await?;
            let leaf = tls::peer(stream.get_ref().1.peer_certificates(), &clock);
            let id = leaf.map_err(io::Error::other)?.id.to_string();
            Ok((stream, Peer { spiffe_id: Some(id.into()), address }))
        }
        .boxed()
    })
}

/// The server's own certificate, renewed well before it ends.
fn own_svid(authority: &Arc<Authority>, tasks: &TaskGroup) -> Result<Snapshot<Svid>> {
    let make = |authority: &Authority| {
        authority.own_svid(&authority.trust_domain().server(), OWN_SVID_RENEWAL * 2)
    };
    let (publisher, reader) = snapshot(make(authority).context("the CA signs the server")?);
    let (authority, group) = (authority.clone(), tasks.clone());
    tasks.spawn("server certificate", async move {
        loop {
            tokio::select! {
                () = group.draining() => return,
                () = tokio::time::sleep(OWN_SVID_RENEWAL) => {}
            }
            match make(&authority) {
                Ok(svid) => publisher.publish(svid),
                Err(error) => tracing::error!(%error, "the server's certificate stays the old one"),
            }
        }
    });
    Ok(reader)
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
}
