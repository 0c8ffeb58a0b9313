// SPDX-License-Identifier: Apache-2.0
//! Programs of a machine that its agent captures, as one pod of that machine: so that Services
//! select them, identities are signed for them and every door shows them, as with any other pod.
//!
//! Called by the server's door for agents, which has judged whether the host may act as the
//! service account. Which programs they are only the agent knows; no door can change it.

mod services;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_base::name::{Label, slug};
use weft_kinds::kind::KindId;
use weft_kinds::views::core::{IntOrString, Service};
use weft_kinds::views::{Labels, View};
use weft_kinds::world::{Index, Object, PODS_ANNOTATION, PodsMode};

use super::{HostError, Hosts};
use crate::{DeleteOptions, ObjectError, WriteOptions};

/// Ports of one declaration.
const PORTS_MAX: usize = 16;
/// Labels of one declaration.
const LABELS_MAX: usize = 32;
/// What such a pod's one container is called, and its image: agents run their own program for it.
pub const CAPTURED_IMAGE: &str = "weft.dev/captured";
const CONTAINER: &str = "captured";
/// Words for a port's protocol that the compiler understands.
const PROTOCOLS: [&str; 6] = ["http", "http2", "grpc", "tcp", "tls", "https"];
/// Seconds between the end of capture and that of the sidecar, at most.
const GRACE_S: u64 = 5;

/// What the programs are in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub namespace: String,
    pub service_account: String,
    /// The Service that they are an instance of.
    pub service: Option<String>,
    /// With protocols, which may be empty.
    pub ports: Vec<(u16, String)>,
    pub labels: BTreeMap<String, String>,
}

/// The pod that stands for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub name: String,
    pub uid: String,
}

// === impl Hosts ===

impl Hosts {
    /// The pod for the programs that a host captures, made when it is not there; every other one
    /// that the host declared goes. `None` declares nothing any more.
    ///
    /// # Errors
    /// When the declaration contradicts what is there, or the store cannot be written.
    pub async fn declare(
        &self,
        host: &str,
        workload: Option<&Workload>,
    ) -> Result<Option<Placed>, HostError> {
        let _alone = self.declaring.lock().await;
        let Some(workload) = workload else {
            for pod in self.declared(host) {
                self.undeclare(&pod, &DeleteOptions::default()).await?;
            }
            self.release_services(host, None).await?;
            return Ok(None);
        };
        workload.check()?;
        let wanted = self.pod(host, workload).await?;
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut kept = None;
        for pod in self.declared(host) {
            let same = same(&pod, &wanted, &workload.namespace);
            match same && !pod.meta.is_deleting() {
                true => kept = Some(Placed { name: name.clone(), uid: pod.meta.uid.to_string() }),
                // Nobody runs it any more: its agent declares another.
                false => {
                    let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
                    self.undeclare(&pod, &now).await?;
                }
            }
        }
        let service = workload.service.as_deref();
        let keep = service.map(|service| (workload.namespace.as_str(), service));
        self.release_services(host, keep).await?;
        if kept.is_some() {
            return Ok(kept);
        }
        let objects = self.registry.objects();
        let options = WriteOptions::SYSTEM;
        let made = objects.create(KindId::Pod, &workload.namespace, wanted, options).await;
        match made {
            Ok(pod) => {
                self.seen(&pod).await;
                let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                Ok(Some(Placed { name, uid }))
            }
            Err(ObjectError::AlreadyExists { .. }) => Err(wrong(format!(
                "a pod {}/{name} is there already, and is not of this host",
                workload.namespace
            ))),
            Err(e) => Err(e.into()),
        }
    }

    fn declared(&self, host: &str) -> Vec<std::sync::Arc<Object>> {
        let world = self.registry.now();
        let pods = world.index(Index::PodsByNode, host);
        pods.filter(|p| PodsMode::of(&p.meta) == PodsMode::Machine).cloned().collect()
    }

