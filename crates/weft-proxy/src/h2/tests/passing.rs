// SPDX-License-Identifier: Apache-2.0
//! What passes from one HTTP to the other: interim answers, WebSockets (RFC 8441), gRPC-Web.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use weft_base::task::TaskGroup;
use weft_model::{Action, BackendPolicy, Protocol as Spoken};

use super::Front;
use crate::http::websocket::accept;
use crate::tests::bed::{Bed, Server, config, endpoint, gateway, gateway_route, rule, service, to};

/// A gateway in front of a backend whose port says what it speaks.
pub async fn declared(origin: Server, protocol: Spoken) -> Front {
    let bed = Bed::start(config("gateway~shop~web"), None).await;
    let at = vec![endpoint("users-0", origin.address)];
    let mut resources = service("users", protocol, BackendPolicy::default(), at);
    resources.push(gateway(None));
    let all = rule("/", Action::Forward(vec![to("users", "", 1)]));
    resources.push(gateway_route("r", &[], vec![all]));
    bed.apply(1, resources).await;
    Front { bed, origin, peer: None }
}

/// A client's end of a connection, and its task.
async fn client(front: &Front) -> (h2::client::SendRequest<Bytes>, TaskGroup) {
    let stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let tasks = TaskGroup::new();
    tasks.spawn("client", async move { drop(connection.await) });
    (sender.ready().await.unwrap(), tasks)
}

/// Reads a head of HTTP/1.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

/// An HTTP/2 server whose answers `serve` makes.
pub async fn http2<F, Fut>(serve: F) -> Server
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let serve = std::sync::Arc::new(serve);
    Server::raw(move |_, stream| {
        let serve = serve.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            builder.enable_connect_protocol().initial_connection_window_size(1 << 24);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            let tasks = TaskGroup::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tasks.spawn("answer", serve(request, respond));
            }
        }
    })
    .await
}

