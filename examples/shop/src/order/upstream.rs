// SPDX-License-Identifier: Apache-2.0
//! Calls to the other two services. Each is made once: repeating is the mesh's business, told
//! by the shop's VirtualService. Every call has a deadline.

use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::HOLDER;
use super::store::Order;
use crate::headers::Propagated;
use crate::pb;
use crate::user::User;

/// Largest answer that is read from the user service.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest text of somebody else's failure that is repeated.
const TEXT_CHARS_MAX: usize = 400;

/// Why there is no user.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserError {
    #[error("user {0} does not exist")]
    NotFound(i64),
    #[error("user service: {0}")]
    Failed(String),
}

/// Why there is no stock.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReserveError {
    /// Said by the product service: nothing is held, and asking again will not help.
    #[error("{}", .0.message())]
    Refused(Status),
    /// Not known whether stock is held.
    #[error("product service: {}: {}", .0.code(), .0.message())]
    Unknown(Status),
}

/// The user service over HTTP.
#[derive(Clone, Debug)]
pub(super) struct Users {
    client: Client<HttpConnector, Empty<Bytes>>,
    base: Authority,
    host: HeaderValue,
    timeout: Duration,
}

/// The product service over gRPC.
#[derive(Clone, Debug)]
pub(super) struct Products {
    client: pb::products_client::ProductsClient<Channel>,
    timeout: Duration,
}

// === impl Users ===

impl Users {
    pub(super) fn new(addr: &str, host: &str, timeout: Duration) -> anyhow::Result<Users> {
        let base = addr.parse().map_err(|_| {
            anyhow::anyhow!("--user-addr '{addr}' is not ADDRESS:PORT, such as 127.0.0.1:8081")
        })?;
        let host = HeaderValue::from_str(host)
            .map_err(|_| anyhow::anyhow!("--user-host '{host}' is not a host name"))?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(64)
            .build(connector);
        Ok(Users { client, base, host, timeout })
    }

    pub(super) async fn get(&self, id: i64, context: &Propagated) -> Result<User, UserError> {
        let failed = |e: &dyn std::error::Error| UserError::Failed(chain(e));
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.base.clone())
            .path_and_query(format!("/users/{id}"))
            .build()
            .map_err(|e| failed(&e))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        request.headers_mut().insert(header::HOST, self.host.clone());
        context.add_to(request.headers_mut());
        let call = async {
            let response = self.client.request(request).await.map_err(|e| failed(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| failed(&*e))?.to_bytes();
            Ok((status, body))
        };
        let (status, body) = tokio::time::timeout(self.timeout, call).await.map_err(|_| {
            UserError::Failed(format!("no answer within {} ms", self.timeout.as_millis()))
        })??;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|e| failed(&e)),
            // A mesh that finds no route answers 404 as well; only the service answers JSON.
            StatusCode::NOT_FOUND if body.starts_with(b"{\"error\":\"user") => {
                Err(UserError::NotFound(id))
            }
            _ => {
                let text: String =
                    String::from_utf8_lossy(&body).chars().take(TEXT_CHARS_MAX).collect();
                Err(UserError::Failed(format!("status {}: {}", status.as_u16(), text.trim())))
            }
        }
    }
}

// === impl Products ===

impl Products {
    pub(super) fn new(addr: &str, host: &str, timeout: Duration) -> anyhow::Result<Products> {
        let origin: Uri = format!("http://{host}")
            .parse()
            .map_err(|_| anyhow::anyhow!("--product-host '{host}' is not a host name"))?;
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| {
                anyhow::anyhow!("--product-addr '{addr}' is not ADDRESS:PORT, such as 127.0.0.1:1")
            })?
            .origin(origin)
            .connect_timeout(timeout)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        let client = pb::products_client::ProductsClient::new(endpoint.connect_lazy());
        Ok(Products { client, timeout })
    }

    /// Takes stock for an order. Returns the version of the service that did it.
    pub(super) async fn reserve(
        &self,
        order: &Order,
        context: &Propagated,
    ) -> Result<String, ReserveError> {
        let message = pb::ReserveRequest {
            key: order.key.clone(),
            product: order.product,
            quantity: order.quantity,
            holder: HOLDER.to_owned(),
        };
        let request = self.request(message, &order.key, context);
        let reply = self.within(self.client.clone().reserve(request)).await;
        match reply {
            Ok(reply) => Ok(reply.version),
            Err(status) => Err(match status.code() {
                Code::NotFound
                | Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::AlreadyExists => ReserveError::Refused(status),
                _ => ReserveError::Unknown(status),
            }),
        }
    }

    /// Gives an order's stock back.
    pub(super) async fn release(&self, key: &str) -> Result<(), Status> {
        let message = pb::ReleaseRequest { key: key.to_owned() };
        let request = self.request(message, key, &Propagated::default());
        self.within(self.client.clone().release(request)).await.map(|_| ())
    }

    /// Makes an order's reservation final.
    pub(super) async fn confirm(&self, key: &str) -> Result<(), Status> {
        let message = pb::ConfirmRequest { key: key.to_owned() };
        let request = self.request(message, key, &Propagated::default());
        self.within(self.client.clone().confirm(request)).await.map(|_| ())
    }

    /// Keys of our reservations that are older than `age` and not final.
    pub(super) async fn unconfirmed(&self, age: Duration) -> Result<Vec<String>, Status> {
        let message = pb::UnconfirmedRequest {
            holder: HOLDER.to_owned(),
            older_than_ms: i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
            limit: 100,
        };
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        let reply = self.within(self.client.clone().unconfirmed(request)).await?;
        Ok(reply.keys)
    }

    fn request<T>(&self, message: T, key: &str, context: &Propagated) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        context.add_to_metadata(request.metadata_mut());
        if let Ok(value) = MetadataValue::<Ascii>::try_from(key) {
            request.metadata_mut().insert("x-idempotency-key", value);
        }
        request
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let waited = self.timeout.as_millis();
        let late = |_| Status::deadline_exceeded(format!("no answer within {waited} ms"));
        Ok(tokio::time::timeout(self.timeout, call).await.map_err(late)??.into_inner())
    }
}

// === helpers ===

/// An error with its causes, since hyper's own text names only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
