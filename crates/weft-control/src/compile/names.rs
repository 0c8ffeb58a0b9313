// SPDX-License-Identifier: Apache-2.0
//! From the users' many names for a service to its resources' names.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_base::name::ServiceKey;
use weft_kinds::world::host_key;
use weft_model::{ResourceName, Root, backend_child};

use super::Env;

pub fn host_root(service: &ServiceKey, env: &Env) -> Root {
    Root::host(service.host(&env.cluster_domain).as_str())
}

pub fn backend_name(service: &ServiceKey, port: u16, subset: &str, env: &Env) -> ResourceName {
    host_root(service, env).child(backend_child(port, subset))
}

/// The service that a host in Istio's configuration names: `product` (of the object's
/// namespace), `product.shop`, `product.shop.svc` or the full name in the cluster domain.
pub fn service_of_host(host: &str, namespace: &str, env: &Env) -> Option<ServiceKey> {
    let lower = host.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let key = host_key(lower, namespace);
    let mut labels = key.split('.');
    let (name, ns, svc) = (labels.next()?, labels.next()?, labels.next());
    if labels.next().is_some() || svc.is_some_and(|s| s != "svc") {
        return None;
    }
    // The long form must be in our own domain.
    let tail = lower.strip_prefix(&*key).unwrap_or("");
    let ours = tail.is_empty() || tail.strip_prefix('.') == Some(&env.cluster_domain);
    ours.then(|| ServiceKey::new(ns, name).ok()).flatten()
}

/// Whether a host can be a Service's alone: its long forms. A name with one dot may be the world's.
pub fn is_of_mesh(host: &str, env: &Env) -> bool {
    let lower = host.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    lower.ends_with(".svc") || lower.ends_with(&format!(".svc.{}", env.cluster_domain))
}

/// The host patterns that take a service, as [`host_key`] writes them, most specific first.
pub fn host_patterns(service: &ServiceKey, env: &Env) -> Vec<String> {
    let (ns, name) = (service.namespace.as_str(), service.name.as_str());
    let mut out = vec![
        format!("{name}.{ns}.svc"),
        format!("{name}.{ns}"),
        format!("*.{ns}.svc"),
        format!("*.svc.{}", env.cluster_domain),
    ];
    let mut domain = &*env.cluster_domain;
    loop {
        out.push(format!("*.{domain}"));
        match domain.split_once('.') {
            Some((_, rest)) => domain = rest,
            None => break,
        }
    }
    out.push("*".into());
    out
}

/// A pattern, as [`host_key`] writes it, and then those that take all that it takes.
pub fn wider_patterns(pattern: &str, env: &Env) -> Vec<String> {
    let full = match pattern.ends_with(".svc") {
        true => format!("{pattern}.{}", env.cluster_domain),
        false => pattern.to_owned(),
    };
    let parents = full.match_indices('.').skip(1).map(|(at, _)| format!("*{}", &full[at..]));
    let all = (pattern != "*").then(|| "*".to_owned());
    std::iter::once(pattern.to_owned()).chain(parents).chain(all).collect()
}

/// The namespaces of an `exportTo` list; `None` is every namespace.
pub fn exported<'a>(
    list: impl IntoIterator<Item = &'a str>,
    own: &Arc<str>,
) -> Option<BTreeSet<Arc<str>>> {
    let mut out = BTreeSet::new();
    let mut any = false;
    for word in list {
        any = true;
        match word.trim() {
            "*" => return None,
            "." => out.insert(own.clone()),
            "~" => false,
            ns => out.insert(ns.into()),
        };
    }
    any.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_service_in_each_of_its_forms() {
        let env = Env::default();
        for (host, want) in [
            ("product", Some("shop/product")),
            ("product.other", Some("other/product")),
            ("product.other.svc", Some("other/product")),
            ("Product.other.svc.cluster.local.", Some("other/product")),
            ("product.other.svc.example.com", None),
            ("api.example.com", None),
            ("*.shop.svc.cluster.local", None),
            ("*", None),
        ] {
            let got = service_of_host(host, "shop", &env).map(|s| s.to_string());
            assert_eq!(got.as_deref(), want, "{host}");
        }
    }

    #[test]
    fn an_export_list_without_star_restricts() {
        let own: Arc<str> = "a".into();
        assert_eq!(exported([], &own), None);
        assert_eq!(exported([".", "*"], &own), None);
        assert_eq!(exported([".", "b"], &own).unwrap().len(), 2);
        assert_eq!(exported(["~"], &own).unwrap().len(), 0);
    }
}
