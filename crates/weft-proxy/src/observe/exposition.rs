// SPDX-License-Identifier: Apache-2.0
//! Renders the workers' cells as Prometheus text. Series with the same labels are summed over
//! workers here, when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use weft_base::clock::{Clock, Mono};
use weft_base::metrics::{DURATION_MS_BOUNDS, Histogram};

use super::admin::all_backends;
use super::certificates::seconds_left;
use super::metrics::{BYTES_BOUNDS, Labels, Reporter, RequestProtocol, WorkerCells, lock};
use crate::http::cache::Store;
use crate::ingest::Status;
use crate::table::BackendEntry;
use crate::worker::Names;

type LabelList = Vec<(&'static str, String)>;

/// The collector of one proxy.
#[derive(Debug)]
pub struct ProxyCollector {
    pub cells: Vec<Arc<WorkerCells>>,
    pub status: Status,
    pub names: Names,
    pub cache: Arc<Store>,
    pub clock: Clock,
}

#[derive(Default)]
struct Requests {
    count: u64,
    duration: Sum,
    request_bytes: Sum,
    response_bytes: Sum,
}

#[derive(Default)]
struct Sum {
    counts: Vec<u64>,
    sum: u64,
}

#[derive(Default)]
struct Tcp {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

// === impl ProxyCollector ===

impl Collector for ProxyCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.requests(&mut encoder)?;
        self.tcp(&mut encoder)?;
        self.gates(&mut encoder)?;
        self.ejections(&mut encoder)?;
        self.certificates(&mut encoder)?;
        self.workers(&mut encoder)?;
        self.own(&mut encoder)
    }
}

