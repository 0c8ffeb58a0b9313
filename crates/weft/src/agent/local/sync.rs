// SPDX-License-Identifier: Apache-2.0
//! Anti-entropy, this machine's end: tells the server what is registered here, changes at once and
//! everything now and then, and after every time that it could not be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::{Clock, Mono};
use weft_base::rng::Rng;
use weft_base::task::TaskGroup;
use weft_kinds::views::catalog::{CheckRecord, CheckStatus};
use weft_kinds::world::{Catalog, CheckKey, RegistrationKey, World};
use weft_registry::Registry;
use weft_server::consul::sync::{SyncAnswer, SyncAsk, SyncCheck, SyncService};
use weft_xds::agent::Refusal;
use weft_xds::agent::client::AgentClient;

use super::parts;
use super::secrets::Secrets;
use super::way::Way;
use crate::agent::session::Backoff;

/// How often everything is told before the server has said how often it wants that.
const WHOLE_EVERY: Duration = Duration::from_secs(60);
const WHOLE_EVERY_MAX: Duration = Duration::from_secs(3600);
/// Changes within this travel together.
const GATHER: Duration = Duration::from_millis(2);

/// Namespace and id.
type Key = (Arc<str>, Arc<str>);

/// All that is registered here.
#[derive(Clone, Debug, Default, PartialEq)]
struct Whole {
    services: BTreeMap<Key, SyncService>,
    checks: BTreeMap<Key, SyncCheck>,
}

/// Who is told.
trait Hears: Send + Sync + 'static {
    fn hear(&self, json: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, Refusal>> + Send;
}

struct Teller<H> {
    registry: Registry,
    node: Arc<str>,
    way: Arc<Way>,
    server: H,
    clock: Clock,
    rng: Rng,
    told: Told,
    every: Duration,
}

/// What the server has, as far as is known here.
#[derive(Debug, Default)]
struct Told {
    whole: Option<Whole>,
    /// The life of the server that has it.
    life: u64,
    /// When everything is to be told again, however much is told in between.
    again: Mono,
}

/// Tells the server for as long as the agent lives.
pub fn start(
    (registry, node): (Registry, Arc<str>),
    way: Arc<Way>,
    client: AgentClient,
    tasks: &TaskGroup,
) {
    let (clock, told) = (registry.clock().clone(), Told::default());
    let (rng, every) = (Rng::from_system(), WHOLE_EVERY);
    let teller = Teller { registry, node, way, server: client, clock, rng, told, every };
    let group = tasks.clone();
    tasks.spawn("anti-entropy", async move {
        tokio::select! {
            () = group.draining() => {}
            () = teller.run() => {}
        }
    });
}

// === impl Teller ===

impl Hears for AgentClient {
    async fn hear(&self, json: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        self.consul_sync(json).await
    }
}

