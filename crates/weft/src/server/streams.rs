// SPDX-License-Identifier: Apache-2.0
//! `kubectl exec`, `attach`, `cp` and `port-forward`, from the agent of this process.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_agent::agent::Agent;
use weft_agent::enter::EnterError;
use weft_agent::exec::{ExecError, ExecStreams};
use weft_agent::pod::{PROXY_CONTAINER, PodKey};
use weft_server::k8s::{
    Ending, ExecIo, ExecRequest, PodRef, PodStreams, StreamError, TerminalSize,
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
    fn check(&self, request: &ExecRequest) -> Result<(), StreamError> {
        if request.container == PROXY_CONTAINER {
            return Err(StreamError::Refused(format!(
                "{PROXY_CONTAINER} is weft's own: it holds the pod's identity, so that nothing \
                 else runs there; look at it with `weft proxy` and `kubectl logs -c \
                 {PROXY_CONTAINER}`"
            )));
        }
        let pod = key(&request.pod);
        self.0.can_enter(&pod, &request.container).map_err(|e| refused(&e))
    }

    fn run(&self, request: ExecRequest, io: ExecIo) -> Ending {
        let agent = self.0.clone();
        async move {
            let (pod, container) = (key(&request.pod), &request.container);
            let ExecIo { stdin, stdout, stderr, resize } = io;
            let (sizes, resized) = mpsc::channel(1);
            let wanted = resize.is_some();
            let streams = ExecStreams { stdin, stdout, stderr, resize: wanted.then_some(resized) };
            let exec = async {
                if request.command.is_empty() {
                    return agent.attach(&pod, container, streams).await.map(|()| 0);
                }
                agent.exec(&pod, container, &request.command, request.tty, streams).await
            };
            let sizes = async {
                if let Some(from) = resize {
                    hand_on(from, sizes).await;
                }
                std::future::pending().await
            };
            let ended = tokio::select! {
                ended = exec => ended,
                never = sizes => never,
            };
            ended.map_err(|error| match error {
                ExecError::Enter(error) => refused(&error),
                other => StreamError::NotStarted(sentence(&other)),
            })
        }
        .boxed()
    }

    fn dial(&self, pod: PodRef, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let way = self.0.reach(&key(&pod));
        async move {
            let none = || io::Error::new(io::ErrorKind::NotFound, "the pod does not run here");
            let (sockets, addresses) = way.ok_or_else(none)?;
            let mut failed = None;
            for address in addresses {
                match sockets.connect(SocketAddr::new(address, port), DIAL_MAX).await {
                    Ok(stream) => return TcpStream::from_std(stream),
                    // The first address is the one that is expected.
                    Err(why) => failed = failed.or(Some(why)),
                }
            }
            Err(failed.unwrap_or_else(none))
        }
        .boxed()
    }
}

async fn hand_on(mut from: mpsc::Receiver<TerminalSize>, to: mpsc::Sender<(u16, u16)>) {
    while let Some(size) = from.recv().await {
        if to.send((size.width, size.height)).await.is_err() {
            return;
        }
    }
}

fn key(pod: &PodRef) -> PodKey {
    PodKey::new(&pod.namespace, &pod.name)
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

const ELSEWHERE: &str = "this server runs no pods; ask on the machine whose agent runs it";

impl PodStreams for NoStreams {
    fn check(&self, _: &ExecRequest) -> Result<(), StreamError> {
        Err(StreamError::NotRunning(ELSEWHERE.into()))
    }

    fn run(&self, _: ExecRequest, _: ExecIo) -> Ending {
        async { Err(StreamError::NotRunning(ELSEWHERE.into())) }.boxed()
    }

    fn dial(&self, _: PodRef, _: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        async { Err(io::Error::new(io::ErrorKind::NotFound, ELSEWHERE)) }.boxed()
    }
}
