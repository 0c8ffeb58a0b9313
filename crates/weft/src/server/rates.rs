// SPDX-License-Identifier: Apache-2.0
//! Requests per second of pods and services over the last seconds, from counters that were read
//! now and then: what autoscalers go by. A counter that restarts counts from nothing. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::Mono;

/// How far back a rate reaches.
const WINDOW: Duration = Duration::from_secs(15);
/// Readings kept, however often they come.
const READINGS_MAX: usize = 64;

/// `namespace/name`.
pub type Name = Arc<str>;

/// Counters of one proxy by service: requests that it sent there, and that it took in.
pub type Reading = BTreeMap<IpAddr, BTreeMap<Name, Flow>>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub sent: u64,
    pub taken: u64,
}

/// The readings of the last seconds.
#[derive(Debug, Default)]
pub struct Rates {
    readings: VecDeque<(Mono, Reading)>,
}

/// What a proxy saw between its first and its last reading.
#[derive(Default)]
struct Sum {
    since: Option<Mono>,
    flows: BTreeMap<Name, Flow>,
}

// === impl Rates ===

impl Rates {
    pub fn push(&mut self, at: Mono, reading: Reading) {
        self.readings.push_back((at, reading));
        let old = |r: &(Mono, Reading)| at.since(r.0) > WINDOW;
        while self.readings.len() > READINGS_MAX || self.readings.front().is_some_and(old) {
            self.readings.pop_front();
        }
    }

    /// Thousandths of requests per second: those that each pod took in, and those that were sent
    /// to each service. A pod that was read only once is not there yet.
    pub fn milli(
        &self,
        pods: &BTreeMap<IpAddr, Name>,
    ) -> (BTreeMap<Name, u64>, BTreeMap<Name, u64>) {
        let (mut taken, mut sent) = (BTreeMap::new(), BTreeMap::<Name, u64>::new());
        let Some((now, last)) = self.readings.back() else { return (taken, sent) };
        for ip in last.keys() {
            let sum = self.sum(*ip);
            let Some(since) = sum.since.filter(|s| s < now) else { continue };
            let millis = now.since(since).as_millis().max(1);
            let rate =
                |n: u64| u64::try_from(u128::from(n) * 1_000_000 / millis).unwrap_or(u64::MAX);
            if let Some(pod) = pods.get(ip) {
                let all = sum.flows.values().map(|f| f.taken).sum();
                taken.insert(pod.clone(), rate(all));
            }
            for (service, flow) in sum.flows {
                *sent.entry(service).or_default() += rate(flow.sent);
            }
        }
        (taken, sent)
    }

    fn sum(&self, ip: IpAddr) -> Sum {
        let mut out = Sum::default();
        let mut before: Option<&BTreeMap<Name, Flow>> = None;
        for (at, reading) in &self.readings {
            let Some(flows) = reading.get(&ip) else { continue };
            if let Some(before) = before {
                for (service, flow) in flows {
                    let was = before.get(service).copied().unwrap_or_default();
                    let sum = out.flows.entry(service.clone()).or_default();
                    sum.sent += more(flow.sent, was.sent);
                    sum.taken += more(flow.taken, was.taken);
                }
            }
            out.since = out.since.or(Some(*at));
            before = Some(flows);
        }
        out
    }
}

fn more(now: u64, was: u64) -> u64 {
    if now < was { now } else { now - was }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(entries: &[(u8, &str, u64, u64)]) -> Reading {
        let mut out = Reading::new();
        for (host, service, sent, taken) in entries {
            let flow = Flow { sent: *sent, taken: *taken };
            let ip = IpAddr::from([127, 64, 0, *host]);
            out.entry(ip).or_default().insert((*service).into(), flow);
        }
        out
    }

    #[test]
    fn rates_are_of_the_window_and_survive_restarts() {
        let pods: BTreeMap<IpAddr, Name> =
            (1..=3).map(|n| (IpAddr::from([127, 64, 0, n]), format!("shop/p{n}").into())).collect();
        let mut rates = Rates::default();
        rates.push(Mono(0), reading(&[(1, "shop/a", 0, 100), (2, "shop/a", 50, 0)]));
        assert_eq!(rates.milli(&pods).0.len(), 0, "one reading is no rate");
        rates.push(Mono(1000), reading(&[(1, "shop/a", 0, 130), (2, "shop/a", 80, 0)]));
        let (taken, sent) = rates.milli(&pods);
        assert_eq!((taken["shop/p1"], taken["shop/p2"]), (30_000, 0));
        assert_eq!(sent["shop/a"], 30_000);
        // The proxy of pod 2 restarts, pod 3 comes.
        rates.push(
            Mono(2000),
            reading(&[(1, "shop/a", 0, 130), (2, "shop/a", 10, 0), (3, "shop/a", 0, 7)]),
        );
        let (taken, sent) = rates.milli(&pods);
        assert_eq!((taken["shop/p1"], sent["shop/a"]), (15_000, 20_000));
        assert!(!taken.contains_key("shop/p3"));
        // What is older than the window does not count.
        rates.push(Mono(16_500), reading(&[(1, "shop/a", 0, 130)]));
        assert_eq!(rates.milli(&pods).0["shop/p1"], 0);
    }
}
