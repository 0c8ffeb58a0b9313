// SPDX-License-Identifier: Apache-2.0
//! A program beside a container's own, with its streams at somebody else: `kubectl exec`.
//!
//! Called by the binary for the door; `enter` says how a command gets into its container. The
//! program ends with the future that runs it: it is hung up on, then killed.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::OptionFuture;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use weft_base::task::TaskGroup;

use crate::agent::Agent;
use crate::child::{Child, Role, Signaller, Spawner};
use crate::enter::{EnterError, Entry, Target};

pub(crate) mod attach;
mod terminal;

use terminal::Terminal;

/// What terminals are called to programs.
pub(crate) const TERMINAL: &str = "xterm";
/// Bytes handed over at once.
const PIECE_BYTES: usize = 16 * 1024;
/// How long output is still waited for after the end, should somebody hold the pipe.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// Between hanging up and killing.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);
/// What a terminal takes for the end of input.
const END_OF_INPUT: &[u8] = &[4];

/// A program's streams; without a channel there is none.
#[derive(Debug, Default)]
pub struct ExecStreams {
    /// Ends with the input.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<mpsc::Sender<Bytes>>,
    /// With a terminal all output is stdout.
    pub stderr: Option<mpsc::Sender<Bytes>>,
    /// The terminal's columns and rows.
    pub resize: Option<mpsc::Receiver<(u16, u16)>>,
}

/// Why a program did not run.
#[derive(Debug, Error)]
pub enum ExecError {
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("exec: {program:?}: executable file not found in $PATH of container {container:?}")]
    NotFound { program: String, container: String },
    #[error("exec: {program:?} cannot be started: {source}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("a terminal cannot be made")]
    Terminal(#[source] io::Error),
    #[error("the program is lost")]
    Lost(#[source] io::Error),
}

/// A running program that is ended when it is dropped.
struct Running {
    child: Option<Child>,
    signaller: Signaller,
    tasks: TaskGroup,
}

/// Our ends of its streams.
enum Ends {
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    Terminal(Terminal),
}

// === impl Agent ===

impl Agent {
    /// Runs a command in a container to its end, with all of its output handed over, and gives
    /// its exit code. Dropping the future ends the program.
    ///
    /// # Errors
    /// When it could not be started.
    pub async fn exec(
        &self,
        target: &Target,
        line: &[String],
        tty: bool,
        streams: ExecStreams,
    ) -> Result<i32, ExecError> {
        let entry = self.enter(target, line, tty)?;
        let program = line.first().cloned().unwrap_or_default();
        let role = Role::Probe { pod: target.pod.clone() };
        let (spawner, tasks) = self.for_exec();
        let started = start(spawner, entry, role, tty, &streams).await;
        let (child, ends) = started.map_err(|e| match e {
            ExecError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ExecError::NotFound { program, container: target.container.clone() }
            }
            other => other,
        })?;
        let running = Running { signaller: child.signaller(), child: Some(child), tasks };
        attend(running, ends, streams).await
    }
}

async fn start(
    spawner: &Spawner,
    entry: Entry,
    role: Role,
    tty: bool,
    streams: &ExecStreams,
) -> Result<(Child, Ends), ExecError> {
    let Entry { mut command, own_session } = entry;
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ExecError::Start { program, source };
    if tty {
        let (terminal, inner) = Terminal::open().map_err(ExecError::Terminal)?;
        inner.give_to(&mut command).map_err(ExecError::Terminal)?;
        let child = match own_session {
            true => spawner.spawn_with(command, role).await,
            false => spawner.spawn_session(command, role).await,
        };
        return Ok((child.map_err(failed)?, Ends::Terminal(terminal)));
    }
    let piped = |on: bool| if on { Stdio::piped() } else { Stdio::null() };
    command.stdin(piped(streams.stdin.is_some()));
    command.stdout(piped(streams.stdout.is_some())).stderr(piped(streams.stderr.is_some()));
    let mut child = spawner.spawn_with(command, role).await.map_err(failed)?;
    let stdin = child.take_stdin();
    let (stdout, stderr) = (child.take_stdout(), child.take_stderr());
    Ok((child, Ends::Pipes { stdin, stdout, stderr }))
}

