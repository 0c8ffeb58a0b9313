// SPDX-License-Identifier: Apache-2.0
//! What bodies are made of besides those of registrations: as in Consul a field that is none of
//! theirs is refused by its name, so that a misspelled one is not left out in silence. Pure.

use serde_json::{Map, Value};

use super::known;
use crate::consul::body;
use crate::consul::error::Refusal;

/// What a body may have.
pub type Known = &'static [&'static str];

/// What Consul's clients write into any record that they read.
const ANY: Known = &["CreateIndex", "ModifyIndex", "Hash", "Namespace", "Partition"];

pub const DEREGISTRATION: Known =
    &["Datacenter", "Node", "Address", "ServiceID", "CheckID", "PeerName", "WriteRequest", "Token"];
pub const CHECK_UPDATE: Known = &["Status", "Output"];
pub const TXN: Known = &["KV", "Node", "Service", "Check", "Session", "Intention"];
pub const TXN_KV: Known = &["Verb", "Key", "Value", "Flags", "Index", "Session", "EnterpriseMeta"];
/// Of a node, a service or a check.
pub const TXN_OF: Known = &["Verb", "Node", "Service", "Check", "EnterpriseMeta"];
pub const TXN_NODE: Known = &[
    "ID",
    "Node",
    "Address",
    "Datacenter",
    "TaggedAddresses",
    "Meta",
    "PeerName",
    "Locality",
    "NodeMeta",
];
pub const SESSION: Known = &[
    "ID",
    "Name",
    "Node",
    "LockDelay",
    "Behavior",
    "TTL",
    "Checks",
    "NodeChecks",
    "ServiceChecks",
];
pub const QUERY: Known = &["ID", "Name", "Session", "Token", "Template", "Service", "DNS"];
pub const QUERY_SERVICE: Known = &[
    "Service",
    "SamenessGroup",
    "Failover",
    "OnlyPassing",
    "IgnoreCheckIDs",
    "Near",
    "Tags",
    "NodeMeta",
    "ServiceMeta",
    "Connect",
    "Peer",
    "EnterpriseMeta",
];
pub const QUERY_FAILOVER: Known = &["NearestN", "Datacenters", "Targets"];
pub const QUERY_TEMPLATE: Known = &["Type", "Regexp", "RemoveEmptyTags"];
pub const QUERY_DNS: Known = &["TTL"];
pub const INTENTION: Known = &[
    "ID",
    "Description",
    "SourceNS",
    "SourceName",
    "SourcePartition",
    "SourcePeer",
    "SourceSamenessGroup",
    "SourceType",
    "DestinationNS",
    "DestinationName",
    "DestinationPartition",
    "Action",
    "Permissions",
    "JWT",
    "DefaultAddr",
    "DefaultPort",
    "Meta",
    "Precedence",
    "CreatedAt",
    "UpdatedAt",
];
pub const AUTHORITY: Known = &["Provider", "Config", "State", "ForceWithoutCrossSigning"];
pub const AUTHORIZE: Known = &["Target", "ClientCertURI", "ClientCertSerial"];
pub const AUTOPILOT: Known = &[
    "CleanupDeadServers",
    "LastContactThreshold",
    "MaxTrailingLogs",
    "MinQuorum",
    "ServerStabilizationTime",
    "RedundancyZoneTag",
    "DisableUpgradeMigration",
    "UpgradeVersionTag",
];
pub const COORDINATE: Known =
    &["Datacenter", "Node", "Segment", "Coord", "EnterpriseMeta", "WriteRequest", "Token"];
pub const CHAIN: Known = &["OverrideMeshGateway", "OverrideProtocol", "OverrideConnectTimeout"];
pub const TOKEN: Known = &[
    "AccessorID",
    "SecretID",
    "Description",
    "Policies",
    "Roles",
    "ServiceIdentities",
    "NodeIdentities",
    "TemplatedPolicies",
    "Local",
    "AuthMethod",
    "AuthMethodNamespace",
    "ExpirationTime",
    "ExpirationTTL",
    "CreateTime",
];
pub const POLICY: Known = &["ID", "Name", "Description", "Rules", "Datacenters"];
pub const ROLE: Known = &[
    "ID",
    "Name",
    "Description",
    "Policies",
    "ServiceIdentities",
    "NodeIdentities",
    "TemplatedPolicies",
];
pub const METHOD: Known = &[
    "Name",
    "Type",
    "DisplayName",
    "Description",
    "MaxTokenTTL",
    "TokenLocality",
    "TokenNameFormat",
    "Config",
    "NamespaceRules",
];
pub const RULE: Known =
    &["ID", "Description", "AuthMethod", "Selector", "BindType", "BindName", "BindVars"];
pub const LOGIN: Known = &["AuthMethod", "BearerToken", "Meta"];
pub const BOOTSTRAP: Known = &["BootstrapSecret"];
pub const PREVIEW: Known = &["Name"];
pub const AGENT_TOKEN: Known = &["Token"];

/// A body that must be there.
///
/// # Errors
/// 400 when it is no JSON object, or has a field that it cannot have.
pub fn object(bytes: &[u8], known: Known) -> Result<Map<String, Value>, Refusal> {
    let body = body::object(bytes)?;
    fields(&body, known)?;
    Ok(body)
}

/// One that may be left out.
///
/// # Errors
/// As [`object`].
pub fn maybe(bytes: &[u8], known: Known) -> Result<Map<String, Value>, Refusal> {
    if bytes.is_empty() { Ok(Map::new()) } else { object(bytes, known) }
}

/// A part of one.
///
/// # Errors
/// 400 for a field that it cannot have.
pub fn fields(part: &Map<String, Value>, known: Known) -> Result<(), Refusal> {
    let all: Vec<&str> = known.iter().chain(ANY).copied().collect();
    known::fields(part, &all)
}
