// SPDX-License-Identifier: Apache-2.0
//! View of Gateway API's BackendTLSPolicy: how Gateways speak TLS to a Service. A view only;
//! control gives it its meaning.

use std::sync::Arc;

use serde::Deserialize;

use super::gateway::ObjectRef;
use super::traffic_policy::TargetRef;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BackendTlsPolicy {
    pub spec: BackendTlsPolicySpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    pub target_refs: Vec<TargetRef>,
    pub validation: Validation,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    pub ca_certificate_refs: Vec<ObjectRef>,
    /// `System`
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_authorities: Option<Arc<str>>,
    pub hostname: Arc<str>,
    pub subject_alt_names: Vec<SubjectAltName>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SubjectAltName {
    /// `Hostname` or `URI`
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    pub hostname: Option<Arc<str>>,
    pub uri: Option<Arc<str>>,
}
