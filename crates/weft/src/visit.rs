// SPDX-License-Identifier: Apache-2.0
//! A visit to a pod of another machine, carried over `weft.agent.v1`: what a client may have
//! going there ([`PodStreams`]) is the same at both ends, and this is the way between. The
//! server's end is an [`Opened`] like any other; the agent's end runs its own.
//!
//! Every queue is bounded and both ends stand still while a reader does: nothing is kept for it.
//! Either end notices when the other is gone, also while it waits for a reader.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use weft_server::k8s::{Opened, PodRef, StreamError, TerminalSize, Visit, VisitIo, VisitWhat};
use weft_xds::agent::Refusal;
use weft_xds::agent::visit::{
    FailureKind, Output, VisitAsk, VisitDown, VisitFailure, VisitStreams, VisitUp,
    VisitWhat as WireWhat,
};

/// Pieces of one stream that may wait to be taken.
const PIECES_MAX: usize = 8;
/// Words that may wait for the wire.
pub const WORDS_MAX: usize = 8;

/// Between the end of one side and that of the other.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// What the agent says, at the server.
pub type Ups = BoxStream<'static, Result<VisitUp, Refusal>>;
/// What the client says, at the agent.
pub type Downs = BoxStream<'static, Result<VisitDown, Refusal>>;

/// A visit that an agent has ready, at the server.
pub struct Ready {
    pub host: String,
    pub up: Ups,
    pub down: mpsc::Sender<VisitDown>,
}

// === the server's end ===

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Ready {
    /// The visit as the door takes it. It ends too when `removed` says why its host may have no
    /// visits any more.
    pub fn opened(self, removed: impl Future<Output = String> + Send + 'static) -> Opened {
        Box::new(move |io| {
            async move {
                tokio::select! {
                    outcome = self.run(io) => outcome,
                    why = removed => Err(StreamError::Lost(why)),
                }
            }
            .boxed()
        })
    }

    async fn run(self, io: VisitIo) -> Result<i32, StreamError> {
        let Self { host, up, down } = self;
        let streams = VisitStreams {
            stdin: io.stdin.is_some(),
            stdout: io.stdout.is_some(),
            stderr: io.stderr.is_some(),
            resize: io.resize.is_some(),
        };
        let VisitIo { stdin, stdout, stderr, resize } = io;
        let gone = || lost(&host, "the connection to it ended");
        down.send(VisitDown::Begin(streams)).await.map_err(|_| gone())?;
        let said = async {
            tokio::join!(type_in(stdin, &down), send_sizes(resize, &down));
            std::future::pending().await
        };
        tokio::select! {
            outcome = hear(&host, up, stdout, stderr) => outcome,
            never = said => never,
            // The connection may end while the client does not read.
            () = over(&down) => Err(gone()),
        }
    }
}

/// The agent's end is gone, and its last words had time to be read.
async fn over(down: &mpsc::Sender<VisitDown>) {
    down.closed().await;
    tokio::time::sleep(LAST_WORDS_MAX).await;
}

/// Hands on what the agent says, to its last word.
async fn hear(
    host: &str,
    mut up: Ups,
    mut stdout: Option<mpsc::Sender<Bytes>>,
    mut stderr: Option<mpsc::Sender<Bytes>>,
) -> Result<i32, StreamError> {
    loop {
        let (to, piece) = match up.next().await {
            Some(Ok(VisitUp::Stdout(piece))) => (&mut stdout, Some(piece)),
            Some(Ok(VisitUp::Stderr(piece))) => (&mut stderr, Some(piece)),
            Some(Ok(VisitUp::Ended(Output::Stdout))) => (&mut stdout, None),
            Some(Ok(VisitUp::Ended(Output::Stderr))) => (&mut stderr, None),
            Some(Ok(VisitUp::Exit(code))) => return Ok(code),
            Some(Ok(VisitUp::Failed(failure))) => return Err(failed(host, failure)),
            Some(Ok(VisitUp::Ready(_))) => return Err(lost(host, "its agent began twice")),
            Some(Err(why)) => return Err(lost(host, &why.to_string())),
            None => return Err(lost(host, "its agent ended the visit without a word")),
        };
        // Who does not listen any more misses the rest; the program goes on.
        let heard = match (to.as_ref(), piece) {
            (Some(to), Some(piece)) => to.send(piece).await.is_ok(),
            _ => false,
        };
        if !heard {
            *to = None;
        }
    }
}

