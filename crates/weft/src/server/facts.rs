// SPDX-License-Identifier: Apache-2.0
//! What operators ask about, computed from snapshots: the other end of `client/report.rs`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use weft_base::clock::{Clock, Mono};
use weft_base::snapshot::Snapshot;
use weft_control::compile::effective;
use weft_control::mesh::Mesh;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::core::Pod;
use weft_kinds::world::{Door, Index, Instance, Object, PodsMode, World, host_address};
use weft_model::MtlsMode;
use weft_registry::Registry;
use weft_registry::hosts::JOIN_ANNOTATION;
use weft_server::admin::Facts;
use weft_store::RedbStore;

use super::alarms::Alarms;
use super::explained;
use super::scrape::Loads;
use super::shared::Servers;

/// One proxy as control sees it.
#[derive(Clone, Debug, Default)]
pub struct ProxyFact {
    pub node: String,
    pub connected: bool,
    pub sent: u64,
    pub applied: u64,
    /// Name and reason of each resource it refused.
    pub rejected: Vec<(String, String)>,
}

/// Where control tells about its proxies.
pub trait ProxyFacts: Send + Sync + 'static {
    fn all(&self) -> Vec<ProxyFact>;

    /// What was pushed, in Prometheus' text form.
    fn metrics(&self) -> String {
        String::new()
    }
}

pub struct ServerFacts {
    pub world: Snapshot<World>,
    /// What proxies are sent.
    pub mesh: Snapshot<Mesh>,
    pub loads: Loads,
    pub proxies: Arc<dyn ProxyFacts>,
    pub clock: Clock,
    pub started: Mono,
    pub trust_domain: String,
    pub api: SocketAddr,
    pub servers: Arc<Servers>,
    pub alarms: Arc<Alarms>,
    pub registry: Registry,
    pub consul: weft_server::consul::Door,
    /// This node's.
    pub checks: Arc<weft_agent::checks::Runs>,
    /// The log, when it is in this server's data directory.
    pub log: Option<Arc<RedbStore>>,
}

/// The API port that clients use when none is named.
const USUAL_PORT: u16 = 7080;

/// Something that is not well.
struct Problem {
    object: String,
    reason: String,
    next: String,
}

