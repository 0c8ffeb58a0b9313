// SPDX-License-Identifier: Apache-2.0
//! The calls: to one member at a time, and to another one as soon as that is slow to answer
//! ([`super::look`] finds it). Until one is found calls wait, so that none is sent to a member that
//! has no majority. A write is repeated only when it surely reached nobody.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use weft_proto::etcdserverpb::AuthenticateRequest;
use weft_proto::etcdserverpb::auth_client::AuthClient;

use super::EtcdConfig;
use crate::StoreError;
use crate::meter::{Call, Meter};

/// How long one member may take to answer one call.
pub(super) const CALL_MAX: Duration = Duration::from_secs(3);
/// After this another member is looked for.
pub(super) const SLOW: Duration = Duration::from_millis(500);
/// How much later than another a member may answer a look, to keep its turn.
pub(super) const KEEP: Duration = Duration::from_millis(300);
/// A member that has not had its turn back by then does not get it: a little more than [`KEEP`].
const LEFT: Duration = Duration::from_millis(400);
/// How long a connection may take to come about, TLS included.
const DIAL_MAX: Duration = Duration::from_secs(2);
/// etcd cuts off who pings more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_MAX: Duration = Duration::from_secs(3);
/// Present values are at most 1 MiB each and are read by the page.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// All members, and which of them is asked.
#[derive(Debug)]
pub(super) struct Link {
    config: EtcdConfig,
    channels: Vec<Channel>,
    /// How many calls each has answered.
    answers: Vec<AtomicU64>,
    turn: watch::Sender<Turn>,
    /// Whose turn it was when the last search had ended.
    kept: Mutex<usize>,
    /// The stream that was begun last: its number, and the member it is with.
    stream: Mutex<(u64, usize)>,
    /// The newest stream that should begin anew.
    doubted: watch::Sender<u64>,
    token: Mutex<Option<Token>>,
    pub meter: Meter,
}

/// What etcd gives who signs in.
pub(super) type Token = MetadataValue<Ascii>;

/// Which member is asked.
#[derive(Clone, Copy, Debug)]
struct Turn {
    at: usize,
    search: Search,
}

/// Whether a member is looked for that knows what the majority knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// The one that is asked answers, as far as is known.
    Over,
    /// Calls wait for its end.
    On,
    /// It goes on, but no member takes a connection: calls find that out at once.
    Vain,
    /// It goes on, but the one that is asked has answered since: it is slow, as others may be, and
    /// no call waits.
    Aside,
}

/// A connection that never came about: what was to be sent on it reached nobody.
#[derive(Debug, thiserror::Error)]
#[error("{member}: {source}")]
struct Unconnected {
    member: String,
    source: io::Error,
}

// === impl Link ===

impl Link {
    /// # Errors
    /// When a member's name is no address.
    pub fn new(config: EtcdConfig) -> Result<Self, StoreError> {
        let channels = config.members.iter().map(|m| channel(m, &config));
        let channels = channels.collect::<Result<Vec<_>, _>>()?;
        let (doubted, stream, token) = (watch::Sender::new(0), Mutex::default(), Mutex::default());
        let answers = channels.iter().map(|_| AtomicU64::new(0)).collect();
        let turn = watch::Sender::new(Turn { at: 0, search: Search::Over });
        let (kept, meter) = (Mutex::new(0), Meter::etcd());
        Ok(Self { config, channels, answers, turn, kept, stream, doubted, token, meter })
    }

    pub fn members(&self) -> usize {
        self.channels.len()
    }

    pub fn channel_to(&self, at: usize) -> Option<Channel> {
        self.channels.get(at).cloned()
    }

    /// The member whose turn it is.
    pub fn channel(&self) -> Option<(usize, Channel)> {
        let at = self.turn.borrow().at;
        self.channel_to(at).map(|channel| (at, channel))
    }

    /// The same, once it is known to be one that answers.
    async fn sure(&self) -> Result<(usize, Channel), StoreError> {
        let mut turns = self.turn.subscribe();
        let known = turns.wait_for(|turn| turn.search != Search::On);
        if tokio::time::timeout(CALL_MAX, known).await.is_err() {
            let why = "no member that knows a majority was found within 3 s".to_owned();
            return Err(StoreError::Unreachable { member: "etcd".into(), why, unknown: false });
        }
        self.channel().ok_or(StoreError::Closed)
    }

    /// Has a member looked for that answers, unless that goes on already, or there is but one.
    pub fn look(&self) {
        self.look_if(|_| true);
    }

    /// The same while it is still this one's turn.
    fn look_past(&self, at: usize) {
        self.look_if(|turn| turn == at);
    }

    fn look_if(&self, is_due: impl Fn(usize) -> bool) {
        let others = self.channels.len() > 1;
        self.turn.send_if_modified(|turn| {
            let begins = others && turn.search == Search::Over && is_due(turn.at);
            if begins {
                turn.search = Search::On;
            }
            begins
        });
    }