impl<H: Hears> Teller<H> {
    async fn run(mut self) {
        let mut worlds = self.registry.world();
        let mut contact = self.way.contact();
        let mut tokens = self.way.secrets().changes();
        let mut backoff = Backoff::new();
        loop {
            // Not asked before it is there: the heartbeats find out.
            let life = match contact.wait_for(|contact| contact.there).await {
                Ok(contact) => contact.life,
                Err(_) => return,
            };
            tokens.mark_unchanged();
            match self.tell(life, &worlds.load()).await {
                Ok(()) => backoff.worked(),
                Err(why) => {
                    tracing::debug!(%why, "what is registered here could not be told");
                    self.told.whole = None;
                    tokio::time::sleep(backoff.failed()).await;
                    continue;
                }
            }
            tokio::select! {
                more = worlds.changed() => if !more { return },
                () = tokio::time::sleep(self.told.again.since(self.clock.now())) => {}
                // What it is shown with is told as well.
                _ = tokens.changed() => {}
                _ = contact.wait_for(|now| !now.there || now.life != life) => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn tell(&mut self, life: u64, world: &World) -> Result<(), Refusal> {
        let whole = Whole::of(world, &self.node, self.way.secrets());
        let ask = self.told.ask(life, &whole, self.clock.now());
        if ask == SyncAsk::default() {
            self.way.note_told(world.revision());
            return Ok(());
        }
        let is_whole = ask.whole;
        if is_whole {
            // Judged by what is there by now, but for what is coming.
            let (registry, node) = (&self.registry, &self.node);
            self.way.secrets().retain(|| {
                let world = registry.now();
                move |what: &str| is_there(world.catalog(), node, what)
            });
        }
        let (parts, large) = parts::of(ask);
        for what in large {
            tracing::error!(what, "is too large for the server to be told of it");
        }
        for part in &parts {
            self.tell_part(part).await?;
        }
        self.told.whole = Some(whole);
        if is_whole {
            let pause = self.rng.jitter(self.every, 25);
            (self.told.life, self.told.again) = (life, self.clock.now().plus(pause));
        }
        self.way.note_told(world.revision());
        Ok(())
    }

    async fn tell_part(&mut self, part: &SyncAsk) -> Result<(), Refusal> {
        let json = serde_json::to_vec(part).unwrap_or_default();
        if json.len() > parts::BYTES_MAX {
            // Only the list of all that is there grows so large: nothing is removed by it then.
            tracing::error!(
                bytes = json.len(),
                max = parts::BYTES_MAX,
                "more is registered with \
                this machine than its server can be told; what went may stay there"
            );
            return Ok(());
        }
        let said = self.server.hear(json).await?;
        let said: SyncAnswer = serde_json::from_slice(&said).unwrap_or_default();
        for (what, why) in &said.refused {
            tracing::warn!(what, why, "the server does not take a registration of this machine");
        }
        if said.whole_every_ms > 0 {
            let every = Duration::from_millis(said.whole_every_ms);
            self.every = every.min(WHOLE_EVERY_MAX);
        }
        Ok(())
    }
}

// === impl Told ===

impl Told {
    /// What there is to tell now. A server of another life may be another one, or have lost what
    /// it knew, and have become that at any time since it was told.
    fn ask(&self, life: u64, now: &Whole, at: Mono) -> SyncAsk {
        match &self.whole {
            Some(told) if life == self.life && at < self.again => now.since(told),
            _ => now.everything(),
        }
    }
}

// === impl Whole ===

impl Whole {
    fn of(world: &World, node: &str, secrets: &Secrets) -> Self {
        let catalog = world.catalog();
        let check = |key: &CheckKey, check: &CheckRecord| {
            let result = catalog.result(key).map(|result| CheckStatus::clone(result));
            let result = result.unwrap_or_else(|| CheckStatus {
                status: check.initial,
                output: check.typed().initial_output.into(),
                ..CheckStatus::default()
            });
            let token = secrets.of(&format!("check/{}/{}", key.namespace, key.id));
            // Which run of which agent heard it is nobody else's business.
            let result = CheckStatus { by: "".into(), ..result };
            SyncCheck { check: check.clone(), result, token }
        };
        let mut whole = Self::default();
        for (key, registration) in catalog.on_node(node) {
            let of = catalog.checks_of(key).map(|(key, record)| check(key, record));
            let service = SyncService {
                registration: (**registration).clone(),
                retold: false,
                checks: of.collect(),
                token: secrets.of(&format!("service/{}/{}", key.namespace, key.id)),
            };
            whole.services.insert((key.namespace.clone(), key.id.clone()), service);
        }
        for (key, record) in catalog.node_checks(node) {
            whole.checks.insert((key.namespace.clone(), key.id.clone()), check(key, record));
        }
        whole
    }

    fn everything(&self) -> SyncAsk {
        SyncAsk {
            whole: true,
            services: self.services.values().map(again).collect(),
            checks: self.checks.values().cloned().collect(),
            ..SyncAsk::default()
        }
    }

    /// What is another way than it was told.
    fn since(&self, told: &Self) -> SyncAsk {
        let as_told = |(key, service): (&Key, &SyncService)| {
            let known = told.services.get(key);
            match known.is_some_and(|known| known.registration == service.registration) {
                true => again(service),
                false => service.clone(),
            }
        };
        let services = changed(&self.services, &told.services);
        SyncAsk {
            whole: false,
            services: services.map(as_told).collect(),
            checks: changed(&self.checks, &told.checks).map(|(_, check)| check.clone()).collect(),
            gone: gone(&self.services, &told.services),
            gone_checks: gone(&self.checks, &told.checks),
            there: None,
        }
    }
}

/// As it was told before.
fn again(service: &SyncService) -> SyncService {
    SyncService { retold: true, ..service.clone() }
}

/// Whether what a token is kept for is there.
fn is_there(catalog: &Catalog, node: &Arc<str>, what: &str) -> bool {
    let mut parts = what.splitn(3, '/');
    let (Some(kind), Some(namespace), Some(id)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (namespace, node, id) = (namespace.into(), node.clone(), id.into());
    match kind {
        "service" => catalog.registration(&RegistrationKey { namespace, node, id }).is_some(),
        _ => catalog.check(&CheckKey { namespace, node, id }).is_some(),
    }
}

fn changed<'a, T: PartialEq>(
    now: &'a BTreeMap<Key, T>,
    told: &'a BTreeMap<Key, T>,
) -> impl Iterator<Item = (&'a Key, &'a T)> {
    now.iter().filter(|(key, value)| told.get(*key) != Some(value))
}

fn gone<T>(now: &BTreeMap<Key, T>, told: &BTreeMap<Key, T>) -> Vec<Key> {
    told.keys().filter(|key| !now.contains_key(*key)).cloned().collect()
}

#[cfg(test)]
mod tests;
