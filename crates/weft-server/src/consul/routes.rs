// SPDX-License-Identifier: Apache-2.0
//! The table of endpoints: what is served, by which method, and what is known but not served.
//! The longest path that fits wins. A path that ends in `/` takes the rest as its argument.

use http::{Method, StatusCode};
use weft_base::limits::DOOR_BODY_BYTES_MAX;

use super::error::Refusal;
use super::params::decode;

/// Largest snapshot that is taken back.
const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// What health checks of a Consul agent itself ask.
    Root,
    AgentSelf,
    AgentHost,
    AgentVersion,
    AgentMembers,
    AgentServices,
    AgentService,
    AgentChecks,
    AgentHealthId,
    AgentHealthName,
    AgentMaintenance,
    ServiceRegister,
    ServiceDeregister,
    ServiceMaintenance,
    CheckRegister,
    CheckDeregister,
    CheckPass,
    CheckWarn,
    CheckFail,
    CheckUpdate,
    CatalogRegister,
    CatalogDeregister,
    CatalogDatacenters,
    CatalogNodes,
    CatalogServices,
    CatalogService,
    CatalogConnect,
    CatalogNode,
    CatalogNodeServices,
    HealthNode,
    HealthChecks,
    HealthService,
    HealthConnect,
    HealthIngress,
    HealthState,
    StatusLeader,
    StatusPeers,
    CoordinateDatacenters,
    CoordinateNodes,
    CoordinateNode,
    CoordinateUpdate,
    Kv,
    Txn,
    SessionCreate,
    SessionDestroy,
    SessionRenew,
    SessionInfo,
    SessionList,
    SessionNode,
    EventFire,
    EventList,
    Queries,
    Query,
    Config,
    ConfigOf,
    Intentions,
    Intention,
    IntentionExact,
    IntentionMatch,
    IntentionCheck,
    CaRoots,
    CaConfiguration,
    CaLeaf,
    ConnectAuthorize,
    DiscoveryChain,
    GatewayServices,
    AgentReload,
    AgentLeave,
    AgentForceLeave,
    AgentMetrics,
    AgentMetricsStream,
    AgentJoin,
    AgentMonitor,
    AgentToken,
    OperatorRaft,
    OperatorPeer,
    OperatorTransfer,
    OperatorAutopilot,
    OperatorHealth,
    OperatorState,
    OperatorKeyring,
    OperatorUsage,
    Snapshot,
    AclBootstrap,
    AclLogin,
    AclLogout,
    AclReplication,
    AclTokens,
    AclToken,
    AclTokenSelf,
    AclPolicies,
    AclPolicy,
    AclPolicyName,
    AclRoles,
    AclRole,
    AclRoleName,
    AclMethods,
    AclMethod,
    AclRules,
    AclRule,
    AclTemplates,
    AclTemplateName,
    AclTemplatePreview,
    AclAuthorize,
}

/// A served endpoint.
#[derive(Debug)]
pub struct Route {
    pub path: &'static str,
    pub methods: &'static [&'static str],
    pub endpoint: Endpoint,
}

const fn get(path: &'static str, endpoint: Endpoint) -> Route {
    Route { path, methods: &["GET", "HEAD"], endpoint }
}

const fn put(path: &'static str, endpoint: Endpoint) -> Route {
    Route { path, methods: &["PUT"], endpoint }
}

const fn of_methods(
    path: &'static str,
    methods: &'static [&'static str],
    endpoint: Endpoint,
) -> Route {
    Route { path, methods, endpoint }
}

const GET_PUT_DELETE: &[&str] = &["GET", "HEAD", "PUT", "DELETE"];

