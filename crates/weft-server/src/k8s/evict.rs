// SPDX-License-Identifier: Apache-2.0
//! The `eviction` subresource of pods: a deletion that disruption budgets may refuse, as `kubectl
//! drain` asks for it. Two that come at once cannot both take the last one that a budget allows.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use weft_kinds::views::View;
use weft_kinds::world::{KindId, Object};
use weft_registry::controllers::disruption::{budgets_of, promise};
use weft_registry::{Change, ObjectError, Part, WriteOptions};

use super::path::Objects;
use super::status::{ApiError, json_response};
use super::{Ask, Door, body, delete};
use crate::json::Fields;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

// === evicting ===

impl Door {
    pub(super) async fn evict(
        &self,
        target: &Objects,
        ask: &Ask,
        body: Body,
    ) -> Result<Response, ApiError> {
        let bytes = body::read(body).await?;
        let given = body::document(ask.content_type(), &bytes)?.value;
        let options = delete::options_of(ask, given.at("deleteOptions"))?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let name = target.name.as_deref().unwrap_or_default();
        let world = self.registry.now();
        let pod = world.get(KindId::Pod, namespace, name).cloned();
        let Some(pod) = pod else {
            return Err(ObjectError::NotFound { kind: KindId::Pod, name: name.to_owned() }.into());
        };
        if !is_free(&pod) && !options.write.dry_run {
            match budgets_of(&world, &pod).as_slice() {
                [] => {}
                [budget] => self.take_one(budget, &pod).await?,
                _ => {
                    return Err(ApiError::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "InternalError",
                        "This pod has more than one PodDisruptionBudget, which the eviction \
                         subresource does not support.",
                    ));
                }
            }
        }
        self.registry.objects().delete(KindId::Pod, namespace, name, &options).await?;
        let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Success", "code": 201});
        Ok(json_response(StatusCode::CREATED, &done))
    }

    /// Takes one of the evictions that a budget allows.
    async fn take_one(&self, budget: &Object, pod: &Object) -> Result<(), ApiError> {
        if may_go_unwell(budget, pod) {
            return Ok(());
        }
        let (name, now) = (pod.key.name.clone(), self.timestamp());
        let change = Change {
            kind: KindId::PodDisruptionBudget,
            namespace: &budget.key.namespace,
            name: &budget.key.name,
            part: Part::Status,
            options: WriteOptions::SYSTEM,
        };
        let mut refused = None;
        let objects = self.registry.objects();
        let done = objects
            .modify(change, |known| {
                promise(known, &name, &now).ok_or_else(|| {
                    refused = Some(refusal(known));
                    ObjectError::BadRequest(String::new())
                })
            })
            .await;
        match (done, refused) {
            (_, Some(refused)) => Err(refused),
            // Without its budget nothing keeps the pod.
            (Err(ObjectError::NotFound { .. }), None) => Ok(()),
            (done, None) => done.map(drop).map_err(Into::into),
        }
    }
}

/// Pods that no budget holds: they serve nobody, or are going already.
fn is_free(pod: &Object) -> bool {
    let View::Pod(view) = &pod.view else { return true };
    view.is_finished() || &*view.status.phase == "Pending" || pod.meta.is_deleting()
}

/// A pod that is not ready may go while the others are enough, or whenever its budget says so.
fn may_go_unwell(budget: &Object, pod: &Object) -> bool {
    let (View::Pod(pod), View::DisruptionBudget(view)) = (&pod.view, &budget.view) else {
        return false;
    };
    let status = budget.raw.at("status");
    let number = |field: &str| status.at(field).as_i64().unwrap_or(0);
    let enough =
        number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
    !pod.is_ready() && (view.spec.unhealthy_pod_eviction_policy == "AlwaysAllow" || enough)
}

fn refusal(budget: &Value) -> ApiError {
    let name = budget.at("metadata").at("name").as_str().unwrap_or_default();
    let number = |field: &str| budget.at("status").at(field).as_i64().unwrap_or(0);
    let (needs, has) = (number("desiredHealthy"), number("currentHealthy"));
    let message =
        format!("The disruption budget {name} needs {needs} healthy pods and has {has} currently");
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", REFUSED)
        .because("DisruptionBudget", message)
}
