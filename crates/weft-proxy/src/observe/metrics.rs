// SPDX-License-Identifier: Apache-2.0
//! Istio's standard metrics as cells that one worker writes and the scrape sums. A series is
//! looked up by its labels once per request; past the cap all new label sets share one series.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use weft_base::limits::METRIC_SERIES_MAX;
use weft_base::metrics::{Cell, DURATION_MS_BOUNDS, Histogram, count};

use super::flags::Flags;
use crate::overload::crowd::Crowd;

/// Bucket bounds of the byte histograms.
pub const BYTES_BOUNDS: [u64; 10] =
    [100, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000, 100_000_000];

/// Backends whose gates are told apart on one worker.
const GATES_MAX: usize = 1_024;

/// Labels of one request or connection; all values come from configuration or are bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    pub reporter: Reporter,
    pub source_workload: Arc<str>,
    pub source_namespace: Arc<str>,
    pub source_principal: Arc<str>,
    pub destination_workload: Arc<str>,
    pub destination_namespace: Arc<str>,
    pub destination_principal: Arc<str>,
    /// `product.shop.svc.cluster.local`, or `PassthroughCluster`.
    pub destination_service: Arc<str>,
    pub protocol: RequestProtocol,
    pub code: u16,
    pub grpc_status: Option<u16>,
    pub flags: Flags,
    pub mtls: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Http,
    Grpc,
    Tcp,
}

/// Requests of one label set.
#[derive(Debug)]
pub struct RequestSeries {
    pub requests: AtomicU64,
    pub duration_ms: Histogram,
    pub request_bytes: Histogram,
    pub response_bytes: Histogram,
}

/// TCP connections of one label set.
#[derive(Debug, Default)]
pub struct TcpSeries {
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// Requests that one worker's gate of one backend holds back.
#[derive(Debug, Default)]
pub struct GateSeries {
    /// Now.
    pub waiting: Cell,
    /// Since the start.
    pub held: Cell,
}

/// One worker's series, as the scrape sees them.
#[derive(Debug, Default)]
pub struct WorkerCells {
    pub requests: Mutex<Vec<(Labels, Arc<RequestSeries>)>>,
    pub tcp: Mutex<Vec<(Labels, Arc<TcpSeries>)>>,
    /// By the backend's name, once one held something back.
    pub gates: Mutex<Vec<(Arc<str>, Arc<GateSeries>)>>,
    pub downstream: Cell,
    pub downstream_total: Cell,
    pub refused_connections: Cell,
    /// New connections that another worker serves.
    pub handed_over: Cell,
    pub retries: Cell,
    pub retries_denied: Cell,
    pub mirrors_dropped: Cell,
    pub rate_limited: Cell,
    pub shed: Cell,
    pub handshakes_failed: Cell,
    pub half_open: Cell,
    pub udp_flows: Cell,
    pub udp_flows_open: Cell,
    pub udp_received: Cell,
    pub udp_sent: Cell,
    pub udp_dropped: Cell,
    pub udp_full: Cell,
    pub overflowed: Cell,
    pub log_dropped: Cell,
}

/// One worker's way to its own series.
#[derive(Debug)]
pub struct WorkerMetrics {
    pub cells: Arc<WorkerCells>,
    requests: RefCell<HashMap<Labels, Arc<RequestSeries>>>,
    tcp: RefCell<HashMap<Labels, Arc<TcpSeries>>>,
    /// Requests that have a record.
    pub crowd: Crowd,
    series_max: usize,
}

// === impl WorkerCells ===

impl WorkerCells {
    /// The series of a backend's gate, for which a gate asks once.
    pub fn gate(&self, backend: &Arc<str>) -> Arc<GateSeries> {
        let mut known = lock(&self.gates);
        let find = |known: &[(Arc<str>, Arc<GateSeries>)], name: &str| {
            known.iter().find(|(n, _)| &**n == name).map(|(_, series)| series.clone())
        };
        if let Some(series) = find(&known, backend) {
            return series;
        }
        let mut name = backend.clone();
        if known.len() >= GATES_MAX {
            self.overflowed.add(1);
            name = "overflow".into();
            if let Some(series) = find(&known, &name) {
                return series;
            }
        }
        let made = Arc::<GateSeries>::default();
        known.push((name, made.clone()));
        made
    }
}

// === impl WorkerMetrics ===

impl WorkerMetrics {
    pub fn new(cells: Arc<WorkerCells>, workers: usize) -> Self {
        Self {
            cells,
            requests: RefCell::default(),
            tcp: RefCell::default(),
            crowd: Crowd::default(),
            series_max: METRIC_SERIES_MAX / workers.max(1),
        }
    }

