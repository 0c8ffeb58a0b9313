// SPDX-License-Identifier: Apache-2.0
//! What a backend's policy says of every request that is sent there, one line each with the object
//! and field that say so, or that nobody does.

use weft_base::clock::Mono;
use weft_model::{
    BackendPolicy, CheckKind, HashBy, HashTable, LbPolicy, Locality, LocalityPolicy, Names, Origin,
    Outlier, ProxyVersion, RetryBudget, Rule, Speaks, ThroughMethod, Timeouts, Transport, Trust,
    UpstreamTls, value,
};

use super::steps::{DEFAULT, limited, shown_ms};
use super::{Step, object};
use crate::config::ProxyLimits;
use crate::table::BackendEntry;

/// Identities of instances that are named.
const IDENTITIES_SHOWN: usize = 3;

/// Names values by who set them.
struct Said<'a> {
    entry: &'a BackendEntry,
    out: Vec<Step>,
}

/// Lines of a backend's policy, as it counts for a rule's requests. `now` is the time of a proxy
/// that serves from this table.
pub(super) fn of_backend(
    entry: &BackendEntry,
    rule: Option<&Rule>,
    now: Option<Mono>,
) -> Vec<Step> {
    let (policy, usual) = (&entry.backend.policy, BackendPolicy::default());
    let mut said = Said { entry, out: Vec::new() };
    said.value(value::BALANCING, balanced(&policy.lb), policy.lb == usual.lb);
    said.value(value::LOCALITY, placed(&policy.locality), policy.locality == usual.locality);
    let panic = policy.panic_basis_points;
    said.value(value::PANIC, panics(panic), panic == 0);
    if let Some(warm) = &policy.warmup {
        let (over, from) = (warm.duration_ms, f64::from(warm.min_basis_points) / 100.0);
        said.value(value::SLOW_START, format!("over {over} ms, from {from} %"), false);
    }
    said.ejection(&policy.outlier);
    said.tls();
    if let Some(version) = policy.proxy_protocol {
        let version = match version {
            ProxyVersion::V1 => "version 1",
            ProxyVersion::V2 => "version 2",
        };
        said.value(value::PROXY_PROTOCOL, version.into(), false);
    }
    let (connect, idle) = (policy.connect_timeout_ms, policy.idle_timeout_ms);
    let same = connect == usual.connect_timeout_ms;
    said.value(value::CONNECT_TIMEOUT, shown_ms(connect), same);
    let same = idle == usual.idle_timeout_ms;
    said.value(value::IDLE_CONNECTIONS, format!("closed after {idle} ms"), same);
    said.limits(now);
    said.connections();
    let budget = &policy.retry_budget;
    said.value(value::RETRY_BUDGET, budgeted(budget), *budget == usual.retry_budget);
    said.timeouts(rule);
    said.protection();
    said.out
}

/// Why a backend takes no request more, as far as all workers know together.
pub(super) fn full(entry: &BackendEntry) -> Option<String> {
    let most = entry.backend.policy.limits.requests_max?;
    let full = in_flight(entry) >= u64::from(most);
    full.then(|| format!("{most} requests are in flight, its limit"))
}

fn in_flight(entry: &BackendEntry) -> u64 {
    entry.endpoints.iter().map(|e| e.shared.in_flight()).sum()
}

// === impl Said ===