pub const ROUTES: &[Route] = &[
    get("/v1/agent/self", Endpoint::AgentSelf),
    get("/v1/agent/host", Endpoint::AgentHost),
    get("/v1/agent/version", Endpoint::AgentVersion),
    get("/v1/agent/members", Endpoint::AgentMembers),
    get("/v1/agent/services", Endpoint::AgentServices),
    get("/v1/agent/service/", Endpoint::AgentService),
    get("/v1/agent/checks", Endpoint::AgentChecks),
    get("/v1/agent/health/service/id/", Endpoint::AgentHealthId),
    get("/v1/agent/health/service/name/", Endpoint::AgentHealthName),
    put("/v1/agent/maintenance", Endpoint::AgentMaintenance),
    put("/v1/agent/service/register", Endpoint::ServiceRegister),
    put("/v1/agent/service/deregister/", Endpoint::ServiceDeregister),
    put("/v1/agent/service/maintenance/", Endpoint::ServiceMaintenance),
    put("/v1/agent/check/register", Endpoint::CheckRegister),
    put("/v1/agent/check/deregister/", Endpoint::CheckDeregister),
    put("/v1/agent/check/pass/", Endpoint::CheckPass),
    put("/v1/agent/check/warn/", Endpoint::CheckWarn),
    put("/v1/agent/check/fail/", Endpoint::CheckFail),
    put("/v1/agent/check/update/", Endpoint::CheckUpdate),
    put("/v1/catalog/register", Endpoint::CatalogRegister),
    put("/v1/catalog/deregister", Endpoint::CatalogDeregister),
    get("/v1/catalog/datacenters", Endpoint::CatalogDatacenters),
    get("/v1/catalog/nodes", Endpoint::CatalogNodes),
    get("/v1/catalog/services", Endpoint::CatalogServices),
    get("/v1/catalog/service/", Endpoint::CatalogService),
    get("/v1/catalog/connect/", Endpoint::CatalogConnect),
    get("/v1/catalog/node/", Endpoint::CatalogNode),
    get("/v1/catalog/node-services/", Endpoint::CatalogNodeServices),
    get("/v1/health/node/", Endpoint::HealthNode),
    get("/v1/health/checks/", Endpoint::HealthChecks),
    get("/v1/health/service/", Endpoint::HealthService),
    get("/v1/health/connect/", Endpoint::HealthConnect),
    get("/v1/health/ingress/", Endpoint::HealthIngress),
    get("/v1/health/state/", Endpoint::HealthState),
    get("/v1/status/leader", Endpoint::StatusLeader),
    get("/v1/status/peers", Endpoint::StatusPeers),
    get("/v1/coordinate/datacenters", Endpoint::CoordinateDatacenters),
    get("/v1/coordinate/nodes", Endpoint::CoordinateNodes),
    get("/v1/coordinate/node/", Endpoint::CoordinateNode),
    put("/v1/coordinate/update", Endpoint::CoordinateUpdate),
    of_methods("/v1/kv/", &["GET", "HEAD", "PUT", "DELETE"], Endpoint::Kv),
    put("/v1/txn", Endpoint::Txn),
    put("/v1/session/create", Endpoint::SessionCreate),
    put("/v1/session/destroy/", Endpoint::SessionDestroy),
    put("/v1/session/renew/", Endpoint::SessionRenew),
    get("/v1/session/info/", Endpoint::SessionInfo),
    get("/v1/session/list", Endpoint::SessionList),
    get("/v1/session/node/", Endpoint::SessionNode),
    // Spring sends POST.
    of_methods("/v1/event/fire/", &["PUT", "POST"], Endpoint::EventFire),
    get("/v1/event/list", Endpoint::EventList),
    of_methods("/v1/query", &["GET", "HEAD", "POST"], Endpoint::Queries),
    of_methods("/v1/query/", &["GET", "HEAD", "PUT", "DELETE"], Endpoint::Query),
    put("/v1/config", Endpoint::Config),
    of_methods("/v1/config/", &["GET", "HEAD", "DELETE"], Endpoint::ConfigOf),
    of_methods("/v1/connect/intentions", &["GET", "HEAD", "POST"], Endpoint::Intentions),
    of_methods("/v1/connect/intentions/", GET_PUT_DELETE, Endpoint::Intention),
    of_methods("/v1/connect/intentions/exact", GET_PUT_DELETE, Endpoint::IntentionExact),
    get("/v1/connect/intentions/match", Endpoint::IntentionMatch),
    get("/v1/connect/intentions/check", Endpoint::IntentionCheck),
    get("/v1/connect/ca/roots", Endpoint::CaRoots),
    of_methods("/v1/connect/ca/configuration", &["GET", "HEAD", "PUT"], Endpoint::CaConfiguration),
    get("/v1/agent/connect/ca/roots", Endpoint::CaRoots),
    get("/v1/agent/connect/ca/leaf/", Endpoint::CaLeaf),
    // py-consul sends PUT.
    of_methods("/v1/agent/connect/authorize", &["POST", "PUT"], Endpoint::ConnectAuthorize),
    of_methods("/v1/discovery-chain/", &["GET", "HEAD", "POST"], Endpoint::DiscoveryChain),
    get("/v1/catalog/gateway-services/", Endpoint::GatewayServices),
    put("/v1/agent/reload", Endpoint::AgentReload),
    put("/v1/agent/leave", Endpoint::AgentLeave),
    put("/v1/agent/force-leave/", Endpoint::AgentForceLeave),
    get("/v1/agent/metrics", Endpoint::AgentMetrics),
    get("/v1/agent/metrics/stream", Endpoint::AgentMetricsStream),
    get("/v1/agent/monitor", Endpoint::AgentMonitor),
    put("/v1/agent/join/", Endpoint::AgentJoin),
    put("/v1/agent/token/", Endpoint::AgentToken),
    get("/v1/operator/raft/configuration", Endpoint::OperatorRaft),
    of_methods("/v1/operator/raft/peer", &["DELETE"], Endpoint::OperatorPeer),
    of_methods("/v1/operator/raft/transfer-leader", &["POST", "PUT"], Endpoint::OperatorTransfer),
    of_methods(
        "/v1/operator/autopilot/configuration",
        &["GET", "HEAD", "PUT"],
        Endpoint::OperatorAutopilot,
    ),
    get("/v1/operator/autopilot/health", Endpoint::OperatorHealth),
    get("/v1/operator/autopilot/state", Endpoint::OperatorState),
    of_methods(
        "/v1/operator/keyring",
        &["GET", "HEAD", "POST", "PUT", "DELETE"],
        Endpoint::OperatorKeyring,
    ),
    get("/v1/operator/usage", Endpoint::OperatorUsage),
    of_methods("/v1/snapshot", &["GET", "HEAD", "PUT"], Endpoint::Snapshot),
    put("/v1/acl/bootstrap", Endpoint::AclBootstrap),
    of_methods("/v1/acl/login", &["POST", "PUT"], Endpoint::AclLogin),
    of_methods("/v1/acl/logout", &["POST", "PUT"], Endpoint::AclLogout),
    get("/v1/acl/replication", Endpoint::AclReplication),
    get("/v1/acl/tokens", Endpoint::AclTokens),
    put("/v1/acl/token", Endpoint::AclToken),
    of_methods("/v1/acl/token/", GET_PUT_DELETE, Endpoint::AclToken),
    get("/v1/acl/token/self", Endpoint::AclTokenSelf),
    get("/v1/acl/policies", Endpoint::AclPolicies),
    put("/v1/acl/policy", Endpoint::AclPolicy),
    of_methods("/v1/acl/policy/", GET_PUT_DELETE, Endpoint::AclPolicy),
    get("/v1/acl/policy/name/", Endpoint::AclPolicyName),
    get("/v1/acl/roles", Endpoint::AclRoles),
    put("/v1/acl/role", Endpoint::AclRole),
    of_methods("/v1/acl/role/", GET_PUT_DELETE, Endpoint::AclRole),
    get("/v1/acl/role/name/", Endpoint::AclRoleName),
    get("/v1/acl/auth-methods", Endpoint::AclMethods),
    put("/v1/acl/auth-method", Endpoint::AclMethod),
    of_methods("/v1/acl/auth-method/", GET_PUT_DELETE, Endpoint::AclMethod),
    get("/v1/acl/binding-rules", Endpoint::AclRules),
    put("/v1/acl/binding-rule", Endpoint::AclRule),
    of_methods("/v1/acl/binding-rule/", GET_PUT_DELETE, Endpoint::AclRule),
    get("/v1/acl/templated-policies", Endpoint::AclTemplates),
    get("/v1/acl/templated-policy/name/", Endpoint::AclTemplateName),
    of_methods("/v1/acl/templated-policy/preview/", &["POST", "PUT"], Endpoint::AclTemplatePreview),
    of_methods("/v1/internal/acl/authorize", &["POST", "PUT"], Endpoint::AclAuthorize),
];

