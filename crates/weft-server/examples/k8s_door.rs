// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes-style door alone, over a store in memory: to try clients against it.
//!
//! `cargo run -p weft-server --example k8s_door [ADDRESS]` prints the address it listens on.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_registry::Registry;
use weft_server::k8s::{
    Door, LogError, LogPieces, LogRequest, Meter, Opened, PodLogs, PodStreams, Pods, StreamError,
    Visit, router,
};
use weft_server::serve::serve;
use weft_store::MemoryStore;

/// Nothing runs here, so nothing has output.
struct NoLogs;

impl PodLogs for NoLogs {
    fn open(&self, request: LogRequest) -> BoxFuture<'_, Result<LogPieces, LogError>> {
        let why = format!("no process of pod {:?} runs here", request.pod);
        Box::pin(async move { Err(LogError::NotThere(why)) })
    }
}

struct NoStreams;

impl PodStreams for NoStreams {
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        let why = format!("no process of pod {:?} runs here", visit.pod.name);
        Box::pin(async { Err(StreamError::NotRunning(why)) })
    }
}

impl Meter for NoStreams {
    fn asked(&self) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address.parse::<SocketAddr>()?).await?;
    let tasks = TaskGroup::new();
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let registry = Registry::open(store, clock, tasks.clone()).await?;
    let door = Door::new(
        registry,
        Pods { logs: Arc::new(NoLogs), streams: Arc::new(NoStreams), meter: Arc::new(NoStreams) },
        env!("CARGO_PKG_VERSION"),
    );
    println!("{}", listener.local_addr()?);
    serve(listener, router(door), Vec::new().into(), tasks).await;
    Ok(())
}
