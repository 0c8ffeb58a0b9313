// SPDX-License-Identifier: Apache-2.0
//! The table of kinds that weft serves. Discovery, OpenAPI, printing, storage keys and decoding
//! derive from [`KINDS`]; nothing registers itself at run time.
//!
//! Called by every door, the registry and `World`. Never reads a schema or an object.

mod columns;
mod rows;

pub use rows::KINDS;

/// The prefix of every object's key in the store.
pub const OBJECTS: &str = "/o/";

/// One kind, as a small number: the position of its row in [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum KindId {
    Namespace,
    Service,
    Pod,
    ConfigMap,
    Secret,
    ServiceAccount,
    Event,
    Endpoints,
    Node,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    ControllerRevision,
    Job,
    CronJob,
    HorizontalPodAutoscaler,
    PodDisruptionBudget,
    EndpointSlice,
    Lease,
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    ListenerSet,
    ReferenceGrant,
    BackendTlsPolicy,
    VirtualService,
    DestinationRule,
    IstioGateway,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
    Sidecar,
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
    Telemetry,
    MeshConfig,
    TrafficPolicy,
}

/// How patches merge and what discovery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A Kubernetes type: strategic merge patch, defaults computed by code and by its schema.
    Builtin,
    /// A custom resource: JSON merge patch, everything from its structural schema.
    Custom,
}

/// A resource below an object's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Log,
    Eviction,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub id: KindId,
    /// Empty for the core group.
    pub group: &'static str,
    /// Served versions, the preferred (and stored) one first.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub family: Family,
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
}

/// One column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// The OpenAPI type kubectl is told: `string`, `integer`, `boolean`, `date`.
    pub ty: &'static str,
    /// Shown by `-o wide` only.
    pub wide: bool,
    pub cell: Cell,
}

/// Where a cell's text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A JSONPath in the object.
    Path(&'static str),
    /// The door computes it from the object (ready counts, ports, …).
    Computed,
}

// === impl KindId ===

impl KindId {
    pub fn row(self) -> &'static Kind {
        &KINDS[self as usize]
    }

    /// The kind named by an API path, such as (`apps`, `v1`, `deployments`).
    pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<Self> {
        let row = KINDS.iter().find(|k| k.group == group && k.plural == plural)?;
        row.versions.contains(&version).then_some(row.id)
    }

    /// The kind named by an object's `apiVersion` and `kind`.
    pub fn by_api(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = split_api_version(api_version);
        let row = KINDS.iter().find(|k| k.group == group && k.kind == kind)?;
        row.versions.contains(&version).then_some(row.id)
    }

    /// The kind of a group, whatever its version: what a reference such as
    /// `{group, kind}` names.
    pub fn by_group_kind(group: &str, kind: &str) -> Option<Self> {
        KINDS.iter().find(|k| k.group == group && k.kind == kind).map(|k| k.id)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|k| k.id)
    }
}

impl std::fmt::Display for KindId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().kind)
    }
}

// === impl Kind ===

impl Kind {
    /// The version objects are stored in.
    pub fn storage_version(&self) -> &'static str {
        self.versions[0]
    }

    /// The stored form's `apiVersion`.
    pub fn api_version(&self) -> String {
        self.api_version_of(self.storage_version())
    }

    /// `apiVersion` of one served version.
    pub fn api_version_of(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `deployments.apps`, or `services` in the core group: how messages name the resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `/o/apps/deployments/`: the prefix of all its objects in the store.
    pub fn prefix(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("{OBJECTS}{group}/{}/", self.plural)
    }

    /// The key of one object; `namespace` is ignored for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let namespace = if self.namespaced { namespace } else { "_" };
        format!("{}{namespace}/{name}", self.prefix())
    }

    pub fn has(&self, sub: Subresource) -> bool {
        self.subresources.contains(&sub)
    }
}

/// The group and version of an `apiVersion`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The inverse of [`Kind::key`]: kind, namespace (empty when cluster-scoped) and name.
pub fn parse_key(key: &str) -> Option<(KindId, &str, &str)> {
    let mut parts = key.strip_prefix(OBJECTS)?.splitn(4, '/');
    let group = parts.next()?;
    let (plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    let row = KINDS.iter().find(|k| k.group == group && k.plural == plural)?;
    Some((row.id, if namespace == "_" { "" } else { namespace }, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_at_its_number_and_is_unique() {
        for (i, row) in KINDS.iter().enumerate() {
            assert_eq!(row.id as usize, i, "{} stands in the wrong row", row.kind);
            assert!(!row.versions.is_empty() && row.plural == row.plural.to_lowercase());
            let same = KINDS.iter().filter(|k| k.group == row.group && k.plural == row.plural);
            assert_eq!(same.count(), 1, "{}", row.resource());
        }
    }

    #[test]
    fn keys_round_trip() {
        let dep = KindId::Deployment.row();
        assert_eq!(dep.key("shop", "order"), "/o/apps/deployments/shop/order");
        assert_eq!(parse_key(&dep.key("shop", "a.b")), Some((dep.id, "shop", "a.b")));
        let ns = KindId::Namespace.row();
        assert_eq!(ns.key("ignored", "shop"), "/o/core/namespaces/_/shop");
        assert_eq!(parse_key("/o/core/namespaces/_/shop"), Some((ns.id, "", "shop")));
        assert_eq!(parse_key("/o/core/unicorns/_/x"), None);
        assert_eq!(parse_key("/c/n/x"), None);
    }

    #[test]
    fn groups_keep_kinds_of_one_name_apart() {
        let k8s = KindId::by_api("gateway.networking.k8s.io/v1beta1", "Gateway");
        assert_eq!(k8s, Some(KindId::Gateway));
        let istio = KindId::by_api("networking.istio.io/v1alpha3", "Gateway");
        assert_eq!(istio, Some(KindId::IstioGateway));
        assert_eq!(KindId::by_api("v2", "Service"), None);
        assert_eq!(KindId::by_resource("apps", "v1", "deployments"), Some(KindId::Deployment));
    }
}
