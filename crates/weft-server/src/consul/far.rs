// SPDX-License-Identifier: Apache-2.0
//! The door of a machine whose server is elsewhere. What is registered with the machine itself
//! (`/v1/agent/*`) is answered here, from the registry of its agent; all else is handed on to the
//! server by a [`Far`]. Whose a token is the server says; that is remembered, and holds on while
//! the server is away, as Consul's `extend-cache` has it.
//!
//! Made by `weft agent`. Decides nothing about the mesh.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use weft_base::clock::{Clock, Mono};
use weft_identity::permission::{Kind, Names, Permission, Permissions, Verb};

use super::error::Refusal;
use super::params::Params;
use super::reply::{Body, Reply};
use super::routes::Endpoint;
use super::who::Who;

/// Largest body that is handed on, bytes: it is one message of the link.
pub const BODY_BYTES_MAX: usize = 7 * 1024 * 1024;
/// How long what a token may do is believed, as in Consul.
const TOKEN_FRESH: Duration = Duration::from_secs(30);
/// Tokens that are remembered.
const TOKENS_MAX: usize = 4096;
/// The same of those that the server knows nothing of.
const REFUSED_MAX: usize = 256;

/// No server can be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away(pub String);

/// The way to the server.
pub trait Far: Send + Sync + fmt::Debug {
    /// What the holder of a token may do, as [`super::Door::token_json`] says it.
    fn token(&self, secret: String) -> BoxFuture<'_, Result<Vec<u8>, Away>>;
    /// Answers a request that is not for this machine alone, from the server or, where that may
    /// be, from what it said last.
    fn ask(&self, ask: FarAsk) -> BoxFuture<'_, Result<FarAnswer, Away>>;
    /// Something is about to be registered here, under a token of its own or, where that is
    /// empty, under none.
    fn registers(&self, what: String, secret: &str) -> Box<dyn Coming>;
    /// What shows no token of its own is shown with this one from now on.
    fn defaults(&self, secret: &str);
    /// A server was there since this process began: what it knows is more than this machine does.
    fn was_there(&self) -> bool;
    /// Something was written here: resolves when the server has it, or after a moment.
    fn wrote(&self, revision: u64) -> BoxFuture<'_, ()>;
}

/// A registration that is coming, with its token. Dropped before it came, it did not.
pub trait Coming: Send {
    fn came(self: Box<Self>);
}

/// A request to hand on.
#[derive(Clone)]
pub struct FarAsk {
    pub method: Method,
    pub path: String,
    /// The query as it came, without what is said beside it here.
    pub query: String,
    /// The last good answer will do while no server can be asked.
    pub kept: bool,
    /// A blocking query: answer once the index is past this; 0 answers at once.
    pub index: u64,
    pub wait: Duration,
    /// `stale`, `consistent` or nothing.
    pub mode: &'static str,
    pub token: String,
    pub body: Bytes,
}

/// The answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarAnswer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// What tokens may do, as the server said it.
#[derive(Debug)]
pub struct Tokens {
    clock: Clock,
    known: Mutex<Told>,
}

/// Those that are nobody's push out none that are somebody's: anybody can make them up.
#[derive(Debug, Default)]
struct Told {
    known: HashMap<Arc<str>, Known>,
    refused: HashMap<Arc<str>, (Mono, Refusal)>,
}

#[derive(Clone, Debug)]
struct Known {
    /// When the server said it, and when somebody showed it last.
    said: Mono,
    shown: Mono,
    who: Who,
}

/// A token's rows as they travel.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wire {
    /// Access lists are on; without them everybody may do everything here. It must be said.
    acl: Option<bool>,
    /// The token is none: the status and the sentence.
    refused: Option<(u16, String)>,
    accessor: String,
    allow: bool,
    manage: bool,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    subject: String,
    kind: String,
    namespace: Option<String>,
    exactly: bool,
    name: String,
    verb: Option<String>,
}

// === impl Tokens ===

impl Tokens {
    pub fn new(clock: Clock) -> Self {
        Self { clock, known: Mutex::default() }
    }

    /// Who holds a token.
    ///
    /// # Errors
    /// 403 when the server says that it is nobody's; 500 when nobody can say.
    pub async fn who(&self, far: &dyn Far, secret: &str) -> Result<Who, Refusal> {
        let now = self.clock.now();
        if let Some(said) = self.known(secret, now, TOKEN_FRESH) {
            return said;
        }
        match far.token(secret.to_owned()).await {
            Ok(json) => {
                let said = read(&json)?;
                self.lock().note(secret, now, said.clone());
                said
            }
            Err(away) => match self.known(secret, now, Duration::MAX) {
                Some(said) => said,
                None => Err(no_leader(&away)),
            },
        }
    }

