// SPDX-License-Identifier: Apache-2.0
//! What one ListenerSet can cost others: nothing on their ports, and little work.

use serde_json::{Value, json};
use weft_control::compile::Env;
use weft_control::compiler::Compiler;
use weft_kinds::world::KindId;

use crate::common::put;
use crate::listener_sets::{FINE, Rig, https, listener, open, secured};

const API: &str = "gateway.networking.k8s.io/v1";

fn at(port: u16) -> Value {
    json!({"name": format!("p{port}"), "port": port, "protocol": "HTTP"})
}

/// The key of no certificate; made for this test.
const OTHER_KEY: &str = "\
    LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNR0J5cUdTTTQ5QWdFR0NDcUdTTTQ5QXdFSEJH\
    MHdhd0lCQVFRZ29QS1VvaWZGWC9JdXJmUG0KL2w5eUVVdDRWcGJkUkN0VnhRenlMdG4wUi9taFJBTkNBQVJoeEZK\
    WFcxNFNWN1VKUXRBOUVJNXZUNDdJNmEvbwo2dlBpV29CU0I3YnVwOTRxelZoU2Q1QmFZOXUzWWNpcnNWZTBIREQ4\
    T1J3ZTFCbUY4THBaVXp5MAotLS0tLUVORCBQUklWQVRFIEtFWS0tLS0tCg==";

/// A Gateway made at second `s`, on the address of `infra/gw` or another.
fn gateway(rig: &mut Rig, name: &str, s: u32, address: &str, ports: &[u16]) {
    let listeners: Vec<Value> = ports.iter().map(|p| at(*p)).collect();
    let spec = json!({
        "gatewayClassName": "weft", "addresses": [{"value": address}], "listeners": listeners,
        "allowedListeners": {"namespaces": {"from": "All"}}});
    rig.object(API, "Gateway", ("infra", name), s, &spec);
}

fn set_of(rig: &mut Rig, gateway: &str, name: &str, listeners: &[Value]) {
    let spec = json!({
        "parentRef": {"name": gateway, "namespace": "infra"}, "listeners": listeners});
    rig.object(API, "ListenerSet", ("team", name), 20, &spec);
}

#[test]
fn a_secret_that_cannot_be_presented_costs_its_own_listener_alone() {
    let mut rig = Rig::new(&open("All"));
    let secret = |rig: &Rig, name: &str| {
        let found = rig.world.get(KindId::Secret, "shop", name);
        found.map(|o| o.raw["data"].clone()).expect("the golden file has it")
    };
    let client = secret(&rig, "client");
    let garbage = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCm5vdGhpbmcK";
    for (name, data) in [
        ("mismatched", json!({"tls.crt": client["tls.crt"], "tls.key": OTHER_KEY})),
        ("malformed", json!({"tls.crt": garbage, "tls.key": client["tls.key"]})),
        ("keyless", json!({"tls.crt": client["tls.crt"], "tls.key": client["tls.crt"]})),
    ] {
        rig.put(&json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": "shop"}, "data": data}));
        let listener = |name: &str, secret: &str| {
            json!({"name": name, "hostname": format!("{name}.example"), "port": 443,
                "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": secret}]}})
        };
        rig.set(("shop", "bad"), 4, &[listener("bad", name)]);
        rig.set(("shop", "good"), 5, &[listener("good", "client")]);
        assert_eq!(rig.sections(443), ["listenerset/shop/good/good"], "{name}");
        let told = rig.told(KindId::ListenerSet, ("shop", "bad"));
        assert!(told.contains("ResolvedRefs=False/InvalidCertificateRef"), "{name}: {told}");
        assert!(told.starts_with("Accepted=False/ListenersNotValid"), "{name}: {told}");
    }
}

#[test]
fn a_set_is_judged_with_its_gateway_once_and_after_the_last_place_not_at_all() {
    let mut rig = Rig::new(&open("All"));
    let hosts = |i: usize, n: usize| -> Vec<Value> {
        (0..n).map(|n| listener(&format!("l{n}"), &format!("h{n}.s{i}.example"))).collect()
    };
    // One of the Gateway's own, and sets of 64: the eighth ends beyond the last place.
    for i in 0..40 {
        rig.set(("team", &format!("s{i:02}")), 5, &hosts(i, 64));
    }
    let (mut compiler, _) = Compiler::new(Env { low_ports: true, ..Env::default() }, &rig.world);
    assert_eq!(rig.sections(80).len(), 512);
    let eighth = rig.told(KindId::ListenerSet, ("team", "s07"));
    assert!(eighth.starts_with("Accepted=True/ListenersNotValid"), "{eighth}");
    assert_eq!(eighth.matches("Accepted=False/TooManyListeners").count(), 1);
    let ninth = rig.told(KindId::ListenerSet, ("team", "s08"));
    assert_eq!(ninth, "Accepted=False/TooManyListeners Programmed=False/TooManyListeners");

    let edit = json!({"apiVersion": API, "kind": "ListenerSet", "metadata": {
        "name": "s03", "namespace": "team", "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:05Z"}, "spec": {
        "parentRef": {"name": "gw", "namespace": "infra"}, "listeners": hosts(3, 63)}});
    let delta = put(&mut rig.world, &edit);
    let update = compiler.update(&rig.world, &delta);
    assert_eq!(update.compiled, 2, "the set and its Gateway, whatever else there is");
    // The set's own status, and that of the one that got the place. The Gateway's is as it was.
    let mut told: Vec<&str> = update.statuses.iter().map(|s| &*s.object.name).collect();
    told.sort_unstable();
    assert_eq!(told, ["s03", "s07"]);
    // Whose Gateway is gone is told so by itself.
    let gone = rig.world.apply("/o/none", None, 1_000_000);
    assert!(compiler.update(&rig.world, &gone).statuses.is_empty());
    let key = weft_kinds::world::ObjectKey::new(KindId::Gateway, "infra", "gw");
    let delta = rig.world.apply(&key.store_key(), None, 1_000_001);
    let update = compiler.update(&rig.world, &delta);
    assert_eq!(update.statuses.len(), 40, "each set is told");
}

