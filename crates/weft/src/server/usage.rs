// SPDX-License-Identifier: Apache-2.0
//! Measures what the pods of this process's agent use, as long as somebody wants to know: who
//! asked in the last minute, or an autoscaler.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_agent::agent::Agent;
use weft_agent::usage::{ContainerUsage, MachineUsage, Sampler};
use weft_base::clock::Mono;
use weft_kinds::kind::KindId;
use weft_registry::Registry;
use weft_registry::usage::{Name, Resources};
use weft_server::k8s::Meter;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// After the first look, which says nothing of the processor.
const FIRST: Duration = Duration::from_millis(500);
/// How long a question keeps the measuring going.
const WANTED: Duration = Duration::from_secs(60);
/// How long a question waits for its figures.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Measures, and knows who asks.
#[derive(Clone, Debug)]
pub struct AgentMeter {
    registry: Registry,
    asked: watch::Sender<Option<Mono>>,
    measured: watch::Receiver<Option<Mono>>,
}

/// Nothing runs here, so nothing is measured.
#[derive(Debug)]
pub struct NoMeter;

// === impl AgentMeter ===

impl AgentMeter {
    pub fn start(agent: Agent, registry: Registry, node: &str) -> Self {
        let (asked, wanted) = watch::channel(None);
        let (done, measured) = watch::channel(None);
        let (tasks, node) = (registry.tasks().clone(), Arc::from(node));
        let measuring = measure(agent, registry.clone(), node, wanted, done);
        let drained = tasks.clone();
        tasks.spawn("usage", async move {
            tokio::select! {
                () = drained.draining() => {}
                () = measuring => {}
            }
        });
        Self { registry, asked, measured }
    }
}

impl Meter for AgentMeter {
    fn asked(&self) -> BoxFuture<'static, ()> {
        let now = self.registry.clock().now();
        self.asked.send_replace(Some(now));
        let mut measured = self.measured.clone();
        async move {
            let fresh = |at: &Option<Mono>| at.is_some_and(|at| now.since(at) < 2 * EVERY);
            // Nothing better to tell than what there is.
            let _ = tokio::time::timeout(WAIT_MAX, measured.wait_for(fresh)).await;
        }
        .boxed()
    }
}

impl Meter for NoMeter {
    fn asked(&self) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

async fn measure(
    agent: Agent,
    registry: Registry,
    node: Name,
    mut wanted: watch::Receiver<Option<Mono>>,
    done: watch::Sender<Option<Mono>>,
) {
    let sampler = Arc::new(Mutex::new(Sampler::default()));
    let mut before: Option<Mono> = None;
    loop {
        let now = registry.clock().now();
        let asked = wanted.borrow_and_update().is_some_and(|at| now.since(at) < WANTED);
        if !asked && !has_autoscaler(&registry) {
            before = None;
            *sampler.lock().unwrap_or_else(PoisonError::into_inner) = Sampler::default();
            // An autoscaler may come without anybody asking.
            if tokio::time::timeout(EVERY, wanted.changed()).await.is_ok_and(|c| c.is_err()) {
                return;
            }
            continue;
        }
        let (looking, agent) = (sampler.clone(), agent.clone());
        let look = tokio::task::spawn_blocking(move || {
            let mut sampler = looking.lock().unwrap_or_else(PoisonError::into_inner);
            (sampler.look(&agent, now), sampler.machine(now))
        });
        let Ok((containers, machine)) = look.await else { return };
        if before.is_some() {
            note(&registry, &node, &containers, machine);
            done.send_replace(Some(now));
        }
        tokio::time::sleep(if before.is_some() { EVERY } else { FIRST }).await;
        before = Some(now);
    }
}

fn has_autoscaler(registry: &Registry) -> bool {
    registry.now().objects(KindId::HorizontalPodAutoscaler, None).next().is_some()
}

fn note(
    registry: &Registry,
    node: &Name,
    containers: &[ContainerUsage],
    machine: Option<MachineUsage>,
) {
    let wall_ms = registry.clock().wall_ms();
    let mut all: BTreeMap<Name, Resources> = BTreeMap::new();
    for one in containers {
        // A container that has just begun has no figures yet.
        let Some(cpu_milli) = one.cpu_milli else { continue };
        let pod = format!("{}/{}", one.pod.namespace, one.pod.name);
        let own = Resources { cpu_milli, memory_bytes: one.memory_bytes, wall_ms };
        all.insert(format!("{pod}/{}", one.container).into(), own);
        let sum = all.entry(pod.into()).or_insert(Resources { wall_ms, ..Resources::default() });
        sum.cpu_milli += cpu_milli;
        sum.memory_bytes += one.memory_bytes;
    }
    registry.note_resources(all);
    if let Some(machine) = machine {
        let MachineUsage { cpu_milli, memory_bytes } = machine;
        let own = Resources { cpu_milli, memory_bytes, wall_ms };
        registry.note_nodes(BTreeMap::from([(node.clone(), own)]));
    }
}
