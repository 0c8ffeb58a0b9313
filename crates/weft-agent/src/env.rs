// SPDX-License-Identifier: Apache-2.0
//! The environment of a pod's program: what weft adds, then what the Pod says, with Kubernetes'
//! `$(VAR)` substitution. Pure; called by `command` before each start.

use std::net::IpAddr;

use serde_json::Value;
use thiserror::Error;
use weft_kinds::world::PodsMode;

use crate::pod::{
    Container, DesiredPod, EnvFrom, EnvVar, KeyRef, Objects, Pod, ProxyKind, ResourceFieldRef,
    ValueFrom,
};

/// The user part of the forward proxy's credential; the password is random per pod.
pub const PROXY_USER: &str = "pod";

/// Variables in the order in which they were first set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, String)>);

/// Facts that the environment tells.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub desired: &'a DesiredPod,
    pub pod: &'a Pod,
    pub container: &'a Container,
    /// The sidecar's forward-proxy port and this pod's credential for it.
    pub proxy: Option<(u16, &'a str)>,
    pub host_ip: IpAddr,
    /// Cores and bytes of memory of this machine: the limits where none are set.
    pub machine: (u64, u64),
}

/// Why a container cannot be started as configured (`CreateContainerConfigError`).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvError {
    #[error("env {env}: there is no {kind} {name:?} in the pod's namespace; create it")]
    NoObject { env: String, kind: &'static str, name: String },
    #[error("env {env}: {kind} {name:?} has no key {key:?}")]
    NoKey { env: String, kind: &'static str, name: String, key: String },
    #[error("env {env}: fieldPath {path:?} is not one that pods have")]
    Field { env: String, path: String },
    #[error("env {env}: resource {resource:?} is not known here; use limits.cpu or limits.memory")]
    Resource { env: String, resource: String },
}

// === impl Env ===

impl Env {
    pub fn of(variables: &[(String, String)]) -> Self {
        Self(variables.to_vec())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Kubernetes' expansion: `$(NAME)` of a known variable is replaced, of an unknown one stays
    /// as it is written, and `$$` is one `$` that begins nothing.
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (head, tail) = rest.split_at(at);
            out.push_str(head);
            let after = &tail[1..];
            if let Some(escaped) = after.strip_prefix('$') {
                out.push('$');
                rest = escaped;
                continue;
            }
            let name = after.strip_prefix('(').and_then(|t| t.find(')').map(|end| &t[..end]));
            match name {
                Some(name) => {
                    match self.get(name) {
                        Some(value) => out.push_str(value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = &after[name.len() + 2..];
                }
                None => {
                    out.push('$');
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out
    }
}

/// The environment of one container. Base variables come first; the Pod's own win.
///
/// # Errors
/// When the Pod refers to something that is not there.
pub fn build(base: &[(String, String)], facts: &Facts<'_>) -> Result<Env, EnvError> {
    let mut env = Env(base.to_vec());
    pod_variables(&mut env, facts);
    service_variables(&mut env, facts);
    proxy_variables(&mut env, facts);
    for from in &facts.container.env_from {
        import(&mut env, from, facts)?;
    }
    for var in &facts.container.env {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) => Some(env.expand(value)),
            (None, Some(from)) => referred(var, from, facts)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&*var.name, value);
        }
    }
    Ok(env)
}

/// The name as a shell variable: upper case, everything else `_`.
pub fn variable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect()
}

fn pod_variables(env: &mut Env, facts: &Facts<'_>) {
    let meta = &facts.pod.metadata;
    env.set("POD_IP", facts.desired.address.to_string());
    env.set("POD_NAME", &*meta.name);
    env.set("POD_NAMESPACE", &*meta.namespace);
    env.set("HOSTNAME", &*meta.name);
    let ports = &facts.container.ports;
    if let Some(first) = ports.first() {
        env.set("PORT", first.container_port.to_string());
    }
    for port in ports.iter().filter(|p| !p.name.is_empty()) {
        env.set(format!("{}_PORT", variable(&port.name)), port.container_port.to_string());
    }
}

/// `<SERVICE>_ADDR`, `<SERVICE>_ADDR_<PORT NAME>` for programs that ignore proxies, and the
/// variables that Kubernetes sets. All point at the own sidecar.
fn service_variables(env: &mut Env, facts: &Facts<'_>) {
    if facts.desired.mode == PodsMode::Namespace {
        return kubernetes_variables(env, facts);
    }
    let address = facts.desired.address;
    let mut seen: Vec<&str> = Vec::new();
    for upstream in &facts.desired.upstreams {
        let service = variable(&upstream.service);
        let local = std::net::SocketAddr::new(address, upstream.local_port).to_string();
        if !seen.contains(&&*upstream.service) {
            seen.push(&upstream.service);
            env.set(format!("{service}_ADDR"), local.clone());
            env.set(format!("{service}_SERVICE_HOST"), address.to_string());
            env.set(format!("{service}_SERVICE_PORT"), upstream.local_port.to_string());
        }
        if !upstream.port_name.is_empty() {
            let port = variable(&upstream.port_name);
            env.set(format!("{service}_ADDR_{port}"), local);
            env.set(format!("{service}_SERVICE_PORT_{port}"), upstream.local_port.to_string());
        }
    }
}

/// Services at their own addresses, as in a cluster: traffic is captured. The names of process
/// mode are there too, so that a program which asks for them runs in both.
fn kubernetes_variables(env: &mut Env, facts: &Facts<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for upstream in &facts.desired.upstreams {
        let Some(address) = upstream.address else { continue };
        let service = variable(&upstream.service);
        let at = std::net::SocketAddr::new(address, upstream.port).to_string();
        if !seen.contains(&&*upstream.service) {
            seen.push(&upstream.service);
            env.set(format!("{service}_ADDR"), at.clone());
            env.set(format!("{service}_SERVICE_HOST"), address.to_string());
            env.set(format!("{service}_SERVICE_PORT"), upstream.port.to_string());
        }
        if !upstream.port_name.is_empty() {
            let port = variable(&upstream.port_name);
            env.set(format!("{service}_ADDR_{port}"), at);
            env.set(format!("{service}_SERVICE_PORT_{port}"), upstream.port.to_string());
        }
    }
}

fn proxy_variables(env: &mut Env, facts: &Facts<'_>) {
    if facts.desired.mode == PodsMode::Namespace {
        return;
    }
    let Some((port, credential)) = facts.proxy else { return };
    if facts.pod.proxy_kind() == ProxyKind::None {
        return;
    }
    let at = std::net::SocketAddr::new(facts.desired.address, port);
    let url = format!("http://{PROXY_USER}:{credential}@{at}");
    let own = format!("localhost,127.0.0.1,::1,{}", facts.desired.address);
    for (name, value) in
        [("HTTP_PROXY", &url), ("http_proxy", &url), ("NO_PROXY", &own), ("no_proxy", &own)]
    {
        env.set(name, value);
    }
}

fn import(env: &mut Env, from: &EnvFrom, facts: &Facts<'_>) -> Result<(), EnvError> {
    let configs = &facts.desired.configs;
    let sources = [
        ("ConfigMap", &from.config_map_ref, &configs.config_maps),
        ("Secret", &from.secret_ref, &configs.secrets),
    ];
    for (kind, reference, objects) in sources {
        let Some(reference) = reference else { continue };
        match objects.get(&reference.name) {
            Some(data) => {
                for (key, value) in data {
                    env.set(format!("{}{key}", from.prefix), &*value.text());
                }
            }
            None if reference.optional => {}
            None => {
                let name = reference.name.to_string();
                return Err(EnvError::NoObject { env: "envFrom".into(), kind, name });
            }
        }
    }
    Ok(())
}

fn referred(var: &EnvVar, from: &ValueFrom, facts: &Facts<'_>) -> Result<Option<String>, EnvError> {
    let configs = &facts.desired.configs;
    if let Some(field) = &from.field_ref {
        let value = field_value(&field.field_path, facts);
        let path = field.field_path.clone();
        return value.map(Some).ok_or_else(|| EnvError::Field { env: var.name.to_string(), path });
    }
    if let Some(wanted) = &from.resource_field_ref {
        let (env, resource) = (var.name.to_string(), wanted.resource.clone());
        let text = resource_text(wanted, facts);
        return text.map(Some).ok_or(EnvError::Resource { env, resource });
    }
    if let Some(key) = &from.config_map_key_ref {
        return look_up(var, "ConfigMap", key, &configs.config_maps);
    }
    match &from.secret_key_ref {
        Some(key) => look_up(var, "Secret", key, &configs.secrets),
        None => Ok(Some(String::new())),
    }
}

fn look_up(
    var: &EnvVar,
    kind: &'static str,
    key: &KeyRef,
    objects: &Objects,
) -> Result<Option<String>, EnvError> {
    let (env, name) = (var.name.to_string(), key.name.to_string());
    let Some(object) = objects.get(&key.name) else {
        let missing = EnvError::NoObject { env, kind, name };
        return if key.optional { Ok(None) } else { Err(missing) };
    };
    match object.get(&key.key) {
        Some(value) => Ok(Some(value.text().to_string())),
        None if key.optional => Ok(None),
        None => Err(EnvError::NoKey { env, kind, name, key: key.key.to_string() }),
    }
}

/// A resource in the unit that its divisor says.
pub(crate) fn resource_text(wanted: &ResourceFieldRef, facts: &Facts<'_>) -> Option<String> {
    let divisor = wanted.divisor.as_ref().and_then(quantity_milli).unwrap_or(1000);
    let value = resource_value(&wanted.resource, facts)?;
    Some(value.div_ceil(divisor.max(1)).to_string())
}

/// The downward API's fields.
pub(crate) fn field_value(path: &str, facts: &Facts<'_>) -> Option<String> {
    let meta = &facts.pod.metadata;
    let keyed = |prefix: &str| {
        path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned)
    };
    if let Some(key) = keyed("metadata.labels") {
        return Some(meta.labels.get(&*key).map(ToString::to_string).unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Some(meta.annotations.get(&*key).map(ToString::to_string).unwrap_or_default());
    }
    let value = match path {
        "metadata.name" => meta.name.to_string(),
        "metadata.namespace" => meta.namespace.to_string(),
        "metadata.uid" => meta.uid.to_string(),
        "spec.nodeName" => facts.pod.spec.node_name.to_string(),
        "spec.serviceAccountName" => facts.pod.service_account().to_owned(),
        "status.podIP" => facts.desired.address.to_string(),
        "status.podIPs" => {
            let all: Vec<String> =
                facts.desired.addresses.iter().map(ToString::to_string).collect();
            all.join(",")
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        _ => return None,
    };
    Some(value)
}

/// A resource of the container in thousandths (`limits.cpu: 500m` is 500).
fn resource_value(name: &str, facts: &Facts<'_>) -> Option<u64> {
    let resources = &facts.container.resources;
    let (cores, memory) = facts.machine;
    let (map, fallback) = match name {
        "limits.cpu" => (&resources.limits, cores * 1000),
        "requests.cpu" => (&resources.requests, 0),
        "limits.memory" => (&resources.limits, memory.saturating_mul(1000)),
        "requests.memory" => (&resources.requests, 0),
        _ => return None,
    };
    let key = name.split('.').nth(1)?;
    Some(map.get(key).and_then(quantity_milli).unwrap_or(fallback))
}

/// A Kubernetes quantity in thousandths; `None` when it is none.
pub(crate) fn quantity_milli(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        _ => return None,
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: u64 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut milli = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let mut unit = factor;
    for digit in fraction.chars() {
        unit /= 10;
        milli = milli.checked_add(u64::from(digit.to_digit(10)?).checked_mul(unit)?)?;
    }
    Some(milli)
}

#[cfg(test)]
mod tests;
