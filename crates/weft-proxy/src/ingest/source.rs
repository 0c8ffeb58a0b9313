// SPDX-License-Identifier: Apache-2.0
//! Where transactions come from: a server's stream (the binary connects `weft_xds::client` to
//! [`Feed`]), or one file of resources for `weft proxy -c FILE`.

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};
use weft_model::{Resource, ResourceName};
use weft_xds::{Applied, Rejected, Transaction, Upsert};

use super::Delivery;

/// Transactions that may wait; the server sends the next only after an answer.
const DELIVERIES_MAX: usize = 4;

/// The sending end of a proxy's configuration.
#[derive(Clone, Debug)]
pub struct Feed {
    deliveries: mpsc::Sender<Delivery>,
}

/// One named resource of a configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: ResourceName,
    resource: Resource,
}

/// A feed and the end that the proxy reads.
pub fn feed() -> (Feed, mpsc::Receiver<Delivery>) {
    let (tx, rx) = mpsc::channel(DELIVERIES_MAX);
    (Feed { deliveries: tx }, rx)
}

// === impl Feed ===

impl Feed {
    /// Hands a transaction over and waits until every worker has passed it; `None` when the proxy
    /// is going down. Dropping the future does not undo the transaction.
    pub async fn apply(&self, transaction: Transaction) -> Option<Applied> {
        let (applied, answer) = oneshot::channel();
        self.deliveries.send(Delivery::Transaction(transaction, applied)).await.ok()?;
        answer.await.ok()
    }

    /// The same for one that is taken whole or not at all: when one of its listeners cannot be
    /// opened, nothing of it is used, what was in use stays, and the answer says why.
    pub async fn apply_whole(
        &self,
        transaction: Transaction,
    ) -> Option<Result<Applied, Vec<Rejected>>> {
        let (applied, answer) = oneshot::channel();
        self.deliveries.send(Delivery::Whole(transaction, applied)).await.ok()?;
        answer.await.ok()
    }

    /// Says that a file is refused whole, for the doors that show it.
    pub async fn refuse(&self, why: String) {
        // A proxy that is going down shows nothing more.
        let _ = self.deliveries.send(Delivery::Refused(why)).await;
    }

    /// Says that so many lookups of endpoints' names found nothing.
    pub async fn unresolved(&self, lookups: u64) {
        // As above.
        let _ = self.deliveries.send(Delivery::Unresolved(lookups)).await;
    }

    /// The stream to the server is up, or down. `false` when the proxy is going down.
    async fn link(&self, up: bool) -> bool {
        self.deliveries.send(Delivery::Link(up)).await.is_ok()
    }
}

/// Resources as one transaction.
///
/// # Errors
/// When a resource cannot be written as CBOR, which gives it its version.
pub fn transaction(
    generation: u64,
    resources: impl IntoIterator<Item = (ResourceName, Resource)>,
) -> Result<Transaction, String> {
    let upsert = |(name, resource): (ResourceName, Resource)| {
        let encoded = weft_xds::codec::encode(&resource).map_err(|e| format!("{name}: {e}"))?;
        let (version, bytes) = (encoded.version, encoded.bytes.len());
        Ok(Upsert { name, version, bytes, resource: Ok(resource) })
    };
    let upserts = resources.into_iter().map(upsert).collect::<Result<_, String>>()?;
    Ok(Transaction { generation, upserts, ..Transaction::default() })
}

/// Reads a YAML list of `{name, resource}`.
///
/// # Errors
/// Where and why the text is not such a list.
pub fn from_yaml(text: &str) -> Result<Transaction, String> {
    let named: Vec<Named> = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    transaction(1, named.into_iter().map(|n| (n.name, n.resource)))
}

/// Moves what a server's stream delivers into the proxy, and the answers back. `amended` is the
/// proxy's own ([`crate::Proxy::amended`]).
pub async fn pump(
    mut stream: weft_xds::client::Handle,
    feed: Feed,
    mut amended: watch::Receiver<Applied>,
) {
    let mut up = false;
    loop {
        tokio::select! {
            transaction = stream.transactions.recv() => {
                let Some(transaction) = transaction else { return };
                let Some(applied) = feed.apply(transaction).await else { return };
                if stream.applied.send(applied).await.is_err() {
                    return;
                }
            }
            Ok(()) = stream.status.changed() => {
                let connected = stream.status.borrow_and_update().connected;
                if std::mem::replace(&mut up, connected) != connected && !feed.link(up).await {
                    return;
                }
            }
            Ok(()) = amended.changed() => {
                let late = amended.borrow_and_update().clone();
                if stream.amended.send(late).await.is_err() {
                    return;
                }
            }
        }
    }
}
