// SPDX-License-Identifier: Apache-2.0
//! What auth methods ask others: key sets of providers, and what a cluster says of a token. One
//! request over a connection of its own, with limits. The addresses are an operator's
//! (`acl:write`), never those of who logs in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_base::clock::{Clock, Mono};
use weft_identity::outside::{Origin, OriginNames, client, roots};
use weft_identity::tls::system_roots;

use super::jwt::Key;
use super::methods::{Keys, is_safe};
use crate::consul::body::word;

/// For one question, its connection included.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// How long keys are believed without asking again; and when nobody answers.
const FRESH: Duration = Duration::from_mins(5);
const KEPT: Duration = Duration::from_hours(1);
/// How soon somebody is asked again, whatever tokens name.
const AGAIN: Duration = Duration::from_secs(10);
/// Methods whose keys are kept.
const SETS_MAX: usize = 256;

/// One question.
#[derive(Debug)]
pub struct Asked<'a> {
    pub url: &'a str,
    /// Who signs its server's certificate, in PEM; those that this machine trusts where empty.
    pub authority: &'a str,
    /// Shown as a bearer token.
    pub token: Option<&'a str>,
    /// Posted as JSON.
    pub body: Option<Bytes>,
}

/// Who signs tokens.
#[derive(Debug, Default)]
pub struct Provider {
    pub keys: Vec<Key>,
    /// Whom it says that it is, where it says so. Several may share a set of keys.
    pub issuer: Option<String>,
}

/// The keys of providers, as they said them last.
#[derive(Debug, Default)]
pub struct Sets(Mutex<HashMap<Keys, Arc<Set>>>);

#[derive(Debug, Default)]
struct Set {
    known: Mutex<Known>,
    /// Of who asks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// When it was asked for last, and when somebody answered.
    asked: Option<Mono>,
    said: Option<Mono>,
    provider: Arc<Provider>,
    why: String,
}

// === impl Sets ===

impl Sets {
    /// The keys of a method, one of which may be that of this `kid`.
    ///
    /// # Errors
    /// When nobody says which, and did not within the hour.
    pub async fn provider(
        &self,
        of: &Keys,
        id: &str,
        clock: &Clock,
    ) -> Result<Arc<Provider>, String> {
        let slot = {
            let mut sets = lock(&self.0);
            if sets.len() >= SETS_MAX && !sets.contains_key(of) {
                sets.clear();
            }
            sets.entry(of.clone()).or_default().clone()
        };
        if let Some(known) = lock(&slot.known).fresh(id, clock.now()) {
            return Ok(known);
        }
        // Only who needs new keys waits for them; who comes meanwhile has the same answer, or goes
        // by the key that is known still.
        let _turn = match slot.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                if let Some(known) = lock(&slot.known).kept(id, clock.now()) {
                    return Ok(known);
                }
                slot.turn.lock().await
            }
        };
        let now = clock.now();
        if lock(&slot.known).begin(id, now) {
            let said = asked(of, clock).await;
            let mut known = lock(&slot.known);
            match said {
                Ok(provider) => (known.provider, known.said) = (Arc::new(provider), Some(now)),
                Err(why) => known.why = why,
            }
        }
        let known = lock(&slot.known);
        match known.said.is_some_and(|at| now.since(at) < KEPT) {
            true => Ok(known.provider.clone()),
            false => Err(format!("the keys of the auth method cannot be read: {}", known.why)),
        }
    }
}

// === impl Known ===

impl Known {
    fn has(&self, id: &str) -> bool {
        id.is_empty() || self.provider.keys.iter().any(|key| key.id == id)
    }

    /// What was said lately, if it has this key.
    fn fresh(&self, id: &str, now: Mono) -> Option<Arc<Provider>> {
        let is_fresh = self.said.is_some_and(|at| now.since(at) < FRESH) && self.has(id);
        is_fresh.then(|| self.provider.clone())
    }

    /// What was said within the hour, if it has this key.
    fn kept(&self, id: &str, now: Mono) -> Option<Arc<Provider>> {
        let is_kept = self.said.is_some_and(|at| now.since(at) < KEPT) && self.has(id);
        is_kept.then(|| self.provider.clone())
    }

