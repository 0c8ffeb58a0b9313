// SPDX-License-Identifier: Apache-2.0
//! Envoy's words for how a request ended: `RESPONSE_CODE_DETAILS` and the long names of flags. Part
//! of `value.rs`.

use crate::observe::flags::{Flag, Flags};
use crate::observe::record::Record;

/// Envoy's words for why an answer is not the upstream's, by the flag that says so.
#[rustfmt::skip]
pub(super) const DETAILS: &[(Flag, &str)] = &[
    (Flag::FI, "fault_filter_abort"),
    (Flag::NR, "route_not_found"),
    (Flag::NC, "cluster_not_found"),
    (Flag::UH, "no_healthy_upstream"),
    (Flag::UO, "upstream_reset_before_response_started{overflow}"),
    (Flag::UF, "upstream_reset_before_response_started{connection_failure}"),
    (Flag::UPE, "upstream_reset_before_response_started{protocol_error}"),
    (Flag::UC, "upstream_reset_before_response_started{connection_termination}"),
    (Flag::UR, "upstream_reset_before_response_started{remote_reset}"),
    (Flag::UT, "response_timeout"),
    (Flag::SI, "stream_idle_timeout"),
    (Flag::DPE, "downstream_protocol_error"),
    (Flag::DC, "downstream_remote_disconnect"),
    (Flag::UAEX, "access_denied"),
];
/// The same once its head was sent.
#[rustfmt::skip]
const CUT_OFF: &[(Flag, &str)] = &[
    (Flag::UC, "upstream_reset_after_response_started{connection_termination}"),
    (Flag::UR, "upstream_reset_after_response_started{remote_reset}"),
    (Flag::UPE, "upstream_reset_after_response_started{protocol_error}"),
];

pub(super) fn details(record: &Record) -> &'static str {
    match (&record.sentence, record.attempts) {
        (None, _) if record.flags.has(Flag::RFCF) => "cache.response_from_cache_filter",
        (None, 0) => "direct_response",
        (None, _) => "via_upstream",
        (Some(_), _) => {
            let cut = record.cut_off.then(|| of_flag(CUT_OFF, record.flags)).flatten();
            cut.or_else(|| of_flag(DETAILS, record.flags)).unwrap_or("local")
        }
    }
}

pub(super) fn of_flag(all: &[(Flag, &'static str)], flags: Flags) -> Option<&'static str> {
    all.iter().find(|(flag, _)| flags.has(*flag)).map(|(_, text)| *text)
}

pub(super) fn long_name(short: &'static str) -> &'static str {
    match short {
        "UH" => "NoHealthyUpstream",
        "UF" => "UpstreamConnectionFailure",
        "UC" => "UpstreamConnectionTermination",
        "UR" => "UpstreamRemoteReset",
        "UT" => "UpstreamRequestTimeout",
        "URX" => "UpstreamRetryLimitExceeded",
        "UO" => "UpstreamOverflow",
        "UPE" => "UpstreamProtocolError",
        "NR" => "NoRouteFound",
        "NC" => "NoClusterFound",
        "DC" => "DownstreamConnectionTermination",
        "DPE" => "DownstreamProtocolError",
        "SI" => "StreamIdleTimeout",
        "RFCF" => "ResponseFromCacheFilter",
        "UAEX" => "UnauthorizedExternalService",
        "DI" => "DelayInjected",
        "FI" => "FaultInjected",
        "RL" => "RateLimited",
        "OM" => "OverloadManagerTerminated",
        "LH" => "FailedLocalHealthCheck",
        other => other,
    }
}
