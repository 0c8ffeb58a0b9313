// SPDX-License-Identifier: Apache-2.0
//! Channels and tunnels against a WebSocket client of the library.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use weft_base::task::TaskGroup;

use super::*;
use crate::k8s::stream::pipes::{OUT_MAX, PIECES_MAX, Sink};

async fn pair() -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    (WebSocketStream::from_raw_socket(near, Role::Client, None).await, server(far).await)
}

struct Rig {
    client: WebSocketStream<DuplexStream>,
    stdin: mpsc::Receiver<Bytes>,
    stdout: Sink,
    tasks: TaskGroup,
}

async fn rig(base64: bool, closes: bool) -> Rig {
    let (client, socket) = pair().await;
    let (out, orders) = mpsc::channel(OUT_MAX);
    let (to, stdin) = mpsc::channel(PIECES_MAX);
    let tasks = TaskGroup::new();
    let dialect = Dialect { base64, closes };
    tasks.spawn("channels", channels(socket, dialect, vec![Some(to)], orders));
    Rig { client, stdin, stdout: Sink { tag: 1, out }, tasks }
}

#[tokio::test]
async fn a_byte_says_which_channel() {
    let mut rig = rig(false, true).await;
    for message in [&b"\0hello"[..], b"\x07nobody listens", b"", b"\0"] {
        rig.client.send(Message::binary(message.to_vec())).await.unwrap();
    }
    // Some clients send text.
    rig.client.send(Message::text("\0 world")).await.unwrap();
    rig.client.send(Message::binary(vec![CHANNEL_CLOSE, 0])).await.unwrap();
    assert_eq!(rig.stdin.recv().await.unwrap(), "hello");
    assert_eq!(rig.stdin.recv().await.unwrap(), " world");
    assert_eq!(rig.stdin.recv().await, None);
    rig.stdout.greet().await;
    rig.stdout.send(Bytes::from_static(b"out")).await.unwrap();
    rig.stdout.finish().await;
    drop(rig.stdout);
    let mut said = Vec::new();
    while let Some(Ok(message)) = rig.client.next().await {
        said.push(message);
    }
    assert_eq!(said[..2], [Message::binary(&b"\x01"[..]), Message::binary(&b"\x01out"[..])]);
    assert_eq!(said[2..], [farewell()]);
    drop(rig.client);
    assert!(rig.tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_digit_and_base64_for_who_cannot_send_bytes() {
    let mut rig = rig(true, false).await;
    rig.client.send(Message::text("0aGVsbG8=")).await.unwrap();
    rig.client.send(Message::text("0 not base64")).await.unwrap();
    rig.client.send(Message::text("0IQ==")).await.unwrap();
    assert_eq!(rig.stdin.recv().await.unwrap(), "hello");
    assert_eq!(rig.stdin.recv().await.unwrap(), "!");
    rig.stdout.send(Bytes::from_static(b"hi")).await.unwrap();
    assert_eq!(rig.client.next().await.unwrap().unwrap(), Message::text("1aGk="));
}

#[tokio::test]
async fn without_version_5_the_channel_of_ends_is_one_as_others() {
    let mut rig = rig(false, false).await;
    rig.client.send(Message::binary(vec![CHANNEL_CLOSE, 0])).await.unwrap();
    rig.client.send(Message::binary(&b"\0still open"[..])).await.unwrap();
    assert_eq!(rig.stdin.recv().await.unwrap(), "still open");
    drop(rig.client);
    // The client is gone: so is its input.
    assert_eq!(rig.stdin.recv().await, None);
}

#[tokio::test]
async fn a_client_that_waits_long_hears_signs_of_life() {
    let mut rig = rig(false, true).await;
    for _ in 0..=PIECES_MAX {
        rig.client.send(Message::binary(&b"\0piece"[..])).await.unwrap();
    }
    let heard = rig.client.next().await.unwrap().unwrap();
    assert_eq!(heard, Message::Pong(Bytes::new()));
    for _ in 0..=PIECES_MAX {
        assert_eq!(rig.stdin.recv().await.unwrap(), "piece");
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_and_ends() {
    let (mut client, socket) = pair().await;
    let mut tunnel = Tunnel::new(socket);
    client.send(Message::binary(&b"abc"[..])).await.unwrap();
    client.send(Message::Ping(Bytes::new())).await.unwrap();
    client.send(Message::binary(&b"def"[..])).await.unwrap();
    let mut got = [0; 6];
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"abcdef");
    let large = vec![9; PIECE_BYTES + 1];
    tunnel.write_all(&large).await.unwrap();
    tunnel.flush().await.unwrap();
    let mut got = 0;
    while got < large.len() {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(bytes) => got += bytes.len(),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), farewell());
    drop(client);
    assert_eq!(tunnel.read(&mut [0; 1]).await.unwrap(), 0);
}
