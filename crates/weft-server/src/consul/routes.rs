// SPDX-License-Identifier: Apache-2.0
//! The table of endpoints: what is served, by which method, and what is known but not served.
//! The longest path that fits wins. A path that ends in `/` takes the rest as its argument.

use super::error::Refusal;
use super::params::decode;
use http::{Method, StatusCode};

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
];

/// Consul's other endpoints, which weft does not serve yet.
pub const UNSERVED: &[&str] = &[
    "/v1/agent/connect/",
    "/v1/agent/force-leave/",
    "/v1/agent/join/",
    "/v1/agent/leave",
    "/v1/agent/metrics",
    "/v1/agent/monitor",
    "/v1/agent/reload",
    "/v1/agent/token/",
    "/v1/catalog/gateway-services/",
    "/v1/config",
    "/v1/connect/",
    "/v1/coordinate/",
    "/v1/discovery-chain/",
    "/v1/event/",
    "/v1/exported-services",
    "/v1/internal/",
    "/v1/kv/",
    "/v1/operator/",
    "/v1/peering",
    "/v1/query",
    "/v1/session/",
    "/v1/snapshot",
    "/v1/txn",
];

/// The endpoint and its argument, decoded.
///
/// # Errors
/// 404, 405 with `Allow`, 501 for what is Consul's but not served, 401 for ACLs.
pub fn find(method: &Method, path: &str) -> Result<(Endpoint, String), Refusal> {
    if path == "/" && (method == Method::GET || method == Method::HEAD) {
        return Ok((Endpoint::Root, String::new()));
    }
    let fits = |route: &&Route| match route.path.ends_with('/') {
        true => path.starts_with(route.path),
        false => path.strip_suffix('/').unwrap_or(path) == route.path,
    };
    let Some(route) = ROUTES.iter().filter(fits).max_by_key(|route| route.path.len()) else {
        return Err(unknown(path));
    };
    if !route.methods.contains(&method.as_str()) {
        let text = format!("method {method} not allowed");
        let allow = match route.methods {
            ["PUT"] => "PUT,OPTIONS",
            _ => "GET,HEAD,OPTIONS",
        };
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return Err(Refusal { allow: Some(allow), ..Refusal::new(status, text) });
    }
    let argument = path.get(route.path.len()..).unwrap_or_default();
    Ok((route.endpoint, decode(argument, false)))
}

fn unknown(path: &str) -> Refusal {
    if path.starts_with("/v1/acl/") {
        return Refusal::new(StatusCode::UNAUTHORIZED, "ACL support disabled");
    }
    if UNSERVED.iter().any(|known| path.starts_with(known)) {
        return Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "weft does not serve Consul's {path} yet; it serves agent, catalog, health and \
                 status (weft help clients)"
            ),
        );
    }
    Refusal::not_found("Invalid URL path: not a recognized HTTP API endpoint")
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
        assert_eq!(find(Method::GET, "/v1/acl/list"), Err(401));
        assert_eq!(find(Method::GET, "/v1/kv/a"), Err(501));
        assert_eq!(find(Method::GET, "/v1/nope"), Err(404));
        assert_eq!(find(Method::GET, "/"), Ok((Endpoint::Root, String::new())));
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
