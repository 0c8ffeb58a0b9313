// SPDX-License-Identifier: Apache-2.0
//! `/v1/txn`: operations on pairs, nodes, services and checks, all at once or none. Every
//! operation is authorised by itself, whatever stands beside it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};
use weft_identity::permission::{Kind, Verb};
use weft_registry::consul::{
    CatalogDraft, ConsulError, Draft, Seen, UNWRITTEN, VALUE_BYTES_MAX, keys,
};

use super::Door;
use super::admit::Admission;
use super::body::{self, Fields};
use super::error::Refusal;
use super::http::Ask;
use super::kv;
use super::register::bodies;
use super::reply::Reply;
use super::txn_catalog::CatalogVerb;
use super::view::View;
use crate::guards;

/// Operations of one transaction, as in Consul.
const OPS_MAX: usize = 128;

const VERBS: [&str; 13] = [
    "set",
    "cas",
    "lock",
    "unlock",
    "get",
    "get-or-empty",
    "get-tree",
    "check-index",
    "check-session",
    "check-not-exists",
    "delete",
    "delete-tree",
    "delete-cas",
];

/// One operation, read.
#[derive(Debug)]
pub(super) enum TxnOp {
    Pair(PairOp),
    Catalog(CatalogVerb),
}

#[derive(Debug)]
pub(super) struct PairOp {
    verb: String,
    /// In the store, and as the client names it.
    at: String,
    key: String,
    value: Bytes,
    flags: u64,
    index: u64,
    session: String,
}

/// What an operation shows.
#[derive(Debug)]
enum Shown {
    /// Pairs, with or without their values.
    Pairs(Vec<(Seen, bool)>),
    /// A record as the operation left it, if the caller may see it.
    Record(Option<(&'static str, Value)>),
}

impl Door {
    pub(super) async fn txn(&self, ask: &Ask) -> Result<Reply, Refusal> {
        let ops = self.read_txn(ask)?;
        let verbs = || ops.iter().filter_map(TxnOp::catalog);
        let made: Vec<_> = verbs().filter_map(CatalogVerb::makes).collect();
        let keys = |view: &View| verbs().flat_map(|verb| verb.grounds(view)).collect();
        let look = self.look(ask, keys).await?;
        let admission = Admission { ask, view: &look.view, made: &made };
        let denied = |(at, op)| admit_op(&admission, op).err().map(|why| fault(at, &why.text));
        let denied: Vec<Value> = ops.iter().enumerate().filter_map(denied).collect();
        if !denied.is_empty() {
            return Err(refused(denied));
        }
        let mut seen = look.seen;
        for verb in verbs() {
            // Once each: the store compares so many only.
            for one in self.seen_before(verb).await? {
                if !seen.contains(&one) {
                    seen.push(one);
                }
            }
        }
        let mut blocking = ask.params.blocking()?;
        let is_tree = ops.iter().any(TxnOp::is_tree);
        let reads = ops.iter().all(TxnOp::reads);
        match reads {
            true if blocking.consistent => self.consul().caught_up().await?,
            // As any read is answered.
            true => blocking = Box::pin(self.catch_up(&blocking)).await,
            false if is_tree => self.consul().caught_up().await?,
            false => {}
        }
        let view = self.view();
        let plan =
            |draft: &mut Draft, catalog: &mut CatalogDraft| plan(ask, &view, &ops, draft, catalog);
        let done = self.consul().transact((&seen, reads || is_tree), plan).await;
        let (revision, shown) = match done {
            Err(ConsulError::Refused(faults)) => {
                return Err(refused(faults.iter().map(|(at, why)| fault(*at, why)).collect()));
            }
            other => other?,
        };
        self.settled().await;
        let mut results = Vec::new();
        for (op, shown) in ops.iter().zip(shown) {
            match (op, shown) {
                // Clients count: of one that is not there is said that.
                (TxnOp::Pair(op), Shown::Pairs(seen))
                    if seen.is_empty() && op.verb == "get-or-empty" =>
                {
                    results.push(json!({"KV": {
                        "LockIndex": 0, "Key": op.key, "Flags": op.flags, "Value": null,
                        "CreateIndex": 0, "ModifyIndex": 0,
                    }}));
                }
                (_, Shown::Pairs(seen)) => {
                    results.extend(seen.iter().map(|one| pair_shape(one, revision)));
                }
                (_, Shown::Record(record)) => {
                    results.extend(record.map(|(what, shape)| record_shape(what, shape, revision)));
                }
            }
        }
        Ok(Reply::json(json!({"Results": results, "Errors": null})).at(revision, &blocking))
    }

    fn read_txn(&self, ask: &Ask) -> Result<Vec<TxnOp>, Refusal> {
        let list = body::list(&ask.body)?;
        if list.len() > OPS_MAX {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("Transaction contains too many operations ({} > {OPS_MAX})", list.len()),
            ));
        }
        list.iter().map(|op| self.read_op(ask, op)).collect()
    }

