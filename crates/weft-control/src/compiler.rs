// SPDX-License-Identifier: Apache-2.0
//! The compiler: keeps what every unit gave and read, runs again only those whose reads changed,
//! and decides when a route's new version takes effect.
//!
//! The control loop owns one: [`Compiler::new`] over the first World, [`Compiler::update`] per
//! `WorldDelta`, then publish [`Compiler::mesh`], hand [`Update::delta`] to the pusher and
//! [`Update::statuses`] to the registry, in this order. No I/O, no time.
//!
//! # When a route takes effect
//!
//! A new route goes from 404 to 200 without one 503, and a changed one from its old backends to
//! new ones that are ready:
//!
//! - A version of a route that sends requests (weight above 0) to a backend which its version in
//!   effect does not use waits until that backend has a healthy instance. Until then the version
//!   in effect stays; a new route is not served. Its object's status says what it waits for.
//! - A version that names something that does not exist waits likewise while the version in
//!   effect is sound; a new one takes effect at once, and that share of requests is answered with
//!   the sentence (Gateway API asks for the 500).
//! - What is in effect is never taken back because instances became unhealthy, and a reference
//!   that is not permitted is refused at once.
//! - Whatever the first World holds is not new: it takes effect as it is.

mod gate;
mod kept;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use imbl::OrdMap;
use weft_kinds::world::{ObjectKey, ReadKey, World, WorldDelta};
use weft_model::{Resource, ResourceName, Root};
use weft_xds::{NodeId, NodeKind};

use crate::compile::{Draft, Env, Output, Unit, all_units, compile, units_of};
use crate::mesh::Mesh;
use crate::push::{Delta, Rescope};
use crate::status::{Condition, StatusBody, StatusUpdate};
use gate::Gate;
pub(crate) use gate::targets_of;
use kept::{Kept, Reads};

#[derive(Debug)]
pub struct Compiler {
    env: Env,
    outputs: HashMap<Unit, Kept>,
    reads: Reads,
    mesh: Mesh,
    gate: Gate,
    /// Routes attached to each section of each gateway.
    attached: HashMap<ObjectKey, BTreeMap<Arc<str>, usize>>,
    /// What units say of other objects than their own.
    told: HashMap<ObjectKey, (Unit, StatusUpdate)>,
    /// Statuses as they were last handed out.
    statuses: HashMap<ObjectKey, StatusUpdate>,
}

/// What one update gives.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// For the pusher.
    pub delta: Delta,
    /// For the registry to write.
    pub statuses: Vec<StatusUpdate>,
    /// Units that ran, for the metrics door and tests.
    pub compiled: usize,
}

/// What has happened so far in one update.
#[derive(Default)]
struct Step {
    update: Update,
    routes: BTreeMap<ResourceName, (ObjectKey, Draft)>,
    statuses: BTreeSet<ObjectKey>,
    nodes: BTreeSet<NodeId>,
    everybody: bool,
}

// === impl Compiler ===

impl Compiler {
    /// Compiles a whole World.
    pub fn new(env: Env, world: &World) -> (Self, Update) {
        let mut compiler = Self {
            env,
            outputs: HashMap::new(),
            reads: Reads::default(),
            mesh: Mesh::default(),
            gate: Gate::open(),
            attached: HashMap::new(),
            told: HashMap::new(),
            statuses: HashMap::new(),
        };
        let update = compiler.run(world, all_units(world).into_iter().collect());
        compiler.gate.close();
        (compiler, update)
    }

    /// Compiles again what a change touched.
    pub fn update(&mut self, world: &World, delta: &WorldDelta) -> Update {
        let mut dirty = BTreeSet::new();
        for key in delta.iter() {
            dirty.extend(self.reads.readers(key).cloned());
            if let ReadKey::Object(object) = key {
                dirty.extend(units_of(object));
            }
        }
        self.run(world, dirty)
    }

    /// All resources in effect, and who sees them.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The newest status of every compiled object.
    pub fn statuses(&self) -> impl Iterator<Item = &StatusUpdate> {
        self.statuses.values()
    }

