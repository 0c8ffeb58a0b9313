// SPDX-License-Identifier: Apache-2.0
//! What is served, in the three forms that clients ask for: aggregated discovery v2 (kubectl from
//! 1.30), v2beta1 (1.27), and the lists of groups and resources (dynamic clients). All of it
//! derives from `KINDS`.

use serde_json::{Value, json};
use weft_kinds::kind::{KINDS, Kind, Subresource};

use super::path::REVIEWS;
use super::status::ApiError;
use super::{definitions, metrics};
use crate::json::Fields;

const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const DEFINITION_VERBS: &[&str] = &["get", "list", "patch", "update"];
const SUBRESOURCE_VERBS: &[&str] = &["get", "patch", "update"];

/// Which form of discovery a client accepts best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    V2,
    V2Beta1,
    Legacy,
}

// === impl Form ===

impl Form {
    pub(super) fn of(accept: &str) -> Self {
        for part in accept.split(',') {
            let part: String = part.chars().filter(|c| !c.is_whitespace()).collect();
            if part.contains("as=APIGroupDiscoveryList") && part.starts_with("application/json") {
                if part.contains("v=v2;") || part.ends_with("v=v2") {
                    return Self::V2;
                }
                if part.contains("v=v2beta1") {
                    return Self::V2Beta1;
                }
            } else if part.starts_with("application/json") || part.starts_with("*/*") {
                return Self::Legacy;
            }
        }
        Self::Legacy
    }

    fn version(self) -> &'static str {
        if self == Self::V2Beta1 { "v2beta1" } else { "v2" }
    }

    /// The answer's media type: clients read the form from it.
    pub(super) fn content_type(self) -> String {
        match self {
            Self::Legacy => "application/json".to_owned(),
            form => format!(
                "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList",
                form.version()
            ),
        }
    }
}

/// `/api`
pub(super) fn core(form: Form) -> Value {
    if form != Form::Legacy {
        return aggregated(form, |group| group.is_empty());
    }
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/apis`
pub(super) fn groups(form: Form) -> Value {
    if form != Form::Legacy {
        return aggregated(form, |group| !group.is_empty());
    }
    let groups: Vec<Value> = all_groups().into_iter().filter(|g| !g.is_empty()).map(one).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`
pub(super) fn group(name: &str) -> Result<Value, ApiError> {
    if !all_groups().contains(&name) || name.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut out = one(name);
    out.put("kind", "APIGroup");
    out.put("apiVersion", "v1");
    Ok(out)
}

/// `/api/v1` and `/apis/<group>/<version>`
pub(super) fn resources(group: &str, version: &str) -> Result<Value, ApiError> {
    let mut list = Vec::new();
    for row in KINDS.iter().filter(|k| k.group == group && k.versions.contains(&version)) {
        let mut own = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
            "kind": row.kind, "verbs": VERBS,
        });
        if !row.short_names.is_empty() {
            own.put("shortNames", json!(row.short_names));
        }
        if !row.categories.is_empty() {
            own.put("categories", json!(row.categories));
        }
        list.push(own);
        for (sub, (g, v, kind), verbs) in subresources(row, version) {
            let mut own = json!({
                "name": format!("{}/{sub}", row.plural), "singularName": "",
                "namespaced": row.namespaced, "kind": kind, "verbs": verbs,
            });
            if (g, v) != (row.group, version) {
                own.put("group", g);
                own.put("version", v);
            }
            list.push(own);
        }
    }
    for (_, _, plural, kind) in REVIEWS.iter().filter(|r| r.0 == group && r.1 == version) {
        list.push(json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": false,
            "kind": kind, "verbs": ["create"]}));
    }
    if (group, version) == (definitions::GROUP, "v1") {
        list.push(json!({"name": definitions::PLURAL, "singularName": "customresourcedefinition",
            "namespaced": false, "kind": "CustomResourceDefinition", "verbs": DEFINITION_VERBS,
            "shortNames": ["crd", "crds"]}));
    }
    if (group, version) == (metrics::GROUP, metrics::VERSION) {
        list.extend(metrics::RESOURCES.iter().map(|(plural, kind, namespaced)| {
            json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind,
                "verbs": metrics::VERBS})
        }));
    }
    if list.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let api = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api,
        "resources": list}))
}

/// Groups in the table's order.
fn all_groups() -> Vec<&'static str> {
    let mut out = Vec::new();
    let answered = REVIEWS.iter().map(|r| r.0).chain([definitions::GROUP, metrics::GROUP]);
    for group in KINDS.iter().map(|k| k.group).chain(answered) {
        if !out.contains(&group) {
            out.push(group);
        }
    }
    out
}

/// A group's versions, the preferred one first.
fn versions(group: &str) -> Vec<&'static str> {
    let mut out = Vec::new();
    let kinds = KINDS.iter().filter(|k| k.group == group).flat_map(|k| k.versions.iter().copied());
    let others = [(definitions::GROUP, "v1"), (metrics::GROUP, metrics::VERSION)];
    let answered = REVIEWS.iter().map(|r| (r.0, r.1)).chain(others);
    for version in kinds.chain(answered.filter(|(g, _)| *g == group).map(|(_, v)| v)) {
        if !out.contains(&version) {
            out.push(version);
        }
    }
    out
}

