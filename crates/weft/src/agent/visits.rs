// SPDX-License-Identifier: Apache-2.0
//! Visits to this host's pods that the server asks for, each in a call of its own over a
//! connection of its own: one whose client does not read holds up nothing else.

use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use weft_base::task::TaskGroup;
use weft_server::k8s::{Opened, PodStreams, StreamError};
use weft_xds::agent::Refusal;
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::visit::{VisitAsk, VisitUp};

use crate::visit;

/// Visits at a time; the server asks for no more.
const VISITS_MAX: usize = 128;

/// Answers questions for visits.
#[derive(Clone)]
pub struct Visits {
    client: AgentClient,
    /// There once the agent runs.
    streams: Arc<OnceLock<Arc<dyn PodStreams>>>,
    places: Arc<Semaphore>,
    tasks: TaskGroup,
}

// === impl Visits ===

impl Visits {
    pub fn new(client: AgentClient, tasks: &TaskGroup) -> Self {
        let places = Arc::new(Semaphore::new(VISITS_MAX));
        Self { client, streams: Arc::default(), places, tasks: tasks.clone() }
    }

    /// Who runs the pods, from now on.
    pub fn attach(&self, streams: Arc<dyn PodStreams>) {
        // Once per process.
        let _ = self.streams.set(streams);
    }

    /// Answers one question, for as long as its visit lasts.
    pub fn answer(&self, ask: VisitAsk) {
        let (visits, group) = (self.clone(), self.tasks.clone());
        self.tasks.spawn("visit", async move {
            let id = ask.id;
            tokio::select! {
                () = group.draining() => {}
                outcome = visits.have(ask) => if let Err(why) = outcome {
                    tracing::debug!(id, %why, "a visit ended early");
                },
            }
        });
    }

    async fn have(self, ask: VisitAsk) -> Result<(), Refusal> {
        let id = ask.id;
        let opened = self.open(ask).await;
        let (up, words) = mpsc::channel(visit::WORDS_MAX);
        let first = match &opened {
            Ok(_) => VisitUp::Ready(id),
            Err(error) => VisitUp::Failed(visit::failure(id, error)),
        };
        // It is the channel's first word.
        let _ = up.send(first).await;
        let down = self.client.apart().visit(words).await?;
        if let Ok((opened, _place)) = opened {
            visit::serve(id, opened, down, up).await;
        }
        Ok(())
    }

    async fn open(&self, ask: VisitAsk) -> Result<(Opened, OwnedSemaphorePermit), StreamError> {
        let not_now = |why: &str| StreamError::Unavailable(why.into());
        let busy = |_| not_now("as many visits as it may have are open; end some");
        let place = self.places.clone().try_acquire_owned().map_err(busy)?;
        let streams = self.streams.get().ok_or_else(|| not_now("its agent is starting"))?;
        Ok((streams.open(visit::asked(ask)).await?, place))
    }
}
