// SPDX-License-Identifier: Apache-2.0
//! Asks a running proxy of this machine why it would answer a request as it would: it alone knows
//! which instances it has ejected, which fail its checks and how busy they are. Called by the facts
//! of `weft explain`; what is explained without it says so.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use weft_agent::pod::LABEL_GATEWAY;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, World, host_address};
use weft_proxy::explain::Asked;
use weft_xds::{NodeId, NodeKind};

use super::facts::is_elsewhere;

const ADMIN_PORT: u16 = 15_000;
/// It is of this machine, and answers from what it has.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the proxy of a node says.
///
/// # Errors
/// Why it could not be asked.
pub async fn ask(world: &World, node: &NodeId, asked: &Asked) -> Result<Value, String> {
    let at = SocketAddr::new(address(world, node)?, ADMIN_PORT);
    let answer = tokio::time::timeout(ANSWER_MAX, get(at, asked)).await;
    let late = || format!("it did not answer at {at} within {} ms", ANSWER_MAX.as_millis());
    let value = answer.map_err(|_| late())??;
    match value["live"]["held"].as_bool() {
        Some(true) => Ok(value),
        Some(false) => Err("it has not needed this host yet, and asks for it when it does".into()),
        None => Err(format!("what answers at {at} explains nothing; it may be older")),
    }
}

async fn get(at: SocketAddr, asked: &Asked) -> Result<Value, String> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(ANSWER_MAX));
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.pool_max_idle_per_host(0).build::<_, Empty<Bytes>>(connector);
    let uri = format!("http://{at}/explain?{}", asked.to_query());
    let uri = uri.parse().map_err(|e| format!("the question is too long for it: {e}"))?;
    let answer = client.get(uri).await.map_err(|e| format!("it is not reached at {at}: {e}"))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| format!("its answer cannot be read: {e}"))?.to_bytes();
    if !head.status.is_success() {
        let why = String::from_utf8_lossy(&body);
        return Err(format!("it answered {}: {}", head.status.as_u16(), why.trim()));
    }
    serde_json::from_slice(&body).map_err(|e| format!("its answer is no JSON: {e}"))
}

/// Where the doors of a node's proxy are on this machine.
fn address(world: &World, node: &NodeId) -> Result<IpAddr, String> {
    let namespace = node.namespace.as_str();
    let is_its = |object: &Object| match node.kind {
        NodeKind::Sidecar => *object.key.name == *node.name.as_str(),
        NodeKind::Gateway => {
            let gateway = object.meta.labels.get(LABEL_GATEWAY);
            gateway.is_some_and(|name| **name == *node.name.as_str())
        }
    };
    let mut elsewhere = None;
    for object in world.objects(KindId::Pod, Some(namespace)).filter(|o| is_its(o)) {
        let View::Pod(pod) = &object.view else { continue };
        match host_address(object) {
            _ if pod.is_finished() => {}
            _ if is_elsewhere(world, pod) => elsewhere = Some(&pod.spec.node_name),
            Some(address) => return Ok(address),
            None => {}
        }
    }
    Err(match elsewhere {
        Some(machine) => format!(
            "it runs on the machine {machine}, and doors of proxies are for their own machine; \
             ask there: curl -G http://POD:{ADMIN_PORT}/explain --data-urlencode url=URL"
        ),
        None => "it does not run".into(),
    })
}
