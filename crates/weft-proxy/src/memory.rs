// SPDX-License-Identifier: Apache-2.0
//! A real worker with no thread and no socket: what it serves comes over in-memory streams, and
//! so does what it dials. For tests that compare decisions, and for simulations; no build that
//! serves anybody has it (feature `testing`).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use weft_base::clock::Clock;

use crate::config::ProxyConfig;
use crate::http::cache::Store;
use crate::http::serve::serve;
use crate::observe::access_log::Lines;
use crate::observe::metrics::WorkerMetrics;
use crate::table::{Door, Table};
use crate::upstream::connect::Dialer;
use crate::upstream::outlier;
use crate::upstream::pool::Wire;
use crate::upstream::resolver::Resolver;
use crate::worker::neighbours::Neighbours;
use crate::worker::{Conn, Names, Shared, Worker};

/// Bytes that a stream holds before its writer waits.
const STREAM_BYTES: usize = 64 * 1024;
const LINES_MAX: usize = 1024;

type Connect = dyn Fn(SocketAddr) -> io::Result<DuplexStream>;

thread_local! {
    static CONNECT: RefCell<Option<Rc<Connect>>> = const { RefCell::new(None) };
}

/// A worker, and the lines of its access log.
#[derive(Debug)]
pub struct MemoryProxy {
    pub worker: Rc<Worker>,
    lines: mpsc::Receiver<Lines>,
}

// === impl MemoryProxy ===

impl MemoryProxy {
    pub fn new(config: ProxyConfig, table: Arc<Table>) -> Self {
        let clock = Clock::system();
        let (reporter, _ejector) = outlier::ejector(clock.clone());
        let config = Arc::new(config);
        let mesh_port = config.ports.peers;
        let dialer = Dialer { source: None, tls: None, mesh_port, config: config.clone() };
        let (log_lines, lines) = mpsc::channel(LINES_MAX);
        let shared = Shared {
            resolver: Resolver::system(clock.clone()),
            names: Names::of(&config, None),
            dialer: Arc::new(dialer),
            server_tls: None,
            clock,
            reporter,
            on_demand: crate::on_demand::channel(&config.limits.on_demand).0,
            log_lines,
            buckets: Arc::default(),
            cache: Arc::new(Store::new(config.limits.cache_bytes_max)),
            pressure: Arc::default(),
            neighbours: Neighbours::new(1).0,
            config,
        };
        let metrics = WorkerMetrics::new(Arc::default(), 1);
        Self { worker: Worker::new(0, shared, metrics, table), lines }
    }

    /// What this thread's workers dial from now on, instead of sockets.
    pub fn dial(connect: impl Fn(SocketAddr) -> io::Result<DuplexStream> + 'static) {
        CONNECT.set(Some(Rc::new(connect)));
    }

    pub fn swap(&self, table: Arc<Table>) {
        self.worker.swap(table);
    }

    /// A client's end of an HTTP/1 connection to a door. Must be called within a `LocalSet`.
    pub fn connect(&self, door: Door, local: SocketAddr) -> DuplexStream {
        let (client, server) = tokio::io::duplex(STREAM_BYTES);
        let remote = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let conn = Rc::new(Conn::new(door, local, remote));
        serve(server, self.worker.clone(), conn, Wire::H1);
        client
    }

    /// Lines of the access log that were written since.
    pub fn logged(&mut self) -> Vec<String> {
        self.worker.log.flush();
        let texts = std::iter::from_fn(|| self.lines.try_recv().ok()).map(|lines| lines.text);
        texts
            .flat_map(|text| {
                let text = String::from_utf8_lossy(&text);
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// The stream to an address, when this thread's workers dial none but these.
pub(crate) fn dialled(address: SocketAddr) -> Option<io::Result<DuplexStream>> {
    let connect = CONNECT.with_borrow(Clone::clone)?;
    Some(connect(address))
}
