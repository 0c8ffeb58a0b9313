// SPDX-License-Identifier: Apache-2.0
//! What a host must run, as it travels in `weft.agent.v1`: JSON inside the messages, and the
//! differences between one moment and the next. Pure; the server's door for agents uses one
//! half, `weft agent` the other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_agent::agent::Desired;
use weft_agent::checks::{CheckKey, CheckSpec, Checks};
use weft_agent::logs::LogQuery;
use weft_agent::pod::{Configs, Data, DesiredPod, Objects, PodKey, Upstream};
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::CheckDefinition;
use weft_kinds::world::PodsMode;
use weft_server::k8s::LogRequest;
use weft_xds::agent::{HostUpdate, PodRef};

/// Bytes of pods in one message; larger updates are split.
const MESSAGE_BYTES: usize = 1024 * 1024;

type Texts = BTreeMap<Arc<str>, BTreeMap<Arc<str>, DataJson>>;

/// Everything a host must know at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostView {
    pods: BTreeMap<PodKey, HostPod>,
    upstreams: BTreeMap<Arc<str>, Vec<Upstream>>,
    checks: Checks,
}

/// A pod without its upstreams, which its namespace shares.
#[derive(Clone, Debug, PartialEq)]
struct HostPod {
    uid: Arc<str>,
    object: Arc<Value>,
    addresses: Vec<IpAddr>,
    admin_address: IpAddr,
    mode: PodsMode,
    configs: Configs,
}

