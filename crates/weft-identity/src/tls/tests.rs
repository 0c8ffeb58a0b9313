// SPDX-License-Identifier: Apache-2.0
//! Handshakes between real ends: who is believed, who is refused, and for how long.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_base::name::Label;
use weft_base::snapshot::snapshot;

use super::*;
use crate::ca::{Authority, SVID_TTL_DEFAULT};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::Bundle;

/// Facts both ends know after a handshake.
#[derive(Debug)]
struct Met {
    server_saw: SpiffeId,
    client_saw: SpiffeId,
    alpn: Option<Vec<u8>>,
    resumed: bool,
}

fn authority(clock: &Clock) -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path(), None, clock).unwrap();
    (dir, ca)
}

fn id(account: &str) -> SpiffeId {
    let td = TrustDomain::new("cluster.local").unwrap();
    td.workload(&Label::new("shop").unwrap(), &Label::new(account).unwrap())
}

fn svid(ca: &Authority, account: &str) -> Svid {
    ca.own_svid(&id(account), SVID_TTL_DEFAULT).unwrap()
}

/// A handshake over an in-memory pipe, then one byte each way so that both ends have finished.
async fn meet(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    clock: &Clock,
) -> Result<Met, String> {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut s =
            TlsAcceptor::from(server).accept(a).await.map_err(|e| format!("server: {e}"))?;
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        s.flush().await.map_err(|e| e.to_string())?;
        let leaf = peer(s.get_ref().1.peer_certificates(), clock).map_err(|e| e.to_string())?;
        let _ = s.read_u8().await;
        Ok::<_, String>(leaf.id)
    };
    let connect = async {
        let name = ServerName::try_from("p8080.mesh.weft.internal").unwrap();
        let connected = TlsConnector::from(client).connect(name, b).await;
        let mut s = connected.map_err(|e| format!("client: {e}"))?;
        // TLS 1.3 tells a client of its refusal only with the first read.
        s.read_u8().await.map_err(|e| format!("client: {e}"))?;
        let (_, conn) = s.get_ref();
        let leaf = peer(conn.peer_certificates(), clock).map_err(|e| e.to_string())?;
        let resumed = conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let alpn = conn.alpn_protocol().map(<[u8]>::to_vec);
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        Ok::<_, String>((leaf.id, alpn, resumed))
    };
    match tokio::join!(serve, connect) {
        (Ok(server_saw), Ok((client_saw, alpn, resumed))) => {
            Ok(Met { server_saw, client_saw, alpn, resumed })
        }
        (server, client) => Err(format!("{server:?} / {client:?}")),
    }
}

async fn meet_with(
    server: &Svid,
    client: &Svid,
    expected: Expected,
    clock: &Clock,
) -> Result<Met, String> {
    let server = Arc::new(mesh_server(server, clock).unwrap());
    let client = Arc::new(mesh_client(client, expected, Alpn::Both, clock).unwrap());
    meet(server, client, clock).await
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let (order, user) = (svid(&ca, "order"), svid(&ca, "user"));
    let met = meet_with(&user, &order, Expected::only(id("user")), &clock).await.unwrap();
    assert_eq!((met.server_saw, met.client_saw), (id("order"), id("user")));
    assert_eq!(met.alpn.as_deref(), Some(&b"h2"[..]));
    assert!(!met.resumed);
}

#[tokio::test]
async fn alpn_follows_the_client() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let server = Arc::new(mesh_server(&svid(&ca, "user"), &clock).unwrap());
    let only = Expected::only(id("user"));
    for (alpn, want) in [(Alpn::Http11, &b"http/1.1"[..]), (Alpn::H2, b"h2")] {
        let client = mesh_client(&svid(&ca, "order"), only.clone(), alpn, &clock).unwrap();
        let met = meet(server.clone(), Arc::new(client), &clock).await.unwrap();
        assert_eq!(met.alpn.as_deref(), Some(want));
    }
}

