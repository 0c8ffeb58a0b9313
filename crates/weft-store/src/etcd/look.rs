// SPDX-License-Identifier: Apache-2.0
//! Looks for a member that answers, when the one that is asked does not: all are asked side by side
//! for what only a majority knows, so that neither one that is cut off nor one that waits for an
//! election is taken. Told by [`super::link`] that it is wanted; never writes.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use weft_proto::etcdserverpb::RangeRequest;
use weft_proto::etcdserverpb::kv_client::KvClient;

use super::link::{CALL_MAX, KEEP, Link, Search, elsewhere, stale_token, token_of, unconnected};

/// A member that could not say is asked again after this.
const AGAIN: Duration = Duration::from_millis(100);

/// What came of asking a member.
enum Said {
    /// It knows the majority, or refused for a reason that callers shall see.
    Answered,
    /// It takes no connection.
    Unconnected,
    Nothing,
}

/// Looks whenever that is wanted, for ever. `ask` is a read that a majority has to confirm.
pub(super) async fn out(link: Arc<Link>, ask: RangeRequest) {
    loop {
        link.is_wanted().await;
        search(&link, &ask).await;
    }
}

/// Until some member answers.
async fn search(link: &Link, ask: &RangeRequest) {
    let (stream, with) = link.followed();
    let before = link.answers(with);
    let members = 0..link.members();
    let mut answers: FuturesUnordered<_> =
        members.map(|at| say(link, at, ask, Duration::ZERO)).collect();
    let mut unconnected = BTreeSet::new();
    let mut heard = BTreeSet::new();
    while let Some((at, said)) = answers.next().await {
        match said {
            Said::Answered => {
                heard.insert(at);
                break;
            }
            Said::Unconnected => unconnected.insert(at),
            Said::Nothing => unconnected.remove(&at),
        };
        link.searching(match unconnected.len() == link.members() {
            true => Search::Vain,
            false => Search::On,
        });
        answers.push(say(link, at, ask, AGAIN));
    }
    let Some(first) = heard.first().copied() else { return };
    // Calls stay with the member that the log is followed at: what cuts it off is seen by calls. It
    // may answer these while its answer to the look is behind a long one.
    let answers_calls = || link.answers(with) != before;
    let stays = heard.contains(&with) || answers_calls();
    link.found(if stays && link.followed().0 == stream { with } else { first });
    let answers = async {
        while !heard.contains(&with)
            && let Some((at, said)) = answers.next().await
        {
            if let Said::Answered = said {
                heard.insert(at);
            }
        }
    };
    if !stays {
        // Too late is as good as not at all.
        let _ = tokio::time::timeout(KEEP, answers).await;
    }
    tracing::debug!(member = first, "a member of etcd answers");
    match stays || heard.contains(&with) || answers_calls() {
        true => link.stay(stream, with),
        false => link.doubt(stream),
    }
    link.settled();
}

/// Asks one member, after a while.
async fn say(link: &Link, at: usize, ask: &RangeRequest, after: Duration) -> (usize, Said) {
    tokio::time::sleep(after).await;
    let Some(channel) = link.channel_to(at) else { return (at, Said::Unconnected) };
    let asked = async || {
        let request = link.request(&channel, ask.clone()).await.map_err(|status| (status, None))?;
        let shown = token_of(&request);
        KvClient::new(channel.clone()).range(request).await.map_err(|status| (status, shown))
    };
    let answer = tokio::time::timeout(CALL_MAX, async {
        let answer = match asked().await {
            Err((status, shown)) if stale_token(&status) => {
                link.forget_token(shown.as_ref());
                asked().await
            }
            answer => answer,
        };
        answer.map_err(|(status, _)| status)
    });
    let said = match answer.await {
        Ok(Err(status)) if unconnected(&status) => Said::Unconnected,
        // Also one that could not be read: it is nothing that the member said.
        Ok(Err(status)) if elsewhere(&status) || status.source().is_some() => Said::Nothing,
        Ok(_) => Said::Answered,
        Err(_) => Said::Nothing,
    };
    (at, said)
}
