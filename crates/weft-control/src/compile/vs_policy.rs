// SPDX-License-Identifier: Apache-2.0
//! What a VirtualService's rules ask for beyond a destination: faults, copies, CORS, rewrites by
//! expression. What cannot be done as written is named, and the rest applies.

use std::sync::Arc;

use weft_base::issue::FieldPath;
use weft_kinds::views::istio::{self, Destination, FaultAbort, FaultDelay, HttpRoute, Percent};
use weft_model::{
    Abort, AbortAnswer, Cors, Delay, Fault, Filter, Mirror, PathRewrite, RegexRewrite, Share,
    StringMatch, Target,
};

use super::vs_rule::{Context, Place, string_match};

impl Context<'_, '_> {
    /// Filters of a rule, whatever answers it.
    pub(super) fn policies(
        &mut self,
        route: &HttpRoute,
        path: &FieldPath,
        place: Place<'_>,
    ) -> Vec<Filter> {
        let mut out = Vec::new();
        if let Some(cors) = &route.cors_policy {
            out.extend(self.cors(cors, &path.field("corsPolicy")).map(Filter::Cors));
        }
        if let Some(fault) = &route.fault {
            let path = path.field("fault");
            let delay = fault.delay.as_ref().and_then(|d| self.delay(d, &path.field("delay")));
            let abort = fault.abort.as_ref().and_then(|a| self.abort(a, &path.field("abort")));
            let fault = Fault { delay, abort };
            out.extend((fault != Fault::default()).then_some(Filter::Fault(fault)));
        }
        let single = route.mirror.as_ref().map(|to| {
            let old = route.mirror_percent.map(|p| Share::of(p.into(), 100));
            let share = route.mirror_percentage.as_ref().map(percent).or(old);
            (to, share.unwrap_or(Share::ALL), path.field("mirror"))
        });
        let several = route.mirrors.iter().enumerate().map(|(i, m)| {
            let share = m.percentage.as_ref().map_or(Share::ALL, percent);
            (&m.destination, share, path.field("mirrors").index(i).field("destination"))
        });
        for (to, share, path) in single.into_iter().chain(several) {
            out.extend(self.mirror(to, share, &path, place));
        }
        out
    }

    /// A copy; none when its destination does not exist, which the status says.
    fn mirror(
        &mut self,
        to: &Destination,
        share: Share,
        path: &FieldPath,
        place: Place<'_>,
    ) -> Option<Filter> {
        let target: Target = self.target(to, path, place);
        target.backend()?;
        Some(Filter::Mirror(Mirror { target, share, mark_host: true }))
    }

    fn delay(&mut self, delay: &FaultDelay, path: &FieldPath) -> Option<Delay> {
        let ms = self.ms(delay.fixed_delay.as_ref(), &path.field("fixedDelay"))?;
        let old = delay.percent.map(|p| Share::of(p.into(), 100));
        let share = self.hit(delay.percentage.as_ref().map(percent).or(old), path)?;
        Some(Delay { ms, share })
    }

    /// The share of requests that a fault hits: "if not specified, no request will be aborted".
    fn hit(&mut self, share: Option<Share>, path: &FieldPath) -> Option<Share> {
        if share.is_none() {
            let text = "no percentage, so no request is hit; say percentage: {value: 100} for all";
            self.issues.warning(path.clone(), text);
        }
        share
    }

    fn abort(&mut self, abort: &FaultAbort, path: &FieldPath) -> Option<Abort> {
        let answer = match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) if (200..=599).contains(&status) => AbortAnswer::Http(status),
            (Some(status), _) => {
                let text = format!("{status} is no status to answer with; it is not applied");
                self.issues.warning(path.field("httpStatus"), text);
                return None;
            }
            (None, Some(name)) => match grpc_code(name) {
                Some(code) => AbortAnswer::Grpc(code),
                None => {
                    let text = format!("{name:?} is no gRPC status; it is not applied");
                    self.issues.warning(path.field("grpcStatus"), text);
                    return None;
                }
            },
            // `http2Error`: the table of fields tells.
            (None, None) => return None,
        };
        let share = self.hit(abort.percentage.as_ref().map(percent), path)?;
        Some(Abort { answer, share })
    }

    fn cors(&mut self, cors: &istio::CorsPolicy, path: &FieldPath) -> Option<Cors> {
        let mut origins: Vec<StringMatch> = Vec::new();
        // The deprecated list is read where the other is not there (Istio).
        if cors.allow_origins.is_empty() {
            origins.extend(cors.allow_origin.iter().map(exact_origin));
        } else if !cors.allow_origin.is_empty() {
            let text =
                "not applied beside allowOrigins; write these origins there, or leave it out";
            self.issues.warning(path.field("allowOrigin"), text);
        }
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            match (string_match(origin), &origin.exact) {
                (_, Some(exact)) => origins.push(exact_origin(exact)),
                // An empty object would be every origin.
                (Ok(StringMatch::Present), _) => {}
                (Ok(found), _) => origins.push(found),
                (Err(e), _) => self.issues.error(path.field("allowOrigins").index(i), e),
            }
        }
        let max_age = self.ms(cors.max_age.as_ref(), &path.field("maxAge"));
        (!origins.is_empty()).then(|| Cors {
            origins,
            methods: cors.allow_methods.clone(),
            headers: cors.allow_headers.clone(),
            expose: cors.expose_headers.clone(),
            max_age_s: max_age.map(|ms| ms / 1_000),
            credentials: cors.allow_credentials == Some(true),
            forward_unmatched: cors.unmatched_preflights.as_deref() != Some("IGNORE"),
        })
    }

    pub(super) fn rewritten(
        &mut self,
        rewrite: &istio::Rewrite,
        path: &FieldPath,
    ) -> Option<PathRewrite> {
        let Some(regex) = &rewrite.uri_regex_rewrite else {
            return rewrite.uri.clone().map(PathRewrite::Prefix);
        };
        match RegexRewrite::new(&regex.find, &regex.rewrite) {
            Ok(found) => Some(PathRewrite::Regex(found)),
            Err(e) => {
                self.issues.error(path.field("uriRegexRewrite"), e);
                None
            }
        }
    }
}

fn exact_origin(text: &Arc<str>) -> StringMatch {
    if &**text == "*" { StringMatch::Present } else { StringMatch::Exact(text.clone()) }
}

fn percent(percent: &Percent) -> Share {
    let value = percent.value.as_ref().and_then(serde_json::Number::as_f64).unwrap_or(0.0);
    Share::of((value.clamp(0.0, 100.0) * 10_000.0).round() as u64, 1_000_000)
}

/// By name, as Istio and gRPC write it, or by number.
fn grpc_code(name: &str) -> Option<u16> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|n| n.eq_ignore_ascii_case(name));
    let code = by_name.or_else(|| name.parse().ok().filter(|n| *n < NAMES.len()))?;
    u16::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_statuses_are_read_as_istio_writes_them() {
        let of = |value: serde_json::Value| {
            percent(&serde_json::from_value(serde_json::json!({ "value": value })).unwrap())
        };
        assert_eq!(of(0.1.into()), Share::of(1, 1000));
        assert_eq!(of(100.into()), Share::ALL);
        assert_eq!(of(1000.into()), Share::ALL);
        assert_eq!(percent(&Percent::default()), Share::NONE);
        assert_eq!(grpc_code("unavailable"), Some(14));
        assert_eq!((grpc_code("16"), grpc_code("17"), grpc_code("NOPE")), (Some(16), None, None));
    }
}