#[tokio::test]
async fn another_identity_than_expected_is_refused_with_both_names() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let (order, user) = (svid(&ca, "order"), svid(&ca, "user"));
    let why = meet_with(&user, &order, Expected::only(id("product")), &clock).await.unwrap_err();
    assert!(why.contains("/sa/user") && why.contains("/sa/product"), "{why}");
    let nobody = Expected::OneOf(std::collections::BTreeSet::new());
    assert!(meet_with(&user, &order, nobody, &clock).await.is_err());
}

#[tokio::test]
async fn a_foreign_authority_is_refused_on_either_side() {
    let clock = Clock::system();
    let ((_d1, ours), (_d2, theirs)) = (authority(&clock), authority(&clock));
    let (good, bad) = (svid(&ours, "user"), svid(&theirs, "user"));
    let any = Expected::AnyOfTrustDomain;
    assert!(meet_with(&good, &bad, any.clone(), &clock).await.is_err());
    assert!(meet_with(&bad, &good, any, &clock).await.is_err());
}

#[tokio::test]
async fn reg_51_no_certificate_no_entry_from_loopback_either() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let user = svid(&ca, "user");
    let server = Arc::new(mesh_server(&user, &clock).unwrap());
    let roots = user.anchors();
    let anonymous = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier {
            anchors: roots,
            domain: TrustDomain::new("cluster.local").unwrap(),
            expected: Expected::AnyOfTrustDomain,
        }))
        .with_no_client_auth();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(server).accept(tcp).await.map(|_| ())
    };
    let connect = async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut s = TlsConnector::from(Arc::new(anonymous)).connect(name, tcp).await?;
        s.read_u8().await
    };
    let (served, connected) = tokio::join!(serve, connect);
    assert!(served.unwrap_err().to_string().contains("no certificates"));
    assert!(connected.is_err());
}

#[tokio::test]
async fn tls_1_2_is_off_inside_the_mesh() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let user = svid(&ca, "user");
    let server = Arc::new(mesh_server(&user, &clock).unwrap());
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(user.anchors())
        .with_no_client_auth();
    assert!(meet(server, Arc::new(client), &clock).await.is_err());
}

