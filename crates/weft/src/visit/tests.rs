// SPDX-License-Identifier: Apache-2.0
//! Both ends of a visit against each other over channels; programs are small futures. Over real
//! sockets and with real processes: `server/hosts/tests.rs` and `tests/test_agents.py`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use futures_util::stream;
use tokio_stream::wrappers::ReceiverStream;
use weft_base::task::TaskGroup;

use super::*;

/// A client's ends.
struct Client {
    stdin: mpsc::Sender<Bytes>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
    resize: mpsc::Sender<TerminalSize>,
    outcome: BoxFuture<'static, Result<i32, StreamError>>,
}

struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn opened<F>(program: impl FnOnce(VisitIo) -> F + Send + 'static) -> Opened
where
    F: Future<Output = Result<i32, StreamError>> + Send + 'static,
{
    Box::new(|io| program(io).boxed())
}

/// The agent's end runs beside; the client's is what is given back.
fn visit(program: Opened, tasks: &TaskGroup) -> Client {
    let (up, ups) = mpsc::channel(WORDS_MAX);
    let (down, downs) = mpsc::channel(WORDS_MAX);
    tasks.spawn("agent", serve(1, program, ReceiverStream::new(downs).map(Ok).boxed(), up));
    let ready = Ready { host: "m1".into(), up: ReceiverStream::new(ups).map(Ok).boxed(), down };
    let (stdin, input) = mpsc::channel(1);
    let (out, stdout) = mpsc::channel(1);
    let (err, stderr) = mpsc::channel(1);
    let (resize, sizes) = mpsc::channel(1);
    let io =
        VisitIo { stdin: Some(input), stdout: Some(out), stderr: Some(err), resize: Some(sizes) };
    let outcome = ready.opened(std::future::pending())(io);
    Client { stdin, stdout, stderr, resize, outcome }
}

async fn all(mut from: mpsc::Receiver<Bytes>) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(piece) = from.recv().await {
        out.extend_from_slice(&piece);
    }
    out
}

#[tokio::test]
async fn streams_sizes_and_the_exit_code_arrive() {
    let tasks = TaskGroup::new();
    let program = opened(|mut io| async move {
        let size = io.resize.as_mut().unwrap().recv().await.unwrap();
        let (stdout, stderr) = (io.stdout.unwrap(), io.stderr.unwrap());
        stderr.send(format!("{}x{}", size.width, size.height).into()).await.unwrap();
        let mut stdin = io.stdin.unwrap();
        while let Some(piece) = stdin.recv().await {
            stdout.send(piece).await.unwrap();
        }
        stdout.send("the end".into()).await.unwrap();
        Ok(7)
    });
    let client = visit(program, &tasks);
    let types = async {
        client.resize.send(TerminalSize { width: 80, height: 24 }).await.unwrap();
        for n in 0..100u8 {
            client.stdin.send(vec![n; 1000].into()).await.unwrap();
        }
        drop(client.stdin);
    };
    let (outcome, out, err, ()) =
        tokio::join!(client.outcome, all(client.stdout), all(client.stderr), types);
    assert_eq!(outcome, Ok(7));
    assert_eq!(out.len(), 100_007);
    assert!(out.ends_with(&[&[99; 1000][..], b"the end"].concat()));
    assert_eq!(err, b"80x24");
    assert!(tasks.shutdown(Duration::from_secs(60)).await, "the agent's end is over");
}

#[tokio::test]
async fn half_a_connection_ends_and_the_other_goes_on() {
    let tasks = TaskGroup::new();
    let program = opened(|io| async move {
        drop(io.stdout);
        let mut bytes = 0;
        let mut stdin = io.stdin.unwrap();
        while let Some(piece) = stdin.recv().await {
            bytes += piece.len();
        }
        Ok(i32::try_from(bytes).unwrap())
    });
    let mut client = visit(program, &tasks);
    let says = async {
        assert_eq!(client.stdout.recv().await, None, "told while the visit goes on");
        for _ in 0..40 {
            client.stdin.send(vec![0; 10].into()).await.unwrap();
        }
        drop(client.stdin);
    };
    let (outcome, ()) = tokio::join!(client.outcome, says);
    assert_eq!(outcome, Ok(400));
}

