// SPDX-License-Identifier: Apache-2.0
//! `pods/exec` and `pods/attach`: a program in a container, or the one that runs there already,
//! with its streams at the client.
//!
//! `visit` says who gives the programs; this room only carries what they say.

use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::OptionFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use weft_base::task::TaskGroup;
use weft_kinds::kind::KindId;

use super::logs::container;
use super::path::Objects;
use super::status::ApiError;
use super::stream::pipes::{Incoming, OUT_MAX, PIECES_MAX, Sink};
use super::stream::spdy_conn::{self, Streams};
use super::stream::websocket::{self, Dialect};
use super::stream::{self, Kind, Protocols, Upgrade};
use super::visit::{Opened, PodRef, StreamError, TerminalSize, Visit, VisitIo, VisitWhat};
use super::{Ask, Door};
use crate::json::Fields;

const PROTOCOLS: Protocols = Protocols {
    spdy: &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"],
    websocket: &[
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
    ],
};

/// How long a client may take to open the streams it announced.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// Bytes of one message about the terminal's size.
const RESIZE_BYTES_MAX: usize = 1024;

const CHANNEL_STDIN: usize = 0;
const CHANNEL_STDOUT: u32 = 1;
const CHANNEL_STDERR: u32 = 2;
const CHANNEL_ERROR: u32 = 3;
const CHANNEL_RESIZE: usize = 4;

/// The streams that the client's question announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// The client's ends of a session, whatever the transport.
struct Ends {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    error: Sink,
    resize: Option<mpsc::Receiver<Bytes>>,
}

/// A session that was granted.
struct Session {
    visit: Opened,
    tasks: TaskGroup,
    wanted: Wanted,
    /// The outcome is told as a `Status`, not as a sentence.
    structured: bool,
}

// === impl Door ===

impl Door {
    /// Grants or refuses a session; a granted one runs on after the answer.
    pub(super) async fn exec(&self, target: &Objects, mut ask: Ask) -> Result<Response, ApiError> {
        let attach = target.sub.as_deref() == Some("attach");
        let (pod, object) = self.pod(target)?;
        let query = &ask.query;
        let flag = |name: &str, default: bool| {
            if query.has(name) { query.flag(name) } else { default }
        };
        let tty = flag("tty", false);
        let wanted = Wanted {
            stdin: flag("stdin", false),
            stdout: flag("stdout", true),
            // A terminal has one output.
            stderr: flag("stderr", true) && !tty,
            tty,
        };
        let command = query.all("command").to_vec();
        if command.is_empty() != attach {
            return Err(ApiError::bad_request("you must specify a command to run"));
        }
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            let why = "you must specify at least one of stdin, stdout, stderr";
            return Err(ApiError::bad_request(why));
        }
        let container = container(&object, query.text("container"), &pod.name)?;
        let program = command.first().map_or("(attach)", String::as_str).to_owned();
        let what = match attach {
            true => VisitWhat::Attach { container: container.clone() },
            false => VisitWhat::Exec { container: container.clone(), command, tty },
        };
        let visit = self.streams.open(Visit { pod: pod.clone(), what }).await?;
        let (upgrade, response) = self.sessions.negotiate(&mut ask.parts, PROTOCOLS)?;
        let session = Session {
            visit,
            tasks: self.registry.tasks().clone(),
            wanted,
            structured: upgrade.protocol.starts_with("v4.") || upgrade.protocol.starts_with("v5."),
        };
        let PodRef { namespace, name, .. } = pod;
        tracing::info!(
            namespace,
            pod = name,
            container,
            program,
            "a session in a container begins"
        );
        self.registry.tasks().spawn("exec session", session.serve(upgrade));
        Ok(response)
    }

    /// The pod that a path names, and its object.
    pub(super) fn pod(&self, target: &Objects) -> Result<(PodRef, Value), ApiError> {
        let namespace = target.namespace.clone().unwrap_or_default();
        let name = target.name.clone().unwrap_or_default();
        let object = self.registry.objects().get(KindId::Pod, &namespace, &name)?;
        let uid = object.at("metadata").at("uid").as_str().unwrap_or_default().to_owned();
        Ok((PodRef { namespace, name, uid }, object))
    }
}

// === impl Session ===

impl Session {
    async fn serve(self, upgrade: Upgrade) {
        let (kind, protocol) = (upgrade.kind, upgrade.protocol);
        upgrade
            .run(async |io| match kind {
                Kind::Spdy => {
                    let (driver, streams) = spdy_conn::open(io);
                    stream::together(driver.run(), self.over_spdy(streams, protocol)).await;
                }
                Kind::WebSocket => self.over_websocket(io, protocol).await,
            })
            .await;
    }

    async fn over_spdy(self, mut streams: Streams, protocol: &str) {
        // Version 1 and 2 know no resizing.
        let resize =
            self.wanted.tty && !matches!(protocol, "" | "channel.k8s.io" | "v2.channel.k8s.io");
        let opened = tokio::time::timeout(OPEN_MAX, ends(&mut streams, self.wanted, resize)).await;
        // What is opened from now on is refused; the ends keep the connection.
        drop(streams);
        match opened {
            Ok(Some(ends)) => self.perform(ends).await,
            Ok(None) => {}
            Err(_) => tracing::debug!("a client did not open the streams that it announced"),
        }
    }

