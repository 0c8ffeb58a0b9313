// SPDX-License-Identifier: Apache-2.0
//! A pod's status as Kubernetes shows it, from its machine. Pure; called by `worker` whenever
//! something changed. The sidecar is not listed among the containers, so READY counts apps.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::machine::{ContainerState, Machine, State, Terminated};

/// The condition that the sidecar acknowledged the pod's inbound configuration.
pub const CONDITION_MESH: &str = "weft.dev/MeshReady";

/// Builds statuses; remembers since when each condition holds.
#[derive(Debug, Default)]
pub struct StatusWriter {
    conditions: Vec<(&'static str, bool, String)>,
}

// === impl StatusWriter ===

impl StatusWriter {
    /// The status at this moment.
    pub fn write(
        &mut self,
        machine: &Machine,
        (addresses, host_ip): (&[IpAddr], IpAddr),
        wall_ms: u64,
    ) -> Value {
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
        let first = addresses.first().map(ToString::to_string).unwrap_or_default();
        let phase = phase(machine);
        let over = matches!(phase, "Succeeded" | "Failed");
        let containers: Vec<Value> = machine.shown().map(|c| container(c, false)).collect();
        let mut status = json!({
            "phase": phase,
            "conditions": self.conditions(machine, over, wall_ms),
            "hostIP": host_ip.to_string(),
            "hostIPs": [{"ip": host_ip.to_string()}],
            "podIP": first,
            "podIPs": ips,
            "startTime": second(machine.started_wall_ms()),
            "containerStatuses": containers,
            "qosClass": "BestEffort",
        });
        if !machine.inits().is_empty() {
            let inits: Vec<Value> = machine.inits().iter().map(|c| container(c, true)).collect();
            status["initContainerStatuses"] = json!(inits);
        }
        if let Some(message) = why_not(machine) {
            status["message"] = json!(message);
        }
        if let Some(message) = machine.evicted().filter(|_| over) {
            status["reason"] = json!("Evicted");
            status["message"] = json!(message);
        }
        status
    }

    fn conditions(&mut self, machine: &Machine, over: bool, wall_ms: u64) -> Vec<Value> {
        let apps = machine.containers_ready() && !machine.is_deleting();
        let mesh = machine.mesh_ready();
        let started = machine.is_initialized();
        let unready = unready(machine, over);
        let why = |holds: bool| if holds { None } else { Some(&unready) };
        let gate = if apps && !mesh {
            Some(("ReadinessGatesNotReady", mesh_missing(machine)))
        } else {
            None
        };
        let waiting = uninitialized(machine);
        let ready = machine.is_ready();
        let ready_why = if ready { None } else { gate.as_ref().or(Some(&unready)) };
        vec![
            self.condition("PodScheduled", true, None, wall_ms),
            self.condition("Initialized", started, Some(&waiting).filter(|_| !started), wall_ms),
            self.condition("ContainersReady", apps, why(apps), wall_ms),
            self.condition("Ready", ready, ready_why, wall_ms),
            self.condition(CONDITION_MESH, mesh, None, wall_ms),
        ]
    }

    fn condition(
        &mut self,
        kind: &'static str,
        holds: bool,
        why: Option<&(&'static str, String)>,
        wall_ms: u64,
    ) -> Value {
        let known = self.conditions.iter_mut().find(|(k, _, _)| *k == kind);
        let since = match known {
            Some((_, same, since)) if *same == holds => since.clone(),
            Some(entry) => {
                *entry = (kind, holds, second(wall_ms));
                entry.2.clone()
            }
            None => {
                self.conditions.push((kind, holds, second(wall_ms)));
                second(wall_ms)
            }
        };
        let mut out = json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastProbeTime": null,
            "lastTransitionTime": since,
        });
        if let Some((reason, message)) = why {
            out["reason"] = json!(reason);
            out["message"] = json!(message);
        }
        out
    }
}

