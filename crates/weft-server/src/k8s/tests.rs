// SPDX-License-Identifier: Apache-2.0
//! The door over a real socket and a memory store, asked as kubectl and client libraries ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_registry::Registry;
use weft_registry::usage::Resources;
use weft_store::MemoryStore;

use super::*;
use crate::serve::serve;

const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

struct Rig {
    address: SocketAddr,
    registry: Registry,
    tasks: TaskGroup,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Says what it was asked, then a line more when it is followed.
struct Echo;

impl PodLogs for Echo {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        Box::pin(async move {
            if request.previous {
                return Err(LogError::NotThere("there was no process before".into()));
            }
            let line = format!("{} tail={:?}\n", request.container, request.tail_lines);
            let first = futures_util::stream::iter(vec![Ok(Bytes::from(line))]);
            if request.follow {
                return Ok(first.chain(futures_util::stream::pending()).boxed());
            }
            Ok(first.boxed() as LogPieces)
        })
    }
}

struct NoStreams;

impl PodStreams for NoStreams {
    fn open(&self, _: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        Box::pin(async { Err(StreamError::NotRunning("nothing runs here".into())) })
    }
}

impl Meter for NoStreams {
    fn asked(&self) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

fn pods() -> Pods {
    let none = Arc::new(NoStreams);
    Pods { logs: Arc::new(Echo), streams: none.clone(), meter: none }
}

async fn rig() -> Rig {
    let tasks = TaskGroup::new();
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let door = Door::new(registry.clone(), pods(), "0.1.0");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("door", serve(listener, router(door), Vec::new().into(), tasks.clone()));
    let client = Client::builder(TokioExecutor::new()).build_http();
    Rig { address, registry, tasks, client }
}

impl Rig {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<hyper::body::Incoming> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("user-agent", "test/1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, media: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("content-type", media)];
        let headers = if media.is_empty() { &[][..] } else { &headers[..] };
        let response = self.send(method, path, headers, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (code, value) = self.ask("GET", path, "", &Value::Null).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask("POST", path, "application/json", body).await
    }

    /// The lines of a watch, until `enough`.
    async fn watch(&self, path: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let response = self.send("GET", path, &[], Bytes::new()).await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let (mut text, mut events) = (Vec::new(), Vec::<Value>::new());
        let reading = async {
            while !enough(&events) {
                let Some(frame) = body.frame().await else { break };
                text.extend_from_slice(&frame.unwrap().into_data().unwrap());
                while let Some(end) = text.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    events.push(serde_json::from_slice(&line).unwrap());
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(120), reading).await.expect("the events come");
        events
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": "c", "image": "i:1"}]}}}})
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

#[tokio::test]
async fn a_body_without_kind_creates_a_service_that_looks_real() {
    let rig = rig().await;
    let (code, made) = rig.ask("POST", SERVICES, "", &service("web")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("Service"), &json!("v1")));
    let spec = &made["spec"];
    assert_eq!(spec["type"], "ClusterIP");
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    let ip: std::net::Ipv4Addr = spec["clusterIP"].as_str().unwrap().parse().unwrap();
    assert!(ip.is_loopback());
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "test");
    let (code, again) = rig.post(SERVICES, &service("web")).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));
    let got = rig.get(&format!("{SERVICES}/web")).await;
    assert_eq!(got, made);
    let (code, gone) = rig.ask("DELETE", &format!("{SERVICES}/web"), "", &Value::Null).await;
    assert_eq!((code, &gone["kind"]), (200, &json!("Service")), "services answer with the object");
    let (code, status) = rig.ask("GET", &format!("{SERVICES}/web"), "", &Value::Null).await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    assert_eq!(status["message"], "services \"web\" not found");
    assert_eq!(status["details"], json!({"name": "web", "kind": "services"}));
}

#[tokio::test]
async fn misspelt_fields_are_refused_warned_of_or_ignored() {
    let rig = rig().await;
    let mut body = service("a");
    body["spec"]["selectr"] = json!({});
    let (code, status) = rig.post(&format!("{SERVICES}?fieldValidation=Strict"), &body).await;
    assert_eq!(code, 400);
    assert_eq!(
        status["message"],
        "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown \
         field \"spec.selectr\", did you mean \"selector\"?"
    );
    let json = [("content-type", "application/json")];
    let warned = rig.send("POST", SERVICES, &json, body.to_string()).await;
    assert_eq!(warned.status(), 201);
    let warning = warned.headers()["warning"].to_str().unwrap();
    assert!(warning.starts_with("299 - \"unknown field \\\"spec.selectr\\\""), "{warning}");
    body["metadata"]["name"] = "b".into();
    let path = format!("{SERVICES}?fieldValidation=Ignore");
    let ignored = rig.send("POST", &path, &json, body.to_string()).await;
    assert_eq!((ignored.status().as_u16(), ignored.headers().get("warning")), (201, None));
    let twice = r#"{"metadata":{"name":"c","name":"c"},"spec":{"ports":[{"port":1}]}}"#;
    let path = format!("{SERVICES}?fieldValidation=Strict");
    let refused = rig.send("POST", &path, &json, twice).await;
    assert_eq!(refused.status(), 400);
    rig.tasks.begin_drain();
}

#[tokio::test]
async fn invalid_objects_name_every_field() {
    let rig = rig().await;
    let mut body = deployment("d");
    body["spec"]["replicas"] = "three".into();
    body["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70000}]);
    let (code, status) = rig.post(DEPLOYMENTS, &body).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    let causes = status["details"]["causes"].as_array().unwrap();
    let fields: Vec<_> = causes.iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(
        fields,
        ["spec.replicas", "spec.template.spec.containers[0].ports[0].containerPort"]
    );
    assert_eq!(causes[0]["reason"], "FieldValueTypeInvalid");
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("Deployment.apps \"d\" is invalid: [spec.replicas: "), "{message}");
    let route = json!({"metadata": {"name": "r"}, "spec": {"rules": [{"backendRefs": [
        {"name": "web", "weight": -1}], "matches": [{"path": {"type": "Glob"}}]}]}});
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes";
    let (code, status) = rig.post(path, &route).await;
    assert_eq!(code, 422, "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("spec.rules[0].matches[0].path.type: Unsupported value"), "{message}");
    assert!(message.contains("spec.rules[0].backendRefs[0].weight"), "{message}");
}

#[tokio::test]
async fn patches_merge_and_conflicts_are_told() {
    let rig = rig().await;
    let one = format!("{DEPLOYMENTS}/d");
    let (code, made) = rig.post(DEPLOYMENTS, &deployment("d")).await;
    assert_eq!(code, 201, "{made}");
    let patch = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "env": [{"name": "A", "value": "1"}]}]}}}});
    let (code, new) = rig.ask("PATCH", &one, STRATEGIC, &patch).await;
    assert_eq!(code, 200, "{new}");
    let container = &new["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["env"][0]["name"]), (&json!("i:1"), &json!("A")));
    assert_eq!(new["metadata"]["generation"], 2);
    let merge = json!({"metadata": {"labels": {"x": "y"}}});
    let (code, new) = rig.ask("PATCH", &one, MERGE, &merge).await;
    assert_eq!((code, &new["metadata"]["generation"]), (200, &json!(2)));
    let ops = json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]);
    let (code, new) = rig.ask("PATCH", &one, "application/json-patch+json", &ops).await;
    assert_eq!((code, &new["spec"]["replicas"]), (200, &json!(4)));
    // A stale update is refused, a fresh one is not.
    let mut stale = made.clone();
    stale["spec"]["replicas"] = 9.into();
    let (code, status) = rig.ask("PUT", &one, "application/json", &stale).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let mut fresh = new.clone();
    fresh["spec"]["replicas"] = 9.into();
    let (code, put) = rig.ask("PUT", &one, "application/json", &fresh).await;
    assert_eq!((code, &put["spec"]["replicas"]), (200, &json!(9)), "{put}");
    let mut moved = put.clone();
    moved["spec"]["selector"]["matchLabels"]["app"] = "z".into();
    moved["spec"]["template"]["metadata"]["labels"]["app"] = "z".into();
    let (code, status) = rig.ask("PUT", &one, "application/json", &moved).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("field is immutable"), "{status}");
    // Custom resources have no strategic merge.
    let path = "/apis/networking.istio.io/v1/namespaces/default/virtualservices/v";
    let (code, status) = rig.ask("PATCH", path, STRATEGIC, &json!({})).await;
    assert_eq!((code, &status["reason"]), (415, &json!("UnsupportedMediaType")));
}

