// SPDX-License-Identifier: Apache-2.0
//! The rows of the table of kinds, one after the other. Data only; the parent module reads it.

use super::columns as c;
use super::{Family, Kind, KindId, Subresource};

const GATEWAY: &str = "gateway.networking.k8s.io";
const ISTIO: &str = "networking.istio.io";
const ISTIO_SECURITY: &str = "security.istio.io";
const ISTIO_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const ALL: &[&str] = &["all"];
const GATEWAY_API: &[&str] = &["gateway-api"];
const ISTIO_IO: &[&str] = &["istio-io", "networking-istio-io"];
const STATUS: &[Subresource] = &[Subresource::Status];
const SCALE: &[Subresource] = &[Subresource::Status, Subresource::Scale];

/// A namespaced core kind without extras; rows say only what differs.
const CORE: Kind = Kind {
    id: KindId::Namespace,
    group: "",
    versions: &["v1"],
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    family: Family::Builtin,
    subresources: &[],
    columns: c::NAME_AGE,
};

const GATEWAY_KIND: Kind = Kind {
    group: GATEWAY,
    versions: &["v1"],
    categories: GATEWAY_API,
    family: Family::Custom,
    subresources: STATUS,
    ..CORE
};

const ISTIO_KIND: Kind = Kind {
    group: ISTIO,
    versions: ISTIO_VERSIONS,
    categories: ISTIO_IO,
    family: Family::Custom,
    subresources: STATUS,
    ..CORE
};

const ISTIO_SECURITY_KIND: Kind = Kind {
    group: ISTIO_SECURITY,
    versions: &["v1", "v1beta1"],
    categories: &["istio-io", "security-istio-io"],
    ..ISTIO_KIND
};

