// SPDX-License-Identifier: Apache-2.0
//! The door over TLS and on a Unix socket, asked over real ones.

use std::io;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_base::snapshot::{Publisher, snapshot};
use weft_identity::outside::{Origin, OriginNames, certified, client, roots};
use weft_identity::{Authority, SpiffeId, TrustDomain};

use super::*;
use crate::consul::secure::{Keys, Opening, relay};

/// An authority with a directory of its own.
struct Signer {
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Signer {
    fn new(domain: &str) -> Self {
        weft_identity::provider::install();
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::new(domain).unwrap();
        let authority = Authority::open(dir.path(), Some(&domain), &Clock::system()).unwrap();
        Self { authority, _dir: dir }
    }

    fn root(&self) -> String {
        self.authority.root_facts().unwrap().remove(0).cert_pem
    }

    /// A certificate and its key.
    fn leaf(&self) -> (String, String) {
        let id = format!("spiffe://{}/one", self.authority.trust_domain());
        let handed =
            self.authority.hand_out(&SpiffeId::new(&id).unwrap(), Duration::from_secs(600));
        let handed = handed.unwrap();
        (handed.cert_pem, handed.key_pem)
    }

    fn keys(&self, clients: Option<&Self>, required: bool) -> Keys {
        let (certificate, key) = self.leaf();
        Keys { certificate, key, clients: clients.map(Self::root), required }
    }
}

async fn https(rig: &Rig, keys: &Keys) -> (SocketAddr, Publisher<rustls::ServerConfig>) {
    let (publisher, configs) = snapshot(keys.config(&Clock::system()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let opening = Opening::Secure(listener, configs);
    rig.tasks.spawn("https", rig.door.clone().serve_at(opening, rig.tasks.clone()));
    (at, publisher)
}

/// A connection that believes one authority, and shows a certificate of another one.
async fn connect(
    at: SocketAddr,
    believes: &Signer,
    shows: Option<&Signer>,
) -> io::Result<TlsStream<TcpStream>> {
    let shown = shows.map(|signer| {
        let (certificate, key) = signer.leaf();
        certified(&certificate, &key).unwrap()
    });
    let origin = Origin {
        roots: Some(roots(&believes.root()).unwrap()),
        names: OriginNames::Any,
        certificate: shown,
        only_13: false,
    };
    let config = client(&origin, &[b"http/1.1"], &Clock::system()).unwrap();
    let stream = TcpStream::connect(at).await?;
    let name = ServerName::try_from("consul.example").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: consul.example\r\nConnection: close\r\n{headers}\r\n")
}

async fn over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    match bytes.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(Answer::read(&bytes)),
    }
}

#[tokio::test]
async fn https_is_the_same_api() {
    let rig = rig().await;
    let signer = Signer::new("one.example");
    let (at, _keys) = https(&rig, &signer.keys(None, false)).await;
    let ask = async |path: &str| over(connect(at, &signer, None).await.unwrap(), path).await;
    let leader = ask(&get("/v1/status/leader", "")).await.unwrap();
    assert_eq!((leader.status, leader.text.as_str()), (200, "\"127.0.0.1:8300\""));
    // A browser's page has no certificate for the name it is under; one of another site may ask.
    let other = ask(&get("/v1/status/leader", "Origin: https://evil.example\r\n")).await.unwrap();
    assert_eq!(other.status, 403, "{}", other.text);
    assert_eq!(rig.raw(get("/v1/status/leader", "").as_bytes()).await.status, 403, "plain");
    // A large answer, and a query that waits.
    let large = "x".repeat(300_000);
    assert_eq!(rig.ask("PUT", "/v1/kv/large", &large).await.status, 200);
    assert_eq!(ask(&get("/v1/kv/large?raw", "")).await.unwrap().text.len(), large.len());
    let index = rig.get("/v1/kv/late").await.index();
    let waits = get(&format!("/v1/kv/late?index={index}&wait=60s"), "");
    let written = async {
        rig.blocked(1).await;
        rig.ask("PUT", "/v1/kv/late", "now").await
    };
    let (answer, _) = tokio::join!(ask(&waits), written);
    assert_eq!(answer.unwrap().json()[0]["Value"], "bm93");
}

#[tokio::test]
async fn a_client_that_goes_leaves_its_place_over_tls_too() {
    let rig = rig().await;
    let signer = Signer::new("one.example");
    let (at, _keys) = https(&rig, &signer.keys(None, false)).await;
    let index = rig.get("/v1/kv/late").await.index();
    let mut stream = connect(at, &signer, None).await.unwrap();
    let waits = get(&format!("/v1/kv/late?index={index}&wait=60s"), "");
    stream.write_all(waits.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    rig.blocked(1).await;
    drop(stream);
    rig.blocked(0).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go_over_tls_too() {
    let (mut client, stream) = tokio::io::duplex(64);
    let (mut line, far) = UnixStream::pair().unwrap();
    let relaying = relay(stream, far, Duration::from_millis(50));
    // More than all that is between the two takes; the line gives up, and is gone.
    let answer = vec![b'x'; 8 * 1024 * 1024];
    let both = async { tokio::join!(line.write_all(&answer), relaying).0 };
    let said = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    assert!(said.is_err(), "nobody takes it");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < answer.len());
}

/// Where a door listens, its openings taken by hand.
async fn opening(signer: &Signer) -> (SocketAddr, Opening) {
    let (_, configs) = snapshot(signer.keys(None, false).config(&Clock::system()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), Opening::Secure(listener, configs))
}

#[tokio::test]
async fn a_place_is_taken_while_a_client_is_there() {
    let signer = Signer::new("one.example");
    let (at, opening) = opening(&signer).await;
    let (tasks, places, turns) = (TaskGroup::new(), Arc::new(Semaphore::new(1)), Semaphore::new(1));
    let place = Arc::new(places.clone().try_acquire_owned().unwrap());
    let caller = async { opening.accept().await.unwrap().wire(&tasks, &place, &turns).await };
    let (stream, wire) = tokio::join!(connect(at, &signer, None), caller);
    // As `serve_at` does when the line is through.
    drop(place);
    let mut stream = stream.unwrap();
    stream.write_all(b"G").await.unwrap();
    stream.flush().await.unwrap();
    wire.as_ref().unwrap().readable().await.unwrap();
    assert_eq!(places.available_permits(), 0, "its descriptors are open");
    drop(wire);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    let _place = tokio::time::timeout(Duration::from_secs(30), places.acquire()).await.unwrap();
}

#[tokio::test]
async fn handshakes_take_turns() {
    let signer = Signer::new("one.example");
    let (at, opening) = opening(&signer).await;
    let (tasks, turns) = (TaskGroup::new(), Semaphore::new(1));
    let place = Arc::new(Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap());
    let taken = turns.acquire().await.unwrap();
    let caller = async { opening.accept().await.unwrap().wire(&tasks, &place, &turns).await };
    let (asked, caller) = (connect(at, &signer, None), caller);
    tokio::pin!(asked, caller);
    let both = async { tokio::join!(&mut asked, &mut caller) };
    assert!(tokio::time::timeout(Duration::from_millis(100), both).await.is_err(), "not its turn");
    drop(taken);
    let (stream, wire) = tokio::join!(asked, caller);
    assert!(stream.is_ok() && wire.is_some());
    assert_eq!(turns.available_permits(), 1, "it is another's turn");
}

#[tokio::test]
async fn clients_show_who_they_are_where_they_must() {
    let rig = rig().await;
    let (own, theirs) = (Signer::new("one.example"), Signer::new("two.example"));
    let ask = async |at, shows| {
        let stream = connect(at, &own, shows).await?;
        over(stream, &get("/v1/status/leader", "")).await.map(|answer| answer.status)
    };
    let (at, _keys) = https(&rig, &own.keys(Some(&theirs), true)).await;
    assert!(ask(at, None).await.is_err(), "none shown");
    assert!(ask(at, Some(&own)).await.is_err(), "another's");
    assert_eq!(ask(at, Some(&theirs)).await.unwrap(), 200);
    let (at, _keys) = https(&rig, &own.keys(Some(&theirs), false)).await;
    assert_eq!(ask(at, None).await.unwrap(), 200, "it need not");
    assert!(ask(at, Some(&own)).await.is_err(), "what is shown must hold");
    let nobody = own.keys(None, true).config(&Clock::system()).unwrap_err();
    assert!(nobody.to_string().contains("nobody is named who signs them"), "{nobody}");
}

#[tokio::test]
async fn new_keys_are_for_new_connections() {
    let rig = rig().await;
    let (old, new) = (Signer::new("one.example"), Signer::new("two.example"));
    let (at, keys) = https(&rig, &old.keys(None, false)).await;
    let before = connect(at, &old, None).await.unwrap();
    keys.publish(new.keys(None, false).config(&Clock::system()).unwrap());
    assert!(connect(at, &old, None).await.is_err());
    let after = connect(at, &new, None).await.unwrap();
    for stream in [before, after] {
        assert_eq!(over(stream, &get("/v1/status/leader", "")).await.unwrap().status, 200);
    }
    let mut broken = old.keys(None, false);
    broken.key = new.leaf().1;
    let why = broken.config(&Clock::system()).unwrap_err().to_string();
    assert!(why.contains("the certificate and its key"), "{why}");
}

#[tokio::test]
async fn a_unix_socket_is_the_same_api() {
    let rig = rig().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consul.sock");
    let opening = Opening::Unix(UnixListener::bind(&path).unwrap());
    rig.tasks.spawn("socket", rig.door.clone().serve_at(opening, rig.tasks.clone()));
    let ask = async |request: &str| {
        over(UnixStream::connect(&path).await.unwrap(), request).await.unwrap()
    };
    // Clients name the socket, or nothing of use, as the host.
    assert_eq!(ask(&get("/v1/status/leader", "")).await.status, 200);
    let body = "PUT /v1/kv/a HTTP/1.1\r\nHost: consul.sock\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(ask(body).await.text, "true");
    assert_eq!(rig.get("/v1/kv/a?raw").await.text, "abc");
    let index = rig.get("/v1/kv/late").await.index();
    let waits = get(&format!("/v1/kv/late?index={index}&wait=60s"), "");
    let written = async {
        rig.blocked(1).await;
        rig.ask("PUT", "/v1/kv/late", "now").await
    };
    let (answer, _) = tokio::join!(ask(&waits), written);
    assert_eq!(answer.json()[0]["Value"], "bm93");
    // Who goes while it waits leaves its place.
    let index = rig.get("/v1/kv/later").await.index();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let waits = get(&format!("/v1/kv/later?index={index}&wait=60s"), "");
    stream.write_all(waits.as_bytes()).await.unwrap();
    rig.blocked(1).await;
    drop(stream);
    rig.blocked(0).await;
}
