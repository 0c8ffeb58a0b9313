// SPDX-License-Identifier: Apache-2.0
//! ClientHellos of a real client, whole, cut and broken.

use std::sync::Arc;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// What rustls sends first.
fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

/// The same handshake message in records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in hello[5..].chunks(size) {
        out.extend([22, 3, 1]);
        out.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend(part);
    }
    out
}

fn named(name: &str) -> Hello {
    Hello::Named(Some(name.into()))
}

/// A ClientHello with these extensions.
fn made(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut out = vec![22, 3, 1];
    out.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    out.extend(message);
    out
}

fn sni(name: &[u8]) -> Vec<u8> {
    let n = u16::try_from(name.len()).unwrap();
    let mut out = vec![0, 0];
    out.extend((n + 5).to_be_bytes());
    out.extend((n + 3).to_be_bytes());
    out.push(0);
    out.extend(n.to_be_bytes());
    out.extend(name);
    out
}

#[test]
fn the_name_is_found_however_it_is_cut() {
    let hello = client_hello("Mail.Example.com");
    assert_eq!(judge(&hello), named("mail.example.com"));
    for size in [1, 3, 4, 5, 64, 1000] {
        let cut = in_records(&hello, size);
        assert_eq!(judge(&cut), named("mail.example.com"), "records of {size}");
        // What comes behind it is not looked at.
        assert_eq!(judge(&[&cut[..], b"\x17\x03\x03"].concat()), named("mail.example.com"));
    }
    for n in 0..hello.len() {
        let Hello::More(wanted) = judge(&hello[..n]) else { panic!("{n}") };
        assert!(wanted > n && wanted <= hello.len(), "{n}: {wanted}");
    }
    assert_eq!(judge(&client_hello("10.0.0.1")), Hello::Named(None));
}

#[test]
fn what_is_none_is_refused() {
    let wrong = |bytes: &[u8], part: &str| match judge(bytes) {
        Hello::Wrong(why) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?}"),
    };
    wrong(b"GET / HTTP/1.1\r\n", "does not begin");
    // A record of nothing, one too long, another content in the middle.
    wrong(&[22, 3, 1, 0, 0], "malformed");
    wrong(&[22, 3, 1, 0x40, 1], "malformed");
    wrong(&[22, 2, 1, 0, 5], "malformed");
    wrong(&[22, 3, 1, 0, 1, 1, 23, 3, 3, 0, 1], "malformed");
    wrong(&[22, 3, 1, 0, 4, 2, 0, 0, 0], "no ClientHello");
    wrong(&[22, 3, 1, 0, 4, 1, 1, 0, 0], "too large");
    let [a, b] = [sni(b"a.example"), sni(b"b.example")];
    assert_eq!(judge(&made(&a)), named("a.example"));
    wrong(&made(&[a.clone(), b].concat()), "twice");
    wrong(&made(&a[..a.len() - 1]), "cut short");
    for name in [&b"a\0.example"[..], b"*.example", b"a..b", b"\xff", b"a b", b""] {
        wrong(&made(&sni(name)), "no host name");
    }
    assert_eq!(judge(&made(&[])), Hello::Named(None));
}

#[tokio::test]
async fn reading_is_bounded_in_time_and_loses_nothing() {
    let hello = client_hello("a.example");
    let (mut client, server) = tokio::io::duplex(64);
    let sent = hello.clone();
    let sending = async move {
        for byte in sent {
            client.write_all(&[byte]).await.unwrap();
        }
        client
    };
    let limit = Duration::from_secs(10);
    let ((found, mut io), client) = tokio::join!(read(server, limit), sending);
    assert_eq!(found.unwrap().as_deref(), Some("a.example"));
    drop(client);
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, hello);
    let (mut client, server) = tokio::io::duplex(64);
    client.write_all(&hello[..20]).await.unwrap();
    let (found, _io) = read(server, Duration::from_millis(20)).await;
    assert!(found.unwrap_err().contains("too long"));
    let (mut client, server) = tokio::io::duplex(64);
    client.write_all(&hello[..20]).await.unwrap();
    drop(client);
    assert!(read(server, limit).await.0.unwrap_err().contains("left"));
}

proptest! {
    #[test]
    fn any_bytes_are_judged_and_more_is_always_more(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        for start in [&[][..], &[22, 3, 1], &[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]] {
            let all = [start, &bytes].concat();
            if let Hello::More(wanted) = judge(&all) {
                prop_assert!(wanted > all.len());
            }
        }
    }

    #[test]
    fn a_changed_byte_is_still_judged(at in 0usize..250, byte in any::<u8>()) {
        let mut hello = client_hello("a.example");
        let at = at % hello.len();
        hello[at] = byte;
        let _ = judge(&hello);
    }
}
