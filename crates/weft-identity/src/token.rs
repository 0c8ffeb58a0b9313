// SPDX-License-Identifier: Apache-2.0
//! Bearer tokens: 256 random bits shown once, kept as a hash; and join tokens, which let one
//! agent obtain certain identities, once, for at most an hour.
//!
//! Called by the doors (`weft token`) and the agent's door. Pure: the registry keeps the records.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use weft_base::name::Label;

use crate::provider::{NoRandomness, random};

/// Longest life of a join token.
pub const JOIN_TTL_MAX: Duration = Duration::from_hours(1);
/// Identities one join token may allow.
pub const JOIN_IDENTITIES_MAX: usize = 256;
const PREFIX: &str = "weft_";

/// A token in the clear. Shown once to its owner; printing it for debugging hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(String);

/// Lets its bearer become a host of the mesh, once, and obtain identities there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinToken {
    pub hash: TokenHash,
    /// The name that the host must have; any free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Label>,
    pub allowed: Allowed,
    pub expires_ms: u64,
    /// When it was used.
    pub used_ms: Option<u64>,
}

/// Which identities a host may obtain for pods that the server places there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Allowed {
    /// Those of every pod that is placed there.
    Placed,
    /// Only these, and only pods with these are placed there: namespace and service account.
    Only(BTreeSet<(Label, Label)>),
}

/// Why a join token admits nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JoinError {
    #[error("the join token is not known; make one with `weft token create`")]
    Unknown,
    #[error("the join token expired; make a new one with `weft token create`")]
    Expired,
    #[error("the join token was used before; each serves once, make a new one")]
    Used,
    #[error("the join token is for the host {wanted}, not for {named}")]
    OtherHost { wanted: Label, named: Label },
    #[error("a join token must allow 1 to {JOIN_IDENTITIES_MAX} service accounts, not {0}")]
    Size(usize),
}

// === impl Token ===

impl Token {
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?))))
    }

    /// A token as somebody presented it.
    pub fn presented(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The secret itself, to show or send.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> TokenHash {
        let digest = Sha256::digest(self.0.as_bytes());
        TokenHash(digest.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Compares in constant time.
    pub fn matches(&self, hash: &TokenHash) -> bool {
        let own = self.hash();
        aws_lc_rs::constant_time::verify_slices_are_equal(own.0.as_bytes(), hash.0.as_bytes())
            .is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

// === impl JoinToken ===

impl JoinToken {
    /// A record for a new token; the life is cut to an hour.
    ///
    /// # Errors
    /// When nothing, or too much, is allowed.
    pub fn new(
        token: &Token,
        host: Option<Label>,
        allowed: Allowed,
        ttl: Duration,
        wall_ms: u64,
    ) -> Result<Self, JoinError> {
        if let Allowed::Only(set) = &allowed
            && (set.is_empty() || set.len() > JOIN_IDENTITIES_MAX)
        {
            return Err(JoinError::Size(set.len()));
        }
        let ttl = u64::try_from(ttl.min(JOIN_TTL_MAX).as_millis()).unwrap_or(u64::MAX);
        Ok(Self { hash: token.hash(), host, allowed, expires_ms: wall_ms + ttl, used_ms: None })
    }

    /// Uses the token up. The caller stores the changed record with compare-and-swap, so that two
    /// servers cannot both admit it.
    ///
    /// # Errors
    /// When it is another token, expired, used or another host's.
    pub fn redeem(&mut self, token: &Token, host: &Label, wall_ms: u64) -> Result<(), JoinError> {
        if !token.matches(&self.hash) {
            return Err(JoinError::Unknown);
        }
        if wall_ms >= self.expires_ms {
            return Err(JoinError::Expired);
        }
        if self.used_ms.is_some() {
            return Err(JoinError::Used);
        }
        if let Some(wanted) = self.host.as_ref().filter(|wanted| *wanted != host) {
            return Err(JoinError::OtherHost { wanted: wanted.clone(), named: host.clone() });
        }
        self.used_ms = Some(wall_ms);
        Ok(())
    }
}

// === impl TokenHash ===

impl TokenHash {
    /// Hexadecimal; the token's name in lists and in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Allowed ===

impl Allowed {
    pub fn admits(&self, namespace: &str, account: &str) -> bool {
        match self {
            Self::Placed => true,
            Self::Only(set) => {
                set.iter().any(|(n, a)| n.as_str() == namespace && a.as_str() == account)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(ns: &str, sa: &str) -> (Label, Label) {
        (Label::new(ns).unwrap(), Label::new(sa).unwrap())
    }

    #[test]
    fn tokens_differ_and_only_their_hash_is_kept() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_ne!(a, b);
        assert!(a.matches(&a.hash()));
        assert!(!a.matches(&b.hash()));
        assert!(!format!("{a:?}{:?}", a.hash()).contains(a.reveal()));
        // 256 bits in base64url.
        assert_eq!(a.reveal().len(), PREFIX.len() + 43);
    }

    #[test]
    fn a_join_token_serves_once_in_time_for_its_host() {
        let token = Token::generate().unwrap();
        let day = Duration::from_hours(24);
        let host = |name: &str| Label::new(name).unwrap();
        let fresh = JoinToken::new(&token, Some(host("m1")), Allowed::Placed, day, 1_000).unwrap();
        assert_eq!(fresh.expires_ms, 1_000 + 3_600_000);

        let mut join = fresh.clone();
        let other = Token::generate().unwrap();
        assert_eq!(join.redeem(&other, &host("m1"), 2_000), Err(JoinError::Unknown));
        let wrong = join.redeem(&token, &host("m2"), 2_000);
        assert!(matches!(wrong, Err(JoinError::OtherHost { .. })));
        assert_eq!(join.used_ms, None);
        assert_eq!(join.redeem(&token, &host("m1"), 2_000), Ok(()));
        assert_eq!(join.redeem(&token, &host("m1"), 2_001), Err(JoinError::Used));
        let late = fresh.clone().redeem(&token, &host("m1"), 3_601_000);
        assert_eq!(late, Err(JoinError::Expired));

        let free = JoinToken::new(&token, None, Allowed::Placed, day, 1_000);
        assert_eq!(free.unwrap().redeem(&token, &host("m2"), 2_000), Ok(()));
    }

    #[test]
    fn only_the_accounts_that_a_token_names_are_allowed() {
        let token = Token::generate().unwrap();
        let hour = Duration::from_hours(1);
        let only = Allowed::Only(BTreeSet::from([account("shop", "order")]));
        assert!(only.admits("shop", "order"));
        assert!(!only.admits("shop", "user") && !only.admits("order", "shop"));
        assert!(Allowed::Placed.admits("shop", "user"));
        let stored = JoinToken::new(&token, None, only, hour, 0).unwrap();
        let text = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<JoinToken>(&text).unwrap(), stored);
        let nothing = Allowed::Only(BTreeSet::new());
        let refused = JoinToken::new(&token, None, nothing, hour, 0);
        assert_eq!(refused.unwrap_err(), JoinError::Size(0));
    }
}
