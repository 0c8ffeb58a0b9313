// SPDX-License-Identifier: Apache-2.0
//! Between the log's words and etcd's messages. Pure.
//!
//! A value begins with one byte that names its class (`s` or `e`), so that one key has one place
//! whatever its class; an ephemeral key without a lease of its own (`h`) hangs on that of the
//! server that wrote it, and ends with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use weft_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use weft_proto::etcdserverpb::request_op::Request;
use weft_proto::etcdserverpb::response_op::Response;
use weft_proto::etcdserverpb::{
    Compare as EtcdCompare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp,
    TxnRequest,
};
use weft_proto::mvccpb::{self, KeyValue, event::EventType};

use crate::{Class, Compare, Entry, Event, EventKind, Key, LeaseId, Op, Revision, StoreError, Txn};

/// What this mesh calls its keys in an etcd, and this server's own lease.
#[derive(Debug)]
pub(super) struct Names {
    /// Before everything of this mesh.
    root: Arc<str>,
    /// Before every key.
    keys: Arc<str>,
    /// The lease of ephemeral keys that have none of their own; 0 while there is none.
    own: AtomicI64,
}

/// The first byte of a value: durable, ephemeral on a lease of its own, or on the server's.
const SYNCED: u8 = b's';
const EPHEMERAL: u8 = b'e';
const HELD: u8 = b'h';

// === impl Names ===

impl Names {
    pub fn new(prefix: &str) -> Self {
        let keys = format!("{prefix}k").into();
        Self { root: prefix.into(), keys, own: AtomicI64::new(0) }
    }

    /// This server's lease.
    pub fn lease(&self) -> i64 {
        self.own.load(Ordering::Acquire)
    }

    pub fn set_lease(&self, lease: i64) {
        self.own.store(lease, Ordering::Release);
    }

    /// Everything of this mesh, as `[start, end)`.
    pub fn all(&self) -> (Bytes, Bytes) {
        (Bytes::copy_from_slice(self.root.as_bytes()), end_of(self.root.as_bytes()))
    }

    /// A write that means nothing: whoever sees it has seen all before it. Other users of an etcd
    /// move its revision, and watches do not hear of that.
    pub fn mark(&self) -> TxnRequest {
        let key = format!("{}mark", self.root).into();
        let put = PutRequest { key, ..<_>::default() };
        let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
        TxnRequest { success, ..<_>::default() }
    }

    /// A read of nothing, which a majority confirms: how far the log is.
    pub fn now(&self) -> RangeRequest {
        RangeRequest { key: self.key(""), keys_only: true, ..<_>::default() }
    }

    pub fn key(&self, key: &str) -> Bytes {
        [self.keys.as_bytes(), key.as_bytes()].concat().into()
    }

    /// Every key that begins with `prefix`, as `[start, end)`.
    pub fn under(&self, prefix: &str) -> (Bytes, Bytes) {
        let start = self.key(prefix);
        let end = end_of(&start);
        (start, end)
    }

    /// Our name of a key; `None` when it is not ours or no text.
    pub fn own(&self, key: &[u8]) -> Option<Key> {
        let rest = key.strip_prefix(self.keys.as_bytes())?;
        std::str::from_utf8(rest).ok().map(Into::into)
    }

    pub fn entry(&self, kv: &KeyValue) -> Result<(Key, Entry), StoreError> {
        let corrupt = || StoreError::Corrupt { key: String::from_utf8_lossy(&kv.key).into() };
        let key = self.own(&kv.key).ok_or_else(corrupt)?;
        let (class, value) = unpack(&kv.value).ok_or_else(corrupt)?;
        let held = kv.value.first() == Some(&HELD);
        let lease = (kv.lease != 0 && !held).then(|| LeaseId(unsigned(kv.lease)));
        let (created, modified) = (revision(kv.create_revision), revision(kv.mod_revision));
        Ok((key, Entry { value, created, modified, class, lease }))
    }

