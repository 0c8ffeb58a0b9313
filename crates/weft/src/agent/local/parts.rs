// SPDX-License-Identifier: Apache-2.0
//! What a server is told at once: as much as it takes in one message and writes in good time.
//! Everything of a machine where very much is registered goes in several, and the last of them
//! says what all that was. Pure. Called by [`super::sync`].

use serde::Serialize;
use weft_server::consul::sync::{ITEMS_MAX, SyncAsk};

/// Instances and checks of one message.
const PART_ITEMS: usize = 250;
const _: () = assert!(PART_ITEMS < ITEMS_MAX);
/// Bytes of one message, unless one instance alone has more.
const PART_BYTES: usize = 1024 * 1024;
/// Largest message, bytes: the link's own bound is a little more.
pub const BYTES_MAX: usize = 7 * 1024 * 1024;

/// Messages under construction.
#[derive(Default)]
struct Parts {
    done: Vec<SyncAsk>,
    open: SyncAsk,
    items: usize,
    bytes: usize,
}

/// The same in as many messages as it takes, and what is too large for any.
pub fn of(ask: SyncAsk) -> (Vec<SyncAsk>, Vec<String>) {
    if ask.items() <= PART_ITEMS && size(&ask) <= PART_BYTES {
        return (vec![ask], Vec::new());
    }
    let there = ask.whole.then(|| ask.marks());
    let (mut parts, mut large) = (Parts::default(), Vec::new());
    for service in ask.services {
        let bytes = size(&service);
        if bytes > BYTES_MAX - PART_BYTES {
            large.push(format!("service {}", service.registration.id));
            continue;
        }
        parts.room(service.items(), bytes).services.push(service);
    }
    for check in ask.checks {
        let bytes = size(&check);
        if bytes > BYTES_MAX - PART_BYTES {
            large.push(format!("check {}", check.check.id));
            continue;
        }
        parts.room(1, bytes).checks.push(check);
    }
    for gone in ask.gone {
        parts.room(1, size(&gone)).gone.push(gone);
    }
    for gone in ask.gone_checks {
        parts.room(1, size(&gone)).gone_checks.push(gone);
    }
    parts.close();
    if there.is_some() {
        parts.done.push(SyncAsk { there, ..SyncAsk::default() });
    }
    (parts.done, large)
}

fn size(of: &impl Serialize) -> usize {
    // What cannot be written is too large.
    serde_json::to_vec(of).map_or(usize::MAX, |json| json.len() + 1)
}

// === impl Parts ===

impl Parts {
    /// A message that has room for so much more.
    fn room(&mut self, items: usize, bytes: usize) -> &mut SyncAsk {
        if self.items + items > PART_ITEMS || self.bytes + bytes > PART_BYTES {
            self.close();
        }
        self.items += items;
        self.bytes += bytes;
        &mut self.open
    }

    fn close(&mut self) {
        if self.items > 0 {
            self.done.push(std::mem::take(&mut self.open));
        }
        (self.items, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use weft_kinds::views::catalog::Registration;
    use weft_server::consul::sync::{SyncCheck, SyncService};

    use super::*;

    fn service(id: &str, checks: usize) -> SyncService {
        let registration = Registration { id: id.into(), ..Registration::default() };
        let checks = (0..checks).map(|_| SyncCheck::default()).collect();
        SyncService { registration, checks, ..SyncService::default() }
    }

    fn ids(parts: &[SyncAsk]) -> Vec<String> {
        let of = parts.iter().flat_map(|part| &part.services);
        of.map(|service| service.registration.id.to_string()).collect()
    }

    #[test]
    fn what_is_little_is_told_as_it_is() {
        let services = vec![service("a", 2)];
        let ask = SyncAsk { whole: true, services, ..SyncAsk::default() };
        assert_eq!(of(ask.clone()), (vec![ask], Vec::new()));
    }

    #[test]
    fn whatever_is_registered_here_can_be_told() {
        let count = 2 * ITEMS_MAX;
        let services: Vec<_> = (0..count).map(|n| service(&format!("s{n}"), n % 3)).collect();
        let ask = SyncAsk { whole: true, services, ..SyncAsk::default() };
        let marks = ask.marks();
        let (parts, large) = of(ask);
        assert!(large.is_empty());
        assert!(parts.iter().all(|p| !p.whole && p.items() <= PART_ITEMS && size(p) <= BYTES_MAX));
        let (last, rest) = parts.split_last().unwrap();
        assert_eq!(last, &SyncAsk { there: Some(marks), ..SyncAsk::default() });
        assert!(rest.iter().all(|part| part.there.is_none()));
        let wanted: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
        assert_eq!(ids(&parts), wanted);
    }

    #[test]
    fn one_that_is_too_large_holds_up_no_other() {
        let long = "x".repeat(600_000);
        let mut services: Vec<_> = (0..5).map(|n| service(&format!("s{n}"), 0)).collect();
        services.iter_mut().for_each(|s| s.registration.address = long.as_str().into());
        services[2].registration.address = long.repeat(11).into();
        let gone = vec![("default".into(), "old".into())];
        let ask = SyncAsk { services, gone, ..SyncAsk::default() };
        let (parts, large) = of(ask);
        assert_eq!(large, ["service s2"]);
        assert_eq!(ids(&parts), ["s0", "s1", "s3", "s4"]);
        assert!(parts.iter().all(|part| part.there.is_none() && size(part) <= BYTES_MAX));
        assert_eq!(parts.iter().map(|part| part.gone.len()).sum::<usize>(), 1);
    }
}
