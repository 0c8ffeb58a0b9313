// SPDX-License-Identifier: Apache-2.0
//! GRPCRoute, read as the HTTPRoute that it means: a gRPC call is a POST to `/service/method`.
//! Everything else has one form in both, so that the compiler knows one kind of route.

use std::sync::Arc;

use serde::Deserialize;

use super::gateway::{
    HttpBackendRef, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, HttpRouteSpec,
    NamedValue, ParentRef, SessionPersistence, TypedValue,
};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcRoute {
    pub spec: GrpcRouteSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<GrpcRouteRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteRule {
    pub name: Arc<str>,
    pub matches: Vec<GrpcRouteMatch>,
    pub filters: Vec<HttpRouteFilter>,
    pub backend_refs: Vec<HttpBackendRef>,
    pub session_persistence: Option<SessionPersistence>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcRouteMatch {
    pub method: Option<GrpcMethodMatch>,
    pub headers: Vec<NamedValue>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcMethodMatch {
    /// `Exact` (or absent) or `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<Arc<str>>,
    pub service: Option<Arc<str>>,
    pub method: Option<Arc<str>>,
}

// === impl GrpcRoute ===

impl From<GrpcRoute> for HttpRoute {
    fn from(route: GrpcRoute) -> Self {
        let GrpcRouteSpec { parent_refs, hostnames, rules } = route.spec;
        let rules = rules.into_iter().map(HttpRouteRule::from).collect();
        Self { spec: HttpRouteSpec { parent_refs, hostnames, rules } }
    }
}

impl From<GrpcRouteRule> for HttpRouteRule {
    fn from(rule: GrpcRouteRule) -> Self {
        let GrpcRouteRule { name, matches, filters, backend_refs, session_persistence } = rule;
        let matches = matches.into_iter().map(HttpRouteMatch::from).collect();
        Self { name, matches, filters, backend_refs, session_persistence, ..Self::default() }
    }
}

impl From<GrpcRouteMatch> for HttpRouteMatch {
    fn from(m: GrpcRouteMatch) -> Self {
        let path = m.method.as_ref().and_then(GrpcMethodMatch::path);
        Self { path, headers: m.headers, ..Self::default() }
    }
}

impl GrpcMethodMatch {
    /// The path that such a call has; `None` takes every call.
    fn path(&self) -> Option<TypedValue> {
        let given = |text: &Option<Arc<str>>| text.clone().filter(|t| !t.is_empty());
        let (service, method) = (given(&self.service), given(&self.method));
        let regex = match self.kind.as_deref() {
            None | Some("Exact") => false,
            Some("RegularExpression") => true,
            // A word of a later version stays what it is, and the compiler says so.
            Some(other) => return Some(typed(other, String::new())),
        };
        Some(match (regex, service, method) {
            (_, None, None) => return None,
            (false, Some(service), Some(method)) => typed("Exact", format!("/{service}/{method}")),
            (false, Some(service), None) => typed("PathPrefix", format!("/{service}")),
            (false, None, Some(method)) => {
                typed("RegularExpression", format!("/[^/]+/{}", literal(&method)))
            }
            (true, service, method) => {
                let any = || Arc::from("[^/]+");
                let (service, method) = (service.unwrap_or_else(any), method.unwrap_or_else(any));
                typed("RegularExpression", format!("/(?:{service})/(?:{method})"))
            }
        })
    }
}

fn typed(kind: &str, value: String) -> TypedValue {
    TypedValue { kind: Some(kind.into()), value: Some(value.into()) }
}

/// A method's name with nothing in it that a regular expression reads otherwise.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_alphanumeric() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_is_the_path_that_it_has() {
        for (m, want) in [
            (json!({"service": "a.B", "method": "C"}), Some(("Exact", "/a.B/C"))),
            (json!({"service": "a.B"}), Some(("PathPrefix", "/a.B"))),
            (json!({"method": "C"}), Some(("RegularExpression", "/[^/]+/C"))),
            (
                json!({"type": "RegularExpression", "service": "a\\..*", "method": "Get|Put"}),
                Some(("RegularExpression", "/(?:a\\..*)/(?:Get|Put)")),
            ),
            (json!({}), None),
            (json!({"service": ""}), None),
        ] {
            let method: GrpcMethodMatch = serde_json::from_value(m.clone()).unwrap();
            let want = want.map(|(kind, value)| typed(kind, value.to_owned()));
            assert_eq!(method.path(), want, "{m}");
        }
    }
}
