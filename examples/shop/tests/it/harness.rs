// SPDX-License-Identifier: Apache-2.0
//! Starts and stops the shop's programs and talks to them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shop::load::check::{CheckOptions, check};
use shop::pb::products_client::ProductsClient;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

pub const USER: &str = env!("CARGO_BIN_EXE_shop-user");
pub const PRODUCT: &str = env!("CARGO_BIN_EXE_shop-product");
pub const ORDER: &str = env!("CARGO_BIN_EXE_shop-order");
pub const LOAD: &str = env!("CARGO_BIN_EXE_shop-load");

/// Anything that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One running program; killed when dropped.
pub struct Service {
    pub child: Child,
    pub http: String,
    pub grpc: String,
}

/// A directory of databases and how to reach each service.
pub struct Shop {
    pub dir: tempfile::TempDir,
    pub user: Service,
    pub product: Service,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

// === impl Service ===

impl Service {
    pub async fn start(program: &str, envs: &[(&str, &str)]) -> Service {
        let mut command = Command::new(program);
        for name in ["POD_IP", "PORT", "GRPC_PORT", "STOCK", "VERSION", "POD_NAME"] {
            command.env_remove(name);
        }
        command.envs(envs.iter().copied()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the program starts");
        let stdout = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        let read = stdout.read_line(&mut line);
        tokio::time::timeout(PATIENCE, read).await.expect("in time").expect("a line is read");
        let up: Value = serde_json::from_str(&line).expect("one JSON line says it is up");
        let at = |name: &str| up[name].as_str().unwrap_or_default().to_owned();
        Service { child, http: at("http"), grpc: at("grpc") }
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("the signal is sent");
    }

    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let wait = self.child.wait();
        tokio::time::timeout(PATIENCE, wait).await.expect("it ends in time").expect("it ends")
    }

    pub async fn get(&self, path: &str) -> Reply {
        call(&self.http, Method::GET, path, &[], "").await.expect("an answer")
    }
}

// === impl Shop ===

impl Shop {
    /// One user and one product service with fresh databases.
    pub async fn open(stock: i64) -> Shop {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let user = Service::start(USER, &[("DATABASE", &path("user.db"))]).await;
        let stock = stock.to_string();
        let envs = [("DATABASE", path("product.db")), ("STOCK", stock)];
        let envs: Vec<(&str, &str)> = envs.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let product = Service::start(PRODUCT, &envs).await;
        Shop { dir, user, product }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A replica of the order service that recovers quickly.
    pub async fn order(&self, more: &[(&str, &str)]) -> Service {
        let database = self.path("order.db").display().to_string();
        let mut envs = vec![
            ("DATABASE", database.as_str()),
            ("USER_ADDR", self.user.http.as_str()),
            ("PRODUCT_ADDR_GRPC", self.product.grpc.as_str()),
            ("RECOVER_AFTER_MS", "300"),
            ("RECOVER_EVERY_MS", "50"),
            ("RECLAIM_AFTER_MS", "100"),
        ];
        envs.extend(more);
        Service::start(ORDER, &envs).await
    }

    /// Waits until nothing is unfinished and returns the verdict on the books.
    pub async fn books(&self, ids: &[i64]) -> Value {
        let options = CheckOptions {
            order_db: self.path("order.db"),
            product_db: self.path("product.db"),
            settle: PATIENCE.as_secs(),
        };
        let ids = ids.to_vec();
        tokio::task::spawn_blocking(move || check(&options, &ids))
            .await
            .expect("the check runs")
            .expect("the books are read")
    }

    pub async fn products(&self) -> ProductsClient<Channel> {
        let url = format!("http://{}", self.product.grpc);
        ProductsClient::connect(url).await.expect("gRPC connects")
    }

    /// What is left of a product, as its HTTP face says.
    pub async fn stock(&self, id: i64) -> i64 {
        let reply = self.product.get(&format!("/products/{id}")).await;
        reply.body["stock"].as_i64().expect("a stock")
    }
}

// === helpers ===

/// The id of a placed order, or the reply that says why there is none.
pub async fn order(at: &Service, product: i64, quantity: i64) -> Result<i64, Reply> {
    let body = json!({ "user": 1, "product": product, "quantity": quantity });
    let reply = post(at, &body, &[]).await.expect("an answer");
    match reply.status {
        StatusCode::CREATED => Ok(reply.body["id"].as_i64().expect("an id")),
        _ => Err(reply),
    }
}

pub async fn post(
    at: &Service,
    body: &Value,
    headers: &[(&'static str, &str)],
) -> Result<Reply, String> {
    call(&at.http, Method::POST, "/orders", headers, &body.to_string()).await
}

pub async fn call(
    at: &str,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
    body: &str,
) -> Result<Reply, String> {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(format!("http://{at}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let response = tokio::time::timeout(PATIENCE, client.request(request))
        .await
        .expect("an answer in time")
        .map_err(|e| e.to_string())?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

/// Waits for a condition.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, poll).await.is_err() {
        panic!("{what}: not within {PATIENCE:?}");
    }
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}
