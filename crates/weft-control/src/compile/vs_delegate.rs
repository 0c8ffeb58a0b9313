// SPDX-License-Identifier: Apache-2.0
//! Route delegation: a rule of one VirtualService hands what it matches to the rules of another,
//! which another team owns. As Istio does it: one level, the delegate has no hosts and no
//! gateways, its matches lie within the root's, and what it does not say the root says.

use std::sync::Arc;

use weft_kinds::views::View;
use weft_kinds::views::istio::{self, Delegate, HttpMatch, HttpRoute, VirtualService};
use weft_kinds::world::{KindId, Object};
use weft_model::value;

use super::{Reader, names};

/// The VirtualService that a rule of `root` delegates to.
///
/// # Errors
/// Why it cannot be followed.
pub(super) fn find<'w>(
    reader: &Reader<'w>,
    root: &Object,
    to: &Delegate,
) -> Result<(&'w Object, &'w VirtualService), String> {
    let own = &*root.key.namespace;
    let ns = if to.namespace.is_empty() { own } else { &*to.namespace };
    let name = format!("VirtualService {ns}/{}", to.name);
    let missing = || format!("there is no {name}");
    let object = reader.object(KindId::VirtualService, ns, &to.name).ok_or_else(missing)?;
    let View::VirtualService(vs) = &object.view else { return Err(format!("{name} is not valid")) };
    if !is_delegate(vs) {
        return Err(format!("{name} has hosts or gateways of its own, so it is no delegate"));
    }
    let export = names::exported(vs.spec.export_to.iter().map(|s| &**s), &object.key.namespace);
    if export.is_some_and(|to| !to.contains(own)) {
        return Err(format!("{name} is not exported to namespace {own}; see its exportTo"));
    }
    if vs.spec.http.iter().any(|r| r.delegate.is_some()) {
        return Err(format!("{name} delegates too; only one level is followed"));
    }
    Ok((object, vs))
}

/// Whether a VirtualService is only there for others to delegate to.
pub(super) fn is_delegate(vs: &VirtualService) -> bool {
    vs.spec.hosts.is_empty() && vs.spec.gateways.is_empty()
}

/// Those that delegate to an object, by name.
pub(super) fn roots_of(reader: &Reader<'_>, object: &Object) -> Vec<String> {
    let key = &object.key;
    let names =
        |root: &Object| match &root.view {
            View::VirtualService(vs) => vs.spec.http.iter().any(|r| {
                let to = r.delegate.as_ref().filter(|to| to.name == key.name);
                let ns = to.map(|to| {
                    if to.namespace.is_empty() { &root.key.namespace } else { &to.namespace }
                });
                ns == Some(&key.namespace)
            }),
            _ => false,
        };
    let all = reader.kind(KindId::VirtualService, None);
    all.iter().filter(|o| names(o)).map(|o| o.key.to_string()).collect()
}

/// A delegate's rule as the root sees it; `None` when it matches nothing that the root's does.
pub(super) fn merge(root: &HttpRoute, leaf: &HttpRoute) -> Option<HttpRoute> {
    let matches = match (root.matches.as_slice(), leaf.matches.as_slice()) {
        (root, []) => root.to_vec(),
        ([], leaf) => leaf.to_vec(),
        (root, leaf) => {
            let each = leaf.iter().flat_map(|l| root.iter().map(move |r| (r, l)));
            let within: Vec<_> = each.filter_map(|(r, l)| merge_match(r, l)).collect();
            if within.is_empty() {
                return None;
            }
            within
        }
    };
    let out = leaf.clone();
    let r = root.clone();
    let copies = out.mirror.is_some() || !out.mirrors.is_empty();
    Some(HttpRoute {
        // A delegate's own name stays: its annotations speak of its rules by it.
        name: if out.name.is_empty() { r.name } else { out.name },
        matches,
        rewrite: out.rewrite.or(r.rewrite),
        direct_response: out.direct_response.or(r.direct_response),
        timeout: out.timeout.or(r.timeout),
        retries: out.retries.or(r.retries),
        fault: out.fault.or(r.fault),
        mirror: if copies { out.mirror } else { r.mirror },
        mirror_percentage: if copies { out.mirror_percentage } else { r.mirror_percentage },
        mirror_percent: if copies { out.mirror_percent } else { r.mirror_percent },
        mirrors: if copies { out.mirrors } else { r.mirrors },
        cors_policy: out.cors_policy.or(r.cors_policy),
        headers: out.headers.or(r.headers),
        ..out
    })
}

/// What a delegate's rule has from the root: values, and the root's fields.
pub(super) fn inherited(
    root: &HttpRoute,
    leaf: &HttpRoute,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    let copies = |r: &HttpRoute| r.mirror.is_some() || !r.mirrors.is_empty();
    let of = |r: &HttpRoute| {
        [
            (value::REWRITE, "rewrite", r.rewrite.is_some()),
            (value::REQUEST_TIMEOUT, "timeout", r.timeout.is_some()),
            (value::RETRIES, "retries", r.retries.is_some()),
            (value::TRY_TIMEOUT, "retries", r.retries.is_some()),
            (value::FAULT, "fault", r.fault.is_some()),
            (value::COPIES, "mirrors", copies(r)),
            (value::CORS, "corsPolicy", r.cors_policy.is_some()),
            (value::REQUEST_HEADERS, "headers.request", r.headers.is_some()),
            (value::RESPONSE_HEADERS, "headers.response", r.headers.is_some()),
        ]
    };
    let each = of(root).into_iter().zip(of(leaf));
    each.filter(|((.., root), (.., leaf))| *root && !leaf)
        .map(|((value, field, _), _)| (value, field))
}