async fn type_in(from: Option<mpsc::Receiver<Bytes>>, down: &mpsc::Sender<VisitDown>) {
    let Some(mut from) = from else { return };
    while let Some(piece) = from.recv().await {
        if down.send(VisitDown::Stdin(piece)).await.is_err() {
            return;
        }
    }
    let _ = down.send(VisitDown::StdinEnded).await;
}

async fn send_sizes(from: Option<mpsc::Receiver<TerminalSize>>, down: &mpsc::Sender<VisitDown>) {
    let Some(mut from) = from else { return };
    while let Some(TerminalSize { width, height }) = from.recv().await {
        if down.send(VisitDown::Size { columns: width, rows: height }).await.is_err() {
            return;
        }
    }
}

fn lost(host: &str, why: &str) -> StreamError {
    StreamError::Lost(format!("lost at host {host}: {why}"))
}

/// An agent's refusal in the words of the door, with the machine named.
pub fn failed(host: &str, failure: VisitFailure) -> StreamError {
    let text = format!("{} (on host {host})", failure.message);
    match failure.kind {
        FailureKind::NotRunning => StreamError::NotRunning(text),
        FailureKind::Refused => StreamError::Refused(text),
        FailureKind::NotStarted => StreamError::NotStarted(text),
        FailureKind::Lost => StreamError::Lost(text),
        FailureKind::Unavailable => StreamError::Unavailable(text),
    }
}

// === the agent's end ===

/// Runs a visit between what the server says and what it is told, to its end at either side.
pub async fn serve(id: u64, opened: Opened, mut down: Downs, up: mpsc::Sender<VisitUp>) {
    let begun = tokio::select! {
        word = down.next() => word,
        () = up.closed() => return,
    };
    let Some(Ok(VisitDown::Begin(streams))) = begun else { return };
    let (stdin_to, stdin) = channel(streams.stdin);
    let (stdout, out) = channel(streams.stdout);
    let (stderr, err) = channel(streams.stderr);
    let (sizes_to, resize) = channel(streams.resize);
    let program = opened(VisitIo { stdin, stdout, stderr, resize });
    let says = async {
        let outcome = carry(program, out, err, &up).await;
        let last = match outcome {
            Ok(code) => VisitUp::Exit(code),
            Err(error) => VisitUp::Failed(failure(id, &error)),
        };
        let _ = up.send(last).await;
    };
    let told = tokio::select! {
        () = says => true,
        () = listen(&mut down, stdin_to, sizes_to) => false,
        // The server may be gone while the program does not read.
        () = up.closed() => false,
    };
    if told {
        // The server hangs up first, so that it has heard all.
        drop(up);
        let rest = async { while let Some(Ok(_)) = down.next().await {} };
        let _ = tokio::time::timeout(LAST_WORDS_MAX, rest).await;
    }
}

