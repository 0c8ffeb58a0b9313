// SPDX-License-Identifier: Apache-2.0
//! What pods and machines use, measured as long as somebody wants to know: who asked in the last
//! minute, or an autoscaler. This machine's agent is looked at here; the hosts' agents look for
//! themselves and report while they are asked to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_agent::agent::Agent;
use weft_agent::usage::Sampler;
use weft_base::clock::{Clock, Mono};
use weft_kinds::kind::KindId;
use weft_registry::Registry;
use weft_registry::usage::{Name, Resources};
use weft_server::k8s::Meter;
use weft_xds::agent::visit::{ContainerUsage, MachineUsage, UsageReport};

use super::hosts::HostDoor;

/// Between two looks.
pub const EVERY: Duration = Duration::from_secs(10);
/// After the first look, which says nothing of the processor.
pub const FIRST: Duration = Duration::from_millis(500);
/// How long a question keeps the measuring going.
const WANTED: Duration = Duration::from_secs(60);
/// How long hosts go on after they were asked last.
const HOSTS_GO_ON: Duration = Duration::from_secs(25);
/// Figures of a machine that says no more are forgotten after this.
const KEPT: Duration = Duration::from_secs(40);
/// How long a question waits for its figures.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Looks at the containers of an agent and at its machine.
#[derive(Clone, Debug)]
pub struct Looks {
    agent: Agent,
    clock: Clock,
    sampler: Arc<Mutex<Sampler>>,
}

/// The newest figures of every machine. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Usages {
    registry: Registry,
    figures: Arc<Mutex<Figures>>,
    /// Counts what was noted.
    noted: watch::Sender<u64>,
}

/// Pure.
#[derive(Debug, Default)]
struct Figures {
    by_node: BTreeMap<Name, (Mono, u64, UsageReport)>,
}

/// Knows who asks.
#[derive(Clone, Debug)]
pub struct Meters {
    door: HostDoor,
    /// This machine's name, when pods run on it.
    own: Option<Name>,
    asked: watch::Sender<Option<Mono>>,
}

// === impl Looks ===

impl Looks {
    pub fn new(agent: Agent, clock: Clock) -> Self {
        Self { agent, clock, sampler: Arc::default() }
    }

    /// What was used since the look before; of a first look there is nothing to say. `None` when
    /// the process ends.
    pub async fn look(&self) -> Option<UsageReport> {
        let (sampler, agent, now) = (self.sampler.clone(), self.agent.clone(), self.clock.now());
        let look = tokio::task::spawn_blocking(move || {
            let mut sampler = sampler.lock().unwrap_or_else(PoisonError::into_inner);
            (sampler.look(&agent, now), sampler.machine(now))
        });
        let (containers, machine) = look.await.ok()?;
        let container = |c: weft_agent::usage::ContainerUsage| {
            Some(ContainerUsage {
                namespace: c.pod.namespace.to_string(),
                pod: c.pod.name.to_string(),
                container: c.container.to_string(),
                // A container that has just begun has no figures yet.
                cpu_milli: c.cpu_milli?,
                memory_bytes: c.memory_bytes,
            })
        };
        Some(UsageReport {
            containers: containers.into_iter().filter_map(container).collect(),
            machine: machine
                .map(|m| MachineUsage { cpu_milli: m.cpu_milli, memory_bytes: m.memory_bytes }),
        })
    }

    pub fn now(&self) -> Mono {
        self.clock.now()
    }

    /// The next look is a first one.
    pub fn begin_anew(&self) {
        *self.sampler.lock().unwrap_or_else(PoisonError::into_inner) = Sampler::default();
    }
}

// === impl Usages ===

impl Usages {
    pub fn new(registry: Registry) -> Self {
        Self { registry, figures: Arc::default(), noted: watch::Sender::default() }
    }

    /// Takes a machine's figures in.
    pub fn note(&self, node: &str, report: UsageReport) {
        let (now, wall_ms) = (self.registry.clock().now(), self.registry.clock().wall_ms());
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.by_node.insert(node.into(), (now, wall_ms, report));
        let (pods, nodes) = figures.all(now);
        self.registry.note_resources(pods);
        self.registry.note_nodes(nodes);
        drop(figures);
        self.noted.send_modify(|n| *n += 1);
    }

    fn are_fresh(&self, nodes: &[Name], now: Mono) -> bool {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Mono| now.since(at) < 2 * EVERY;
        nodes.iter().all(|node| figures.by_node.get(node).is_some_and(|f| fresh(f.0)))
    }
}

// === impl Figures ===