fn phase(machine: &Machine) -> &'static str {
    if machine.is_over() {
        let all = machine.inits().iter().chain(machine.shown());
        let failed = machine.evicted().is_some()
            || all.filter(|c| c.is_terminated()).any(|c| !c.has_succeeded());
        return if failed { "Failed" } else { "Succeeded" };
    }
    // Running once every container was there at least once.
    let begun = |c: &ContainerState| {
        matches!(c.state, State::Running { .. }) || c.last.is_some() || c.is_terminated()
    };
    let mut shown = machine.shown().peekable();
    if shown.peek().is_some() && shown.all(begun) { "Running" } else { "Pending" }
}

fn unready(machine: &Machine, over: bool) -> (&'static str, String) {
    if over {
        return ("PodCompleted", String::new());
    }
    let names: Vec<&str> = machine.shown().filter(|c| !c.is_ready()).map(|c| &*c.name).collect();
    ("ContainersNotReady", format!("containers with unready status: [{}]", names.join(" ")))
}

fn uninitialized(machine: &Machine) -> (&'static str, String) {
    let waiting = machine.inits().iter().filter(|c| !c.has_succeeded());
    let names: Vec<&str> = waiting.map(|c| &*c.name).collect();
    let message = match names.is_empty() {
        true => "its sidecar is not ready yet".to_owned(),
        false => format!("containers with incomplete status: [{}]", names.join(" ")),
    };
    ("ContainersNotInitialized", message)
}

fn mesh_missing(machine: &Machine) -> String {
    let what = match machine.proxy().map(|p| &p.state) {
        Some(State::Running { .. }) => "its sidecar has not acknowledged its configuration yet",
        _ => "its sidecar is not running",
    };
    format!("the condition {CONDITION_MESH} is not true: {what}")
}

/// What a user should read first when something is wrong.
fn why_not(machine: &Machine) -> Option<String> {
    let proxy = machine.proxy().into_iter();
    proxy.chain(machine.inits()).chain(machine.shown()).find_map(|c| match &c.state {
        _ if !c.trouble.is_empty() => Some(format!("container {}: {}", c.name, c.trouble)),
        State::Waiting { message, .. } if !message.is_empty() => {
            Some(format!("container {}: {message}", c.name))
        }
        _ => None,
    })
}

fn container(c: &ContainerState, init: bool) -> Value {
    let running = matches!(c.state, State::Running { .. });
    let last = c.last.as_ref().map_or_else(|| json!({}), |t| json!({"terminated": terminated(t)}));
    json!({
        "name": &*c.name,
        "image": &*c.image,
        "imageID": "",
        "containerID": if c.id.is_empty() { String::new() } else { format!("weft://{}", c.id) },
        "restartCount": c.restarts,
        "ready": c.is_ready() || (init && c.has_succeeded()),
        "started": running && c.started,
        "state": state(c),
        "lastState": last,
    })
}

fn state(c: &ContainerState) -> Value {
    match &c.state {
        State::Starting => json!({"waiting": {"reason": "ContainerCreating"}}),
        State::Waiting { reason, message, .. } => {
            let mut waiting = Map::new();
            waiting.insert("reason".into(), json!(reason));
            if !message.is_empty() {
                waiting.insert("message".into(), json!(message));
            }
            json!({"waiting": waiting})
        }
        State::Running { wall_ms, .. } => json!({"running": {"startedAt": second(*wall_ms)}}),
        State::Terminated(t) => json!({"terminated": terminated(t)}),
    }
}

fn terminated(t: &Terminated) -> Value {
    let mut out = json!({
        "exitCode": t.exit.code,
        "reason": t.reason,
        "startedAt": second(t.started_wall_ms),
        "finishedAt": second(t.finished_wall_ms),
        "containerID": format!("weft://{}", t.id),
    });
    if let Some(signal) = t.exit.signal {
        out["signal"] = json!(signal);
    }
    if !t.message.is_empty() {
        out["message"] = json!(t.message);
    }
    out
}

/// Kubernetes' times have whole seconds.
fn second(wall_ms: u64) -> String {
    let seconds = i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
