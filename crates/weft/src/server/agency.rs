// SPDX-License-Identifier: Apache-2.0
//! The agent of this process: what should run here, read from `World`, and the logs of what ran.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use weft_agent::agent::{Agent, Desired};
use weft_agent::checks::{CheckKey, CheckSink, CheckSpec, Checks, Runner, Runs};
use weft_agent::logs::{LogQuery, LogReader};
use weft_agent::pod::{Configs, Data, DesiredPod, PodKey, Upstream};
use weft_base::rng::Rng;
use weft_base::snapshot::{Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Index, Object, PodsMode, World, host_address};
use weft_registry::Registry;
use weft_registry::catalog::Runnable;
use weft_server::k8s::{LogError, LogPieces, LogRequest, PodLogs};

const UPSTREAM_PORTS: &str = "weft.dev/upstream-ports";

/// Runs the checks of this node's registrations; what is returned counts them.
pub fn start_checks(
    registry: &Registry,
    node: &str,
    sink: Arc<dyn CheckSink>,
    tasks: &TaskGroup,
) -> Arc<Runs> {
    let node = node.to_owned();
    let mut known = Runnable::default();
    let wanted = derive(registry.world(), tasks, move |world| checks(world, &node, &mut known));
    Runner::start(wanted, sink, registry.clock().clone(), Rng::from_system(), tasks)
}

/// Follows the world with a function of it, publishing only what changed.
pub fn derive<T, F>(world: Snapshot<World>, tasks: &TaskGroup, mut of: F) -> Snapshot<T>
where
    T: PartialEq + Send + Sync + 'static,
    F: FnMut(&World) -> T + Send + 'static,
{
    let (publisher, reader) = snapshot(of(&world.load()));
    let (group, mut world) = (tasks.clone(), world);
    tasks.spawn("derived state", async move {
        loop {
            tokio::select! {
                () = group.draining() => return,
                more = world.changed() => if !more { return },
            }
            let next = of(&world.load());
            if next != *publisher.load() {
                publisher.publish(next);
            }
        }
    });
    reader
}

/// The pods that should run on a node.
pub fn desired(world: &World, node: &str) -> Desired {
    let mut upstreams: BTreeMap<Arc<str>, Vec<Upstream>> = BTreeMap::new();
    let mut out = Desired::new();
    for object in world.index(Index::PodsByNode, node) {
        let View::Pod(pod) = &object.view else { continue };
        let Ok(address) = pod.status.pod_ip.parse::<IpAddr>() else { continue };
        let namespace = &object.key.namespace;
        let upstreams =
            upstreams.entry(namespace.clone()).or_insert_with(|| upstreams_of(world, namespace));
        let key = PodKey { namespace: namespace.clone(), name: object.key.name.clone() };
        let pod = DesiredPod {
            object: object.raw.shared(),
            address,
            addresses: addresses(&object.raw, address),
            admin_address: host_address(object).unwrap_or(address),
            mode: PodsMode::of(&object.meta),
            upstreams: upstreams.clone(),
            configs: configs(world, object),
        };
        out.insert(key, Arc::new(pod));
    }
    out
}

/// The checks of a node that its agent asks.
pub fn checks(world: &World, node: &str, known: &mut Runnable) -> Checks {
    let catalog = world.catalog();
    known
        .on(catalog, node)
        .map(|(key, definition)| {
            let (status, heard) = (catalog.status(key), catalog.result(key).is_some());
            let spec = CheckSpec { definition: definition.clone(), status, heard };
            let key = CheckKey {
                namespace: key.namespace.clone(),
                node: key.node.clone(),
                id: key.id.clone(),
            };
            (key, spec)
        })
        .collect()
}

