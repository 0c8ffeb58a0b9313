// SPDX-License-Identifier: Apache-2.0
//! What nobody waits for any more, and who is sent PINGs.

use std::sync::Arc;

use tokio::net::TcpListener;
use weft_base::task::TaskGroup;
use weft_model::{MESH_PORT, Transport};

use super::*;
use crate::tests::bed::config;
use crate::upstream::breaker::Grant;
use crate::upstream::connect::Dialer;
use crate::upstream::pool::PoolContext;

fn pool(peer: Peer) -> Rc<Pool> {
    let dialer = Dialer {
        source: None,
        tls: None,
        mesh_port: MESH_PORT,
        config: Arc::new(config("sidecar~shop~a")),
    };
    let context = PoolContext {
        dialer: Arc::new(dialer),
        tasks: TaskGroup::new(),
        opened: Cell::new(0),
        noting: false,
    };
    Pool::new(peer, Rc::new(context))
}

fn how() -> How<'static> {
    How {
        wire: Wire::H2,
        connect_timeout: Duration::from_secs(5),
        connections: None,
        careful: false,
        again: Cell::new(true),
        body: Replay::default(),
        interim: None,
        grant: Grant::default(),
        on: None,
    }
}

#[tokio::test]
async fn a_connection_that_nobody_waits_for_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = pool(Peer::plain(listener.local_addr().unwrap()));
    let how = how();
    {
        let mut first = Box::pin(pool.h2_connection(&how));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(pool.h2_connection(&how));
        assert!((&mut second).now_or_never().is_none());
        // They wait for the same one, and one of them is enough.
        drop(first);
        assert_eq!((pool.connections(), pool.context.opened.get()), (1, 1));
        assert!((&mut second).now_or_never().is_none());
    }
    assert_eq!((pool.connections(), pool.context.opened.get()), (0, 1));
    assert_eq!(Rc::strong_count(&pool), 1);
    // Whoever comes later is not told of it.
    let local = tokio::task::LocalSet::new();
    let made = local.run_until(pool.h2_connection(&how)).await.unwrap();
    assert_eq!((pool.connections(), pool.context.opened.get()), (1, 2));
    assert!(made.has_room(None));
}

/// Those that a connection will have no room for open others meanwhile.
#[tokio::test]
async fn as_many_wait_for_a_connection_as_it_has_room_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let once = |requests_max| Connections { requests_max, ..Connections::default() };
    let two = Connections { streams_max: Some(2), ..Connections::default() };
    for (terms, opened) in [(once(Some(1)), 6), (two, 3), (once(Some(4)), 2), (once(None), 1)] {
        let pool = pool(Peer::plain(listener.local_addr().unwrap()));
        let how = How { connections: Some(Arc::new(terms)), ..how() };
        let mut all: Vec<_> = (0..6).map(|_| Box::pin(pool.h2_connection(&how))).collect();
        for one in &mut all {
            assert!(one.now_or_never().is_none());
        }
        assert_eq!(pool.context.opened.get(), opened);
        // Who gives up makes room for another one.
        drop(all.pop());
        assert!(Box::pin(pool.h2_connection(&how)).as_mut().now_or_never().is_none());
        let again = u64::from(opened == 6);
        assert_eq!(pool.context.opened.get(), opened + again);
    }
}

#[test]
fn only_the_mesh_is_sent_pings() {
    let peer = |transport| Peer { transport, ..Peer::plain(([127, 0, 0, 1], 80).into()) };
    let opening = Opening::within(Duration::from_secs(1));
    for mesh in [Transport::MeshH1, Transport::MeshH2, Transport::Hbone] {
        assert!(pings_of(&peer(mesh), opening).is_some());
    }
    assert!(pings_of(&peer(Transport::Plaintext), opening).is_none());
    // Where its policy says so anybody is, as often as that says.
    let pings = Some(weft_model::Pings { interval_ms: 7, timeout_ms: 5 });
    let said = pings_of(&peer(Transport::Plaintext), Opening { pings, ..opening }).unwrap();
    let times = [said.every, said.within].map(|d| d.as_millis());
    assert_eq!((times, said.always), ([7, 5], true));
}
