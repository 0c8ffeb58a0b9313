// SPDX-License-Identifier: Apache-2.0
//! The one crypto provider (aws-lc), secret randomness and dates of certificates.
//!
//! Everything in weft that needs TLS takes the provider from here, so that a second one linked in
//! by some dependency can never be chosen.

use std::sync::Arc;

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use weft_base::clock::Clock;

/// The provider for all configurations.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(made())).clone()
}

/// The cheapest cipher is first. Two proxies of the mesh use it, and so does a listener's client
/// that knows it, as with other servers of today: TLS 1.3 asks for it of everybody, and SHA-384,
/// which comes with the longer key, costs a tenth of a handshake.
fn made() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let cheapest = CipherSuite::TLS13_AES_128_GCM_SHA256;
    if has_aes() {
        // Sorting is stable: the others keep their order.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != cheapest);
    }
    provider
}

/// Whether this processor has instructions for AES; one that has none leaves the choice of a
/// cipher to its clients.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
pub(crate) fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
pub(crate) fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn has_aes() -> bool {
    false
}

/// Makes it the process's default too, for libraries that ask for one. Call first in `main`;
/// a second call changes nothing.
pub fn install() {
    // An error only says that a default is already set.
    let _ = made().install_default();
}

/// Bytes for secrets, from the provider's generator.
///
/// # Errors
/// When the system has no randomness to give, which nothing can go on without.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut out = [0; N];
    ::aws_lc_rs::rand::fill(&mut out).map_err(|_| NoRandomness)?;
    Ok(out)
}

/// The system's random generator failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gave no random bytes; check that getrandom(2) is allowed here")]
pub struct NoRandomness;

/// weft's clock as rustls asks for it, so that expiry is testable.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Clock);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        let wall = std::time::Duration::from_millis(self.0.wall_ms());
        Some(UnixTime::since_unix_epoch(wall))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_cipher_is_first_and_none_is_missing() {
        let suites = |provider: &CryptoProvider| -> Vec<CipherSuite> {
            provider.cipher_suites.iter().map(|suite| suite.suite()).collect()
        };
        let (own, mut usual) = (suites(&made()), suites(&aws_lc_rs::default_provider()));
        if has_aes() {
            assert_eq!(own[0], CipherSuite::TLS13_AES_128_GCM_SHA256);
            usual.retain(|suite| *suite != own[0]);
            usual.insert(0, own[0]);
        }
        assert_eq!(own, usual);
    }
}
