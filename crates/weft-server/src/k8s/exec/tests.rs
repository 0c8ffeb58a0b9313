// SPDX-License-Identifier: Apache-2.0
//! Sessions through the real door, with the library's WebSocket client. Programs are small
//! futures here; processes, kubectl and the Python client are in `tests/test_kubectl_streams.py`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use weft_base::clock::Clock;
use weft_registry::Registry;
use weft_store::MemoryStore;

use super::*;
use crate::k8s::{
    LogError, LogPieces, LogRequest, Meter, PodLogs, PodStreams, Pods, connection, router,
};
use crate::serve::serve;

const POD: &str = "/api/v1/namespaces/default/pods/p";

struct NoLogs;

impl PodLogs for NoLogs {
    fn open(&self, _: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        async { Err(LogError::NotThere("none".into())) }.boxed()
    }
}

/// Runs what its first word says.
#[derive(Default)]
struct Programs {
    /// A program was dropped before its end.
    ended: Arc<AtomicBool>,
}

struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl PodStreams for Programs {
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        let ended = self.ended.clone();
        async move {
            let (command, tty) = match visit.what {
                VisitWhat::Exec { command, tty, .. } => (command, tty),
                VisitWhat::Attach { .. } => (Vec::new(), false),
                VisitWhat::Connect { port } => return connect(port).await,
            };
            if command.first().is_some_and(|word| word == "refused") {
                return Err(StreamError::NotRunning("container c does not run".into()));
            }
            Ok(Box::new(move |io| program(command, tty, io, ended).boxed()) as Opened)
        }
        .boxed()
    }
}

async fn program(
    command: Vec<String>,
    tty: bool,
    mut io: VisitIo,
    ended: Arc<AtomicBool>,
) -> Result<i32, StreamError> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let stdout = io.stdout.take().unwrap();
    match words.as_slice() {
        ["cat"] => {
            let mut stdin = io.stdin.unwrap();
            while let Some(piece) = stdin.recv().await {
                stdout.send(piece).await.unwrap();
            }
            Ok(0)
        }
        ["both"] => {
            stdout.send(Bytes::from_static(b"out")).await.unwrap();
            let stderr = io.stderr.unwrap();
            stderr.send(Bytes::from_static(b"err")).await.unwrap();
            Ok(0)
        }
        ["exit", code] => Ok(code.parse().unwrap()),
        ["size"] => {
            assert!(tty && io.stderr.is_none());
            let size = io.resize.unwrap().recv().await.unwrap();
            stdout.send(format!("{}x{}", size.width, size.height).into()).await.unwrap();
            Ok(0)
        }
        ["hang"] => {
            let _guard = OnDrop(ended);
            stdout.send(Bytes::from_static(b"here")).await.unwrap();
            std::future::pending().await
        }
        _ => Err(StreamError::NotStarted(format!("exec: {words:?}: not found"))),
    }
}

async fn connect(port: u16) -> Result<Opened, StreamError> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    stream.map(connection).map_err(|e| StreamError::NotStarted(e.to_string()))
}

impl Meter for Programs {
    fn asked(&self) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

struct Rig {
    address: SocketAddr,
    tasks: TaskGroup,
    ended: Arc<AtomicBool>,
}

type Socket = WebSocketStream<TcpStream>;

async fn rig() -> Rig {
    let (tasks, clock) = (TaskGroup::new(), Clock::system());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await.unwrap();
    let programs = Programs::default();
    let ended = programs.ended.clone();
    let programs = Arc::new(programs);
    let pods = Pods { logs: Arc::new(NoLogs), streams: programs.clone(), meter: programs };
    let door = Door::new(registry, pods, "0.1.0");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn("door", serve(listener, router(door), Vec::new().into(), tasks.clone()));
    let rig = Rig { address, tasks, ended };
    let pod =
        r#"{"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;
    let (head, _) = rig.ask("POST", "/api/v1/namespaces/default/pods", "", pod).await;
    assert!(head.contains("201"), "{head}");
    let running = r#"{"status": {"phase": "Running"}}"#;
    let merge = "content-type: application/merge-patch+json\r\n";
    let (head, _) = rig.ask("PATCH", &format!("{POD}/status"), merge, running).await;
    assert!(head.contains("200"), "{head}");
    rig
}

impl Rig {
    /// A raw question; the answer's head, and the connection after it.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let host = self.address;
        let length = body.len();
        let question = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\n\r\n\
             {body}"
        );
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    async fn websocket(&self, path: &str, protocol: &str) -> Socket {
        let headers = format!(
            "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             sec-websocket-protocol: {protocol}\r\n"
        );
        let (head, stream) = self.ask("GET", path, &headers, "").await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains(&format!("sec-websocket-protocol: {protocol}\r\n")), "{head}");
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    async fn exec(&self, query: &str, protocol: &str) -> Socket {
        self.websocket(&format!("{POD}/exec?{query}"), protocol).await
    }
}

