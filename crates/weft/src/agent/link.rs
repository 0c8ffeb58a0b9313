// SPDX-License-Identifier: Apache-2.0
//! The agent's link to a server elsewhere: `weft.agent.v1` behind the same trait as the link
//! inside one process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{mpsc, oneshot};
use weft_agent::agent::Agent;
use weft_agent::checks::CheckReport;
use weft_agent::link::{BoxFuture, LinkError, PodNote, PodReport, ServerLink, SignAsk};
use weft_agent::logs::LogReader;
use weft_agent::pod::PodKey;
use weft_base::clock::Clock;
use weft_base::task::TaskGroup;
use weft_identity::ca::Issued;
use weft_identity::{Bundle, Leaf, TrustDomain};
use weft_kinds::views::catalog::Status;
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{
    self as wire, CheckResult, CheckStatus, HostUpdate, LogAsk, LogPiece, LogWhat, PodRef, Refusal,
    Wait,
};

use super::identity;
use super::meter::HostMeter;
use super::outbox::{BATCH_MAX, Memory};
use super::visits::Visits;
use crate::server::streams::AgentStreams;
use crate::server::usage::Looks;
use crate::wire::read_log_query;

/// Reports that may wait for the sender; each pod has one at a time.
const WAITING_MAX: usize = 1024;
/// Notes that may wait; more are dropped.
const NOTES_MAX: usize = 256;
/// One question about an acknowledgement lasts this long at most.
const ACK_ROUND: Duration = Duration::from_secs(20);
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Pieces of one log on their way.
const LOG_PIECES_MAX: usize = 8;
const PAUSE: Duration = Duration::from_millis(500);

/// The link. Its connection is made anew whenever it was lost.
pub struct RemoteLink {
    client: AgentClient,
    /// The objects that pods' names mean, as the server said last.
    uids: Arc<Mutex<HashMap<PodKey, Arc<str>>>>,
    reports: mpsc::Sender<Job>,
    notes: mpsc::Sender<wire::PodNote>,
    /// Whose pods' output is asked for; there once it runs.
    agent: OnceLock<Agent>,
    visits: Visits,
    meter: HostMeter,
    tasks: TaskGroup,
}

enum Job {
    Report(wire::PodReport, oneshot::Sender<Result<(), Refusal>>),
    /// Tell everything again.
    All(oneshot::Sender<Result<(), Refusal>>),
}

// === impl RemoteLink ===

impl RemoteLink {
    pub fn start(client: AgentClient, tasks: &TaskGroup) -> Self {
        let (reports, jobs) = mpsc::channel(WAITING_MAX);
        let (notes, waiting) = mpsc::channel(NOTES_MAX);
        tasks.spawn("pod reports", send(client.clone(), jobs));
        let (telling, group) = (client.clone(), tasks.clone());
        tasks.spawn("pod notes", async move {
            tokio::select! {
                () = group.draining() => {}
                () = tell(telling, waiting) => {}
            }
        });
        let (uids, agent, tasks) = (Arc::default(), OnceLock::new(), tasks.clone());
        let visits = Visits::new(client.clone(), &tasks);
        Self { client, uids, reports, notes, agent, visits, meter: HostMeter::default(), tasks }
    }

    /// The pods that the server placed here, by their objects.
    pub fn know(&self, uids: HashMap<PodKey, Arc<str>>) {
        *self.uids.lock().unwrap_or_else(PoisonError::into_inner) = uids;
    }

    /// The agent that runs the pods, from now on.
    pub fn attach(&self, agent: &Agent, clock: &Clock) {
        // Once per process.
        let _ = self.agent.set(agent.clone());
        self.visits.attach(Arc::new(AgentStreams(agent.clone())));
        let looks = Looks::new(agent.clone(), clock.clone());
        self.meter.start(looks, self.client.clone(), &self.tasks);
    }

    /// Answers the questions of an update, if these are what it is for.
    pub fn answer(&self, update: &mut HostUpdate) -> bool {
        let (logs, visits) = (std::mem::take(&mut update.logs), std::mem::take(&mut update.visits));
        let measure = std::mem::take(&mut update.measure);
        let none = logs.is_empty() && visits.is_empty() && measure.is_zero();
        logs.into_iter().for_each(|ask| self.send_log(ask));
        visits.into_iter().for_each(|ask| self.visits.answer(ask));
        if !measure.is_zero() {
            self.meter.go_on(measure);
        }
        !none
    }

