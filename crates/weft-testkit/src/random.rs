// SPDX-License-Identifier: Apache-2.0
//! Random users' objects and requests, each made from one seed. Names and paths are few, so that
//! rules overlap and precedence decides often.

pub mod edge;
pub mod grpc;

use serde_json::{Value, json};
use weft_base::rng::Rng;

use crate::Ask;
use crate::reference::istio::NAMESPACE;

/// Services with their pods' versions; `none` has no pod, `gone` is no Service.
pub const SERVICES: [(&str, &[&str]); 4] =
    [("a", &["v1", "v2"]), ("b", &["v1"]), ("c", &["v1", "v1", "v2"]), ("none", &[])];
const PATHS: [&str; 10] =
    ["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/b/a", "/A/b", "/a/b/"];
const HOSTS: [&str; 6] = ["a.x", "b.x", "c.b.x", "d.c.b.x", "y", "x"];
const PATTERNS: [&str; 6] = ["a.x", "*.x", "*.b.x", "y", "c.b.x", "b.x"];

/// Chance from one seed.
#[derive(Debug)]
pub struct Chance(Rng);

// === impl Chance ===

impl Chance {
    pub fn seeded(seed: u64) -> Self {
        Self(Rng::seeded(seed))
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.0.below(n as u64)).unwrap_or(0)
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn maybe<T>(&mut self, one_in: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(one_in).then(|| make(self))
    }
}

// === what every configuration has ===

/// Services, pods and a client; nothing of it changes.
pub fn base() -> Vec<Value> {
    let mut out = vec![pod("client-0", "client", "v1", "127.64.9.9", true)];
    for (s, (name, versions)) in SERVICES.iter().enumerate() {
        // Retries here are no sign of trouble, and no instance is to be spared.
        out.push(json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": meta(name),
            "spec": {
                "targetRefs": [{"kind": "Service", "name": name}],
                "retryBudget": {"percent": 100, "minPerSecond": 1_000_000},
            },
        }));
        out.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(name),
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
        }));
        let mut endpoints = Vec::new();
        for (i, version) in versions.iter().enumerate() {
            let (pod_name, ip) = (format!("{name}-{i}"), format!("127.64.{s}.{}", i + 1));
            out.push(pod(&pod_name, name, version, &ip, false));
            endpoints.push(json!({
                "addresses": [ip], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod_name},
            }));
        }
        out.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-0"), "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints,
        }));
    }
    out
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE})
}

fn pod(name: &str, app: &str, version: &str, ip: &str, meshed: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": {"app": app, "version": version},
            "annotations": {"weft.dev/inject": meshed.to_string()},
        },
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIP": ip, "phase": "Running"},
    })
}

// === Gateway API ===

/// A gateway with listeners on one port, and how many.
fn listeners(chance: &mut Chance) -> (Value, usize) {
    let mut names: Vec<Option<&str>> = vec![None, Some("*.x"), Some("a.x"), Some("*.b.x")];
    names.retain(|_| chance.one_in(2));
    if names.is_empty() {
        names.push(None);
    }
    let listeners = names.iter().enumerate().map(|(i, hostname)| {
        json!({
            "name": format!("l{i}"), "port": 8000, "protocol": "HTTP", "hostname": hostname,
        })
    });
    let listeners: Vec<Value> = listeners.collect();
    let count = listeners.len();
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {
            "name": "edge", "namespace": NAMESPACE,
            "annotations": {"weft.dev/address": "127.0.0.1"},
        },
        "spec": {"gatewayClassName": "weft", "listeners": listeners},
    });
    (gateway, count)
}

/// A gateway with listeners on one port, and HTTPRoutes.
pub fn gateway(chance: &mut Chance) -> Vec<Value> {
    let (gateway, count) = listeners(chance);
    let mut out = vec![gateway];
    for r in 0..=chance.below(4) {
        let mut parent = json!({"name": "edge"});
        if chance.one_in(4) {
            parent["sectionName"] = format!("l{}", chance.below(count)).into();
        }
        let hostnames: Vec<&str> = PATTERNS.iter().copied().filter(|_| chance.one_in(3)).collect();
        let rules: Vec<Value> = (0..=chance.below(4)).map(|_| http_rule(chance)).collect();
        let created = format!("2026-01-0{}T00:00:00Z", 1 + chance.below(2));
        let mut spec = json!({"parentRefs": [parent], "rules": rules});
        if !hostnames.is_empty() {
            spec["hostnames"] = json!(hostnames);
        }
        let mut meta = meta(&format!("r{r}"));
        meta["creationTimestamp"] = created.into();
        out.push(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": meta,
            "spec": spec,
        }));
    }
    out
}