/// All that comes, by channel, until the close.
async fn all(socket: &mut Socket) -> Vec<(u8, String)> {
    let mut out: Vec<(u8, String)> = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        let (channel, text) = match &message {
            Message::Binary(bytes) => (bytes[0], String::from_utf8_lossy(&bytes[1..]).into_owned()),
            Message::Text(text) => {
                let text = text.as_str();
                let content = STANDARD.decode(&text[1..]).unwrap();
                (text.as_bytes()[0] - b'0', String::from_utf8(content).unwrap())
            }
            _ => continue,
        };
        match out.iter_mut().find(|(c, _)| *c == channel) {
            Some((_, all)) => all.push_str(&text),
            None => out.push((channel, text)),
        }
    }
    out.sort();
    out
}

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[tokio::test]
async fn output_and_success_come_on_their_channels() {
    let rig = rig().await;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut socket = rig.exec("command=both&stdout=1&stderr=1", protocol).await;
        let want = [(1, "out".into()), (2, "err".into()), (3, SUCCESS.into())];
        assert_eq!(all(&mut socket).await, want, "{protocol}");
    }
    // The first version says nothing of success.
    let mut socket = rig.exec("command=both", "channel.k8s.io").await;
    assert_eq!(all(&mut socket).await, [(1, "out".into()), (2, "err".into())]);
}

#[tokio::test]
async fn an_exit_code_is_told_as_one() {
    let rig = rig().await;
    let mut socket = rig.exec("command=exit&command=7", "v5.channel.k8s.io").await;
    let (_, status) = all(&mut socket).await.pop().unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "7"}]));
    let mut socket = rig.exec("command=exit&command=7", "base64.channel.k8s.io").await;
    let (channel, text) = all(&mut socket).await.pop().unwrap();
    assert!(channel == 3 && text.ends_with("exit status 7"), "{text}");
    let mut socket = rig.exec("command=nothing", "v4.channel.k8s.io").await;
    let (_, status) = all(&mut socket).await.pop().unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["status"], "Failure");
    assert!(status["message"].as_str().unwrap().contains("not found"), "{status}");
}

#[tokio::test]
async fn input_flows_and_ends_in_version_5() {
    let rig = rig().await;
    let mut socket = rig.exec("command=cat&stdin=true", "v5.channel.k8s.io").await;
    for message in [&b"\0one "[..], b"\0two", &[255, 0]] {
        socket.send(Message::binary(message.to_vec())).await.unwrap();
    }
    assert_eq!(all(&mut socket).await, [(1, "one two".into()), (3, SUCCESS.into())]);
}

#[tokio::test]
async fn a_terminal_has_a_size_and_one_output() {
    let rig = rig().await;
    let mut socket = rig.exec("command=size&tty=true&stdin=true", "v4.channel.k8s.io").await;
    for part in [&b"\x04{\"Width\":80,"[..], b"\x04\"Height\":24}\n"] {
        socket.send(Message::binary(part.to_vec())).await.unwrap();
    }
    assert_eq!(all(&mut socket).await, [(1, "80x24".into()), (3, SUCCESS.into())]);
}

