// SPDX-License-Identifier: Apache-2.0
//! One watch of everything under the prefix, which feeds the history that all watches here read.
//! It begins again where it was when a member goes away; when etcd no longer holds that place, the
//! history begins anew and every watch is told to list again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::MissedTickBehavior;
use tonic::{Status, Streaming};
use weft_base::rng::Rng;
use weft_proto::etcdserverpb::watch_client::WatchClient;
use weft_proto::etcdserverpb::watch_request::RequestUnion;
use weft_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};

use super::Inner;
use super::link::{MESSAGE_BYTES_MAX, SLOW, Token, token_of};
use super::wire::{revision, signed};
use crate::{Event, Revision};

const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_millis(500);
/// How long a member may take to begin a watch.
const BEGIN_MAX: Duration = Duration::from_secs(3);

/// Why one stream ended.
enum End {
    /// Begin again where it was.
    Lost(String),
    /// etcd no longer holds the place.
    Compacted(Revision),
    /// etcd's log is behind what was read from it, or another cluster's: it is another log.
    Another(Revision),
}

/// Follows for ever.
pub(super) async fn follow(inner: Arc<Inner>) {
    let mut rng = Rng::from_system();
    let (mut pause, mut broke) = (AGAIN_FIRST, false);
    loop {
        let before = inner.head();
        let mut begun = false;
        match once(&inner, broke, &mut begun).await {
            End::Compacted(at) => {
                inner.link.meter.compaction_met();
                broke = false;
                tracing::warn!(
                    revision = at.0,
                    "etcd compacted what was not read yet; all watches list again"
                );
                inner.restart(at);
                continue;
            }
            End::Another(at) => {
                tracing::error!(
                    had = before.0,
                    has = at.0,
                    "etcd has another log than before (was it restored from a backup?): weft must \
                     be started again to read it anew; no change is seen until then"
                );
                inner.history.close();
                return;
            }
            End::Lost(why) => {
                // One that no member began is no end of anything.
                if begun {
                    inner.link.meter.broke();
                    broke = true;
                }
                tracing::info!(%why, "the watch of etcd ended and begins again");
            }
        }
        if inner.head() > before {
            pause = AGAIN_FIRST;
        }
        tokio::time::sleep(rng.jitter(pause, 50)).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

/// Follows one stream to its end, if one is `begun`; `again` where the one before broke off.
async fn once(inner: &Arc<Inner>, again: bool, begun: &mut bool) -> End {
    match inner.log_now().await {
        Ok((now, cluster)) if now < inner.head() || cluster != inner.cluster => {
            return End::Another(now);
        }
        Ok(_) => {}
        Err(err) => return End::Lost(err.to_string()),
    }
    // Only now: asking may have gone on to another member.
    let Some((at, channel)) = inner.link.channel() else { return End::Lost("no member".into()) };
    let mut shown = None;
    let answer = tokio::time::timeout(BEGIN_MAX, async {
        // The sending side stays open: etcd ends a watch with it.
        let requests = stream::iter([create(inner)]).chain(stream::pending());
        let request = inner.link.stream(&channel, requests).await?;
        shown = token_of(&request);
        let mut client =
            WatchClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        client.watch(request).await
    });
    let answer = answer.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
    let mut responses = match answer {
        Ok(responses) => responses.into_inner(),
        Err(status) => return lost(inner, at, &status, shown.as_ref()),
    };
    *begun = true;
    let number = inner.link.begin_stream(at);
    if again {
        inner.link.meter.resumed();
    }
    let doubted = inner.link.is_doubted(number);
    let mut doubted = std::pin::pin!(doubted);
    let mut held = Vec::new();
    let (mut beat, mut due) = (tokio::time::interval(SLOW), Revision(0));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = message(&mut responses) => match next {
                Ok(response) => if let Some(end) = take(inner, &response, &mut held) {
                    return end;
                },
                Err(status) => return lost(inner, at, &status, shown.as_ref()),
            },
            _ = beat.tick() => {
                // Its member may be cut off while calls go to another.
                if due > inner.head() {
                    inner.link.look();
                }
                due = Revision(inner.awaited.load(Ordering::Acquire));
            }
            () = &mut doubted => {
                inner.link.pass(at);
                return End::Lost("its member does not answer, or it does not show writes".into());
            }
        }
    }
}

async fn message(responses: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Status> {
    responses.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))
}

fn lost(inner: &Inner, at: usize, status: &Status, shown: Option<&Token>) -> End {
    if status.message().contains("auth token") {
        inner.link.forget_token(shown);
    } else {
        inner.link.pass(at);
    }
    End::Lost(status.message().to_owned())
}

/// Takes one response over into the history. One without events tells that there are none up to
/// its revision: etcd says so in the order of events, to a watch that is not behind. A large one
/// comes in fragments, which may end within a revision: that one is held until it is whole.
fn take(inner: &Inner, response: &WatchResponse, held: &mut Vec<Event>) -> Option<End> {
    let now = response.header.as_ref().map_or(Revision(0), |h| revision(h.revision));
    if response.compact_revision > 0 {
        return Some(End::Compacted(revision(response.compact_revision)));
    }
    if response.canceled {
        return Some(End::Lost(response.cancel_reason.clone()));
    }
    if response.created {
        // A member that lags behind tells a revision of the past.
        return None;
    }
    held.extend(response.events.iter().filter_map(|e| inner.names.event(e)));
    let upto = match response.events.last().and_then(|e| e.kv.as_ref()) {
        Some(kv) => revision(kv.mod_revision),
        None => now,
    };
    if !response.fragment {
        inner.append(upto, std::mem::take(held));
    } else if let Some(whole) = upto.0.checked_sub(1) {
        let begun = held.partition_point(|e| e.revision < upto);
        let begun = held.split_off(begun);
        inner.append(Revision(whole), std::mem::replace(held, begun));
    }
    None
}

fn create(inner: &Inner) -> WatchRequest {
    let (key, range_end) = inner.names.all();
    let start_revision = signed(inner.head().next().0);
    let create = WatchCreateRequest {
        key,
        range_end,
        start_revision,
        progress_notify: true,
        prev_kv: true,
        fragment: true,
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}