fn http_rule(chance: &mut Chance) -> Value {
    let n = chance.below(3);
    let matches: Vec<Value> = (0..n).map(|_| http_match(chance)).collect();
    // A prefix is replaced only where every match has one (CEL says so), and one that is no root.
    let prefixed = !matches.is_empty()
        && matches.iter().all(|m| m["path"]["type"] == "PathPrefix" && m["path"]["value"] != "/");
    let mut filters = Vec::new();
    if chance.one_in(3) {
        filters.push(json!({
            "type": "RequestHeaderModifier", "requestHeaderModifier": modifier(chance, "x"),
        }));
    }
    if chance.one_in(4) {
        filters.push(json!({
            "type": "ResponseHeaderModifier", "responseHeaderModifier": modifier(chance, "x"),
        }));
    }
    if chance.one_in(5) {
        filters.push(json!({
            "type": "RequestRedirect", "requestRedirect": redirect(chance, prefixed),
        }));
        return json!({"matches": matches, "filters": filters});
    }
    if chance.one_in(3) {
        let mut rewrite = json!({"path": path_modifier(chance, prefixed)});
        if chance.one_in(2) {
            rewrite["hostname"] = "rewritten.example".into();
        }
        filters.push(json!({"type": "URLRewrite", "urlRewrite": rewrite}));
    }
    let backends: Vec<Value> = (0..=chance.below(2)).map(|_| backend(chance)).collect();
    let mut out = json!({"matches": matches, "filters": filters, "backendRefs": backends});
    if chance.one_in(3) {
        let codes = [[500, 503], [503, 504], [502, 500]][chance.below(3)];
        out["retry"] = json!({"attempts": chance.below(4), "backoff": "1ms", "codes": codes});
    }
    if let Some(limit) = limit(chance) {
        out["timeouts"] = json!({"request": limit});
    }
    out
}

/// A time that no answer takes, or seldom one that is over soon: then nobody answers in time.
fn limit(chance: &mut Chance) -> Option<&'static str> {
    match chance.below(80) {
        0 => Some("10ms"),
        1..20 => Some("50s"),
        20..40 => Some("1m"),
        _ => None,
    }
}

fn http_match(chance: &mut Chance) -> Value {
    let kind = chance.one(&["Exact", "PathPrefix", "PathPrefix", "RegularExpression"]);
    let value = match kind {
        "RegularExpression" => chance.one(&["/a.*", "/a(b|/b)", "/[ab]/?", ".*"]),
        _ => chance.one(&PATHS),
    };
    let mut out = json!({"path": {"type": kind, "value": value}});
    if chance.one_in(4) {
        out["method"] = chance.one(&["GET", "PUT"]).into();
    }
    let text = |chance: &mut Chance| match chance.one_in(2) {
        true => ("Exact", chance.one(&["1", "2"])),
        false => ("RegularExpression", chance.one(&["1", "[12]", "1.*"])),
    };
    let mut list = |key: &str, names: &[&str]| {
        let mut entries = Vec::new();
        for name in names {
            if chance.one_in(5) {
                let (kind, value) = text(chance);
                entries.push(json!({"name": name, "type": kind, "value": value}));
            }
        }
        if !entries.is_empty() {
            out[key] = json!(entries);
        }
    };
    // The same name twice: the first counts.
    list("headers", &["x-a", "X-B", "X-A"]);
    list("queryParams", &["q", "r"]);
    out
}

/// Every operation has a header of its own, since the texts leave their order open.
fn modifier(chance: &mut Chance, prefix: &str) -> Value {
    let value = chance.one(&["one", "two"]);
    json!({
        "set": [{"name": format!("{prefix}-set"), "value": value}],
        "add": [{"name": format!("{prefix}-add"), "value": value}],
        "remove": [format!("{prefix}-remove")],
    })
}

fn path_modifier(chance: &mut Chance, prefixed: bool) -> Value {
    match prefixed {
        true => json!({
            "type": "ReplacePrefixMatch",
            "replacePrefixMatch": chance.one(&["/", "/n", "/n/", "/n/m"]),
        }),
        false => json!({"type": "ReplaceFullPath", "replaceFullPath": chance.one(&["/n", "/n/m"])}),
    }
}

fn redirect(chance: &mut Chance, prefixed: bool) -> Value {
    let mut out = json!({"statusCode": 301 + chance.below(2)});
    if chance.one_in(2) {
        out["hostname"] = "moved.example".into();
    }
    if chance.one_in(3) {
        out["scheme"] = chance.one(&["http", "https"]).into();
    }
    if chance.one_in(3) {
        out["port"] = [80, 443, 8443][chance.below(3)].into();
    }
    if chance.one_in(2) {
        out["path"] = path_modifier(chance, prefixed);
    }
    out
}

