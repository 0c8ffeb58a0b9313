// SPDX-License-Identifier: Apache-2.0
//! The log's keys of catalog records, both ways. A client's own text in a segment is
//! percent-encoded, so that a `/` in a service id never makes another segment.

/// A parsed catalog key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogKey {
    Node { node: String },
    Instance { namespace: String, node: String, id: String },
    Check { namespace: String, node: String, id: String },
    State { namespace: String, node: String, id: String },
}

pub fn node(node: &str) -> String {
    format!("/c/n/{}", encode(node))
}

pub fn instance(namespace: &str, node: &str, id: &str) -> String {
    format!("/c/i/{}/{}/{}", encode(namespace), encode(node), encode(id))
}

pub fn check(namespace: &str, node: &str, id: &str) -> String {
    format!("/c/k/{}/{}/{}", encode(namespace), encode(node), encode(id))
}

pub fn state(namespace: &str, node: &str, id: &str) -> String {
    format!("/e/k/{}/{}/{}", encode(namespace), encode(node), encode(id))
}

/// `None` when the key is no catalog record's.
pub fn parse(key: &str) -> Option<CatalogKey> {
    if let Some(rest) = key.strip_prefix("/c/n/") {
        return (!rest.contains('/')).then(|| CatalogKey::Node { node: decode(rest) });
    }
    let (kind, rest) = ["/c/i/", "/c/k/", "/e/k/"]
        .into_iter()
        .find_map(|prefix| key.strip_prefix(prefix).map(|rest| (prefix, rest)))?;
    let mut parts = rest.split('/').map(decode);
    let (namespace, node, id) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    Some(match kind {
        "/c/i/" => CatalogKey::Instance { namespace, node, id },
        "/c/k/" => CatalogKey::Check { namespace, node, id },
        _ => CatalogKey::State { namespace, node, id },
    })
}

/// Percent-encodes what would break a segment: `/`, `%`, spaces and control characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '/' | '%') || c.is_ascii_control() || c == ' ' {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let mut ahead = bytes.clone();
        let hex = (ahead.next().and_then(hex_digit), ahead.next().and_then(hex_digit));
        match (b, hex) {
            (b'%', (Some(high), Some(low))) => {
                out.push(high << 4 | low);
                bytes = ahead;
            }
            _ => out.push(b),
        }
    }
    String::from_utf8(out).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into())
}

fn hex_digit(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_in_a_segment_comes_back() {
        for id in ["web", "a/b", "50%", "a b#c:d", "%2F", "ü/\u{1}", ""] {
            assert_eq!(
                parse(&instance("default", "n/1", id)),
                Some(CatalogKey::Instance {
                    namespace: "default".into(),
                    node: "n/1".into(),
                    id: id.into()
                }),
                "{id:?}"
            );
        }
        assert_eq!(parse(&node("a/b")), Some(CatalogKey::Node { node: "a/b".into() }));
    }

    #[test]
    fn other_keys_are_not_ours() {
        for key in ["/o/core/pods/default/a", "/c/i/a/b", "/c/i/a/b/c/d", "/c/n/a/b", "", "/e/x/y"]
        {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
