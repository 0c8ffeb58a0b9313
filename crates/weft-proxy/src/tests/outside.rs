// SPDX-License-Identifier: Apache-2.0
//! What the outside learns of the inside through a gateway, and what apps can make proxies
//! believe: flags and a request id, and nothing.

use http::HeaderValue;
use weft_model::*;

use super::bed::*;
use super::mtls::{Ca, meshed, server};

/// A gateway before `app`'s sidecar.
async fn gateway_before(ca: &Ca, inner: &Bed, app: &Server) -> Bed {
    let (_, svid) = ca.source("web");
    let mut config = config("gateway~shop~web");
    config.ports.peers = inner.proxy.addresses().mesh.unwrap().port();
    let bed = Bed::start(config, Some(svid)).await;
    let endpoints = vec![meshed(app.address, "user", Transport::MeshH2)];
    let mut all = service("user", Protocol::Http1, BackendPolicy::default(), endpoints);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    bed.apply(1, all).await;
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecars_sentence_stays_inside() {
    let ca = Ca::new();
    // Takes the request, then hangs up without an answer.
    let app = Server::raw(|_, mut stream| async move {
        let mut head = [0u8; 4096];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
    })
    .await;
    let inner = server(&ca, app.address, Protocol::Http1).await;
    let outer = gateway_before(&ca, &inner, &app).await;
    for upgrade in [false, true] {
        let mut request = post("http://a/x", "body");
        if upgrade {
            request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        }
        let got = send(outer.listener(), request).await;
        assert_eq!(got.status, 503, "{got:?}");
        let (flags, id) = (got.header("x-weft-flags"), got.header("x-request-id"));
        assert!(flags.starts_with("UC") && id.len() == 36, "{got:?}");
        assert_eq!(got.body, format!("{flags} {id}\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_cannot_speak_as_proxies() {
    let ca = Ca::new();
    let app = Server::http(|_, _| async {
        let mut answer = text(503, "mine");
        for name in ["x-weft-not-forwarded", "x-weft-flags", "x-weft-source"] {
            answer.headers_mut().insert(name, HeaderValue::from_static("UC"));
        }
        answer
    })
    .await;
    let inner = server(&ca, app.address, Protocol::Http1).await;
    let outer = gateway_before(&ca, &inner, &app).await;
    for (round, upgrade) in [false, true].into_iter().enumerate() {
        let mut request = post("http://a/x", "body");
        if upgrade {
            request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        }
        let got = send(outer.listener(), request).await;
        // Had the gateway believed it, it would have sent the order again.
        assert_eq!(app.hits(), round + 1, "upgrade: {upgrade}");
        assert_eq!((got.status, got.body.as_str()), (503, "mine"));
        assert!(!got.headers.keys().any(|n| n.as_str().starts_with("x-weft-")), "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_http_is_the_clients_mistake() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let app = Server::named("user").await;
    let mut all = http_service("user", &[app.address]);
    all.push(gateway(None));
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("user", "", 1)]))]));
    let bed = Bed::gateway(all).await;
    for chunk in ["zz\r\nabc\r\n0\r\n\r\n", "ffffffffffffffffff\r\nabc\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(bed.listener()).await.unwrap();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{chunk}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunk:?}: {answer}");
        assert!(answer.contains("x-weft-flags: DPE"), "{chunk:?}: {answer}");
    }
}
