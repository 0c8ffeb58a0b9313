// SPDX-License-Identifier: Apache-2.0
//! `weft up`: server, agent, gateway, sidecars and the workloads of the given manifests, as one
//! process tree, for development.

pub mod stop;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::client::Api;
use crate::client::objects::apply_one;
use crate::manifest::{self, Manifest, plural};
use crate::server::{Agency, Running, Settings};
use crate::{builds, data, ports, state_home};
use table::Show;
use weft_server::admin::Facts as _;

/// How often what is shown is renewed.
const REFRESH: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

pub fn run(args: UpArgs) -> Result<()> {
    let paths = if args.paths.is_empty() { vec![PathBuf::from(".")] } else { args.paths.clone() };
    let mut manifests = manifest::load(&paths)?;
    manifests.iter_mut().for_each(manifest::set_workdir);
    let images = manifest::images(&args.images)?;
    if !args.no_build {
        builds::run(&manifests)?;
    }
    let dir =
        data::location(args.data.as_deref(), paths.first().map(PathBuf::as_path), &state_home());
    let settings = Settings {
        data: dir,
        trust_domain: args.trust_domain.clone(),
        node: None,
        agency: Some(Agency { images, access_log: args.access_log.clone() }),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let bound = ports::bind(&args.doors)?;
        let running = Running::start(settings, bound).await?;
        let outcome = serve(&args, &running, &manifests).await;
        running.stop().await;
        outcome
    })
}

/// Applies the manifests, shows what happens, and returns when the person wants to end.
async fn serve(args: &UpArgs, running: &Running, manifests: &[Manifest]) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ready = async {
        apply_all(running, manifests).await?;
        let late = until_ready(running, Duration::from_secs(args.ready_timeout)).await;
        announce(args, running, late.as_deref());
        Ok::<(), anyhow::Error>(())
    };
    tokio::select! {
        outcome = ready => outcome?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    }
    let mut show = Show::new(args.plain);
    let headline = headline(running);
    let mut due = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        if show.wants_to_quit() {
            break;
        }
        if tokio::time::Instant::now() >= due {
            due += REFRESH;
            show.update(&headline, &running.facts().status());
        }
    }
    drop(show);
    println!("ending: every process gets SIGTERM and its grace period");
    Ok(())
}

async fn apply_all(running: &Running, manifests: &[Manifest]) -> Result<()> {
    let api = Api::new(&running.api_url());
    let mut refused = Vec::new();
    for manifest in manifests {
        if let Err(error) = apply_one(&api, manifest, false).await {
            refused.push(format!("{}: {}: {error:#}", manifest.place, manifest.title()));
        }
    }
    if !refused.is_empty() {
        bail!("{} refused:\n  {}", plural(refused.len(), "object"), refused.join("\n  "));
    }
    println!("{} applied", plural(manifests.len(), "object"));
    Ok(())
}

/// Waits until every Deployment is available and every Gateway programmed; when that takes too
/// long, returns what is missing.
async fn until_ready(running: &Running, patience: Duration) -> Option<String> {
    let waited = tokio::time::timeout(patience, async {
        while !running.missing().is_empty() {
            tokio::time::sleep(POLL).await;
        }
    });
    waited.await.err().map(|_| running.missing().join(", "))
}

fn announce(args: &UpArgs, running: &Running, late: Option<&str>) {
    match late {
        None => println!("all ready after {} ms", running.uptime().as_millis()),
        Some(missing) => println!("not ready after {} s: {missing}", args.ready_timeout),
    }
    for line in headline(running) {
        println!("{line}");
    }
    if args.announce {
        let doors = running.doors();
        println!("{}", announcement(&doors, running.data(), late));
    }
}

/// The doors' addresses.
#[derive(Clone, Copy, Debug)]
pub struct DoorAddresses {
    pub api: SocketAddr,
    pub consul: SocketAddr,
    pub dns: SocketAddr,
    pub xds: SocketAddr,
}

/// One JSON line for programs that start weft.
pub fn announcement(doors: &DoorAddresses, data: &Path, late: Option<&str>) -> Value {
    json!({
        "weft": "ready",
        "api": format!("http://{}", doors.api),
        "consul": doors.consul.to_string(),
        "dns": doors.dns.to_string(),
        "xds": doors.xds.to_string(),
        "data": data.display().to_string(),
        "pid": std::process::id(),
        "not_ready": late,
    })
}

fn headline(running: &Running) -> Vec<String> {
    let doors = running.doors();
    let mut lines: Vec<String> =
        running.gateways().into_iter().map(|url| format!("gateway   {url}")).collect();
    lines.push(format!(
        "API       http://{}   consul {}   dns {}",
        doors.api, doors.consul, doors.dns
    ));
    lines.push(format!("ask       weft status --server http://{}", doors.api));
    lines
}