impl ProxyCollector {
    #[allow(clippy::type_complexity)] // A table: name, help, bounds and what is shown.
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut all: BTreeMap<LabelList, Requests> = BTreeMap::new();
        for cells in &self.cells {
            for (labels, series) in lock(&cells.requests).iter() {
                let sum = all.entry(request_labels(labels)).or_default();
                sum.count += series.requests.load(Ordering::Relaxed);
                sum.duration.add(&series.duration_ms);
                sum.request_bytes.add(&series.request_bytes);
                sum.response_bytes.add(&series.response_bytes);
            }
        }
        let help = "Requests handled, by both ends and the answer";
        let mut family =
            encoder.encode_descriptor("istio_requests", help, None, MetricType::Counter)?;
        for (labels, sum) in &all {
            ConstCounter::new(sum.count).encode(family.encode_family(labels)?)?;
        }
        let histograms: [(&str, &str, &[u64], fn(&Requests) -> &Sum); 3] = [
            (
                "istio_request_duration_milliseconds",
                "Time from a request's head to the end of its answer",
                &DURATION_MS_BOUNDS,
                |r| &r.duration,
            ),
            ("istio_request_bytes", "Sizes of request bodies", &BYTES_BOUNDS, |r| &r.request_bytes),
            ("istio_response_bytes", "Sizes of response bodies", &BYTES_BOUNDS, |r| {
                &r.response_bytes
            }),
        ];
        for (name, help, bounds, part) in histograms {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, sum) in &all {
                part(sum).encode(bounds, family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)] // A table: name, help and what is shown.
    fn tcp(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut all: BTreeMap<LabelList, Tcp> = BTreeMap::new();
        for cells in &self.cells {
            for (labels, series) in lock(&cells.tcp).iter() {
                let sum = all.entry(common_labels(labels)).or_default();
                sum.opened += series.opened.load(Ordering::Relaxed);
                sum.closed += series.closed.load(Ordering::Relaxed);
                sum.sent += series.sent.load(Ordering::Relaxed);
                sum.received += series.received.load(Ordering::Relaxed);
            }
        }
        let counters: [(&str, &str, fn(&Tcp) -> u64); 4] = [
            ("istio_tcp_connections_opened", "Opaque connections opened", |t| t.opened),
            ("istio_tcp_connections_closed", "Opaque connections closed", |t| t.closed),
            ("istio_tcp_sent_bytes", "Bytes sent to clients of opaque connections", |t| t.sent),
            ("istio_tcp_received_bytes", "Bytes received from such clients", |t| t.received),
        ];
        for (name, help, part) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, sum) in &all {
                ConstCounter::new(part(sum)).encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    /// What gates hold back, by backend.
    fn gates(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut all: BTreeMap<Arc<str>, (u64, u64)> = BTreeMap::new();
        for cells in &self.cells {
            for (backend, series) in lock(&cells.gates).iter() {
                let sum = all.entry(backend.clone()).or_default();
                sum.0 += series.waiting.get();
                sum.1 += series.held.get();
            }
        }
        let (name, help) = ("weft_backend_waiting", "Requests that wait at the gate of a backend");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (backend, (waiting, _)) in &all {
            let gauge = ConstGauge::new(i64::try_from(*waiting).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("backend", &**backend)])?)?;
        }
        let (name, help) = ("weft_backend_held", "Requests that had to wait there");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (backend, (_, held)) in &all {
            let labels = &[("backend", &**backend)];
            ConstCounter::new(*held).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    /// Backends of which an instance was ever ejected.
    fn ejections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (table, now) = (self.status.table.load(), self.clock.now());
        let all: BTreeMap<Arc<str>, (u64, u64)> = all_backends(&table)
            .map(|backend| (backend.cluster.clone(), ejected(backend, now)))
            .filter(|(_, (_, ejections))| *ejections > 0)
            .collect();
        let (name, help) = ("weft_backend_ejected", "Instances that are ejected after failures");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (backend, (now, _)) in &all {
            let gauge = ConstGauge::new(i64::try_from(*now).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("backend", &**backend)])?)?;
        }
        let (name, help) = ("weft_backend_ejections", "Ejections of its instances");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (backend, (_, ejections)) in &all {
            let labels = &[("backend", &**backend)];
            ConstCounter::new(*ejections).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn certificates(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.status.table.load();
        let help = "Until a listener's certificate runs out; below 0 it has";
        let (name, unit) = ("weft_certificate_left", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (listener, section, left) in seconds_left(&table, self.clock.wall_ms()) {
            let labels = &[("listener", listener), ("section", section)];
            ConstGauge::new(left).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("weft_worker_connections", "Connections open now, by who serves them");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (id, cells) in self.cells.iter().enumerate() {
            let gauge = ConstGauge::new(i64::try_from(cells.downstream.get()).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("worker", id.to_string())])?)?;
        }
        Ok(())
    }

    fn own(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in self.counters() {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in self.gauges() {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }

    /// Own counters, without Prometheus' `_total`.
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let sum = |part: fn(&WorkerCells) -> u64| self.cells.iter().map(|c| part(c)).sum();
        vec![
            (
                "weft_downstream_connections",
                "Connections accepted",
                sum(|c| c.downstream_total.get()),
            ),
            (
                "weft_refused_connections",
                "Connections beyond the limit",
                sum(|c| c.refused_connections.get()),
            ),
            ("weft_retries", "Attempts beyond the first", sum(|c| c.retries.get())),
            (
                "weft_retries_denied",
                "Retries that the budget did not allow",
                sum(|c| c.retries_denied.get()),
            ),
            (
                "weft_rate_limited",
                "Requests refused by a rate limit",
                sum(|c| c.rate_limited.get()),
            ),
            (
                "weft_shed",
                "Requests and connections refused, and transfers given up, since memory was short",
                sum(|c| c.shed.get()),
            ),
            (
                "weft_tls_handshakes_failed",
                "TLS handshakes of clients that came to nothing",
                sum(|c| c.handshakes_failed.get()),
            ),
            (
                "weft_mirrors_dropped",
                "Copies of requests given up, since too many were under way",
                sum(|c| c.mirrors_dropped.get()),
            ),
            (
                "weft_series_overflowed",
                "Label sets that shared one series",
                sum(|c| c.overflowed.get()),
            ),
            (
                "weft_access_log_lines_dropped",
                "Lines lost to a full queue or to whatever they are written to",
                sum(|c| c.log_dropped.get()),
            ),
            (
                "weft_config_rejected",
                "Resources refused since the start",
                self.status.rejected_total.load(Ordering::Relaxed),
            ),
            (
                "weft_names_unresolved",
                "Lookups of endpoints' names that found nothing; what a name meant stays in use",
                self.status.unresolved_total.load(Ordering::Relaxed),
            ),
            ("weft_bugs", "Impossible states met", weft_base::error::bugs_total()),
            ("weft_panics", "Panics caught in tasks", weft_base::task::panics_total()),
        ]
        .into_iter()
        .chain(self.cache.counters())
        .chain(self.counters_below_http())
        .collect()
    }

    fn counters_below_http(&self) -> Vec<(&'static str, &'static str, u64)> {
        let sum = |part: fn(&WorkerCells) -> u64| self.cells.iter().map(|c| part(c)).sum();
        vec![
            (
                "weft_connections_handed_over",
                "Connections that another worker serves than accepted them, since it had far fewer",
                sum(|c| c.handed_over.get()),
            ),
            (
                "weft_half_open_connections",
                "Connections given up, since nothing sent to them was acknowledged",
                sum(|c| c.half_open.get()),
            ),
            (
                "weft_udp_flows",
                "Clients of datagrams that got an endpoint",
                sum(|c| c.udp_flows.get()),
            ),
            (
                "weft_udp_flows_refused",
                "Clients of datagrams beyond the limit of flows",
                sum(|c| c.udp_full.get()),
            ),
            ("weft_udp_datagrams_received", "Datagrams of clients", sum(|c| c.udp_received.get())),
            ("weft_udp_datagrams_sent", "Answers sent to them", sum(|c| c.udp_sent.get())),
            (
                "weft_udp_datagrams_dropped",
                "Datagrams that could not be passed on, either way",
                sum(|c| c.udp_dropped.get()),
            ),
        ]
    }

    pub fn gauges(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![
            (
                "weft_downstream_connections_open",
                "Connections open now",
                self.cells.iter().map(|c| c.downstream.get()).sum(),
            ),
            (
                "weft_udp_flows_open",
                "Clients of datagrams that have an endpoint now",
                self.cells.iter().map(|c| c.udp_flows_open.get()).sum(),
            ),
            ("weft_cache_bytes", "Bytes of stored answers", self.cache.bytes()),
            (
                "weft_config_generation",
                "Generation of the table in use",
                self.status.generation.load(Ordering::Relaxed),
            ),
            (
                "weft_inbound_requests_active",
                "Requests the own app is answering; the agent waits for them before it ends it",
                self.inbound_active(),
            ),
        ]
    }

    fn inbound_active(&self) -> u64 {
        let table = self.status.table.load();
        let apps = table.inbounds().flat_map(|i| &i.backend.endpoints);
        apps.map(|e| e.shared.in_flight()).sum()
    }
}

/// Endpoints of a backend that are ejected now, and how often one was.
pub fn ejected(backend: &BackendEntry, now: Mono) -> (u64, u64) {
    let out = backend.endpoints.iter().filter(|e| e.shared.is_ejected(now)).count();
    (u64::try_from(out).unwrap_or(u64::MAX), backend.set.ejections(&backend.cluster))
}

/// The exposition of one collector in Prometheus' classic text format (0.0.4), which every
/// scraper and `promtool` reads.
pub fn render_classic(collector: ProxyCollector) -> Result<String, fmt::Error> {
    Ok(classic(&render(collector)?))
}

/// OpenMetrics names a counter's family without `_total`, the classic format with it.
fn classic(open: &str) -> String {
    let typed = |l: &str| Some(l.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: BTreeSet<String> = open.lines().filter_map(typed).collect();
    let mut out = String::with_capacity(open.len() + 1024);
    for line in open.lines().filter(|l| *l != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                out.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The exposition of one collector as OpenMetrics.
pub fn render(collector: ProxyCollector) -> Result<String, fmt::Error> {
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

// === impl Sum ===

impl Sum {
    fn add(&mut self, histogram: &Histogram) {
        let counts = histogram.counts();
        self.counts.resize(counts.len(), 0);
        for (sum, n) in self.counts.iter_mut().zip(counts) {
            *sum += n;
        }
        self.sum += histogram.sum();
    }

    #[allow(clippy::cast_precision_loss)] // Prometheus' numbers are floats.
    fn encode(&self, bounds: &[u64], mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = bounds.iter().map(|b| *b as f64).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.counts.iter().copied()).collect();
        let count = self.counts.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum as f64, count, &buckets, None)
    }
}

fn request_labels(labels: &Labels) -> LabelList {
    let mut list = common_labels(labels);
    list.push(("response_code", labels.code.to_string()));
    let grpc = labels.grpc_status.map(|s| s.to_string()).unwrap_or_default();
    list.push(("grpc_response_status", grpc));
    list
}

/// Istio's standard labels.
fn common_labels(labels: &Labels) -> LabelList {
    let service = labels.destination_service.to_string();
    let name = service.split('.').next().unwrap_or_default().to_owned();
    let text = |s: &Arc<str>| s.to_string();
    vec![
        (
            "reporter",
            match labels.reporter {
                Reporter::Source => "source".into(),
                Reporter::Destination => "destination".into(),
            },
        ),
        ("source_workload", text(&labels.source_workload)),
        ("source_canonical_service", text(&labels.source_workload)),
        ("source_workload_namespace", text(&labels.source_namespace)),
        ("source_principal", text(&labels.source_principal)),
        ("destination_workload", text(&labels.destination_workload)),
        ("destination_canonical_service", text(&labels.destination_workload)),
        ("destination_workload_namespace", text(&labels.destination_namespace)),
        ("destination_principal", text(&labels.destination_principal)),
        ("destination_service", service),
        ("destination_service_name", name),
        ("destination_service_namespace", text(&labels.destination_namespace)),
        (
            "request_protocol",
            match labels.protocol {
                RequestProtocol::Http => "http".into(),
                RequestProtocol::Grpc => "grpc".into(),
                RequestProtocol::Tcp => "tcp".into(),
            },
        ),
        ("response_flags", labels.flags.to_string()),
        ("connection_security_policy", security(labels).into()),
    ]
}

fn security(labels: &Labels) -> &'static str {
    match (labels.reporter, labels.mtls) {
        // Istio's way: only the server's end vouches for it.
        (Reporter::Source, _) => "unknown",
        (Reporter::Destination, true) => "mutual_tls",
        (Reporter::Destination, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_format_names_counters_as_their_samples() {
        let open = "# HELP a Text.\n# TYPE a counter\na_total{x=\"y\"} 1\n\
                    # HELP g G.\n# TYPE g gauge\ng 2\n# EOF\n";
        let want = "# HELP a_total Text.\n# TYPE a_total counter\na_total{x=\"y\"} 1\n\
                    # HELP g G.\n# TYPE g gauge\ng 2\n";
        assert_eq!(classic(open), want);
    }
}
