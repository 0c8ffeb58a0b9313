// SPDX-License-Identifier: Apache-2.0
//! Active health checks: one owner on the control runtime asks every endpoint of a backend whose
//! policy says so, a bounded number at a time, and notes the answer in the endpoint's shared facts,
//! where every worker's next pick sees it. An endpoint that was not asked yet is taken for well;
//! its first answer decides alone. Never looks at requests: that is ejection's.

mod ask;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::snapshot::Snapshot;
use weft_base::task::TaskGroup;
use weft_model::decide::{CheckRow, Probe};
use weft_model::{Health, HealthCheck};

use super::connect::Dialer;
use crate::table::{BackendEntry, EndpointEntry, SetShared, Table};

/// Checks under way at one time.
const CHECKS_MAX: usize = 64;
/// New endpoints are all asked within this, evenly spread.
const FIRST_WITHIN_MS: u64 = 1_000;
/// Between two checks of one endpoint at least.
const INTERVAL_MS_MIN: u64 = 10;

/// The owner.
#[derive(Debug)]
pub struct Checker {
    tables: Snapshot<Table>,
    dialer: Arc<Dialer>,
    clock: Clock,
    schedule: Schedule,
}

/// What is asked when; pure but for the shared facts that it holds for others.
#[derive(Debug)]
struct Schedule {
    rng: Rng,
    /// By the identity of what is shared about an endpoint: subsets share it.
    jobs: BTreeMap<usize, Job>,
    under_way: usize,
}

/// One endpoint.
#[derive(Debug)]
struct Job {
    entry: Arc<EndpointEntry>,
    backend: Arc<BackendEntry>,
    row: CheckRow,
    due: Mono,
    asking: bool,
}

/// One answer.
#[derive(Debug)]
struct Answer {
    key: usize,
    seen: Probe,
    why: String,
}

// === impl Checker ===

impl Checker {
    pub fn new(tables: Snapshot<Table>, dialer: Arc<Dialer>, clock: Clock, rng: Rng) -> Self {
        let schedule = Schedule { rng, jobs: BTreeMap::new(), under_way: 0 };
        Self { tables, dialer, clock, schedule }
    }

