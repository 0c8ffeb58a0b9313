// SPDX-License-Identifier: Apache-2.0
//! Runs the checks of this node: one task per check, results gathered and handed over in order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::Status;
use weft_kinds::views::check::CheckDefinition;

use super::places::Places;
use super::runs::Runs;
use super::{CheckKey, CheckMachine, CheckReport, CheckSpec, Checks, ask};
use crate::link::{BoxFuture, LinkError};

/// Checks of one node.
const CHECKS_MAX: usize = 10_000;

/// Takes results. A `ServerLink` is one; tests and the binary may have others.
pub trait CheckSink: Send + Sync + fmt::Debug {
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>>;
}

impl<L: crate::link::ServerLink + ?Sized> CheckSink for L {
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        crate::link::ServerLink::report_checks(self, reports)
    }
}

/// Follows the node's checks and keeps one task for each that is to be asked.
#[derive(Debug)]
pub struct Runner {
    clock: Clock,
    tasks: TaskGroup,
    rng: Rng,
    places: Arc<Places>,
    results: mpsc::Sender<CheckReport>,
    runs: Arc<Runs>,
    running: BTreeMap<CheckKey, Running>,
}

#[derive(Debug)]
struct Running {
    spec: CheckSpec,
    /// What the catalog says.
    shown: watch::Sender<Status>,
    /// Draining ends the check's task.
    group: TaskGroup,
}

/// One check and what it needs to be asked again and again.
pub(super) struct Turns {
    machine: CheckMachine,
    definition: Arc<CheckDefinition>,
    key: CheckKey,
    /// What the catalog says.
    shown: watch::Receiver<Status>,
    clock: Clock,
    places: Arc<Places>,
    results: mpsc::Sender<CheckReport>,
    runs: Arc<Runs>,
}

// === impl Runner ===

impl Runner {
    /// Starts following `checks`. TTL checks are not run here: the registry, which hears their
    /// heartbeats, expires them. What is returned counts them.
    pub fn start(
        checks: Snapshot<Checks>,
        sink: Arc<dyn CheckSink>,
        clock: Clock,
        rng: Rng,
        tasks: &TaskGroup,
    ) -> Arc<Runs> {
        let (results, queue) = mpsc::channel(1024);
        let (places, group, runs) = (Arc::new(Places::new()), tasks.child(), Arc::default());
        let counted = Arc::clone(&runs);
        let running = BTreeMap::new();
        let runner = Self { clock, tasks: group, rng, places, results, runs, running };
        tasks.spawn("check runner", runner.follow(checks));
        let (ended, reports) = (tasks.clone(), hand_over(queue, sink));
        tasks.spawn("check reports", async move {
            tokio::select! {
                () = ended.draining() => {}
                () = reports => {}
            }
        });
        counted
    }

    async fn follow(mut self, mut checks: Snapshot<Checks>) {
        loop {
            self.apply(&checks.load());
            tokio::select! {
                () = self.tasks.draining() => return,
                more = checks.changed() => if !more { return },
            }
        }
    }

    fn apply(&mut self, wanted: &Checks) {
        self.running.retain(|key, running| {
            let keep = wanted.get(key).is_some_and(|s| s.definition == running.spec.definition);
            if !keep {
                running.group.begin_drain();
            }
            keep
        });
        for (key, spec) in wanted {
            if let Some(running) = self.running.get(key) {
                // At the next result: what the catalog lost is told again.
                running.shown.send_replace(spec.status);
            }
            let asked = spec.definition.probe.is_asked();
            if !asked || self.running.contains_key(key) {
                continue;
            }
            if self.running.len() >= CHECKS_MAX {
                tracing::warn!(max = CHECKS_MAX, "this node has more checks than are run");
                return;
            }
            let group = self.tasks.child();
            let shown = watch::Sender::new(spec.status);
            self.spawn(&group, key.clone(), spec, shown.subscribe());
            self.running.insert(key.clone(), Running { spec: spec.clone(), shown, group });
        }
    }

    fn spawn(
        &mut self,
        group: &TaskGroup,
        key: CheckKey,
        spec: &CheckSpec,
        shown: watch::Receiver<Status>,
    ) {
        let turns = Turns {
            machine: CheckMachine::new(spec, self.clock.now(), &mut self.rng),
            definition: spec.definition.clone(),
            key,
            shown,
            clock: self.clock.clone(),
            places: self.places.clone(),
            results: self.results.clone(),
            runs: self.runs.clone(),
        };
        let ended = group.clone();
        group.spawn("check", async move {
            tokio::select! {
                () = ended.draining() => {}
                () = turns.run() => {}
            }
        });
    }
}

// === impl Turns ===

impl Turns {
    /// Asks whenever it is due, until nobody takes its results any more.
    pub(super) async fn run(mut self) {
        let mut hung = false;
        loop {
            let due = self.machine.due();
            tokio::time::sleep(due.since(self.clock.now())).await;
            self.runs.note_lag(self.clock.now().since(due));
            let question = ask::ask(&self.definition);
            let answer = self.places.ask(&self.definition.probe, &mut hung, question).await;
            let Some((status, output)) = answer.flatten() else { return };
            self.runs.note(self.definition.probe.kind(), status);
            self.machine.shows(*self.shown.borrow());
            let result = self.machine.result(status, &output, self.clock.now());
            if let Some((status, output)) = result {
                let report = CheckReport { key: self.key.clone(), status, output };
                if self.results.send(report).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Hands results over in batches; keeps the newest of each check while the server is away.
async fn hand_over(mut queue: mpsc::Receiver<CheckReport>, sink: Arc<dyn CheckSink>) {
    let mut pending: BTreeMap<CheckKey, CheckReport> = BTreeMap::new();
    let mut wait = Duration::from_millis(50);
    loop {
        if pending.is_empty() {
            let Some(report) = queue.recv().await else { return };
            pending.insert(report.key.clone(), report);
        }
        while let Ok(report) = queue.try_recv() {
            pending.insert(report.key.clone(), report);
        }
        match sink.report_checks(pending.values().cloned().collect()).await {
            Ok(()) => {
                pending.clear();
                wait = Duration::from_millis(50);
            }
            Err(LinkError::Refused(why)) => {
                tracing::warn!(why, "check results were refused");
                pending.clear();
            }
            Err(LinkError::Unavailable(why)) => {
                tracing::debug!(why, "check results wait");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_kinds::views::check::Probe;

    use super::*;

    #[test]
    fn a_check_that_waits_for_its_turn_is_small() {
        let (results, _queue) = mpsc::channel(1);
        let definition =
            CheckDefinition { probe: Probe::tcp("127.0.0.1:1"), ..CheckDefinition::default() };
        let (definition, status) = (Arc::new(definition), Status::Critical);
        let spec = CheckSpec { definition, status, heard: false };
        let (clock, shown) = (Clock::system(), watch::Sender::new(Status::Critical));
        let turns = Turns {
            machine: CheckMachine::new(&spec, clock.now(), &mut Rng::seeded(1)),
            definition: spec.definition,
            key: CheckKey { namespace: "".into(), node: "".into(), id: "".into() },
            shown: shown.subscribe(),
            clock,
            places: Arc::new(Places::new()),
            results,
            runs: Arc::default(),
        };
        let bytes = size_of_val(&turns.run());
        // Of 4 KiB that an instance may cost with its check.
        assert!(bytes <= 2_048, "{bytes} bytes");
    }
}
