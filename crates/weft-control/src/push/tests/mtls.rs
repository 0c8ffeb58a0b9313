// SPDX-License-Identifier: Apache-2.0
//! Over mutual TLS with SVIDs of a real authority: who may speak for which node.

use super::*;
use std::io;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_base::snapshot::snapshot;
use weft_identity::{Alpn, Authority, ClientTls, Expected, ServerTls, SpiffeId, tls};

const HOUR: Duration = Duration::from_secs(3_600);

struct Pki {
    authority: Authority,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let authority = Authority::open(&dir.path().join("ca"), None, &clock).unwrap();
        Self { authority, clock, _dir: dir }
    }

    fn workload(&self, account: &str) -> SpiffeId {
        let label = |s| weft_base::name::Label::new(s).unwrap();
        self.authority.trust_domain().workload(&label("shop"), &label(account))
    }

    fn handshake(&self) -> Handshake<tokio_rustls::server::TlsStream<TcpStream>> {
        let id = self.authority.trust_domain().server();
        let svid = self.authority.own_svid(&id, HOUR).unwrap();
        let (tls, clock) =
            (ServerTls::new(snapshot(svid).1, self.clock.clone()), self.clock.clone());
        let tls = Arc::new(tls);
        Arc::new(move |io: TcpStream| {
            let (tls, clock) = (tls.clone(), clock.clone());
            async move {
                let address = io.peer_addr().ok();
                let config = tls.config().map_err(io::Error::other)?;
                let io = TlsAcceptor::from(config).accept(io).await?;
                let leaf = tls::peer(io.get_ref().1.peer_certificates(), &clock);
                let id = leaf.map_err(io::Error::other)?.id.to_string();
                Ok((io, Peer { spiffe_id: Some(id.into()), address }))
            }
            .boxed()
        })
    }

    fn connect(&self, account: &str, server: SocketAddr) -> Arc<dyn Connect> {
        let svid = self.authority.own_svid(&self.workload(account), HOUR).unwrap();
        let tls = Arc::new(ClientTls::new(snapshot(svid).1, self.clock.clone()));
        let expected = Expected::OneOf([self.authority.trust_domain().server()].into());
        Arc::new(client::Dial::new(server.to_string(), move || {
            let (tls, expected) = (tls.clone(), expected.clone());
            async move {
                let config = tls.config(&expected, Alpn::H2).map_err(io::Error::other)?;
                let io = TcpStream::connect(server).await?;
                let name = "server.weft.internal".try_into().map_err(io::Error::other)?;
                TlsConnector::from(config).connect(name, io).await
            }
        }))
    }
}

fn proxy(connect: Arc<dyn Connect>) -> Proxy {
    Proxy::start_over(connect, "sidecar~shop~user-1", Table::new(), 99, |_| None)
}

#[tokio::test]
async fn a_stream_may_only_speak_for_the_node_of_its_certificate() {
    let pki = Pki::new();
    let only: Arc<str> = pki.workload("user").as_str().into();
    let nodes = TestNodes { only: Some(only.clone()), ..TestNodes::default() };
    let loopback = "127.0.0.1:0".parse().unwrap();
    let server = Server::start_over(nodes, loopback, pki.handshake()).await;
    server.pusher.submit(delta(1, service("user")));

    let mut other = proxy(pki.connect("order", server.address));
    let denied = other.status.wait_for(|s| {
        s.error.as_ref().is_some_and(|e| e.contains("may not speak for sidecar~shop~user-1"))
    });
    tokio::time::timeout(LONG, denied).await.unwrap().unwrap();
    assert!(server.pusher.status().is_empty());
    other.stop().await;

    let mut own = proxy(pki.connect("user", server.address));
    own.until(|t| t.len() == 3).await;
    server.synced(1).await;
    assert_eq!(server.status_of("sidecar~shop~user-1").identity, Some(only));
}

/// Neither garbage nor silence nor a foreign authority's certificate disturbs the others.
#[tokio::test]
async fn bad_connections_disturb_nobody() {
    use tokio::io::AsyncWriteExt;
    let pki = Pki::new();
    let loopback = "127.0.0.1:0".parse().unwrap();
    let server = Server::start_over(TestNodes::default(), loopback, pki.handshake()).await;
    server.pusher.submit(delta(1, service("user")));
    let mut silent = Vec::new();
    for i in 0..100 {
        let mut io = TcpStream::connect(server.address).await.unwrap();
        if i % 2 == 0 {
            io.write_all(&[i; 300]).await.unwrap();
        }
        silent.push(io);
    }
    let mut foreign = proxy(Pki::new().connect("user", server.address));
    let refused = foreign.status.wait_for(|s| s.error.is_some());
    tokio::time::timeout(LONG, refused).await.unwrap().unwrap();
    let mut good = proxy(pki.connect("user", server.address));
    good.until(|t| t.len() == 3).await;
    assert!(foreign.table.borrow().is_empty());
    drop(silent);
}