fn upstreams_of(world: &World, namespace: &str) -> Vec<Upstream> {
    let mut out = Vec::new();
    for object in world.objects(KindId::Service, Some(namespace)) {
        let View::Service(service) = &object.view else { continue };
        let noted = object.meta.annotation(UPSTREAM_PORTS).unwrap_or("{}");
        let ports: BTreeMap<String, u16> = serde_json::from_str(noted).unwrap_or_default();
        for port in &service.spec.ports {
            if let Some(local_port) = ports.get(&port.port.to_string()) {
                out.push(Upstream {
                    service: object.key.name.clone(),
                    port_name: port.name.clone(),
                    port: port.port,
                    local_port: *local_port,
                    address: object.raw["spec"]["clusterIP"].as_str().and_then(|a| a.parse().ok()),
                });
            }
        }
    }
    out
}

/// All addresses of a pod, its first one first.
fn addresses(pod: &Value, first: IpAddr) -> Vec<IpAddr> {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let others = all.filter_map(|a| a["ip"].as_str()?.parse().ok()).filter(|ip| *ip != first);
    std::iter::once(first).chain(others).collect()
}

/// Data of the ConfigMaps and Secrets that a pod's environment and volumes name.
fn configs(world: &World, pod: &Object) -> Configs {
    let mut names = (BTreeSet::new(), BTreeSet::new());
    collect_names(&pod.raw["spec"], &mut names);
    let mut out = Configs::default();
    for name in names.0 {
        if let Some(object) = world.get(KindId::ConfigMap, &pod.key.namespace, name) {
            let mut map = data_map(&object.raw["data"], |v| Some(Data::Text(v.into())));
            map.extend(data_map(&object.raw["binaryData"], decode));
            out.config_maps.insert(name.into(), map);
        }
    }
    for name in names.1 {
        if let Some(object) = world.get(KindId::Secret, &pod.key.namespace, name) {
            out.secrets.insert(name.into(), data_map(&object.raw["data"], decode));
        }
    }
    out
}

fn collect_names<'a>(value: &'a Value, out: &mut (BTreeSet<&'a str>, BTreeSet<&'a str>)) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let name = child.get("name").or_else(|| child.get("secretName"));
                match (key.as_str(), name.and_then(Value::as_str)) {
                    ("configMapKeyRef" | "configMapRef" | "configMap", Some(name)) => {
                        out.0.insert(name);
                    }
                    ("secretKeyRef" | "secretRef" | "secret", Some(name)) => {
                        out.1.insert(name);
                    }
                    _ => collect_names(child, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, out)),
        _ => {}
    }
}

fn decode(value: &str) -> Option<Data> {
    Some(Data::of(STANDARD.decode(value).ok()?))
}

fn data_map(data: &Value, decode: impl Fn(&str) -> Option<Data>) -> BTreeMap<Arc<str>, Data> {
    let pairs = data.as_object().into_iter().flatten();
    pairs.filter_map(|(k, v)| Some((k.as_str().into(), decode(v.as_str()?)?))).collect()
}

/// `kubectl logs`, from the agent of this process.
#[derive(Debug)]
pub struct AgentLogs(pub Agent);

impl PodLogs for AgentLogs {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        async move {
            let pod = PodKey::new(&request.namespace, &request.pod);
            let query = LogQuery {
                follow: request.follow,
                previous: request.previous,
                timestamps: request.timestamps,
                tail_lines: request.tail_lines.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
                since_wall_ms: request.since_wall_ms,
                limit_bytes: request.limit_bytes,
            };
            let reader = self.0.read_log(&pod, &request.container, &query);
            let reader = reader.map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    LogError::NotThere(format!("container {}: {error}", request.container))
                }
                _ => LogError::Unreadable(error.to_string()),
            })?;
            Ok(pieces(reader))
        }
        .boxed()
    }
}

fn pieces(reader: LogReader) -> LogPieces {
    futures_util::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(piece)) => Some((Ok(Bytes::from(piece)), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// No agent here, so no logs.
#[derive(Debug)]
pub struct NoLogs;

impl PodLogs for NoLogs {
    fn open(&self, _: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        let why = "this server runs no pods; ask on the machine whose agent runs it";
        async move { Err(LogError::NotThere(why.into())) }.boxed()
    }
}
