// SPDX-License-Identifier: Apache-2.0
//! The product service: what is sold and how much is left. gRPC for services (with health and
//! reflection), HTTP for reading. Its stock changes only through `product/stock.rs`.

mod grpc;
mod http;
pub mod stock;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::config::{Common, parse_millis};
use crate::db::{Db, Schema};
use crate::pb;
use crate::server::{self, Lifecycle};

/// How often reservations without a holder are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Command line and environment of `shop-product`.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "shop-product", version, about = "The shop's product service")]
pub struct Config {
    #[command(flatten)]
    common: Common,

    /// gRPC port; 0 takes any free one.
    #[arg(long, env = "GRPC_PORT", default_value_t = 0)]
    grpc_port: u16,

    /// Stock of each product when the database is first made.
    #[arg(long, env = "STOCK", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(i64).range(0..=1_000_000_000_000))]
    stock: i64,

    /// Age at which a reservation that names no holder is released.
    #[arg(long, env = "RESERVATION_TTL_MS", default_value = "60000", value_parser = parse_millis)]
    reservation_ttl: Duration,
}

/// Runs the service until SIGTERM.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let common = &config.common;
    let life = Lifecycle::start(common.drain)?;
    let schema = Schema { argument: config.stock, ..stock::SCHEMA };
    let db = Db::open(&common.database, schema)?;
    let http = server::bind(common.http_addr()).await?;
    let grpc = server::bind(SocketAddr::new(common.listen, config.grpc_port)).await?;
    server::announce("product", common, http.local_addr()?, Some(grpc.local_addr()?));
    let (_, grpc_done, http_done) = tokio::join!(
        sweep(&db, config.reservation_ttl, &life),
        serve_grpc(grpc, db.clone(), common, &life),
        server::serve_http(http, http::routes(db.clone()), common, &life),
    );
    grpc_done.and(http_done)
}

async fn serve_grpc(
    listener: tokio::net::TcpListener,
    db: Db,
    common: &Common,
    life: &Lifecycle,
) -> anyhow::Result<()> {
    let products = grpc::Products::new(db, common);
    let products = pb::products_server::ProductsServer::new(products);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<pb::products_server::ProductsServer<grpc::Products>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let draining = life.draining.clone();
    let unready = async {
        draining.cancelled().await;
        for name in ["", "shop.product.v1.Products"] {
            reporter.set_service_status(name, tonic_health::ServingStatus::NotServing).await;
        }
    };
    let stop = life.stopping.clone();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(products)
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stop.clone().cancelled_owned(),
        );
    let (done, ()) = tokio::join!(server::finish("grpc", &stop, server), unready);
    done
}

/// Releases what nobody will confirm, until the service drains.
async fn sweep(db: &Db, ttl: Duration, life: &Lifecycle) {
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let every = SWEEP_EVERY.min(ttl.max(Duration::from_millis(50)));
    loop {
        tokio::select! {
            () = life.draining.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        match db.write(move |tx| stock::release_unheld(tx, ttl_ms)).await {
            Ok(0) => {}
            Ok(count) => server::log("product", "released_unheld", json!({ "count": count })),
            Err(e) => server::log("product", "sweep_failed", json!({ "error": e.to_string() })),
        }
    }
}
