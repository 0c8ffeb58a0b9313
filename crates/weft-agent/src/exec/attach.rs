// SPDX-License-Identifier: Apache-2.0
//! The standard streams of a container's own program: wired before it starts, shared with those
//! who attach while it runs.
//!
//! `worker::process` wires, the binary attaches for the door. A client that reads too slowly
//! misses output, which is in the log all the same; the program never waits for it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, mpsc};

use super::terminal::{self, Terminal};
use super::{END_OF_INPUT, ExecError, ExecStreams};
use crate::agent::Agent;
use crate::child::{Child, Role, Spawner};
use crate::enter::Target;
use crate::pod::Container;

/// Pieces of output that a client may be behind.
const BEHIND_MAX: usize = 64;
/// Pieces of input that may wait for the program.
const INPUT_MAX: usize = 8;

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// What is to be a program's streams, before it is started.
#[derive(Debug)]
pub(crate) struct Wiring {
    stdin: bool,
    /// The first who attaches and ends its input ends the program's.
    once: bool,
    terminal: Option<Terminal>,
}

/// Our ends while it runs.
#[derive(Debug)]
pub(crate) struct Wired {
    pub(crate) stdout: Option<Source>,
    pub(crate) stderr: Option<Source>,
    pub(crate) feed: Feed,
    pub(crate) taps: Taps,
}

/// Where output comes from.
#[derive(Debug)]
pub(crate) enum Source {
    Pipe(pipe::Receiver),
    Terminal(terminal::Reader),
}

/// Carries what attached clients type.
#[derive(Debug)]
pub(crate) struct Feed {
    from: mpsc::Receiver<Typed>,
    once: bool,
    to: Option<To>,
}

#[derive(Debug)]
enum To {
    Pipe(pipe::Sender),
    Terminal(terminal::Writer),
}

#[derive(Debug)]
enum Typed {
    Piece(Bytes),
    End,
    Size(u16, u16),
}

/// Where clients join in.
#[derive(Clone, Debug)]
pub(crate) struct Taps {
    output: broadcast::Sender<(Output, Bytes)>,
    input: Option<mpsc::Sender<Typed>>,
}

// === impl Wiring ===

impl Wiring {
    /// Sets a command's streams as its container wants them; without one, as the sidecar's.
    pub(crate) fn new(command: &mut Command, of: Option<&Container>) -> io::Result<Self> {
        let (stdin, once) = of.map_or((false, false), |c| (c.stdin, c.stdin_once));
        if of.is_some_and(|c| c.tty) {
            let (terminal, inner) = Terminal::open()?;
            inner.give_to(command)?;
            return Ok(Self { stdin, once, terminal: Some(terminal) });
        }
        command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self { stdin, once, terminal: None })
    }

    /// `own_session`: the program makes itself the leader of its terminal's session.
    pub(crate) async fn spawn(
        &self,
        spawner: &Spawner,
        command: Command,
        role: Role,
        own_session: bool,
    ) -> io::Result<Child> {
        match self.terminal {
            Some(_) if !own_session => spawner.spawn_session(command, role).await,
            _ => spawner.spawn_with(command, role).await,
        }
    }

    pub(crate) fn connect(self, child: &mut Child) -> io::Result<Wired> {
        let Self { stdin, once, terminal } = self;
        let (typed, from) = mpsc::channel(INPUT_MAX);
        let (output, _) = broadcast::channel(BEHIND_MAX);
        let taps = Taps { output, input: stdin.then_some(typed) };
        let Some(terminal) = terminal else {
            let source = |fd: Option<OwnedFd>| fd.map(Source::pipe).transpose();
            let (stdout, stderr) = (source(child.take_stdout())?, source(child.take_stderr())?);
            let to = child.take_stdin().map(pipe::Sender::from_owned_fd).transpose()?;
            let feed = Feed { from, once, to: to.map(To::Pipe) };
            return Ok(Wired { stdout, stderr, feed, taps });
        };
        let (reader, writer) = terminal.split();
        let feed = Feed { from, once, to: Some(To::Terminal(writer)) };
        Ok(Wired { stdout: Some(Source::Terminal(reader)), stderr: None, feed, taps })
    }
}

// === impl Source ===

impl Source {
    fn pipe(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::Pipe(pipe::Receiver::from_owned_fd(fd)?))
    }
}

impl AsyncRead for Source {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Self::Terminal(terminal) => Pin::new(terminal).poll_read(cx, buf),
        }
    }
}

// === impl Feed ===

impl Feed {
    /// Runs beside the program; ends only with it.
    pub(crate) async fn run(mut self) {
        while let Some(typed) = self.from.recv().await {
            let written = match (&mut self.to, typed) {
                (Some(To::Pipe(to)), Typed::Piece(piece)) => to.write_all(&piece).await,
                (Some(To::Terminal(to)), Typed::Piece(piece)) => to.write_all(&piece).await,
                (Some(To::Terminal(to)), Typed::Size(columns, rows)) => to.resize(columns, rows),
                (Some(To::Terminal(to)), Typed::End) if self.once => {
                    to.write_all(END_OF_INPUT).await
                }
                (Some(To::Pipe(_)), Typed::End) if self.once => {
                    self.to = None;
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = written {
                tracing::debug!(%error, "a program takes no more input");
                self.to = None;
            }
        }
        // Nobody can attach any more; the input stays open until the end.
        std::future::pending::<()>().await;
    }
}

// === impl Taps ===

impl Taps {
    /// Shows a piece of output to those who are attached.
    pub(crate) fn show(&self, output: Output, piece: &[u8]) {
        if self.output.receiver_count() > 0 {
            let _ = self.output.send((output, Bytes::copy_from_slice(piece)));
        }
    }
}

// === impl Agent ===

impl Agent {
    /// Joins the streams of a container's own program until it ends, or until the future is
    /// dropped; the program runs on. Input reaches only a container that has `stdin: true`.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn attach(&self, target: &Target, streams: ExecStreams) -> Result<(), ExecError> {
        // Not held while we listen: the last one to hold them is the program.
        let Taps { output, input } = self.taps(target)?;
        let mut shown = output.subscribe();
        drop(output);
        let ExecStreams { stdin, stdout, stderr, resize } = streams;
        let showing = async {
            loop {
                let (which, piece) = match shown.recv().await {
                    Ok(shown) => shown,
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(pieces)) => {
                        tracing::debug!(pieces, "an attached client is too slow");
                        continue;
                    }
                };
                let to = if which == Output::Stdout { &stdout } else { &stderr };
                if let Some(to) = to
                    && to.send(piece).await.is_err()
                {
                    return;
                }
            }
        };
        let typing = async {
            let sizes = async {
                if let (Some(mut from), Some(to)) = (resize, &input) {
                    while let Some((columns, rows)) = from.recv().await {
                        let _ = to.send(Typed::Size(columns, rows)).await;
                    }
                }
            };
            let keys = async {
                if let (Some(mut from), Some(to)) = (stdin, &input) {
                    while let Some(piece) = from.recv().await {
                        let _ = to.send(Typed::Piece(piece)).await;
                    }
                    let _ = to.send(Typed::End).await;
                }
            };
            tokio::join!(sizes, keys);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = showing => {}
            () = typing => {}
        }
        Ok(())
    }
}