/// A leaf under the authority's own root with names that its `sign` would never write: what a
/// broken or hostile issuer could hand out.
fn hostile(dir: &std::path::Path, ca: &Authority, names: Vec<SanType>, ca_bit: bool) -> Vec<u8> {
    let text = std::fs::read_to_string(dir.join("root.pem")).unwrap();
    let issuer =
        Issuer::from_ca_cert_der(&ca.bundle().roots()[0], KeyPair::from_pem(&text).unwrap());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    if ca_bit {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    params.signed_by(&key, &issuer.unwrap()).unwrap().der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn verify(ca: &Authority, leaf: Vec<u8>, expected: Expected) -> Result<(), rustls::Error> {
    use rustls::client::danger::ServerCertVerifier;
    let verifier = ServerVerifier {
        anchors: Arc::new(ca.bundle().anchors().unwrap()),
        domain: ca.trust_domain().clone(),
        expected,
    };
    let name = ServerName::try_from("user.shop.svc.cluster.local").unwrap();
    let now = std::time::Duration::from_millis(Clock::system().wall_ms());
    let now = rustls_pki_types::UnixTime::since_unix_epoch(now);
    verifier.verify_server_cert(&leaf.into(), &[], &name, &[], now).map(|_| ())
}

#[test]
fn reg_48_a_wildcard_name_matches_nothing() {
    let clock = Clock::system();
    let (dir, ca) = authority(&clock);
    let dns = SanType::DnsName("*.shop.svc.cluster.local".try_into().unwrap());
    for names in [vec![dns.clone()], vec![uri("spiffe://cluster.local/ns/shop/sa/*")]] {
        let leaf = hostile(dir.path(), &ca, names, false);
        assert!(verify(&ca, leaf, Expected::AnyOfTrustDomain).is_err());
    }
    // The host name of the request is no help: only the URI counts.
    let leaf = hostile(dir.path(), &ca, vec![dns, uri(id("user").as_str())], false);
    assert!(verify(&ca, leaf.clone(), Expected::only(id("user"))).is_ok());
    assert!(verify(&ca, leaf, Expected::only(id("order"))).is_err());
}

#[test]
fn reg_49_names_are_matched_by_type_and_byte() {
    let clock = Clock::system();
    let (dir, ca) = authority(&clock);
    let user = id("user");
    let dns = SanType::DnsName(user.as_str().try_into().unwrap());
    let mail = SanType::Rfc822Name(user.as_str().try_into().unwrap());
    let nul = format!("{user}\0.evil.example");
    let cases: Vec<(&str, Vec<SanType>, bool)> = vec![
        ("the text as a DNS name", vec![dns], false),
        ("the text as a mail name", vec![mail], false),
        ("an embedded NUL", vec![uri(&nul)], false),
        ("two URIs", vec![uri(user.as_str()), uri(id("order").as_str())], false),
        ("twice the same URI", vec![uri(user.as_str()), uri(user.as_str())], false),
        ("a longer path", vec![uri(&format!("{user}/x"))], false),
        ("another trust domain", vec![uri("spiffe://evil/ns/shop/sa/user")], false),
        ("no URI", vec![], false),
        ("a CA as a leaf", vec![uri(user.as_str())], true),
    ];
    for (what, names, ca_bit) in cases {
        let leaf = hostile(dir.path(), &ca, names, ca_bit);
        assert!(verify(&ca, leaf, Expected::only(user.clone())).is_err(), "{what} was accepted");
    }
}

#[tokio::test]
async fn expiry_is_judged_by_our_clock_and_again_after_resumption() {
    let (clock, hand) = Clock::manual();
    let (_dir, ca) = authority(&clock);
    let day = SVID_TTL_DEFAULT;
    let short = ca.own_svid(&id("order"), Duration::from_hours(1)).unwrap();
    let long = ca.own_svid(&id("user"), day).unwrap();
    let server = Arc::new(mesh_server(&long, &clock).unwrap());
    let only = Expected::only(id("user"));
    let client = Arc::new(mesh_client(&short, only, Alpn::Both, &clock).unwrap());
    assert!(!meet(server.clone(), client.clone(), &clock).await.unwrap().resumed);
    assert!(meet(server.clone(), client.clone(), &clock).await.unwrap().resumed);
    hand.advance(Duration::from_hours(2));
    let why = meet(server, client, &clock).await.unwrap_err();
    assert!(why.to_lowercase().contains("expired"), "{why}");
}

#[tokio::test]
async fn reg_52_sessions_do_not_cross_configurations() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let (publisher, reader) = snapshot(svid(&ca, "user"));
    let server = ServerTls::new(reader, clock.clone());
    let (_keep, reader) = snapshot(svid(&ca, "order"));
    let client = ClientTls::new(reader, clock.clone());
    let only = Expected::only(id("user"));
    let cfg = || client.config(&only, Alpn::H2).unwrap();
    assert!(Arc::ptr_eq(&cfg(), &cfg()), "one configuration per SVID and expectation");

    assert!(!meet(server.config().unwrap(), cfg(), &clock).await.unwrap().resumed);
    assert!(meet(server.config().unwrap(), cfg(), &clock).await.unwrap().resumed);
    // Other expectations do not profit from what was verified for these.
    let any = client.config(&Expected::AnyOfTrustDomain, Alpn::H2).unwrap();
    assert!(!meet(server.config().unwrap(), any, &clock).await.unwrap().resumed);
    // A new SVID (and perhaps bundle) on the server's side forgets all sessions.
    publisher.publish(svid(&ca, "user"));
    assert!(!meet(server.config().unwrap(), cfg(), &clock).await.unwrap().resumed);
}

#[tokio::test]
async fn while_roots_are_replaced_both_are_believed() {
    let clock = Clock::system();
    let ((_d1, old), (_d2, new)) = (authority(&clock), authority(&clock));
    let roots = [old.bundle().roots(), new.bundle().roots()].concat();
    let both = Bundle::new(old.trust_domain().clone(), roots).unwrap();
    let request = crate::svid::KeyRequest::generate().unwrap();
    let issued = new.sign(request.csr(), &id("user"), SVID_TTL_DEFAULT).unwrap();
    let user = request.complete(issued.chain, both.clone()).unwrap();
    let request = crate::svid::KeyRequest::generate().unwrap();
    let issued = old.sign(request.csr(), &id("order"), SVID_TTL_DEFAULT).unwrap();
    let order = request.complete(issued.chain, both).unwrap();
    let met = meet_with(&user, &order, Expected::only(id("user")), &clock).await.unwrap();
    assert_eq!(met.server_saw, id("order"));
}

#[test]
fn reg_54_the_tls_library_is_not_one_with_known_path_building_faults() {
    let lock = include_str!("../../../../Cargo.lock");
    let version = |name: &str| -> Vec<(u64, u64, u64)> {
        let key = format!("name = \"{name}\"\nversion = \"");
        lock.match_indices(&key)
            .map(|(at, _)| {
                let text = lock[at + key.len()..].split('"').next().unwrap();
                let core = text.split('-').next().unwrap();
                let mut n = core.split('.').map(|p| p.parse().unwrap());
                (n.next().unwrap(), n.next().unwrap(), n.next().unwrap())
            })
            .collect()
    };
    assert_eq!(version("rustls").len(), 1, "one TLS library");
    assert!(version("rustls").iter().all(|v| *v >= (0, 23, 46)));
    assert!(version("rustls-webpki").iter().all(|v| *v >= (0, 103, 10)));
}

#[test]
fn reg_54_a_long_chain_of_useless_intermediates_ends_quickly() {
    use rustls::client::danger::ServerCertVerifier;
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    // Same subject everywhere: each certificate could have issued each other one.
    let name = || {
        let mut dn = DistinguishedName::new();
        dn.push(rcgen::DnType::CommonName, "loop");
        dn
    };
    let made = |leaf: bool| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = name();
        if leaf {
            params.subject_alt_names = vec![uri(id("user").as_str())];
        } else {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&key).unwrap().der().clone()
    };
    let chain: Vec<_> = (0..100).map(|_| made(false)).collect();
    let verifier = ServerVerifier {
        anchors: Arc::new(ca.bundle().anchors().unwrap()),
        domain: ca.trust_domain().clone(),
        expected: Expected::AnyOfTrustDomain,
    };
    let start = clock.now();
    let server = ServerName::try_from("a.b").unwrap();
    let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(clock.wall_ms()));
    assert!(verifier.verify_server_cert(&made(true), &chain, &server, &[], now).is_err());
    // The budget of signature checks ends it; a debug build needs about 50 ms.
    assert!(clock.now().since(start) < Duration::from_secs(10));
}