impl Said<'_> {
    /// `usual`: it is what it would be if nobody had said anything.
    fn value(&mut self, what: &str, value: String, usual: bool) {
        let backend = &self.entry.backend;
        let whole = || backend.origin.clone().filter(|_| !usual);
        let by = backend.policy.sources.of(what).or_else(whole);
        let named = |by: &Origin| (object(by), by.field.to_string());
        let (object, field) =
            by.as_ref().map_or_else(|| (DEFAULT.to_owned(), String::new()), named);
        self.out.push(Step { what: what.into(), of: self.entry.label(), value, object, field });
    }

    fn ejection(&mut self, outlier: &Outlier) {
        let usual = Outlier::default();
        self.value(value::EJECTION, ejected_for(outlier), *outlier == usual);
        if outlier.is_off() {
            return;
        }
        let (first, longest) = (outlier.base_ejection_ms, outlier.max_ejection_ms);
        let same = first == usual.base_ejection_ms;
        let text = format!("{first} ms, longer each time, at most {longest} ms");
        self.value(value::EJECTION_TIME, text, same);
        let share = outlier.max_ejection_basis_points;
        let text = format!("{} % of the instances", f64::from(share) / 100.0);
        self.value(value::EJECTED_SHARE, text, share == usual.max_ejection_basis_points);
        let Some(window) = &outlier.window else { return };
        let failures = window.failure_share.as_ref();
        let failures = failures.map(|f| {
            format!("{} % or more of its requests fail", f64::from(f.basis_points) / 100.0)
        });
        let success = window.success_rate.as_ref().map(|s| {
            let factor = f64::from(s.factor_permille) / 1_000.0;
            format!("it succeeds less than the others by {factor} deviations")
        });
        let why: Vec<String> = failures.into_iter().chain(success).collect();
        if !why.is_empty() {
            let text = format!("when in {} ms {}", window.interval_ms, why.join(", or "));
            self.value(value::EJECTION_WINDOW, text, false);
        }
    }

    fn limits(&mut self, now: Option<Mono>) {
        let limits = &self.entry.backend.policy.limits;
        let used = now.and(self.entry.quotas.as_ref()).map(|quotas| quotas.used());
        let each = [
            (value::CONNECTIONS, limits.connections_max),
            (value::WAITING, limits.pending_max),
            (value::IN_FLIGHT, limits.requests_max),
            (value::RETRIES_IN_FLIGHT, limits.retries_max),
        ];
        for (i, (what, limit)) in each.into_iter().enumerate() {
            let Some(limit) = limit else { continue };
            let text = match used.and_then(|used| used.get(i).copied()) {
                Some(n) if n >= u64::from(limit) => format!("at most {limit}; {n} now: full"),
                Some(n) => format!("at most {limit}; {n} now"),
                None => format!("at most {limit}"),
            };
            self.value(what, text, false);
        }
    }

    /// What else is said of connections; of most nothing is.
    fn connections(&mut self) {
        let Some(terms) = self.entry.backend.policy.connections.as_deref() else { return };
        let most = |n: u32| format!("at most {n}");
        let keepalive = terms.keepalive.map(|k| {
            let part =
                |what: &str, n: Option<u32>, unit: &str| n.map(|n| format!("{what} {n}{unit}"));
            let all = [
                part("after", k.idle_s, " s"),
                part("every", k.interval_s, " s"),
                part("at most", k.probes, " times"),
            ];
            let all: Vec<String> = all.into_iter().flatten().collect();
            if all.is_empty() { "as the kernel does".into() } else { all.join(", ") }
        });
        let pings = terms.pings.map(|p| {
            format!("every {} ms; closed when unanswered for {} ms", p.interval_ms, p.timeout_ms)
        });
        let protocol = terms.speaks.map(|speaks| match speaks {
            Speaks::Http2 => "HTTP/2".to_owned(),
            Speaks::LikeClient => "what the client speaks".to_owned(),
        });
        let through = terms.through.as_ref().map(|through| match through.method {
            ThroughMethod::Connect => {
                format!("bytes by CONNECT to {} port {}", through.host, through.port)
            }
            ThroughMethod::Post => "by POST, which is not spoken: bytes are refused".to_owned(),
        });
        for (what, value) in [
            (value::CONNECTION_REQUESTS, terms.requests_max.map(most)),
            (value::CONNECTION_AGE, terms.age_ms_max.map(shown_ms)),
            (value::STREAMS, terms.streams_max.map(most)),
            (value::KEEPALIVE, keepalive),
            (value::PINGS, pings),
            (value::PROTOCOL, protocol),
            (value::TUNNEL, through),
        ] {
            if let Some(value) = value {
                self.value(what, value, false);
            }
        }
    }

    /// Time-outs that the rule leaves open.
    fn timeouts(&mut self, rule: Option<&Rule>) {
        let none = Timeouts::default();
        let own = rule.map_or(&none, |rule| &rule.timeouts);
        let policy = self.entry.backend.policy.protection.as_deref();
        let filled = policy.map_or(&none, |protection| &protection.timeouts);
        let idle = ProxyLimits::default().stream_idle_timeout.as_millis();
        for (what, own, said, usual) in [
            (
                value::REQUEST_TIMEOUT,
                own.request_ms,
                filled.request_ms,
                Some("no limit".to_owned()),
            ),
            (
                value::ATTEMPT_TIMEOUT,
                own.backend_request_ms,
                filled.backend_request_ms,
                Some("no limit".to_owned()),
            ),
            (value::IDLE_TIMEOUT, own.idle_ms, filled.idle_ms, Some(format!("{idle} ms"))),
            (value::STREAM_TIMEOUT, own.stream_ms, filled.stream_ms, None),
        ] {
            match (own, said, usual) {
                (None, Some(ms), _) => self.value(what, shown_ms(ms), false),
                (None, None, Some(usual)) => self.value(what, usual, true),
                _ => {}
            }
        }
    }

    /// What protects it, and others from it.
    fn protection(&mut self) {
        let Some(protection) = self.entry.backend.policy.protection.as_deref() else { return };
        if let Some(check) = &protection.health_check {
            let what = match &check.kind {
                CheckKind::Http(http) => format!("{} {}", http.method, http.path),
                CheckKind::Grpc { service, .. } if service.is_empty() => "gRPC".to_owned(),
                CheckKind::Grpc { service, .. } => format!("gRPC {service}"),
                CheckKind::Tcp { .. } => "TCP".to_owned(),
            };
            let text = format!("{what} every {} ms, by each proxy", check.interval_ms);
            self.value(value::HEALTH_CHECK, text, false);
        }
        if let Some(adaptive) = &protection.adaptive {
            let (least, most) = (adaptive.limit_min, adaptive.limit_max);
            self.value(value::ADAPTIVE, format!("{least} to {most} requests in flight"), false);
        }
        if protection.ungated {
            self.value(value::GATE, "off".into(), false);
        }
        if let Some(bytes) = protection.body_bytes_max {
            self.value(value::BODY, format!("at most {bytes} bytes"), false);
        }
        let (of, sources) = (self.entry.label(), &self.entry.backend.policy.sources);
        let limits = protection.rate_limits.iter();
        self.out.extend(limits.map(|limit| Step { of: of.clone(), ..limited(limit, sources) }));
    }

    fn tls(&mut self) {
        if let Some(tls) = self.entry.backend.policy.tls.as_deref() {
            return self.value(value::TLS, originated(tls), false);
        }
        let endpoints = || self.entry.endpoints.iter().map(|e| &*e.endpoint);
        let plain = endpoints().filter(|e| e.transport == Transport::Plaintext).count();
        if endpoints().next().is_none() {
            return;
        }
        let mut who: Vec<&str> = endpoints().filter_map(|e| e.identity.as_deref()).collect();
        who.sort_unstable();
        who.dedup();
        let more = who.len().saturating_sub(IDENTITIES_SHOWN);
        let mut names = who.iter().take(IDENTITIES_SHOWN).copied().collect::<Vec<_>>().join(", ");
        if more > 0 {
            names += &format!(" and {more} more");
        }
        let text = match (plain, self.entry.total() - plain) {
            (_, 0) => "none: plaintext".to_owned(),
            (0, _) => format!("the mesh's mutual TLS; its certificate must be {names}'s"),
            (plain, meshed) => {
                format!("the mesh's mutual TLS to {meshed} as {names}, plaintext to {plain}")
            }
        };
        self.value(value::TLS, text, true);
    }
}