#[tokio::test]
async fn server_side_apply_creates_owns_and_conflicts() {
    let rig = rig().await;
    let path = format!("{DEPLOYMENTS}/d");
    let yaml = |replicas: u32| {
        let mut body = deployment("d");
        body["spec"]["replicas"] = replicas.into();
        body
    };
    let (code, made) = rig.ask("PATCH", &format!("{path}?fieldManager=one"), APPLY, &yaml(1)).await;
    assert_eq!(code, 201, "{made}");
    let (code, _) = rig.ask("PATCH", &format!("{path}?fieldManager=one"), APPLY, &yaml(1)).await;
    assert_eq!(code, 200);
    let (code, status) =
        rig.ask("PATCH", &format!("{path}?fieldManager=two"), APPLY, &yaml(2)).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let forced = format!("{path}?fieldManager=two&force=true");
    let (code, new) = rig.ask("PATCH", &forced, APPLY, &yaml(2)).await;
    assert_eq!((code, &new["spec"]["replicas"]), (200, &json!(2)));
    let (code, status) = rig.ask("PATCH", &path, APPLY, &yaml(2)).await;
    assert_eq!(code, 400, "{status}");
    // Real YAML, and a field that does not exist.
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\ndta: {}\n";
    let path = "/api/v1/namespaces/default/configmaps/c?fieldManager=x&fieldValidation=Strict";
    let refused = rig.send("PATCH", path, &[("content-type", APPLY)], text).await;
    assert_eq!(refused.status(), 400);
    let text = text.replace("dta: {}\n", "");
    let made = rig.send("PATCH", path, &[("content-type", APPLY)], text).await;
    assert_eq!(made.status(), 201);
}