    /// Asks until the group of tasks ends.
    pub async fn run(mut self, tasks: TaskGroup) {
        let (answers, mut answered) = mpsc::channel::<Answer>(CHECKS_MAX);
        loop {
            let now = self.clock.now();
            while let Some((key, entry, backend)) = self.schedule.next(now) {
                let (dialer, answers) = (self.dialer.clone(), answers.clone());
                tasks.spawn("health check", async move {
                    let (seen, why) = ask::ask(&dialer, &backend, &entry).await;
                    // The owner may be gone by now.
                    let _ = answers.send(Answer { key, seen, why }).await;
                });
            }
            let pause = self.schedule.pause(self.clock.now());
            tokio::select! {
                changed = self.tables.changed() => match changed {
                    true => self.schedule.follow(&self.tables.load(), self.clock.now()),
                    false => return,
                },
                Some(answer) = answered.recv() => self.schedule.take(&answer, self.clock.now()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// Asks what a new table says is to be asked, and goes on where that is the same.
    fn follow(&mut self, table: &Table, now: Mono) {
        let mut old = std::mem::take(&mut self.jobs);
        for backend in table.backends().filter(|b| check_of(b).is_some()) {
            for entry in &backend.endpoints {
                if entry.endpoint.health == Health::Draining {
                    continue;
                }
                let key = Arc::as_ptr(&entry.shared) as usize;
                let whole = backend.backend.subset.is_empty();
                if !whole && self.jobs.contains_key(&key) {
                    continue;
                }
                let fresh = Job {
                    entry: entry.clone(),
                    backend: backend.clone(),
                    row: CheckRow::default(),
                    due: now,
                    asking: false,
                };
                let same = |job: &Job| check_of(&job.backend) == check_of(backend);
                let job = match old.remove(&key).or_else(|| self.jobs.remove(&key)) {
                    Some(job) if same(&job) => {
                        Job { row: job.row, due: job.due, asking: job.asking, ..fresh }
                    }
                    Some(job) => Job { row: job.row, asking: job.asking, ..fresh },
                    None => Job { due: Mono(u64::MAX), ..fresh },
                };
                self.jobs.insert(key, job);
            }
        }
        self.spread(now);
        self.under_way = self.jobs.values().filter(|j| j.asking).count();
        for job in old.values() {
            note(&job.entry, &job.backend.set, None);
        }
    }

    /// Gives those that were never asked their first times.
    fn spread(&mut self, now: Mono) {
        let fresh: Vec<&mut Job> =
            self.jobs.values_mut().filter(|j| j.due == Mono(u64::MAX)).collect();
        let count = fresh.len().max(1) as u64;
        for (i, job) in (0u64..).zip(fresh) {
            let within = FIRST_WITHIN_MS.min(check_of(&job.backend).map_or(0, |c| c.interval_ms));
            job.due = now.plus(Duration::from_millis(i * within / count));
        }
    }

    /// What is to be asked now, if there is room for it.
    fn next(&mut self, now: Mono) -> Option<(usize, Arc<EndpointEntry>, Arc<BackendEntry>)> {
        if self.under_way >= CHECKS_MAX {
            return None;
        }
        let due = self.jobs.iter_mut().filter(|(_, j)| !j.asking && j.due <= now);
        let (key, job) = due.min_by_key(|(_, j)| j.due)?;
        job.asking = true;
        self.under_way += 1;
        Some((*key, job.entry.clone(), job.backend.clone()))
    }

    /// How long nothing is due; what waits for room is woken by an answer.
    fn pause(&self, now: Mono) -> Duration {
        let waiting = self.jobs.values().filter(|j| !j.asking).map(|j| j.due).min();
        match waiting {
            Some(due) if due > now => due.since(now),
            Some(_) if self.under_way < CHECKS_MAX => Duration::ZERO,
            _ => Duration::from_secs(3_600),
        }
    }

    fn take(&mut self, answer: &Answer, now: Mono) {
        let Some(job) = self.jobs.get_mut(&answer.key) else { return };
        if std::mem::replace(&mut job.asking, false) {
            self.under_way = self.under_way.saturating_sub(1);
        }
        let Some(check) = check_of(&job.backend) else { return };
        let out = job.row.note(check, answer.seen);
        let wrong = (answer.seen != Probe::Pass).then_some(&*answer.why);
        job.entry.shared.set_checked(now, wrong);
        note(&job.entry, &job.backend.set, out.then_some(&*answer.why));
        let usual = check.interval_ms;
        let interval = if out { check.unhealthy_interval_ms.unwrap_or(usual) } else { usual };
        let interval = interval.max(INTERVAL_MS_MIN);
        let longer = interval * u64::from(check.jitter_basis_points.min(10_000)) / 10_000;
        let by_chance = self.rng.below(longer + 1);
        job.due = now.plus(Duration::from_millis(interval + by_chance));
    }
}

/// The check of a backend, if its policy has one.
fn check_of(backend: &BackendEntry) -> Option<&HealthCheck> {
    backend.backend.policy.protection.as_ref()?.health_check.as_ref()
}

/// Tells the workers, when it is news.
fn note(entry: &EndpointEntry, set: &SetShared, failing: Option<&str>) {
    let before = entry.shared.set_failing(failing);
    if before == failing.is_some() {
        return;
    }
    set.changed();
    let (endpoint, address) = (&entry.endpoint.id, entry.endpoint.address);
    match failing {
        Some(why) => tracing::info!(%endpoint, %address, why, "fails its health check"),
        None => tracing::info!(%endpoint, %address, "passes its health check again"),
    }
}

#[cfg(test)]
mod tests;
