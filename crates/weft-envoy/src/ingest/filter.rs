// SPDX-License-Identifier: Apache-2.0
//! HTTP filters: RBAC, fault, CORS, local rate limit, buffer and the router; and what routes and
//! virtual hosts say about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::{Abort, AbortAnswer, Access, Cors, Delay, Fault, Filter, RateLimit, StringMatch};

use super::matching;
use crate::read::Message;

const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const RBAC_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_ROUTE: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
const BUFFER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const ROUTE_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// What the filters of a connection manager do to every request, by the filters' names.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    filters: BTreeMap<String, Does>,
    order: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Does {
    /// It is there, and does nothing unless a route says more.
    Nothing,
    Filter(Filter),
}

// === impl Chain ===

impl Chain {
    pub fn read(manager: &Message<'_>) -> Self {
        let mut out = Self::default();
        let mut last = None;
        manager.each("http_filters", |filter| {
            let name = filter.text("name").unwrap_or("").to_owned();
            let optional = filter.flag("is_optional").unwrap_or(false);
            if filter.flag("disabled") == Some(true) {
                filter.waive();
                return;
            }
            let Some((kind, config)) = filter.any("typed_config") else { return };
            last = Some(kind.to_owned());
            let does = match kind {
                ROUTER => {
                    let known = ["dynamic_stats", "suppress_envoy_headers", "strict_check_headers"];
                    config.pass_over(&known);
                    None
                }
                // What needs no switch in weft.
                GRPC_WEB => None,
                kind => match does(kind, &config) {
                    Some(does) => Some(does),
                    None => {
                        config.waive();
                        if !optional {
                            filter.unsupported("typed_config", format!("{kind} is none of weft's"));
                        }
                        None
                    }
                },
            };
            if let Some(does) = does {
                out.order.push(name.clone());
                out.filters.insert(name, does);
            }
        });
        if last.as_deref() != Some(ROUTER) {
            manager.error("http_filters", "the last of them must be the router");
        }
        out
    }

    /// The same with what a virtual host, a route or a weighted cluster says.
    pub fn with(&self, message: &Message<'_>) -> Self {
        let mut out = self.clone();
        message.entries("typed_per_filter_config", |name, config| {
            let Some((kind, config)) = config.typed() else { return };
            if kind == ROUTE_CONFIG {
                if config.flag("disabled") == Some(true) {
                    out.filters.insert(name.to_owned(), Does::Nothing);
                    return;
                }
                config.pass_over(&["is_optional"]);
                if let Some((kind, inner)) = config.any("config") {
                    out.put(name, kind, &inner);
                }
                return;
            }
            out.put(name, kind, &config);
        });
        out
    }

    fn put(&mut self, name: &str, kind: &str, config: &Message<'_>) {
        match does(kind, config) {
            Some(does) => {
                if !self.filters.contains_key(name) {
                    // A policy for a filter that is not in the chain has no effect in Envoy.
                    return;
                }
                self.filters.insert(name.to_owned(), does);
            }
            None => {
                config.waive();
                config.unsupported("@type", format!("{kind} is none of weft's"));
            }
        }
    }

    /// In the order of the chain.
    pub fn filters(&self) -> impl Iterator<Item = Filter> + '_ {
        self.order.iter().filter_map(|name| match self.filters.get(name) {
            Some(Does::Filter(filter)) => Some(filter.clone()),
            _ => None,
        })
    }
}

/// What a filter's configuration says; `None` for a type that weft has not.
fn does(kind: &str, config: &Message<'_>) -> Option<Does> {
    Some(match kind {
        RBAC => access(super::access::rules(config)),
        RBAC_ROUTE => match config.message("rbac") {
            Some(rbac) => access(super::access::rules(&rbac)),
            None => Does::Nothing,
        },
        FAULT => fault(config).map_or(Does::Nothing, |f| Does::Filter(Filter::Fault(f))),
        CORS => Does::Nothing,
        CORS_ROUTE => Does::Filter(Filter::Cors(cors(config))),
        LIMIT => {
            limit(config).map_or(Does::Nothing, |l| Does::Filter(Filter::RateLimit(Arc::new(l))))
        }
        BUFFER => body(config),
        BUFFER_ROUTE if config.flag("disabled") == Some(true) => Does::Nothing,
        BUFFER_ROUTE => config.message("buffer").map_or(Does::Nothing, |b| body(&b)),
        _ => return None,
    })
}

