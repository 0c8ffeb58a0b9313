// SPDX-License-Identifier: Apache-2.0
//! The command line's side of the API door: plain HTTP with JSON, over TCP or a Unix socket.
//!
//! Exit code 4 when the server cannot be reached, 1 when it refuses.

pub mod objects;
pub mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http::response::Parts;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;

use crate::exit::Unreachable;

/// Largest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    /// The socket that is asked in the place of an address.
    socket: Option<PathBuf>,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// An answer: its status and JSON body (a string when it is not JSON).
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    /// `Warning` headers, one sentence each.
    pub warnings: Vec<String>,
}

// === impl Api ===

impl Api {
    /// `http://HOST:PORT`, `HOST:PORT` or `unix:///PATH`.
    pub fn new(base: &str) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        let base = if base.contains("://") { base } else { format!("http://{base}") };
        let socket = base.strip_prefix("unix://").map(PathBuf::from);
        Self { base, socket, http: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, "application/json", None).await?.ok()
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value> {
        self.call(Method::GET, path, accept, None).await?.ok()
    }

    /// Reads a body of any size into `to`, piece by piece.
    ///
    /// # Errors
    /// When the server does not answer, refuses, or ends in the middle.
    pub async fn download(&self, path: &str, to: &mut dyn std::io::Write) -> Result<()> {
        let uri: Uri = format!("{}{path}", self.base).parse().context("--server")?;
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.http.get(uri)).await;
        let unreachable = |why: String| anyhow!(Unreachable(self.base.clone(), why));
        let answer = answer.map_err(|_| unreachable("it does not answer".into()))?;
        let answer = answer.map_err(|e| unreachable(e.to_string()))?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let text = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let text = text.map(|t| String::from_utf8_lossy(&t.to_bytes()).into_owned());
            return Err(anyhow!("{} (HTTP {status})", text.unwrap_or_default().trim()));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the server's answer ended in the middle")?;
            if let Some(data) = frame.data_ref() {
                to.write_all(data)?;
            }
        }
        Ok(())
    }

    /// One call. `body` is sent as JSON with the given media type.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let base = if self.socket.is_some() { "" } else { &*self.base };
        let uri: Uri = format!("{base}{path}").parse().with_context(|| {
            format!("{}{path} is no address; give --server as http://HOST:PORT", self.base)
        })?;
        let mut request = Request::builder().method(method).uri(uri);
        if self.socket.is_some() {
            request = request.header("host", "localhost");
        }
        request = match body {
            Some(_) => request.header("content-type", media).header("accept", "application/json"),
            None => request.header("accept", media),
        };
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.answered(request));
        let silent = |_| anyhow!(Unreachable(self.base.clone(), "it does not answer".into()));
        let (head, bytes) = answer.await.map_err(silent)??;
        let status = head.status.as_u16();
        let warnings = head.headers.get_all("warning").iter();
        let warnings = warnings.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { status, body, warnings })
    }

    /// The whole answer to a request.
    async fn answered(&self, request: Request<Full<Bytes>>) -> Result<(Parts, Bytes)> {
        let unreachable = |e: &(dyn std::error::Error + 'static)| {
            let cause = e.source().map_or_else(|| e.to_string(), ToString::to_string);
            anyhow!(Unreachable(self.base.clone(), cause))
        };
        let Some(path) = &self.socket else {
            let answer = self.http.request(request).await;
            return whole(answer.map_err(|e| unreachable(&e))?).await;
        };
        let stream = UnixStream::connect(path).await.map_err(|e| unreachable(&e))?;
        let begun = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = begun.map_err(|e| unreachable(&e))?;
        let asked = async {
            let answer = sender.send_request(request).await;
            whole(answer.map_err(|e| unreachable(&e))?).await
        };
        // What the connection's end means the one who asked is told.
        let (mut asked, mut connection) = (std::pin::pin!(asked), std::pin::pin!(connection));
        tokio::select! {
            done = &mut asked => return done,
            _ = &mut connection => {}
        }
        asked.await
    }
}

async fn whole(answer: http::Response<Incoming>) -> Result<(Parts, Bytes)> {
    let (head, body) = answer.into_parts();
    let read = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let bytes = read.map_err(|e| anyhow!("the server's answer could not be read: {e}"))?;
    Ok((head, bytes.to_bytes()))
}

// === impl Answer ===

impl Answer {
    /// The body, or the server's own sentence as an error.
    pub fn ok(self) -> Result<Value> {
        for warning in &self.warnings {
            eprintln!("warning: {}", warning.trim_start_matches("299 - ").trim_matches('"'));
        }
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        let message = self.body.get("message").and_then(Value::as_str);
        let text = message.or(self.body.as_str()).unwrap_or("no reason given");
        Err(anyhow!("{text} (HTTP {})", self.status))
    }
}
