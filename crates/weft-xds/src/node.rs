// SPDX-License-Identifier: Apache-2.0
//! Who is on the other end of a stream: node ids and what a node says of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use weft_base::name::{Label, NameError, ObjectName};
use weft_proto::envoy::config::core::v3 as core;

/// `sidecar~NAMESPACE~POD` or `gateway~NAMESPACE~GATEWAY`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    pub kind: NodeKind,
    pub namespace: Label,
    pub name: ObjectName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    Sidecar,
    Gateway,
}

/// What a node says of itself in the first message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    pub id: NodeId,
    /// The newest [`weft_model::MODEL_VERSION`] that it understands.
    pub model_version: u32,
    pub features: Vec<Arc<str>>,
    /// Release of the proxy, for people.
    pub release: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("node id {0:?} is not sidecar~NAMESPACE~POD or gateway~NAMESPACE~GATEWAY")]
    Form(String),
    #[error("node id {id:?}: {source}")]
    Name { id: String, source: NameError },
    #[error("the first message of a stream must say which node asks")]
    Missing,
}

// === impl NodeKind ===

impl NodeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Gateway => "gateway",
        }
    }
}

// === impl NodeId ===

impl NodeId {
    /// # Errors
    /// When a name is not of its form.
    pub fn new(kind: NodeKind, namespace: &str, name: &str) -> Result<Self, NodeError> {
        let bad = |source| NodeError::Name {
            id: format!("{}~{namespace}~{name}", kind.as_str()),
            source,
        };
        let namespace = Label::new(namespace).map_err(bad)?;
        Ok(Self { kind, namespace, name: ObjectName::new(name).map_err(bad)? })
    }

    /// # Errors
    /// When a name is not of its form.
    pub fn sidecar(namespace: &str, pod: &str) -> Result<Self, NodeError> {
        Self::new(NodeKind::Sidecar, namespace, pod)
    }

    /// # Errors
    /// When a name is not of its form.
    pub fn gateway(namespace: &str, gateway: &str) -> Result<Self, NodeError> {
        Self::new(NodeKind::Gateway, namespace, gateway)
    }
}

impl FromStr for NodeId {
    type Err = NodeError;

    fn from_str(text: &str) -> Result<Self, NodeError> {
        let mut parts = text.split('~');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("sidecar"), Some(namespace), Some(name), None) => Self::sidecar(namespace, name),
            (Some("gateway"), Some(namespace), Some(name), None) => Self::gateway(namespace, name),
            _ => Err(NodeError::Form(text.chars().take(300).collect())),
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}~{}", self.kind.as_str(), self.namespace, self.name)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl NodeInfo ===

const MODEL_VERSION_KEY: &str = "model_version";
const FEATURES_KEY: &str = "features";

impl NodeInfo {
    /// A node of this build.
    pub fn this_release(id: NodeId, release: impl Into<Arc<str>>) -> Self {
        let model_version = weft_model::MODEL_VERSION;
        Self { id, model_version, features: Vec::new(), release: release.into() }
    }

    pub(crate) fn to_proto(&self) -> core::Node {
        let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
        let features = self.features.iter().map(|f| text(f)).collect();
        let fields = BTreeMap::from([
            (MODEL_VERSION_KEY.to_owned(), number(self.model_version)),
            (
                FEATURES_KEY.to_owned(),
                Value { kind: Some(Kind::ListValue(ListValue { values: features })) },
            ),
        ]);
        core::Node {
            id: self.id.to_string(),
            cluster: self.id.namespace.to_string(),
            metadata: Some(Struct { fields: fields.into_iter().collect() }),
            user_agent_name: "weft".to_owned(),
            user_agent_version: self.release.to_string(),
            ..core::Node::default()
        }
    }

    pub(crate) fn from_proto(node: &core::Node) -> Result<Self, NodeError> {
        let metadata = node.metadata.as_ref();
        let field = |key: &str| metadata.and_then(|m| m.fields.get(key)?.kind.as_ref());
        let model_version = match field(MODEL_VERSION_KEY) {
            Some(Kind::NumberValue(n)) => small_number(*n),
            _ => 0,
        };
        let features = match field(FEATURES_KEY) {
            Some(Kind::ListValue(list)) => list.values.iter().filter_map(text_of).collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            id: node.id.parse()?,
            model_version,
            features,
            release: node.user_agent_version.as_str().into(),
        })
    }
}

fn number(n: u32) -> Value {
    Value { kind: Some(Kind::NumberValue(f64::from(n))) }
}

fn text_of(value: &Value) -> Option<Arc<str>> {
    match &value.kind {
        Some(Kind::StringValue(s)) => Some(s.as_str().into()),
        _ => None,
    }
}

/// The whole number in a JSON number; 0 when it is none of ours.
fn small_number(n: f64) -> u32 {
    (1..=1_000_u32).find(|v| (f64::from(*v) - n).abs() < 0.25).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_bad_ones_say_the_form() {
        for text in ["sidecar~shop~user-7d9f-x2", "gateway~shop~shop"] {
            assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        }
        for bad in ["", "sidecar", "sidecar~a", "router~a~b", "sidecar~a~b~c", "sidecar~A~b"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_node_says_survives_the_wire() {
        let id = NodeId::sidecar("shop", "user-1").unwrap();
        let mut info = NodeInfo::this_release(id, "0.1.0");
        info.features = vec!["a".into(), "b".into()];
        assert_eq!(NodeInfo::from_proto(&info.to_proto()).unwrap(), info);
    }
}
