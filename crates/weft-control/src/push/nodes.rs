// SPDX-License-Identifier: Apache-2.0
//! Who may speak for a node, and what it sees: from the World's pods and the Mesh.
//!
//! The assembly gives it to [`super::Pusher::start`]. A stream speaks for a node only with the
//! SVID of that node's own pod: a gateway's listeners carry private keys.

use std::sync::Arc;

use weft_base::snapshot::Snapshot;
use weft_kinds::views::View;
use weft_kinds::world::{KindId, Object, PROXY_ANNOTATION, World};
use weft_xds::server::Peer;
use weft_xds::{NodeId, NodeKind};

use super::book::{NodeScope, Nodes};
use crate::mesh::Mesh;

/// On a gateway's pod: the name of its Gateway.
const GATEWAY_ANNOTATION: &str = "weft.dev/gateway";

/// [`Nodes`] of this mesh.
#[derive(Clone, Debug)]
pub struct MeshNodes {
    pub mesh: Snapshot<Mesh>,
    pub world: Snapshot<World>,
    pub trust_domain: Arc<str>,
}

// === impl MeshNodes ===

impl Nodes for MeshNodes {
    fn admit(&self, peer: &Peer, node: &NodeId) -> Result<(), String> {
        let Some(shown) = &peer.spiffe_id else {
            return Err(format!(
                "{node} must show its certificate; connect to the mTLS port of the server"
            ));
        };
        let world = self.world.load();
        let pods = pods_of(&world, node);
        let mut wanted: Vec<String> = pods.map(|pod| self.identity(pod)).collect();
        wanted.dedup();
        if wanted.iter().any(|id| **id == **shown) {
            return Ok(());
        }
        match wanted.first() {
            Some(id) => Err(format!("{shown} may not speak for {node}, whose identity is {id}")),
            None => Err(format!("{shown} may not speak for {node}: it has no pod in this mesh")),
        }
    }

    fn scope(&self, node: &NodeId) -> Option<Arc<dyn NodeScope>> {
        let scope = self.mesh.load().scope(node)?;
        Some(Arc::new(scope))
    }
}

impl MeshNodes {
    /// The SPIFFE ID that the pod's proxy is given.
    fn identity(&self, pod: &Object) -> String {
        let account = match &pod.view {
            View::Pod(view) => view.service_account(),
            _ => "default",
        };
        format!("spiffe://{}/ns/{}/sa/{account}", self.trust_domain, pod.key.namespace)
    }
}

/// The pods whose proxy is this node: a sidecar's own, a gateway's every one.
fn pods_of<'w>(world: &'w World, node: &'w NodeId) -> impl Iterator<Item = &'w Object> {
    let namespace = node.namespace.as_str();
    let own = (node.kind == NodeKind::Sidecar)
        .then(|| world.get(KindId::Pod, namespace, node.name.as_str()))
        .flatten()
        .filter(|pod| pod.meta.annotation(PROXY_ANNOTATION) != Some("gateway"));
    let serves = |pod: &&Arc<Object>| {
        pod.meta.annotation(PROXY_ANNOTATION) == Some("gateway")
            && pod.meta.annotation(GATEWAY_ANNOTATION) == Some(node.name.as_str())
    };
    let gateways = (node.kind == NodeKind::Gateway)
        .then(|| world.objects(KindId::Pod, Some(namespace)).filter(move |pod| serves(pod)));
    own.into_iter().chain(gateways.into_iter().flatten()).map(|pod| &**pod)
}
