// SPDX-License-Identifier: Apache-2.0
//! Over sockets.

use super::*;

const HOSTS: usize = 5_000;

fn everything() -> Vec<(ResourceName, Arc<Resource>)> {
    (0..HOSTS).flat_map(|i| service(&format!("svc-{i}"))).collect()
}

/// Envoy sends whole route tables and sets; here one endpoint is one small resource per proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_hosts_arrive_and_one_endpoint_is_one_small_resource() {
    let server = Server::start().await;
    server.pusher.submit(delta(1, everything()));
    let mut proxies: Vec<Proxy> =
        (0..4).map(|i| Proxy::start(server.address, &format!("sidecar~shop~p{i}"))).collect();
    for proxy in &mut proxies {
        proxy.until(|t| t.len() == HOSTS * 3).await;
    }
    server.synced(proxies.len()).await;
    let before: Vec<u64> = server.pusher.status().iter().map(|s| s.bytes).collect();
    let resources = server.pusher.metrics().resources.get();

    let changed = endpoints("svc-4711", &["127.64.0.1", "127.64.0.2", "127.64.0.3"]);
    server.pusher.submit(delta(2, [changed.clone()]));
    server.pusher.wait_acked(Some(&host_root("svc-4711")), 2, LONG).await.unwrap();

    for proxy in &proxies {
        assert_eq!(proxy.table.borrow()[&changed.0].1, *changed.1);
        assert_eq!(proxy.log.lock().unwrap().last(), Some(&(1, 0)), "{}", proxy.id);
    }
    for (status, before) in server.pusher.status().iter().zip(before) {
        let bytes = status.bytes - before;
        assert!((100..1_000).contains(&bytes), "one change took {bytes} bytes");
    }
    let sent = server.pusher.metrics().resources.get() - resources;
    assert_eq!(sent, 4, "one resource for each proxy");
}

#[tokio::test]
async fn a_restarted_server_sends_nothing_that_the_proxy_has() {
    let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::ports::free()));
    let first = Server::start_with(TestNodes::default(), address).await;
    first.pusher.submit(delta(7, service("user").into_iter().chain(service("order"))));
    let mut proxy = Proxy::start(address, "sidecar~shop~a");
    proxy.until(|t| t.len() == 6).await;
    first.synced(1).await;
    first.stop().await;

    let second = Server::start_with(TestNodes::default(), address).await;
    // Meanwhile `order` is gone and an endpoint of `user` changed.
    let mut now = service("user");
    now[2] = endpoints("user", &["127.64.0.9"]);
    second.pusher.submit(delta(9, now));
    second.pusher.wait_acked(None, 9, LONG).await.unwrap();
    proxy.until(|t| t.len() == 3).await;
    second.synced(1).await;
    assert_eq!(second.pusher.metrics().resources.get(), 1);
    assert_eq!(second.pusher.metrics().removed.get(), 1, "a root stands for its children");
    assert_eq!(second.status_of("sidecar~shop~a").acked_generation, Some(9));
    assert!(proxy.status.borrow().connects >= 2);
}

