// SPDX-License-Identifier: Apache-2.0
//! The committed bundles, and what their compact form keeps.

use super::*;
use crate::kind::KINDS;

fn at<'a>(schema: &'a Schema, path: &[&str]) -> &'a Schema {
    path.iter().fold(schema, |s, name| match (&s.shape, *name) {
        (Shape::List(l), "*") => &l.items,
        (_, name) => s.field(name).unwrap_or_else(|| panic!("no {name} on the way of {path:?}")),
    })
}

#[test]
fn every_served_version_of_every_kind_has_a_schema() {
    for row in KINDS {
        for version in row.versions {
            let schema = of(row.id, version);
            let object = schema.object().unwrap_or_else(|| panic!("{} has no fields", row.kind));
            assert!(object.named("metadata").is_some(), "{} {version}", row.kind);
            assert!(object.fields.len() > 3, "{} {version}: {:?}", row.kind, object.fields.len());
            assert!(at(&schema, &["metadata", "labels"]).object().unwrap().values.is_some());
        }
    }
}

#[test]
fn deployments_merge_as_kubernetes_merges() {
    let deployment = stored(KindId::Deployment);
    let containers = at(&deployment, &["spec", "template", "spec", "containers"]);
    let Shape::List(list) = &containers.shape else { panic!("{containers:?}") };
    assert_eq!(list.patch, PatchMerge::By("name".into()));
    assert_eq!(list.kind, ListKind::Map(["name".into()].into()));
    let ports = at(&list.items, &["ports"]);
    let Shape::List(ports) = &ports.shape else { panic!("{ports:?}") };
    assert_eq!(ports.kind, ListKind::Map(["containerPort".into(), "protocol".into()].into()));
    assert_eq!(at(&ports.items, &["protocol"]).default, Some("TCP".into()));
    assert!(matches!(at(&list.items, &["resources", "limits", "cpu"]).shape, Shape::Quantity));
    let strategy = at(&deployment, &["spec", "strategy"]);
    assert!(strategy.object().unwrap().retain_keys);
    let target = at(&stored(KindId::Service), &["spec", "ports", "*", "targetPort"]).shape.is_int();
    assert!(target);
}

#[test]
fn gateway_defaults_and_rules_are_kept() {
    let route = stored(KindId::HttpRoute);
    let matches = at(&route, &["spec", "rules", "*", "matches", "*", "path"]);
    assert_eq!(at(matches, &["type"]).default, Some("PathPrefix".into()));
    assert!(matches.rules.as_ref().unwrap().cel.len() > 5);
    let kind = at(&route, &["spec", "parentRefs", "*", "kind"]);
    assert_eq!(kind.default, Some("Gateway".into()));
    let group = at(&route, &["spec", "rules", "*", "backendRefs", "*", "group"]);
    assert_eq!(group.default, Some("".into()));
    let port = at(&stored(KindId::Service), &["spec", "ports", "*", "port"]).default.clone();
    assert_eq!(port, None);
}

#[test]
fn components_are_shared_not_copied() {
    let meta = component(bundle::OBJECT_META);
    for kind in [KindId::Pod, KindId::Deployment, KindId::HttpRoute] {
        let own = stored(kind).field("metadata").unwrap().clone();
        assert!(Arc::ptr_eq(&own, &meta), "{kind}");
    }
}

impl Shape {
    fn is_int(&self) -> bool {
        matches!(self, Self::IntOrString(_))
    }
}
