// SPDX-License-Identifier: Apache-2.0
//! What a push carries: resources named `root/child`, grouped by root, ended by a commit.
//!
//! Control writes them, `weft-xds` moves them, the proxy's ingest reads them. Encoding: CBOR with
//! named fields (serde).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Backend, EndpointSet, Listener, Route};

/// The subscription unit: a listener or a service host, with all its children.
///
/// Written `listener:NAME` or `host:FQDN`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Root {
    Listener(Arc<str>),
    Host(Arc<str>),
}

/// The name of one resource: `ROOT/CHILD`, for example
/// `host:user.shop.svc.cluster.local/endpoints/8080`. A root's own resource has an empty child.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ResourceName {
    pub root: Root,
    pub child: Arc<str>,
}

/// One resource of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Listener(Listener),
    Host(Host),
    Route(Route),
    Backend(Backend),
    Endpoints(EndpointSet),
    /// What could not be compiled, or cannot be expressed to this proxy. Requests that need it
    /// are answered locally with the reason.
    Fail(Fail),
}

/// A service host: the root that backends, endpoint sets and mesh routes hang from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Host {
    /// Canonical name: `user.shop.svc.cluster.local`.
    pub name: Arc<str>,
    /// Other names a request may use for it, all with a dot: `user.shop.svc`, `user.shop`. A name
    /// without one is completed by the sidecar with its own namespace: `user` is `user.shop` in
    /// namespace shop.
    pub aliases: Vec<Arc<str>>,
    /// Its service addresses.
    pub addresses: Vec<std::net::IpAddr>,
    pub ports: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    pub port: u16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// The name (after the root) of the backend used when no route speaks.
    pub backend: Arc<str>,
    /// Process mode: where the sidecar of each pod listens for programs that ignore proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_port: Option<u16>,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Decided by a bounded look at the first bytes.
    Detect,
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Grpc,
    /// Opaque bytes.
    Tcp,
    Tls,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fail {
    /// Lower case, no full stop: what is wrong, of which object and field, what to do.
    pub reason: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The user's object and field that something was compiled from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// `spec.rules[0]`; empty for the object as a whole.
    #[serde(default)]
    pub field: Arc<str>,
}

// === impl Root ===

impl Root {
    pub fn listener(name: impl Into<Arc<str>>) -> Self {
        Self::Listener(name.into())
    }

    pub fn host(fqdn: impl Into<Arc<str>>) -> Self {
        Self::Host(fqdn.into())
    }

    /// The name without what it is of.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Listener(name) | Self::Host(name) => name,
        }
    }

    #[must_use]
    pub fn child(&self, child: impl Into<Arc<str>>) -> ResourceName {
        ResourceName { root: self.clone(), child: child.into() }
    }

    /// The name of the root's own resource.
    #[must_use]
    pub fn own(&self) -> ResourceName {
        self.child("")
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => write!(f, "listener:{name}"),
            Self::Host(name) => write!(f, "host:{name}"),
        }
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        root.to_string()
    }
}

impl TryFrom<String> for Root {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("listener", name)) if !name.is_empty() => Ok(Self::listener(name)),
            Some(("host", name)) if !name.is_empty() => Ok(Self::host(name)),
            _ => Err(format!("{text:?} is no root; expected listener:NAME or host:FQDN")),
        }
    }
}

// === impl ResourceName ===

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.child.is_empty() {
            self.root.fmt(f)
        } else {
            write!(f, "{}/{}", self.root, self.child)
        }
    }
}

impl From<ResourceName> for String {
    fn from(name: ResourceName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ResourceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (root, child) = text.split_once('/').unwrap_or((&text, ""));
        Ok(Self { root: Root::try_from(root.to_owned())?, child: child.into() })
    }
}

// === impl Protocol ===

impl Protocol {
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        Ok(())
    }
}
