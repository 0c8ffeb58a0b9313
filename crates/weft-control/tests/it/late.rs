// SPDX-License-Identifier: Apache-2.0
//! What a proxy refused and took later: the server says so without another push.

use serde_json::json;
use tokio::net::TcpListener;
use weft_kinds::world::World;

use crate::common::put;
use crate::plane::{Running, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_port_that_becomes_free_is_no_longer_refused() {
    let port = weft_testkit::ports::free();
    let taken = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut world = World::new();
    let labels = json!({"weft.dev/proxy": "gateway", "weft.dev/gateway": "gw"});
    for object in [
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"name": "gw-1", "namespace": "shop", "annotations": labels},
               "spec": {"nodeName": "n", "serviceAccountName": "p", "containers": []},
               "status": {"podIP": "127.64.0.9"}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
               "metadata": {"name": "weft"}, "spec": {"controllerName": "weft.dev/gateway"}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
               "metadata": {"name": "gw", "namespace": "shop"},
               "spec": {"gatewayClassName": "weft", "addresses": [{"value": "127.0.0.1"}],
                        "listeners": [{"name": "http", "port": port, "protocol": "HTTP"}]}}),
    ] {
        put(&mut world, &object);
    }
    let server = Server::start(world, "127.0.0.1:0".parse().unwrap()).await;
    let gateway = Running::start("gateway~shop~gw", server.address, |_| {}).await;
    let name = format!("listener:shop~gw~{port}");
    server.until(|status| status.rejected.iter().any(|r| r.name == name)).await;
    let transactions = server.driver.pusher().status()[0].transactions;

    drop(taken);
    server.until(|status| status.rejected.is_empty() && status.acked_generation.is_some()).await;
    let status = server.driver.pusher().status().remove(0);
    assert!(status.synced, "{status:?}");
    assert_eq!(status.transactions, transactions, "nothing was pushed for it");
    assert_eq!(gateway.get("a.example", port).await.0, 404, "it listens");
    gateway.stop().await;
    server.stop().await;
}