#[test]
fn a_set_takes_no_port_from_another_gateway() {
    let mut rig = Rig::new(&open("All"));
    gateway(&mut rig, "old", 0, "127.0.0.9", &[81]);
    let odd = json!({"name": "odd", "port": 9000, "protocol": "SCTP"});
    set_of(&mut rig, "old", "s", &[at(80), odd, at(9001)]);
    // `gw` is younger than `old`, and older than the set; its own port stays its own.
    assert_eq!(rig.sections(80), ["web"]);
    let told = rig.told(KindId::ListenerSet, ("team", "s"));
    let lost = "Accepted=False/PortUnavailable";
    assert!(told.contains(&format!("p80 0: {lost}")), "{told}");
    assert!(told.contains(&format!("p9001 0: {FINE}")), "{told}");
    // Between sets it is the older Gateway's that counts, while it is served.
    set_of(&mut rig, "gw", "t", &[at(81), at(9000), at(9001), at(9002)]);
    let told = rig.told(KindId::ListenerSet, ("team", "t"));
    for (port, want) in [(81, lost), (9000, FINE), (9001, lost), (9002, FINE)] {
        assert!(told.contains(&format!("p{port} 0: {want}")), "{port}: {told}");
    }
    assert_eq!(rig.sections(9000), ["listenerset/team/t/p9000"]);
}

#[test]
fn every_address_is_also_each_of_its_family() {
    for (theirs, conflict) in
        [("0.0.0.0", true), ("127.0.0.9", true), ("127.0.0.8", false), ("::", false)]
    {
        let mut rig = Rig::new(&json!({}));
        gateway(&mut rig, "old", 0, theirs, &[80]);
        assert_eq!(rig.sections(80).is_empty(), conflict, "{theirs}");
        let told = rig.told(KindId::Gateway, ("infra", "gw"));
        assert_eq!(told.contains("PortUnavailable"), conflict, "{told}");
        // The other way round: who asks for every address comes later.
        let mut rig = Rig::new(&json!({}));
        gateway(&mut rig, "young", 9, theirs, &[80]);
        assert_eq!(rig.sections(80), ["web"]);
        let told = rig.told(KindId::Gateway, ("infra", "young"));
        assert_eq!(told.contains("PortUnavailable"), conflict, "{told}");
    }
    // An address that weft gave is no less an address.
    let mut rig = Rig::new(&json!({}));
    gateway(&mut rig, "old", 0, "0.0.0.0", &[80]);
    rig.put(&json!({"apiVersion": API, "kind": "Gateway", "metadata": {
        "name": "gw", "namespace": "infra", "annotations": {"weft.dev/address": "127.128.0.7"},
        "creationTimestamp": "2026-01-01T00:00:01Z"},
        "spec": {"gatewayClassName": "weft", "listeners": [at(80), at(81)]}}));
    assert_eq!((rig.sections(80).len(), rig.sections(81).len()), (0, 1));
}

#[test]
fn what_a_port_carries_fits_into_what_is_sent() {
    let ca = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
    let tls = json!({"frontend": {"default": {"validation": {"caCertificateRefs": [ca]}}}});
    let mut rig = secured(&tls);
    let map = rig.world.get(KindId::ConfigMap, "infra", "ca").unwrap().raw.clone();
    let one = map["data"]["ca.crt"].as_str().unwrap().to_owned();
    let many = one.repeat(900 * 1024 / one.len());
    rig.put(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "ca", "namespace": "infra"}, "data": {"ca.crt": many}}));
    let mut spec = https(&tls);
    spec["gatewayClassName"] = json!("weft");
    spec["addresses"] = json!([{"value": "127.0.0.9"}]);
    let more = (0..20).map(|i| {
        json!({"name": format!("m{i}"), "hostname": format!("m{i}.example"), "port": 443,
            "protocol": "HTTPS",
            "tls": {"certificateRefs": [{"name": "client", "namespace": "shop"}]}})
    });
    spec["listeners"].as_array_mut().unwrap().extend(more);
    rig.object(API, "Gateway", ("infra", "gw"), 1, &spec);
    let served = rig.gateway(443).unwrap().sections;
    let bytes = |s: &weft_model::Section| {
        let tls = s.tls.as_ref().unwrap();
        tls.chain_pem.len() + tls.clients.as_ref().unwrap().ca_pem.len()
    };
    assert!(served.iter().map(bytes).sum::<usize>() < 15 * 1024 * 1024);
    assert!((10..20).contains(&served.len()), "{}", served.len());
    assert_eq!(&*served[0].name, "s", "the first come first");
    let told = rig.told(KindId::Gateway, ("infra", "gw"));
    assert_eq!(told.matches("Accepted=False/TooManyListeners").count(), 21 - served.len());
    assert_eq!(rig.sections(8443), ["t"], "each port has room of its own");
}
