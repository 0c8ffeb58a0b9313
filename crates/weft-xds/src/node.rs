// SPDX-License-Identifier: Apache-2.0
//! Who is on the other end of a stream: node ids and what a node says of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use weft_base::name::{Label, NameError, ObjectName};
use weft_model::{MODEL_VERSION, MODEL_VERSION_OLDEST, NodeFeatures};
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
    /// The oldest.
    pub model_version_oldest: u32,
    /// Names of [`weft_model::FEATURES`], and of later releases.
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
    #[error(
        "{id} names no model version; this server speaks {}, run a proxy of its release",
        versions(server)
    )]
    NoVersion { id: NodeId, server: RangeInclusive<u32> },
    #[error(
        "{id} is too old: its release {release:?} speaks model version {}, this server {}; \
         upgrade the proxy",
        versions(proxy),
        versions(server)
    )]
    TooOld {
        id: NodeId,
        release: Arc<str>,
        proxy: RangeInclusive<u32>,
        server: RangeInclusive<u32>,
    },
    #[error(
        "{id} is too new: its release {release:?} speaks model version {}, this server {}; \
         upgrade the server first",
        versions(proxy),
        versions(server)
    )]
    TooNew {
        id: NodeId,
        release: Arc<str>,
        proxy: RangeInclusive<u32>,
        server: RangeInclusive<u32>,
    },
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
const MODEL_VERSION_OLDEST_KEY: &str = "model_version_oldest";
/// Features and characters of a release that are read of a node.
const FEATURES_MAX: usize = 256;
const RELEASE_CHARS_MAX: usize = 100;
const FEATURES_KEY: &str = "features";
/// What a server of this build emits.
const SPOKEN: RangeInclusive<u32> = MODEL_VERSION_OLDEST..=MODEL_VERSION;

impl NodeInfo {
    /// A node of this build.
    pub fn this_release(id: NodeId, release: impl Into<Arc<str>>) -> Self {
        Self {
            id,
            model_version: MODEL_VERSION,
            model_version_oldest: MODEL_VERSION_OLDEST,
            features: NodeFeatures::all().names().map(Into::into).collect(),
            release: release.into(),
        }
    }

    /// What it knows of what this build knows.
    pub fn known_features(&self) -> NodeFeatures {
        NodeFeatures::from_names(self.features.iter().map(|name| &**name))
    }

    /// The version that this server and the node both speak: the newest of them.
    ///
    /// # Errors
    /// Which of the two is too old, and what to upgrade.
    pub fn agreed_version(&self) -> Result<u32, NodeError> {
        self.agreed_with(SPOKEN)
    }

    fn agreed_with(&self, server: RangeInclusive<u32>) -> Result<u32, NodeError> {
        let (id, release) = (self.id.clone(), self.release.clone());
        let proxy = self.model_version_oldest..=self.model_version;
        if self.model_version == 0 {
            return Err(NodeError::NoVersion { id, server });
        }
        if proxy.end() < server.start() {
            return Err(NodeError::TooOld { id, release, proxy, server });
        }
        if proxy.start() > server.end() {
            return Err(NodeError::TooNew { id, release, proxy, server });
        }
        Ok(*proxy.end().min(server.end()))
    }

    /// As a request names it.
    pub fn to_proto(&self) -> core::Node {
        let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
        let features = self.features.iter().map(|f| text(f)).collect();
        let fields = BTreeMap::from([
            (MODEL_VERSION_KEY.to_owned(), number(self.model_version)),
            (MODEL_VERSION_OLDEST_KEY.to_owned(), number(self.model_version_oldest)),
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
        let version = |key: &str| match field(key) {
            Some(Kind::NumberValue(n)) => small_number(*n),
            _ => 0,
        };
        let model_version = version(MODEL_VERSION_KEY);
        // One that names none speaks only its newest.
        let model_version_oldest = match version(MODEL_VERSION_OLDEST_KEY) {
            0 => model_version,
            oldest => oldest.min(model_version),
        };
        let features = match field(FEATURES_KEY) {
            Some(Kind::ListValue(list)) => {
                list.values.iter().take(FEATURES_MAX).filter_map(text_of).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            id: node.id.parse()?,
            model_version,
            model_version_oldest,
            features,
            release: node
                .user_agent_version
                .chars()
                .take(RELEASE_CHARS_MAX)
                .collect::<String>()
                .into(),
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

fn versions(range: &RangeInclusive<u32>) -> String {
    let (oldest, newest) = (range.start(), range.end());
    if oldest == newest { newest.to_string() } else { format!("{oldest} to {newest}") }
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
        assert_eq!(info.known_features(), NodeFeatures::all());
        info.features = vec!["match.regex".into(), "of.the-future".into()];
        info.model_version = 3;
        let read = NodeInfo::from_proto(&info.to_proto()).unwrap();
        assert_eq!(read, info);
        assert_eq!(read.known_features().names().collect::<Vec<_>>(), ["match.regex"]);
    }

    /// Server 4 emits 4 and 3; a proxy of the release before reads 3 and 2, of the next 5 and 4.
    #[test]
    fn both_ends_speak_the_newest_version_that_both_know() {
        let mut info = NodeInfo::this_release(NodeId::sidecar("shop", "user-1").unwrap(), "9.9");
        let mut agreed = |proxy: RangeInclusive<u32>| {
            (info.model_version_oldest, info.model_version) = proxy.into_inner();
            info.agreed_with(3..=4).map_err(|e| e.to_string())
        };
        assert_eq!(agreed(3..=4), Ok(4));
        assert_eq!(agreed(2..=3), Ok(3));
        assert_eq!(agreed(4..=5), Ok(4));
        let old = agreed(1..=2).unwrap_err();
        assert_eq!(
            old,
            "sidecar~shop~user-1 is too old: its release \"9.9\" speaks model version 1 to 2, this \
             server 3 to 4; upgrade the proxy"
        );
        let new = agreed(5..=6).unwrap_err();
        assert!(new.contains("model version 5 to 6, this server 3 to 4; upgrade the server first"));
        assert!(agreed(0..=0).unwrap_err().contains("names no model version"));
    }
}