    /// Whether to ask now; then it is asked.
    fn begin(&mut self, id: &str, now: Mono) -> bool {
        let asked = self.asked.is_some_and(|at| now.since(at) < AGAIN);
        let asks = self.fresh(id, now).is_none() && !asked;
        if asks {
            self.asked = Some(now);
        }
        asks
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn asked(of: &Keys, clock: &Clock) -> Result<Provider, String> {
    let (url, authority, issuer) = match of {
        Keys::Given(keys) => return Ok(Provider { keys: keys.clone(), issuer: None }),
        Keys::Set(url, authority) => (url.clone(), authority, None),
        Keys::Discovery(issuer, authority) => {
            let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            let said = ask(Asked { url: &url, authority, token: None, body: None }, clock).await?;
            let said: serde_json::Value =
                serde_json::from_slice(&said).map_err(|why| format!("{url}: {why}"))?;
            if word(&said, "issuer").trim_end_matches('/') != issuer.trim_end_matches('/') {
                return Err(format!("{url}: it is of the issuer {:?}", word(&said, "issuer")));
            }
            let issuer = Some(word(&said, "issuer").to_owned());
            let keys = word(&said, "jwks_uri");
            if !is_safe(keys) {
                return Err(format!("{url}: its jwks_uri {keys:?} is no https address"));
            }
            (keys.to_owned(), authority, issuer)
        }
    };
    let said = ask(Asked { url: &url, authority, token: None, body: None }, clock).await?;
    let keys = Key::of_set(&said).map_err(|why| format!("{url}: {why}"))?;
    Ok(Provider { keys, issuer })
}

/// The body of an answer that is a success.
///
/// # Errors
/// When there is none in time; the text says why.
pub async fn ask(asked: Asked<'_>, clock: &Clock) -> Result<Bytes, String> {
    let url = asked.url.to_owned();
    let answer = tokio::time::timeout(TIME_MAX, Box::pin(answer(asked, clock))).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {TIME_MAX:?}")));
    answer.map_err(|why| format!("{url}: {why}"))
}

async fn answer(asked: Asked<'_>, clock: &Clock) -> Result<Bytes, String> {
    let uri: Uri = asked.url.parse().map_err(|why| format!("it is no address: {why}"))?;
    let host = uri.host().ok_or("it names no host")?.to_owned();
    let is_secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((bare.as_str(), port)).await.map_err(|why| why.to_string())?;
    let request = request(&asked, &uri)?;
    if !is_secure {
        return exchange(stream, request).await;
    }
    let roots = match asked.authority {
        "" => system_roots(),
        pem => roots(pem).map_err(|why| format!("its authority: {why}"))?,
    };
    let names = OriginNames::ServerName;
    let origin = Origin { roots: Some(roots), names, certificate: None, only_13: false };
    let config = client(&origin, &[b"http/1.1"], clock).map_err(|why| why.to_string())?;
    let name = ServerName::try_from(bare).map_err(|why| why.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|why| format!("TLS: {why}"))?;
    exchange(stream, request).await
}

fn request(asked: &Asked<'_>, uri: &Uri) -> Result<Request<Full<Bytes>>, String> {
    let method = if asked.body.is_some() { Method::POST } else { Method::GET };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(ACCEPT, "application/json");
    if let Some(token) = asked.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if asked.body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(asked.body.clone().unwrap_or_default());
    request.body(body).map_err(|why| why.to_string())
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Bytes, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|why| why.to_string())?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|why| why.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(|body| body.to_bytes()).map_err(|why| format!("its answer: {why}"))
    };
    tokio::pin!(answered, connection);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        _ = &mut connection => answered.await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_shows_a_known_key_waits_for_nobody_who_asks() {
        // Connections are taken, and never answered.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = silent.local_addr().unwrap();
        let (clock, time) = Clock::manual();
        let of = Keys::Set(format!("http://{at}/keys"), String::new());
        let now = clock.now();
        let known = Known { asked: Some(now), said: Some(now), ..Known::default() };
        let sets = Sets::default();
        let set = Set { known: Mutex::new(known), ..Set::default() };
        lock(&sets.0).insert(of.clone(), Arc::new(set));
        time.advance(FRESH);
        let asking = sets.provider(&of, "", &clock);
        tokio::pin!(asking);
        assert!(asking.as_mut().now_or_never().is_none(), "it asks");
        assert!(sets.provider(&of, "", &clock).now_or_never().is_some_and(|said| said.is_ok()));
        let unknown = sets.provider(&of, "k9", &clock);
        assert!(unknown.now_or_never().is_none(), "it waits for what is said");
        time.advance(KEPT);
        assert!(sets.provider(&of, "", &clock).now_or_never().is_none(), "it is too old");
    }
}
