// SPDX-License-Identifier: Apache-2.0
//! The load client: an open loop, so a slow answer never slows the asking down, and latency
//! counts from the moment a request was due. `load/check.rs` verifies the databases afterwards.
//! Called by `bin/shop-load.rs`.

pub mod check;
pub mod report;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use report::{Answer, Kind, Report};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What to send where.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the shop is reached.
    #[arg(long, env = "WEFT_GATEWAY", default_value = "http://127.0.0.1:8000")]
    pub url: String,

    /// Host header, when it is not the one of the URL.
    #[arg(long)]
    pub host: Option<String>,

    /// Requests per second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rps: u32,

    /// How long.
    #[arg(long, default_value_t = 30)]
    pub seconds: u32,

    /// Shares of the kinds of request: user, products, product, orders, order (a POST).
    #[arg(long, default_value = "user=30,products=20,product=20,orders=10,order=20",
          value_parser = parse_mix)]
    pub mix: Mix,

    /// Send an Idempotency-Key with every order.
    #[arg(long)]
    pub idempotency_key: bool,

    /// A request without an answer for so long has failed.
    #[arg(long, default_value = "12000", value_parser = crate::config::parse_millis)]
    pub timeout_ms: Duration,

    /// Most requests in flight; beyond it a due request has failed.
    #[arg(long, default_value_t = 4096)]
    pub in_flight: usize,

    /// Write the id of every 201 here, one per line.
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,

    /// Start of the random choice.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Weights of the kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(Kind, u64)>);

/// Sends the load and returns what happened. Ctrl-C ends it early, with the report.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let shop = Shop::new(options)?;
    let report = Arc::new(Mutex::new(Report::default()));
    let mut random = Random(options.seed.wrapping_mul(2).wrapping_add(1));
    let mut in_flight = JoinSet::new();
    let start = Instant::now();
    let total = u64::from(options.rps) * u64::from(options.seconds);
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    for n in 0..total {
        let due = start + Duration::from_nanos(n * 1_000_000_000 / u64::from(options.rps));
        tokio::select! { _ = &mut stop => break, () = sleep_until(due) => {} }
        while in_flight.try_join_next().is_some() {}
        let kind = options.mix.pick(&mut random);
        if in_flight.len() >= options.in_flight {
            let answer = Answer::failed(format!("{} requests wait already", in_flight.len()));
            record(&report, kind, due - start, Duration::ZERO, answer);
            continue;
        }
        let (shop, report) = (shop.clone(), report.clone());
        let number = random.next();
        in_flight.spawn(async move {
            let answer = shop.ask(kind, number).await;
            record(&report, kind, due - start, due.elapsed(), answer);
        });
    }
    while in_flight.join_next().await.is_some() {}
    let mut report = std::mem::take(&mut *lock(&report));
    report.seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &options.ids {
        std::fs::write(path, report.ids_text())
            .map_err(|e| anyhow::anyhow!("cannot write {}: {e}", path.display()))?;
    }
    Ok(report)
}

// === impl Mix ===

impl Mix {
    fn pick(&self, random: &mut Random) -> Kind {
        let total: u64 = self.0.iter().map(|(_, weight)| weight).sum();
        let mut rest = random.next() % total.max(1);
        for (kind, weight) in &self.0 {
            if rest < *weight {
                return *kind;
            }
            rest -= weight;
        }
        Kind::Products
    }
}

/// A small generator (xorshift64*): the same seed sends the same requests.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
}

#[derive(Clone)]
struct Shop {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    host: Option<HeaderValue>,
    idempotency_key: bool,
    timeout: Duration,
}

// === impl Shop ===

