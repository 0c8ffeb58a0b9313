// SPDX-License-Identifier: Apache-2.0
//! What a host must run, followed in the World and told to it. One stream per host; it ends when
//! the host opens another or is removed.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_registry::catalog::Runnable;
use weft_xds::agent::{HostUpdate, Refusal};
use weft_xds::server::Peer;

use super::{HostDoor, Stream};
use crate::server::agency;
use crate::wire::HostView;

/// The World is looked at no more often than this.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Questions that may wait for the stream.
const ASKS_MAX: usize = 64;

type Updates = mpsc::Sender<Result<HostUpdate, Refusal>>;

/// Starts a host's stream and ends its older one.
pub fn start(
    door: &HostDoor,
    host: String,
    peer: Peer,
) -> mpsc::Receiver<Result<HostUpdate, Refusal>> {
    let (updates, stream) = mpsc::channel(4);
    let superseded = CancellationToken::new();
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let mut streams = door.streams.lock().unwrap_or_else(PoisonError::into_inner);
    streams.retain(|_, stream| !stream.over.is_cancelled());
    if let Some(older) = streams.insert(host.clone(), Stream { over: superseded.clone(), asks }) {
        older.over.cancel();
    }
    drop(streams);
    let (door, tasks) = (door.clone(), door.registry.tasks().clone());
    let group = tasks.clone();
    tasks.spawn("host stream", async move {
        let ended = tokio::select! {
            () = group.draining() => Refusal::Unavailable("the server is going away".into()),
            () = superseded.cancelled() => {
                Refusal::Unavailable("the host opened another stream".into())
            }
            () = updates.closed() => return superseded.cancel(),
            ended = follow(&door, &host, &peer, &updates) => ended,
            () = hand_over(asked, &updates) => Refusal::Unavailable("the host went away".into()),
        };
        superseded.cancel();
        // The host may be gone already.
        let _ = updates.try_send(Err(ended));
    });
    stream
}

/// Puts questions on the stream.
async fn hand_over(mut asked: mpsc::Receiver<HostUpdate>, updates: &Updates) {
    while let Some(ask) = asked.recv().await {
        // No part of any set: it is complete by itself, between two messages of an update too.
        if updates.send(Ok(ask)).await.is_err() {
            return;
        }
    }
    // Nobody asks any more, but the stream goes on.
    std::future::pending().await
}

/// Tells what changed until the host may not hear more, and says why.
async fn follow(door: &HostDoor, host: &str, peer: &Peer, updates: &Updates) -> Refusal {
    let mut worlds = door.registry.world();
    let (mut told, mut known) = (None::<HostView>, Runnable::default());
    loop {
        // A host that was removed meanwhile is told no more.
        if let Err(refusal) = door.caller(peer) {
            return refusal;
        }
        let world = worlds.load();
        let checks = agency::checks(&world, host, &mut known);
        let view = HostView::new(&agency::desired(&world, host), checks);
        if told.as_ref() != Some(&view) {
            for update in view.updates(told.as_ref(), world.revision()) {
                if updates.send(Ok(update)).await.is_err() {
                    return Refusal::Unavailable("the host went away".into());
                }
            }
            told = Some(view);
        }
        tokio::time::sleep(PAUSE).await;
        if !worlds.changed().await {
            return Refusal::Unavailable("the server is going away".into());
        }
    }
}
