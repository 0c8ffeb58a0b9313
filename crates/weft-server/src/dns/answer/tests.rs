// SPDX-License-Identifier: Apache-2.0
//! Queries against a World of both doors' making, answers read back by the codec.

use std::str::FromStr;
use std::sync::Arc;

use domain::base::iana::{Opcode, Rcode};
use domain::base::opt::AllOptData;
use domain::base::{Message, MessageBuilder, Name as DomainName};
use domain::rdata::AllRecordData;
use serde_json::{Value, json};
use weft_kinds::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};

use super::*;
use crate::dns::fuzz::Door;

mod rights;

type DnsName = DomainName<Vec<u8>>;

struct Rig {
    world: Arc<World>,
    own: Arc<Identity>,
    zones: Zones,
    desk: Desk,
    records: Option<State>,
    /// Who asks.
    who: Who,
    only_passing: bool,
}

/// An answer as text: the code, answers, authority, additional records.
#[derive(Debug, PartialEq)]
struct Shown {
    rcode: String,
    tc: bool,
    answers: Vec<String>,
    authority: Vec<String>,
    additional: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        let node =
            NodeRecord { node: "n1".into(), address: "127.0.0.1".into(), ..NodeRecord::default() };
        let own = Identity { node: Arc::new(node), datacenter: "dc1".into(), version: "".into() };
        let zones = Zones { datacenter: "dc1".into(), cluster_domain: "cluster.local".into() };
        let desk = Desk::new(Rng::seeded(1));
        Self {
            world: Arc::default(),
            own: Arc::new(own),
            zones,
            desk,
            records: None,
            who: Who::anybody(),
            only_passing: false,
        }
    }

    fn put(&mut self, key: &str, value: &impl serde::Serialize) {
        let revision = self.world.revision() + 1;
        Arc::make_mut(&mut self.world).apply(
            key,
            Some(&serde_json::to_vec(value).unwrap()),
            revision,
        );
    }

    fn register(&mut self, id: &str, service: &str, address: &str, tags: &[&str]) {
        let registration = Registration {
            id: id.into(),
            service: service.into(),
            node: "n1".into(),
            namespace: "default".into(),
            address: address.into(),
            port: 8080,
            tags: tags.iter().map(|t| (*t).into()).collect(),
            agent: true,
            ..Registration::default()
        };
        let place =
            RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.into() };
        self.put(&StoreKey::Registration(place).to_string(), &registration);
        let check = CheckRecord {
            id: format!("service:{id}").into(),
            node: "n1".into(),
            namespace: "default".into(),
            service_id: id.into(),
            initial: Status::Passing,
            ..CheckRecord::default()
        };
        self.put(&StoreKey::Check(check_key(id)).to_string(), &check);
    }

    fn tell(&mut self, id: &str, status: Status) {
        let key = StoreKey::CheckStatus(check_key(id)).to_string();
        self.put(&key, &CheckStatus { status, ..CheckStatus::default() });
    }

    fn service(&mut self, name: &str, spec: Value, ips: &[(&str, bool)]) {
        let meta = json!({"name": name, "namespace": "shop"});
        let at = format!("/o/core/services/shop/{name}");
        self.put(&at, &json!({"metadata": meta, "spec": spec}));
        let endpoints: Vec<Value> = ips
            .iter()
            .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
            .collect();
        let slice = json!({
            "metadata": {"name": name, "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints,
        });
        self.put(&format!("/o/discovery.k8s.io/endpointslices/shop/{name}"), &slice);
    }

    /// Pods of a StatefulSet behind a headless service of both families.
    fn stateful(&mut self, service: &str, pods: &[(&str, &str, &str)]) {
        let spec = json!({"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        self.service(service, spec, &[]);
        let mut endpoints = Vec::new();
        for (name, v4, v6) in pods {
            let pod = json!({
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"hostname": name, "subdomain": service},
                "status": {"podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]},
            });
            self.put(&format!("/o/core/pods/shop/{name}"), &pod);
            let owner = json!({"owner": format!("Pod shop/{name}")});
            self.put(&format!("/s/addresses/{v4}"), &owner);
            endpoints.push(json!({"addresses": [v4], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": name, "namespace": "shop"}}));
        }
        let slice = json!({
            "metadata": {"name": service, "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints,
        });
        self.put(&format!("/o/discovery.k8s.io/endpointslices/shop/{service}"), &slice);
    }

    fn raw(&mut self, query: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        self.raw_as(query, &How { carrier, recursive: false, proven: true, cookie: None })
    }

    fn raw_as(&mut self, query: &[u8], how: &How) -> Option<Vec<u8>> {
        let (step, out) = self.step(query, how, None);
        let sources = Sources::bare(&self.world, &self.own, &self.zones);
        let query = question(query, &mut Vec::new());
        match step {
            Step::Answer => Some(out),
            Step::Silence => None,
            Step::Outside => Some(refuse_outside(&query.unwrap(), how)),
            Step::Alias(alias) => {
                let mut rng = Rng::seeded(1);
                Some(complete(&query.unwrap(), how, *alias, Vec::new(), &sources, &mut rng))
            }
        }
    }

    fn step(&mut self, query: &[u8], how: &How, namespace: Option<&str>) -> (Step, Vec<u8>) {
        let mut out = Vec::new();
        let query = match question(query, &mut out) {
            Ok(query) => query,
            Err(step) => return (step, out),
        };
        let records = || self.records.clone();
        let bare = Sources::bare(&self.world, &self.own, &self.zones);
        let (who, only_passing) = (&self.who, self.only_passing);
        let sources = Sources { records: &records, who, holder: &holder, only_passing, ..bare };
        let step = self.desk.step(&query, how, namespace, &sources, &mut out);
        (step, out)
    }

    fn ask(&mut self, name: &str, rtype: Rtype) -> Shown {
        let answer = self.raw(&query(name, rtype, Some(1232)), Carrier::Udp).unwrap();
        shown(&answer)
    }

    fn check(&mut self, name: &str, rtype: Rtype, rcode: &str, answers: &[&str]) {
        let got = self.ask(name, rtype);
        let mut sorted = got.answers.clone();
        sorted.sort();
        assert_eq!(
            (got.rcode.as_str(), sorted.as_slice()),
            (rcode, &strings(answers)[..]),
            "{name} {rtype}"
        );
        let soa = got.authority.iter().any(|line| line.contains("hostmaster."));
        assert_eq!(soa, answers.is_empty() && rcode != "REFUSED", "SOA of {name}: {got:?}");
    }
}

/// Of a prepared query's token.
fn holder(secret: &str) -> Who {
    if secret == "all" { Who::anybody() } else { Who::without_rights() }
}

fn check_key(id: &str) -> CheckKey {
    let id = format!("service:{id}").into();
    CheckKey { namespace: "default".into(), node: "n1".into(), id }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn query(name: &str, rtype: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    let mut question = builder.question();
    question.push((DnsName::from_str(name).unwrap(), rtype)).unwrap();
    let mut additional = question.additional();
    if let Some(size) = edns {
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    additional.finish()
}

fn shown(bytes: &[u8]) -> Shown {
    let message = Message::from_octets(bytes).unwrap();
    let line = |record: domain::base::ParsedRecord<&[u8]>| {
        let record = record.to_any_record::<AllRecordData<_, _>>().unwrap();
        format!("{} {} {}", record.owner(), record.rtype(), record.data())
    };
    let (_, answers, authority, additional) = message.sections().unwrap();
    Shown {
        rcode: message.opt_rcode().to_string(),
        tc: message.header().tc(),
        answers: answers
            .map(|r| line(r.unwrap()))
            .map(|s| s.split_once(' ').unwrap().1.to_owned())
            .collect(),
        authority: authority.map(|r| line(r.unwrap())).collect(),
        additional: additional
            .map(|r| r.unwrap())
            .filter(|r| r.rtype() != Rtype::OPT)
            .map(line)
            .collect(),
    }
}

#[test]
fn consuls_names_answer_with_healthy_instances_only() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &["v1"]);
    rig.register("w2", "web", "10.0.0.2", &["v2"]);
    rig.register("w3", "web", "fd00::3", &["v2"]);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
    rig.check("WEB.Service.Consul", Rtype::AAAA, "NOERROR", &["AAAA fd00::3"]);
    rig.check("v2.web.service.dc1.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("_web._v1.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("web.service.consul", Rtype::TXT, "NOERROR", &[]);
    rig.tell("w1", Status::Critical);
    rig.tell("w2", Status::Warning);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("v1.web.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.tell("w2", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &[]);
    rig.tell("w3", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("nope.service.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("service.consul", Rtype::A, "NOERROR", &[]);
    rig.check("n1.node.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
    rig.check("n2.node.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("consul.service.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
    rig.check("example.com", Rtype::A, "REFUSED", &[]);
    rig.check("1.0.0.127.in-addr.arpa", Rtype::PTR, "REFUSED", &[]);
}

#[test]
fn instances_whose_checks_warn_are_there_unless_only_those_that_pass_are_asked_for() {
    for (only_passing, shown) in
        [(false, &["A 10.0.0.1", "A 10.0.0.2"][..]), (true, &["A 10.0.0.1"])]
    {
        let mut rig = Rig { only_passing, ..Rig::new() };
        rig.register("w1", "web", "10.0.0.1", &["v1"]);
        rig.register("w2", "web", "10.0.0.2", &["v2"]);
        rig.tell("w2", Status::Warning);
        rig.check("web.service.consul", Rtype::A, "NOERROR", shown);
        let code = if only_passing { "NXDOMAIN" } else { "NOERROR" };
        let second = shown.get(1).copied();
        rig.check("v2.web.service.consul", Rtype::A, code, second.as_slice());
    }
}

#[test]
fn a_services_original_name_is_found_whatever_its_case() {
    let mut rig = Rig::new();
    rig.register("w1", "Web_API", "10.0.0.1", &[]);
    rig.check("web_api.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.register("s1", "Solo", "10.0.0.5", &[]);
    rig.check("solo.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.5"]);
}

#[test]
fn instances_registered_in_several_spellings_are_one_service() {
    let mut rig = Rig::new();
    for (id, name, address) in
        [("a", "MyApp", "10.0.0.1"), ("b", "myapp", "10.0.0.2"), ("c", "MYAPP", "10.0.0.3")]
    {
        rig.register(id, name, address, &[]);
    }
    let all = ["A 10.0.0.1", "A 10.0.0.2", "A 10.0.0.3"];
    rig.check("MyApp.service.consul", Rtype::A, "NOERROR", &all);
}

#[test]
fn srv_targets_can_be_resolved() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    rig.register("w2", "web", "", &[]);
    let got = rig.ask("_web._tcp.service.consul", Rtype::SRV);
    let mut answers = got.answers.clone();
    answers.sort();
    assert_eq!(
        answers,
        ["SRV 1 1 8080 0a000001.addr.dc1.consul", "SRV 1 1 8080 n1.node.dc1.consul"]
    );
    let mut additional = got.additional.clone();
    additional.sort();
    assert_eq!(
        additional,
        ["0a000001.addr.dc1.consul A 10.0.0.1", "n1.node.dc1.consul A 127.0.0.1"]
    );
    rig.check("0a000001.addr.dc1.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("n1.node.dc1.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
}

#[test]
fn kubernetes_names_answer_by_the_services_form() {
    let mut rig = Rig::new();
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let spec = json!({"clusterIP": "127.96.0.1", "clusterIPs": ["127.96.0.1"], "ports": ports});
    rig.service("user", spec, &[("127.64.0.2", true)]);
    let spec = json!({"clusterIP": "None", "ports": ports});
    rig.service("db", spec, &[("127.64.0.3", true), ("127.64.0.4", false)]);
    let spec = json!({"type": "ExternalName", "externalName": "db.example.com"});
    rig.service("ext", spec, &[]);
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(&at("user"), Rtype::A, "NOERROR", &["A 127.96.0.1"]);
    rig.check(&at("user"), Rtype::AAAA, "NOERROR", &[]);
    rig.check(
        &at("_http._tcp.user"),
        Rtype::SRV,
        "NOERROR",
        &["SRV 1 1 80 user.shop.svc.cluster.local"],
    );
    rig.check(&at("_http._udp.user"), Rtype::SRV, "NXDOMAIN", &[]);
    rig.check(&at("db"), Rtype::A, "NOERROR", &["A 127.64.0.3"]);
    rig.check(
        &at("_http._tcp.db"),
        Rtype::SRV,
        "NOERROR",
        &["SRV 1 1 8080 127-64-0-3.db.shop.svc.cluster.local"],
    );
    rig.check(&at("127-64-0-3.db"), Rtype::A, "NOERROR", &["A 127.64.0.3"]);
    rig.check(&at("127-64-0-4.db"), Rtype::A, "NXDOMAIN", &[]);
    rig.check(&at("ext"), Rtype::A, "NOERROR", &["CNAME db.example.com."]);
    rig.check(&at("nope"), Rtype::A, "NXDOMAIN", &[]);
    rig.check("shop.svc.cluster.local", Rtype::A, "NOERROR", &[]);
    // The same truth by the other name.
    rig.check("user.service.shop.ns.consul", Rtype::A, "NOERROR", &["A 127.64.0.2"]);
    for name in ["cluster.local", "consul", "user.service.shop.ns.consul", "n1.node.consul"] {
        let got = rig.ask(name, Rtype::SOA);
        assert_eq!((got.answers.len(), got.authority.len()), (1, 0), "{name}: {got:?}");
    }
    rig.check("nope.service.consul", Rtype::SOA, "NXDOMAIN", &[]);
    rig.check("nope.service.consul", Rtype::NS, "NXDOMAIN", &[]);
    let got = rig.ask("n1.node.consul", Rtype::NS);
    assert_eq!(got.answers, ["NS ns.consul."]);
    assert_eq!(got.additional, ["ns.consul A 127.0.0.1"]);
    let bytes = rig.raw(&query("n1.node.consul", Rtype::SOA, None), Carrier::Udp).unwrap();
    let message = Message::from_octets(&bytes).unwrap();
    let owner = message.answer().unwrap().next().unwrap().unwrap().owner().to_string();
    assert_eq!(owner, "consul", "no name below is a zone of its own");
    rig.check("consul", Rtype::NS, "NOERROR", &["NS ns.consul."]);
    rig.check("ns.consul", Rtype::A, "NOERROR", &["A 127.0.0.1"]);
}

#[test]
fn short_names_are_completed_for_who_has_a_namespace() {
    let mut rig = Rig::new();
    let spec = json!({"clusterIP": "127.96.0.9", "ports": [{"name": "http", "port": 80}]});
    rig.service("web", spec, &[("127.64.0.1", true)]);
    let mut ask = |name: &str, namespace: Option<&str>| {
        let how = How { carrier: Carrier::Udp, recursive: true, proven: true, cookie: None };
        match rig.step(&query(name, Rtype::A, None), &how, namespace) {
            (Step::Answer, answer) => shown(&answer).answers.join(" "),
            (other, _) => format!("{other:?}"),
        }
    };
    for name in ["web", "WEB", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        let answer = ask(name, Some("shop"));
        assert!(answer.ends_with("127.96.0.9") && !answer.contains("CNAME"), "{name}: {answer}");
    }
    assert!(ask("web.shop", Some("other")).ends_with("127.96.0.9"));
    // Somebody else's names, some of which would mean something below the cluster's domain.
    for name in ["web.", "shop", "svc", "ns", "shop.svc", "web.com", "a.web.shop.com", "."] {
        let namespace = if name == "web." { "other" } else { "shop" };
        assert_eq!(ask(name, Some(namespace)), "Outside", "{name}");
    }
    // Who has none completes names himself.
    assert_eq!(ask("web", None), "Outside");
}

#[test]
fn pods_of_a_stateful_set_have_names_and_addresses_of_both_families() {
    let mut rig = Rig::new();
    rig.stateful(
        "db",
        &[
            ("db-0", "10.244.1.1", "fd00:7766::af4:101"),
            ("db-1", "10.244.1.2", "fd00:7766::af4:102"),
        ],
    );
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(&at("db-1.db"), Rtype::A, "NOERROR", &["A 10.244.1.2"]);
    rig.check(&at("db-1.db"), Rtype::AAAA, "NOERROR", &["AAAA fd00:7766::af4:102"]);
    rig.check(&at("db-2.db"), Rtype::A, "NXDOMAIN", &[]);
    rig.check(&at("db"), Rtype::A, "NOERROR", &["A 10.244.1.1", "A 10.244.1.2"]);
    let both = ["AAAA fd00:7766::af4:101", "AAAA fd00:7766::af4:102"];
    rig.check(&at("db"), Rtype::AAAA, "NOERROR", &both);
    rig.check(
        &at("_http._tcp.db"),
        Rtype::SRV,
        "NOERROR",
        &[
            "SRV 1 1 8080 db-0.db.shop.svc.cluster.local",
            "SRV 1 1 8080 db-1.db.shop.svc.cluster.local",
        ],
    );
    // And back.
    let name = "PTR db-0.db.shop.svc.cluster.local.";
    rig.check("1.1.244.10.in-addr.arpa", Rtype::PTR, "NOERROR", &[name]);
    let v6 = "1.0.1.0.4.f.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.6.7.7.0.0.d.f.ip6.arpa";
    rig.check(v6, Rtype::PTR, "NOERROR", &[name]);
    rig.check("9.9.244.10.in-addr.arpa", Rtype::PTR, "NXDOMAIN", &[]);
}

#[test]
fn hosts_of_service_entries_are_answered_where_they_are_known() {
    let mut rig = Rig::new();
    let mut put = |name: &str, spec: Value| {
        let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        rig.put(&format!("/o/networking.istio.io/serviceentries/shop/{name}"), &object);
    };
    put(
        "vip",
        json!({"hosts": ["Vip.example.com"], "addresses": ["192.0.2.10"],
        "resolution": "DNS"}),
    );
    put(
        "static",
        json!({"hosts": ["static.example.com"], "resolution": "STATIC",
        "endpoints": [{"address": "192.0.2.1"}, {"address": "2001:db8::1"}]}),
    );
    put("dns", json!({"hosts": ["dns.example.com"], "resolution": "DNS"}));
    rig.check("vip.example.com", Rtype::A, "NOERROR", &["A 192.0.2.10"]);
    rig.check("vip.example.com", Rtype::AAAA, "NOERROR", &[]);
    rig.check("static.example.com", Rtype::AAAA, "NOERROR", &["AAAA 2001:db8::1"]);
    rig.check("dns.example.com", Rtype::A, "REFUSED", &[]);
}

#[test]
fn an_alias_is_followed_while_it_stays_with_us() {
    let mut rig = Rig::new();
    let external = |to: &str| json!({"type": "ExternalName", "externalName": to});
    rig.service("user", json!({"clusterIP": "10.96.1.1"}), &[]);
    rig.service("old", external("user.shop.svc.cluster.local"), &[]);
    rig.service("older", external("old.shop.svc.cluster.local"), &[]);
    rig.service("round", external("round.shop.svc.cluster.local"), &[]);
    let at = |name: &str| format!("{name}.shop.svc.cluster.local");
    rig.check(
        &at("older"),
        Rtype::A,
        "NOERROR",
        &["A 10.96.1.1", "CNAME old.shop.svc.cluster.local.", "CNAME user.shop.svc.cluster.local."],
    );
    rig.check(&at("old"), Rtype::CNAME, "NOERROR", &["CNAME user.shop.svc.cluster.local."]);
    // An alias of itself ends all the same.
    let got = rig.ask(&at("round"), Rtype::A);
    assert_eq!((got.rcode.as_str(), got.answers.len()), ("NOERROR", 1 + ALIASES_MAX));
}

#[test]
fn what_does_not_fit_is_cut_and_marked_and_tcp_has_it_whole() {
    let mut rig = Rig::new();
    for n in 0..200 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.1.{n}"), &[]);
    }
    let name = "web.service.consul";
    for (edns, limit) in [(None, 512), (Some(1232), 1232), (Some(4096), 1232), (Some(10), 512)] {
        let bytes = rig.raw(&query(name, Rtype::A, edns), Carrier::Udp).unwrap();
        assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
        assert!(shown(&bytes).tc);
    }
    let whole = shown(&rig.raw(&query(name, Rtype::A, None), Carrier::Tcp).unwrap());
    assert_eq!((whole.tc, whole.answers.len()), (false, 200));
    let srv = shown(&rig.raw(&query(name, Rtype::SRV, None), Carrier::Tcp).unwrap());
    assert_eq!((srv.answers.len(), srv.additional.len()), (200, 200));
}

#[test]
fn answers_are_shuffled_evenly() {
    let mut rig = Rig::new();
    for n in 0..4 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.0.{n}"), &[]);
    }
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..4000 {
        *first.entry(rig.ask("web.service.consul", Rtype::A).answers[0].clone()).or_default() += 1;
    }
    // 3 standard errors of a binomial(4000, 1/4) are 82.
    assert!(first.len() == 4 && first.values().all(|n| n.abs_diff(1000) < 110), "{first:?}");
}

#[test]
fn the_protocols_edges() {
    let mut rig = Rig::new();
    let code = |bytes: Option<Vec<u8>>| shown(&bytes.unwrap()).rcode;
    let good = query("consul", Rtype::SOA, Some(1232));
    assert_eq!(rig.raw(&good[..11], Carrier::Udp), None, "no header, no answer");
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(rig.raw(&response, Carrier::Udp), None, "an answer is not answered");
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(code(rig.raw(&update, Carrier::Udp)), "NOTIMP");
    assert_eq!(code(rig.raw(&good[..15], Carrier::Udp)), "FORMERR");
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(rig.raw(&two, Carrier::Udp)), "FORMERR");
    let mut version = good.clone();
    let at = version.len() - 5;
    version[at] = 1;
    assert_eq!(code(rig.raw(&version, Carrier::Udp)), "BADVERS");
    let mut class = query("consul", Rtype::SOA, None);
    let at = class.len() - 1;
    class[at] = 3;
    assert_eq!(code(rig.raw(&class, Carrier::Udp)), "REFUSED", "another class's names");
    assert_eq!(code(rig.raw(&query("consul", Rtype::AXFR, None), Carrier::Tcp)), "REFUSED");
    let mut answered = good.clone();
    answered[7] = 1;
    assert_eq!(code(rig.raw(&answered, Carrier::Udp)), "FORMERR", "an answer in a question");
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(code(rig.raw(&longer, Carrier::Udp)), "FORMERR", "more than was announced");
    let mut pointer = query("consul", Rtype::SOA, None);
    pointer.splice(12..20, [0xc0, 12]);
    assert_eq!(code(rig.raw(&pointer, Carrier::Udp)), "FORMERR", "a name that is itself");
    // What a newer client says beside is passed over; DO changes nothing.
    let mut builder = MessageBuilder::new_vec().question();
    builder.push((DnsName::from_str("consul").unwrap(), Rtype::SOA)).unwrap();
    let mut additional = builder.additional();
    additional
        .opt(|opt| {
            opt.set_dnssec_ok(true);
            opt.push_raw_option(65_001.into(), 1, |target| {
                domain::dep::octseq::OctetsBuilder::append_slice(target, &[1])
            })
        })
        .unwrap();
    assert_eq!(code(rig.raw(&additional.finish(), Carrier::Udp)), "NOERROR");
}

/// The code of the answer to a question with this name.
fn code_of(name: &[u8]) -> Option<u8> {
    let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let packet = [&head[..], name, &[0, 1, 0, 1]].concat();
    Door::default().datagram(&packet, false).map(|answer| answer[3] & 15)
}

#[test]
fn reg_64_a_dns_name_that_points_to_itself_is_an_error() {
    assert_eq!(code_of(&[0xc0, 12]), Some(1), "read as a name");
}

#[test]
fn reg_64_a_dns_name_that_points_to_its_beginning_is_an_error() {
    assert_eq!(code_of(&[1, b'a', 0xc0, 12]), Some(1), "read as a name");
}

#[test]
fn reg_64_a_million_malformed_packets_get_an_error_or_nothing() {
    let mut door = Door::default();
    let seeds = [
        query("web.service.consul", Rtype::SRV, Some(1232)),
        query("_http._tcp.web.shop.svc.cluster.local", Rtype::ANY, None),
        query("n1.node.consul", Rtype::A, Some(4096)),
        query("1.0.0.10.in-addr.arpa", Rtype::PTR, None),
    ];
    let mut rng = Rng::seeded(99);
    let mut codes = [0u32; 16];
    for round in 0..1_000_000u32 {
        // Half noise, half a query with some bytes changed and perhaps cut.
        let mut packet = if round % 2 == 0 {
            (0..rng.below(200)).map(|_| rng.next_u64().to_le_bytes()[3]).collect::<Vec<u8>>()
        } else {
            seeds[usize::try_from(rng.below(4)).unwrap()].clone()
        };
        for _ in 0..rng.below(4) {
            if !packet.is_empty() {
                let at = usize::try_from(rng.below(packet.len() as u64)).unwrap();
                packet[at] = rng.next_u64().to_le_bytes()[0];
            }
        }
        if rng.below(4) == 0 {
            packet.truncate(usize::try_from(rng.below(packet.len() as u64 + 1)).unwrap());
        }
        let Some(bytes) = door.datagram(&packet, false) else { continue };
        assert!(bytes.len() <= DNS_UDP_BYTES_MAX.min(4 * packet.len()), "{packet:?}");
        let answer = Message::from_octets(bytes).unwrap();
        assert!(answer.header().qr() && answer.header().id().to_be_bytes() == packet[..2]);
        codes[usize::from(bytes[3] & 15)] += 1;
        // Judged by another reader.
        let readable = Message::from_octets(&packet[..])
            .is_ok_and(|m| m.sole_question().is_ok() && m.header().opcode() == Opcode::QUERY);
        if !readable {
            let code = answer.header().rcode();
            let error = matches!(code, Rcode::FORMERR | Rcode::NOTIMP);
            assert!(error, "read by us alone: {packet:?}");
        }
    }
    let seen = |code: usize| codes[code] > 1000;
    assert!(seen(0) && seen(1) && seen(3) && seen(4), "some of each: {codes:?}");
}

// === prepared queries and what else Consul names ===

fn prepared(rig: &mut Rig, id: &str, query: Value) {
    let mut query = query;
    query["ID"] = json!(id);
    let key = weft_registry::consul::keys::record("query", id);
    record(rig, &key, &query);
}

fn record(rig: &mut Rig, key: &str, value: &Value) {
    let state = rig.records.get_or_insert_with(|| State::load(std::iter::empty(), 1));
    let revision = weft_store::Revision(state.revision() + 1);
    state.apply(&weft_store::Event {
        key: key.into(),
        revision,
        kind: weft_store::EventKind::Put,
        value: serde_json::to_vec(value).unwrap().into(),
        prev: None,
        class: weft_store::Class::Synced,
    });
}

#[test]
fn prepared_queries_are_names() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &["v1"]);
    rig.register("w2", "web", "10.0.0.2", &["v2"]);
    rig.register("b1", "backup", "10.0.0.9", &["v2"]);
    rig.check("near.query.consul", Rtype::A, "NXDOMAIN", &[]);
    let service = json!({"Service": "web", "Tags": ["v2"],
        "Failover": {"Targets": [{"Peer": "far"}, {"Datacenter": "dc9"}, {"Service": "backup"}]}});
    prepared(
        &mut rig,
        "8a1f",
        json!({"Name": "Near.Web", "Service": service, "DNS": {"TTL": "7s"}}),
    );
    rig.check("near.web.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("8a1f.query.dc1.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    let srv = rig.ask("_near.web._tcp.query.consul", Rtype::SRV);
    assert_eq!(srv.rcode, "NXDOMAIN", "two labels are no RFC 2782 name: {srv:?}");
    let srv = rig.ask("8a1f.query.consul", Rtype::SRV);
    assert_eq!(srv.answers, ["SRV 1 1 8080 0a000002.addr.dc1.consul"]);
    let bytes = rig.raw(&query("8a1f.query.consul", Rtype::A, None), Carrier::Udp).unwrap();
    assert_eq!(ttls(&bytes), [7]);
    // Without the second one its failover answers, and what was said before is not said again.
    rig.tell("w2", Status::Critical);
    rig.check("near.web.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.9"]);
    rig.tell("b1", Status::Critical);
    rig.check("near.web.query.consul", Rtype::A, "NXDOMAIN", &[]);
    // A changed query is seen although the World is the same.
    prepared(&mut rig, "8a1f", json!({"Name": "near.web", "Service": {"Service": "web"}}));
    rig.check("near.web.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
}

#[test]
fn templates_are_filled_in_with_the_name_that_was_asked_for() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &["blue"]);
    rig.register("w2", "web", "10.0.0.2", &["green"]);
    let template = json!({"Type": "name_prefix_match", "Regexp": "^geo-(.*?)-([^-]+)$"});
    let service = json!({"Service": "${match(1)}", "Tags": ["${match(2)}"]});
    prepared(&mut rig, "t1", json!({"Name": "geo-", "Template": template, "Service": service}));
    let all = json!({"Type": "name_prefix_match"});
    let service = json!({"Service": "${name.full}"});
    prepared(&mut rig, "t2", json!({"Name": "", "Template": all, "Service": service}));
    rig.check("geo-web-blue.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.1"]);
    rig.check("Geo-Web-GREEN.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.check("geo-web-red.query.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("web.query.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
}

#[test]
fn a_family_is_answered_with_the_address_that_is_tagged_for_it() {
    let mut rig = Rig::new();
    let node = |name: &str, address: &str, tag: &str, other: &str| {
        let tagged = json!({tag: other});
        json!({"node": name, "address": address, "tagged_addresses": tagged})
    };
    rig.put("/c/n/ds", &node("ds", "10.5.5.1", "lan_ipv6", "2001:db8::51"));
    rig.put("/c/n/six", &node("six", "2001:db8::61", "lan_ipv4", "10.6.6.1"));
    let mut put = |node: &str, id: &str, service: &str, address: &str, tagged: Value| {
        let key = RegistrationKey { namespace: "default".into(), node: node.into(), id: id.into() };
        let instance = json!({"id": id, "service": service, "node": node, "namespace": "default",
            "address": address, "port": 443, "tagged_addresses": tagged});
        rig.put(&StoreKey::Registration(key).to_string(), &instance);
    };
    let own = json!({"lan_ipv6": {"address": "2001:db8::52", "port": 443}});
    put("ds", "d1", "dual", "10.5.5.2", own);
    put("ds", "d2", "atnode", "", json!({}));
    put("ds", "d3", "elsewhere", "10.5.5.3", json!({}));
    put("six", "s1", "sixth", "", json!({}));
    let broken = json!({"lan_ipv4": {"address": "2001:db8::1", "port": 1}});
    put("ds", "d4", "broken", "10.5.5.4", broken);
    prepared(&mut rig, "q1", json!({"Name": "near", "Service": {"Service": "dual"}}));
    for (name, rtype, expected) in [
        ("ds.node.consul", Rtype::AAAA, "AAAA 2001:db8::51"),
        ("ds.node.consul", Rtype::A, "A 10.5.5.1"),
        ("six.node.consul", Rtype::A, "A 10.6.6.1"),
        ("dual.service.consul", Rtype::AAAA, "AAAA 2001:db8::52"),
        ("dual.service.consul", Rtype::A, "A 10.5.5.2"),
        ("atnode.service.consul", Rtype::AAAA, "AAAA 2001:db8::51"),
        ("sixth.service.consul", Rtype::A, "A 10.6.6.1"),
        ("sixth.service.consul", Rtype::AAAA, "AAAA 2001:db8::61"),
        ("near.query.consul", Rtype::AAAA, "AAAA 2001:db8::52"),
        ("broken.service.consul", Rtype::A, "A 10.5.5.4"),
    ] {
        rig.check(name, rtype, "NOERROR", &[expected]);
    }
    // An instance that has an address of its own is not where its node is.
    rig.check("elsewhere.service.consul", Rtype::AAAA, "NOERROR", &[]);
    let srv = rig.ask("dual.service.consul", Rtype::SRV);
    assert_eq!(srv.answers, ["SRV 1 1 443 0a050502.addr.dc1.consul"]);
}

#[test]
fn what_speaks_for_a_service_has_names() {
    let mut rig = Rig::new();
    let mut put = |id: &str, service: &str, address: &str, more: Value| {
        let mut registration = serde_json::to_value(Registration {
            id: id.into(),
            service: service.into(),
            node: "n1".into(),
            namespace: "default".into(),
            address: address.into(),
            port: 21000,
            ..Registration::default()
        })
        .unwrap();
        for (key, value) in more.as_object().unwrap() {
            registration[key] = value.clone();
        }
        let place =
            RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.into() };
        rig.put(&StoreKey::Registration(place).to_string(), &registration);
    };
    put(
        "w1",
        "web",
        "10.0.0.1",
        json!({"tagged_addresses":
        {"consul-virtual": {"address": "240.0.0.7", "port": 80}}}),
    );
    let proxy = json!({"kind": "connect-proxy", "proxy": {"DestinationServiceName": "web"}});
    put("w1-sidecar-proxy", "web-sidecar-proxy", "10.0.0.21", proxy);
    put("n", "native", "10.0.0.3", json!({"connect": {"Native": true}}));
    put("g", "front", "10.0.0.4", json!({"kind": "ingress-gateway"}));
    let spec = json!({"clusterIP": "127.96.0.5", "ports": [{"name": "http", "port": 80}]});
    rig.service("shop", spec, &[("127.64.0.2", true)]);
    rig.check("web.connect.consul", Rtype::A, "NOERROR", &["A 10.0.0.21"]);
    let target = ["SRV 1 1 21000 0a000015.addr.dc1.consul"];
    rig.check("web.connect.dc1.consul", Rtype::SRV, "NOERROR", &target);
    rig.check("native.connect.consul", Rtype::A, "NOERROR", &["A 10.0.0.3"]);
    rig.check("front.connect.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("web.virtual.consul", Rtype::A, "NOERROR", &["A 240.0.0.7"]);
    rig.check("shop.virtual.shop.ns.consul", Rtype::A, "NOERROR", &["A 127.96.0.5"]);
    rig.check("native.virtual.consul", Rtype::A, "NXDOMAIN", &[]);
    rig.check("web.ingress.consul", Rtype::A, "NXDOMAIN", &[]);
    let key = weft_registry::consul::keys::record("config", "ingress-gateway/front");
    let services = json!([{"Name": "web"}]);
    let entry = json!({"Kind": "ingress-gateway", "Name": "front",
        "Listeners": [{"Port": 8080, "Protocol": "http", "Services": services}]});
    record(&mut rig, &key, &entry);
    rig.check("web.ingress.consul", Rtype::A, "NOERROR", &["A 10.0.0.4"]);
    rig.check("native.ingress.consul", Rtype::A, "NXDOMAIN", &[]);
}

#[test]
fn nodes_have_texts_and_addresses_have_names() {
    let mut rig = Rig::new();
    let node = NodeRecord {
        node: "Rack-7".into(),
        address: "10.9.0.7".into(),
        meta: [("zone", "b"), ("rfc1035-note", "as it is")]
            .map(|(key, value)| (key.into(), value.into()))
            .into_iter()
            .collect(),
        ..NodeRecord::default()
    };
    rig.put(&StoreKey::Node("Rack-7".into()).to_string(), &node);
    rig.register("w1", "web", "10.9.1.1", &[]);
    rig.check("rack-7.node.consul", Rtype::A, "NOERROR", &["A 10.9.0.7"]);
    let txt = ["TXT \"as it is\"", "TXT \"zone=b\""];
    rig.check("rack-7.node.consul", Rtype::TXT, "NOERROR", &txt);
    rig.check("7.0.9.10.in-addr.arpa", Rtype::PTR, "NOERROR", &["PTR Rack-7.node.dc1.consul."]);
    rig.check("1.1.9.10.in-addr.arpa", Rtype::PTR, "NOERROR", &["PTR web.service.dc1.consul."]);
    rig.check("1.1.9.10.in-addr.arpa", Rtype::A, "NOERROR", &[]);
    rig.check("2.1.9.10.in-addr.arpa", Rtype::PTR, "REFUSED", &[]);
    rig.check("dns-version.cluster.local", Rtype::TXT, "NOERROR", &["TXT \"1.1.0\""]);
}

fn ttls(bytes: &[u8]) -> Vec<u32> {
    let message = Message::from_octets(bytes).unwrap();
    message.answer().unwrap().map(|record| record.unwrap().ttl().as_secs()).collect()
}

#[test]
fn a_service_may_say_how_long_its_answers_are_kept() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    let of = |rig: &mut Rig, name: &str| {
        ttls(&rig.raw(&query(name, Rtype::A, None), Carrier::Udp).unwrap())
    };
    assert_eq!(of(&mut rig, "web.service.consul"), [0]);
    for (id, ttl) in [("w1", "30s"), ("w2", "10s"), ("w3", "soon")] {
        let registration = json!({"id": id, "service": "web", "node": "n1",
            "namespace": "default", "address": format!("10.0.0.{id}").replace('w', ""),
            "port": 80, "meta": {"dns-ttl": ttl}});
        let place =
            RegistrationKey { namespace: "default".into(), node: "n1".into(), id: id.into() };
        rig.put(&StoreKey::Registration(place).to_string(), &registration);
    }
    assert_eq!(of(&mut rig, "web.service.consul"), [10; 3], "the shortest of them");
    let meta = json!({"name": "api", "namespace": "shop",
        "annotations": {"weft.dev/dns-ttl": "1m"}});
    let spec = json!({"clusterIP": "127.96.0.5", "ports": [{"name": "http", "port": 80}]});
    rig.put("/o/core/services/shop/api", &json!({"metadata": meta, "spec": spec}));
    assert_eq!(of(&mut rig, "api.shop.svc.cluster.local"), [60]);
}

// === F24 ===

/// A question with a cookie option.
fn with_cookie(name: &str, rtype: Rtype, cookie: &[u8]) -> Vec<u8> {
    let mut bytes = query(name, rtype, Some(1232));
    let at = bytes.len() - 2;
    bytes.truncate(at);
    let len = u16::try_from(cookie.len()).unwrap();
    bytes.extend_from_slice(&(len + 4).to_be_bytes());
    bytes.extend_from_slice(&10u16.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(cookie);
    bytes
}

#[test]
fn f24_who_may_be_a_victim_is_sent_little() {
    let mut rig = Rig::new();
    for n in 0..200 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.1.{n}"), &[]);
    }
    let forged = How { carrier: Carrier::Udp, recursive: false, proven: false, cookie: None };
    let names = [
        "web.service.consul",
        "consul",
        "n1.node.consul",
        "nope.service.consul",
        "_web._tcp.service.consul",
        "example.com",
        "web.connect.consul",
    ];
    let types = [Rtype::A, Rtype::AAAA, Rtype::SRV, Rtype::ANY, Rtype::SOA, Rtype::NS, Rtype::TXT];
    for name in names {
        for rtype in types {
            for edns in [None, Some(512), Some(4096)] {
                let query = query(name, rtype, edns);
                let answer = rig.raw_as(&query, &forged).unwrap();
                assert!(answer.len() <= 4 * query.len(), "{name} {rtype} {edns:?}");
                assert!(answer.len() <= DNS_UDP_BYTES_MAX);
            }
        }
    }
    // What is left out is said to be left out, and everything is a line where it is asked for.
    let got = shown(&rig.raw_as(&query(names[0], Rtype::A, Some(1232)), &forged).unwrap());
    assert!(got.tc && !got.answers.is_empty(), "{got:?}");
    let any = shown(&rig.raw_as(&query(names[0], Rtype::ANY, None), &forged).unwrap());
    assert_eq!(
        (any.tc, any.answers.as_slice()),
        (false, &strings(&["HINFO \"RFC8482\" \"\""])[..])
    );
    let nothing =
        shown(&rig.raw_as(&query("nope.service.consul", Rtype::ANY, None), &forged).unwrap());
    assert_eq!(nothing.rcode, "NXDOMAIN");
}

#[test]
fn f24_cookies_come_back_and_bad_ones_are_errors() {
    let mut rig = Rig::new();
    let how = How { carrier: Carrier::Udp, recursive: false, proven: true, cookie: Some([9; 24]) };
    let answer = rig.raw_as(&with_cookie("consul", Rtype::SOA, &[1; 8]), &how).unwrap();
    let message = Message::from_octets(&answer[..]).unwrap();
    let opt = message.opt().unwrap();
    let cookie = opt.opt().iter::<AllOptData<_, _>>().find_map(|option| match option {
        Ok(AllOptData::Cookie(cookie)) => Some(cookie),
        _ => None,
    });
    let cookie = cookie.unwrap();
    assert_eq!(cookie.client().into_octets(), [9; 8]);
    assert!(cookie.server().is_some());
    for (len, code) in [
        (8, "NOERROR"),
        (7, "FORMERR"),
        (15, "FORMERR"),
        (16, "NOERROR"),
        (40, "NOERROR"),
        (41, "FORMERR"),
        (0, "FORMERR"),
    ] {
        let query = with_cookie("consul", Rtype::SOA, &vec![1; len]);
        assert_eq!(shown(&rig.raw_as(&query, &how).unwrap()).rcode, code, "{len} bytes");
    }
}

#[test]
fn what_was_said_is_not_said_again_when_it_is_no_longer_so() {
    let mut rig = Rig::new();
    rig.register("w1", "web", "10.0.0.1", &[]);
    rig.register("w2", "web", "10.0.0.2", &[]);
    for _ in 0..3 {
        rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
    }
    rig.tell("w1", Status::Critical);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.2"]);
    rig.tell("w1", Status::Passing);
    rig.check("web.service.consul", Rtype::A, "NOERROR", &["A 10.0.0.1", "A 10.0.0.2"]);
}
