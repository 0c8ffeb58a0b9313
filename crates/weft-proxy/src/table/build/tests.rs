// SPDX-License-Identifier: Apache-2.0
//! What a builder shares, keeps and refuses.

use std::sync::Arc;

use proptest::prelude::*;
use weft_base::clock::Clock;
use weft_model::decide::Own;
use weft_model::*;

use super::Builder;
use crate::tests::bed::*;

fn apply(builder: &mut Builder, resources: Vec<Named>) -> Arc<crate::table::Table> {
    let upserts = resources.into_iter().map(|(n, r)| (n, Ok(r))).collect();
    let (table, rejected) = builder.apply(1, upserts, &[]);
    assert_eq!(rejected, []);
    table
}

fn address(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

#[test]
fn a_change_shares_everything_else() {
    let mut builder = Builder::new(2, Clock::system(), "shop".into());
    let mut all = Vec::new();
    for i in 0..50 {
        all.extend(http_service(&format!("s{i}"), &[address(1000 + i)]));
    }
    let before = apply(&mut builder, all);
    before.host("s1").unwrap().backends["backend/80"].endpoints[0].shared.begin(0);
    let endpoints = vec![endpoint("s1-0", address(1001)), endpoint("s1-1", address(2001))];
    let after = apply(&mut builder, vec![endpoints_of("s1", Protocol::Http1, endpoints)]);
    for i in 0..50 {
        let name = format!("s{i}");
        let same = Arc::ptr_eq(before.host(&name).unwrap(), after.host(&name).unwrap());
        assert_eq!(same, i != 1, "{name}");
    }
    // What is known about an endpoint outlives the swap.
    let backend = &after.host("s1").unwrap().backends["backend/80"];
    let in_flight: Vec<u64> = backend.endpoints.iter().map(|e| e.shared.in_flight()).collect();
    assert_eq!(in_flight, [1, 0]);
}

#[test]
fn an_undecodable_resource_keeps_its_last_good_form() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    apply(&mut builder, http_service("a", &[address(1)]));
    let fail = || Err(Fail { reason: "of another release".into(), origin: None });
    let known = Root::host(fqdn("a")).child("backend/80");
    let new = Root::host(fqdn("b")).child("backend/80");
    let (table, _) = builder.apply(2, vec![(known.clone(), fail()), (new.clone(), fail())], &[]);
    assert!(table.backend(&known).is_some());
    assert!(table.backend(&new).is_none());
    assert_eq!(&*table.fail(&new).unwrap().reason, "of another release");
}

#[test]
fn services_of_the_own_namespace_have_a_short_name() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    let host = |name: &str| {
        let host = weft_model::Host {
            name: name.into(),
            aliases: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
        };
        (Root::host(name).own(), Resource::Host(host))
    };
    let own = host("user.shop.svc.cluster.local");
    let foreign = host("bill.office.svc.cluster.local");
    let table = apply(&mut builder, vec![own.clone(), foreign]);
    assert_eq!(&*table.host("user").unwrap().host.name, "user.shop.svc.cluster.local");
    assert!(table.host("bill").is_none());
    let (table, _) = builder.apply(2, Vec::new(), &[own.0]);
    assert!(table.host("user").is_none());
}

#[test]
fn removing_a_root_removes_its_names_and_children() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    apply(&mut builder, http_service("a", &[address(1)]));
    let (table, _) = builder.apply(2, Vec::new(), &[Root::host(fqdn("a")).own()]);
    assert!(table.host("a").is_none() && table.host(&fqdn("a")).is_none());
    assert_eq!(table.hosts().count(), 0);
    assert_eq!(builder.resources().count(), 0);
}

/// A service whose instances are in zones of one region, with a policy.
fn in_zones(name: &str, zones: &[&str], change: impl Fn(&mut BackendPolicy)) -> Vec<Named> {
    let mut all = http_service(name, &[]);
    for (_, resource) in &mut all {
        match resource {
            Resource::Backend(backend) => change(&mut backend.policy),
            Resource::Endpoints(set) => {
                let each = zones.iter().zip(2_000..).enumerate();
                let each = each.map(|(i, (zone, port))| Endpoint {
                    locality: Locality::parse(&format!("eu/{zone}")),
                    ..endpoint(&format!("{name}-{i}"), address(port))
                });
                set.endpoints = each.collect();
            }
            _ => {}
        }
    }
    all
}

