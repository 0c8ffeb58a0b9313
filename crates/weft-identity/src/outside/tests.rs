// SPDX-License-Identifier: Apache-2.0
//! Handshakes with servers and clients outside of the mesh: who is believed by which rule.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{CipherSuite, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, dns: &str, uri: &str) -> Arc<CertifiedKey> {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        certified(&cert.pem(), &key.serialize_pem()).unwrap()
    }
}

async fn meet(served: &Served, origin: &Origin, name: &str) -> Result<Option<Vec<u8>>, String> {
    let clock = Clock::system();
    let server = Arc::new(server(served, &clock).unwrap());
    let client = Arc::new(client(origin, &[b"http/1.1"], &clock).unwrap());
    let (a, b) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut s = TlsAcceptor::from(server).accept(a).await.map_err(|e| e.to_string())?;
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        s.flush().await.map_err(|e| e.to_string())?;
        let _ = s.read_u8().await;
        Ok::<_, String>(())
    };
    let connect = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut s = TlsConnector::from(client).connect(name, b).await.map_err(|e| e.to_string())?;
        s.read_u8().await.map_err(|e| e.to_string())?;
        let alpn = s.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        Ok::<_, String>(alpn)
    };
    let (served, connected) = tokio::join!(serve, connect);
    served.and(connected)
}

fn served(key: Arc<CertifiedKey>) -> Served {
    Served { key, clients: None, alpn: vec![b"http/1.1".to_vec()], only_13: false }
}

fn origin(roots: Option<Arc<RootCertStore>>, names: OriginNames) -> Origin {
    Origin { roots, names, certificate: None, only_13: true }
}

#[tokio::test]
async fn a_backend_is_believed_by_authority_and_name_as_its_policy_says() {
    let (ca, other) = (Ca::new(), Ca::new());
    let served = served(ca.sign("a.example", "spiffe://d/ns/a"));
    let good = || Some(roots(&ca.pem).unwrap());
    let one_of = |names: &[&str]| OriginNames::OneOf(names.iter().map(|n| (*n).into()).collect());
    for (believed, roots, names, asked) in [
        (true, good(), OriginNames::ServerName, "a.example"),
        (false, good(), OriginNames::ServerName, "b.example"),
        (true, good(), OriginNames::Any, "b.example"),
        (true, good(), one_of(&["spiffe://d/ns/b", "spiffe://d/ns/a"]), "b.example"),
        (true, good(), one_of(&["a.example"]), "b.example"),
        (false, good(), one_of(&["spiffe://d/ns"]), "a.example"),
        (false, Some(roots(&other.pem).unwrap()), OriginNames::Any, "a.example"),
        (true, None, OriginNames::Any, "b.example"),
        (false, None, OriginNames::ServerName, "b.example"),
    ] {
        let met = meet(&served, &origin(roots, names.clone()), asked).await;
        assert_eq!(met.is_ok(), believed, "{names} {asked}: {met:?}");
        if let Ok(alpn) = met {
            assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
        }
    }
}

#[tokio::test]
async fn a_client_without_a_good_certificate_is_turned_away_where_one_is_asked_for() {
    let (ca, other) = (Ca::new(), Ca::new());
    let mut served = served(ca.sign("a.example", "spiffe://d/ns/a"));
    for (required, insecure, shown, admitted) in [
        (true, false, None, false),
        (true, false, Some(&other), false),
        (true, false, Some(&ca), true),
        (false, false, None, true),
        (false, false, Some(&other), false),
        (false, true, None, true),
        (false, true, Some(&other), true),
        (false, true, Some(&ca), true),
    ] {
        let asked = roots(&ca.pem).unwrap();
        served.clients = Some(Asked { roots: asked, required, insecure });
        let mut origin = origin(Some(roots(&ca.pem).unwrap()), OriginNames::ServerName);
        origin.certificate = shown.map(|ca| ca.sign("client.example", "spiffe://d/ns/c"));
        let met = meet(&served, &origin, "a.example").await;
        assert_eq!(met.is_ok(), admitted, "{required} {}: {met:?}", shown.is_some());
    }
}

/// The cipher that a listener takes of those that a client asks for, in their order.
async fn cipher(asked: &[CipherSuite]) -> CipherSuite {
    let ca = Ca::new();
    let server = server(&served(ca.sign("a.example", "spiffe://a/b")), &Clock::system()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let known = std::mem::take(&mut provider.cipher_suites);
    let of = |name: &CipherSuite| known.iter().find(|suite| suite.suite() == *name);
    provider.cipher_suites.extend(asked.iter().filter_map(of));
    let provider = Arc::new(provider);
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(crate::verify::AnyServer::new(provider)))
        .with_no_client_auth();
    let (a, b) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("a.example").unwrap();
    let connecting = TlsConnector::from(Arc::new(client)).connect(name, b);
    let accepting = TlsAcceptor::from(Arc::new(server)).accept(a);
    let (served, _connected) = tokio::join!(accepting, connecting);
    served.unwrap().get_ref().1.negotiated_cipher_suite().unwrap().suite()
}

