// SPDX-License-Identifier: Apache-2.0
//! Names, parsed once at the door. Private fields: the constructor is the only way in.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("a name is expected here, but it is empty")]
    Empty,
    #[error("{name:?} has {len} characters; at most {max} are allowed")]
    TooLong { name: String, len: usize, max: usize },
    #[error(
        "{name:?} has the character {bad:?}; use lower-case letters, digits, '-' and {extra}, \
         beginning and ending with a letter or digit"
    )]
    Character { name: String, bad: char, extra: &'static str },
}

macro_rules! string_name {
    ($(#[$doc:meta])* $name:ident, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// When the text is not of this name's form.
            pub fn new(text: &str) -> Result<Self, NameError> {
                $parse(text).map(|s| Self(s.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::new(s)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
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

string_name!(
    /// An RFC 1123 label: namespaces and service names (≤ 63 characters).
    Label, parse_label
);
string_name!(
    /// An RFC 1123 subdomain: object names (≤ 253 characters).
    ObjectName, parse_subdomain
);
string_name!(
    /// A canonical DNS host name: lower case, no trailing dot, no port (RFC 1035, RFC 1123).
    /// Underscores are allowed, since SRV owner names have them.
    Hostname, parse_hostname
);

/// A service's key: its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    pub namespace: Label,
    pub name: Label,
}

// === impl ServiceKey ===

impl ServiceKey {
    /// # Errors
    /// When either part is not an RFC 1123 label.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: Label::new(namespace)?, name: Label::new(name)? })
    }

    /// `name.namespace.svc.<cluster domain>`, the host that routes and requests name.
    pub fn host(&self, cluster_domain: &str) -> Hostname {
        // Two labels and a domain that was parsed before are a host name.
        Hostname(format!("{}.{}.svc.{cluster_domain}", self.name, self.namespace).into())
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The RFC 1123 label for any text: lower-cased slug, with a hash when that changed it.
pub fn slug(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            _ if !out.is_empty() && !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    let trimmed = out.trim_matches('-');
    if trimmed == text && text.len() <= 63 && !text.is_empty() {
        return text.to_owned();
    }
    let hash = fnv1a(text.as_bytes());
    let head: String = trimmed.chars().take(52).collect();
    let head = head.trim_end_matches('-');
    let head = if head.is_empty() { "x" } else { head };
    format!("{head}-{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff)
}

/// The slug of a service's name as Consul's clients write it: they differ by more than case.
pub fn service_slug(text: &str) -> String {
    slug(&text.to_ascii_lowercase())
}

/// FNV-1a, 64 bits: a stable hash for names and versions, never for security.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn parse_label(text: &str) -> Result<&str, NameError> {
    check(text, 63, "no other", |c| matches!(c, 'a'..='z' | '0'..='9' | '-'))
}

fn parse_subdomain(text: &str) -> Result<&str, NameError> {
    check(text, 253, "'.'", |c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.'))
}

fn parse_hostname(text: &str) -> Result<String, NameError> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if host.is_empty() {
        return Err(NameError::Empty);
    }
    if host.len() > 253 {
        return Err(NameError::TooLong { len: host.len(), name: host, max: 253 });
    }
    let ok = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | '_');
    match host.chars().find(|c| !ok(c)) {
        Some(bad) => Err(NameError::Character { name: host, bad, extra: "'.' and '_'" }),
        None if host.split('.').any(str::is_empty) => {
            Err(NameError::Character { name: host, bad: '.', extra: "single '.'" })
        }
        None => Ok(host),
    }
}

fn check<'a>(
    text: &'a str,
    max: usize,
    extra: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<&'a str, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > max {
        return Err(NameError::TooLong { name: text.into(), len: text.len(), max });
    }
    let edge = |c: Option<char>| c.filter(|c| !c.is_ascii_alphanumeric());
    let bad = text
        .chars()
        .find(|c| !allowed(*c))
        .or_else(|| edge(text.chars().next()))
        .or_else(|| edge(text.chars().next_back()));
    match bad {
        Some(bad) => Err(NameError::Character { name: text.into(), bad, extra }),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_rfc_1123() {
        for good in ["a", "a-b", "1a", &"x".repeat(63)] {
            assert!(Label::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64)] {
            assert!(Label::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostnames_are_made_canonical() {
        assert_eq!(Hostname::new("Foo.Example.COM.").unwrap().as_str(), "foo.example.com");
        for bad in ["", ".", "a..b", "a b", "a/b", "a:80", "a@b"] {
            assert!(Hostname::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slug_keeps_labels_and_marks_changes() {
        assert_eq!(slug("web-1"), "web-1");
        assert!(slug("Web_1").starts_with("web-1-"));
        assert_ne!(slug("Web_1"), slug("web-1"));
        assert_ne!(slug("web_1"), slug("Web_1"));
        assert_eq!((service_slug("Web").as_str(), service_slug("Web_1")), ("web", slug("web_1")));
        assert!(Label::new(&slug(&"Ü#:".repeat(99))).is_ok());
    }
}