    /// Sends output that the server asked for, until it ends or nobody reads it.
    fn send_log(&self, ask: LogAsk) {
        let opened = self.open_log(&ask);
        // Who reads slowly holds up nothing else.
        let (client, id) = (self.client.apart(), ask.id);
        let (pieces, stream) = mpsc::channel(LOG_PIECES_MAX);
        let group = self.tasks.clone();
        self.tasks.spawn("log", async move {
            tokio::select! {
                () = group.draining() => {}
                () = read_log(opened, id, pieces) => {}
            }
        });
        self.tasks.spawn("log sender", async move {
            if let Err(why) = client.send_log(stream).await {
                tracing::debug!(%why, "a log is not read any more");
            }
        });
    }

    fn open_log(&self, ask: &LogAsk) -> Result<LogReader, LogWhat> {
        let pod = PodKey::new(&ask.pod.namespace, &ask.pod.name);
        let failed = |why: &dyn fmt::Display| LogWhat::Failed(why.to_string());
        let query = read_log_query(&ask.query).map_err(|e| failed(&e))?;
        let agent = self.agent.get().ok_or_else(|| failed(&"the agent is starting"))?;
        agent.read_log(&pod, &ask.container, &query).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                LogWhat::NotThere(format!("container {}: {error}", ask.container))
            }
            _ => failed(&error),
        })
    }

    /// Tells the server the last of every pod again.
    ///
    /// # Errors
    /// When it could not be told all.
    pub async fn tell_all(&self) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let ended = || Refusal::Unavailable("the agent is ending".into());
        self.reports.send(Job::All(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    fn reference(&self, pod: &PodKey) -> Option<PodRef> {
        let uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        Some(reference(pod, uids.get(pod)?))
    }
}

impl ServerLink for RemoteLink {
    fn report_pod(&self, report: PodReport) -> BoxFuture<Result<(), LinkError>> {
        let reports = self.reports.clone();
        Box::pin(async move {
            let report = wire::PodReport {
                pod: reference(&report.pod, &report.uid),
                status: report.status.to_string().into_bytes(),
                finished: report.finished,
            };
            let (reply, answer) = oneshot::channel();
            let ended = || LinkError::Unavailable("the agent is ending".into());
            reports.send(Job::Report(report, reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?.map_err(link_error)
        })
    }

    fn note(&self, note: PodNote) {
        let pod = reference(&note.pod, &note.uid);
        let (reason, message) = (note.reason.to_owned(), note.message);
        let note = wire::PodNote { pod, warning: note.warning, reason, message };
        if self.notes.try_send(note).is_err() {
            tracing::debug!("an event is dropped");
        }
    }

    fn sign(&self, ask: SignAsk) -> BoxFuture<Result<(Issued, Bundle), LinkError>> {
        let (client, pod) = (self.client.clone(), self.reference(&ask.pod));
        Box::pin(async move {
            let pod = pod.ok_or_else(|| {
                LinkError::Refused(format!("the server placed no pod {} here", ask.pod))
            })?;
            let (certificate, domain) = client.sign(pod, ask.csr).await.map_err(link_error)?;
            let not_after_ms = certificate.not_after_ms;
            let broken = |e: &dyn fmt::Display| LinkError::Refused(e.to_string());
            let domain = TrustDomain::new(&domain).map_err(|e| broken(&e))?;
            let (chain, bundle) =
                identity::certificates(certificate, domain).map_err(|e| broken(&e))?;
            let leaf = chain.first().ok_or_else(|| broken(&"the server sent no certificate"))?;
            let id = Leaf::read(leaf).map_err(|e| broken(&e))?.id;
            Ok((Issued { id, chain, not_after_ms }, bundle))
        })
    }

    fn inbound_acked(&self, pod: PodKey) -> BoxFuture<()> {
        let (client, uids) = (self.client.clone(), self.uids.clone());
        Box::pin(async move {
            loop {
                let uid = uids.lock().unwrap_or_else(PoisonError::into_inner).get(&pod).cloned();
                if let Some(uid) = uid {
                    let what = Wait::Inbound(reference(&pod, &uid));
                    match client.wait(what, ACK_ROUND).await {
                        Ok(true) => return,
                        Ok(false) => continue,
                        Err(why) => tracing::debug!(%pod, %why, "no word of the sidecar"),
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    fn drained(&self, pod: PodKey) -> BoxFuture<()> {
        let (client, pod) = (self.client.clone(), self.reference(&pod));
        Box::pin(async move {
            let Some(pod) = pod else { return };
            if let Err(why) = client.wait(Wait::Drained(pod), DRAIN_MAX).await {
                tracing::debug!(%why, "nobody knows whether all have heard that a pod goes");
            }
        })
    }

    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        let client = self.client.clone();
        Box::pin(async move {
            let result = |r: CheckReport| CheckResult {
                namespace: r.key.namespace.to_string(),
                id: r.key.id.to_string(),
                status: match r.status {
                    Status::Passing => CheckStatus::Passing,
                    Status::Warning => CheckStatus::Warning,
                    Status::Critical => CheckStatus::Critical,
                },
                output: r.output,
            };
            let results = reports.into_iter().map(result).collect();
            client.report_checks(results).await.map_err(link_error)
        })
    }
}

impl fmt::Debug for RemoteLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RemoteLink")
    }
}

/// Reads a log into a channel; it ends with the reader at the other end.
async fn read_log(opened: Result<LogReader, LogWhat>, id: u64, pieces: mpsc::Sender<LogPiece>) {
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(what) => {
            let _ = pieces.send(LogPiece { id, what }).await;
            return;
        }
    };
    // The first word names the question, also when there is no output yet.
    let mut what = LogWhat::Data(Vec::new());
    while pieces.send(LogPiece { id, what }).await.is_ok() {
        let next = tokio::select! {
            next = reader.next() => next,
            () = pieces.closed() => return,
        };
        what = match next {
            Ok(Some(piece)) => LogWhat::Data(piece),
            Ok(None) => return,
            Err(error) => LogWhat::Failed(error.to_string()),
        };
    }
}

/// Sends reports, many in one message when many wait, until nobody can report any more. It is
/// not drained with the agent: the last words of its pods come after that.
async fn send(client: AgentClient, mut jobs: mpsc::Receiver<Job>) {
    let mut memory = Memory::default();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while jobs.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut reports = Vec::new();
        for job in batch.drain(..) {
            match job {
                Job::Report(report, reply) => {
                    memory.note(&report);
                    reports.push((report, reply));
                }
                Job::All(reply) => {
                    let _ = reply.send(send_all(&client, &mut memory).await);
                }
            }
        }
        send_some(&client, &mut memory, reports).await;
    }
}

type Waiting = (wire::PodReport, oneshot::Sender<Result<(), Refusal>>);

async fn send_some(client: &AgentClient, memory: &mut Memory, reports: Vec<Waiting>) {
    if reports.is_empty() {
        return;
    }
    let all: Vec<_> = reports.iter().map(|(report, _)| report.clone()).collect();
    let outcome = client.report_pods(all, Vec::new()).await;
    let mixed = matches!(&outcome, Err(refusal) if !refusal.is_passing()) && reports.len() > 1;
    for (report, reply) in reports {
        // One of them is refused; each hears its own answer.
        let own = match mixed {
            true => client.report_pods(vec![report.clone()], Vec::new()).await,
            false => outcome.clone(),
        };
        memory.answered(&report, &own);
        // Who asked may be gone.
        let _ = reply.send(own);
    }
}

async fn send_all(client: &AgentClient, memory: &mut Memory) -> Result<(), Refusal> {
    for batch in memory.everything() {
        let outcome = client.report_pods(batch.clone(), Vec::new()).await;
        match outcome {
            Ok(()) => {}
            Err(refusal) if refusal.is_passing() => return Err(refusal),
            Err(_) => {
                for report in batch {
                    let own = client.report_pods(vec![report.clone()], Vec::new()).await;
                    memory.answered(&report, &own);
                }
            }
        }
    }
    Ok(())
}

/// Hands notes on; losing some is no harm.
async fn tell(client: AgentClient, mut notes: mpsc::Receiver<wire::PodNote>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while notes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if let Err(why) = client.report_pods(Vec::new(), std::mem::take(&mut batch)).await {
            tracing::debug!(%why, "events were lost");
        }
    }
}

fn reference(pod: &PodKey, uid: &str) -> PodRef {
    PodRef { namespace: pod.namespace.to_string(), name: pod.name.to_string(), uid: uid.to_owned() }
}

fn link_error(refusal: Refusal) -> LinkError {
    match refusal.is_passing() {
        true => LinkError::Unavailable(refusal.to_string()),
        false => LinkError::Refused(refusal.to_string()),
    }
}