// === words ===

fn balanced(lb: &LbPolicy) -> String {
    match lb {
        LbPolicy::RoundRobin => "round robin".into(),
        LbPolicy::Random => "random".into(),
        LbPolicy::Passthrough => "the address that was dialled".into(),
        LbPolicy::LeastRequest => "least requests in flight, of two".into(),
        LbPolicy::PeakEwma => "fastest answers, of two".into(),
        LbPolicy::Hash(hashing) => {
            let by = match &hashing.by {
                HashBy::Header(name) => format!("header {name}"),
                HashBy::Cookie(cookie) => format!("cookie {}", cookie.name),
                HashBy::SourceIp => "the client's address".into(),
                HashBy::Query(name) => format!("query parameter {name}"),
            };
            let table = match hashing.table {
                HashTable::Ring { .. } => "ring",
                HashTable::Maglev { .. } => "Maglev",
            };
            let bound = hashing.load_max_basis_points;
            let bound = bound.map(|b| format!(", at most {} % of its part", f64::from(b) / 100.0));
            format!("hash of {by} ({table}){}", bound.unwrap_or_default())
        }
    }
}

fn budgeted(budget: &RetryBudget) -> String {
    let (part, least) = (f64::from(budget.basis_points) / 100.0, budget.min_per_second);
    let over = budget.interval_ms;
    let mut text = format!("{part} % of the requests of {over} ms, at least {least} a second");
    if budget.min_concurrent > 0 {
        text += &format!(", or {} at a time", budget.min_concurrent);
    }
    text
}

