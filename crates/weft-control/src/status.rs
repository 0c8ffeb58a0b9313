// SPDX-License-Identifier: Apache-2.0
//! Statuses as data: what the compiler found about an object, for the registry to write.
//!
//! Nothing here knows the time: [`StatusUpdate::settle`] is given `now` by the writer and gives
//! `lastTransitionTime` only to conditions whose answer changed. What other controllers wrote
//! into the same status stays.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weft_base::issue::{Issues, Severity};
use weft_kinds::views::gateway::ParentRef;
use weft_kinds::world::ObjectKey;

/// The name weft signs Gateway API statuses with.
pub const CONTROLLER: &str = "weft.dev/gateway";

/// What one object's status should say.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusUpdate {
    pub object: ObjectKey,
    /// The generation of the object that this is about.
    pub generation: i64,
    pub body: StatusBody,
}

#[derive(Clone, Debug, PartialEq)]
pub enum StatusBody {
    /// `status.conditions`.
    Conditions(Vec<Condition>),
    /// `status.conditions` and `status.supportedFeatures` of a GatewayClass (GEP-2162); sorted.
    Class { conditions: Vec<Condition>, features: &'static [&'static str] },
    /// `status.parents` of a Gateway API route.
    Parents(Vec<ParentStatus>),
    /// `status.ancestors` of a policy attachment (GEP-713): one for each target.
    Ancestors(Vec<ParentStatus>),
    /// `status.conditions`, `status.addresses` and `status.listeners` of a Gateway.
    Gateway {
        conditions: Vec<Condition>,
        addresses: Vec<IpAddr>,
        listeners: Vec<ListenerStatus>,
        /// ListenerSets that it serves.
        listener_sets: usize,
    },
    /// `status.conditions` and `status.listeners` of a ListenerSet.
    ListenerSet { conditions: Vec<Condition>, listeners: Vec<ListenerStatus> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub holds: bool,
    /// CamelCase, one of the words the API defines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    pub parent: ParentRef,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    pub name: Arc<str>,
    pub attached_routes: usize,
    pub supported_kinds: Vec<&'static str>,
    pub conditions: Vec<Condition>,
}

// === impl Condition ===

