// SPDX-License-Identifier: Apache-2.0
//! PeerAuthentication to who may connect to a pod's ports. Istio's precedence: a policy that
//! selects the workload, then its namespace's, then the mesh's; among equals the oldest; what a
//! policy leaves unset the next one says. Listeners ask the [`Book`]; a policy's own unit gives its
//! status only.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::views::security::PeerAuthentication;
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{KindId, Object, ObjectKey, PodsMode, World};
use weft_model::MtlsMode;

use super::{Output, Reader};
use crate::status::{Condition, StatusBody, StatusUpdate};

/// Istio's root namespace: a policy there without a selector is the whole mesh's.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// What holds for the ports of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub mode: MtlsMode,
    /// Ports of the workload where something else holds.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The object that decided `mode`; `None` when nobody said anything.
    pub by: Option<ObjectKey>,
}

// === impl Policy ===

impl Policy {
    /// What holds for one port of the workload.
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// The policies of a namespace, the oldest first.
type Policies<'w> = Vec<(&'w Object, &'w PeerAuthentication)>;

/// All policies that may concern the workloads of one namespace.
#[derive(Debug)]
pub(super) struct Book<'w> {
    own: Policies<'w>,
    root: Policies<'w>,
}

// === impl Book ===

impl<'w> Book<'w> {
    pub fn read(reader: &Reader<'w>, namespace: &str) -> Self {
        let root = match namespace == ROOT_NAMESPACE {
            true => Vec::new(),
            false => policies(reader, ROOT_NAMESPACE),
        };
        Self { own: policies(reader, namespace), root }
    }

    /// What holds for a workload.
    pub fn of(&self, labels: &Labels) -> Policy {
        let selects =
            |p: &PeerAuthentication| !p.spec.selector.is_empty() && p.spec.selector.matches(labels);
        let workload = self.own.iter().find(|(_, p)| selects(p)).copied();
        let mut levels = [workload, whole(&self.own), whole(&self.root)].into_iter().flatten();
        let said =
            levels.find_map(|(o, p)| Some((mode_of(&p.spec.mtls.mode)?, Some(o.key.clone()))));
        let (mode, by) = said.unwrap_or_default();
        let ports = workload.map(|(_, p)| port_modes(p)).unwrap_or_default();
        Policy { mode, ports, by }
    }
}

/// What holds for a pod, for reports. In process mode nothing can be enforced: see
/// [`is_enforced`].
pub fn effective(world: &World, namespace: &str, labels: &Labels) -> Policy {
    Book::read(&Reader::new(world), namespace).of(labels)
}

/// Whether traffic to a pod has no way but through its sidecar.
pub fn is_enforced(pod: &Object) -> bool {
    PodsMode::of(&pod.meta).is_captured()
}

/// The policy of a whole namespace.
fn whole<'w>(all: &Policies<'w>) -> Option<(&'w Object, &'w PeerAuthentication)> {
    all.iter().find(|(_, p)| p.spec.selector.is_empty()).copied()
}

fn policies<'w>(reader: &Reader<'w>, namespace: &str) -> Policies<'w> {
    let found = reader.kind(KindId::PeerAuthentication, Some(namespace));
    let mut out: Policies<'w> = found
        .into_iter()
        .filter_map(|o| match &o.view {
            View::PeerAuthentication(policy) => Some((&**o, policy)),
            _ => None,
        })
        .collect();
    out.sort_by_key(|(o, _)| (o.meta.created_ms(), o.key.name.clone()));
    out
}

/// `None` for `UNSET`, and for words of later versions: the next policy decides.
fn mode_of(word: &str) -> Option<MtlsMode> {
    match word {
        "DISABLE" => Some(MtlsMode::Disable),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "STRICT" => Some(MtlsMode::Strict),
        _ => None,
    }
}

fn port_modes(policy: &PeerAuthentication) -> BTreeMap<u16, MtlsMode> {
    let each = policy.spec.port_level_mtls.iter();
    each.filter_map(|(port, tls)| Some((port.parse().ok()?, mode_of(&tls.mode)?))).collect()
}

// === the policy's own unit ===

pub(super) fn compile(reader: &Reader<'_>, object: &Object, policy: &PeerAuthentication) -> Output {
    let mut issues = Issues::default();
    judge_ports(policy, &mut issues);
    let mut conditions = vec![accepted(reader, object, policy), enforced(reader, policy)];
    conditions.extend(Condition::warning(&issues));
    let status = StatusUpdate {
        object: object.key.clone(),
        generation: object.meta.generation,
        body: StatusBody::Conditions(conditions),
    };
    Output { status: Some(status), ..Output::default() }
}

/// The older of two policies about the same thing decides.
fn accepted(reader: &Reader<'_>, object: &Object, policy: &PeerAuthentication) -> Condition {
    let spec = &policy.spec;
    let all = policies(reader, &object.key.namespace);
    let older = all.iter().take_while(|(o, _)| o.key != object.key);
    let same = |p: &PeerAuthentication| p.spec.selector == spec.selector;
    if let Some((first, _)) = older.clone().find(|(_, p)| same(p)) {
        let text = format!("not used: the older {} is about the same workloads", first.key);
        return Condition::new("Accepted", false, "Conflicted", text);
    }
    let namespace = &object.key.namespace;
    let text = match spec.selector.is_empty() {
        true if &**namespace == ROOT_NAMESPACE => "holds for the whole mesh".to_owned(),
        true => format!("holds for namespace {namespace}"),
        false => format!("holds for workloads of namespace {namespace} that its selector takes"),
    };
    Condition::new("Accepted", true, "Accepted", text)
}

/// Whether what it says can be walked around.
fn enforced(reader: &Reader<'_>, policy: &PeerAuthentication) -> Condition {
    let spec = &policy.spec;
    let mut modes = std::iter::once(&spec.mtls).chain(spec.port_level_mtls.values());
    let binding =
        modes.any(|m| matches!(mode_of(&m.mode), Some(MtlsMode::Strict | MtlsMode::Disable)));
    enforcement(reader, binding)
}

/// Whether something that binds traffic can be walked around.
pub(super) fn enforcement(reader: &Reader<'_>, binding: bool) -> Condition {
    if reader.pods_mode() == PodsMode::Namespace {
        let text = "pods run in namespaces of their own: their traffic passes their sidecars";
        return Condition::new("Enforced", true, "Enforced", text);
    }
    if !binding {
        let text = "it allows what process mode allows anyway";
        return Condition::new("Enforced", true, "Enforced", text);
    }
    let text = "pods run as processes of this machine: a program that connects to another's own \
                port passes no sidecar; start with --pods=namespace to enforce it";
    Condition::new("Enforced", false, "NotEnforceable", text)
}

fn judge_ports(policy: &PeerAuthentication, issues: &mut Issues) {
    let spec = &policy.spec;
    let at = FieldPath::new("spec.portLevelMtls");
    if spec.selector.is_empty() && !spec.port_level_mtls.is_empty() {
        issues.warning(at, "not used: only a policy with a selector speaks of single ports");
        return;
    }
    for port in spec.port_level_mtls.keys().filter(|p| p.parse::<u16>().is_err()) {
        let port: &Arc<str> = port;
        issues.warning(at.clone().field(port), "not used: this is no port number");
    }
}
