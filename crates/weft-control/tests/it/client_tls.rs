// SPDX-License-Identifier: Apache-2.0
//! TLS that a DestinationRule asks for is spoken as written or nothing is sent: what cannot be
//! used fails the backend, and private keys stay in their namespace.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::{World, resolved_value};
use weft_model::{Resource, ResourceName, Trust};

use crate::common::{put, world_of};

/// Has the class `weft`, and in namespace shop the Secret `client`, whose parts are usable.
const BASE: &str = include_str!("../../testdata/backends-that-speak-tls-themselves/in.yaml");

struct Rig {
    world: World,
}

impl Rig {
    fn new() -> Self {
        Self { world: world_of([BASE]) }
    }

    /// A DestinationRule of a namespace.
    fn rule(&mut self, namespace: &str, host: &str, tls: &Value) {
        self.put(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "r", "namespace": namespace},
            "spec": {"host": host, "trafficPolicy": {"tls": tls}}}));
    }

    fn service(&mut self, namespace: &str, name: &str) {
        self.put(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"name": "tls", "port": 443}]}}));
    }

    fn entry(&mut self, namespace: &str, host: &str, resolution: &str) {
        let mut spec = json!({"hosts": [host], "resolution": resolution,
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
        if resolution == "STATIC" {
            spec["endpoints"] = json!([{"address": "192.0.2.9"}]);
        }
        self.put(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "e", "namespace": namespace}, "spec": spec}));
    }

    /// A Secret of namespace shop made of parts of `client`, or of texts that are none.
    fn secret(&mut self, name: &str, parts: &[(&str, &str)]) {
        let known = world_of([BASE]);
        let key = "Secret shop/client";
        let mut all = known.objects(weft_kinds::world::KindId::Secret, Some("shop"));
        let known = all.find(|o| o.key.to_string() == key).expect("the golden file has it");
        let value = |part: &str| match &known.raw["data"][part] {
            Value::Null => json!(part),
            found => found.clone(),
        };
        let data: serde_json::Map<String, Value> =
            parts.iter().map(|(key, part)| ((*key).to_owned(), value(part))).collect();
        self.put(&json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": "shop"}, "data": data}));
    }

    fn put(&mut self, object: &Value) {
        put(&mut self.world, object);
    }

    fn get(&self, name: &str) -> Option<Resource> {
        let (compiler, _) = Compiler::new(Env::default(), &self.world);
        let name = ResourceName::try_from(name.to_owned()).unwrap();
        compiler.mesh().get(&name).map(|r| (**r).clone())
    }

    /// Why nothing is sent to a backend.
    fn why(&self, name: &str) -> String {
        match self.get(name) {
            Some(Resource::Fail(fail)) => fail.reason.to_string(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Whom a backend's clients believe.
    fn trust(&self, name: &str) -> Trust {
        match self.get(name) {
            Some(Resource::Backend(backend)) => backend.policy.tls.expect("it speaks TLS").trust,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// A condition of an object's status: whether it is true, its reason and message.
    fn condition(&self, object: &str, kind: &str) -> Option<(bool, String)> {
        let (_, update) = Compiler::new(Env::default(), &self.world);
        let status = update.statuses.iter().find(|s| s.object.to_string() == object).unwrap();
        let settled = status.settle(None, "NOW").unwrap();
        let all = settled["conditions"].as_array().unwrap();
        let found = all.iter().find(|c| c["type"] == kind)?;
        let text = format!("{}: {}", found["reason"], found["message"]);
        Some((found["status"] == "True", text))
    }
}

const WEB: &str = "host:web.shop.svc.cluster.local/backend/443";

#[test]
fn a_name_that_no_handshake_can_ask_for_fails_the_backend() {
    let mut rig = Rig::new();
    rig.service("shop", "web");
    rig.rule("shop", "web", &json!({"mode": "SIMPLE", "sni": "*.example.com"}));
    assert!(rig.why(WEB).contains("sni \"*.example.com\" is no name"), "{}", rig.why(WEB));
    let (_, text) = rig.condition("DestinationRule shop/r", "Warning").unwrap();
    assert!(text.contains("nothing is sent there"), "{text}");
    rig.rule("shop", "web", &json!({"mode": "SIMPLE", "sni": "a.example.com"}));
    assert_eq!(rig.trust(WEB), Trust::System);
}

#[test]
fn authorities_of_a_secret_are_used_or_nothing_is_sent() {
    let garbage =
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCmdhcmJhZ2UKLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
    let mut rig = Rig::new();
    rig.service("shop", "web");
    for mode in ["SIMPLE", "MUTUAL"] {
        let tls = json!({"mode": mode, "credentialName": "s"});
        rig.rule("shop", "web", &tls);
        let name = if mode == "SIMPLE" { WEB.to_owned() } else { format!("{WEB}~gateways") };
        let why = |rig: &Rig| rig.why(WEB);
        let pair = [("tls.crt", "tls.crt"), ("tls.key", "tls.key")];
        let with = |key, text| [&pair[..], &[(key, text)]].concat();
        rig.secret("s", &pair);
        assert!(why(&rig).contains("has no authorities under ca.crt"), "{mode}: {}", why(&rig));
        for (text, wrong) in [(garbage, "cannot be used"), ("%", "no base64"), ("", "cannot be")] {
            rig.secret("s", &with("ca.crt", text));
            assert!(why(&rig).contains(wrong), "{mode}: {}", why(&rig));
        }
        rig.secret("s", &with("cacert", "ca.crt"));
        assert!(matches!(rig.trust(&name), Trust::Authorities(_)), "{mode}");
        rig.secret("s", &pair);
        rig.rule(
            "shop",
            "web",
            &json!({"mode": mode, "credentialName": "s",
            "caCertificates": "system"}),
        );
        assert_eq!(rig.trust(&name), Trust::System, "{mode}");
        // Istio's second Secret counts before the first one, usable or not.
        rig.rule("shop", "web", &tls);
        rig.secret("s-cacert", &[("ca.crt", "ca.crt")]);
        assert!(matches!(rig.trust(&name), Trust::Authorities(_)), "{mode}");
        rig.secret("s", &with("ca.crt", "ca.crt"));
        rig.secret("s-cacert", &[("ca.crt", garbage)]);
        assert!(why(&rig).contains("s-cacert"), "{mode}: {}", why(&rig));
        rig = Rig::new();
        rig.service("shop", "web");
    }
}

#[test]
fn a_certificate_that_does_not_fit_its_key_is_not_shown() {
    let mut rig = Rig::new();
    rig.service("shop", "web");
    rig.rule("shop", "web", &json!({"mode": "MUTUAL", "credentialName": "s"}));
    let unfit = [("tls.crt", "ca.crt"), ("tls.key", "tls.key"), ("ca.crt", "ca.crt")];
    rig.secret("s", &unfit);
    assert!(rig.why(WEB).contains("its certificate and key cannot be used"), "{}", rig.why(WEB));
    assert_eq!(rig.get(&format!("{WEB}~gateways")), None);
    rig.secret("s", &[("tls.crt", "tls.crt"), ("key", "tls.key"), ("ca.crt", "ca.crt")]);
    assert!(rig.why(WEB).contains("no certificate and key under"), "halves of two pairs");
}

#[test]
fn a_private_key_is_for_gateways_of_its_namespace() {
    let mut rig = Rig::new();
    for ns in ["shop", "evil"] {
        rig.put(&json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": ns,
                "annotations": {"weft.dev/address": "127.0.0.1"}},
            "spec": {"servers": [{"port": {"number": 8081, "name": "http", "protocol": "HTTP"},
                "hosts": ["*"]}]}}));
        rig.put(&json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "vs", "namespace": ns},
            "spec": {"hosts": [format!("{ns}.example.com")], "gateways": ["gw"],
                "http": [{"route": [{"destination": {
                    "host": "mutual.shop.svc.cluster.local", "port": {"number": 443}}}]}]}}));
    }
    let (compiler, _) = Compiler::new(Env::default(), &rig.world);
    let mesh = compiler.mesh();
    for ns in ["shop", "evil"] {
        let node = format!("gateway~{ns}~gw");
        let scope = mesh.scope(&node.parse().unwrap()).expect("it is a node");
        let seen: Vec<_> = mesh.view(&scope).collect();
        let names: Vec<String> = seen.iter().map(|(name, _)| name.to_string()).collect();
        let sent = |(_, r): &(_, &Arc<Resource>)| serde_json::to_string(r).unwrap();
        let text: String = seen.iter().map(sent).collect();
        let host = "host:mutual.shop.svc.cluster.local/backend/443";
        assert!(names.contains(&host.to_owned()), "{node} sees why it must not: {names:?}");
        let marked = format!("{host}~gateways");
        assert_eq!(names.contains(&marked), ns == "shop", "{node}: {names:?}");
        assert_eq!(text.contains("PRIVATE KEY"), ns == "shop", "{node}");
        // And its routes lead to what it sees.
        let routes = seen.iter().filter_map(|(_, r)| match &***r {
            Resource::Route(route) => Some(route),
            _ => None,
        });
        let targets: Vec<String> =
            routes.flat_map(|r| r.targets()).map(|(name, _)| name.to_string()).collect();
        assert!(!targets.is_empty() && targets.iter().all(|t| names.contains(t)), "{targets:?}");
    }
    let why = rig.why("host:mutual.shop.svc.cluster.local/backend/443");
    assert!(why.contains("Gateways of namespace shop alone"), "{why}");
}