#[tokio::test]
async fn watches_tell_what_lists_end_with() {
    let rig = rig().await;
    rig.post(SERVICES, &service("a")).await;
    let list = rig.get(SERVICES).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    rig.post(SERVICES, &service("b")).await;
    let patch = json!({"metadata": {"labels": {"app": "other"}}});
    rig.ask("PATCH", &format!("{SERVICES}/a"), MERGE, &patch).await;
    rig.ask("DELETE", &format!("{SERVICES}/b"), "", &Value::Null).await;
    let seen = |events: &[Value]| -> Vec<String> {
        let word = |e: &Value| {
            format!("{} {}", e["type"].as_str().unwrap(), e["object"]["metadata"]["name"])
        };
        events.iter().map(word).collect()
    };
    let path = format!("{SERVICES}?watch=true&resourceVersion={version}");
    let events = rig.watch(&path, |e| e.len() == 3).await;
    assert_eq!(seen(&events), ["ADDED \"b\"", "MODIFIED \"a\"", "DELETED \"b\""]);
    // With a selector, an object that ceases to match is gone.
    let path = format!("{path}&labelSelector=app%3Da");
    let events = rig.watch(&path, |e| !e.is_empty()).await;
    assert_eq!(seen(&events), ["DELETED \"a\""]);
    // Streaming lists end their first part with a marked bookmark.
    let path = format!(
        "{SERVICES}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let events = rig.watch(&path, |_| false).await;
    assert_eq!(seen(&events)[0], "ADDED \"a\"");
    let mark = &events[1];
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(events.last().unwrap()["type"], "BOOKMARK", "the end is a bookmark too");
    let (code, status) = rig
        .ask("GET", &format!("{SERVICES}?watch=1&sendInitialEvents=true"), "", &Value::Null)
        .await;
    assert_eq!(code, 422, "{status}");
}

#[tokio::test]
async fn lists_come_in_pages_and_tables() {
    let rig = rig().await;
    for i in 0..5 {
        rig.post(SERVICES, &service(&format!("s{i}"))).await;
    }
    let first = rig.get(&format!("{SERVICES}?limit=2")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let mut names: Vec<String> = Vec::new();
    let mut page = first;
    loop {
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()));
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = rig.get(&format!("{SERVICES}?limit=2&continue={token}")).await;
    }
    assert_eq!(names, ["s0", "s1", "s2", "s3", "s4"]);
    let accept = [("accept", TABLE)];
    let response =
        rig.send("GET", "/api/v1/services?fieldSelector=metadata.name%3Ds1", &accept, "").await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let table: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(table["kind"], "Table");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["cells"][0], "s1");
    assert_eq!(rows[0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][4]["name"], "Port(s)");
    let (code, _) = rig.ask("GET", &format!("{SERVICES}?continue=zzz"), "", &Value::Null).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn status_and_scale_are_apart_from_the_rest() {
    let rig = rig().await;
    rig.post(DEPLOYMENTS, &deployment("d")).await;
    let scale = format!("{DEPLOYMENTS}/d/scale");
    let patch = json!({"spec": {"replicas": 3}});
    let (code, new) = rig.ask("PATCH", &scale, MERGE, &patch).await;
    assert_eq!((code, &new["spec"]["replicas"]), (200, &json!(3)), "{new}");
    assert_eq!((&new["kind"], &new["status"]["selector"]), (&json!("Scale"), &json!("app=d")));
    let (code, _) = rig.ask("PATCH", &scale, MERGE, &json!({"spec": {"replicas": -1}})).await;
    assert_eq!(code, 422);
    let gateways = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways";
    let gateway = json!({"metadata": {"name": "g"}, "spec": {"gatewayClassName": "other",
        "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
        "status": {"addresses": [{"type": "IPAddress", "value": "9.9.9.9"}]}});
    let (code, made) = rig.post(gateways, &gateway).await;
    assert_eq!(code, 201, "{made}");
    assert_ne!(made["status"]["addresses"][0]["value"], "9.9.9.9");
    let status = json!({"spec": {"gatewayClassName": "changed"}, "status": {"conditions": [{
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let (code, new) = rig.ask("PATCH", &format!("{gateways}/g/status"), MERGE, &status).await;
    assert_eq!(code, 200, "{new}");
    assert_eq!(new["spec"]["gatewayClassName"], "other");
    assert_eq!(new["status"]["conditions"][0]["type"], "Accepted");
    let beta = gateways.replace("/v1/", "/v1beta1/");
    let got = rig.get(&format!("{beta}/g")).await;
    assert_eq!(got["apiVersion"], "gateway.networking.k8s.io/v1beta1");
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let rig = rig().await;
    let (code, made) = rig.post(&format!("{SERVICES}?dryRun=All"), &service("x")).await;
    assert_eq!((code, &made["spec"]["type"]), (201, &json!("ClusterIP")));
    let (code, _) = rig.ask("GET", &format!("{SERVICES}/x"), "", &Value::Null).await;
    assert_eq!(code, 404);
    let (code, status) = rig.post(&format!("{SERVICES}?dryRun=Some"), &service("x")).await;
    assert_eq!(code, 400, "{status}");
}

#[tokio::test]
async fn deletions_follow_their_options() {
    let rig = rig().await;
    for name in ["a", "b", "c"] {
        rig.post(SERVICES, &service(name)).await;
    }
    let wrong = json!({"preconditions": {"uid": "nobody"}});
    let (code, status) =
        rig.ask("DELETE", &format!("{SERVICES}/a"), "application/json", &wrong).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let path = format!("{SERVICES}?labelSelector=app+in+(a,b)");
    let (code, gone) = rig.ask("DELETE", &path, "", &Value::Null).await;
    assert_eq!((code, gone["items"].as_array().map(Vec::len)), (200, Some(2)), "{gone}");
    assert_eq!(rig.get(SERVICES).await["items"].as_array().unwrap().len(), 1);
    rig.post("/api/v1/namespaces/default/configmaps", &json!({"metadata": {"name": "m"}})).await;
    let (_, gone) =
        rig.ask("DELETE", "/api/v1/namespaces/default/configmaps/m", "", &Value::Null).await;
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    let finalized = json!({"metadata": {"name": "f", "finalizers": ["x.dev/f"]}});
    rig.post("/api/v1/namespaces/default/configmaps", &finalized).await;
    let path = "/api/v1/namespaces/default/configmaps/f";
    let (_, held) = rig.ask("DELETE", path, "", &Value::Null).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    let (code, _) = rig.ask("PATCH", path, MERGE, &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    let (code, _) = rig.ask("GET", path, "", &Value::Null).await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn bad_requests_are_told_in_sentences() {
    let rig = rig().await;
    let is = |answer: (u16, Value), code: u16, words: &str| {
        let (got, status) = answer;
        assert_eq!((got, &status["kind"]), (code, &json!("Status")), "{status}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert_eq!(status["code"], code);
    };
    let json = "application/json";
    is(rig.ask("POST", SERVICES, "text/plain", &service("a")).await, 415, "unknown format");
    is(rig.ask("POST", SERVICES, json, &json!([1])).await, 400, "not an object");
    is(rig.ask("GET", "/unicorns", "", &Value::Null).await, 404, "could not find");
    is(rig.ask("GET", "/api/v1/unicorns", "", &Value::Null).await, 404, "could not find");
    is(
        rig.ask("DELETE", SERVICES, json, &json!({"propagationPolicy": "Now"})).await,
        400,
        "Unsupported value",
    );
    is(rig.ask("PUT", SERVICES, json, &json!({})).await, 405, "PUT is not supported");
    is(
        rig.ask("GET", &format!("{SERVICES}?labelSelector=a+b"), "", &Value::Null).await,
        400,
        "unable to parse",
    );
    let mut wrong = service("a");
    wrong["kind"] = "Pod".into();
    is(rig.post(SERVICES, &wrong).await, 400, "does not match the expected kind (Service)");
    let mut wrong = service("a");
    wrong["metadata"]["namespace"] = "other".into();
    is(rig.post(SERVICES, &wrong).await, 400, "namespace of the provided object");
    is(
        rig.post("/api/v1/namespaces/nowhere/services", &service("a")).await,
        404,
        "namespaces \"nowhere\"",
    );
    is(
        rig.ask("PUT", &format!("{SERVICES}/b"), json, &service("a")).await,
        400,
        "does not match the name on the URL",
    );
    let labels = json!({"metadata": {"name": "n", "labels": "x"}});
    is(rig.post("/api/v1/namespaces", &labels).await, 422, "metadata.labels: Invalid value: \"x\"");
    let data = json!({"metadata": {"name": "n"}, "data": 7, "stringData": {"a": "b"}});
    is(rig.post("/api/v1/namespaces/default/secrets", &data).await, 422, "data: Invalid value: 7");
    is(
        rig.post(SERVICES, &json!({"metadata": {"name": "n"}, "spec": "x"})).await,
        422,
        "spec: Invalid",
    );
    is(
        rig.post(SERVICES, &json!({"metadata": {"name": "n"}, "spec": {"ports": ["x", 1]}})).await,
        422,
        "spec.ports[0]",
    );
    is(rig.post(SERVICES, &json!({"metadata": "x"})).await, 400, "metadata");
    let response = rig.send("POST", SERVICES, &[("content-type", json)], "{\"a\": ").await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn large_bodies_are_refused_and_the_client_reads_why() {
    let rig = rig().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let size = 100 * 1024 * 1024;
    let head = format!(
        "POST {SERVICES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {size}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b' '; 1024 * 1024];
    for _ in 0..100 {
        stream.write_all(&piece).await.expect("the door reads on");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("RequestEntityTooLarge"), "{answer}");
    let big = json!({"metadata": {"name": "c"}, "data": {"k": "x".repeat(2 * 1024 * 1024)}});
    let (code, status) = rig.post("/api/v1/namespaces/default/configmaps", &big).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    let copies: Vec<Value> = (0..60)
        .map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")}))
        .collect();
    rig.post(
        "/api/v1/namespaces/default/configmaps",
        &json!({"metadata": {"name": "c"},
        "data": {"k": "x".repeat(1000)}}),
    )
    .await;
    let path = "/api/v1/namespaces/default/configmaps/c";
    let (code, status) =
        rig.ask("PATCH", path, "application/json-patch+json", &copies.into()).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("the patch copies more"), "{status}");
}

#[tokio::test]
async fn discovery_openapi_version_and_health() {
    let rig = rig().await;
    assert_eq!(rig.get("/api").await["versions"], json!(["v1"]));
    let groups = rig.get("/apis").await;
    let names: Vec<_> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"networking.istio.io") && names.contains(&"authorization.k8s.io"));
    let index = rig.get("/openapi/v3").await;
    for (path, entry) in index["paths"].as_object().unwrap() {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let doc = rig.get(url).await;
        assert!(doc["components"]["schemas"].as_object().unwrap().len() > 3, "{path}");
    }
    assert_eq!(rig.get("/openapi/v2").await["definitions"], json!({}));
    assert_eq!(rig.get("/apis/").await["kind"], "APIGroupList");
    assert_eq!(rig.get("/version/").await["major"], "1");
    for path in ["/livez", "/readyz", "/healthz", "/readyz/ping"] {
        let response = rig.send("GET", path, &[], "").await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "ok", "{path}");
    }
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let response = rig.send("GET", "/apis", &[("accept", v2)], "").await;
    assert_eq!(response.headers()["content-type"], v2);
}

#[tokio::test]
async fn definitions_are_there_and_stay() {
    let rig = rig().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let list = rig.get(crds).await;
    assert!(list["items"].as_array().unwrap().len() > 20);
    let name = "httproutes.gateway.networking.k8s.io";
    let one = rig.get(&format!("{crds}/{name}")).await;
    assert_eq!(one["spec"]["names"]["kind"], "HTTPRoute");
    assert_eq!(one["status"]["conditions"][1]["type"], "Established");
    let schema = &one["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert!(schema["properties"]["spec"]["properties"]["rules"].is_object());
    let path = format!("{crds}/{name}?fieldManager=x");
    let response = rig.send("PATCH", &path, &[("content-type", APPLY)], one.to_string()).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers()["warning"].to_str().unwrap().contains("serves this kind itself"));
    let other = json!({"metadata": {"name": "unicorns.example.com"}});
    let (code, status) = rig.post(crds, &other).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_gone() {
    let rig = rig().await;
    for i in 0..5 {
        rig.post(SERVICES, &service(&format!("s{i}"))).await;
    }
    let head = rig.registry.store().barrier().await.unwrap();
    rig.registry.store().compact(head).await.unwrap();
    let (code, status) =
        rig.ask("GET", &format!("{SERVICES}?watch=1&resourceVersion=1"), "", &Value::Null).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")), "{status}");
    let future = format!("{SERVICES}?resourceVersion=999999");
    let (code, status) = rig.ask("GET", &future, "", &Value::Null).await;
    assert_eq!((code, &status["reason"]), (504, &json!("Timeout")), "{status}");
}

#[tokio::test]
async fn logs_are_told_and_followed() {
    let rig = rig().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "one", "image": "a"}, {"name": "two", "image": "b"}]}});
    let (code, made) = rig.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(code, 201, "{made}");
    let log = "/api/v1/namespaces/default/pods/p/log";
    let (code, status) = rig.ask("GET", log, "", &Value::Null).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("choose one of: [one two]"), "{status}");
    let response = rig.send("GET", &format!("{log}?container=two&tailLines=5"), &[], "").await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "two tail=Some(5)\n");
    let (code, status) =
        rig.ask("GET", &format!("{log}?container=two&previous=true"), "", &Value::Null).await;
    assert_eq!((code, &status["message"]), (400, &json!("there was no process before")));
    // Who follows is told that the server ends.
    let response = rig.send("GET", &format!("{log}?container=one&follow=true"), &[], "").await;
    rig.tasks.begin_drain();
    let read = response.into_body().collect();
    let body = tokio::time::timeout(Duration::from_secs(60), read).await.expect("it ends");
    assert_eq!(body.unwrap().to_bytes(), "one tail=None\n");
}

#[tokio::test]
async fn figures_of_pods_are_told_once_they_are_measured() {
    let rig = rig().await;
    let pod = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}})
    };
    for name in ["a", "b", "unmeasured"] {
        assert_eq!(rig.post("/api/v1/namespaces/default/pods", &pod(name)).await.0, 201);
    }
    let of = Resources { cpu_milli: 5, memory_bytes: 2048, wall_ms: 0 };
    let names = ["default/a", "default/a/c", "default/b", "default/b/c"];
    rig.registry.note_resources(names.map(|n| (n.into(), of)).into());
    let base = "/apis/metrics.k8s.io/v1beta1";
    let all = rig.get(&format!("{base}/namespaces/default/pods")).await;
    assert_eq!(all["kind"], "PodMetricsList");
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    let some = rig.get(&format!("{base}/pods?labelSelector=app%3Db")).await;
    assert_eq!(some["items"][0]["metadata"]["name"], "b");
    assert_eq!(some["items"][0]["containers"][0]["usage"], json!({"cpu": "5m", "memory": "2Ki"}));
    let one = rig.get(&format!("{base}/namespaces/default/pods/a")).await;
    assert_eq!((&one["kind"], &one["window"]), (&json!("PodMetrics"), &json!("10s")));
    for (method, path, want) in [
        ("GET", "namespaces/default/pods/unmeasured", 404),
        ("GET", "namespaces/default/pods/nobody", 404),
        ("GET", "namespaces/default/services", 404),
        ("DELETE", "namespaces/default/pods/a", 405),
    ] {
        let (code, _) = rig.ask(method, &format!("{base}/{path}"), "", &Value::Null).await;
        assert_eq!(code, want, "{method} {path}");
    }
    let group = rig.get("/apis/metrics.k8s.io").await;
    assert_eq!(group["preferredVersion"]["version"], "v1beta1");
    let resources = rig.get(base).await;
    assert_eq!(resources["resources"][1]["kind"], "PodMetrics");
}