/// Consul's other endpoints, and what to use instead.
pub const NOT_OFFERED: &[(&str, &str)] = &[
    ("/v1/acl/oidc/", "log in by a token of the provider: a method of type \"jwt\""),
    ("/v1/agent/connect/proxy/", "sidecars take their configuration from the server by xDS"),
    ("/v1/exported-services", "weft has no partitions and no peers"),
    ("/v1/imported-services", "weft has no partitions and no peers"),
    ("/v1/internal/", "it is for Consul's own UI; see `weft status` and `weft top`"),
    ("/v1/namespace", "namespaces are Kubernetes-style objects; use ?ns= with their names"),
    ("/v1/operator/license", "weft has no licence keys"),
    ("/v1/operator/utilization", "weft has no licence keys"),
    ("/v1/operator/", "weft keeps no Raft of its own"),
    ("/v1/partition", "weft has no partitions besides \"default\""),
    ("/v1/peering", "weft has no peering of clusters"),
];

/// The access lists of Consul before 1.4.
const LEGACY_ACL: &[&str] = &[
    "/v1/acl/create",
    "/v1/acl/update",
    "/v1/acl/destroy/",
    "/v1/acl/info/",
    "/v1/acl/clone/",
    "/v1/acl/list",
    "/v1/acl/rules/translate",
];