#[test]
fn callers_are_the_instances_of_the_own_service_zone_by_zone() {
    let own = Own { locality: Locality::parse("eu/a"), id: "web-0".into(), ..Own::default() };
    let mut builder = Builder::new(1, Clock::system(), "shop".into()).located(own);
    let zoned = ZoneAware { endpoints_min: 1, ..ZoneAware::default() };
    let zoned = |policy: &mut BackendPolicy| policy.locality = LocalityPolicy::Zones(zoned.clone());
    let shares = |table: &crate::table::Table| {
        let shares =
            table.host("user").unwrap().backends["backend/80"].shares(Clock::system().now());
        let all: u64 = shares.weights.iter().copied().map(u64::from).sum();
        shares.weights.iter().map(|w| u64::from(*w) * 100 / all).collect::<Vec<_>>()
    };
    let table = apply(&mut builder, in_zones("user", &["a", "b", "b", "b"], zoned));
    assert_eq!(shares(&table), [25; 4], "nobody else is known to call");
    // One caller in four is here, as one instance in four is.
    let table = apply(&mut builder, in_zones("web", &["a", "b", "b", "b"], |_| {}));
    assert_eq!(shares(&table), [100, 0, 0, 0]);
    let table = apply(&mut builder, in_zones("web", &["a", "b"], |_| {}));
    let half = shares(&table);
    assert!((49..=50).contains(&half[0]) && half[1..].iter().all(|n| *n == 16), "{half:?}");
}

#[test]
fn an_app_that_speaks_tls_is_spoken_to_past_its_sidecar() {
    let mut builder = Builder::new(1, Clock::system(), "shop".into());
    let mut all = in_zones("user", &["a"], |policy| {
        let trust = Trust::Anyone;
        policy.tls = Some(Box::new(UpstreamTls { trust, ..UpstreamTls::default() }));
    });
    for (_, resource) in &mut all {
        if let Resource::Endpoints(set) = resource {
            set.endpoints[0].transport = Transport::MeshH1;
        }
    }
    let table = apply(&mut builder, all);
    let entry = &table.host("user").unwrap().backends["backend/80"].endpoints[0];
    assert_eq!(entry.endpoint.connect_address(), address(2_000));
    assert!(entry.tls.is_some());
    // What cannot be followed any more takes its place at once: nothing goes on in the old way.
    let name = Root::host(fqdn("user")).child("backend/80");
    let fail = Fail { reason: "nobody is trusted".into(), origin: None };
    let table = apply(&mut builder, vec![(name.clone(), Resource::Fail(fail))]);
    assert!(table.backend(&name).is_none() && table.fail(&name).is_some());
}

#[test]
fn tls_that_cannot_be_spoken_takes_the_place_of_the_form_before() {
    let name = Root::host(fqdn("user")).child("backend/80");
    let broken = "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";
    let anyone = || UpstreamTls { trust: Trust::Anyone, ..UpstreamTls::default() };
    let unusable = [
        UpstreamTls { trust: Trust::Authorities(broken.into()), ..UpstreamTls::default() },
        UpstreamTls { trust: Trust::Authorities("garbage".into()), ..UpstreamTls::default() },
        UpstreamTls { server_name: Some("*.example.com".into()), ..anyone() },
    ];
    let before = [None, Some(Box::new(anyone()))];
    for (tls, old) in unusable.iter().flat_map(|tls| before.iter().map(move |old| (tls, old))) {
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        let table = apply(&mut builder, in_zones("user", &["a"], |p| p.tls.clone_from(old)));
        assert!(table.backend(&name).is_some());
        let new = in_zones("user", &["a"], |p| p.tls = Some(Box::new(tls.clone())));
        let upserts = new.into_iter().map(|(n, r)| (n, Ok(r))).collect();
        let (table, rejected) = builder.apply(2, upserts, &[]);
        assert!(table.backend(&name).is_none(), "the old form stays beside {tls:?}");
        assert_eq!(rejected.len(), 1);
        assert_eq!(*table.fail(&name).unwrap().reason, *rejected[0].reason);
        // Opaque connections are refused with it, and do not pass as if nobody knew the host.
        let mut rng = weft_base::rng::Rng::seeded(1);
        let who = crate::tcp::route::Who::at(std::net::Ipv4Addr::LOCALHOST.into());
        let way = crate::tcp::route::backend_of(&table, &fqdn("user"), 80, who, &mut rng);
        assert_eq!(way.map(|way| way.is_err()), Some(true));
    }
}

