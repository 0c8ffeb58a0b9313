// SPDX-License-Identifier: Apache-2.0
//! How often an address may try to join. Guessing a token is hopeless anyway; this keeps the
//! trying cheap. Pure: the door says what time it is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use weft_base::clock::Mono;

/// Tries at once.
const BURST: u32 = 10;
/// One more after this long.
const EVERY: Duration = Duration::from_secs(5);
/// Addresses remembered.
const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub struct Throttle {
    tries: HashMap<Option<IpAddr>, (u32, Mono)>,
}

// === impl Throttle ===

impl Throttle {
    /// Whether another try is admitted now; it counts.
    pub fn admit(&mut self, from: Option<IpAddr>, now: Mono) -> bool {
        if self.tries.len() >= ADDRESSES_MAX && !self.tries.contains_key(&from) {
            self.tries.retain(|_, (left, since)| refilled(*left, *since, now).0 < BURST);
            if self.tries.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let (left, since) = self.tries.entry(from).or_insert((BURST, now));
        (*left, *since) = refilled(*left, *since, now);
        if *left == 0 {
            return false;
        }
        *left -= 1;
        true
    }
}

/// What is left by now, and since when the next one grows.
fn refilled(left: u32, since: Mono, now: Mono) -> (u32, Mono) {
    let every = EVERY.as_millis();
    let grown = now.since(since).as_millis() / every;
    let grown = u32::try_from(grown).unwrap_or(u32::MAX);
    let full = left.saturating_add(grown) >= BURST;
    if full {
        return (BURST, now);
    }
    (left + grown, since.plus(EVERY * grown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_tries_and_they_grow_again() {
        let mut throttle = Throttle::default();
        let at = |s: u64| Mono(s * 1000);
        let ip = |text: &str| Some(text.parse().unwrap());
        for _ in 0..BURST {
            assert!(throttle.admit(ip("10.0.0.1"), at(0)));
        }
        assert!(!throttle.admit(ip("10.0.0.1"), at(4)));
        assert!(throttle.admit(ip("10.0.0.2"), at(4)));
        assert!(throttle.admit(ip("10.0.0.1"), at(5)));
        assert!(!throttle.admit(ip("10.0.0.1"), at(9)));
        assert!(throttle.admit(ip("10.0.0.1"), at(10)));
        // An hour later all are there again, and no more than that.
        let admitted = (0..BURST * 2).filter(|_| throttle.admit(ip("10.0.0.1"), at(3600))).count();
        assert_eq!(admitted, BURST as usize);
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let mut throttle = Throttle::default();
        for i in 0..10_000_u32 {
            throttle.admit(Some(std::net::Ipv4Addr::from(i).into()), Mono(0));
        }
        assert_eq!(throttle.tries.len(), ADDRESSES_MAX);
        assert!(throttle.admit(None, Mono(60_000)), "those that are rested are forgotten");
        assert!(throttle.tries.len() < 10);
    }
}
