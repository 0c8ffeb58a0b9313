// SPDX-License-Identifier: Apache-2.0
//! Prepared queries and templates as names.

use super::*;

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