/// A server that starts must not take from a proxy what it runs with.
#[tokio::test]
async fn nothing_is_offered_before_the_first_compile() {
    let server = Server::start().await;
    let held =
        [(host_root("user").own(), (Version::of(b"x"), service("user")[0].1.as_ref().clone()))];
    let mut proxy = Proxy::start_from(server.address, "sidecar~shop~a", held.into(), 99, |_| None);
    let mut changes = server.pusher.changes();
    let connected = async {
        while server.pusher.connected() == 0 {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, connected).await.unwrap();
    assert!(!server.pusher.status()[0].synced);
    server.pusher.submit(delta(5, service("user")));
    proxy.until(|t| t.len() == 3).await;
    server.synced(1).await;
    assert_eq!(*proxy.log.lock().unwrap(), [(3, 0)], "one transaction, and no empty one before");
}

#[tokio::test]
async fn a_restarted_proxy_resumes_from_its_last_good_table() {
    let server = Server::start().await;
    server.pusher.submit(delta(1, service("user")));
    let mut proxy = Proxy::start(server.address, "sidecar~shop~a");
    proxy.until(|t| t.len() == 3).await;
    server.synced(1).await;
    let last_good = proxy.stop().await;
    server.pusher.submit(delta(2, [endpoints("user", &["127.64.0.9"]), fail("user", "new")]));
    server.pusher.wait_acked(None, 2, LONG).await.unwrap();

    let sent = server.pusher.metrics().resources.get();
    let start = |t: Table| Proxy::start_from(server.address, "sidecar~shop~a", t, 99, |_| None);
    let mut proxy = start(last_good);
    proxy.until(|t| t.len() == 4).await;
    server.synced(1).await;
    assert_eq!(server.pusher.metrics().resources.get() - sent, 2);

    let sent = server.pusher.metrics().resources.get();
    let mut again = start(proxy.stop().await);
    let synced = again.status.wait_for(|s| s.generation == Some(2));
    tokio::time::timeout(LONG, synced).await.unwrap().unwrap();
    assert_eq!(server.pusher.metrics().resources.get(), sent);
    assert_eq!(*again.log.lock().unwrap(), [(0, 0)], "an empty commit says: in sync");
}

#[tokio::test]
async fn a_refused_resource_is_listed_and_the_rest_applies() {
    let server = Server::start().await;
    let refuses: Refuses = |resource| match resource {
        Resource::Fail(f) if f.reason.contains("poison") => Some("too much poison, use less"),
        _ => None,
    };
    server.pusher.submit(delta(1, service("user").into_iter().chain([fail("user", "good")])));
    let mut proxy = Proxy::start_from(server.address, "sidecar~shop~a", Table::new(), 99, refuses);
    proxy.until(|t| t.len() == 4).await;
    server.synced(1).await;

    server.pusher.submit(delta(2, [fail("user", "poison"), endpoints("user", &["127.64.0.9"])]));
    server.pusher.wait_acked(None, 2, LONG).await.unwrap();
    let status = server.status_of("sidecar~shop~a");
    let refused = Refused {
        name: fail("user", "").0.to_string(),
        reason: "too much poison, use less".to_owned(),
        sections: Vec::new(),
    };
    assert_eq!(status.rejected, [refused]);
    assert_eq!(status.acked_generation, Some(2));
    {
        let table = proxy.table.borrow();
        assert_eq!(table[&fail("user", "").0].1, *fail("user", "good").1, "last good stays");
        assert_eq!(table[&endpoints("user", &[]).0].1, *endpoints("user", &["127.64.0.9"]).1);
    }

    // Something else changes: the refusal is still known, and not offered again.
    server.pusher.submit(delta(3, [endpoints("user", &["127.64.0.8"])]));
    server.pusher.wait_acked(None, 3, LONG).await.unwrap();
    assert_eq!(server.status_of("sidecar~shop~a").rejected.len(), 1);
    assert_eq!(proxy.log.lock().unwrap().last(), Some(&(1, 0)));
    assert_eq!(server.pusher.metrics().nacks.get(), 1);

    server.pusher.submit(delta(4, [fail("user", "cured")]));
    server.pusher.wait_acked(None, 4, LONG).await.unwrap();
    assert!(server.status_of("sidecar~shop~a").rejected.is_empty());
    assert_eq!(proxy.table.borrow()[&fail("user", "").0].1, *fail("user", "cured").1);
}

#[tokio::test]
async fn drain_waits_for_those_who_see_the_host_and_for_nobody_else() {
    let server = Server::start().await;
    server.nodes.sees_hidden.lock().unwrap().insert("sidecar~shop~sees".parse().unwrap());
    let hidden = Root::host("x.hidden.svc.cluster.local");
    let of_hidden = |ips: &[&str]| (hidden.child("endpoints/80"), endpoints("x", ips).1);
    let own = (hidden.own(), service("x")[0].1.clone());
    server
        .pusher
        .submit(delta(1, service("user").into_iter().chain([own, of_hidden(&["1.1.1.1"])])));
    // Each may apply its first transaction only.
    let start = |id| Proxy::start_from(server.address, id, Table::new(), 1, |_| None);
    let (sees, other) = (start("sidecar~shop~sees"), start("sidecar~shop~other"));
    server.synced(2).await;
    let (user, ms) = (host_root("user"), Duration::from_millis);

    server.pusher.submit(delta(2, [of_hidden(&[])]));
    server.published(2).await;
    let late = server.pusher.wait_acked(Some(&hidden), 2, ms(50)).await.unwrap_err();
    assert_eq!(late.nodes, ["sidecar~shop~sees".parse().unwrap()]);
    assert!(late.published);
    sees.gate.add_permits(1);
    server.pusher.wait_acked(Some(&hidden), 2, LONG).await.unwrap();

    server.pusher.submit(delta(3, [endpoints("user", &[])]));
    server.published(3).await;
    let late = server.pusher.wait_acked(Some(&user), 3, ms(50)).await.unwrap_err();
    assert_eq!(late.nodes.len(), 2, "{late}");
    sees.gate.add_permits(1);
    // One that goes away is not waited for.
    let (waited, _) = tokio::join!(server.pusher.wait_acked(Some(&user), 3, LONG), other.stop());
    waited.unwrap();

    let late = server.pusher.wait_acked(None, 4, ms(20)).await.unwrap_err();
    assert!(!late.published && late.nodes.is_empty(), "nobody compiled 4 yet");
    server.pusher.submit(Delta::at(4));
    server.pusher.wait_acked(None, 4, LONG).await.unwrap();
}

#[tokio::test]
async fn a_pod_is_ready_only_when_its_own_sidecar_holds_its_inbound_listeners() {
    let server = Server::start().await;
    server.pusher.submit(delta(1, [inbound("a", 8080), inbound("b", 8080)]));
    assert!(!server.pusher.inbound_acked("shop", "a", &[8080]), "not connected");
    let proxy = Proxy::start_from(server.address, "sidecar~shop~a", Table::new(), 0, |_| None);
    let wait = |ports: &'static [u16], t| server.pusher.wait_inbound_acked("shop", "a", ports, t);
    assert!(!wait(&[8080], Duration::from_millis(50)).await, "not applied");
    proxy.gate.add_permits(1);
    assert!(wait(&[8080], LONG).await);
    assert_eq!(proxy.table.borrow().len(), 1, "the other pod's listener is none of its business");
    assert!(!server.pusher.inbound_acked("shop", "b", &[8080]));
    assert!(!wait(&[8080, 9090], Duration::from_millis(20)).await);
    server.pusher.submit(delta(2, [inbound("a", 9090)]));
    proxy.gate.add_permits(1);
    assert!(wait(&[8080, 9090], LONG).await);
    // Endpoints that it has not answered do not make a ready pod unready.
    server.pusher.submit(delta(3, service("user")));
    server.published(3).await;
    server.pusher.wait_acked(None, 3, Duration::from_millis(50)).await.unwrap_err();
    assert!(server.pusher.inbound_acked("shop", "a", &[8080, 9090]));
    // Neither does a lost stream.
    proxy.stop().await;
    let mut changes = server.pusher.changes();
    while server.pusher.connected() > 0 {
        changes.changed().await.unwrap();
    }
    assert!(server.pusher.inbound_acked("shop", "a", &[8080, 9090]));
    let proxy = Proxy::start_from(server.address, "sidecar~shop~a", Table::new(), 0, |_| None);
    while server.pusher.connected() == 0 {
        changes.changed().await.unwrap();
    }
    assert!(server.pusher.inbound_acked("shop", "a", &[8080, 9090]));
    // A listener that is gone is gone.
    let removes = [inbound("a", 9090).0].into();
    server.pusher.submit(Delta { removes, ..Delta::at(4) });
    proxy.gate.add_permits(9);
    server.pusher.wait_acked(None, 4, LONG).await.unwrap();
    assert!(!server.pusher.inbound_acked("shop", "a", &[8080, 9090]));
    assert!(server.pusher.inbound_acked("shop", "a", &[8080]));
}

#[tokio::test]
async fn a_rescope_brings_and_takes_what_it_says() {
    let server = Server::start().await;
    let id: NodeId = "sidecar~shop~a".parse().unwrap();
    let hidden = Root::host("x.hidden.svc.cluster.local");
    let own = (hidden.own(), service("x")[0].1.clone());
    server.pusher.submit(delta(1, service("user").into_iter().chain([own])));
    let mut proxy = Proxy::start(server.address, "sidecar~shop~a");
    proxy.until(|t| t.len() == 3).await;
    server.synced(1).await;
    server.nodes.sees_hidden.lock().unwrap().insert(id.clone());
    let rescope = Rescope::Nodes([id.clone()].into());
    server.pusher.submit(Delta { rescope: rescope.clone(), ..Delta::at(2) });
    proxy.until(|t| t.len() == 4).await;
    server.nodes.sees_hidden.lock().unwrap().clear();
    server.pusher.submit(Delta { rescope: Rescope::Everybody, ..Delta::at(3) });
    proxy.until(|t| t.len() == 3).await;
    server.synced(1).await;
    assert_eq!(*proxy.log.lock().unwrap(), [(3, 0), (1, 0), (0, 1)]);
    // The node's pod is deleted: its stream ends and it is forgotten.
    server.nodes.gone.lock().unwrap().insert(id);
    server.pusher.submit(Delta { rescope, ..Delta::at(4) });
    let lost = proxy.status.wait_for(|s| !s.connected && s.error.is_some());
    tokio::time::timeout(LONG, lost).await.unwrap().unwrap();
    assert!(server.pusher.status().is_empty());
}

/// `listener:a/b` would arrive as child `b` of `listener:a`.
#[tokio::test]
async fn a_name_that_would_be_read_otherwise_is_not_pushed() {
    let server = Server::start().await;
    let bad = Root::host("a/b.shop.svc.cluster.local").own();
    let resources = service("user").into_iter().chain([(bad, fail("user", "x").1)]);
    server.pusher.submit(delta(1, resources));
    let mut proxy = Proxy::start(server.address, "sidecar~shop~a");
    proxy.until(|t| t.len() == 3).await;
    server.synced(1).await;
    assert_eq!(server.pusher.metrics().failed.get(), 1);
}

/// A sidecar may be quicker than the compiler: its stream waits, it need not try again.
#[tokio::test]
async fn a_node_that_the_mesh_does_not_know_yet_waits_on_its_stream() {
    let server = Server::start().await;
    let id: NodeId = "sidecar~shop~a".parse().unwrap();
    server.nodes.gone.lock().unwrap().insert(id.clone());
    server.pusher.submit(delta(1, service("user")));
    let mut proxy = Proxy::start(server.address, "sidecar~shop~a");
    let mut changes = server.pusher.changes();
    while server.pusher.connected() == 0 {
        changes.changed().await.unwrap();
    }
    let rescope = Rescope::Nodes([id].into());
    server.pusher.submit(Delta { rescope: rescope.clone(), ..delta(2, [fail("user", "x")]) });
    server.pusher.wait_acked(None, 2, LONG).await.unwrap();
    assert!(!server.status_of("sidecar~shop~a").synced);
    assert!(proxy.log.lock().unwrap().is_empty());
    server.nodes.gone.lock().unwrap().clear();
    server.pusher.submit(Delta { rescope, ..Delta::at(3) });
    proxy.until(|t| t.len() == 4).await;
    server.synced(1).await;
    assert_eq!(proxy.status.borrow().connects, 1);
    assert_eq!(*proxy.log.lock().unwrap(), [(4, 0)]);
}

/// The release of a proxy is not the server's: both say what to upgrade, and keep their heads.
#[tokio::test]
async fn a_proxy_that_speaks_no_common_version_is_told_what_to_upgrade() {
    let server = Server::start().await;
    server.pusher.submit(delta(1, service("user")));
    for (oldest, newest, word) in [(7, 8, "upgrade the server first"), (0, 0, "names no model")] {
        let mut node = NodeInfo::this_release("sidecar~shop~a".parse().unwrap(), "9.9.9");
        (node.model_version_oldest, node.model_version) = (oldest, newest);
        let tasks = TaskGroup::new();
        let connect = Arc::new(PlainTcp { authority: server.address.to_string() });
        let (held, wanted) = (Vec::new(), client::nothing_more());
        let options = Options { node, held, wanted, rng: Rng::seeded(1) };
        let mut handle = client::run(connect, options, &tasks);
        let told = |s: &client::Status| s.error.as_ref().is_some_and(|e| e.contains(word));
        let waited = tokio::time::timeout(LONG, handle.status.wait_for(told)).await;
        assert!(waited.is_ok(), "nobody said {word:?}");
        assert!(handle.transactions.try_recv().is_err());
        tasks.shutdown(Duration::ZERO).await;
    }
    let mut proxy = Proxy::start(server.address, "sidecar~shop~b");
    proxy.until(|t| t.len() == 3).await;
}

/// An answer and what amends it may both wait while the client has other things to do: they are
/// told in the order in which they were given.
#[tokio::test]
async fn an_answer_that_is_amended_at_once_is_told_before_what_amends_it() {
    let server = Server::start().await;
    let tasks = TaskGroup::new();
    let node = NodeInfo::this_release("sidecar~shop~a".parse().unwrap(), "test");
    let connect = Arc::new(PlainTcp { authority: server.address.to_string() });
    let (held, wanted) = (Vec::new(), client::nothing_more());
    let options = Options { node, held, wanted, rng: Rng::seeded(1) };
    let mut handle = client::run(connect, options, &tasks);
    // Told at random, one of so many would be wrong.
    for generation in 1..=20 {
        let resource = fail("user", &generation.to_string());
        let name = resource.0.to_string();
        server.pusher.submit(delta(generation, [resource]));
        let delivered = tokio::time::timeout(LONG, handle.transactions.recv()).await;
        assert_eq!(delivered.unwrap().unwrap().generation, generation);
        let rejected = vec![Rejected::new(name, "its address is taken")];
        handle.applied.try_send(Applied { generation, rejected }).unwrap();
        handle.amended.try_send(Applied { generation, rejected: Vec::new() }).unwrap();
        let mut changes = server.pusher.changes();
        let told = async {
            loop {
                let status = server.status_of("sidecar~shop~a");
                if status.acked_generation == Some(generation) && status.rejected.is_empty() {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        assert!(tokio::time::timeout(LONG, told).await.is_ok(), "{generation} stays refused");
    }
    tasks.shutdown(Duration::ZERO).await;
}
