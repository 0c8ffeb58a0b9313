// SPDX-License-Identifier: Apache-2.0
//! `weft up`: server, agent, gateway, sidecars and the workloads of the given manifests, as one
//! process tree, for development.

pub mod stop;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::asked::Asked;
use crate::cli::UpArgs;
use crate::client::Api;
use crate::client::objects::apply_one;
use crate::manifest::{self, Manifest, plural};
use crate::server::{Agency, Running, Settings};
use crate::{builds, data, pod, ports, print, state_home};
use table::Show;
use weft_server::admin::Facts as _;

/// How often what is shown is renewed.
const REFRESH: Duration = Duration::from_secs(1);
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often keys are looked at once all is ready.
const TICK: Duration = Duration::from_millis(100);
const READY_TIMEOUT_S_MAX: u64 = 86_400;

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
        store: None,
        data: dir,
        trust_domain: args.trust_domain.clone(),
        node: None,
        agency: Some(Agency {
            images,
            workdir: manifest::home(&paths),
            access_log: args.access_log.clone(),
            pods: pod::choose(args.pods)?,
        }),
        consul: weft_server::consul::Access::default(),
        openings: crate::server::Openings::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // From here on being asked to end means ending in order, also while starting.
        let mut asked = Asked::listen()?;
        let bound = ports::bind(&args.doors)?;
        let running = Running::start(settings, bound).await?;
        let outcome = serve(&args, &running, &manifests, &mut asked).await;
        tokio::select! {
            () = running.stop() => outcome,
            () = asked.end_wanted() => {
                // Children of a process that is gone are killed by the system.
                crate::say!("asked twice: ending at once");
                std::process::exit(1)
            }
        }
    })
}

/// Applies the manifests, shows what happens, and returns when the person wants to end.
async fn serve(
    args: &UpArgs,
    running: &Running,
    manifests: &[Manifest],
    asked: &mut Asked,
) -> Result<()> {
    tokio::select! {
        outcome = apply_all(running, manifests) => outcome?,
        () = asked.end_wanted() => return Ok(()),
    }
    // Programs that read the announcement want lines, wherever they run weft.
    let mut show = Show::new(args.plain || args.announce);
    let until = Instant::now() + patience(args);
    let mut start = Start::Waiting { until, missing: String::new() };
    // Plain lines need not tell how each of many instances starts; a table is there at once.
    let mut due = Instant::now() + if show.is_live() { Duration::ZERO } else { REFRESH };
    loop {
        let pause = if start.is_over() { TICK } else { POLL };
        tokio::select! {
            () = asked.end_wanted() => break,
            () = tokio::time::sleep(pause) => {}
        }
        if show.wants_to_quit() {
            break;
        }
        if start.step(running) {
            due = Instant::now();
            if !show.is_live() {
                announce(args, running, &start);
            }
        }
        if Instant::now() >= due {
            due = Instant::now() + REFRESH;
            let mut lines = vec![start.to_string()];
            lines.extend(headline(running));
            show.update(&lines, &running.facts().status());
        }
    }
    drop(show);
    crate::say!("ending: every process gets SIGTERM and its grace period");
    Ok(())
}

/// How far the start is.
enum Start {
    Waiting {
        until: Instant,
        missing: String,
    },
    Ready {
        ms: u128,
    },
    /// What was missing when the patience ended, or could not come any more.
    Late {
        seconds: u64,
        missing: String,
    },
}

// === impl Start ===

impl Start {
    fn is_over(&self) -> bool {
        !matches!(self, Self::Waiting { .. })
    }

    /// Looks again; says whether the wait has just ended.
    fn step(&mut self, running: &Running) -> bool {
        let Self::Waiting { until, missing } = self else { return false };
        *missing = running.missing().join(", ");
        if missing.is_empty() {
            *self = Self::Ready { ms: running.uptime().as_millis() };
            return true;
        }
        if Instant::now() < *until {
            return false;
        }
        let (seconds, missing) = (running.uptime().as_secs(), std::mem::take(missing));
        *self = Self::Late { seconds, missing };
        true
    }

    fn missing(&self) -> Option<&str> {
        match self {
            Self::Late { missing, .. } => Some(missing),
            Self::Waiting { .. } | Self::Ready { .. } => None,
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { missing, .. } => write!(f, "starting; not ready yet: {missing}"),
            Self::Ready { ms } => write!(f, "all ready after {ms} ms"),
            Self::Late { seconds, missing } => {
                write!(f, "not ready after {seconds} s: {missing}")
            }
        }
    }
}

fn patience(args: &UpArgs) -> Duration {
    Duration::from_secs(args.ready_timeout.min(READY_TIMEOUT_S_MAX))
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
    crate::say!("{} applied", plural(manifests.len(), "object"));
    let kept = running.applied_before(manifests);
    if !kept.is_empty() {
        let (at, own) = (running.api_url(), print::own_name());
        crate::say!("kept from an earlier run, in no file now; these delete them:");
        for what in kept {
            crate::say!("  {own} delete {what} --server {at}");
        }
    }
    Ok(())
}

fn announce(args: &UpArgs, running: &Running, start: &Start) {
    crate::say!("{start}");
    for line in headline(running) {
        crate::say!("{line}");
    }
    if args.announce {
        let line = announcement(&running.doors(), running.data(), start.missing());
        crate::say!("{line}");
    }
}

/// The doors' addresses.
#[derive(Clone, Copy, Debug)]
pub struct DoorAddresses {
    pub api: SocketAddr,
    pub consul: SocketAddr,
    /// The same over HTTPS, when it is served so.
    pub consul_https: Option<SocketAddr>,
    pub dns: SocketAddr,
    /// The resolver of pods in namespaces.
    pub pod_dns: SocketAddr,
    pub xds: SocketAddr,
    /// Where agents of other machines reach it, when they may.
    pub agents: Option<SocketAddr>,
}

/// One JSON line for programs that start weft.
pub fn announcement(doors: &DoorAddresses, data: &Path, late: Option<&str>) -> Value {
    json!({
        "weft": "ready",
        "api": format!("http://{}", doors.api),
        "consul": doors.consul.to_string(),
        "consul_https": doors.consul_https.map(|a| a.to_string()),
        "dns": doors.dns.to_string(),
        "pod_dns": doors.pod_dns.to_string(),
        "xds": doors.xds.to_string(),
        "agents": doors.agents.map(|a| a.to_string()),
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
    lines.push(format!("ask       {} status --server http://{}", print::own_name(), doors.api));
    lines
}
