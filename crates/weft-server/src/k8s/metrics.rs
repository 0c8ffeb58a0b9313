// SPDX-License-Identifier: Apache-2.0
//! `metrics.k8s.io/v1beta1`: what pods and nodes use now, for `kubectl top` and dashboards.
//!
//! Read-only and never stored. Figures come from whoever measures ([`Meter`]), through the
//! registry's [`Usage`]; a pod that was not measured yet is not listed.

use std::sync::Arc;

use axum::response::Response;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use weft_kinds::kind::KindId;
use weft_registry::Usage;
use weft_registry::usage::Resources;

use super::selector::Selector;
use super::status::{ApiError, json_response};
use super::{Ask, Door};
use crate::json::Fields;

pub(super) const GROUP: &str = "metrics.k8s.io";
pub(super) const VERSION: &str = "v1beta1";
/// Plural, kind, whether in namespaces.
pub(super) const RESOURCES: [(&str, &str, bool); 2] =
    [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];
pub(super) const VERBS: &[&str] = &["get", "list"];

/// Over how long the processor's figures are averaged, as told.
const WINDOW: &str = "10s";

/// Who measures what pods use.
pub trait Meter: Send + Sync + 'static {
    /// Says that somebody wants figures; resolves when there are fresh ones, or after a few
    /// seconds.
    fn asked(&self) -> BoxFuture<'static, ()>;
}

/// What a path below the group names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Figures {
    /// Of pods; else of nodes.
    pub(super) pods: bool,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

// === impl Figures ===

impl Figures {
    /// Reads the path after group and version.
    pub(super) fn parse(rest: &[&str]) -> Option<Self> {
        let text = |t: &str| Some(t.to_owned());
        let (pods, namespace, name) = match rest {
            ["nodes"] => (false, None, None),
            ["nodes", name] => (false, None, text(name)),
            ["pods"] => (true, None, None),
            ["namespaces", ns, "pods"] => (true, text(ns), None),
            ["namespaces", ns, "pods", name] => (true, text(ns), text(name)),
            _ => return None,
        };
        Some(Self { pods, namespace, name })
    }

    fn kind(&self) -> (KindId, &'static str) {
        if self.pods { (KindId::Pod, "PodMetrics") } else { (KindId::Node, "NodeMetrics") }
    }
}

// === impl Door ===

impl Door {
    pub(super) async fn figures(&self, figures: &Figures, ask: &Ask) -> Result<Response, ApiError> {
        if !matches!(ask.parts.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method(&ask.parts.method, "figures"));
        }
        let (kind, word) = figures.kind();
        let namespace = figures.namespace.as_deref();
        if let Some(name) = &figures.name {
            let object = self.registry.objects().get(kind, namespace.unwrap_or_default(), name)?;
            self.meter.asked().await;
            let found = one(kind, word, &object, &self.registry.usage());
            let found = found.ok_or_else(|| {
                let why = format!("{word} {name:?} is not measured yet; ask again in some seconds");
                ApiError::new(StatusCode::NOT_FOUND, "NotFound", why)
            })?;
            return Ok(json_response(StatusCode::OK, &found));
        }
        let query = &ask.query;
        let selector =
            Selector::parse(kind, query.text("labelSelector"), query.text("fieldSelector"))?;
        self.meter.asked().await;
        let (_, objects) = self.registry.objects().list(kind, namespace);
        let usage = self.registry.usage();
        let wanted = objects.iter().filter(|o| selector.holds(o));
        let items: Vec<Value> = wanted.filter_map(|o| one(kind, word, o, &usage)).collect();
        let list = json!({
            "kind": format!("{word}List"), "apiVersion": format!("{GROUP}/{VERSION}"),
            "metadata": {}, "items": items,
        });
        Ok(json_response(StatusCode::OK, &list))
    }
}

/// One object's figures; `None` when it was not measured.
fn one(kind: KindId, word: &str, object: &Value, usage: &Arc<Usage>) -> Option<Value> {
    let meta = object.at("metadata");
    let name = meta.at("name").as_str()?;
    let mut shown = json!({"name": name, "creationTimestamp": meta.at("creationTimestamp")});
    if let Some(labels) = meta.get("labels") {
        shown.put("labels", labels.clone());
    }
    let mut out = json!({"kind": word, "apiVersion": format!("{GROUP}/{VERSION}")});
    if kind == KindId::Node {
        let of = usage.nodes.get(name)?;
        out.put("metadata", shown);
        stamp(&mut out, of);
        out.put("usage", quantities(of));
        return Some(out);
    }
    let namespace = meta.at("namespace").as_str()?;
    shown.put("namespace", namespace);
    let of = usage.resources.get(&*format!("{namespace}/{name}"))?;
    out.put("metadata", shown);
    stamp(&mut out, of);
    let containers = object.at("spec").at("containers").as_array().into_iter().flatten();
    let containers: Vec<Value> = containers
        .filter_map(|c| {
            let container = c.at("name").as_str()?;
            let of = usage.resources.get(&*format!("{namespace}/{name}/{container}"))?;
            Some(json!({"name": container, "usage": quantities(of)}))
        })
        .collect();
    out.put("containers", Value::Array(containers));
    Some(out)
}

fn stamp(out: &mut Value, of: &Resources) {
    out.put("timestamp", weft_registry::objects::meta::timestamp(of.wall_ms));
    out.put("window", WINDOW);
}

fn quantities(of: &Resources) -> Value {
    json!({"cpu": format!("{}m", of.cpu_milli), "memory": format!("{}Ki", of.memory_bytes / 1024)})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn paths_name_figures() {
        let pods = |ns: &str, name: Option<&str>| Figures {
            pods: true,
            namespace: Some(ns.into()),
            name: name.map(Into::into),
        };
        assert_eq!(Figures::parse(&["namespaces", "a", "pods"]), Some(pods("a", None)));
        assert_eq!(Figures::parse(&["namespaces", "a", "pods", "b"]), Some(pods("a", Some("b"))));
        assert!(Figures::parse(&["pods"]).is_some_and(|f| f.pods && f.namespace.is_none()));
        assert!(Figures::parse(&["nodes", "n"]).is_some_and(|f| !f.pods));
        assert_eq!(Figures::parse(&["pods", "b"]), None);
        assert_eq!(Figures::parse(&["namespaces", "a", "nodes"]), None);
    }

    #[test]
    fn figures_are_those_of_the_containers() {
        let of = |cpu_milli, memory_bytes| Resources { cpu_milli, memory_bytes, wall_ms: 0 };
        let resources = BTreeMap::from([
            ("shop/user".into(), of(30, 4096)),
            ("shop/user/a".into(), of(10, 1024)),
            ("shop/user/b".into(), of(20, 3072)),
        ]);
        let pod = json!({
            "metadata": {"name": "user", "namespace": "shop", "labels": {"app": "user"}},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "waits"}]},
        });
        let usage = Arc::new(Usage { resources, ..Usage::default() });
        let shown = one(KindId::Pod, "PodMetrics", &pod, &usage).unwrap();
        assert_eq!(
            shown["containers"],
            json!([{"name": "a", "usage": {"cpu": "10m", "memory": "1Ki"}},
                {"name": "b", "usage": {"cpu": "20m", "memory": "3Ki"}}])
        );
        assert_eq!(shown["metadata"]["labels"]["app"], "user");
        let other = json!({"metadata": {"name": "other", "namespace": "shop"}, "spec": {}});
        assert_eq!(one(KindId::Pod, "PodMetrics", &other, &usage), None);
    }
}
