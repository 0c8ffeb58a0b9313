// SPDX-License-Identifier: Apache-2.0
//! Plans, applied to the World that they were made from.

use weft_kinds::views::check::Probe;
use weft_kinds::world::World;

use super::*;

fn apply(world: &mut World, txn: &Txn) {
    let revision = world.revision() + 1;
    for op in &txn.ops {
        match op {
            Op::Put { key, value, .. } => world.apply(key, Some(value), revision),
            Op::Delete { key } => world.apply(key, None, revision),
            Op::DeletePrefix { .. } => panic!("not used"),
        };
    }
}

fn key(id: &str) -> RegistrationKey {
    RegistrationKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

fn node() -> NodeRecord {
    NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..NodeRecord::default() }
}

fn ttl(id: &str) -> CheckRecord {
    let definition =
        CheckDefinition { probe: Probe::Ttl { ttl_ms: 1 }, ..CheckDefinition::default() };
    CheckRecord { id: id.into(), ..CheckRecord::default() }.with(&definition)
}

fn request(id: &str, checks: &[&str]) -> ServiceRequest {
    ServiceRequest {
        registration: Registration {
            id: id.into(),
            namespace: "default".into(),
            node: "n".into(),
            service: "Web_API".into(),
            agent: true,
            ..Registration::default()
        },
        checks: checks.iter().map(|id| ttl(id)).collect(),
        node: node(),
        ..ServiceRequest::default()
    }
}

fn checks(world: &World, id: &str) -> Vec<String> {
    world.catalog().checks_of(&key(id)).map(|(k, _)| k.id.to_string()).collect()
}

#[test]
fn the_same_registration_again_writes_nothing() {
    let mut w = World::new();
    let txn = register(w.catalog(), request("w", &["a"])).unwrap();
    assert_eq!(txn.ops.len(), 3, "node, check, instance");
    apply(&mut w, &txn);
    assert!(register(w.catalog(), request("w", &["a"])).unwrap().ops.is_empty());
    let stored = w.catalog().registration(&key("w")).unwrap();
    assert_eq!(&*stored.service, "Web_API", "the original name is kept");
    assert_eq!(w.instances("default", &weft_base::name::service_slug("Web_API")).len(), 1);
}

#[test]
fn checks_not_named_stay_unless_they_are_to_be_replaced() {
    let mut w = World::new();
    apply(&mut w.clone(), &Txn::default());
    let txn = register(w.catalog(), request("w", &["a", "b"])).unwrap();
    apply(&mut w, &txn);
    let service = w.catalog().registration(&key("w")).unwrap().clone();
    let out = maintenance_check("default", "n", Some(&service), "");
    assert!(out.notes.contains("no reason was provided"));
    let txn = register_check(w.catalog(), &node(), out).unwrap();
    apply(&mut w, &txn);
    let txn = register(w.catalog(), request("w", &["b"])).unwrap();
    apply(&mut w, &txn);
    assert_eq!(checks(&w, "w").len(), 3);
    let replacing = ServiceRequest { replace_checks: true, ..request("w", &["b"]) };
    let txn = register(w.catalog(), replacing).unwrap();
    apply(&mut w, &txn);
    assert_eq!(checks(&w, "w"), ["_service_maintenance:w", "b"], "maintenance is not a client's");
}

