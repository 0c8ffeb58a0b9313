// SPDX-License-Identifier: Apache-2.0
//! What a Gateway believes of its clients, as annotations say it. Called by `gateway`; reads
//! nothing else.

use weft_base::issue::{FieldPath, Issues};
use weft_kinds::world::Object;
use weft_model::Edge;

/// Proxies in front of a Gateway whose `X-Forwarded-For` entries are believed: `1`.
pub const HOPS_ANNOTATION: &str = "weft.dev/trusted-hops";
/// `allow` takes header names with underscores.
pub const UNDERSCORES_ANNOTATION: &str = "weft.dev/underscores-in-headers";

pub(super) fn read(object: &Object, issues: &mut Issues) -> Edge {
    let mut edge = Edge::default();
    let at = |name: &str| FieldPath::new("metadata.annotations").field(name);
    if let Some(text) = object.meta.annotation(HOPS_ANNOTATION) {
        match text.parse() {
            Ok(hops) => edge.trusted_hops = hops,
            Err(_) => issues.warning(
                at(HOPS_ANNOTATION),
                format!("{text:?} is no number of proxies (0 to 255); none is trusted"),
            ),
        }
    }
    match object.meta.annotation(UNDERSCORES_ANNOTATION) {
        Some("allow") => edge.underscores = true,
        None | Some("reject") => {}
        Some(other) => issues.warning(
            at(UNDERSCORES_ANNOTATION),
            format!("{other:?} is not known; say allow or reject; they are rejected"),
        ),
    }
    edge
}
