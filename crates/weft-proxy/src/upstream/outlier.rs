// SPDX-License-Identifier: Apache-2.0
//! Passive ejection. Workers count failures; one owner on the control runtime decides, because
//! only one may weigh the share that is ejected already. Its word is in the shared facts at once,
//! and every worker's next pick sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use weft_base::clock::Clock;
use weft_model::OutlierWindow;
use weft_model::decide::{
    Ejection, Outcome, Seen, Streaks, ejection_ms, ejections_allowed, judge_streaks, judge_window,
};

use crate::table::{BackendEntry, EndpointEntry};

/// Suspects that may wait for the owner; more are dropped, they will be suspected again.
const SUSPECTS_MAX: usize = 256;

/// What the owner is to look at.
#[derive(Debug)]
enum Suspect {
    /// An endpoint that failed often enough.
    Endpoint(Arc<BackendEntry>, Arc<EndpointEntry>),
    /// A backend whose window ended.
    Window(Arc<BackendEntry>),
}

/// The workers' end.
#[derive(Clone, Debug)]
pub struct Reporter {
    suspects: mpsc::Sender<Suspect>,
    clock: Clock,
}

/// The owner's end.
#[derive(Debug)]
pub struct Ejector {
    suspects: mpsc::Receiver<Suspect>,
    clock: Clock,
}

pub fn ejector(clock: Clock) -> (Reporter, Ejector) {
    let (tx, rx) = mpsc::channel(SUSPECTS_MAX);
    (Reporter { suspects: tx, clock: clock.clone() }, Ejector { suspects: rx, clock })
}

// === impl Reporter ===

impl Reporter {
    /// Notes how a worker's request to an endpoint ended.
    pub fn note(
        &self,
        backend: &Arc<BackendEntry>,
        endpoint: &Arc<EndpointEntry>,
        outcome: Outcome,
        worker: usize,
    ) {
        let policy = &backend.backend.policy.outlier;
        if policy.is_off() {
            return;
        }
        // A full queue means that the owner has enough to decide already.
        if let Some(streaks) = endpoint.shared.note(outcome, policy.consecutive_local.is_some())
            && judge_streaks(policy, streaks).is_some()
        {
            let suspect = Suspect::Endpoint(backend.clone(), endpoint.clone());
            let _ = self.suspects.try_send(suspect);
        }
        if let Some(window) = &policy.window {
            endpoint.shared.count(worker, outcome != Outcome::Success);
            if backend.window.ended(window.interval_ms, self.clock.now()) {
                let _ = self.suspects.try_send(Suspect::Window(backend.clone()));
            }
        }
    }
}

// === impl Ejector ===

impl Ejector {
    /// Decides until all workers are gone.
    pub async fn run(mut self) {
        while let Some(suspect) = self.suspects.recv().await {
            match suspect {
                Suspect::Endpoint(backend, endpoint) => {
                    let policy = &backend.backend.policy.outlier;
                    if let Some(why) = judge_streaks(policy, endpoint.shared.streaks()) {
                        self.eject(&backend, &endpoint, why);
                    }
                }
                Suspect::Window(backend) => {
                    if let Some(window) = &backend.backend.policy.outlier.window {
                        self.judge(&backend, window);
                    }
                }
            }
        }
    }

    fn judge(&self, backend: &Arc<BackendEntry>, window: &OutlierWindow) {
        let seen: Vec<Seen> = backend.endpoints.iter().map(|e| e.shared.window()).collect();
        for (i, why) in judge_window(window, &seen) {
            if let Some(endpoint) = backend.endpoints.get(i) {
                self.eject(backend, endpoint, why);
            }
        }
    }

    fn eject(&self, backend: &BackendEntry, endpoint: &EndpointEntry, why: Ejection) {
        let now = self.clock.now();
        let policy = &backend.backend.policy.outlier;
        let shared = &endpoint.shared;
        let endpoints = &backend.endpoints;
        let ejected = endpoints.iter().filter(|e| e.shared.is_ejected(now)).count();
        if shared.is_ejected(now)
            || ejected >= ejections_allowed(endpoints.len(), policy.max_ejection_basis_points)
        {
            return;
        }
        let until = shared.ejected_until.load(Ordering::Relaxed);
        // Healthy for as long as it was ejected: it starts from the beginning.
        let calm = until.saturating_add(policy.max_ejection_ms) < now.0;
        let times = if calm { 0 } else { shared.ejections.load(Ordering::Relaxed) };
        let ms = ejection_ms(policy, times);
        shared.ejections.store(times + 1, Ordering::Relaxed);
        // One success after re-admission clears this.
        shared.set_streaks(Streaks::on_probation(policy));
        shared.set_ejection(why);
        shared.ejected_until.store(now.0 + ms, Ordering::Relaxed);
        backend.set.ejected(&backend.cluster);
        tracing::info!(
            backend = %backend.cluster,
            endpoint = %endpoint.endpoint.id,
            ms,
            "ejected: {why}"
        );
    }
}
