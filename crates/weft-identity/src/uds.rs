// SPDX-License-Identifier: Apache-2.0
//! How a proxy gets its SVID from its machine's agent: the frames on the Unix socket, and the
//! client that fetches one and keeps it fresh.
//!
//! The server half is in `weft-agent`, which knows the caller by its process, not by what it says.
//! One connection carries one request and one reply, each a length (4 bytes, big endian) and JSON.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;

use crate::ca::{CaError, Issued, files};
use crate::join;
use crate::spiffe::TrustDomain;
use crate::svid::{Bundle, KeyRequest, Svid, SvidError};

/// Largest frame either way, bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Time for one exchange.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a starting proxy waits for its first SVID.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it waits when there is one of the process before.
const KEPT_AFTER: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Timers are cut to this, so that a machine that slept or whose clock jumped notices.
const NAP_MAX: Duration = Duration::from_secs(30);

/// Why no SVID came over the socket.
#[derive(Debug, Error)]
pub enum UdsError {
    #[error("the agent's socket {path} cannot be used")]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("the connection to the agent broke")]
    Io(#[from] std::io::Error),
    #[error("the agent did not answer within {} s", EXCHANGE_TIMEOUT.as_secs())]
    Timeout,
    #[error(
        "a frame of {0} bytes came over the agent's socket; at most {FRAME_BYTES_MAX} are read"
    )]
    TooLarge(usize),
    #[error("a frame on the agent's socket is not what is spoken there: {0}")]
    Frame(#[from] serde_json::Error),
    #[error("the agent's answer holds bad base64")]
    Base64(#[from] base64::DecodeError),
    #[error("the agent gives no identity: {0}")]
    Refused(String),
    #[error("the agent cannot sign now: {0}")]
    Unavailable(String),
    #[error("the agent's answer is no SVID")]
    Svid(#[from] SvidError),
    #[error("the agent's answer names a bad trust domain")]
    TrustDomain(#[from] crate::spiffe::SpiffeError),
}

/// What a proxy asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SvidRequest {
    pub version: u32,
    /// PKCS#10, DER, base64. Names nobody.
    pub csr: String,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum SvidReply {
    Issued {
        trust_domain: TrustDomain,
        chain: Vec<String>,
        bundle: Vec<String>,
    },
    /// Final: the caller is not a process that has an identity, or its request is bad.
    Refused {
        reason: String,
    },
    /// The signer cannot be reached; ask again.
    Unavailable {
        reason: String,
    },
}

/// Where a proxy's SVIDs come from, and where the newest is kept.
#[derive(Debug)]
struct Origin {
    path: PathBuf,
    kept: Option<Arc<Kept>>,
}

/// The file of the newest SVID. Threads of their own write it, as a start does not wait for a disk;
/// whatever their order, it ends as the latest turn has it.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    turns: AtomicU64,
    /// The turn that the file has now.
    has: Mutex<u64>,
}

/// When to renew, as a pure machine: due time, then back-off while renewing fails.
#[derive(Debug)]
pub struct Renewal {
    due_ms: u64,
    /// Before that the certificate is refused, whatever is left of it: the clock was set back.
    not_before_ms: u64,
    failures: u32,
    rng: Rng,
}

// === impl SvidRequest ===

impl SvidRequest {
    pub fn new(csr: &[u8]) -> Self {
        Self { version: 1, csr: STANDARD.encode(csr) }
    }

    /// The request's bytes.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn csr(&self) -> Result<Vec<u8>, UdsError> {
        Ok(STANDARD.decode(&self.csr)?)
    }
}

// === impl SvidReply ===

impl SvidReply {
    pub fn issued(issued: &Issued, bundle: &Bundle) -> Self {
        let text =
            |certs: &[CertificateDer<'_>]| certs.iter().map(|c| STANDARD.encode(c)).collect();
        Self::Issued {
            trust_domain: bundle.trust_domain().clone(),
            chain: text(&issued.chain),
            bundle: text(bundle.roots()),
        }
    }

    /// Joins the reply with the key it was asked for.
    ///
    /// # Errors
    /// When it is a refusal, or does not fit the key.
    pub fn complete(self, request: KeyRequest) -> Result<Svid, UdsError> {
        match self {
            Self::Issued { trust_domain, chain, bundle } => {
                let bundle = Bundle::new(trust_domain, certificates(&bundle)?)?;
                Ok(request.complete(certificates(&chain)?, bundle)?)
            }
            Self::Refused { reason } => Err(UdsError::Refused(reason)),
            Self::Unavailable { reason } => Err(UdsError::Unavailable(reason)),
        }
    }
}

// === impl Renewal ===

impl Renewal {
    pub fn new(svid: &Svid, now_ms: u64, mut rng: Rng) -> Self {
        let not_before_ms = svid.leaf().not_before_ms;
        Self { due_ms: svid.renew_at_ms(now_ms, &mut rng), not_before_ms, failures: 0, rng }
    }

    /// How long to wait before looking again; zero when it is time to renew.
    pub fn wait(&self, now_ms: u64) -> Duration {
        if now_ms < self.not_before_ms {
            return Duration::ZERO;
        }
        Duration::from_millis(self.due_ms.saturating_sub(now_ms)).min(NAP_MAX)
    }

    pub fn renewed(&mut self, svid: &Svid, now_ms: u64) {
        self.failures = 0;
        self.not_before_ms = svid.leaf().not_before_ms;
        self.due_ms = svid.renew_at_ms(now_ms, &mut self.rng);
        if now_ms < self.not_before_ms {
            // The authority's clock differs from this one: asking at once would not help.
            self.failed(now_ms);
        }
    }

    /// Puts the next attempt off, twice as long each time, with jitter.
    pub fn failed(&mut self, now_ms: u64) {
        let wait = backoff(self.failures, &mut self.rng).max(Duration::from_secs(1));
        self.failures += 1;
        self.not_before_ms = 0;
        self.due_ms = now_ms + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    }
}

/// Fetches the first SVID and keeps it fresh until the task group ends. Readers of the snapshot
/// always see the last good one. `kept` is a private file for the newest: a process that starts
/// while nobody can sign begins with that of the one before it.
///
/// # Errors
/// When the agent refuses, or gives nothing within 30 s and nothing is kept.
pub async fn fetch_and_renew(
    path: PathBuf,
    kept: Option<PathBuf>,
    clock: Clock,
    tasks: &TaskGroup,
) -> Result<Snapshot<Svid>, UdsError> {
    let mut rng = Rng::from_system();
    let from = Origin { path, kept: kept.map(|path| Arc::new(Kept::new(path))) };
    let (first, is_old) = match from.kept(&clock) {
        None => (from.fetch_first(&clock, &mut rng).await?, false),
        Some(old) => {
            let fetching = from.fetch_first(&clock, &mut rng);
            match tokio::time::timeout(KEPT_AFTER, fetching).await {
                Ok(Ok(first)) => (first, false),
                Ok(Err(why @ UdsError::Refused(_))) => return Err(why),
                Ok(Err(_)) | Err(_) => (old, true),
            }
        }
    };
    let mut renewal = Renewal::new(&first, clock.wall_ms(), rng);
    if is_old {
        renewal.failed(clock.wall_ms());
        let left_s = first.remaining(clock.wall_ms()).as_secs();
        tracing::warn!(left_s, "nobody signs now; the identity kept by the process before is used");
    }
    let (publisher, reader) = snapshot(first);
    let (ended, renewing) = (tasks.clone(), keep_fresh(from, clock, publisher, renewal));
    tasks.spawn("svid renewal", async move {
        tokio::select! {
            () = ended.draining() => {}
            () = renewing => {}
        }
    });
    Ok(reader)
}

/// One exchange: a new key, its request, the agent's answer.
///
/// # Errors
/// When the agent cannot be reached or gives no identity.
pub async fn fetch(path: &Path) -> Result<Svid, UdsError> {
    Origin { path: path.to_owned(), kept: None }.fetch().await
}

// === impl Origin ===

impl Origin {
    /// The SVID that the process before kept, while it is of use.
    fn kept(&self, clock: &Clock) -> Option<Svid> {
        let kept = self.kept.as_deref()?;
        match join::kept(&kept.path) {
            Ok(svid) => svid.filter(|svid| svid.leaf().is_valid_at(clock.wall_ms())),
            Err(why) => {
                tracing::warn!(error = %chain(&why), "a kept identity is not used");
                None
            }
        }
    }

    /// One exchange, whose SVID is kept.
    async fn fetch(&self) -> Result<Svid, UdsError> {
        let request = KeyRequest::generate()?;
        let path = &self.path;
        let exchange = async {
            let mut stream = UnixStream::connect(path)
                .await
                .map_err(|source| UdsError::Socket { path: path.clone(), source })?;
            write_frame(&mut stream, &SvidRequest::new(request.csr())).await?;
            read_frame::<_, SvidReply>(&mut stream).await
        };
        let reply = tokio::time::timeout(EXCHANGE_TIMEOUT, exchange)
            .await
            .map_err(|_| UdsError::Timeout)??;
        let key_pem = request.key_pem();
        let got = reply.complete(request);
        match (&got, &self.kept) {
            (Ok(svid), Some(kept)) => drop(kept.end_as(Some(join::text(&key_pem, svid)))),
            (Err(UdsError::Refused(_)), Some(kept)) => {
                // Whoever may not have one any more has no old one either.
                let _ = kept.end_as(None).await;
            }
            _ => {}
        }
        got
    }

    async fn fetch_first(&self, clock: &Clock, rng: &mut Rng) -> Result<Svid, UdsError> {
        let start = clock.now();
        let mut tries = 0;
        loop {
            let why = match self.fetch().await {
                Ok(svid) => return Ok(svid),
                Err(why) => why,
            };
            let late = clock.now().since(start) >= FIRST_TIMEOUT;
            if late || matches!(why, UdsError::Refused(_) | UdsError::Svid(_)) {
                return Err(why);
            }
            tracing::debug!(error = %why, "no SVID yet");
            tokio::time::sleep(backoff(tries, rng).min(Duration::from_secs(2))).await;
            tries += 1;
        }
    }
}

// === impl Kept ===

impl Kept {
    fn new(path: PathBuf) -> Self {
        Self { path, turns: AtomicU64::new(0), has: Mutex::new(0) }
    }

    /// From now on the file is to hold this; `None` is no file.
    fn end_as(self: &Arc<Self>, text: Option<String>) -> JoinHandle<()> {
        let (kept, turn) = (self.clone(), self.turn());
        tokio::task::spawn_blocking(move || {
            if let Err(why) = kept.put(turn, text.as_deref()) {
                let file = kept.path.display();
                let said = "what is kept for a restart is an older answer: make the directory \
                            writable, or remove the file";
                tracing::warn!(error = %chain(&why), %file, "{said}");
            }
        })
    }

    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn put(&self, turn: u64, text: Option<&str>) -> Result<(), CaError> {
        let mut has = self.has.lock().unwrap_or_else(PoisonError::into_inner);
        if turn < *has {
            return Ok(());
        }
        *has = turn;
        match text {
            Some(text) => join::write(&self.path, text),
            None => files::remove(&self.path),
        }
    }
}

/// Reads one frame. Not cancel-safe: a frame half read is lost with the connection.
///
/// # Errors
/// When the connection breaks, the frame is too large or not of this form.
pub async fn read_frame<S, T>(stream: &mut S) -> Result<T, UdsError>
where
    S: AsyncRead + Unpin,
    T: DeserializeOwned,
{
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(UdsError::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one frame. Not cancel-safe.
///
/// # Errors
/// When the connection breaks or the frame is too large.
pub async fn write_frame<S, T>(stream: &mut S, frame: &T) -> Result<(), UdsError>
where
    S: AsyncWrite + Unpin,
    T: Serialize,
{
    let body = serde_json::to_vec(frame)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > FRAME_BYTES_MAX {
        return Err(UdsError::TooLarge(body.len()));
    }
    stream.write_u32(length).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;
    Ok(())
}

async fn keep_fresh(from: Origin, clock: Clock, publisher: Publisher<Svid>, mut renewal: Renewal) {
    loop {
        let wait = renewal.wait(clock.wall_ms());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            continue;
        }
        match from.fetch().await {
            Ok(svid) => {
                renewal.renewed(&svid, clock.wall_ms());
                tracing::info!(id = %svid.id(), serial = svid.leaf().serial, "SVID renewed");
                publisher.publish(svid);
            }
            Err(why) => {
                let left = publisher.load().remaining(clock.wall_ms());
                renewal.failed(clock.wall_ms());
                tracing::warn!(
                    error = %chain(&why),
                    left_s = left.as_secs(),
                    "the SVID could not be renewed; the present one is used until it ends"
                );
            }
        }
    }
}

fn backoff(tries: u32, rng: &mut Rng) -> Duration {
    let base = BACKOFF_MIN.saturating_mul(1 << tries.min(12)).min(BACKOFF_MAX);
    rng.jitter(base, 20)
}

fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, UdsError> {
    texts.iter().map(|t| Ok(CertificateDer::from(STANDARD.decode(t)?))).collect()
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    out
}

#[cfg(test)]
mod tests;
