// SPDX-License-Identifier: Apache-2.0
//! The Mesh: every compiled resource in effect, and which proxy sees which.
//!
//! The compiler is the one writer; others pin clones (cheap: persistent maps). The pusher asks
//! [`Mesh::scope`] once per node, and again when an update says so, then asks that scope for each
//! changed resource. Never reads the World.
//!
//! A gateway sees its own listeners and the hosts that their routes name, but private keys of its
//! own namespace alone. A sidecar sees its own
//! inbound listeners and every host exported to its namespace, with the routes meant for it. When
//! that is more than a proxy holds, it keeps its own listeners and its own namespace's hosts, and
//! asks for the others by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use weft_model::{
    Backend, GATEWAYS_MARK, Labels, Parent, Resource, ResourceName, Root, Route, Scope, for_clients,
};
use weft_xds::{NodeId, NodeKind};

use crate::push::NodeScope;

pub(crate) type Namespaces = Arc<BTreeSet<Arc<str>>>;

/// An immutable value; `clone` shares everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    pub(crate) resources: OrdMap<ResourceName, Arc<Resource>>,
    /// Hosts that the routes of each gateway listener name, and how often.
    pub(crate) references: OrdMap<Root, OrdMap<Root, usize>>,
    /// Labels of the pods that have a sidecar.
    pub(crate) sidecars: OrdMap<NodeId, Arc<Labels>>,
    pub(crate) gateways: OrdSet<NodeId>,
    /// Hosts that are not exported to every namespace.
    pub(crate) restricted: OrdMap<Root, Namespaces>,
}

/// What one node sees. Keeps the parts of the Mesh it was made from.
#[derive(Clone, Debug, PartialEq)]
pub enum MeshScope {
    Sidecar {
        namespace: Arc<str>,
        labels: Arc<Labels>,
        /// What the names of its own listeners begin with.
        inbound: String,
        restricted: OrdMap<Root, Namespaces>,
    },
    Gateway {
        namespace: Arc<str>,
        /// What the names of its own listeners begin with.
        listeners: String,
        /// What its listeners' routes name, by listener.
        references: Vec<OrdMap<Root, usize>>,
    },
}

// === impl Mesh ===

impl Mesh {
    /// What a node sees; `None` when there is no such node.
    pub fn scope(&self, node: &NodeId) -> Option<MeshScope> {
        match node.kind {
            NodeKind::Sidecar => Some(MeshScope::Sidecar {
                namespace: node.namespace.as_str().into(),
                labels: self.sidecars.get(node)?.clone(),
                inbound: listener_prefix(node),
                restricted: self.restricted.clone(),
            }),
            NodeKind::Gateway => {
                self.gateways.get(node)?;
                let listeners = listener_prefix(node);
                let own = self.references.range(Root::listener(&*listeners)..);
                let own = own.take_while(|(root, _)| begins(root, &listeners));
                let references = own.map(|(_, r)| r.clone()).collect();
                let namespace = node.namespace.as_str().into();
                Some(MeshScope::Gateway { namespace, listeners, references })
            }
        }
    }

    /// Everything that a node sees, in order of names.
    pub fn view(&self, scope: &MeshScope) -> impl Iterator<Item = (&ResourceName, &Arc<Resource>)> {
        self.resources.iter().filter(move |(name, resource)| scope.sees(name, resource))
    }

    /// Every resource in effect, whoever sees it.
    pub fn resources(&self) -> &OrdMap<ResourceName, Arc<Resource>> {
        &self.resources
    }

    pub fn get(&self, name: &ResourceName) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.sidecars.keys().chain(&self.gateways)
    }
}

// === impl MeshScope ===

impl MeshScope {
    pub fn sees_root(&self, root: &Root) -> bool {
        match (self, root) {
            (Self::Sidecar { inbound, .. }, Root::Listener(_)) => begins(root, inbound),
            (Self::Gateway { listeners, .. }, Root::Listener(_)) => begins(root, listeners),
            (Self::Gateway { references, .. }, Root::Host(_)) => {
                references.iter().any(|r| r.contains_key(root))
            }
            (Self::Sidecar { namespace, restricted, .. }, Root::Host(_)) => {
                restricted.get(root).is_none_or(|to| to.contains(namespace))
            }
        }
    }

    fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Sidecar { namespace, .. } | Self::Gateway { namespace, .. } => namespace,
        }
    }

    /// A Gateway is chosen by none.
    fn labels(&self) -> Option<&Labels> {
        match self {
            Self::Sidecar { labels, .. } => Some(labels),
            Self::Gateway { .. } => None,
        }
    }

    fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway { .. })
    }

    /// Whether a backend's private key, if it has one, may be this node's: it is a Gateway of the
    /// namespace whose rule, and so whose Secret, has it.
    fn may_show(&self, backend: &Backend) -> bool {
        let shows = backend.policy.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
        !shows
            || matches!((self, &backend.origin), (Self::Gateway { namespace, .. }, Some(origin))
                if origin.namespace == *namespace)
    }

    /// Whether a route is for this node's requests: mesh routes are for sidecars, each for the
    /// clients that it names; gateways have routes of their own.
    fn is_client_of(&self, route: &Route) -> bool {
        let Self::Sidecar { namespace, labels, .. } = self else {
            return matches!(route.parent, Parent::Listener { .. });
        };
        match &route.scope {
            Scope::Any => true,
            Scope::Namespace(ns) => ns == namespace,
            // An empty namespace is any.
            Scope::Workload { namespace: ns, labels: wanted } => {
                (ns.is_empty() || ns == namespace)
                    && wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
            }
        }
    }
}

impl NodeScope for MeshScope {
    fn sees(&self, name: &ResourceName, resource: &Resource) -> bool {
        let meant = match resource {
            Resource::Route(route) => self.is_client_of(route),
            Resource::Backend(backend) => self.may_show(backend),
            _ => true,
        };
        // What holds for some clients is for them alone.
        let (child, meant) = match for_clients(&name.child) {
            Some((child, whom)) => (child, meant && whom.takes(self.namespace(), self.labels())),
            None => (&*name.child, meant),
        };
        // What Gateways say to a service, with keys of theirs, is not for sidecars.
        let meant = meant && (self.is_gateway() || !child.ends_with(GATEWAYS_MARK));
        meant && self.sees_root(&name.root)
    }

    fn asks(&self) -> bool {
        matches!(self, Self::Sidecar { .. })
    }

    fn keeps(&self, root: &Root) -> bool {
        match (self, root) {
            (Self::Sidecar { namespace, .. }, Root::Host(host)) => {
                host.split('.').nth(1) == Some(namespace)
            }
            _ => true,
        }
    }
}

/// The root of one port of a gateway.
pub fn gateway_root(namespace: &str, name: &str, port: u16) -> Root {
    Root::listener(format!("{namespace}~{name}~{port}"))
}

/// The namespace of the gateway that a listener is of.
pub(crate) fn gateway_namespace(listener: &Root) -> &str {
    listener.name().split('~').next().unwrap_or_default()
}

/// The same of a port that takes datagrams.
pub fn udp_gateway_root(namespace: &str, name: &str, port: u16) -> Root {
    Root::listener(format!("{namespace}~{name}~{port}~udp"))
}

/// The root of one app port behind a pod's sidecar.
pub fn inbound_root(namespace: &str, pod: &str, port: u16) -> Root {
    Root::listener(format!("inbound~{namespace}~{pod}~{port}"))
}

/// The root of what holds for a pod's captured traffic.
pub fn capture_root(namespace: &str, pod: &str) -> Root {
    Root::listener(format!("inbound~{namespace}~{pod}~capture"))
}

/// What the names of a node's own listeners begin with.
fn listener_prefix(node: &NodeId) -> String {
    match node.kind {
        NodeKind::Gateway => format!("{}~{}~", node.namespace, node.name),
        NodeKind::Sidecar => format!("inbound~{}~{}~", node.namespace, node.name),
    }
}

fn begins(root: &Root, prefix: &str) -> bool {
    matches!(root, Root::Listener(name) if name.starts_with(prefix))
}
