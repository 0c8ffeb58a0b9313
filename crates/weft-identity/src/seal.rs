// SPDX-License-Identifier: Apache-2.0
//! Secrets sealed for keeping where others may look: AES-256-GCM under a key that operators give
//! to every server of a mesh. Called by the binary for the authority's key in a shared store.
//! Never stores, never logs.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, RandomizedNonceKey};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Shortest secret that a key is made of, bytes.
pub const SECRET_BYTES_MIN: usize = 32;
/// Before everything sealed here, so that a change of form is told.
const FORM: &[u8] = b"weftseal1";

/// What seals and opens.
pub struct SealKey(RandomizedNonceKey);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    #[error(
        "the seal key is shorter than {SECRET_BYTES_MIN} bytes; make one with `head -c 32 \
         /dev/urandom | base64`"
    )]
    Short,
    #[error("it was sealed by a newer weft; use that one")]
    Newer,
    #[error("it was sealed with another key, or was changed since; give this server the same one")]
    Other,
    #[error("sealing failed")]
    Failed,
}

// === impl SealKey ===

impl SealKey {
    /// Makes a key of a secret: the bytes of a file, blanks around them left out.
    ///
    /// # Errors
    /// [`SealError::Short`].
    pub fn new(secret: &[u8]) -> Result<Self, SealError> {
        let secret = secret.trim_ascii();
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SealError::Short);
        }
        let key = Sha256::new().chain_update(b"weft seal ").chain_update(secret).finalize();
        RandomizedNonceKey::new(&AES_256_GCM, &key).map(Self).map_err(|_| SealError::Failed)
    }

    /// Seals `plain`; `what` says what it is, and must be said to open it.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn seal(&self, what: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut data = plain.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(what.as_bytes()), &mut data);
        let nonce = nonce.map_err(|_| SealError::Failed)?;
        Ok([FORM, nonce.as_ref().as_slice(), &data].concat())
    }

    /// Opens what was sealed as `what` with the same key.
    ///
    /// # Errors
    /// When it was not, or was changed.
    pub fn open(&self, what: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let rest = sealed.strip_prefix(FORM).ok_or(SealError::Newer)?;
        let (nonce, data) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Other)?;
        let nonce = <[u8; NONCE_LEN]>::try_from(nonce).map_err(|_| SealError::Other)?;
        let mut data = data.to_vec();
        let plain = self.0.open_in_place((&nonce).into(), Aad::from(what.as_bytes()), &mut data);
        plain.map(|plain| plain.to_vec()).map_err(|_| SealError::Other)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_name_only() {
        let key = SealKey::new(&[7; 32]).unwrap();
        let sealed = key.seal("ca", b"-----BEGIN").unwrap();
        assert!(!sealed.windows(5).any(|w| w == b"BEGIN"), "it is not plain");
        assert_ne!(sealed, key.seal("ca", b"-----BEGIN").unwrap(), "never twice the same");
        let same = SealKey::new(&[&b"\n"[..], &[7; 32], b"\n"].concat()).unwrap();
        assert_eq!(same.open("ca", &sealed).unwrap(), b"-----BEGIN");
        assert_eq!(same.open("token", &sealed), Err(SealError::Other));
        assert_eq!(SealKey::new(&[8; 32]).unwrap().open("ca", &sealed), Err(SealError::Other));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("ca", &changed).is_err(), "changed at {at}");
            assert!(key.open("ca", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(SealKey::new(&[7; 31]), Err(SealError::Short)));
        assert_eq!(format!("{key:?}"), "SealKey");
    }
}
