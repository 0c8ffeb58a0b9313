// SPDX-License-Identifier: Apache-2.0
//! Headers as others write them, cut, wrong, and our own read back.

use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn v2(version: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend([version, family]);
    out.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

const FOUR: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x01, 0xbb];

fn header(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match judge(bytes) {
        Judged::Header { length, client } if length == bytes.len() => client,
        other => panic!("{other:?} of {bytes:?}"),
    }
}

fn refused(bytes: &[u8], part: &str) {
    match judge(bytes) {
        Judged::Wrong(why) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?} of {bytes:?}"),
    }
}

#[test]
fn lines_are_read_strictly() {
    let client = header(b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n");
    assert_eq!(client, Some((at("192.0.2.7:8080"), at("10.0.0.1:443"))));
    let client = header(b"PROXY TCP6 2001:db8::1 ::ffff:10.0.0.1 1 0\r\n");
    assert_eq!(client, Some((at("[2001:db8::1]:1"), at("10.0.0.1:0"))));
    assert_eq!(header(b"PROXY UNKNOWN\r\n"), None);
    assert_eq!(header(b"PROXY UNKNOWN what is this\r\n"), None);
    for wrong in [
        &b"PROXY  TCP4 192.0.2.7 10.0.0.1 8080 443\r\n"[..],
        b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443 \r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 08080 443\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 +80 443\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.256 10.0.0.1 80 443\r\n",
        b"PROXY TCP4 2001:db8::1 10.0.0.1 80 443\r\n",
        b"PROXY TCP6 192.0.2.7 10.0.0.1 80 443\r\n",
        b"PROXY UDP4 192.0.2.7 10.0.0.1 80 443\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 80 443\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
    ] {
        refused(wrong, "malformed");
    }
    refused(format!("PROXY UNKNOWN {}", "x".repeat(100)).as_bytes(), "malformed");
}

#[test]
fn reg_16_lengths_of_version_two_are_exact() {
    let both = Some((at("192.0.2.7:8080"), at("10.0.0.1:443")));
    assert_eq!(header(&v2(0x21, 0x11, &FOUR)), both);
    // A connection of the sender's own, an address of no family, a Unix socket.
    assert_eq!(header(&v2(0x20, 0x11, &FOUR)), None);
    assert_eq!(header(&v2(0x20, 0x00, &[])), None);
    assert_eq!(header(&v2(0x21, 0x00, &[1, 2, 3])), None);
    assert_eq!(header(&v2(0x21, 0x31, &[0; 216])), None);
    let extra = [&FOUR[..], &[0x02, 0, 3, b'a', b'.', b'b', 0x04, 0, 0]].concat();
    assert_eq!(header(&v2(0x21, 0x11, &extra)), both);
    // One byte less or more than its own length says.
    for n in [1, 2, 4, 7] {
        refused(&v2(0x21, 0x11, &extra[..12 + n]), "do not fill");
    }
    refused(&v2(0x21, 0x11, &[&extra[..], &[0]].concat()), "do not fill");
    refused(&v2(0x21, 0x11, &[&FOUR[..], &[0x02, 0xff, 0xff]].concat()), "do not fill");
    refused(&v2(0x21, 0x11, &FOUR[..11]), "too short");
    refused(&v2(0x21, 0x21, &FOUR), "too short");
    refused(&v2(0x31, 0x11, &FOUR), "unknown");
    refused(&v2(0x22, 0x11, &FOUR), "unknown");
    refused(&v2(0x21, 0x12, &FOUR), "byte stream");
    refused(&v2(0x21, 0x11, &[0; 5000]), "too long");
}

#[test]
fn a_checksum_must_hold() {
    // The check value of CRC-32C.
    assert_eq!(checksum(b"123456789", 100), 0xE306_9283);
    let body = [&FOUR[..], &[CHECKSUM, 0, 4, 0, 0, 0, 0, 0x04, 0, 1, 9]].concat();
    let mut bytes = v2(0x21, 0x11, &body);
    let at = FIXED + 12 + 3;
    let sum = checksum(&bytes, at).to_be_bytes();
    bytes[at..at + 4].copy_from_slice(&sum);
    assert!(header(&bytes).is_some());
    bytes[at] ^= 1;
    refused(&bytes, "checksum");
    refused(&v2(0x21, 0x11, &[&FOUR[..], &[CHECKSUM, 0, 0]].concat()), "checksum");
}

#[tokio::test]
async fn reading_takes_the_header_and_nothing_else() {
    let limit = Duration::from_secs(10);
    for bytes in [v2(0x21, 0x11, &FOUR), b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n".to_vec()] {
        let (mut client, server) = tokio::io::duplex(8);
        let sending = async {
            client.write_all(&bytes).await.unwrap();
            client.write_all(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n").await.unwrap();
            drop(client);
        };
        let reading = async {
            let (told, mut io) = read(server, ProxyHeader::Required, limit).await.unwrap();
            let mut rest = String::new();
            io.read_to_string(&mut rest).await.unwrap();
            (told, rest)
        };
        let ((told, rest), ()) = tokio::join!(reading, sending);
        assert_eq!(told, Some((at("192.0.2.7:8080"), at("10.0.0.1:443"))));
        assert_eq!(rest, "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n");
    }
    for (sent, header, part) in [
        (&b"GET / HTTP/1.1\r\n"[..], ProxyHeader::Required, "has no header"),
        (b"PROXY TCP4 1", ProxyHeader::Optional, "took too long"),
        (b"PROXY X\r\n", ProxyHeader::Optional, "malformed"),
    ] {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(sent).await.unwrap();
        let limit = Duration::from_millis(20);
        let why = read(server, header, limit).await.unwrap_err();
        assert!(why.contains(part), "{why}");
    }
    let (mut client, server) = tokio::io::duplex(64);
    client.write_all(b"PRI * HTTP/2.0").await.unwrap();
    drop(client);
    let (told, mut io) = read(server, ProxyHeader::Optional, limit).await.unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest).await.unwrap();
    assert_eq!((told, &*rest), (None, "PRI * HTTP/2.0"));
    // Who waits for a greeting has sent no header.
    let (_client, server) = tokio::io::duplex(64);
    assert_eq!(read(server, ProxyHeader::Optional, limit).await.unwrap().0, None);
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|n| IpAddr::from(n.to_be_bytes())),
        any::<u128>().prop_map(|n| IpAddr::from(n.to_be_bytes()))
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

proptest! {
    #[test]
    fn reg_16_what_is_written_is_as_long_as_it_says(from in any_address(), to in any_address()) {
        let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let bytes = written(version, from, to);
            let length = bytes.len();
            let client = Some((plain(from), plain(to)));
            prop_assert_eq!(judge(&bytes), Judged::Header { length, client });
            for n in 0..length {
                prop_assert!(matches!(judge(&bytes[..n]), Judged::More(m) if m > n && m <= length));
            }
        }
    }

    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for start in [&b""[..], b"PROXY ", SIGNATURE, &v2(0x21, 0x11, &FOUR)[..14]] {
            let all = [start, &bytes].concat();
            match judge(&all) {
                Judged::More(wanted) => prop_assert!(wanted > all.len()),
                Judged::Header { length, .. } => prop_assert!(length <= all.len()),
                Judged::Absent | Judged::Wrong(_) => {}
            }
        }
    }
}
