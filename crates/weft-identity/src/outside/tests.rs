// SPDX-License-Identifier: Apache-2.0
//! Handshakes with servers and clients outside of the mesh: who is believed by which rule.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
};
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
    for (required, shown, admitted) in [
        (true, None, false),
        (true, Some(&other), false),
        (true, Some(&ca), true),
        (false, None, true),
        (false, Some(&other), false),
    ] {
        served.clients = Some((roots(&ca.pem).unwrap(), required));
        let mut origin = origin(Some(roots(&ca.pem).unwrap()), OriginNames::ServerName);
        origin.certificate = shown.map(|ca| ca.sign("client.example", "spiffe://d/ns/c"));
        let met = meet(&served, &origin, "a.example").await;
        assert_eq!(met.is_ok(), admitted, "{required} {}: {met:?}", shown.is_some());
    }
}

#[test]
fn pem_without_a_certificate_is_no_authority() {
    assert!(matches!(roots("nothing"), Err(PemError::NoCertificate)));
    assert!(matches!(certified("", ""), Err(PemError::NoCertificate)));
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
