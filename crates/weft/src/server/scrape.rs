// SPDX-License-Identifier: Apache-2.0
//! Load per service, read once a second from the proxies' own metrics: what `weft top`, `weft
//! status` and the live table show. Calling proxies report (`reporter="source"`), so a request is
//! counted once, and one that never reached an instance is counted too; whether it came encrypted
//! is what the called proxy says.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use weft_base::clock::{Clock, Mono};
use weft_base::metrics::{DURATION_MS_BOUNDS, quantile};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, World, host_address};

use super::facts::is_elsewhere;
use super::rates::{Flow, Rates, Reading};

const METRICS_PORT: u16 = 15020;
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(800);
const SCRAPE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Proxies asked at the same time.
const SCRAPES_AT_ONCE: usize = 16;

/// `namespace/name` of a service.
pub type ServiceName = Arc<str>;

/// What a service's callers saw in the last interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    pub rps: f64,
    pub errors_per_s: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Since the proxies started.
    pub mtls_requests: u64,
    pub plaintext_requests: u64,
}

/// The newest figures.
#[derive(Clone, Debug)]
pub struct Loads {
    http: Client<HttpConnector, Empty<Bytes>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    at: Option<Mono>,
    proxies: HashMap<IpAddr, BTreeMap<ServiceName, Counts>>,
    loads: BTreeMap<ServiceName, Load>,
    rates: Rates,
}

/// Counters of one service in one proxy.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    requests: u64,
    errors: u64,
    mtls: u64,
    plaintext: u64,
    /// Per bucket, not cumulative; the overflow bucket last.
    buckets: Vec<u64>,
}

// === impl Loads ===

impl Loads {
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(SCRAPE_TIMEOUT));
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { http, state: Arc::default() }
    }

    pub fn of(&self, service: &str) -> Load {
        self.lock().loads.get(service).cloned().unwrap_or_default()
    }

    /// Asks every proxy of this world once and works the figures out.
    pub async fn refresh(&self, world: &World, clock: &Clock) {
        let addresses = proxies(world);
        let texts: Vec<(IpAddr, Option<String>)> = futures_util::stream::iter(addresses)
            .map(|ip| async move { (ip, self.scrape(ip).await) })
            .buffer_unordered(SCRAPES_AT_ONCE)
            .collect()
            .await;
        let now = clock.now();
        let fresh: HashMap<IpAddr, BTreeMap<ServiceName, Counts>> =
            texts.into_iter().filter_map(|(ip, text)| Some((ip, parse(&text?)))).collect();
        let mut state = self.lock();
        let seconds = state.at.map_or(0.0, |at| now.since(at).as_secs_f64());
        state.loads = work_out(&state.proxies, &fresh, seconds);
        state.rates.push(now, reading(&fresh));
        state.proxies = fresh;
        state.at = Some(now);
    }

    /// Thousandths of requests per second: those that arrive at each pod, and those sent to each
    /// service.
    pub fn requests(
        &self,
        world: &World,
    ) -> (BTreeMap<ServiceName, u64>, BTreeMap<ServiceName, u64>) {
        let pods = world.objects(KindId::Pod, None);
        let name = |o: &Object| format!("{}/{}", o.key.namespace, o.key.name).into();
        let pods = pods.filter_map(|o| Some((host_address(o)?, name(o)))).collect();
        self.lock().rates.milli(&pods)
    }

    async fn scrape(&self, ip: IpAddr) -> Option<String> {
        let authority = std::net::SocketAddr::new(ip, METRICS_PORT);
        let uri = format!("http://{authority}/metrics").parse().ok()?;
        let answer = tokio::time::timeout(SCRAPE_TIMEOUT, async {
            let body = self.http.get(uri).await.ok()?.into_body();
            let bytes = Limited::new(body, SCRAPE_BYTES_MAX).collect().await.ok()?.to_bytes();
            String::from_utf8(bytes.to_vec()).ok()
        });
        answer.await.ok().flatten()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Addresses of all running pods of this machine; each has a proxy on it.
pub fn proxies(world: &World) -> Vec<IpAddr> {
    let pods = world.all_objects().filter(|o| o.key.kind == KindId::Pod);
    pods.filter_map(|o| match &o.view {
        View::Pod(pod) if !pod.is_finished() && !is_elsewhere(world, pod) => host_address(o),
        _ => None,
    })
    .collect()
}

fn reading(proxies: &HashMap<IpAddr, BTreeMap<ServiceName, Counts>>) -> Reading {
    let flow = |c: &Counts| Flow { sent: c.requests, taken: c.mtls + c.plaintext };
    let flows = |services: &BTreeMap<ServiceName, Counts>| {
        services.iter().map(|(name, counts)| (name.clone(), flow(counts))).collect()
    };
    proxies.iter().map(|(ip, services)| (*ip, flows(services))).collect()
}

fn work_out(
    old: &HashMap<IpAddr, BTreeMap<ServiceName, Counts>>,
    new: &HashMap<IpAddr, BTreeMap<ServiceName, Counts>>,
    seconds: f64,
) -> BTreeMap<ServiceName, Load> {
    let mut sums: BTreeMap<ServiceName, (Counts, Counts)> = BTreeMap::new();
    for (ip, services) in new {
        let before = old.get(ip);
        for (service, counts) in services {
            let was = before.and_then(|b| b.get(service)).cloned().unwrap_or_default();
            let (total, delta) = sums.entry(service.clone()).or_default();
            total.add(counts);
            delta.add(&counts.since(&was));
        }
    }
    #[allow(clippy::cast_precision_loss)] // rates for people
    let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    sums.into_iter()
        .map(|(service, (total, delta))| {
            let load = Load {
                rps: rate(delta.requests),
                errors_per_s: rate(delta.errors),
                p50_ms: quantile(&DURATION_MS_BOUNDS, &delta.buckets, 0.5),
                p99_ms: quantile(&DURATION_MS_BOUNDS, &delta.buckets, 0.99),
                mtls_requests: total.mtls,
                plaintext_requests: total.plaintext,
            };
            (service, load)
        })
        .collect()
}

// === impl Counts ===

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.mtls += other.mtls;
        self.plaintext += other.plaintext;
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    /// What was added since; a proxy that restarted counts from nothing.
    fn since(&self, was: &Self) -> Self {
        if self.requests < was.requests {
            return self.clone();
        }
        let buckets = self.buckets.iter().enumerate();
        Self {
            requests: self.requests - was.requests,
            errors: self.errors.saturating_sub(was.errors),
            mtls: self.mtls.saturating_sub(was.mtls),
            plaintext: self.plaintext.saturating_sub(was.plaintext),
            buckets: buckets
                .map(|(i, n)| n.saturating_sub(was.buckets.get(i).copied().unwrap_or(0)))
                .collect(),
        }
    }
}

