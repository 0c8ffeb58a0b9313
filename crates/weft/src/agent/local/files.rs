// SPDX-License-Identifier: Apache-2.0
//! Services and checks that the operator's files define: registered at the agent's start as if
//! somebody had asked the door, and taken away when a later start does not find them there.
//! Programs that checks name are run here.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Map, Value};
use weft_agent::local::files::{self, Defined, Scripted};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_kinds::world::CheckKey;
use weft_registry::Registry;
use weft_server::consul::Door;

use super::secrets;

/// What the files defined at the last start: paths that take them away again.
const MEMORY: &str = "defined.json";
/// The first run of a program comes within this.
const START_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Registers what a folder defines, and runs its programs.
///
/// # Errors
/// When a file or a definition is wrong.
pub async fn take(
    dir: &Path,
    door: &Door,
    (registry, node): (&Registry, &Arc<str>),
    (data, tasks): (&Path, &TaskGroup),
) -> Result<()> {
    let defined = files::read(dir).map_err(|why| anyhow!(crate::exit::Usage(why.to_string())))?;
    let mut ways_out = ways_out(&defined);
    let before = remembered(data)?;
    // Whatever happens from here on, a later start knows what to take away.
    remember(data, &before.union(&ways_out).cloned().collect())?;
    for (body, token) in &defined.services {
        ask(door, "/v1/agent/service/register", body, token).await?;
    }
    for (body, token) in &defined.checks {
        ask(door, "/v1/agent/check/register", body, token).await?;
    }
    let gone: Vec<String> = before.difference(&ways_out).cloned().collect();
    for gone in gone {
        let (status, why) = door.as_operator("PUT", &gone, "", Vec::new()).await;
        if status >= 300 && status != 404 {
            tracing::warn!(
                status,
                why,
                "{gone}: what no file defines any more stays until the next start"
            );
            ways_out.insert(gone);
        }
    }
    remember(data, &ways_out)?;
    for scripted in defined.scripts {
        run(scripted, registry.clone(), node.clone(), tasks);
    }
    Ok(())
}

/// How all that is defined is taken away again.
fn ways_out(defined: &Defined) -> BTreeSet<String> {
    let way_of = |kind: &str, id: &str, namespace: &str| {
        let namespace = match namespace {
            "default" => String::new(),
            other => format!("?ns={}", encoded(other)),
        };
        format!("/v1/agent/{kind}/deregister/{}{namespace}", encoded(id))
    };
    let way = |kind: &str, body: &Map<String, Value>, names: &[&str]| {
        way_of(kind, &text(body, names), &files::namespace(body))
    };
    // A check that a service has no more goes, while the service stays.
    let of_services = defined.service_checks();
    let of_services = of_services.map(|(namespace, id)| way_of("check", &id, &namespace));
    let services = defined.services.iter();
    let services = services.map(|(body, _)| way("service", body, &["id", "name", "service"]));
    let checks = defined.checks.iter();
    let checks = checks.map(|(body, _)| way("check", body, &["checkid", "id", "name"]));
    services.chain(checks).chain(of_services).collect()
}

fn remembered(data: &Path) -> Result<BTreeSet<String>> {
    let memory = data.join(MEMORY);
    let bytes = match std::fs::read(&memory) {
        Ok(bytes) => bytes,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(why) => return Err(why).with_context(|| memory.display().to_string()),
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|why| {
        tracing::warn!(file = %memory.display(), %why, "what files defined before, and define no \
            more, stays: it is not known");
        BTreeSet::new()
    }))
}

/// Replaced whole, and synced.
fn remember(data: &Path, ways_out: &BTreeSet<String>) -> Result<()> {
    let memory = data.join(MEMORY);
    let json = serde_json::to_vec(ways_out)?;
    secrets::replace(&memory, &json).with_context(|| memory.display().to_string())
}

async fn ask(door: &Door, path: &str, body: &Map<String, Value>, token: &str) -> Result<()> {
    let body = serde_json::to_vec(body)?;
    let (status, why) = door.as_operator("PUT", path, token, body.clone()).await;
    if status < 300 {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    Err(anyhow!(crate::exit::Usage(format!("--config-dir: {why}, in {body}"))))
}

/// Runs a check's program again and again, spread over its interval.
fn run(scripted: Scripted, registry: Registry, node: Arc<str>, tasks: &TaskGroup) {
    let Scripted { namespace, check, script, interval } = scripted;
    let key = CheckKey { namespace: namespace.into(), node, id: check.into() };
    let env = environment();
    let group = tasks.clone();
    tasks.spawn("script check", async move {
        let mut rng = Rng::from_system();
        let first = START_WITHIN.min(interval);
        let again = async {
            let spread = u64::try_from(first.as_millis()).unwrap_or(1);
            tokio::time::sleep(std::time::Duration::from_millis(rng.below(spread))).await;
            loop {
                let (status, output) = script.run(&env).await;
                if let Err(why) = registry.catalog().report_ttl(&key, status, &output).await {
                    // A client may have deregistered it: it says nothing then.
                    tracing::debug!(%why, check = %key.id, "a script's word is not taken");
                }
                tokio::time::sleep(interval).await;
            }
        };
        tokio::select! {
            () = group.draining() => {}
            () = again => {}
        }
    });
}

#[allow(clippy::disallowed_methods)] // what programs inherit is read here, once
fn environment() -> Vec<(String, String)> {
    // What is no text is none of what programs are given.
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The first of these that says something.
fn text(body: &Map<String, Value>, names: &[&str]) -> String {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let of = |wanted: &&&str| {
        let found = body.iter().find(|(name, _)| plain(name) == **wanted)?.1;
        found.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    };
    names.iter().find_map(|name| of(&name)).unwrap_or_default()
}

fn encoded(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    id.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_defined_is_taken_away_where_it_was_put() {
        let mut defined = Defined::default();
        let text = r#"{"services": [{"name": "web"}, {"id": "a/b", "name": "b", "Namespace": "t"}],
                       "check": {"name": "disk", "namespace": "t"}}"#;
        files::parse(text, &mut defined).unwrap();
        let wanted = [
            "/v1/agent/check/deregister/disk?ns=t",
            "/v1/agent/service/deregister/a%2Fb?ns=t",
            "/v1/agent/service/deregister/web",
        ];
        assert_eq!(ways_out(&defined), BTreeSet::from(wanted.map(str::to_owned)));
    }

    #[test]
    fn what_was_defined_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remembered(dir.path()).unwrap(), BTreeSet::new());
        let ways = BTreeSet::from(["/v1/agent/service/deregister/web".to_owned()]);
        remember(dir.path(), &ways).unwrap();
        assert_eq!(remembered(dir.path()).unwrap(), ways);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