fn backend(chance: &mut Chance) -> Value {
    let name = chance.one(&["a", "b", "c", "none", "gone", "a", "c"]);
    let mut out = json!({"name": name, "port": 80});
    if let Some(weight) = chance.maybe(2, |c| c.below(4)) {
        out["weight"] = weight.into();
    }
    if chance.one_in(4) {
        out["filters"] = json!([{
            "type": "RequestHeaderModifier", "requestHeaderModifier": modifier(chance, "y"),
        }]);
    }
    out
}

// === Istio ===

/// VirtualServices, some with delegates, and DestinationRules.
pub fn virtual_services(chance: &mut Chance) -> Vec<Value> {
    let mut out = vec![json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": meta("c"),
        "spec": {"host": "c", "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}},
            {"name": "v3", "labels": {"version": "v3"}},
        ]},
    })];
    for host in ["a", "b"] {
        let mut http = Vec::new();
        for r in 0..=chance.below(4) {
            if chance.one_in(5) {
                let leaf = format!("{host}-leaf-{r}");
                http.push(delegating(chance, &leaf));
                let rules: Vec<Value> = (0..=chance.below(2)).map(|_| leaf_rule(chance)).collect();
                out.push(virtual_service(&leaf, &Value::Null, &rules));
            } else {
                let n = chance.below(3);
                let matches: Vec<Value> = (0..n).map(|_| block(chance)).collect();
                http.push(istio_rule(chance, matches));
            }
        }
        let named =
            chance.one(&[host, &*format!("{host}.{NAMESPACE}.svc.cluster.local")]).to_owned();
        out.push(virtual_service(host, &json!([named]), &http));
    }
    out
}

fn virtual_service(name: &str, hosts: &Value, http: &[Value]) -> Value {
    let mut spec = json!({"http": http});
    if !hosts.is_null() {
        spec["hosts"] = hosts.clone();
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": meta(name),
        "spec": spec,
    })
}

fn delegating(chance: &mut Chance, leaf: &str) -> Value {
    let mut out = json!({
        "match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": leaf, "namespace": NAMESPACE},
    });
    if chance.one_in(3) {
        out["headers"] = json!({"request": operations(chance, "x")});
    }
    if chance.one_in(4) {
        out["rewrite"] = json!({"uri": "/n"});
    }
    if chance.one_in(4) {
        out["timeout"] = "40s".into();
    }
    if chance.one_in(4) {
        out["retries"] = json!({"attempts": 2, "backoff": "1ms", "retryOn": "5xx"});
    }
    out
}

/// What a delegate matches lies within its root's.
fn leaf_rule(chance: &mut Chance) -> Value {
    let matches = chance.maybe(2, |c| match c.below(3) {
        0 => json!({"uri": {"prefix": "/a/b"}}),
        1 => json!({"uri": {"exact": "/a/"}}),
        _ => json!({"method": {"exact": c.one(&["GET", "PUT"])}}),
    });
    istio_rule(chance, matches.into_iter().collect())
}

fn istio_rule(chance: &mut Chance, matches: Vec<Value>) -> Value {
    let prefixed = !matches.is_empty() && matches.iter().all(|m| m["uri"]["prefix"].is_string());
    let mut out = json!({});
    if !matches.is_empty() {
        out["match"] = json!(matches);
    }
    match chance.below(7) {
        0 => {
            let code = [301, 302, 303, 307, 308][chance.below(5)];
            out["redirect"] = json!({"redirectCode": code});
            if chance.one_in(2) {
                out["redirect"]["authority"] = "moved.example".into();
            } else {
                out["redirect"]["uri"] = "/moved".into();
            }
            return out;
        }
        1 => {
            let status = [200, 403, 503][chance.below(3)];
            out["directResponse"] = json!({"status": status, "body": {"string": "said"}});
            return out;
        }
        _ => {}
    }
    if chance.one_in(3) {
        out["retries"] = json!({
            "attempts": chance.below(4), "backoff": "1ms",
            "retryOn": chance.one(&["5xx", "503", "gateway-error", "reset,500", "connect-failure"]),
        });
    }
    if let Some(limit) = limit(chance) {
        out["timeout"] = limit.into();
    }
    let count = 1 + chance.below(3);
    let route: Vec<Value> = (0..count).map(|_| destination(chance, count)).collect();
    out["route"] = json!(route);
    if prefixed && chance.one_in(3) {
        out["rewrite"] = json!({"uri": chance.one(&["/n", "/n/"])});
    } else if chance.one_in(6) {
        out["rewrite"] = json!({"authority": "rewritten.example"});
    }
    if chance.one_in(4) {
        out["headers"] =
            json!({"request": operations(chance, "x"), "response": operations(chance, "x")});
    }
    if chance.one_in(8) {
        let percent = [0, 100][chance.below(2)];
        out["fault"] = json!({"abort": {"httpStatus": 418, "percentage": {"value": percent}}});
    }
    out
}