#[tokio::test]
async fn a_broken_connection_is_told_as_such_and_not_as_the_end_of_output() {
    let tasks = TaskGroup::new();
    let program = opened(|io| async move {
        io.stdout.as_ref().unwrap().send("half".into()).await.unwrap();
        Err(StreamError::Lost("reset by peer".into()))
    });
    let mut client = visit(program, &tasks);
    // As `portforward` tells the two apart: the outcome is there when the output ends.
    let (mut broke, mut read) = (None, Vec::new());
    while broke.is_none() {
        tokio::select! {
            biased;
            outcome = &mut client.outcome => broke = Some(outcome),
            piece = client.stdout.recv() => read.extend(piece.expect("the outcome comes first")),
        }
    }
    assert_eq!(broke, Some(Err(StreamError::Lost("reset by peer (on host m1)".into()))));
    read.extend(all(client.stdout).await);
    assert_eq!(read, b"half");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_program_and_keeps_nothing() {
    let tasks = TaskGroup::new();
    let (sent, mut count) = tokio::sync::watch::channel(0usize);
    let program = opened(|io| async move {
        let stdout = io.stdout.unwrap();
        while stdout.send(vec![0; 1000].into()).await.is_ok() {
            sent.send_modify(|n| *n += 1);
        }
        Ok(0)
    });
    let mut client = visit(program, &tasks);
    // It runs until every queue on the way is full.
    let quiet = async {
        while tokio::time::timeout(Duration::from_millis(200), count.changed()).await.is_ok() {}
    };
    tokio::select! {
        _ = &mut client.outcome => panic!("it goes on"),
        () = quiet => {}
    }
    let held = *count.borrow();
    assert!(held <= 3 * PIECES_MAX + 2 * WORDS_MAX, "{held}");
    drop((client.outcome, client.stdout));
    tokio::time::timeout(Duration::from_secs(60), async { while count.changed().await.is_ok() {} })
        .await
        .expect("the program ended with its client");
}

#[tokio::test]
async fn a_visit_ends_with_either_side_though_nobody_reads() {
    let tasks = TaskGroup::new();
    let ended = Arc::new(AtomicBool::new(false));
    let guard = OnDrop(ended.clone());
    // It neither reads nor ends.
    let program = opened(|io| async move {
        let _held = (guard, io);
        std::future::pending().await
    });
    let mut client = visit(program, &tasks);
    let types = async { while client.stdin.send("x".into()).await.is_ok() {} };
    tokio::select! {
        _ = &mut client.outcome => panic!("it goes on"),
        () = types => panic!("it takes input until all is full"),
        () = tokio::time::sleep(Duration::from_millis(100)) => {}
    }
    drop(client.outcome);
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
    assert!(ended.load(Ordering::SeqCst), "the program ended with its client");

    // The agent's end goes without a word.
    let (up, ups) = mpsc::channel(1);
    let (down, downs) = mpsc::channel(WORDS_MAX);
    let ready = Ready { host: "m1".into(), up: ReceiverStream::new(ups).map(Ok).boxed(), down };
    let outcome = ready.opened(std::future::pending())(VisitIo::default());
    drop((up, downs));
    let Err(StreamError::Lost(why)) = outcome.await else { panic!("it is lost") };
    assert!(why.contains("host m1"), "{why}");
    // Its connection breaks while the client reads nothing.
    let (down, downs) = mpsc::channel(WORDS_MAX);
    let up = stream::repeat(()).map(|()| Ok(VisitUp::Stdout("x".into()))).boxed();
    let ready = Ready { host: "m1".into(), up, down };
    let (stdout, _unread) = mpsc::channel(1);
    let outcome = ready.opened(std::future::pending())(VisitIo {
        stdout: Some(stdout),
        ..VisitIo::default()
    });
    drop(downs);
    assert!(matches!(outcome.await, Err(StreamError::Lost(_))));
    // Its host is removed.
    let (down, _downs) = mpsc::channel(WORDS_MAX);
    let ready = Ready { host: "m1".into(), up: stream::pending().boxed(), down };
    let outcome = ready.opened(std::future::ready("removed".into()))(VisitIo::default());
    assert_eq!(outcome.await, Err(StreamError::Lost("removed".into())));
}