#[test]
fn a_rule_about_an_entrys_host_is_of_the_entrys_namespace() {
    let simple = json!({"mode": "SIMPLE"});
    for host in ["x.example.com", "example.org"] {
        let mut rig = Rig::new();
        rig.entry("infra", host, "STATIC");
        rig.rule("app", host, &simple);
        let (accepted, text) = rig.condition("DestinationRule app/r", "Accepted").unwrap();
        assert!(!accepted && text.contains("NotInServiceNamespace"), "{text}");
        assert!(text.contains("move this one to infra"), "{text}");
        let mut rig = Rig::new();
        rig.entry("infra", host, "STATIC");
        rig.rule("infra", host, &simple);
        let (accepted, text) = rig.condition("DestinationRule infra/r", "Accepted").unwrap();
        assert!(accepted, "{text}");
        assert_eq!(rig.trust(&format!("host:{host}/backend/80")), Trust::System);
    }
}

#[test]
fn a_host_whose_address_is_unknown_is_not_sent_plaintext_where_tls_is_asked_for() {
    let mut rig = Rig::new();
    let name = "host:x.example.com/backend/80";
    rig.entry("shop", "x.example.com", "DNS");
    assert_eq!(rig.get("host:x.example.com"), None, "nobody asks for TLS: it passes as it is");
    rig.rule("shop", "x.example.com", &json!({"mode": "SIMPLE"}));
    assert!(matches!(rig.get("host:x.example.com"), Some(Resource::Host(_))));
    let why = rig.why(name);
    assert!(why.contains("no address of x.example.com is known"), "{why}");
    // A Gateway's route finds the sentence, too.
    rig.rule("shop", "x.example.com", &json!({"mode": "MUTUAL", "credentialName": "client"}));
    let why = rig.why(&format!("{name}~gateways"));
    assert!(why.contains("no address of x.example.com is known"), "{why}");
    rig.rule("shop", "x.example.com", &json!({"mode": "SIMPLE"}));
    let found = resolved_value(&[[192, 0, 2, 1].into()]).to_string();
    let revision = rig.world.revision() + 1;
    rig.world.apply("/s/resolved/x.example.com", Some(found.as_bytes()), revision);
    assert_eq!(rig.trust(name), Trust::System);
}

#[test]
fn hosts_that_say_not_where_they_are_have_a_warning() {
    let mut rig = Rig::new();
    rig.entry("shop", "x.example.com", "NONE");
    rig.rule("shop", "x.example.com", &json!({"mode": "SIMPLE"}));
    assert!(rig.why("host:x.example.com/backend/80").contains("names no address"));
    for object in ["DestinationRule shop/r", "ServiceEntry shop/e"] {
        let (_, text) = rig.condition(object, "Warning").unwrap();
        assert!(text.contains("names no address to begin TLS with"), "{object}: {text}");
    }
    let mut rig = Rig::new();
    rig.entry("shop", "*.wild.example.com", "NONE");
    rig.rule("shop", "*.wild.example.com", &json!({"mode": "SIMPLE"}));
    let (_, text) = rig.condition("DestinationRule shop/r", "Warning").unwrap();
    assert!(text.contains("pass as they are"), "{text}");
    let (_, text) = rig.condition("ServiceEntry shop/e", "Warning").unwrap();
    assert!(text.contains("without the TLS of DestinationRule shop/r"), "{text}");
}