/// Tells what a program says until it ends and all is told.
async fn carry(
    program: impl Future<Output = Result<i32, StreamError>>,
    out: Option<mpsc::Receiver<Bytes>>,
    err: Option<mpsc::Receiver<Bytes>>,
    up: &mpsc::Sender<VisitUp>,
) -> Result<i32, StreamError> {
    let (mut program, mut outcome) = (pin!(program), None);
    let (mut reads_out, mut reads_err) = (out.is_some(), err.is_some());
    let mut out = pin!(tell(out, up, VisitUp::Stdout));
    let mut err = pin!(tell(err, up, VisitUp::Stderr));
    loop {
        let ended = tokio::select! {
            // First: output ends with the program, and how it ended says more.
            biased;
            ended = &mut program, if outcome.is_none() => {
                outcome = Some(ended);
                None
            }
            () = &mut out, if reads_out => {
                reads_out = false;
                Some(Output::Stdout)
            }
            () = &mut err, if reads_err => {
                reads_err = false;
                Some(Output::Stderr)
            }
        };
        match (outcome.take(), ended) {
            (Some(outcome), _) if !reads_out && !reads_err => return outcome,
            (None, Some(output)) => {
                let _ = up.send(VisitUp::Ended(output)).await;
            }
            (kept, _) => outcome = kept,
        }
    }
}

async fn tell(
    from: Option<mpsc::Receiver<Bytes>>,
    up: &mpsc::Sender<VisitUp>,
    word: fn(Bytes) -> VisitUp,
) {
    let Some(mut from) = from else { return };
    while let Some(piece) = from.recv().await {
        if up.send(word(piece)).await.is_err() {
            return;
        }
    }
}

/// Hands on what the client says until the server ends the visit.
async fn listen(
    down: &mut Downs,
    mut stdin: Option<mpsc::Sender<Bytes>>,
    sizes: Option<mpsc::Sender<TerminalSize>>,
) {
    while let Some(Ok(word)) = down.next().await {
        // A program that listens no more misses the rest.
        match (word, &stdin, &sizes) {
            (VisitDown::Stdin(piece), Some(to), _) => {
                let _ = to.send(piece).await;
            }
            (VisitDown::StdinEnded, ..) => stdin = None,
            (VisitDown::Size { columns, rows }, _, Some(to)) => {
                let _ = to.send(TerminalSize { width: columns, height: rows }).await;
            }
            _ => {}
        }
    }
}

fn channel<T>(on: bool) -> (Option<mpsc::Sender<T>>, Option<mpsc::Receiver<T>>) {
    if !on {
        return (None, None);
    }
    let (to, from) = mpsc::channel(PIECES_MAX);
    (Some(to), Some(from))
}

/// Why a visit is refused or ended, as it travels.
pub fn failure(id: u64, error: &StreamError) -> VisitFailure {
    let kind = match error {
        StreamError::NotRunning(_) => FailureKind::NotRunning,
        StreamError::Refused(_) => FailureKind::Refused,
        StreamError::NotStarted(_) => FailureKind::NotStarted,
        StreamError::Lost(_) => FailureKind::Lost,
        StreamError::Unavailable(_) | StreamError::Stopping => FailureKind::Unavailable,
    };
    VisitFailure { id, kind, message: error.to_string() }
}

// === questions ===

/// A question as it travels.
pub fn ask(id: u64, visit: Visit) -> VisitAsk {
    let PodRef { namespace, name, uid } = visit.pod;
    let what = match visit.what {
        VisitWhat::Exec { container, command, tty } => WireWhat::Exec { container, command, tty },
        VisitWhat::Attach { container } => WireWhat::Attach { container },
        VisitWhat::Connect { port } => WireWhat::Connect { port },
    };
    VisitAsk { id, pod: weft_xds::agent::PodRef { namespace, name, uid }, what }
}

/// The same as the agent's own streams take it.
pub fn asked(ask: VisitAsk) -> Visit {
    let weft_xds::agent::PodRef { namespace, name, uid } = ask.pod;
    let what = match ask.what {
        WireWhat::Exec { container, command, tty } => VisitWhat::Exec { container, command, tty },
        WireWhat::Attach { container } => VisitWhat::Attach { container },
        WireWhat::Connect { port } => VisitWhat::Connect { port },
    };
    Visit { pod: PodRef { namespace, name, uid }, what }
}

#[cfg(test)]
mod tests;
