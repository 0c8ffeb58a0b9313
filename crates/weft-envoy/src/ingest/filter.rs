// SPDX-License-Identifier: Apache-2.0
//! HTTP filters: RBAC, fault, CORS, local rate limit, buffer and the router; and what routes and
//! virtual hosts say about them.

use std::sync::Arc;

use weft_model::{
    Abort, AbortAnswer, Access, Cors, Delay, Fault, Filter, RateLimit, Share, StringMatch,
};

use super::matching;
use super::options::{self, NotDone};
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
const PER_CONNECTION: &str = "local_rate_limit_per_downstream_connection";
const LIMIT_HEADERS: &str = "answers beyond a limit have RateLimit and RateLimit-Policy";
const ROUTE_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

const ROUTER_NOT_DONE: NotDone = &[
    ("suppress_envoy_headers", &["true"], "no header of Envoy's is added"),
    ("strict_check_headers", &["[]"], "headers of Envoy's from clients are not read"),
];

/// Filters that keep requests out, of HTTP and of connections.
const GUARDS: &[&str] = &[
    "rbac",
    "ext_authz",
    "jwt_authn",
    "oauth2",
    "basic_auth",
    "api_key_auth",
    "client_ssl_auth",
    "csrf",
];

/// What the filters of a connection manager do to every request, in their order.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    filters: Vec<Entry>,
    /// It was said already that its own order is not kept.
    told: bool,
}

/// A filter of the chain; several may have one name.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    does: Does,
    /// A filter that is off is one of the chain all the same: a route may switch it on.
    on: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Does {
    /// It is there, and does nothing unless a route says more.
    Nothing,
    Filter(Filter),
    /// weft has not its type, which matters once it is on.
    Unknown(String),
}

// === impl Chain ===

impl Chain {
    pub fn read(manager: &Message<'_>) -> Self {
        let mut out = Self::default();
        let mut last = None;
        manager.each("http_filters", |filter| {
            let name = filter.text("name").unwrap_or("").to_owned();
            let optional = filter.flag("is_optional").unwrap_or(false);
            let on = filter.flag("disabled") != Some(true);
            let Some((kind, config)) = filter.any("typed_config") else {
                if !filter.is_set("typed_config") {
                    filter.error("typed_config", "it says what the filter is");
                }
                return;
            };
            last = Some(kind.to_owned());
            let does = match kind {
                ROUTER => {
                    if !on {
                        filter.error("disabled", "nothing is forwarded without the router");
                    }
                    config.pass_over(&["dynamic_stats"]);
                    options::not_done(&config, ROUTER_NOT_DONE);
                    None
                }
                // What needs no switch in weft.
                GRPC_WEB => None,
                kind => match does(kind, &config) {
                    Some(does) => Some(does),
                    None => {
                        config.waive();
                        let kind = wrapped(kind, &config);
                        // Optional is what a proxy lacks; who keeps requests out is never.
                        let counts = !optional || is_guard(&kind);
                        if on && counts {
                            unknown(&filter, "typed_config", &kind);
                        }
                        (!on && counts).then_some(Does::Unknown(kind))
                    }
                },
            };
            if let Some(does) = does {
                out.filters.push(Entry { name, does, on });
            }
        });
        if last.as_deref() != Some(ROUTER) {
            manager.error("http_filters", "the last of them must be the router");
        }
        out.judge_order(manager, "http_filters");
        out
    }

    /// Says what of the order is not kept: access lists and CORS come first, one of these before
    /// the other as written, then rate limits, then faults.
    pub fn judge_order(&mut self, message: &Message<'_>, field: &str) {
        let Some((first, second)) = self.out_of_order().filter(|_| !self.told) else { return };
        let why = format!("{second:?} is done before {first:?}, though it stands behind it");
        message.unsupported(field, why);
        self.told = true;
    }

    /// Two filters whose order is not kept.
    fn out_of_order(&self) -> Option<(&str, &str)> {
        let ranked = self.filters.iter().filter_map(|entry| match &entry.does {
            Does::Filter(Filter::Access(_)) if entry.on => Some((0, &*entry.name)),
            Does::Filter(Filter::Cors(_)) if entry.on => Some((1, &*entry.name)),
            Does::Filter(Filter::RateLimit(_)) if entry.on => Some((2, &*entry.name)),
            Does::Filter(Filter::Fault(_)) if entry.on => Some((3, &*entry.name)),
            _ => None,
        });
        let mut ranked: Vec<(u8, &str)> = ranked.collect();
        // Before all access lists CORS may stand.
        if let Some((rank @ 1, _)) = ranked.first_mut() {
            *rank = 0;
        }
        let mut pairs = ranked.iter().zip(ranked.iter().skip(1));
        pairs.find(|(a, b)| a.0 > b.0).map(|(a, b)| (a.1, b.1))
    }

    /// The same with what a virtual host, a route or a weighted cluster says.
    pub fn with(&self, message: &Message<'_>) -> Self {
        let mut out = self.clone();
        message.entries("typed_per_filter_config", |name, config| {
            let Some((kind, config)) = config.typed() else { return };
            if kind == ROUTE_CONFIG {
                out.switch(name, &config);
            } else {
                out.put(name, kind, &config);
            }
        });
        out
    }