    fn run(&mut self, world: &World, dirty: BTreeSet<Unit>) -> Update {
        let mut step = Step::default();
        step.update.compiled = dirty.len();
        let mut compiled = Vec::with_capacity(dirty.len());
        let shared = Rc::default();
        for unit in dirty {
            let (output, reads) = compile(&unit, world, &self.env, &shared);
            let reads = if output.is_some() { reads } else { HashSet::new() };
            self.reads.note(&unit, &reads);
            compiled.push((unit, output));
        }
        // Everything is withdrawn before anything is put in its place, so that what passes from
        // one object to another (a host that two entries name) is there throughout.
        let offered = offered(&compiled);
        for (unit, output) in &compiled {
            self.withdraw(unit, output.as_ref(), &offered, &mut step);
        }
        for (unit, output) in compiled {
            self.replace(unit, output, &mut step);
        }
        self.settle_routes(&mut step);
        self.settle_statuses(&mut step);
        step.update.delta.generation = world.revision();
        step.update.delta.rescope = match (step.everybody, step.nodes.is_empty()) {
            (true, _) => Rescope::Everybody,
            (false, true) => Rescope::Nobody,
            (false, false) => Rescope::Nodes(step.nodes),
        };
        step.update
    }

    /// Takes away what a unit gave and gives no more, unless another gives it now.
    fn withdraw(
        &mut self,
        unit: &Unit,
        new: Option<&Output>,
        offered: &HashSet<ResourceName>,
        step: &mut Step,
    ) {
        let Some(old) = self.outputs.get(unit) else { return };
        let keeps = |name: &ResourceName| new.is_some_and(|n| n.resources.contains_key(name));
        let gone: Vec<ResourceName> =
            old.names().filter(|n| !keeps(n) && !offered.contains(*n)).cloned().collect();
        let restricted = old.rest().map_or(&[][..], |old| &old.restricted);
        if new.is_none_or(|new| new.restricted != restricted) && !restricted.is_empty() {
            for (root, _) in restricted {
                self.mesh.restricted.remove(root);
            }
            step.everybody = true;
        }
        for name in &gone {
            self.retract(name, step);
        }
    }

    /// Puts a unit's new output in the place of its old one.
    fn replace(&mut self, unit: Unit, new: Option<Output>, step: &mut Step) {
        let gone = new.is_none();
        let mut new = new.unwrap_or_default();
        let old = self.outputs.remove(&unit).map(Kept::whole).unwrap_or_default();
        for (name, draft) in &mut new.resources {
            match old.resources.get(name) {
                // The one that is in effect is kept, not a second one that says the same.
                Some(same) if same == draft => draft.resource.clone_from(&same.resource),
                _ => self.offer(&unit, name, draft, step),
            }
        }
        self.replace_node(&old, &new, step);
        if old.restricted != new.restricted {
            self.mesh.restricted.extend(new.restricted.iter().cloned());
            step.everybody = true;
        }
        self.replace_attachments(&old, &new, step);
        self.replace_told(&unit, &old, &new, step);
        if let Unit::Object(key) = &unit
            && old.status != new.status
        {
            step.statuses.insert(key.clone());
        }
        if !gone {
            self.outputs.insert(unit, Kept::new(new));
        }
    }

    fn replace_node(&mut self, old: &Output, new: &Output, step: &mut Step) {
        if old.node == new.node {
            return;
        }
        if let Some((id, _)) = &old.node {
            self.mesh.sidecars.remove(id);
            self.mesh.gateways.remove(id);
            step.nodes.insert(id.clone());
        }
        if let Some((id, labels)) = &new.node {
            match id.kind {
                NodeKind::Sidecar => {
                    self.mesh.sidecars.insert(id.clone(), Arc::new(labels.clone()));
                }
                NodeKind::Gateway => {
                    self.mesh.gateways.insert(id.clone());
                }
            }
            step.nodes.insert(id.clone());
        }
    }

