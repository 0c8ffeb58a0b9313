// SPDX-License-Identifier: Apache-2.0
//! Whether a request says itself that its body is too large, whichever of a rule's backends it goes
//! to. Called by `explain` alone; a body without a length is judged as it comes, by the proxy.

use http::header::{CONTENT_LENGTH, HeaderMap};
use weft_model::{Filter, Target, WeightedBackend};

use super::{Answer, of_refusal};
use crate::http::reply::{Cause, Refusal};
use crate::http::route::Choice;
use crate::table::{BackendEntry, Table};

/// What such a request is answered.
pub(super) fn too_large(table: &Table, to: &Choice<'_>, headers: &HeaderMap) -> Option<Answer> {
    let bytes: u64 = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    let most = match to {
        Choice::Rule(found) => {
            let own = of_filters(&found.rule.filters);
            let each = found.rule.shares().iter().filter(|share| share.weight > 0);
            // The one that takes most may be chosen.
            let limits = each.map(|share| least([own, of_share(table, share)]).unwrap_or(u64::MAX));
            limits.max()?
        }
        Choice::Backend(entry) => of_backend(entry)?,
        Choice::Own(entry) => of_backend(entry)?,
        Choice::Outside(_) => return None,
    };
    let why = format!("it has {bytes} bytes, at most {most} are allowed");
    (bytes > most).then(|| of_refusal(&Refusal::new(Cause::BodyTooLarge, why)))
}

fn of_share(table: &Table, share: &WeightedBackend) -> Option<u64> {
    let entry = match &share.target {
        Target::Backend(name) => table.backend(name),
        Target::Fail { .. } => None,
    };
    least([of_filters(&share.filters), entry.and_then(|entry| of_backend(entry))])
}

fn of_backend(entry: &BackendEntry) -> Option<u64> {
    entry.backend.policy.protection.as_deref()?.body_bytes_max
}

fn of_filters(filters: &[Filter]) -> Option<u64> {
    let limits = filters.iter().filter_map(|filter| match filter {
        Filter::BodyLimit(bytes) => Some(*bytes),
        _ => None,
    });
    limits.min()
}

fn least(limits: [Option<u64>; 2]) -> Option<u64> {
    limits.into_iter().flatten().min()
}