    fn read_op(&self, ask: &Ask, op: &Value) -> Result<TxnOp, Refusal> {
        let Some(op) = op.as_object() else {
            return Err(Refusal::bad("Request decode failed: an operation is no JSON object"));
        };
        bodies::fields(op, bodies::TXN)?;
        let fields = Fields::new(op, "");
        if let Some(part) = fields.object("KV")? {
            return read_pair_op(ask, part).map(TxnOp::Pair);
        }
        for what in ["Node", "Service", "Check"] {
            if let Some(part) = fields.object(what)? {
                return self.read_catalog_op(ask, what, part).map(TxnOp::Catalog);
            }
        }
        Err(Refusal::bad("an operation has none of KV, Node, Service and Check"))
    }
}

// === impl TxnOp ===

impl TxnOp {
    fn catalog(&self) -> Option<&CatalogVerb> {
        match self {
            Self::Catalog(verb) => Some(verb),
            Self::Pair(_) => None,
        }
    }

    /// Whether it changes nothing.
    fn reads(&self) -> bool {
        match self {
            Self::Pair(op) => op.verb.starts_with("get") || op.verb.starts_with("check-"),
            Self::Catalog(verb) => verb.reads(),
        }
    }

    /// Whether it is about all pairs under a prefix.
    fn is_tree(&self) -> bool {
        matches!(self, Self::Pair(op) if op.verb.ends_with("-tree"))
    }
}

// === helpers ===

fn admit_op(by: &Admission, op: &TxnOp) -> Result<(), Refusal> {
    if !guards::on("txn-each") {
        return Ok(());
    }
    let op = match op {
        TxnOp::Catalog(verb) => return verb.admit(by),
        TxnOp::Pair(op) => op,
    };
    let (who, ns) = (&by.ask.who, &by.ask.namespace);
    match op.verb.as_str() {
        "get-tree" => who.demand_tree(Verb::Read, Kind::Key, ns, &op.key),
        "delete-tree" => who.demand_tree(Verb::Write, Kind::Key, ns, &op.key),
        "get" | "get-or-empty" | "check-index" | "check-session" | "check-not-exists" => {
            who.demand(Verb::Read, Kind::Key, ns, &op.key)
        }
        _ => who.demand(Verb::Write, Kind::Key, ns, &op.key),
    }
}

fn read_pair_op(ask: &Ask, part: &Map<String, Value>) -> Result<PairOp, Refusal> {
    bodies::fields(part, bodies::TXN_KV)?;
    let fields = Fields::new(part, "KV.");
    let key = fields.text("Key")?;
    let verb = fields.text("Verb")?;
    let value = match fields.value("Value") {
        None => Bytes::new(),
        Some(Value::String(text)) => STANDARD
            .decode(text)
            .map_err(|_| {
                Refusal::bad(format!("Request decode failed: the value of {key:?} is no base 64"))
            })?
            .into(),
        Some(_) => return Err(Refusal::bad("Request decode failed: KV.Value: expected base 64")),
    };
    if value.len() > VALUE_BYTES_MAX && guards::on("value-size") {
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "Value for key {key:?} is too large ({} > {VALUE_BYTES_MAX} bytes)",
                value.len()
            ),
        ));
    }
    if !VERBS.contains(&verb.as_str()) {
        return Err(Refusal::bad(format!("unknown KV verb {verb:?}")));
    }
    if key.is_empty() && !verb.ends_with("-tree") {
        return Err(Refusal::bad("Missing key name"));
    }
    Ok(PairOp {
        at: keys::pair(&ask.namespace, &key),
        verb,
        key,
        value,
        flags: fields.number("Flags", u64::MAX)?.unwrap_or(0),
        index: fields.number("Index", u64::MAX)?.unwrap_or(0),
        session: fields.text("Session")?,
    })
}

