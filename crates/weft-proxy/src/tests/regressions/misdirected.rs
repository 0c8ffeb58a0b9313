// SPDX-License-Identifier: Apache-2.0
//! Line 52: a TLS connection serves the host that it was made for, and no other listener's.

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

pub(super) const CASES: &[(&str, &str)] =
    &[(concat!(module_path!(), "::reg_52_another_listeners_host_is_421"), "misdirected")];

struct Certificate {
    chain: String,
    key: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn certificate(name: &str) -> Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    Certificate { chain: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
}

fn section(name: &str, host: &str, of: &Certificate, clients: bool) -> Section {
    let clients = clients
        .then(|| Box::new(ClientCertificates { ca_pem: of.chain.clone().into(), required: true }));
    let tls = ServerTls { clients, ..ServerTls::new(of.chain.clone(), of.key.clone()) };
    Section {
        name: name.into(),
        hostname: Some(host.into()),
        protocol: Protocol::Http1,
        tls: Some(tls),
    }
}

async fn connect(at: SocketAddr, of: &Certificate, name: &str) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(of.der.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let tcp = TcpStream::connect(at).await.unwrap();
    connector.connect(name.to_owned().try_into().unwrap(), tcp).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_52_another_listeners_host_is_421() {
    let user = Server::named("user").await;
    let (public, private) = (certificate("a.example"), certificate("b.example"));
    let kind = ListenerKind::Gateway(GatewayListener::new(
        vec!["127.0.0.1:0".parse().unwrap()],
        vec![
            section("public", "a.example", &public, false),
            section("private", "b.example", &private, true),
        ],
    ));
    let mut all = http_service("user", &[user.address]);
    let (name, _) = gateway(None);
    let listener = Listener { name: "shop/web/8000".into(), kind, origin: None };
    all.push((name, Resource::Listener(listener)));
    let mut route =
        gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]);
    if let Resource::Route(Route { parent: Parent::Listener { sections, .. }, .. }) = &mut route.1 {
        *sections = vec!["public".into(), "private".into()];
    }
    all.push(route);
    let bed = Bed::gateway(all).await;
    for (host, status) in
        [("a.example", "200"), ("A.Example.", "200"), ("b.example", "421"), ("c.example", "404")]
    {
        let mut stream = connect(bed.listener(), &public, "a.example").await;
        let asked = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        // The far end may close without TLS's last words.
        let _ = stream.read_to_end(&mut all).await;
        let text = String::from_utf8_lossy(&all).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {text}");
    }
    assert_eq!(user.hits(), 2, "what asks for certificates was never reached without one");
}
