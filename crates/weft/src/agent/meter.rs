// SPDX-License-Identifier: Apache-2.0
//! What this host's pods use, reported for as long as the server asks.

use std::time::Duration;

use tokio::sync::watch;
use weft_base::clock::Mono;
use weft_base::task::TaskGroup;
use weft_xds::agent::client::AgentClient;

use crate::server::usage::{EVERY, FIRST, Looks};

/// Longest that one question keeps it going.
const GO_ON_MAX: Duration = Duration::from_secs(120);

/// Knows for how long it is wanted.
#[derive(Debug, Default)]
pub struct HostMeter {
    /// How long from when it was said; the looks begin there.
    wanted: watch::Sender<Duration>,
}

// === impl HostMeter ===

impl HostMeter {
    /// The server wants figures for that long from now on.
    pub fn go_on(&self, wanted: Duration) {
        self.wanted.send_replace(wanted.min(GO_ON_MAX));
    }

    pub fn start(&self, looks: Looks, client: AgentClient, tasks: &TaskGroup) {
        let (wanted, group) = (self.wanted.subscribe(), tasks.clone());
        tasks.spawn("usage", async move {
            tokio::select! {
                () = group.draining() => {}
                () = report(looks, client, wanted) => {}
            }
        });
    }
}

async fn report(looks: Looks, client: AgentClient, mut wanted: watch::Receiver<Duration>) {
    let mut until = Mono::default();
    loop {
        if wanted.changed().await.is_err() {
            return;
        }
        until = until.max(looks.now().plus(*wanted.borrow_and_update()));
        looks.begin_anew();
        if looks.look().await.is_none() {
            return;
        }
        tokio::time::sleep(FIRST).await;
        while looks.now() < until {
            let Some(look) = looks.look().await else { return };
            if let Err(why) = client.report_usage(look).await {
                tracing::debug!(%why, "the server did not hear what pods use");
            }
            tokio::time::sleep(EVERY).await;
            if wanted.has_changed().is_ok_and(|c| c) {
                until = until.max(looks.now().plus(*wanted.borrow_and_update()));
            }
        }
    }
}