#[tokio::test]
async fn the_caller_may_ask_what_it_may() {
    let rig = rig().await;
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, answer) = rig.post(path, &review).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)));
}

#[tokio::test]
async fn a_thousand_garbage_connections_disturb_nobody() {
    let rig = rig().await;
    let mut rng = weft_base::rng::Rng::seeded(3);
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let noise: Vec<u8> = (0..64).map(|_| u8::try_from(rng.below(256)).unwrap()).collect();
        let _ = stream.write_all(&noise).await;
    }
    assert_eq!(rig.get("/api").await["kind"], "APIVersions");
    let default = rig.registry.now();
    assert!(default.get(weft_kinds::kind::KindId::Namespace, "", "default").is_some());
}

/// Whatever replaces a part of an object, the answer is a Status or the object, never a closed
/// connection.
#[tokio::test]
async fn any_value_in_any_place_gets_an_answer() {
    let rig = rig().await;
    let panics = weft_base::task::panics_total();
    let bases = [
        (SERVICES.to_owned(), service("x")),
        (DEPLOYMENTS.to_owned(), deployment("x")),
        ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": "x", "labels": {"a": "b"}}})),
        (
            "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes".to_owned(),
            json!({"metadata": {"name": "x"}, "spec": {"parentRefs": [{"name": "g"}], "rules": [
                {"matches": [{"path": {"value": "/"}}],
                    "backendRefs": [{"name": "a", "port": 1}]}]}}),
        ),
    ];
    let odd = [json!(null), json!(7), json!("x"), json!([]), json!({}), json!([{}]), json!(true)];
    for (path, base) in bases {
        let (code, made) = rig.post(&path, &base).await;
        assert_eq!(code, 201, "{made}");
        for place in pointers(&base) {
            for odd in &odd {
                let mut body = base.clone();
                if let Some(slot) = body.pointer_mut(&place) {
                    *slot = odd.clone();
                }
                let (code, answer) = rig.post(&format!("{path}?dryRun=All"), &body).await;
                assert!(code < 500 && answer["kind"].is_string(), "{place} {odd}: {code} {answer}");
                for media in [STRATEGIC, MERGE, APPLY] {
                    let url = format!("{path}/x?dryRun=All&fieldManager=m");
                    let (code, answer) = rig.ask("PATCH", &url, media, &body).await;
                    assert!(
                        code < 500 && answer["kind"].is_string(),
                        "{media} {place} {odd}: {code}"
                    );
                }
            }
        }
    }
    assert_eq!(weft_base::task::panics_total(), panics);
}

/// Every place of a value, as JSON pointers.
fn pointers(value: &Value) -> Vec<String> {
    let mut out = vec![String::new()];
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(all) => all.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        out.extend(pointers(child).into_iter().map(|p| format!("/{name}{p}")));
    }
    out
}