fn certificate() -> Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key);
    Certificate { chain_pem: cert.unwrap().pem().into(), key_pem: key.serialize_pem().into() }
}

/// A gateway's port with these host names, each with its certificate.
fn port(sections: &[(&str, &Certificate)], change: impl FnOnce(&mut GatewayListener)) -> Named {
    let (name, mut listener) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(g), .. }) = &mut listener {
        let made = sections.iter().map(|(host, certificate)| Section {
            name: (*host).into(),
            hostname: Some((*host).into()),
            protocol: Protocol::Http1,
            tls: Some(ServerTls::new(
                certificate.chain_pem.to_string(),
                certificate.key_pem.to_string(),
            )),
        });
        g.sections = made.collect();
        change(g);
    }
    (name, listener)
}

#[test]
fn a_certificate_that_cannot_be_used_takes_its_own_section_and_no_other() {
    let (good, other) = (certificate(), certificate());
    let mixed = Certificate { key_pem: other.key_pem.clone(), ..good.clone() };
    let garbage = Certificate { chain_pem: "garbage".into(), ..good.clone() };
    let served = |builder: &mut Builder, listener: Named, refused: &[&str]| {
        let (table, rejected) = builder.apply(1, vec![(listener.0, Ok(listener.1))], &[]);
        let reasons: Vec<&str> = rejected.iter().map(|r| &*r.reason).collect();
        assert_eq!(reasons.len(), usize::from(!refused.is_empty()), "{reasons:?}");
        let named = |name: &&str| reasons[0].contains(&format!("{name:?}"));
        assert!(refused.iter().all(named), "{reasons:?}");
        let sections: Vec<&String> = rejected.iter().flat_map(|r| &r.sections).collect();
        assert_eq!(sections, refused, "the others are used");
        let gateway = table.gateway("shop/web/8000").unwrap().clone();
        ["a.example", "b.example", "c.example"].map(|name| gateway.tls_for(Some(name)))
    };
    for bad in [&mixed, &garbage] {
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        let new = port(&[("a.example", bad), ("b.example", &good), ("*", &good)], |_| {});
        let [a, b, c] = served(&mut builder, new.clone(), &["a.example"]);
        assert!(a.is_none(), "the certificate for all others is none for it");
        assert!(b.is_some() && c.is_some());
        let whole = port(&[("a.example", &good), ("b.example", &good), ("*", &good)], |_| {});
        let [a, again, _] = served(&mut builder, whole, &[]);
        let a = a.expect("it is used as soon as it can be");
        assert!(Arc::ptr_eq(&b.unwrap(), &again.unwrap()), "what did not change was made anew");
        // A new one that cannot be used leaves the old one where it is,
        let [kept, _, _] = served(&mut builder, new, &["a.example"]);
        assert!(kept.is_some_and(|kept| Arc::ptr_eq(&kept, &a)));
        // unless something else is asked of clients, which the old one does not.
        let [strict, b, _] = {
            let sections = [("a.example", bad), ("b.example", &good), ("*", &good)];
            let listener = port(&sections, |g| {
                let clients = ClientCertificates {
                    ca_pem: good.chain_pem.clone(),
                    required: true,
                    insecure: false,
                };
                g.sections[0].tls.as_mut().unwrap().clients = Some(Box::new(clients));
            });
            served(&mut builder, listener, &["a.example"])
        };
        assert!(strict.is_none() && b.is_some());
    }
}

