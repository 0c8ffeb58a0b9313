// SPDX-License-Identifier: Apache-2.0
//! Pods in namespaces (ADR 2): who holds them, how a container gets into them, what it finds.
//!
//! Two sides. Three small roles of the binary run as processes of their own, single-threaded:
//! [`holder`] (`weft pod-net`) holds the pod network, [`init`] (`weft pod-init`) is process 1 of
//! a pod, [`exec`] (`weft pod-exec`) puts a program into a pod. The agent's side, [`host`] and
//! [`cell`], starts them and tells them what to do by files ([`spec`]) in its own directory.
//!
//! Architecture invariant: nothing outside namespaces that weft made is ever changed.

pub(crate) mod cell;
pub mod cgroup;
pub mod exec;
pub mod holder;
pub(crate) mod host;
pub mod init;
pub(crate) mod measure;
mod remove;
mod root;
pub(crate) mod security;
mod spec;
mod sys;
mod user;
pub(crate) mod volumes;

pub(crate) use cell::Cell;
pub(crate) use host::{Host, Live, PodBox};
