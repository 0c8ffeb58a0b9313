// SPDX-License-Identifier: Apache-2.0
//! The DNS door of a server as its flags say: what it may do besides answering from the World.
//! Called by `server/mod.rs`, and for a machine's own door by `agent/local`; binds nothing itself.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use weft_base::clock::Clock;
use weft_base::limits::DNS_QUESTIONS_PER_SOURCE;
use weft_base::rng::Rng;
use weft_registry::Registry;
use weft_server::consul::Door;
use weft_server::dns::{Options, Servers, Upstream};

use crate::cli::Names;
use crate::exit::Usage;

/// Whom a door asks for names that are not the mesh's; nobody where none are named.
///
/// # Errors
/// When the door would ask itself.
pub fn upstream(
    recursors: &[SocketAddr],
    own: SocketAddr,
    clock: &Clock,
) -> Result<Option<Upstream>> {
    let itself = |r: &&SocketAddr| {
        let here = own.ip().is_unspecified() && r.ip().is_loopback();
        r.port() == own.port() && (r.ip() == own.ip() || here)
    };
    if let Some(recursor) = recursors.iter().find(itself) {
        bail!(Usage(format!(
            "--dns-recursor {recursor} is the DNS door itself; name another resolver"
        )));
    }
    Ok((!recursors.is_empty()).then(|| {
        Upstream::new(Servers::Fixed(recursors.to_vec()), clock.clone(), Rng::from_system())
    }))
}

/// # Errors
/// When the door would ask itself.
pub fn options(names: &Names, own: SocketAddr, registry: &Registry, eyes: Door) -> Result<Options> {
    let clock = registry.clock().clone();
    let upstream = upstream(&names.recursors, own, &clock)?;
    let per_source = match names.dns_rate {
        None => Some(DNS_QUESTIONS_PER_SOURCE),
        Some(0) => None,
        rate => rate,
    };
    let loopback_counts = names.dns_rate.is_some_and(|rate| rate > 0);
    Ok(Options {
        clock,
        records: Some(registry.consul().clone()),
        upstream,
        per_source,
        loopback_counts,
        only_passing: names.dns_only_passing,
        meter: eyes.meter().clone(),
        eyes: Some(eyes),
    })
}
