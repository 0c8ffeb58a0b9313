// SPDX-License-Identifier: Apache-2.0
//! What a machine's door answers by itself as long as no server was there since it began: instances
//! that are registered with the machine, to whom it is known to be allowed. Where one was there
//! others may have more of them, and a part is no answer. Called by `http`, with what was to be
//! handed on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::Door;
use super::http::Ask;
use super::params::Params;
use super::reply::{Body, Reply};
use super::routes::Endpoint;
use super::view::DEFAULT_NAMESPACE;
use super::who::Secret;

/// How long a blocking query is kept: it is asked again when its client likes, and a server that is
/// back answers it.
const WAIT_MAX: Duration = Duration::from_secs(5);

impl Door {
    /// The answer, if it is this machine's to give.
    pub(super) async fn alone(
        &self,
        (endpoint, argument): (Endpoint, String),
        mut params: Params,
        secret: &str,
    ) -> Option<Reply> {
        if self.far().is_none_or(|far| far.was_there()) {
            return None;
        }
        let blocking = params.blocking().ok().filter(|blocking| !blocking.consistent)?;
        let namespace: Arc<str> = params.filled("ns").unwrap_or(DEFAULT_NAMESPACE).into();
        let view = self.view();
        let own = view.own.node.node.clone();
        let is_known = match endpoint {
            Endpoint::HealthService
            | Endpoint::HealthConnect
            | Endpoint::HealthChecks
            | Endpoint::CatalogService
            | Endpoint::CatalogConnect => {
                let catalog = view.world.catalog();
                catalog.on_node(&own).any(|(_, one)| {
                    one.agent
                        && one.namespace == namespace
                        && one.service.eq_ignore_ascii_case(&argument)
                })
            }
            Endpoint::HealthNode | Endpoint::CatalogNode | Endpoint::CatalogNodeServices => {
                *own == *argument
            }
            _ => false,
        };
        drop(view);
        if !is_known {
            return None;
        }
        let who = self.caller(secret).await.ok()?;
        if blocking.index > 0 {
            let wait = self.jittered(blocking.wait.min(WAIT_MAX));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.tasks.draining() => {}
            }
        }
        params.wait_no_more();
        let secret = Some(Secret(secret.into()));
        let (body, method) = (Bytes::new(), Method::GET);
        let ask = Ask { argument, params, body, namespace, method, who, secret };
        let mut reply = Box::pin(self.dispatch(endpoint, &ask)).await.ok()?;
        // That there is nobody only the server could say.
        let is_nobody = match &reply.body {
            Body::Json(Value::Array(found)) => found.is_empty(),
            Body::Bytes(_, bytes) | Body::Whole(bytes) => **bytes == *b"[]",
            Body::Shared(_, written) => **written.plain() == *b"[]",
            _ => false,
        };
        if is_nobody {
            return None;
        }
        for (name, value) in &mut reply.headers {
            match &**name {
                "X-Consul-KnownLeader" => *value = "false".to_owned(),
                "X-Consul-Effective-Consistency" => *value = "stale".to_owned(),
                _ => {}
            }
        }
        Some(reply)
    }
}
