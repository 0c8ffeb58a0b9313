// SPDX-License-Identifier: Apache-2.0
//! Pairs of streams: over memory, and over real sockets where the kernel moves the bytes.

use std::cell::Cell;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::overload::dose::tests::Group;

#[tokio::test]
async fn silence_ends_what_bytes_keep_open() {
    let (mut client, mut near) = tokio::io::duplex(64);
    let (mut far, mut server) = tokio::io::duplex(64);
    // Longer than a busy machine makes of a quarter of it.
    let idle = Duration::from_secs(3);
    let began = Instant::now();
    let talking = async {
        let mut seen = [0u8; 1];
        for _ in 0..5 {
            tokio::time::sleep(idle / 4).await;
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut seen).await.unwrap();
        }
        // Neither says anything from now on, and neither leaves.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = join(&mut near, &mut far, idle, &()) => ended,
        () = talking => unreachable!(),
    };
    assert!(matches!(ended, Err(Ended::Silence(limit)) if limit == idle), "{ended:?}");
    let took = began.elapsed();
    assert!(took >= idle * 9 / 4, "{took:?}");
}

/// Its peer is gone: the system says so, by its own time-out.
struct Gone;

impl Socket for Gone {}

impl AsyncRead for Gone {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let code = rustix::io::Errno::TIMEDOUT.raw_os_error();
        Poll::Ready(Err(io::Error::from_raw_os_error(code)))
    }
}

impl AsyncWrite for Gone {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(b.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_peer_that_the_system_gave_up_is_no_silence() {
    let (mut near, _client) = tokio::io::duplex(64);
    let ended = join(&mut near, &mut Gone, Duration::from_secs(60), &()).await;
    // Its kind is the one of a time-out, and the bytes are cut short all the same.
    assert!(
        matches!(&ended, Err(Ended::Broke(error)) if error.kind() == io::ErrorKind::TimedOut),
        "{ended:?}"
    );
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (mut client, mut near) = tokio::io::duplex(64);
    let (mut far, mut server) = tokio::io::duplex(64);
    let talking = async {
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        server.write_all(b"told").await.unwrap();
        drop(server);
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        (asked, told)
    };
    let joining = async {
        let joined = join(&mut near, &mut far, Duration::from_secs(60), &()).await;
        drop(near);
        joined
    };
    let (joined, said) = tokio::join!(joining, talking);
    joined.unwrap();
    assert_eq!(said, ("ask".into(), "told".into()));
}

/// Two connected sockets.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Bytes that tell where they are.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len)
        .map(|i| u8::try_from((i * 31 + (i >> 8) * 7 + (i >> 16)) & 0xff).unwrap())
        .collect()
}

async fn send(to: &mut (impl AsyncWrite + Unpin), total: usize) {
    let mut at = 0;
    while at < total {
        let n = (total - at).min(100_000);
        to.write_all(&pattern(at, n)).await.unwrap();
        at += n;
    }
    to.shutdown().await.unwrap();
}

async fn receive(from: &mut (impl AsyncRead + Unpin)) -> usize {
    let (mut at, mut buffer) = (0, vec![0; 70_000]);
    loop {
        let n = from.read(&mut buffer).await.unwrap();
        if n == 0 {
            return at;
        }
        assert!(buffer[..n] == pattern(at, n), "bytes {at}..{}", at + n);
        at += n;
    }
}

#[derive(Default)]
struct Sums(Cell<usize>, Cell<usize>);

impl Tally for Sums {
    fn first(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes);
    }

    fn second(&self, bytes: usize) {
        self.1.set(self.1.get() + bytes);
    }
}

const MUCH: usize = 24 * 1024 * 1024 + 4321;

#[tokio::test]
async fn much_goes_both_ways_to_the_byte_and_is_counted() {
    let ((client, mut near), (mut far, server)) = (pair().await, pair().await);
    let (mut client_in, mut client_out) = client.into_split();
    let (mut server_in, mut server_out) = server.into_split();
    let sums = Sums::default();
    let idle = Duration::from_secs(60);
    let joining = join(&mut near, &mut far, idle, &sums);
    let (joined, (), (), up, down) = tokio::join!(
        joining,
        send(&mut client_out, MUCH),
        send(&mut server_out, MUCH / 2),
        receive(&mut server_in),
        receive(&mut client_in),
    );
    joined.unwrap();
    assert_eq!((up, down), (MUCH, MUCH / 2));
    assert_eq!((sums.0.get(), sums.1.get()), (MUCH, MUCH / 2));
    // Pipes were used, and all of them are free again.
    assert!(Pipe::open() > 0);
    assert_eq!(Pipe::open(), Pipe::spare());
}