    async fn undeclare(&self, object: &Object, how: &DeleteOptions) -> Result<(), HostError> {
        let options = DeleteOptions { write: WriteOptions::SYSTEM, ..how.clone() };
        let (objects, key) = (self.registry.objects(), &object.key);
        match objects.delete(key.kind, &key.namespace, &key.name, &options).await {
            Ok(_) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The pod as it should be, with the labels that its Service asks for.
    async fn pod(&self, host: &str, workload: &Workload) -> Result<Value, HostError> {
        let world = self.registry.now();
        let namespace = &workload.namespace;
        if world.get(KindId::Namespace, "", namespace).is_none() {
            return Err(wrong(format!(
                "there is no namespace {namespace}; make it with `kubectl create namespace \
                 {namespace}`"
            )));
        }
        let mut labels = workload.labels.clone();
        let mut port_name = None;
        if let Some(name) = &workload.service {
            if world.get(KindId::Service, namespace, name).is_none() {
                self.make_service(host, name, workload).await?;
            }
            let world = self.registry.now();
            let found = world.get(KindId::Service, namespace, name).map(|object| &object.view);
            let Some(View::Service(service)) = found else {
                return Err(wrong(format!("the Service {namespace}/{name} cannot be read")));
            };
            port_name = workload.fits(name, service)?;
            labels.extend(text_of(&service.spec.selector));
        }
        let base = workload.service.as_ref().unwrap_or(&workload.service_account);
        let name = slug(&format!("{base}-{host}"));
        Ok(workload.object(&name, host, &labels, port_name))
    }

    /// Waits until the World has what was written.
    async fn seen(&self, object: &Value) {
        let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let revision = revision.parse().map(weft_store::Revision).unwrap_or_default();
        self.registry.wait_revision(revision).await;
    }
}

// === impl Workload ===

impl Workload {
    fn check(&self) -> Result<(), HostError> {
        let label = |what: &str, text: &str| match Label::new(text) {
            Ok(_) => Ok(()),
            Err(e) => Err(wrong(format!("{what}: {e}"))),
        };
        label("the namespace", &self.namespace)?;
        label("the service account", &self.service_account)?;
        if let Some(service) = &self.service {
            label("the service", service)?;
            if self.ports.is_empty() {
                return Err(wrong(format!("the service {service} has no port; name its --port")));
            }
        }
        if self.ports.len() > PORTS_MAX || self.labels.len() > LABELS_MAX {
            return Err(wrong(format!(
                "more than {PORTS_MAX} ports or {LABELS_MAX} labels are declared"
            )));
        }
        let known = |word: &str| word.is_empty() || PROTOCOLS.contains(&word);
        if let Some((port, word)) = self.ports.iter().find(|(_, word)| !known(word)) {
            let all = PROTOCOLS.join(", ");
            return Err(wrong(format!("port {port}: {word:?} is no protocol; there are {all}")));
        }
        Ok(())
    }

    /// Whether an existing Service forwards to a declared port; the name that it has for it.
    fn fits(&self, name: &str, service: &Service) -> Result<Option<String>, HostError> {
        let namespace = &self.namespace;
        if service.spec.selector.is_empty() {
            return Err(wrong(format!(
                "the Service {namespace}/{name} selects no pods; give it a selector, or choose \
                 another --service"
            )));
        }
        let mut named = None;
        for port in &service.spec.ports {
            let number = match &port.target_port {
                None | Some(IntOrString::Int(0)) => Some(i64::from(port.port)),
                Some(IntOrString::Int(n)) => Some(*n),
                Some(IntOrString::String(text)) => {
                    named = Some(text.to_string());
                    None
                }
            };
            let declared = |n: i64| self.ports.iter().any(|(own, _)| i64::from(*own) == n);
            if number.is_some_and(declared) {
                return Ok(None);
            }
        }
        match (named, self.ports.as_slice()) {
            (Some(word), [_]) => Ok(Some(word)),
            _ => Err(wrong(format!(
                "the Service {namespace}/{name} forwards to none of the declared ports; see its \
                 targetPort"
            ))),
        }
    }

    fn object(
        &self,
        name: &str,
        host: &str,
        labels: &BTreeMap<String, String>,
        port_name: Option<String>,
    ) -> Value {
        let port = |(port, protocol): &(u16, String)| {
            let word = port_name.clone().unwrap_or_else(|| port_word(*port, protocol));
            json!({ "containerPort": port, "name": word, "protocol": "TCP" })
        };
        let mut container = json!({
            "name": CONTAINER,
            "image": CAPTURED_IMAGE,
            "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
        });
        if let Some((first, _)) = self.ports.first() {
            // They are started by somebody else: only their port tells that they are there.
            container["readinessProbe"] = json!({
                "tcpSocket": { "port": first }, "periodSeconds": 1, "failureThreshold": 2,
                "successThreshold": 1, "timeoutSeconds": 1,
            });
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": { PODS_ANNOTATION: PodsMode::Machine.as_str() },
            },
            "spec": {
                "nodeName": host,
                "serviceAccountName": self.service_account,
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": GRACE_S,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [container],
            },
        })
    }
}

/// Whether a pod is the one that is wanted.
fn same(pod: &Object, wanted: &Value, namespace: &str) -> bool {
    let labels = |meta: &Value| meta["labels"].as_object().cloned().unwrap_or_default();
    let part = |object: &Value, field: &str| object["spec"][field].clone();
    *pod.key.namespace == *namespace
        && pod.raw["metadata"]["name"] == wanted["metadata"]["name"]
        && labels(&pod.raw["metadata"]) == labels(&wanted["metadata"])
        && part(&pod.raw, "serviceAccountName") == part(wanted, "serviceAccountName")
        && part(&pod.raw, "containers") == part(wanted, "containers")
        && !matches!(&pod.view, View::Pod(view) if view.is_finished())
}

/// A port's name, whose first part is its protocol.
fn port_word(port: u16, protocol: &str) -> String {
    match protocol {
        "" => format!("port-{port}"),
        word => format!("{word}-{port}"),
    }
}

fn text_of(labels: &Labels) -> impl Iterator<Item = (String, String)> + '_ {
    labels.iter().map(|(k, v)| (k.to_string(), v.to_string()))
}

fn wrong(text: String) -> HostError {
    HostError::Declared(text)
}

#[cfg(test)]
mod tests;
