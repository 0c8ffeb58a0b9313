// SPDX-License-Identifier: Apache-2.0
//! Passive ejection. Workers count failures in a row; one owner on the control runtime decides,
//! because only one may weigh the share that is ejected already.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use weft_base::clock::Clock;
use weft_model::decide::ejections_allowed;

use crate::table::{BackendEntry, EndpointEntry};

/// Suspects that may wait for the owner; more are dropped, they will be suspected again.
const SUSPECTS_MAX: usize = 256;

/// An endpoint that failed often enough.
#[derive(Debug)]
pub struct Suspect {
    pub backend: Arc<BackendEntry>,
    pub endpoint: Arc<EndpointEntry>,
}

/// The workers' end.
#[derive(Clone, Debug)]
pub struct Reporter {
    suspects: mpsc::Sender<Suspect>,
}

/// The owner's end.
#[derive(Debug)]
pub struct Ejector {
    suspects: mpsc::Receiver<Suspect>,
    clock: Clock,
}

pub fn ejector(clock: Clock) -> (Reporter, Ejector) {
    let (tx, rx) = mpsc::channel(SUSPECTS_MAX);
    (Reporter { suspects: tx }, Ejector { suspects: rx, clock })
}

// === impl Reporter ===

impl Reporter {
    /// Notes how a request to an endpoint ended.
    pub fn note(&self, backend: &Arc<BackendEntry>, endpoint: &Arc<EndpointEntry>, ok: bool) {
        let threshold = backend.backend.policy.outlier.consecutive_failures;
        if threshold == 0 {
            return;
        }
        let shared = &endpoint.shared;
        if ok {
            // Reads only, in the good case: no cache line is written by two workers.
            if shared.failures.load(Ordering::Relaxed) != 0 {
                shared.failures.store(0, Ordering::Relaxed);
            }
            return;
        }
        let failures = shared.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= threshold {
            let suspect = Suspect { backend: backend.clone(), endpoint: endpoint.clone() };
            // A full queue means that the owner has enough to decide already.
            let _ = self.suspects.try_send(suspect);
        }
    }
}

// === impl Ejector ===

impl Ejector {
    /// Decides until all workers are gone.
    pub async fn run(mut self) {
        while let Some(suspect) = self.suspects.recv().await {
            self.decide(&suspect);
        }
    }

    fn decide(&self, suspect: &Suspect) {
        let now = self.clock.now();
        let policy = &suspect.backend.backend.policy.outlier;
        let shared = &suspect.endpoint.shared;
        let failures = shared.failures.load(Ordering::Relaxed);
        if shared.is_ejected(now) || failures < policy.consecutive_failures {
            return;
        }
        let endpoints = &suspect.backend.endpoints;
        let ejected = endpoints.iter().filter(|e| e.shared.is_ejected(now)).count();
        if ejected >= ejections_allowed(endpoints.len(), policy.max_ejection_basis_points) {
            return;
        }
        let until = shared.ejected_until.load(Ordering::Relaxed);
        // Healthy for as long as it was ejected: it starts from the beginning.
        let calm = until.saturating_add(policy.max_ejection_ms) < now.0;
        let times = if calm { 0 } else { shared.ejections.load(Ordering::Relaxed) };
        let ms = policy.base_ejection_ms.saturating_mul(u64::from(times) + 1);
        let ms = ms.min(policy.max_ejection_ms);
        shared.ejections.store(times + 1, Ordering::Relaxed);
        // One more failure after re-admission ejects again; one success clears the count.
        shared.failures.store(policy.consecutive_failures - 1, Ordering::Relaxed);
        shared.ejected_until.store(now.0 + ms, Ordering::Relaxed);
        suspect.backend.ejected_until.fetch_max(now.0 + ms, Ordering::Relaxed);
        tracing::info!(
            backend = %suspect.backend.cluster,
            endpoint = %suspect.endpoint.endpoint.id,
            ms,
            "ejected after {failures} failures in a row"
        );
    }
}
