// SPDX-License-Identifier: Apache-2.0
//! What a worker remembers of its newest table is forgotten with that table: requests on
//! connections that stay open follow the next one, whatever they led to before.

use http::Request;
use http_body_util::Full;
use weft_model::*;

use super::bed::*;

const HOPS: &str = "192.0.2.1, 192.0.2.2";

/// A gateway that believes so many proxies in front of it.
fn trusting(trusted_hops: u8) -> Named {
    let (name, mut resource) = gateway(None);
    if let Resource::Listener(Listener { kind: ListenerKind::Gateway(gateway), .. }) = &mut resource
    {
        gateway.edge = Edge { trusted_hops, ..Edge::default() };
    }
    (name, resource)
}

fn all(at: &Server) -> Vec<Named> {
    let mut all = http_service("web", &[at.address]);
    all.push(gateway_route("r", &[], vec![rule("/", Action::Forward(vec![to("web", "", 1)]))]));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_lead_to_the_backends_of_the_newest_table() {
    let (one, two) = (Server::named("one").await, Server::named("two").await);
    let bed = Bed::gateway([all(&one), vec![trusting(0)]].concat()).await;
    let mut client = client(bed.listener()).await;
    let mut generation = 1;
    // Often, since an address may be given out again: what was remembered under it is not the same.
    for _ in 0..20 {
        for (server, name) in [(&one, "one"), (&two, "two")] {
            generation += 1;
            bed.apply(generation, all(server)).await;
            for _ in 0..2 {
                assert_eq!(client.send(get("/", "x")).await.body, name);
            }
        }
        generation += 1;
        let gone = Root::listener("shop/web/8000").child("route/httproute/shop/r");
        bed.remove(generation, vec![gone]).await;
        assert_eq!(client.send(get("/", "x")).await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_believes_whom_its_newest_listener_says() {
    let server = Server::http(|_, request: Request<_>| async move {
        let said = request.headers().get("x-forwarded-for").map(|v| v.as_bytes().to_vec());
        text(200, said.unwrap_or_default())
    })
    .await;
    let bed = Bed::gateway([all(&server), vec![trusting(0)]].concat()).await;
    let mut client = client(bed.listener()).await;
    let mut ask = async || {
        let request = Request::get("/").header("host", "x").header("x-forwarded-for", HOPS);
        client.send(request.body(Full::default()).unwrap()).await.body
    };
    assert_eq!(ask().await, "127.0.0.1");
    for (turn, hops) in [1, 2, 0, 2, 1, 0].into_iter().enumerate() {
        let generation = 2 + 2 * turn as u64;
        bed.apply(generation, vec![trusting(hops)]).await;
        let want = ["127.0.0.1", "192.0.2.2, 127.0.0.1", "192.0.2.1, 192.0.2.2, 127.0.0.1"];
        for _ in 0..2 {
            assert_eq!(ask().await, want[usize::from(hops)], "{hops} hops");
        }
        // A change of something else leaves it as it is.
        bed.apply(generation + 1, all(&server)).await;
        assert_eq!(ask().await, want[usize::from(hops)], "{hops} hops");
    }
}