    /// `None` for what is not ours.
    pub fn event(&self, event: &mvccpb::Event) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let key = self.own(&kv.key)?;
        let prev = event.prev_kv.as_ref().and_then(|kv| unpack(&kv.value));
        let revision = revision(kv.mod_revision);
        let (kind, class, value) = match event.r#type() {
            EventType::Put => {
                let (class, value) = unpack(&kv.value)?;
                (EventKind::Put, class, value)
            }
            EventType::Delete => {
                let (class, value) = prev.clone().unwrap_or_default();
                (EventKind::Delete, class, value)
            }
        };
        Some(Event { revision, key, kind, value, prev: prev.map(|p| p.1), class })
    }

    /// The transaction, with reads of what was compared for when it does not hold.
    pub fn txn(&self, txn: &Txn) -> TxnRequest {
        let look = |c: &Compare| {
            let range = RangeRequest { key: self.key(c.key()), keys_only: true, ..<_>::default() };
            RequestOp { request: Some(Request::RequestRange(range)) }
        };
        TxnRequest {
            compare: txn.compares.iter().map(|c| self.compare(c)).collect(),
            success: txn.ops.iter().map(|op| self.op(op)).collect(),
            failure: txn.compares.iter().map(look).collect(),
        }
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        let (result, target, at) = match compare {
            Compare::Absent(_) => {
                (CompareResult::Equal, CompareTarget::Create, TargetUnion::CreateRevision(0))
            }
            Compare::Exists(_) => {
                (CompareResult::Greater, CompareTarget::Create, TargetUnion::CreateRevision(0))
            }
            Compare::ModRevision(_, at) => {
                // 0 would hold for a key that is not there.
                let at = if at.0 == 0 { i64::MAX } else { signed(at.0) };
                (CompareResult::Equal, CompareTarget::Mod, TargetUnion::ModRevision(at))
            }
        };
        EtcdCompare {
            result: result.into(),
            target: target.into(),
            key: self.key(compare.key()),
            target_union: Some(at),
        }
    }

    fn op(&self, op: &Op) -> RequestOp {
        let request = match op {
            Op::Put { key, value, class, lease } => {
                let (mark, lease) = match (lease, class) {
                    (Some(lease), Class::Synced) => (SYNCED, signed(lease.0)),
                    (Some(lease), Class::Ephemeral) => (EPHEMERAL, signed(lease.0)),
                    (None, Class::Ephemeral) => (HELD, self.lease()),
                    (None, Class::Synced) => (SYNCED, 0),
                };
                let value = pack(mark, value);
                Request::RequestPut(PutRequest { key: self.key(key), value, lease })
            }
            Op::Delete { key } => {
                let (key, range_end) = (self.key(key), Bytes::new());
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end })
            }
            Op::DeletePrefix { prefix } => {
                let (key, range_end) = self.under(prefix);
                Request::RequestDeleteRange(DeleteRangeRequest { key, range_end })
            }
        };
        RequestOp { request: Some(request) }
    }
}

/// The first comparison that does not hold, by what was read in its place.
pub(super) fn failed(compares: &[Compare], read: &[ResponseOp]) -> Option<usize> {
    let holds = |(compare, read): (&Compare, &ResponseOp)| {
        let Some(Response::ResponseRange(range)) = &read.response else { return false };
        let found = range.kvs.first();
        match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::Exists(_) => found.is_some(),
            Compare::ModRevision(_, at) => found.is_some_and(|kv| revision(kv.mod_revision) == *at),
        }
    };
    compares.iter().zip(read).position(|pair| !holds(pair))
}

/// Whether a transaction that held wrote anything.
pub(super) fn changed(responses: &[ResponseOp]) -> bool {
    responses.iter().any(|r| match &r.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(range)) => range.deleted > 0,
        _ => false,
    })
}

/// The first key after all that begin with `start`; all keys when there is none.
fn end_of(start: &[u8]) -> Bytes {
    let mut end = start.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

fn pack(mark: u8, value: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 1);
    out.put_u8(mark);
    out.put_slice(value);
    out.freeze()
}

fn unpack(value: &Bytes) -> Option<(Class, Bytes)> {
    let class = match value.first()? {
        &SYNCED => Class::Synced,
        &EPHEMERAL | &HELD => Class::Ephemeral,
        _ => return None,
    };
    Some((class, value.slice(1..)))
}

pub(super) fn revision(r: i64) -> Revision {
    Revision(unsigned(r))
}

pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key() {
        let names = Names::new("/weft/");
        assert_eq!(names.under("/a").1, "/weft/k/b");
        assert_eq!(names.all().1, "/weft0");
        assert_eq!(&*end_of(&[0xff, 0xff]), [0]);
        assert_eq!(&*end_of(&[b'a', 0xff]), b"b");
    }

    #[test]
    fn a_revision_that_cannot_be_never_holds() {
        let names = Names::new("/weft/");
        let made = names.compare(&Compare::ModRevision("/a".into(), Revision(0)));
        assert_eq!(made.target_union, Some(TargetUnion::ModRevision(i64::MAX)));
    }

    #[test]
    fn values_keep_their_class_and_foreign_ones_are_told() {
        let names = Names::new("/weft/");
        let marks = [Class::Synced, Class::Ephemeral, Class::Ephemeral];
        for (mark, class) in [SYNCED, EPHEMERAL, HELD].into_iter().zip(marks) {
            assert_eq!(unpack(&pack(mark, &"x".into())), Some((class, "x".into())));
        }
        let foreign = KeyValue { key: "/weft/k/a".into(), value: "{}".into(), ..<_>::default() };
        assert!(matches!(names.entry(&foreign), Err(StoreError::Corrupt { .. })));
        assert_eq!(names.own(b"/weft/mark"), None);
    }
}
