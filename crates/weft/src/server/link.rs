// SPDX-License-Identifier: Apache-2.0
//! The agent's link to a server in the same process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use weft_agent::checks::CheckReport;
use weft_agent::link::{BoxFuture, LinkError, PodNote, PodReport, ServerLink, SignAsk};
use weft_agent::pod::PodKey;
use weft_base::name::Label;
use weft_control::push::Pusher;
use weft_identity::{Authority, Bundle, ca::Issued};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{CheckKey, ObjectKey, World};
use weft_model::Root;
use weft_registry::catalog::CatalogError;
use weft_registry::{DeleteOptions, EventNote, ObjectError, Preconditions, Registry, WriteOptions};

/// Life of a workload's certificate.
const SVID_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long all subscribers may take to hear of a leaving instance.
const DRAIN_MAX: Duration = Duration::from_secs(2);
const ACK_ROUND: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct LocalLink {
    pub registry: Registry,
    pub pusher: Pusher,
    pub authority: Arc<Authority>,
}

impl ServerLink for LocalLink {
    fn report_pod(&self, report: PodReport) -> BoxFuture<Result<(), LinkError>> {
        let link = self.clone();
        Box::pin(async move { link.report(report).await })
    }

    fn note(&self, note: PodNote) {
        self.registry.note(EventNote {
            about: ObjectKey::new(KindId::Pod, note.pod.namespace, note.pod.name),
            uid: note.uid,
            warning: note.warning,
            reason: note.reason.into(),
            message: note.message,
            component: "weft-agent",
        });
    }

    fn sign(&self, ask: SignAsk) -> BoxFuture<Result<(Issued, Bundle), LinkError>> {
        let authority = self.authority.clone();
        Box::pin(async move {
            let refused = |e: &dyn fmt::Display| LinkError::Refused(e.to_string());
            let namespace = Label::new(&ask.pod.namespace).map_err(|e| refused(&e))?;
            let account = Label::new(&ask.service_account).map_err(|e| refused(&e))?;
            let id = authority.trust_domain().workload(&namespace, &account);
            let issued = authority.sign(&ask.csr, &id, SVID_TTL).map_err(|e| refused(&e))?;
            Ok((issued, authority.bundle().clone()))
        })
    }

    fn inbound_acked(&self, pod: PodKey) -> BoxFuture<()> {
        let link = self.clone();
        Box::pin(async move {
            loop {
                let ports = container_ports(&link.registry.now(), &pod);
                let (namespace, name) = (&pod.namespace, &pod.name);
                if link.pusher.wait_inbound_acked(namespace, name, &ports, ACK_ROUND).await {
                    return;
                }
            }
        })
    }

    fn drained(&self, pod: PodKey) -> BoxFuture<()> {
        let link = self.clone();
        Box::pin(async move {
            // Late subscribers do not hold a pod back for ever.
            let _ = tokio::time::timeout(DRAIN_MAX, link.drain(&pod)).await;
        })
    }

    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        report_checks(self.registry.clone(), reports)
    }
}

/// Takes results of checks into a registry's catalog.
pub fn report_checks(
    registry: Registry,
    reports: Vec<CheckReport>,
) -> BoxFuture<Result<(), LinkError>> {
    Box::pin(async move {
        for report in reports {
            let key = CheckKey {
                namespace: report.key.namespace,
                node: report.key.node,
                id: report.key.id,
            };
            match registry.catalog().report(&key, report.status, &report.output).await {
                Ok(()) => {}
                // All of them are told again: those that were taken say nothing new then.
                Err(error) if error.is_passing() => {
                    return Err(LinkError::Unavailable(error.to_string()));
                }
                Err(CatalogError::UnknownCheck { id }) => {
                    tracing::debug!(id, "a result of a check that is no more");
                }
                Err(error) => {
                    tracing::warn!(%error, check = ?key, "a check result was not taken");
                }
            }
        }
        Ok(())
    })
}

impl LocalLink {
    async fn report(&self, report: PodReport) -> Result<(), LinkError> {
        let objects = self.registry.objects();
        let (namespace, name) = (&*report.pod.namespace, &*report.pod.name);
        let world = self.registry.now();
        let Some(object) = world.get(KindId::Pod, namespace, name) else { return Ok(()) };
        if object.raw.pointer("/metadata/uid").and_then(|u| u.as_str()) != Some(&report.uid) {
            return Ok(());
        }
        let deleting = object.meta.is_deleting();
        let outcome = if deleting && report.finished {
            let mut options = DeleteOptions::default();
            options.grace_s = Some(0);
            options.preconditions = Preconditions { uid: Some(report.uid), revision: None };
            options.write = WriteOptions::SYSTEM;
            objects.delete(KindId::Pod, namespace, name, &options).await.map(|_| ())
        } else {
            objects.write_status(KindId::Pod, namespace, name, &report.status).await.map(|_| ())
        };
        match outcome {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(LinkError::Unavailable(error.to_string())),
        }
    }

    /// Waits until the world shows the pod's instances draining, then until every proxy that sees
    /// their services has answered.
    async fn drain(&self, pod: &PodKey) {
        let mut worlds = self.registry.world();
        let hosts = loop {
            let world = worlds.load();
            let services: Vec<_> = world.services_of_pod(&pod.namespace, &pod.name).collect();
            let leaving = services.iter().all(|s| {
                let all = world.instances(s.namespace.as_str(), s.name.as_str());
                all.get(&pod.name).is_none_or(|i| i.draining)
            });
            if leaving {
                let hosts: Vec<Root> =
                    services.iter().map(|s| Root::host(s.host("cluster.local").as_str())).collect();
                break (hosts, world.revision());
            }
            if !worlds.changed().await {
                return;
            }
        };
        for host in hosts.0 {
            if let Err(error) = self.pusher.wait_acked(Some(&host), hosts.1, DRAIN_MAX).await {
                let what = "stopping an instance that not all know is going";
                tracing::warn!(%error, pod = %pod.name, "{what}");
            }
        }
    }
}

impl fmt::Debug for LocalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalLink")
    }
}

fn container_ports(world: &World, pod: &PodKey) -> Vec<u16> {
    let object = world.get(KindId::Pod, &pod.namespace, &pod.name);
    let Some(View::Pod(view)) = object.map(|o| &o.view) else { return Vec::new() };
    // As `compile::inbound` has it: datagrams have no listener of the sidecar to wait for.
    view.ports().filter(|p| &*p.protocol != "UDP").map(|p| p.container_port).collect()
}

#[cfg(test)]
mod tests;