    fn replace_attachments(&mut self, old: &Output, new: &Output, step: &mut Step) {
        if old.attached == new.attached {
            return;
        }
        for (gateway, section) in &old.attached {
            if let Some(count) = self.attached.get_mut(gateway).and_then(|s| s.get_mut(section)) {
                *count -= 1;
            }
            step.statuses.insert(gateway.clone());
        }
        for (gateway, section) in &new.attached {
            let sections = self.attached.entry(gateway.clone()).or_default();
            *sections.entry(section.clone()).or_default() += 1;
            step.statuses.insert(gateway.clone());
        }
    }

    /// Statuses of other objects: those that changed, came and went.
    fn replace_told(&mut self, unit: &Unit, old: &Output, new: &Output, step: &mut Step) {
        let by_object = |output: &Output| -> BTreeMap<ObjectKey, StatusUpdate> {
            output.told.iter().map(|s| (s.object.clone(), s.clone())).collect()
        };
        if old.told == new.told {
            return;
        }
        let (old, new) = (by_object(old), by_object(new));
        for object in old.keys().filter(|object| !new.contains_key(*object)) {
            // Another unit may have spoken of it since.
            if self.told.get(object).is_some_and(|(by, _)| by == unit) {
                self.told.remove(object);
            }
            step.statuses.insert(object.clone());
        }
        for (object, status) in new {
            if old.get(&object) != Some(&status) {
                step.statuses.insert(object.clone());
                self.told.insert(object, (unit.clone(), status));
            }
        }
    }

    // === resources ===

    /// A unit gives a new version of a resource: a route goes to the gate, the rest is in effect.
    fn offer(&mut self, unit: &Unit, name: &ResourceName, draft: &Draft, step: &mut Step) {
        match (&*draft.resource, unit) {
            (Resource::Route(_), Unit::Object(object)) => {
                step.routes.insert(name.clone(), (object.clone(), draft.clone()));
            }
            _ => self.publish(name, &draft.resource, step),
        }
    }

    fn publish(&mut self, name: &ResourceName, resource: &Arc<Resource>, step: &mut Step) {
        let old = self.mesh.resources.insert(name.clone(), resource.clone());
        if old.as_ref() == Some(resource) {
            return;
        }
        step.update.delta.upserts.insert(name.clone(), resource.clone());
        // Add before taking away: what both versions name does not go through zero.
        self.count_references(&name.root, Some(resource), 1, step);
        self.count_references(&name.root, old.as_deref(), -1, step);
        if old.is_none() && name.child.is_empty() {
            self.root_came(&name.root, step);
        }
    }

    fn retract(&mut self, name: &ResourceName, step: &mut Step) {
        if let Some(object) = self.gate.forget(name) {
            step.statuses.insert(object);
        }
        let Some(old) = self.mesh.resources.remove(name) else { return };
        step.update.delta.upserts.remove(name);
        step.update.delta.removes.insert(name.clone());
        self.count_references(&name.root, Some(&old), -1, step);
    }

    /// Removing a root's own resource took its children along at the proxies; when it comes
    /// (back), those that are in effect come with it.
    fn root_came(&mut self, root: &Root, step: &mut Step) {
        let family = self.mesh.resources.range(root.own()..);
        for (name, resource) in family.take_while(|(name, _)| name.root == *root) {
            step.update.delta.upserts.insert(name.clone(), resource.clone());
        }
    }

