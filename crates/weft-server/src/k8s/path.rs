// SPDX-License-Identifier: Apache-2.0
//! What a URL below `/api` and `/apis` names.

use weft_kinds::kind::{KINDS, KindId};

use super::definitions;
use super::metrics::{self, Figures};

/// A resource, or a place of discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `/api`
    Core,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources {
        group: String,
        version: String,
    },
    Objects(Objects),
    /// `…/selfsubjectaccessreviews` and their like, which are asked and not stored.
    Review {
        group: String,
        kind: &'static str,
    },
    /// `/apis/metrics.k8s.io/…`, which are measured and not stored.
    Figures(Figures),
    /// `…/customresourcedefinitions`, which are built in.
    Definitions {
        name: Option<String>,
    },
}

/// A collection, an object or a subresource of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objects {
    pub(super) kind: KindId,
    pub(super) version: &'static str,
    /// Absent for cluster-scoped kinds and for lists over all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) sub: Option<String>,
}

/// Kinds that are answered and not stored: group, version, plural, kind.
pub(super) const REVIEWS: &[(&str, &str, &str, &str)] = &[
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview"),
];

/// Reads a decoded path; `None` when it names nothing served.
pub(super) fn parse(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version) = match parts.as_slice() {
        ["api"] => return Some(Target::Core),
        ["apis"] => return Some(Target::Groups),
        ["apis", group] => return Some(Target::Group((*group).to_owned())),
        ["api", version, ..] => (String::new(), (*version).to_owned()),
        ["apis", group, version, ..] => ((*group).to_owned(), (*version).to_owned()),
        _ => return None,
    };
    let rest = parts.split_off(if group.is_empty() { 2 } else { 3 });
    if rest.is_empty() {
        return Some(Target::Resources { group, version });
    }
    if let [plural] = rest.as_slice()
        && let Some(review) =
            REVIEWS.iter().find(|r| r.0 == group && r.1 == version && r.2 == *plural)
    {
        return Some(Target::Review { group, kind: review.3 });
    }
    if (group.as_str(), version.as_str()) == (metrics::GROUP, metrics::VERSION) {
        return Figures::parse(&rest).map(Target::Figures);
    }
    if (group.as_str(), version.as_str()) == (definitions::GROUP, "v1") {
        return match rest.as_slice() {
            [definitions::PLURAL] => Some(Target::Definitions { name: None }),
            [definitions::PLURAL, name] | [definitions::PLURAL, name, "status"] => {
                Some(Target::Definitions { name: Some((*name).to_owned()) })
            }
            _ => None,
        };
    }
    objects(&group, &version, &rest).map(Target::Objects)
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Option<Objects> {
    let (namespace, rest) = match rest {
        // `namespaces/x/status` is a subresource; `namespaces/x/pods` a collection.
        ["namespaces", ns, plural, ..] if !matches!(*plural, "status" | "finalize") => {
            (Some((*ns).to_owned()), rest.get(2..)?)
        }
        all => (None, all),
    };
    let (plural, name, sub) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, sub] => (*plural, Some(*name), Some(*sub)),
        _ => return None,
    };
    let row = KINDS.iter().find(|k| k.group == group && k.plural == plural)?;
    let version = row.versions.iter().find(|v| **v == version)?;
    if namespace.is_some() != row.namespaced && (namespace.is_some() || name.is_some()) {
        return None;
    }
    Some(Objects {
        kind: row.id,
        version,
        namespace,
        name: name.map(str::to_owned),
        sub: sub.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> Option<Objects> {
        match parse(path)? {
            Target::Objects(o) => Some(o),
            _ => None,
        }
    }

    #[test]
    fn paths_name_kinds_objects_and_subresources() {
        let all = objects("/api/v1/services").unwrap();
        assert_eq!((all.kind, all.namespace, all.name), (KindId::Service, None, None));
        let one = objects("/apis/apps/v1/namespaces/shop/deployments/user/scale").unwrap();
        assert_eq!(one.kind, KindId::Deployment);
        assert_eq!(one.namespace.as_deref(), Some("shop"));
        assert_eq!((one.name.as_deref(), one.sub.as_deref()), (Some("user"), Some("scale")));
        let ns = objects("/api/v1/namespaces/shop").unwrap();
        assert_eq!((ns.kind, ns.name.as_deref()), (KindId::Namespace, Some("shop")));
        let status = objects("/api/v1/namespaces/shop/status").unwrap();
        assert_eq!((status.kind, status.sub.as_deref()), (KindId::Namespace, Some("status")));
        assert_eq!(
            objects("/apis/networking.istio.io/v1alpha3/gateways").unwrap().version,
            "v1alpha3"
        );
    }

    #[test]
    fn what_is_not_served_is_nothing() {
        for path in [
            "/api/v2/services",
            "/api/v1/unicorns",
            "/api/v1/services/web",
            "/api/v1/namespaces/a/namespaces/b",
            "/apis/apps/v1/namespaces/a/deployments/b/c/d",
            "/other",
        ] {
            assert_eq!(objects(path), None, "{path}");
        }
        assert_eq!(
            parse("/api/v1").unwrap(),
            Target::Resources { group: String::new(), version: "v1".into() }
        );
    }
}
