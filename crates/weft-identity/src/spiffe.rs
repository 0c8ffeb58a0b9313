// SPDX-License-Identifier: Apache-2.0
//! SPIFFE names, parsed strictly: what this module lets in is compared byte by byte elsewhere.
//!
//! Called wherever a certificate, a token or a configuration names an identity. It never
//! normalises: `SPIFFE://X` is refused, not lower-cased, so two spellings never mean one identity.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use weft_base::name::Label;

/// Longest SPIFFE ID (SPIFFE-ID §2.3).
const ID_BYTES_MAX: usize = 2048;
/// Longest trust domain name (SPIFFE-ID §2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why a SPIFFE name was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeError {
    #[error("{0:?} is not a SPIFFE ID: it must begin with spiffe:// in lower case")]
    Scheme(String),
    #[error("a trust domain is expected, but it is empty")]
    NoTrustDomain,
    #[error(
        "trust domain {name:?} has the character {bad:?}; use lower-case letters, digits, \
         '.', '-' and '_', without port or user"
    )]
    TrustDomain { name: String, bad: char },
    #[error("SPIFFE ID {id:?}: {what}; use segments of letters, digits, '.', '-' and '_'")]
    Path { id: String, what: &'static str },
    #[error("a SPIFFE name has {len} bytes; at most {max} are allowed")]
    TooLong { len: usize, max: usize },
}

/// The name of one root of trust: `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// One identity: `spiffe://cluster.local/ns/shop/sa/order`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins (at its `/`).
    path_at: u16,
}

// === impl TrustDomain ===

impl TrustDomain {
    /// # Errors
    /// When the text is not a SPIFFE trust domain name.
    pub fn new(text: &str) -> Result<Self, SpiffeError> {
        if text.is_empty() {
            return Err(SpiffeError::NoTrustDomain);
        }
        if text.len() > TRUST_DOMAIN_BYTES_MAX {
            return Err(SpiffeError::TooLong { len: text.len(), max: TRUST_DOMAIN_BYTES_MAX });
        }
        let ok = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        match text.chars().find(|c| !ok(c)) {
            Some(bad) => Err(SpiffeError::TrustDomain { name: text.into(), bad }),
            None => Ok(Self(text.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI of the trust domain itself, as a CA certificate carries it.
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }

    /// The identity of a workload: `spiffe://TD/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn workload(&self, namespace: &Label, service_account: &Label) -> SpiffeId {
        self.id(&format!("/ns/{namespace}/sa/{service_account}"))
    }

    /// The identity of the control plane. No workload can have it, since theirs begin with `/ns/`.
    pub fn server(&self) -> SpiffeId {
        self.id("/weft/server")
    }

    /// The identity of a machine's agent; `join` tells one joining of the name from the next, so
    /// that a host that joined again, or was removed, does not live on in an old certificate.
    pub fn host(&self, name: &Label, join: &Label) -> SpiffeId {
        self.id(&format!("/weft/host/{name}/{join}"))
    }

    fn id(&self, path: &str) -> SpiffeId {
        let text = format!("spiffe://{}{path}", self.0);
        // A trust domain has at most 255 bytes, so this always fits.
        let path_at = u16::try_from("spiffe://".len() + self.0.len()).unwrap_or(u16::MAX);
        SpiffeId { text: text.into(), path_at }
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// # Errors
    /// When the text is not exactly a SPIFFE ID with a path.
    pub fn new(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > ID_BYTES_MAX {
            return Err(SpiffeError::TooLong { len: text.len(), max: ID_BYTES_MAX });
        }
        let rest =
            text.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let domain = TrustDomain::new(domain)?;
        check_path(text, path)?;
        Ok(domain.id(path))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> TrustDomain {
        let end = usize::from(self.path_at);
        TrustDomain(self.text.get("spiffe://".len()..end).unwrap_or_default().into())
    }

    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        let end = usize::from(self.path_at);
        self.text.get("spiffe://".len()..end) == Some(domain.as_str())
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        self.text.get(usize::from(self.path_at)..).unwrap_or_default()
    }

    /// Namespace and service account, when it is a workload's identity.
    pub fn workload(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().split('/');
        let (root, ns, namespace) = (parts.next()?, parts.next()?, parts.next()?);
        let (sa, account) = (parts.next()?, parts.next()?);
        let whole = root.is_empty() && ns == "ns" && sa == "sa" && parts.next().is_none();
        whole.then_some((namespace, account))
    }

    /// Name and joining, when it is a host's identity.
    pub fn host(&self) -> Option<(&str, &str)> {
        let (name, join) = self.path().strip_prefix("/weft/host/")?.split_once('/')?;
        (!join.contains('/')).then_some((name, join))
    }

    pub fn namespace(&self) -> Option<&str> {
        self.workload().map(|(namespace, _)| namespace)
    }

    pub fn service_account(&self) -> Option<&str> {
        self.workload().map(|(_, account)| account)
    }
}

fn check_path(id: &str, path: &str) -> Result<(), SpiffeError> {
    let refuse = |what| Err(SpiffeError::Path { id: id.to_owned(), what });
    let Some(path) = path.strip_prefix('/') else {
        return refuse("it has no path, so it names nobody");
    };
    for segment in path.split('/') {
        if segment.is_empty() {
            return refuse("its path has an empty segment");
        }
        if segment == "." || segment == ".." {
            return refuse("its path has a relative segment");
        }
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !segment.chars().all(ok) {
            return refuse("its path has a character that is not allowed");
        }
    }
    Ok(())
}

macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = SpiffeError;
            fn from_str(s: &str) -> Result<Self, SpiffeError> {
                Self::new(s)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&s).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_type!(TrustDomain);
text_type!(SpiffeId);

#[cfg(test)]
mod tests;
