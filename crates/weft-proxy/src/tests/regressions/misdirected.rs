// SPDX-License-Identifier: Apache-2.0
//! Line 52: a TLS connection serves the host that it was made for, and no other listener's, in the
//! protocol that was agreed on; and a session is worth what its listener asks now.

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

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

fn section(name: &str, host: &str, of: &Certificate, clients: Option<&Certificate>) -> Section {
    let clients = clients.map(|of| {
        Box::new(ClientCertificates {
            ca_pem: of.chain.clone().into(),
            required: true,
            insecure: false,
        })
    });
    let tls = ServerTls { clients, ..ServerTls::new(of.chain.clone(), of.key.clone()) };
    Section {
        name: name.into(),
        hostname: Some(host.into()),
        protocol: Protocol::Http1,
        tls: Some(tls),
    }
}

/// A client that believes one certificate, and may show its own.
fn client_of(of: &Certificate, alpn: &[&str], own: Option<&Certificate>) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(of.der.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(weft_identity::provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![own.der.clone()], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

async fn connect(
    at: SocketAddr,
    client: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(at).await.unwrap();
    TlsConnector::from(client.clone()).connect(name.to_owned().try_into().unwrap(), tcp).await
}

/// Sends something and reads until the far end is done.
async fn told(mut stream: TlsStream<TcpStream>, bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    // The far end may refuse before it has all, and may close without TLS's last words.
    let _ = stream.write_all(bytes).await;
    let _ = tokio::time::timeout(patience(), stream.read_to_end(&mut all)).await;
    all
}

fn asked(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}

fn port(sections: Vec<Section>) -> Named {
    let (name, _) = gateway(None);
    let binds = vec!["127.0.0.1:0".parse().unwrap()];
    let kind = ListenerKind::Gateway(GatewayListener::new(binds, sections));
    (name, Resource::Listener(Listener { name: "shop/web/8000".into(), kind, origin: None }))
}

/// A gateway's port with these sections, all of them for one service.
async fn bed_of(sections: Vec<Section>, user: &Server) -> Bed {
    let names: Vec<_> = sections.iter().map(|s| s.name.clone()).collect();
    let mut all = http_service("user", &[user.address]);
    all.push(port(sections));
    let mut route =
        gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]);
    if let Resource::Route(Route { parent: Parent::Listener { sections, .. }, .. }) = &mut route.1 {
        *sections = names;
    }
    all.push(route);
    Bed::gateway(all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_52_another_listeners_host_is_421() {
    let user = Server::named("user").await;
    let (public, private) = (certificate("a.example"), certificate("b.example"));
    let sections = vec![
        section("public", "a.example", &public, None),
        section("private", "b.example", &private, Some(&private)),
    ];
    let bed = bed_of(sections, &user).await;
    let client = client_of(&public, &[], None);
    for (host, status) in
        [("a.example", "200"), ("A.Example.", "200"), ("b.example", "421"), ("c.example", "404")]
    {
        let stream = connect(bed.listener(), &client, "a.example").await.unwrap();
        let text = String::from_utf8_lossy(&told(stream, &asked(host)).await).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {text}");
    }
    assert_eq!(user.hits(), 2, "what asks for certificates was never reached without one");
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_52_a_protocol_that_is_not_served_ends_the_handshake() {
    let user = Server::named("user").await;
    let own = certificate("a.example");
    let bed = bed_of(vec![section("public", "a.example", &own, None)], &user).await;
    for offered in [&["spdy/3.1"][..], &["h2c"], &["http/1.0", "h3"]] {
        let client = client_of(&own, offered, None);
        let shaken = connect(bed.listener(), &client, "a.example").await;
        let error = shaken.err().map(|e| e.to_string());
        let error = error.unwrap_or_else(|| panic!("{offered:?} is taken all the same"));
        assert!(error.contains("NoApplicationProtocol"), "{error}");
    }
    // One that is served among others is the one.
    let client = client_of(&own, &["spdy/3.1", "http/1.1"], None);
    let stream = connect(bed.listener(), &client, "a.example").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(told(stream, &asked("a.example")).await.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_52_what_was_agreed_on_is_what_is_spoken() {
    let user = Server::named("user").await;
    let own = certificate("a.example");
    let bed = bed_of(vec![section("public", "a.example", &own, None)], &user).await;
    let said = async |agreed: &[&str], bytes: &[u8]| {
        let stream = connect(bed.listener(), &client_of(&own, agreed, None), "a.example").await;
        told(stream.unwrap(), bytes).await
    };
    // HTTP/2's first frame of a server is its settings, whoever speaks to it.
    let old = said(&["h2"], &asked("a.example")).await;
    assert!(!old.starts_with(b"HTTP/"), "HTTP/1.1 is spoken: {}", String::from_utf8_lossy(&old));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for agreed in [&["http/1.1"][..], &[]] {
        let answer = said(agreed, preface).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 "), "HTTP/2 is spoken after {agreed:?}: {answer:?}");
        assert!(!text.starts_with("HTTP/1.1 2"), "{text}");
    }
    assert_eq!(user.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reg_52_a_listener_that_asks_for_other_clients_forgets_the_sessions_of_those() {
    let user = Server::named("user").await;
    let (own, before, now) =
        (certificate("a.example"), certificate("client"), certificate("client"));
    let asking = |of| section("private", "a.example", &own, Some(of));
    let bed = bed_of(vec![asking(&before)], &user).await;
    let client = client_of(&own, &["http/1.1"], Some(&before));
    let ask = async || match connect(bed.listener(), &client, "a.example").await {
        Ok(stream) => {
            let kind = stream.get_ref().1.handshake_kind();
            let text =
                String::from_utf8_lossy(&told(stream, &asked("a.example")).await).into_owned();
            (kind, text.starts_with("HTTP/1.1 200 "))
        }
        Err(_) => (None, false),
    };
    assert_eq!(ask().await, (Some(rustls::HandshakeKind::Full), true));
    assert_eq!(ask().await, (Some(rustls::HandshakeKind::Resumed), true));
    bed.apply(2, vec![port(vec![asking(&now)])]).await;
    let (kind, served) = ask().await;
    assert!(!served, "its authority is asked for no more, and it is let in: {kind:?}");
    assert_eq!(user.hits(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_a_closed_section_are_answered_by_no_other() {
    let user = Server::named("user").await;
    let (wide, own) = (certificate("*.a.example"), certificate("secure.a.example"));
    let all = section("all", "*.a.example", &wide, None);
    let secure = section("secure", "secure.a.example", &own, None);
    let bed = bed_of(vec![secure.clone(), all.clone()], &user).await;
    let (anybody, named) = (client_of(&wide, &[], None), client_of(&own, &[], None));
    assert!(connect(bed.listener(), &named, "secure.a.example").await.is_ok());
    // What was presented before is presented no longer, and nothing else in its place.
    let closed = Section { tls: Some(ServerTls::closed()), ..secure };
    bed.apply(2, vec![port(vec![closed, all.clone()])]).await;
    for client in [&named, &anybody] {
        assert!(connect(bed.listener(), client, "secure.a.example").await.is_err());
    }
    for (host, status) in [("other.a.example", "200"), ("secure.a.example", "421")] {
        let stream = connect(bed.listener(), &anybody, "other.a.example").await.unwrap();
        let text = String::from_utf8_lossy(&told(stream, &asked(host)).await).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {text}");
    }
    // Without it the wider one serves the name.
    bed.apply(3, vec![port(vec![all])]).await;
    assert!(connect(bed.listener(), &anybody, "secure.a.example").await.is_ok());
}
