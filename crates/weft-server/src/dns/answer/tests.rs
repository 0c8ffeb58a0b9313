// SPDX-License-Identifier: Apache-2.0
//! Queries against a World of both doors' making, answers read back by the codec.

use std::str::FromStr;
use std::sync::Arc;

use domain::base::{Message, MessageBuilder, Name as DomainName};
use domain::rdata::AllRecordData;
use serde_json::{Value, json};
use weft_kinds::views::catalog::{CheckRecord, CheckStatus, NodeRecord, Registration, Status};
use weft_kinds::world::{CheckKey, RegistrationKey, StoreKey, World};

use super::*;

mod cluster;
mod packets;
mod queries;
mod rights;
mod services;

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

fn ttls(bytes: &[u8]) -> Vec<u32> {
    let message = Message::from_octets(bytes).unwrap();
    message.answer().unwrap().map(|record| record.unwrap().ttl().as_secs()).collect()
}