/// Both matches at once; `None` when the delegate's reaches outside of the root's.
fn merge_match(root: &HttpMatch, leaf: &HttpMatch) -> Option<HttpMatch> {
    let both_uris = root.uri.is_some() && leaf.uri.is_some();
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let fits = texts.iter().all(|(r, l)| within(r.as_ref(), l.as_ref()))
        && maps.iter().all(|(r, l)| r.iter().all(|(k, v)| l.get(k).is_none_or(|w| w == v)))
        && !(both_uris && root.ignore_uri_case != leaf.ignore_uri_case)
        && agree(root.port.as_ref(), leaf.port.as_ref())
        && agree(root.source_namespace.as_ref(), leaf.source_namespace.as_ref())
        && root.source_labels.iter().all(|(k, v)| agree(Some(v), leaf.source_labels.get(k)))
        && (root.gateways.is_empty() || leaf.gateways.iter().all(|g| root.gateways.contains(g)));
    if !fits {
        return None;
    }
    let mut out = leaf.clone();
    if out.uri.is_none() {
        out.uri = root.uri.clone();
        out.ignore_uri_case = root.ignore_uri_case;
    }
    out.scheme = out.scheme.or_else(|| root.scheme.clone());
    out.method = out.method.or_else(|| root.method.clone());
    out.authority = out.authority.or_else(|| root.authority.clone());
    out.port = out.port.or(root.port);
    out.source_namespace = out.source_namespace.or_else(|| root.source_namespace.clone());
    out.headers.extend(root.headers.clone());
    out.without_headers.extend(root.without_headers.clone());
    out.query_params.extend(root.query_params.clone());
    out.source_labels.extend(root.source_labels.clone());
    if out.gateways.is_empty() {
        out.gateways = root.gateways.clone();
    }
    Some(out)
}

fn agree<T: PartialEq>(root: Option<&T>, leaf: Option<&T>) -> bool {
    root.is_none() || leaf.is_none() || root == leaf
}

/// Whether all that the delegate's text takes the root's takes too. Of expressions nobody can say.
fn within(root: Option<&istio::StringMatch>, leaf: Option<&istio::StringMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else { return true };
    let begins = |text: &Arc<str>, prefix: &Arc<str>| text.starts_with(&**prefix);
    match (&root.exact, &root.prefix, &leaf.exact, &leaf.prefix) {
        _ if root.regex.is_some() || leaf.regex.is_some() => root == leaf,
        (Some(root), _, Some(leaf), _) => root == leaf,
        (_, Some(root), Some(leaf), _) | (_, Some(root), _, Some(leaf)) => begins(leaf, root),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(value: serde_json::Value) -> HttpRoute {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_delegates_matches_lie_within_the_roots() {
        let root = route(json!({
            "match": [{"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}, "port": 80}],
            "timeout": "1s", "fault": {"abort": {"httpStatus": 500}},
        }));
        for (leaf, want) in [
            (json!({}), json!({"uri": {"prefix": "/a"}})),
            (json!({"match": [{"uri": {"prefix": "/a/b"}}]}), json!({"uri": {"prefix": "/a/b"}})),
            (json!({"match": [{"uri": {"exact": "/ab"}}]}), json!({"uri": {"exact": "/ab"}})),
            (
                json!({"match": [{"method": {"exact": "GET"}}]}),
                json!({"uri": {"prefix": "/a"}, "method": {"exact": "GET"}}),
            ),
        ] {
            let merged = merge(&root, &route(leaf)).unwrap();
            let mut want: HttpMatch = serde_json::from_value(want).unwrap();
            want.headers = root.matches[0].headers.clone();
            want.port = Some(80);
            assert_eq!(merged.matches, [want]);
            assert_eq!((merged.timeout.as_deref(), merged.fault.is_some()), (Some("1s"), true));
        }
        for wrong in [
            json!({"uri": {"prefix": "/b"}}),
            json!({"uri": {"exact": "/"}}),
            json!({"uri": {"regex": "/a.*"}}),
            json!({"uri": {"prefix": "/a"}, "ignoreUriCase": true}),
            json!({"headers": {"x": {"exact": "2"}}}),
            json!({"port": 81}),
        ] {
            assert!(merge(&root, &route(json!({"match": [wrong]}))).is_none(), "{wrong}");
        }
        let own = merge(&root, &route(json!({"timeout": "2s", "name": "leaf"}))).unwrap();
        assert_eq!((own.timeout.as_deref(), &*own.name), (Some("2s"), "leaf"));
        let leaf = route(json!({"timeout": "2s"}));
        let inherited: Vec<_> = inherited(&root, &leaf).collect();
        assert_eq!(inherited, [(value::FAULT, "fault")]);
    }
}