    pub fn request(&self, labels: Labels) -> Arc<RequestSeries> {
        let mut known = self.requests.borrow_mut();
        if let Some(series) = known.get(&labels) {
            return series.clone();
        }
        let labels = self.bounded(labels, known.len());
        let made = known.entry(labels.clone()).or_insert_with(|| {
            let series = Arc::new(RequestSeries::default());
            lock(&self.cells.requests).push((labels, series.clone()));
            series
        });
        made.clone()
    }

    pub fn tcp(&self, labels: Labels) -> Arc<TcpSeries> {
        let mut known = self.tcp.borrow_mut();
        if let Some(series) = known.get(&labels) {
            return series.clone();
        }
        let labels = self.bounded(labels, known.len());
        let made = known.entry(labels.clone()).or_insert_with(|| {
            let series = Arc::new(TcpSeries::default());
            lock(&self.cells.tcp).push((labels, series.clone()));
            series
        });
        made.clone()
    }

    fn bounded(&self, labels: Labels, known: usize) -> Labels {
        if known < self.series_max {
            return labels;
        }
        self.cells.overflowed.add(1);
        let overflow: Arc<str> = "overflow".into();
        Labels {
            reporter: labels.reporter,
            source_workload: overflow.clone(),
            source_namespace: overflow.clone(),
            source_principal: overflow.clone(),
            destination_workload: overflow.clone(),
            destination_namespace: overflow.clone(),
            destination_principal: overflow.clone(),
            destination_service: overflow,
            protocol: RequestProtocol::Http,
            code: 0,
            grpc_status: None,
            flags: Flags::default(),
            mtls: false,
        }
    }
}

// === impl RequestSeries ===

impl RequestSeries {
    pub fn observe(&self, ms: u64, request_bytes: u64, response_bytes: u64) {
        count(&self.requests, 1);
        self.duration_ms.observe(ms);
        self.request_bytes.observe(request_bytes);
        self.response_bytes.observe(response_bytes);
    }
}

impl Default for RequestSeries {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            duration_ms: Histogram::new(&DURATION_MS_BOUNDS),
            request_bytes: Histogram::new(&BYTES_BOUNDS),
            response_bytes: Histogram::new(&BYTES_BOUNDS),
        }
    }
}

/// A list is complete after each push, so a poisoned lock loses nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_cap_gates_share_a_series() {
        let cells = WorkerCells::default();
        let gate = |n: usize| cells.gate(&format!("b{n}:80").into());
        let first = gate(0);
        (0..GATES_MAX).for_each(|n| drop(gate(n)));
        assert!(Arc::ptr_eq(&first, &gate(0)));
        assert!(Arc::ptr_eq(&gate(GATES_MAX), &gate(GATES_MAX + 1)));
        assert_eq!((lock(&cells.gates).len(), cells.overflowed.get()), (GATES_MAX + 1, 2));
    }

    #[test]
    fn past_the_cap_series_are_shared_and_counted() {
        let metrics = WorkerMetrics::new(Arc::default(), METRIC_SERIES_MAX / 2);
        let labels = |code| Labels {
            reporter: Reporter::Source,
            source_workload: "a".into(),
            source_namespace: "a".into(),
            source_principal: "a".into(),
            destination_workload: "a".into(),
            destination_namespace: "a".into(),
            destination_principal: "a".into(),
            destination_service: "a".into(),
            protocol: RequestProtocol::Http,
            code,
            grpc_status: None,
            flags: Flags::default(),
            mtls: false,
        };
        let first = metrics.request(labels(200));
        assert!(Arc::ptr_eq(&first, &metrics.request(labels(200))));
        metrics.request(labels(201));
        let third = metrics.request(labels(202));
        assert!(Arc::ptr_eq(&third, &metrics.request(labels(203))));
        assert_eq!(metrics.cells.requests.lock().unwrap().len(), 3);
        assert_eq!(metrics.cells.overflowed.get(), 2);
    }
}
