// SPDX-License-Identifier: Apache-2.0
//! Visits: what a client may have going in a pod. A program (`exec`), the one that runs there
//! already (`attach`), or a connection to a port (`port-forward`).
//!
//! `exec` and `portforward` ask for them; whoever runs pods gives them ([`PodStreams`]), on this
//! machine or on another. Nothing here knows which.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::status::ApiError;
use super::stream::pipes::PIECE_BYTES;

/// Whoever runs pods.
pub trait PodStreams: Send + Sync + 'static {
    /// Makes a visit ready, or refuses it. Asked before the client's connection is upgraded, so
    /// that a refusal is an ordinary answer.
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>>;
}

/// Begins a visit with the client's streams. Dropped instead, it never begins.
pub type Opened = Box<dyn FnOnce(VisitIo) -> Ending + Send>;

/// A visit to its end, with all of its output handed over: the program's exit code, or 0 of a
/// connection that ended well. Dropping the future ends the visit.
pub type Ending = BoxFuture<'static, Result<i32, StreamError>>;

/// One pod object: its uid tells it from a successor of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    pub pod: PodRef,
    pub what: VisitWhat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisitWhat {
    /// A program beside the container's own.
    Exec { container: String, command: Vec<String>, tty: bool },
    /// The streams of the container's own program.
    Attach { container: String },
    /// A connection: what is sent is its input, what comes its output.
    Connect { port: u16 },
}

/// A visit's streams. Those that the client did not ask for are `None`.
#[derive(Debug, Default)]
pub struct VisitIo {
    /// Ends with the input.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<mpsc::Sender<Bytes>>,
    /// With a terminal all output is stdout.
    pub stderr: Option<mpsc::Sender<Bytes>>,
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
}

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct TerminalSize {
    #[serde(rename = "Width")]
    pub width: u16,
    #[serde(rename = "Height")]
    pub height: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The pod or its container is not running; the sentence says which.
    #[error("{0}")]
    NotRunning(String),
    /// Refused for what it is.
    #[error("{0}")]
    Refused(String),
    /// The program could not be started, or the port not be reached.
    #[error("{0}")]
    NotStarted(String),
    /// It ended before its end: the sentence says at whom it was lost.
    #[error("{0}")]
    Lost(String),
    /// Not now: worth trying again.
    #[error("{0}")]
    Unavailable(String),
    #[error("the server is stopping; the program was ended")]
    Stopping,
}

// === impl StreamError ===

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        let text = error.to_string();
        match error {
            StreamError::NotRunning(_) => Self::bad_request(text),
            StreamError::Refused(_) => Self::new(StatusCode::FORBIDDEN, "Forbidden", text),
            StreamError::NotStarted(_) | StreamError::Lost(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text)
            }
            StreamError::Unavailable(_) | StreamError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", text)
            }
        }
    }
}

/// A visit of a connection that stands: each half ends at its own time.
pub fn connection(stream: TcpStream) -> Opened {
    // What is forwarded is often a conversation; a failure here costs only time.
    let _ = stream.set_nodelay(true);
    Box::new(|io: VisitIo| {
        async move {
            let (reader, writer) = stream.into_split();
            let up = async {
                upload(io.stdin, writer).await;
                Ok(())
            };
            let both = tokio::try_join!(up, download(reader, io.stdout));
            both.map_err(|e| StreamError::Lost(e.to_string()))?;
            Ok(0)
        }
        .boxed()
    })
}

/// Client to pod. When the pod takes no more, the rest is thrown away: it may still answer.
async fn upload(from: Option<mpsc::Receiver<Bytes>>, mut to: OwnedWriteHalf) {
    if let Some(mut from) = from {
        while let Some(piece) = from.recv().await {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
    let _ = to.shutdown().await;
}

/// Pod to client.
async fn download(mut from: OwnedReadHalf, to: Option<mpsc::Sender<Bytes>>) -> io::Result<()> {
    let Some(to) = to else { return Ok(()) };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if to.send(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}