impl Facts for ServerFacts {
    fn status(&self) -> Value {
        let world = self.world.load();
        let proxies = self.proxies.all();
        let in_sync = proxies.iter().filter(|p| in_sync(p)).count();
        let problems: Vec<Value> = self
            .problems(&world, &proxies)
            .into_iter()
            .map(|p| json!({"object": p.object, "reason": p.reason, "next": p.next}))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.clock.now().since(self.started).as_secs(),
            "trust_domain": self.trust_domain,
            "revision": world.revision(),
            "leader": self.registry.leader().who(),
            "servers": self.servers.names(),
            "proxies": proxies.len(),
            "proxies_in_sync": in_sync,
            "services": self.services(&world),
            "problems": problems,
        })
    }

    fn proxies(&self) -> Value {
        let rows: Vec<Value> = self
            .proxies
            .all()
            .into_iter()
            .map(|p| {
                let state = match () {
                    () if !p.connected => "gone",
                    () if !p.rejected.is_empty() => "refused some",
                    () if p.applied < p.sent => "behind",
                    () => "in sync",
                };
                let rejected: Vec<String> =
                    p.rejected.iter().map(|(name, why)| format!("{name}: {why}")).collect();
                json!({
                    "node": p.node, "connected": p.connected, "sent": p.sent,
                    "applied": p.applied, "state": state, "rejected": rejected.join("; "),
                })
            })
            .collect();
        json!({ "proxies": rows })
    }

    fn endpoints(&self, namespace: &str, service: &str) -> Value {
        let world = self.world.load();
        let mut rows = Vec::new();
        for instance in instances(&world) {
            let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
            if fits(namespace, instance.service.namespace.as_str())
                && fits(service, instance.service.name.as_str())
            {
                rows.extend(endpoint_rows(&world, instance, &self.trust_domain));
            }
        }
        json!({ "endpoints": rows })
    }

    /// As the proxy itself explains it, if it can be asked.
    fn explain(&self, question: Value) -> BoxFuture<'_, Result<Value, String>> {
        let told = async move {
            let question = serde_json::from_value(question).map_err(|e| e.to_string())?;
            let (answered, node, asked) = crate::explain::decide(&self.mesh.load(), &question)?;
            let world = self.world.load();
            let why = match explained::ask(&world, &node, &asked).await {
                Ok(live) => return Ok(live),
                Err(why) => why,
            };
            let held = self.proxies.all().into_iter().find(|p| p.node == answered.proxy);
            let mut value = serde_json::to_value(answered).map_err(|e| e.to_string())?;
            // Of the table that the proxy has.
            value["generation"] = held.map(|p| p.applied).into();
            value["live"] = json!({ "asked": false, "why": why });
            Ok(value)
        };
        Box::pin(told)
    }

    fn mtls(&self) -> Value {
        let world = self.world.load();
        let rows: Vec<Value> = service_names(&world)
            .into_iter()
            .map(|(namespace, name)| {
                let load = self.loads.of(&format!("{namespace}/{name}"));
                let all = world.instances(&namespace, &name);
                let meshed = all.values().filter(|i| i.mesh).count();
                let captured = all.values().filter(|i| i.captured).count();
                let mode = match meshed {
                    0 => "plaintext",
                    n if n == all.len() => "mtls",
                    _ => "mixed",
                };
                let bypassable = match all.len() {
                    0 => "-",
                    n if n == captured => "no",
                    _ => "yes",
                };
                json!({
                    "namespace": namespace, "service": name, "mode": mode,
                    "mtls_requests": load.mtls_requests,
                    "plaintext_requests": load.plaintext_requests,
                    "bypassable": bypassable,
                    "strict": strict(&world, all.values(), bypassable == "no"),
                })
            })
            .collect();
        json!({ "services": rows, "notes": mtls_notes(&world) })
    }

    fn targets(&self) -> Value {
        let world = self.world.load();
        let mut out = vec![json!({
            "targets": [self.api.to_string()],
            "labels": {"job": "weft-server", "__metrics_path__": "/metrics"},
        })];
        for object in world.objects(KindId::Pod, None) {
            let View::Pod(pod) = &object.view else { continue };
            let here = !is_elsewhere(&world, pod) && !pod.is_finished();
            let Some(at) = host_address(object).filter(|_| here) else { continue };
            let labels = json!({
                "job": "weft-proxy", "namespace": &*object.key.namespace,
                "pod": &*object.key.name, "__metrics_path__": "/metrics",
            });
            out.push(
                json!({"targets": [SocketAddr::new(at, 15020).to_string()], "labels": labels}),
            );
            // Inside its own network an app is reached by nobody out here.
            if PodsMode::of(&object.meta) == PodsMode::Process {
                out.extend(app_target(object, &pod.status.pod_ip));
            }
        }
        Value::Array(out)
    }

    fn metrics(&self) -> String {
        let world = self.world.load();
        let proxies = self.proxies.all();
        let healthy = instances(&world).filter(|i| i.health != Status::Critical).count();
        let rows: [(&str, &str, &str, u64); 9] = [
            (
                "weft_panics_total",
                "counter",
                "Panics caught in tasks",
                weft_base::task::panics_total(),
            ),
            ("weft_bugs_total", "counter", "Impossible states met", weft_base::error::bugs_total()),
            ("weft_store_revision", "gauge", "Newest revision folded", world.revision()),
            ("weft_objects", "gauge", "Objects stored", count(world.all_objects().count())),
            (
                "weft_instances",
                "gauge",
                "Instances of all services",
                count(instances(&world).count()),
            ),
            ("weft_instances_healthy", "gauge", "Instances not critical", count(healthy)),
            ("weft_proxies", "gauge", "Proxies known", count(proxies.len())),
            (
                "weft_proxies_in_sync",
                "gauge",
                "Proxies that applied the newest generation",
                count(proxies.iter().filter(|p| in_sync(p)).count()),
            ),
            (
                "weft_uptime_seconds",
                "gauge",
                "Time since the server started",
                self.clock.now().since(self.started).as_secs(),
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, value) in rows {
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}");
        }
        text += &super::shared::metrics(&self.registry, &self.servers);
        text += &(self.consul.metrics() + &self.checks.text());
        text + &self.proxies.metrics() + &self.alarms.metrics()
    }

    fn backup(&self) -> Result<Vec<u8>, String> {
        let log = self.log.as_ref().ok_or(
            "this server's store is an etcd: back that up with `etcdctl snapshot save`, and keep \
             the seal key",
        )?;
        let writer = log.backup(self.clock.wall_ms(), Vec::new()).map_err(|e| e.to_string())?;
        writer.finish().map(|(data, _)| data).map_err(|e| e.to_string())
    }
}

