// SPDX-License-Identifier: Apache-2.0
//! Join tokens: made and listed for people (`weft token`), used up by hosts. The store holds
//! their hashes only.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use weft_base::clock::Clock;
use weft_base::name::Label;
use weft_identity::Authority;
use weft_identity::join::JoinText;
use weft_identity::token::{Allowed, JOIN_TTL_MAX, JoinError, JoinToken, Token};
use weft_registry::hosts::{HostError, Hosts};
use weft_server::tokens::{TokenAsk, TokenError, Tokens};
use weft_store::StoreError;
use weft_xds::agent::Refusal;

/// Digits of a token's hash that name it to people.
const ID_DIGITS: usize = 12;
const TTL_MIN: Duration = Duration::from_secs(10);

/// Makes and lists tokens.
#[derive(Clone)]
pub struct HostTokens {
    pub hosts: Hosts,
    pub authority: Arc<Authority>,
    pub clock: Clock,
    /// Where agents of other machines reach the server, when they may.
    pub agents: Option<SocketAddr>,
}

/// Why a token admits nobody, while it is used.
enum Unused {
    Token(JoinError),
    Host(HostError),
    Store,
    Damaged,
}

/// Uses a token up for a host.
///
/// # Errors
/// When it admits nobody of this name now.
pub async fn redeem(
    hosts: &Hosts,
    clock: &Clock,
    token: &str,
    host: &Label,
) -> Result<JoinToken, Refusal> {
    let token = Token::presented(token);
    let hash = token.hash();
    let used = hosts.change_token(hash.as_str(), |record| {
        let mut record: JoinToken = serde_json::from_value(record).map_err(|_| Unused::Damaged)?;
        record.redeem(&token, host, clock.wall_ms()).map_err(Unused::Token)?;
        // A name that cannot be had uses no token up.
        hosts.may_join(host.as_str(), record.host.is_some()).map_err(Unused::Host)?;
        Ok::<_, Unused>(json!(record))
    });
    let refused = |e: JoinError| Refusal::Unauthenticated(e.to_string());
    let used = used.await.map_err(|unused| match unused {
        Unused::Token(why) => refused(why),
        Unused::Host(why) => super::refusal(why),
        Unused::Store => Refusal::Unavailable("the server cannot write now".into()),
        Unused::Damaged => refused(JoinError::Unknown),
    })?;
    let record = used.ok_or_else(|| refused(JoinError::Unknown))?;
    serde_json::from_value(record).map_err(|_| refused(JoinError::Unknown))
}

impl From<StoreError> for Unused {
    fn from(_: StoreError) -> Self {
        Self::Store
    }
}

// === impl HostTokens ===

impl HostTokens {
    async fn make(self, ask: TokenAsk) -> Result<Value, TokenError> {
        let bad = |e: &dyn fmt::Display| TokenError::Invalid(e.to_string());
        let host = ask.host.as_deref().map(Label::new).transpose();
        let host = host.map_err(|e| TokenError::Invalid(format!("host: {e}")))?;
        let accounts = ask.allow.iter().map(|a| account(a));
        let accounts = accounts.collect::<Result<BTreeSet<_>, _>>()?;
        let allowed = match accounts.is_empty() {
            true => Allowed::Placed,
            false => Allowed::Only(accounts),
        };
        let ttl = Duration::from_secs(ask.ttl_seconds.unwrap_or(JOIN_TTL_MAX.as_secs()));
        if ttl > JOIN_TTL_MAX || ttl < TTL_MIN {
            let text = format!("a join token lives {} s to an hour", TTL_MIN.as_secs());
            return Err(TokenError::Invalid(text));
        }
        let token = Token::generate().map_err(|e| bad(&e))?;
        let record = JoinToken::new(&token, host, allowed, ttl, self.clock.wall_ms());
        let record = record.map_err(|e| bad(&e))?;
        let hash = record.hash.as_str().to_owned();
        self.hosts.add_token(&hash, &json!(record), ttl).await.map_err(failed)?;
        let mut shown = self.shown(&hash, &record);
        let text = JoinText { token, pin: Some(self.authority.pin()) };
        shown["token"] = json!(text.reveal());
        shown["server"] = json!(self.agents.map(|a| a.to_string()));
        Ok(shown)
    }

    async fn all(self) -> Result<Value, TokenError> {
        let all = self.hosts.tokens().await.map_err(failed)?;
        let read = |(hash, record): (String, Value)| {
            let record: JoinToken = serde_json::from_value(record).ok()?;
            Some(self.shown(&hash, &record))
        };
        Ok(json!({ "tokens": all.into_iter().filter_map(read).collect::<Vec<_>>() }))
    }

    async fn remove(self, id: String) -> Result<(), TokenError> {
        let all = self.hosts.tokens().await.map_err(failed)?;
        let mut named = all.iter().filter(|(hash, _)| id.len() >= 4 && hash.starts_with(&id));
        let none = || TokenError::NotFound(id.clone());
        let (hash, _) = named.next().ok_or_else(none)?;
        if named.next().is_some() {
            return Err(TokenError::Invalid(format!("several tokens begin with {id}; name more")));
        }
        match self.hosts.delete_token(hash).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(none()),
            Err(error) => Err(failed(error)),
        }
    }

    /// A record as people see it; the secret is in no list.
    fn shown(&self, hash: &str, record: &JoinToken) -> Value {
        let now = self.clock.wall_ms();
        let state = match record.used_ms {
            Some(_) => "used",
            None if record.expires_ms <= now => "expired",
            None => "unused",
        };
        let allowed = match &record.allowed {
            Allowed::Placed => json!(["*"]),
            Allowed::Only(set) => set.iter().map(|(n, a)| json!(format!("{n}/{a}"))).collect(),
        };
        json!({
            "id": hash.get(..ID_DIGITS).unwrap_or(hash),
            "host": record.host.as_ref().map(ToString::to_string),
            "allowed": allowed,
            "state": state,
            "expires_in_s": record.expires_ms.saturating_sub(now) / 1000,
        })
    }
}

impl Tokens for HostTokens {
    fn create(&self, ask: TokenAsk) -> BoxFuture<'static, Result<Value, TokenError>> {
        self.clone().make(ask).boxed()
    }

    fn list(&self) -> BoxFuture<'static, Result<Value, TokenError>> {
        self.clone().all().boxed()
    }

    fn delete(&self, id: String) -> BoxFuture<'static, Result<(), TokenError>> {
        self.clone().remove(id).boxed()
    }
}

impl fmt::Debug for HostTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostTokens")
    }
}

/// `NAMESPACE/SERVICE-ACCOUNT`.
fn account(text: &str) -> Result<(Label, Label), TokenError> {
    let wrong = || TokenError::Invalid(format!("allow: {text:?} is not NAMESPACE/ACCOUNT"));
    let (namespace, account) = text.split_once('/').ok_or_else(wrong)?;
    let label = |t: &str| Label::new(t).map_err(|_| wrong());
    Ok((label(namespace)?, label(account)?))
}

fn failed(error: HostError) -> TokenError {
    match error {
        HostError::TooManyTokens => TokenError::Invalid(error.to_string()),
        other => TokenError::Unavailable(other.to_string()),
    }
}