#[tokio::test]
async fn a_door_certificate_serves_ordinary_clients() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let names = ["localhost".to_owned()];
    let key = ca.door_certificate(&names, &[], Duration::from_hours(24)).unwrap();
    let server = Arc::new(door_server(Arc::new(key), Alpn::Both, &clock).unwrap());
    let roots = ca.bundle().anchors().unwrap();
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (a, b) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").unwrap();
    let (served, connected) =
        tokio::join!(TlsAcceptor::from(server).accept(a), connector.connect(name, b));
    assert!(served.is_ok() && connected.is_ok());
}

#[test]
fn key_and_certificate_must_fit() {
    let clock = Clock::system();
    let (_dir, ca) = authority(&clock);
    let good = svid(&ca, "user");
    let other = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().serialize_der().into());
    let mixed = Svid::new(other, good.chain().to_vec(), ca.bundle().clone());
    assert!(matches!(mixed, Err(crate::svid::SvidError::Key(_))));
}

/// A joining client meets a server; whom it saw, or why not.
async fn join(server: ServerConfig, client: ClientConfig) -> Result<SpiffeId, String> {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let accepted = TlsAcceptor::from(Arc::new(server)).accept(a).await;
        let mut s = accepted.map_err(|e| format!("server: {e}"))?;
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        s.flush().await.map_err(|e| e.to_string())?;
        let guest = s.get_ref().1.peer_certificates().is_none();
        let _ = s.read_u8().await;
        if guest { Ok(()) } else { Err("it showed a certificate".to_owned()) }
    };
    let connect = async {
        let name = ServerName::try_from("server.weft.internal").unwrap();
        let connected = TlsConnector::from(Arc::new(client)).connect(name, b).await;
        let mut s = connected.map_err(|e| format!("client: {}", reason(&e)))?;
        s.read_u8().await.map_err(|e| format!("client: {e}"))?;
        let leaf = peer(s.get_ref().1.peer_certificates(), &Clock::system());
        leaf.map(|l| l.id).map_err(|e| e.to_string())
    };
    let (served, met) = tokio::join!(serve, connect);
    match (served, met) {
        (Ok(()), Ok(id)) => Ok(id),
        (served, met) => Err(format!("{served:?} / {met:?}")),
    }
}