impl Condition {
    pub fn new(
        kind: &'static str,
        holds: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds, reason, message: message.into() }
    }

    /// `Warning`: fields that are accepted but not done as written.
    pub fn warning(issues: &Issues) -> Option<Self> {
        let text: Vec<_> = issues
            .0
            .iter()
            .filter(|i| i.severity == Severity::Warning)
            .map(ToString::to_string)
            .collect();
        (!text.is_empty()).then(|| Self::new("Warning", true, "NotSupported", text.join("; ")))
    }

    fn render(&self, generation: i64, before: Option<&Value>, now: &str) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let same = before.filter(|b| b["status"] == status);
        let since = same.and_then(|b| b["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    }
}

// === impl StatusUpdate ===

impl StatusUpdate {
    /// The whole new `status`, given the one that is stored; `None` when nothing changes.
    pub fn settle(&self, current: Option<&Value>, now: &str) -> Option<Value> {
        let empty = Value::Object(Map::new());
        let old = current.filter(|v| v.is_object()).unwrap_or(&empty);
        let mut new = old.clone();
        match &self.body {
            StatusBody::Conditions(conditions) => {
                new["conditions"] = self.conditions(conditions, &old["conditions"], now);
                new["observedGeneration"] = self.generation.into();
            }
            StatusBody::Class { conditions, features } => {
                new["conditions"] = self.conditions(conditions, &old["conditions"], now);
                new["supportedFeatures"] = features.iter().map(|f| json!({"name": f})).collect();
            }
            StatusBody::Parents(parents) => {
                new["parents"] = self.parents(parents, "parentRef", &old["parents"], now);
            }
            StatusBody::Ancestors(ancestors) => {
                let old = &old["ancestors"];
                new["ancestors"] = self.parents(ancestors, "ancestorRef", old, now);
            }
            StatusBody::ListenerSet { conditions, listeners } => {
                new["conditions"] = self.conditions(conditions, &old["conditions"], now);
                new["listeners"] = self.listeners(listeners, &old["listeners"], now);
            }
            StatusBody::Gateway { conditions, addresses, listeners, listener_sets } => {
                // One without sets does not speak of them, unless it did.
                if *listener_sets > 0 || old.get("attachedListenerSets").is_some() {
                    new["attachedListenerSets"] = (*listener_sets).into();
                }
                let each = addresses.iter().map(ToString::to_string);
                new["addresses"] =
                    each.map(|ip| json!({"type": "IPAddress", "value": ip})).collect();
                new["conditions"] = self.conditions(conditions, &old["conditions"], now);
                new["listeners"] = self.listeners(listeners, &old["listeners"], now);
            }
        }
        (new != *old).then_some(new)
    }

    fn conditions(&self, wanted: &[Condition], old: &Value, now: &str) -> Value {
        let find = |kind: &str| list(old).find(|c| c["type"] == kind);
        wanted.iter().map(|c| c.render(self.generation, find(c.kind), now)).collect()
    }

    fn parents(&self, wanted: &[ParentStatus], field: &str, old: &Value, now: &str) -> Value {
        let others = list(old).filter(|p| p["controllerName"] != CONTROLLER).cloned();
        let ours = wanted.iter().map(|p| {
            let parent = parent_json(&p.parent);
            let before = list(old)
                .find(|o| o["controllerName"] == CONTROLLER && o[field] == parent)
                .map_or(Value::Null, |o| o["conditions"].clone());
            json!({
                field: parent,
                "controllerName": CONTROLLER,
                "conditions": self.conditions(&p.conditions, &before, now),
            })
        });
        others.chain(ours).collect()
    }

    fn listeners(&self, wanted: &[ListenerStatus], old: &Value, now: &str) -> Value {
        let each = wanted.iter().map(|l| {
            let before = list(old)
                .find(|o| o["name"] == *l.name)
                .map_or(Value::Null, |o| o["conditions"].clone());
            let kinds = l.supported_kinds.iter();
            json!({
                "name": *l.name,
                "attachedRoutes": l.attached_routes,
                "supportedKinds": kinds.map(|k| json!({
                    "group": weft_kinds::views::gateway::GROUP, "kind": k,
                })).collect::<Vec<_>>(),
                "conditions": self.conditions(&l.conditions, &before, now),
            })
        });
        each.collect()
    }
}

/// A parent reference as its author wrote it: absent fields stay absent.
fn parent_json(parent: &ParentRef) -> Value {
    let mut out = Map::new();
    let mut text = |key: &str, value: Option<&Arc<str>>| {
        if let Some(value) = value {
            out.insert(key.into(), Value::from(&**value));
        }
    };
    text("group", parent.group.as_ref());
    text("kind", parent.kind.as_ref());
    text("namespace", parent.namespace.as_ref());
    text("name", Some(&parent.name));
    text("sectionName", parent.section_name.as_ref());
    if let Some(port) = parent.port {
        out.insert("port".into(), port.into());
    }
    Value::Object(out)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kinds::world::KindId;

    fn update(holds: bool, message: &str) -> StatusUpdate {
        let parent = ParentRef { name: "gw".into(), ..ParentRef::default() };
        let conditions = vec![Condition::new("Accepted", holds, "Accepted", message)];
        StatusUpdate {
            object: ObjectKey::new(KindId::HttpRoute, "shop", "users"),
            generation: 2,
            body: StatusBody::Parents(vec![ParentStatus { parent, conditions }]),
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_answer_changes() {
        let first = update(true, "a").settle(None, "t1").unwrap();
        assert_eq!(update(true, "a").settle(Some(&first), "t2"), None, "nothing to write");
        let second = update(true, "b").settle(Some(&first), "t2").unwrap();
        assert_eq!(second["parents"][0]["conditions"][0]["lastTransitionTime"], "t1");
        let third = update(false, "b").settle(Some(&second), "t3").unwrap();
        assert_eq!(third["parents"][0]["conditions"][0]["lastTransitionTime"], "t3");
    }

    #[test]
    fn other_controllers_parents_stay() {
        let other = json!({"controllerName": "example.com/other", "parentRef": {"name": "x"}});
        let current = json!({"parents": [other]});
        let new = update(true, "a").settle(Some(&current), "t").unwrap();
        assert_eq!(new["parents"][0], other);
        assert_eq!(new["parents"][1]["parentRef"], json!({"name": "gw"}));
    }
}
