// SPDX-License-Identifier: Apache-2.0
//! TLS with those outside of the mesh's own: what a listener presents and asks of its clients, and
//! what is said to a backend that speaks TLS itself. Data only; the proxy makes sessions of it.
//! Keys travel only to the proxy that uses them, and are never shown.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a listener presents, and whom it lets in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerTls {
    pub chain_pem: Arc<str>,
    pub key_pem: Arc<str>,
    /// Clients' certificates; absent asks for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Box<ClientCertificates>>,
    /// Protocols that are offered by ALPN, in order; empty offers `h2` and `http/1.1` to HTTP and
    /// nothing to opaque bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<Arc<str>>,
    /// Nothing older than TLS 1.3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_13: bool,
    /// It cannot be served, and nobody is let in: no other section stands in for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
    /// Where the certificate comes from, for people: a file, or an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Arc<str>>,
}

/// Which certificates of clients are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// The authorities that sign them, PEM.
    pub ca_pem: Arc<str>,
    /// Whether a client without one is turned away.
    pub required: bool,
    /// One that nobody of these signed is let in too, as if it had shown none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// How a backend that speaks TLS itself is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// Sent as SNI; none sends none.
    pub server_name: Option<Arc<str>>,
    pub trust: Trust,
    /// What its certificate must say beyond being signed by somebody trusted.
    pub names: Names,
    /// What is shown when the backend asks for a certificate.
    pub certificate: Option<Certificate>,
    /// Nothing older than TLS 1.3.
    pub only_13: bool,
    /// Nothing is shown, a Gateway's own certificate neither.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

/// Whose signature on a backend's certificate is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The authorities that the machine trusts.
    #[default]
    System,
    /// These, PEM.
    Authorities(Arc<str>),
    /// Anybody's, or nobody's: the connection is encrypted to whoever answers.
    Anyone,
}

/// Which names a backend's certificate must carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// The server name that is sent (RFC 9525).
    #[default]
    ServerName,
    /// One of these, as a DNS name or a URI of its alternative names.
    OneOf(Vec<Arc<str>>),
    /// Whichever: its signature is enough.
    Any,
}

/// A certificate with its chain and its key, PEM.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub chain_pem: Arc<str>,
    pub key_pem: Arc<str>,
}

// === impl ServerTls ===

impl ServerTls {
    /// A certificate for everybody, with the usual protocols.
    pub fn new(chain_pem: impl Into<Arc<str>>, key_pem: impl Into<Arc<str>>) -> Self {
        let (chain_pem, key_pem) = (chain_pem.into(), key_pem.into());
        Self {
            chain_pem,
            key_pem,
            clients: None,
            alpn: Vec::new(),
            only_13: false,
            closed: false,
            from: None,
        }
    }

    /// Of a section that cannot be served: every handshake for its names fails.
    pub fn closed() -> Self {
        Self { closed: true, ..Self::new("", "") }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(redacted)")
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate(redacted)")
    }
}
