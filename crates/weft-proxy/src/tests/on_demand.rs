// SPDX-License-Identifier: Apache-2.0
//! Requests and connections for hosts that the table does not hold yet. The test is the server:
//! it sees what is asked for and brings it, calls it absent, or is silent.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_model::*;
use weft_xds::Transaction;

use super::bed::*;
use super::captured::{Dialled, addressed, echo};
use crate::config::{ProxyConfig, UnknownDestinations};
use crate::ingest::source::transaction;

const LONG: Duration = Duration::from_secs(60);

/// A sidecar of a mesh that is larger than its table.
async fn partial(mut config: ProxyConfig, wait: Duration) -> Bed {
    config.limits.on_demand.wait = wait;
    config.limits.on_demand.waiting_max = 100;
    let bed = Bed::start(config, None).await;
    bring(&bed, Vec::new(), &[]).await;
    bed
}

async fn sidecar(wait: Duration) -> Bed {
    partial(config("sidecar~shop~client-1"), wait).await
}

async fn bring(bed: &Bed, resources: Vec<Named>, absent: &[&str]) {
    let brought = transaction(1, resources).unwrap();
    let absent = absent.iter().map(|name| (*name).into()).collect();
    bed.feed.apply(Transaction { absent, partial: true, ..brought }).await.unwrap();
}

/// Waits until the proxy asks for a name.
async fn asked(bed: &Bed, name: &str) {
    let mut wanted = bed.proxy.wanted();
    let asks = wanted.wait_for(|wanted| wanted.contains(name));
    assert!(tokio::time::timeout(LONG, asks).await.is_ok(), "{name} was never asked for");
}

fn ask_for(host: &str) -> Request<Full<bytes::Bytes>> {
    Request::get(format!("http://{host}/")).body(Full::default()).unwrap()
}

#[tokio::test]
async fn all_who_wait_for_a_host_are_served_when_it_comes() {
    let far = Server::named("far").await;
    let bed = sidecar(LONG).await;
    let many = (0..50).map(|_| bed.send(ask_for("far.shop")));
    let (answers, ()) = tokio::join!(futures_util::future::join_all(many), async {
        asked(&bed, "far.shop").await;
        // Something else comes first, and does not decide.
        bring(&bed, http_service("other", &[]), &[]).await;
        bring(&bed, http_service("far", &[far.address]), &[]).await;
    });
    assert!(answers.iter().all(|a| (a.status, &*a.body) == (200, "far")), "{answers:?}");
    assert_eq!(bed.proxy.wanted().borrow().len(), 1, "one name, and it is the host's own");
    assert!(bed.proxy.wanted().borrow().contains(&*fqdn("far")));
}

#[tokio::test]
async fn an_absent_host_is_outside_at_once_and_later_found_without_asking() {
    let far = Server::named("far").await;
    let mut config = config("sidecar~shop~client-1");
    config.unknown = UnknownDestinations::Deny;
    let bed = partial(config, LONG).await;
    let (got, ()) = tokio::join!(bed.send(ask_for("far.shop")), async {
        asked(&bed, "far.shop").await;
        bring(&bed, Vec::new(), &["far.shop"]).await;
    });
    assert_eq!(got.status, 502, "{got:?}");
    assert!(got.body.contains("is not in the mesh"), "{got:?}");
    let again = tokio::time::timeout(LONG / 2, bed.send(ask_for("far.shop"))).await.unwrap();
    assert_eq!(again.status, 502);
    bring(&bed, http_service("far", &[far.address]), &[]).await;
    assert_eq!(bed.send(ask_for("far.shop")).await.status, 200);
}

/// Names of the mesh's own never leave it unasked; others have a life outside.
#[tokio::test]
async fn when_nobody_tells_a_name_of_the_mesh_is_refused_with_a_sentence() {
    let outside = Server::named("outside").await;
    let bed = sidecar(Duration::from_millis(200)).await;
    let got = bed.send(ask_for("far.shop.svc.cluster.local")).await;
    assert_eq!(got.status, 503, "{got:?}");
    assert_eq!(got.headers[crate::http::headers::FLAGS], "NC");
    assert!(got.body.contains("not known yet: the server did not answer"), "{got:?}");
    assert!(got.body.contains("weft proxy status"), "{got:?}");
    let got = bed.send(ask_for(&outside.address.to_string())).await;
    assert_eq!((got.status, &*got.body), (200, "outside"));
    // Who gave up is forgotten, so that nothing is asked for in vain.
    let mut wanted = bed.proxy.wanted();
    let none = wanted.wait_for(std::collections::BTreeSet::is_empty);
    assert!(tokio::time::timeout(LONG, none).await.is_ok());
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let bed = sidecar(LONG).await;
    let many = (0..120).map(|i| bed.send(ask_for(&format!("far{i}"))));
    let mut many: FuturesUnordered<_> = many.collect();
    // A hundred wait for longer than this takes: who is answered was too many.
    for n in 0..20 {
        let got = many.next().await.unwrap();
        assert_eq!(got.status, 503, "{n}: {got:?}");
        assert!(got.body.contains("requests wait for such answers"), "{n}: {got:?}");
    }
    let more = tokio::time::timeout(Duration::from_millis(300), many.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn opaque_connections_wait_too() {
    let far = echo().await;
    let bed = sidecar(LONG).await;
    let mut stream = TcpStream::connect(bed.outbound()).await.unwrap();
    let ask = "CONNECT db.shop:80 HTTP/1.1\r\nHost: db.shop:80\r\n\r\nhello";
    stream.write_all(ask.as_bytes()).await.unwrap();
    asked(&bed, "db.shop").await;
    let instance = vec![endpoint("db-0", far.address)];
    let db = service("db", Protocol::Tcp, BackendPolicy::default(), instance);
    bring(&bed, db, &[]).await;
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    tokio::time::timeout(LONG, stream.read_to_string(&mut all)).await.unwrap().unwrap();
    assert!(all.ends_with("\r\n\r\nhello"), "{all}");
}

#[tokio::test]
async fn captured_connections_ask_by_the_address_that_was_dialled() {
    let far = Server::named("far").await;
    let dialled = Dialled::default();
    let bed = partial(dialled.config("sidecar~shop~client-1"), LONG).await;
    let get = |to: String| {
        let connecting = dialled.connect(bed.outbound(), to);
        async { client_on(connecting.await).await.send(get("/", "far")).await }
    };
    // A Service's address.
    let (got, ()) = tokio::join!(get("10.96.0.9:80".to_owned()), async {
        asked(&bed, "10.96.0.9").await;
        bring(&bed, addressed(http_service("far", &[far.address]), "10.96.0.9"), &[]).await;
    });
    assert_eq!((got.status, &*got.body), (200, "far"));
    // An instance of a headless one: its own address.
    let lone = Server::named("lone").await;
    let bed = partial(dialled.config("sidecar~shop~client-1"), LONG).await;
    let connecting = dialled.connect(bed.outbound(), lone.address);
    let (got, ()) = tokio::join!(
        async { client_on(connecting.await).await.send(super::bed::get("/", "x")).await },
        async {
            asked(&bed, "127.0.0.1").await;
            bring(&bed, http_service("lone", &[lone.address]), &[]).await;
        }
    );
    assert_eq!((got.status, &*got.body), (200, "lone"));
    let metrics = bed.metrics().await;
    assert!(metrics.contains("destination_service=\"lone.shop.svc.cluster.local\""), "{metrics}");
}