impl Shop {
    fn new(options: &Options) -> anyhow::Result<Shop> {
        let url = options.url.trim_end_matches('/').to_owned();
        let parsed: Uri =
            url.parse().map_err(|e| anyhow::anyhow!("--url '{url}' is not a URL: {e}"))?;
        if parsed.scheme_str() != Some("http") || parsed.authority().is_none() {
            anyhow::bail!("--url '{url}' is not like http://127.0.0.1:8000");
        }
        let host = match &options.host {
            Some(host) => Some(
                HeaderValue::from_str(host)
                    .map_err(|_| anyhow::anyhow!("--host '{host}' is not a host name"))?,
            ),
            None => None,
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .build(connector);
        let (idempotency_key, timeout) = (options.idempotency_key, options.timeout_ms);
        Ok(Shop { client, url, host, idempotency_key, timeout })
    }

    async fn ask(&self, kind: Kind, number: u64) -> Answer {
        let (user, product) = (1 + number % 2, 1 + number % 5);
        let sent = match kind {
            Kind::User => self.send(Method::GET, &format!("/users/{user}"), None).await,
            Kind::Products => self.send(Method::GET, "/products", None).await,
            Kind::Product => self.send(Method::GET, &format!("/products/{product}"), None).await,
            Kind::Orders => self.send(Method::GET, "/orders?limit=5", None).await,
            Kind::Order => {
                let quantity = 1 + number / 7 % 3;
                let body = json!({ "user": user, "product": product, "quantity": quantity });
                self.send(Method::POST, "/orders", Some(body)).await
            }
        };
        let answer = match sent {
            Ok(answer) => answer,
            Err(text) => return Answer::failed(text),
        };
        answer.judge(kind, |body| match kind {
            Kind::User => body["id"] == user,
            Kind::Product => body["id"] == product,
            Kind::Products => body.as_array().is_some_and(|all| all.len() == 5),
            Kind::Orders => body.is_array(),
            Kind::Order => body["id"].is_i64() && body["state"] == "confirmed",
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(host) = &self.host {
            request = request.header(header::HOST, host);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
            if self.idempotency_key {
                request = request.header("idempotency-key", Uuid::new_v4().to_string());
            }
        }
        let bytes = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        let request = request.body(Full::new(bytes)).map_err(|e| e.to_string())?;
        let call = async {
            let response = self.client.request(request).await.map_err(|e| causes(&e))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            Ok(Answer::new(&parts, body.map_err(|e| causes(&*e))?.to_bytes()))
        };
        let waited = self.timeout.as_millis();
        tokio::time::timeout(self.timeout, call)
            .await
            .map_err(|_| format!("no answer within {waited} ms"))?
    }
}

// === helpers ===

fn record(report: &Mutex<Report>, kind: Kind, due: Duration, latency: Duration, answer: Answer) {
    lock(report).add(kind, due, latency, answer);
}

fn lock(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    // A panic while counting would end the whole client, so the state is whole.
    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    let mut mix = Vec::new();
    for part in text.split(',') {
        let (name, weight) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is not KIND=WEIGHT, such as order=20"))?;
        let kind = Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            format!("'{name}' is no kind; user, products, product, orders, order")
        })?;
        let weight: u32 =
            weight.parse().map_err(|_| format!("'{weight}' is not a whole number"))?;
        mix.push((kind, u64::from(weight)));
    }
    if mix.iter().all(|(_, weight)| *weight == 0) {
        return Err("all weights are 0".into());
    }
    Ok(Mix(mix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_kept() {
        let mix = parse_mix("user=30,order=10").unwrap();
        let mut random = Random(7);
        let picks: Vec<Kind> = (0..40_000).map(|_| mix.pick(&mut random)).collect();
        let orders = picks.iter().filter(|k| **k == Kind::Order).count();
        // 10,000 expected; 3 standard errors of a share of 1/4 are 260.
        assert!((9_740..=10_260).contains(&orders), "{orders}");
        assert!(parse_mix("order=0").is_err_and(|e| e.contains("all weights")));
        assert!(parse_mix("ordr=1").is_err_and(|e| e.contains("'ordr'")));
    }
}
