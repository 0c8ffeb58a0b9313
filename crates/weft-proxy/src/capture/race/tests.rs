// SPDX-License-Identifier: Apache-2.0
//! Who speaks first. Limits that must not be reached are far away, others are near.

use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const NEVER: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(30);

struct Far(Option<DuplexStream>);

impl Upstream for Far {
    type Io = DuplexStream;

    fn io(&mut self) -> Option<&mut DuplexStream> {
        self.0.as_mut()
    }
}

#[tokio::test]
async fn a_client_that_speaks_at_once_costs_no_upstream_connection() {
    let (mut client, near) = duplex(64);
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let never = async { panic!("it was dialled") };
    let raced = race::<_, Far, _>(near, http, NEVER, never).await;
    let Raced::Http(Wire::H1, mut io) = raced else { panic!("it is HTTP") };
    let mut seen = [0u8; 16];
    io.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let (_client, near) = duplex(64);
    let (far, mut server) = duplex(64);
    server.write_all(b"220 ready\r\n").await.unwrap();
    let raced = race(near, http, NEVER, async { Far(Some(far)) }).await;
    let Raced::Opaque { said, .. } = raced else { panic!("it is opaque") };
    assert_eq!(&said[..], b"220 ready\r\n");
}

// Time is what is raced here: the sleeps below are a client that is late, not a wait for something.

#[tokio::test]
async fn two_silent_ends_wait_for_each_other_and_a_late_request_is_still_http() {
    let (mut client, near) = duplex(64);
    let (far, mut server) = duplex(64);
    let racing = race(near, http, SOON, async { Far(Some(far)) });
    let asking = async {
        tokio::time::sleep(3 * SOON).await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    };
    let (raced, ()) = tokio::join!(racing, asking);
    assert!(matches!(raced, Raced::Http(Wire::H2, _)));
    // What was dialled in vain is closed.
    assert_eq!(server.read(&mut [0u8; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn bytes_that_leave_it_open_are_opaque_after_the_limit() {
    let (mut client, near) = duplex(64);
    let (far, _server) = duplex(64);
    client.write_all(b"GE").await.unwrap();
    let began = Instant::now();
    let raced = race(near, http, SOON, async { Far(Some(far)) }).await;
    assert!(began.elapsed() >= SOON, "{:?}", began.elapsed());
    let Raced::Opaque { mut io, .. } = raced else { panic!("it is opaque") };
    drop(client);
    let mut seen = Vec::new();
    io.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, b"GE");
}

#[tokio::test]
async fn a_client_that_only_reads_is_opaque_and_gets_an_upstream() {
    let (mut client, near) = duplex(64);
    client.shutdown().await.unwrap();
    let (far, _server) = duplex(64);
    let raced = race(near, http, NEVER, async { Far(Some(far)) }).await;
    assert!(matches!(raced, Raced::Opaque { upstream: Far(Some(_)), .. }));
}

#[tokio::test]
async fn without_an_upstream_a_client_may_still_ask_and_is_then_let_go() {
    let (mut client, near) = duplex(64);
    let asking = async {
        tokio::time::sleep(SOON).await;
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    };
    let (raced, ()) = tokio::join!(race(near, http, NEVER, async { Far(None) }), asking);
    assert!(matches!(raced, Raced::Http(Wire::H1, _)));
    let (_client, near) = duplex(64);
    let raced = race(near, http, SOON, async { Far(None) }).await;
    assert!(matches!(raced, Raced::Opaque { upstream: Far(None), .. }));
}

#[test]
fn first_bytes_of_tls() {
    assert_eq!(tls(b""), None);
    assert_eq!(tls(b"\x16"), Some(First::Tls));
    assert_eq!(tls(b"G"), Some(First::Opaque));
    assert_eq!(tls_or_http(b"\x16"), Some(First::Tls));
    assert_eq!(tls_or_http(b"GET /"), Some(First::Http(Wire::H1)));
    assert_eq!(tls_or_http(b"\0"), Some(First::Opaque));
}