fn one(group: &str) -> Value {
    let entry = |v: &&str| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    let versions: Vec<Value> = versions(group).iter().map(entry).collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

fn aggregated(form: Form, wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = all_groups()
        .into_iter()
        .filter(|g| wanted(g))
        .map(|group| {
            let versions: Vec<Value> = versions(group)
                .into_iter()
                .map(|version| {
                    json!({"version": version, "freshness": "Current",
                        "resources": aggregated_resources(group, version)})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for row in KINDS.iter().filter(|k| k.group == group && k.versions.contains(&version)) {
        let subs: Vec<Value> = subresources(row, version)
            .into_iter()
            .map(|(sub, (g, v, kind), verbs)| {
                json!({"subresource": sub, "verbs": verbs,
                    "responseKind": {"group": g, "version": v, "kind": kind}})
            })
            .collect();
        let mut own = json!({
            "resource": row.plural, "singularResource": row.singular, "verbs": VERBS,
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "responseKind": {"group": group, "version": version, "kind": row.kind},
        });
        if !row.short_names.is_empty() {
            own.put("shortNames", json!(row.short_names));
        }
        if !row.categories.is_empty() {
            own.put("categories", json!(row.categories));
        }
        if !subs.is_empty() {
            own.put("subresources", Value::Array(subs));
        }
        out.push(own);
    }
    if (group, version) == (definitions::GROUP, "v1") {
        out.push(json!({
            "resource": definitions::PLURAL, "singularResource": "customresourcedefinition",
            "scope": "Cluster", "verbs": DEFINITION_VERBS, "shortNames": ["crd", "crds"],
            "responseKind": {"group": group, "version": version,
                "kind": "CustomResourceDefinition"},
        }));
    }
    if (group, version) == (metrics::GROUP, metrics::VERSION) {
        out.extend(metrics::RESOURCES.iter().map(|(plural, kind, namespaced)| {
            json!({"resource": plural, "singularResource": "", "verbs": metrics::VERBS,
                "scope": if *namespaced { "Namespaced" } else { "Cluster" },
                "responseKind": {"group": group, "version": version, "kind": kind}})
        }));
    }
    for (_, _, plural, kind) in REVIEWS.iter().filter(|r| r.0 == group && r.1 == version) {
        out.push(json!({
            "resource": plural, "singularResource": kind.to_lowercase(), "scope": "Cluster",
            "verbs": ["create"],
            "responseKind": {"group": group, "version": version, "kind": kind},
        }));
    }
    out
}

type Gvk = (&'static str, &'static str, &'static str);

/// A subresource's name, the kind it speaks and its verbs.
type Sub<'a> = (&'static str, (&'a str, &'a str, &'static str), &'static [&'static str]);

/// A kind's subresources.
fn subresources<'a>(row: &Kind, version: &'a str) -> Vec<Sub<'a>> {
    const SCALE: Gvk = ("autoscaling", "v1", "Scale");
    const EVICTION: Gvk = ("policy", "v1", "Eviction");
    let group = row.group;
    row.subresources
        .iter()
        .map(|sub| match sub {
            Subresource::Status => ("status", (group, version, row.kind), SUBRESOURCE_VERBS),
            Subresource::Scale => ("scale", SCALE, SUBRESOURCE_VERBS),
            Subresource::Eviction => ("eviction", EVICTION, &["create"][..]),
            Subresource::Log => ("log", (group, version, row.kind), &["get"][..]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_form_it_asked_for() {
        let kubectl_132 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
             application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
             application/json";
        assert_eq!(Form::of(kubectl_132), Form::V2);
        let kubectl_127 = "application/json;g=apidiscovery.k8s.io;v=v2beta1;\
             as=APIGroupDiscoveryList,application/json";
        assert_eq!(Form::of(kubectl_127), Form::V2Beta1);
        assert_eq!(Form::of("application/json"), Form::Legacy);
        assert_eq!(Form::of(""), Form::Legacy);
    }

    #[test]
    fn every_kind_is_discovered_in_every_form() {
        let core = core(Form::V2);
        let services = &core["items"][0]["versions"][0]["resources"][1];
        assert_eq!(services["resource"], "services");
        assert_eq!(services["shortNames"], json!(["svc"]));
        assert_eq!(services["categories"], json!(["all"]));
        for row in KINDS {
            for version in row.versions {
                let list = resources(row.group, version).unwrap();
                let names = list["resources"].as_array().unwrap();
                assert!(names.iter().any(|r| r["name"] == row.plural), "{}", row.kind);
            }
        }
        let apps = resources("apps", "v1").unwrap();
        let scale =
            apps["resources"].as_array().unwrap().iter().find(|r| r["name"] == "deployments/scale");
        assert_eq!(scale.unwrap()["group"], "autoscaling");
        assert!(resources("apps", "v2").is_err() && group("nope").is_err());
    }
}
