// SPDX-License-Identifier: Apache-2.0
//! What every server has from the start. Written once; a user's changes to it stay.

use serde_json::{Value, json};
use weft_kinds::kind::KindId;

use crate::objects::admit::GATEWAY_CONTROLLER;
use crate::{ObjectError, Registry, WriteOptions};

fn seeds() -> [(KindId, Value); 3] {
    let namespace = |name: &str| json!({ "metadata": { "name": name } });
    let class = json!({
        "metadata": { "name": "weft" },
        "spec": {
            "controllerName": GATEWAY_CONTROLLER,
            "description": "Gateways served by weft's own proxy",
        },
    });
    [
        (KindId::Namespace, namespace("default")),
        (KindId::Namespace, namespace("kube-system")),
        (KindId::GatewayClass, class),
    ]
}

pub(crate) async fn write(registry: &Registry) -> Result<(), ObjectError> {
    for (kind, object) in seeds() {
        match registry.objects().create(kind, "", object, WriteOptions::SYSTEM).await {
            Ok(_) | Err(ObjectError::AlreadyExists { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    if registry.leader().is_shared() {
        // Other servers may hear of these agents; whoever leads sees to those that nobody hears of.
        return Ok(());
    }
    for node in nodes(registry) {
        // Whoever ran there has to say so again; pods of a node that stays away are replaced.
        // However long this server was down does not count.
        registry.node_gone(&node, "the server started anew and has not heard of the agent").await?;
    }
    Ok(())
}

fn nodes(registry: &Registry) -> Vec<String> {
    let world = registry.now();
    world.objects(KindId::Node, None).map(|n| n.key.name.to_string()).collect()
}