/// What a host has been told so far.
#[derive(Debug, Default)]
pub struct Mirror {
    pods: BTreeMap<PodKey, HostPod>,
    upstreams: BTreeMap<Arc<str>, Vec<Upstream>>,
    checks: Checks,
    /// Messages of one update whose rest is on its way.
    partial: Vec<HostUpdate>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodJson {
    object: Arc<Value>,
    /// The pod's own first.
    addresses: Vec<IpAddr>,
    admin_address: IpAddr,
    #[serde(default)]
    in_namespaces: bool,
    /// It stands for programs of the machine.
    #[serde(default)]
    of_machine: bool,
    #[serde(default)]
    config_maps: Texts,
    #[serde(default)]
    secrets: Texts,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamJson {
    service: Arc<str>,
    #[serde(default)]
    port_name: Arc<str>,
    port: u16,
    local_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogQueryJson {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail_lines: Option<u64>,
    since_wall_ms: Option<u64>,
    limit_bytes: Option<u64>,
}

/// Text as it is; other bytes in base64.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum DataJson {
    Text(Arc<str>),
    Bytes { base64: String },
}

#[derive(Serialize, Deserialize)]
struct CheckJson {
    key: CheckKey,
    definition: Arc<CheckDefinition>,
    status: Status,
}

// === impl HostView ===

impl HostView {
    /// What the desired state and checks of a host come to.
    pub fn new(desired: &Desired, checks: Checks) -> Self {
        let mut out = Self { checks, ..Self::default() };
        for (key, pod) in desired {
            let object = told(&pod.object);
            let uid = pod.object["metadata"]["uid"].as_str().unwrap_or_default().into();
            let known = out.upstreams.entry(key.namespace.clone());
            known.or_insert_with(|| pod.upstreams.clone());
            let pod = HostPod {
                uid,
                object: Arc::new(object),
                addresses: pod.addresses.clone(),
                admin_address: pod.admin_address,
                mode: pod.mode,
                configs: pod.configs.clone(),
            };
            out.pods.insert(key.clone(), pod);
        }
        out
    }

    /// The messages that bring a host from `before` to here; from nothing when it is `None`.
    pub fn updates(&self, before: Option<&Self>, revision: u64) -> Vec<HostUpdate> {
        let empty = Self::default();
        let old = before.unwrap_or(&empty);
        let mut first = HostUpdate { revision, whole: before.is_none(), ..HostUpdate::default() };
        for (namespace, upstreams) in &self.upstreams {
            if old.upstreams.get(namespace) != Some(upstreams) {
                first.upstreams.push((namespace.to_string(), upstreams_json(upstreams)));
            }
        }
        for (key, pod) in &old.pods {
            if self.pods.get(key).is_none_or(|now| now.uid != pod.uid) {
                first.removes.push(reference(key, &pod.uid));
            }
        }
        if before.is_none() || old.checks != self.checks {
            first.checks = Some(checks_json(&self.checks));
        }
        let mut out = vec![first];
        let mut bytes = 0;
        for (key, pod) in &self.pods {
            if old.pods.get(key) == Some(pod) {
                continue;
            }
            let json = pod.json();
            if bytes + json.len() > MESSAGE_BYTES && bytes > 0 {
                out.push(HostUpdate { revision, ..HostUpdate::default() });
                bytes = 0;
            }
            bytes += json.len();
            if let Some(last) = out.last_mut() {
                last.upserts.push((reference(key, &pod.uid), json));
            }
        }
        let last = out.len() - 1;
        out.iter_mut().take(last).for_each(|u| u.more = true);
        out
    }
}

/// The object as agents read it: not what they themselves reported, nor who manages its fields.
fn told(object: &Value) -> Value {
    let mut out = object.clone();
    let phase = &object["status"]["phase"];
    out["status"] = json!({ "phase": phase });
    if let Some(meta) = out["metadata"].as_object_mut() {
        meta.shift_remove("managedFields");
    }
    out
}

fn reference(key: &PodKey, uid: &str) -> PodRef {
    PodRef { namespace: key.namespace.to_string(), name: key.name.to_string(), uid: uid.to_owned() }
}

// === impl HostPod ===

impl HostPod {
    fn json(&self) -> Vec<u8> {
        let pod = PodJson {
            object: self.object.clone(),
            addresses: self.addresses.clone(),
            admin_address: self.admin_address,
            in_namespaces: self.mode == PodsMode::Namespace,
            of_machine: self.mode == PodsMode::Machine,
            config_maps: texts(&self.configs.config_maps),
            secrets: texts(&self.configs.secrets),
        };
        bytes(&pod)
    }

    fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let pod: PodJson = serde_json::from_slice(json)?;
        Ok(Self {
            uid: pod.object["metadata"]["uid"].as_str().unwrap_or_default().into(),
            object: pod.object,
            addresses: pod.addresses,
            admin_address: pod.admin_address,
            mode: match (pod.in_namespaces, pod.of_machine) {
                (true, _) => PodsMode::Namespace,
                (false, true) => PodsMode::Machine,
                (false, false) => PodsMode::Process,
            },
            configs: Configs {
                config_maps: objects(pod.config_maps)?,
                secrets: objects(pod.secrets)?,
            },
        })
    }
}

fn texts(objects: &Objects) -> Texts {
    let data = |data: &Data| match data {
        Data::Text(text) => DataJson::Text(text.clone()),
        Data::Bytes(bytes) => DataJson::Bytes { base64: STANDARD.encode(bytes) },
    };
    let mut out = Texts::new();
    for (name, map) in objects {
        out.insert(
            name.clone(),
            map.iter().map(|(key, value)| (key.clone(), data(value))).collect(),
        );
    }
    out
}

fn objects(texts: Texts) -> Result<Objects, serde_json::Error> {
    let data = |data: DataJson| match data {
        DataJson::Text(text) => Ok(Data::Text(text)),
        DataJson::Bytes { base64 } => {
            let bytes = STANDARD.decode(base64).map_err(serde::de::Error::custom)?;
            Ok(Data::Bytes(bytes.into()))
        }
    };
    let mut out = Objects::new();
    for (name, map) in texts {
        let map = map.into_iter().map(|(key, value)| Ok((key, data(value)?)));
        out.insert(name, map.collect::<Result<_, serde_json::Error>>()?);
    }
    Ok(out)
}

// === impl Mirror ===

impl Mirror {
    /// Takes a message in; whether an update is complete and the host's state is a new one.
    ///
    /// # Errors
    /// When the server speaks another language.
    pub fn apply(&mut self, update: HostUpdate) -> Result<bool, serde_json::Error> {
        let more = update.more;
        if update.whole {
            self.partial.clear();
        }
        self.partial.push(update);
        if more {
            return Ok(false);
        }
        for update in std::mem::take(&mut self.partial) {
            self.take(update)?;
        }
        Ok(true)
    }