    /// What was said of a token no longer ago than that.
    fn known(&self, secret: &str, now: Mono, age: Duration) -> Option<Result<Who, Refusal>> {
        let mut told = self.lock();
        if let Some(known) = told.known.get_mut(secret).filter(|k| now.since(k.said) < age) {
            known.shown = now;
            return Some(Ok(known.who.clone()));
        }
        let (_, refusal) = told.refused.get(secret).filter(|(said, _)| now.since(*said) < age)?;
        Some(Err(refusal.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Told ===

impl Told {
    fn note(&mut self, secret: &str, now: Mono, said: Result<Who, Refusal>) {
        self.known.remove(secret);
        self.refused.remove(secret);
        match said {
            Ok(who) => {
                if self.known.len() >= TOKENS_MAX {
                    // The one that nobody showed for longest.
                    let oldest = self.known.iter().min_by_key(|(_, known)| known.shown);
                    let oldest = oldest.map(|(secret, _)| secret.clone());
                    oldest.and_then(|secret| self.known.remove(&secret));
                }
                self.known.insert(secret.into(), Known { said: now, shown: now, who });
            }
            Err(refusal) => {
                if self.refused.len() >= REFUSED_MAX {
                    self.refused.clear();
                }
                self.refused.insert(secret.into(), (now, refusal));
            }
        }
    }
}

// === impl FarAsk ===

impl FarAsk {
    /// # Errors
    /// When the query says something that cannot be.
    pub fn new(
        (method, uri): (&Method, &http::Uri),
        (endpoint, params): (Endpoint, &Params),
        token: String,
        body: Bytes,
    ) -> Result<Self, Refusal> {
        let said_apart = ["index", "wait", "stale", "consistent", "token"];
        let other = |part: &&str| {
            let name = part.split_once('=').map_or(*part, |(name, _)| name);
            !part.is_empty() && !said_apart.contains(&name)
        };
        let query = uri.query().unwrap_or_default().split('&').filter(other);
        // One flag in many spellings is one question.
        let query = query.map(|part| match part {
            "passing=1" | "passing=true" | "passing=True" | "passing=" => "passing",
            other => other,
        });
        let mut query: Vec<&str> = query.collect();
        query.sort_unstable();
        let blocking = params.blocking()?;
        let mode = match (blocking.stale, blocking.consistent) {
            (true, _) => "stale",
            (_, true) => "consistent",
            _ => "",
        };
        Ok(Self {
            method: method.clone(),
            path: uri.path().to_owned(),
            query: query.join("&"),
            kept: method != Method::PUT && is_kept(endpoint) && !blocking.consistent,
            index: blocking.index,
            wait: blocking.wait,
            mode,
            token,
            body,
        })
    }

    /// Path and query as the server is asked.
    pub fn target(&self, index: u64, wait: Duration) -> String {
        let mut parts: Vec<String> =
            [self.query.as_str(), self.mode].map(str::to_owned).into_iter().collect();
        if index > 0 {
            parts.push(format!("index={index}&wait={}ms", wait.as_millis()));
        }
        parts.retain(|part| !part.is_empty());
        match parts.is_empty() {
            true => self.path.clone(),
            false => format!("{}?{}", self.path, parts.join("&")),
        }
    }
}

impl fmt::Debug for FarAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither secrets nor keys.
        f.debug_struct("FarAsk").field("method", &self.method).finish_non_exhaustive()
    }
}

// === impl FarAnswer ===

impl From<FarAnswer> for Reply {
    fn from(answer: FarAnswer) -> Self {
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = answer.headers.into_iter().map(|(name, value)| (name.into(), value));
        Self { status, headers: headers.collect(), body: Body::Whole(answer.body) }
    }
}

// === helpers ===

/// What is this machine's own to answer.
pub fn is_own(endpoint: Endpoint) -> bool {
    use Endpoint as E;
    matches!(
        endpoint,
        E::Root
            | E::AgentSelf
            | E::AgentHost
            | E::AgentVersion
            | E::AgentMembers
            | E::AgentServices
            | E::AgentService
            | E::AgentChecks
            | E::AgentHealthId
            | E::AgentHealthName
            | E::AgentMaintenance
            | E::ServiceRegister
            | E::ServiceDeregister
            | E::ServiceMaintenance
            | E::CheckRegister
            | E::CheckDeregister
            | E::CheckPass
            | E::CheckWarn
            | E::CheckFail
            | E::CheckUpdate
            | E::AgentReload
            | E::AgentLeave
            | E::AgentMetrics
            | E::AgentMetricsStream
            | E::AgentJoin
            | E::AgentMonitor
            | E::AgentToken
    )
}

/// Whether it writes to this machine's own registry.
pub fn writes_here(endpoint: Endpoint) -> bool {
    use Endpoint as E;
    matches!(
        endpoint,
        E::AgentMaintenance
            | E::ServiceRegister
            | E::ServiceDeregister
            | E::ServiceMaintenance
            | E::CheckRegister
            | E::CheckDeregister
            | E::CheckPass
            | E::CheckWarn
            | E::CheckFail
            | E::CheckUpdate
    )
}

/// Reads that the last good answer will do for.
fn is_kept(endpoint: Endpoint) -> bool {
    use Endpoint as E;
    matches!(
        endpoint,
        E::CatalogDatacenters
            | E::CatalogNodes
            | E::CatalogServices
            | E::CatalogService
            | E::CatalogConnect
            | E::CatalogNode
            | E::CatalogNodeServices
            | E::HealthNode
            | E::HealthChecks
            | E::HealthService
            | E::HealthConnect
            | E::HealthState
    )
}

/// What a machine's clients may change without access lists: nothing that steers others' traffic.
/// `None`: by the rows of the table.
pub fn refused_to_hosts(endpoint: Endpoint, method: &Method) -> Option<Refusal> {
    use Endpoint as E;
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    let free = matches!(
        endpoint,
        E::CatalogRegister
            | E::CatalogDeregister
            | E::CoordinateUpdate
            | E::Kv
            | E::Txn
            | E::SessionCreate
            | E::SessionDestroy
            | E::SessionRenew
            | E::EventFire
            | E::Queries
            | E::Query
            | E::ConnectAuthorize
            | E::DiscoveryChain
    );
    // A leaf would be an identity, and whoever registers a service gains none by it.
    let secret = matches!(endpoint, E::Snapshot | E::CaLeaf);
    ((!reads && !free && !is_acl(endpoint)) || secret).then(|| {
        Refusal::forbidden(
            "Permission denied: without access lists a machine's clients may not do this; ask \
             the server itself, or start it with --consul-acl",
        )
    })
}

/// They answer by themselves that access lists are off.
fn is_acl(endpoint: Endpoint) -> bool {
    format!("{endpoint:?}").starts_with("Acl")
}

/// Consul's words, with ours behind them.
pub fn no_leader(away: &Away) -> Refusal {
    Refusal::internal(format!("No cluster leader: no weft server can be asked now ({})", away.0))
}

// === a token's rows as they travel ===

/// What a token may do, for a machine's door.
pub fn write(who: Result<Who, Refusal>) -> Vec<u8> {
    let wire = match who {
        Err(refusal) => Wire {
            acl: Some(true),
            refused: Some((refusal.status.as_u16(), refusal.text)),
            ..Wire::default()
        },
        Ok(Who { table: None, .. }) => Wire { acl: Some(false), ..Wire::default() },
        Ok(Who { accessor, table: Some(table), .. }) => Wire {
            acl: Some(true),
            accessor: accessor.to_string(),
            allow: table.allows_by_default(),
            manage: table.is_management(),
            rows: table.rows().iter().map(row).collect(),
            ..Wire::default()
        },
    };
    serde_json::to_vec(&wire).unwrap_or_default()
}

fn row(of: &Permission) -> Row {
    let (exactly, name) = match &of.names {
        Names::Exactly(name) => (true, name),
        Names::Prefix(name) => (false, name),
    };
    Row {
        subject: of.subject.to_string(),
        kind: of.kind.as_str().to_owned(),
        namespace: of.namespace.as_deref().map(str::to_owned),
        exactly,
        name: name.to_string(),
        verb: of.verb.map(|verb| verb.as_str().to_owned()),
    }
}

/// The inverse; what cannot be read allows nothing.
fn read(json: &[u8]) -> Result<Result<Who, Refusal>, Refusal> {
    let unread =
        || Refusal::internal("what the token may do cannot be read here; update the agent");
    let wire: Wire = serde_json::from_slice(json).map_err(|_| unread())?;
    if let Some((status, text)) = wire.refused {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
        return Ok(Err(Refusal::new(status, text)));
    }
    if !wire.acl.ok_or_else(unread)? {
        return Ok(Ok(Who::anybody()));
    }
    let permission = |row: Row| {
        let name: Arc<str> = row.name.into();
        let verb = match row.verb.as_deref() {
            None => None,
            Some("read") => Some(Verb::Read),
            Some("list") => Some(Verb::List),
            Some("write") => Some(Verb::Write),
            Some(_) => return None,
        };
        Some(Permission {
            subject: row.subject.into(),
            kind: Kind::parse(&row.kind)?,
            namespace: row.namespace.map(Into::into),
            names: if row.exactly { Names::Exactly(name) } else { Names::Prefix(name) },
            verb,
        })
    };
    let rows: Option<Vec<_>> = wire.rows.into_iter().map(permission).collect();
    let rows = rows.ok_or_else(unread)?;
    let table = match wire.manage {
        true => Permissions::management(),
        false => Permissions::new(rows, wire.allow),
    };
    let table = Some(Arc::new(table));
    Ok(Ok(Who { accessor: wire.accessor.into(), table, ..Who::anybody() }))
}

#[cfg(test)]
mod tests;