fn placed(locality: &LocalityPolicy) -> String {
    match locality {
        LocalityPolicy::Any => "all places alike".into(),
        LocalityPolicy::Distribute(list) => {
            let each = list.iter().map(|from| {
                let to: Vec<_> = from.to.iter().map(|(p, n)| format!("{n} to {}", p.0)).collect();
                format!("from {}: {}", from.from.0, to.join(", "))
            });
            each.collect::<Vec<_>>().join("; ")
        }
        LocalityPolicy::Weights(list) => {
            let named = |l: &Locality| format!("{}/{}/{}", l.region, l.zone, l.sub_zone);
            let each = list.iter().map(|(at, n)| format!("{n} to {}", named(at)));
            let all = each.collect::<Vec<_>>().join(", ");
            format!("{all}; elsewhere only when none of these has anybody")
        }
        LocalityPolicy::Failover(failover) if !failover.labels.is_empty() => {
            format!("the nearest first, by {}", failover.labels.join(", "))
        }
        LocalityPolicy::Failover(_) => "the nearest first".into(),
        LocalityPolicy::Zones(zones) => {
            format!("the own zone first, from {} instances on", zones.endpoints_min)
        }
    }
}

fn panics(basis_points: u32) -> String {
    match basis_points {
        0 => "when nobody else is left, the ejected are asked".into(),
        n => format!("with less than {} % usable, all are asked", f64::from(n) / 100.0),
    }
}

fn ejected_for(outlier: &Outlier) -> String {
    let streak = |n: u32, what: &str| (n > 0).then(|| format!("{n} {what}"));
    let failures = match outlier.statuses.as_slice() {
        [] => "failures".to_owned(),
        statuses => {
            let list: Vec<_> = statuses.iter().map(ToString::to_string).collect();
            format!("failures ({})", list.join(", "))
        }
    };
    let each = [
        streak(outlier.consecutive_failures, &failures),
        streak(outlier.consecutive_gateway, "gateway errors"),
        streak(outlier.consecutive_local.unwrap_or(0), "times no answer"),
    ];
    let each: Vec<String> = each.into_iter().flatten().collect();
    match each.is_empty() {
        true => "off".into(),
        false => format!("after {} in a row", each.join(" or ")),
    }
}

fn originated(tls: &UpstreamTls) -> String {
    let name = tls.server_name.as_deref();
    let sni = name.map_or_else(|| "no SNI".to_owned(), |name| format!("SNI {name}"));
    let names = match (&tls.names, name) {
        (Names::ServerName, Some(name)) => format!("its certificate must name {name}"),
        (Names::ServerName, None) => "its certificate must name its address".into(),
        (Names::OneOf(names), _) => format!("its certificate must name {}", names.join(" or ")),
        (Names::Any, _) => "whatever its certificate names".into(),
    };
    let trust = match &tls.trust {
        Trust::System => "signed by whom the machine trusts",
        Trust::Authorities(_) => "signed by its policy's authorities",
        Trust::Anyone => "signed by anybody: not verified",
    };
    let own = if tls.certificate.is_some() { "; a certificate is shown" } else { "" };
    format!("its own: {sni}; {names}, {trust}{own}")
}
