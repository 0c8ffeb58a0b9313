// SPDX-License-Identifier: Apache-2.0
//! `kubectl exec`, `attach`, `cp` and `port-forward`, from the agent of this process.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use weft_agent::agent::Agent;
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_registry::Registry;
use weft_server::k8s::{ExecIo, ExecRequest, PodRef, PodStreams, StreamError};

/// Programs and connections of the pods that the agent runs.
#[derive(Debug)]
pub struct AgentStreams {
    pub agent: Agent,
    pub registry: Registry,
}

/// No agent here, so no programs.
#[derive(Debug)]
pub struct NoStreams;

impl PodStreams for AgentStreams {
    fn check(&self, _: &ExecRequest) -> Result<(), StreamError> {
        Err(StreamError::Refused("exec is not offered yet".into()))
    }

    fn run(&self, request: ExecRequest, _: ExecIo) -> BoxFuture<'static, Result<i32, StreamError>> {
        let refused = self.check(&request).map(|()| 0);
        async { refused }.boxed()
    }

    fn dial(&self, pod: PodRef, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let _ = &self.agent;
        let world = self.registry.now();
        let object = world.get(KindId::Pod, &pod.namespace, &pod.name);
        let address = object.and_then(|o| match &o.view {
            View::Pod(pod) => pod.status.pod_ip.parse::<IpAddr>().ok(),
            _ => None,
        });
        async move {
            let none = || io::Error::new(io::ErrorKind::NotFound, "the pod has no address");
            TcpStream::connect(SocketAddr::new(address.ok_or_else(none)?, port)).await
        }
        .boxed()
    }
}

const ELSEWHERE: &str = "this server runs no pods; ask on the machine whose agent runs it";

impl PodStreams for NoStreams {
    fn check(&self, _: &ExecRequest) -> Result<(), StreamError> {
        Err(StreamError::NotRunning(ELSEWHERE.into()))
    }

    fn run(&self, _: ExecRequest, _: ExecIo) -> BoxFuture<'static, Result<i32, StreamError>> {
        async { Err(StreamError::NotRunning(ELSEWHERE.into())) }.boxed()
    }

    fn dial(&self, _: PodRef, _: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        async { Err(io::Error::new(io::ErrorKind::NotFound, ELSEWHERE)) }.boxed()
    }
}