#[tokio::test]
async fn a_listener_takes_the_cheapest_cipher_that_its_client_knows() {
    use CipherSuite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let (long, short) = (TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256);
    assert_eq!(cipher(&[long]).await, long);
    assert_eq!(cipher(&[TLS13_CHACHA20_POLY1305_SHA256]).await, TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(cipher(&[short, long]).await, short);
    assert_eq!(cipher(&[long, short]).await, if has_aes() { short } else { long });
}

#[test]
fn pem_without_a_certificate_is_no_authority() {
    assert!(matches!(roots("nothing"), Err(PemError::NoCertificate)));
    assert!(matches!(certified("", ""), Err(PemError::NoCertificate)));
}

#[test]
fn a_certificate_of_version_1_has_its_key_though_it_cannot_be_served() {
    let old = include_str!("../../testdata/version-1.pem");
    assert!(matches!(certified(old, old), Err(PemError::Malformed)));
    is_pair(old, old).unwrap();
    let other = KeyPair::generate().unwrap().serialize_pem();
    assert!(matches!(is_pair(old, &other), Err(PemError::Mismatch)));
    let cut = old.replace("MIIBITCBxwIU", "MIIBITCBxwIA");
    assert!(matches!(is_pair(&cut, old), Err(PemError::Malformed)));
}

#[test]
fn a_clients_certificate_says_its_uris_its_dns_names_and_its_subject() {
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://x/a".try_into().unwrap()));
    params.subject_alt_names.push(SanType::URI("urn:b".try_into().unwrap()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::OrganizationName, "A, \"B\" ");
    params.distinguished_name.push(DnType::CommonName, "#Zo\u{eb} # c");
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let shown = [cert.der().clone()];
    let names = client_names(Some(&shown)).unwrap();
    let names: Vec<&str> = names.iter().map(|n| &**n).collect();
    // The subject is what `openssl x509 -subject -nameopt RFC2253` prints.
    let subject = r#"CN=\#Zo\C3\AB # c,O=A\, \"B\"\ ,C=DE"#;
    assert_eq!(names, ["spiffe://x/a", "urn:b", "a.example", subject]);
    assert!(client_names(None).unwrap().is_empty());
    let broken = [CertificateDer::from(vec![0x30, 0])];
    assert!(client_names(Some(&broken)).is_err());
}

/// A client that keeps its sessions, of one version, with or without a certificate.
fn dialler(
    ca: &Ca,
    version: &'static SupportedProtocolVersion,
    own: Option<Arc<CertifiedKey>>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(&ca.pem).unwrap());
    Arc::new(match own {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    })
}

/// What kind of handshake it was, as the server saw it.
async fn greeted(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<HandshakeKind, String> {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let accepted = TlsAcceptor::from(server.clone()).accept(a).await;
        let mut s = accepted.map_err(|e| format!("refused: {e}"))?;
        s.write_all(b"!").await.map_err(|e| e.to_string())?;
        s.flush().await.map_err(|e| e.to_string())?;
        let _ = s.read_u8().await;
        Ok::<_, String>(s.get_ref().1.handshake_kind().unwrap())
    };
    let connect = async {
        let name = ServerName::try_from("a.example").unwrap();
        let connected = TlsConnector::from(client.clone()).connect(name, b).await;
        let mut s = connected.map_err(|e| e.to_string())?;
        s.read_u8().await.map_err(|e| e.to_string())?;
        s.write_all(b"!").await.map_err(|e| e.to_string())
    };
    let (served, _) = tokio::join!(serve, connect);
    served
}

#[tokio::test]
async fn reg_52_sessions_of_one_listener_open_no_other() {
    let (ca, other) = (Ca::new(), Ca::new());
    let key = ca.sign("a.example", "spiffe://d/ns/a");
    let clock = Clock::system();
    let listener = |clients: Option<&Ca>| {
        let asked =
            |of: &Ca| Asked { roots: roots(&of.pem).unwrap(), required: true, insecure: false };
        let served = Served { clients: clients.map(asked), ..served(key.clone()) };
        Arc::new(server(&served, &clock).unwrap())
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (open, client) = (listener(None), dialler(&ca, version, None));
        assert_eq!(greeted(&open, &client).await, Ok(HandshakeKind::Full));
        assert_eq!(greeted(&open, &client).await, Ok(HandshakeKind::Resumed));
        // Its twin, and one that asks who the client is, under the same name and certificate.
        let twin = greeted(&listener(None), &client).await;
        assert_eq!(twin, Ok(HandshakeKind::Full), "a twin takes the session up");
        assert!(greeted(&open, &client).await.is_ok());
        let asking = greeted(&listener(Some(&ca)), &client).await;
        assert!(asking.is_err(), "let in without a certificate: {asking:?}");
        // Who is known to one authority is a stranger where another is asked for.
        let own = Some(ca.sign("client", "spiffe://d/ns/client"));
        let (asking, client) = (listener(Some(&ca)), dialler(&ca, version, own));
        assert_eq!(greeted(&asking, &client).await, Ok(HandshakeKind::Full));
        assert_eq!(greeted(&asking, &client).await, Ok(HandshakeKind::Resumed));
        let changed = greeted(&listener(Some(&other)), &client).await;
        assert!(changed.is_err(), "its authority signs for this listener no more: {changed:?}");
    }
}