    /// What a route says of a filter of any type: off, on, or on with another configuration.
    fn switch(&mut self, name: &str, config: &Message<'_>) {
        config.pass_over(&["is_optional"]);
        if config.flag("disabled") == Some(true) {
            // Envoy looks at nothing else then.
            config.pass_over(&["config"]);
            self.named(name).for_each(|entry| entry.on = false);
            return;
        }
        // An empty one leaves the filter's own configuration.
        let own = config.message("config").filter(|own| own.names().next().is_some());
        if let Some(own) = own {
            if let Some((kind, own)) = own.typed() {
                self.put(name, kind, &own);
            }
            return;
        }
        for entry in self.named(name) {
            if let Does::Unknown(kind) = &entry.does {
                unknown(config, "config", kind);
            }
            entry.on = true;
        }
    }

    fn put(&mut self, name: &str, kind: &str, config: &Message<'_>) {
        let Some(does) = does(kind, config) else {
            config.waive();
            unknown(config, "@type", &wrapped(kind, config));
            return;
        };
        // A policy for a filter that is not in the chain has no effect in Envoy.
        for entry in self.named(name) {
            (entry.does, entry.on) = (does.clone(), true);
        }
    }

    fn named<'s>(&'s mut self, name: &'s str) -> impl Iterator<Item = &'s mut Entry> {
        self.filters.iter_mut().filter(move |entry| entry.name == name)
    }

    /// In the order of the chain.
    pub fn filters(&self) -> impl Iterator<Item = Filter> + '_ {
        self.filters.iter().filter_map(|entry| match &entry.does {
            Does::Filter(filter) if entry.on => Some(filter.clone()),
            _ => None,
        })
    }
}

/// Says that weft has no such filter. One that keeps requests out is never left out.
pub fn unknown(message: &Message<'_>, field: &str, kind: &str) {
    let why = format!("{kind} is none of weft's");
    if is_guard(kind) {
        message.error(field, format!("{why}, and without it more would be let in"));
    } else {
        message.unsupported(field, why);
    }
}

fn is_guard(kind: &str) -> bool {
    kind.split('.').any(|part| GUARDS.contains(&part))
}

/// The type that counts, where one stands in another.
fn wrapped(kind: &str, config: &Message<'_>) -> String {
    let extension = config.item("extension_config").map(|item| item.value);
    let inner = match kind.rsplit('.').next() {
        Some("TypedStruct") => config.text("type_url"),
        Some("ExtensionWithMatcher") => extension.and_then(|inner| {
            let config = ["typed_config", "typedConfig"].iter().find_map(|f| inner.get(f))?;
            config.get("@type")?.as_str()
        }),
        _ => None,
    };
    inner.and_then(|url| url.rsplit('/').next()).unwrap_or(kind).to_owned()
}

/// What a filter's configuration says; `None` for a type that weft has not.
fn does(kind: &str, config: &Message<'_>) -> Option<Does> {
    Some(match kind {
        RBAC => access(super::access::rules(config)),
        RBAC_ROUTE => {
            config.firm(true);
            config.message("rbac").map_or(Does::Nothing, |r| access(super::access::rules(&r)))
        }
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
            let share = matching::share(&fraction, "default_value");
            let done = if field == "shadow_enabled" { Share::NONE } else { Share::ALL };
            if share != Some(done) {
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

/// A token bucket of the whole filter; `None` also when it refuses nothing.
fn limit(config: &Message<'_>) -> Option<RateLimit> {
    options::words(config, &[("enable_x_ratelimit_headers", &["OFF"], LIMIT_HEADERS)]);
    options::flags(config, &[(PER_CONNECTION, false, "a limit is of all connections together")]);
    let (enabled, enforced) =
        (is_in_force(config, "filter_enabled"), is_in_force(config, "filter_enforced"));
    let name = config.text("stat_prefix").unwrap_or("local_ratelimit").to_owned();
    let bucket = config.message("token_bucket")?;
    let fill = bucket.number::<u32>("tokens_per_fill").unwrap_or(1);
    let burst = bucket.number::<u32>("max_tokens").unwrap_or(fill);
    let per_ms = bucket.duration("fill_interval").unwrap_or(1_000).max(1);
    if let Some(status) = config.message("status")
        && status.word("code").is_some_and(|c| c != "TOOMANYREQUESTS")
    {
        config.unsupported("status", "what is over the limit is answered 429");
    }
    let name: Arc<str> = format!("{name} ({})", config.at().path()).into();
    let limit = RateLimit { name, requests: fill, per_ms, burst, by: Vec::new(), keys_max: 0 };
    (enabled && enforced).then_some(limit)
}

/// Of how many requests a limit holds: of none unless it is said, as in Envoy.
fn is_in_force(config: &Message<'_>, field: &str) -> bool {
    let Some(fraction) = config.message(field) else { return false };
    fraction.pass_over(&["runtime_key"]);
    let Some(share) = matching::share(&fraction, "default_value") else {
        fraction.error("default_value", "it says of how many requests the limit holds");
        return false;
    };
    if share != Share::NONE && share != Share::ALL {
        let why = "a limit holds for all requests or for none; left so it holds for all";
        config.unsupported(field, why);
    }
    share != Share::NONE
}