impl ServerFacts {
    /// One row per service, as `weft status`, `weft top` and the live table show it.
    pub fn services(&self, world: &World) -> Vec<Value> {
        service_names(world)
            .into_iter()
            .map(|(namespace, name)| {
                let load = self.loads.of(&format!("{namespace}/{name}"));
                let all = world.instances(&namespace, &name);
                let ready =
                    all.values().filter(|i| i.health != Status::Critical && !i.draining).count();
                json!({
                    "namespace": namespace, "service": name,
                    "instances": all.len(), "ready": ready,
                    "rps": round(load.rps), "errors_per_s": round(load.errors_per_s),
                    "p50_ms": load.p50_ms.map(round), "p99_ms": load.p99_ms.map(round),
                })
            })
            .collect()
    }

    /// How commands find this server.
    fn at(&self) -> At {
        let kubectl = format!(" --server http://{}", self.api);
        let usual = self.api.port() == USUAL_PORT && self.api.ip().is_loopback();
        At { weft: if usual { String::new() } else { kubectl.clone() }, kubectl }
    }

    fn problems(&self, world: &World, proxies: &[ProxyFact]) -> Vec<Problem> {
        let mut out = Vec::new();
        let at = self.at();
        for object in world.all_objects() {
            object_problems(object, &at, &mut out);
        }
        without_followers(world, &mut out);
        out.extend(self.alarms.all().into_iter().map(|alarm| Problem {
            object: format!("certificate {}", alarm.certificate),
            reason: alarm.reason,
            next: alarm.next.to_owned(),
        }));
        for (namespace, name) in service_names(world) {
            let all = world.instances(&namespace, &name);
            if !all.is_empty() && all.values().all(|i| i.health == Status::Critical) {
                out.push(Problem {
                    object: format!("service {namespace}/{name}"),
                    reason: format!("none of its {} instances is healthy", all.len()),
                    next: format!("weft get endpoints {name} -n {namespace} -o wide{}", at.weft),
                });
            }
        }
        for proxy in proxies.iter().filter(|p| p.connected) {
            for (name, why) in &proxy.rejected {
                // A Gateway's own status tells of its listeners.
                if name.starts_with("listener:") && is_gateway(world, &proxy.node) {
                    continue;
                }
                out.push(Problem {
                    object: format!("proxy {}", proxy.node),
                    reason: format!("refused {name}: {why}"),
                    next: "its last good form stays in use; mend the object it came from".into(),
                });
            }
        }
        out
    }
}

/// What STRICT comes to for a service: whether it holds, and whether it can be walked around.
fn strict<'w>(
    world: &World,
    all: impl Iterator<Item = &'w Arc<Instance>>,
    enforced: bool,
) -> &'static str {
    if !enforced {
        return "NotEnforceable";
    }
    let mut ports = all.flat_map(|i| {
        let policy = effective(world, i.service.namespace.as_str(), &i.labels);
        i.ports.iter().map(move |p| policy.of(p.port)).collect::<Vec<_>>()
    });
    match ports.all(|mode| mode == MtlsMode::Strict) {
        true => "Enforced",
        false => "NotAsked",
    }
}

fn mtls_notes(world: &World) -> Vec<&'static str> {
    let mut out = vec!["Traffic between proxies is mutual TLS."];
    if world.pods_mode() == PodsMode::Namespace {
        out.push(
            "Pods run in namespaces of their own: whatever reaches them passes their sidecars. A \
             PeerAuthentication in mode STRICT refuses plaintext there; without one both are \
             taken.",
        );
        return out;
    }
    out.extend([
        "In process mode each app's own port is an ordinary loopback port: a program of this \
         machine that connects to it directly is neither encrypted nor identified, and STRICT \
         cannot be enforced.",
        "The upstream ports of a sidecar (<SERVICE>_ADDR) take connections of any program of this \
         machine, in that sidecar's name; its forward proxy asks for the pod's credential.",
    ]);
    out
}