#[tokio::test]
async fn a_program_ends_with_its_client() {
    let rig = rig().await;
    let mut socket = rig.exec("command=hang", "v5.channel.k8s.io").await;
    while !matches!(socket.next().await, Some(Ok(Message::Binary(b))) if b == "\x01here") {}
    assert!(!rig.ended.load(Ordering::SeqCst));
    drop(socket);
    while !rig.ended.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    assert!(rig.tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_program_ends_with_the_server_and_the_client_is_told() {
    let rig = rig().await;
    let mut socket = rig.exec("command=hang", "v5.channel.k8s.io").await;
    while !matches!(socket.next().await, Some(Ok(Message::Binary(b))) if b == "\x01here") {}
    rig.tasks.begin_drain();
    let (channel, status) = all(&mut socket).await.pop().unwrap();
    assert!(channel == 3 && status.contains("the server is stopping"), "{status}");
    assert!(rig.ended.load(Ordering::SeqCst));
    drop(socket);
    assert!(rig.tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_refusal_is_an_ordinary_answer() {
    let rig = rig().await;
    let upgrade = "connection: Upgrade\r\nupgrade: SPDY/3.1\r\n";
    for (path, headers, want) in [
        (format!("{POD}/exec?command=a"), "", "400"),
        (format!("{POD}/exec"), upgrade, "400"),
        (format!("{POD}/exec?command=refused"), upgrade, "400"),
        (format!("{POD}/exec?command=a&container=other"), upgrade, "400"),
        (format!("{POD}/exec?command=a&stdout=false&stderr=0"), upgrade, "400"),
        (format!("{POD}x/exec?command=a"), upgrade, "404"),
        (format!("{POD}/nothing"), upgrade, "404"),
        (format!("{POD}/portforward?ports=x"), upgrade, "400"),
        (
            format!("{POD}/exec?command=a"),
            "connection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: v9\r\n",
            "403",
        ),
        // A page in a browser may not even begin.
        (
            format!("{POD}/exec?command=a"),
            "connection: Upgrade\r\nupgrade: websocket\r\norigin: http://evil.example\r\n",
            "403",
        ),
    ] {
        let (head, _) = rig.ask("GET", &path, headers, "").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {want}")), "{path} {headers}: {head}");
    }
}

#[tokio::test]
async fn sessions_are_counted_and_their_places_come_back() {
    let rig = rig().await;
    let mut open = Vec::new();
    for _ in 0..weft_base::limits::STREAM_SESSIONS_MAX {
        open.push(rig.exec("command=hang", "v5.channel.k8s.io").await);
    }
    let headers = "connection: Upgrade\r\nupgrade: SPDY/3.1\r\n";
    let path = format!("{POD}/exec?command=hang");
    let (head, _) = rig.ask("POST", &path, headers, "").await;
    assert!(head.starts_with("HTTP/1.1 429"), "{head}");
    open.pop();
    let mut answer = head;
    while !answer.starts_with("HTTP/1.1 101") {
        answer = rig.ask("POST", &path, headers, "").await.0;
    }
}

/// What client libraries before SPDY-over-WebSocket speak.
#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let rig = rig().await;
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    rig.tasks.spawn("echo", async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let mut got = [0; 5];
        stream.read_exact(&mut got).await.unwrap();
        got.reverse();
        stream.write_all(&got).await.unwrap();
    });
    // The second port is one that nobody listens on.
    let closed = weft_testkit::ports::free();
    let path = format!("{POD}/portforward?ports={port},{closed}");
    let mut socket = rig.websocket(&path, "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\0hello"[..])).await.unwrap();
    let mut got: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        got[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    let numbers = [port.to_le_bytes(), port.to_le_bytes(), closed.to_le_bytes()];
    assert_eq!(got[0], [&numbers[0][..], b"olleh"].concat());
    assert_eq!(got[1], numbers[1]);
    assert_eq!(got[2], numbers[2]);
    let why = String::from_utf8_lossy(&got[3][2..]);
    assert!(why.contains("refused") && why.contains(&closed.to_string()), "{why}");
}
