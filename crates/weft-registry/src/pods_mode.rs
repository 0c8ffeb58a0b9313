// SPDX-License-Identifier: Apache-2.0
//! How pods run, kept with the data. Called once as the server starts, before controllers and
//! agents run: a change of the mode gives Services and pods addresses of the other network.

use serde_json::Value;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{HOST_ADDRESS_ANNOTATION, PODS_ANNOTATION, PODS_SETTING, PodsMode, World};
use weft_store::{Op, Revision, Txn};

use crate::objects::addresses::is_inside_pod;
use crate::objects::meta::metadata_mut;
use crate::{Change, ObjectError, Part, Registry, WriteOptions};

/// Settings let go of at a time.
const BATCH: usize = 100;

impl Registry {
    /// Says how pods run from now on. What ran in the other mode is given new addresses: Services
    /// here, pods by the controller that places them.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_pods_mode(&self, mode: PodsMode) -> Result<(), ObjectError> {
        let before = self.now();
        if before.setting(PODS_SETTING).is_none() && mode == PodsMode::Process {
            return Ok(());
        }
        if before.pods_mode() == mode {
            return Ok(());
        }
        let value = mode.setting().to_string();
        self.settle([Op::put(format!("/s/{PODS_SETTING}"), value)]).await?;
        let world = self.now();
        for pod in world.objects(KindId::Pod, None) {
            // Programs of a machine have the machine's address, whatever the mode.
            let moves = PodsMode::of(&pod.meta) != PodsMode::Machine;
            if moves && matches!(&pod.view, View::Pod(view) if !view.is_finished()) {
                self.redo(KindId::Pod, &pod.key.namespace, &pod.key.name, unplaced).await?;
            }
        }
        let left: Vec<Op> = inside_addresses(&world).map(Op::delete).collect();
        for ops in left.chunks(BATCH) {
            self.settle(ops.to_vec()).await?;
        }
        for service in world.objects(KindId::Service, None) {
            // Admission sees that the address is of the other mode.
            self.redo(KindId::Service, &service.key.namespace, &service.key.name, Value::clone)
                .await?;
        }
        Ok(())
    }

    async fn settle(&self, ops: impl IntoIterator<Item = Op>) -> Result<Revision, ObjectError> {
        let done = self.inner.store.txn(Txn::of(ops)).await?;
        self.wait_revision(done.revision).await;
        Ok(done.revision)
    }

    async fn redo(
        &self,
        kind: KindId,
        namespace: &str,
        name: &str,
        f: fn(&Value) -> Value,
    ) -> Result<(), ObjectError> {
        let options = WriteOptions::SYSTEM;
        let change = Change { kind, namespace, name, part: Part::All, options };
        match self.objects().modify(change, |old| Ok(f(old))).await {
            Ok(_) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A pod as it was before it was given its addresses; its place stays.
fn unplaced(pod: &Value) -> Value {
    let mut new = pod.clone();
    if let Some(status) = new["status"].as_object_mut() {
        status.remove("podIP");
        status.remove("podIPs");
    }
    if let Some(all) = metadata_mut(&mut new).get_mut("annotations").and_then(Value::as_object_mut)
    {
        all.remove(PODS_ANNOTATION);
        all.remove(HOST_ADDRESS_ANNOTATION);
    }
    new
}

/// Store keys of addresses of the pod network. Loopback addresses stay with their pods.
fn inside_addresses(world: &World) -> impl Iterator<Item = String> {
    world.settings().filter_map(|(name, _)| {
        let ip = name.strip_prefix("addresses/")?.parse().ok()?;
        is_inside_pod(ip).then(|| format!("/s/{name}"))
    })
}

#[cfg(test)]
mod tests;