fn block(chance: &mut Chance) -> Value {
    let mut out = json!({});
    let string = |chance: &mut Chance, values: &[&str]| match chance.below(4) {
        0 => json!({"prefix": chance.one(values)}),
        1 => json!({"regex": chance.one(&["1", "[12]", "1.*"])}),
        2 => json!({}),
        _ => json!({"exact": chance.one(values)}),
    };
    if !chance.one_in(3) {
        let path = chance.one(&PATHS);
        out["uri"] = match chance.below(4) {
            0 => json!({"exact": path}),
            1 => json!({"regex": chance.one(&["/a.*", "/a(b|/b)", "/[ab]/?", ".*"])}),
            _ => json!({"prefix": path}),
        };
        if chance.one_in(4) {
            out["ignoreUriCase"] = true.into();
        }
    }
    if chance.one_in(4) {
        out["method"] = json!({"exact": chance.one(&["GET", "PUT"])});
    }
    if chance.one_in(8) {
        out["authority"] = json!({"prefix": chance.one(&["a", "b"])});
    }
    if chance.one_in(10) {
        out["scheme"] = json!({"exact": chance.one(&["http", "https"])});
    }
    if chance.one_in(8) {
        out["port"] = [80, 81][chance.below(2)].into();
    }
    for (key, name, often) in
        [("headers", "x-a", 3), ("headers", "x-b", 5), ("withoutHeaders", "x-c", 5)]
    {
        if chance.one_in(often) {
            out[key][name] = string(chance, &["1", "2"]);
        }
    }
    if chance.one_in(5) {
        out["queryParams"] = json!({"q": {"exact": chance.one(&["1", "2"])}});
    }
    if chance.one_in(8) {
        out["sourceLabels"] = json!({"app": chance.one(&["client", "other"])});
    }
    if chance.one_in(8) {
        out["sourceNamespace"] = chance.one(&[NAMESPACE, "other"]).into();
    }
    if chance.one_in(8) {
        out["gateways"] = json!([chance.one(&["mesh", "shop/edge"])]);
    }
    out
}

fn destination(chance: &mut Chance, of: usize) -> Value {
    let host = chance.one(&["a", "b", "c", "c", "c.shop.svc.cluster.local", "none", "gone"]);
    let mut to = json!({"host": host});
    if chance.one_in(2) && host.starts_with('c') {
        to["subset"] = chance.one(&["v1", "v2", "v3", "v4"]).into();
    }
    let mut out = json!({"destination": to});
    if of > 1 {
        out["weight"] = (1 + chance.below(3)).into();
    }
    if chance.one_in(5) {
        out["headers"] = json!({"request": operations(chance, "y")});
    }
    out
}

fn operations(chance: &mut Chance, prefix: &str) -> Value {
    let value = chance.one(&["one", "two"]);
    let (set, add) = (format!("{prefix}-set"), format!("{prefix}-add"));
    let mut remove = vec![format!("{prefix}-remove")];
    // The way to say that what a client says does not count.
    remove.extend([&set, &add].into_iter().filter(|_| chance.one_in(4)).cloned());
    json!({"set": {set: value}, "add": {add: value}, "remove": remove})
}

// === requests ===

/// Where a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    Gateway,
    Mesh,
}

/// A request to a gateway, or within the mesh.
pub fn request(chance: &mut Chance, scene: Scene) -> Ask {
    let host = match scene {
        Scene::Mesh => chance.one(&["a", "a", "b", "b", "c"]),
        Scene::Gateway => chance.one(&HOSTS),
    };
    let mut headers = Vec::new();
    for name in ["x-a", "x-b", "x-c"] {
        if chance.one_in(2) {
            headers.push((name, chance.one(&["1", "2", "12"])));
        }
    }
    // What rules add to and remove.
    for name in ["x-add", "x-set", "x-remove", "y-add", "y-set", "y-remove"] {
        if chance.one_in(3) {
            headers.push((name, "client"));
        }
    }
    Ask {
        method: chance.one(&["GET", "PUT"]),
        host: host.to_owned(),
        path: chance.one(&PATHS).to_owned(),
        query: chance.one(&["", "", "q=1", "q=2&r=1", "r=12&q=2"]).to_owned(),
        headers,
        failures: chance.maybe(6, |c| (1 + c.below(4), [500, 503][c.below(2)])).unwrap_or((0, 200)),
    }
}