impl Figures {
    /// Of pods, and as `namespace/pod/container` of each container; of machines by their names.
    fn all(&mut self, now: Mono) -> (BTreeMap<Name, Resources>, BTreeMap<Name, Resources>) {
        self.by_node.retain(|_, (at, ..)| now.since(*at) < KEPT);
        let (mut pods, mut nodes) = (BTreeMap::<Name, Resources>::new(), BTreeMap::new());
        for (node, (_, wall_ms, report)) in &self.by_node {
            let wall_ms = *wall_ms;
            for one in &report.containers {
                let pod = format!("{}/{}", one.namespace, one.pod);
                let (cpu_milli, memory_bytes) = (one.cpu_milli, one.memory_bytes);
                let own = Resources { cpu_milli, memory_bytes, wall_ms };
                pods.insert(format!("{pod}/{}", one.container).into(), own);
                let none = Resources { wall_ms, ..Resources::default() };
                let sum = pods.entry(pod.into()).or_insert(none);
                sum.cpu_milli = sum.cpu_milli.saturating_add(cpu_milli);
                sum.memory_bytes = sum.memory_bytes.saturating_add(memory_bytes);
            }
            if let Some(MachineUsage { cpu_milli, memory_bytes }) = report.machine {
                nodes.insert(node.clone(), Resources { cpu_milli, memory_bytes, wall_ms });
            }
        }
        (pods, nodes)
    }
}

// === impl Meters ===

impl Meters {
    /// Begins to measure when it is asked to; `own` is the agent of this process and the name of
    /// its machine.
    pub fn start(door: HostDoor, own: Option<(Agent, &str)>) -> Self {
        let (asked, wanted) = watch::channel(None);
        let registry = door.usages().registry.clone();
        let name = own.as_ref().map(|(_, node)| Name::from(*node));
        let looks = own
            .map(|(agent, node)| (Name::from(node), Looks::new(agent, registry.clock().clone())));
        let tasks = registry.tasks().clone();
        let measuring = measure(door.clone(), registry, looks, wanted);
        let drained = tasks.clone();
        tasks.spawn("usage", async move {
            tokio::select! {
                () = drained.draining() => {}
                () = measuring => {}
            }
        });
        Self { door, own: name, asked }
    }
}

impl Meter for Meters {
    fn asked(&self) -> BoxFuture<'static, ()> {
        let usages = self.door.usages().clone();
        let clock = usages.registry.clock().clone();
        self.asked.send_replace(Some(clock.now()));
        self.door.measure(HOSTS_GO_ON);
        let mut nodes: Vec<Name> = self.door.hosts_here();
        nodes.extend(self.own.clone());
        let mut noted = usages.noted.subscribe();
        async move {
            let fresh = |_: &u64| usages.are_fresh(&nodes, clock.now());
            // Nothing better to tell than what there is.
            let _ = tokio::time::timeout(WAIT_MAX, noted.wait_for(fresh)).await;
        }
        .boxed()
    }
}

async fn measure(
    door: HostDoor,
    registry: Registry,
    own: Option<(Name, Looks)>,
    mut wanted: watch::Receiver<Option<Mono>>,
) {
    let mut going = false;
    loop {
        let now = registry.clock().now();
        let asked = wanted.borrow_and_update().is_some_and(|at| now.since(at) < WANTED);
        if !asked && !has_autoscaler(&registry) {
            going = false;
            // An autoscaler may come without anybody asking.
            if tokio::time::timeout(EVERY, wanted.changed()).await.is_ok_and(|c| c.is_err()) {
                return;
            }
            continue;
        }
        door.measure(HOSTS_GO_ON);
        if let Some((node, looks)) = &own {
            if !going {
                looks.begin_anew();
            }
            let Some(report) = looks.look().await else { return };
            if going {
                door.usages().note(node, report);
            }
        }
        tokio::time::sleep(if going { EVERY } else { FIRST }).await;
        going = true;
    }
}

fn has_autoscaler(registry: &Registry) -> bool {
    registry.now().objects(KindId::HorizontalPodAutoscaler, None).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pod: &str, containers: &[(&str, u64)]) -> UsageReport {
        let one = |(container, cpu_milli): &(&str, u64)| ContainerUsage {
            namespace: "shop".into(),
            pod: pod.into(),
            container: (*container).into(),
            cpu_milli: *cpu_milli,
            memory_bytes: 10,
        };
        let machine = Some(MachineUsage { cpu_milli: 700, memory_bytes: 99 });
        UsageReport { containers: containers.iter().map(one).collect(), machine }
    }

    #[test]
    fn figures_of_all_machines_stand_beside_each_other_until_they_are_old() {
        let mut figures = Figures::default();
        let note = |figures: &mut Figures, node: &str, at, report| {
            figures.by_node.insert(node.into(), (Mono(at), 5, report));
        };
        note(&mut figures, "m1", 0, report("a", &[("x", 10), ("y", 20)]));
        note(&mut figures, "m2", 10_000, report("b", &[("x", 3)]));
        let (pods, nodes) = figures.all(Mono(10_000));
        assert_eq!((pods["shop/a"].cpu_milli, pods["shop/a"].memory_bytes), (30, 20));
        assert_eq!((pods["shop/a/y"].cpu_milli, pods["shop/b"].cpu_milli), (20, 3));
        assert_eq!(nodes.len(), 2);
        // A newer look of one machine leaves the other's.
        note(&mut figures, "m2", 20_000, report("b", &[("x", 4)]));
        let (pods, _) = figures.all(Mono(20_000));
        assert_eq!((pods["shop/a"].cpu_milli, pods["shop/b"].cpu_milli), (30, 4));
        // m1 has said nothing for a while.
        let (pods, nodes) = figures.all(Mono(40_001));
        assert!(!pods.contains_key("shop/a") && !nodes.contains_key("m1"));
        assert!(pods.contains_key("shop/b"));
    }
}
