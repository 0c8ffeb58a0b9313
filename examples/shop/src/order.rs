// SPDX-License-Identifier: Apache-2.0
//! The order service: an order is a saga over three services. `order/saga.rs` tells its story;
//! `order/store.rs` holds its states; `order/recovery.rs` ends what a killed process began.

mod fault;
mod http;
mod recovery;
mod saga;
pub mod store;
mod upstream;

use std::time::Duration;

use crate::config::{Common, parse_millis};
use crate::db::Db;
use crate::server::{self, Lifecycle};

/// Name under which this service's reservations are held at the product service.
const HOLDER: &str = "order";

/// Command line and environment of `shop-order`.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "shop-order", version, about = "The shop's order service")]
pub struct Config {
    #[command(flatten)]
    common: Common,

    /// Where the user service is reached, as ADDRESS:PORT.
    #[arg(long, env = "USER_ADDR", value_name = "ADDR")]
    user_addr: String,

    /// Host header for the user service.
    #[arg(long, env = "USER_HOST", default_value = "user.shop.svc.cluster.local")]
    user_host: String,

    /// Where the product service's gRPC is reached, as ADDRESS:PORT.
    #[arg(long, env = "PRODUCT_ADDR_GRPC", value_name = "ADDR")]
    product_addr: String,

    /// Authority for the product service's gRPC.
    #[arg(long, env = "PRODUCT_HOST", default_value = "product.shop.svc.cluster.local:50051")]
    product_host: String,

    /// Longest wait for one answer of another service.
    #[arg(long, env = "CALL_TIMEOUT_MS", default_value = "4000", value_parser = parse_millis)]
    call_timeout: Duration,

    /// Age at which another process may end an order that is still pending.
    #[arg(long, env = "RECOVER_AFTER_MS", default_value = "6000", value_parser = parse_millis)]
    recover_after: Duration,

    /// How often unfinished orders are looked for.
    #[arg(long, env = "RECOVER_EVERY_MS", default_value = "1000", value_parser = parse_millis)]
    recover_every: Duration,

    /// Age at which a reservation that belongs to no order is given back.
    #[arg(long, env = "RECLAIM_AFTER_MS", default_value = "15000", value_parser = parse_millis)]
    reclaim_after: Duration,

    #[command(flatten)]
    faults: fault::Faults,
}

/// Runs the service until SIGTERM.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let common = &config.common;
    let life = Lifecycle::start(common.drain)?;
    let db = Db::open(&common.database, store::SCHEMA)?;
    let users = upstream::Users::new(&config.user_addr, &config.user_host, config.call_timeout)?;
    let products =
        upstream::Products::new(&config.product_addr, &config.product_host, config.call_timeout)?;
    let listener = server::bind(common.http_addr()).await?;
    server::announce("order", common, listener.local_addr()?, None);
    let (settler, queue) = recovery::settle_queue();
    let sagas = saga::Sagas::new(db.clone(), users, products.clone(), settler, config.faults);
    let times = recovery::Times {
        recover_after: config.recover_after,
        recover_every: config.recover_every,
        reclaim_after: config.reclaim_after,
    };
    let recovery = recovery::Recovery::new(db.clone(), products, times);
    let background = recovery.start(queue, &life);
    let served = server::serve_http(listener, http::routes(db, sagas.clone()), common, &life).await;
    // A saga whose caller went away runs to its end; what is late is recovered by another.
    let _ = tokio::time::timeout(config.call_timeout, sagas.finished()).await;
    drop(sagas);
    let _ = tokio::time::timeout(config.call_timeout, background).await;
    served
}
