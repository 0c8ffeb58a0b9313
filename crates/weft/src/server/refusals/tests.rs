// SPDX-License-Identifier: Apache-2.0
//! What a proxy refuses is told to whom it belongs.

use serde_json::json;
use weft_kinds::world::{ObjectKey, World};

use super::*;

fn object(kind: KindId, ns: &str, name: &str, spec: &Value) -> Arc<Object> {
    let mut world = World::new();
    let key = ObjectKey::new(kind, ns, name);
    let raw = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind.row().kind,
        "metadata": { "name": name, "namespace": ns }, "spec": spec,
    });
    world.apply(&key.store_key(), Some(raw.to_string().as_bytes()), 1);
    world.object(&key).expect("it was put there").clone()
}

/// `infra/gw` with `web` on port 80, and `team/s` with `x` on port 80 and `y` on 9000.
fn objects() -> [Arc<Object>; 2] {
    let listener =
        |name: &str, port: u16| json!({ "name": name, "port": port, "protocol": "HTTP" });
    let own = json!({ "gatewayClassName": "weft", "listeners": [listener("web", 80)] });
    let set = json!({
        "parentRef": { "name": "gw", "namespace": "infra" },
        "listeners": [listener("x", 80), listener("y", 9000)],
    });
    [object(KindId::Gateway, "infra", "gw", &own), object(KindId::ListenerSet, "team", "s", &set)]
}

fn fine(listeners: &[&str]) -> Value {
    let yes = json!([{ "type": "Accepted", "status": "True" },
        { "type": "Programmed", "status": "True", "lastTransitionTime": "t0" }]);
    let all: Vec<Value> =
        listeners.iter().map(|name| json!({ "name": name, "conditions": yes })).collect();
    json!({ "conditions": yes, "listeners": all })
}

fn said(node: &str, name: &str, reason: &str) -> Refusals {
    said_of(node, name, reason, &[])
}

fn said_of(node: &str, name: &str, reason: &str, sections: &[&str]) -> Refusals {
    let sections = sections.iter().map(|&section| section.to_owned()).collect();
    let refused = [Refused { name: name.into(), reason: reason.into(), sections }];
    Refusals::read([(node, &refused[..])].into_iter())
}

/// `Programmed` of the object and of each listener, as `True` or `Reason@time`.
fn told(status: &Value) -> String {
    let of = |conditions: &Value| {
        let c = &conditions.as_array().unwrap()[1];
        match c["status"].as_str().unwrap() {
            "True" => "True".to_owned(),
            _ => format!("{}@{}", text(&c["reason"]), text(&c["lastTransitionTime"])),
        }
    };
    let listeners = status["listeners"].as_array().unwrap().iter();
    let each = listeners.map(|l| format!(" {}={}", text(&l["name"]), of(&l["conditions"])));
    format!("{}{}", of(&status["conditions"]), each.collect::<String>())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[test]
fn a_port_that_a_proxy_refused_is_told_to_everybody_who_listens_there() {
    let [gateway, set] = objects();
    let bind = "cannot listen on 10.0.0.1:80: Permission denied (os error 13)";
    for (name, reason, of_gateway, of_set) in [
        (
            "listener:infra~gw~80",
            bind,
            "AddressNotUsable@t1 web=PortUnavailable@t1",
            "PortUnavailable@t1 x=PortUnavailable@t1 y=True",
        ),
        // What is only the set's says nothing of the Gateway's own.
        (
            "listener:infra~gw~9000",
            bind,
            "True web=True",
            "PortUnavailable@t1 x=True y=PortUnavailable@t1",
        ),
        (
            "listener:infra~gw~80",
            "section web: the key is not the certificate's",
            "Invalid@t1 web=Invalid@t1",
            "Invalid@t1 x=Invalid@t1 y=True",
        ),
        ("listener:infra~gw~80~udp", bind, "True web=True", "True x=True y=True"),
        // Another proxy's word about this Gateway's port.
        ("listener:infra~gw2~80", bind, "True web=True", "True x=True y=True"),
    ] {
        let refusals = said("gateway~infra~gw", name, reason);
        for (object, fine, want) in
            [(&gateway, fine(&["web"]), of_gateway), (&set, fine(&["x", "y"]), of_set)]
        {
            let mut status = fine.clone();
            refusals.tell(object, &mut status, Some(&fine), "t1");
            assert_eq!(told(&status), want, "{name} {reason}");
            assert_eq!(refusals.touch(object), status != fine, "{name}");
            assert_eq!(refusals.differ(&Refusals::default(), object), status != fine);
            // Said again it keeps its time.
            let mut again = fine;
            refusals.tell(object, &mut again, Some(&status), "t2");
            assert_eq!(again, status);
        }
    }
}

#[test]
fn a_section_that_cannot_be_used_is_told_to_its_owner_alone() {
    let [gateway, set] = objects();
    let of = |sections: &[&str]| {
        let port = "listener:infra~gw~80";
        let refusals = said_of("gateway~infra~gw", port, "the key is another's", sections);
        [(&gateway, fine(&["web"])), (&set, fine(&["x", "y"]))].map(|(object, fine)| {
            let mut status = fine.clone();
            refusals.tell(object, &mut status, Some(&fine), "t1");
            assert_eq!(refusals.touch(object), status != fine);
            assert_eq!(refusals.differ(&Refusals::default(), object), status != fine);
            told(&status)
        })
    };
    let (own, sets) = ("Invalid@t1 web=Invalid@t1", "Invalid@t1 x=Invalid@t1 y=True");
    assert_eq!(of(&["web"]), [own, "True x=True y=True"]);
    assert_eq!(of(&["listenerset/team/s/x"]), ["True web=True", sets]);
    assert_eq!(of(&["web", "listenerset/team/s/x"]), [own, sets]);
    assert_eq!(of(&["listenerset/team/other/x"]), ["True web=True", "True x=True y=True"]);
    // With what is said of the whole port, it is about all of it.
    let name = "listener:infra~gw~80".to_owned();
    let bad = Refused { name: name.clone(), reason: "a".into(), sections: vec!["web".into()] };
    let all = Refused { name, reason: "b".into(), sections: Vec::new() };
    for both in [[bad.clone(), all.clone()], [all, bad]] {
        let refusals = Refusals::read([("gateway~infra~gw", &both[..])].into_iter());
        assert!(refusals.touch(&gateway) && refusals.touch(&set));
    }
}

#[test]
fn nobody_speaks_of_other_gateways() {
    let port = "listener:infra~gw~80";
    for node in ["gateway~infra~other", "gateway~infra~g", "sidecar~infra~gw"] {
        assert_eq!(said(node, port, "no"), Refusals::default(), "{node}");
    }
    assert_ne!(said("gateway~infra~gw", port, "no"), Refusals::default());
}

#[test]
fn a_listener_that_is_not_served_anyway_keeps_its_own_reason() {
    let [_, set] = objects();
    let refusals = said("gateway~infra~gw", "listener:infra~gw~80", "no");
    let mut status = fine(&["x", "y"]);
    status["listeners"][0]["conditions"][1] =
        json!({ "type": "Programmed", "status": "False", "reason": "HostnameConflict" });
    let before = status.clone();
    refusals.tell(&set, &mut status, Some(&before), "t1");
    assert_eq!(status, before);
}
