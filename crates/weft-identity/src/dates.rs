// SPDX-License-Identifier: Apache-2.0
//! From when until when certificates hold, and whether somebody should be told.
//!
//! Called by the server, which watches its own certificates and those that users keep in Secrets.
//! It never judges trust, and reads no clock.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::leaf::{LeafError, ms, parse};

/// A chain that ends within this time, and within a third of its life, needs care.
const SOON_MS_MAX: u64 = 30 * 86_400_000;

/// A chain's dates: those of its first certificate, or of one above it that holds for less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    pub not_before_ms: u64,
    pub not_after_ms: u64,
}

/// How a chain stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// It ends in so many milliseconds.
    EndsSoon(u64),
    /// It ended so many milliseconds ago.
    Ended(u64),
    /// It begins in so many milliseconds: a clock is wrong.
    NotYet(u64),
}

// === impl Dates ===

impl Dates {
    /// Of a chain in DER.
    ///
    /// # Errors
    /// When there is no certificate, or one cannot be read.
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, LeafError> {
        let mut dates: Option<Self> = None;
        for cert in chain {
            let cert = parse(cert)?;
            let own = Self {
                not_before_ms: ms(cert.validity().not_before.timestamp()),
                not_after_ms: ms(cert.validity().not_after.timestamp()),
            };
            dates = Some(dates.map_or(own, |all| Self {
                not_before_ms: all.not_before_ms.max(own.not_before_ms),
                not_after_ms: all.not_after_ms.min(own.not_after_ms),
            }));
        }
        dates.ok_or_else(|| LeafError::Malformed("there is no certificate".into()))
    }

    /// Of a chain in PEM.
    ///
    /// # Errors
    /// As [`Dates::of_chain`].
    pub fn of_pem(pem: &str) -> Result<Self, LeafError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        Self::of_chain(&chain.map_err(|e| LeafError::Malformed(e.to_string()))?)
    }

    pub fn at(self, wall_ms: u64) -> Standing {
        if wall_ms < self.not_before_ms {
            return Standing::NotYet(self.not_before_ms - wall_ms);
        }
        if wall_ms > self.not_after_ms {
            return Standing::Ended(wall_ms - self.not_after_ms);
        }
        let left = self.not_after_ms - wall_ms;
        let life = self.not_after_ms.saturating_sub(self.not_before_ms);
        match left < SOON_MS_MAX.min(life / 3) {
            true => Standing::EndsSoon(left),
            false => Standing::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use std::time::Duration;
    use weft_base::clock::Clock;

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn the_shortest_life_of_a_chain_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, _) = Clock::manual();
        let ca = Authority::open(dir.path(), None, &clock).unwrap();
        let svid = ca.server_svid(Duration::from_hours(24)).unwrap();
        let root = Dates::of_chain(ca.bundle().roots()).unwrap();
        let whole = Dates::of_chain(svid.chain()).unwrap();
        assert_eq!(whole.not_after_ms, svid.leaf().not_after_ms);
        assert!(root.not_after_ms > whole.not_after_ms + 365 * DAY_MS);
        assert_eq!(Dates::of_pem(&ca.bundle().pem()).unwrap(), root);
        for wrong in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Dates::of_pem(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn care_is_needed_in_the_last_third_and_at_most_for_thirty_days() {
        let from = 1_000 * DAY_MS;
        let check = |days: u64, at_ms: u64, expect: Standing| {
            let dates = Dates { not_before_ms: from, not_after_ms: from + days * DAY_MS };
            assert_eq!(dates.at(at_ms), expect, "{days} days at {at_ms}");
        };
        check(90, from - 5, Standing::NotYet(5));
        check(90, from, Standing::Good);
        check(90, from + 60 * DAY_MS, Standing::Good);
        check(90, from + 60 * DAY_MS + 1, Standing::EndsSoon(30 * DAY_MS - 1));
        check(90, from + 90 * DAY_MS, Standing::EndsSoon(0));
        check(90, from + 90 * DAY_MS + 7, Standing::Ended(7));
        check(3_650, from + 3_600 * DAY_MS, Standing::Good);
        check(3_650, from + 3_621 * DAY_MS, Standing::EndsSoon(29 * DAY_MS));
    }
}
