// SPDX-License-Identifier: Apache-2.0
//! One machine's duties: runs pods and their sidecars as processes, probes and checks them, keeps
//! their logs, and hands SVIDs to the proxies that it started itself.
//!
//! Called by the binary, which gives it the desired pods of this machine ([`Desired`]) and a
//! [`ServerLink`]. Architecture invariant: the agent never reads the store, compiles nothing,
//! and runs no command that came through a door other than as a pod's program; what files of the
//! machine's operator name are the only scripts ([`local`]).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation))]

pub mod agent;
pub mod checks;
pub mod child;
pub mod command;
pub mod config;
pub mod enter;
pub mod env;
pub mod exec;
mod guards;
pub mod held;
pub mod leftover;
pub mod link;
pub mod local;
pub mod logs;
pub mod machine;
pub mod net;
pub mod pod;
pub mod ports;
pub mod probe;
pub mod procfs;
pub mod sandbox;
pub mod status;
pub mod svid;
mod sys;
pub mod usage;
mod worker;

pub use agent::{Agent, AgentError, Desired};
pub use config::{AgentConfig, ProxyProgram};
pub use enter::{EnterError, Entry};
pub use exec::{ExecError, ExecStreams};
pub use link::{BoxFuture, LinkError, PodNote, PodReport, ServerLink, SignAsk};
pub use logs::{LogQuery, LogReader};
pub use pod::{Configs, DesiredPod, PodKey, Upstream};
