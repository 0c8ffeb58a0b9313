// SPDX-License-Identifier: Apache-2.0
//! What is known of connections over which no byte went. What goes over them is tested between
//! whole proxies.

use tokio::task::LocalSet;

use super::*;
use crate::config::{LogFormat, LogWhat};
use crate::http::body::ReplyBody;
use crate::memory::MemoryProxy;
use crate::observe::metrics::lock;
use crate::table::Table;
use crate::tests::bed::{Server, config, nobody};

/// A worker that knows no service, and a CONNECT to an address.
fn bed(to: SocketAddr) -> (MemoryProxy, Rc<Conn>) {
    let mut config = config("sidecar~shop~order-0");
    config.access_log.what = LogWhat::Failures;
    config.access_log.format = LogFormat::Json;
    let proxy = MemoryProxy::new(config, Arc::new(Table::default()));
    let mut conn = Conn::new(Door::Forward, to, SocketAddr::from(([127, 0, 0, 1], 40_000)));
    conn.tunnel = Authority::parse(&to.to_string());
    (proxy, Rc::new(conn))
}

/// The only connection that was counted, by its destination, and the line about it.
fn only(proxy: &mut MemoryProxy, flag: Flag) -> (String, serde_json::Value) {
    let counted = lock(&proxy.worker.metrics.cells.tcp).clone();
    let [(labels, series)] = &counted[..] else { panic!("{counted:?}") };
    assert_eq!(labels.flags, Flags::from(flag));
    let both = [&series.opened, &series.closed].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(both, [1, 1]);
    let lines = proxy.logged();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["response_flags"], Flags::from(flag).to_string());
    (labels.destination_service.to_string(), line)
}

#[tokio::test]
async fn what_is_refused_is_counted_and_logged_as_a_connection() {
    let down = nobody().await;
    let (mut proxy, conn) = bed(down);
    let worker = proxy.worker.clone();
    let refused = asked(&worker, &conn, begin(&worker, &conn)).await.unwrap_err();
    assert_eq!(refused.cause, Cause::ConnectFailed);
    let (_, line) = only(&mut proxy, Flag::UF);
    let sentence = line["sentence"].as_str().unwrap();
    assert!(sentence.contains(&format!("connecting to {down} failed")), "{sentence}");
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_is_counted_and_logged() {
    let (mut proxy, conn) = bed(nobody().await);
    let worker = proxy.worker.clone();
    let waiting = asked(&worker, &conn, std::future::pending());
    assert!(tokio::time::timeout(Duration::ZERO, waiting).await.is_err());
    let (destination, line) = only(&mut proxy, Flag::DC);
    assert_eq!((&*destination, &line["sentence"]), ("unknown", &LEFT.into()));
}

#[tokio::test]
async fn a_client_that_is_gone_when_it_is_granted_is_counted_and_logged() {
    let app = Server::raw(|_, _| async {}).await;
    let (mut proxy, conn) = bed(app.address);
    let worker = proxy.worker.clone();
    let going = async {
        let opening = asked(&worker, &conn, begin(&worker, &conn)).await.unwrap();
        let (promise, client) = Handover::new();
        let (_, heir) = ReplyBody::bequeathed();
        go_on(&worker, &conn, (client, heir), opening);
        drop(promise);
        assert!(worker.conns.shutdown(Duration::from_secs(10)).await);
    };
    LocalSet::new().run_until(going).await;
    let (destination, line) = only(&mut proxy, Flag::DC);
    assert_ne!(destination, "unknown");
    assert_eq!(line["upstream_host"], app.address.to_string());
}