/// Carries its streams until it ends, then what is left of its output.
async fn attend(mut running: Running, ends: Ends, streams: ExecStreams) -> Result<i32, ExecError> {
    let (over, ended) = watch::channel(false);
    let ExecStreams { stdin, stdout, stderr, resize } = streams;
    let lost = ExecError::Lost;
    let exit = match ends {
        Ends::Pipes { stdin: input, stdout: out, stderr: err } => {
            let input = input.map(pipe::Sender::from_owned_fd).transpose().map_err(lost)?;
            let out = out.map(pipe::Receiver::from_owned_fd).transpose().map_err(lost)?;
            let err = err.map(pipe::Receiver::from_owned_fd).transpose().map_err(lost)?;
            let output = async {
                let out = out.zip(stdout).map(|(from, to)| read(from, to, ended.clone()));
                let err = err.zip(stderr).map(|(from, to)| read(from, to, ended.clone()));
                tokio::join!(OptionFuture::from(out), OptionFuture::from(err));
            };
            let input = OptionFuture::from(input.zip(stdin).map(|(to, from)| write(to, from, &[])));
            running.beside(output, input, &over).await
        }
        Ends::Terminal(terminal) => {
            let (reader, writer) = terminal.split();
            let output = OptionFuture::from(stdout.map(|to| read(reader, to, ended)));
            let output = async {
                let _: Option<()> = output.await;
            };
            let input = async {
                let sizes = OptionFuture::from(resize.map(|from| resizes(&writer, from)));
                let typed = stdin.map(|from| write(writer.clone(), from, END_OF_INPUT));
                tokio::join!(sizes, OptionFuture::from(typed));
            };
            running.beside(output, input, &over).await
        }
    };
    exit.map_err(ExecError::Lost)
}

// === impl Running ===

impl Running {
    async fn beside(
        &mut self,
        output: impl Future<Output = ()>,
        input: impl Future,
        over: &watch::Sender<bool>,
    ) -> io::Result<i32> {
        let mut output = std::pin::pin!(output);
        let mut reads = true;
        let exit = {
            let child = self.child.as_mut().ok_or_else(|| io::Error::other("it ended twice"))?;
            let mut waiting = std::pin::pin!(child.wait());
            let mut input = std::pin::pin!(input);
            let mut writes = true;
            loop {
                tokio::select! {
                    exit = &mut waiting => break exit?,
                    () = &mut output, if reads => reads = false,
                    _ = &mut input, if writes => writes = false,
                }
            }
        };
        self.child = None;
        over.send_replace(true);
        if reads {
            output.await;
        }
        Ok(exit.code)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        self.signaller.hang_up();
        self.tasks.spawn("exec ends", async move {
            // What does not hear is killed when its handle is dropped.
            let _ = tokio::time::timeout(HANG_UP_GRACE, child.wait()).await;
        });
    }
}

/// Hands output over until its end; once the program is over, only what is there already.
async fn read(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::Sender<Bytes>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        let late = async {
            let _ = ended.wait_for(|over| *over).await;
            tokio::time::sleep(OUTPUT_GRACE).await;
        };
        let got = tokio::select! {
            biased;
            got = from.read_buf(&mut buffer) => got,
            () = late => return,
        };
        // A terminal that nobody holds any more answers with an error.
        if !matches!(got, Ok(n) if n > 0) {
            return;
        }
        if to.send(buffer.split().freeze()).await.is_err() {
            return;
        }
    }
}

/// Hands input over until its end, or until the program takes no more.
async fn write(mut to: impl AsyncWrite + Unpin, mut from: mpsc::Receiver<Bytes>, last: &[u8]) {
    while let Some(piece) = from.recv().await {
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    let _ = to.write_all(last).await;
}

async fn resizes(terminal: &terminal::Writer, mut from: mpsc::Receiver<(u16, u16)>) {
    while let Some((columns, rows)) = from.recv().await {
        if let Err(error) = terminal.resize(columns, rows) {
            tracing::debug!(%error, "a terminal keeps its size");
        }
    }
}

#[cfg(test)]
mod tests;
