// SPDX-License-Identifier: Apache-2.0
//! The fold through its public door.

use super::super::{CheckDefinition, CheckState, Probe};
use super::*;

fn put(catalog: &mut Catalog, key: &str, value: &impl serde::Serialize, rev: u64) -> Touched {
    let bytes = serde_json::to_vec(value).unwrap();
    catalog.apply(key, Some(&bytes), rev).expect("a catalog key")
}

fn web(id: &str) -> Registration {
    Registration {
        id: id.into(),
        namespace: "default".into(),
        node: "n1".into(),
        service: "web".into(),
        slug: "web".into(),
        port: 80,
        ..Registration::default()
    }
}

fn ttl(id: &str, service_id: &str) -> CheckDefinition {
    CheckDefinition {
        id: id.into(),
        namespace: "default".into(),
        node: "n1".into(),
        service_id: service_id.into(),
        probe: Probe::Ttl { ttl_ms: 1000 },
        ..CheckDefinition::default()
    }
}

#[test]
fn the_worst_check_of_instance_and_node_decides() {
    let mut c = Catalog::default();
    put(&mut c, &key::instance("default", "n1", "w1"), &web("w1"), 1);
    put(&mut c, &key::instance("default", "n1", "w2"), &web("w2"), 2);
    assert_eq!(c.health_of(&web("w1")), Status::Passing, "no check, passing");
    put(&mut c, &key::check("default", "n1", "service:w1"), &ttl("service:w1", "w1"), 3);
    assert_eq!(c.health_of(&web("w1")), Status::Critical, "critical until reported");
    assert_eq!(c.health_of(&web("w2")), Status::Passing, "another's check");
    let ok = CheckState { status: Status::Passing, output: "ok".into() };
    let touched = put(&mut c, &key::state("default", "n1", "service:w1"), &ok, 4);
    assert_eq!(touched.services, [("default".into(), "web".into())]);
    assert_eq!(c.health_of(&web("w1")), Status::Passing);
    put(&mut c, &key::check("default", "n1", NODE_MAINTENANCE), &ttl(NODE_MAINTENANCE, ""), 5);
    assert_eq!(c.health_of(&web("w2")), Status::Maintenance, "a node's check is everyone's");
}

#[test]
fn a_state_may_come_before_its_definition_and_outlive_it_by_an_event() {
    let mut c = Catalog::default();
    let ok = CheckState { status: Status::Passing, output: String::new() };
    put(&mut c, &key::state("default", "n1", "k"), &ok, 1);
    put(&mut c, &key::check("default", "n1", "k"), &ttl("k", ""), 2);
    assert_eq!(c.check("default", "n1", "k").unwrap().value.status(), Status::Passing);
    c.apply(&key::state("default", "n1", "k"), None, 3);
    assert_eq!(c.check("default", "n1", "k").unwrap().value.status(), Status::Critical);
}

#[test]
fn a_renamed_instance_touches_both_services() {
    let mut c = Catalog::default();
    let at = key::instance("default", "n1", "w1");
    put(&mut c, &at, &web("w1"), 1);
    let moved = Registration { service: "api".into(), slug: "api".into(), ..web("w1") };
    let touched = put(&mut c, &at, &moved, 2);
    assert_eq!(touched.services.len(), 2);
    assert_eq!(c.service("default", "web").count(), 0);
    let api: Vec<_> = c.service("default", "api").collect();
    assert_eq!((api[0].created, api[0].modified), (1, 2));
    c.apply(&at, None, 3);
    assert_eq!(c.services().count(), 0);
}