    /// Resolves when a member is to be looked for.
    pub async fn is_wanted(&self) {
        // The sender lives as long as `self`.
        let _ = self.turn.subscribe().wait_for(|turn| turn.search != Search::Over).await;
    }

    /// How it stands with the search. That no call waits for it any more stays so.
    pub fn searching(&self, search: Search) {
        self.turn.send_if_modified(|turn| {
            turn.search != Search::Aside && std::mem::replace(&mut turn.search, search) != search
        });
    }

    /// The search is over: this one's turn.
    pub fn found(&self, at: usize) {
        self.turn.send_replace(Turn { at, search: Search::Over });
    }

    /// Counts a search that has ended with another one's turn than the last.
    pub fn settled(&self) {
        let at = self.turn.borrow().at;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *kept, at) != at {
            self.meter.passed();
        }
    }

    /// How many calls a member has answered.
    pub fn answers(&self, at: usize) -> u64 {
        self.answers.get(at).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A member has answered a call: if it is the one that is asked, nobody need wait for another.
    fn answered(&self, at: usize) {
        if let Some(count) = self.answers.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let waits = |turn: &Turn| turn.at == at && turn.search == Search::On;
        if waits(&self.turn.borrow()) {
            self.turn.send_if_modified(|turn| {
                let ends = waits(turn);
                if ends {
                    turn.search = Search::Aside;
                }
                ends
            });
        }
    }

    /// Gives the turn to the member that a stream is with, unless there is a newer stream.
    pub fn stay(&self, stream: u64, with: usize) {
        if self.followed().0 == stream {
            self.turn.send_modify(|turn| turn.at = with);
        }
    }

    /// Gives the turn to the member after `at`, unless another has it already, or to whoever
    /// answers when that one does not. Streams stay.
    pub fn pass(&self, at: usize) {
        let next = at.wrapping_add(1) % self.channels.len().max(1);
        if self.turn.borrow().at == at && next != at {
            self.turn.send_replace(Turn { at: next, search: Search::On });
        }
    }

    /// Resolves when it has been another member's turn for as long as shows that it stays so.
    async fn is_left(&self, at: usize) {
        let mut turns = self.turn.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = turns.wait_for(|turn| turn.at != at).await;
            let back = turns.wait_for(|turn| turn.at == at);
            if tokio::time::timeout(LEFT, back).await.is_err() {
                return;
            }
        }
    }

    /// A stream with a member has begun; its number.
    pub fn begin_stream(&self, at: usize) -> u64 {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        *stream = (stream.0.wrapping_add(1), at);
        stream.0
    }

    /// The stream that was begun last, and whom it is with.
    pub fn followed(&self) -> (u64, usize) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a stream, unless it is another one by now.
    pub fn doubt(&self, number: u64) {
        let newer = |doubted: &mut u64| {
            let is_newer = number > *doubted;
            *doubted = number.max(*doubted);
            is_newer
        };
        self.doubted.send_if_modified(newer);
    }

    /// Resolves when a stream should begin anew.
    pub async fn is_doubted(&self, number: u64) {
        let mut doubted = self.doubted.subscribe();
        // The sender lives as long as `self`.
        let _ = doubted.wait_for(|newest| *newest >= number).await;
    }

    /// A request with the user's token, signed in first where that is needed.
    pub async fn request<R>(&self, channel: &Channel, message: R) -> Result<Request<R>, Status> {
        let mut request = Request::new(message);
        if let Some(token) = self.token(channel).await? {
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }

    /// A stream's request; the member must have a leader, and ends the stream when it loses it.
    pub async fn stream<R>(&self, channel: &Channel, message: R) -> Result<Request<R>, Status> {
        let mut request = self.request(channel, message).await?;
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        Ok(request)
    }

    /// One call. `repeat` says that doing it twice is the same as doing it once.
    pub async fn call<R: Clone, T, F>(
        &self,
        repeat: bool,
        message: &R,
        call: impl Fn(Channel, Request<R>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let out = self.asked(repeat, message, call).await;
        self.meter.call(match &out {
            Ok(_) => Call::Answered,
            Err(StoreError::Unreachable { .. }) => Call::Unreachable,
            Err(_) => Call::Refused,
        });
        out
    }

    async fn asked<R: Clone, T, F>(
        &self,
        repeat: bool,
        message: &R,
        call: impl Fn(Channel, Request<R>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (mut left, mut signed_in) = (self.channels.len() + 1, false);
        loop {
            let (at, channel) = self.sure().await?;
            let mut shown = None;
            let one = async {
                let request = self.request(&channel, message.clone()).await?;
                shown = token_of(&request);
                call(channel.clone(), request).await
            };
            // The last one has all its time: what is large takes long everywhere.
            let status = match self.patiently(at, repeat && left > 1, one).await {
                Ok(response) => {
                    self.answered(at);
                    return Ok(response.into_inner());
                }
                Err(status) => status,
            };
            if stale_token(&status) && self.config.user.is_some() && !signed_in {
                signed_in = true;
                self.forget_token(shown.as_ref());
                continue;
            }
            if !elsewhere(&status) {
                self.answered(at);
                return Err(self.refused(at, &status));
            }
            self.look_past(at);
            left -= 1;
            let again = repeat || unconnected(&status);
            if left == 0 || !again {
                return Err(self.unreachable(at, &status, !again));
            }
        }
    }

    /// Waits for an answer. When its member says nothing for long another one is looked for, since
    /// one that is stopped or cut off takes connections and says nothing; what may be repeated is
    /// asked there once that one has kept the turn. A member that answers others is not silent, and
    /// where it has lost the turn gets it back before that: its answer is only long.
    async fn patiently<T>(
        &self,
        at: usize,
        repeat: bool,
        one: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut one = std::pin::pin!(one);
        let mut left = CALL_MAX;
        let late = || Status::deadline_exceeded("it did not answer within 3 s");
        loop {
            let others = self.answers(at);
            if let Ok(answer) = tokio::time::timeout(SLOW.min(left), &mut one).await {
                return answer;
            }
            left = left.saturating_sub(SLOW);
            match self.answers(at) == others {
                true => break,
                false if left.is_zero() => return Err(late()),
                false => {}
            }
        }
        self.look_past(at);
        tokio::select! {
            biased;
            answer = tokio::time::timeout(left, one) => answer.unwrap_or_else(|_| Err(late())),
            () = self.is_left(at), if repeat => Err(Status::cancelled("another one answers")),
        }
    }

    /// The token goes stale, when etcd forgot it or a password changed. One that was got since is
    /// kept.
    pub fn forget_token(&self, stale: Option<&Token>) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_ref() == stale {
            *token = None;
        }
    }

    async fn token(&self, channel: &Channel) -> Result<Option<Token>, Status> {
        let Some((name, password)) = &self.config.user else { return Ok(None) };
        let have = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if have.is_some() {
            return Ok(have);
        }
        let who = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = AuthClient::new(channel.clone()).authenticate(who).await?;
        let token = MetadataValue::try_from(answer.into_inner().token)
            .map_err(|_| Status::internal("etcd gave a token that is no header value"))?;
        // Several may sign in side by side, and each token is good at every member.
        let mut have = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(have.get_or_insert(token).clone()))
    }

    fn member(&self, at: usize) -> String {
        self.config.members.get(at).cloned().unwrap_or_default()
    }

    fn refused(&self, at: usize, status: &Status) -> StoreError {
        let member = self.member(at);
        let hint = match (status.code(), status.message()) {
            (Code::ResourceExhausted, m) if m.contains("space") => {
                "etcd is full: compact and defragment it, or raise --quota-backend-bytes"
            }
            (Code::InvalidArgument, m) if m.contains("too large") => {
                "the transaction is over etcd's --max-request-bytes: raise it, or split the objects"
            }
            (Code::InvalidArgument, m) if m.contains("too many operations") => {
                "start etcd with --max-txn-ops=128 or more"
            }
            (Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition, _)
            | (Code::InvalidArgument, _) => {
                "check the user, its password and its permission on the prefix"
            }
            _ => "see etcd's log",
        };
        StoreError::Refused { member, why: status.message().to_owned(), hint }
    }

    fn unreachable(&self, at: usize, status: &Status, unknown: bool) -> StoreError {
        let why = status.message().to_owned();
        let cause = unconnected_cause(status).unwrap_or(why);
        StoreError::Unreachable { member: self.member(at), why: cause, unknown }
    }
}

