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
use tokio_rustls::TlsAcceptor;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_control::compile::Env;
use weft_control::compiler::{Compiler, Update};
use weft_control::mesh::Mesh;
use weft_control::push::{Delta, NodeScope, Nodes, Pusher};
use weft_control::status::StatusUpdate;
use weft_identity::{Authority, ServerTls, Svid, TrustDomain, tls};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, World};
use weft_registry::{Registry, WorldChange};
use weft_xds::server::{self, AdsService, Handshake, Peer};
use weft_xds::{NodeId, NodeKind};

use super::facts::{ProxyFact, ProxyFacts};

/// The server's own certificate is made anew this often; its life is twice as long.
const OWN_SVID_RENEWAL: Duration = Duration::from_secs(6 * 3600);
const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Starts compiling and pushing.
pub fn start(registry: &Registry, trust_domain: &TrustDomain, tasks: &TaskGroup) -> Pusher {
    let (publisher, mesh) = snapshot(Mesh::default());
    let nodes = KnownNodes { world: registry.world(), mesh, trust_domain: trust_domain.clone() };
    let pusher = Pusher::start(Arc::new(nodes), registry.clock().clone(), tasks);
    let env = Env {
        cluster_domain: "cluster.local".into(),
        trust_domain: trust_domain.as_str().into(),
        low_ports: may_bind_low_ports(),
    };
    let (registry, handle) = (registry.clone(), pusher.clone());
    tasks.spawn("compile", async move { compile(registry, env, publisher, handle).await });
    pusher
}

async fn compile(registry: Registry, env: Env, publisher: Publisher<Mesh>, pusher: Pusher) {
    let (world, mut watch) = registry.watch_world();
    let (mut compiler, first) = Compiler::new(env.clone(), &world);
    hand_over(&registry, &compiler, first, world.revision(), &publisher, &pusher).await;
    while let Some(change) = watch.next().await {
        let (update, revision) = match change {
            WorldChange::Delta(world, delta) => (compiler.update(&world, &delta), world.revision()),
            WorldChange::Reset(world) => {
                let old = compiler.mesh().clone();
                let (fresh, mut update) = Compiler::new(env.clone(), &world);
                compiler = fresh;
                forget_gone(&old, &compiler, &mut update.delta);
                (update, world.revision())
            }
        };
        hand_over(&registry, &compiler, update, revision, &publisher, &pusher).await;
    }
}

/// After a reset, what the old mesh had and the new has not must be removed by name.
fn forget_gone(old: &Mesh, compiler: &Compiler, delta: &mut Delta) {
    let now = compiler.mesh();
    delta.removes.extend(old.resources().keys().filter(|n| now.get(n).is_none()).cloned());
    delta.rescope = weft_control::push::Rescope::Everybody;
}

async fn hand_over(
    registry: &Registry,
    compiler: &Compiler,
    update: Update,
    revision: u64,
    publisher: &Publisher<Mesh>,
    pusher: &Pusher,
) {
    // The pusher asks for scopes while it takes the delta in: the mesh comes first.
    publisher.publish(compiler.mesh().clone());
    let mut delta = update.delta;
    delta.generation = revision;
    pusher.submit(delta);
    for status in update.statuses {
        write_status(registry, &status).await;
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

/// Whom a stream may speak for, and what it sees.
struct KnownNodes {
    world: Snapshot<World>,
    mesh: Snapshot<Mesh>,
    trust_domain: TrustDomain,
}

impl Nodes for KnownNodes {
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String> {
        let world = self.world.load();
        let pod = pod_of(&world, node)
            .ok_or_else(|| format!("no pod is known for node {node}; is it deleted?"))?;
        let View::Pod(view) = &pod.view else {
            return Err(format!("the pod of node {node} cannot be read"));
        };
        let expected = format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain.as_str(),
            pod.key.namespace,
            view.service_account()
        );
        match peer.spiffe_id.as_deref() {
            Some(id) if id == expected => Ok(()),
            Some(id) => Err(format!("{id} may not speak for {node}, which is {expected}")),
            None => Err(format!("{node} must show a certificate for {expected}")),
        }
    }

    fn scope(&self, node: &NodeId) -> Option<Arc<dyn NodeScope>> {
        let scope = self.mesh.load().scope(node)?;
        Some(Arc::new(scope))
    }
}

/// The pod that a node's proxy belongs to.
fn pod_of(world: &World, node: &NodeId) -> Option<Arc<Object>> {
    let (namespace, name) = (node.namespace.as_str(), node.name.as_str());
    match node.kind {
        NodeKind::Sidecar => world.get(KindId::Pod, namespace, name).cloned(),
        NodeKind::Gateway => world
            .objects(KindId::Pod, Some(namespace))
            .find(|pod| pod.meta.label(GATEWAY_LABEL) == Some(name) && !pod.meta.is_deleting())
            .cloned(),
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

fn may_bind_low_ports() -> bool {
    rustix::process::geteuid().is_root()
}

impl ProxyFacts for Pusher {
    fn all(&self) -> Vec<ProxyFact> {
        let fact = |p: weft_control::push::ProxyStatus| ProxyFact {
            connected: p.connected,
            sent: p.sent_generation.unwrap_or(0).max(p.desired_generation),
            applied: p.acked_generation.unwrap_or(0),
            rejected: p.rejected.into_iter().map(|r| (r.name, r.reason)).collect(),
            node: p.node,
        };
        self.status().into_iter().map(fact).collect()
    }
}
