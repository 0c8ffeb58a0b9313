// SPDX-License-Identifier: Apache-2.0
//! Seeded randomness for choices that need no secrecy: jitter, picks, ids of requests.
//! Secrets come from the TLS provider's generator in `weft-identity`.

use std::hash::{BuildHasher, Hasher, RandomState};

/// xorshift64*: small, fast, good enough to spread load; the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A seed from the process's own hash keys, which the system chose at random.
    pub fn from_system() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..bound` (Lemire's multiply-shift); 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        // The high 64 bits of a 128-bit product always fit.
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// `base` plus up to `percent` of it, so that many timers do not fire together.
    pub fn jitter(&mut self, base: std::time::Duration, percent: u32) -> std::time::Duration {
        let span = base.as_micros() * u128::from(percent) / 100;
        let extra = self.below(u64::try_from(span).unwrap_or(u64::MAX));
        base + std::time::Duration::from_micros(extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_is_in_range_and_even() {
        let mut rng = Rng::seeded(7);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[usize::try_from(rng.below(10)).unwrap()] += 1;
        }
        // 3 standard errors of a binomial(100000, 0.1) are 285.
        assert!(seen.iter().all(|n| n.abs_diff(10_000) < 400), "{seen:?}");
        assert_eq!(rng.below(0), 0);
    }
}
