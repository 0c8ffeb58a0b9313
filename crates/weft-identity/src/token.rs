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

/// Lets its bearer obtain these identities, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinToken {
    pub hash: TokenHash,
    /// Namespace and service account.
    pub allowed: BTreeSet<(Label, Label)>,
    pub expires_ms: u64,
    /// When it was used.
    pub used_ms: Option<u64>,
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
    #[error("the join token does not allow the service account {namespace}/{account}")]
    NotAllowed { namespace: Label, account: Label },
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
        allowed: BTreeSet<(Label, Label)>,
        ttl: Duration,
        wall_ms: u64,
    ) -> Result<Self, JoinError> {
        if allowed.is_empty() || allowed.len() > JOIN_IDENTITIES_MAX {
            return Err(JoinError::Size(allowed.len()));
        }
        let ttl = u64::try_from(ttl.min(JOIN_TTL_MAX).as_millis()).unwrap_or(u64::MAX);
        Ok(Self { hash: token.hash(), allowed, expires_ms: wall_ms + ttl, used_ms: None })
    }

    /// Uses the token up. The caller stores the changed record with compare-and-swap, so that two
    /// servers cannot both admit it.
    ///
    /// # Errors
    /// When it is another token, expired or used.
    pub fn redeem(&mut self, token: &Token, wall_ms: u64) -> Result<(), JoinError> {
        if !token.matches(&self.hash) {
            return Err(JoinError::Unknown);
        }
        if wall_ms >= self.expires_ms {
            return Err(JoinError::Expired);
        }
        if self.used_ms.is_some() {
            return Err(JoinError::Used);
        }
        self.used_ms = Some(wall_ms);
        Ok(())
    }

    /// # Errors
    /// When the service account is not among the allowed ones.
    pub fn allows(&self, namespace: &Label, account: &Label) -> Result<(), JoinError> {
        let (namespace, account) = (namespace.clone(), account.clone());
        if self.allowed.contains(&(namespace.clone(), account.clone())) {
            Ok(())
        } else {
            Err(JoinError::NotAllowed { namespace, account })
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
    fn a_join_token_serves_once_in_time_for_what_it_names() {
        let token = Token::generate().unwrap();
        let allowed = BTreeSet::from([account("shop", "order")]);
        let day = Duration::from_hours(24);
        let fresh = JoinToken::new(&token, allowed, day, 1_000).unwrap();
        assert_eq!(fresh.expires_ms, 1_000 + 3_600_000);

        let mut join = fresh.clone();
        let other = Token::generate().unwrap();
        assert_eq!(join.redeem(&other, 2_000), Err(JoinError::Unknown));
        assert_eq!(join.redeem(&token, 2_000), Ok(()));
        assert_eq!(join.redeem(&token, 2_001), Err(JoinError::Used));
        assert_eq!(fresh.clone().redeem(&token, 3_601_000), Err(JoinError::Expired));

        let (ns, sa) = account("shop", "order");
        assert!(join.allows(&ns, &sa).is_ok());
        let (ns, sa) = account("shop", "user");
        assert!(join.allows(&ns, &sa).is_err());
        assert_eq!(
            JoinToken::new(&token, BTreeSet::new(), day, 0).unwrap_err(),
            JoinError::Size(0)
        );
    }
}
