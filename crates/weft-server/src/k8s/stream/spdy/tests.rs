// SPDX-License-Identifier: Apache-2.0
//! The machine against frames as clients write them, and against ones that nobody should.

use weft_base::rng::Rng;

use super::headers::{Reader, Writer};
use super::*;

/// A client that writes frames by hand.
struct Client {
    writer: Writer,
    reader: Reader,
}

impl Client {
    fn new() -> Self {
        Self { writer: Writer::new(), reader: Reader::new() }
    }

    fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
        let mut out = (0x8000 | VERSION).to_be_bytes().to_vec();
        out.extend_from_slice(&kind.to_be_bytes());
        let length = u32::try_from(body.len()).unwrap() | u32::from(flags) << 24;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn open(&mut self, stream: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&self.writer.write(&Headers::new(headers)).unwrap());
        Self::control(SYN_STREAM, flags, &body)
    }

    fn data(stream: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut out = stream.to_be_bytes().to_vec();
        let length = u32::try_from(data.len()).unwrap() | u32::from(flags) << 24;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(data);
        out
    }

    fn words(kind: u16, words: &[u32]) -> Vec<u8> {
        let body: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        Self::control(kind, 0, &body)
    }

    /// What the machine said, a line per frame.
    fn read(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let word = bytes.get_u32();
            let flags = bytes.get_u8();
            let length = usize::try_from(bytes.get_uint(3)).unwrap();
            let (mut body, rest) = bytes.split_at(length);
            bytes = rest;
            if word & 0x8000_0000 == 0 {
                out.push(format!("data {word} {flags} {}", String::from_utf8_lossy(body)));
                continue;
            }
            let kind = word & 0xffff;
            if kind == u32::from(SYN_REPLY) {
                let stream = body.get_u32();
                let headers = self.reader.read(body).unwrap();
                out.push(format!("reply {stream} {headers:?}"));
            } else {
                let words: Vec<u32> = body.chunks(4).map(|mut w| w.get_u32()).collect();
                out.push(format!("control {kind} {words:?}"));
            }
        }
        out
    }
}

fn events(machine: &mut Machine, bytes: &[u8]) -> Vec<Event> {
    machine.receive(bytes);
    let mut out = Vec::new();
    while let Some(event) = machine.next().unwrap() {
        out.push(event);
    }
    out
}

fn data_of(events: &[Event]) -> Vec<u8> {
    let pieces = events.iter().filter_map(|e| match e {
        Event::Data { piece, .. } => Some(piece.to_vec()),
        _ => None,
    });
    pieces.flatten().collect()
}

#[test]
fn a_stream_lives_from_its_opening_to_both_ends() {
    let (mut client, mut machine) = (Client::new(), Machine::new());
    let mut bytes = client.open(1, 0, &[("streamtype", "stdin")]);
    bytes.extend(Client::data(1, 0, b"hello"));
    bytes.extend(Client::data(1, FLAG_FIN, b""));
    let got = events(&mut machine, &bytes);
    assert!(matches!(&got[0], Event::Opened { stream: 1, headers }
        if headers.get("streamtype") == Some("stdin")));
    assert_eq!(data_of(&got), b"hello");
    assert_eq!(got.last(), Some(&Event::Finished { stream: 1 }));
    machine.reply(1).unwrap();
    machine.data(1, b"world");
    assert!(machine.is_open(1));
    machine.finish(1);
    assert_eq!(machine.open(), 0);
    // What comes after the end is thrown away, on both sides.
    machine.data(1, b"late");
    assert_eq!(events(&mut machine, &Client::data(1, 0, b"late")), []);
    let said = client.read(&machine.take_output());
    assert_eq!(said, ["reply 1 Headers([])", "data 1 0 world", "data 1 1 "]);
}

#[test]
fn frames_may_be_cut_anywhere() {
    let mut client = Client::new();
    let mut bytes = client.open(1, 0, &[("streamtype", "data"), ("port", "80")]);
    bytes.extend(Client::data(1, 0, &[7; 1000]));
    bytes.extend(client.open(3, FLAG_FIN, &[("streamtype", "error")]));
    bytes.extend(Client::data(1, FLAG_FIN, &[8; 10]));
    for step in [1, 2, 3, 7, 100, 5000] {
        let mut machine = Machine::new();
        let got: Vec<Event> =
            bytes.chunks(step).flat_map(|part| events(&mut machine, part)).collect();
        assert_eq!(data_of(&got).len(), 1010, "{step}");
        let ends: Vec<&Event> =
            got.iter().filter(|e| matches!(e, Event::Finished { .. })).collect();
        assert_eq!(ends, [&Event::Finished { stream: 3 }, &Event::Finished { stream: 1 }]);
    }
}

#[test]
fn control_frames_are_answered() {
    let (mut client, mut machine) = (Client::new(), Machine::new());
    let mut bytes = Client::words(PING, &[7]);
    bytes.extend(Client::words(PING, &[8]));
    bytes.extend(Client::control(4711, 0, b"unknown"));
    bytes.extend(client.open(1, 0, &[]));
    bytes.extend(Client::words(RST_STREAM, &[1, 5]));
    bytes.extend(Client::words(GOAWAY, &[1, 0]));
    let got = events(&mut machine, &bytes);
    assert_eq!(got[1..], [Event::Reset { stream: 1 }, Event::GoingAway]);
    machine.go_away();
    let said = client.read(&machine.take_output());
    assert_eq!(said, ["control 6 [7]", "control 7 [1, 0]"]);
}

