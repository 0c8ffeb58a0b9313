// SPDX-License-Identifier: Apache-2.0
//! The one crypto provider (aws-lc), secret randomness and dates of certificates.
//!
//! Everything in weft that needs TLS takes the provider from here, so that a second one linked in
//! by some dependency can never be chosen.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use weft_base::clock::Clock;

/// The provider for all configurations.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// Makes it the process's default too, for libraries that ask for one. Call first in `main`;
/// a second call changes nothing.
pub fn install() {
    // An error only says that a default is already set.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Bytes for secrets, from the provider's generator.
///
/// # Errors
/// When the system has no randomness to give, which nothing can go on without.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).map_err(|_| NoRandomness)?;
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
