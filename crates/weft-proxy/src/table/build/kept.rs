// SPDX-License-Identifier: Apache-2.0
//! What workers share beside tables, from one table to the next: it is made when a backend first
//! needs it, and forgotten once no table has it. Part of `build.rs`.

use std::sync::Arc;

use weft_model::{Backend, ResourceName};

use super::Builder;
use crate::upstream::breaker::Quotas;

// === impl Builder ===

impl Builder {
    /// The limits of a backend, which outlive it for as long as anything is counted there.
    pub(super) fn quotas_of(
        &mut self,
        name: &ResourceName,
        backend: &Backend,
    ) -> Option<Arc<Quotas>> {
        let known = self.quotas.get(name).cloned();
        if known.is_some() || !Quotas::are_for(&backend.policy.limits) {
            return known;
        }
        let made = Quotas::new(self.workers);
        self.quotas.insert(name.clone(), made.clone());
        Some(made)
    }

    /// Forgets what is shared about endpoints that no table has any more.
    pub(super) fn sweep(&mut self) {
        self.quotas.retain(|_, quotas| Arc::strong_count(quotas) > 1);
        self.origins.retain(|_, tls| Arc::strong_count(tls) > 1);
        if self.shared.len() > 64 + 2 * self.table.backends().map(|b| b.total()).sum::<usize>() {
            self.shared.retain(|_, shared| Arc::strong_count(shared) > 1);
            self.sets.retain(|_, set| Arc::strong_count(set) > 1);
        }
    }
}
