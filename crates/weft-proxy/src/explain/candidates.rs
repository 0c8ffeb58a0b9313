// SPDX-License-Identifier: Apache-2.0
//! A backend's instances as they are chosen from, and what the proxy that is asked knows of each
//! now: ejected until when and for what, what its check said, slow start, requests in flight.

use std::sync::Arc;

use serde::Serialize;
use weft_base::clock::Mono;
use weft_model::decide::{Member, Shares, Standing, total_weight, warm_basis_points};

use super::percent;
use crate::table::{BackendEntry, EndpointEntry};

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Candidate {
    pub backend: String,
    pub instance: String,
    pub address: String,
    pub weight: u32,
    /// Of this backend's requests.
    pub percent: f64,
    pub why: String,
    /// The same of what is known of it now, in words; empty when nobody was asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// What a proxy knows of an instance now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Live {
    /// Of all its workers.
    pub in_flight: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected: Option<Ejected>,
    /// It asked for a pause that lasts so much longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pausing_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Checked>,
    /// Of its weight, while it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_percent: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ejected {
    /// For how much longer.
    pub ms: u64,
    /// How often in a row.
    pub times: u32,
    pub why: String,
}

/// The last answer to the proxy's own health check.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Checked {
    pub passed: bool,
    pub ago_ms: u64,
    /// Of a failure.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: Arc<str>,
}

/// A backend's instances. `now` is the time of a proxy that serves from this table; without it
/// nothing is known beside the table.
pub(super) fn of(entry: &BackendEntry, now: Option<Mono>) -> Vec<Candidate> {
    let member = |(i, e): (usize, &Arc<EndpointEntry>)| match now {
        Some(now) => entry.member(i, e, now).0,
        None => untouched(entry, i, e),
    };
    let members: Vec<Member> = entry.endpoints.iter().enumerate().map(member).collect();
    let mut shares = Shares::default();
    shares.settle(&members, &entry.places.rule, entry.backend.policy.panic_basis_points);
    let total = total_weight(&shares.weights);
    let each = entry.endpoints.iter().zip(&shares.weights).zip(&shares.standings);
    let candidate = |((e, weight), standing): ((&Arc<EndpointEntry>, &u32), &Standing)| {
        let live = now.map(|now| live(entry, e, now));
        Candidate {
            backend: entry.label(),
            instance: e.endpoint.id.to_string(),
            address: e.endpoint.address.to_string(),
            weight: e.endpoint.weight,
            percent: percent(u64::from(*weight), total),
            why: standing.to_string(),
            state: live.as_ref().map(ToString::to_string).unwrap_or_default(),
            live,
        }
    };
    each.map(candidate).collect()
}

/// An instance of a table that nobody serves from.
fn untouched(entry: &BackendEntry, index: usize, e: &EndpointEntry) -> Member {
    Member {
        weight: e.endpoint.weight,
        health: e.endpoint.health,
        failing: false,
        ejected: false,
        pausing: false,
        warm_basis_points: 10_000,
        place: entry.places.of(index),
    }
}

fn live(entry: &BackendEntry, e: &EndpointEntry, now: Mono) -> Live {
    let shared = &e.shared;
    let ejected = shared.ejection(now).map(|(ms, times, why)| {
        let why = why.map(|why| why.to_string()).unwrap_or_default();
        Ejected { ms, times, why }
    });
    let check = shared.checked().map(|(at, why)| Checked {
        passed: why.is_none(),
        ago_ms: ms(now.since(at)),
        why: why.unwrap_or_else(|| "".into()),
    });
    let warm = entry.backend.policy.warmup.as_ref().map(|w| {
        let points = warm_basis_points(w, shared.healthy_ms(now));
        f64::from(points) / 100.0
    });
    Live {
        in_flight: shared.in_flight(),
        ejected,
        pausing_ms: shared.pausing_ms(now),
        check,
        warm_percent: warm.filter(|percent| *percent < 100.0),
    }
}

fn ms(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

// === impl Live ===

impl std::fmt::Display for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in flight", self.in_flight)?;
        if let Some(Ejected { ms, times, why }) = &self.ejected {
            write!(f, "; ejected for {ms} ms more: {why}")?;
            if *times > 1 {
                write!(f, " (time {times} in a row)")?;
            }
        }
        if let Some(ms) = self.pausing_ms {
            write!(f, "; asked for a pause, {ms} ms more")?;
        }
        match &self.check {
            Some(Checked { passed: true, ago_ms, .. }) => {
                write!(f, "; passed its check {ago_ms} ms ago")?;
            }
            Some(Checked { ago_ms, why, .. }) => {
                write!(f, "; failed its check {ago_ms} ms ago: {why}")?;
            }
            None => {}
        }
        match self.warm_percent {
            Some(percent) => write!(f, "; slow start, {percent:.0} % of its weight"),
            None => Ok(()),
        }
    }
}
