// SPDX-License-Identifier: Apache-2.0
//! One step from World to proxies: compile what a change touched, publish the Mesh, hand the
//! resources to the pusher and the statuses to the caller, in this order.
//!
//! The assembly owns one and feeds it what the registry says. Compiling blocks: a large mesh's
//! first step takes a moment, later ones what changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::snapshot::Publisher;
use weft_kinds::world::{World, WorldDelta};

use super::delta::Rescope;
use super::pusher::Pusher;
use crate::compile::Env;
use crate::compiler::{Compiler, Update};
use crate::mesh::Mesh;
use crate::status::StatusUpdate;

#[derive(Debug)]
pub struct Driver {
    env: Env,
    compiler: Compiler,
    mesh: Publisher<Mesh>,
    pusher: Pusher,
}

// === impl Driver ===

impl Driver {
    /// Compiles the first World and begins to serve proxies. `mesh` is the other end of what the
    /// pusher's [`super::MeshNodes`] reads.
    pub fn start(
        env: Env,
        world: &World,
        mesh: Publisher<Mesh>,
        pusher: Pusher,
    ) -> (Self, Vec<StatusUpdate>) {
        let (compiler, update) = Compiler::new(env.clone(), world);
        let driver = Self { env, compiler, mesh, pusher };
        let statuses = driver.emit(update);
        (driver, statuses)
    }

    /// The World changed. Returns the statuses to write.
    pub fn step(&mut self, world: &World, delta: &WorldDelta) -> Vec<StatusUpdate> {
        let update = self.compiler.update(world, delta);
        self.emit(update)
    }

    /// Steps were missed: everything is compiled again, and what is gone is taken back. Proxies
    /// are sent only what differs.
    pub fn reset(&mut self, world: &World) -> Vec<StatusUpdate> {
        let (compiler, mut update) = Compiler::new(self.env.clone(), world);
        let old = std::mem::replace(&mut self.compiler, compiler);
        let new = self.compiler.mesh().resources();
        let gone = old.mesh().resources().keys().filter(|name| !new.contains_key(*name));
        update.delta.removes.extend(gone.cloned().collect::<BTreeSet<_>>());
        update.delta.upserts = new.iter().map(|(n, r)| (n.clone(), Arc::clone(r))).collect();
        update.delta.rescope = Rescope::Everybody;
        self.emit(update)
    }

    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    pub fn pusher(&self) -> &Pusher {
        &self.pusher
    }

    fn emit(&self, update: Update) -> Vec<StatusUpdate> {
        // Scopes are read from the Mesh when the pusher takes the delta up.
        self.mesh.publish(self.compiler.mesh().clone());
        self.pusher.submit(update.delta);
        update.statuses
    }
}