#[test]
fn checks_of_others_are_written_along() {
    let others = |ids: &[(&str, &str)]| -> Vec<CheckRecord> {
        let one = |(id, of): &(&str, &str)| CheckRecord {
            namespace: "default".into(),
            node: "n".into(),
            service_id: (*of).into(),
            ..ttl(id)
        };
        ids.iter().map(one).collect()
    };
    let mut w = World::new();
    let txn = register(w.catalog(), request("w", &["a", "moves"])).unwrap();
    apply(&mut w, &txn);
    // One of them was the service's own, which has another name now.
    let ids = [("node", ""), ("moves", ""), ("b", "w")];
    let mut with = ServiceRequest { others: others(&ids), ..request("x", &["own"]) };
    with.registration.service = "x".into();
    let txn = register(w.catalog(), with.clone()).unwrap();
    assert_eq!(txn.ops.len(), 5, "{txn:?}");
    let subject = Compare::Exists(StoreKey::Registration(key("w")).to_string().into());
    assert!(txn.compares.contains(&subject), "{txn:?}");
    apply(&mut w, &txn);
    assert_eq!(
        (checks(&w, "w"), checks(&w, "x")),
        (vec!["a".into(), "b".into()], vec!["own".into()])
    );
    assert_eq!(w.catalog().node_checks("n").count(), 2);
    let named =
        w.catalog().checks_of(&key("w")).all(|(_, check)| &*check.service_name == "Web_API");
    assert!(named);
    assert!(register(w.catalog(), with.clone()).unwrap().ops.is_empty());
    // Whose service is not there, and the one too many, keep all of it out.
    with.others = others(&[("node", ""), ("c", "nobody")]);
    let why = register(w.catalog(), with.clone()).unwrap_err();
    assert!(matches!(why, CatalogError::NoSuchService { .. }), "{why}");
    let ids: Vec<String> = (0..CHECKS_PER_INSTANCE_MAX - 1).map(|n| format!("c{n}")).collect();
    with.others = others(&ids.iter().map(|id| (&**id, "w")).collect::<Vec<_>>());
    let why = register(w.catalog(), with).unwrap_err();
    assert!(matches!(why, CatalogError::TooMuch { found: 41, max: 40, .. }), "{why}");
}

#[test]
fn a_check_keeps_its_status_and_goes_by_its_instances_name() {
    let mut w = World::new();
    let mut first = request("w", &["a", "b"]);
    for check in &mut first.checks {
        check.initial = Status::Passing;
    }
    let txn = register(w.catalog(), first).unwrap();
    apply(&mut w, &txn);
    // Registered anew without a status, before anybody reported; and under another name.
    let mut again = request("w", &["a"]);
    again.registration.service = "other".into();
    let txn = register(w.catalog(), again).unwrap();
    apply(&mut w, &txn);
    let all: Vec<_> = w.catalog().checks_of(&key("w")).map(|(_, check)| check.clone()).collect();
    assert_eq!(all.len(), 2);
    for check in all {
        assert_eq!((check.initial, &*check.service_name), (Status::Passing, "other"), "{check:?}");
    }
    // What is written to the catalog says it itself.
    let mut written = request("w", &["a"]);
    written.registration.agent = false;
    let txn = register(w.catalog(), written).unwrap();
    apply(&mut w, &txn);
    let (_, check) = w.catalog().checks_of(&key("w")).next().unwrap();
    assert_eq!(check.initial, Status::Critical);
}

#[test]
fn deregistering_takes_checks_and_the_sidecar_along() {
    let mut w = World::new();
    let txn = register(w.catalog(), request("w", &["a"])).unwrap();
    apply(&mut w, &txn);
    let mut sidecar = request("w-sidecar-proxy", &["s"]);
    sidecar.registration.kind = "connect-proxy".into();
    let txn = register(w.catalog(), sidecar).unwrap();
    apply(&mut w, &txn);
    let txn = deregister(w.catalog(), &key("w")).unwrap();
    apply(&mut w, &txn);
    assert_eq!((w.catalog().registrations().count(), w.catalog().checks().count()), (0, 0));
    assert!(matches!(deregister(w.catalog(), &key("w")), Err(CatalogError::UnknownService { .. })));
}

