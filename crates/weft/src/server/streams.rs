// SPDX-License-Identifier: Apache-2.0
//! `kubectl exec`, `attach`, `cp` and `port-forward`, from the agent of this process: for clients
//! of this server, or for a server elsewhere that was asked.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_agent::agent::Agent;
use weft_agent::enter::{EnterError, Target};
use weft_agent::exec::{ExecError, ExecStreams};
use weft_agent::pod::{PROXY_CONTAINER, PodKey};
use weft_server::k8s::{
    Opened, PodRef, PodStreams, StreamError, TerminalSize, Visit, VisitIo, VisitWhat, connection,
};

/// Time for a connection to a pod of this machine.
const DIAL_MAX: Duration = Duration::from_secs(5);

/// Programs and connections of the pods that the agent runs.
#[derive(Debug)]
pub struct AgentStreams(pub Agent);

/// No agent here, so no programs.
#[derive(Debug)]
pub struct NoStreams;

impl PodStreams for AgentStreams {
    fn open(&self, visit: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        let agent = self.0.clone();
        let PodRef { namespace, name, uid } = visit.pod;
        let pod = PodKey::new(&namespace, &name);
        let target = |container| Target { pod: pod.clone(), uid: uid.as_str().into(), container };
        match visit.what {
            VisitWhat::Exec { container, command, tty } => {
                let opened = enterable(&agent, target(container)).map(|target| {
                    Box::new(move |io| exec(agent, target, command, tty, io).boxed()) as Opened
                });
                async { opened }.boxed()
            }
            VisitWhat::Attach { container } => {
                let opened = enterable(&agent, target(container))
                    .map(|target| Box::new(move |io| attach(agent, target, io).boxed()) as Opened);
                async { opened }.boxed()
            }
            VisitWhat::Connect { port } => {
                async move { Ok(connection(dial(&agent, &pod, &uid, port).await?)) }.boxed()
            }
        }
    }
}

fn enterable(agent: &Agent, target: Target) -> Result<Target, StreamError> {
    if target.container == PROXY_CONTAINER {
        return Err(StreamError::Refused(format!(
            "{PROXY_CONTAINER} is weft's own: it holds the pod's identity, so that nothing else \
             runs there; look at it with `weft proxy` and `kubectl logs -c {PROXY_CONTAINER}`"
        )));
    }
    agent.can_enter(&target).map_err(|e| refused(&e))?;
    Ok(target)
}

async fn exec(
    agent: Agent,
    target: Target,
    command: Vec<String>,
    tty: bool,
    io: VisitIo,
) -> Result<i32, StreamError> {
    let (streams, sizes) = streams(io);
    beside(sizes, agent.exec(&target, &command, tty, streams)).await
}

async fn attach(agent: Agent, target: Target, io: VisitIo) -> Result<i32, StreamError> {
    let (streams, sizes) = streams(io);
    beside(sizes, async { agent.attach(&target, streams).await.map(|()| 0) }).await
}

/// The same streams as the agent takes them, and what hands the terminal's sizes on.
fn streams(io: VisitIo) -> (ExecStreams, impl Future<Output = ()>) {
    let VisitIo { stdin, stdout, stderr, resize } = io;
    let (sizes, resized) = mpsc::channel(1);
    let wanted = resize.is_some();
    let streams = ExecStreams { stdin, stdout, stderr, resize: wanted.then_some(resized) };
    let hand_on = async move {
        if let Some(from) = resize {
            hand_on(from, sizes).await;
        }
    };
    (streams, hand_on)
}

async fn hand_on(mut from: mpsc::Receiver<TerminalSize>, to: mpsc::Sender<(u16, u16)>) {
    while let Some(size) = from.recv().await {
        if to.send((size.width, size.height)).await.is_err() {
            return;
        }
    }
}

async fn beside(
    sizes: impl Future<Output = ()>,
    program: impl Future<Output = Result<i32, ExecError>>,
) -> Result<i32, StreamError> {
    let sizes = async {
        sizes.await;
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = program => ended,
        never = sizes => never,
    };
    ended.map_err(|error| match error {
        ExecError::Enter(error) => refused(&error),
        ExecError::Lost(_) => StreamError::Lost(sentence(&error)),
        other => StreamError::NotStarted(sentence(&other)),
    })
}

async fn dial(agent: &Agent, pod: &PodKey, uid: &str, port: u16) -> Result<TcpStream, StreamError> {
    let (sockets, addresses) = agent.reach(pod, uid).map_err(|e| refused(&e))?;
    let mut failed = None;
    for address in addresses {
        let stream = sockets.connect(SocketAddr::new(address, port), DIAL_MAX).await;
        match stream.and_then(TcpStream::from_std) {
            Ok(stream) => return Ok(stream),
            // The first address is the one that is expected.
            Err(why) => failed = failed.or(Some(why)),
        }
    }
    let why = failed.map_or_else(|| "it has no address".into(), |why| why.to_string());
    Err(StreamError::NotStarted(why))
}

fn refused(error: &EnterError) -> StreamError {
    StreamError::NotRunning(error.to_string())
}

/// An error with its causes.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = error.source();
    }
    out
}

impl PodStreams for NoStreams {
    fn open(&self, _: Visit) -> BoxFuture<'static, Result<Opened, StreamError>> {
        let why = "this server runs no pods; ask on the machine whose agent runs it";
        async { Err(StreamError::NotRunning(why.into())) }.boxed()
    }
}