/// The server's address as a flag, for hints that can be pasted as they stand.
struct At {
    weft: String,
    kubectl: String,
}

/// Bad conditions, unreadable objects, pods that do not run.
fn object_problems(object: &Object, at: &At, out: &mut Vec<Problem>) {
    if object.meta.is_deleting() {
        return;
    }
    let row = object.key.kind.row();
    let title = title(object.key.kind, &object.key.namespace, &object.key.name);
    let flag = if row.namespaced { format!(" -n {}", object.key.namespace) } else { String::new() };
    let describe = format!("weft describe {} {}{flag}{}", row.singular, object.key.name, at.weft);
    if let View::Invalid(issues) = &object.view {
        out.push(Problem { object: title, reason: issues.to_string(), next: describe });
        return;
    }
    if object.key.kind == KindId::Pod {
        if let Some((reason, ran)) = pod_trouble(&object.raw) {
            let name = &object.key.name;
            let logs = format!("kubectl logs {name}{flag} --previous{}", at.kubectl);
            let next = if ran { logs } else { describe };
            out.push(Problem { object: title, reason, next });
        }
        return;
    }
    let own = list(&object.raw, "/status/conditions");
    let parents = list(&object.raw, "/status/parents");
    let of_parents = parents.iter().flat_map(|p| list(p, "/conditions"));
    for condition in own.iter().cloned().chain(of_parents) {
        let word = |key: &str| condition.get(key).and_then(Value::as_str).unwrap_or("");
        let wanted = matches!(
            word("type"),
            "Accepted" | "Programmed" | "ResolvedRefs" | "Available" | "Enforced" | "Effective"
        ) || (object.key.kind == KindId::Node && word("type") == "Ready");
        if wanted && word("status") == "False" {
            out.push(Problem {
                object: title.clone(),
                reason: format!("{}: {}", word("reason"), word("message")),
                next: describe.clone(),
            });
        }
    }
}

/// Why a pod does not run or is not reached, and whether its program has run before.
fn pod_trouble(pod: &Value) -> Option<(String, bool)> {
    let containers = list(pod, "/status/containerStatuses");
    let waiting = containers.iter().find_map(|c| {
        let waiting = c.pointer("/state/waiting")?;
        let reason = waiting.get("reason").and_then(Value::as_str)?;
        let expected = matches!(reason, "ContainerCreating" | "PodInitializing");
        let message = waiting.get("message").and_then(Value::as_str).unwrap_or("no message");
        (!expected).then(|| (format!("{reason}: {message}"), c["restartCount"] != 0))
    });
    let ready = list(pod, "/status/conditions")
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    // What the agent found out about a pod that runs and yet takes no requests.
    let told = pod.pointer("/status/message").and_then(Value::as_str);
    let told = told.filter(|m| !ready && !m.is_empty()).map(|m| (m.to_owned(), false));
    waiting.or(told)
}

/// A Deployment that misses replicas is no news beside the pod that says why.
fn without_followers(world: &World, problems: &mut Vec<Problem>) {
    let told = |what: &str| {
        let of = problems.iter().filter_map(|p| p.object.strip_prefix(what).map(str::to_owned));
        of.collect::<Vec<_>>()
    };
    let mut pods = told("pod ");
    // Those of a machine that is not heard of do not say anything themselves.
    for node in told("node ") {
        let lost = world.index(Index::PodsByNode, &node);
        pods.extend(lost.map(|p| format!("{}/{}", p.key.namespace, p.key.name)));
    }
    problems.retain(|p| match p.object.strip_prefix("deployment ") {
        Some(name) if p.reason.starts_with("MinimumReplicasUnavailable") => {
            let prefix = format!("{name}-");
            !pods.iter().any(|pod| pod.starts_with(&prefix))
        }
        _ => true,
    });
}

