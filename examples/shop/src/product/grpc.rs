// SPDX-License-Identifier: Apache-2.0
//! The product service's gRPC face: checks what it is asked, runs one transaction of
//! `stock.rs`, and turns its outcome into a reply or a status.

use tonic::{Request, Response, Status};

use super::stock::{self, Outcome, Refused};
use crate::config::Common;
use crate::db::{Db, DbError};
use crate::pb;

/// Longest key and holder.
const NAME_CHARS_MAX: usize = 128;
/// Most pieces in one order.
const QUANTITY_MAX: i64 = 1000;
/// Metadata that may carry the key instead of the field.
const KEY_METADATA: &str = "x-idempotency-key";

/// Implements `shop.product.v1.Products`.
#[derive(Debug)]
pub(super) struct Products {
    db: Db,
    version: String,
    instance: String,
}

// === impl Products ===

impl Products {
    pub(super) fn new(db: Db, common: &Common) -> Products {
        Products { db, version: common.version.clone(), instance: common.instance.clone() }
    }

    async fn change(
        &self,
        job: impl FnOnce(&rusqlite::Transaction<'_>) -> Outcome + Send + 'static,
    ) -> Result<Response<pb::Reservation>, Status> {
        let done = self.db.write(job).await.map_err(unavailable)?.map_err(refused)?;
        let state = match done.state {
            stock::State::Reserved => pb::State::Reserved,
            stock::State::Confirmed => pb::State::Confirmed,
            stock::State::Released => pb::State::Released,
        };
        Ok(Response::new(pb::Reservation {
            key: done.key,
            product: done.product,
            quantity: done.quantity,
            state: state.into(),
            version: self.version.clone(),
            instance: self.instance.clone(),
        }))
    }
}

#[tonic::async_trait]
impl pb::products_server::Products for Products {
    async fn list(&self, _: Request<pb::ListRequest>) -> Result<Response<pb::ListReply>, Status> {
        let products = self.db.read(stock::list).await.map_err(unavailable)?;
        let products = products.into_iter().map(message).collect();
        Ok(Response::new(pb::ListReply { products }))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::Product>, Status> {
        let id = request.get_ref().id;
        let found = self.db.read(move |conn| stock::get(conn, id)).await.map_err(unavailable)?;
        let found = found.ok_or_else(|| refused(Refused::NoProduct(id)))?;
        Ok(Response::new(message(found)))
    }

    async fn reserve(
        &self,
        request: Request<pb::ReserveRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let key = key_of(&request, &request.get_ref().key)?;
        let body = request.into_inner();
        if !(1..=QUANTITY_MAX).contains(&body.quantity) {
            let found = body.quantity;
            return Err(Status::invalid_argument(format!(
                "quantity: {found} is not from 1 to {QUANTITY_MAX}"
            )));
        }
        let holder = short("holder", body.holder)?;
        let (product, quantity) = (body.product, body.quantity);
        let ask = stock::Request { key, product, quantity, holder };
        self.change(move |tx| stock::reserve(tx, &ask)).await
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let key = key_of(&request, &request.get_ref().key)?;
        self.change(move |tx| stock::release(tx, &key)).await
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let key = key_of(&request, &request.get_ref().key)?;
        self.change(move |tx| stock::confirm(tx, &key)).await
    }

    async fn unconfirmed(
        &self,
        request: Request<pb::UnconfirmedRequest>,
    ) -> Result<Response<pb::UnconfirmedReply>, Status> {
        let body = request.into_inner();
        let holder = short("holder", body.holder)?;
        let limit = if body.limit == 0 { 100 } else { i64::from(body.limit.clamp(1, 1000)) };
        let job = move |conn: &rusqlite::Connection| {
            stock::unconfirmed(conn, &holder, body.older_than_ms, limit)
        };
        let keys = self.db.read(job).await.map_err(unavailable)?;
        Ok(Response::new(pb::UnconfirmedReply { keys }))
    }
}

// === helpers ===

fn message(p: stock::Product) -> pb::Product {
    pb::Product { id: p.id, name: p.name, price_cents: p.price_cents, stock: p.stock }
}

/// The key from the field or the metadata; both may be given when they agree.
fn key_of<T>(request: &Request<T>, field: &str) -> Result<String, Status> {
    let metadata = match request.metadata().get(KEY_METADATA) {
        None => "",
        Some(value) => value.to_str().map_err(|_| {
            Status::invalid_argument(format!("metadata {KEY_METADATA} is not plain text"))
        })?,
    };
    let key = if field.is_empty() { metadata } else { field };
    if key.is_empty() {
        return Err(Status::invalid_argument(format!(
            "key: missing; choose one per order, in the field or the metadata {KEY_METADATA}"
        )));
    }
    if !metadata.is_empty() && metadata != key {
        return Err(Status::invalid_argument(format!(
            "key: the field and the metadata {KEY_METADATA} differ; send one, or the same twice"
        )));
    }
    short("key", key.to_owned())
}

fn short(field: &str, text: String) -> Result<String, Status> {
    if text.chars().count() > NAME_CHARS_MAX {
        return Err(Status::invalid_argument(format!(
            "{field}: longer than {NAME_CHARS_MAX} characters"
        )));
    }
    Ok(text)
}

fn unavailable(error: DbError) -> Status {
    Status::unavailable(error.to_string())
}

fn refused(why: Refused) -> Status {
    let text = why.to_string();
    match why {
        Refused::NoProduct(_) | Refused::Unknown(_) => Status::not_found(text),
        Refused::OutOfStock { .. } | Refused::Confirmed(_) => Status::failed_precondition(text),
        Refused::KeyReused(_) => Status::already_exists(text),
        Refused::Released(_) => Status::aborted(text),
    }
}
