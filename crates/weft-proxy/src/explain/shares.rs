// SPDX-License-Identifier: Apache-2.0
//! What one of a rule's backends does beside the rule, each with the field that says so. Called by
//! `explain` alone; decides nothing.

use weft_model::{Filter, Origin, Rewrite, Rule, WeightedBackend, value};

use super::steps::edited;
use super::{Step, object};

/// Lines of the share at a place of a rule, which leads to a backend of this name.
pub(super) fn of_share(
    rule: &Rule,
    (place, share): (usize, &WeightedBackend),
    backend: &str,
) -> Vec<Step> {
    let said = share.filters.iter().filter_map(|filter| {
        let (what, value, istio) = match filter {
            Filter::RequestHeaders(edit) => {
                (value::REQUEST_HEADERS, edited(edit), "headers.request")
            }
            Filter::ResponseHeaders(edit) => {
                (value::RESPONSE_HEADERS, edited(edit), "headers.response")
            }
            Filter::Rewrite(Rewrite { host: Some(host), .. }) => {
                ("host", host.to_string(), "headers.request.set")
            }
            _ => return None,
        };
        let by = Origin { field: field(rule, place, istio).into(), ..rule.origin.clone() };
        let (object, field) = (object(&by), by.field.to_string());
        Some(Step { what: what.into(), of: backend.into(), value, object, field })
    });
    said.collect()
}

/// As the object's own kind writes it.
fn field(rule: &Rule, place: usize, istio: &str) -> String {
    let own = &rule.origin.field;
    match &*rule.origin.kind {
        "VirtualService" => format!("{own}.route[{place}].{istio}"),
        // A file's own route.
        "route" => format!("{own}.to[{place}].filters"),
        _ => format!("{own}.backendRefs[{place}].filters"),
    }
}