/// Does them in their order, each on what those before it left.
fn plan(
    ask: &Ask,
    view: &View,
    ops: &[TxnOp],
    draft: &mut Draft,
    catalog: &mut CatalogDraft,
) -> Result<Vec<Shown>, ConsulError> {
    let (mut shown, mut faults) = (Vec::new(), Vec::new());
    for (at, op) in ops.iter().enumerate() {
        let done = match op {
            TxnOp::Catalog(verb) => verb.run(ask, view, catalog).map(Shown::Record),
            TxnOp::Pair(op) => pair_verb(draft, op).map(Shown::Pairs),
        };
        match done {
            Ok(one) => shown.push(one),
            Err(why) => faults.push((at, why)),
        }
    }
    if faults.is_empty() { Ok(shown) } else { Err(ConsulError::Refused(faults)) }
}

/// Does one verb; what it shows, with or without values.
fn pair_verb(draft: &mut Draft, op: &PairOp) -> Result<Vec<(Seen, bool)>, String> {
    let PairOp { at, key, value, flags, index, session, .. } = op;
    let one = |draft: &mut Draft, value: bool| draft.get(at).map(|seen| (seen, value));
    let told = |done: bool, why: String| if done { Ok(()) } else { Err(why) };
    let absent = || format!("key {key:?} doesn't exist");
    match op.verb.as_str() {
        "lock" | "unlock" if session.is_empty() => return Err("missing session".to_owned()),
        "set" => draft.set(at, value.clone(), *flags),
        "cas" => {
            let done = draft.cas(at, value.clone(), *flags, *index);
            told(done, format!("failed to set key {key:?}, index is stale"))?;
        }
        "lock" => {
            let done = draft.lock(at, value.clone(), *flags, session);
            let done = done.map_err(|why| why.to_string())?;
            told(done, format!("failed to lock key {key:?}, lock is already held"))?;
        }
        "unlock" => {
            let done = draft.unlock(at, value.clone(), *flags, session);
            let why = "lock isn't held, or is held by another session";
            told(done, format!("failed to unlock key {key:?}, {why}"))?;
        }
        "get" => return one(draft, true).map(|seen| vec![seen]).ok_or_else(absent),
        "get-or-empty" => return Ok(one(draft, true).into_iter().collect()),
        "get-tree" => return Ok(draft.tree(at).into_iter().map(|seen| (seen, true)).collect()),
        "check-index" => {
            let seen = draft.get(at).ok_or_else(absent)?;
            let found = seen.item.as_ref().map(|item| item.modified);
            let why = match found {
                Some(found) => format!("current modify index {found} != {index}"),
                None => format!("this transaction changed it, and its index is not {index}"),
            };
            let holds = found == Some(*index);
            told(holds, format!("failed index check for key {key:?}, {why}"))?;
            return Ok(vec![(seen, false)]);
        }
        "check-session" => {
            let seen = draft.get(at).ok_or_else(absent)?;
            let why = format!("current session {:?} != {session:?}", &*seen.pair.session);
            let holds = *seen.pair.session == **session;
            told(holds, format!("failed session check for key {key:?}, {why}"))?;
            return Ok(vec![(seen, false)]);
        }
        "check-not-exists" => {
            told(draft.get(at).is_none(), format!("key {key:?} exists"))?;
        }
        "delete" => draft.delete(at),
        "delete-tree" => draft.delete_tree(at),
        _ => {
            let done = draft.delete_cas(at, *index);
            told(done, format!("failed to delete key {key:?}, index is stale"))?;
        }
    }
    Ok(one(draft, false).into_iter().collect())
}

fn pair_shape((seen, value): &(Seen, bool), revision: u64) -> Value {
    let modified = seen.item.as_ref().map_or(revision, |item| item.modified);
    let stamp = (seen.created.unwrap_or(revision), modified);
    let mut shape = kv::shape(keys::client_key(&seen.key), &seen.pair, stamp);
    if !value && let Value::Object(map) = &mut shape {
        map.insert("Value".into(), Value::Null);
    }
    json!({"KV": shape})
}

/// A record, with the revision in place of [`UNWRITTEN`].
fn record_shape(what: &str, mut shape: Value, revision: u64) -> Value {
    for index in ["CreateIndex", "ModifyIndex"] {
        if let Some(at) = shape.get_mut(index).filter(|at| **at == UNWRITTEN.0) {
            *at = json!(revision);
        }
    }
    Value::Object(Map::from_iter([(what.to_owned(), shape)]))
}

fn fault(at: usize, why: &str) -> Value {
    json!({"OpIndex": at, "What": why})
}

fn refused(faults: Vec<Value>) -> Refusal {
    let body = json!({"Results": null, "Errors": faults});
    Refusal { body: Some(Box::new(body)), ..Refusal::new(StatusCode::CONFLICT, "") }
}