#[tokio::test]
async fn after_much_come_few_bytes_and_the_other_direction_goes_on() {
    let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
    let idle = Duration::from_secs(60);
    let joining = join(&mut near, &mut far, idle, &());
    let talking = async {
        let much = pattern(0, MUCH);
        let reading = async {
            let mut seen = vec![0; MUCH];
            server.read_exact(&mut seen).await.unwrap();
            assert!(seen == pattern(0, MUCH));
        };
        tokio::join!(client.write_all(&much), reading).0.unwrap();
        // Few at a time, so many times that bytes are copied again.
        for i in 0..20u8 {
            client.write_all(&[i; 3]).await.unwrap();
            let mut few = [0; 3];
            server.read_exact(&mut few).await.unwrap();
            assert_eq!(few, [i; 3]);
        }
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        // One way has ended, the other carries on.
        assert_eq!(tokio::join!(send(&mut server, MUCH), receive(&mut client)).1, MUCH);
    };
    let (joined, ()) = tokio::join!(joining, talking);
    joined.unwrap();
}

#[tokio::test]
async fn a_reset_in_a_bulk_transfer_is_an_error() {
    let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
    let idle = Duration::from_secs(60);
    let joining = join(&mut near, &mut far, idle, &());
    let breaking = async {
        let much = pattern(0, MUCH);
        let reading = async {
            let mut seen = vec![0; MUCH / 2];
            server.read_exact(&mut seen).await.unwrap();
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
        };
        let _ = tokio::join!(client.write_all(&much), reading);
        std::future::pending::<()>().await;
    };
    // The client may still be writing when the relay gives up.
    let ended = tokio::select! {
        ended = joining => ended,
        () = breaking => unreachable!(),
    };
    let Err(Ended::Broke(error)) = ended else { panic!("{ended:?}") };
    let kind = error.kind();
    assert!(matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{kind:?}");
    // What lay in its pipe is nobody else's.
    assert_eq!(Pipe::open(), Pipe::spare());
}

#[tokio::test]
async fn who_reads_slowly_holds_up_the_sender_and_not_our_memory() {
    let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
    let sums = Sums::default();
    let idle = Duration::from_secs(60);
    let joining = join(&mut near, &mut far, idle, &sums);
    let much = pattern(0, 4 * MUCH);
    let stuck = async {
        // As long as something moves, it is not stuck yet.
        let mut before = usize::MAX;
        while sums.0.get() != before {
            before = sums.0.get();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let writing = async {
        client.write_all(&much).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let all = async {
        stuck.await;
        assert!(sums.0.get() < much.len(), "nobody reads");
        let mut seen = 0;
        let mut buffer = vec![0; 65_536];
        loop {
            let n = server.read(&mut buffer).await.unwrap();
            assert!(buffer[..n] == much[seen..seen + n]);
            seen += n;
            if n == 0 {
                break seen;
            }
        }
    };
    tokio::select! {
        ended = joining => panic!("{ended:?}"),
        (_, seen) = async { tokio::join!(writing, all) } => assert_eq!(seen, much.len()),
    }
}

#[tokio::test]
async fn nothing_is_read_while_too_much_memory_is_used_and_only_what_stays_is_counted() {
    let group = Group::new(1);
    let ((mut client, mut near), (mut far, mut server)) =
        (tokio::io::duplex(1 << 20), tokio::io::duplex(64));
    let mut cx = Context::from_waker(Waker::noop());
    let mut joined = std::pin::pin!(join(&mut near, &mut far, Duration::from_secs(60), &()));
    let mut seen = [0; 64];
    group.hold();
    client.write_all(&[b'x'; 64]).await.unwrap();
    assert!(joined.as_mut().poll(&mut cx).is_pending());
    let mut buffer = ReadBuf::new(&mut seen);
    assert!(Pin::new(&mut server).poll_read(&mut cx, &mut buffer).is_pending(), "it was read");
    group.free();
    assert!(joined.as_mut().poll(&mut cx).is_pending());
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(group.counted(), 0, "it went on at once");
    client.write_all(&[b'x'; 1_064]).await.unwrap();
    assert!(joined.as_mut().poll(&mut cx).is_pending());
    assert_eq!(group.counted(), 1_000);
}

#[tokio::test]
async fn the_kernel_moves_nothing_either_while_too_much_memory_is_used() {
    let group = Group::new(1);
    let pair = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    };
    let ((mut client, near), (far, mut server)) = (pair().await, pair().await);
    let (mut pipe, mut small) = (None, 0);
    let mut step = |cx: &mut Context<'_>| {
        poll_splice(cx, &mut pipe, &mut small, &near, &far).map_ok(Option::unwrap)
    };
    client.write_all(b"some bytes").await.unwrap();
    near.readable().await.unwrap();
    group.hold();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(step(&mut cx).is_pending());
    group.free();
    assert!(matches!(step(&mut cx), Poll::Ready(Ok(Moved::Bytes(10)))));
    // What is on its way goes on.
    group.hold();
    poll_fn(|cx| far.poll_write_ready(cx)).await.unwrap();
    assert!(matches!(step(&mut cx), Poll::Ready(Ok(Moved::On))));
    let mut seen = [0; 10];
    server.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"some bytes");
}