const EARLY: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n\
    HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nx-weft-flags: UF\r\n\r\n\
    HTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\n\r\n\
    HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn early_origin() -> Server {
    Server::raw(|_, mut stream| async move {
        loop {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                seen.push(byte);
            }
            stream.write_all(EARLY).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn early_hints_reach_clients_of_both_kinds() {
    let front = Front::before(early_origin().await, |_| {}).await;
    let (mut sender, _tasks) = client(&front).await;
    let request = Request::get("http://a.example/").body(()).unwrap();
    let (mut answer, _) = sender.send_request(request, true).unwrap();
    let mut links = Vec::new();
    let response = std::future::poll_fn(|cx| {
        while let std::task::Poll::Ready(Some(Ok(head))) = answer.poll_informational(cx) {
            assert_eq!((head.status().as_u16(), head.headers().len()), (103, 1));
            links.push(head.headers()["link"].to_str().unwrap().to_owned());
        }
        std::pin::Pin::new(&mut answer).poll(cx)
    })
    .await
    .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(links, ["</a.css>", "</b.css>"]);

    let mut stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        let first = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
        assert_eq!(head(&mut stream).await, first);
        assert!(head(&mut stream).await.contains("b.css"));
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(stream.read_u16().await.unwrap().to_be_bytes(), *b"ok");
    }
    // HTTP/1.0 has no interim answers.
    stream.write_all(b"GET / HTTP/1.0\r\nhost: a.example\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.contains(" 200 OK\r\n"));
}

#[tokio::test]
async fn early_hints_of_http2_servers_reach_clients_of_http1() {
    let origin = http2(async |_, mut respond| {
        let hint = Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
        respond.send_informational(hint).unwrap();
        respond.send_response(Response::new(()), true).unwrap();
    })
    .await;
    let front = declared(origin, Spoken::Http2).await;
    let mut stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.contains("103 Early Hints\r\nlink: </a.css>"));
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_answer_that_http2_does_not_have_is_502_and_blanks_are_none() {
    let origin = http2(async |request: Request<h2::RecvStream>, mut respond| {
        if request.uri().path() == "/switched" {
            let switched = Response::builder().status(101).body(()).unwrap();
            respond.send_informational(switched).unwrap();
            return std::future::pending().await;
        }
        let answer = Response::builder().header("x-a", " a b\t").body(()).unwrap();
        respond.send_response(answer, true).unwrap();
    })
    .await;
    let front = declared(origin, Spoken::Http2).await;
    for (path, status) in [("/right", "200 OK\r\nx-a: a b"), ("/switched", "502 Bad Gateway")] {
        let mut stream = TcpStream::connect(front.bed.listener()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = head(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
    }
}

fn websocket() -> Request<()> {
    let mut request = Request::builder()
        .method("CONNECT")
        .uri("http://a.example/chat")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_a_server_of_http1() {
    let origin = Server::raw(|_, mut stream| async move {
        let asked = head(&mut stream).await;
        let key = asked.lines().find_map(|l| l.strip_prefix("sec-websocket-key: "));
        let asked_key: HeaderValue = key.unwrap().parse().unwrap();
        let asked = asked.to_ascii_lowercase();
        assert!(asked.starts_with("get /chat http/1.1\r\n"), "{asked}");
        for line in ["upgrade: websocket\r\n", "connection: upgrade\r\n", "host: a.example\r\n"] {
            assert!(asked.contains(line), "{line} in {asked}");
        }
        let accept = accept(&asked_key).unwrap();
        let switched = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: {}\r\nsec-websocket-protocol: chat\r\n\r\n",
            accept.to_str().unwrap()
        );
        stream.write_all(switched.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while lines.read_line(&mut line).await.unwrap() > 0 {
            lines.get_mut().write_all(line.to_ascii_uppercase().as_bytes()).await.unwrap();
            line.clear();
        }
        lines.get_mut().write_all(b"bye").await.unwrap();
    })
    .await;
    let front = Front::before(origin, |_| {}).await;
    let (mut sender, _tasks) = client(&front).await;
    let offered = async {
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), offered).await.unwrap();
    let (answer, mut stream) = sender.send_request(websocket(), false).unwrap();
    stream.send_data(Bytes::from_static(b"hello\n"), false).unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    for gone in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    let mut body = response.into_body();
    let mut said = Vec::new();
    while said != b"HELLO\n" {
        said.extend_from_slice(&body.data().await.unwrap().unwrap());
    }
    // Each way ends on its own.
    stream.send_data(Bytes::new(), true).unwrap();
    let mut rest = Vec::new();
    while let Some(data) = body.data().await {
        rest.extend_from_slice(&data.unwrap());
    }
    assert_eq!(rest, b"bye");
}

#[tokio::test]
async fn a_websocket_that_is_not_granted_never_looks_open() {
    let forged = "101 Switching Protocols\r\nupgrade: websocket\r\nsec-websocket-accept: x";
    for (says, status) in [("403 Forbidden", 403), ("200 OK", 502), (forged, 502)] {
        let origin = Server::raw(move |_, mut stream| async move {
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 {says}\r\ncontent-length: 2\r\n\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let front = Front::before(origin, |_| {}).await;
        let (mut sender, _tasks) = client(&front).await;
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let (answer, _stream) = sender.send_request(websocket(), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn a_websocket_of_http1_reaches_a_server_of_http2_that_takes_it() {
    let origin = http2(async |request, mut respond| {
        assert_eq!(request.method(), "CONNECT");
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(request.uri().path(), "/chat");
        for gone in ["upgrade", "connection", "sec-websocket-key", "host"] {
            assert!(!request.headers().contains_key(gone), "{gone}");
        }
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            stream.send_data(data.to_ascii_uppercase().into(), false).unwrap();
        }
        stream.send_data(Bytes::from_static(b"bye"), true).unwrap();
    })
    .await;
    let front = declared(origin, Spoken::Http2).await;
    let mut stream = TcpStream::connect(front.bed.listener()).await.unwrap();
    let asks = b"GET /chat HTTP/1.1\r\nhost: a.example\r\nupgrade: websocket\r\n\
        connection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-version: 13\r\n\r\n";
    stream.write_all(asks).await.unwrap();
    let switched = head(&mut stream).await;
    assert!(switched.starts_with("HTTP/1.1 101 "), "{switched}");
    assert!(switched.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    stream.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HELLO");
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
}

#[tokio::test]
async fn websockets_outlive_a_server_that_leaves() {
    // Each connection takes one stream, says GOAWAY and goes on with what it has.
    let origin = Server::raw(|_, stream| async move {
        let mut builder = h2::server::Builder::new();
        builder.enable_connect_protocol();
        let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let tasks = TaskGroup::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            connection.graceful_shutdown();
            tasks.spawn("echo", async move {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    stream.send_data(data, false).unwrap();
                }
            });
        }
    })
    .await;
    let front = declared(origin, Spoken::Http2).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(front.bed.listener()).await.unwrap();
        let asks = b"GET /chat HTTP/1.1\r\nhost: a.example\r\nupgrade: websocket\r\n\
            connection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            sec-websocket-version: 13\r\n\r\n";
        stream.write_all(asks).await.unwrap();
        let switched = head(&mut stream).await;
        assert!(switched.starts_with("HTTP/1.1 101 "), "{} are open: {switched}", open.len());
        open.push(stream);
        for stream in &mut open {
            stream.write_all(b"hello").await.unwrap();
            let mut said = [0; 5];
            stream.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"hello");
        }
    }
}

/// A gRPC server that says back what it got, and how.
async fn grpc_echo(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    assert_eq!(request.headers()["content-type"], "application/grpc+proto");
    assert_eq!(request.headers()["te"], "trailers");
    let (parts, mut body) = request.into_parts();
    if parts.uri.path() == "/s/Missing" {
        let refused = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .body(());
        respond.send_response(refused.unwrap(), true).unwrap();
        return;
    }
    let head = Response::builder().header("content-type", "application/grpc+proto").body(());
    let mut stream = respond.send_response(head.unwrap(), false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        stream.send_data(data, false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";
const TRAILERS: &[u8] = b"\x80\0\0\0\x10grpc-status: 5\r\n";

#[tokio::test]
async fn grpc_web_is_grpc_for_its_backend() {
    let front = declared(http2(grpc_echo).await, Spoken::Grpc).await;
    let ask = async |kind: &str, path: &str, body: Vec<u8>| {
        let request = Request::post(format!("http://a.example{path}"))
            .header("content-type", kind)
            .body(http_body_util::Full::new(Bytes::from(body)))
            .unwrap();
        crate::tests::bed::send(front.bed.listener(), request).await
    };
    let got = ask("application/grpc-web+proto", "/s/Echo", MESSAGE.to_vec()).await;
    assert_eq!(got.header("content-type"), "application/grpc-web+proto");
    assert_eq!(got.body.as_bytes()[..10], *MESSAGE);
    // The first byte of the trailers is no text.
    assert!(got.body.ends_with("grpc-status: 5\r\n"), "{:?}", got.body);

    let text = STANDARD.encode(MESSAGE).into_bytes();
    let got = ask("application/grpc-web-text+proto", "/s/Echo", text).await;
    assert_eq!(got.header("content-type"), "application/grpc-web-text+proto");
    let mut said = crate::http::grpc_web::Decoder::default();
    let said = said.unpack(got.body.as_bytes()).unwrap();
    assert_eq!(said[..], [MESSAGE, TRAILERS].concat());

    let got = ask("application/grpc-web+proto", "/s/Missing", MESSAGE.to_vec()).await;
    assert_eq!((got.status, got.header("grpc-status")), (200, "12"));
    let got = ask("application/grpc-web-text+proto", "/s/Echo", b"!!!!".to_vec()).await;
    assert_ne!(got.header("grpc-status"), "0");
    front.origin.kill().await;
    let got = ask("application/grpc-web+proto", "/s/Echo", MESSAGE.to_vec()).await;
    assert_eq!((got.status, got.header("grpc-status")), (200, "14"));
    assert_eq!(got.header("content-type"), "application/grpc-web+proto");
}