/// The endpoint and its argument, decoded.
///
/// # Errors
/// 404, 405 with `Allow`, 501 for what is Consul's but not offered.
pub fn find(method: &Method, path: &str) -> Result<(Endpoint, String), Refusal> {
    if path == "/" && (method == Method::GET || method == Method::HEAD) {
        return Ok((Endpoint::Root, String::new()));
    }
    let route = of(path).map_err(|unknown| moved(path).unwrap_or(unknown))?;
    if !route.methods.contains(&method.as_str()) {
        let text = format!("method {method} not allowed");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refusal { allow: Some(list(route)), ..Refusal::new(status, text) });
    }
    let argument = path.get(route.path.len()..).unwrap_or_default();
    Ok((route.endpoint, decode(argument, false)?))
}

/// The methods that a path takes, as `Allow` lists them.
///
/// # Errors
/// As [`find`].
pub fn allowed(path: &str) -> Result<String, Refusal> {
    of(path).map(list)
}

/// Whether an endpoint is answered the same to everybody, whatever token they show.
pub fn is_open(endpoint: Endpoint) -> bool {
    use Endpoint as E;
    matches!(endpoint, E::Root | E::StatusLeader | E::StatusPeers | E::CatalogDatacenters)
}

/// The largest body that an endpoint reads.
pub fn body_bytes_max(endpoint: Endpoint) -> usize {
    match endpoint {
        Endpoint::Snapshot => SNAPSHOT_BYTES_MAX,
        _ => DOOR_BODY_BYTES_MAX,
    }
}

fn of(path: &str) -> Result<&'static Route, Refusal> {
    let fits = |route: &&Route| match route.path.ends_with('/') {
        true => path.starts_with(route.path),
        false => path.strip_suffix('/').unwrap_or(path) == route.path,
    };
    let best = ROUTES.iter().filter(fits).max_by_key(|route| route.path.len());
    best.ok_or_else(|| unknown(path))
}

/// As Go's server answers a path that it has not, but for its last slash: it is the one with it.
fn moved(path: &str) -> Option<Refusal> {
    let slashed = |route: &Route| route.path.strip_suffix('/') == Some(path);
    ROUTES.iter().any(slashed).then(|| {
        let to = format!("{path}/");
        let text = format!("Moved Permanently: it is {to}");
        Refusal { to: Some(to), ..Refusal::new(StatusCode::MOVED_PERMANENTLY, text) }
    })
}

fn list(route: &Route) -> String {
    format!("{},OPTIONS", route.methods.join(","))
}

fn unknown(path: &str) -> Refusal {
    if LEGACY_ACL.iter().any(|known| path.starts_with(known)) {
        let text = "Endpoint is gone: the legacy ACL system was removed in Consul 1.11; use \
                    /v1/acl/token and /v1/acl/policy";
        return Refusal::new(StatusCode::GONE, text);
    }
    match NOT_OFFERED.iter().find(|(known, _)| path.starts_with(known)) {
        Some((_, instead)) => {
            Refusal::not_offered(format!("weft does not offer Consul's {path}: {instead}"))
        }
        None => Refusal::not_found("Invalid URL path: not a recognized HTTP API endpoint"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_wins_and_arguments_are_decoded() {
        let find = |m: Method, p: &str| find(&m, p).map_err(|r| r.status.as_u16());
        assert_eq!(
            find(Method::PUT, "/v1/agent/service/register"),
            Ok((Endpoint::ServiceRegister, String::new()))
        );
        assert_eq!(
            find(Method::GET, "/v1/agent/service/a%23b%3Ac%2Fd"),
            Ok((Endpoint::AgentService, "a#b:c/d".into()))
        );
        assert_eq!(
            find(Method::GET, "/v1/health/service/web"),
            Ok((Endpoint::HealthService, "web".into()))
        );
        assert_eq!(find(Method::GET, "/v1/agent/check/pass/x"), Err(405));
        assert_eq!(find(Method::POST, "/v1/catalog/nodes"), Err(405));
        assert_eq!(find(Method::GET, "/v1/acl/list"), Err(410));
        assert_eq!(find(Method::GET, "/v1/peering/a"), Err(501));
        assert_eq!(find(Method::DELETE, "/v1/kv/a//b"), Ok((Endpoint::Kv, "a//b".into())));
        assert_eq!(find(Method::GET, "/v1/nope"), Err(404));
        assert_eq!(find(Method::GET, "/"), Ok((Endpoint::Root, String::new())));
        assert_eq!(find(Method::GET, "/v1/kv"), Err(301));
        assert_eq!(find(Method::PUT, "/v1/config"), Ok((Endpoint::Config, String::new())));
        assert_eq!(find(Method::GET, "/v1/config"), Err(405), "it is there as it is");
    }

    #[test]
    fn no_path_is_listed_twice() {
        let mut paths: Vec<&str> = ROUTES.iter().map(|r| r.path).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }
}
