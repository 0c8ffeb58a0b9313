// SPDX-License-Identifier: Apache-2.0
//! The columns of `kubectl get`, as users of the real API server see them. Custom resources'
//! come from their CRDs' `additionalPrinterColumns`.

use super::{Cell, Column};

const fn path(name: &'static str, ty: &'static str, path: &'static str) -> Column {
    Column { name, ty, wide: false, cell: Cell::Path(path) }
}

const fn computed(name: &'static str) -> Column {
    Column { name, ty: "string", wide: false, cell: Cell::Computed }
}

const fn number(name: &'static str) -> Column {
    Column { name, ty: "integer", wide: false, cell: Cell::Computed }
}

const fn wide(column: Column) -> Column {
    Column { wide: true, ..column }
}

const NAME: Column = path("Name", "string", ".metadata.name");
/// Built-in kinds send ages as text (`5m3s`); custom ones as a date that kubectl renders.
const AGE: Column = computed("Age");
const DATE: Column = path("Age", "date", ".metadata.creationTimestamp");

pub(super) const NAME_AGE: &[Column] = &[NAME, DATE];
pub(super) const NAMESPACE: &[Column] = &[NAME, computed("Status"), AGE];
pub(super) const SERVICE: &[Column] = &[
    NAME,
    path("Type", "string", ".spec.type"),
    computed("Cluster-IP"),
    computed("External-IP"),
    computed("Port(s)"),
    AGE,
    wide(computed("Selector")),
];
pub(super) const POD: &[Column] = &[
    NAME,
    computed("Ready"),
    computed("Status"),
    computed("Restarts"),
    AGE,
    wide(computed("IP")),
    wide(computed("Node")),
    wide(computed("Nominated Node")),
    wide(computed("Readiness Gates")),
];
pub(super) const CONFIG_MAP: &[Column] = &[NAME, number("Data"), AGE];
pub(super) const SECRET: &[Column] = &[NAME, path("Type", "string", ".type"), number("Data"), AGE];
pub(super) const SERVICE_ACCOUNT: &[Column] = &[NAME, number("Secrets"), AGE];
pub(super) const EVENT: &[Column] = &[
    computed("Last Seen"),
    path("Type", "string", ".type"),
    path("Reason", "string", ".reason"),
    computed("Object"),
    wide(computed("Subobject")),
    wide(computed("Source")),
    path("Message", "string", ".message"),
    wide(computed("First Seen")),
    wide(computed("Count")),
    wide(NAME),
];
pub(super) const ENDPOINTS: &[Column] = &[NAME, computed("Endpoints"), AGE];
pub(super) const NODE: &[Column] = &[
    NAME,
    computed("Status"),
    computed("Roles"),
    AGE,
    computed("Version"),
    wide(computed("Internal-IP")),
    wide(computed("External-IP")),
    wide(computed("OS-Image")),
    wide(computed("Kernel-Version")),
    wide(computed("Container-Runtime")),
];
pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    computed("Ready"),
    number("Up-to-date"),
    number("Available"),
    AGE,
    wide(computed("Containers")),
    wide(computed("Images")),
    wide(computed("Selector")),
];
pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide(computed("Containers")),
    wide(computed("Images")),
    wide(computed("Selector")),
];
pub(super) const STATEFUL_SET: &[Column] =
    &[NAME, computed("Ready"), AGE, wide(computed("Containers")), wide(computed("Images"))];
pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    computed("Node Selector"),
    AGE,
    wide(computed("Containers")),
    wide(computed("Images")),
    wide(computed("Selector")),
];
pub(super) const CONTROLLER_REVISION: &[Column] =
    &[NAME, computed("Controller"), path("Revision", "integer", ".revision"), AGE];
pub(super) const JOB: &[Column] = &[
    NAME,
    computed("Status"),
    computed("Completions"),
    computed("Duration"),
    AGE,
    wide(computed("Containers")),
    wide(computed("Images")),
    wide(computed("Selector")),
];
pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    path("Schedule", "string", ".spec.schedule"),
    computed("Timezone"),
    computed("Suspend"),
    number("Active"),
    computed("Last Schedule"),
    AGE,
    wide(computed("Containers")),
    wide(computed("Images")),
    wide(computed("Selector")),
];
pub(super) const AUTOSCALER: &[Column] = &[
    NAME,
    computed("Reference"),
    computed("Targets"),
    computed("MinPods"),
    number("MaxPods"),
    number("Replicas"),
    AGE,
];
pub(super) const DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    computed("Min Available"),
    computed("Max Unavailable"),
    number("Allowed Disruptions"),
    AGE,
];
pub(super) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    path("AddressType", "string", ".addressType"),
    computed("Ports"),
    computed("Endpoints"),
    AGE,
];
pub(super) const LEASE: &[Column] = &[NAME, path("Holder", "string", ".spec.holderIdentity"), AGE];

const ACCEPTED: &str = ".status.conditions[?(@.type==\"Accepted\")].status";
const PROGRAMMED: &str = ".status.conditions[?(@.type==\"Programmed\")].status";

pub(super) const GATEWAY_CLASS: &[Column] = &[
    NAME,
    path("Controller", "string", ".spec.controllerName"),
    path("Accepted", "string", ACCEPTED),
    DATE,
    wide(path("Description", "string", ".spec.description")),
];
pub(super) const GATEWAY: &[Column] = &[
    NAME,
    path("Class", "string", ".spec.gatewayClassName"),
    path("Address", "string", ".status.addresses[*].value"),
    path("Programmed", "string", PROGRAMMED),
    DATE,
];
pub(super) const ROUTE: &[Column] = &[NAME, path("Hostnames", "string", ".spec.hostnames"), DATE];
pub(super) const LISTENER_SET: &[Column] =
    &[NAME, path("Accepted", "string", ACCEPTED), path("Programmed", "string", PROGRAMMED), DATE];
pub(super) const VIRTUAL_SERVICE: &[Column] = &[
    NAME,
    path("Gateways", "string", ".spec.gateways"),
    path("Hosts", "string", ".spec.hosts"),
    DATE,
];
pub(super) const DESTINATION_RULE: &[Column] = &[NAME, path("Host", "string", ".spec.host"), DATE];
pub(super) const SERVICE_ENTRY: &[Column] = &[
    NAME,
    path("Hosts", "string", ".spec.hosts"),
    path("Location", "string", ".spec.location"),
    path("Resolution", "string", ".spec.resolution"),
    DATE,
];
pub(super) const WORKLOAD_ENTRY: &[Column] =
    &[NAME, DATE, path("Address", "string", ".spec.address")];
pub(super) const PEER_AUTHENTICATION: &[Column] =
    &[NAME, path("Mode", "string", ".spec.mtls.mode"), DATE];
pub(super) const TRAFFIC_POLICY: &[Column] = &[
    NAME,
    path("Targets", "string", ".spec.targetRefs[*].name"),
    path("Accepted", "string", ".status.ancestors[*].conditions[?(@.type=='Accepted')].status"),
    DATE,
];
pub(super) const AUTHORIZATION_POLICY: &[Column] =
    &[NAME, path("Action", "string", ".spec.action"), DATE];
