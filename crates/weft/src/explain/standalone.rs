// SPDX-License-Identifier: Apache-2.0
//! `weft explain -f` on what a proxy without a control plane serves: its own file, or a bootstrap
//! of Envoy. The table is the one that `weft proxy` would make.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use weft_base::clock::Clock;
use weft_model::decide::pick_section;
use weft_proxy::explain::{Place, explain};
use weft_proxy::table::{Builder, Door, Table};

use super::{Answered, Asked};
use crate::proxy::{Loaded, Source};

/// What the files are, when they are one that a proxy serves by itself.
///
/// # Errors
/// What is wrong with it.
pub fn loaded(files: &[PathBuf]) -> Result<Option<Loaded>> {
    let [file] = files else { return Ok(None) };
    let Some(source) = Source::of(file) else { return Ok(None) };
    source.load().map(Some)
}

/// Explains by what the file says.
///
/// # Errors
/// When it has no listener that is meant.
pub fn answer(loaded: Loaded, asked: &Asked) -> Result<Answered, String> {
    let mut builder = Builder::new(1, Clock::system(), "standalone".into());
    let upserts = loaded.resources.into_iter().map(|(name, resource)| (name, Ok(resource)));
    let (table, _) = builder.apply(1, upserts.collect(), &[]);
    let (door, local) = door(&table, asked)?;
    let place = Place { door, local, scheme: if asked.https { "https" } else { "http" } };
    let explanation = explain(&table, &place, &asked.request);
    Ok(Answered { proxy: "standalone".into(), explanation })
}

/// The listener on the URL's port; of several, the one that serves its host.
fn door(table: &Table, asked: &Asked) -> Result<(Door, SocketAddr), String> {
    let mut found: Option<(bool, Door, SocketAddr)> = None;
    let mut ports = Vec::new();
    for entry in table.gateways() {
        let bind = &entry.listener.bind;
        ports.extend(bind.iter().map(SocketAddr::port));
        let Some(local) = bind.iter().find(|at| at.port() == asked.port) else { continue };
        let serves = pick_section(&entry.listener, &asked.host.to_ascii_lowercase()).is_some();
        if found.as_ref().is_none_or(|(already, ..)| serves && !already) {
            let ip = if local.ip().is_unspecified() {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            } else {
                local.ip()
            };
            let at = SocketAddr::new(ip, local.port());
            found = Some((serves, Door::Gateway(entry.name.clone()), at));
        }
    }
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    found.map(|(_, door, local)| (door, local)).ok_or_else(|| {
        let there = ports.join(", ");
        format!("no listener has port {}; there are: {there}", asked.port)
    })
}
