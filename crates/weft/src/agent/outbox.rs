// SPDX-License-Identifier: Apache-2.0
//! The reports of this host's pods on their way to the server: one sender, so that an older one
//! never arrives after a newer one, and a memory of the last of each pod for when the server
//! wants to hear all again. Pure.

use std::collections::BTreeMap;

use weft_xds::agent::{PodRef, PodReport, Refusal};

/// Reports in one message.
pub const BATCH_MAX: usize = 64;

/// The last report of each pod.
#[derive(Debug, Default)]
pub struct Memory {
    last: BTreeMap<PodRef, PodReport>,
}

// === impl Memory ===

impl Memory {
    /// Takes a report in, as the pod's newest.
    pub fn note(&mut self, report: &PodReport) {
        self.last.insert(report.pod.clone(), report.clone());
    }

    /// A report was answered. What is over, or is not this host's any more, is forgotten.
    pub fn answered(&mut self, report: &PodReport, outcome: &Result<(), Refusal>) {
        let forget = match outcome {
            Ok(()) => report.finished,
            Err(refusal) => !refusal.is_passing(),
        };
        if forget && self.last.get(&report.pod) == Some(report) {
            self.last.remove(&report.pod);
        }
    }

    /// Everything, in messages of a good size.
    pub fn everything(&self) -> Vec<Vec<PodReport>> {
        let all: Vec<PodReport> = self.last.values().cloned().collect();
        all.chunks(BATCH_MAX).map(<[_]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, phase: &str, finished: bool) -> PodReport {
        let pod = PodRef { namespace: "n".into(), name: name.into(), uid: name.into() };
        PodReport { pod, status: phase.into(), finished }
    }

    #[test]
    fn the_newest_of_each_is_kept_until_it_is_over() {
        let mut memory = Memory::default();
        for r in [report("a", "1", false), report("b", "1", false), report("a", "2", false)] {
            memory.note(&r);
            memory.answered(&r, &Ok(()));
        }
        assert_eq!(memory.everything(), [[report("a", "2", false), report("b", "1", false)]]);
        // It could not be told: it is told again.
        let end = report("a", "3", true);
        memory.note(&end);
        memory.answered(&end, &Err(Refusal::Unavailable("away".into())));
        assert_eq!(memory.everything()[0].len(), 2);
        memory.answered(&end, &Ok(()));
        assert_eq!(memory.everything(), [[report("b", "1", false)]]);
        // The server gave the pod to another host.
        memory.answered(&report("b", "1", false), &Err(Refusal::Denied("not yours".into())));
        assert!(memory.everything().is_empty());
    }

    #[test]
    fn an_answer_to_an_older_report_forgets_no_newer_one() {
        let mut memory = Memory::default();
        let (old, new) = (report("a", "1", true), report("a", "2", false));
        memory.note(&old);
        memory.note(&new);
        memory.answered(&old, &Ok(()));
        assert_eq!(memory.everything(), [[new]]);
    }

    #[test]
    fn many_come_in_several_messages() {
        let mut memory = Memory::default();
        (0..130).for_each(|i| memory.note(&report(&format!("p{i:03}"), "1", false)));
        let sizes: Vec<usize> = memory.everything().iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 64, 2]);
    }
}
