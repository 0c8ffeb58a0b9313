// SPDX-License-Identifier: Apache-2.0
//! The authority: whom it certifies, what a request cannot gain, how it survives a restart.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::leaf::Leaf;
use weft_base::name::Label;

fn td(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn order(domain: &str) -> SpiffeId {
    td(domain).workload(&Label::new("shop").unwrap(), &Label::new("order").unwrap())
}

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(&dir.path().join("ca"), None, &Clock::system()).unwrap();
    (dir, ca)
}

/// A request with these names, as a hostile client would write it.
fn csr(names: &[SanType]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn uri_name(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn an_svid_has_exactly_the_granted_identity() {
    let (_dir, ca) = authority();
    let id = order("cluster.local");
    let before = Clock::system().wall_ms();
    let svid = ca.own_svid(&id, SVID_TTL_DEFAULT).unwrap();
    assert_eq!(svid.id(), &id);
    let now = Clock::system().wall_ms();
    assert!(svid.leaf().is_valid_at(now) && svid.leaf().is_valid_at(before - 50_000));
    let made = svid.leaf().not_after_ms - 24 * 3_600_000;
    // Certificates count in seconds.
    assert!((before - 1_000..=now + 1_000).contains(&made), "{before} {made} {now}");
    // The subject of the request ("rcgen self signed cert" by default) is not taken over.
    let der = &ca.sign(&csr(&[]), &id, SVID_TTL_DEFAULT).unwrap().chain[0];
    let cert = crate::leaf::parse(der).unwrap();
    assert_eq!(cert.subject().iter().count(), 0);
    assert!(cert.subject_alternative_name().unwrap().unwrap().critical);
    assert!(!cert.is_ca());
}

#[test]
fn reg_50_a_request_cannot_choose_its_names() {
    let (_dir, ca) = authority();
    let granted = order("cluster.local");
    let good = uri_name(granted.as_str());
    assert!(ca.sign(&csr(std::slice::from_ref(&good)), &granted, SVID_TTL_DEFAULT).is_ok());
    let bad: &[&[SanType]] = &[
        &[good.clone(), good.clone()],
        &[good.clone(), uri_name("spiffe://cluster.local/ns/shop/sa/user")],
        &[uri_name("spiffe://cluster.local/ns/shop/sa/user")],
        &[uri_name("spiffe://evil.example/ns/shop/sa/order")],
        &[uri_name("https://example.com/")],
        &[good.clone(), SanType::DnsName("localhost".try_into().unwrap())],
        &[SanType::IpAddress("127.0.0.1".parse().unwrap())],
        // The right text under another type is still another name.
        &[SanType::Rfc822Name(granted.as_str().try_into().unwrap())],
    ];
    for names in bad {
        let refused = ca.sign(&csr(names), &granted, SVID_TTL_DEFAULT);
        assert!(matches!(refused, Err(SignError::OtherName { .. })), "{names:?}: {refused:?}");
    }
    let foreign = order("evil.example");
    let refused = ca.sign(&csr(&[]), &foreign, SVID_TTL_DEFAULT);
    assert!(matches!(refused, Err(SignError::ForeignDomain { .. })));
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    let (_dir, ca) = authority();
    let id = order("cluster.local");
    let mut forged = csr(&[]);
    // Flip a bit of the public key: the signature no longer holds.
    let key_bit_string = forged.windows(3).position(|w| w == [0x42, 0x00, 0x04]).unwrap();
    forged[key_bit_string + 10] ^= 1;
    assert!(matches!(ca.sign(&forged, &id, SVID_TTL_DEFAULT), Err(SignError::Request(_))));
    assert!(ca.sign(b"", &id, SVID_TTL_DEFAULT).is_err());
    let large = vec![0x30; CSR_BYTES_MAX + 1];
    assert!(matches!(ca.sign(&large, &id, SVID_TTL_DEFAULT), Err(SignError::TooLarge(_))));

    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let asks = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    assert!(ca.sign(asks.der(), &id, SVID_TTL_DEFAULT).is_err());
}

#[test]
fn other_keys_than_p256() {
    let (_dir, ca) = authority();
    let id = order("cluster.local");
    for (algorithm, good) in [
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        (&rcgen::PKCS_ED25519, true),
        (&rcgen::PKCS_ECDSA_P521_SHA512, false),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        assert_eq!(ca.sign(csr.der(), &id, SVID_TTL_DEFAULT).is_ok(), good, "{algorithm:?}");
    }
}

#[test]
fn opening_again_gives_the_same_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let clock = Clock::system();
    let first = Authority::open(&ca, Some(&td("shop.example")), &clock).unwrap();
    let again = Authority::open(&ca, None, &clock).unwrap();
    assert_eq!(first.bundle(), again.bundle());
    assert_eq!(again.trust_domain().as_str(), "shop.example");
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&ca), 0o700);
    assert_eq!(mode(&ca.join("root.pem")), 0o600);

    let other = Authority::open(&ca, Some(&td("cluster.local")), &clock).unwrap_err();
    let text = other.to_string();
    assert!(text.contains("shop.example") && text.contains("--trust-domain"), "{text}");
}

