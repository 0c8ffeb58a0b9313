// SPDX-License-Identifier: Apache-2.0
//! Typed views: what weft reads of the users' objects, and nothing else.
//!
//! The World folds raw JSON into these; control compiles from them; controllers may read them.
//! They tolerate unknown fields (the schema engine judged those at the door) and nulls. They are
//! never written back: the raw object is the truth. An object that does not fit its view becomes
//! [`View::Invalid`] and stops nothing else.

pub mod apps;
pub mod autoscaling;
pub mod backend_tls;
pub mod balancing;
pub mod batch;
pub mod catalog;
pub mod check;
pub mod core;
pub mod discovery;
pub mod gateway;
pub mod grpc_route;
pub mod istio;
pub mod meta;
pub mod policy;
pub mod security;
pub mod service_entry;
pub mod sidecar;
pub mod traffic_policy;

use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_base::issue::{FieldPath, Issues};

pub use meta::{LabelSelector, Labels, Meta, OwnerReference};

use crate::kind::KindId;

/// What weft reads of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "each is held once, in its object's Arc")]
pub enum View {
    Service(core::Service),
    Pod(core::Pod),
    Namespace(core::Namespace),
    ServiceAccount(core::ServiceAccount),
    Secret(core::Secret),
    EndpointSlice(discovery::EndpointSlice),
    Deployment(apps::Deployment),
    ReplicaSet(apps::ReplicaSet),
    StatefulSet(apps::StatefulSet),
    DaemonSet(apps::DaemonSet),
    Job(Box<batch::Job>),
    CronJob(batch::CronJob),
    Autoscaler(Box<autoscaling::Autoscaler>),
    DisruptionBudget(policy::DisruptionBudget),
    GatewayClass(gateway::GatewayClass),
    Gateway(Box<gateway::Gateway>),
    ListenerSet(gateway::ListenerSet),
    HttpRoute(gateway::HttpRoute),
    /// As the HTTPRoute that it means.
    GrpcRoute(gateway::HttpRoute),
    /// A TLSRoute, TCPRoute or UDPRoute: an HTTPRoute that says nothing of HTTP.
    StreamRoute(gateway::HttpRoute),
    ReferenceGrant(gateway::ReferenceGrant),
    BackendTlsPolicy(backend_tls::BackendTlsPolicy),
    VirtualService(istio::VirtualService),
    DestinationRule(Box<istio::DestinationRule>),
    IstioGateway(istio::Gateway),
    ServiceEntry(service_entry::ServiceEntry),
    Sidecar(sidecar::Sidecar),
    PeerAuthentication(security::PeerAuthentication),
    TrafficPolicy(Box<traffic_policy::TrafficPolicy>),
    /// A kind that is stored but not read by the World.
    Other,
    /// The object does not have its kind's form.
    Invalid(Issues),
}

impl View {
    /// Reads the view of one object. Never fails: a wrong form is `Invalid`.
    pub fn read(kind: KindId, raw: &Value) -> Self {
        match kind {
            KindId::Service => typed(raw, Self::Service),
            KindId::Pod => typed(raw, Self::Pod),
            KindId::Namespace => typed(raw, Self::Namespace),
            KindId::ServiceAccount => typed(raw, Self::ServiceAccount),
            KindId::Secret => typed(raw, Self::Secret),
            KindId::EndpointSlice => typed(raw, Self::EndpointSlice),
            KindId::Deployment => typed(raw, Self::Deployment),
            KindId::ReplicaSet => typed(raw, Self::ReplicaSet),
            KindId::StatefulSet => typed(raw, Self::StatefulSet),
            KindId::DaemonSet => typed(raw, Self::DaemonSet),
            KindId::Job => typed(raw, |job| Self::Job(Box::new(job))),
            KindId::CronJob => typed(raw, Self::CronJob),
            KindId::HorizontalPodAutoscaler => typed(raw, |a| Self::Autoscaler(Box::new(a))),
            KindId::PodDisruptionBudget => typed(raw, Self::DisruptionBudget),
            KindId::GatewayClass => typed(raw, Self::GatewayClass),
            KindId::Gateway => typed(raw, |g| Self::Gateway(Box::new(g))),
            KindId::ListenerSet => typed(raw, Self::ListenerSet),
            KindId::HttpRoute => typed(raw, Self::HttpRoute),
            KindId::GrpcRoute => {
                typed(raw, |route: grpc_route::GrpcRoute| Self::GrpcRoute(route.into()))
            }
            KindId::TlsRoute | KindId::TcpRoute | KindId::UdpRoute => typed(raw, Self::StreamRoute),
            KindId::ReferenceGrant => typed(raw, Self::ReferenceGrant),
            KindId::BackendTlsPolicy => typed(raw, Self::BackendTlsPolicy),
            KindId::VirtualService => typed(raw, Self::VirtualService),
            KindId::DestinationRule => typed(raw, |rule| Self::DestinationRule(Box::new(rule))),
            KindId::IstioGateway => typed(raw, Self::IstioGateway),
            KindId::ServiceEntry => typed(raw, Self::ServiceEntry),
            KindId::Sidecar => typed(raw, Self::Sidecar),
            KindId::PeerAuthentication => typed(raw, Self::PeerAuthentication),
            KindId::TrafficPolicy => typed(raw, |p| Self::TrafficPolicy(Box::new(p))),
            _ => Self::Other,
        }
    }
}

/// Reads any `Deserialize` from raw JSON, treating null as absent.
///
/// # Errors
/// The first place where the value has not the form that is read.
pub fn read<T: DeserializeOwned>(raw: &Value) -> Result<T, Issues> {
    let result =
        if has_null(raw) { T::deserialize(&without_nulls(raw)) } else { T::deserialize(raw) };
    result.map_err(|e| {
        let mut issues = Issues::default();
        issues.error(FieldPath::root(), format!("not of the form that weft reads: {e}"));
        issues
    })
}

fn typed<T: DeserializeOwned>(raw: &Value, wrap: fn(T) -> View) -> View {
    read(raw).map_or_else(View::Invalid, wrap)
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(fields) => fields.values().any(has_null),
        _ => false,
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect(),
        other => other.clone(),
    }
}