/// Whether a pod is on another machine, whose loopback addresses are not those of this one.
pub fn is_elsewhere(world: &World, pod: &Pod) -> bool {
    let node = world.get(KindId::Node, "", &pod.spec.node_name);
    node.is_some_and(|n| n.meta.annotation(JOIN_ANNOTATION).is_some())
}

/// `pod shop/user-0`, `node vm`.
fn title(kind: KindId, namespace: &str, name: &str) -> String {
    let row = kind.row();
    if namespace.is_empty() {
        format!("{} {name}", row.singular)
    } else {
        format!("{} {namespace}/{name}", row.singular)
    }
}

fn endpoint_rows(world: &World, instance: &Instance, trust_domain: &str) -> Vec<Value> {
    let (health, why) = match (instance.draining, instance.health) {
        (true, _) => ("draining", "it is being removed"),
        (_, Status::Critical) => ("unhealthy", "a check is critical, or its probe does not hold"),
        (_, Status::Warning) => ("warning", "a check warns; it still takes traffic"),
        (_, Status::Passing) => ("healthy", ""),
    };
    let identity = if instance.mesh && !instance.service_account.is_empty() {
        let namespace = &instance.service.namespace;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{}", instance.service_account)
    } else {
        String::new()
    };
    let source = match instance.origin {
        Door::Kubernetes => "kubernetes",
        Door::Consul => "consul",
    };
    let namespace = instance.service.namespace.as_str();
    let service = world.get(KindId::Service, namespace, instance.service.name.as_str());
    instance
        .ports
        .iter()
        .map(|port| {
            json!({
                "namespace": namespace,
                "service": instance.service.name.as_str(),
                "port": service_port(service.map(|s| &**s), &port.name).unwrap_or(port.port),
                "instance": &*instance.id,
                "address": SocketAddr::new(instance.address, port.port).to_string(),
                "health": health, "weight": instance.weight, "source": source,
                "node": &*instance.node, "identity": identity, "why": why,
            })
        })
        .collect()
}

/// The Service's own port for a port name.
fn service_port(service: Option<&Object>, name: &str) -> Option<u16> {
    let ports = list(&service?.raw, "/spec/ports");
    let named = ports.iter().find(|p| p.get("name").and_then(Value::as_str).unwrap_or("") == name);
    u16::try_from(named?.get("port")?.as_u64()?).ok()
}

/// A pod that asks to be scraped by annotation.
fn app_target(object: &Object, ip: &str) -> Option<Value> {
    let note = |key: &str| object.meta.annotation(key);
    if note("prometheus.io/scrape") != Some("true") {
        return None;
    }
    let port = note("prometheus.io/port")?;
    Some(json!({
        "targets": [format!("{ip}:{port}")],
        "labels": {
            "job": "pods", "namespace": &*object.key.namespace, "pod": &*object.key.name,
            "__metrics_path__": note("prometheus.io/path").unwrap_or("/metrics"),
        },
    }))
}

/// Services with a Service object or with instances. A Gateway's own Service is the Gateway's.
fn service_names(world: &World) -> BTreeSet<(String, String)> {
    let objects = world
        .objects(KindId::Service, None)
        .map(|o| (o.key.namespace.to_string(), o.key.name.to_string()));
    let instances =
        instances(world).map(|i| (i.service.namespace.to_string(), i.service.name.to_string()));
    let mut all: BTreeSet<_> = objects.chain(instances).collect();
    all.retain(|(namespace, name)| {
        let object = world.get(KindId::Service, namespace, name);
        let owner = object.and_then(|o| o.meta.controller());
        owner.is_none_or(|owner| &*owner.kind != "Gateway")
    });
    all
}

fn instances(world: &World) -> impl Iterator<Item = &Arc<Instance>> {
    world.services_with_instances().flat_map(|(_, all)| all.values())
}

fn is_gateway(world: &World, node: &str) -> bool {
    let parts: Vec<&str> = node.split('~').collect();
    matches!(parts.as_slice(), ["gateway", namespace, name]
        if world.get(KindId::Gateway, namespace, name).is_some())
}

fn in_sync(proxy: &ProxyFact) -> bool {
    proxy.connected && proxy.applied >= proxy.sent && proxy.rejected.is_empty()
}

fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn count(n: usize) -> u64 {
    n as u64
}