fn access(list: Option<Access>) -> Does {
    list.map_or(Does::Nothing, |list| Does::Filter(Filter::Access(Arc::new(list))))
}

/// The size beyond which Envoy's buffer filter answers 413. weft passes bodies on as they come.
fn body(config: &Message<'_>) -> Does {
    match config.number::<u64>("max_request_bytes") {
        Some(bytes) => Does::Filter(Filter::BodyLimit(bytes)),
        None => Does::Nothing,
    }
}

fn fault(config: &Message<'_>) -> Option<Fault> {
    let delay = config.message("delay").and_then(|delay| {
        if delay.is_set("header_delay") {
            delay.unsupported("header_delay", "clients cannot ask for faults");
        }
        let ms = delay.duration("fixed_delay")?;
        Some(Delay { ms, share: matching::share(&delay, "percentage")? })
    });
    let abort = config.message("abort").and_then(|abort| {
        if abort.is_set("header_abort") {
            abort.unsupported("header_abort", "clients cannot ask for faults");
        }
        let http = abort.number("http_status").map(AbortAnswer::Http);
        let answer = http.or_else(|| abort.number("grpc_status").map(AbortAnswer::Grpc))?;
        Some(Abort { answer, share: matching::share(&abort, "percentage")? })
    });
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

/// A CORS policy, of a filter's configuration or of a route's own field.
pub fn cors(policy: &Message<'_>) -> Cors {
    let mut origins = Vec::new();
    policy.each("allow_origin_string_match", |matcher| {
        let matcher = matching::string(&matcher);
        origins.extend(matcher.map(|m| match m {
            StringMatch::Exact(text) if &*text == "*" => StringMatch::Present,
            other => other,
        }));
    });
    let list = |field: &str| -> Vec<Arc<str>> {
        let text = policy.text(field).unwrap_or("");
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Arc::from).collect()
    };
    let max_age_s = policy.text("max_age").and_then(|text| {
        let seconds = text.parse().ok();
        if seconds.is_none() {
            policy.error("max_age", format!("{text:?} is no number of seconds"));
        }
        seconds
    });
    for field in ["filter_enabled", "shadow_enabled"] {
        if let Some(fraction) = policy.message(field) {
            let all = matching::share(&fraction, "default_value");
            if all != Some(weft_model::Share::ALL) || field == "shadow_enabled" {
                policy.unsupported(field, "a CORS policy holds for all requests");
            }
            fraction.pass_over(&["runtime_key"]);
        }
    }
    Cors {
        origins,
        methods: list("allow_methods"),
        headers: list("allow_headers"),
        expose: list("expose_headers"),
        max_age_s,
        credentials: policy.flag("allow_credentials").unwrap_or(false),
        forward_unmatched: policy.flag("forward_not_matching_preflights").unwrap_or(true),
    }
}

/// A token bucket of the whole filter.
fn limit(config: &Message<'_>) -> Option<RateLimit> {
    config.pass_over(&["filter_enabled", "filter_enforced", "enable_x_ratelimit_headers"]);
    let name = config.text("stat_prefix").unwrap_or("local_ratelimit").to_owned();
    let bucket = config.message("token_bucket")?;
    let fill = bucket.number::<u32>("tokens_per_fill").unwrap_or(1);
    let burst = bucket.number::<u32>("max_tokens").unwrap_or(fill);
    let per_ms = bucket.duration("fill_interval").unwrap_or(1_000).max(1);
    if let Some(status) = config.message("status")
        && status.choice("code").is_some_and(|c| c != "TooManyRequests")
    {
        config.unsupported("status", "what is over the limit is answered 429");
    }
    let name: Arc<str> = format!("{name} ({})", config.at().path()).into();
    Some(RateLimit { name, requests: fill, per_ms, burst, by: Vec::new(), keys_max: 0 })
}
