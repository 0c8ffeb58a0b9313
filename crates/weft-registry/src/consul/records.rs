// SPDX-License-Identifier: Apache-2.0
//! Records: JSON documents in tables (prepared queries, config entries, access lists, settings)
//! that the door knows the meaning of. Writes to one table follow each other, on every server:
//! each also writes the table's own key, compared with how it was seen, so what a plan found
//! unique stays so.

use std::sync::Arc;

use serde_json::Value;
use weft_store::{Compare, Op, Revision, Txn};

use super::error::ConsulError;
use super::state::{Item, State, What};
use super::{Handle, keys};

/// The table of where nodes are in the network: a record for each, under its encoded name, which
/// goes with its node.
pub const COORDINATES: &str = "coordinate";
/// Records of one table.
pub const RECORDS_MAX: usize = 20_000;

/// One change of a table, as a plan wants it.
#[derive(Clone, Debug)]
pub enum Change {
    Put(String, Value),
    Delete(String),
}

// === impl State ===

impl State {
    pub fn record(&self, table: &str, name: &str) -> Option<(&Arc<Value>, &Item)> {
        let item = self.item(&keys::record(table, name))?;
        match &item.what {
            What::Record(value) => Some((value, item)),
            _ => None,
        }
    }

    /// A table's records in the order of their names.
    pub fn records(&self, table: &str) -> Vec<(Arc<Value>, Item)> {
        let prefix = keys::record(table, "");
        let all = self.under(&prefix).filter_map(|(_, item)| match &item.what {
            What::Record(value) => Some((value.clone(), item.clone())),
            _ => None,
        });
        all.collect()
    }
}

impl Handle {
    /// Changes a table as `plan` says of its present state; returns what the plan returned and
    /// the revision that was written, or looked at when nothing changed.
    ///
    /// # Errors
    /// What the plan refuses with; when the table is full, or the store refuses.
    pub async fn change<T, E: From<ConsulError>>(
        &self,
        table: &str,
        plan: impl Fn(&State) -> Result<(Vec<Change>, T), E>,
    ) -> Result<(u64, T), E> {
        let (own, begun) = (keys::table(table), self.begun());
        let _turn = self.turn(&own).await;
        let plan = |state: &State| {
            let (changes, out) = plan(state)?;
            let txn = table_txn(state, table, &own, changes).map_err(E::from)?;
            Ok((txn, out))
        };
        self.attempt_given(Some(begun), &[], plan).await
    }
}

// === helpers ===

fn table_txn(
    state: &State,
    table: &str,
    own: &str,
    changes: Vec<Change>,
) -> Result<Txn, ConsulError> {
    let mut txn = Txn::default();
    let mut more = 0;
    for change in changes {
        match change {
            Change::Put(name, value) => {
                let known = state.record(table, &name);
                if known.is_some_and(|(old, _)| **old == value) {
                    continue;
                }
                more += usize::from(known.is_none());
                txn.ops.push(Op::put(keys::record(table, &name), serde_json::to_vec(&value)?));
            }
            Change::Delete(name) if state.record(table, &name).is_some() => {
                txn.ops.push(Op::delete(keys::record(table, &name)));
            }
            Change::Delete(_) => {}
        }
    }
    if more > 0 {
        let found = state.under(&keys::record(table, "")).count() + more;
        if found > RECORDS_MAX {
            return Err(ConsulError::TooMuch { what: "the table", found, max: RECORDS_MAX });
        }
    }
    if !txn.ops.is_empty() {
        txn.ops.push(Op::put(own, Vec::new()));
        txn.compares.push(match state.item(own) {
            Some(item) => Compare::ModRevision(own.into(), Revision(item.modified)),
            None => Compare::Absent(own.into()),
        });
    }
    Ok(txn)
}