#[test]
fn a_second_root_in_the_bundle_is_trusted_and_kept() {
    let (dir, ca) = authority();
    let (_other_dir, other) = authority();
    let path = dir.path().join("ca/bundle.pem");
    let both = ca.bundle().pem() + &other.bundle().pem();
    std::fs::write(&path, &both).unwrap();
    let again = Authority::open(&dir.path().join("ca"), None, &Clock::system()).unwrap();
    assert_eq!(again.bundle().roots().len(), 2);
    assert_eq!(again.bundle().roots()[0], ca.bundle().roots()[0]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), both);
}

#[test]
fn a_key_that_others_can_read_or_a_link_is_refused() {
    let (dir, ca) = authority();
    drop(ca);
    let dir = dir.path().join("ca");
    let root = dir.join("root.pem");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = Authority::open(&dir, None, &Clock::system()).unwrap_err();
    assert!(matches!(refused, CaError::Exposed { .. }), "{refused}");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o600)).unwrap();

    let moved = dir.join("elsewhere.pem");
    std::fs::rename(&root, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &root).unwrap();
    let refused = Authority::open(&dir, None, &Clock::system()).unwrap_err();
    assert!(matches!(refused, CaError::Io { .. }), "{refused}");
    std::fs::remove_file(&root).unwrap();

    std::fs::write(&moved, "not a key").unwrap();
    std::fs::rename(&moved, &root).unwrap();
    let refused = Authority::open(&dir, None, &Clock::system()).unwrap_err();
    assert!(matches!(refused, CaError::Damaged { .. }), "{refused}");
}

#[test]
fn an_expired_root_is_named_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::manual();
    let ca = Authority::open(dir.path(), None, &clock).unwrap();
    hand.advance(ROOT_TTL - Duration::from_hours(1));
    let last = ca.own_svid(&order("cluster.local"), SVID_TTL_DEFAULT).unwrap();
    assert!(
        last.remaining(clock.wall_ms()) <= Duration::from_hours(1),
        "no leaf outlives its root"
    );
    hand.advance(Duration::from_hours(2));
    let refused = Authority::open(dir.path(), None, &clock).unwrap_err();
    assert!(matches!(refused, CaError::Expired { .. }), "{refused}");
}

#[test]
fn reg_49_a_door_certificate_is_no_identity() {
    let (_dir, ca) = authority();
    let names = ["localhost".to_owned()];
    let door = ca.door_certificate(&names, &["127.0.0.1".parse().unwrap()], SVID_TTL_MAX).unwrap();
    assert_eq!(Leaf::read(&door.cert[0]).unwrap_err(), crate::leaf::LeafError::UriNames(0));
}

/// Every one-byte change of a good request, and many of random bytes.
#[test]
fn damaged_requests_and_certificates_never_panic_nor_gain_a_name() {
    use weft_base::rng::Rng;
    let (_dir, ca) = authority();
    let id = order("cluster.local");
    let good = csr(&[uri_name(id.as_str())]);
    let cert = ca.sign(&good, &id, SVID_TTL_DEFAULT).unwrap().chain[0].clone();
    let mut rng = Rng::seeded(50);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= u8::try_from(rng.below(255) + 1).unwrap();
        // The request is signed by its own key: any change breaks that, whatever it hits.
        assert!(ca.sign(&bad, &id, SVID_TTL_DEFAULT).is_err(), "byte {at}");
    }
    for _ in 0..20_000 {
        let mut bad = cert.to_vec();
        let at = usize::try_from(rng.below(bad.len() as u64)).unwrap();
        bad[at] = u8::try_from(rng.below(256)).unwrap();
        bad.truncate(usize::try_from(rng.below(bad.len() as u64 + 1)).unwrap().max(at + 1));
        let _ = Leaf::read(&bad.into());
    }
    for len in 0..600 {
        let noise: Vec<u8> = (0..len).map(|_| u8::try_from(rng.below(256)).unwrap()).collect();
        assert!(ca.sign(&noise, &id, SVID_TTL_DEFAULT).is_err());
        assert!(Leaf::read(&noise.into()).is_err());
    }
}
