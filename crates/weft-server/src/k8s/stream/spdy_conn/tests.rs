// SPDX-License-Identifier: Apache-2.0
//! The driver between a client's bytes and a session's channels. (kubectl itself is the peer in
//! `tests/test_kubectl_streams.py`.)

use tokio::io::DuplexStream;
use weft_base::task::TaskGroup;

use super::*;

const OPEN_1: &[u8] = b"\x80\x03\x00\x01\x00\x00\x00";

/// A connection whose other end is in the test's hands, with one open stream.
async fn opened(tasks: &TaskGroup) -> (DuplexStream, Streams, Incoming) {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let (driver, mut streams) = open(server);
    tasks.spawn("connection", driver.run());
    client.write_all(&syn_stream(1)).await.unwrap();
    let stream = streams.next().await.unwrap();
    (client, streams, stream)
}

/// SYN_STREAM without headers, compressed without compression: a zlib head that names the
/// dictionary, then one stored block.
fn syn_stream(id: u32) -> Vec<u8> {
    let mut block = vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
    block.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
    let mut out = OPEN_1.to_vec();
    out.push(u8::try_from(10 + block.len()).unwrap());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&block);
    out
}

fn data(id: u32, fin: bool, data: &[u8]) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.push(u8::from(fin));
    out.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
    out.extend_from_slice(data);
    out
}

#[tokio::test]
async fn pieces_flow_both_ways_and_the_end_is_told() {
    let tasks = TaskGroup::new();
    let (mut client, streams, mut stream) = opened(&tasks).await;
    client.write_all(&data(1, true, b"ping")).await.unwrap();
    assert_eq!(stream.pieces.recv().await.unwrap(), "ping");
    assert_eq!(stream.pieces.recv().await, None);
    stream.sink.send(Bytes::from_static(b"pong")).await.unwrap();
    stream.sink.finish().await;
    drop((stream, streams));
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    let tail = [&data(1, false, b"pong")[..], &data(1, true, b"")].concat();
    let at = said.windows(tail.len()).position(|w| w == tail);
    assert!(at.is_some(), "{said:?}");
    // After the last word comes the goodbye.
    assert_eq!(said[said.len() - 16..][..4], [0x80, 3, 0, 7]);
    drop(client);
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_lost_client_and_a_reset_are_not_an_end_of_input() {
    let tasks = TaskGroup::new();
    let (mut client, _streams, stream) = opened(&tasks).await;
    client.write_all(b"\x80\x03\x00\x03\0\0\0\x08\0\0\0\x01\0\0\0\x05").await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), stream.gone.cancelled()).await.unwrap();
    let (client, _streams, stream) = opened(&tasks).await;
    assert!(!stream.gone.is_cancelled());
    drop(client);
    tokio::time::timeout(Duration::from_secs(60), stream.gone.cancelled()).await.unwrap();
}

#[tokio::test]
async fn who_does_not_read_stops_the_sender_and_not_the_memory() {
    let tasks = TaskGroup::new();
    let (mut client, _streams, mut stream) = opened(&tasks).await;
    // Much more than what the pipe and the pieces that may wait can hold.
    let all = 4 * 1024 * 1024;
    let sender = async {
        let part = data(1, false, &[5; 32 * 1024]);
        for _ in 0..all / (32 * 1024) {
            client.write_all(&part).await.unwrap();
        }
        client
    };
    let mut sender = std::pin::pin!(sender);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut sender).await;
    assert!(early.is_err(), "the sender was not stopped");
    let receiver = async {
        let mut got = 0;
        while got < all {
            got += stream.pieces.recv().await.unwrap().len();
        }
    };
    let (_client, ()) = tokio::join!(sender, receiver);
}

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    let tasks = TaskGroup::new();
    let (mut client, server) = tokio::io::duplex(1024);
    let (driver, mut streams) = open(server);
    tasks.spawn("connection", driver.run());
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(streams.next().await.is_none());
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}
