// SPDX-License-Identifier: Apache-2.0
//! What containers use: processor and memory, read from `/proc` when somebody asks.
//!
//! Called by the binary at its own pace. A process belongs to the container whose mark is in its
//! environment, else to that of its parent. Nothing is kept but the last look.

use std::collections::HashMap;
use std::sync::Arc;

use weft_base::clock::Mono;

use crate::agent::Agent;
use crate::leftover::MARK_CONTAINER;
use crate::pod::PodKey;
use crate::procfs::{self, Spent};

/// What one container uses now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    pub pod: PodKey,
    pub container: Arc<str>,
    /// Thousandths of a processor since the look before; `None` at the first.
    pub cpu_milli: Option<u64>,
    /// Its own pages: those of files are everybody's.
    pub memory_bytes: u64,
}

/// What the machine uses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineUsage {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// A container that runs, by the mark of its processes.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    pub(crate) mark: String,
    pub(crate) pod: PodKey,
    pub(crate) container: Arc<str>,
}

/// Looks, and remembers the look before.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    before: HashMap<String, u64>,
    at: Option<Mono>,
    machine: Option<(u64, Mono)>,
}

// === impl Sampler ===

impl Sampler {
    /// Reads all of `/proc`: some milliseconds, on a thread that may block.
    pub fn look(&mut self, agent: &Agent, now: Mono) -> Vec<ContainerUsage> {
        self.count(&agent.marked(), &procfs::all_spent(MARK_CONTAINER), now)
    }

    /// The whole machine; `None` at the first look.
    pub fn machine(&mut self, now: Mono) -> Option<MachineUsage> {
        let (busy_ms, memory_bytes) = procfs::machine_spent()?;
        let (before, at) = self.machine.replace((busy_ms, now))?;
        let passed = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX).max(1);
        let cpu_milli = busy_ms.saturating_sub(before) * 1000 / passed;
        Some(MachineUsage { cpu_milli, memory_bytes })
    }

    fn count(
        &mut self,
        containers: &[Marked],
        processes: &[(Spent, Option<String>)],
        now: Mono,
    ) -> Vec<ContainerUsage> {
        let mut sums: HashMap<&str, (u64, u64)> = HashMap::new();
        let by_pid: HashMap<u32, &(Spent, Option<String>)> =
            processes.iter().map(|p| (p.0.pid, p)).collect();
        for process in processes {
            if let Some(mark) = mark_of(process, &by_pid) {
                let sum = sums.entry(mark).or_default();
                sum.0 += process.0.cpu_ms;
                sum.1 += process.0.memory_bytes;
            }
        }
        let passed = self.at.map(|at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX));
        let mut out = Vec::with_capacity(containers.len());
        let mut spent = HashMap::with_capacity(containers.len());
        for one in containers {
            let (cpu_ms, memory_bytes) = sums.get(one.mark.as_str()).copied().unwrap_or_default();
            let before = self.before.get(&one.mark);
            let cpu_milli = match (before, passed) {
                (Some(before), Some(passed)) if passed > 0 => {
                    Some(cpu_ms.saturating_sub(*before) * 1000 / passed)
                }
                _ => None,
            };
            spent.insert(one.mark.clone(), cpu_ms);
            let (pod, container) = (one.pod.clone(), one.container.clone());
            out.push(ContainerUsage { pod, container, cpu_milli, memory_bytes });
        }
        (self.before, self.at) = (spent, Some(now));
        out
    }
}

/// A process's own mark, else the nearest of those that started it.
fn mark_of<'a>(
    process: &'a (Spent, Option<String>),
    by_pid: &HashMap<u32, &'a (Spent, Option<String>)>,
) -> Option<&'a str> {
    let mut at = process;
    // Parents do not go in circles, but `/proc` is read while they change.
    for _ in 0..64 {
        if let Some(mark) = &at.1 {
            return Some(mark);
        }
        at = by_pid.get(&at.0.ppid)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(mark: &str, container: &str) -> Marked {
        let pod = PodKey::new("shop", "user-1");
        Marked { mark: mark.into(), pod, container: container.into() }
    }

    fn process(pid: u32, ppid: u32, cpu_ms: u64, mark: Option<&str>) -> (Spent, Option<String>) {
        (Spent { pid, ppid, cpu_ms, memory_bytes: 10 }, mark.map(str::to_owned))
    }

    #[test]
    fn processes_count_for_their_container() {
        let containers = [marked("m1", "a"), marked("m2", "b"), marked("m3", "idle")];
        let mut sampler = Sampler::default();
        let first = [
            process(1, 0, 9_000, None),
            process(10, 1, 100, Some("m1")),
            // Its environment was overwritten; its parent's was not.
            process(11, 10, 50, None),
            process(20, 1, 0, Some("m2")),
            process(30, 1, 5_000, Some("of another agent")),
        ];
        let look = sampler.count(&containers, &first, Mono(1_000));
        assert!(look.iter().all(|c| c.cpu_milli.is_none()));
        let memory: Vec<u64> = look.iter().map(|c| c.memory_bytes).collect();
        assert_eq!(memory, [20, 10, 0]);
        let second = [
            process(10, 1, 350, Some("m1")),
            process(11, 10, 300, None),
            process(20, 1, 0, Some("m2")),
        ];
        let look = sampler.count(&containers, &second, Mono(2_000));
        let cpu: Vec<Option<u64>> = look.iter().map(|c| c.cpu_milli).collect();
        assert_eq!(cpu, [Some(500), Some(0), Some(0)]);
        // A container that began anew has another mark, so nothing to compare with.
        let look = sampler.count(&[marked("m4", "a")], &second, Mono(3_000));
        assert_eq!(look[0].cpu_milli, None);
    }

    #[test]
    fn own_figures_are_read() {
        let all = procfs::all_spent("PATH");
        let own = all.iter().find(|(s, _)| s.pid == std::process::id()).unwrap();
        assert!(own.0.memory_bytes > 100_000 && own.0.memory_bytes < 1 << 40, "{own:?}");
        assert!(own.1.as_ref().is_some_and(|path| path.contains("bin")), "{own:?}");
    }
}