    fn take(&mut self, update: HostUpdate) -> Result<(), serde_json::Error> {
        if update.whole {
            self.pods.clear();
            self.upstreams.clear();
        }
        for pod in &update.removes {
            self.pods.remove(&PodKey::new(&pod.namespace, &pod.name));
        }
        for (namespace, json) in update.upstreams {
            let list: Vec<UpstreamJson> = serde_json::from_slice(&json)?;
            let list = list.into_iter().map(UpstreamJson::read).collect();
            self.upstreams.insert(namespace.into(), list);
        }
        for (pod, json) in update.upserts {
            self.pods.insert(PodKey::new(&pod.namespace, &pod.name), HostPod::read(&json)?);
        }
        if let Some(json) = update.checks {
            let list: Vec<CheckJson> = serde_json::from_slice(&json)?;
            let one = |c: CheckJson| {
                (c.key, CheckSpec { definition: c.definition, status: c.status, heard: false })
            };
            self.checks = list.into_iter().map(one).collect();
        }
        Ok(())
    }

    /// The pods as the agent takes them.
    pub fn desired(&self) -> Desired {
        let pod = |(key, pod): (&PodKey, &HostPod)| {
            let desired = DesiredPod {
                object: pod.object.clone(),
                address: pod.addresses.first().copied().unwrap_or(pod.admin_address),
                addresses: pod.addresses.clone(),
                admin_address: pod.admin_address,
                mode: pod.mode,
                upstreams: self.upstreams.get(&key.namespace).cloned().unwrap_or_default(),
                configs: pod.configs.clone(),
            };
            (key.clone(), Arc::new(desired))
        };
        self.pods.iter().map(pod).collect()
    }

    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// The object that a pod of this name is.
    pub fn uid(&self, pod: &PodKey) -> Option<&Arc<str>> {
        self.pods.get(pod).map(|p| &p.uid)
    }
}

// === impl UpstreamJson ===

impl UpstreamJson {
    fn read(self) -> Upstream {
        Upstream {
            service: self.service,
            port_name: self.port_name,
            port: self.port,
            local_port: self.local_port,
            address: self.address,
        }
    }
}

fn upstreams_json(list: &[Upstream]) -> Vec<u8> {
    let one = |u: &Upstream| UpstreamJson {
        service: u.service.clone(),
        port_name: u.port_name.clone(),
        port: u.port,
        local_port: u.local_port,
        address: u.address,
    };
    bytes(&list.iter().map(one).collect::<Vec<_>>())
}

fn checks_json(checks: &Checks) -> Vec<u8> {
    let one = |(key, spec): (&CheckKey, &CheckSpec)| CheckJson {
        key: key.clone(),
        definition: spec.definition.clone(),
        status: spec.status,
    };
    bytes(&checks.iter().map(one).collect::<Vec<_>>())
}

/// What is wanted of a log, as it travels.
pub fn log_query(request: &LogRequest) -> Vec<u8> {
    bytes(&LogQueryJson {
        follow: request.follow,
        previous: request.previous,
        timestamps: request.timestamps,
        tail_lines: request.tail_lines,
        since_wall_ms: request.since_wall_ms,
        limit_bytes: request.limit_bytes,
    })
}

/// The same as an agent reads it.
///
/// # Errors
/// When the server speaks another language.
pub fn read_log_query(json: &[u8]) -> Result<LogQuery, serde_json::Error> {
    let query: LogQueryJson = serde_json::from_slice(json)?;
    Ok(LogQuery {
        follow: query.follow,
        previous: query.previous,
        timestamps: query.timestamps,
        tail_lines: query.tail_lines.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        since_wall_ms: query.since_wall_ms,
        limit_bytes: query.limit_bytes,
    })
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys and no failing parts")
}

#[cfg(test)]
mod tests;