#[test]
fn a_certificate_to_show_that_cannot_be_used_makes_nobody_speak_in_plain_text() {
    let name = Root::host(fqdn("user")).child("backend/80");
    let secured = || {
        let anyone = UpstreamTls { trust: Trust::Anyone, ..UpstreamTls::default() };
        in_zones("user", &["a"], move |p| p.tls = Some(Box::new(anyone.clone())))
    };
    let shows = |certificate: Certificate| {
        let good = self::certificate();
        vec![port(&[("*", &good)], |g| g.backend_certificate = Some(Box::new(certificate)))]
    };
    let broken = || Certificate { key_pem: certificate().key_pem, ..certificate() };
    for listener_first in [true, false] {
        let mut builder = Builder::new(1, Clock::system(), "shop".into());
        let mut steps = [shows(broken()), secured()];
        if !listener_first {
            steps.reverse();
        }
        let mut refused = Vec::new();
        let mut table = None;
        for step in steps {
            let upserts = step.into_iter().map(|(n, r)| (n, Ok(r))).collect();
            let (made, rejected) = builder.apply(1, upserts, &[]);
            refused.extend(rejected);
            table = Some(made);
        }
        let table = table.unwrap();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].reason.contains("certificate for backends"), "{refused:?}");
        assert!(refused[0].sections.is_empty(), "it is no section's alone");
        assert!(table.backend(&name).is_none(), "it would be spoken to in plain text");
        assert!(table.fail(&name).unwrap().reason.contains("certificate to show"));
        assert!(table.gateway("shop/web/8000").unwrap().tls_for(None).is_some());
        // With one that can be used it is spoken to again, though nobody sent it again.
        let table = apply(&mut builder, shows(certificate()));
        let endpoint = &table.backend(&name).expect("it is whole again").endpoints[0];
        assert!(endpoint.tls.is_some());
    }
}

#[test]
fn who_is_to_be_shown_nothing_is_not_shown_the_gateways_certificate() {
    let name = Root::host(fqdn("user")).child("backend/80");
    for anonymous in [true, false] {
        let tls = UpstreamTls { trust: Trust::Anyone, anonymous, ..UpstreamTls::default() };
        let mut all = in_zones("user", &["a"], move |p| p.tls = Some(Box::new(tls.clone())));
        // One that cannot be used tells who was to show it.
        let broken = Certificate { key_pem: certificate().key_pem, ..certificate() };
        all.push(port(&[("*", &certificate())], |g| {
            g.backend_certificate = Some(Box::new(broken.clone()));
        }));
        let upserts = all.into_iter().map(|(n, r)| (n, Ok(r))).collect();
        let (table, _) = Builder::new(1, Clock::system(), "shop".into()).apply(1, upserts, &[]);
        assert_eq!(table.backend(&name).is_some(), anonymous);
    }
}

proptest! {
    /// However changes are cut into transactions, the table is the one made at once.
    #[test]
    fn transactions_may_be_cut_anywhere(
        steps in proptest::collection::vec((0u16..5, 0u16..4, any::<bool>()), 1..40),
        cut in 1usize..7,
    ) {
        let mut one_by_one = Builder::new(1, Clock::system(), "shop".into());
        let mut final_state = std::collections::BTreeMap::new();
        for chunk in steps.chunks(cut) {
            let mut upserts = std::collections::BTreeMap::new();
            let mut removes = std::collections::BTreeSet::new();
            for (service, port, remove) in chunk {
                let name = format!("s{service}");
                for (n, r) in http_service(&name, &[address(100 + port)]) {
                    if *remove {
                        upserts.remove(&n);
                        final_state.remove(&n);
                        removes.insert(n);
                    } else {
                        removes.remove(&n);
                        upserts.insert(n.clone(), Ok(r.clone()));
                        final_state.insert(n, r);
                    }
                }
            }
            let removes: Vec<_> = removes.into_iter().collect();
            one_by_one.apply(1, upserts.into_iter().collect(), &removes);
        }
        let mut at_once = Builder::new(1, Clock::system(), "shop".into());
        let upserts = final_state.into_iter().map(|(n, r)| (n, Ok(r))).collect();
        let (want, _) = at_once.apply(1, upserts, &[]);
        let (got, _) = one_by_one.apply(1, Vec::new(), &[]);
        let shown = |t: &crate::table::Table| {
            let mut all: Vec<String> = t.backends().map(|b| {
                let at: Vec<_> = b.endpoints.iter().map(|e| e.endpoint.address).collect();
                format!("{} {at:?}", b.name)
            }).collect();
            all.sort();
            all
        };
        prop_assert_eq!(shown(&got), shown(&want));
        for i in 0..5 {
            let name = format!("s{i}");
            prop_assert_eq!(got.host(&name).is_some(), want.host(&name).is_some());
        }
    }
}
