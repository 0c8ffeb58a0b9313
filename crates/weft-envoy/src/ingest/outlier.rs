// SPDX-License-Identifier: Apache-2.0
//! Outlier detection with Envoy's defaults.

use weft_model::{FailureShare, Outlier, OutlierWindow, SuccessRate};

use crate::read::Message;

pub fn read(m: &Message<'_>) -> Outlier {
    let why = "an ejection takes as long as it is said, without jitter";
    m.not_done("max_ejection_time_jitter", &["0s"], why);
    let streak = |count: &str, enforcing: &str, usual: u32, on: bool| {
        let count = m.number::<u32>(count).unwrap_or(usual);
        if enforced(m, enforcing, on) { count } else { 0 }
    };
    let consecutive_failures = streak("consecutive_5xx", "enforcing_consecutive_5xx", 5, true);
    let gateway = "enforcing_consecutive_gateway_failure";
    let consecutive_gateway = streak("consecutive_gateway_failure", gateway, 5, false);
    let apart = m.flag("split_external_local_origin_errors") == Some(true);
    let local_on = "enforcing_consecutive_local_origin_failure";
    let local = streak("consecutive_local_origin_failure", local_on, 5, true);
    // Nothing to Envoy either, unless errors are told apart.
    for field in
        ["enforcing_local_origin_success_rate", "enforcing_failure_percentage_local_origin"]
    {
        m.pass_over(&[field]);
        if apart {
            let why = "what fails before an answer is judged by how often it does so in a row";
            m.not_done(field, &["0"], why);
        }
    }
    let success_rate = enforced(m, "enforcing_success_rate", true).then(|| SuccessRate {
        factor_permille: m.number("success_rate_stdev_factor").unwrap_or(1_900),
        endpoints_min: m.number("success_rate_minimum_hosts").unwrap_or(5),
        requests_min: m.number("success_rate_request_volume").unwrap_or(100),
    });
    let failure_share = enforced(m, "enforcing_failure_percentage", false).then(|| FailureShare {
        basis_points: m.number::<u32>("failure_percentage_threshold").unwrap_or(85) * 100,
        endpoints_min: m.number("failure_percentage_minimum_hosts").unwrap_or(5),
        requests_min: m.number("failure_percentage_request_volume").unwrap_or(50),
    });
    m.pass_over(&[
        "success_rate_stdev_factor",
        "success_rate_minimum_hosts",
        "success_rate_request_volume",
        "failure_percentage_threshold",
        "failure_percentage_minimum_hosts",
        "failure_percentage_request_volume",
    ]);
    let interval_ms = m.duration("interval").unwrap_or(10_000);
    let judged = success_rate.is_some() || failure_share.is_some();
    let window = OutlierWindow { interval_ms, success_rate, failure_share };
    let percent = m.number::<u32>("max_ejection_percent").unwrap_or(10).min(100);
    // One of several may always be ejected, where any may be.
    if m.flag("always_eject_one_host") == Some(true) && percent == 0 {
        m.unsupported("always_eject_one_host", "with max_ejection_percent 0 nobody is ejected");
    }
    let base_ejection_ms = m.duration("base_ejection_time").unwrap_or(30_000);
    Outlier {
        consecutive_failures,
        consecutive_gateway,
        consecutive_local: apart.then_some(local),
        statuses: Vec::new(),
        window: judged.then(|| Box::new(window)),
        base_ejection_ms,
        max_ejection_ms: m.duration("max_ejection_time").unwrap_or(300_000).max(base_ejection_ms),
        max_ejection_basis_points: percent * 100,
    }
}

/// Whether a judgement ejects; weft ejects always or never.
fn enforced(m: &Message<'_>, field: &str, usual: bool) -> bool {
    match m.number::<u32>(field) {
        None => usual,
        Some(0) => false,
        Some(100) => true,
        Some(part) => {
            m.unsupported(field, format!("{part}: a judgement ejects always (100) or never (0)"));
            true
        }
    }
}
