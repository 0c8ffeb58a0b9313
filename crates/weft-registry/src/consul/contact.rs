// SPDX-License-Identifier: Apache-2.0
//! Whether the store that several servers share can be reached, and which servers are there: what
//! Consul's clients are told of a leader and of peers. One read of the store twice a second keeps
//! it true. Made by [`super::Handle`]; the Consul door reads it.
//!
//! A server that has its store to itself asks nobody: it is always in contact. Never writes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_base::clock::Mono;
use weft_base::task::TaskGroup;
use weft_store::{Store, StoreError};

use crate::Leader;
use crate::leader::SERVERS;
use crate::servers::Said;

const ASK_EVERY: Duration = Duration::from_millis(500);
/// A store that has not answered for this long is out of reach, as far as is known.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Another server on the store, or this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: Arc<str>,
    /// Its node's id; empty where a server says none.
    pub id: String,
    /// Where its own API is.
    pub api: String,
}

#[derive(Debug)]
pub struct Contact {
    leader: Leader,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// When the store was asked what it answered last.
    at: Mono,
    peers: Vec<Peer>,
}

// === impl Contact ===

impl Contact {
    pub(super) fn new(leader: Leader) -> Self {
        // The store was read a moment ago: the server begins with that.
        let seen = Seen { at: leader.clock().now(), peers: Vec::new() };
        Self { leader, seen: Mutex::new(seen) }
    }

    /// Whether other servers may be on the same store.
    pub fn is_shared(&self) -> bool {
        self.leader.is_shared()
    }

    /// How long ago the store surely answered.
    pub fn since(&self) -> Duration {
        match self.is_shared() {
            true => self.leader.clock().now().since(self.seen().at),
            false => Duration::ZERO,
        }
    }

    /// Whether the store could be reached just now.
    pub fn is_known(&self) -> bool {
        self.since() < SILENT_AFTER
    }

    /// The servers that are there, by name, as the store said last.
    pub fn peers(&self) -> Vec<Peer> {
        self.seen().peers.clone()
    }

    /// The one of them that leads; none while nobody does, or nobody can tell.
    pub fn leading(&self) -> Option<Peer> {
        let name = self.leader.who().filter(|_| self.is_known())?;
        self.seen().peers.iter().find(|peer| peer.name == name).cloned()
    }

    pub(super) async fn follow(self: Arc<Self>, store: Arc<dyn Store>, tasks: TaskGroup) {
        let asking = async {
            loop {
                if let Err(error) = self.ask(&*store).await {
                    tracing::debug!(%error, "the store cannot be reached");
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        tokio::select! {
            () = tasks.draining() => {}
            () = asking => {}
        }
    }

    async fn ask(&self, store: &dyn Store) -> Result<(), StoreError> {
        let at = self.leader.clock().now();
        let page = store.range(SERVERS, 0, None).await?;
        let said = |(key, entry): &(Arc<str>, weft_store::Entry)| {
            Some((Arc::<str>::from(key.strip_prefix(SERVERS)?), Said::read(&entry.value)))
        };
        let there: Vec<_> = page.entries.iter().filter_map(said).filter(|s| !s.1.leaving).collect();
        self.leader.note_runs(there.iter().map(|(_, said)| said.run.clone()).collect());
        let peer = |(name, said): (Arc<str>, Said)| Peer { name, id: said.id, api: said.api };
        let peers = there.into_iter().map(peer).collect();
        *self.seen() = Seen { at, peers };
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use weft_base::clock::Clock;
    use weft_store::{MemoryStore, Op, Txn};

    use super::*;

    fn announced(name: &str, value: &str) -> Op {
        Op::put_ephemeral(format!("{SERVERS}{name}"), value.to_owned())
    }

    #[tokio::test]
    async fn contact_ends_with_silence_and_peers_are_those_that_the_store_names() {
        let (clock, time) = Clock::manual();
        let store = MemoryStore::new(clock.clone());
        let leader = Leader::among("a", clock.clone());
        let contact = Contact::new(leader.clone());
        let ops = [announced("a", r#"{"api":"127.0.0.1:1","id":"i"}"#), announced("b", "{}")];
        store.txn(Txn::of(ops)).await.unwrap();
        contact.ask(&store).await.unwrap();
        let said: Vec<_> = contact.peers().into_iter().map(|p| (p.name, p.id, p.api)).collect();
        let of = |name: &str, id: &str, api: &str| (name.into(), id.to_owned(), api.to_owned());
        assert_eq!(said, [of("a", "i", "127.0.0.1:1"), of("b", "", "")]);
        assert!(contact.is_known() && contact.leading().is_none(), "nobody leads yet");
        leader.lead(weft_store::Revision(1), clock.now().plus(Duration::from_secs(60)));
        assert_eq!(contact.leading().unwrap().api, "127.0.0.1:1");
        time.advance(SILENT_AFTER);
        assert!(!contact.is_known() && contact.since() == SILENT_AFTER);
        assert_eq!(contact.leading(), None, "nobody can tell");
        contact.ask(&store).await.unwrap();
        assert!(contact.is_known() && contact.leading().is_some());
        let alone = Contact::new(Leader::alone(clock));
        time.advance(SILENT_AFTER);
        assert!(alone.is_known() && alone.since().is_zero());
    }
}