#[tokio::test]
async fn a_host_that_joins_believes_the_pinned_authoritys_server_only() {
    let clock = Clock::system();
    let ((_d1, ours), (_d2, theirs)) = (authority(&clock), authority(&clock));
    let open = |svid: &Svid| server(svid, &clock, true).unwrap();
    let pinned = |ca: &Authority| join_client(ca.pin(), &clock).unwrap();
    let own = ours.server_svid(SVID_TTL_DEFAULT).unwrap();

    let met = join(open(&own), pinned(&ours)).await;
    assert_eq!(met, Ok(ours.trust_domain().server()));
    let other = join(open(&own), pinned(&theirs)).await.unwrap_err();
    assert!(other.contains("not of the pinned authority"), "{other}");
    // The root in the chain is no secret: who sends it along is not signed by it for that.
    let mut chain = theirs.server_svid(SVID_TTL_DEFAULT).unwrap().chain().to_vec();
    chain.push(ours.bundle().roots()[0].clone());
    let request = crate::svid::KeyRequest::generate().unwrap();
    let issued = theirs.sign(request.csr(), &theirs.trust_domain().server(), SVID_TTL_DEFAULT);
    chain[0] = issued.unwrap().chain[0].clone();
    let liar = request.complete(chain, theirs.bundle().clone()).unwrap();
    assert!(join(open(&liar), pinned(&ours)).await.is_err());
    // A workload of the same mesh is not its server.
    let request = crate::svid::KeyRequest::generate().unwrap();
    let mut chain = ours.sign(request.csr(), &id("user"), SVID_TTL_DEFAULT).unwrap().chain;
    chain.extend(ours.bundle().roots().first().cloned());
    let workload = request.complete(chain, ours.bundle().clone()).unwrap();
    let why = join(open(&workload), pinned(&ours)).await.unwrap_err();
    assert!(why.contains("/weft/server"), "{why}");
    // Where hosts do not join, a certificate stays mandatory.
    assert!(join(mesh_server(&own, &clock).unwrap(), pinned(&ours)).await.is_err());
}

#[tokio::test]
async fn where_hosts_join_others_still_show_who_they_are() {
    let clock = Clock::system();
    let ((_d1, ours), (_d2, theirs)) = (authority(&clock), authority(&clock));
    let own = ours.server_svid(SVID_TTL_DEFAULT).unwrap();
    let open = || Arc::new(server(&own, &clock, true).unwrap());
    let only = Expected::only(ours.trust_domain().server());
    let client = |svid: &Svid| mesh_client(svid, only.clone(), Alpn::H2, &clock).unwrap();
    let met = meet(open(), Arc::new(client(&svid(&ours, "order"))), &clock).await.unwrap();
    assert_eq!(met.server_saw, id("order"));
    // A bad certificate is not the same as none.
    assert!(meet(open(), Arc::new(client(&svid(&theirs, "order"))), &clock).await.is_err());
}