#[test]
fn windows_bind_only_who_minds_them() {
    let (mut client, mut machine) = (Client::new(), Machine::new());
    events(&mut machine, &client.open(1, 0, &[]));
    // Like kubectl: it never says a word about windows.
    machine.data(1, &[0; 100_000]);
    assert!(machine.has_window(1, 1 << 20));
    // Another peer: from its first word on all that was sent counts.
    let mut machine = Machine::new();
    let mut client = Client::new();
    let mut bytes = Client::words(SETTINGS, &[1, SETTING_INITIAL_WINDOW, 1000]);
    bytes.extend(client.open(1, 0, &[]));
    events(&mut machine, &bytes);
    assert!(machine.has_window(1, 1000) && !machine.has_window(1, 1001));
    machine.data(1, &[0; 1000]);
    assert!(!machine.has_window(1, 1));
    events(&mut machine, &Client::words(WINDOW_UPDATE, &[1, 500]));
    assert!(machine.has_window(1, 500) && !machine.has_window(1, 501));
    // The connection's own window binds too.
    events(&mut machine, &Client::words(WINDOW_UPDATE, &[1, 1 << 20]));
    assert!(machine.has_window(1, 64_536) && !machine.has_window(1, 64_537));
    events(&mut machine, &Client::words(WINDOW_UPDATE, &[0, 1 << 20]));
    assert!(machine.has_window(1, 1 << 20));
    // Too much of it ends the stream.
    let got = events(&mut machine, &Client::words(WINDOW_UPDATE, &[1, 0x7fff_ffff]));
    assert_eq!(got, [Event::Reset { stream: 1 }]);
}

#[test]
fn who_sends_is_told_that_it_may_send_more() {
    let (mut client, mut machine) = (Client::new(), Machine::new());
    events(&mut machine, &client.open(1, 0, &[]));
    machine.consumed(1, 30_000);
    assert_eq!(machine.waiting(), 0);
    machine.consumed(1, 10_000);
    let said = client.read(&machine.take_output());
    assert_eq!(said, ["control 9 [0, 40000]", "control 9 [1, 40000]"]);
}

#[test]
fn a_client_may_not_open_streams_without_end() {
    let (mut client, mut machine) = (Client::new(), Machine::new());
    for n in 0..u32::try_from(STREAMS_MAX).unwrap() {
        assert_eq!(events(&mut machine, &client.open(2 * n + 1, 0, &[])).len(), 1);
    }
    assert_eq!(events(&mut machine, &client.open(2001, 0, &[])), []);
    assert_eq!(client.read(&machine.take_output()), ["control 3 [2001, 3]"]);
    // A place that became free is used again; the refused stream's headers were read.
    events(&mut machine, &Client::words(RST_STREAM, &[1, 5]));
    let got = events(&mut machine, &client.open(2003, 0, &[("port", "1")]));
    assert!(matches!(&got[0], Event::Opened { headers, .. } if headers.get("port") == Some("1")));
}

#[test]
fn who_breaks_the_protocol_is_told_why() {
    let mut client = Client::new();
    let check = |bytes: &[u8], want: SpdyError| {
        let mut machine = Machine::new();
        machine.receive(bytes);
        let mut last = machine.next();
        while let Ok(Some(_)) = last {
            last = machine.next();
        }
        assert_eq!(last, Err(want));
    };
    check(&Client::data(1, 0, b"x"), SpdyError::NoStream(1));
    check(&client.open(2, 0, &[]), SpdyError::StreamId(2));
    let mut client = Client::new();
    let twice = [client.open(3, 0, &[]), client.open(3, 0, &[])].concat();
    check(&twice, SpdyError::StreamId(3));
    check(&Client::control(SYN_STREAM, 0, &[0; 9]), SpdyError::ShortFrame(SYN_STREAM));
    check(&Client::control(PING, 0, &[]), SpdyError::ShortFrame(PING));
    check(&Client::words(SETTINGS, &[u32::MAX, 7, 1]), SpdyError::ShortFrame(SETTINGS));
    check(b"\x80\x02\x00\x06\0\0\0\x04\0\0\0\x01", SpdyError::Version(2));
    let large = SpdyError::TooLarge("a control frame", CONTROL_BYTES_MAX, "bytes");
    check(b"\x80\x03\x00\x06\x00\xff\xff\xff", large);
    check(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", SpdyError::NoStream(0x4745_5420));
}

#[test]
fn no_bytes_make_it_panic_or_grow_without_end() {
    let mut rng = Rng::seeded(0x7765_6674);
    for _ in 0..2_000 {
        let (mut client, mut machine) = (Client::new(), Machine::new());
        let mut bytes = Vec::new();
        for stream in [1, 3, 5] {
            bytes.extend(client.open(stream, 0, &[("streamtype", "data"), ("port", "80")]));
            bytes.extend(Client::data(stream, 0, &[1; 50]));
            bytes.extend(Client::words(WINDOW_UPDATE, &[stream, 100]));
            bytes.extend(Client::words(PING, &[stream]));
        }
        for _ in 0..1 + rng.next_u64() % 4 {
            let at = usize::try_from(rng.next_u64()).unwrap() % bytes.len();
            bytes[at] = rng.next_u64().to_le_bytes()[0];
        }
        let step = 1 + usize::try_from(rng.next_u64() % 64).unwrap();
        'session: for part in bytes.chunks(step) {
            machine.receive(part);
            loop {
                match machine.next() {
                    Ok(Some(Event::Opened { stream, .. })) => machine.reply(stream).unwrap(),
                    Ok(Some(Event::Data { stream, piece })) => machine.data(stream, &piece),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'session,
                }
            }
        }
        assert!(machine.open() <= 4 && machine.waiting() < 4096);
    }
}