/// Every kind, in the order of [`KindId`].
pub const KINDS: &[Kind] = &[
    Kind {
        id: KindId::Namespace,
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        subresources: STATUS,
        columns: c::NAMESPACE,
        ..CORE
    },
    Kind {
        id: KindId::Service,
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: ALL,
        subresources: STATUS,
        columns: c::SERVICE,
        ..CORE
    },
    Kind {
        id: KindId::Pod,
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Log, Subresource::Eviction],
        columns: c::POD,
        ..CORE
    },
    Kind {
        id: KindId::ConfigMap,
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        columns: c::CONFIG_MAP,
        ..CORE
    },
    Kind {
        id: KindId::Secret,
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        columns: c::SECRET,
        ..CORE
    },
    Kind {
        id: KindId::ServiceAccount,
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        columns: c::SERVICE_ACCOUNT,
        ..CORE
    },
    Kind {
        id: KindId::Event,
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        columns: c::EVENT,
        ..CORE
    },
    Kind {
        id: KindId::Endpoints,
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        columns: c::ENDPOINTS,
        ..CORE
    },
    Kind {
        id: KindId::Node,
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: STATUS,
        columns: c::NODE,
        ..CORE
    },
    Kind {
        id: KindId::Deployment,
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: ALL,
        subresources: SCALE,
        columns: c::DEPLOYMENT,
        ..CORE
    },
    Kind {
        id: KindId::ReplicaSet,
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: ALL,
        subresources: SCALE,
        columns: c::REPLICA_SET,
        ..CORE
    },
    Kind {
        id: KindId::StatefulSet,
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: ALL,
        subresources: SCALE,
        columns: c::STATEFUL_SET,
        ..CORE
    },
    Kind {
        id: KindId::DaemonSet,
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: ALL,
        subresources: STATUS,
        columns: c::DAEMON_SET,
        ..CORE
    },
    Kind {
        id: KindId::ControllerRevision,
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        columns: c::CONTROLLER_REVISION,
        ..CORE
    },
    Kind {
        id: KindId::Job,
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: ALL,
        subresources: STATUS,
        columns: c::JOB,
        ..CORE
    },
    Kind {
        id: KindId::CronJob,
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: ALL,
        subresources: STATUS,
        columns: c::CRON_JOB,
        ..CORE
    },
    Kind {
        id: KindId::HorizontalPodAutoscaler,
        group: "autoscaling",
        versions: &["v2"],
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: ALL,
        subresources: STATUS,
        columns: c::AUTOSCALER,
        ..CORE
    },
    Kind {
        id: KindId::PodDisruptionBudget,
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        subresources: STATUS,
        columns: c::DISRUPTION_BUDGET,
        ..CORE
    },
    Kind {
        id: KindId::EndpointSlice,
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        columns: c::ENDPOINT_SLICE,
        ..CORE
    },
    Kind {
        id: KindId::Lease,
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        columns: c::LEASE,
        ..CORE
    },
    Kind {
        id: KindId::GatewayClass,
        kind: "GatewayClass",
        plural: "gatewayclasses",
        singular: "gatewayclass",
        short_names: &["gc"],
        versions: &["v1", "v1beta1"],
        namespaced: false,
        columns: c::GATEWAY_CLASS,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::Gateway,
        kind: "Gateway",
        plural: "gateways",
        singular: "gateway",
        short_names: &["gtw"],
        versions: &["v1", "v1beta1"],
        columns: c::GATEWAY,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::HttpRoute,
        kind: "HTTPRoute",
        plural: "httproutes",
        singular: "httproute",
        versions: &["v1", "v1beta1"],
        columns: c::ROUTE,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::GrpcRoute,
        kind: "GRPCRoute",
        plural: "grpcroutes",
        singular: "grpcroute",
        columns: c::ROUTE,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::TlsRoute,
        kind: "TLSRoute",
        plural: "tlsroutes",
        singular: "tlsroute",
        columns: c::ROUTE,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::TcpRoute,
        kind: "TCPRoute",
        plural: "tcproutes",
        singular: "tcproute",
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::UdpRoute,
        kind: "UDPRoute",
        plural: "udproutes",
        singular: "udproute",
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::ListenerSet,
        kind: "ListenerSet",
        plural: "listenersets",
        singular: "listenerset",
        short_names: &["lset"],
        columns: c::LISTENER_SET,
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::ReferenceGrant,
        kind: "ReferenceGrant",
        plural: "referencegrants",
        singular: "referencegrant",
        short_names: &["refgrant"],
        versions: &["v1", "v1beta1"],
        subresources: &[],
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::BackendTlsPolicy,
        kind: "BackendTLSPolicy",
        plural: "backendtlspolicies",
        singular: "backendtlspolicy",
        short_names: &["btlspolicy"],
        ..GATEWAY_KIND
    },
    Kind {
        id: KindId::VirtualService,
        kind: "VirtualService",
        plural: "virtualservices",
        singular: "virtualservice",
        short_names: &["vs"],
        columns: c::VIRTUAL_SERVICE,
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::DestinationRule,
        kind: "DestinationRule",
        plural: "destinationrules",
        singular: "destinationrule",
        short_names: &["dr"],
        columns: c::DESTINATION_RULE,
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::IstioGateway,
        kind: "Gateway",
        plural: "gateways",
        singular: "gateway",
        short_names: &["gw"],
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::ServiceEntry,
        kind: "ServiceEntry",
        plural: "serviceentries",
        singular: "serviceentry",
        short_names: &["se"],
        columns: c::SERVICE_ENTRY,
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::WorkloadEntry,
        kind: "WorkloadEntry",
        plural: "workloadentries",
        singular: "workloadentry",
        short_names: &["we"],
        columns: c::WORKLOAD_ENTRY,
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::WorkloadGroup,
        kind: "WorkloadGroup",
        plural: "workloadgroups",
        singular: "workloadgroup",
        short_names: &["wg"],
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::Sidecar,
        kind: "Sidecar",
        plural: "sidecars",
        singular: "sidecar",
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::PeerAuthentication,
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        singular: "peerauthentication",
        short_names: &["pa"],
        columns: c::PEER_AUTHENTICATION,
        ..ISTIO_SECURITY_KIND
    },
    Kind {
        id: KindId::AuthorizationPolicy,
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        singular: "authorizationpolicy",
        short_names: &["ap"],
        columns: c::AUTHORIZATION_POLICY,
        ..ISTIO_SECURITY_KIND
    },
    Kind {
        id: KindId::RequestAuthentication,
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        singular: "requestauthentication",
        short_names: &["ra"],
        ..ISTIO_SECURITY_KIND
    },
    Kind {
        id: KindId::Telemetry,
        group: "telemetry.istio.io",
        versions: &["v1", "v1alpha1"],
        kind: "Telemetry",
        plural: "telemetries",
        singular: "telemetry",
        short_names: &["telemetry"],
        categories: &["istio-io", "telemetry-istio-io"],
        ..ISTIO_KIND
    },
    Kind {
        id: KindId::MeshConfig,
        group: "weft.dev",
        versions: &["v1alpha1"],
        kind: "MeshConfig",
        plural: "meshconfigs",
        singular: "meshconfig",
        short_names: &["mesh"],
        categories: &["weft"],
        namespaced: false,
        family: Family::Custom,
        subresources: STATUS,
        ..CORE
    },
    Kind {
        id: KindId::TrafficPolicy,
        group: "weft.dev",
        versions: &["v1alpha1"],
        kind: "TrafficPolicy",
        plural: "trafficpolicies",
        singular: "trafficpolicy",
        short_names: &["tp"],
        categories: &["weft"],
        family: Family::Custom,
        subresources: STATUS,
        columns: c::TRAFFIC_POLICY,
        ..CORE
    },
];
