// SPDX-License-Identifier: Apache-2.0
//! What the agent needs of a server. In one process it is a struct of the binary; on another
//! machine it is `weft.agent.v1` over mTLS.
//!
//! The agent reports and asks; it never reads the store and never decides who may be whom.

use std::fmt;
use std::pin::Pin;

use serde_json::Value;
use thiserror::Error;
use weft_identity::{Bundle, ca::Issued};

use crate::checks::CheckReport;
use crate::pod::PodKey;

pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why the server did not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum LinkError {
    /// Worth asking again.
    #[error("the server cannot be asked now: {0}")]
    Unavailable(String),
    /// Final.
    #[error("{0}")]
    Refused(String),
}

/// News of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodReport {
    pub pod: PodKey,
    /// The object this is about; a successor of the same name has another.
    pub uid: String,
    /// Kubernetes' `status`.
    pub status: Value,
    /// No process is left: a pod being deleted can be removed.
    pub finished: bool,
}

/// Something for the pod's list of events (`kubectl describe`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNote {
    pub pod: PodKey,
    pub uid: String,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// A request of one of the agent's own children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignAsk {
    pub pod: PodKey,
    pub service_account: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// The agent's server. Futures are self-contained, so that a link can be shared and replaced.
pub trait ServerLink: Send + Sync + fmt::Debug {
    /// Writes a status. Called again, with the newest, after an `Unavailable`.
    fn report_pod(&self, report: PodReport) -> BoxFuture<Result<(), LinkError>>;

    /// Records an event; losing one is no harm.
    fn note(&self, note: PodNote);

    /// Signs for the pod's service account.
    fn sign(&self, ask: SignAsk) -> BoxFuture<Result<(Issued, Bundle), LinkError>>;

    /// Resolves when the pod's proxy acknowledged its inbound configuration of now.
    fn inbound_acked(&self, pod: PodKey) -> BoxFuture<()>;

    /// Marks the pod's instances as draining and resolves when every subscriber knows. The agent
    /// waits at most two seconds.
    fn drained(&self, pod: PodKey) -> BoxFuture<()>;

    /// Hands over results of checks.
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>>;
}
