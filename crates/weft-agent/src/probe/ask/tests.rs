// SPDX-License-Identifier: Apache-2.0
//! Probes against real servers, also odd ones.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weft_base::task::TaskGroup;

use super::*;

/// Long enough for a loaded machine; nothing waits for it when all is well.
const LIMIT: Duration = Duration::from_secs(60);

/// A server that answers every connection with these bytes; counts connections.
async fn canned(answer: &'static str, tasks: &TaskGroup) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tasks.spawn("canned", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, count)
}

fn get(url: &str) -> HttpAsk {
    HttpAsk {
        uri: url.parse().unwrap(),
        method: Method::GET,
        headers: Vec::new(),
        body: String::new(),
        tls: Tls::default(),
        via: SocketFactory::Here,
        guarded: false,
    }
}

#[tokio::test]
async fn http_gives_status_and_the_beginning_of_the_body() {
    let tasks = TaskGroup::new();
    let (at, _) = canned("HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\ndown", &tasks).await;
    let answer = http(&get(&format!("http://{at}/health?x=1")), LIMIT).await.unwrap();
    assert_eq!((answer.status.as_u16(), &*answer.body), (503, "down"));
}

#[tokio::test]
async fn reg_58_a_redirect_is_not_followed() {
    let tasks = TaskGroup::new();
    let (secret, asked) = canned("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", &tasks).await;
    let text = format!("HTTP/1.1 302 F\r\nlocation: http://{secret}/\r\ncontent-length: 0\r\n\r\n");
    let (at, _) = canned(Box::leak(text.into_boxed_str()), &tasks).await;
    let answer = http(&get(&format!("http://{at}/")), LIMIT).await.unwrap();
    assert_eq!(answer.status.as_u16(), 302);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_endless_or_silent_answer_is_cut() {
    let tasks = TaskGroup::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tasks.spawn("endless", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        let (_silent, _) = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    });
    let answer = http(&get(&format!("http://{at}/")), LIMIT).await.unwrap();
    assert_eq!(answer.body.len(), CHECK_OUTPUT_BYTES_MAX);
    let silent = http(&get(&format!("http://{at}/")), Duration::from_millis(50)).await;
    assert_eq!(silent.unwrap_err(), "no answer within 50 ms");
}

#[tokio::test]
async fn tcp_connects_or_says_why_not() {
    let at = format!("127.0.0.1:{}", weft_testkit::ports::free());
    let listener = TcpListener::bind(&at).await.unwrap();
    tcp(Target::here(&at), None, LIMIT).await.unwrap();
    drop(listener);
    let why = tcp(Target::here(&at), None, LIMIT).await.unwrap_err();
    assert_eq!(why, format!("dial tcp {at}: connect: connection refused"));
}

#[tokio::test]
async fn grpc_health_is_asked_of_a_real_server() {
    let tasks = TaskGroup::new();
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tasks.spawn("grpc", async move { server.serve_with_incoming(incoming).await.unwrap() });
    grpc(Target::here(&at), "", None, LIMIT).await.unwrap();
    let why = grpc(Target::here(&at), "shop.Products", None, LIMIT).await.unwrap_err();
    assert!(why.to_lowercase().contains("not found"), "{why}");
    reporter.set_service_status("shop.Products", tonic_health::ServingStatus::NotServing).await;
    let why = grpc(Target::here(&at), "shop.Products", None, LIMIT).await.unwrap_err();
    assert!(why.contains("NOT_SERVING"), "{why}");
    reporter.set_service_status("shop.Products", tonic_health::ServingStatus::Serving).await;
    grpc(Target::here(&at), "shop.Products", None, LIMIT).await.unwrap();
}

/// A server that answers 204 over TLS.
async fn tls_server(key: rustls::sign::CertifiedKey, tasks: &TaskGroup) -> SocketAddr {
    let clock = weft_base::clock::Clock::system();
    let config =
        weft_identity::tls::door_server(Arc::new(key), weft_identity::Alpn::Both, &clock).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tasks.spawn("tls", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 204 N\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    at
}

#[tokio::test]
async fn tls_is_verified_unless_told_otherwise() {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let tasks = TaskGroup::new();
    let dir = tempfile::tempdir().unwrap();
    let clock = weft_base::clock::Clock::system();
    let ca = weft_identity::Authority::open(dir.path(), None, &clock).unwrap();
    let server =
        ca.door_certificate(&[], &["127.0.0.1".parse().unwrap()], Duration::from_hours(1)).unwrap();
    let root = std::fs::read(dir.path().join("root.pem")).unwrap();
    let (cert, key) = (CertificateDer::from_pem_slice(&root), PrivateKeyDer::from_pem_slice(&root));
    let provider = weft_identity::provider::provider();
    let chain = vec![cert.unwrap()];
    let root = rustls::sign::CertifiedKey::from_der(chain, key.unwrap(), &provider).unwrap();
    for (key, words) in [(server, "does not trust"), (root, "an authority's own")] {
        let at = tls_server(key, &tasks).await;
        let mut ask = get(&format!("https://{at}/"));
        let why = http(&ask, LIMIT).await.unwrap_err();
        assert!(why.contains(words) && why.contains("TLSSkipVerify"), "{why}");
        ask.tls.skip_verify = true;
        assert_eq!(http(&ask, LIMIT).await.unwrap().status.as_u16(), 204);
    }
}
