// SPDX-License-Identifier: Apache-2.0
//! What holds for any bytes: no panic, the same verdict however they arrive, and every request
//! that is accepted reads the same once it is passed on.

use bytes::BytesMut;
use proptest::prelude::*;

use crate::h1::body::Decoder;
use crate::h1::encode;
use crate::h1::framing::Framing;
use crate::h1::head::{RequestHead, Scan, take_request, take_response};
use crate::h1::wrong::Wrong;

/// What requests are made of, well and badly.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&'static [u8]> = vec![
        b"GET ",
        b"POST ",
        b"CONNECT ",
        b"/",
        b"/a?b",
        b"a:80",
        b"http://h/",
        b" ",
        b"\t",
        b"#",
        b"HTTP/1.1\r\n",
        b"HTTP/1.0\r\n",
        b"HTTP/2.0\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: +3\r\n",
        b"X:",
        b": ",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"3;x\r\n",
        b"abc",
        b"x: y\r\n",
        b"\0",
        b"\xff",
        b"Expect: ",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    prop_oneof![
        12 => proptest::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(fragment(), 1..24).prop_map(|parts| parts.concat())
}

/// Every message that can be read, and how that ended.
fn read(bytes: &[u8], step: usize) -> (Vec<(RequestHead, Vec<u8>)>, Option<Wrong>) {
    let (mut buffer, mut scan) = (BytesMut::new(), Scan::default());
    let mut open: Option<(RequestHead, Decoder, Vec<u8>)> = None;
    let mut all = Vec::new();
    for part in bytes.chunks(step) {
        buffer.extend_from_slice(part);
        loop {
            if let Some((_, decoder, body)) = &mut open {
                match decoder.next(&mut buffer) {
                    Err(wrong) => return (all, Some(wrong)),
                    Ok(Some(crate::h1::body::Piece::Data(data))) => {
                        body.extend_from_slice(&data);
                        continue;
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) if !decoder.is_done() => break,
                    Ok(None) => {
                        let (head, _, body) = open.take().unwrap();
                        let ends = head.framing == Framing::Tunnel;
                        all.push((head, body));
                        if ends {
                            return (all, None);
                        }
                    }
                }
            }
            match take_request(&mut buffer, &mut scan) {
                Err(wrong) => return (all, Some(wrong)),
                Ok(None) => break,
                Ok(Some(head)) => {
                    let decoder = Decoder::new(head.framing);
                    open = Some((head, decoder, Vec::new()));
                }
            }
        }
    }
    (all, None)
}

fn seen(messages: &[(RequestHead, Vec<u8>)]) -> String {
    let each = messages.iter().map(|(head, body)| {
        let p = &head.parts;
        format!("{} {} {:?} {:?} {body:?}", p.method, p.uri, p.headers, head.framing)
    });
    each.collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn bytes_mean_the_same_however_they_arrive(bytes in bytes(), step in 1usize..40) {
        let (whole, wrong) = read(&bytes, bytes.len());
        let (parts, wrong_too) = read(&bytes, step);
        prop_assert_eq!(seen(&whole), seen(&parts));
        prop_assert_eq!(wrong.is_some(), wrong_too.is_some());
    }

    #[test]
    fn reg_18_what_is_passed_on_reads_the_same_to_another_parser(
        body in "[a-z]{0,40}",
        chunked in any::<bool>(),
        rest in bytes(),
    ) {
        let n = body.len();
        let whole = match (chunked, n) {
            (false, _) => format!("Content-Length: {n}\r\n\r\n{body}"),
            (true, 0) => "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            (true, _) => {
                format!("Transfer-Encoding: chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n")
            }
        };
        let whole = format!("POST /a?b HTTP/1.1\r\nHost: a\r\nX-A: b\r\n{whole}");
        let bytes = [whole.as_bytes(), &rest].concat();
        for (head, body) in read(&bytes, bytes.len()).0 {
            let parts = &head.parts;
            if head.framing == Framing::Tunnel {
                continue;
            }
            let mut out = Vec::new();
            let instead = encode::Instead::default();
            encode::request(&mut out, (&parts.method, &parts.uri), &parts.headers, instead);
            encode::framing(&mut out, Framing::Length(body.len() as u64));
            let mut fields = [httparse::EMPTY_HEADER; 128];
            let mut second = httparse::Request::new(&mut fields);
            let end = second.parse(&out).unwrap();
            prop_assert_eq!(end, httparse::Status::Complete(out.len()));
            prop_assert_eq!(second.method.unwrap(), parts.method.as_str());
            prop_assert_eq!(second.path.unwrap(), parts.uri.path_and_query().unwrap().as_str());
            let framing: Vec<&httparse::Header<'_>> = second.headers.iter().filter(|h| {
                let name = h.name.to_ascii_lowercase();
                name == "content-length" || name == "transfer-encoding"
            }).collect();
            prop_assert_eq!(framing.len(), 1);
            let length = body.len().to_string();
            prop_assert_eq!(framing[0].value, length.as_bytes());
            let own = parts.headers.iter().filter(|(n, _)| {
                !["content-length", "transfer-encoding", "connection"].contains(&n.as_str())
            });
            let theirs = second.headers.iter().filter(|h| h.name != "content-length");
            let own: Vec<_> = own.map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
            let theirs: Vec<_> = theirs.map(|h| (h.name, h.value)).collect();
            prop_assert_eq!(own, theirs);
        }
    }

    #[test]
    fn answers_of_any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut buffer = BytesMut::from(&b"HTTP/1.1 200 OK\r\n"[..]);
        buffer.extend_from_slice(&bytes);
        let mut scan = Scan::default();
        if let Ok(Some(head)) = take_response(&mut buffer, &mut scan, &http::Method::GET) {
            let mut decoder = Decoder::new(head.framing);
            while let Ok(Some(_)) = decoder.next(&mut buffer) {}
        }
    }
}
