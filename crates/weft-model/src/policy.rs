// SPDX-License-Identifier: Apache-2.0
//! What rules ask for beyond a destination: faults, mirrors, CORS, sessions. Data only; what each
//! means for one request is decided in `decide::policy`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{StringMatch, Target};

/// Parts of a million. Finer than basis points: both dialects ask for less than one in 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u32);

/// Trouble made on purpose. Both parts may hit the same request, the delay first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    pub delay: Option<Delay>,
    pub abort: Option<Abort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    pub ms: u64,
    pub share: Share,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    pub answer: AbortAnswer,
    pub share: Share,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortAnswer {
    Http(u16),
    Grpc(u16),
}

/// A copy of some requests, sent elsewhere; nobody waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    pub target: Target,
    pub share: Share,
    /// Istio marks copies by their host: `user` becomes `user-shadow`.
    pub mark_host: bool,
}

/// Cross-origin resource sharing (the Fetch standard's protocol).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// [`StringMatch::Present`] is `*`, every origin.
    pub origins: Vec<StringMatch>,
    /// `*` among them is every method.
    pub methods: Vec<Arc<str>>,
    pub headers: Vec<Arc<str>>,
    pub expose: Vec<Arc<str>>,
    pub max_age_s: Option<u64>,
    pub credentials: bool,
    /// Preflights of other origins go on to the app instead of being answered without leave.
    pub forward_unmatched: bool,
}

/// Requests of one client's session go to the instance that took its first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    pub by: SessionBy,
    /// Of the cookie or header.
    pub name: Arc<str>,
    /// How long after its beginning a session ends.
    pub absolute_s: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionBy {
    /// `path`-less cookie of the browser's session, or one that outlives it.
    Cookie {
        permanent: bool,
    },
    Header,
}

// === impl Share ===

impl Share {
    pub const ALL: Self = Self(1_000_000);
    pub const NONE: Self = Self(0);
    /// What a random point of [`Share::takes`] is below.
    pub const POINTS: u64 = 1_000_000;

    /// `part` of `whole`, at most all of it.
    pub fn of(part: u64, whole: u64) -> Self {
        let points = u128::from(part) * u128::from(Self::POINTS) / u128::from(whole.max(1));
        u32::try_from(points).map_or(Self::ALL, |p| Self(p.min(Self::ALL.0)))
    }

    /// Whether a request is one of the share; `point` is uniform in `0..POINTS`.
    pub fn takes(self, point: u64) -> bool {
        point < u64::from(self.0)
    }

    /// `12.5 %`
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} %", self.percent())
    }
}