    async fn over_websocket(self, io: stream::Io, protocol: &str) {
        let dialect = Dialect {
            base64: protocol.contains("base64"),
            closes: protocol == "v5.channel.k8s.io",
        };
        let (out, orders) = mpsc::channel(OUT_MAX);
        let sink = |tag: u32, on: bool| on.then(|| Sink { tag, out: out.clone() });
        let (stdin_to, stdin) = mpsc::channel(PIECES_MAX);
        let (resize_to, resize) = mpsc::channel(PIECES_MAX);
        let mut inputs: Vec<_> = std::iter::repeat_with(|| None).take(CHANNEL_RESIZE + 1).collect();
        for (channel, on, to) in [
            (CHANNEL_STDIN, self.wanted.stdin, stdin_to),
            (CHANNEL_RESIZE, self.wanted.tty, resize_to),
        ] {
            if let Some(slot) = inputs.get_mut(channel).filter(|_| on) {
                *slot = Some(to);
            }
        }
        let ends = Ends {
            stdin: self.wanted.stdin.then_some(stdin),
            stdout: sink(CHANNEL_STDOUT, self.wanted.stdout),
            stderr: sink(CHANNEL_STDERR, self.wanted.stderr),
            error: Sink { tag: CHANNEL_ERROR, out: out.clone() },
            resize: self.wanted.tty.then_some(resize),
        };
        drop(out);
        // Some clients wait for a first message before they believe that they are connected.
        ends.stdout.as_ref().or(ends.stderr.as_ref()).unwrap_or(&ends.error).greet().await;
        let socket = stream::websocket(io).await;
        let channels = websocket::channels(socket, dialect, inputs, orders);
        stream::together(channels, self.perform(ends)).await;
    }

    /// Runs the program between the client's ends, then says how it ended.
    async fn perform(self, ends: Ends) {
        let Ends { stdin, stdout, stderr, error, resize } = ends;
        let (stdout_to, stdout) = pipe(stdout);
        let (stderr_to, stderr) = pipe(stderr);
        let (size_to, sizes) = mpsc::channel(PIECES_MAX);
        let io = VisitIo {
            stdin,
            stdout: stdout_to,
            stderr: stderr_to,
            resize: resize.is_some().then_some(sizes),
        };
        let program = async {
            let program = (self.visit)(io);
            tokio::join!(program, OptionFuture::from(stdout), OptionFuture::from(stderr)).0
        };
        let resizing = async {
            if let Some(from) = resize {
                read_sizes(from, size_to).await;
            }
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = program => outcome,
            () = resizing => return,
            () = self.tasks.draining() => Err(StreamError::Stopping),
        };
        let status = if self.structured { Some(structured(&outcome)) } else { sentence(&outcome) };
        if let Some(status) = status {
            let _ = error.send(Bytes::from(status)).await;
        }
        error.finish().await;
    }
}

/// A bounded channel that drains into a sink, when there is one.
fn pipe(
    sink: Option<Sink>,
) -> (Option<mpsc::Sender<Bytes>>, Option<impl Future<Output = ()> + Send>) {
    let Some(sink) = sink else { return (None, None) };
    let (to, from) = mpsc::channel(PIECES_MAX);
    (Some(to), Some(sink.drain(from)))
}

/// Waits for the streams that were announced, by their `streamtype`.
async fn ends(streams: &mut Streams, wanted: Wanted, resize: bool) -> Option<Ends> {
    let mut left = vec![("error", true), ("stdin", wanted.stdin), ("stdout", wanted.stdout)];
    left.extend([("stderr", wanted.stderr), ("resize", resize)]);
    left.retain(|(_, on)| *on);
    let mut opened: Vec<(&str, Incoming)> = Vec::new();
    while !left.is_empty() {
        let stream = streams.next().await?;
        let kind = stream.header("streamtype");
        match left.iter().position(|(name, _)| *name == kind) {
            Some(at) => opened.push((left.swap_remove(at).0, stream)),
            None => stream.sink.reset().await,
        }
    }
    let mut take = |name: &str| {
        let at = opened.iter().position(|(n, _)| *n == name)?;
        Some(opened.swap_remove(at).1)
    };
    Some(Ends {
        stdin: take("stdin").map(|s| s.pieces),
        stdout: take("stdout").map(|s| s.sink),
        stderr: take("stderr").map(|s| s.sink),
        error: take("error")?.sink,
        resize: take("resize").map(|s| s.pieces),
    })
}

/// Sizes as JSON values one after the other, however they are cut into pieces.
async fn read_sizes(mut from: mpsc::Receiver<Bytes>, to: mpsc::Sender<TerminalSize>) {
    let mut text = Vec::new();
    while let Some(piece) = from.recv().await {
        text.extend_from_slice(&piece);
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<TerminalSize>();
        let mut newest = None;
        let mut read = 0;
        while let Some(Ok(size)) = values.next() {
            newest = Some(size);
            read = values.byte_offset();
        }
        text.drain(..read.min(text.len()));
        if text.len() > RESIZE_BYTES_MAX {
            text.clear();
        }
        if let Some(size) = newest
            && to.send(size).await.is_err()
        {
            return;
        }
    }
}

/// The outcome as versions 4 and 5 tell it.
fn structured(outcome: &Result<i32, StreamError>) -> String {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => ApiError::from(error.clone()).to_json(),
    }
    .to_string()
}

/// The outcome as older versions tell it: nothing is success.
fn sentence(outcome: &Result<i32, StreamError>) -> Option<String> {
    match outcome {
        Ok(0) => None,
        Ok(code) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
