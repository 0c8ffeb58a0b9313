// SPDX-License-Identifier: Apache-2.0
//! View of `policy` PodDisruptionBudget.

use serde::Deserialize;

use super::LabelSelector;
use super::core::IntOrString;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DisruptionBudget {
    pub spec: BudgetSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetSpec {
    pub min_available: Option<IntOrString>,
    pub max_unavailable: Option<IntOrString>,
    /// Absent selects nothing, empty everything.
    pub selector: Option<LabelSelector>,
    /// `AlwaysAllow`: pods that are not ready may go whatever the budget.
    pub unhealthy_pod_eviction_policy: String,
}
