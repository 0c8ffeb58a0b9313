// SPDX-License-Identifier: Apache-2.0
//! Slashes in paths, where a listener says what becomes of them: rules and backends see the same,
//! and what is explained is what is done.

use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::LocalSet;
use weft_model::*;

use super::bed::*;
use crate::explain::explain;
use crate::memory::MemoryProxy;
use crate::overload::tests::fill;
use crate::table::Door;

fn all(at: &Server, slashes: Slashes) -> Vec<Named> {
    let (name, mut resource) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) = &mut resource
    {
        gateway.edge = Edge { slashes, ..Edge::default() };
    }
    let direct = Action::Direct { status: 209, body: "admin".into() };
    let rules = vec![rule("/admin", direct), rule("/", Action::Forward(vec![to("web", "", 1)]))];
    let mut all = http_service("web", &[at.address]);
    all.extend([(name, resource), gateway_route("r", &[], rules)]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_backends_see_the_slashes_that_a_listener_makes() {
    use EscapedSlashes::{Keep, Redirect, Refuse, Unescape};
    let server =
        Server::http(|_, request: Request<_>| async move { text(200, request.uri().to_string()) })
            .await;
    for (merge, escaped, target, want) in [
        // As it came, or refused since a rule would take it in another reading.
        (false, Keep, "/a//b%2Fc?q=//", "200 /a//b%2Fc?q=//"),
        (false, Keep, "//admin", "400"),
        (true, Keep, "/a//b%2Fc?q=//", "200 /a/b%2Fc?q=//"),
        (true, Keep, "//admin", "209 admin"),
        (true, Unescape, "/a%2F/b", "200 /a/b"),
        (true, Unescape, "/%2Fadmin", "209 admin"),
        (false, Unescape, "/x%2F..%2Fadmin", "400"),
        (true, Redirect, "/x%2Fy?q=1", "307 /x/y?q=1"),
        (false, Redirect, "/%2Fevil.example", "400"),
        (false, Refuse, "/x%2Fy", "400"),
    ] {
        let resources = all(&server, Slashes { merge, escaped });
        let bed = Bed::gateway(resources.clone()).await;
        let got = send(bed.listener(), get(target, "x")).await;
        let said = match got.status {
            307 => got.headers["location"].to_str().unwrap().to_owned(),
            400 => String::new(),
            _ => got.body,
        };
        let said = format!("{} {said}", got.status);
        assert_eq!(said.trim(), want, "{target} {merge} {escaped:?}");

        let (table, place) = (table_of(resources), at_gateway(bed.listener()));
        let request = Request::builder().uri(target).header("host", "x").body(()).unwrap();
        let explained = explain(&table, &place, &request).answer;
        let status = explained.status.unwrap_or(200);
        assert_eq!(status, got.status, "{target} {merge} {escaped:?}: {explained:?}");
        if status == 307 {
            assert_eq!(explained.text, "/x/y?q=1");
        }
    }
}

#[tokio::test]
async fn nobody_is_told_to_come_again_while_memory_is_short() {
    let server = Server::named("web").await;
    let slashes = Slashes { merge: false, escaped: EscapedSlashes::Redirect };
    let table = table_of(all(&server, slashes));
    let proxy = MemoryProxy::new(config("gateway~shop~web"), table);
    let asking = async {
        for (short, answer) in [(false, "HTTP/1.1 307 "), (true, "HTTP/1.1 503 ")] {
            if short {
                fill(&proxy.worker.shared.pressure);
            }
            let door = Door::Gateway("shop/web/8000".into());
            let mut client = proxy.connect(door, ([127, 0, 0, 1], 8_000).into());
            let ask = b"GET /x%2Fy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            client.write_all(ask).await.unwrap();
            let mut got = String::new();
            client.read_to_string(&mut got).await.unwrap();
            assert!(got.starts_with(answer), "{got}");
        }
    };
    LocalSet::new().run_until(asking).await;
}