/// Reads what callers reported from the Prometheus text format.
fn parse(text: &str) -> BTreeMap<ServiceName, Counts> {
    let mut out: BTreeMap<ServiceName, Counts> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        let called = label(labels, "reporter") == Some("destination");
        let (Some(namespace), Some(service)) = (
            label(labels, "destination_service_namespace"),
            label(labels, "destination_service_name"),
        ) else {
            continue;
        };
        let Ok(value) = value.split(' ').next().unwrap_or("").parse::<f64>() else { continue };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // counters
        let value = value.max(0.0) as u64;
        let counts = out.entry(format!("{namespace}/{service}").into()).or_default();
        match (name, called) {
            ("istio_requests_total", false) => counts.request(labels, value),
            ("istio_requests_total", true) => counts.secured(labels, value),
            ("istio_request_duration_milliseconds_bucket", false) => counts.bucket(labels, value),
            _ => {}
        }
    }
    for counts in out.values_mut() {
        counts.differences();
    }
    out
}

impl Counts {
    fn request(&mut self, labels: &str, value: u64) {
        self.requests += value;
        let code = label(labels, "response_code").unwrap_or("");
        if code.starts_with('5') || code == "0" {
            self.errors += value;
        }
    }

    /// Whether a request came encrypted is known where it arrived.
    fn secured(&mut self, labels: &str, value: u64) {
        match label(labels, "connection_security_policy") {
            Some("mutual_tls") => self.mtls += value,
            _ => self.plaintext += value,
        }
    }

    /// Cumulative counts are added up by bound first.
    fn bucket(&mut self, labels: &str, value: u64) {
        self.buckets.resize(DURATION_MS_BOUNDS.len() + 1, 0);
        let bound = label(labels, "le").and_then(|le| le.parse::<f64>().ok());
        #[allow(clippy::cast_precision_loss)] // bounds are small
        let at = bound
            .and_then(|b| DURATION_MS_BOUNDS.iter().position(|x| (*x as f64 - b).abs() < 0.5))
            .unwrap_or(DURATION_MS_BOUNDS.len());
        if let Some(cell) = self.buckets.get_mut(at) {
            *cell += value;
        }
    }

    fn differences(&mut self) {
        let mut below = 0;
        for cell in &mut self.buckets {
            let cumulative = (*cell).max(below);
            *cell = cumulative - below;
            below = cumulative;
        }
    }
}

/// The value of a label; names and values here never hold quotes or commas.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../testdata/sidecar-metrics.txt");

    #[test]
    fn callers_figures_become_rates() {
        let ip: IpAddr = "127.64.0.1".parse().unwrap();
        let new = HashMap::from([(ip, parse(TEXT))]);
        let loads = work_out(&HashMap::new(), &new, 2.0);
        let load = &loads["shop/user"];
        assert_eq!((load.rps, load.errors_per_s), (50.0, 5.0));
        assert_eq!((load.mtls_requests, load.plaintext_requests), (90, 7));
        assert!(load.p99_ms.unwrap() <= 2.0);
        let quiet = work_out(&new, &new, 1.0);
        assert_eq!(quiet["shop/user"].rps, 0.0);
        assert_eq!(quiet["shop/user"].p99_ms, None);
    }
}
