// SPDX-License-Identifier: Apache-2.0
//! SPIFFE names: what reads back, and all that is no identity.

use proptest::prelude::*;

use super::*;

#[test]
fn a_workload_identity_reads_back() {
    let td = TrustDomain::new("cluster.local").unwrap();
    let id = td.workload(&Label::new("shop").unwrap(), &Label::new("order").unwrap());
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/order");
    assert_eq!(id.workload(), Some(("shop", "order")));
    assert_eq!(id.trust_domain(), td);
    assert!(id.is_member_of(&td));
    assert_eq!(SpiffeId::new(id.as_str()).unwrap(), id);
    assert_eq!(td.server().workload(), None);
}

#[test]
fn refuses_everything_that_is_not_exactly_one() {
    for bad in [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/",
        "spiffe:///a",
        "SPIFFE://td/a",
        "https://td/a",
        "spiffe://TD/a",
        "spiffe://td:80/a",
        "spiffe://u@td/a",
        "spiffe://td/a/",
        "spiffe://td//a",
        "spiffe://td/a/../b",
        "spiffe://td/./b",
        "spiffe://td/a?x",
        "spiffe://td/a#x",
        "spiffe://td/a%2fb",
        "spiffe://td/a b",
        "spiffe://td/\u{e4}",
        " spiffe://td/a",
    ] {
        assert!(SpiffeId::new(bad).is_err(), "{bad:?}");
    }
    assert!(SpiffeId::new(&format!("spiffe://td/{}", "a".repeat(2048))).is_err());
}

#[test]
fn reg_49_embedded_nul_is_no_identity() {
    for bad in ["spiffe://td/ns/a/sa/b\0", "spiffe://td\0.evil/ns/a/sa/b", "spiffe://td/a\0/b"] {
        assert!(SpiffeId::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn reg_48_a_wildcard_is_not_a_name() {
    for bad in ["spiffe://*.local/ns/a/sa/b", "spiffe://td/ns/*/sa/b", "spiffe://td/*"] {
        assert!(SpiffeId::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_longer_path_is_not_a_workload() {
    for other in ["/ns/a/sa/b/c", "/ns/a/sa", "/x/ns/a/sa/b", "/sa/a/ns/b"] {
        let id = SpiffeId::new(&format!("spiffe://td{other}")).unwrap();
        assert_eq!(id.workload(), None, "{other}");
    }
}

proptest! {
    #[test]
    fn parsing_is_the_identity_or_an_error(text in "\\PC{0,80}") {
        if let Ok(id) = SpiffeId::new(&text) {
            prop_assert_eq!(id.as_str(), text.as_str());
        }
    }

    #[test]
    fn membership_is_exact(a in "[a-z0-9.]{1,9}", b in "[a-z0-9.]{1,9}") {
        let (ta, tb) = (TrustDomain::new(&a).unwrap(), TrustDomain::new(&b).unwrap());
        prop_assert_eq!(ta.server().is_member_of(&tb), a == b);
    }
}

#[test]
fn hosts_are_no_workloads_and_the_reverse() {
    let domain = TrustDomain::new("cluster.local").unwrap();
    let label = |text: &str| Label::new(text).unwrap();
    let host = domain.host(&label("m1"), &label("a1b2"));
    assert_eq!(host.as_str(), "spiffe://cluster.local/weft/host/m1/a1b2");
    assert_eq!((host.host(), host.workload()), (Some(("m1", "a1b2")), None));
    let (ns, sa) = (label("weft"), label("host"));
    assert_eq!(domain.workload(&ns, &sa).host(), None);
    assert_eq!(domain.server().host(), None);
    for odd in ["/weft/host/m1", "/weft/host/m1/a/b", "/ns/weft/host/m1"] {
        let id = SpiffeId::new(&format!("spiffe://cluster.local{odd}")).unwrap();
        assert_eq!(id.host(), None, "{odd}");
    }
}