    /// Keeps count of the hosts that a gateway listener's routes name.
    fn count_references(
        &mut self,
        root: &Root,
        resource: Option<&Resource>,
        by: isize,
        step: &mut Step,
    ) {
        let (Root::Listener(listener), Some(Resource::Route(route))) = (root, resource) else {
            return;
        };
        let mut changed = false;
        let hosts: &mut OrdMap<Root, usize> = self.mesh.references.entry(root.clone()).or_default();
        for (target, _) in gate::named(route) {
            let count = hosts.entry(target.root.clone()).or_default();
            let before = *count;
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                hosts.remove(&target.root);
            }
            changed |= (before == 0) || !hosts.contains_key(&target.root);
        }
        if hosts.is_empty() {
            self.mesh.references.remove(root);
        }
        if changed && let Some(node) = gateway_of(listener) {
            step.nodes.insert(node);
        }
    }

    // === routes ===

    fn settle_routes(&mut self, step: &mut Step) {
        // Endpoints or backends that came may be what held routes wait for.
        let touched: BTreeSet<&Root> = step
            .update
            .delta
            .upserts
            .keys()
            .filter(|n| matches!(n.root, Root::Host(_)) && !n.child.starts_with("route/"))
            .map(|n| &n.root)
            .collect();
        let mut again = self.gate.waiting_for(&touched);
        // A backend that went may have been what kept an older version sound.
        if step.update.delta.removes.iter().any(|n| n.child.starts_with("backend/")) {
            again.extend(self.gate.held_names());
        }
        for name in again {
            if let Some(held) = self.gate.held(&name) {
                step.routes.entry(name).or_insert(held);
            }
        }
        for (name, (object, draft)) in std::mem::take(&mut step.routes) {
            let was_held = self.gate.forget(&name).is_some();
            let missing = self.gate.judge(&self.mesh, &name, &draft);
            if missing.is_empty() {
                self.publish(&name, &draft.resource, step);
                if was_held {
                    step.statuses.insert(object);
                }
            } else {
                self.gate.hold(name, object.clone(), draft, missing);
                step.statuses.insert(object);
            }
        }
    }

    // === statuses ===

    fn settle_statuses(&mut self, step: &mut Step) {
        for object in std::mem::take(&mut step.statuses) {
            let unit = Unit::Object(object.clone());
            let own = self.outputs.get(&unit).and_then(|o| o.rest()?.status.clone());
            let told = || self.told.get(&object).map(|(_, status)| status.clone());
            let Some(mut status) = own.or_else(told) else {
                self.statuses.remove(&object);
                if !self.outputs.contains_key(&unit) {
                    self.attached.remove(&object);
                }
                continue;
            };
            self.complete(&mut status);
            if self.statuses.get(&object) != Some(&status) {
                self.statuses.insert(object, status.clone());
                step.update.statuses.push(status);
            }
        }
    }

    /// Adds what only the compiler knows: attached routes, and what is waited for.
    fn complete(&self, status: &mut StatusUpdate) {
        let pending = self
            .gate
            .pending(&status.object)
            .map(|text| Condition::new("weft.dev/Programmed", false, "BackendsNotReady", text));
        match &mut status.body {
            StatusBody::Gateway { listeners, .. } | StatusBody::ListenerSet { listeners, .. } => {
                let counts = self.attached.get(&status.object);
                for listener in listeners {
                    let count = counts.and_then(|c| c.get(&listener.name));
                    listener.attached_routes = count.copied().unwrap_or(0);
                }
            }
            StatusBody::Conditions(conditions) | StatusBody::Class { conditions, .. } => {
                conditions.extend(pending);
            }
            StatusBody::Parents(parents) | StatusBody::Ancestors(parents) => {
                for parent in parents {
                    parent.conditions.extend(pending.clone());
                }
            }
        }
    }
}

/// The gateway that a listener root belongs to.
fn gateway_of(listener: &str) -> Option<NodeId> {
    let mut parts = listener.split('~');
    let (ns, name, port) = (parts.next()?, parts.next()?, parts.next()?);
    let rest: Vec<&str> = parts.collect();
    let is_gateway = matches!(rest[..], [] | ["udp"]) && port.parse::<u16>().is_ok();
    is_gateway.then(|| NodeId::gateway(ns, name).ok()).flatten()
}

/// What the units of a step give, when there are several that could give the same.
fn offered(compiled: &[(Unit, Option<Output>)]) -> HashSet<ResourceName> {
    if compiled.len() < 2 {
        return HashSet::new();
    }
    let outputs = compiled.iter().filter_map(|(_, output)| output.as_ref());
    outputs.flat_map(|o| o.resources.keys().cloned()).collect()
}

#[cfg(test)]
mod tests;
