// SPDX-License-Identifier: Apache-2.0
//! Query parameters, read once per request.

use std::collections::BTreeMap;

use super::status::ApiError;

/// Parameters of one request: the words of a command are among them.
const PAIRS_MAX: usize = 4096;

/// What a write does with fields that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validation {
    Ignore,
    Warn,
    Strict,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, Vec<String>>);

// === impl Query ===

impl Query {
    pub(super) fn parse(raw: Option<&str>) -> Self {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in raw.unwrap_or_default().split('&').filter(|p| !p.is_empty()).take(PAIRS_MAX) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            out.entry(decode(key)).or_default().push(decode(value));
        }
        Self(out)
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(|v| v.first()).map_or("", String::as_str)
    }

    /// All values of a parameter that may be repeated, in their order.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// `true`, `1` and (python's) `True`.
    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "True" | "TRUE" | "1")
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.text(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("{key}={text:?} is not a whole number"))
            }),
        }
    }

    pub(super) fn dry_run(&self) -> Result<bool, ApiError> {
        let all = self.0.get("dryRun").map_or(&[][..], Vec::as_slice);
        match all.iter().find(|v| !matches!(v.as_str(), "All" | "")) {
            Some(other) => Err(ApiError::bad_request(format!(
                "dryRun={other:?} is not supported; the only value is All"
            ))),
            None => Ok(all.iter().any(|v| v == "All")),
        }
    }

    pub(super) fn validation(&self) -> Result<Validation, ApiError> {
        match self.text("fieldValidation") {
            "Ignore" => Ok(Validation::Ignore),
            "" | "Warn" => Ok(Validation::Warn),
            "Strict" => Ok(Validation::Strict),
            other => Err(ApiError::bad_request(format!(
                "fieldValidation={other:?} is not supported; use Ignore, Warn or Strict"
            ))),
        }
    }
}

/// Percent-decoding with `+` as a space; what is not UTF-8 becomes U+FFFD.
pub(super) fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let mut ahead = bytes.clone();
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                match (digit(ahead.next()), digit(ahead.next())) {
                    (Some(high), Some(low)) => {
                        out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                        bytes = ahead;
                    }
                    _ => out.push(b'%'),
                }
            }
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let q = Query::parse(Some("labelSelector=app%3Dweb%2Cx+in+%28a%29&watch=True&limit=5&x"));
        assert_eq!(q.text("labelSelector"), "app=web,x in (a)");
        assert!(q.flag("watch") && q.has("x") && !q.flag("x"));
        assert_eq!(q.number("limit").unwrap(), Some(5));
        assert!(Query::parse(Some("limit=x")).number("limit").is_err());
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn words_outside_the_list_are_refused() {
        assert!(Query::parse(Some("dryRun=All")).dry_run().unwrap());
        assert!(Query::parse(Some("dryRun=Some")).dry_run().is_err());
        assert!(Query::parse(Some("fieldValidation=Loose")).validation().is_err());
    }
}
