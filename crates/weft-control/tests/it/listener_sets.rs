// SPDX-License-Identifier: Apache-2.0
//! ListenerSets and TLS of whole Gateways: which listeners of whom are served, who is told what,
//! and whose routes and policies count there.

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_control::status::StatusBody;
use weft_kinds::world::{KindId, ObjectKey, World};
use weft_model::{GatewayListener, ListenerKind, Parent, Resource, ResourceName, Root, Route};

use crate::common::{put, world_of};

/// Has the class `weft`, and in namespace shop the Secret `client`, whose parts are usable.
const BASE: &str = include_str!("../../testdata/backends-that-speak-tls-themselves/in.yaml");

pub struct Rig {
    pub world: World,
}

impl Rig {
    /// A Gateway `infra/gw` with one listener and what else its spec says.
    pub fn new(more: &Value) -> Self {
        let mut rig = Self { world: world_of([BASE]) };
        let mut spec = json!({
            "gatewayClassName": "weft", "addresses": [{"value": "127.0.0.9"}],
            "listeners": [listener("web", "a.example")]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        rig.object("gateway.networking.k8s.io/v1", "Gateway", ("infra", "gw"), 1, &spec);
        rig
    }

    pub fn object(
        &mut self,
        api: &str,
        kind: &str,
        (ns, name): (&str, &str),
        s: u32,
        spec: &Value,
    ) {
        put(
            &mut self.world,
            &json!({"apiVersion": api, "kind": kind, "metadata": {
            "name": name, "namespace": ns, "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:{s:02}Z")}, "spec": spec}),
        );
    }

    /// A set made at second `s`.
    pub fn set(&mut self, at: (&str, &str), s: u32, listeners: &[Value]) {
        let spec = json!({
            "parentRef": {"name": "gw", "namespace": "infra"}, "listeners": listeners});
        self.object("gateway.networking.k8s.io/v1", "ListenerSet", at, s, &spec);
    }

    fn route(&mut self, at: (&str, &str), parent: &Value) {
        let spec = json!({"parentRefs": [parent], "rules": [{}]});
        self.object("gateway.networking.k8s.io/v1", "HTTPRoute", at, 30, &spec);
    }

    pub fn put(&mut self, object: &Value) {
        put(&mut self.world, object);
    }

    fn compiler(&self) -> Compiler {
        Compiler::new(Env { low_ports: true, ..Env::default() }, &self.world).0
    }

    pub fn gateway(&self, port: u16) -> Option<GatewayListener> {
        let name = ResourceName::try_from(format!("listener:infra~gw~{port}")).unwrap();
        match self.compiler().mesh().get(&name).map(|r| (**r).clone())? {
            Resource::Listener(listener) => match listener.kind {
                ListenerKind::Gateway(gateway) => Some(gateway),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    pub fn sections(&self, port: u16) -> Vec<String> {
        let found = self.gateway(port);
        let open = found.iter().flat_map(|g| &g.sections).filter(|s| !s.is_closed());
        open.map(|s| s.name.to_string()).collect()
    }

    /// Names that nobody answers for.
    pub fn closed(&self, port: u16) -> Vec<String> {
        let found = self.gateway(port);
        let closed = found.iter().flat_map(|g| &g.sections).filter(|s| s.is_closed());
        closed.filter_map(|s| s.hostname.as_deref()).map(str::to_owned).collect()
    }

    fn routes(&self) -> Vec<Route> {
        let compiler = self.compiler();
        let all = compiler.mesh().resources().values().filter_map(|r| match &**r {
            Resource::Route(route) => Some(route.clone()),
            _ => None,
        });
        let own = |root: &Root| root.name().starts_with("infra~gw~");
        all.filter(|r| matches!(&r.parent, Parent::Listener { root, .. } if own(root))).collect()
    }

    /// `Accepted=True/Accepted …` of an object, with its listeners'.
    pub fn told(&self, kind: KindId, (ns, name): (&str, &str)) -> String {
        let key = ObjectKey::new(kind, ns, name);
        let compiler = self.compiler();
        let Some(status) = compiler.statuses().find(|s| s.object == key) else {
            return "nothing".into();
        };
        let text = |all: &[weft_control::status::Condition]| {
            let each = all.iter().map(|c| {
                format!("{}={}/{}", c.kind, if c.holds { "True" } else { "False" }, c.reason)
            });
            each.collect::<Vec<_>>().join(" ")
        };
        match &status.body {
            StatusBody::ListenerSet { conditions, listeners }
            | StatusBody::Gateway { conditions, listeners, .. } => {
                let each = listeners.iter().map(|l| {
                    format!("\n{} {}: {}", l.name, l.attached_routes, text(&l.conditions))
                });
                format!("{}{}", text(conditions), each.collect::<String>())
            }
            StatusBody::Parents(all) => {
                all.iter().map(|p| text(&p.conditions)).collect::<Vec<_>>().join("\n")
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn listener(name: &str, host: &str) -> Value {
    json!({"name": name, "hostname": host, "port": 80, "protocol": "HTTP"})
}

pub fn open(from: &str) -> Value {
    json!({"allowedListeners": {"namespaces": {"from": from}}})
}

pub const FINE: &str = "Accepted=True/Accepted Conflicted=False/NoConflicts \
                    ResolvedRefs=True/ResolvedRefs Programmed=True/Programmed";

#[test]
fn a_gateway_takes_the_sets_that_it_says_and_no_others() {
    let mut nowhere = Rig::new(&json!({}));
    for (from, own, other) in
        [("None", false, false), ("Same", true, false), ("All", true, true), ("Odd", false, false)]
    {
        let mut rig = Rig::new(&open(from));
        for at in [("infra", "own"), ("team", "other")] {
            rig.set(at, 5, &[listener("x", &format!("{}.example", at.1))]);
            nowhere.set(at, 5, &[listener("x", &format!("{}.example", at.1))]);
            let fine = format!("Accepted=True/Accepted Programmed=True/Programmed\nx 0: {FINE}");
            let not = "Accepted=False/NotAllowed Programmed=False/NotAllowed";
            let taken = if at.0 == "infra" { own } else { other };
            let told = rig.told(KindId::ListenerSet, at);
            assert_eq!(told, if taken { &fine } else { not }, "{from} {at:?}");
            assert_eq!(nowhere.told(KindId::ListenerSet, at), not, "the default is None");
        }
        let count = 1 + usize::from(own) + usize::from(other);
        assert_eq!(rig.sections(80).len(), count, "{from}");
    }
    assert_eq!(nowhere.sections(80), ["web"]);
    let selector = json!({"allowedListeners": {"namespaces":
        {"from": "Selector", "selector": {"matchLabels": {"team": "yes"}}}}});
    let mut rig = Rig::new(&selector);
    rig.set(("team", "s"), 5, &[listener("x", "b.example")]);
    assert_eq!(rig.sections(80), ["web"], "the namespace has no labels");
    rig.put(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team", "labels": {"team": "yes"}}}));
    assert_eq!(rig.sections(80), ["web", "listenerset/team/s/x"]);
}

#[test]
fn who_was_first_keeps_a_place_and_the_other_is_told_without_names() {
    let mut rig = Rig::new(&open("All"));
    // The older one counts first, whatever its name; of the same age, the one that sorts first.
    rig.set(("a", "young"), 9, &[listener("x", "b.example"), listener("y", "c.example")]);
    rig.set(("z", "old"), 3, &[listener("x", "b.example")]);
    rig.set(("b", "young"), 9, &[listener("y", "c.example"), listener("own", "A.example")]);
    let mut tcp = listener("t", "");
    tcp["protocol"] = json!("TCP");
    rig.set(("c", "bytes"), 1, &[tcp, json!({"name": "u", "port": 80, "protocol": "UDP"})]);
    let (ok, udp) = ("listenerset/z/old/x", "listenerset/c/bytes/u");
    assert_eq!(rig.sections(80), ["web", ok, "listenerset/a/young/y"]);
    let lost = |reason: &str| {
        format!(
            "Accepted=False/{reason} Conflicted=True/{reason} ResolvedRefs=True/ResolvedRefs \
             Programmed=False/{reason}"
        )
    };
    let host = lost("HostnameConflict");
    assert_eq!(
        rig.told(KindId::ListenerSet, ("a", "young")),
        format!(
            "Accepted=True/ListenersNotValid Programmed=True/Programmed\nx 0: {host}\ny 0: {FINE}"
        )
    );
    assert_eq!(
        rig.told(KindId::ListenerSet, ("b", "young")),
        format!(
            "Accepted=False/ListenersNotValid Programmed=False/ListenersNotValid\ny 0: {host}\n\
             own 0: {host}"
        )
    );
    let bytes = rig.told(KindId::ListenerSet, ("c", "bytes"));
    assert!(bytes.contains(&format!("t 0: {}", lost("ProtocolConflict"))), "{bytes}");
    let name = ResourceName::try_from("listener:infra~gw~80~udp".to_owned()).unwrap();
    let compiler = rig.compiler();
    let found = format!("{:?}", compiler.mesh().get(&name));
    assert!(found.contains(udp), "datagrams are told apart from bytes: {found}");
    let written =
        compiler.statuses().find(|s| &*s.object.name == "young" && &*s.object.namespace == "b");
    let json = written.unwrap().settle(None, "t").unwrap().to_string();
    assert!(
        !json.contains("z/") && !json.contains("old "),
        "other people's sets are not named: {json}"
    );
    let gateway = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(gateway.starts_with("Accepted=True/Accepted Programmed=True/Programmed\nweb 0"));
    let key = ObjectKey::new(KindId::Gateway, "infra", "gw");
    let status = compiler.statuses().find(|s| s.object == key).unwrap().settle(None, "t").unwrap();
    assert_eq!(status["attachedListenerSets"], 3);
}

#[test]
fn a_listener_that_lost_its_place_takes_none_from_the_next() {
    let mut rig = Rig::new(&json!({"listeners": [
        listener("web", "a.example"),
        {"name": "tcp", "port": 80, "protocol": "TCP"},
        listener("more", "b.example")]}));
    assert_eq!(rig.sections(80), ["web", "more"]);
    // A Gateway without sets does not speak of them.
    let compiler = rig.compiler();
    let key = ObjectKey::new(KindId::Gateway, "infra", "gw");
    let status = compiler.statuses().find(|s| s.object == key).unwrap().settle(None, "t").unwrap();
    assert_eq!(status["attachedListenerSets"], Value::Null);
    rig.set(("infra", "s"), 2, &[listener("x", "c.example")]);
    assert_eq!(rig.sections(80), ["web", "more"]);
}

#[test]
fn routes_attach_to_the_parent_that_they_name() {
    let mut rig = Rig::new(&open("All"));
    rig.set(("team", "s"), 5, &[listener("web", "b.example"), listener("y", "c.example")]);
    rig.set(("alone", "s"), 5, &[]);
    let set = json!({"kind": "ListenerSet", "name": "s"});
    rig.route(("team", "all"), &set);
    rig.route(("team", "one"), &json!({"kind": "ListenerSet", "name": "s", "sectionName": "y"}));
    rig.route(("infra", "gw"), &json!({"name": "gw"}));
    rig.route(("infra", "wrong"), &json!({"name": "gw", "sectionName": "y"}));
    rig.route(("infra", "far"), &json!({"kind": "ListenerSet", "name": "s", "namespace": "team"}));
    let mut sections: Vec<(String, Vec<String>)> = rig
        .routes()
        .iter()
        .map(|route| match &route.parent {
            Parent::Listener { sections, .. } => {
                let each = sections.iter().map(ToString::to_string).collect();
                (route.rank.name.to_string(), each)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    sections.sort();
    let (x, y) = ("listenerset/team/s/web".to_owned(), "listenerset/team/s/y".to_owned());
    assert_eq!(
        sections,
        [
            ("infra/gw".to_owned(), vec!["web".to_owned()]),
            ("team/all".to_owned(), vec![x, y.clone()]),
            ("team/one".to_owned(), vec![y]),
        ]
    );
    let told = |at| rig.told(KindId::HttpRoute, at);
    assert!(told(("team", "all")).starts_with("Accepted=True/Accepted"));
    assert!(told(("infra", "wrong")).starts_with("Accepted=False/NoMatchingParent"));
    // `Same` is the namespace of the set, not of its Gateway.
    assert!(told(("infra", "far")).starts_with("Accepted=False/NotAllowedByListeners"));
    let set = rig.told(KindId::ListenerSet, ("team", "s"));
    assert!(set.contains("\nweb 1: ") && set.contains("\ny 2: "), "{set}");
    let gateway = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(gateway.contains("\nweb 1: "), "{gateway}");
    // The Gateway closes: the set's routes go with it.
    rig.object(
        "gateway.networking.k8s.io/v1",
        "Gateway",
        ("infra", "gw"),
        1,
        &json!({
        "gatewayClassName": "weft", "addresses": [{"value": "127.0.0.9"}],
        "listeners": [listener("web", "a.example")]}),
    );
    assert_eq!(rig.routes().len(), 1);
    let told = rig.told(KindId::HttpRoute, ("team", "all"));
    assert!(told.starts_with("Accepted=False/NotAllowedByListeners"), "{told}");
}

#[test]
fn a_sets_policy_counts_there_and_the_gateways_elsewhere() {
    let mut rig = Rig::new(&open("All"));
    rig.set(("team", "s"), 5, &[listener("x", "b.example"), listener("web", "c.example")]);
    rig.set(("infra", "t"), 5, &[listener("web", "d.example")]);
    let policy = |rig: &mut Rig, at: (&str, &str), target: Value, bytes: u32| {
        let spec = json!({"targetRefs": [target], "requestLimits": {"bodyBytes": bytes}});
        rig.object("weft.dev/v1alpha1", "TrafficPolicy", at, 1, &spec);
    };
    policy(&mut rig, ("infra", "whole"), json!({"kind": "Gateway", "name": "gw"}), 1);
    policy(
        &mut rig,
        ("infra", "part"),
        json!({"kind": "Gateway", "name": "gw", "sectionName": "web"}),
        2,
    );
    policy(
        &mut rig,
        ("team", "set"),
        json!({"kind": "ListenerSet", "name": "s", "sectionName": "x"}),
        3,
    );
    rig.route(("team", "r"), &json!({"kind": "ListenerSet", "name": "s"}));
    rig.route(("infra", "r"), &json!({"name": "gw"}));
    rig.route(("infra", "t"), &json!({"kind": "ListenerSet", "name": "t"}));
    let mut limits: Vec<(String, String)> = Vec::new();
    for route in rig.routes() {
        let Parent::Listener { sections, .. } = &route.parent else { panic!() };
        limits.push((sections.join(" "), format!("{:?}", route.rules[0].filters)));
    }
    limits.sort();
    let want = [
        ("listenerset/infra/t/web", "[BodyLimit(1)]"),
        ("listenerset/team/s/web", "[BodyLimit(1)]"),
        ("listenerset/team/s/x", "[BodyLimit(3)]"),
        ("web", "[BodyLimit(2)]"),
    ];
    assert_eq!(limits, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn a_sets_secrets_are_of_its_own_namespace() {
    let mut rig = Rig::new(&open("All"));
    let https = |name: &str, host: &str, secret: &Value| {
        json!({"name": name, "hostname": host, "port": 443, "protocol": "HTTPS",
            "tls": {"certificateRefs": [secret]}})
    };
    rig.set(("shop", "own"), 5, &[https("x", "b.example", &json!({"name": "client"}))]);
    let far = json!({"name": "client", "namespace": "shop"});
    rig.set(("team", "far"), 5, &[https("x", "c.example", &far)]);
    assert_eq!(rig.sections(443), ["listenerset/shop/own/x"]);
    // Its name is not for a wider listener of another owner.
    assert_eq!(rig.closed(443), ["c.example"]);
    let told = rig.told(KindId::ListenerSet, ("team", "far"));
    assert!(told.starts_with("Accepted=False/ListenersNotValid"), "{told}");
    assert!(told.contains("ResolvedRefs=False/RefNotPermitted"), "{told}");
    // What Gateways may is not what sets may.
    let grant = |rig: &mut Rig, kind: &str| {
        let spec = json!({
            "from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "team"}],
            "to": [{"group": "", "kind": "Secret"}]});
        rig.object("gateway.networking.k8s.io/v1", "ReferenceGrant", ("shop", "g"), 1, &spec);
    };
    grant(&mut rig, "Gateway");
    assert_eq!(rig.sections(443).len(), 1);
    grant(&mut rig, "ListenerSet");
    assert_eq!(rig.sections(443), ["listenerset/shop/own/x", "listenerset/team/far/x"]);
    assert!(rig.closed(443).is_empty());
}

// === TLS of the whole ===

fn frontend(mode: Option<&str>, refs: &[Value]) -> Value {
    let mut validation = json!({"caCertificateRefs": refs});
    if let Some(mode) = mode {
        validation["mode"] = json!(mode);
    }
    json!({"validation": validation})
}

pub fn https(tls: &Value) -> Value {
    let listener = |name: &str, port: u16| {
        json!({"name": name, "port": port, "protocol": "HTTPS",
            "tls": {"certificateRefs": [{"name": "client", "namespace": "shop"}]}})
    };
    let plain = listener("web", 80);
    let plain = json!({"name": plain["name"], "port": 80, "protocol": "HTTP"});
    json!({"tls": tls, "listeners": [plain, listener("s", 443), listener("t", 8443)]})
}

pub fn secured(tls: &Value) -> Rig {
    let mut rig = Rig::new(&https(tls));
    let spec = json!({
        "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra"}],
        "to": [{"group": "", "kind": "Secret"}]});
    rig.object("gateway.networking.k8s.io/v1", "ReferenceGrant", ("shop", "g"), 1, &spec);
    let ca = world_of([BASE]);
    let ca = ca.objects(KindId::ConfigMap, None).next().expect("the golden file has one");
    let ca = ca.raw["data"]["ca.crt"].clone();
    for ns in ["infra", "far"] {
        rig.put(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "ca", "namespace": ns}, "data": {"ca.crt": ca}}));
    }
    rig
}

#[test]
fn clients_are_asked_for_certificates_port_by_port() {
    let ca = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
    let rig = secured(&json!({"frontend": {
        "default": frontend(None, std::slice::from_ref(&ca)),
        "perPort": [{"port": 8443, "tls": frontend(Some("AllowInsecureFallback"), &[ca])}]}}));
    let clients = |port| {
        let gateway = rig.gateway(port).unwrap();
        let found = gateway.sections[0].tls.as_ref().and_then(|t| t.clients.as_ref()).cloned();
        found.map(|c| (c.required, c.insecure, c.ca_pem.contains("BEGIN CERTIFICATE")))
    };
    assert_eq!(clients(80), None);
    assert_eq!(clients(443), Some((true, false, true)));
    assert_eq!(clients(8443), Some((false, true, true)));
    let told = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(told.contains("InsecureFrontendValidationMode=True/ConfigurationChanged"), "{told}");
}

#[test]
fn an_authority_that_cannot_be_used_closes_https_and_nothing_else() {
    for (reference, reason) in [
        (json!({"group": "", "kind": "ConfigMap", "name": "none"}), "InvalidCACertificateRef"),
        (json!({"group": "", "kind": "Service", "name": "ca"}), "InvalidCACertificateKind"),
        (
            json!({"group": "", "kind": "ConfigMap", "name": "ca", "namespace": "far"}),
            "RefNotPermitted",
        ),
    ] {
        let bad = frontend(None, std::slice::from_ref(&reference));
        let rig = secured(&json!({"frontend": {"default": bad}}));
        assert!(rig.sections(443).is_empty(), "{reference}");
        assert_eq!(rig.sections(80), ["web"]);
        let told = rig.told(KindId::Gateway, ("infra", "gw"));
        let want = format!(
            "s 0: Accepted=False/NoValidCACertificate Conflicted=False/NoConflicts \
             ResolvedRefs=False/{reason} Programmed=False/Invalid"
        );
        assert!(told.contains(&want), "{told}");
        // One that can be used is enough.
        let ca = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
        let both = frontend(None, &[reference, ca]);
        let rig = secured(&json!({"frontend": {"default": both}}));
        assert_eq!(rig.sections(443), ["s"]);
        let told = rig.told(KindId::Gateway, ("infra", "gw"));
        assert!(told.contains(&format!("ResolvedRefs=False/{reason}")), "{told}");
    }
}

#[test]
fn a_gateway_shows_backends_the_certificate_that_it_names() {
    let shown = |name: &str, namespace: &str| {
        let reference = json!({"name": name, "namespace": namespace});
        json!({"backend": {"clientCertificateRef": reference}})
    };
    let rig = secured(&shown("client", "shop"));
    for port in [80, 443] {
        assert!(rig.gateway(port).unwrap().backend_certificate.is_some(), "{port}");
    }
    let told = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(told.contains("ResolvedRefs=True/ResolvedRefs\nweb"), "{told}");
    for (tls, reason) in [
        (shown("none", "infra"), "InvalidClientCertificateRef"),
        (shown("client", "far"), "RefNotPermitted"),
    ] {
        let rig = secured(&tls);
        assert!(rig.gateway(80).unwrap().backend_certificate.is_none());
        let told = rig.told(KindId::Gateway, ("infra", "gw"));
        let want = format!(
            "Accepted=True/Accepted Programmed=True/Programmed ResolvedRefs=False/{reason}"
        );
        assert!(told.starts_with(&want), "{told}");
    }
}

#[test]
fn what_a_gateway_asks_of_its_infrastructure_is_done_or_refused() {
    let rig = Rig::new(&json!({"infrastructure":
        {"parametersRef": {"group": "x", "kind": "Y", "name": "z"}}}));
    assert!(rig.gateway(80).is_none());
    let told = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(told.starts_with("Accepted=False/InvalidParameters Programmed=False/Invalid"));
    // An address without a value is weft's to give.
    let rig = Rig::new(&json!({"addresses": [{"type": "IPAddress"}]}));
    let told = rig.told(KindId::Gateway, ("infra", "gw"));
    assert!(told.contains("Programmed=False/AddressNotAssigned"), "{told}");
    let mut rig = Rig::new(&json!({}));
    rig.put(&json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "gw", "namespace": "infra",
            "annotations": {"weft.dev/address": "127.65.0.7"}},
        "spec": {"gatewayClassName": "weft", "listeners": [listener("web", "a.example")],
            "addresses": [{"type": "IPAddress"}, {"value": "127.0.0.9"}]}}));
    let bind: Vec<String> = rig.gateway(80).unwrap().bind.iter().map(ToString::to_string).collect();
    assert_eq!(bind, ["127.0.0.9:80", "127.65.0.7:80"]);
}
