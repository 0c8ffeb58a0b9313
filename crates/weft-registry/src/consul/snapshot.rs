// SPDX-License-Identifier: Apache-2.0
//! All of the catalog, pairs and records as it was at one revision, and put back. Sessions are
//! not part of it: whoever held one has to ask anew, and what it held is free.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use weft_kinds::world::StoreKey;
use weft_store::{Op, Txn};

use super::error::ConsulError;
use super::kv::Pair;
use super::{Handle, keys};

/// What belongs to it: rooms of the store.
const KEPT: [&str; 5] = [keys::PAIRS, keys::RECORDS, "/c/n/", "/c/i/", "/c/k/"];
/// Writes, and bytes of them, in one transaction.
const OPS_AT_ONCE: usize = 100;
const BYTES_AT_ONCE: usize = 4 * 1024 * 1024;

#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub revision: u64,
    pub entries: BTreeMap<Arc<str>, Bytes>,
}

impl Handle {
    /// # Errors
    /// When the store cannot be read.
    pub async fn dump(&self) -> Result<Dump, ConsulError> {
        let page = self.store().range("/", 0, None).await?;
        let mut entries = BTreeMap::new();
        for (key, entry) in page.entries {
            if !is_kept(&key) {
                continue;
            }
            let value = match key.starts_with(keys::PAIRS) {
                true => free(&entry.value)?,
                false => entry.value,
            };
            entries.insert(key, value);
        }
        Ok(Dump { revision: page.revision.0, entries })
    }

    /// Makes everything as it was. First all of it is judged; then it is written in parts, so a
    /// reader may meanwhile see some of both.
    ///
    /// # Errors
    /// When something in it is no record, or the store refuses.
    pub async fn restore(&self, dump: Dump) -> Result<(), ConsulError> {
        for (key, value) in &dump.entries {
            judge(key, value)?;
        }
        let sessions: Vec<Arc<str>> =
            self.state().sessions().map(|session| session.id.clone()).collect();
        for id in sessions {
            self.destroy_session(&id).await?;
        }
        let now = self.dump().await?.entries;
        let puts = dump.entries.iter().filter(|(key, value)| now.get(*key) != Some(value));
        let puts = puts.map(|(key, value)| Op::put(key.clone(), value.clone()));
        let gone = now.keys().filter(|key| !dump.entries.contains_key(*key));
        let tables = dump.entries.keys().chain(now.keys()).filter_map(|key| table_of(key));
        let tables: std::collections::BTreeSet<String> = tables.collect();
        let tables = tables.into_iter().map(|table| Op::put(keys::table(&table), Vec::new()));
        let mut txn = Txn::default();
        let mut bytes = 0;
        let results = gone.clone().filter_map(|key| result_of(key)).map(Op::delete);
        for op in puts.chain(gone.map(|key| Op::delete(key.clone()))).chain(results).chain(tables) {
            bytes += match &op {
                Op::Put { value, .. } => value.len(),
                _ => 0,
            };
            txn.ops.push(op);
            if txn.ops.len() >= OPS_AT_ONCE || bytes >= BYTES_AT_ONCE {
                let part = std::mem::take(&mut txn);
                self.attempt(|_| Ok::<_, ConsulError>((part.clone(), ()))).await?;
                bytes = 0;
            }
        }
        self.attempt(|_| Ok::<_, ConsulError>((txn.clone(), ()))).await?;
        Ok(())
    }
}

// === helpers ===

fn is_kept(key: &str) -> bool {
    KEPT.iter().any(|room| key.starts_with(room))
}

/// The key of what a check said, by the check's own.
fn result_of(key: &str) -> Option<String> {
    match StoreKey::parse(key) {
        Some(StoreKey::Check(check)) => Some(StoreKey::CheckStatus(check).to_string()),
        _ => None,
    }
}

fn table_of(key: &str) -> Option<String> {
    let rest = key.strip_prefix(keys::RECORDS)?;
    rest.split_once('/').map(|(table, _)| table.to_owned())
}

/// A pair that nobody holds.
fn free(value: &[u8]) -> Result<Bytes, ConsulError> {
    match Pair::read(value) {
        Some(pair) => Ok(Pair { session: "".into(), ..pair }.write()?.into()),
        None => Ok(Bytes::copy_from_slice(value)),
    }
}

fn judge(key: &str, value: &[u8]) -> Result<(), ConsulError> {
    let wrong = || ConsulError::Invalid(format!("the snapshot has {key:?}, which is no record"));
    if !is_kept(key) {
        return Err(wrong());
    }
    if key.starts_with(keys::PAIRS) {
        return Pair::read(value).map(|_| ()).ok_or_else(wrong);
    }
    let json: Value = serde_json::from_slice(value).map_err(|_| wrong())?;
    if key.starts_with(keys::RECORDS) {
        return Ok(());
    }
    let known = matches!(
        StoreKey::parse(key),
        Some(StoreKey::Node(_) | StoreKey::Registration(_) | StoreKey::Check(_))
    );
    if known && json.is_object() { Ok(()) } else { Err(wrong()) }
}