/// The token that a request shows.
pub(super) fn token_of<R>(request: &Request<R>) -> Option<Token> {
    request.metadata().get("token").cloned()
}

/// Whether another member may do better.
pub(super) fn elsewhere(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        || status.code() == Code::Unknown && status.source().is_some()
}

pub(super) fn stale_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains("invalid auth token")
}

pub(super) fn unconnected(status: &Status) -> bool {
    unconnected_cause(status).is_some()
}

fn unconnected_cause(status: &Status) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(err) = cause {
        if let Some(found) = err.downcast_ref::<Unconnected>() {
            return Some(found.source.to_string());
        }
        cause = err.source();
    }
    None
}

fn channel(member: &str, config: &EtcdConfig) -> Result<Channel, StoreError> {
    let uri: Uri = format!("http://{member}").parse().map_err(StoreError::storage)?;
    let endpoint = Endpoint::from(uri)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .keep_alive_while_idle(true);
    let (member, tls): (Arc<str>, _) = (member.into(), config.tls.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (member, tls) = (member.clone(), tls.clone());
        async move {
            let dialled = tokio::time::timeout(DIAL_MAX, dial(&member, tls)).await;
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within 2 s");
            match dialled.unwrap_or_else(|_| Err(late())) {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(source) => Err(Unconnected { member: member.to_string(), source }),
            }
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn dial(member: &str, tls: Option<Arc<rustls::ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(member).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests;
