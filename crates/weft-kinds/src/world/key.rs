// SPDX-License-Identifier: Apache-2.0
//! The keys of the store and the names they stand for, both ways.
//!
//! | key | value |
//! |---|---|
//! | `/o/<group or core>/<plural>/<namespace or _>/<name>` | an object, raw JSON |
//! | `/c/n/<node>` | [`NodeRecord`](crate::views::catalog::NodeRecord) |
//! | `/c/i/<ns>/<node>/<service-id>` | [`Registration`](crate::views::catalog::Registration) |
//! | `/c/k/<ns>/<node>/<check-id>` | [`CheckRecord`](crate::views::catalog::CheckRecord) |
//! | `/e/k/<ns>/<node>/<check-id>` | [`CheckStatus`](crate::views::catalog::CheckStatus) |
//! | `/s/<name...>` | a setting |
//!
//! `%` and `/` inside a segment are percent-encoded.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::kind::{KindId, parse_key};

/// One object. The namespace is empty for cluster-scoped kinds.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: KindId,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// One registered instance of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistrationKey {
    pub namespace: Arc<str>,
    pub node: Arc<str>,
    pub id: Arc<str>,
}

/// One check of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckKey {
    pub namespace: Arc<str>,
    pub node: Arc<str>,
    pub id: Arc<str>,
}

/// Any key whose value the World reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreKey {
    Object(ObjectKey),
    Node(Arc<str>),
    Registration(RegistrationKey),
    Check(CheckKey),
    CheckStatus(CheckKey),
    Setting(Arc<str>),
}

// === impl ObjectKey ===

impl ObjectKey {
    pub fn new(kind: KindId, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// Its key in the store.
    pub fn store_key(&self) -> String {
        self.kind.row().key(&self.namespace, &self.name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl RegistrationKey ===

impl RegistrationKey {
    /// The namespace and the node: what is of the same place stands together.
    pub(super) fn place(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.namespace, &self.node)
    }
}

// === impl CheckKey ===

impl CheckKey {
    /// As [`RegistrationKey::place`].
    pub(super) fn place(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.namespace, &self.node)
    }
}

// === impl StoreKey ===

impl StoreKey {
    /// Reads a store key; `None` for keys that the World does not read.
    pub fn parse(key: &str) -> Option<Self> {
        let rest = key.strip_prefix('/')?;
        let (room, rest) = rest.split_once('/')?;
        if room == "o" {
            let (kind, namespace, name) = parse_key(key)?;
            return Some(Self::Object(ObjectKey::new(kind, namespace, name)));
        }
        if room == "s" {
            return Some(Self::Setting(rest.into()));
        }
        let mut parts = rest.split('/').map(decode);
        let mut next = || parts.next().flatten();
        let out = match room {
            "c" => match &*next()? {
                "n" => Self::Node(next()?),
                "i" => Self::Registration(RegistrationKey {
                    namespace: next()?,
                    node: next()?,
                    id: next()?,
                }),
                "k" => Self::Check(check_key(&mut next)?),
                _ => return None,
            },
            "e" => match &*next()? {
                "k" => Self::CheckStatus(check_key(&mut next)?),
                _ => return None,
            },
            _ => return None,
        };
        parts.next().is_none().then_some(out)
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(k) => f.write_str(&k.store_key()),
            Self::Node(node) => write!(f, "/c/n/{}", encode(node)),
            Self::Registration(k) => {
                write!(f, "/c/i/{}/{}/{}", encode(&k.namespace), encode(&k.node), encode(&k.id))
            }
            Self::Check(k) => {
                write!(f, "/c/k/{}/{}/{}", encode(&k.namespace), encode(&k.node), encode(&k.id))
            }
            Self::CheckStatus(k) => {
                write!(f, "/e/k/{}/{}/{}", encode(&k.namespace), encode(&k.node), encode(&k.id))
            }
            Self::Setting(name) => write!(f, "/s/{name}"),
        }
    }
}

fn check_key(next: &mut impl FnMut() -> Option<Arc<str>>) -> Option<CheckKey> {
    Some(CheckKey { namespace: next()?, node: next()?, id: next()? })
}

/// Encodes one segment of a store key.
pub fn encode(segment: &str) -> Cow<'_, str> {
    if segment.contains(['/', '%']) {
        Cow::Owned(segment.replace('%', "%25").replace('/', "%2F"))
    } else {
        Cow::Borrowed(segment)
    }
}

fn decode(segment: &str) -> Option<Arc<str>> {
    if segment.is_empty() {
        return None;
    }
    if !segment.contains('%') {
        return Some(segment.into());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((head, tail)) = rest.split_once('%') {
        bytes.extend_from_slice(head.as_bytes());
        bytes.push(u8::from_str_radix(tail.get(..2)?, 16).ok()?);
        rest = tail.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok().map(Into::into)
}
