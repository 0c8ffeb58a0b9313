// SPDX-License-Identifier: Apache-2.0
//! A request's query, read by Consul's rules: flags count by presence, some names repeat.

use std::time::Duration;

use super::duration;
use super::error::Refusal;

/// The longest that a blocking query waits, and how long when it does not say.
pub const WAIT_MAX: Duration = Duration::from_secs(600);
pub const WAIT_DEFAULT: Duration = Duration::from_secs(300);
/// Parameters of one request.
const PARAMS_MAX: usize = 128;

#[derive(Clone, Debug, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
    /// A query that waited waits no longer.
    over: bool,
}

/// How a read may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Answer once the index is past this; 0 answers at once.
    pub index: u64,
    pub wait: Duration,
    pub stale: bool,
    pub consistent: bool,
    /// An answer that was known before would do.
    pub cached: bool,
    /// It has waited for as long as it may.
    pub over: bool,
}

// === impl Blocking ===

impl Blocking {
    /// Whether an answer with this index is one that the client does not have, or one that it
    /// gets all the same; everything up to `head` is known here. A client's index that is past
    /// the answer's is another server's for the same, as it is known here, too: it waits, or it
    /// would be sent to and fro between two servers in turn. One past `head` is of another life.
    pub fn is_answered_by(&self, index: u64, head: u64) -> bool {
        self.over || self.index == 0 || index > self.index || self.index > head
    }

    /// The index to tell the client with such an answer: it never goes back within one life.
    pub fn told(&self, index: u64, head: u64) -> u64 {
        if self.index <= head { index.max(self.index) } else { index }
    }
}

// === impl Params ===

impl Params {
    /// # Errors
    /// When there are too many parameters to be meant, or one is no text.
    pub fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut pairs = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            if pairs.len() >= PARAMS_MAX {
                return Err(Refusal::bad(format!(
                    "the query has more than {PARAMS_MAX} parameters; send fewer"
                )));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(name, true)?, decode(value, true)?));
        }
        pairs.shrink_to_fit();
        Ok(Self { pairs, over: false })
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first value that says something.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A flag is set by being there, unless it says that it is not: `?passing`, `?passing=1`,
    /// `?passing=True` are set, `?passing=false` is not.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False"))
    }

    /// # Errors
    /// When `index` or `wait` does not parse, or consistency modes conflict.
    pub fn blocking(&self) -> Result<Blocking, Refusal> {
        let (stale, consistent) = (self.flag("stale"), self.flag("consistent"));
        if stale && consistent {
            return Err(Refusal::bad(
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ));
        }
        let cached = self.flag("cached");
        if cached && consistent {
            return Err(Refusal::bad(
                "Cannot specify ?cached with ?consistent, conflicting semantics.",
            ));
        }
        let index = match self.filled("index") {
            None => 0,
            Some(text) => text.parse().map_err(|_| Refusal::bad("Invalid index"))?,
        };
        let wait = match self.filled("wait") {
            None => WAIT_DEFAULT,
            // As in Consul less than no time is as none.
            Some(text) => match text.strip_prefix('-') {
                Some(less) => duration::parse(less).map(|_| WAIT_DEFAULT),
                None => duration::parse(text),
            }
            .ok_or_else(|| Refusal::bad("Invalid wait time"))?,
        };
        let wait = if wait.is_zero() { WAIT_DEFAULT } else { wait.min(WAIT_MAX) };
        Ok(Blocking { index, wait, stale, consistent, cached, over: self.over })
    }

    /// Whether what is asked for is a part only of what its path names.
    pub fn is_partial(&self) -> bool {
        let parts = ["filter", "tag", "node-meta", "passing"];
        self.pairs.iter().any(|(name, _)| parts.contains(&name.as_str()))
    }

    /// Whether it waited for as long as it may.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What waited is answered now, whatever there is.
    pub fn wait_no_more(&mut self) {
        self.over = true;
    }

    /// `node-meta=key:value`, repeated: all must hold.
    pub fn node_meta(&self) -> Vec<(String, String)> {
        self.all("node-meta")
            .map(|pair| pair.split_once(':').unwrap_or((pair, "")))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }
}

/// Undoes percent-encoding; `+` is a space in a query and itself in a path.
///
/// # Errors
/// 400 when an escape is none, or what comes out is no text: two names would be one.
pub fn decode(text: &str, plus: bool) -> Result<String, Refusal> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let pair = bytes.next().and_then(hex).zip(bytes.next().and_then(hex));
                let (high, low) = pair.ok_or_else(|| {
                    Refusal::bad("invalid URL escape: \"%\" is followed by two hexadecimal digits")
                })?;
                out.push(high << 4 | low);
            }
            b'+' if plus => out.push(b' '),
            _ => out.push(b),
        }
    }
    String::from_utf8(out)
        .map_err(|_| Refusal::bad("the request's address is not UTF-8: names and keys are text"))
}

fn hex(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        Params::parse(Some(query)).unwrap()
    }

    #[test]
    fn flags_count_by_presence() {
        for set in ["passing", "passing=", "passing=1", "passing=True", "a=b&passing=true"] {
            assert!(params(set).flag("passing"), "{set}");
        }
        for unset in ["", "a=passing", "passing=false", "passing=0"] {
            assert!(!params(unset).flag("passing"), "{unset}");
        }
    }

    #[test]
    fn names_repeat_and_are_decoded() {
        let p = params("tag=a&tag=b%2Fc+d&node-meta=rack:1&node-meta=x");
        assert_eq!(p.all("tag").collect::<Vec<_>>(), ["a", "b/c d"]);
        assert_eq!(p.node_meta(), [("rack".into(), "1".into()), ("x".into(), String::new())]);
    }

    #[test]
    fn what_is_no_text_is_refused_and_made_into_none() {
        assert_eq!(decode("a%2Fb%c3%a9+", false).unwrap(), "a/b\u{e9}+");
        for wrong in ["%ff", "%fe%ff", "%zz", "a%", "a%4", "%c3"] {
            assert_eq!(decode(wrong, false).unwrap_err().status, 400, "{wrong}");
            assert!(Params::parse(Some(&format!("tag={wrong}"))).is_err(), "{wrong}");
        }
    }

    #[test]
    fn waits_have_a_default_and_a_maximum() {
        let of = |q: &str| params(q).blocking().unwrap();
        assert_eq!((of("").index, of("").wait), (0, WAIT_DEFAULT));
        assert_eq!(of("index=7&wait=20ms").wait, Duration::from_millis(20));
        assert_eq!(of("index=7&wait=1h").wait, WAIT_MAX);
        assert_eq!(of("index=7&wait=-20ms").wait, WAIT_DEFAULT);
        for bad in [
            "index=x",
            "index=-1",
            "wait=10",
            "wait=x",
            "wait=--1s",
            "stale&consistent",
            "cached&consistent",
        ] {
            assert!(params(bad).blocking().is_err(), "{bad}");
        }
    }

    #[test]
    fn too_many_parameters_are_refused() {
        assert!(Params::parse(Some(&"a&".repeat(PARAMS_MAX + 1))).is_err());
    }
}
