// SPDX-License-Identifier: Apache-2.0
//! Services that are made because a host declared one that was not there. A host has no more than
//! one of them, and it ends with the declaration, unless somebody else needs it by then.
//!
//! Called by `declared` only. A Service that people made or changed is never taken away here.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, PodsMode, World};

use super::{Workload, port_word};
use crate::controllers::selects;
use crate::hosts::{HostError, Hosts};
use crate::objects::admit::annotate;
use crate::{Change, DeleteOptions, ObjectError, Part, WriteOptions};

/// On Services that were made here: the host whose declaration keeps them.
const MADE_FOR_ANNOTATION: &str = "weft.dev/made-for-host";

/// Who needs a made Service when its host declares it no more.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heir {
    Nobody,
    /// Another host's captured programs are its instances.
    Host(String),
    /// People changed it, or run pods for it.
    People,
}

// === impl Hosts ===

impl Hosts {
    /// A Service for the declared ports, as nobody else made one.
    pub(super) async fn make_service(
        &self,
        host: &str,
        name: &str,
        workload: &Workload,
    ) -> Result<(), HostError> {
        // First, so that there is no second one even when something goes wrong later.
        self.release_services(host, None).await?;
        let port = |(port, protocol): &(u16, String)| {
            let word = port_word(*port, protocol);
            json!({ "name": word, "port": port, "targetPort": port })
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "labels": { "app": name },
                "annotations": { MADE_FOR_ANNOTATION: host },
            },
            "spec": {
                "selector": { "app": name },
                "ports": workload.ports.iter().map(port).collect::<Vec<_>>(),
            },
        });
        let objects = self.registry.objects();
        let options = WriteOptions::SYSTEM;
        match objects.create(KindId::Service, &workload.namespace, service, options).await {
            Ok(made) => {
                self.seen(&made).await;
                Ok(())
            }
            Err(ObjectError::AlreadyExists { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Ends what was made for a host, but for the Service that it declares now (namespace, name).
    pub(super) async fn release_services(
        &self,
        host: &str,
        keep: Option<(&str, &str)>,
    ) -> Result<(), HostError> {
        let world = self.registry.now();
        let is_over = |service: &&Arc<Object>| {
            service.meta.annotation(MADE_FOR_ANNOTATION) == Some(host)
                && keep != Some((&service.key.namespace, &service.key.name))
        };
        let over: Vec<_> = world.objects(KindId::Service, None).filter(is_over).cloned().collect();
        for service in &over {
            match heir(&world, host, service) {
                Heir::Nobody => self.undeclare(service, &DeleteOptions::default()).await?,
                Heir::Host(other) => {
                    self.change_service(service, |new| {
                        annotate(new, MADE_FOR_ANNOTATION, other.clone());
                    })
                    .await?;
                }
                Heir::People => self.change_service(service, forget).await?,
            }
        }
        if !over.is_empty() {
            // What is declared next is judged by a World that knows of it.
            let written = self.registry.store().barrier().await?;
            self.registry.wait_revision(written).await;
        }
        Ok(())
    }

    async fn change_service(
        &self,
        service: &Object,
        f: impl Fn(&mut Value),
    ) -> Result<(), HostError> {
        let (key, options) = (&service.key, WriteOptions::SYSTEM);
        let change = Change {
            kind: KindId::Service,
            namespace: &key.namespace,
            name: &key.name,
            part: Part::All,
            options,
        };
        let objects = self.registry.objects();
        let changed = objects.modify(change, |old| {
            let mut new = old.clone();
            f(&mut new);
            Ok(new)
        });
        match changed.await {
            Ok(_) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn heir(world: &World, host: &str, service: &Object) -> Heir {
    let View::Service(view) = &service.view else { return Heir::People };
    let managers = service.raw["metadata"]["managedFields"].as_array();
    if managers.is_some_and(|all| !all.is_empty()) {
        return Heir::People;
    }
    let mut found = Heir::Nobody;
    for pod in world.objects(KindId::Pod, Some(&service.key.namespace)) {
        let View::Pod(of) = &pod.view else { continue };
        if !selects(view, pod) || pod.meta.is_deleting() || of.is_finished() {
            continue;
        }
        match PodsMode::of(&pod.meta) == PodsMode::Machine {
            true if *of.spec.node_name == *host => {}
            true => found = Heir::Host(of.spec.node_name.to_string()),
            false => return Heir::People,
        }
    }
    found
}

/// The Service is no more of any host's declaration.
fn forget(service: &mut Value) {
    if let Some(all) = service["metadata"]["annotations"].as_object_mut() {
        all.remove(MADE_FOR_ANNOTATION);
    }
}