#[test]
fn a_large_node_goes_in_transactions_that_fit() {
    let mut w = World::new();
    for i in 0..100 {
        let txn = register(w.catalog(), request(&format!("w{i}"), &[&format!("k{i}")])).unwrap();
        apply(&mut w, &txn);
    }
    let mut rounds = 0;
    loop {
        let txn = deregister_node(w.catalog(), "n", false);
        if txn.ops.is_empty() {
            break;
        }
        assert!(txn.ops.len() <= weft_base::limits::STORE_TXN_OPS_MAX);
        apply(&mut w, &txn);
        rounds += 1;
    }
    assert!(rounds > 1);
    let c = w.catalog();
    assert_eq!((c.registrations().count(), c.checks().count(), c.nodes().count()), (0, 0, 0));
}

#[test]
fn a_node_whose_last_instance_fits_no_more_goes_in_parts() {
    let mut w = World::new();
    let ids: Vec<String> = (0..CHECKS_PER_INSTANCE_MAX).map(|n| format!("c{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    // The node's own two changes are the ones that did not fit behind these.
    for n in 0..46 {
        let txn = register(w.catalog(), request(&format!("a{n:02}"), &[])).unwrap();
        apply(&mut w, &txn);
    }
    let txn = register(w.catalog(), request("z", &ids)).unwrap();
    apply(&mut w, &txn);
    while w.catalog().node("n").is_some() {
        let txn = deregister_node(w.catalog(), "n", false);
        assert!(txn.ops.len() <= weft_base::limits::STORE_TXN_OPS_MAX, "{}", txn.ops.len());
        apply(&mut w, &txn);
    }
}

#[test]
fn an_instance_has_no_more_checks_than_can_go_with_it() {
    let mut w = World::new();
    let of = |from: usize| (0..30).map(|n| format!("c{}", from + n)).collect::<Vec<_>>();
    let (first, second) = (of(0), of(30));
    let ids = |all: &[String]| all.iter().map(|id| ttl(id)).collect();
    let txn = register(w.catalog(), ServiceRequest { checks: ids(&first), ..request("w", &[]) });
    apply(&mut w, &txn.unwrap());
    let more = ServiceRequest { checks: ids(&second), ..request("w", &[]) };
    let why = register(w.catalog(), more.clone()).unwrap_err().to_string();
    assert!(why.contains("60") && why.contains("checks"), "{why}");
    assert!(register(w.catalog(), ServiceRequest { replace_checks: true, ..more }).is_ok());
}

#[test]
fn limits_are_named() {
    let w = World::new();
    let mut large = request("w", &[]);
    large.registration.meta.insert("k".into(), "v".repeat(META_VALUE_BYTES_MAX + 1).into());
    let why = register(w.catalog(), large).unwrap_err().to_string();
    assert!(why.contains("meta \"k\""), "{why}");
    let ids: Vec<String> = (0..=CHECKS_PER_INSTANCE_MAX).map(|i| format!("c{i}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert!(register(w.catalog(), request("w", &ids)).is_err());
    let mut heavy = request("w", &[]);
    heavy.registration.proxy = Some(Box::new(serde_json::json!("x".repeat(STORE_VALUE_BYTES_MAX))));
    let why = register(w.catalog(), heavy).unwrap_err().to_string();
    assert!(why.contains("the record in bytes"), "{why}");
    let long = "c".repeat(NAME_BYTES_MAX + 1);
    assert!(register(w.catalog(), request("w", &[&long])).is_err());
    let orphan = CheckRecord { service_id: "x".into(), ..ttl("k") };
    let why = register_check(w.catalog(), &node(), orphan).unwrap_err().to_string();
    assert_eq!(why, "ServiceID \"x\" does not exist");
}

#[test]
fn reg_44_control_characters_in_names_are_refused() {
    let w = World::new();
    for id in ["w\u{1b}[2J", "a\nb", "\0"] {
        let why =
            register(w.catalog(), request(id, &[])).expect_err("taken all the same").to_string();
        assert!(why.contains("control character") && !why.contains(id), "{why}");
        assert!(register(w.catalog(), request("w", &[id])).is_err(), "a check's id");
    }
}
